package domain

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"accountledger/eventstore/seal"
)

func consentVersions(n int) []ConsentVersion {
	var all []ConsentVersion
	for i := range n {
		all = append(all, ConsentVersion{Version: i + 1, Text: map[string]string{"en": "Yes, please."}})
	}
	return all
}

// newsletter returns a configuration with a consent of n versions and a field that
// is linked to it.
func newsletter(n int) *Config {
	return configOf(ConsentDefinitionSet{ConsentID: "news", Name: "Newsletter", Published: consentVersions(n)},
		FieldSet{Field: FieldDefinition{FieldKey: "newsletter_consent", DataType: TypeBoolean, Personal: true, LinkedConsent: "news"}})
}

func TestPutConsent(t *testing.T) {
	two := configOf(ConsentDefinitionSet{ConsentID: "news", Name: "Newsletter", Published: consentVersions(2)})
	put := func(change func(*PutConsent)) PutConsent {
		p := PutConsent{ConsentID: "news", Name: "Newsletter", Versions: consentVersions(2)}
		change(&p)
		return p
	}
	tests := []struct {
		name   string
		given  *Config
		when   PutConsent
		then   []Event
		faults []string
	}{
		{"define", NewConfig(), put(func(*PutConsent) {}), []Event{ConsentDefinitionSet{ConsentID: "news", Name: "Newsletter", Published: consentVersions(2),
			Created: true, Fields: []string{"name", "purpose", "legalBasis", "versions"}}}, nil},
		{"again", two, put(func(*PutConsent) {}), nil, nil},
		{"rename", two, put(func(p *PutConsent) { p.Name = "News" }), []Event{ConsentDefinitionSet{ConsentID: "news", Name: "News", Fields: []string{"name"}}}, nil},
		{"append", two, put(func(p *PutConsent) { p.Versions = consentVersions(3) }), []Event{ConsentDefinitionSet{ConsentID: "news", Name: "Newsletter",
			Published: consentVersions(3)[2:], Fields: []string{"versions"}}}, nil},
		{"change a published version", two, put(func(p *PutConsent) { p.Versions[0].Text = map[string]string{"en": "Yes!"} }), nil, []string{"/versions/0"}},
		{"change when it is required", two, put(func(p *PutConsent) { p.Versions[1].RequiredFrom = time.Unix(1, 0) }), nil, []string{"/versions/1"}},
		{"leave out a published version", two, put(func(p *PutConsent) { p.Versions = consentVersions(1) }), nil, []string{"/versions"}},
		{"without versions", NewConfig(), put(func(p *PutConsent) { p.Versions = nil }), nil, []string{"/versions"}},
		{"with a gap", NewConfig(), put(func(p *PutConsent) { p.Versions[1].Version = 3 }), nil, []string{"/versions/1/version"}},
		{"without a text", NewConfig(), put(func(p *PutConsent) { p.Versions[1].Text = nil }), nil, []string{"/versions/1"}},
		{"every fault", NewConfig(), PutConsent{ConsentID: "-", Name: strings.Repeat("x", 256), Versions: []ConsentVersion{{Version: 1, Text: map[string]string{"??": ""}, URL: "x"}}},
			nil, []string{"/consentId", "/name", "/versions/0/text", "/versions/0/url"}},
	}
	for _, tt := range tests {
		events, err := tt.when.decide(tt.given, time.Time{})
		if diff := cmp.Diff(tt.faults, pointers(err)); diff != "" {
			t.Errorf("%s: faults (-want +got):\n%s", tt.name, diff)
		}
		if diff := cmp.Diff(tt.then, events); diff != "" {
			t.Errorf("%s: events (-want +got):\n%s", tt.name, diff)
		}
	}
	if got := configOf(ConsentDefinitionSet{ConsentID: "news", Published: consentVersions(2)}, ConsentDefinitionSet{ConsentID: "news", Published: consentVersions(3)[2:]}).Consents["news"]; got.Newest() != 3 {
		t.Errorf("appended: %+v", got)
	}
}

// halfPast is the time of the commands, after the last event of fold.
var halfPast = time.Date(2026, 11, 22, 12, 30, 0, 0, time.UTC)

func TestDecideConsent(t *testing.T) {
	decided := func(version int, status ConsentStatus) Event {
		return ConsentDecided{ConsentID: "news", Version: version, Status: status}
	}
	tests := []struct {
		name   string
		given  []Event
		when   DecideConsent
		then   []Event
		code   Code
		faults []string
	}{
		{"accept", nil, DecideConsent{ConsentID: "news", Version: 1, Status: ConsentAccepted}, []Event{decided(1, ConsentAccepted)}, "", nil},
		{"accept with evidence", nil, DecideConsent{ConsentID: "news", Version: 2, Status: ConsentAccepted, Time: halfPast.Add(-time.Hour), Channel: "phone", Client: "crm", Evidence: value(`{ "call":1.0}`)},
			[]Event{ConsentDecided{"news", 2, ConsentAccepted, halfPast.Add(-time.Hour), "phone", "crm", value(`{"call":1}`)}}, "", nil},
		{"decline", nil, DecideConsent{ConsentID: "news", Version: 1, Status: ConsentDeclined}, []Event{decided(1, ConsentDeclined)}, "", nil},
		{"the same again", []Event{decided(1, ConsentAccepted)}, DecideConsent{ConsentID: "news", Version: 1, Status: ConsentAccepted, Channel: "web"}, nil, "", nil},
		{"the next version", []Event{decided(1, ConsentAccepted)}, DecideConsent{ConsentID: "news", Version: 2, Status: ConsentAccepted}, []Event{decided(2, ConsentAccepted)}, "", nil},
		{"an earlier version", []Event{decided(2, ConsentDeclined)}, DecideConsent{ConsentID: "news", Version: 1, Status: ConsentAccepted}, nil, CodeInvalidRequest, []string{"/version"}},
		{"revoke", []Event{decided(1, ConsentAccepted)}, DecideConsent{ConsentID: "news", Version: 1, Status: ConsentRevoked}, []Event{decided(1, ConsentRevoked)}, "", nil},
		{"revoke nothing", nil, DecideConsent{ConsentID: "news", Version: 1, Status: ConsentRevoked}, nil, CodeConsentNotAccepted, nil},
		{"revoke a declined version", []Event{decided(1, ConsentDeclined)}, DecideConsent{ConsentID: "news", Version: 1, Status: ConsentRevoked}, nil, CodeConsentNotAccepted, nil},
		{"revoke another version", []Event{decided(1, ConsentAccepted)}, DecideConsent{ConsentID: "news", Version: 2, Status: ConsentRevoked}, nil, CodeConsentNotAccepted, nil},
		{"accept again", []Event{decided(1, ConsentAccepted), decided(1, ConsentRevoked)}, DecideConsent{ConsentID: "news", Version: 1, Status: ConsentAccepted}, []Event{decided(1, ConsentAccepted)}, "", nil},
		{"unknown consent", nil, DecideConsent{ConsentID: "terms", Version: 1, Status: ConsentAccepted}, nil, CodeConsentNotFound, nil},
		{"every fault", nil, DecideConsent{ConsentID: "news", Version: 3, Status: "maybe", Time: halfPast.Add(time.Second), Channel: strings.Repeat("x", 65), Client: "\x00", Evidence: value("{")},
			nil, CodeInvalidRequest, []string{"/channel", "/client", "/evidence", "/status", "/time", "/version"}},
		{"before the latest", []Event{decided(1, ConsentAccepted)}, DecideConsent{ConsentID: "news", Version: 2, Status: ConsentAccepted, Time: halfPast.Add(-24 * time.Hour)}, nil, CodeInvalidRequest, []string{"/time"}},

		{"does not change the field", []Event{CustomFieldsUpdated{Fields: []string{"newsletter_consent"}, Values: fieldValues("newsletter_consent", "true")}},
			DecideConsent{ConsentID: "news", Version: 1, Status: ConsentDeclined}, []Event{decided(1, ConsentDeclined)}, "", nil},
	}
	for _, tt := range tests {
		events, err := Decide(Setting{Config: newsletter(2), Now: halfPast}, fold(append([]Event{adaCreated}, tt.given...)...), tt.when)
		if diff := cmp.Diff(tt.then, events); diff != "" || CodeOf(err) != tt.code {
			t.Errorf("%s: %v, want %q; events (-want +got):\n%s", tt.name, err, tt.code, diff)
		}
		if diff := cmp.Diff(tt.faults, pointers(err)); diff != "" {
			t.Errorf("%s: faults (-want +got):\n%s", tt.name, diff)
		}
	}
}

// TestLinkedField checks the decisions that follow from a field linked to a consent.
func TestLinkedField(t *testing.T) {
	decided := func(version int, status ConsentStatus) []Event {
		return []Event{ConsentDecided{ConsentID: "news", Version: version, Status: status, Channel: "customFields.newsletter_consent"}}
	}
	const yes, no, unset = "true", "false", "null"
	for _, tt := range []struct {
		name     string
		field    string // present value
		consent  []Event
		to       string
		decision []Event
	}{
		{"true", unset, nil, yes, decided(2, ConsentAccepted)},
		{"false at first", unset, nil, no, nil},
		{"false", yes, decided(2, ConsentAccepted), no, decided(2, ConsentRevoked)},
		{"null", yes, decided(2, ConsentAccepted), unset, decided(2, ConsentRevoked)},
		{"false revokes an older version", yes, decided(1, ConsentAccepted), no, decided(1, ConsentRevoked)},
		{"true again", no, decided(2, ConsentRevoked), yes, decided(2, ConsentAccepted)},
		{"true, accepted directly", no, decided(2, ConsentAccepted), yes, nil},
		{"true, accepted an older version", no, decided(1, ConsentAccepted), yes, decided(2, ConsentAccepted)},
		{"false, declined directly", yes, decided(2, ConsentDeclined), no, nil},
	} {
		given := append([]Event{adaCreated}, tt.consent...)
		if tt.field != unset {
			given = append(given, CustomFieldsUpdated{Fields: []string{"newsletter_consent"}, Values: fieldValues("newsletter_consent", tt.field)})
		}
		events, err := Decide(Setting{Config: newsletter(2), Now: halfPast}, fold(given...), SetCustomFields{fieldValues("newsletter_consent", tt.to)})
		want := append([]Event{CustomFieldsUpdated{Fields: []string{"newsletter_consent"}, Values: fieldValues("newsletter_consent", tt.to)}}, tt.decision...)
		if diff := cmp.Diff(want, events); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", tt.name, err, diff)
		}
	}
	created, err := Decide(Setting{Config: newsletter(2)}, NewAccount("s"), CreateAccount{Origin: OriginRegistered,
		Identities: []NewIdentity{{IdentityID: "i1", Provider: ProviderSelf, Profile: adaProfile}}, CustomFields: fieldValues("newsletter_consent", "true")})
	if diff := cmp.Diff(decided(2, ConsentAccepted), created[1:]); diff != "" || err != nil {
		t.Errorf("create: %v (-want +got):\n%s", err, diff)
	}
}

// TestConsentDue checks when a new decision is due.
func TestConsentDue(t *testing.T) {
	c := Consent{Versions: consentVersions(3)}
	c.Versions[2].RequiredFrom = halfPast
	for _, tt := range []struct {
		decided int
		at      time.Time
		want    bool
	}{
		{0, halfPast, true}, {1, halfPast, true}, {2, halfPast, true}, {3, halfPast, false},
		{0, halfPast.Add(-1), true}, {1, halfPast.Add(-1), true}, {2, halfPast.Add(-1), false},
	} {
		if got := c.Due(ConsentDecision{Version: tt.decided}, tt.at); got != tt.want {
			t.Errorf("decided on %d at %s, due: %v", tt.decided, tt.at, got)
		}
	}
}

// TestConsentInvariants executes random decisions: the account has the latest
// decision on each consent, a revocation follows an acceptance of the same version,
// versions never go back, and an accepted command records its decision.
func TestConsentInvariants(t *testing.T) {
	c := configOf(ConsentDefinitionSet{ConsentID: "b", Published: consentVersions(3)}, ConsentDefinitionSet{ConsentID: "a", Published: consentVersions(3)},
		FieldSet{Field: FieldDefinition{FieldKey: "f", DataType: TypeBoolean, LinkedConsent: "a"}})
	rapid.Check(t, func(t *rapid.T) {
		a := fold(adaCreated)
		model := map[string]ConsentDecided{}
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			var cmd Command = DecideConsent{ConsentID: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "consent"),
				Version: rapid.IntRange(1, 3).Draw(t, "version"), Status: rapid.SampledFrom(ConsentStatuses).Draw(t, "status")}
			if rapid.Bool().Draw(t, "field") {
				cmd = SetCustomFields{fieldValues("f", rapid.SampledFrom([]string{"true", "false", "null"}).Draw(t, "value"))}
			}
			held, _ := a.JSON()
			before := a
			events, err := Decide(Setting{Config: c, Now: halfPast}, a, cmd)
			if d, ok := cmd.(DecideConsent); ok && err == nil && len(events) == 0 {
				if now := model[d.ConsentID]; now.Version != d.Version || now.Status != d.Status {
					t.Fatalf("%+v changed nothing after %+v", d, now)
				}
			}
			for _, e := range events {
				a = Evolve(a, Entry{Type: e.eventType(), Revision: a.Revision + 1, Event: e, Time: halfPast})
				d, ok := e.(ConsentDecided)
				if !ok {
					continue
				}
				was := model[d.ConsentID]
				if d.Version < was.Version || d.Status == ConsentRevoked && (was.Status != ConsentAccepted || was.Version != d.Version) {
					t.Fatalf("%+v after %+v", d, was)
				}
				model[d.ConsentID] = d
			}
			if after, _ := before.JSON(); string(after) != string(held) {
				t.Fatalf("Evolve changed an older account:\n%s\n%s", held, after)
			}
			if len(a.Consents) != len(model) {
				t.Fatalf("%d consents of %d", len(a.Consents), len(model))
			}
			for i, d := range a.Consents {
				if i > 0 && a.Consents[i-1].ConsentID >= d.ConsentID || model[d.ConsentID].Version != d.Version || model[d.ConsentID].Status != d.Status {
					t.Fatalf("consents %+v, decided %+v", a.Consents, model)
				}
			}
		}
	})
}

// TestDeleteConsent checks that a consent with decisions cannot be removed.
func TestDeleteConsent(t *testing.T) {
	t.Parallel()
	l := open(t, t.TempDir(), seal.NewMaster())
	census := &meanwhile{Ledger: l, subs: []string{"a"}}
	l.census = census
	ask := func(code Code, cmd ConfigCommand) {
		t.Helper()
		if _, err := l.Configure(t.Context(), by("", ""), cmd); CodeOf(err) != code || (err != nil) != (code != "") {
			t.Errorf("%+v: %v, want %q", cmd, err, code)
		}
	}
	mustExecute(t, l, by("", ""), "a", create("ada@example.com"))
	put := PutConsent{ConsentID: "news", Name: "Newsletter", Versions: consentVersions(1)}
	linked := PutField{FieldDefinition: FieldDefinition{FieldKey: "f", DataType: TypeCheckbox, LinkedConsent: "news"}}
	ask(CodeConsentNotFound, DeleteConsent{ConsentID: "news"})
	ask("", put)
	ask("", linked)
	ask(CodeInUse, DeleteConsent{ConsentID: "news"})
	ask("", DeleteField{FieldKey: "f"})
	ask("", DeleteConsent{ConsentID: "news"})
	ask("", put)
	census.during = func() {
		mustExecute(t, l, by("", ""), "a", DecideConsent{ConsentID: "news", Version: 1, Status: ConsentDeclined})
	}
	ask(CodeInUse, DeleteConsent{ConsentID: "news"})
	census.during = nil
	ask(CodeInUse, DeleteConsent{ConsentID: "news"})
}

func (ConsentDecided) sample() sample {
	return sample{event: ConsentDecided{"newsletter", 2, ConsentAccepted, time.Date(2026, 11, 20, 8, 0, 0, 0, time.UTC), "web", "shop", value(`{"form":"f1"}`)},
		clear:  "ConsentID Version Status Time",
		others: []Event{ConsentDecided{Status: ConsentDeclined}, ConsentDecided{Status: ConsentRevoked}}}
}

func (ConsentDefinitionSet) sample() sample {
	return sample{event: ConsentDefinitionSet{"newsletter", "Newsletter", "To tell you what is new.", "consent", []ConsentVersion{{1, map[string]string{"en": "Yes, please."},
		"https://example.com/newsletter", time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)}}, true, []string{"name", "versions"}},
		clear:  "ConsentID Name Purpose LegalBasis Published Created Fields",
		others: []Event{ConsentDefinitionSet{Fields: []string{"name"}}}}
}

func (ConsentDefinitionDeleted) sample() sample {
	return sample{event: ConsentDefinitionDeleted{"newsletter"},
		clear: "ConsentID"}
}
