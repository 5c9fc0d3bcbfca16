// Package eventstoretest says what an eventstore.Store must do. Run is the
// definition of the port: each promise of its comments is a case here, named
// for the promise, and a backend is finished when all of them pass. Faulty is
// a store that fails on cue, for the tests of those who use one.
package eventstoretest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"accountledger/eventstore"
)

// Run checks that what open returns is an eventstore.Store. Each case gets an
// empty directory of its own; opening a directory again, after Close, must
// give the same log. Cases run in parallel.
//
// A backend that cannot commit several writes as one says so with
// errors.ErrUnsupported; the cases that need it then check that the refusal
// leaves no trace. One that is an eventstore.StreamReader is held to that, too.
// Nothing else is optional.
func Run(t *testing.T, open func(t *testing.T, dir string) eventstore.Store) {
	for _, c := range cases() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dial := func(dir string) eventstore.Store { return open(t, dir) }
			// The patience is for a machine that does much else besides.
			c.run(&env{TB: t, dial: dial, patience: 30 * time.Second})
		})
	}
}

// promise is a case: a name for what is promised, and its proof.
type promise struct {
	name string
	run  func(*env)
}

func cases() []promise {
	return slices.Concat(appendCases(), claimCases(), readCases(), subscribeCases(), []promise{
		{"ByStream", byStream},
		{"Head", head},
		{"Erase", erase},
		{"Closed", closed},
		{"Reopen", reopen},
		{"Cancel", cancelAtRandom},
		{"Model", agreesWithModel},
		{"Linearizable", linearizable},
	})
}

// env is what a case works with. Its TB is a *testing.T, or what the suite's
// own test puts there to see a case fail.
type env struct {
	testing.TB
	dial     func(dir string) eventstore.Store
	patience time.Duration // how long to wait for what must happen
}

// store is an empty log.
func (e *env) store() eventstore.Store {
	s, _ := e.open(e.TempDir())
	return s
}

// open opens the log in dir. It is closed at the end of the case, if the
// function returned has not closed it before.
func (e *env) open(dir string) (s eventstore.Store, close func()) {
	e.Helper()
	s = e.dial(dir)
	close = sync.OnceFunc(func() {
		if err := s.Close(); err != nil {
			e.Errorf("Close = %v", err)
		}
	})
	e.Cleanup(close)
	return s, close
}

// ctx ends when the case's patience does.
func (e *env) ctx() context.Context {
	ctx, cancel := context.WithTimeout(e.Context(), e.patience)
	e.Cleanup(cancel)
	return ctx
}

// append appends what must be taken.
func (e *env) append(s eventstore.Store, c eventstore.Commit) eventstore.Receipt {
	e.Helper()
	r, err := s.Append(e.ctx(), c)
	if err != nil {
		e.Fatalf("Append to %s = %v, want success", streams(c), err)
	}
	return r
}

// refused appends what must be refused with an error of type E, and without
// having moved the log's head.
func refused[E error](e *env, s eventstore.Store, c eventstore.Commit) (refusal E) {
	e.Helper()
	before := e.head(s)
	if _, err := s.Append(e.ctx(), c); !errors.As(err, &refusal) {
		e.Fatalf("Append to %s = %v, want %T", streams(c), err, refusal)
	}
	if after := e.head(s); after != before {
		e.Fatalf("a refused Append moved the head from %d to %d", before, after)
	}
	return refusal
}

func (e *env) head(s eventstore.Store) eventstore.Position {
	e.Helper()
	head, err := s.Head(e.ctx())
	if err != nil {
		e.Fatalf("Head = %v", err)
	}
	return head
}

// stream reads a stream from a revision on.
func (e *env) stream(s eventstore.Store, name string, from eventstore.Revision) (all []eventstore.Recorded) {
	e.Helper()
	for rec, err := range s.ReadStream(e.ctx(), name, from) {
		if err != nil {
			e.Fatalf("ReadStream of %s from %d = %v", name, from, err)
		}
		all = append(all, rec)
	}
	return all
}

// log reads the log after a position, up to its head.
func (e *env) log(s eventstore.Store, after eventstore.Position) (all []eventstore.Recorded) {
	e.Helper()
	head := e.head(s)
	if head <= after {
		return nil
	}
	for page, err := range s.Subscribe(e.ctx(), after) {
		if err != nil {
			e.Fatalf("Subscribe after %d, at %d events of %d: %v", after, len(all), head-after, err)
		}
		all = append(all, page...)
		if len(all) > 0 && all[len(all)-1].Position >= head {
			break
		}
	}
	return all
}

// audit reads the whole log and checks what must hold of any: positions and
// revisions without holes, times that never go back, streams that agree.
func (e *env) audit(s eventstore.Store) []eventstore.Recorded {
	e.Helper()
	all := e.log(s, 0)
	byStream := map[string][]eventstore.Recorded{}
	for i, rec := range all {
		if rec.Position != eventstore.Position(i+1) {
			e.Fatalf("event %d of the log has position %d", i+1, rec.Position)
		}
		if i > 0 && rec.Time.Before(all[i-1].Time) {
			e.Errorf("position %d is of %v, its predecessor of %v", rec.Position, rec.Time, all[i-1].Time)
		}
		of := byStream[rec.Stream]
		if rec.Revision != eventstore.Revision(len(of)) {
			e.Fatalf("event %d of stream %s has revision %d", len(of), rec.Stream, rec.Revision)
		}
		byStream[rec.Stream] = append(of, rec)
	}
	for name, want := range byStream {
		e.same("stream "+name, e.stream(s, name, 0), want)
	}
	return all
}

// same checks that events are those wanted.
func (e *env) same(what string, got, want []eventstore.Recorded) {
	e.Helper()
	if err := differ(got, want); err != nil {
		e.Errorf("%s: %v", what, err)
	}
}

// differ says where events are first not those wanted. Nil and empty bytes are
// the same: only the zero KeyID says that there is no sealed part.
func differ(got, want []eventstore.Recorded) error {
	for i := range min(len(got), len(want)) {
		g, w := got[i], want[i]
		if g.Position != w.Position || g.Stream != w.Stream || g.Revision != w.Revision || !g.Time.Equal(w.Time) ||
			g.ID != w.ID || g.Type != w.Type || g.Actor != w.Actor || !bytes.Equal(g.Clear, w.Clear) ||
			g.KeyID != w.KeyID || !bytes.Equal(g.Sealed, w.Sealed) {
			return fmt.Errorf("event %d of %d:\n got %s\nwant %s", i+1, len(want), show(g), show(w))
		}
	}
	if len(got) != len(want) {
		return fmt.Errorf("%d events, want %d", len(got), len(want))
	}
	return nil
}

// show is an event in one line, its bytes cut short.
func show(r eventstore.Recorded) string {
	return fmt.Sprintf("position %d, %.40q revision %d, %v, id %x, type %.40q, actor %.40q, clear %d %.40q, key %x, sealed %d %.20x", r.Position,
		r.Stream, r.Revision, r.Time, r.ID, r.Type, r.Actor, len(r.Clear), r.Clear, r.KeyID[:4], len(r.Sealed), r.Sealed)
}

// event makes an event without a personal part.
func event() eventstore.Event {
	id := randomID()
	return eventstore.Event{ID: id, Type: "test.happened.v1", Actor: "user:7", Clear: fmt.Appendf(nil, `{"n":"%x"}`, id[:4])}
}

// sealedEvent makes an event with one.
func sealedEvent() eventstore.Event {
	ev := event()
	rand.Read(ev.KeyID[:])
	ev.Sealed = make([]byte, 60)
	rand.Read(ev.Sealed)
	return ev
}

func events(n int) []eventstore.Event {
	all := make([]eventstore.Event, n)
	for i := range all {
		all[i] = event()
	}
	return all
}

// randomID is a UUID as RFC 9562, section 5.4, makes them.
func randomID() (id [16]byte) {
	rand.Read(id[:])
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	return id
}

// write is a commit of n events to one stream.
func write(stream string, expected eventstore.Revision, n int) eventstore.Commit {
	return eventstore.Commit{Writes: []eventstore.Write{{Stream: stream, Expected: expected, Events: events(n)}}}
}

func streams(c eventstore.Commit) (names []string) {
	for _, w := range c.Writes {
		names = append(names, w.Stream)
	}
	return names
}

// expect is what the log holds after c, appended to streams at these
// revisions, got its receipt.
func expect(c eventstore.Commit, r eventstore.Receipt, at map[string]eventstore.Revision) (all []eventstore.Recorded) {
	for _, w := range c.Writes {
		revision, known := at[w.Stream]
		if !known {
			revision = eventstore.NoStream
		}
		for _, ev := range w.Events {
			revision++
			all = append(all, eventstore.Recorded{
				Event: ev, Stream: w.Stream, Revision: revision,
				Position: r.First + eventstore.Position(len(all)), Time: r.Time,
			})
		}
	}
	return all
}
