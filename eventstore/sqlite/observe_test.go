package sqlite_test

import (
	"context"
	"testing"

	"accountledger/eventstore"
	"accountledger/eventstore/sqlite"
)

// TestObserve checks that Observe is called for each transaction, with the
// appends that shared it, including a failed transaction.
func TestObserve(t *testing.T) {
	t.Parallel()
	calls := make(chan sqlite.Transaction, 16)
	signer, _ := newSigner(t)
	store := open(t, sqlite.Config{Dir: t.TempDir(), Signer: signer, Vouch: vouch, Observe: func(tr sqlite.Transaction) { calls <- tr }})
	l := &log{Store: store}
	l.append(t, commit("account-a", eventstore.NoStream, 3))
	if _, err := l.Append(t.Context(), commit("account-a", eventstore.NoStream, 1)); err == nil {
		t.Fatal("Append with a conflict succeeded")
	}
	fail := true
	l.OnCommit(func() bool { return fail })
	if _, err := l.Append(t.Context(), commit("account-b", eventstore.NoStream, 1)); err == nil {
		t.Fatal("Append in a failed transaction succeeded")
	}
	for i, want := range []sqlite.Transaction{{Appends: 1, Events: 3}, {Appends: 1, Refused: 1}, {Appends: 1}} {
		got := <-calls
		if got.Took <= 0 || got.Waited < 0 || (got.Err != nil) != (i == 2) {
			t.Errorf("transaction %d: %+v", i, got)
		}
		got.Took, got.Waited, got.Err = 0, 0, nil
		if got != want {
			t.Errorf("transaction %d: %+v, want %+v", i, got, want)
		}
	}

	// Appends that wait for a running transaction share the next one.
	fail = false
	release := l.hold(t)
	done := make(chan error, 4)
	for _, stream := range []string{"account-c", "account-d", "account-e", "account-f"} {
		go func() {
			_, err := l.Append(t.Context(), commit(stream, eventstore.NoStream, 1))
			done <- err
		}()
	}
	l.awaitQueued(4)
	release()
	for range 4 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	<-calls // of the blocked append
	if got := <-calls; got.Appends != 4 || got.Events != 4 || got.Waited <= 0 {
		t.Errorf("transaction %+v, want 4 appends with a waiting time", got)
	}
}

// TestTrace checks that Trace is called for each append, with the caller's
// context, the times of the append and of its transaction, and the result.
func TestTrace(t *testing.T) {
	t.Parallel()
	type key struct{}
	var calls []sqlite.Appended // Trace runs in the caller's goroutine, here the test's
	signer, _ := newSigner(t)
	store := open(t, sqlite.Config{Dir: t.TempDir(), Signer: signer, Vouch: vouch, Trace: func(ctx context.Context, a sqlite.Appended) {
		if ctx.Value(key{}) != "mine" {
			t.Error("Trace got a context that is not the caller's")
		}
		calls = append(calls, a)
	}})
	ctx := context.WithValue(t.Context(), key{}, "mine")
	receipt, err := store.Append(ctx, commit("account-a", eventstore.NoStream, 3))
	if err != nil {
		t.Fatal(err)
	}
	_, conflict := store.Append(ctx, commit("account-a", eventstore.NoStream, 1))
	if conflict == nil || len(calls) != 2 {
		t.Fatalf("Append with a conflict = %v, and Trace was called %d times, want an error and 2", conflict, len(calls))
	}
	for _, a := range calls {
		if a.Came.IsZero() || a.Begun.Before(a.Came) || !a.Ended.After(a.Begun) {
			t.Errorf("Came = %v, Begun = %v, Ended = %v, want them set and in this order", a.Came, a.Begun, a.Ended)
		}
	}
	if calls[0].Receipt != receipt || calls[0].Err != nil || calls[1].Receipt != (eventstore.Receipt{}) || calls[1].Err != conflict {
		t.Errorf("Trace got %+v, want the results of both appends", calls)
	}
}
