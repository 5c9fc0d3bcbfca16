package domain

import (
	"flag"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var update = flag.Bool("update", false, "write missing golden files; existing ones never change")

// sample shows the events of one type. Each event has a method sample in the tests
// of its noun; the tests in this file use all samples.
type sample struct {
	event  Event   // with every field set; the content of the golden file
	clear  string  // names of the clear fields, which are not personal and are kept forever
	others []Event // further events, which have other public names
	hidden bool    // no external system receives the event
}

// samples returns a sample of every event.
func samples() (all []sample) {
	for _, e := range events {
		s, ok := e.(interface{ sample() sample })
		if !ok {
			panic("domain: " + e.eventType() + " has no sample in the tests of its noun")
		}
		all = append(all, s.sample())
	}
	return all
}

var fullOptions = WebhookOptions{Description: "Sales", HubSignature: true,
	Preset: "crm", Mapping: WebhookMapping{"customer_id": "sub"}, BatchSize: 10, BatchBytes: 1 << 20,
	Auth:              WebhookAuth{Type: AuthAPIKey, In: "header", Name: "X-API-Key", SecretID: "0190a1b2-0000-7000-8000-000000000010"},
	ClientCertificate: WebhookCertificate{Certificate: "-----BEGIN CERTIFICATE-----", SecretID: "0190a1b2-0000-7000-8000-000000000011"},
	Headers:           map[string]string{"X-Tenant": "7"}, RateLimit: 2.5, Burst: 5, MaxInFlight: 8, Order: OrderStrict,
	DeadLetter: DeadLetterBlock, Verification: VerifyOptions}

var fullField = FieldDefinition{
	FieldKey: "tier", DataType: TypeSelect, Required: true, ReadOnly: true, Internal: true, Unique: true, Searchable: true, Personal: true,
	Min: new(1.0), Max: new(2.0), MinLength: 3, MaxLength: 4, Regex: "[a-z]+", Options: []string{"gold", "silver"},
	Labels: map[string]string{"de": "Stufe", "en": "Tier"}, LinkedConsent: "newsletter",
}

var goldenTime = time.Date(2026, 12, 24, 18, 0, 0, 0, time.UTC)

var fullProfile = Profile{
	GivenName: "Ada", FamilyName: "King", MiddleName: "Augusta", Nickname: "Countess",
	Email: "ada@example.com", EmailVerified: true, MobileNumber: "+4915112345678", MobileNumberVerified: true, Username: "ada",
	Locale: "en-GB", Zoneinfo: "Europe/London", Birthdate: "1815-12-10", Gender: "female",
	Picture: "https://example.com/ada.png", Website: "https://example.com/ada",
	Address: &Address{"12 St James's Square", "12 St James's Square", "London", "Greater London", "SW1Y 4JH", "GB"},
}

var fullIdentity = Identity{
	IdentityID: "0190a1b2-0000-7000-8000-00000000000c", Provider: "self", ProviderUserID: "ada-2", Profile: fullProfile,
	From: "0190a1b2-0000-7000-8000-000000000003", Secondary: true,
	CreatedTime: time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC), UpdatedTime: time.Date(2026, 11, 22, 12, 0, 1, 0, time.UTC),
}

var goldenMeta = Metadata{
	Actor: Actor{"api-key", "k1", "crm"}, CommandID: "c1", CorrelationID: "r1", CausationID: "e1",
	EffectiveTime: time.Date(2026, 11, 22, 12, 0, 0, 123456000, time.UTC), ReasonCode: "support", requestHash: "digest",
}

type golden struct {
	Type     string         `json:"type"`
	Clear    jsontext.Value `json:"clear"`
	Personal jsontext.Value `json:"personal"`
}

// TestGoldenEvents checks that every version of every event can still be read, and
// that the encoding of today's events has not changed.
func TestGoldenEvents(t *testing.T) {
	dir := filepath.Join("..", "testdata", "events")
	for _, sample := range samples() {
		e := sample.event
		clear, err := encodeClear(e, goldenMeta)
		if err != nil {
			t.Fatal(err)
		}
		personal, err := encodePersonal(e, goldenMeta)
		if err != nil {
			t.Fatal(err)
		}
		data, err := json.Marshal(golden{e.eventType(), clear, personal}, jsontext.WithIndent("  "))
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, e.eventType()+".json")
		want, err := os.ReadFile(file)
		if os.IsNotExist(err) && *update {
			if err := os.WriteFile(file, append(data, '\n'), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(data)+"\n"); diff != "" {
			t.Errorf("the encoding of %s has changed (-golden +got):\n%s", e.eventType(), diff)
		}
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	read := map[string]bool{}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var g golden
		if err := json.Unmarshal(data, &g); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		e, m, err := DecodeEvent(g.Type, g.Clear, g.Personal)
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		if m != goldenMeta {
			t.Errorf("%s: metadata %+v, want %+v", file, m, goldenMeta)
		}
		// The older files, <type>.<n>.json, lack fields that were added later.
		if v := reflect.ValueOf(e); filepath.Base(file) == e.eventType()+".json" {
			for i := range v.NumField() {
				if v.Field(i).IsZero() {
					t.Errorf("%s has no value for the field %s", file, v.Type().Field(i).Name)
				}
			}
		}
		if _, _, err := DecodeEvent(g.Type, g.Clear, nil); err != nil {
			t.Errorf("%s, erased: %v", file, err)
		}
		read[g.Type] = true
	}
	for _, name := range slices.Sorted(maps.Keys(decoders)) {
		if !read[name] {
			t.Errorf("%s has no golden file", name)
		}
	}
}

// TestClassified checks that every field of every event is tagged clear or
// personal, and that the sample of the event lists the clear ones.
func TestClassified(t *testing.T) {
	for i, sample := range samples() {
		typ, clear := reflect.TypeOf(sample.event), strings.Fields(sample.clear)
		if typ != reflect.TypeOf(events[i]) {
			t.Errorf("the sample of %T is a %v", events[i], typ)
		}
		for i := range typ.NumField() {
			name := typ.Field(i).Name
			listed := slices.Index(clear, name)
			switch part(typ.Field(i).Tag.Get("pii")) {
			case clearPart:
				if listed < 0 {
					t.Errorf("%v.%s is clear and can never be erased: list it in the sample if it is not personal", typ, name)
					continue
				}
				clear = slices.Delete(clear, listed, listed+1)
			case personalPart:
				if !strings.HasPrefix(sample.event.eventType(), "account.") {
					t.Errorf("%v.%s is personal, but the event belongs to no account, so no key can seal it", typ, name)
				}
			default:
				t.Errorf("%v.%s is neither clear nor personal", typ, name)
			}
		}
		if len(clear) > 0 {
			t.Errorf("the sample of %v lists fields that are not clear: %v", typ, clear)
		}
	}
}

// TestListed compares the list of events with the source. The ledger could write an
// event that is missing in the list, but not read it.
func TestListed(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	listed, declared := map[string]bool{}, 0
	for _, e := range events {
		listed[reflect.TypeOf(e).Name()] = true
	}
	for _, file := range files {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^func \((?:\w+ )?(\w+)\) eventType\(`).FindAllSubmatch(source, -1) {
			declared++
			if name := string(m[1]); !listed[name] {
				t.Errorf("%s: %s is not in the list of events", file, name)
			}
		}
	}
	if declared != len(events) {
		t.Errorf("%d events are declared, %d are listed", declared, len(events))
	}
}

func TestUnknownEvent(t *testing.T) {
	if e, _, err := DecodeEvent("account.teleported.v1", value("{}"), nil); err == nil {
		t.Errorf("DecodeEvent of an unknown type = %v, want an error", e)
	}
}

// TestCatalogue compares the catalogue with the public events of all samples: their
// names, the types of their data and the events that cause them.
func TestCatalogue(t *testing.T) {
	causes := map[string][]string{}
	hidden := map[string]bool{}
	for _, s := range samples() {
		hidden[s.event.eventType()] = s.hidden
	}
	for _, x := range everyEntry() {
		public, err := Public(x, 0)
		if err != nil || (len(public) == 0) != hidden[x.Type] {
			t.Errorf("Public(%s) = %v, %v; want events unless the sample is hidden", x.Type, public, err)
		}
		again, _ := Public(x, 0)
		if diff := cmp.Diff(public, again); diff != "" {
			t.Errorf("Public(%s) differs the second time:\n%s", x.Type, diff)
		}
		ids := map[string]bool{}
		for _, p := range public {
			if ids[p.ID] {
				t.Errorf("Public(%s) uses the id %s twice", x.Type, p.ID)
			}
			ids[p.ID] = true
			if !Selectable(p.Type) {
				t.Errorf("%s cannot be selected", p.Type)
			}
		}
		for _, p := range x.Event.public(x) {
			if got, want := reflect.TypeOf(p.data), reflect.TypeOf(publicTypes[p.name].Data); got != want {
				t.Errorf("the data of %s is a %v, the catalogue says %v", p.name, got, want)
			}
			if !slices.Contains(causes[p.name], x.Type) {
				causes[p.name] = append(causes[p.name], x.Type)
			}
		}
	}
	listed := map[string][]string{}
	for _, c := range Catalogue {
		if listed[c.Name] != nil || c.When == "" {
			t.Errorf("%s is listed twice, or has no When", c.Name)
		}
		listed[c.Name] = c.From
		for _, from := range c.From {
			if strings.HasPrefix(from, "account.") != c.OfAccount() {
				t.Errorf("%s is about accounts and about the configuration", c.Name)
			}
		}
	}
	order := cmpopts.SortSlices(strings.Compare)
	if diff := cmp.Diff(listed, causes, order); diff != "" {
		t.Errorf("catalogue (-listed +caused):\n%s", diff)
	}
}

// everyEvent returns all events of all samples.
func everyEvent() (all []Event) {
	for _, s := range samples() {
		all = append(append(all, s.event), s.others...)
	}
	return all
}

// everyEntry returns a log entry for each event of everyEvent.
func everyEntry() (all []Entry) {
	for _, e := range everyEvent() {
		stream := ConfigStream
		if _, ok := e.(accountEvent); ok {
			stream = "account-s"
		} else if strings.HasPrefix(e.eventType(), "webhook.") {
			stream = "webhook-w"
		} else if strings.HasPrefix(e.eventType(), "api-key.") {
			stream = APIKeyStream
		} else if strings.HasPrefix(e.eventType(), "ledger.") {
			stream = LineageStream
		} else if _, ok := e.(UnknownLogin); ok {
			stream = LoginsStream
		}
		all = append(all, Entry{ID: NewID(), Type: e.eventType(), Stream: stream, Time: time.Unix(0, 0).UTC(), Event: e})
	}
	return all
}

// FuzzDecode checks that no input panics, and that encoding and decoding an event
// is the identity.
func FuzzDecode(f *testing.F) {
	for _, sample := range samples() {
		e := sample.event
		clear, _ := encodeClear(e, goldenMeta)
		personal, _ := encodePersonal(e, goldenMeta)
		f.Add(e.eventType(), clear, personal)
	}
	f.Fuzz(func(t *testing.T, name string, clear, personal []byte) {
		e, m, err := DecodeEvent(name, clear, personal)
		if err != nil {
			return
		}
		c, err1 := encodeClear(e, m)
		p, err2 := encodePersonal(e, m)
		if err1 != nil || err2 != nil {
			return // a raw JSON field holds what the ledger would never write
		}
		again, m2, err := DecodeEvent(e.eventType(), c, p)
		if err != nil {
			t.Fatalf("an encoded event does not decode: %v", err)
		}
		c2, _ := encodeClear(again, m2)
		p2, _ := encodePersonal(again, m2)
		if string(c) != string(c2) || string(p) != string(p2) {
			t.Errorf("encoding and decoding is not the identity:\n%s %s\n%s %s", c, p, c2, p2)
		}
	})
}

// TestTraceparent checks that the clear part, which the log's proofs cover, has the
// traceparent of the request if there is one.
func TestTraceparent(t *testing.T) {
	const traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	traced := goldenMeta
	traced.Traceparent = traceparent
	clear, err := encodeClear(RoleDeleted{"AUDITOR"}, traced)
	if err != nil || !strings.Contains(string(clear), `"traceparent":"`+traceparent+`"`) {
		t.Fatalf("the clear part is %s, %v", clear, err)
	}
	e, m, err := DecodeEvent("role.deleted.v1", clear, nil)
	if err != nil || m.Traceparent != traceparent {
		t.Fatalf("DecodeEvent = %+v, %v", m, err)
	}
	public, err := Public(Entry{Type: "role.deleted.v1", Event: e, Meta: m}, 0)
	if err != nil || len(public) != 1 || public[0].Traceparent != traceparent {
		t.Errorf("Public = %+v, %v", public, err)
	}
	if clear, err = encodeClear(RoleDeleted{"AUDITOR"}, goldenMeta); err != nil || strings.Contains(string(clear), "traceparent") {
		t.Errorf("without a trace the clear part is %s, %v", clear, err)
	}
}
