package domain

import (
	"slices"
	"time"
)

// WebhookKey is a key that deliveries to an endpoint are signed with. The key
// itself is in the key store, under its id.
type WebhookKey struct {
	KeyID       string         `json:"keyId"`
	Type        WebhookKeyType `json:"type"`
	NotAfter    time.Time      `json:"notAfter,omitzero"`    // of one that was replaced: signs until then
	Fingerprint string         `json:"fingerprint,omitzero"` // for comparison, of a key pair the public key; never in an event
}

// WebhookKeyType is the kind of signature a key makes, by the name Standard
// Webhooks gives it.
type WebhookKeyType string

// The kinds of keys.
const (
	KeyHMAC    WebhookKeyType = "v1"  // HMAC-SHA256 with a shared secret
	KeyEd25519 WebhookKeyType = "v1a" // Ed25519 with a key pair
)

// FirstKey is the id of the only key of an endpoint whose creation names none.
const FirstKey = "first"

// MaxOldKeys is how many keys that were replaced may sign at a time.
const MaxOldKeys = 10

// MaxOverlap is for how long a key that was replaced can go on signing.
const MaxOverlap = 30 * 24 * time.Hour

// WebhookKeyRotated gives an endpoint a new key, and ends older ones.
type WebhookKeyRotated struct {
	Key      WebhookKey `json:"key" pii:"clear"`
	Replaces []string   `json:"replaces,omitzero" pii:"clear"` // ids of keys that sign on only
	NotAfter time.Time  `json:"notAfter,omitzero" pii:"clear"` // until then
}

func (WebhookKeyRotated) eventType() string { return "webhook.key-rotated.v1" }

func (WebhookKeyRotated) public(x Entry) []publicEvent {
	return webhookUpdate("WEBHOOK_UPDATED", x, "", "keys")
}

// rotated is keys after e, without those that no longer sign at a time.
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

// Signs reports whether k is signed with at a time.
func (k WebhookKey) Signs(at time.Time) bool { return k.NotAfter.IsZero() || k.NotAfter.After(at) }

// RotateWebhookKey gives an endpoint a key of a type. It takes the place of
// the endpoint's key of that type, if there is one; keys of the other type
// stay unless All is set.
type RotateWebhookKey struct {
	KeyID   string // of the new key; asked for again under the same id, nothing changes
	Type    WebhookKeyType
	Overlap time.Duration // for which the key before goes on signing
	All     bool          // it takes the place of all keys
	Now     time.Time
}

func (c RotateWebhookKey) decide(w Webhook) ([]Event, error) {
	if !w.Exists() {
		return nil, refuse(CodeWebhookNotFound, "There is no such webhook.")
	}
	if slices.ContainsFunc(w.Keys, func(k WebhookKey) bool { return k.KeyID == c.KeyID }) {
		return nil, nil
	}
	var f faults
	if c.Type != KeyHMAC && c.Type != KeyEd25519 {
		f.add("/type", "must be %s or %s", KeyHMAC, KeyEd25519)
	}
	if c.Overlap < 0 || c.Overlap > MaxOverlap {
		f.add("/overlap", "0 to %d seconds", int(MaxOverlap.Seconds()))
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
		return nil, refuse(CodeTooManyKeys, "%d older keys sign already; the next one ends at %s.", MaxOldKeys, slices.MinFunc(old, time.Time.Compare).Format(time.RFC3339))
	}
	return []Event{e}, nil
}

// Secrets are the ids of the secrets that w refers to at a time.
func (w Webhook) Secrets(at time.Time) map[string]bool {
	ids := map[string]bool{}
	for _, k := range w.Keys {
		ids[k.KeyID] = k.Signs(at)
	}
	ids[w.Auth.SecretID], ids[w.ClientCertificate.SecretID] = true, true
	return ids
}
