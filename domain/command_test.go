package domain

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

// fold is the account that events add up to, one a second from noon on.
func fold(events ...Event) Account {
	a := NewAccount("0190a1b2-0000-7000-8000-000000000001")
	for i, e := range events {
		a = Evolve(a, Entry{
			Type: e.eventType(), Stream: AccountStream(a.Sub), Revision: a.Revision + 1, Position: a.Position + 1,
			Time: time.Date(2026, 11, 22, 12, 0, i, 0, time.UTC), Event: e,
		})
	}
	return a
}

func value(s string) jsontext.Value { return jsontext.Value(s) }

var (
	adaProfile = Profile{GivenName: "Ada", FamilyName: "Lovelace", Email: "ada@example.com", EmailVerified: true}
	inUsers    = []GroupJoined{{GroupID: GroupUsers, GroupType: groupTypeSystem, Path: "/" + GroupUsers, Roles: []string{RoleUser}}}
	adaCreated = AccountCreated{Origin: OriginCreated, Status: StatusVerified, IdentityID: "i1", Provider: ProviderSelf, Profile: adaProfile, Groups: inUsers}
	adaGoogle  = NewIdentity{IdentityID: "i2", Provider: "google", ProviderUserID: "1095", Profile: Profile{Email: "ada@gmail.com", EmailVerified: true}}
	adaLinked  = IdentityLinked(adaGoogle)
)

func TestDecide(t *testing.T) {
	decide(t, []decision{
		{name: "change nobody", when: SetStatus{Status: StatusDeclined}, code: CodeAccountNotFound},
		{name: "change an erased account", given: []Event{adaCreated, AccountErased{}}, when: SetStatus{Status: StatusVerified}, code: CodeAccountErased},
	})
}

// decision is what an account with a history answers to a command: events, or
// a refusal.
type decision struct {
	name   string
	given  []Event
	when   Command
	then   []Event
	code   Code
	faults []string // pointers
}

// decide runs a test for each decision, under the default configuration.
func decide(t *testing.T, decisions []decision) {
	for _, tt := range decisions {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := Decide(Setting{Config: NewConfig()}, fold(tt.given...), tt.when)
			decided(t, got, err, tt.then, tt.code, tt.faults)
		})
	}
}

// decided holds what a decision came to against the events, or the code and
// the places of the faults, that were wanted.
func decided(t *testing.T, got []Event, err error, then []Event, code Code, faults []string) {
	t.Helper()
	if got := CodeOf(err); got != code || (err == nil) != (code == "") {
		t.Fatalf("error = %v, want code %q", err, code)
	}
	if diff := cmp.Diff(then, got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	var pointers []string
	if e, ok := err.(*Error); ok {
		for _, f := range e.Faults {
			pointers = append(pointers, f.Pointer)
		}
	}
	if diff := cmp.Diff(faults, slices.Compact(pointers), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("faults (-want +got):\n%s", diff)
	}
}

// TestStatusMachine holds the table of SPEC section 4 against the code: what
// the status API answers for each pair of states.
func TestStatusMachine(t *testing.T) {
	const (
		same    = "same"
		yes     = "yes"
		no      = CodeInvalidStatusTransition
		managed = CodeStatusSystemManaged
	)
	table := map[Status][5]Code{ //  PENDING VERIFIED DECLINED COMBINED DELETED
		StatusPending:  {same, yes, yes, managed, managed},
		StatusVerified: {yes, same, yes, managed, managed},
		StatusDeclined: {yes, yes, same, managed, managed},
		StatusCombined: {no, no, no, managed, managed},
		StatusDeleted:  {no, yes, no, managed, managed},
	}
	for from, row := range table {
		for i, want := range row {
			to := Statuses[i]
			a := fold(adaCreated, StatusChanged{To: from})
			events, err := Decide(Setting{Config: NewConfig()}, a, SetStatus{Status: to, Reason: "because"})
			got := CodeOf(err)
			switch {
			case err == nil && len(events) == 0:
				got = same
			case err == nil:
				got = yes
				if want := (StatusChanged{From: from, To: to, Reason: "because"}); events[0] != want {
					t.Errorf("%s to %s: event %+v, want %+v", from, to, events[0], want)
				}
			}
			if got != want {
				t.Errorf("%s to %s: %s, want %s", from, to, got, want)
			}
		}
	}
}

// TestInvariants drives random commands and holds after each what must hold
// of every account at all times.
func TestInvariants(t *testing.T) {
	emails := []string{"", "a@example.com", "B@example.com", "c@EXAMPLE.com"}
	rapid.Check(t, func(t *rapid.T) {
		a := NewAccount("s")
		n := 0
		step := func(cmd Command) {
			events, err := Decide(Setting{Config: NewConfig()}, a, cmd)
			if err != nil && CodeOf(err) == "" {
				t.Fatalf("Decide(%T) = %v, want an *Error", cmd, err)
			}
			before, _ := a.JSON()
			held := a
			for _, e := range events {
				a = Evolve(a, Entry{Type: e.eventType(), Revision: a.Revision + 1, Event: e, Time: time.Unix(int64(n), 0).UTC()})
			}
			if after, _ := held.JSON(); string(after) != string(before) {
				t.Fatalf("Evolve(%T) changed an older account:\n%s\n%s", cmd, before, after)
			}
			if again, err := Decide(Setting{Config: NewConfig()}, a, cmd); err == nil && len(again) != 0 {
				if _, create := cmd.(CreateAccount); !create {
					t.Fatalf("%T twice causes %v the second time", cmd, again)
				}
			}
			if !a.Exists() {
				return
			}
			if !reachable(a.Identities) {
				t.Fatalf("after %T nothing leads to the account", cmd)
			}
			selfs := 0
			for _, i := range a.Identities {
				if i.Provider == ProviderSelf {
					selfs++
				}
			}
			if selfs > 1 {
				t.Fatalf("after %T there are %d identities of provider self", cmd, selfs)
			}
			data, err := a.JSON()
			if err != nil {
				t.Fatal(err)
			}
			parsed, err := ParseAccount(data)
			if err != nil {
				t.Fatal(err)
			}
			if back, _ := parsed.JSON(); string(back) != string(data) {
				t.Fatalf("ParseAccount is not the inverse of JSON:\n%s\n%s", data, back)
			}
		}
		identity := func(t *rapid.T) NewIdentity {
			n++
			i := NewIdentity{IdentityID: fmt.Sprint("i", n), Provider: rapid.SampledFrom([]string{"self", "google"}).Draw(t, "provider"),
				Profile: Profile{Email: rapid.SampledFrom(emails).Draw(t, "email"), EmailVerified: rapid.Bool().Draw(t, "verified")}}
			if i.Provider != ProviderSelf {
				i.ProviderUserID = rapid.SampledFrom([]string{"1", "2"}).Draw(t, "user")
			}
			return i
		}
		t.Repeat(map[string]func(*rapid.T){
			"create": func(t *rapid.T) {
				step(CreateAccount{Origin: OriginCreated, Identities: []NewIdentity{identity(t), identity(t)}})
			},
			"link": func(t *rapid.T) { step(LinkIdentity{identity(t)}) },
			"unlink": func(t *rapid.T) {
				if len(a.Identities) > 0 {
					step(UnlinkIdentity{rapid.SampledFrom(a.Identities).Draw(t, "identity").IdentityID})
				}
			},
			"update": func(t *rapid.T) {
				id := ""
				if len(a.Identities) > 0 {
					id = rapid.SampledFrom(a.Identities).Draw(t, "identity").IdentityID
				}
				patch := rapid.SampledFrom([]string{`{"email":null}`, `{"email":"d@example.com"}`, `{"username":"dd"}`, `{"username":null}`,
					`{"address":{"country":"GB"}}`, `{"address":null}`, `{"email_verified":true}`}).Draw(t, "patch")
				step(UpdateProfile{IdentityID: id, Patch: value(patch)})
			},
			"fields": func(t *rapid.T) {
				step(SetCustomFields{map[string]jsontext.Value{rapid.SampledFrom([]string{"x", "y"}).Draw(t, "key"): value(rapid.SampledFrom([]string{"1", "null", `{"b":[1,2],"a":null}`}).Draw(t, "value"))}})
			},
			"status": func(t *rapid.T) { step(SetStatus{Status: rapid.SampledFrom(Statuses).Draw(t, "status")}) },
		})
	})
}
