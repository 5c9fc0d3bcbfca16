// Package eventstoretest is the conformance suite for eventstore.Store. It
// defines the port: each guarantee in the port's comments has a case here, named
// after it, and a backend is complete when Run passes.
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

// Run checks that the stores that open returns conform to eventstore.Store. Each
// case gets a separate, empty directory; opening a directory again after Close
// must return the same log. Cases run in parallel.
//
// A backend that cannot commit several writes atomically must refuse them with
// errors.ErrUnsupported; the affected cases then check that the refusal changes
// nothing. If a store implements eventstore.StreamReader, Run checks that, too.
// Nothing else is optional.
func Run(t *testing.T, open func(t *testing.T, dir string) eventstore.Store) {
	for _, c := range cases() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dial := func(dir string) eventstore.Store { return open(t, dir) }
			// A long timeout, for a machine under load.
			c.run(&env{TB: t, dial: dial, timeout: 30 * time.Second})
		})
	}
}

// testCase checks one guarantee of the port.
type testCase struct {
	name string
	run  func(*env)
}

func cases() []testCase {
	return slices.Concat(appendCases(), claimCases(), reclaimCases(), readCases(), provenCases(), subscribeCases(), []testCase{
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

// env is the environment of a case. Its TB is a *testing.T, or a recorder when
// the suite tests itself.
type env struct {
	testing.TB
	dial    func(dir string) eventstore.Store
	timeout time.Duration // for each operation
}

// store opens an empty log.
func (e *env) store() eventstore.Store {
	s, _ := e.open(e.TempDir())
	return s
}

// open opens the log in dir. The returned function closes it; otherwise it is
// closed at the end of the case.
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

// ctx returns a context with the case's timeout.
func (e *env) ctx() context.Context {
	ctx, cancel := context.WithTimeout(e.Context(), e.timeout)
	e.Cleanup(cancel)
	return ctx
}

// append appends a commit that the store must accept.
func (e *env) append(s eventstore.Store, c eventstore.Commit) eventstore.Receipt {
	e.Helper()
	r, err := s.Append(e.ctx(), c)
	if err != nil {
		e.Fatalf("Append to %s = %v, want success", streams(c), err)
	}
	return r
}

// refused appends a commit that the store must refuse with an error of type E,
// and checks that the head has not changed.
func refused[E error](e *env, s eventstore.Store, c eventstore.Commit) (refusal E) {
	e.Helper()
	before := e.head(s)
	if _, err := s.Append(e.ctx(), c); !errors.As(err, &refusal) {
		e.Fatalf("Append to %s = %v, want %T", streams(c), err, refusal)
	}
	if after := e.head(s); after != before {
		e.Fatalf("a refused Append changed the head from %d to %d", before, after)
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

// stream reads a stream, starting at a revision.
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

// audit reads the whole log and checks the invariants of every log: positions
// and revisions have no gaps, times never go back, and reading a stream yields
// the same events as reading the log.
func (e *env) audit(s eventstore.Store) []eventstore.Recorded {
	e.Helper()
	all := e.log(s, 0)
	byStream := map[string][]eventstore.Recorded{}
	for i, rec := range all {
		if rec.Position != eventstore.Position(i+1) {
			e.Fatalf("event %d of the log has position %d", i+1, rec.Position)
		}
		if i > 0 && rec.Time.Before(all[i-1].Time) {
			e.Errorf("the event at position %d has time %v, earlier than its predecessor's %v", rec.Position, rec.Time, all[i-1].Time)
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

// same checks that got equals want.
func (e *env) same(what string, got, want []eventstore.Recorded) {
	e.Helper()
	if err := compare(got, want); err != nil {
		e.Errorf("%s: %v", what, err)
	}
}

// compare returns an error that describes the first difference. Nil and empty
// byte slices are equal, because the zero KeyID tells that there is no sealed
// part.
func compare(got, want []eventstore.Recorded) error {
	for i := range min(len(got), len(want)) {
		g, w := got[i], want[i]
		if g.Position != w.Position || g.Stream != w.Stream || g.Revision != w.Revision || !g.Time.Equal(w.Time) ||
			g.ID != w.ID || g.Type != w.Type || g.Actor != w.Actor || !bytes.Equal(g.Clear, w.Clear) ||
			g.KeyID != w.KeyID || !bytes.Equal(g.Sealed, w.Sealed) {
			return fmt.Errorf("event %d of %d differs:\n got %s\nwant %s", i+1, len(want), format(g), format(w))
		}
	}
	if len(got) != len(want) {
		return fmt.Errorf("%d events, want %d", len(got), len(want))
	}
	return nil
}

// format returns an event in one line, with its bytes truncated.
func format(r eventstore.Recorded) string {
	return fmt.Sprintf("position %d, %.40q revision %d, %v, id %x, type %.40q, actor %.40q, clear %d %.40q, key %x, sealed %d %.20x", r.Position,
		r.Stream, r.Revision, r.Time, r.ID, r.Type, r.Actor, len(r.Clear), r.Clear, r.KeyID[:4], len(r.Sealed), r.Sealed)
}

// event returns an event without a personal part.
func event() eventstore.Event {
	id := randomID()
	return eventstore.Event{ID: id, Type: "test.happened.v1", Actor: "user:7", Clear: fmt.Appendf(nil, `{"n":"%x"}`, id[:4])}
}

// sealedEvent returns an event with a personal part.
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

// randomID returns a UUID of version 4 (RFC 9562, section 5.4).
func randomID() (id [16]byte) {
	rand.Read(id[:])
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	return id
}

// write returns a commit of n events to one stream.
func write(stream string, expected eventstore.Revision, n int) eventstore.Commit {
	return eventstore.Commit{Writes: []eventstore.Write{{Stream: stream, Expected: expected, Events: events(n)}}}
}

func streams(c eventstore.Commit) (names []string) {
	for _, w := range c.Writes {
		names = append(names, w.Stream)
	}
	return names
}

// expect returns the events that the log must contain after c was appended with
// receipt r, to streams whose last revisions were those in at.
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
