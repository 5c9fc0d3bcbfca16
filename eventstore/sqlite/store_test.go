package sqlite_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"golang.org/x/mod/sumdb/note"

	"accountledger/eventstore"
	"accountledger/eventstore/sqlite"
)

// log is an open store in a separate directory.
type log struct {
	*sqlite.Store
	config   sqlite.Config
	verifier note.Verifier
}

// newLog opens an empty log with a checkpoint interval of an hour, so that every
// transaction comes from the test.
func newLog(t *testing.T) *log {
	t.Helper()
	signer, verifier := newSigner(t)
	l := &log{config: sqlite.Config{Dir: t.TempDir(), Signer: signer, Vouch: vouch, CheckpointInterval: time.Hour}, verifier: verifier}
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

// wantSound checks that the log has the given size and that Verify finds no fault.
func (l *log) wantSound(t *testing.T, size eventstore.Position) {
	t.Helper()
	if head, err := l.Head(t.Context()); err != nil || head != size {
		t.Errorf("Head = %d, %v, want %d", head, err, size)
	}
	report, err := l.Verify(t.Context(), sqlite.Trust{Verifiers: []note.Verifier{l.verifier}, Erasures: []string{erasure}, ErasedKey: erasedKey}, nil)
	if err != nil || !report.OK() || report.Events != int64(size) {
		t.Errorf("Verify = %+v, %v, want %d events and no faults", report, err, size)
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

// hold starts an append and blocks the writer in its commit until the caller
// calls release. It returns once the writer is blocked.
func (l *log) hold(t *testing.T) (release func()) {
	t.Helper()
	reached, gate, done := make(chan struct{}), make(chan struct{}), make(chan error)
	l.OnCommit(func() bool {
		select {
		case <-gate: // a later transaction
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
			t.Errorf("the blocked append = %v", err)
		}
	}
}

// awaitQueued waits until the writer's queue has n appends.
func (l *log) awaitQueued(n int) {
	for l.Queued() < n {
		runtime.Gosched()
	}
}

// TestGroupCommit checks that appends that wait for a running transaction share
// the next one, that each sees the effects of those before it, and that a
// refusal does not affect the others.
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
		case 10: // sees the effect of number 9 in the same transaction
			c = commit("stream-9", 1, 2)
		case 20:
			c = commit("stream-9", eventstore.NoStream, 2)
		case 30:
			c.Claim = []eventstore.Claim{{Kind: "email", Key: "free", Owner: "stream-30"}, {Kind: "email", Key: "k", Owner: "stream-30"}}
		case 31: // number 30 was refused, so its first claim is free
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
				t.Errorf("append %d = %v, want %v", i, errs[i], &want)
			}
		case 30:
			var claim *eventstore.ClaimError
			if !errors.As(errs[i], &claim) || claim.Owner != "owner" || claim.Claim.Key != "k" {
				t.Errorf("append %d = %v, want *ClaimError for key k", i, errs[i])
			}
		default:
			want := eventstore.Receipt{First: next, Last: next + 1, Time: receipts[i].Time}
			if diff := cmp.Diff(want, receipts[i]); diff != "" || errs[i] != nil {
				t.Errorf("append %d = %v, receipt (-want +got):\n%s", i, errs[i], diff)
			}
			next += 2
		}
	}
	l.wantSound(t, next-1)
	l.reopen(t)
	l.wantSound(t, next-1)
}

// TestGroupCommitSharesTransactions checks that 64 appends queued behind a
// running transaction need only one more.
func TestGroupCommitSharesTransactions(t *testing.T) {
	t.Parallel()
	l := newLog(t)
	l.Close()
	var transactions atomic.Int32
	l.config.Observe = func(sqlite.Transaction) { transactions.Add(1) }
	l.Store = open(t, l.config)
	gate, reached := make(chan struct{}), make(chan struct{})
	var once sync.Once
	l.OnCommit(func() bool {
		once.Do(func() {
			close(reached)
			<-gate
		})
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
	l.Close()
	if n := transactions.Load(); n != 2 {
		t.Errorf("%d transactions for 65 appends, want 2", n)
	}
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
		t.Errorf("Append canceled in the queue = %v, want context.Canceled", err)
	}
	release()
	if _, err := l.Append(ctx, commit("late", eventstore.NoStream, 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("Append with a canceled context = %v, want context.Canceled", err)
	}
	l.wantSound(t, 1)

	// Once the writer has taken the append, canceling its context has no effect.
	ctx, cancel = context.WithCancel(t.Context())
	l.OnCommit(func() bool { cancel(); return false })
	if _, err := l.Append(ctx, commit("taken", eventstore.NoStream, 1)); err != nil {
		t.Errorf("Append canceled during its commit = %v, want success", err)
	}
	l.wantSound(t, 2)
}

// TestAppendFails checks that after a failure in any step of a transaction, the
// tree agrees with the file and the log accepts further appends.
func TestAppendFails(t *testing.T) {
	t.Parallel()
	l := newLog(t)
	l.append(t, commit("a", eventstore.NoStream, 250))

	fail := true
	l.OnCommit(func() bool { return fail })
	if _, err := l.Append(t.Context(), commit("a", 249, 10)); err == nil {
		t.Error("Append succeeded although the commit failed")
	}
	l.wantSound(t, 250)
	fail = false

	// Fail in the middle of a batch, after a tile and a stream were written.
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
				t.Errorf("append %d in a failed transaction = %v, want the transaction's error", i, err)
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
		t.Errorf("Append = positions %d to %d, want 252 to 261", r.First, r.Last)
	}
	l.append(t, commit("a", 249, 1))
	l.wantSound(t, 262)
	if err := l.Exec(`DROP TRIGGER fault`); err != nil { // Open refuses a foreign trigger
		t.Fatal(err)
	}
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
		t.Errorf("Append = %v, want ErrReadOnly", err)
	}
	l.wantSound(t, 1)
	if err := l.Exec("PRAGMA query_only = 0"); err != nil {
		t.Fatal(err)
	}
}

// TestReopenAtTileBoundaries checks that a log reopened at or near a tile
// boundary continues its tree.
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

// TestClockBack checks that recorded times do not go back when the clock does.
func TestClockBack(t *testing.T) {
	t.Parallel()
	l := newLog(t)
	now := time.Date(2026, 5, 1, 12, 0, 0, 999, time.FixedZone("", 3600))
	l.config.Now = func() time.Time { return now }
	l.reopen(t)
	first := l.append(t, commit("a", eventstore.NoStream, 1))
	if want := now.Truncate(time.Microsecond).UTC(); first.Time != want {
		t.Errorf("the first event has time %v, want %v", first.Time, want)
	}
	now = now.Add(-time.Hour)
	if r := l.append(t, commit("a", 0, 1)); r.Time != first.Time {
		t.Errorf("with the clock an hour back, the event has time %v, want %v", r.Time, first.Time)
	}
	l.reopen(t)
	if r := l.append(t, commit("a", 1, 1)); r.Time != first.Time {
		t.Errorf("after a restart, the event has time %v, want %v", r.Time, first.Time)
	}
	report, err := l.Verify(t.Context(), sqlite.Trust{Verifiers: []note.Verifier{l.verifier}}, nil)
	if err != nil || !report.OK() {
		t.Errorf("Verify = %+v, %v, want no faults", report, err)
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
		t.Errorf("after Close, a running subscription ended with %v, want ErrClosed", err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("second Close = %v", err)
	}
	reader, err := sqlite.OpenReader(t.Context(), l.config.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := reader.Close(); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	_, appendErr := l.Append(ctx, commit("a", 0, 1))
	_, headErr := l.Head(ctx)
	_, verifyErr := l.Verify(ctx, sqlite.Trust{Verifiers: []note.Verifier{l.verifier}}, nil)
	_, checkErr := reader.Check(ctx)
	errs := map[string]error{
		"Append": appendErr, "Head": headErr, "Verify": verifyErr, "Check": checkErr,
		"Backup": reader.Backup(ctx, l.config.Dir+"/copy", nil),
	}
	for _, err := range l.ReadStream(ctx, "a", 0) {
		errs["ReadStream"] = err
	}
	for _, err := range l.Subscribe(ctx, 0) {
		errs["Subscribe"] = err
	}
	if len(errs) != 7 {
		t.Errorf("%d methods returned an error, want 7", len(errs))
	}
	for name, err := range errs {
		if !errors.Is(err, eventstore.ErrClosed) {
			t.Errorf("%s = %v, want ErrClosed", name, err)
		}
	}
}

// TestCheckpoints checks that the log signs a checkpoint after an append even if
// no further append follows, and keeps only the last checkpoint of each minute.
func TestCheckpoints(t *testing.T) {
	t.Parallel()
	l := newLog(t)
	l.config.CheckpointInterval = time.Millisecond
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	l.config.Now = func() time.Time { return now }
	l.reopen(t)
	deadline := time.Now().Add(time.Minute)
	for n := range 6 {
		// Two events per minute.
		now = now.Add(30 * time.Second)
		l.append(t, commit("a", eventstore.Revision(n)-1, 1))
		for covered := int64(0); covered != int64(n)+1; {
			report, err := l.Verify(t.Context(), sqlite.Trust{Verifiers: []note.Verifier{l.verifier}}, nil)
			if err != nil || !report.OK() || time.Now().After(deadline) {
				t.Fatalf("at size %d, Verify = %+v, %v, want a checkpoint of that size", n+1, report, err)
			}
			covered = report.Covered
		}
	}
	report, err := l.Verify(t.Context(), sqlite.Trust{Verifiers: []note.Verifier{l.verifier}}, nil)
	// 12:00:30 | 12:01:00 12:01:30 | 12:02:00 12:02:30 | 12:03:00
	if err != nil || report.Checkpoints != 4 || report.Covered != 6 {
		t.Errorf("Verify = %+v, %v, want 4 checkpoints that cover 6 events", report, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	if _, err := sqlite.Open(t.Context(), sqlite.Config{Dir: t.TempDir()}); err == nil {
		t.Error("Open without a signer succeeded")
	}
	signer, _ := newSigner(t)
	if _, err := sqlite.Open(t.Context(), sqlite.Config{Dir: t.TempDir() + "/none", Signer: signer, Vouch: vouch}); err == nil || strings.Contains(err.Error(), "log.db") {
		t.Errorf("Open in a missing directory = %v, want an error about the directory", err)
	}
}
