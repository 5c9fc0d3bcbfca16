package projections

import (
	"context"
	"database/sql"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"accountledger/domain"
	"accountledger/eventstore"
)

// TestFollow holds that a view says what the streams say, and says the same
// when the file is deleted and it is made again.
func TestFollow(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	v := f.open(t)
	stop := run(t, v)
	subs := f.live(t, 8, 10)
	f.caughtUp(t, v)
	f.checkFolds(t, v, subs)
	live := dump(t, f.path())
	if err := v.Check(t.Context()); err != nil {
		t.Error(err)
	}

	stop()
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(f.path()); err != nil {
		t.Fatal(err)
	}
	v = f.open(t)
	run(t, v)
	f.caughtUp(t, v)
	if diff := cmp.Diff(live, dump(t, f.path())); diff != "" {
		t.Errorf("(-live +made again):\n%s", diff)
	}
}

// TestPieces holds that it does not matter how the log is cut into batches,
// nor how often the program starts afresh between two.
func TestPieces(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	subs := f.live(t, 4, 10)
	var recs []eventstore.Recorded
	head, _ := f.log.Head(t.Context())
	for page, err := range f.log.Subscribe(t.Context(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		if recs = append(recs, page...); len(recs) == int(head) {
			break
		}
	}
	v := f.open(t)
	for len(recs) > 0 {
		n := 1 + rand.IntN(min(len(recs), 9))
		if err := v.all[0].live.apply(t.Context(), recs[:n]); err != nil {
			t.Fatal(err)
		}
		// What was applied is not applied again.
		if err := v.all[0].live.apply(t.Context(), recs[:n]); err != nil {
			t.Fatal(err)
		}
		recs = recs[n:]
		if rand.IntN(3) == 0 {
			v.Close()
			v = f.open(t)
		}
	}
	f.checkFolds(t, v, subs)
	if err := v.all[0].live.apply(t.Context(), []eventstore.Recorded{{Position: head + 2}}); err == nil {
		t.Error("a hole in the log was passed over")
	}
}

// TestKilled holds that a batch that fails when its rows have been written
// leaves nothing behind, and that the runner does it again.
func TestKilled(t *testing.T) {
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
	exec(`CREATE TRIGGER fail BEFORE UPDATE OF position ON views WHEN EXISTS (SELECT * FROM failing)
		BEGIN SELECT RAISE(ABORT, 'killed'); END`)
	run(t, v)
	var subs []string
	for range 5 {
		exec(`INSERT INTO failing VALUES (1)`)
		subs = append(subs, f.live(t, 2, 3)...)
		for _, sub := range subs {
			f.change(t, sub, 0)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		head, _ := f.log.Head(ctx)
		if err := v.Await(ctx, AccountsView, head); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Await while nothing can be written = %v", err)
		}
		cancel()
		exec(`DELETE FROM failing`)
		f.caughtUp(t, v)
		f.checkFolds(t, v, subs)
	}
	if status, err := v.Status(t.Context()); err != nil || len(status[0].Parked) > 0 {
		t.Errorf("Status = %+v, %v: nobody parks for what the database did", status, err)
	}
}

func TestAwait(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	v := f.open(t)
	if err := v.Await(t.Context(), AccountsView, 0); err != nil {
		t.Errorf("Await(0) = %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	waiting := make(chan error, 1)
	go func() { waiting <- v.Await(ctx, AccountsView, 1) }()
	cancel()
	if err := <-waiting; !errors.Is(err, context.Canceled) {
		t.Errorf("Await, canceled = %v", err)
	}
	if err := v.Await(t.Context(), "balances", 0); err == nil {
		t.Error("Await of a view there is not = nil")
	}

	const waiters = 50
	for range waiters {
		go func() { waiting <- v.Await(t.Context(), AccountsView, 3) }()
	}
	run(t, v)
	for range 3 {
		f.create(t, uuid.NewString()+"@example.org")
	}
	for range waiters {
		if err := <-waiting; err != nil {
			t.Errorf("Await = %v", err)
		}
	}
	if got := v.Accounts().Position(); got != 3 {
		t.Errorf("Position = %d, want 3", got)
	}
	if got := v.Accounts().Lag(); got != 0 {
		t.Errorf("Lag = %d, want 0", got)
	}

	go func() { waiting <- v.Await(t.Context(), AccountsView, 4) }()
	// Of a closed file nobody waits for anything.
	w := f.open(t)
	go func() { waiting <- w.Await(t.Context(), AccountsView, 4) }()
	w.Close()
	if err := <-waiting; !errors.Is(err, ErrClosed) {
		t.Errorf("Await, closed = %v", err)
	}
	f.create(t, "last@example.org")
	if err := <-waiting; err != nil {
		t.Errorf("Await = %v", err)
	}
}

// TestReadYourWrites holds that who awaits a write finds it.
func TestReadYourWrites(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	v := f.open(t)
	run(t, v)
	failed := make(chan error, 8)
	for range cap(failed) {
		go func() {
			var err error
			for range 20 {
				a := f.create(t, uuid.NewString()+"@example.org")
				await(t, v, a.Position)
				if _, e := v.Accounts().Get(t.Context(), a.Sub); e != nil {
					err = e
				}
			}
			failed <- err
		}()
	}
	for range cap(failed) {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
}

// TestParking holds that one account whose event cannot be applied waits,
// visibly, that the others do not, and that it goes on when it can.
func TestParking(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		warp func(*eventstore.Recorded) // of the second event of one account
		want string                     // in the error
	}{
		{"unknown type", func(rec *eventstore.Recorded) {
			rec.Type, rec.Sealed, rec.KeyID = "account.teleported.v1", nil, eventstore.KeyID{} // the seal is of the type, too
		}, "unknown event type"},
		{"another account's seal", func(rec *eventstore.Recorded) { rec.Sealed = []byte("xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx") }, "open"},
		{"malformed", func(rec *eventstore.Recorded) { rec.Clear = []byte(`{"meta":`) }, "decode"},
		{"of something else", func(rec *eventstore.Recorded) {
			rec.Type, rec.Clear, rec.Sealed = "webhook.deleted.v1", []byte(`{"meta":{},"data":{}}`), nil
		}, "panic: domain: webhook.deleted.v1 does not belong"},
		{"out of order", func(rec *eventstore.Recorded) { rec.Revision, rec.Sealed, rec.KeyID = 7, nil, eventstore.KeyID{} }, "revision 7 follows 0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			poisoned, other := f.create(t, "poisoned@example.org"), f.create(t, "other@example.org")
			f.log.warp(func(rec *eventstore.Recorded) {
				if rec.Stream == domain.AccountStream(poisoned.Sub) && rec.Revision == 1 {
					tt.warp(rec)
				}
			})
			v := f.open(t)
			stop := run(t, v)
			for n := range 5 {
				f.change(t, poisoned.Sub, n)
				f.change(t, other.Sub, n)
			}
			head := f.caughtUp(t, v)
			f.checkFolds(t, v, []string{other.Sub})
			row, err := v.Accounts().Get(t.Context(), poisoned.Sub)
			if err != nil || row.Revision != 0 {
				t.Errorf("the parked account is at revision %d, %v, want 0", row.Revision, err)
			}
			status, err := v.Status(t.Context())
			if err != nil || len(status[0].Parked) != 1 || status[0].Lag != 0 || status[0].Position != head {
				t.Fatalf("Status = %+v, %v", status, err)
			}
			p := status[0].Parked[0]
			if p.Stream != domain.AccountStream(poisoned.Sub) || p.Revision != 1 || p.Position != 3 ||
				!strings.Contains(p.Error, tt.want) || strings.Contains(p.Error, "example.org") || p.Attempts < 1 || p.Since.IsZero() {
				t.Errorf("Parked = %+v, want revision 1 with an error about %q", p, tt.want)
			}

			// It stays parked over a restart, and while it fails.
			stop()
			v.Close()
			v = f.open(t)
			run(t, v)
			f.untilParked(t, v, func(all []Parked) bool { return len(all) == 1 && all[0].Attempts > p.Attempts+2 })
			f.change(t, other.Sub, 0)
			f.caughtUp(t, v)
			f.checkFolds(t, v, []string{other.Sub})

			f.log.warp(func(*eventstore.Recorded) {}) // a program that knows the event
			f.untilParked(t, v, func(all []Parked) bool { return len(all) == 0 })
			f.checkFolds(t, v, []string{poisoned.Sub, other.Sub})
			f.change(t, poisoned.Sub, 1)
			f.caughtUp(t, v)
			f.checkFolds(t, v, []string{poisoned.Sub, other.Sub})
		})
	}
}

// untilParked waits until the parked streams are as ok wants them.
func (f *fixture) untilParked(t *testing.T, v *Views, ok func([]Parked) bool) {
	t.Helper()
	until(t, func() bool {
		status, err := v.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return ok(status[0].Parked)
	})
}

// until asks again until ok, about things that the views tell nobody of.
func until(t *testing.T, ok func() bool) {
	t.Helper()
	again, late := time.NewTicker(time.Millisecond), time.After(2*time.Minute)
	defer again.Stop()
	for !ok() {
		select {
		case <-again.C:
		case <-late:
			t.Fatal("it does not happen")
		}
	}
}

// TestParkedIdentifiers holds that an account that waits takes no identifier
// from the account that has it by now.
func TestParkedIdentifiers(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	v := f.open(t)
	a := f.create(t, "one@example.org")
	f.log.warp(func(rec *eventstore.Recorded) {
		if rec.Stream == domain.AccountStream(a.Sub) && rec.Revision == 1 {
			rec.Type = "account.teleported.v1"
		}
	})
	// In one batch with a's creation, then again by rebuilding.
	f.execute(t, a.Sub, domain.UpdateProfile{Patch: []byte(`{"email":"two@example.org"}`)})
	b := f.create(t, "one@example.org")
	run(t, v)
	for range 2 {
		f.caughtUp(t, v)
		for email, want := range map[string]string{"one@example.org": b.Sub, "two@example.org": ""} {
			row, err := v.Accounts().Lookup(t.Context(), domain.Candidates(domain.KindEmail, "", email))
			if row.Sub != want || (want == "") != errors.Is(err, ErrNotFound) {
				t.Errorf("Lookup(%s) = %s, %v, want %s", email, row.Sub, err, want)
			}
		}
		if err := v.Rebuild(t.Context(), AccountsView, nil); err != nil {
			t.Fatal(err)
		}
	}
	// Meanwhile b gives it back to a, whose row still says it has had it all along.
	f.execute(t, b.Sub, domain.UpdateProfile{Patch: []byte(`{"email":"three@example.org"}`)})
	f.execute(t, a.Sub, domain.UpdateProfile{Patch: []byte(`{"email":"one@example.org"}`)})
	f.caughtUp(t, v)
	f.log.warp(func(*eventstore.Recorded) {})
	f.untilParked(t, v, func(all []Parked) bool { return len(all) == 0 })
	f.checkFolds(t, v, []string{a.Sub, b.Sub})
}

// TestConfigurationIsNotOpened holds that the account view passes over what
// is not an account's.
func TestConfigurationIsNotOpened(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	p := f.append(t, "webhook-x", eventstore.NoStream, "webhook.invented.v9", `not even JSON`)
	v := f.open(t)
	run(t, v)
	await(t, v, p)
	if status, err := v.Status(t.Context()); err != nil || len(status[0].Parked) > 0 {
		t.Errorf("Status = %+v, %v", status, err)
	}
}

// TestFile holds which files are opened, made new and refused.
func TestFile(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	subs := f.live(t, 3, 2)
	v := f.open(t)
	stop := run(t, v)
	f.caughtUp(t, v)
	want := dump(t, f.path())
	stop()
	v.Close()
	if info, err := os.Stat(f.path()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode = %v, %v: others may not read it", info.Mode(), err)
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
		{"whole", good, false},
		{"empty", []byte{}, false},
		{"of an older layout", sqlFile(`PRAGMA application_id = 0x414c5657; CREATE TABLE old (x)`), false},
		{"first page damaged", damage(100, 4096), false},
		{"cut off", good[:4096], false},
		{"of a newer program", sqlFile(`PRAGMA application_id = 0x414c5657; PRAGMA user_version = 2; CREATE TABLE newer (x)`), true},
		{"another application's", sqlFile(`PRAGMA application_id = 7; CREATE TABLE foreign_table (x)`), true},
		{"nobody's", sqlFile(`CREATE TABLE notes (x)`), true},
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
			f.caughtUp(t, v)
			f.checkFolds(t, v, subs)
			if diff := cmp.Diff(want, dump(t, path)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestDamagedWhileRunning holds that a damaged file ends Run, and that the
// next start makes it new.
func TestDamagedWhileRunning(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	subs := f.live(t, 50, 1)
	v := f.open(t)
	stop := run(t, v)
	f.caughtUp(t, v)
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
		t.Errorf("Run = %v, want that the file is damaged", err)
	}
	v.Close()
	v = f.open(t)
	run(t, v)
	f.caughtUp(t, v)
	f.checkFolds(t, v, subs)
}

// TestAnotherLog holds that views of a log that is no longer there, because
// an older copy was put in its place, start over.
func TestAnotherLog(t *testing.T) {
	t.Parallel()
	f, g := newFixture(t), newFixture(t)
	f.live(t, 3, 2)
	v := f.open(t)
	stop := run(t, v)
	f.caughtUp(t, v)
	stop()
	v.Close()
	subs := g.live(t, 3, 3) // longer
	g.dir = f.dir
	v = g.open(t)
	stop = run(t, v)
	g.untilLive(t, v, subs)
	want := dump(t, v.path)
	stop()
	v.Close()

	h := newFixture(t)
	subs = h.live(t, 2, 1) // shorter
	h.dir = f.dir
	v = h.open(t)
	run(t, v)
	h.untilLive(t, v, subs)
	if dump(t, v.path) == want {
		t.Error("the view is still of the other log")
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

// TestRunEnds holds how Run ends: well when it is told to, whatever the cause,
// and with an error when there is no log any more.
func TestRunEnds(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	v := f.open(t)
	done := make(chan error, 1)
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() { done <- v.Run(ctx) }()
	await(t, v, f.create(t, "a@example.org").Position)
	cancel(errors.New("a signal"))
	if err := <-done; err != nil {
		t.Errorf("Run, canceled = %v", err)
	}
	go func() { done <- v.Run(t.Context()) }()
	await(t, v, f.create(t, "b@example.org").Position)
	f.log.Close()
	if err := <-done; !errors.Is(err, eventstore.ErrClosed) {
		t.Errorf("Run on a closed log = %v", err)
	}
}

// TestReader holds what a second process sees beside the one that runs.
func TestReader(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	if _, err := OpenReader(t.Context(), f.path()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("OpenReader of no file = %v", err)
	}
	v := f.open(t)
	run(t, v)
	subs := f.live(t, 3, 4)
	f.caughtUp(t, v)
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
		// Its tables are replaced under its feet.
		if err := v.Rebuild(t.Context(), AccountsView, nil); err != nil {
			t.Fatal(err)
		}
		f.change(t, subs[0], 1)
		f.caughtUp(t, v)
	}
	if err := r.Rebuild(t.Context(), AccountsView, nil); err == nil {
		t.Error("a reader rebuilt")
	}
}

func TestBackup(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	v := f.open(t)
	run(t, v)
	f.live(t, 3, 4)
	f.caughtUp(t, v)
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
