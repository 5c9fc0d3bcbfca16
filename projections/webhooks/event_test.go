package webhooks

import (
	"regexp"
	"testing"
	"time"

	"accountledger/domain"
)

// Row 10, and I7: the webhook-id depends only on the event.
func TestI7IDIsOfTheEvent(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	w.execute("a.b", domain.CreateAccount{Origin: domain.OriginRegistered, Identities: []domain.NewIdentity{{
		IdentityID: domain.NewID().String(), Provider: domain.ProviderSelf, Profile: domain.Profile{Email: "ada@example.com"}}}})
	charset := regexp.MustCompile(`^[A-Za-z0-9_-]+$`)
	var first []string
	for range 3 {
		for rec, err := range w.log.ReadStream(t.Context(), domain.AccountStream("a.b"), 0) {
			if err != nil {
				t.Fatal(err)
			}
			s := newEvent(rec)
			messages, err := s.open(opener{w.config.Codec, ledger{w.config.Ledger}}, time.Now())
			if err != nil || len(messages) != 3 {
				t.Fatalf("%d messages, %v; want three", len(messages), err)
			}
			for i, m := range messages {
				if !charset.MatchString(m.Event.ID) {
					t.Errorf("id %q has characters that a webhook-id must not have", m.Event.ID)
				}
				if len(first) < 3 {
					first = append(first, m.Event.ID)
				} else if first[i] != m.Event.ID {
					t.Errorf("id %s, want %s as before", m.Event.ID, first[i])
				}
			}
		}
	}
	if first[0] == first[1] || first[0] == first[2] || first[1] == first[2] {
		t.Error("two public events share an id")
	}
}
