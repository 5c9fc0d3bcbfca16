package eventstoretest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"accountledger/eventstore"
)

func appendCases() []testCase {
	return []testCase{
		{"Append/NoStream", appendNoStream},
		{"Append/Conflict", appendConflict},
		{"Append/OneWinner", appendOneWinner},
		{"Append/AllOrNone", appendAllOrNone},
		{"Append/Any", appendAny},
		{"Append/Invalid", appendInvalid},
		{"Append/Limits", appendLimits},
		{"Append/OwnsItsBytes", appendOwnsItsBytes},
		{"Append/Canceled", appendCanceled},
		{"Append/Positions", appendPositions},
		{"Append/Times", appendTimes},
	}
}

// appendNoStream checks that the first write to a stream expects NoStream and
// gets revision 0, and that the store keeps every field of an event.
func appendNoStream(e *env) {
	s := e.store()
	c := eventstore.Commit{Writes: []eventstore.Write{{Stream: "account-1", Expected: eventstore.NoStream,
		Events: []eventstore.Event{sealedEvent(), event(), sealedEvent()}}}}
	c.Writes[0].Events[1].Actor = ""
	c.Writes[0].Events[1].Clear = nil
	r := e.append(s, c)
	if r.First != 1 || r.Last != 3 {
		e.Errorf("the first receipt has positions %d to %d, want 1 to 3", r.First, r.Last)
	}
	want := expect(c, r, nil)
	e.same("the stream", e.stream(s, "account-1", 0), want)
	e.same("the log", e.log(s, 0), want)

	// The next write expects the last revision.
	next := write("account-1", 2, 1)
	want = append(want, expect(next, e.append(s, next), map[string]eventstore.Revision{"account-1": 2})...)
	e.same("the stream", e.stream(s, "account-1", 0), want)
}

// appendConflict checks that a write with a wrong expected revision is refused
// with an error that has both revisions.
func appendConflict(e *env) {
	s := e.store()
	e.append(s, write("account-1", eventstore.NoStream, 3))
	for _, tt := range []struct {
		stream           string
		expected, actual eventstore.Revision
	}{
		{"account-1", eventstore.NoStream, 2},
		{"account-1", 0, 2},
		{"account-1", 1, 2},
		{"account-1", 3, 2},
		{"account-1", 1 << 40, 2},
		{"account-2", 0, eventstore.NoStream},
		{"account-2", 5, eventstore.NoStream},
	} {
		got := refused[*eventstore.ConflictError](e, s, write(tt.stream, tt.expected, 1))
		if want := (eventstore.ConflictError{Stream: tt.stream, Expected: tt.expected, Actual: tt.actual}); *got != want {
			e.Errorf("the conflict is %+v, want %+v", *got, want)
		}
	}
	if n := len(e.audit(s)); n != 3 {
		e.Errorf("the log has %d events, want 3", n)
	}
}

// appendOneWinner checks that of concurrent writers that expect the same
// revision, exactly one succeeds.
func appendOneWinner(e *env) {
	s := e.store()
	const writers, rounds = 16, 5
	for round := range rounds {
		expected := eventstore.Revision(round - 1)
		won := 0
		var mu sync.Mutex
		concurrently(writers, func(int) {
			_, err := s.Append(e.ctx(), write("account-1", expected, 1))
			var conflict *eventstore.ConflictError
			switch {
			case err == nil:
				mu.Lock()
				won++
				mu.Unlock()
			case !errors.As(err, &conflict):
				e.Errorf("Append = %v, want success or *ConflictError", err)
			case *conflict != eventstore.ConflictError{Stream: "account-1", Expected: expected, Actual: expected + 1}:
				e.Errorf("the conflict is %+v, want actual revision %d and expected revision %d", *conflict, expected+1, expected)
			}
		})
		if won != 1 {
			e.Fatalf("%d of %d writers at revision %d succeeded, want 1", won, writers, expected)
		}
	}
	if n := len(e.audit(s)); n != rounds {
		e.Errorf("the log has %d events, want %d", n, rounds)
	}
}

// concurrently runs f in n goroutines and waits for all of them.
func concurrently(n int, f func(i int)) {
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		wg.Go(func() {
			<-start
			f(i)
		})
	}
	close(start)
	wg.Wait()
}

// twoWrites returns a commit to two streams.
func twoWrites(a, b eventstore.Write) eventstore.Commit {
	return eventstore.Commit{Writes: []eventstore.Write{a, b}}
}

// appendAllOrNone checks that several writes are committed atomically, at
// consecutive positions.
func appendAllOrNone(e *env) {
	s := e.store()
	e.append(s, write("account-1", eventstore.NoStream, 2))
	w := func(stream string, expected eventstore.Revision) eventstore.Write {
		return eventstore.Write{Stream: stream, Expected: expected, Events: events(2)}
	}
	c := twoWrites(w("account-1", 1), w("account-2", eventstore.NoStream))
	r, err := s.Append(e.ctx(), c)
	if errors.Is(err, errors.ErrUnsupported) {
		if n := len(e.audit(s)); n != 2 {
			e.Errorf("after an unsupported commit the log has %d events, want 2", n)
		}
		return
	}
	if err != nil {
		e.Fatalf("Append to two streams = %v", err)
	}
	e.same("the log", e.log(s, 2), expect(c, r, map[string]eventstore.Revision{"account-1": 1}))

	for name, c := range map[string]eventstore.Commit{
		"first":  twoWrites(w("account-1", 1), w("account-2", 1)),
		"second": twoWrites(w("account-1", 3), w("account-2", 0)),
		"new":    twoWrites(w("account-3", eventstore.NoStream), w("account-2", eventstore.NoStream)),
	} {
		refused[*eventstore.ConflictError](e, s, c)
		if n := len(e.stream(s, "account-3", 0)); n != 0 {
			e.Errorf("%s: a refused commit left %d events, want none", name, n)
		}
	}
	if n := len(e.audit(s)); n != 6 {
		e.Errorf("the log has %d events, want 6", n)
	}
}

// appendAny checks that a write that expects Any succeeds at every revision.
func appendAny(e *env) {
	s := e.store()
	const writers, each = 8, 5
	concurrently(writers, func(int) {
		for range each {
			if _, err := s.Append(e.ctx(), write("account-1", eventstore.Any, 2)); err != nil {
				e.Errorf("Append at any revision = %v", err)
			}
		}
	})
	if n := len(e.audit(s)); n != writers*each*2 {
		e.Errorf("the log has %d events, want %d", n, writers*each*2)
	}
}

// appendInvalid checks that a store refuses what Commit.Check refuses.
func appendInvalid(e *env) {
	s := e.store()
	long := strings.Repeat("x", eventstore.MaxName+1)
	change := func(f func(c *eventstore.Commit, ev *eventstore.Event)) eventstore.Commit {
		c := write("account-1", eventstore.NoStream, 1)
		f(&c, &c.Writes[0].Events[0])
		return c
	}
	type commit = eventstore.Commit
	type ev = eventstore.Event
	claim := eventstore.Claim{Kind: "email", Key: "k", Owner: "account-1"}
	bad := []commit{
		{},
		{Claim: []eventstore.Claim{claim}},
		write("", eventstore.NoStream, 1),
		write(long, eventstore.NoStream, 1),
		write("account-1", eventstore.Any-1, 1),
		write("account-1", eventstore.NoStream, 0),
		write("account-1", eventstore.NoStream, eventstore.MaxEvents+1),
		twoWrites(write("account-1", eventstore.NoStream, 1).Writes[0], write("account-1", 0, 1).Writes[0]),
		twoWrites(write("account-1", eventstore.NoStream, 1).Writes[0], write("account-2", eventstore.NoStream, 0).Writes[0]),
		change(func(_ *commit, ev *ev) { ev.ID = [16]byte{} }),
		change(func(_ *commit, ev *ev) { ev.Type = "" }),
		change(func(_ *commit, ev *ev) { ev.Type = long }),
		change(func(_ *commit, ev *ev) { ev.Actor = long }),
		change(func(_ *commit, ev *ev) { ev.Clear = make([]byte, eventstore.MaxClear+1) }),
		change(func(_ *commit, ev *ev) { ev.KeyID[0], ev.Sealed = 1, make([]byte, eventstore.MaxSealed+1) }),
		change(func(_ *commit, ev *ev) { ev.KeyID[0] = 1 }),
		change(func(_ *commit, ev *ev) { ev.Sealed = []byte("x") }),
		change(func(c *commit, ev *ev) { *ev, c.Writes[0].Expected = sealedEvent(), eventstore.Any }),
	}
	for _, broken := range []eventstore.Claim{
		{Key: "k", Owner: "account-1"}, {Kind: "email", Owner: "account-1"}, {Kind: "email", Key: "k"},
		{Kind: long, Key: "k", Owner: "account-1"}, {Kind: "email", Key: long, Owner: "account-1"}, {Kind: "email", Key: "k", Owner: long},
	} {
		bad = append(bad,
			change(func(c *commit, _ *ev) { c.Claim = []eventstore.Claim{claim, broken} }),
			change(func(c *commit, _ *ev) { c.Release = []eventstore.Claim{claim, broken} }))
	}
	for i, c := range bad {
		if c.Check() == nil {
			e.Fatalf("Check of invalid commit %d succeeded", i)
		}
		refused[*eventstore.InvalidError](e, s, c)
	}
	if n := len(e.log(s, 0)); n != 0 {
		e.Errorf("the log has %d events, want none", n)
	}
	// The invalid commits took no claims.
	c := write("account-2", eventstore.NoStream, 1)
	c.Claim = []eventstore.Claim{{Kind: "email", Key: "k", Owner: "account-2"}}
	e.append(s, c)
}

// appendLimits checks that a store accepts commits exactly at the limits.
func appendLimits(e *env) {
	s := e.store()
	name := strings.Repeat("ä", eventstore.MaxName/2) + "-"
	largest := eventstore.Event{ID: randomID(), Type: strings.Repeat("t", eventstore.MaxName), Actor: strings.Repeat("a", eventstore.MaxName),
		Clear: bytes.Repeat([]byte{'x'}, eventstore.MaxClear), KeyID: eventstore.KeyID{31: 1}, Sealed: bytes.Repeat([]byte{0, 255}, eventstore.MaxSealed/2)}
	c := eventstore.Commit{Writes: []eventstore.Write{{Stream: name, Expected: eventstore.NoStream, Events: []eventstore.Event{largest}}},
		Claim: []eventstore.Claim{{Kind: strings.Repeat("k", eventstore.MaxName), Key: strings.Repeat("\x00", eventstore.MaxName), Owner: name}}}
	want := expect(c, e.append(s, c), nil)
	many := write("account-1", eventstore.NoStream, eventstore.MaxEvents)
	want = append(want, expect(many, e.append(s, many), nil)...)
	e.same("the log", e.audit(s), want)
}

// appendOwnsItsBytes checks that changing an event's bytes after Append affects
// neither the log nor events read earlier.
func appendOwnsItsBytes(e *env) {
	s := e.store()
	var want, kept []eventstore.Recorded
	keep := func(recs []eventstore.Recorded) { kept = append(kept, recs...) }
	for i := range 4 {
		ev := sealedEvent()
		c := eventstore.Commit{Writes: []eventstore.Write{{Stream: "account-1", Expected: eventstore.Revision(i - 1), Events: []eventstore.Event{ev}}}}
		r := e.append(s, c)
		mine := c.Writes[0].Events[0]
		mine.Clear, mine.Sealed = bytes.Clone(ev.Clear), bytes.Clone(ev.Sealed)
		clear(ev.Clear)
		clear(ev.Sealed)
		clear(c.Writes[0].Events) // also the slice of events
		want = append(want, eventstore.Recorded{Event: mine, Stream: "account-1", Revision: eventstore.Revision(i), Position: r.First, Time: r.Time})
		keep(e.stream(s, "account-1", eventstore.Revision(i)))
		keep(e.log(s, eventstore.Position(i)))
	}
	for i, rec := range kept {
		e.same(fmt.Sprintf("event %d read before", i/2), []eventstore.Recorded{rec}, want[i/2:i/2+1])
	}
	e.same("the log", e.audit(s), want)
}

// appendCanceled checks that Append with a canceled context returns the context's
// error and appends nothing.
func appendCanceled(e *env) {
	s := e.store()
	ctx, cancel := context.WithCancel(e.Context())
	cancel()
	for range 20 {
		if _, err := s.Append(ctx, write("account-1", eventstore.Any, 1)); !errors.Is(err, context.Canceled) {
			e.Fatalf("Append with a canceled context = %v, want context.Canceled", err)
		}
	}
	e.append(s, write("account-1", eventstore.NoStream, 1))
	if n := len(e.audit(s)); n != 1 {
		e.Errorf("the log has %d events, want 1", n)
	}
}

// appendPositions checks that positions have no gaps, and that receipts have the
// right positions.
func appendPositions(e *env) {
	s := e.store()
	const writers, each = 8, 6
	type done struct {
		c eventstore.Commit
		r eventstore.Receipt
	}
	commits := make([][]done, writers)
	concurrently(writers, func(i int) {
		for j := range each {
			c := write(fmt.Sprintf("account-%d", (i+j)%3), eventstore.Any, 1+j%3)
			r, err := s.Append(e.ctx(), c)
			if err != nil {
				e.Errorf("Append = %v", err)
			}
			commits[i] = append(commits[i], done{c, r})
			// A refused commit in between uses no position.
			if _, err := s.Append(e.ctx(), write("account-0", 1<<40, 2)); err == nil {
				e.Errorf("Append at a revision that the stream never had succeeded")
			}
		}
	})
	log := e.audit(s)
	total := 0
	for _, of := range commits {
		last := eventstore.Position(0)
		for _, d := range of {
			n := len(d.c.Writes[0].Events)
			total += n
			if d.r.First < 1 || int(d.r.Last) > len(log) || d.r.Last-d.r.First != eventstore.Position(n-1) {
				e.Fatalf("a receipt for %d events has positions %d to %d in a log of %d events", n, d.r.First, d.r.Last, len(log))
			}
			if d.r.First <= last {
				e.Errorf("an append got position %d, but the same writer's previous append got %d", d.r.First, last)
			}
			last = d.r.Last
			got := log[d.r.First-1 : d.r.Last]
			e.same("the events of a receipt", got, expect(d.c, d.r, map[string]eventstore.Revision{d.c.Writes[0].Stream: got[0].Revision - 1}))
		}
	}
	if len(log) != total {
		e.Errorf("the log has %d events, want %d", len(log), total)
	}
}

// appendTimes checks that times are the time of recording, in UTC and
// microseconds, that they never go back, and that a commit's events and its
// receipt have the same time.
func appendTimes(e *env) {
	s := e.store()
	const skew = time.Minute // allowed for the clock of a backend on another machine
	begun := time.Now()
	for i := range 20 {
		r := e.append(s, write("account-1", eventstore.Any, 1+i%2))
		for _, rec := range e.log(s, r.First-1) {
			if !rec.Time.Equal(r.Time) {
				e.Errorf("an event has time %v, but its receipt has %v", rec.Time, r.Time)
			}
			for _, at := range []time.Time{rec.Time, r.Time} {
				if at.Location() != time.UTC || at.Nanosecond()%1000 != 0 {
					e.Errorf("the time %v is not in UTC and microseconds", at)
				}
			}
		}
		if r.Time.Before(begun.Add(-skew)) || r.Time.After(time.Now().Add(skew)) {
			e.Errorf("the receipt has time %v, but it is now %v", r.Time, time.Now())
		}
	}
	e.audit(s)
}
