package projections

import (
	"context"
	"database/sql"
	"errors"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"accountledger/eventstore"
)

// TestFollow checks that the account view has what the streams have, and has the
// same rows after the file was deleted and rebuilt.
func TestFollow(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	v := f.open(t)
	stop := run(t, v)
	subs := f.populate(t, 8, 10)
	f.awaitHead(t, v)
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
	f.awaitHead(t, v)
	if diff := cmp.Diff(live, dump(t, f.path())); diff != "" {
		t.Errorf("(-live +rebuilt):\n%s", diff)
	}
}

// TestBatches checks that the rows do not depend on how the log is divided into
// batches, nor on restarts between them.
func TestBatches(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	subs := f.populate(t, 4, 10)
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
		if err := v.all[0].live.apply(t.Context(), recs[:n], nil); err != nil {
			t.Fatal(err)
		}
		// A batch that was applied before is skipped.
		if err := v.all[0].live.apply(t.Context(), recs[:n], nil); err != nil {
			t.Fatal(err)
		}
		recs = recs[n:]
		if rand.IntN(3) == 0 {
			v.Close()
			v = f.open(t)
		}
	}
	f.checkFolds(t, v, subs)
	if err := v.all[0].live.apply(t.Context(), []eventstore.Recorded{{Position: head + 2}}, nil); err == nil {
		t.Error("apply accepted records with a gap in their positions")
	}
}

// TestFailedCommit checks that a batch that fails after writing its rows leaves
// no trace, and that the runner repeats it.
func TestFailedCommit(t *testing.T) {
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
		BEGIN SELECT RAISE(ABORT, 'test'); END`)
	run(t, v)
	var subs []string
	for range 5 {
		exec(`INSERT INTO failing VALUES (1)`)
		subs = append(subs, f.populate(t, 2, 3)...)
		for _, sub := range subs {
			f.change(t, sub, 0)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		head, _ := f.log.Head(ctx)
		if err := v.Await(ctx, AccountsView, head); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Await while writing fails = %v, want %v", err, context.DeadlineExceeded)
		}
		cancel()
		exec(`DELETE FROM failing`)
		f.awaitHead(t, v)
		f.checkFolds(t, v, subs)
	}
	if status, err := v.Status(t.Context()); err != nil || len(status[0].Parked) > 0 {
		t.Errorf("Status = %+v, %v, want no stream parked for an error of the database", status, err)
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
		t.Error("Await of an unknown view = nil")
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
	// Close ends a running Await.
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

// TestReadYourWrites checks that a query after Await sees the write.
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

// until polls until ok returns true, for conditions that have no signal.
func until(t *testing.T, ok func() bool) {
	t.Helper()
	tick, timeout := time.NewTicker(time.Millisecond), time.After(2*time.Minute)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatal("the condition does not become true")
		}
	}
}

// TestConfigurationIsNotOpened checks that the account view skips events of
// other streams without decoding them.
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

// TestRunEnds checks that Run returns nil when its context is canceled, whatever
// the cause, and an error when the log is closed.
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
