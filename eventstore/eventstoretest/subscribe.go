package eventstoretest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"accountledger/eventstore"
)

func subscribeCases() []testCase {
	return []testCase{
		{"Subscribe/CatchesUpThenFollows", subscribeCatchesUp},
		{"Subscribe/FromPosition", subscribeFrom},
		{"Subscribe/Order", subscribeOrder},
		{"Subscribe/Canceled", subscribeCanceled},
		{"Subscribe/Closed", subscribeClosed},
		{"Subscribe/SlowReader", subscribeSlow},
	}
}

// follower is a subscription in a separate goroutine.
type follower struct {
	e      *env
	cancel context.CancelFunc
	events chan eventstore.Recorded
	done   chan struct{} // closed when the subscription has ended
	err    error         // with which it ended; valid once done is closed
}

// follow subscribes after a position until the case ends or cancels the
// follower. It checks that no page is empty and that the subscription ends with
// one error.
func (e *env) follow(s eventstore.Store, after eventstore.Position) *follower {
	ctx, cancel := context.WithCancel(e.Context())
	f := &follower{e: e, cancel: cancel, events: make(chan eventstore.Recorded, 1<<13), done: make(chan struct{})}
	go func() {
		defer close(f.done)
		for page, err := range s.Subscribe(ctx, after) {
			switch {
			case f.err != nil:
				e.Errorf("a subscription continued after the error %v", f.err)
				return
			case err != nil:
				f.err = err
			case len(page) == 0:
				e.Errorf("a subscription yielded an empty page")
				return
			}
			for _, rec := range page {
				select {
				case f.events <- rec:
				case <-ctx.Done():
				}
			}
		}
	}()
	e.Cleanup(func() {
		cancel()
		f.end()
	})
	return f
}

// next waits for the next n events and returns them.
func (f *follower) next(n int) []eventstore.Recorded {
	f.e.Helper()
	all := make([]eventstore.Recorded, 0, n)
	late := time.After(f.e.timeout)
	for len(all) < n {
		select {
		case rec := <-f.events:
			all = append(all, rec)
		case <-f.done:
			// Take the events that it yielded before it ended.
			select {
			case rec := <-f.events:
				all = append(all, rec)
			default:
				f.e.Fatalf("a subscription ended after %d of %d events: %v", len(all), n, f.err)
			}
		case <-late:
			f.e.Fatalf("a subscription yielded only %d of %d events in %v", len(all), n, f.e.timeout)
		}
	}
	return all
}

// end waits for the end of the subscription and returns its error.
func (f *follower) end() error {
	f.e.Helper()
	select {
	case <-f.done:
		if f.err == nil {
			f.e.Errorf("a subscription ended without an error")
		}
		return f.err
	case <-time.After(f.e.timeout):
		f.e.Errorf("a subscription did not end within %v", f.e.timeout)
		return nil
	}
}

// subscribeCatchesUp checks that a subscription yields the existing events and
// then the new ones, each exactly once.
func subscribeCatchesUp(e *env) {
	s := e.store()
	c := write("account-1", eventstore.NoStream, 3)
	want := expect(c, e.append(s, c), nil)
	f := e.follow(s, 0)
	e.same("the existing events", f.next(3), want)
	// Append single events, so that the subscription waits in between, and
	// several at once.
	for i, n := range []int{1, 1, 1, 5, 1, 1000, 1, 1} {
		stream := fmt.Sprintf("account-follow-%d", i)
		c := write(stream, eventstore.NoStream, n)
		want := expect(c, e.append(s, c), nil)
		e.same("the new events", f.next(n), want)
	}
	// The same in a log that is empty at first.
	s = e.store()
	f = e.follow(s, 0)
	c = write("account-1", eventstore.NoStream, 2)
	want = expect(c, e.append(s, c), nil)
	e.same("the new events in an empty log", f.next(2), want)
}

// subscribeFrom checks that a subscription after any position starts with the
// next event.
func subscribeFrom(e *env) {
	s := e.store()
	for i := range 8 {
		e.append(s, write(fmt.Sprintf("account-%d", i%2), eventstore.Any, 1+i%3))
	}
	before := e.audit(s)
	head := eventstore.Position(len(before))
	followers := make([]*follower, head+1)
	for after := range followers {
		followers[after] = e.follow(s, eventstore.Position(after))
	}
	e.append(s, write("account-2", eventstore.NoStream, 2))
	log := e.audit(s)
	for after, f := range followers {
		e.same(fmt.Sprintf("the events after %d", after), f.next(len(log)-after), log[after:])
	}
}

// subscribeOrder checks that subscriptions that start at any time and position
// during concurrent appends all see the same order, without gaps or duplicates.
func subscribeOrder(e *env) {
	s := e.store()
	const writers, each = 6, 25
	var followers []*follower
	var begun []eventstore.Position
	start := func(after eventstore.Position) {
		followers = append(followers, e.follow(s, after))
		begun = append(begun, after)
	}
	start(0)
	start(0)
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		concurrently(writers, func(i int) {
			for j := range each {
				if _, err := s.Append(e.ctx(), write(fmt.Sprintf("account-%d", (i+j)%4), eventstore.Any, 1+(i+j)%3)); err != nil {
					e.Errorf("Append = %v", err)
				}
			}
		})
	}()
	// Start more subscriptions meanwhile: at the head and at earlier positions.
	probe := e.follow(s, 0)
	for range 8 {
		seen := probe.next(10)
		last := seen[len(seen)-1].Position
		start(last)
		start(last / 2)
		head := e.head(s)
		if head < last {
			e.Errorf("a subscription yielded position %d, but afterwards the head was %d", last, head)
		}
		start(head)
	}
	<-finished
	// Append one more event, so that a duplicate of the previous one is noticed.
	e.append(s, write("account-last", eventstore.NoStream, 1))
	log := e.audit(s)
	for i, f := range followers {
		e.same(fmt.Sprintf("the events after %d", begun[i]), f.next(len(log)-int(begun[i])), log[begun[i]:])
	}
}

// subscribeCanceled checks that a subscription ends with its context's error if
// the context is canceled at the start, while the subscription waits, and while
// it catches up.
func subscribeCanceled(e *env) {
	s := e.store()
	ended := func(when string, f *follower) {
		if err := f.end(); !errors.Is(err, context.Canceled) {
			e.Errorf("a subscription canceled %s ended with %v, want context.Canceled", when, err)
		}
	}
	waiting := e.follow(s, 0)
	waiting.cancel()
	ended("at the start", waiting)

	for range 4 {
		e.append(s, write("account-1", eventstore.Any, 1000))
	}
	waiting = e.follow(s, 3999)
	waiting.next(1)
	waiting.cancel()
	ended("while waiting", waiting)

	ctx, cancel := context.WithCancel(e.Context())
	var last error
	for _, err := range s.Subscribe(ctx, 0) {
		last = err
		cancel()
	}
	cancel()
	if !errors.Is(last, context.Canceled) {
		e.Errorf("a subscription canceled while catching up ended with %v, want context.Canceled", last)
	}
}

// subscribeClosed checks that Close ends running subscriptions with ErrClosed.
func subscribeClosed(e *env) {
	s, closeIt := e.open(e.TempDir())
	empty := e.follow(s, 0)
	e.append(s, write("account-1", eventstore.NoStream, 2))
	empty.next(2)
	waiting := e.follow(s, 1)
	waiting.next(1)
	closeIt()
	for _, f := range []*follower{empty, waiting} {
		if err := f.end(); !errors.Is(err, eventstore.ErrClosed) {
			e.Errorf("a subscription of a closed store ended with %v, want ErrClosed", err)
		}
	}
}

// subscribeSlow checks that a slow subscriber blocks neither writers nor other
// subscribers, that it misses no event, and that the bytes of events that it
// keeps from earlier pages do not change.
func subscribeSlow(e *env) {
	s := e.store()
	e.append(s, write("account-1", eventstore.NoStream, 1))
	paused, resume := make(chan struct{}), make(chan struct{})
	slow := make(chan []eventstore.Recorded, 1)
	ctx, cancel := context.WithCancel(e.Context())
	e.Cleanup(cancel)
	go func() {
		var all []eventstore.Recorded
		for page, err := range s.Subscribe(ctx, 0) {
			if err != nil {
				break
			}
			if all == nil {
				close(paused)
				select {
				case <-resume:
				case <-ctx.Done():
				}
			}
			all = append(all, page...)
			if page[len(page)-1].Stream == "account-last" {
				break
			}
		}
		slow <- all
	}()
	select {
	case <-paused:
	case <-time.After(e.timeout):
		e.Fatalf("a subscription yielded nothing within %v", e.timeout)
	}
	quick := e.follow(s, 1)
	for range 5 {
		e.append(s, write("account-1", eventstore.Any, 600))
		quick.next(600)
	}
	e.append(s, write("account-last", eventstore.NoStream, 1))
	close(resume)
	select {
	case got := <-slow:
		e.same("the slow subscriber's events", got, slices.Clone(e.audit(s)))
	case <-time.After(e.timeout):
		e.Errorf("the slow subscriber did not reach the end within %v", e.timeout)
	}
}
