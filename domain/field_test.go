package domain

import (
	"context"
	"iter"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"accountledger/eventstore"
	"accountledger/eventstore/seal"
)

// configOf returns the fold of events.
func configOf(events ...Event) *Config {
	c := NewConfig()
	for _, e := range events {
		c.Evolve(Entry{Type: e.eventType(), Stream: ConfigStream, Revision: c.Revision + 1, Position: c.Position + 1, Event: e})
	}
	return c
}

// defined returns a configuration with these fields.
func defined(fields ...FieldDefinition) *Config {
	var events []Event
	for _, f := range fields {
		events = append(events, FieldSet{Field: f})
	}
	return configOf(events...)
}

func fieldValues(pairs ...string) map[string]jsontext.Value {
	m := map[string]jsontext.Value{}
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = value(pairs[i+1])
	}
	return m
}

func pointers(err error) []string {
	e, ok := err.(*Error)
	if !ok {
		return nil
	}
	var all []string
	for _, f := range e.Faults {
		all = append(all, f.Pointer)
	}
	return all
}

// TestDataTypes checks which values each data type accepts, how it stores them, and
// which it refuses. A type without a row fails.
func TestDataTypes(t *testing.T) {
	long := `"` + strings.Repeat("x", 256) + `"`
	tests := map[DataType]struct {
		field FieldDefinition
		good  map[string]string // given value to stored value
		bad   []string
	}{
		TypeText: {good: map[string]string{`"gold"`: `"gold"`, `""`: `""`, `"\u00e4"`: `"ä"`}, bad: []string{`1`, `true`, `["a"]`, `"a\nb"`, `"\u0000"`, long}},
		TypeTextarea: {field: FieldDefinition{MaxLength: 300, Regex: `[a-z\n]+`}, good: map[string]string{`"a\nb"`: `"a\nb"`, long: long},
			bad: []string{`1`, `"\u0000"`, `"A"`, `"a1"`}},
		TypeNumber: {field: FieldDefinition{Min: new(-1.0), Max: new(10.5)}, good: map[string]string{`1.0`: `1`, `-1`: `-1`, `10.5`: `10.5`, `1e1`: `10`},
			bad: []string{`"1"`, `-1.1`, `10.6`, `1e400`, `true`}},
		TypeBoolean:  {good: map[string]string{`true`: `true`, `false`: `false`}, bad: []string{`"true"`, `1`, `0`, `[]`}},
		TypeCheckbox: {good: map[string]string{`true`: `true`, `false`: `false`}, bad: []string{`"on"`, `1`}},
		TypeDate:     {good: map[string]string{`"2024-02-29"`: `"2024-02-29"`}, bad: []string{`"2023-02-29"`, `"29.02.2024"`, `"2024-02-29T00:00:00Z"`, `20240229`, `""`}},
		TypeURL:      {field: FieldDefinition{MaxLength: 30}, good: map[string]string{`"https://example.com/a"`: `"https://example.com/a"`}, bad: []string{`"example.com"`, `"javascript:x"`, `""`, `1`, `"https://example.com/` + strings.Repeat("a", 30) + `"`}},
		TypeEmail:    {good: map[string]string{`"Ada@EXAMPLE.com"`: `"Ada@example.com"`}, bad: []string{`"ada"`, `""`, `1`, `"Ada <ada@example.com>"`}},
		TypeMobile:   {good: map[string]string{`"+49 1511 2345678"`: `"+4915112345678"`}, bad: []string{`"12"`, `""`, `4915112345678`}},
		TypeSelect:   {field: FieldDefinition{Options: []string{"a", "b"}}, good: map[string]string{`"a"`: `"a"`}, bad: []string{`"c"`, `"A"`, `["a"]`, `0`, `""`}},
		TypeRadio:    {field: FieldDefinition{Options: []string{"a", "b"}}, good: map[string]string{`"b"`: `"b"`}, bad: []string{`"c"`, `true`}},
		TypeMultiselect: {field: FieldDefinition{Options: []string{"a", "b", "c"}, MaxLength: 2}, good: map[string]string{`["b","a"]`: `["b","a"]`, `[]`: `[]`},
			bad: []string{`"a"`, `["d"]`, `["a","a"]`, `[1]`, `[null]`, `["a","b","c"]`}},
		TypeArray:    {field: FieldDefinition{MinLength: 1, MaxLength: 2}, good: map[string]string{`[1, {"a":1}]`: `[1,{"a":1}]`}, bad: []string{`[]`, `[1,2,3]`, `{}`, `"a"`}},
		TypeJSON:     {good: map[string]string{`{"b":[1],"a":1.0}`: `{"a":1,"b":[1]}`, `1`: `1`, `"x"`: `"x"`}, bad: []string{`{`, `{"a":1,"a":2}`}},
		TypeUsername: {field: FieldDefinition{MinLength: 3}, good: map[string]string{`"  Ada L. "`: `"Ada L."`, `"ada"`: `"ada"`}, bad: []string{`" "`, `"a\nb"`, `1`, `"ab"`, long}},
	}
	for _, rule := range DataTypes {
		tt, ok := tests[rule.Type]
		if !ok || rule.Meaning == "" {
			t.Errorf("%s has no row in the test, or no meaning", rule.Type)
			continue
		}
		tt.field.FieldKey, tt.field.DataType, tt.field.Personal = "f", rule.Type, true
		s := Setting{Config: defined(tt.field)}
		for given, want := range tt.good {
			events, err := Decide(s, fold(adaCreated), SetCustomFields{fieldValues("f", given)})
			if err != nil {
				t.Errorf("%s refuses %s: %v", rule.Type, given, err)
				continue
			}
			if got := string(events[0].(CustomFieldsUpdated).Values["f"]); got != want {
				t.Errorf("%s stores %s as %s, want %s", rule.Type, given, got, want)
			}
		}
		for _, given := range tt.bad {
			events, err := Decide(s, fold(adaCreated), SetCustomFields{fieldValues("f", given, "ok", "1", "g#", "1")})
			if want := []string{"", "/f"}; !slices.Equal(pointers(err), want) {
				t.Errorf("%s accepts %s: %v, %v; want faults at %q", rule.Type, given, events, err, want)
			}
			create := CreateAccount{Origin: OriginCreated, Identities: []NewIdentity{{IdentityID: "i1", Provider: ProviderSelf, Profile: adaProfile}}, CustomFields: fieldValues("f", given)}
			if _, err := Decide(s, NewAccount("s"), create); !slices.Equal(pointers(err), []string{"/customFields/f"}) {
				t.Errorf("a new account accepts %s %s: %v", rule.Type, given, err)
			}
		}
		// null unsets a field of any type.
		given := slices.Sorted(maps.Keys(tt.good))[0]
		a := fold(adaCreated, CustomFieldsUpdated{Fields: []string{"f"}, Values: fieldValues("f", given)})
		if events, err := Decide(s, a, SetCustomFields{fieldValues("f", "null")}); err != nil || len(events) != 1 {
			t.Errorf("%s is not unset: %v, %v", rule.Type, events, err)
		}
	}
	if len(tests) != len(DataTypes) {
		t.Errorf("%d data types, %d rows", len(DataTypes), len(tests))
	}
}

// TestPutField checks which definitions are refused, and where their faults are.
func TestPutField(t *testing.T) {
	label := map[string]string{"en": "Tier"}
	consents := []Event{ConsentDefinitionSet{ConsentID: "news"}, FieldSet{Field: FieldDefinition{FieldKey: "old", DataType: TypeBoolean, LinkedConsent: "terms"}}, ConsentDefinitionSet{ConsentID: "terms"}}
	tests := []struct {
		name   string
		given  FieldDefinition
		faults []string
	}{
		{"text", FieldDefinition{FieldKey: "f", DataType: TypeText, Regex: "a|b", MinLength: 1, MaxLength: 2, Unique: true, Labels: label}, nil},
		{"linked", FieldDefinition{FieldKey: "f", DataType: TypeCheckbox, LinkedConsent: "news"}, nil},
		{"number", FieldDefinition{FieldKey: "f", DataType: TypeNumber, Min: new(1.0), Max: new(1.0)}, nil},
		{"no type", FieldDefinition{FieldKey: "f"}, []string{"/dataType"}},
		{"unknown type", FieldDefinition{FieldKey: "f", DataType: "text"}, []string{"/dataType"}},
		{"key", FieldDefinition{FieldKey: "1", DataType: TypeText}, []string{""}},
		{"regex", FieldDefinition{FieldKey: "f", DataType: TypeText, Regex: "("}, []string{"/regex"}},
		{"regex that opens ours", FieldDefinition{FieldKey: "f", DataType: TypeText, Regex: "a)|(b"}, []string{"/regex"}},
		{"regex of another dialect", FieldDefinition{FieldKey: "f", DataType: TypeText, Regex: "(?=a)"}, []string{"/regex"}},
		{"limits of another type", FieldDefinition{FieldKey: "f", DataType: TypeBoolean, Unique: true, Min: new(1.0), Max: new(2.0), MinLength: 1, MaxLength: 2, Regex: "a", Options: []string{"a"}},
			[]string{"/max", "/maxLength", "/min", "/minLength", "/options", "/regex", "/unique"}},
		{"empty range", FieldDefinition{FieldKey: "f", DataType: TypeNumber, Min: new(2.0), Max: new(1.0)}, []string{"/max"}},
		{"empty lengths", FieldDefinition{FieldKey: "f", DataType: TypeText, MinLength: 3, MaxLength: 2}, []string{"/maxLength"}},
		{"negative lengths", FieldDefinition{FieldKey: "f", DataType: TypeText, MinLength: -3, MaxLength: -2}, []string{"/maxLength", "/minLength"}},
		{"no options", FieldDefinition{FieldKey: "f", DataType: TypeSelect}, []string{"/options"}},
		{"bad options", FieldDefinition{FieldKey: "f", DataType: TypeRadio, Options: []string{"a", "", "a"}}, []string{"/options/1", "/options/2"}},
		{"bad labels", FieldDefinition{FieldKey: "f", DataType: TypeText, Labels: map[string]string{"??": "x", "en": strings.Repeat("x", 256)}}, []string{"/labels", "/labels/en"}},
		{"linked text", FieldDefinition{FieldKey: "f", DataType: TypeText, LinkedConsent: "news"}, []string{"/linkedConsent"}},
		{"linked to nothing", FieldDefinition{FieldKey: "f", DataType: TypeBoolean, LinkedConsent: "none"}, []string{"/linkedConsent"}},
		{"linked twice", FieldDefinition{FieldKey: "f", DataType: TypeBoolean, LinkedConsent: "terms"}, []string{"/linkedConsent"}},
	}
	for _, tt := range tests {
		events, err := PutField{FieldDefinition: tt.given}.decide(configOf(consents...), time.Time{})
		if diff := cmp.Diff(tt.faults, pointers(err)); diff != "" || tt.faults == nil && len(events) != 1 {
			t.Errorf("%s: %v, %v; faults (-want +got):\n%s", tt.name, events, err, diff)
		}
	}
	c := defined(FieldDefinition{FieldKey: "f", DataType: TypeText})
	if events, err := (PutField{FieldDefinition: FieldDefinition{FieldKey: "f", DataType: TypeText, Labels: map[string]string{}}}).decide(c, time.Time{}); err != nil || len(events) != 0 {
		t.Errorf("the same definition again: %v, %v", events, err)
	}
	events, err := PutField{FieldDefinition: FieldDefinition{FieldKey: "f", DataType: TypeText, Required: true, Labels: label}}.decide(c, time.Time{})
	if diff := cmp.Diff([]Event{FieldSet{Field: FieldDefinition{FieldKey: "f", DataType: TypeText, Required: true, Labels: label}, Fields: []string{"required", "labels"}}}, events); diff != "" || err != nil {
		t.Errorf("a changed definition: %v (-want +got):\n%s", err, diff)
	}
	if _, err := (DeleteField{FieldKey: "g"}).decide(c, time.Time{}); CodeOf(err) != CodeFieldNotFound {
		t.Errorf("delete a field that does not exist: %v", err)
	}
}

// TestFieldAccess checks who may write required, read-only and internal fields.
func TestFieldAccess(t *testing.T) {
	c := defined(FieldDefinition{FieldKey: "must", DataType: TypeText, Required: true, Personal: true}, FieldDefinition{FieldKey: "ro", DataType: TypeText, ReadOnly: true, Required: true, Personal: true},
		FieldDefinition{FieldKey: "in", DataType: TypeText, Internal: true, Required: true, Personal: true})
	given := []Event{adaCreated, CustomFieldsUpdated{Fields: []string{"in", "must", "ro"}, Values: fieldValues("in", `"1"`, "must", `"1"`, "ro", `"1"`)}}
	create := func(origin Origin, values ...string) CreateAccount {
		return CreateAccount{Origin: origin, Identities: []NewIdentity{{IdentityID: "i1", Provider: ProviderSelf, Profile: adaProfile}}, CustomFields: fieldValues(values...)}
	}
	set := func(values ...string) SetCustomFields { return SetCustomFields{fieldValues(values...)} }
	tests := []struct {
		name   string
		admin  bool
		cmd    Command
		events int
		faults []string
	}{
		{"create without what is required", false, create(OriginCreated), 0, []string{"/customFields/must"}},
		{"register with null", false, create(OriginRegistered, "must", "null"), 0, []string{"/customFields/must"}},
		{"create with the empty string", false, create(OriginCreated, "must", `""`), 0, []string{"/customFields/must"}},
		{"create with what is required", false, create(OriginCreated, "must", `"1"`), 1, nil},
		{"create with more than one may", false, create(OriginCreated, "must", `"1"`, "ro", `"1"`, "in", `"1"`), 0, []string{"/customFields/in", "/customFields/ro"}},
		{"create as admin", true, create(OriginCreated, "must", `"1"`), 0, []string{"/customFields/in", "/customFields/ro"}},
		{"create as admin with all", true, create(OriginCreated, "must", `"1"`, "ro", `"1"`, "in", `"1"`), 1, nil},
		{"import without", true, create(OriginImported), 1, nil},
		{"unset what is required", false, set("must", "null"), 0, []string{"/must"}},
		{"unset what is required as admin", true, set("must", "null"), 0, []string{"/must"}},
		{"change read-only", false, set("ro", `"2"`, "must", `"2"`), 0, []string{"/ro"}},
		{"unset read-only", false, set("ro", "null"), 0, []string{"/ro"}},
		{"leave read-only", false, set("ro", `"1"`, "must", `"2"`), 1, nil},
		{"change read-only as admin", true, set("ro", `"2"`), 1, nil},
		{"change internal", false, set("in", `"2"`), 0, []string{"/in"}},
		{"guess internal", false, set("in", `"1"`), 0, []string{"/in"}},
		{"change internal as admin", true, set("in", `"2"`), 1, nil},
	}
	for _, tt := range tests {
		a := fold(given...)
		if _, creating := tt.cmd.(CreateAccount); creating {
			a = NewAccount("s")
		}
		events, err := Decide(Setting{Config: c, Admin: tt.admin}, a, tt.cmd)
		got := pointers(err)
		slices.Sort(got)
		if diff := cmp.Diff(tt.faults, slices.Compact(got)); diff != "" || len(events) != tt.events {
			t.Errorf("%s: %d events, %v; faults (-want +got):\n%s", tt.name, len(events), err, diff)
		}
	}
}

// TestClearValues checks that only values of fields defined as not personal are in
// the clear part, and that their size is limited.
func TestClearValues(t *testing.T) {
	c := defined(FieldDefinition{FieldKey: "plan", DataType: TypeTextarea}, FieldDefinition{FieldKey: "note", DataType: TypeTextarea, Personal: true}, FieldDefinition{FieldKey: "more", DataType: TypeTextarea})
	events, err := Decide(Setting{Config: c}, fold(adaCreated), SetCustomFields{fieldValues("plan", `"a"`, "note", `"b"`, "free", `"c"`)})
	want := CustomFieldsUpdated{Fields: []string{"free", "note", "plan"}, Values: fieldValues("note", `"b"`, "free", `"c"`), ClearValues: fieldValues("plan", `"a"`)}
	if diff := cmp.Diff([]Event{want}, events); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	a := fold(adaCreated, want)
	if diff := cmp.Diff(fieldValues("plan", `"a"`, "note", `"b"`, "free", `"c"`), a.CustomFields); diff != "" {
		t.Errorf("fold (-want +got):\n%s", diff)
	}
	unset := fold(adaCreated, want, CustomFieldsUpdated{Fields: []string{"plan"}, ClearValues: fieldValues("plan", "null")})
	if _, left := unset.CustomFields["plan"]; left || len(a.CustomFields) != 3 {
		t.Errorf("unset: %v, before %v", unset.CustomFields, a.CustomFields)
	}
	created, err := Decide(Setting{Config: c}, NewAccount("s"), CreateAccount{Origin: OriginCreated,
		Identities: []NewIdentity{{IdentityID: "i1", Provider: ProviderSelf, Profile: adaProfile}}, CustomFields: fieldValues("plan", `"a"`, "free", `"c"`)})
	if err != nil {
		t.Fatal(err)
	}
	if e := created[0].(AccountCreated); len(e.CustomFields) != 1 || len(e.ClearCustomFields) != 1 || len(fold(e).CustomFields) != 2 {
		t.Errorf("created: %v, %v", e.CustomFields, e.ClearCustomFields)
	}
	half := `"` + strings.Repeat("x", maxClearValues/2) + `"`
	if _, err := Decide(Setting{Config: c}, fold(adaCreated), SetCustomFields{fieldValues("plan", half, "more", half)}); !slices.Equal(pointers(err), []string{""}) {
		t.Errorf("too many bytes of clear values: %v", err)
	}
	if _, err := Decide(Setting{Config: c}, fold(adaCreated), SetCustomFields{fieldValues("plan", half, "note", half)}); err != nil {
		t.Errorf("the allowed size of clear values: %v", err)
	}
}

// TestFieldClaims checks the claims of USERNAME fields and of unique fields, and
// that they do not depend on later changes of the configuration.
func TestFieldClaims(t *testing.T) {
	claim := func(kind, value, owner string) eventstore.Claim {
		return eventstore.Claim{Kind: kind, Key: value, Owner: owner}
	}
	keys := func(claims []eventstore.Claim) []string {
		var keys []string
		for _, c := range claims {
			keys = append(keys, c.Kind+" "+c.Key)
		}
		return keys
	}
	c := defined(FieldDefinition{FieldKey: "login", DataType: TypeUsername, Unique: true, Personal: true}, FieldDefinition{FieldKey: "no", DataType: TypeText, Unique: true, Personal: true})
	none := fold(adaCreated)
	after := func(a Account, values ...string) Account {
		events, err := Decide(Setting{Config: c}, a, SetCustomFields{fieldValues(values...)})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			a = Evolve(a, Entry{Type: e.eventType(), Revision: a.Revision + 1, Event: e})
		}
		data, err := a.JSON()
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := ParseAccount(data)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(a.FieldClaims, parsed.FieldClaims, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("an account parsed from its JSON has other claims:\n%s", diff)
		}
		return a
	}
	both := after(none, "login", `" Ada Lovelace "`, "no", `"X-1"`)
	if want := (UserID{Type: KindUsername, Value: "Ada Lovelace", FieldKey: "login"}); both.UserIDs[len(both.UserIDs)-1] != want {
		t.Errorf("userIds %+v, want %+v last", both.UserIDs, want)
	}
	for _, tt := range []struct {
		name          string
		before, after Account
		take, release []string
	}{
		{"set", none, both, []string{`customFields.no "x-1"`, "username ada lovelace"}, nil},
		{"set like a username", none, after(none, "login", `"ADA"`), []string{"username ada"}, nil},
		{"change", both, after(both, "login", `"Countess"`), []string{"username countess"}, []string{"username ada lovelace"}},
		{"change case", both, after(both, "no", `"x-1"`, "login", `"ada LOVELACE"`), nil, nil},
		{"unset", both, after(both, "login", "null", "no", "null"), nil, []string{`customFields.no "x-1"`, "username ada lovelace"}},
		{"erase", both, Evolve(both, Entry{Event: AccountErased{}}), nil, []string{`customFields.no "x-1"`, "email ada@example.com", "username ada lovelace"}},
	} {
		take, release := claims([]Account{tt.before}, []Account{tt.after}, claim)
		sorted := cmpopts.SortSlices(func(a, b string) bool { return a < b })
		if diff := cmp.Diff([][]string{tt.take, tt.release}, [][]string{keys(take), keys(release)}, sorted, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("claims of %s (-want +got):\n%s", tt.name, diff)
		}
	}
	if got := Candidates("", "", "ADA lovelace "); !reflect.DeepEqual(got, []Candidate{{KindUsername, "ada lovelace"}}) {
		t.Errorf("candidates: %v", got)
	}
}

// TestHidden checks that only admins see internal fields.
func TestHidden(t *testing.T) {
	c := defined(FieldDefinition{FieldKey: "in", DataType: TypeUsername, Internal: true, Personal: true}, FieldDefinition{FieldKey: "inclear", DataType: TypeText, Internal: true})
	if h := defined(FieldDefinition{FieldKey: "f"}).Hidden(); h != nil {
		t.Errorf("Hidden = %v without internal fields", h)
	}
	if h := configOf(FieldSet{Field: FieldDefinition{FieldKey: "in", Internal: true}}, FieldDeleted{"in"}).Hidden(); h != nil {
		t.Errorf("Hidden = %v after the internal field changed", h)
	}
	updated := CustomFieldsUpdated{Fields: []string{"f", "in", "inclear"}, Values: fieldValues("in", `"secret"`, "f", `"open"`), ClearValues: fieldValues("inclear", `"secret"`), FieldClaims: map[string]Kind{"in": KindUsername}}
	only := CustomFieldsUpdated{Fields: []string{"in"}, Values: fieldValues("in", `"secret"`)}
	created := adaCreated
	created.CustomFields, created.ClearCustomFields, created.FieldClaims = updated.Values, updated.ClearValues, updated.FieldClaims
	for _, a := range []Account{fold(adaCreated, updated), fold(created)} {
		data, err := a.Without(c.Hidden()).JSON()
		if err != nil {
			t.Fatal(err)
		}
		if s := string(data); strings.Contains(s, "secret") || strings.Contains(s, `"in"`) || !strings.Contains(s, "open") {
			t.Errorf("account without internal fields: %s", s)
		}
		if data, _ := a.JSON(); !strings.Contains(string(data), "secret") {
			t.Errorf("Without changed the account: %s", data)
		}
	}
	for _, e := range []Event{updated, created, only} {
		x := Entry{ID: NewID(), Stream: "account-s", Event: e}
		data, err := x.Without(c.Hidden()).Data()
		if err != nil {
			t.Fatal(err)
		}
		public, err := Public(x.Without(c.Hidden()), 0)
		if err != nil {
			t.Fatal(err)
		}
		all := string(data)
		for _, p := range public {
			all += string(p.Data)
		}
		if strings.Contains(all, "secret") || strings.Contains(all, `"in"`) || strings.Contains(all, "inclear") {
			t.Errorf("%T without internal fields: %s", e, all)
		}
		// Subscribers still receive the event: they would miss a sequence.
		if reflect.DeepEqual(e, only) && (len(public) != 1 || !strings.Contains(all, `"fields":[]`)) {
			t.Errorf("an event of internal fields only: %s", all)
		}
		if data, _ := x.Data(); !strings.Contains(string(data), "secret") {
			t.Errorf("Without changed the event: %s", data)
		}
	}
}

// meanwhile is a Census that folds the log. After each pass over all accounts, it
// runs a function of the test, before the ledger takes its lock.
type meanwhile struct {
	*Ledger
	subs   []string
	asked  int
	during func()
}

func (f *meanwhile) Members(context.Context, string, string) (int64, error) { return 0, nil }

func (f *meanwhile) Accounts(ctx context.Context) (eventstore.Position, iter.Seq2[Account, error], error) {
	f.asked++
	at, err := f.log.Head(ctx)
	return at, func(yield func(Account, error) bool) {
		for _, sub := range f.subs {
			if a, err := f.Account(ctx, sub); !yield(a, err) {
				return
			}
		}
		if f.during != nil {
			f.during()
		}
	}, err
}

// TestRedefine checks that a definition changes only if no account prevents it, also
// one that changes while the ledger reads the others.
func TestRedefine(t *testing.T) {
	t.Parallel()
	l := open(t, t.TempDir(), seal.NewMaster())
	census := &meanwhile{Ledger: l, subs: []string{"a", "b"}}
	l.census = census
	put := func(code Code, d FieldDefinition, force bool) {
		t.Helper()
		_, err := l.Configure(t.Context(), by("", ""), PutField{FieldDefinition: d, Force: force})
		if CodeOf(err) != code || (err != nil) != (code != "") {
			t.Errorf("put %+v: %v, want %q", d, err, code)
		}
	}
	text := func(change func(*FieldDefinition)) FieldDefinition {
		d := FieldDefinition{FieldKey: "f", DataType: TypeText, Personal: true}
		if change != nil {
			change(&d)
		}
		return d
	}
	mustExecute(t, l, by("", ""), "a", create("ada@example.com"))
	mustExecute(t, l, by("", ""), "b", create("bob@example.com"))
	unique := text(func(d *FieldDefinition) { d.Unique = true })
	put("", text(nil), false)
	put("", unique, false) // no account has a value
	mustExecute(t, l, by("", ""), "a", SetCustomFields{fieldValues("f", `"one"`)})
	if _, err := l.Execute(t.Context(), by("", ""), "b", SetCustomFields{fieldValues("f", `"ONE"`)}); CodeOf(err) != CodeIdentifierTaken || !strings.Contains(err.Error(), "customFields.f") {
		t.Errorf("the same value twice: %v", err)
	}
	put(CodeInUse, text(nil), true)
	put(CodeInUse, text(func(d *FieldDefinition) { d.DataType = TypeUsername }), true)
	put(CodeFieldInConflict, text(func(d *FieldDefinition) { d.Unique, d.MaxLength = true, 2 }), false)
	put(CodeFieldInConflict, text(func(d *FieldDefinition) { d.Unique, d.DataType = true, TypeNumber }), false)
	asked := census.asked
	put("", text(func(d *FieldDefinition) { d.Unique, d.Labels = true, map[string]string{"en": "F"} }), false)
	if census.asked != asked {
		t.Error("a change of a label read all accounts")
	}
	short := text(func(d *FieldDefinition) { d.Unique, d.MaxLength, d.Required = true, 2, true })
	put("", short, true)
	c, _ := l.Config(t.Context())
	for sub, want := range map[string]bool{"a": false, "b": false} {
		if a, _ := l.Account(t.Context(), sub); (c.Fields["f"].Fault(a) == "") != want {
			t.Errorf("%s conforms: %v", sub, !want)
		}
	}
	if _, err := l.Configure(t.Context(), by("", ""), DeleteField{FieldKey: "f"}); CodeOf(err) != CodeInUse || !strings.Contains(err.Error(), " 1 ") {
		t.Errorf("delete a unique field with a value: %v", err)
	}

	// Values that are set while the ledger reads all accounts.
	put("", text(func(d *FieldDefinition) { d.FieldKey = "g" }), false)
	census.during = func() {
		mustExecute(t, l, by("", ""), "b", SetCustomFields{fieldValues("g", `"late"`)})
	}
	put(CodeFieldInConflict, text(func(d *FieldDefinition) { d.FieldKey, d.MaxLength = "g", 2 }), false)
	// A definition that changes meanwhile makes the ledger read all accounts again.
	rounds := 0
	census.during = func() {
		if rounds++; rounds == 1 {
			_, err := l.Configure(t.Context(), by("", ""), PutRole{Role: "X", Name: "x"})
			if err != nil {
				t.Error(err)
			}
		}
	}
	put("", text(func(d *FieldDefinition) { d.FieldKey, d.MaxLength = "g", 20 }), false)
	if rounds != 2 {
		t.Errorf("the ledger read all accounts %d times, want 2", rounds)
	}
}

// TestOneName checks that a sign-in name, whether a username or a custom field,
// leads to one account.
func TestOneName(t *testing.T) {
	t.Parallel()
	l := open(t, t.TempDir(), seal.NewMaster())
	l.census = &meanwhile{Ledger: l}
	if _, err := l.Configure(t.Context(), by("", ""), PutField{FieldDefinition: FieldDefinition{FieldKey: "login", DataType: TypeUsername}}); err != nil {
		t.Fatal(err)
	}
	named := create("ada@example.com")
	named.Identities[0].Profile.Username = "Countess"
	mustExecute(t, l, by("", ""), "a", named)
	other := create("bob@example.com")
	other.CustomFields = fieldValues("login", `"countess "`)
	if _, err := l.Execute(t.Context(), by("", ""), "b", other); CodeOf(err) != CodeIdentifierTaken || !strings.Contains(err.Error(), "username") {
		t.Errorf("a username as a custom field: %v", err)
	}
	other.CustomFields = fieldValues("login", `"Bob B"`)
	mustExecute(t, l, by("", ""), "b", other)
	if _, err := l.Execute(t.Context(), by("", ""), "a", SetCustomFields{fieldValues("login", `"bob b"`)}); CodeOf(err) != CodeIdentifierTaken {
		t.Errorf("a custom field of two accounts: %v", err)
	}
	mustExecute(t, l, by("", ""), "a", SetCustomFields{fieldValues("login", `"COUNTESS"`)}) // the account's own username
	mustExecute(t, l, by("", ""), "b", SetCustomFields{fieldValues("login", "null")})
	mustExecute(t, l, by("", ""), "a", SetCustomFields{fieldValues("login", `"bob b"`)})
}

func (FieldSet) sample() sample {
	return sample{event: FieldSet{fullField, true, []string{"dataType", "required"}},
		clear:  "Field Created Fields",
		others: []Event{FieldSet{Fields: []string{"labels"}}}}
}

func (FieldDeleted) sample() sample {
	return sample{event: FieldDeleted{"tier"},
		clear: "FieldKey"}
}
