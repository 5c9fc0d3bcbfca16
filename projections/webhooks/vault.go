package webhooks

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"accountledger/domain"
	"accountledger/eventstore/seal"
)

// vault is what the key store holds of an endpoint: its secrets by the ids
// that its configuration refers to. An id is never given another secret, so a
// secret can be put there before the event that names it: what a crash leaves
// behind is a secret nobody uses, and it goes with the next change.
type vault map[string]string

func vaultName(id string) string { return "webhook/" + id }

// vault reads an endpoint's secrets; none is seal.ErrNoSecret.
func (w *Webhooks) vault(ctx context.Context, id string) (vault, error) {
	kept, err := w.c.Keys.Secret(ctx, vaultName(id))
	if err != nil {
		return nil, err
	}
	if !strings.HasPrefix(string(kept), "{") {
		return vault{domain.FirstKey: string(kept)}, nil // as it was when there was one secret
	}
	var v vault
	if err := json.Unmarshal(kept, &v); err != nil {
		return nil, errors.New("webhooks: the secrets of an endpoint are damaged")
	}
	return v, nil
}

func (w *Webhooks) putVault(ctx context.Context, id string, v vault) error {
	kept, err := json.Marshal(v, json.Deterministic(true))
	if err != nil {
		return err
	}
	if err := w.c.Keys.PutSecret(ctx, vaultName(id), kept); err != nil {
		return fmt.Errorf("webhooks: keep secrets: %w", err)
	}
	return nil
}

// add puts secrets beside those an endpoint has, if it has any.
func (w *Webhooks) add(ctx context.Context, id string, more vault) error {
	if len(more) == 0 {
		return nil
	}
	v, err := w.vault(ctx, id)
	if errors.Is(err, seal.ErrNoSecret) {
		v, err = vault{}, nil
	}
	if err != nil {
		return err
	}
	maps.Copy(v, more)
	return w.putVault(ctx, id, v)
}

// prune forgets the secrets that an endpoint's configuration does not refer to
// any more. It is done after a change, so what cannot be pruned now goes with
// the next one.
func (w *Webhooks) prune(ctx context.Context, conf domain.Webhook) error {
	v, err := w.vault(ctx, conf.WebhookID)
	if errors.Is(err, seal.ErrNoSecret) {
		return nil
	}
	if err != nil {
		return err
	}
	used := conf.Secrets(w.c.Now())
	before := len(v)
	maps.DeleteFunc(v, func(id, _ string) bool { return !used[id] })
	if len(v) == before {
		return nil
	}
	return w.putVault(ctx, conf.WebhookID, v)
}

// signers are the keys an endpoint's deliveries are signed with.
func (v vault) signers(keys []domain.WebhookKey) (signers, error) {
	var all signers
	for _, k := range keys {
		s, err := parseSigner(v[k.KeyID])
		if err != nil {
			return nil, err
		}
		all = append(all, signingKey{s, k.NotAfter})
	}
	if len(all) == 0 {
		return nil, errors.New("webhooks: no key to sign with")
	}
	return all, nil
}

// fingerprinted is conf as it is shown: the keys that sign, each with its
// fingerprint. One whose secret is missing is seen by the missing fingerprint.
func (v vault) fingerprinted(conf domain.Webhook, now time.Time) domain.Webhook {
	keys := make([]domain.WebhookKey, 0, len(conf.Keys))
	for _, k := range conf.Keys {
		if !k.Signs(now) {
			continue
		}
		if s, err := parseSigner(v[k.KeyID]); err == nil {
			k.Fingerprint = s.fingerprint()
		}
		keys = append(keys, k)
	}
	conf.Keys = keys
	if secret, ok := v[conf.Auth.SecretID]; ok && conf.Auth.SecretID != "" {
		conf.Auth.Fingerprint = fingerprint([]byte(conf.Auth.SecretID + secret))
	}
	return conf
}
