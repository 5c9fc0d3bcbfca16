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
		{"older layout", sqlFile(`PRAGMA application_id = 0x414c5657; CREATE TABLE old (x)`), false},
		{"first page damaged", damage(100, 4096), false},
		{"truncated", good[:4096], false},
		{"newer version", sqlFile(`PRAGMA application_id = 0x414c5657; PRAGMA user_version = 2; CREATE TABLE newer (x)`), true},
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

// TestAnotherLog checks that views start over if they were built from another
// log, as after an operator has restored an older copy.
func TestAnotherLog(t *testing.T) {
	t.Parallel()
	f, g := newFixture(t), newFixture(t)
	f.populate(t, 3, 2)
	v := f.open(t)
	stop := run(t, v)
	f.awaitHead(t, v)
	stop()
	v.Close()
	subs := g.populate(t, 3, 3) // longer
	g.dir = f.dir
	v = g.open(t)
	stop = run(t, v)
	g.untilLive(t, v, subs)
	want := dump(t, v.path)
	stop()
	v.Close()

	h := newFixture(t)
	subs = h.populate(t, 2, 1) // shorter
	h.dir = f.dir
	v = h.open(t)
	run(t, v)
	h.untilLive(t, v, subs)
	if dump(t, v.path) == want {
		t.Error("the view still has the rows of the other log")
	}
}

func (f *fixture) untilLive(t *testing.T, v *Views, subs []string) {
	t.Helper()
	until(t, func() bool {
		status, err := v.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, err = v.Accounts().Get(t.Context(), subs[0])
		return err == nil && status[0].Position == status[0].Head
	})
	f.checkFolds(t, v, subs)
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
