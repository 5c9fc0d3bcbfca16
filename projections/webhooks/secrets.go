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
	"accountledger/projections/webhooks/wire"
)

// secrets are a webhook's secrets by the ids that its configuration refers to:
// those of its signing keys, its authentication and its client certificate. An
// id never gets another secret, so a secret can be stored before the event that
// refers to it: a crash leaves a secret that nothing uses, and the webhook's
// next change deletes it.
type secrets map[string]string

// signers returns the keys that sign a webhook's deliveries.
func (s secrets) signers(keys []domain.WebhookKey) (wire.Signers, error) {
	var all wire.Signers
	for _, k := range keys {
		signer, err := wire.ParseSigner(s[k.KeyID])
		if err != nil {
			return nil, err
		}
		signer.NotAfter = k.NotAfter
		all = append(all, signer)
	}
	if len(all) == 0 {
		return nil, errors.New("webhooks: no key to sign with")
	}
	return all, nil
}

// fingerprinted returns conf as the API shows it: with the keys that sign now,
// each with its fingerprint. A key whose secret is missing has none.
func (s secrets) fingerprinted(conf domain.Webhook, now time.Time) domain.Webhook {
	keys := make([]domain.WebhookKey, 0, len(conf.Keys))
	for _, k := range conf.Keys {
		if !k.Signs(now) {
			continue
		}
		if signer, err := wire.ParseSigner(s[k.KeyID]); err == nil {
			k.Fingerprint = signer.Fingerprint()
		}
		keys = append(keys, k)
	}
	conf.Keys = keys
	if secret, ok := s[conf.Auth.SecretID]; ok && conf.Auth.SecretID != "" {
		conf.Auth.Fingerprint = wire.Fingerprint([]byte(conf.Auth.SecretID + secret))
	}
	return conf
}

// secretStore stores the secrets of webhooks in the key store, encrypted.
type secretStore struct {
	keys *seal.Keys
	now  func() time.Time
}

func secretName(id string) string { return "webhook/" + id }

// load returns a webhook's secrets, or seal.ErrNoSecret if it has none.
func (s secretStore) load(ctx context.Context, id string) (secrets, error) {
	kept, err := s.keys.Secret(ctx, secretName(id))
	if err != nil {
		return nil, err
	}
	if !strings.HasPrefix(string(kept), "{") {
		return secrets{domain.FirstKey: string(kept)}, nil // an earlier version stored the one secret alone
	}
	var all secrets
	if err := json.Unmarshal(kept, &all); err != nil {
		return nil, errors.New("webhooks: the stored secrets of a webhook are damaged")
	}
	return all, nil
}

// put replaces a webhook's secrets.
func (s secretStore) put(ctx context.Context, id string, all secrets) error {
	kept, err := json.Marshal(all, json.Deterministic(true))
	if err != nil {
		return err
	}
	if err := s.keys.PutSecret(ctx, secretName(id), kept); err != nil {
		return fmt.Errorf("webhooks: store secrets: %w", err)
	}
	return nil
}

// add adds secrets to those that a webhook has.
func (s secretStore) add(ctx context.Context, id string, more secrets) error {
	if len(more) == 0 {
		return nil
	}
	all, err := s.load(ctx, id)
	if errors.Is(err, seal.ErrNoSecret) {
		all, err = secrets{}, nil
	}
	if err != nil {
		return err
	}
	maps.Copy(all, more)
	return s.put(ctx, id, all)
}

// prune deletes the secrets that a webhook's configuration no longer refers to.
// It runs after a change, so the next change retries a prune that failed.
func (s secretStore) prune(ctx context.Context, conf domain.Webhook) error {
	all, err := s.load(ctx, conf.WebhookID)
	if errors.Is(err, seal.ErrNoSecret) {
		return nil
	}
	if err != nil {
		return err
	}
	used := conf.Secrets(s.now())
	before := len(all)
	maps.DeleteFunc(all, func(id, _ string) bool { return !used[id] })
	if len(all) == before {
		return nil
	}
	return s.put(ctx, conf.WebhookID, all)
}

// drop deletes all secrets of a webhook.
func (s secretStore) drop(ctx context.Context, id string) error {
	return s.keys.DeleteSecret(ctx, secretName(id))
}
