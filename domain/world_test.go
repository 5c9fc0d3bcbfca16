package domain

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/go-cmp/cmp"

	"accountledger/eventstore"
)

// world is a ledger without files: it decides and folds as the Ledger does,
// and keeps claims as a store does. Random commands run through it by the
// thousand.
type world struct {
	config   *Config
	accounts map[string]Account
	claims   map[string]string // owner by kind and key
	now      time.Time
	position eventstore.Position
	user     bool // who asks is no administrator
}

// newWorld has two groups of no particular type.
func newWorld() *world {
	w := &world{config: NewConfig(), accounts: map[string]Account{}, claims: map[string]string{},
		now: time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)}
	w.configure(PutGroupType{GroupType: "ANY", RoleMode: ModeAnyRoles})
	w.configure(PutGroup{GroupID: "G", GroupName: "G", GroupType: "ANY"})
	w.configure(PutGroup{GroupID: "H", GroupName: "H", GroupType: "ANY", ParentID: "G"})
	return w
}

func (w *world) configure(cmd ConfigCommand) {
	events, err := cmd.decide(w.config, w.now)
	if err != nil {
		panic(err)
	}
	for _, e := range events {
		w.config.Evolve(Entry{Type: e.eventType(), Stream: ConfigStream, Revision: w.config.Revision + 1, Event: e})
	}
}

func (w *world) account(sub string) Account {
	if a, ok := w.accounts[sub]; ok {
		return a
	}
	return NewAccount(sub)
}

// execute asks cmd of sub; the events are there or a refusal is returned.
func (w *world) execute(sub string, cmd Command) ([]Event, error) {
	s := Setting{Config: w.config, Now: w.now, Admin: !w.user}
	before := []Account{w.account(sub)}
	var decided [][]Event
	if j, ok := cmd.(joint); ok {
		for _, other := range j.others(before[0]) {
			before = append(before, w.account(other))
		}
		if err := admit(before[0], cmd); err != nil {
			return nil, err
		}
		own, others, err := j.decideJoint(s, before[0], before[1:])
		if err != nil {
			return nil, err
		}
		decided = append([][]Event{own}, others...)
	} else {
		events, err := Decide(s, before[0], cmd)
		if err != nil {
			return nil, err
		}
		decided = [][]Event{events}
	}
	after := slices.Clone(before)
	position := w.position
	for i, events := range decided {
		for _, e := range events {
			position++
			after[i] = Evolve(after[i], Entry{ID: NewID(), Type: e.eventType(), Stream: AccountStream(after[i].Sub),
				Revision: after[i].Revision + 1, Position: position, Time: w.now, Event: e, keyID: eventstore.KeyID{1}})
		}
	}
	if err := w.claim(cmd, before, after); err != nil {
		return nil, err
	}
	for i, a := range after {
		if len(decided[i]) > 0 {
			w.accounts[a.Sub] = a
		}
	}
	w.position, w.now = position, w.now.Add(time.Second)
	return slices.Concat(decided...), nil
}

// claim moves the claims as a store does: all of them or none.
func (w *world) claim(cmd Command, before, after []Account) error {
	take, release := claims(before, after, func(kind, value, owner string) eventstore.Claim {
		return eventstore.Claim{Kind: kind, Key: value, Owner: owner}
	})
	next := maps.Clone(w.claims)
	for _, c := range release {
		if next[c.Kind+"\x00"+c.Key] == c.Owner {
			delete(next, c.Kind+"\x00"+c.Key)
		}
	}
	for _, c := range take {
		if owner, held := next[c.Kind+"\x00"+c.Key]; held && owner != c.Owner {
			return refusal(cmd, &eventstore.ClaimError{Claim: c, Owner: owner})
		}
		next[c.Kind+"\x00"+c.Key] = c.Owner
	}
	w.claims = next
	return nil
}

// check holds what is true of all accounts together, whatever was asked.
func (w *world) check(t failer) {
	t.Helper()
	leads := map[identifier]string{}
	needed := map[string]string{} // by each account alone, as a rebuild finds them
	for sub, a := range w.accounts {
		for _, h := range holdings(a) {
			key := string(h.kind) + "\x00" + h.key
			if other, ok := needed[key]; ok {
				t.Fatalf("%s and %s both need the claim of a %s", other, h.sub, h.kind)
			}
			needed[key] = AccountStream(h.sub)
		}
		for _, u := range a.UserIDs {
			id := identifier{u.Type, u.Key()}
			if other, ok := leads[id]; ok && other != sub {
				t.Fatalf("a %s leads to two accounts", u.Type)
			}
			leads[id] = sub
			owner, held := w.claims[string(u.Type)+"\x00"+u.Key()]
			if !held || !slices.Contains(prefixedSubs(a), owner) {
				t.Fatalf("a %s of %s is claimed by %q", u.Type, sub, owner)
			}
		}
		switch {
		case a.Erased():
		case a.Status == StatusCombined:
			if s, ok := w.accounts[a.CombinedInto]; !ok || s.Erased() {
				t.Fatalf("%s is COMBINED and has no survivor", sub)
			} else if _, ok := s.combined(sub); !ok && s.Status != StatusCombined {
				t.Fatalf("%s is COMBINED into an account that does not know of it", sub)
			}
			if len(a.Identities) > 0 || len(a.UserIDs) > 0 {
				t.Fatalf("%s is COMBINED and still has identities", sub)
			}
		case !reachable(a.Identities):
			t.Fatalf("%s has no identifier", sub)
		}
		data, err := a.JSON()
		if err != nil {
			t.Fatal(err)
		}
		if again, err := ParseAccount(data); err != nil {
			t.Fatal(err)
		} else if round, _ := again.JSON(); string(round) != string(data) {
			t.Fatalf("an account's JSON does not survive a round trip:\n%s\n%s", data, round)
		}
	}
	if !maps.Equal(needed, w.claims) {
		t.Fatalf("the claims (-rebuilt +kept):\n%s", cmp.Diff(needed, w.claims))
	}
}

func prefixedSubs(a Account) []string {
	var all []string
	for _, sub := range a.subs() {
		all = append(all, AccountStream(sub))
	}
	return all
}

func (w *world) must(t failer, sub string, cmd Command) []Event {
	t.Helper()
	events, err := w.execute(sub, cmd)
	if err != nil {
		t.Fatalf("%T: %v", cmd, err)
	}
	return events
}

// testSub is the sub of the n-th account of a test.
func testSub(n int) string { return fmt.Sprintf("0190a1b2-0000-7000-8000-%012d", n) }

// failer is a test, or a run of rapid.
type failer interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}
