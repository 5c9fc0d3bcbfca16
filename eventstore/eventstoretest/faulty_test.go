package eventstoretest

import (
	"errors"
	"testing"

	"accountledger/eventstore"
)

func TestFaulty(t *testing.T) {
	t.Parallel()
	s := Faulty(newDisks("").open(""))
	cut := errors.New("the line is cut")
	appends := func(n int, want error) {
		t.Helper()
		if _, err := s.Append(t.Context(), write("account-1", eventstore.Any, n)); !errors.Is(err, want) {
			t.Errorf("Append = %v, want %v", err, want)
		}
	}
	head := func(want eventstore.Position) {
		t.Helper()
		if got, err := s.Head(t.Context()); err != nil || got != want {
			t.Errorf("Head = %d, %v, want %d", got, err, want)
		}
	}
	appends(1, nil)
	s.FailBefore(cut)
	s.FailAfter(cut)
	appends(1, cut)
	head(1)
	appends(2, cut)
	head(3) // it is there, and its caller does not know
	appends(1, nil)
	head(4)

	// The store's own refusal comes first.
	s.FailAfter(cut)
	var conflict *eventstore.ConflictError
	if _, err := s.Append(t.Context(), write("account-1", eventstore.NoStream, 1)); !errors.As(err, &conflict) {
		t.Errorf("Append = %v, want *ConflictError", err)
	}
	appends(600, nil)

	// reads counts what a subscription yields before it ends.
	reads := func(after eventstore.Position, stop int) (events int, last error) {
		for page, err := range s.Subscribe(t.Context(), after) {
			if last = err; err != nil {
				continue
			}
			if events += len(page); events >= stop {
				break
			}
		}
		return events, last
	}
	s.DropAfter(0, cut)
	s.DropAfter(1, cut)
	for _, want := range []int{0, 500} {
		if n, err := reads(0, 604); n != want || !errors.Is(err, cut) {
			t.Errorf("a subscription yielded %d events and ended with %v, want %d and %v", n, err, want, cut)
		}
	}
	if n, err := reads(0, 604); n != 604 || err != nil {
		t.Errorf("the next subscription yielded %d events and %v, want all 604", n, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	_, err := s.Append(t.Context(), write("account-1", eventstore.Any, 1))
	if !errors.Is(err, eventstore.ErrClosed) {
		t.Errorf("Append = %v, want ErrClosed", err)
	}
}
