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
		if err := v.all[0].live.apply(t.Context(), recs[:n], nil); err != nil {
			t.Fatal(err)
		}
		// What was applied is not applied again.
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
