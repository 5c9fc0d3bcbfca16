package sqlite_test

import (
	"context"
	"testing"

	"accountledger/eventstore"
	"accountledger/eventstore/sqlite"
)

// TestObserve: each transaction is told of, with what shared it, also one that
// failed.
func TestObserve(t *testing.T) {
	t.Parallel()
	told := make(chan sqlite.Transaction, 16)
	signer, _ := newSigner(t)
	store := open(t, sqlite.Config{Dir: t.TempDir(), Signer: signer, Observe: func(tr sqlite.Transaction) { told <- tr }})
	l := &log{Store: store}
	l.append(t, commit("account-a", eventstore.NoStream, 3))
	if _, err := l.Append(t.Context(), commit("account-a", eventstore.NoStream, 1)); err == nil {
		t.Fatal("a conflict was not refused")
	}
	fail := true
	l.OnCommit(func() bool { return fail })
	if _, err := l.Append(t.Context(), commit("account-b", eventstore.NoStream, 1)); err == nil {
		t.Fatal("a transaction that fails was not refused")
	}
	for i, want := range []sqlite.Transaction{{Appends: 1, Events: 3}, {Appends: 1, Refused: 1}, {Appends: 1}} {
		got := <-told
		if got.Took <= 0 || got.Waited < 0 || (got.Err != nil) != (i == 2) {
			t.Errorf("transaction %d: %+v", i, got)
		}
		got.Took, got.Waited, got.Err = 0, 0, nil
		if got != want {
			t.Errorf("transaction %d: %+v, want %+v", i, got, want)
		}
	}

	// What waits while one runs shares the next.
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
	<-told // that which was held
	if got := <-told; got.Appends != 4 || got.Events != 4 || got.Waited <= 0 {
		t.Errorf("%+v, want 4 appends that have waited", got)
	}
}

// TestTrace: the caller of an append is told, with its own context, when it
// came, when its transaction ran, and what became of it.
func TestTrace(t *testing.T) {
	t.Parallel()
	type key struct{}
	var told []sqlite.Appended // by callers, of which there is one
	signer, _ := newSigner(t)
	store := open(t, sqlite.Config{Dir: t.TempDir(), Signer: signer, Trace: func(ctx context.Context, a sqlite.Appended) {
		if ctx.Value(key{}) != "mine" {
			t.Error("told with the context of somebody else")
		}
		told = append(told, a)
	}})
	ctx := context.WithValue(t.Context(), key{}, "mine")
	receipt, err := store.Append(ctx, commit("account-a", eventstore.NoStream, 3))
	if err != nil {
		t.Fatal(err)
	}
	_, conflict := store.Append(ctx, commit("account-a", eventstore.NoStream, 1))
	if conflict == nil || len(told) != 2 {
		t.Fatalf("a conflict is %v; told %d times, want 2", conflict, len(told))
	}
	for _, a := range told {
		if a.Came.IsZero() || a.Begun.Before(a.Came) || !a.Ended.After(a.Begun) {
			t.Errorf("came %v, begun %v, ended %v", a.Came, a.Begun, a.Ended)
		}
	}
	if told[0].Receipt != receipt || told[0].Err != nil || told[1].Receipt != (eventstore.Receipt{}) || told[1].Err != conflict {
		t.Errorf("told %+v", told)
	}
}
