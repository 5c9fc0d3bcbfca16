package projections

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/eventstore/seal"
	"accountledger/projections/projectionstest"
)

// generations counts the account view's generations and their tables.
func generations(t *testing.T, v *Views) (rows, tables int) {
	t.Helper()
	err := v.read.QueryRow(`SELECT (SELECT count(*) FROM views WHERE name = 'accounts'), (SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name LIKE 'accounts%')`).Scan(&rows, &tables)
	if err != nil {
		t.Fatal(err)
	}
	return rows, tables
}

// TestRebuild checks that a rebuilt view equals the live one byte for byte, while
// Run runs and without it, and that one generation remains.
func TestRebuild(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	subs := f.populate(t, 8, 10)
	erase(t, f, subs[3])
	f.append(t, "webhook-x", eventstore.NoStream, "webhook.deleted.v1", `{"meta":{},"data":{}}`)
	v := f.open(t)
	stop := run(t, v)
	head := f.awaitHead(t, v)
	want := dump(t, f.path())
	for i := range 4 {
		if i == 2 {
			stop()
		}
		var last, total int64
		err := v.Rebuild(t.Context(), AccountsView, func(d, n int64) {
			if d < last {
				t.Errorf("progress went from %d to %d", last, d)
			}
			last, total = d, n
		})
		if err != nil {
			t.Fatal(err)
		}
		if last != int64(head) || total != int64(head) {
			t.Errorf("progress ended with %d of %d, want %d", last, total, head)
		}
		if diff := cmp.Diff(want, dump(t, f.path())); diff != "" {
			t.Errorf("(-live +rebuilt):\n%s", diff)
		}
		if rows, tables := generations(t, v); rows != 1 || tables != 1 {
			t.Errorf("%d generations with %d tables, want one", rows, tables)
		}
	}
	// Without Run the view may be behind; a rebuild brings it to the head.
	f.change(t, subs[0], 1)
	if err := v.Rebuild(t.Context(), AccountsView, nil); err != nil {
		t.Fatal(err)
	}
	f.checkFolds(t, v, subs)
	if got := v.Accounts().Position(); got != head+1 {
		t.Errorf("Position = %d, want %d", got, head+1)
	}
}

// TestRebuildUnderLoad checks that writes and read-your-writes work during
// repeated rebuilds, and that no reader misses an account.
func TestRebuildUnderLoad(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	v := f.open(t)
	run(t, v)
	subs := f.populate(t, 20, 2)
	f.awaitHead(t, v)
	var done atomic.Bool
	var busy sync.WaitGroup
	work := func(step func(n int) error) {
		busy.Go(func() {
			for n := 0; !done.Load(); n++ {
				if err := step(n); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 2 {
		work(func(n int) error {
			_, err := v.Accounts().Get(t.Context(), subs[n%len(subs)])
			return err
		})
	}
	work(func(int) error {
		_, total, rows, err := v.Accounts().All(t.Context())
		if err != nil {
			return err
		}
		n := int64(0)
		for _, err := range rows {
			if err != nil {
				return err
			}
			n++
		}
		if n != total || n < int64(len(subs)) {
			return fmt.Errorf("All = %d rows of %d", n, total)
		}
		return nil
	})
	work(func(n int) error {
		a := f.create(t, fmt.Sprintf("new%d@example.org", n))
		await(t, v, a.Position)
		row, err := v.Accounts().Lookup(t.Context(), domain.Candidates("", "", fmt.Sprintf("NEW%d@example.org", n)))
		if err == nil && row.Sub != a.Sub {
			err = fmt.Errorf("Lookup = %s, want %s", row.Sub, a.Sub)
		}
		return err
	})
	for range 5 {
		if err := v.Rebuild(t.Context(), AccountsView, nil); err != nil {
			t.Error(err)
		}
	}
	done.Store(true)
	busy.Wait()
	f.awaitHead(t, v)
	f.checkFolds(t, v, subs)
	live := dump(t, f.path())
	if err := v.Rebuild(t.Context(), AccountsView, nil); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(live, dump(t, f.path())); diff != "" {
		t.Errorf("(-live +rebuilt):\n%s", diff)
	}
}

// TestRebuildInterrupted checks that a rebuild that ends early, by an error or
// with the process, leaves the live view unchanged.
func TestRebuildInterrupted(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	subs := f.populate(t, 5, 3)
	v := f.open(t)
	stop := run(t, v)
	f.awaitHead(t, v)
	want := dump(t, f.path())

	ctx, cancel := context.WithCancel(t.Context())
	err := v.Rebuild(ctx, AccountsView, func(_, _ int64) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Rebuild, canceled = %v", err)
	}
	if got := dump(t, f.path()); got != want {
		t.Errorf("(-before +after):\n%s", cmp.Diff(want, got))
	}

	// A process that is killed leaves an unfinished generation.
	stop()
	if _, err := v.all[0].create(t.Context(), StateRebuilding); err != nil {
		t.Fatal(err)
	}
	if status, err := v.Status(t.Context()); err != nil || status[0].State != StateRebuilding {
		t.Errorf("Status = %+v, %v, want a view that is rebuilding", status, err)
	}
	v.Close()
	v = f.open(t)
	if status, err := v.Status(t.Context()); err != nil || status[0].State != StateLive {
		t.Errorf("Status = %+v, %v, want a live view", status, err)
	}
	f.checkFolds(t, v, subs)
	run(t, v)
	if err := v.Rebuild(t.Context(), AccountsView, nil); err != nil {
		t.Fatal(err)
	}
	if rows, tables := generations(t, v); rows != 1 || tables != 1 {
		t.Errorf("%d generations with %d tables, want one", rows, tables)
	}
	if diff := cmp.Diff(want, dump(t, f.path())); diff != "" {
		t.Errorf("(-before +after):\n%s", diff)
	}
}

// TestPurgeUnfinished checks that Purge removes an unfinished generation that
// the failed rebuild could not mark as dropped.
func TestPurgeUnfinished(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	subs := f.populate(t, 2, 1)
	v := f.open(t)
	run(t, v)
	head := f.awaitHead(t, v)
	if err := v.claimBuilder(t.Context()); err != nil {
		t.Fatal(err)
	}
	g, err := v.all[0].create(t.Context(), StateRebuilding)
	if err == nil {
		err = errors.Join(g.catchUp(t.Context(), head), g.writer.close())
	}
	v.releaseBuilder()
	if err != nil {
		t.Fatal(err)
	}
	p := erase(t, f, subs[0])
	if err := v.Purge(t.Context(), domain.AccountStream(subs[0]), p); err != nil {
		t.Fatal(err)
	}
	if rows, tables := generations(t, v); rows != 1 || tables != 1 {
		t.Errorf("%d generations with %d tables after Purge, want only the live one", rows, tables)
	}
}

// TestRebuildFailing checks that an error of the key store ends a rebuild with an
// error and parks no stream.
func TestRebuildFailing(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	projectionstest.History{Accounts: 400, Events: 400}.Write(t, f.log, f.keys)
	v := f.open(t)
	f.keys.Close() // from now on only cached keys can be read
	keys, err := seal.Open(t.Context(), seal.Config{Path: filepath.Join(f.dir, "keys.db"), Master: f.master})
	if err != nil {
		t.Fatal(err)
	}
	v.codec.Keys = keys
	keys.Close()
	if err := v.Rebuild(t.Context(), AccountsView, nil); err == nil {
		t.Error("Rebuild without keys = nil")
	}
	if status, err := v.Status(t.Context()); err != nil || len(status[0].Parked) > 0 || status[0].Position != 0 {
		t.Errorf("%d parked at %d, %v, want an unchanged view", len(status[0].Parked), status[0].Position, err)
	}
}

// TestRebuildLosing checks that a new generation with fewer accounts than the
// live one does not replace it, unless the missing accounts are parked.
func TestRebuildLosing(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	subs := f.populate(t, 3, 1)
	v := f.open(t)
	run(t, v)
	f.awaitHead(t, v)
	stream := domain.AccountStream(subs[1])
	f.log.rewrite(func(rec *eventstore.Recorded) {
		if rec.Stream == stream {
			rec.Stream = "webhook-x"
		}
	})
	if err := v.Rebuild(t.Context(), AccountsView, nil); err == nil || !strings.Contains(err.Error(), "not switched") {
		t.Errorf("Rebuild = %v, want a refusal", err)
	}
	if _, err := v.Accounts().Get(t.Context(), subs[1]); err != nil {
		t.Errorf("Get = %v", err)
	}
	f.log.rewrite(func(rec *eventstore.Recorded) {
		if rec.Stream == stream {
			rec.Type = "account.teleported.v1"
		}
	})
	if err := v.Rebuild(t.Context(), AccountsView, nil); err != nil {
		t.Fatal(err)
	}
	f.log.rewrite(func(*eventstore.Recorded) {})
	f.untilParked(t, v, func(all []Parked) bool { return len(all) == 0 })
	f.checkFolds(t, v, subs)
}

// TestFarBehind checks that a view with the whole log still to apply is built
// stream by stream, and that a view of another version is rebuilt.
func TestFarBehind(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	projectionstest.History{Accounts: 1000, Events: 9000, Interleaved: true}.Write(t, f.log, f.keys)
	v := f.open(t)
	stop := run(t, v)
	f.awaitHead(t, v)
	want := dump(t, f.path())
	if n := strings.Count(want, "@"); n < 2000 {
		t.Errorf("%d addresses in 1000 accounts", n)
	}
	stop()
	if _, err := v.write.Exec(`UPDATE views SET version = 0; UPDATE accounts_2 SET json = x'7b7d'`); err != nil {
		t.Fatal(err) // generation 2, because a rebuild replaced the empty first one
	}
	v.Close()

	v = f.open(t)
	run(t, v)
	until(t, func() bool { return dump(t, f.path()) == want })

	// The same in the order of the log, from a store that is no StreamReader.
	w, err := Open(t.Context(), Config{Path: f.path() + "2", Log: struct{ eventstore.Store }{f.log}, Codec: domain.Codec{Keys: f.keys}})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := w.Rebuild(t.Context(), AccountsView, nil); err != nil {
		t.Fatal(err)
	}
	if dump(t, w.path) != want {
		t.Error("built in the order of the log, the view differs from one built stream by stream")
	}
}

// TestRebuildTampered checks that no view is built from a log that does not prove
// its events: neither a rebuild nor the first build, of a small and a large log.
func TestRebuildTampered(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	subs := f.populate(t, 3, 3)
	v := f.open(t)
	stop := run(t, v)
	f.awaitHead(t, v)
	want := dump(t, f.path())
	f.log.tampered.Store(true)
	if err := v.Rebuild(t.Context(), AccountsView, nil); !errors.Is(err, eventstore.ErrTampered) {
		t.Errorf("Rebuild = %v, want ErrTampered", err)
	}
	if got := dump(t, f.path()); got != want {
		t.Errorf("(-before +after):\n%s", cmp.Diff(want, got))
	}
	if status, err := v.Status(t.Context()); err != nil || status[0].State != StateLive {
		t.Errorf("Status = %+v, %v, want a live view", status, err)
	}
	f.change(t, subs[0], 1)
	f.awaitHead(t, v) // the live view goes on
	stop()
	for _, accounts := range []int{0, 9000} {
		if accounts > 0 {
			projectionstest.History{Accounts: accounts, Events: accounts}.Write(t, f.log, f.keys)
		}
		fresh, err := Open(t.Context(), Config{Path: fmt.Sprint(f.path(), accounts), Log: f.log, Codec: domain.Codec{Keys: f.keys}})
		if err != nil {
			t.Fatal(err)
		}
		if err := fresh.Run(t.Context()); !errors.Is(err, eventstore.ErrTampered) {
			t.Errorf("Run with %d accounts = %v, want ErrTampered", accounts, err)
		}
		status, err := fresh.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range status {
			if s.Position != 0 || s.State != StateLive {
				t.Errorf("%s is at %d, %s, want nothing applied", s.Name, s.Position, s.State)
			}
		}
		fresh.Close()
	}
}

// TestFirstProof checks that the views of an empty file share one proof, and that
// a rebuild makes its own.
func TestFirstProof(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.populate(t, 3, 3)
	v := f.open(t)
	stop := run(t, v)
	f.awaitHead(t, v)
	if n := f.log.proofs.Load(); n != 1 {
		t.Errorf("%d proofs at the first start, want 1", n)
	}
	if err := v.Rebuild(t.Context(), AccountsView, nil); err != nil {
		t.Fatal(err)
	}
	if n := f.log.proofs.Load(); n != 2 {
		t.Errorf("%d proofs after a rebuild, want 2", n)
	}
	stop()
	v.Close()
	f.fill(t, "")
	if n := f.log.proofs.Load(); n != 2 {
		t.Errorf("%d proofs after another start, want 2", n)
	}
}

// TestRebuildNotPrepared checks that a rebuild that cannot prepare its statements
// does not leave the view in the state rebuilding.
func TestRebuildNotPrepared(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	v := f.open(t)
	w := v.all[0]
	prepare := w.writer
	w.writer = func(context.Context, int64) (writer, error) { return writer{}, errors.New("cannot prepare") }
	if err := v.Rebuild(t.Context(), AccountsView, nil); err == nil {
		t.Error("Rebuild = nil")
	}
	if status, err := v.Status(t.Context()); err != nil || status[0].State != StateLive {
		t.Errorf("Status = %+v, %v, want a live view", status, err)
	}
	w.writer = prepare
}

// TestQueriesDuringRebuild checks that queries of the small views do not meet the
// tables of a generation that a rebuild has dropped.
func TestQueriesDuringRebuild(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	subs := f.populate(t, 3, 1)
	v := f.open(t)
	run(t, v)
	f.awaitHead(t, v)
	var done atomic.Bool
	var busy sync.WaitGroup
	for range 2 {
		busy.Go(func() {
			for !done.Load() {
				_, open := v.Erasures().Open(t.Context(), subs[0])
				_, erasures := v.Erasures().Next(t.Context(), 0, 10)
				_, schedules := v.Schedules().Next(t.Context(), Due{}, 10)
				if err := errors.Join(open, erasures, schedules); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 20 {
		if err := errors.Join(v.Rebuild(t.Context(), ErasuresView, nil), v.Rebuild(t.Context(), SchedulesView, nil)); err != nil {
			t.Error(err)
		}
	}
	done.Store(true)
	busy.Wait()
}
