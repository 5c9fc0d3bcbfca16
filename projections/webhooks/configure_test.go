package webhooks

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"accountledger/domain"
	"accountledger/eventstore/seal"
)

func creation(url string) Creation {
	return Creation{CreateWebhook: domain.CreateWebhook{URL: url, Events: []string{"USER_*"}, Format: domain.FormatStandard, Payload: domain.PayloadFull}}
}

// secretly returns a creation with a secret.
func secretly(url, secret string) Creation {
	c := creation(url)
	c.Secret = secret
	return c
}

// Rows 13, 14: secrets are validated and shown once, and appear nowhere else.
func TestSecrets(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	encoded := func(n int) string { return base64.StdEncoding.EncodeToString(make([]byte, n)) }
	for _, secret := range []string{
		"whsec_" + encoded(23), "whsec_" + encoded(65), "whsec_!" + encoded(32), encoded(32), "whsk_" + encoded(63), "whsec_",
		"whsec_" + encoded(32) + " whsec_" + encoded(32), "WHSEC_" + encoded(32),
	} {
		_, _, _, err := w.hooks.Create(t.Context(), asAdmin, "bad", secretly("https://crm.example", secret))
		refusal, ok := errors.AsType[*domain.Error](err)
		if !ok || len(refusal.Faults) != 1 || refusal.Faults[0].Pointer != "/secret" {
			t.Errorf("%q: %v, want a fault at /secret", secret, err)
		}
		if len(secret) > 10 && strings.Contains(err.Error(), secret[8:]) {
			t.Error("the error quotes the secret")
		}
	}
	if _, err := w.keys.Secret(t.Context(), secretName("bad")); !errors.Is(err, seal.ErrNoSecret) || w.head() != 0 {
		t.Errorf("a refused creation left a secret (%v) or an event (%d)", err, w.head())
	}
	for i, given := range []string{"", "whsec_" + encoded(24), "whsec_" + encoded(64), v3Private} {
		id := fmt.Sprint("hook", i)
		e, shown, at, err := w.hooks.Create(t.Context(), asAdmin, id, secretly("https://crm.example", given))
		if err != nil || at != w.head() || given != "" && shown != given {
			t.Fatalf("Create(%q) = %q at %d, %v", given, shown, at, err)
		}
		if given == "" {
			if key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(shown, "whsec_")); err != nil || len(key) != 32 {
				t.Errorf("a generated secret has %d bytes, %v", len(key), err)
			}
		}
		document, err := json.Marshal(w.get(id))
		if err != nil || e.SecretFingerprint == "" || bytes.Contains(document, []byte(shown[7:])) {
			t.Errorf("webhook %s, %v: want a fingerprint and no secret", document, err)
		}
	}
	if e := w.get("hook3"); e.SecretFingerprint != v3Public {
		t.Errorf("fingerprint %s, want the public key", e.SecretFingerprint)
	}
}

// A repeated creation returns the same webhook; another one under the same id is
// refused.
func TestCreateAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	w.account("ada")
	cmd := creation("https://crm.example")
	cmd.After = -1
	request := func(hash string) domain.Request { return domain.Request{Meta: asAdmin.Meta.WithRequest("c1", hash)} }
	first, secret, at, err := w.hooks.Create(t.Context(), request("h"), "crm", cmd)
	if err != nil || secret == "" || first.After != 1 || at != 2 || first.Position != 1 || first.Backlog != 1 {
		t.Fatalf("Create = %+v at %d, %v; want it to start after 1", first, at, err)
	}
	again, shown, at, err := w.hooks.Create(t.Context(), request("h"), "crm", cmd)
	if diff := cmp.Diff(first, again, cmpopts.IgnoreUnexported(domain.Webhook{})); diff != "" || shown != "" || at != 2 || err != nil {
		t.Errorf("repeated: %s, secret shown again: %t, at %d, %v", diff, shown != "", at, err)
	}
	if kept, err := w.hooks.secrets.load(t.Context(), "crm"); err != nil || len(kept) != 1 || kept[first.Keys[0].KeyID] != secret {
		t.Errorf("a repetition changed the secrets: %d, %v", len(kept), err)
	}
	other := cmd
	other.URL = "https://other.example"
	if _, leaked, _, err := w.hooks.Create(t.Context(), request("h2"), "crm", other); domain.CodeOf(err) != domain.CodeIdempotencyKeyReused || leaked != "" {
		t.Errorf("another creation: %v, want CodeIdempotencyKeyReused", err)
	}
	if tried, err := w.hooks.Try(t.Context(), asAdmin, "dry", cmd); err != nil || len(tried.Events) != 1 || tried.State.URL != cmd.URL {
		t.Errorf("dry run: %+v, %v", tried, err)
	}
	if list, err := w.hooks.List(t.Context()); err != nil || len(list) != 1 {
		t.Errorf("%d webhooks, %v; want 1", len(list), err)
	}
}

// Row 66, and the other faults of a URL that are detected without the network.
func TestURLs(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	closed := newWorld(t, Config{Allow: loopback[:0:0]})
	for _, tt := range []struct {
		url          string
		allowed, not bool // with loopback allowed, with nothing allowed
	}{
		{"https://crm.example/hook?x=1", true, true},
		{"https://crm.example:8443", true, true},
		{"http://127.0.0.1:1234", true, false},
		{"http://127.0.0.1:22", true, false},
		{"http://localhost:8080", true, false}, // it is resolved only when an event is sent
		{"http://8.8.8.8", false, false},
		{"https://8.8.8.8:22", false, false},
		{"https://8.8.8.8:6379", false, false},
		{"https://crm.example:70000", false, false},
		{"https://2130706433", false, false},
		{"https://0x7f.1", false, false},
		{"ftp://crm.example", false, false},
		{"file:///etc/passwd", false, false},
		{"https://user:word@crm.example", false, false},
		{"https://crm.example/#here", false, false},
		{"crm.example", false, false},
		{"https://", false, false},
	} {
		for world, want := range map[*world]bool{w: tt.allowed, closed: tt.not} {
			_, _, _, err := world.hooks.Create(t.Context(), asAdmin, domain.NewID().String(), creation(tt.url))
			refusal, ok := errors.AsType[*domain.Error](err)
			if (err == nil) != want || !want && (!ok || len(refusal.Faults) == 0 || refusal.Faults[0].Pointer != "/url") {
				t.Errorf("row 66: %s: %v, want it accepted: %t", tt.url, err, want)
			}
		}
	}
}

// Row 59 as a client sees it: creation succeeds, deliveries fail with a code.
func TestBlockedAddress(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{Allow: loopback[:0:0]})
		w.hook("crm", "https://169.254.169.254/latest")
		w.run()
		w.account("ada")
		time.Sleep(time.Second)
		synctest.Wait()
		all := w.deliveries("crm")
		if len(all) != 1 || all[0].Status != StatusRetrying || len(all[0].Attempts) != 1 || all[0].Attempts[0].Error != "blocked_address" || all[0].Attempts[0].Response != "" {
			t.Errorf("deliveries %+v, want one attempt with %s", all, "blocked_address")
		}
		w.stop()
	})
}
