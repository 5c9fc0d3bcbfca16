package sqlite_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"golang.org/x/mod/sumdb/note"

	"accountledger/eventstore"
	"accountledger/eventstore/sqlite"
)

// log is an open store in a directory of its own.
type log struct {
	*sqlite.Store
	config   sqlite.Config
	verifier note.Verifier
}

// newLog opens an empty log that signs no checkpoint by itself, so that every
// transaction is one of the test's.
func newLog(t *testing.T) *log {
	t.Helper()
	signer, verifier := newSigner(t)
	l := &log{config: sqlite.Config{Dir: t.TempDir(), Signer: signer, CheckpointInterval: time.Hour}, verifier: verifier}
	l.Store = open(t, l.config)
	return l
}

func (l *log) reopen(t *testing.T) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l.Store = open(t, l.config)
}

// wantSound fails unless the log has the given size and verifies.
func (l *log) wantSound(t *testing.T, size eventstore.Position) {
	t.Helper()
	if head, err := l.Head(t.Context()); err != nil || head != size {
		t.Errorf("Head = %d, %v, want %d", head, err, size)
	}
	report, err := l.Verify(t.Context(), sqlite.Trust{Verifier: l.verifier, Erasures: []string{erasure}, ErasedKey: erasedKey}, nil)
	if err != nil || !report.OK() || report.Events != int64(size) {
		t.Errorf("Verify = %+v, %v", report, err)
	}
}

func event() eventstore.Event {
	return eventstore.Event{ID: uuid.Must(uuid.NewV7()), Type: "account.changed.v1", Actor: "user:1", Clear: []byte(`{}`)}
}

func commit(stream string, expected eventstore.Revision, events int) eventstore.Commit {
	w := eventstore.Write{Stream: stream, Expected: expected}
	for range events {
		w.Events = append(w.Events, event())
	}
	return eventstore.Commit{Writes: []eventstore.Write{w}}
}

func (l *log) append(t *testing.T, c eventstore.Commit) eventstore.Receipt {
	t.Helper()
	r, err := l.Append(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// hold keeps the writer in the commit of one append until release is called,
// and returns once it is there.
func (l *log) hold(t *testing.T) (release func()) {
	t.Helper()
	reached, gate, done := make(chan struct{}), make(chan struct{}), make(chan error)
	l.OnCommit(func() bool {
		select {
		case <-gate: // the transactions after
		default:
			close(reached)
			<-gate
		}
		return false
	})
	go func() {
		_, err := l.Append(context.Background(), commit("held", eventstore.Any, 1))
		done <- err
	}()
	<-reached
	return func() {
		close(gate)
		if err := <-done; err != nil {
			t.Errorf("the append that was held: %v", err)
		}
	}
}

// awaitQueued waits until n appends wait for the writer.
func (l *log) awaitQueued(n int) {
	for l.Queued() < n {
		runtime.Gosched()
	}
}

// What waits while one transaction runs shares the next; each is judged on its
// own there, after its predecessors, and a refusal disturbs nobody.
func TestGroupCommit(t *testing.T) {
	t.Parallel()
	l := newLog(t)
	l.append(t, eventstore.Commit{
		Writes: commit("owner", eventstore.NoStream, 1).Writes,
		Claim:  []eventstore.Claim{{Kind: "email", Key: "k", Owner: "owner"}},
	})
	release := l.hold(t) // position 2
	const clients = 64
	var group sync.WaitGroup
	receipts, errs := make([]eventstore.Receipt, clients), make([]error, clients)
	for i := range clients {
		c := commit(fmt.Sprintf("stream-%d", i), eventstore.NoStream, 2)
		switch i {
		case 10: // sees what number 9 does in the same transaction
			c = commit("stream-9", 1, 2)
		case 20:
			c = commit("stream-9", eventstore.NoStream, 2)
		case 30:
			c.Claim = []eventstore.Claim{{Kind: "email", Key: "free", Owner: "stream-30"}, {Kind: "email", Key: "k", Owner: "stream-30"}}
		case 31: // what number 30 would have taken first is free
			c.Claim = []eventstore.Claim{{Kind: "email", Key: "free", Owner: "stream-31"}}
		}
		group.Go(func() { receipts[i], errs[i] = l.Append(t.Context(), c) })
		l.awaitQueued(i + 1)
	}
	release()
	group.Wait()
	next := eventstore.Position(3)
	for i := range clients {
		switch i {
		case 20:
			var conflict *eventstore.ConflictError
			want := eventstore.ConflictError{Stream: "stream-9", Expected: eventstore.NoStream, Actual: 3}
			if !errors.As(errs[i], &conflict) || *conflict != want {
				t.Errorf("append %d: %v, want %v", i, errs[i], &want)
			}
		case 30:
			var claim *eventstore.ClaimError
			if !errors.As(errs[i], &claim) || claim.Owner != "owner" || claim.Claim.Key != "k" {
				t.Errorf("append %d: %v, want a ClaimError", i, errs[i])
			}
		default:
			want := eventstore.Receipt{First: next, Last: next + 1, Time: receipts[i].Time}
			if diff := cmp.Diff(want, receipts[i]); diff != "" || errs[i] != nil {
				t.Errorf("append %d: %v %s", i, errs[i], diff)
			}
			next += 2
		}
	}
	l.wantSound(t, next-1)
	l.reopen(t)
	l.wantSound(t, next-1)
}

// Two transactions are enough for 65 appends that come at once.
func TestGroupCommitSharesTransactions(t *testing.T) {
	t.Parallel()
	l := newLog(t)
	var mu sync.Mutex
	transactions, gate, reached := 0, make(chan struct{}), make(chan struct{})
	l.OnCommit(func() bool {
		mu.Lock()
		defer mu.Unlock()
		if transactions++; transactions == 1 {
			close(reached)
			<-gate
		}
		return false
	})
	var group sync.WaitGroup
	client := func(i int) {
		if _, err := l.Append(t.Context(), commit(fmt.Sprintf("s%d", i), eventstore.NoStream, 1)); err != nil {
			t.Error(err)
		}
	}
	group.Go(func() { client(0) })
	<-reached
	for i := range 64 {
		group.Go(func() { client(i + 1) })
	}
	l.awaitQueued(64)
	close(gate)
	group.Wait()
	if mu.Lock(); transactions != 2 {
		t.Errorf("%d transactions for 65 appends, want 2", transactions)
	}
	mu.Unlock()
}

func TestAppendCanceled(t *testing.T) {
	t.Parallel()
	l := newLog(t)
	release := l.hold(t)
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error)
	go func() {
		_, err := l.Append(ctx, commit("withdrawn", eventstore.NoStream, 1))
		result <- err
	}()
	l.awaitQueued(1)
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("canceled in the queue: %v", err)
	}
	release()
	if _, err := l.Append(ctx, commit("late", eventstore.NoStream, 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled before: %v", err)
	}
	l.wantSound(t, 1)

	// Once the writer has it, the end of its context changes nothing.
	ctx, cancel = context.WithCancel(t.Context())
	l.OnCommit(func() bool { cancel(); return false })
	if _, err := l.Append(ctx, commit("taken", eventstore.NoStream, 1)); err != nil {
		t.Errorf("canceled in its commit: %v", err)
	}
	l.wantSound(t, 2)
}

// Row 28: whatever step of a transaction fails, tree and file agree after it,
// and the log goes on.
func TestAppendFails(t *testing.T) {
	t.Parallel()
	l := newLog(t)
	l.append(t, commit("a", eventstore.NoStream, 250))

	fail := true
	l.OnCommit(func() bool { return fail })
	if _, err := l.Append(t.Context(), commit("a", 249, 10)); err == nil {
		t.Error("appended although the commit failed")
	}
	l.wantSound(t, 250)
	fail = false

	// In the middle of a batch, behind a full tile and a new stream.
	if err := l.Exec(`CREATE TRIGGER fault BEFORE INSERT ON events WHEN NEW.type = 'fault' BEGIN SELECT RAISE(FAIL, 'fault'); END`); err != nil {
		t.Fatal(err)
	}
	c := commit("b", eventstore.NoStream, 20)
	c.Claim = []eventstore.Claim{{Kind: "email", Key: "k", Owner: "b"}}
	c.Writes[0].Events[19].Type = "fault"
	release := l.hold(t) // position 251
	var group sync.WaitGroup
	for i, c := range []eventstore.Commit{commit("a", 249, 10), c, commit("a", 249, 1), commit("c", eventstore.NoStream, 1)} {
		group.Go(func() {
			var conflict *eventstore.ConflictError
			if _, err := l.Append(t.Context(), c); err == nil || errors.As(err, &conflict) {
				t.Errorf("append %d in a transaction that failed: %v", i, err)
			}
		})
		l.awaitQueued(i + 1)
	}
	release()
	group.Wait()
	l.wantSound(t, 251)

	r := l.append(t, eventstore.Commit{
		Writes: commit("c", eventstore.NoStream, 10).Writes,
		Claim:  []eventstore.Claim{{Kind: "email", Key: "k", Owner: "c"}},
	})
	if r.First != 252 || r.Last != 261 {
		t.Errorf("appended at %d to %d, want 252 to 261", r.First, r.Last)
	}
	l.append(t, commit("a", 249, 1))
	l.wantSound(t, 262)
	l.reopen(t)
	l.wantSound(t, 262)
}

func TestDiskFull(t *testing.T) {
	t.Parallel()
	l := newLog(t)
	if err := l.Exec("PRAGMA max_page_count = 100"); err != nil {
		t.Fatal(err)
	}
	n := eventstore.Position(0)
	var err error
	for ; err == nil && n < 1000; n++ {
		c := commit("a", eventstore.Revision(n)-1, 1)
		c.Writes[0].Events[0].Clear = make([]byte, 10_000)
		_, err = l.Append(t.Context(), c)
	}
	n--
	if !errors.Is(err, sqlite.ErrDiskFull) {
		t.Fatalf("append %d = %v, want ErrDiskFull", n+1, err)
	}
	l.wantSound(t, n)
	if err := l.Exec("PRAGMA max_page_count = 1000000"); err != nil {
		t.Fatal(err)
	}
	l.append(t, commit("a", eventstore.Revision(n)-1, 1))
	l.wantSound(t, n+1)
}

func TestReadOnly(t *testing.T) {
	t.Parallel()
	l := newLog(t)
	l.append(t, commit("a", eventstore.NoStream, 1))
	if err := l.Exec("PRAGMA query_only = 1"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Append(t.Context(), commit("a", 0, 1)); !errors.Is(err, sqlite.ErrReadOnly) {
		t.Errorf("append = %v, want ErrReadOnly", err)
	}
	l.wantSound(t, 1)
	if err := l.Exec("PRAGMA query_only = 0"); err != nil {
		t.Fatal(err)
	}
}

// The tree grows on after a restart at every kind of size.
func TestReopenAtTileBoundaries(t *testing.T) {
	t.Parallel()
	l := newLog(t)
	at := eventstore.Position(0)
	sizes := []eventstore.Position{1, 255, 256, 257, 511, 512, 1000}
	if !testing.Short() {
		sizes = append(sizes, 65535, 65536, 65537, 66000)
	}
	for _, size := range sizes {
		for at < size {
			n := min(size-at, eventstore.MaxEvents)
			l.append(t, commit("a", eventstore.Revision(at)-1, int(n)))
			at += n
		}
		l.reopen(t)
		l.wantSound(t, size)
	}
}

// Row 48: the log's time never goes back, whatever the clock does.
func TestClockBack(t *testing.T) {
	t.Parallel()
	l := newLog(t)
	now := time.Date(2026, 5, 1, 12, 0, 0, 999, time.FixedZone("", 3600))
	l.config.Now = func() time.Time { return now }
	l.reopen(t)
	first := l.append(t, commit("a", eventstore.NoStream, 1))
	if want := now.Truncate(time.Microsecond).UTC(); first.Time != want {
		t.Errorf("recorded at %v, want %v", first.Time, want)
	}
	now = now.Add(-time.Hour)
	if r := l.append(t, commit("a", 0, 1)); r.Time != first.Time {
		t.Errorf("recorded at %v after %v", r.Time, first.Time)
	}
	l.reopen(t)
	if r := l.append(t, commit("a", 1, 1)); r.Time != first.Time {
		t.Errorf("after a restart recorded at %v after %v", r.Time, first.Time)
	}
	report, err := l.Verify(t.Context(), sqlite.Trust{Verifier: l.verifier}, nil)
	if err != nil || !report.OK() {
		t.Errorf("Verify = %+v, %v", report, err)
	}
}

func TestClosed(t *testing.T) {
	t.Parallel()
	l := newLog(t)
	l.append(t, commit("a", eventstore.NoStream, 1))
	following := make(chan error)
	go func() {
		for _, err := range l.Subscribe(context.Background(), 0) {
			following <- err
		}
	}()
	if err := <-following; err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- l.Close() }()
	if err := <-following; !errors.Is(err, eventstore.ErrClosed) {
		t.Errorf("a running subscription ends with %v, want ErrClosed", err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("closed again: %v", err)
	}
	ctx := t.Context()
	_, appendErr := l.Append(ctx, commit("a", 0, 1))
	_, headErr := l.Head(ctx)
	_, verifyErr := l.Verify(ctx, sqlite.Trust{Verifier: l.verifier}, nil)
	_, checkErr := l.Check(ctx)
	errs := map[string]error{
		"Append": appendErr, "Head": headErr, "Verify": verifyErr, "Check": checkErr,
		"Backup": l.Backup(ctx, l.config.Dir+"/copy", nil),
	}
	for _, err := range l.ReadStream(ctx, "a", 0) {
		errs["ReadStream"] = err
	}
	for _, err := range l.Subscribe(ctx, 0) {
		errs["Subscribe"] = err
	}
	if len(errs) != 7 {
		t.Errorf("only %d methods failed", len(errs))
	}
	for name, err := range errs {
		if !errors.Is(err, eventstore.ErrClosed) {
			t.Errorf("%s = %v, want ErrClosed", name, err)
		}
	}
}

// A log that grew and is then left alone is signed all the same, and of each
// minute the last checkpoint is kept.
func TestCheckpoints(t *testing.T) {
	t.Parallel()
	l := newLog(t)
	l.config.CheckpointInterval = time.Millisecond
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	l.config.Now = func() time.Time { return now }
	l.reopen(t)
	deadline := time.Now().Add(time.Minute)
	for n := range 6 {
		// Two events a minute.
		now = now.Add(30 * time.Second)
		l.append(t, commit("a", eventstore.Revision(n)-1, 1))
		for covered := int64(0); covered != int64(n)+1; {
			report, err := l.Verify(t.Context(), sqlite.Trust{Verifier: l.verifier}, nil)
			if err != nil || !report.OK() || time.Now().After(deadline) {
				t.Fatalf("size %d: %+v, %v", n+1, report, err)
			}
			covered = report.Covered
		}
	}
	report, err := l.Verify(t.Context(), sqlite.Trust{Verifier: l.verifier}, nil)
	// 12:00:30 | 12:01:00 12:01:30 | 12:02:00 12:02:30 | 12:03:00
	if err != nil || report.Checkpoints != 4 || report.Covered != 6 {
		t.Errorf("Verify = %+v, %v, want 4 checkpoints", report, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	if _, err := sqlite.Open(t.Context(), sqlite.Config{Dir: t.TempDir()}); err == nil {
		t.Error("opened without a key")
	}
	signer, _ := newSigner(t)
	if _, err := sqlite.Open(t.Context(), sqlite.Config{Dir: t.TempDir() + "/none", Signer: signer}); err == nil || strings.Contains(err.Error(), "log.db") {
		t.Errorf("opened in a directory that is not there: %v", err)
	}
}
