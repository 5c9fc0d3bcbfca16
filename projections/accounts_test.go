package projections

import (
	"bufio"
	"context"
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

// TestGolden checks that a log results in the same rows as before, because the
// views.db of released versions contains such rows.
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
			f.awaitIndexed(t, v)
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

// TestLookup checks that an account is found by every identifier it has, and by
// none that it no longer has.
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
		// Two identities with the same address: it remains found until the second is changed.
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
		t.Errorf("Lookup by three candidates, of which the third matches = %v", err)
	}
	if _, err := v.Accounts().Lookup(t.Context(), nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("Lookup of nothing = %v", err)
	}
	if _, err := v.Accounts().Get(t.Context(), uuid.NewString()); !errors.Is(err, ErrNotFound) {
		t.Errorf("Get of an unknown sub = %v", err)
	}
}

// TestIdentifierMoves checks that an identifier that moves between accounts
// within one batch belongs to the last one.
func TestIdentifierMoves(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	v := f.open(t)
	subs := []string{f.create(t, "a@example.org").Sub, f.create(t, "b@example.org").Sub, f.create(t, "c@example.org").Sub}
	move := func(i int, email string) {
		f.execute(t, subs[i], domain.UpdateProfile{Patch: jsontext.Value(fmt.Sprintf(`{"email":%q}`, email))})
	}
	stop := run(t, v)
	f.awaitHead(t, v)
	stop()
	// All of these are applied in one batch.
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
	f.awaitHead(t, v)
	f.checkFolds(t, v, subs)
}

// erase erases an account as package erasure does: first the event, then the key.
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

// TestErased checks that the view still shows that an account was erased, and
// that its file contains no personal data of it.
func TestErased(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	v := f.open(t)
	run(t, v)
	a, b := f.create(t, "canary@example.org"), f.create(t, "neighbour@example.org")
	f.execute(t, a.Sub, domain.UpdateProfile{Patch: jsontext.Value(`{"given_name":"Canary"}`)})
	f.awaitHead(t, v)
	f.awaitIndexed(t, v)
	if !strings.Contains(dumpSearch(t, f.path()), "canary") {
		t.Error("the index does not have the account's name before the erasure")
	}
	erase(t, f, a.Sub)
	f.awaitIndexed(t, v)
	row, err := v.Accounts().Get(t.Context(), a.Sub)
	if err != nil || row.ErasedTime.IsZero() || row.Revision != 2 {
		t.Errorf("Get = %+v, %v, want an erased account", row, err)
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
		t.Error("the file contains data of the erased account, or none of the other")
	}
}

// TestAll checks that All returns all accounts in order and as of one position,
// even if more are created meanwhile.
func TestAll(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	v := f.open(t)
	run(t, v)
	f.populate(t, 10, 3)
	f.awaitHead(t, v)
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
		f.awaitHead(t, v)
	}
	if n != 10 {
		t.Errorf("%d rows, want 10", n)
	}
	for range 100 { // a caller that stops early returns the connection
		_, _, rows, err := v.Accounts().All(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for range rows {
			break
		}
	}
}

// unclaimed is a log that grants every claim, so that accounts can have the same
// identifiers, as accounts of earlier versions may.
type unclaimed struct{ eventstore.Store }

func (u unclaimed) Append(ctx context.Context, c eventstore.Commit) (eventstore.Receipt, error) {
	c.Claim, c.Release = nil, nil
	return u.Store.Append(ctx, c)
}

// TestLookupAmbiguous checks that an identifier leads to no account as long as
// several have it, whether of one kind or read as two, and then to the one that
// is left.
func TestLookupAmbiguous(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.ledger = domain.NewLedger(domain.LedgerConfig{Log: unclaimed{f.log.Store}, Codec: domain.Codec{Keys: f.keys}})
	v := f.open(t)
	run(t, v)
	composed, decomposed := f.create(t, "zo\u00eb@example.org"), f.create(t, "zoe\u0308@example.org")
	address, name := f.create(t, "pat@example.org"), f.create(t, "other@example.org")
	f.execute(t, name.Sub, domain.UpdateProfile{Patch: jsontext.Value(`{"username":"Pat@example.org"}`)})
	both := f.create(t, "both@example.org")
	f.execute(t, both.Sub, domain.UpdateProfile{Patch: jsontext.Value(`{"username":"both@example.org"}`)})

	check := func(kind domain.Kind, value, want string) {
		t.Helper()
		f.awaitHead(t, v)
		reader, err := OpenReader(t.Context(), f.path())
		if err != nil {
			t.Fatal(err)
		}
		defer reader.Close()
		for _, accounts := range []*Accounts{v.Accounts(), reader.Accounts()} {
			row, err := accounts.Lookup(t.Context(), domain.Candidates(kind, "", value))
			switch {
			case want == "" && !errors.Is(err, ErrAmbiguous):
				t.Errorf("Lookup of %s %q = %s, %v, want ErrAmbiguous", kind, value, row.Sub, err)
			case want != "" && (err != nil || row.Sub != want):
				t.Errorf("Lookup of %s %q = %s, %v, want %s", kind, value, row.Sub, err, want)
			}
		}
	}
	for range 2 {
		check(domain.KindEmail, "ZO\u00cb@example.org", "")
		check("", "zoe\u0308@example.org", "")
		check("", "PAT@example.org", "")
		check(domain.KindEmail, "pat@example.org", address.Sub)
		check(domain.KindUsername, "pat@example.org", name.Sub)
		check("", "both@example.org", both.Sub)
		f.awaitHead(t, v)
		if err := v.Rebuild(t.Context(), AccountsView, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.Await(t.Context(), SearchView, f.awaitHead(t, v)); err != nil {
		t.Fatal(err)
	}
	found, err := v.Search().Find(t.Context(), Query{Identifier: domain.Candidates(domain.KindEmail, "", "zo\u00eb@example.org"), Sort: SortCreated, Limit: 10})
	if err != nil || len(found.Accounts) != 2 {
		t.Errorf("a search for the address of two accounts finds %d, %v", len(found.Accounts), err)
	}
	// It is resolved by changing one of the accounts, or by merging them.
	f.execute(t, composed.Sub, domain.UpdateProfile{Patch: jsontext.Value(`{"email":"zoe@example.org"}`)})
	f.execute(t, address.Sub, domain.MergeAccount{From: name.Sub})
	check("", "zo\u00eb@example.org", decomposed.Sub)
	check("", "zoe@example.org", composed.Sub)
	check("", "pat@example.org", address.Sub)
	check(domain.KindUsername, "pat@example.org", address.Sub)
	f.checkFolds(t, v, []string{composed.Sub, decomposed.Sub, address.Sub, name.Sub})
	before := dump(t, f.path())
	if err := v.Rebuild(t.Context(), AccountsView, nil); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, dump(t, f.path())); diff != "" {
		t.Errorf("the rows after a rebuild (-before +after):\n%s", diff)
	}

	// Looking up four candidates uses the indexes.
	tx, generation, _, err := v.Accounts().snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	rows, err := tx.Query(`EXPLAIN QUERY PLAN `+fmt.Sprintf(lookupAccounts, generation), "a", "", "", "", "", "", "", "")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var a, b, c int
		var detail string
		if err := rows.Scan(&a, &b, &c, &detail); err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(detail, "SCAN") && !strings.Contains(detail, "VALUES CLAUSE") && detail != "SCAN c" {
			t.Errorf("the plan of a look-up has a scan: %s", detail)
		}
	}
}
