package domain

import (
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// TestMappable compares the valid paths of mappings with the public events.
func TestMappable(t *testing.T) {
	t.Parallel()
	for _, e := range everyEvent() {
		public, err := Public(Entry{ID: NewID(), Type: e.eventType(), Stream: "account-s", Time: goldenTime, Event: e}, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range public {
			members, err := membersOf(p.Data)
			if err != nil {
				t.Fatal(err)
			}
			for name := range members {
				if !mappable(name) {
					t.Errorf("%s of %s cannot be mapped", name, p.Type)
				}
			}
		}
	}
	for _, path := range []string{"", "shoe", "customFields.", "address.shoe", "email.domain", "changes.email", "sub."} {
		if mappable(path) {
			t.Errorf("%q can be mapped", path)
		}
	}
}

func TestMapping(t *testing.T) {
	t.Parallel()
	mapping := WebhookMapping{"customer_id": "sub", "what": "type", "when": "timestamp", "n": "sequence", "ref": "id", "mail": "email",
		"newsletter": "customFields.newsletter_consent", "city": "address.locality", "device": "device"}
	for _, tt := range []struct{ name, data, want string }{
		{"created", `{"sub":"s","email":"a@b","customFields":{"newsletter_consent":true}}`, `,"mail":"a@b","n":7,"newsletter":true`},
		{"only what changed", `{"sub":"s","fields":["email"],"changes":{"email":"c@d"}}`, `,"mail":"c@d","n":7`},
		{"a field was unset", `{"sub":"s","fields":["customFields.newsletter_consent"],"changes":{"customFields":{"newsletter_consent":null}}}`, `,"n":7,"newsletter":null`},
		{"an address", `{"changes":{"address":{"locality":"London"}}}`, `,"n":7`},
		{"no address", `{"changes":{"address":null}}`, `,"n":7`},
		{"nothing of it", `{}`, `,"n":7`},
	} {
		e := PublicEvent{ID: "i", Type: "USER_UPDATED", Sub: "s", Sequence: 7, Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Data: jsontext.Value(tt.data)}
		got, err := mapping.Apply(e)
		want := `{"customer_id":"s"` + tt.want + `,"ref":"i","what":"USER_UPDATED","when":"2026-01-02T03:04:05Z"}`
		if tt.name == "an address" {
			want = `{"city":"London","customer_id":"s"` + tt.want + `,"ref":"i","what":"USER_UPDATED","when":"2026-01-02T03:04:05Z"}`
		}
		if err != nil || string(got) != want {
			t.Errorf("%s: %s, %v; want %s", tt.name, got, err, want)
		}
	}
}

// TestPresets checks that the settings of every preset are valid.
func TestPresets(t *testing.T) {
	t.Parallel()
	for _, p := range WebhookPresets {
		s := settingsWith(func(s *WebhookSettings) {
			s.Events, s.Payload, s.Preset, s.Mapping = p.Events, PayloadFields, p.Preset, p.Mapping
		})
		if f := s.faults(); len(f) > 0 {
			t.Errorf("%s: %v", p.Preset, f)
		}
	}
	if _, ok := PresetOf("shoes"); ok {
		t.Error("there is a preset shoes")
	}
	if data, err := json.Marshal(WebhookPresets); err != nil || len(data) == 0 {
		t.Error(err)
	}
}
