package sqlite_test

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"golang.org/x/mod/sumdb/note"

	"accountledger/eventstore"
	"accountledger/eventstore/sqlite"
)

// TestMain lets TestLock run the test binary as a second process.
func TestMain(m *testing.M) {
	if dir := os.Getenv("SQLITE_TEST_OPEN"); dir != "" {
		os.Exit(openAndWait(dir))
	}
	os.Exit(m.Run())
}

// openAndWait opens the log in dir, prints the outcome, and closes the log when
// its standard input ends.
func openAndWait(dir string) int {
	signer, _, err := key()
	if err != nil {
		fmt.Println(err)
		return 1
	}
	s, err := sqlite.Open(context.Background(), sqlite.Config{Dir: dir, Signer: signer, Vouch: vouch})
	if errors.Is(err, sqlite.ErrLocked) {
		fmt.Println("locked")
		return 3
	} else if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("open")
	io.Copy(io.Discard, os.Stdin)
	if s.Close() != nil {
		return 1
	}
	return 0
}

// TestLock checks that a second writer on a directory is refused, in the same
// and in another process, until the first has closed the log or was killed.
func TestLock(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	signer, _ := newSigner(t)
	s := open(t, sqlite.Config{Dir: dir, Signer: signer, Vouch: vouch})
	if _, err := sqlite.Open(t.Context(), sqlite.Config{Dir: dir, Signer: signer, Vouch: vouch}); !errors.Is(err, sqlite.ErrLocked) || !strings.Contains(err.Error(), dir) {
		t.Errorf("second Open = %v, want ErrLocked with the directory", err)
	}
	other := func() *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), "SQLITE_TEST_OPEN="+dir)
		return cmd
	}
	if out, err := other().Output(); string(out) != "locked\n" {
		t.Errorf("a second process printed %q, %v, want locked", out, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	cmd := other()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "open\n" {
		t.Fatalf("after Close, a second process printed %q, %v, want open", line, err)
	}
	if _, err := sqlite.Open(t.Context(), sqlite.Config{Dir: dir, Signer: signer, Vouch: vouch}); !errors.Is(err, sqlite.ErrLocked) {
		t.Errorf("Open beside another process = %v, want ErrLocked", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // returns an error because of the kill
	open(t, sqlite.Config{Dir: dir, Signer: signer, Vouch: vouch})
}

// TestRefusedFiles checks that Open refuses a file that is not this ledger's
// log and does not change it.
func TestRefusedFiles(t *testing.T) {
	t.Parallel()
	signer, _ := newSigner(t)
	execute := func(t *testing.T, path string, statements ...string) {
		db, err := sql.Open("sqlite3", "file:"+path)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		for _, s := range statements {
			if _, err := db.Exec(s); err != nil {
				t.Fatal(err)
			}
		}
	}
	ours := func(t *testing.T, path string) {
		s, err := sqlite.Open(t.Context(), sqlite.Config{Dir: filepath.Dir(path), Signer: signer, Vouch: vouch})
		if err == nil {
			err = s.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name string
		make func(t *testing.T, path string)
		want error
	}{
		{"text", func(t *testing.T, path string) {
			if err := os.WriteFile(path, bytes.Repeat([]byte("not a database\n"), 1000), 0o600); err != nil {
				t.Fatal(err)
			}
		}, sqlite.ErrForeign},
		{"database of another program", func(t *testing.T, path string) {
			execute(t, path, "PRAGMA application_id = 1196444487", "CREATE TABLE t (a)")
		}, sqlite.ErrForeign},
		{"database without an application ID", func(t *testing.T, path string) { execute(t, path, "CREATE TABLE t (a)") }, sqlite.ErrForeign},
		{"newer version", func(t *testing.T, path string) { ours(t, path); execute(t, path, "PRAGMA user_version = 3") }, sqlite.ErrNewer},
		{"log of another ledger", func(t *testing.T, path string) {
			ours(t, path)
			execute(t, path, "UPDATE meta SET origin = 'accountledger/other'")
		}, sqlite.ErrForeign},
		{"last events missing", func(t *testing.T, path string) {
			l := &log{config: sqlite.Config{Dir: filepath.Dir(path), Signer: signer, Vouch: vouch}}
			l.Store = open(t, l.config)
			l.append(t, commit("a", eventstore.NoStream, 10))
			l.Close()
			execute(t, path, "DROP TRIGGER events_delete", "DELETE FROM events WHERE position > 5")
		}, eventstore.ErrTampered},
		{"tiles missing", func(t *testing.T, path string) {
			l := &log{config: sqlite.Config{Dir: filepath.Dir(path), Signer: signer, Vouch: vouch}}
			l.Store = open(t, l.config)
			l.append(t, commit("a", eventstore.NoStream, 300))
			l.Close()
			execute(t, path, "DROP TRIGGER tiles_delete", "DELETE FROM tiles")
		}, eventstore.ErrTampered},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			path := filepath.Join(dir, "log.db")
			tt.make(t, path)
			before, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := sqlite.Open(t.Context(), sqlite.Config{Dir: dir, Signer: signer, Vouch: vouch}); !errors.Is(err, tt.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("Open = %v, want %v", err, tt.want)
			}
			if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
				t.Errorf("Open changed the file (%v)", err)
			}
			// Open released the lock.
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			open(t, sqlite.Config{Dir: dir, Signer: signer, Vouch: vouch})
		})
	}
	if _, err := sqlite.OpenReader(t.Context(), t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("OpenReader of a missing log = %v, want ErrNotExist", err)
	}
}

// TestOpenEmptyDatabase checks that Open completes a creation that a crash
// interrupted.
func TestOpenEmptyDatabase(t *testing.T) {
	t.Parallel()
	signer, _ := newSigner(t)
	dir := t.TempDir()
	db, err := sql.Open("sqlite3", "file:"+filepath.Join(dir, "log.db"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec("PRAGMA journal_mode = WAL; CREATE TABLE t (a); DROP TABLE t"); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, sqlite.Config{Dir: dir, Signer: signer, Vouch: vouch})
}

// TestReadDamaged checks that reading a damaged log fails with ErrCorrupt and
// never skips an event.
func TestReadDamaged(t *testing.T) {
	t.Parallel()
	base := newFixture(t)
	for name, statement := range map[string]string{
		"event deleted":              "DELETE FROM events WHERE position = 300",
		"all but two events deleted": "DELETE FROM events WHERE position BETWEEN 2 AND 699",
		"stream deleted":             "DELETE FROM streams WHERE num = 5",
		"event ID":                   "UPDATE events SET id = x'00' WHERE position = 300",
		"key ID":                     "UPDATE events SET kid = x'00' WHERE position = 300",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := base.copy(t)
			f.tamper(t, statement)
			r, err := sqlite.OpenReader(t.Context(), f.dir)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			for _, err = range r.ReadStream(t.Context(), "account-19", 0) {
			}
			if (name == "event deleted" || name == "key ID" || name == "event ID") && !errors.Is(err, sqlite.ErrCorrupt) {
				t.Errorf("ReadStream = %v, want ErrCorrupt", err)
			}
			next := eventstore.Position(1)
			for page, err := range r.Subscribe(t.Context(), 0) {
				if err != nil {
					if !errors.Is(err, sqlite.ErrCorrupt) {
						t.Errorf("Subscribe = %v, want ErrCorrupt", err)
					}
					return
				}
				for _, rec := range page {
					if rec.Position != next {
						t.Fatalf("Subscribe yielded position %d after %d", rec.Position, next-1)
					}
					next++
				}
				if next > fixtureEvents {
					t.Fatal("Subscribe read a damaged log to its end")
				}
			}
		})
	}
}

// TestReaderBesideWriter checks that a reader can follow, verify, check and copy
// a log while a writer appends to it.
func TestReaderBesideWriter(t *testing.T) {
	t.Parallel()
	l := newLog(t)
	l.config.CheckpointInterval = 5 * time.Millisecond
	l.reopen(t)
	l.append(t, commit("a", eventstore.NoStream, 300))
	r, err := sqlite.OpenReader(t.Context(), l.config.Dir)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()

	const size = 300 + 50*20
	var group sync.WaitGroup
	group.Go(func() {
		for n := range 50 {
			if _, err := l.Append(t.Context(), commit("a", eventstore.Revision(299+20*n), 20)); err != nil {
				t.Error(err)
			}
		}
	})
	group.Go(func() {
		next := eventstore.Position(1)
		for page, err := range r.Subscribe(t.Context(), 0) {
			if err != nil {
				t.Error(err)
				return
			}
			for _, rec := range page {
				if rec.Position != next || rec.Revision != eventstore.Revision(next-1) {
					t.Errorf("event %d has position %d and revision %d", next, rec.Position, rec.Revision)
				}
				next++
			}
			if next > size {
				return
			}
		}
	})
	group.Go(func() {
		for range 5 {
			report, err := r.Verify(t.Context(), sqlite.Trust{Verifiers: []note.Verifier{l.verifier}}, nil)
			if err != nil || !report.OK() {
				t.Errorf("Verify = %+v, %v, want no faults", report, err)
			}
			if problems, err := r.Check(t.Context()); err != nil || len(problems) > 0 {
				t.Errorf("Check = %q, %v, want no findings", problems, err)
			}
		}
	})
	group.Go(func() {
		for n := range 3 {
			before, err := r.Head(t.Context())
			if err != nil {
				t.Error(err)
			}
			dir := filepath.Join(t.TempDir(), fmt.Sprint(n))
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Error(err)
			}
			steps := 0
			if err := r.Backup(t.Context(), filepath.Join(dir, "log.db"), func(done, total int64) {
				if steps++; done > total {
					t.Errorf("progress got %d of %d pages", done, total)
				}
			}); err != nil || steps == 0 {
				t.Errorf("Backup = %v with %d calls of progress", err, steps)
			}
			copied := fixture{dir: dir, verifier: l.verifier}
			if report := copied.verify(t); !report.OK() || report.Events < int64(before) {
				t.Errorf("Verify of a copy made at position %d = %+v, want no faults and at least as many events", before, report)
			}
		}
	})
	group.Wait()
	if head, err := r.Head(t.Context()); err != nil || head != size {
		t.Errorf("Head = %d, %v, want %d", head, err, size)
	}
	var revisions []eventstore.Revision
	for rec, err := range r.ReadStream(t.Context(), "a", size-2) {
		if err != nil {
			t.Fatal(err)
		}
		revisions = append(revisions, rec.Revision)
	}
	if diff := cmp.Diff([]eventstore.Revision{size - 2, size - 1}, revisions); diff != "" {
		t.Error(diff)
	}
}

func TestBackupRefuses(t *testing.T) {
	t.Parallel()
	l := newLog(t)
	l.append(t, commit("a", eventstore.NoStream, 1))
	dest := filepath.Join(t.TempDir(), "copy.db")
	if err := os.WriteFile(dest+".part", []byte("left by a crash"), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := sqlite.OpenReader(t.Context(), l.config.Dir)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := r.Backup(t.Context(), dest, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dest + ".part"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Backup, Stat of the .part file = %v, want ErrNotExist", err)
	}
	if err := r.Backup(t.Context(), dest, nil); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Backup over an existing file = %v, want ErrExist", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Backup(ctx, dest+"2", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Backup with a canceled context = %v, want context.Canceled", err)
	}
	if _, err := os.Stat(dest + "2"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after a failed Backup, Stat of the file = %v, want ErrNotExist", err)
	}
}

// TestCheckFinds checks that Check finds a damaged index and a missing row.
func TestCheckFinds(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.tamper(t,
		"DELETE FROM streams WHERE num = 5",
		"PRAGMA writable_schema = 1",
		"UPDATE sqlite_schema SET sql = 'CREATE UNIQUE INDEX events_stream ON events (stream, time)' WHERE name = 'events_stream'",
	)
	_, problems, err := f.examine(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Join(problems, "\n")
	for _, want := range []string{"events_stream", "refers to a row of streams"} {
		if !strings.Contains(all, want) {
			t.Errorf("Check = %q, want a finding with %q", problems[:min(len(problems), 3)], want)
		}
	}
}

// TestSubscribeBehind checks that a subscriber that falls behind the in-memory
// tail gets events from the file, in pages of limited size, without gaps or
// duplicates.
func TestSubscribeBehind(t *testing.T) {
	t.Parallel()
	l := newLog(t)
	const size = 10_000
	seen := eventstore.Position(0)
	written := 1000
	l.append(t, commit("a", eventstore.NoStream, 1000))
	for page, err := range l.Subscribe(t.Context(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 || len(page) > 512 {
			t.Fatalf("a page has %d events, want 1 to 512", len(page))
		}
		for _, rec := range page {
			if seen++; rec.Position != seen {
				t.Fatalf("Subscribe yielded position %d after %d", rec.Position, seen-1)
			}
		}
		// For each page it reads, two larger commits follow, until the log has
		// size events.
		for n := 0; n < 2 && written < size; n++ {
			written += 1000
			l.append(t, commit("a", eventstore.Revision(written-1000)-1, 1000))
		}
		if seen == size {
			break
		}
		if seen > size {
			t.Fatal("Subscribe yielded more events than were appended")
		}
	}
}

func TestFileIsPrivate(t *testing.T) {
	t.Parallel()
	signer, _ := newSigner(t)
	dir := t.TempDir()
	s := open(t, sqlite.Config{Dir: dir, Signer: signer, Vouch: vouch})
	if _, err := s.Append(t.Context(), creation(1)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"log.db", "log.db-wal", "log.db-shm"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, %v, want 0600", name, info.Mode(), err)
		}
	}
}
