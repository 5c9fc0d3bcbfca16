package eventstoretest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"accountledger/eventstore"
)

func subscribeCases() []promise {
	return []promise{
		{"Subscribe/CatchesUpThenFollows", subscribeCatchesUp},
		{"Subscribe/FromPosition", subscribeFrom},
		{"Subscribe/Order", subscribeOrder},
		{"Subscribe/Canceled", subscribeCanceled},
		{"Subscribe/Closed", subscribeClosed},
		{"Subscribe/SlowReader", subscribeSlow},
	}
}

// follower is a subscription that runs beside its case.
type follower struct {
	e      *env
	cancel context.CancelFunc
	events chan eventstore.Recorded
	done   chan struct{} // closed when the subscription has ended
	err    error         // with what; to be read after done
}

// follow subscribes after a position until the case ends or cancels it. It
// checks what holds of every subscription: no page is empty, and the end is
// one error.
func (e *env) follow(s eventstore.Store, after eventstore.Position) *follower {
	ctx, cancel := context.WithCancel(e.Context())
	f := &follower{e: e, cancel: cancel, events: make(chan eventstore.Recorded, 1<<13), done: make(chan struct{})}
	go func() {
		defer close(f.done)
		for page, err := range s.Subscribe(ctx, after) {
			switch {
			case f.err != nil:
				e.Errorf("a subscription went on after %v", f.err)
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

// next is the next n events, which must come.
func (f *follower) next(n int) []eventstore.Recorded {
	f.e.Helper()
	all := make([]eventstore.Recorded, 0, n)
	late := time.After(f.e.patience)
	for len(all) < n {
		select {
		case rec := <-f.events:
			all = append(all, rec)
		case <-f.done:
			// What it yielded before it ended counts.
			select {
			case rec := <-f.events:
				all = append(all, rec)
			default:
				f.e.Fatalf("a subscription ended after %d of %d events: %v", len(all), n, f.err)
			}
		case <-late:
			f.e.Fatalf("a subscription yielded %d of %d events in %v", len(all), n, f.e.patience)
		}
	}
	return all
}

// end is the error a subscription ended with, which it must have done by now
// or soon.
func (f *follower) end() error {
	f.e.Helper()
	select {
	case <-f.done:
		if f.err == nil {
			f.e.Errorf("a subscription ended without an error")
		}
		return f.err
	case <-time.After(f.e.patience):
		f.e.Errorf("a subscription did not end in %v", f.e.patience)
		return nil
	}
}

// A subscription yields first the events there are, then those to come, each
// of them once.
func subscribeCatchesUp(e *env) {
	s := e.store()
	c := write("account-1", eventstore.NoStream, 3)
	want := expect(c, e.append(s, c), nil)
	f := e.follow(s, 0)
	e.same("the events there were", f.next(3), want)
	// One at a time, so that it waits in between; then some at once.
	for i, n := range []int{1, 1, 1, 5, 1, 1000, 1, 1} {
		stream := fmt.Sprintf("account-follow-%d", i)
		c := write(stream, eventstore.NoStream, n)
		want := expect(c, e.append(s, c), nil)
		e.same("the events to come", f.next(n), want)
	}
	// From an empty log on, too.
	s = e.store()
	f = e.follow(s, 0)
	c = write("account-1", eventstore.NoStream, 2)
	want = expect(c, e.append(s, c), nil)
	e.same("the events to come in an empty log", f.next(2), want)
}

// A subscription begins with the event after its position, wherever that is.
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

// Whoever subscribes, whenever and wherever while events are being appended,
// sees the one order of the log without gap or duplicate.
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
		together(writers, func(i int) {
			for j := range each {
				if _, err := s.Append(e.ctx(), write(fmt.Sprintf("account-%d", (i+j)%4), eventstore.Any, 1+(i+j)%3)); err != nil {
					e.Errorf("Append = %v", err)
				}
			}
		})
	}()
	// Others come while it runs: at the start, at the head, in between.
	probe := e.follow(s, 0)
	for range 8 {
		seen := probe.next(10)
		last := seen[len(seen)-1].Position
		start(last)
		start(last / 2)
		head := e.head(s)
		if head < last {
			e.Errorf("the head is %d after position %d was seen", head, last)
		}
		start(head)
	}
	<-finished
	// A last event, so that a duplicate of the one before it would show.
	e.append(s, write("account-last", eventstore.NoStream, 1))
	log := e.audit(s)
	for i, f := range followers {
		e.same(fmt.Sprintf("the events after %d", begun[i]), f.next(len(log)-int(begun[i])), log[begun[i]:])
	}
}

// A subscription whose context ends, ends with its error: at once, while it
// waits, and in the middle of catching up.
func subscribeCanceled(e *env) {
	s := e.store()
	ended := func(when string, f *follower) {
		if err := f.end(); !errors.Is(err, context.Canceled) {
			e.Errorf("a subscription canceled %s ended with %v, want context.Canceled", when, err)
		}
	}
	waiting := e.follow(s, 0)
	waiting.cancel()
	ended("at once", waiting)

	for range 4 {
		e.append(s, write("account-1", eventstore.Any, 1000))
	}
	waiting = e.follow(s, 3999)
	waiting.next(1)
	waiting.cancel()
	ended("while it waits", waiting)

	ctx, cancel := context.WithCancel(e.Context())
	var last error
	for _, err := range s.Subscribe(ctx, 0) {
		last = err
		cancel()
	}
	cancel()
	if !errors.Is(last, context.Canceled) {
		e.Errorf("a subscription canceled as it catches up ended with %v, want context.Canceled", last)
	}
}

// Close ends running subscriptions with ErrClosed.
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

// Who reads slowly holds up nobody, neither writers nor other subscribers, and
// misses nothing; what it keeps of earlier pages stays as it was.
func subscribeSlow(e *env) {
	s := e.store()
	e.append(s, write("account-1", eventstore.NoStream, 1))
	paused, goOn := make(chan struct{}), make(chan struct{})
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
				case <-goOn:
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
	case <-time.After(e.patience):
		e.Fatalf("a subscription yielded nothing in %v", e.patience)
	}
	quick := e.follow(s, 1)
	for range 5 {
		e.append(s, write("account-1", eventstore.Any, 600))
		quick.next(600)
	}
	e.append(s, write("account-last", eventstore.NoStream, 1))
	close(goOn)
	select {
	case got := <-slow:
		e.same("what the slow reader got", got, slices.Clone(e.audit(s)))
	case <-time.After(e.patience):
		e.Errorf("the slow reader did not get to the end in %v", e.patience)
	}
}
