package domain

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"accountledger/eventstore"
	"accountledger/eventstore/seal"
	"accountledger/eventstore/sqlite"
)

// claimsIn returns the claims in the log's file, sorted.
func claimsIn(t *testing.T, dir string) []string {
	t.Helper()
	r, err := sqlite.OpenReader(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	return collect(t, r.Claims(t.Context()))
}

func collect(t *testing.T, claims iter.Seq2[eventstore.Claim, error]) (all []string) {
	t.Helper()
	for k, err := range claims {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, fmt.Sprintf("%s %x %s", k.Kind, k.Key, k.Owner))
	}
	slices.Sort(all)
	return all
}

// plainLog hides that a log can be read stream by stream.
type plainLog struct{ Log }

// TestClaimsOfLog checks that the accounts in a log need exactly the claims that
// the commits took one by one, over random changes with merges, un-merges,
// erasures and unique fields.
func TestClaimsOfLog(t *testing.T) {
	t.Parallel()
	all := map[string]int{}
	t.Cleanup(func() {
		for _, kind := range []string{"create", "update", "field", "link", "unlink", "merge", "unmerge", "erase"} {
			if all[kind] == 0 {
				t.Errorf("no %s was accepted", kind)
			}
		}
	})
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			dir := t.TempDir()
			l := open(t, dir, seal.NewMaster())
			if _, err := l.Config(t.Context()); err != nil {
				t.Fatal(err)
			}
			w := newWorld()
			w.configure(PutField{FieldDefinition: FieldDefinition{FieldKey: "login", DataType: TypeUsername, Personal: true}})
			w.configure(PutField{FieldDefinition: FieldDefinition{FieldKey: "badge", DataType: TypeText, Unique: true}})
			l.config.Store(w.config)
			for kind, n := range changeAtRandom(t, l, rand.New(rand.NewPCG(seed, 0)), 300) {
				all[kind] += n
			}
			held := claimsIn(t, dir)
			if len(held) == 0 {
				t.Errorf("no claims are held")
			}
			if diff := cmp.Diff(held, collect(t, l.Claims(t.Context()))); diff != "" {
				t.Errorf("the claims (-held +needed):\n%s", diff)
			}
			var done, total int64
			plain := Claims(t.Context(), plainLog{l.log}, l.codec, func(d, n int64) { done, total = d, n })
			if diff := cmp.Diff(held, collect(t, plain)); diff != "" {
				t.Errorf("the claims of a log that is read by position (-held +needed):\n%s", diff)
			}
			if head, _ := l.log.Head(t.Context()); done != int64(head) || total != done {
				t.Errorf("the progress ends at %d of %d, want %d", done, total, head)
			}
		})
	}
}

// changeAtRandom executes random commands on a few accounts that compete for
// identifiers. It returns how many of each kind were accepted.
func changeAtRandom(t *testing.T, l *Ledger, r *rand.Rand, n int) map[string]int {
	t.Helper()
	pick := func(all ...string) string { return all[r.IntN(len(all))] }
	email := func() string {
		return pick("a@example.com", "B@example.com", "b@example.com", "zo\u00eb@example.com", "zoe\u0308@example.com", "c@example.com", "d@example.com",
			fmt.Sprintf("e%d@example.com", r.IntN(10)))
	}
	name := func() string {
		return pick("ann", "Bob", "a@example.com", "zoe\u0308@example.com", "+4915112345678", "D@example.com")
	}
	accepted := map[string]int{}
	subs := []string{NewID().String()}
	for i := range n {
		subs = subs[max(0, len(subs)-6):] // so that most are not erased
		sub := subs[r.IntN(len(subs))]
		a, err := l.Account(t.Context(), sub)
		if err != nil {
			t.Fatal(err)
		}
		identity := func() string {
			if len(a.Identities) == 0 {
				return "none"
			}
			return a.Identities[r.IntN(len(a.Identities))].IdentityID
		}
		kind := pick("update", "update", "field", "link", "link", "merge", "merge", "unmerge", "unlink", "create", "create", "erase")
		if kind == "erase" && r.IntN(3) > 0 {
			kind = "unmerge"
		}
		var cmd Command
		switch kind {
		case "create":
			sub = NewID().String()
			cmd = createWith(nil, identityOf(NewID().String(), ProviderSelf, "", email()))
		case "update":
			cmd = UpdateProfile{IdentityID: identity(), Patch: value(fmt.Sprintf(`{%q:%q}`, pick("email", "username"), pick(email(), name())))}
			if r.IntN(3) == 0 {
				cmd = UpdateProfile{IdentityID: identity(), Patch: value(`{"username":null}`)}
			}
		case "field":
			cmd = SetCustomFields{fieldValues(pick("login", "badge"), pick(`"ann"`, `"C@example.com"`, `"+49 1511 2345678"`, `"x1"`, "null"))}
		case "link":
			id := identityOf(NewID().String(), "google", fmt.Sprint(i), email())
			id.Profile.Username = pick("", "", name())
			cmd = LinkIdentity{id}
		case "unlink":
			cmd = UnlinkIdentity{identity()}
		case "merge":
			cmd = MergeAccount{From: subs[r.IntN(len(subs))]}
		case "unmerge":
			cmd = UnmergeAccount{Sub: "none"}
			for _, sub = range subs {
				if a, err = l.Account(t.Context(), sub); err == nil && len(a.CombinedFrom) > 0 {
					cmd = UnmergeAccount{Sub: a.CombinedFrom[r.IntN(len(a.CombinedFrom))].Sub}
					break
				}
			}
		case "erase":
			cmd = EraseAccount{}
		}
		if _, err := l.Execute(t.Context(), Request{Admin: true}, sub, cmd); err != nil {
			if CodeOf(err) == "" {
				t.Fatalf("%s: %v", kind, err)
			}
			continue
		}
		accepted[kind]++
		if kind == "create" {
			subs = append(subs, sub)
		}
		if kind == "erase" && !a.Erased() {
			for _, key := range keysOf(a) {
				if err := l.codec.Keys.Destroy(t.Context(), key); err != nil {
					t.Fatal(err)
				}
			}
			l.Forget(a.subs()...)
		}
	}
	return accepted
}

func keysOf(a Account) []eventstore.KeyID {
	keys := []eventstore.KeyID{a.key}
	for _, c := range a.CombinedFrom {
		if c.key != (eventstore.KeyID{}) { // it is if the merge brought nothing personal
			keys = append(keys, c.key)
		}
	}
	return keys
}

// reclaimed is a log whose claims have a version, and that notes a Reclaim.
type reclaimed struct {
	eventstore.Store
	version int
	claims  []eventstore.Claim
}

func (l *reclaimed) ClaimsVersion(context.Context) (int, error) { return l.version, nil }

func (l *reclaimed) Reclaim(_ context.Context, version int, claims iter.Seq2[eventstore.Claim, error]) error {
	l.claims = nil
	for k, err := range claims {
		if err != nil {
			return err
		}
		l.claims = append(l.claims, k)
	}
	l.version = version
	return nil
}

// TestRebuildClaims checks that the claims are rebuilt once for each version,
// that the oldest account with an identifier comes first, and that an account
// whose key is gone holds none.
func TestRebuildClaims(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	log := &reclaimed{Store: l.log, version: 1}
	l.log = log
	mustExecute(t, l, by("", ""), "c-first", create("pat@example.com"))
	second := create("someone@example.com")
	mustExecute(t, l, by("", ""), "a-second", second)
	gone := mustExecute(t, l, by("", ""), "b-gone", create("gone@example.com"))
	// As an earlier version would have let it through.
	renamed := ProfileUpdated{IdentityID: second.Identities[0].IdentityID, Fields: []string{"username"}, Changes: value(`{"username":"Pat@example.com"}`)}
	x := Entry{ID: NewID(), Type: renamed.eventType(), Stream: AccountStream("a-second"), Revision: 1, Event: renamed}
	a, err := l.Account(t.Context(), "a-second")
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := l.codec.encode(x, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.log.Append(t.Context(), eventstore.Commit{Writes: []eventstore.Write{
		{Stream: x.Stream, Expected: a.Revision, Events: []eventstore.Event{encoded}}}}); err != nil {
		t.Fatal(err)
	}
	if err := l.codec.Keys.Destroy(t.Context(), gone.State.key); err != nil {
		t.Fatal(err)
	}
	calls := 0
	for range 2 {
		if err := l.RebuildClaims(t.Context(), func(done, total int64) { calls++ }); err != nil {
			t.Fatal(err)
		}
		if log.version != ClaimsVersion || calls == 0 {
			t.Errorf("after the rebuild the claims have version %d, %d calls of progress", log.version, calls)
		}
	}
	if once := calls; l.RebuildClaims(t.Context(), func(int64, int64) { calls++ }) != nil || calls != once {
		t.Errorf("claims of this version are rebuilt")
	}
	claim := func(kind Kind, key, sub string) eventstore.Claim {
		return l.codec.Keys.Claim(string(kind), key, AccountStream(sub))
	}
	want := []eventstore.Claim{
		claim(KindEmail, "pat@example.com", "c-first"),
		claim(KindEmail, "someone@example.com", "a-second"), claim(KindUsername, "pat@example.com", "a-second"), claim(KindEmail, "pat@example.com", "a-second"),
	}
	if diff := cmp.Diff(want, log.claims); diff != "" {
		t.Errorf("claims (-want +got):\n%s", diff)
	}

	// An event that cannot be read ends the rebuild, which then changes nothing.
	log.version = 1
	if err := l.codec.Keys.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.RebuildClaims(t.Context(), nil); err == nil || errors.Is(err, seal.ErrErased) || log.version != 1 {
		t.Errorf("a rebuild without keys = %v, version %d", err, log.version)
	}
}
