package webhooks

import (
	"context"
	"fmt"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/projections/webhooks/wire"
)

// Rotation is what a client asks of Rotate.
type Rotation struct {
	domain.RotateWebhookKey
	Secret string // "": Rotate generates one
}

// Rotate gives a webhook a new signing key. It returns the webhook, the key's
// secret, which no other call shows, and the position of the event. If the same
// rotation is repeated, it returns the same secret.
func (r registry) Rotate(ctx context.Context, by domain.Request, id string, c Rotation) (Endpoint, string, eventstore.Position, error) {
	r.changing.Lock()
	defer r.changing.Unlock()
	c, before, err := r.checkRotation(ctx, by, id, c)
	if err != nil {
		return Endpoint{}, "", 0, err
	}
	kept, err := r.secrets.load(ctx, id)
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
		e, err := r.of(ctx, before)
		return e, kept[k.KeyID], 0, err
	}
	if c.Secret == "" {
		c.Secret = wire.NewSecret(c.Type)
	}
	conf, at, err := r.changeWith(ctx, by, id, c.RotateWebhookKey, secrets{c.KeyID: c.Secret})
	if err != nil {
		return Endpoint{}, "", 0, err
	}
	e, err := r.of(ctx, conf)
	return e, c.Secret, at, err
}

// TryRotate decides like Rotate and changes nothing.
func (r registry) TryRotate(ctx context.Context, by domain.Request, id string, c Rotation) (domain.Webhook, []domain.Entry, error) {
	c, _, err := r.checkRotation(ctx, by, id, c)
	if err != nil {
		return domain.Webhook{}, nil, err
	}
	return r.ledger.try(ctx, by, id, c.RotateWebhookKey)
}

// checkRotation validates c and completes it: without a type, the key has that of
// its secret, or that of the newest key.
func (r registry) checkRotation(ctx context.Context, by domain.Request, id string, c Rotation) (Rotation, domain.Webhook, error) {
	c.Now = r.config.Now()
	before, err := r.ledger.webhook(ctx, id)
	if err != nil {
		return c, before, err
	}
	if !before.Exists() {
		return c, before, errNotFound()
	}
	if c.Secret != "" {
		if fault := wire.SecretFault(c.Secret, c.Type); fault != "" {
			return c, before, faulty(domain.Fault{Pointer: "/secret", Detail: fault})
		}
		c.Type = wire.KeyType(c.Secret)
	}
	if c.Type == "" {
		c.Type = before.Keys[0].Type
	}
	_, _, err = r.ledger.try(ctx, by, id, c.RotateWebhookKey)
	return c, before, err
}
