package projections

import (
	"context"
	"database/sql"
	"fmt"
	"iter"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/mod/sumdb/note"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/eventstore/seal"
	"accountledger/eventstore/sqlite"
	"accountledger/eventstore/tlog"
)

// fixture is a ledger with real files in a directory, which is also that of the
// views.
type fixture struct {
	dir    string
	log    *rewritingLog
	keys   *seal.Keys
	master seal.Master
	ledger *domain.Ledger
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	f := &fixture{dir: t.TempDir(), master: seal.NewMaster()}
	key, _, err := tlog.GenerateKey("accountledger/test")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(key)
	if err != nil {
		t.Fatal(err)
	}
	if f.keys, err = seal.Open(t.Context(), seal.Config{Path: filepath.Join(f.dir, "keys.db"), Master: f.master}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.keys.Close() })
	clock := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	log, err := sqlite.Open(t.Context(), sqlite.Config{Dir: f.dir, Signer: signer, Vouch: f.keys.Vouch, Now: func() time.Time {
		clock = clock.Add(time.Second)
		return clock
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	f.log = &rewritingLog{Store: log}
	f.ledger = domain.NewLedger(domain.LedgerConfig{Log: log, Codec: domain.Codec{Keys: f.keys}})
	return f
}

// rewritingLog is a log that changes records as they are read, and counts proofs.
type rewritingLog struct {
	eventstore.Store
	rewriter atomic.Pointer[func(*eventstore.Recorded)]
	proofs   atomic.Int64
	tampered atomic.Bool // proofs fail
}

func (l *rewritingLog) Prove(ctx context.Context, to eventstore.Position, progress func(done, total int64)) error {
	l.proofs.Add(1)
	if l.tampered.Load() {
		return eventstore.ErrTampered
	}
	return l.Store.Prove(ctx, to, progress)
}

func (l *rewritingLog) rewrite(f func(*eventstore.Recorded)) { l.rewriter.Store(&f) }

func (l *rewritingLog) rewritten(rec eventstore.Recorded) eventstore.Recorded {
	if f := l.rewriter.Load(); f != nil {
		(*f)(&rec)
	}
	return rec
}

func (l *rewritingLog) ReadStream(ctx context.Context, stream string, from eventstore.Revision) iter.Seq2[eventstore.Recorded, error] {
	return func(yield func(eventstore.Recorded, error) bool) {
		for rec, err := range l.Store.ReadStream(ctx, stream, from) {
			if !yield(l.rewritten(rec), err) {
				return
			}
		}
	}
}

func (l *rewritingLog) Subscribe(ctx context.Context, after eventstore.Position) iter.Seq2[[]eventstore.Recorded, error] {
	return l.pages(l.Store.Subscribe(ctx, after))
}

func (l *rewritingLog) ByStream(ctx context.Context, to eventstore.Position) iter.Seq2[[]eventstore.Recorded, error] {
	return l.pages(l.Store.(eventstore.StreamReader).ByStream(ctx, to))
}

func (l *rewritingLog) pages(pages iter.Seq2[[]eventstore.Recorded, error]) iter.Seq2[[]eventstore.Recorded, error] {
	return func(yield func([]eventstore.Recorded, error) bool) {
		for page, err := range pages {
			page = slices.Clone(page)
			for i := range page {
				page[i] = l.rewritten(page[i])
			}
			if !yield(page, err) {
				return
			}
		}
	}
}

func (f *fixture) path() string { return filepath.Join(f.dir, "views.db") }

func (f *fixture) open(t testing.TB) *Views {
	t.Helper()
	v, err := Open(t.Context(), Config{Path: f.path(), Log: f.log, Codec: domain.Codec{Keys: f.keys}, Retry: time.Millisecond,
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	return v
}

// run runs v until the test ends or calls stop.
func run(t testing.TB, v *Views) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- v.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// awaitHead waits until the account view has applied the whole log, and returns
// the head.
func (f *fixture) awaitHead(t testing.TB, v *Views) eventstore.Position {
	t.Helper()
	head, err := f.log.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	await(t, v, head)
	return head
}

func await(t testing.TB, v *Views, p eventstore.Position) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := v.Await(ctx, AccountsView, p); err != nil {
		t.Fatalf("Await(%d) at %d: %v", p, v.Accounts().Position(), err)
	}
}

var request = domain.Request{Meta: domain.Metadata{Actor: domain.Actor{Kind: "api-key", ID: "test"}}}

func (f *fixture) execute(t testing.TB, sub string, cmd domain.Command) domain.Account {
	t.Helper()
	result, err := f.ledger.Execute(t.Context(), request, sub, cmd)
	if err != nil {
		t.Fatalf("%T: %v", cmd, err)
	}
	return result.State
}

func newIdentity(provider, providerUserID string, p domain.Profile) domain.NewIdentity {
	return domain.NewIdentity{IdentityID: domain.NewID().String(), Provider: provider, ProviderUserID: providerUserID, Profile: p}
}

func (f *fixture) create(t testing.TB, email string) domain.Account {
	t.Helper()
	return f.execute(t, domain.NewID().String(), domain.CreateAccount{Origin: domain.OriginCreated,
		Identities: []domain.NewIdentity{newIdentity(domain.ProviderSelf, "", domain.Profile{Email: email})}})
}

// populate creates accounts and applies a number of changes to each, interleaved.
func (f *fixture) populate(t testing.TB, accounts, changes int) []string {
	t.Helper()
	var subs []string
	for i := range accounts {
		subs = append(subs, f.create(t, fmt.Sprintf("person%d.%s@example.org", i, domain.NewID())).Sub)
	}
	for c := range changes {
		for i, sub := range subs {
			f.change(t, sub, c*accounts+i)
		}
	}
	return subs
}

func (f *fixture) change(t testing.TB, sub string, n int) {
	t.Helper()
	a, err := f.ledger.Account(t.Context(), sub)
	if err != nil {
		t.Fatal(err)
	}
	switch n % 6 {
	case 0:
		f.execute(t, sub, domain.UpdateProfile{IdentityID: a.Identities[0].IdentityID, Patch: jsontext.Value(fmt.Sprintf(`{"given_name":"Name %d","email":"%d.%s@example.org"}`, n, n, sub))})
	case 1:
		f.execute(t, sub, domain.SetCustomFields{Values: map[string]jsontext.Value{"tier": jsontext.Value(fmt.Sprintf(`"tier %d"`, n))}})
	case 2:
		f.execute(t, sub, domain.LinkIdentity{Identity: newIdentity("google", fmt.Sprint(n, sub), domain.Profile{Email: fmt.Sprintf("%d.%s@gmail.com", n, sub)})})
	case 3:
		if len(a.Identities) > 1 {
			f.execute(t, sub, domain.UnlinkIdentity{IdentityID: a.Identities[1].IdentityID})
		}
	case 4:
		status := domain.StatusDeclined
		if a.Status == status {
			status = domain.StatusVerified
		}
		f.execute(t, sub, domain.SetStatus{Status: status, Reason: "because"})
	case 5:
		var roles []string // none, one, two, none ...
		for i := range n / 6 % 3 {
			roles = append(roles, []string{"ADMIN", "CUSTOMER"}[i])
		}
		f.execute(t, sub, domain.SetMembership{GroupID: domain.GroupUsers, Roles: roles})
	}
}

// append appends an event directly to the log, bypassing the domain's rules.
func (f *fixture) append(t testing.TB, stream string, expected eventstore.Revision, eventType, clear string) eventstore.Position {
	t.Helper()
	receipt, err := f.log.Append(t.Context(), eventstore.Commit{Writes: []eventstore.Write{{Stream: stream, Expected: expected,
		Events: []eventstore.Event{{ID: domain.NewID(), Type: eventType, Actor: "system:test", Clear: []byte(clear)}}}}})
	if err != nil {
		t.Fatal(err)
	}
	return receipt.Last
}

// dump returns the contents of the live generation's tables in a fixed order,
// without row ids, which differ between generations.
func dump(t testing.TB, path string) string {
	t.Helper()
	return dumpView(t, path, AccountsView,
		`SELECT concat_ws('|', sub, revision, position, coalesce(erased, '-'), json) FROM accounts_%[1]d ORDER BY sub`,
		`SELECT concat_ws('|', kind, key, sub) FROM identifiers_%[1]d LEFT JOIN accounts_%[1]d ON id = account ORDER BY kind, key, sub`,
		`SELECT concat_ws('|', group_id, role, count) FROM members_%[1]d ORDER BY group_id, role`)
}

// dumpSearch is dump for the search index.
func dumpSearch(t testing.TB, path string) string {
	t.Helper()
	return dumpView(t, path, SearchView,
		`SELECT concat_ws('|', sub, listed, created, updated, login, name, replace(CAST(terms AS TEXT), char(10), ' ')) FROM search_%[1]d ORDER BY sub`,
		`SELECT concat_ws('|', term, sub) FROM terms_%[1]d LEFT JOIN search_%[1]d ON id = account ORDER BY term, sub`,
		`SELECT concat_ws('|', field, type) FROM searchable_%[1]d ORDER BY field`)
}

func dumpView(t testing.TB, path, view string, queries ...string) string {
	t.Helper()
	db, err := sql.Open("sqlite3", "file:"+path+"?mode=ro")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	g, _, err := liveGeneration(t.Context(), tx, view)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for _, query := range queries {
		rows, err := tx.Query(fmt.Sprintf(query, g))
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		for rows.Next() {
			var line string
			if err := rows.Scan(&line); err != nil {
				t.Fatal(err)
			}
			fmt.Fprintln(&out, strings.ReplaceAll(line, "\x00", `\0`))
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
	}
	return out.String()
}

// checkFolds compares the accounts' rows with a fold of their streams.
func (f *fixture) checkFolds(t testing.TB, v *Views, subs []string) {
	t.Helper()
	for _, sub := range subs {
		a, err := domain.NewLedger(domain.LedgerConfig{Log: f.log.Store, Codec: domain.Codec{Keys: f.keys}}).Account(t.Context(), sub)
		if err != nil {
			t.Fatal(err)
		}
		want, err := a.JSON()
		if err != nil {
			t.Fatal(err)
		}
		row, err := v.Accounts().Get(t.Context(), sub)
		if err != nil {
			t.Fatalf("Get(%s) = %v", sub, err)
		}
		if diff := cmp.Diff(string(want), string(row.JSON)); diff != "" || row.Sub != sub || row.Revision != a.Revision || row.Position != a.Position {
			t.Fatalf("Get(%s) at %d, %d, want %d, %d (-stream +view):\n%s", sub, row.Revision, row.Position, a.Revision, a.Position, diff)
		}
		for _, u := range a.UserIDs {
			if found, err := v.Accounts().Lookup(t.Context(), []domain.Candidate{{Kind: u.Type, Key: u.Key()}}); err != nil || found.Sub != sub {
				t.Fatalf("Lookup of a %s = %s, %v, want %s", u.Type, found.Sub, err, sub)
			}
		}
	}
}
