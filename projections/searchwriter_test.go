package projections

import (
	"context"
	"database/sql"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"

	"accountledger/domain"
	"accountledger/eventstore"
)

// found returns the subs of the first page of a query.
func found(t testing.TB, v *Views, q Query) []string {
	t.Helper()
	q.Limit = 100
	page, err := v.Search().Find(t.Context(), q)
	if err != nil {
		t.Fatalf("Find(%+v) = %v", q, err)
	}
	var subs []string
	for _, row := range page.Accounts {
		subs = append(subs, row.Sub)
	}
	return subs
}

// TestSearchWords checks which words of a search match a name.
func TestSearchWords(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, query string
		found       bool
	}{
		{"Müller", "muller", true},
		{"Müller", "MU\u0308LL", true}, // the same letter in decomposed form
		{"Muller", "mül", true},
		{"Müller", "mueller", false},
		{"Straße", "strasse", true},
		{"O'Neil-Smith", "smith neil", true},
		{"O'Neil", "oneil", false},
		{"Anna", "anna anna", true},
		{"Anna", "nna", false},
		{"Ａｎｎａ", "anna", true},
		{"İpek", "ipek", true},
		{"李小龙", "李小", true},
		{"डॉक्टर", "डॉ", true},
		{strings.Repeat("long", 50), strings.Repeat("long", 49), true},
	} {
		all := words(tt.name)
		passes := !slices.ContainsFunc(searchWords(tt.query), func(word string) bool {
			return !slices.ContainsFunc(all, func(s string) bool { return strings.HasPrefix(s, word) })
		})
		if passes != tt.found || len(searchWords(tt.query)) == 0 {
			t.Errorf("%q, searched for %q: %t, want %t (%q, %q)", tt.name, tt.query, passes, tt.found, all, searchWords(tt.query))
		}
	}
}

// TestSortable checks that encoded numbers sort in numeric order.
func TestSortable(t *testing.T) {
	t.Parallel()
	numbers := []float64{-1e300, -2, -1.5, -1e-300, 0, 1e-300, 0.5, 1, 10, 1e300}
	for i := 1; i < len(numbers); i++ {
		if a, b := sortable(numbers[i-1]), sortable(numbers[i]); a >= b || len(a) != len(b) {
			t.Errorf("%g is %s, %g is %s", numbers[i-1], a, numbers[i], b)
		}
	}
	if sortable(math.Copysign(0, -1)) != sortable(0) {
		t.Error("0 and -0 differ")
	}
}

// TestSearchFields checks that making a field searchable, or no longer so, takes
// effect for existing accounts, and that until then Find refuses queries by the
// field and answers others.
func TestSearchFields(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	v := f.open(t)
	stop := run(t, v)
	f.ledger = domain.NewLedger(domain.LedgerConfig{Log: f.log, Codec: domain.Codec{Keys: f.keys}, Census: v.Census()})
	a := f.create(t, "ada@example.org")
	f.execute(t, a.Sub, domain.SetCustomFields{Values: map[string]jsontext.Value{"tier": jsontext.Value(`"Canary"`), "size": jsontext.Value(`7`)}})
	f.awaitIndexed(t, v)
	tier := Query{Fields: []FieldQuery{{Key: "tier", Type: domain.TypeText, Value: jsontext.Value(`"canary"`)}}}
	if _, err := v.Search().Find(t.Context(), tier); !errors.Is(err, ErrNotIndexed) {
		t.Errorf("Find by a field that is not searchable = %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := v.Search().Await(ctx, 0, tier.Fields); !errors.Is(err, context.Canceled) {
		t.Errorf("Await = %v", err)
	}
	f.configure(t, field("tier", domain.TypeText), field("size", domain.TypeNumber))
	if err := v.Search().Await(t.Context(), 0, append(tier.Fields, FieldQuery{Key: "size", Type: domain.TypeNumber})); err != nil {
		t.Fatal(err)
	}
	if got := found(t, v, tier); !slices.Equal(got, []string{a.Sub}) {
		t.Errorf("found %v", got)
	}
	for _, wrong := range []FieldQuery{
		{Key: "size", Type: domain.TypeNumber, Value: jsontext.Value(`"x"`)},
		{Key: "size", Type: domain.TypeNumber, From: jsontext.Value(`1`), To: jsontext.Value(`"x"`)},
		{Key: "tier", Type: domain.TypeText, From: jsontext.Value(`"a"`)},
	} {
		if _, err := v.Search().Find(t.Context(), Query{Fields: []FieldQuery{wrong}}); err == nil {
			t.Errorf("Find(%+v) = nil", wrong)
		} else if _, ok := errors.AsType[*FieldError](err); !ok {
			t.Errorf("Find(%+v) = %v", wrong, err)
		}
	}

	// The next start applies changes made while the views did not run.
	stop()
	f.configure(t, domain.DeleteField{FieldKey: "tier"})
	v.Close()
	v = f.open(t)
	run(t, v)
	f.awaitIndexedFields(t, v)
	f.awaitIndexed(t, v)
	if text := dumpSearch(t, f.path()); strings.Contains(text, "canary") || !strings.Contains(text, "fsize=") {
		t.Errorf("the index has\n%s", text)
	}
	if got := found(t, v, Query{Email: "ada"}); !slices.Equal(got, []string{a.Sub}) {
		t.Errorf("found %v", got)
	}
}

// TestSearchParked checks that an account that is parked in the account view is
// parked in the index, too, and is indexed when it is no longer parked.
func TestSearchParked(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	a, b := f.create(t, "broken@example.org"), f.create(t, "other@example.org")
	f.log.rewrite(func(rec *eventstore.Recorded) {
		if rec.Stream == domain.AccountStream(a.Sub) && rec.Revision == 1 {
			rec.Type = "account.teleported.v1"
		}
	})
	v := f.open(t)
	run(t, v)
	f.execute(t, a.Sub, domain.UpdateProfile{Patch: jsontext.Value(`{"given_name":"Ada"}`)})
	f.awaitIndexed(t, v)
	parked := func() (n int) {
		status, err := v.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range status {
			if s.Name == SearchView {
				n = len(s.Parked)
			}
		}
		return n
	}
	for range 2 {
		if parked() != 1 {
			t.Errorf("%d streams are parked, want 1", parked())
		}
		if got := found(t, v, Query{Email: "other"}); !slices.Equal(got, []string{b.Sub}) {
			t.Errorf("found %v", got)
		}
		if err := v.Rebuild(t.Context(), SearchView, nil); err != nil {
			t.Fatal(err)
		}
	}
	f.log.rewrite(func(*eventstore.Recorded) {})
	until(t, func() bool { return parked() == 0 })
	if got := found(t, v, Query{Name: "ada"}); !slices.Equal(got, []string{a.Sub}) {
		t.Errorf("found %v", got)
	}
}

// TestSearchFailedCommit checks that rows and checkpoint change together: a batch
// that fails after writing its rows leaves no trace and is repeated.
func TestSearchFailedCommit(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	v := f.open(t)
	db, err := sql.Open("sqlite3", "file:"+f.path()+"?_busy_timeout=10000")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	exec := func(statement string) {
		t.Helper()
		if _, err := db.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	exec(`CREATE TABLE failing (yes)`)
	exec(`CREATE TRIGGER fail BEFORE UPDATE OF position ON views WHEN old.name = 'search' AND EXISTS (SELECT * FROM failing)
		BEGIN SELECT RAISE(ABORT, 'test'); END`)
	stop := run(t, v)
	for range 3 {
		before := dumpSearch(t, f.path())
		exec(`INSERT INTO failing VALUES (1)`)
		f.populate(t, 2, 7)
		head := f.awaitHead(t, v)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		if err := v.Await(ctx, SearchView, head); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Await while writing fails = %v, want %v", err, context.DeadlineExceeded)
		}
		cancel()
		if diff := cmp.Diff(before, dumpSearch(t, f.path())); diff != "" {
			t.Errorf("a failed batch changed rows:\n%s", diff)
		}
		exec(`DELETE FROM failing`)
		f.awaitIndexed(t, v)
	}
	live := dumpSearch(t, f.path())
	stop()
	if err := v.Rebuild(t.Context(), SearchView, nil); err != nil { // works without Run, too
		t.Fatal(err)
	}
	if diff := cmp.Diff(live, dumpSearch(t, f.path())); diff != "" {
		t.Errorf("(-live +rebuilt):\n%s", diff)
	}
}

// TestSearchAwaited checks that Await does not wait for the pause between
// batches, whether it is called before or during the pause.
func TestSearchAwaited(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	v := f.open(t)
	v.search.view.pause = time.Hour
	run(t, v)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for range 20 {
		a := f.create(t, domain.NewID().String()+"@example.org")
		if err := v.Search().Await(ctx, a.Position, nil); err != nil {
			t.Fatal(err)
		}
		if got := found(t, v, Query{Email: a.Identities[0].Email}); !slices.Equal(got, []string{a.Sub}) {
			t.Fatalf("found %v, want the account that Await waited for", got)
		}
	}
}

// TestSearchIDs checks that accounts with colliding ids get separate rows, in one
// batch and in several, and keep them.
func TestSearchIDs(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	v := f.open(t)
	sw := &searchWriter{search: v.search, generation: v.search.view.live.number}
	closing, err := v.prepare(t.Context(), sw.generation, sw.statements())
	if err != nil {
		t.Fatal(err)
	}
	defer closing()
	same := func(sub string, terms ...string) searchRow { return searchRow{id: 1000, sub: sub, terms: terms} }
	for _, batch := range [][]searchRow{{same("a", "n=1"), same("b", "n=1")}, {same("c", "n=1")}, {same("b", "n=2"), same("d", "n=1")}, {same("a")}} {
		tx, err := v.write.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := sw.write(t.Context(), tx, batch); err != nil {
			t.Fatal(err)
		}
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	const want = `a|0|0|0|0||
b|0|0|0|0|| n=2 
c|0|0|0|0|| n=1 
d|0|0|0|0|| n=1 
n=1|c
n=1|d
n=2|b
`
	if diff := cmp.Diff(want, dumpSearch(t, f.path())); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
