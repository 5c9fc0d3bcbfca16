package webhooks

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"strings"

	"accountledger/domain"
	"accountledger/eventstore"
)

// How long a secret's key may be, as Standard Webhooks has it.
const (
	minKey = 24
	maxKey = 64
)

// secretFault says what is wrong with a secret for a key of a type, or "".
func secretFault(secret string, kind domain.WebhookKeyType) string {
	if strings.ContainsAny(secret, " \t\r\n") {
		return "must not contain white space"
	}
	if _, err := parseSigner(secret); err != nil {
		return "must be " + secretPrefix + " or " + privatePrefix + " and a key in base64"
	}
	if kind != "" && keyType(secret) != kind {
		return "must be a key of the type asked for"
	}
	if key, err := ParseSecret(secret); err == nil && (len(key) < minKey || len(key) > maxKey) {
		return fmt.Sprintf("the key must have %d to %d bytes", minKey, maxKey)
	}
	return ""
}

func keyType(secret string) domain.WebhookKeyType {
	if strings.HasPrefix(secret, privatePrefix) {
		return domain.KeyEd25519
	}
	return domain.KeyHMAC
}

// newSecret makes a key of a type; crypto/rand never fails.
func newSecret(kind domain.WebhookKeyType) string {
	if kind == domain.KeyEd25519 {
		_, private, err := ed25519.GenerateKey(nil)
		if err != nil {
			panic("webhooks: " + err.Error())
		}
		return privatePrefix + base64.StdEncoding.EncodeToString(private)
	}
	key := make([]byte, 32)
	rand.Read(key)
	return secretPrefix + base64.StdEncoding.EncodeToString(key)
}

// Rotation asks for a new key to sign with.
type Rotation struct {
	domain.RotateWebhookKey
	Secret string // "": one is made
}

// Rotate gives an endpoint a new key and returns its secret, which is shown
// this once. The same rotation asked for again is answered with the same
// secret.
func (w *Webhooks) Rotate(ctx context.Context, r domain.Request, id string, c Rotation) (Endpoint, string, eventstore.Position, error) {
	w.changing.Lock()
	defer w.changing.Unlock()
	c, before, err := w.checkRotation(ctx, r, id, c)
	if err != nil {
		return Endpoint{}, "", 0, err
	}
	kept, err := w.vault(ctx, id)
	if err != nil {
		return Endpoint{}, "", 0, fmt.Errorf("webhooks: rotate: %w", err)
	}
	for _, k := range before.Keys {
		if k.KeyID != c.KeyID {
			continue
		}
		if c.Secret != "" && c.Secret != kept[k.KeyID] {
			return Endpoint{}, "", 0, &domain.Error{Code: domain.CodeIdempotencyKeyReused, Detail: "There is another key with this id."}
		}
		e, err := w.endpointOf(ctx, before)
		return e, kept[k.KeyID], 0, err
	}
	if c.Secret == "" {
		c.Secret = newSecret(c.Type)
	}
	conf, at, err := w.changeWith(ctx, r, id, c.RotateWebhookKey, vault{c.KeyID: c.Secret})
	if err != nil {
		return Endpoint{}, "", 0, err
	}
	e, err := w.endpointOf(ctx, conf)
	return e, c.Secret, at, err
}

// TryRotate decides like Rotate and changes nothing.
func (w *Webhooks) TryRotate(ctx context.Context, r domain.Request, id string, c Rotation) (domain.Webhook, []domain.Entry, error) {
	c, _, err := w.checkRotation(ctx, r, id, c)
	if err != nil {
		return domain.Webhook{}, nil, err
	}
	return w.c.Ledger.TryWebhook(ctx, r, id, c.RotateWebhookKey)
}

// checkRotation refuses what cannot be rotated to, and completes c: without a
// type the key is of the kind that its secret is, or that the newest key has.
func (w *Webhooks) checkRotation(ctx context.Context, r domain.Request, id string, c Rotation) (Rotation, domain.Webhook, error) {
	c.Now = w.c.Now()
	before, err := w.c.Ledger.Webhook(ctx, id)
	if err != nil {
		return c, before, err
	}
	if !before.Exists() {
		return c, before, errNotFound()
	}
	if c.Secret != "" {
		if fault := secretFault(c.Secret, c.Type); fault != "" {
			return c, before, faulty(domain.Fault{Pointer: "/secret", Detail: fault})
		}
		c.Type = keyType(c.Secret)
	}
	if c.Type == "" {
		c.Type = before.Keys[0].Type
	}
	_, _, err = w.c.Ledger.TryWebhook(ctx, r, id, c.RotateWebhookKey)
	return c, before, err
}
