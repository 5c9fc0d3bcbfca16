package projections

import (
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"accountledger/domain"
)

// TestFile checks which files Open opens, replaces and refuses.
func TestFile(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	subs := f.populate(t, 3, 2)
	v := f.open(t)
	stop := run(t, v)
	f.awaitHead(t, v)
	want := dump(t, f.path())
	stop()
	v.Close()
	if info, err := os.Stat(f.path()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode = %v, %v, want 0600", info.Mode(), err)
	}
	good, err := os.ReadFile(f.path())
	if err != nil {
		t.Fatal(err)
	}
	sqlFile := func(statement string) []byte {
		path := filepath.Join(t.TempDir(), "other.db")
		db, err := sql.Open("sqlite3", "file:"+path)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if _, err := db.Exec(statement); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	damage := func(from, to int) []byte {
		data := append([]byte{}, good...)
		for i := from; i < to; i++ {
			data[i] ^= 0x5a
		}
		return data
	}
	for _, tt := range []struct {
		name    string
		data    []byte
		refused bool
	}{
		{"intact", good, false},
		{"empty", []byte{}, false},
		{"unknown layout", sqlFile(`PRAGMA application_id = 0x414c5657; CREATE TABLE old (x)`), false},
		{"first page damaged", damage(100, 4096), false},
		{"truncated", good[:4096], false},
		{"newer version", sqlFile(`PRAGMA application_id = 0x414c5657; PRAGMA user_version = 3; CREATE TABLE newer (x)`), true},
		{"another application's", sqlFile(`PRAGMA application_id = 7; CREATE TABLE foreign_table (x)`), true},
		{"no application id", sqlFile(`CREATE TABLE notes (x)`), true},
		{"not a database", []byte(strings.Repeat("a diary, and not a database ", 100)), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "views.db")
			if err := os.WriteFile(path, tt.data, 0o600); err != nil {
				t.Fatal(err)
			}
			v, err := Open(t.Context(), Config{Path: path, Log: f.log, Codec: domain.Codec{Keys: f.keys}})
			if tt.refused {
				after, _ := os.ReadFile(path)
				if err == nil || string(after) != string(tt.data) {
					t.Errorf("Open = %v, want a refusal that leaves the file alone", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer v.Close()
			stop := run(t, v)
			defer stop()
			f.awaitHead(t, v)
			f.checkFolds(t, v, subs)
			if diff := cmp.Diff(want, dump(t, path)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestDamagedWhileRunning checks that Run ends if the file is damaged, and that
// the next start replaces it.
func TestDamagedWhileRunning(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	subs := f.populate(t, 50, 1)
	v := f.open(t)
	stop := run(t, v)
	f.awaitHead(t, v)
	stop()
	v.Close()
	data, err := os.ReadFile(f.path())
	if err != nil {
		t.Fatal(err)
	}
	for i := 8 * 4096; i < len(data); i++ { // tables of accounts, not the schema
		data[i] = 0xff
	}
	if err := os.WriteFile(f.path(), data, 0o600); err != nil {
		t.Fatal(err)
	}
	v = f.open(t)
	for _, sub := range subs {
		f.change(t, sub, 1)
	}
	if err := v.Check(t.Context()); err == nil {
		t.Error("Check of a damaged file = nil")
	}
	if err := v.Run(t.Context()); !damaged(err) {
		t.Errorf("Run = %v, want an error that says that the file is damaged", err)
	}
	v.Close()
	v = f.open(t)
	run(t, v)
	f.awaitHead(t, v)
	f.checkFolds(t, v, subs)
}

// fill builds the views of f and closes them.
func (f *fixture) fill(t *testing.T, ledgerID string) {
	t.Helper()
	v, err := Open(t.Context(), Config{Path: f.path(), LedgerID: ledgerID, Log: f.log, Codec: domain.Codec{Keys: f.keys}})
	if err != nil {
		t.Fatal(err)
	}
	stop := run(t, v)
	f.awaitHead(t, v)
	stop()
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
}

// alter executes statements on the file.
func (f *fixture) alter(t *testing.T, statements string) {
	t.Helper()
	db, err := connect(f.path(), "_journal_mode=WAL", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(statements); err != nil {
		t.Fatal(err)
	}
}

// directory returns the contents of the files beside views.db and of itself.
func (f *fixture) directory(t *testing.T) map[string]string {
	t.Helper()
	names, err := filepath.Glob(f.path() + "*")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if len(data) > 0 && !strings.HasSuffix(name, "-shm") { // SQLite's readers leave an empty log and their locks
			all[filepath.Base(name)] = string(data)
		}
	}
	return all
}

const layout1 = `DROP TABLE ledger; PRAGMA user_version = 1`

// TestAhead checks that Open refuses a file that contradicts the log, whatever
// else is wrong with the file, and leaves it alone.
func TestAhead(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		alter  string // SQL on the file, before log.db is replaced
		events int    // in each account of the other log; 0: the log is not replaced
		opener string // the ledger that opens the file
		why    string
	}{
		{name: "the log is shorter", events: 1, why: AheadOfLog},
		{name: "the log is longer", events: 5, why: OtherEvent},
		{name: "the log is shorter, layout 1", alter: layout1, events: 1, why: AheadOfLog},
		{name: "the log is longer, layout 1", alter: layout1, events: 5, why: OtherEvent},
		{name: "the log is shorter, the file was found damaged", alter: `PRAGMA user_version = 0`, events: 1, why: AheadOfLog},
		{name: "the log is longer, the file was found damaged", alter: `PRAGMA user_version = 0`, events: 5, why: OtherEvent},
		{name: "one view is ahead", alter: `UPDATE views SET position = 900 WHERE name = 'erasures'`, why: AheadOfLog},
		{name: "another ledger", opener: "accountledger/two", why: OtherLedger},
		{name: "another ledger, the file was found damaged", alter: `PRAGMA user_version = 0`, opener: "accountledger/two", why: OtherLedger},
		{name: "the ledger's name was changed", alter: `UPDATE ledger SET id = 'accountledger/two'`, opener: "accountledger/one", why: OtherLedger},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t)
			f.populate(t, 3, 3)
			f.fill(t, "accountledger/one")
			if tt.alter != "" {
				f.alter(t, tt.alter)
			}
			log := f.log
			if tt.events > 0 {
				g := newFixture(t)
				g.populate(t, 3, tt.events)
				log = g.log
			}
			before := f.directory(t)
			_, err := Open(t.Context(), Config{Path: f.path(), LedgerID: tt.opener, Log: log, Codec: domain.Codec{Keys: f.keys}})
			ahead, ok := errors.AsType[*AheadError](err)
			if !ok || ahead.Why != tt.why || ahead.File != f.path() {
				t.Errorf("Open = %v, want an AheadError because of %s", err, tt.why)
			}
			if diff := cmp.Diff(before, f.directory(t)); diff != "" {
				t.Errorf("the file has changed (-before +after):\n%s", diff)
			}
		})
	}
}

// TestAheadText checks that the error names the file and what it has seen.
func TestAheadText(t *testing.T) {
	t.Parallel()
	for why, want := range map[string]string{
		OtherLedger: "views.db belongs to another ledger than log.db",
		AheadOfLog:  "views.db has seen event 12, but log.db ends at event 10",
		OtherEvent:  "views.db has seen another event at position 12 than log.db has there",
	} {
		e := &AheadError{File: "/var/lib/accountledger/views.db", Seen: 12, Head: 10, Why: why}
		if e.Error() != want {
			t.Errorf("Error = %q, want %q", e, want)
		}
	}
}

// TestLedgerID checks that a file without a ledger is bound to the first one that
// opens it, and keeps its rows when its layout is upgraded.
func TestLedgerID(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.populate(t, 3, 3)
	f.fill(t, "")
	want := dump(t, f.path())
	f.alter(t, layout1)
	for _, id := range []string{"", "accountledger/one", "accountledger/one", ""} {
		proofs := f.log.proofs.Load()
		f.fill(t, id)
		if f.log.proofs.Load() != proofs {
			t.Error("the views were built again")
		}
	}
	if got := dump(t, f.path()); got != want {
		t.Errorf("(-before +upgraded):\n%s", cmp.Diff(want, got))
	}
	_, err := Open(t.Context(), Config{Path: f.path(), LedgerID: "accountledger/two", Log: f.log, Codec: domain.Codec{Keys: f.keys}})
	if ahead, ok := errors.AsType[*AheadError](err); !ok || ahead.Why != OtherLedger {
		t.Errorf("Open by another ledger = %v", err)
	}
}

// TestDamagedAside checks that a damaged file is kept under another name if it
// does not say whether it contradicts the log.
func TestDamagedAside(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	subs := f.populate(t, 3, 3)
	f.fill(t, "")
	data, err := os.ReadFile(f.path())
	if err != nil {
		t.Fatal(err)
	}
	for i := 100; i < 4096; i++ {
		data[i] ^= 0x5a
	}
	if err := os.WriteFile(f.path(), data, 0o600); err != nil {
		t.Fatal(err)
	}
	v := f.open(t)
	run(t, v)
	f.awaitHead(t, v)
	f.checkFolds(t, v, subs)
	aside, err := filepath.Glob(f.path() + ".damaged-*Z")
	if err != nil || len(aside) != 1 {
		t.Fatalf("damaged files = %q, %v, want one", aside, err)
	}
	if kept, err := os.ReadFile(aside[0]); err != nil || string(kept) != string(data) {
		t.Errorf("the damaged file was not kept as it was: %v", err)
	}
}

// TestRewind checks that a views file that is ahead of a rolled back log is
// renamed, and any other one left alone.
func TestRewind(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.populate(t, 3, 3)
	if aside, err := Rewind(t.Context(), f.path(), 1); err != nil || aside != "" {
		t.Errorf("Rewind of no file = %q, %v", aside, err)
	}
	f.fill(t, "accountledger/one")
	head, err := f.log.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	before := f.directory(t)
	if aside, err := Rewind(t.Context(), f.path(), head); err != nil || aside != "" {
		t.Errorf("Rewind to the head = %q, %v", aside, err)
	}
	if diff := cmp.Diff(before, f.directory(t)); diff != "" {
		t.Errorf("(-before +after):\n%s", diff)
	}
	g := newFixture(t)
	subs := g.populate(t, 2, 1)
	if head, err = g.log.Head(t.Context()); err != nil {
		t.Fatal(err)
	}
	aside, err := Rewind(t.Context(), f.path(), head)
	if err != nil {
		t.Fatal(err)
	}
	if kept, err := os.ReadFile(aside); err != nil || string(kept) != before["views.db"] {
		t.Errorf("Rewind did not keep the file as %q: %v", aside, err)
	}
	g.dir = f.dir
	v := g.open(t)
	run(t, v)
	g.awaitHead(t, v)
	g.checkFolds(t, v, subs)
}

// TestReader checks what a reader sees while another process runs the views.
func TestReader(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	if _, err := OpenReader(t.Context(), f.path()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("OpenReader of no file = %v", err)
	}
	v := f.open(t)
	run(t, v)
	subs := f.populate(t, 3, 4)
	f.awaitHead(t, v)
	r, err := OpenReader(t.Context(), f.path())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for range 3 {
		f.checkFolds(t, r, subs)
		status, err := r.Status(t.Context())
		if err != nil || status[0].Position != v.Accounts().Position() || status[0].Lag != -1 {
			t.Errorf("Status = %+v, %v", status, err)
		}
		// The other process replaces the tables.
		if err := v.Rebuild(t.Context(), AccountsView, nil); err != nil {
			t.Fatal(err)
		}
		f.change(t, subs[0], 1)
		f.awaitHead(t, v)
	}
	if err := r.Rebuild(t.Context(), AccountsView, nil); err == nil {
		t.Error("Rebuild by a reader = nil")
	}
}

func TestBackup(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	v := f.open(t)
	run(t, v)
	f.populate(t, 3, 4)
	f.awaitHead(t, v)
	dest := filepath.Join(t.TempDir(), "copy.db")
	if err := v.Backup(t.Context(), dest); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(dump(t, f.path()), dump(t, dest)); diff != "" {
		t.Errorf("(-live +copy):\n%s", diff)
	}
	if err := v.Backup(t.Context(), dest); err == nil {
		t.Error("Backup over a file = nil")
	}
	c, err := Open(t.Context(), Config{Path: dest, Log: f.log, Codec: domain.Codec{Keys: f.keys}})
	if err != nil {
		t.Fatalf("the copy does not open: %v", err)
	}
	c.Close()
}

// TestOlderFile checks that a file of a version that did not have one of the
// views can be read.
func TestOlderFile(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	v := f.open(t)
	if _, err := v.write.Exec(`DELETE FROM views WHERE name = ?`, SearchView); err != nil {
		t.Fatal(err)
	}
	v.Close()
	r, err := OpenReader(t.Context(), f.path())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if status, err := r.Status(t.Context()); err != nil || len(status) != 4 || status[3].Name != SearchView || status[3].Position != 0 {
		t.Errorf("Status = %+v, %v", status, err)
	}
}
