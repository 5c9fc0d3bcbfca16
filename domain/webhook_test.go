package domain

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// standing returns a webhook after events.
func standing(events ...Event) Webhook {
	w := NewWebhook("w")
	for i, e := range append([]Event{WebhookCreated{URL: "https://crm.example/hook", Events: []string{"USER_*"}, Format: FormatStandard, Payload: PayloadFull}}, events...) {
		w = w.Evolve(Entry{Stream: WebhookStream("w"), Revision: w.last + 1, Time: goldenTime.Add(time.Duration(i) * time.Second), Event: e})
	}
	return w
}

// settingsWith returns valid settings after a change.
func settingsWith(change func(s *WebhookSettings)) WebhookSettings {
	s := standing().WebhookSettings
	change(&s)
	return s
}

func TestWebhookRules(t *testing.T) {
	t.Parallel()
	settings := settingsWith
	rotated := func(id string, kind WebhookKeyType, replaces ...string) WebhookKeyRotated {
		e := WebhookKeyRotated{Key: WebhookKey{KeyID: id, Type: kind}, Replaces: replaces}
		if replaces != nil {
			e.NotAfter = goldenTime.Add(time.Hour)
		}
		return e
	}
	rotate := func(id string, kind WebhookKeyType) RotateWebhookKey {
		return RotateWebhookKey{KeyID: id, Type: kind, Overlap: time.Hour, Now: goldenTime}
	}
	all := rotate("k2", KeyHMAC)
	all.All = true
	var crowd []Event
	for i := range MaxOldKeys {
		e := rotated(fmt.Sprint("k", i), KeyHMAC, fmt.Sprint("k", i-1))
		if i == 0 {
			e.Replaces = []string{FirstKey}
		}
		crowd = append(crowd, e)
	}
	asked := WebhookUpdated{Settings: settings(func(s *WebhookSettings) { s.Verification = VerifyOptions })}
	pending := WebhookStateChanged{From: WebhookEnabled, To: WebhookPending}
	moved := settings(func(s *WebhookSettings) { s.Verification, s.URL = VerifyOptions, "https://other.example/" })
	wants := VerifyWebhook{URL: standing().URL, AllowedRate: 120}
	for _, tt := range []struct {
		name  string
		given Webhook
		when  WebhookCommand
		then  []Event
		code  Code
		fault string // pointer of the first fault
	}{
		{name: "update", given: standing(), when: UpdateWebhook{settings(func(s *WebhookSettings) { s.Description, s.Payload = "Sales", PayloadThin })},
			then: []Event{WebhookUpdated{settings(func(s *WebhookSettings) { s.Description, s.Payload = "Sales", PayloadThin }), []string{"description", "payload"}}}},
		{name: "update to the same", given: standing(), when: UpdateWebhook{standing().WebhookSettings}},
		{name: "update back to a default", given: standing(WebhookUpdated{Settings: settings(func(s *WebhookSettings) { s.Description = "Sales" })}), when: UpdateWebhook{standing().WebhookSettings},
			then: []Event{WebhookUpdated{standing().WebhookSettings, []string{"description"}}}},
		{name: "update an unknown webhook", given: NewWebhook("w"), when: UpdateWebhook{standing().WebhookSettings}, code: CodeWebhookNotFound},
		{name: "update to a bad url", given: standing(), when: UpdateWebhook{settings(func(s *WebhookSettings) { s.URL = "ftp://x" })}, code: CodeInvalidRequest, fault: "/url"},
		{name: "a long description", given: standing(), when: UpdateWebhook{settings(func(s *WebhookSettings) { s.Description = strings.Repeat("x", 1025) })}, code: CodeInvalidRequest, fault: "/description"},
		{name: "row 18: header webhook-id", given: standing(), when: UpdateWebhook{settings(func(s *WebhookSettings) { s.Headers = map[string]string{"webhook-id": "x"} })}, code: CodeInvalidRequest, fault: "/headers/webhook-id"},
		{name: "row 18: header Host", given: standing(), when: UpdateWebhook{settings(func(s *WebhookSettings) { s.Headers = map[string]string{"Host": "x"} })}, code: CodeInvalidRequest, fault: "/headers/Host"},
		{name: "row 18: header Content-Length", given: standing(), when: UpdateWebhook{settings(func(s *WebhookSettings) { s.Headers = map[string]string{"Content-Length": "x"} })}, code: CodeInvalidRequest, fault: "/headers/Content-Length"},
		{name: "row 18: header connection", given: standing(), when: UpdateWebhook{settings(func(s *WebhookSettings) { s.Headers = map[string]string{"connection": "x"} })}, code: CodeInvalidRequest, fault: "/headers/connection"},
		{name: "row 18: header Authorization", given: standing(), when: UpdateWebhook{settings(func(s *WebhookSettings) { s.Headers = map[string]string{"Authorization": "x"} })}, code: CodeInvalidRequest, fault: "/headers/Authorization"},
		{name: "row 18: header ce-id", given: standing(), when: UpdateWebhook{settings(func(s *WebhookSettings) { s.Headers = map[string]string{"ce-id": "x"} })}, code: CodeInvalidRequest, fault: "/headers/ce-id"},
		{name: "row 18: header Transfer-Encoding", given: standing(), when: UpdateWebhook{settings(func(s *WebhookSettings) { s.Headers = map[string]string{"Transfer-Encoding": "x"} })}, code: CodeInvalidRequest, fault: "/headers/Transfer-Encoding"},
		{name: "row 18: CR and LF", given: standing(), when: UpdateWebhook{settings(func(s *WebhookSettings) { s.Headers = map[string]string{"X-A": "x\r\nHost: y"} })}, code: CodeInvalidRequest, fault: "/headers/X-A"},
		{name: "row 18: CR and LF in a name", given: standing(), when: UpdateWebhook{settings(func(s *WebhookSettings) { s.Headers = map[string]string{"X-A\r\nHost": "y"} })}, code: CodeInvalidRequest, fault: "/headers"},
		{name: "the header of auth", given: standing(), when: UpdateWebhook{settings(func(s *WebhookSettings) {
			s.Auth, s.Headers = WebhookAuth{Type: AuthTOTP, Name: "X-Code"}, map[string]string{"x-code": "y"}
		})}, code: CodeInvalidRequest, fault: "/headers/x-code"},
		{name: "auth of an unknown type", given: standing(), when: UpdateWebhook{settings(func(s *WebhookSettings) { s.Auth.Type = "magic" })}, code: CodeInvalidRequest, fault: "/auth/type"},
		{name: "auth without a type", given: standing(), when: UpdateWebhook{settings(func(s *WebhookSettings) { s.Auth.Name = "X-Key" })}, code: CodeInvalidRequest, fault: "/auth/type"},
		{name: "an API key in an unknown place", given: standing(), when: UpdateWebhook{settings(func(s *WebhookSettings) { s.Auth = WebhookAuth{Type: AuthAPIKey, Name: "X-Key"} })}, code: CodeInvalidRequest, fault: "/auth/in"},
		{name: "an API key in the header Host", given: standing(), when: UpdateWebhook{settings(func(s *WebhookSettings) { s.Auth = WebhookAuth{Type: AuthAPIKey, In: "header", Name: "Host"} })}, code: CodeInvalidRequest, fault: "/auth/name"},
		{name: "an API key in a bad parameter", given: standing(), when: UpdateWebhook{settings(func(s *WebhookSettings) { s.Auth = WebhookAuth{Type: AuthAPIKey, In: "query", Name: "a&b"} })}, code: CodeInvalidRequest, fault: "/auth/name"},
		{name: "basic without a username", given: standing(), when: UpdateWebhook{settings(func(s *WebhookSettings) { s.Auth = WebhookAuth{Type: AuthBasic} })}, code: CodeInvalidRequest, fault: "/auth/username"},
		{name: "oauth2 with a bad token URL", given: standing(), when: UpdateWebhook{settings(func(s *WebhookSettings) { s.Auth = WebhookAuth{Type: AuthOAuth2, ClientID: "c", TokenURL: "file:///x"} })}, code: CodeInvalidRequest, fault: "/auth/tokenUrl"},
		{name: "oauth2 without a client id", given: standing(), when: UpdateWebhook{settings(func(s *WebhookSettings) {
			s.Auth = WebhookAuth{Type: AuthOAuth2, TokenURL: "https://idp.example/token"}
		})}, code: CodeInvalidRequest, fault: "/auth/clientId"},
		{name: "a burst without a rate", given: standing(), when: UpdateWebhook{settings(func(s *WebhookSettings) { s.Burst = 2 })}, code: CodeInvalidRequest, fault: "/burst"},
		{name: "a rate that is too high", given: standing(), when: UpdateWebhook{settings(func(s *WebhookSettings) { s.RateLimit = 1e9 })}, code: CodeInvalidRequest, fault: "/rateLimit"},
		{name: "too many requests at a time", given: standing(), when: UpdateWebhook{settings(func(s *WebhookSettings) { s.MaxInFlight = 257 })}, code: CodeInvalidRequest, fault: "/maxInFlight"},
		{name: "an unknown order", given: standing(), when: UpdateWebhook{settings(func(s *WebhookSettings) { s.Order = "random" })}, code: CodeInvalidRequest, fault: "/order"},
		{name: "strict order with batches", given: standing(), when: UpdateWebhook{settings(func(s *WebhookSettings) { s.Format, s.Order = FormatBatch, OrderStrict })}, code: CodeInvalidRequest, fault: "/order"},
		{name: "an empty mapping", given: standing(), when: UpdateWebhook{settings(func(s *WebhookSettings) { s.Payload = PayloadFields })}, code: CodeInvalidRequest, fault: "/mapping"},
		{name: "a mapping of an unknown path", given: standing(), when: UpdateWebhook{settings(func(s *WebhookSettings) { s.Payload, s.Mapping = PayloadFields, WebhookMapping{"a": "shoe"} })}, code: CodeInvalidRequest, fault: "/mapping/a"},
		{name: "a mapping without a name", given: standing(), when: UpdateWebhook{settings(func(s *WebhookSettings) { s.Payload, s.Mapping = PayloadFields, WebhookMapping{"": "sub"} })}, code: CodeInvalidRequest, fault: "/mapping"},
		{name: "a mapping with the payload full", given: standing(), when: UpdateWebhook{settings(func(s *WebhookSettings) { s.Mapping = WebhookMapping{"a": "sub"} })}, code: CodeInvalidRequest, fault: "/mapping"},
		{name: "an unknown preset", given: standing(), when: UpdateWebhook{settings(func(s *WebhookSettings) { s.Preset = "shoes" })}, code: CodeInvalidRequest, fault: "/preset"},
		{name: "row 80: a batch", given: standing(), when: UpdateWebhook{settings(func(s *WebhookSettings) { s.Format, s.BatchSize = FormatBatch, 10 })},
			then: []Event{WebhookUpdated{settings(func(s *WebhookSettings) { s.Format, s.BatchSize = FormatBatch, 10 }), []string{"batchSize", "format"}}}},
		{name: "row 80: a batch size with another format", given: standing(), when: UpdateWebhook{settings(func(s *WebhookSettings) { s.BatchSize = 10 })}, code: CodeInvalidRequest, fault: "/batchSize"},
		{name: "a batch that is too large", given: standing(), when: UpdateWebhook{settings(func(s *WebhookSettings) { s.Format, s.BatchSize = FormatBatch, 1001 })}, code: CodeInvalidRequest, fault: "/batchSize"},
		{name: "a batch that is too small", given: standing(), when: UpdateWebhook{settings(func(s *WebhookSettings) { s.Format, s.BatchBytes = FormatBatch, 1 })}, code: CodeInvalidRequest, fault: "/batchBytes"},
		{name: "rotate", given: standing(), when: rotate("k1", KeyHMAC), then: []Event{rotated("k1", KeyHMAC, FirstKey)}},
		{name: "rotate again", given: standing(rotated("k1", KeyHMAC, FirstKey)), when: rotate("k2", KeyHMAC), then: []Event{rotated("k2", KeyHMAC, "k1")}},
		{name: "rotate to a key that is there", given: standing(rotated("k1", KeyHMAC, FirstKey)), when: rotate("k1", KeyHMAC), code: CodeIdempotencyKeyReused},
		{name: "row 7: add a key of another type", given: standing(), when: rotate("k1", KeyEd25519), then: []Event{rotated("k1", KeyEd25519)}},
		{name: "rotate one of two types", given: standing(rotated("k1", KeyEd25519)), when: rotate("k2", KeyHMAC), then: []Event{rotated("k2", KeyHMAC, FirstKey)}},
		{name: "rotate all", given: standing(rotated("k1", KeyEd25519)), when: all, then: []Event{rotated("k2", KeyHMAC, "k1", FirstKey)}},
		{name: "rotate to an unknown type", given: standing(), when: rotate("k1", "v2"), code: CodeInvalidRequest, fault: "/type"},
		{name: "an overlap that is too long", given: standing(), when: RotateWebhookKey{KeyID: "k1", Type: KeyHMAC, Overlap: MaxOverlap + 1, Now: goldenTime}, code: CodeInvalidRequest, fault: "/overlap"},
		{name: "row 15: an eleventh old key", given: standing(crowd...), when: rotate("k10", KeyHMAC), code: CodeTooManyKeys},
		{name: "row 15: a key that stops at once", given: standing(crowd...), when: RotateWebhookKey{KeyID: "k10", Type: KeyHMAC, Now: goldenTime},
			then: []Event{WebhookKeyRotated{Key: WebhookKey{KeyID: "k10", Type: KeyHMAC}, Replaces: []string{"k9"}, NotAfter: goldenTime}}},
		{name: "row 15: after another key has stopped", given: standing(crowd...), when: RotateWebhookKey{KeyID: "k10", Type: KeyHMAC, Overlap: time.Hour, Now: goldenTime.Add(time.Hour)},
			then: []Event{WebhookKeyRotated{Key: WebhookKey{KeyID: "k10", Type: KeyHMAC}, Replaces: []string{"k9"}, NotAfter: goldenTime.Add(2 * time.Hour)}}},
		{name: "rotate a key of an unknown webhook", given: NewWebhook("w"), when: rotate("k1", KeyHMAC), code: CodeWebhookNotFound},
		{name: "block on dead letters", given: standing(), when: UpdateWebhook{settings(func(s *WebhookSettings) { s.DeadLetter = DeadLetterBlock })},
			then: []Event{WebhookUpdated{settings(func(s *WebhookSettings) { s.DeadLetter = DeadLetterBlock }), []string{"deadLetter"}}}},
		{name: "an unknown dead letter policy", given: standing(), when: UpdateWebhook{settings(func(s *WebhookSettings) { s.DeadLetter = "post" })}, code: CodeInvalidRequest, fault: "/deadLetter"},
		{name: "row 82: require verification", given: standing(), when: UpdateWebhook{asked.Settings}, then: []Event{WebhookUpdated{asked.Settings, []string{"verification"}}, pending}},
		{name: "row 82: an unknown verification", given: standing(), when: UpdateWebhook{settings(func(s *WebhookSettings) { s.Verification = "call" })}, code: CodeInvalidRequest, fault: "/verification"},
		{name: "row 82: the receiver agrees", given: standing(asked, pending), when: wants,
			then: []Event{WebhookVerified{120}, WebhookStateChanged{From: WebhookPending, To: WebhookEnabled, Reason: "verified"}}},
		{name: "row 82: the receiver agrees again", given: standing(asked, WebhookVerified{120}), when: wants},
		{name: "row 83: the receiver agrees to another rate", given: standing(asked, WebhookVerified{60}), when: wants, then: []Event{WebhookVerified{120}}},
		{name: "row 82: another URL was verified", given: standing(asked, pending, WebhookUpdated{Settings: moved}), when: wants},
		{name: "row 82: resumed before verification", given: standing(asked, WebhookStateChanged{From: WebhookEnabled, To: WebhookPaused}), when: SetWebhookState{State: WebhookEnabled},
			then: []Event{WebhookStateChanged{From: WebhookPaused, To: WebhookPending}}},
		{name: "row 82: a new URL needs verification", given: standing(asked, WebhookVerified{120}), when: UpdateWebhook{moved},
			then: []Event{WebhookUpdated{moved, []string{"url"}}, pending}},
		{name: "row 82: verification is no longer required", given: standing(asked, pending), when: UpdateWebhook{standing().WebhookSettings},
			then: []Event{WebhookUpdated{standing().WebhookSettings, []string{"verification"}}, WebhookStateChanged{From: WebhookPending, To: WebhookEnabled}}},
		{name: "row 119: deliveries begin to fail", given: standing(), when: ReportFailing{goldenTime, "timeout"}, then: []Event{WebhookDeliveryFailing{goldenTime, "timeout"}}},
		{name: "row 119: deliveries go on failing", given: standing(WebhookDeliveryFailing{goldenTime, "timeout"}), when: ReportFailing{goldenTime, "status"}},
		{name: "row 119: deliveries recover", given: standing(WebhookDeliveryFailing{goldenTime, "timeout"}), when: ReportRecovered{}, then: []Event{WebhookDeliveryRecovered{goldenTime}}},
		{name: "row 119: deliveries recover without a failure", given: standing(), when: ReportRecovered{}},
		{name: "row 119: an unknown webhook", given: standing(WebhookDeleted{}), when: ReportExhausted{EventID: "x"}},
	} {
		got, err := tt.when.decide(tt.given)
		if diff := cmp.Diff(tt.then, got); diff != "" || CodeOf(err) != tt.code {
			t.Errorf("%s: %v, want code %q; events (-want +got):\n%s", tt.name, err, tt.code, diff)
		}
		if tt.fault != "" {
			if refusal, ok := err.(*Error); !ok || refusal.Faults[0].Pointer != tt.fault {
				t.Errorf("%s: %v, want a fault at %s", tt.name, err, tt.fault)
			}
		}
	}
	_, err := rotate("k10", KeyHMAC).decide(standing(crowd...))
	if want := goldenTime.Add(time.Hour).Format(time.RFC3339); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("row 15: %v, want the time at which the first replaced key stops, %s", err, want)
	}
}

// TestWebhookKeys checks the keys and secrets after rotations.
func TestWebhookKeys(t *testing.T) {
	t.Parallel()
	at := goldenTime
	w := standing(
		WebhookKeyRotated{Key: WebhookKey{KeyID: "a", Type: KeyHMAC}, Replaces: []string{FirstKey}, NotAfter: at.Add(90 * time.Second / 60)},
		WebhookKeyRotated{Key: WebhookKey{KeyID: "b", Type: KeyHMAC}, Replaces: []string{"a"}, NotAfter: at.Add(time.Hour)},
	)
	want := []WebhookKey{{KeyID: "b", Type: KeyHMAC}, {KeyID: "a", Type: KeyHMAC, NotAfter: at.Add(time.Hour)}}
	if diff := cmp.Diff(want, w.Keys); diff != "" {
		t.Errorf("keys: %s", diff)
	}
	used := w.Secrets(at.Add(time.Hour))
	if ids := []string{"a", "b"}; slices.ContainsFunc(ids, func(id string) bool { return used[id] != (id == "b") }) {
		t.Errorf("secrets %v, want only b after the hour", used)
	}
}

// TestReportsLeaveTheRevision checks row 119: delivery reports do not change the
// revision, so that a caller's If-Match stays valid.
func TestReportsLeaveTheRevision(t *testing.T) {
	t.Parallel()
	w := standing(WebhookDeliveryFailing{goldenTime, "timeout"}, WebhookDeliveryExhausted{EventID: "x"})
	if w.Revision != 0 || w.last != 2 || !w.FailingSince.Equal(goldenTime) {
		t.Errorf("revision %d after event %d, failing since %s; want 0, 2, %s", w.Revision, w.last, w.FailingSince, goldenTime)
	}
	if w := standing(WebhookDeliveryFailing{goldenTime, "timeout"}, WebhookStateChanged{To: WebhookPaused}); w.Revision != 2 {
		t.Errorf("revision %d after a pause, want that of the event, 2", w.Revision)
	}
}

func (WebhookCreated) sample() sample {
	return sample{event: WebhookCreated{"https://crm.example/hook", []string{"USER_*"}, FormatStandard, PayloadFull, 17, fullOptions,
		[]WebhookKey{{KeyID: "0190a1b2-0000-7000-8000-00000000000e", Type: KeyEd25519}}},
		clear: "URL Events Format Payload After Options Keys"}
}

func (WebhookUpdated) sample() sample {
	return sample{event: WebhookUpdated{WebhookSettings{"https://crm.example/hook", []string{"USER_*"}, FormatStandard, PayloadFull, fullOptions}, []string{"events"}},
		clear: "Settings Fields"}
}

func (WebhookKeyRotated) sample() sample {
	return sample{event: WebhookKeyRotated{WebhookKey{KeyID: "0190a1b2-0000-7000-8000-00000000000f", Type: KeyHMAC}, []string{"first"}, goldenTime},
		clear: "Key Replaces NotAfter"}
}

func (WebhookStateChanged) sample() sample {
	return sample{event: WebhookStateChanged{WebhookEnabled, WebhookDisabled, "gone"},
		clear: "From To Reason"}
}

func (WebhookVerified) sample() sample {
	return sample{event: WebhookVerified{120},
		clear: "AllowedRate"}
}

func (WebhookDeleted) sample() sample {
	return sample{event: WebhookDeleted{}}
}

func (WebhookDeliveryFailing) sample() sample {
	return sample{event: WebhookDeliveryFailing{goldenTime, "timeout"},
		clear: "Since Reason"}
}

func (WebhookDeliveryRecovered) sample() sample {
	return sample{event: WebhookDeliveryRecovered{goldenTime},
		clear: "Since"}
}

func (WebhookDeliveryExhausted) sample() sample {
	return sample{event: WebhookDeliveryExhausted{"0190a1b2-0000-7000-8000-000000000012", "USER_UPDATED", "0190a1b2-0000-7000-8000-000000000001", 4, 17, "status"},
		clear: "EventID EventType Sub Sequence Position Reason"}
}
