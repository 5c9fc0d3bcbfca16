// Package eventstore is the port behind which the log lives: the ledger's one
// source of truth, an append-only sequence of events cut into streams.
//
// The package has no dependency outside the standard library. What an
// implementation must do is said by the suite in eventstoretest and nowhere
// else; the adapters are eventstore/sqlite and, later, eventstore/esdb.
package eventstore

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"
)

// Revision is the place of an event in its stream, counted from 0 as
// EventStoreDB counts.
type Revision int64

// What a write may expect of its stream besides a revision.
const (
	NoStream Revision = -1 // the stream has no event yet
	Any      Revision = -2 // whatever the stream holds; refused for events with a sealed part
)

// Position is the place of an event in the whole log: 1, 2, 3, ... without
// holes. 0 is the place before the first event.
type Position int64

// Limits every store enforces, so that an event that one backend took fits
// into each other one and into a tile of the proof tree.
const (
	MaxClear  = 32 << 10 // bytes of Event.Clear: a leaf must stay under 64 KiB
	MaxSealed = 1 << 20  // bytes of Event.Sealed
	MaxName   = 255      // bytes of Event.Type, Event.Actor and of a stream's name
	MaxEvents = 1 << 10  // events of one commit
)

// KeyID names the data key an event's personal part is sealed under and
// commits to it, see package seal. The zero KeyID says that the event has no
// personal part.
type KeyID [32]byte

// Event is a fact to be appended. It crosses the port already sealed: a store
// sees clear bytes, sealed bytes and the id of a key, never a key.
type Event struct {
	ID     [16]byte // UUID, unique over all events
	Type   string   // dotted, with its version: "account.created.v1"
	Actor  string   // who caused it: "kind:id"
	Clear  []byte   // JSON; kept and proved byte for byte, forever
	KeyID  KeyID    // zero, or the key of Sealed
	Sealed []byte   // ciphertext of the personal part; deleted by erasure
}

// Recorded is an event as the log holds it. Its slices may be kept and are
// shared with other readers: nobody changes them.
type Recorded struct {
	Event
	Stream   string
	Revision Revision
	Position Position
	Time     time.Time // when it was recorded; UTC, microseconds, never less than its predecessor's
}

// Erased reports whether the event had a personal part that is gone.
func (r Recorded) Erased() bool { return r.KeyID != KeyID{} && r.Sealed == nil }

// Write appends events, in order, to one stream that is at revision Expected.
type Write struct {
	Stream   string
	Expected Revision
	Events   []Event
}

// Claim is a key that has at most one owner: how "one identifier belongs to
// at most one account" holds under any concurrency. A claim is an index entry,
// not an event: it can be deleted without a trace.
type Claim struct {
	Kind  string // of identifier: "email"; shown to a loser
	Key   string // opaque bytes, an HMAC: never the value itself; unique within its kind
	Owner string // a stream
}

// Commit is what one append does: all of it or nothing.
type Commit struct {
	Writes  []Write // at least one event in all; a stream at most once
	Release []Claim // given up first; a claim that Owner does not hold is ignored
	Claim   []Claim // then taken; one that Owner already holds is fine
}

// Receipt says where a commit's events are: they lie side by side, in the
// order of the writes, from First to Last.
type Receipt struct {
	First, Last Position
	Time        time.Time // when they were recorded
}

// Store is the log. All methods may be called at once by many goroutines.
type Store interface {
	// Append makes c durable before it returns. It refuses, without a trace,
	// with *ConflictError, *ClaimError, *InvalidError, or errors.ErrUnsupported
	// where c has more writes than this backend can commit as one.
	// When it returns ctx's error, nothing was appended.
	Append(ctx context.Context, c Commit) (Receipt, error)

	// ReadStream yields the events of a stream from a revision on, up to what
	// was there at the call. A stream without events yields nothing.
	ReadStream(ctx context.Context, stream string, from Revision) iter.Seq2[Recorded, error]

	// Subscribe yields the events after a position, first those there are and
	// then those to come, in pages: a page holds what was at hand, at least
	// one event, so that a follower can commit its work once a page and is
	// never behind for waiting. It ends with an error, ctx's among them.
	// The page is the caller's only until the next one.
	Subscribe(ctx context.Context, after Position) iter.Seq2[[]Recorded, error]

	// Head is the position of the last event, 0 in an empty log.
	Head(ctx context.Context) (Position, error)

	// Erase deletes, in these streams, the sealed parts that are sealed under
	// key: their events are read without, from then on. When it returns nil the
	// bytes are gone from every file the store has. Nothing else changes, and
	// erasing again is fine.
	Erase(ctx context.Context, key KeyID, streams ...string) error

	// Close ends running subscriptions with ErrClosed. Closing again is fine.
	Close() error
}

// StreamReader is a Store that can also be read one stream after another: so
// whoever makes something of each stream needs to hold one at a time only. A
// backend that cannot read so quicker than by ReadStream is not one.
type StreamReader interface {
	// ByStream yields the events up to a position, in pages like those of
	// Subscribe: each stream whole, from its first event on, and the streams in
	// an order that is the same each time. It ends after the last, or with an
	// error. A position after Head reads up to Head.
	ByStream(ctx context.Context, to Position) iter.Seq2[[]Recorded, error]
}

// ErrClosed is returned by everything a closed store is asked.
var ErrClosed = errors.New("eventstore: closed")

// ConflictError reports that a stream was not at the revision a write expected.
type ConflictError struct {
	Stream           string
	Expected, Actual Revision // Actual is NoStream for an empty stream
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("eventstore: stream %s is at revision %d, not %d", e.Stream, e.Actual, e.Expected)
}

// ClaimError reports that a claim belongs to another owner.
type ClaimError struct {
	Claim Claim  // as it was asked for
	Owner string // who holds it
}

func (e *ClaimError) Error() string {
	return fmt.Sprintf("eventstore: claim of kind %s is held by another stream", e.Claim.Kind)
}

// InvalidError reports a commit that no store would take.
type InvalidError struct{ Reason string }

func (e *InvalidError) Error() string { return "eventstore: invalid commit: " + e.Reason }

// Check returns an *InvalidError if c breaks a rule that does not depend on
// what the store holds. Every store calls it first.
func (c Commit) Check() error {
	refuse := func(format string, args ...any) error { return &InvalidError{fmt.Sprintf(format, args...)} }
	seen := make(map[string]bool, len(c.Writes))
	events := 0
	for _, w := range c.Writes {
		switch {
		case w.Stream == "" || len(w.Stream) > MaxName:
			return refuse("a stream's name has 1 to %d bytes", MaxName)
		case seen[w.Stream]:
			return refuse("stream %s is written twice", w.Stream)
		case w.Expected < Any:
			return refuse("expected revision %d of stream %s", w.Expected, w.Stream)
		case len(w.Events) == 0:
			return refuse("no events for stream %s", w.Stream)
		}
		seen[w.Stream] = true
		events += len(w.Events)
		for _, e := range w.Events {
			sealed := e.KeyID != KeyID{}
			switch {
			case e.ID == [16]byte{}:
				return refuse("an event without an id")
			case e.Type == "" || len(e.Type) > MaxName:
				return refuse("an event's type has 1 to %d bytes", MaxName)
			case len(e.Actor) > MaxName:
				return refuse("an event's actor has at most %d bytes", MaxName)
			case len(e.Clear) > MaxClear:
				return refuse("the clear part of %s has more than %d bytes", e.Type, MaxClear)
			case len(e.Sealed) > MaxSealed:
				return refuse("the sealed part of %s has more than %d bytes", e.Type, MaxSealed)
			case sealed != (len(e.Sealed) > 0):
				return refuse("%s has a key without a sealed part or a sealed part without a key", e.Type)
			case sealed && w.Expected == Any:
				return refuse("%s is sealed for its revision, so its write must expect one", e.Type)
			}
		}
	}
	if events == 0 || events > MaxEvents {
		return refuse("a commit has 1 to %d events", MaxEvents)
	}
	for _, claims := range [][]Claim{c.Claim, c.Release} {
		for _, k := range claims {
			if k.Kind == "" || k.Key == "" || k.Owner == "" || len(k.Kind) > MaxName || len(k.Key) > MaxName || len(k.Owner) > MaxName {
				return refuse("a claim has a kind, a key and an owner of at most %d bytes each", MaxName)
			}
		}
	}
	return nil
}
