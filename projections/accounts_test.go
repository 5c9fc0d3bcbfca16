package projections

import (
	"bufio"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"accountledger/domain"
	"accountledger/eventstore"
)

var update = flag.Bool("update", false, "rewrite the golden tables")

// TestGolden holds that a log gives the tables it gave before: rows in
// views.db of released programs are such rows.
func TestGolden(t *testing.T) {
	t.Parallel()
	logs, err := filepath.Glob("testdata/*.jsonl")
	if err != nil || len(logs) == 0 {
		t.Fatal(logs, err)
	}
	for _, name := range logs {
		t.Run(filepath.Base(name), func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			in, err := os.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			defer in.Close()
			revisions := map[string]eventstore.Revision{}
			for lines := bufio.NewScanner(in); lines.Scan(); {
				var e struct {
					Stream string
					Type   string
					Clear  jsontext.Value
				}
				if err := json.Unmarshal(lines.Bytes(), &e, json.MatchCaseInsensitiveNames(true)); err != nil {
					t.Fatal(err)
				}
				f.append(t, e.Stream, revisions[e.Stream]-1, e.Type, string(e.Clear))
				revisions[e.Stream]++
			}
			v := f.open(t)
			run(t, v)
			f.indexedUp(t, v)
			got, golden := dump(t, f.path())+dumpSearch(t, f.path()), strings.TrimSuffix(name, ".jsonl")+".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestLookup holds that an account is found by every identifier it has, and
// by none that it had.
func TestLookup(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	v := f.open(t)
	run(t, v)
	sub := domain.NewID().String()
	self := newIdentity(domain.ProviderSelf, "", domain.Profile{Email: "Ada@Example.org", MobileNumber: "+49 1512 3456789", Username: "Ada"})
	google := newIdentity("google", "1095", domain.Profile{Email: "ada@gmail.com"})
	type found map[domain.Candidate]bool
	email := func(s string) domain.Candidate { return domain.Candidates(domain.KindEmail, "", s)[0] }
	ada, gmail, countess := email("ada@example.org"), email("ADA@gmail.com"), email("countess@example.org")
	mobile := domain.Candidates(domain.KindMobileNumber, "", "+4915123456789")[0]
	username := domain.Candidates(domain.KindUsername, "", "ADA")[0]
	provider := domain.Candidates(domain.KindProviderUserID, "google", "1095")[0]
	elsewhere := domain.Candidates(domain.KindProviderUserID, "facebook", "1095")[0]
	for _, step := range []struct {
		cmd  domain.Command
		want found
	}{
		{domain.CreateAccount{Origin: domain.OriginCreated, Identities: []domain.NewIdentity{self}}, found{ada: true, mobile: true, username: true}},
		{domain.LinkIdentity{Identity: google}, found{ada: true, mobile: true, username: true, gmail: true, provider: true}},
		{domain.UpdateProfile{IdentityID: self.IdentityID, Patch: jsontext.Value(`{"email":"countess@example.org","username":null}`)},
			found{countess: true, mobile: true, gmail: true, provider: true}},
		// The same address twice: it goes with the second.
		{domain.UpdateProfile{IdentityID: google.IdentityID, Patch: jsontext.Value(`{"email":"countess@example.org"}`)},
			found{countess: true, mobile: true, provider: true}},
		{domain.UpdateProfile{IdentityID: self.IdentityID, Patch: jsontext.Value(`{"email":"ada@example.org"}`)},
			found{countess: true, ada: true, mobile: true, provider: true}},
		{domain.UnlinkIdentity{IdentityID: google.IdentityID}, found{ada: true, mobile: true}},
	} {
		a := f.execute(t, sub, step.cmd)
		await(t, v, a.Position)
		for _, c := range []domain.Candidate{ada, gmail, countess, mobile, username, provider, elsewhere} {
			row, err := v.Accounts().Lookup(t.Context(), []domain.Candidate{c})
			if step.want[c] && (err != nil || row.Sub != sub) {
				t.Errorf("after %T: Lookup(%q) = %v", step.cmd, c, err)
			}
			if !step.want[c] && !errors.Is(err, ErrNotFound) {
				t.Errorf("after %T: Lookup(%q) = %v, want not found", step.cmd, c, err)
			}
		}
		f.checkFolds(t, v, []string{sub})
	}
	if row, err := v.Accounts().Lookup(t.Context(), []domain.Candidate{username, gmail, mobile}); err != nil || row.Sub != sub {
		t.Errorf("Lookup, the third leads there = %v", err)
	}
	if _, err := v.Accounts().Lookup(t.Context(), nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("Lookup of nothing = %v", err)
	}
	if _, err := v.Accounts().Get(t.Context(), uuid.NewString()); !errors.Is(err, ErrNotFound) {
		t.Errorf("Get of nobody = %v", err)
	}
}

// TestIdentifierMoves holds that an identifier that goes from account to
// account within one batch ends at the last one.
func TestIdentifierMoves(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	v := f.open(t)
	subs := []string{f.create(t, "a@example.org").Sub, f.create(t, "b@example.org").Sub, f.create(t, "c@example.org").Sub}
	move := func(i int, email string) {
		f.execute(t, subs[i], domain.UpdateProfile{Patch: jsontext.Value(fmt.Sprintf(`{"email":%q}`, email))})
	}
	stop := run(t, v)
	f.caughtUp(t, v)
	stop()
	// Round and round, all in one batch.
	for range 2 {
		move(0, "x@example.org")
		move(1, "a@example.org")
		move(2, "b@example.org")
		move(0, "c@example.org")
		move(2, "y@example.org")
		move(1, "b@example.org")
		move(0, "a@example.org")
		move(2, "c@example.org")
	}
	move(0, "z@example.org")
	move(2, "a@example.org")
	move(0, "c@example.org")
	run(t, v)
	f.caughtUp(t, v)
	f.checkFolds(t, v, subs)
}

// erase ends an account as the erase protocol does: log first, then the key.
func erase(t testing.TB, f *fixture, sub string) eventstore.Position {
	t.Helper()
	var last eventstore.Recorded
	var key eventstore.KeyID
	for rec, err := range f.log.ReadStream(t.Context(), domain.AccountStream(sub), 0) {
		if err != nil {
			t.Fatal(err)
		}
		if last = rec; rec.KeyID != (eventstore.KeyID{}) {
			key = rec.KeyID
		}
	}
	p := f.append(t, last.Stream, last.Revision, domain.TypeOf(domain.AccountErased{}), `{"meta":{"actor":{"kind":"system","id":"test"}},"data":{"kid":"`+hex.EncodeToString(key[:])+`"}}`)
	if err := f.keys.Destroy(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestErased holds that of an erased account the view keeps that it was
// erased, and nothing of the person, in the file or out of it.
func TestErased(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	v := f.open(t)
	run(t, v)
	a, b := f.create(t, "canary@example.org"), f.create(t, "neighbour@example.org")
	f.execute(t, a.Sub, domain.UpdateProfile{Patch: jsontext.Value(`{"given_name":"Canary"}`)})
	f.caughtUp(t, v)
	f.indexedUp(t, v)
	if !strings.Contains(dumpSearch(t, f.path()), "canary") {
		t.Error("the index never had what is to be erased")
	}
	erase(t, f, a.Sub)
	f.indexedUp(t, v)
	row, err := v.Accounts().Get(t.Context(), a.Sub)
	if err != nil || row.ErasedTime.IsZero() || row.Revision != 2 {
		t.Errorf("Get = %+v, %v, want that it was erased", row, err)
	}
	if _, err := v.Accounts().Lookup(t.Context(), domain.Candidates("", "", "canary@example.org")); !errors.Is(err, ErrNotFound) {
		t.Errorf("Lookup = %v, want not found", err)
	}
	f.checkFolds(t, v, []string{b.Sub})
	if _, err := v.write.Exec("PRAGMA wal_checkpoint(TRUNCATE)"); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(f.path())
	if err != nil {
		t.Fatal(err)
	}
	if text := strings.ToLower(string(data)); strings.Contains(text, "canary") || !strings.Contains(text, "neighbour") {
		t.Error("the file still has what was erased, or has lost what was not")
	}
}

// TestAll holds that all accounts come in order and as of one position,
// whatever is written meanwhile.
func TestAll(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	v := f.open(t)
	run(t, v)
	f.live(t, 10, 3)
	f.caughtUp(t, v)
	at, total, rows, err := v.Accounts().All(t.Context())
	if err != nil || total != 10 || at != v.Accounts().Position() {
		t.Fatalf("All = %d at %d, %v", total, at, err)
	}
	before, n := "", 0
	for row, err := range rows {
		if err != nil {
			t.Fatal(err)
		}
		if row.Sub <= before || row.Position > at {
			t.Errorf("row %s at %d after %s, want all up to %d", row.Sub, row.Position, before, at)
		}
		before, n = row.Sub, n+1
		f.create(t, fmt.Sprintf("late%d@example.org", n))
		f.caughtUp(t, v)
	}
	if n != 10 {
		t.Errorf("%d rows, want 10", n)
	}
	for range 100 { // who stops early gives the connection back
		_, _, rows, err := v.Accounts().All(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for range rows {
			break
		}
	}
}
