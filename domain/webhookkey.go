package domain

import (
	"slices"
	"time"
)

// WebhookKey describes a key that signs a webhook's deliveries. The key store has
// the key itself, under its id.
type WebhookKey struct {
	KeyID       string         `json:"keyId" doc:"The key's id."`
	Type        WebhookKeyType `json:"type" doc:"v1: HMAC-SHA256; v1a: Ed25519."`
	NotAfter    time.Time      `json:"notAfter,omitzero" doc:"For a replaced key: when it stops signing."`
	Fingerprint string         `json:"fingerprint,omitzero" doc:"Identifies the key without revealing it. For v1a, the public key (whpk_)."` // never in an event
}

// WebhookKeyType is the type of a key, named by the version of its signatures in
// Standard Webhooks.
type WebhookKeyType string

// The key types.
const (
	KeyHMAC    WebhookKeyType = "v1"  // HMAC-SHA256 with a shared secret
	KeyEd25519 WebhookKeyType = "v1a" // Ed25519 with a key pair
)

// FirstKey is the id of the only key of a webhook whose WebhookCreated names none.
const FirstKey = "first"

// MaxOldKeys is the maximum number of replaced keys that still sign.
const MaxOldKeys = 10

// MaxOverlap is the longest time for which a replaced key can go on signing.
const MaxOverlap = 30 * 24 * time.Hour

// WebhookKeyRotated gives a webhook a new key that replaces older ones.
type WebhookKeyRotated struct {
	Key      WebhookKey `json:"key" pii:"clear"`
	Replaces []string   `json:"replaces,omitzero" pii:"clear"` // ids of the replaced keys
	NotAfter time.Time  `json:"notAfter,omitzero" pii:"clear"` // when they stop signing
}

func (WebhookKeyRotated) eventType() string { return "webhook.key-rotated.v1" }

func (WebhookKeyRotated) public(x Entry) []publicEvent {
	return webhookUpdate("WEBHOOK_UPDATED", x, "", "keys")
}

// rotated returns keys after e, without those that no longer sign at a time.
func (e WebhookKeyRotated) rotated(keys []WebhookKey, at time.Time) []WebhookKey {
	after := []WebhookKey{e.Key}
	for _, k := range keys {
		if slices.Contains(e.Replaces, k.KeyID) {
			k.NotAfter = e.NotAfter
		}
		if k.Signs(at) {
			after = append(after, k)
		}
	}
	return after
}

// Signs reports whether k signs deliveries at a time.
func (k WebhookKey) Signs(at time.Time) bool { return k.NotAfter.IsZero() || k.NotAfter.After(at) }

// RotateWebhookKey gives a webhook a new key. It replaces the webhook's keys of the
// same type and, if All is set, those of the other type, too.
type RotateWebhookKey struct {
	KeyID   string // of the new key
	Type    WebhookKeyType
	Overlap time.Duration // for which replaced keys go on signing
	All     bool          // replace the keys of all types
	Now     time.Time
}

func (c RotateWebhookKey) decide(w Webhook) ([]Event, error) {
	if !w.Exists() {
		return nil, refuse(CodeWebhookNotFound, "There is no such webhook.")
	}
	if slices.ContainsFunc(w.Keys, func(k WebhookKey) bool { return k.KeyID == c.KeyID }) {
		return nil, refuse(CodeIdempotencyKeyReused, "This Idempotency-Key was used for another key of the webhook.")
	}
	var f faults
	if c.Type != KeyHMAC && c.Type != KeyEd25519 {
		f.add("/type", "must be %s or %s", KeyHMAC, KeyEd25519)
	}
	if c.Overlap < 0 || c.Overlap > MaxOverlap {
		f.add("/overlap", "must be 0 to %d seconds", int(MaxOverlap.Seconds()))
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	e := WebhookKeyRotated{Key: WebhookKey{KeyID: c.KeyID, Type: c.Type}}
	until := c.Now.Add(c.Overlap).UTC().Truncate(time.Microsecond)
	for _, k := range w.Keys {
		if k.NotAfter.IsZero() && (c.All || k.Type == c.Type) {
			e.Replaces, e.NotAfter = append(e.Replaces, k.KeyID), until
		}
	}
	var old []time.Time
	for _, k := range e.rotated(w.Keys, c.Now)[1:] {
		if !k.NotAfter.IsZero() {
			old = append(old, k.NotAfter)
		}
	}
	if len(old) > MaxOldKeys {
		return nil, refuse(CodeTooManyKeys, "There are already %d replaced keys that still sign; the first of them stops at %s.", MaxOldKeys, slices.MinFunc(old, time.Time.Compare).Format(time.RFC3339))
	}
	return []Event{e}, nil
}

// Secrets returns the ids of the secrets of w: true for those in use at a time,
// false for those of keys that no longer sign.
func (w Webhook) Secrets(at time.Time) map[string]bool {
	ids := map[string]bool{}
	for _, k := range w.Keys {
		ids[k.KeyID] = k.Signs(at)
	}
	ids[w.Auth.SecretID], ids[w.ClientCertificate.SecretID] = true, true
	return ids
}
