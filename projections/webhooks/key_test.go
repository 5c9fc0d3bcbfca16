package webhooks

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"accountledger/domain"
	"accountledger/projections/webhooks/wire"
)

// rotation returns a rotation to a key with an id.
func rotation(id string, kind domain.WebhookKeyType, overlap time.Duration) Rotation {
	return Rotation{RotateWebhookKey: domain.RotateWebhookKey{KeyID: id, Type: kind, Overlap: overlap}}
}

func (w *world) rotate(id string, c Rotation) (Endpoint, string) {
	w.t.Helper()
	e, secret, _, err := w.hooks.Rotate(w.t.Context(), asAdmin, id, c)
	if err != nil {
		w.t.Fatalf("Rotate = %v", err)
	}
	return e, secret
}

// Rows 6 to 8: an old key signs next to the new one until it expires, retries of
// older events included; keys of both types sign together.
func TestRotate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{}
		w := newWorld(t, Config{Schedule: []time.Duration{2 * time.Hour}})
		w.transport = r
		w.run()
		_, first := w.hook("crm", "https://crm.example")
		_, second := w.rotate("crm", rotation("k2", "", time.Hour))
		_, pair := w.rotate("crm", rotation("k3", domain.KeyEd25519, time.Hour))
		r.set(func(r *receiver) { r.answer = func(got, int) (int, http.Header) { return 422, nil } })
		w.account("ada")
		synctest.Wait()
		r.set(func(r *receiver) { r.answer = nil })
		w.account("bob")
		time.Sleep(3 * time.Hour)
		w.settled("crm")
		verified := func(g got, secret string) bool { return verify(secret, g.header, g.body, g.time) == nil }
		all := r.got()
		if len(all) != 3 || all[0].ID != all[2].ID {
			t.Fatalf("%d requests, want three, the last a retry of the first", len(all))
		}
		for i, g := range all {
			if !verified(g, second) || !verified(g, pair) {
				t.Errorf("request %d is not signed with the new keys", i)
			}
			if old := i < 2; verified(g, first) != old {
				t.Errorf("row 8: request %d is signed with the old key: %t, want %t", i, !old, old)
			}
		}
		if entries := strings.Fields(all[0].header.Get(wire.HeaderSignature)); len(entries) != 3 || !strings.HasPrefix(entries[0], "v1a,") || !strings.HasPrefix(entries[1], "v1,") {
			t.Errorf("row 6: %v, want the newest first", entries)
		}
		e, _ := w.rotate("crm", rotation("k4", domain.KeyHMAC, 0))
		if kept, err := w.hooks.secrets.load(t.Context(), "crm"); err != nil || len(kept) != 2 || len(e.Keys) != 2 || e.Keys[0].Fingerprint == "" {
			t.Errorf("keys %+v, %d secrets, %v; want two of each: expired keys are deleted", e.Keys, len(kept), err)
		}
		w.stop()
	})
}

// Rows 13 to 15, for rotations.
func TestRotateRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	_, first := w.hook("crm", "https://crm.example")
	encoded := func(n int) string { return base64.StdEncoding.EncodeToString(make([]byte, n)) }
	for name, c := range map[string]Rotation{
		"row 13: too short":      {Secret: "whsec_" + encoded(23)},
		"row 13: too long":       {Secret: "whsec_" + encoded(65)},
		"row 13: another prefix": {Secret: encoded(32)},
		"row 13: another type":   {RotateWebhookKey: domain.RotateWebhookKey{Type: domain.KeyEd25519}, Secret: "whsec_" + encoded(32)},
	} {
		c.KeyID = "bad"
		_, _, _, err := w.hooks.Rotate(t.Context(), asAdmin, "crm", c)
		if refusal, ok := errors.AsType[*domain.Error](err); !ok || len(refusal.Faults) != 1 || refusal.Faults[0].Pointer != "/secret" {
			t.Errorf("%s: %v, want a fault at /secret", name, err)
		}
	}
	if kept, err := w.hooks.secrets.load(t.Context(), "crm"); err != nil || len(kept) != 1 || w.head() != 1 {
		t.Errorf("%d secrets, %v, at %d; want no change", len(kept), err, w.head())
	}
	by := domain.Request{Meta: asAdmin.Meta.WithRequest("c1", "h")}
	e, second, _, err := w.hooks.Rotate(t.Context(), by, "crm", rotation("k1", "", time.Hour))
	if err != nil || second == "" || second == first {
		t.Fatalf("row 14: a rotation returns no new secret: %v", err)
	}
	again, shown, _, err := w.hooks.Rotate(t.Context(), by, "crm", rotation("k1", "", time.Hour))
	if err != nil || shown != "" || len(again.Keys) != len(e.Keys) || w.head() != 2 {
		t.Errorf("row 14: a repeated rotation shows the secret again, or changes the keys: %+v, %v", again.Keys, err)
	}
	if _, _, _, err := w.hooks.Rotate(t.Context(), asAdmin, "crm", Rotation{RotateWebhookKey: domain.RotateWebhookKey{KeyID: "k1"}, Secret: first}); domain.CodeOf(err) != domain.CodeIdempotencyKeyReused {
		t.Errorf("another secret under the same id: %v, want %s", err, domain.CodeIdempotencyKeyReused)
	}
	for i := range domain.MaxOldKeys - 1 {
		w.rotate("crm", rotation(fmt.Sprint("more", i), "", time.Hour))
	}
	if _, _, _, err := w.hooks.Rotate(t.Context(), asAdmin, "crm", rotation("eleventh", "", time.Hour)); domain.CodeOf(err) != domain.CodeTooManyKeys {
		t.Errorf("row 15: %v, want %s", err, domain.CodeTooManyKeys)
	}
	if _, err := w.hooks.TryRotate(t.Context(), asAdmin, "nobody", rotation("k", "", 0)); domain.CodeOf(err) != domain.CodeWebhookNotFound {
		t.Errorf("an unknown webhook: %v, want %s", err, domain.CodeWebhookNotFound)
	}
}

// A webhook from before there were key ids signs with its one secret.
func TestOlderSecret(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	w.hook("crm", "https://crm.example")
	if err := w.keys.PutSecret(t.Context(), secretName("crm"), []byte(v1Secret)); err != nil {
		t.Fatal(err)
	}
	kept, err := w.hooks.secrets.load(t.Context(), "crm")
	if err != nil || kept[domain.FirstKey] != v1Secret {
		t.Errorf("%d secrets, %v; want the secret under %s", len(kept), err, domain.FirstKey)
	}
	signers, err := kept.signers([]domain.WebhookKey{{KeyID: domain.FirstKey}})
	e := wire.Envelope{URL: &url.URL{}, Signers: signers}
	if err != nil || e.Request(wire.Content{ID: v1ID, Body: []byte(v1Body)}, time.Unix(1614265330, 0)).Header.Get(wire.HeaderSignature) != v1Want {
		t.Errorf("it does not sign: %v", err)
	}
}
