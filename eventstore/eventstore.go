// Package eventstore defines the port to the event log, the ledger's single
// source of truth: an append-only sequence of events, divided into streams.
//
// The package imports only the standard library. The suite in eventstoretest
// specifies what an implementation must do; eventstore/sqlite implements it.
package eventstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"time"
)

// Revision is the index of an event in its stream. It starts at 0, as in
// EventStoreDB.
type Revision int64

// Special values of Write.Expected.
const (
	NoStream Revision = -1 // the stream has no events yet
	Any      Revision = -2 // no expectation; not allowed for events with a sealed part
)

// Position is the index of an event in the whole log: 1, 2, 3, ... without
// gaps. 0 means before the first event.
type Position int64

// Limits that every store enforces, so that an event accepted by one backend
// fits into any other and into an entry tile of the Merkle tree.
const (
	MaxClear  = 32 << 10 // bytes of Event.Clear; keeps the tree's leaf under 64 KiB
	MaxSealed = 1 << 20  // bytes of Event.Sealed
	MaxName   = 255      // bytes of Event.Type, Event.Actor and of a stream's name
	MaxEvents = 1 << 10  // events in one commit
)

// KeyID identifies the data key that seals an event's personal part, and
// commits to that key; see package seal. The zero KeyID means that the event
// has no personal part.
type KeyID [32]byte

// Slot returns the slot of the key, the first part of its ID. Package seal
// numbers keys in the order of their creation, from 1.
func (k KeyID) Slot() uint64 { return binary.BigEndian.Uint64(k[:8]) }

// KeyState is what a store remembers about the file of the keys beside it, to
// notice an older copy of it.
type KeyState struct {
	Slot      uint64 // the highest slot of a key
	Changes   int64  // of secrets, so far
	Destroyed int64  // keys, so far
}

// Event is an event to append. The caller seals the personal part first: a
// store sees clear bytes, sealed bytes and a key ID, never a key.
type Event struct {
	ID     [16]byte // UUID, unique across all events
	Type   string   // dotted name with a version: "account.created.v1"
	Actor  string   // who caused the event: "kind:id"
	Clear  []byte   // JSON; stored and hashed byte for byte, permanently
	KeyID  KeyID    // key that seals Sealed; zero if there is none
	Sealed []byte   // ciphertext of the personal part; erasure deletes it
}

// Recorded is an event as stored in the log. Readers may keep its slices, but
// must not modify them: other readers share them.
type Recorded struct {
	Event
	Stream   string
	Revision Revision
	Position Position
	Time     time.Time // when the store recorded it; UTC, in microseconds, never earlier than the previous event's
}

// Erased reports whether the event's personal part has been erased.
func (r Recorded) Erased() bool { return r.KeyID != KeyID{} && r.Sealed == nil }

// Write appends events, in order, to a stream whose last revision is Expected.
type Write struct {
	Stream   string
	Expected Revision
	Events   []Event
}

// Claim is a unique key with at most one owner. Claims guarantee, under any
// concurrency, that an identifier belongs to at most one account. A claim is
// an index entry, not an event: deleting it leaves no trace in the log.
type Claim struct {
	Kind  string // kind of identifier, such as "email"; reported to a caller whose claim is refused
	Key   string // opaque bytes, an HMAC of the value, never the value itself; unique within Kind
	Owner string // name of the owning stream
}

// Commit is the argument of Append. A store applies all of it or nothing.
type Commit struct {
	Writes  []Write // with at least one event in total; at most one write per stream
	Release []Claim // released first; a store ignores claims that Owner does not hold
	Claim   []Claim // taken next; claiming a key that Owner already holds succeeds
}

// Receipt reports where a commit's events are in the log: at consecutive
// positions from First to Last, in the order of the writes.
type Receipt struct {
	First, Last Position
	Time        time.Time // of all events of the commit
}

// Store is an event log. Its methods are safe for concurrent use.
type Store interface {
	// Append makes c durable before it returns. It refuses c, and changes
	// nothing, with *ConflictError, *ClaimError, *InvalidError, or with
	// errors.ErrUnsupported if this backend cannot commit as many writes
	// atomically. If it returns ctx's error, nothing was appended.
	Append(ctx context.Context, c Commit) (Receipt, error)

	// ReadStream yields the events of a stream, starting at revision from and
	// ending with the last event at the time of the call. A stream without
	// events yields nothing.
	ReadStream(ctx context.Context, stream string, from Revision) iter.Seq2[Recorded, error]

	// ReadProven is ReadStream for events that the caller acts on: it fails with
	// ErrTampered unless every event is in the tree whose root the store has
	// sealed. It costs a few hashes for each event.
	ReadProven(ctx context.Context, stream string, from Revision) iter.Seq2[Recorded, error]

	// Streams yields the names of the streams that begin with prefix, in the
	// order of their bytes. Streams that only hold claims may be among them.
	Streams(ctx context.Context, prefix string) iter.Seq2[string, error]

	// Prove reads the events up to a position, which Head has returned, and fails
	// with ErrTampered unless they have the root that the store has sealed. It
	// calls progress, if not nil, with numbers of events.
	Prove(ctx context.Context, to Position, progress func(done, total int64)) error

	// Subscribe yields all events after a position, first the existing ones,
	// then new ones as they are appended. A page holds the events available
	// at that moment, at least one, so that a follower can commit once per
	// page without ever waiting for a page to fill. The sequence ends with an
	// error, for example ctx's. A page is valid only until the next one.
	Subscribe(ctx context.Context, after Position) iter.Seq2[[]Recorded, error]

	// Head returns the position of the last event, 0 in an empty log.
	Head(ctx context.Context) (Position, error)

	// Erase deletes the sealed parts under key in the given streams; later
	// reads return these events without them. When Erase returns nil, the
	// bytes are gone from all of the store's files. It changes nothing else
	// and is idempotent.
	Erase(ctx context.Context, key KeyID, streams ...string) error

	// Reclaim replaces all claims by those of a version of the rules that make
	// claims, in one transaction. The first of several owners of a key holds it;
	// the others wait, and get it in their order when it is released. Claims and
	// Release treat a waiting claim like one that its owner does not hold, except
	// that a release ends the wait.
	Reclaim(ctx context.Context, version int, claims iter.Seq2[Claim, error]) error

	// ClaimsVersion returns the version of the last Reclaim. A new store has the
	// version that it was created with.
	ClaimsVersion(ctx context.Context) (int, error)

	// Close ends running subscriptions with ErrClosed. It is idempotent.
	Close() error
}

// StreamReader is implemented by a Store that can read the log stream by
// stream, so that a caller that processes whole streams needs to hold only
// one at a time. A backend implements it only if that is faster than calling
// ReadStream for each stream.
type StreamReader interface {
	// ByStream yields the events up to a position in pages, as Subscribe does:
	// each stream completely, from its first event, and the streams in the
	// order of their creation, by an event or a claim. The sequence ends after the last
	// event or with an error. A position after Head means Head.
	ByStream(ctx context.Context, to Position) iter.Seq2[[]Recorded, error]
}

// ErrTampered reports that an event is not what the store appended: the log's
// files were changed by another program. The store accepts no more appends.
var ErrTampered = errors.New("eventstore: the log is not what this ledger wrote")

// ErrClosed is returned by all methods of a closed store except Close.
var ErrClosed = errors.New("eventstore: closed")

// ConflictError reports that a stream is not at the revision a write expects.
type ConflictError struct {
	Stream           string
	Expected, Actual Revision // Actual is NoStream for an empty stream
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("eventstore: stream %s is at revision %d, not %d", e.Stream, e.Actual, e.Expected)
}

// ClaimError reports that another owner holds a claim.
type ClaimError struct {
	Claim Claim  // as requested
	Owner string // the stream that holds it
}

func (e *ClaimError) Error() string {
	return fmt.Sprintf("eventstore: claim of kind %s is held by another stream", e.Claim.Kind)
}

// InvalidError reports a commit that every store refuses; see Commit.Check.
type InvalidError struct{ Reason string }

func (e *InvalidError) Error() string { return "eventstore: invalid commit: " + e.Reason }

// Check returns an *InvalidError if c violates a rule that does not depend on
// the store's content. Every store calls it at the start of Append.
func (c Commit) Check() error {
	refuse := func(format string, args ...any) error { return &InvalidError{fmt.Sprintf(format, args...)} }
	seen := make(map[string]bool, len(c.Writes))
	events := 0
	for _, w := range c.Writes {
		switch {
		case w.Stream == "" || len(w.Stream) > MaxName:
			return refuse("a stream name must have 1 to %d bytes", MaxName)
		case seen[w.Stream]:
			return refuse("two writes to stream %s", w.Stream)
		case w.Expected < Any:
			return refuse("the expected revision %d of stream %s is not valid", w.Expected, w.Stream)
		case len(w.Events) == 0:
			return refuse("the write to stream %s has no events", w.Stream)
		}
		seen[w.Stream] = true
		events += len(w.Events)
		for _, e := range w.Events {
			sealed := e.KeyID != KeyID{}
			switch {
			case e.ID == [16]byte{}:
				return refuse("an event has no ID")
			case e.Type == "" || len(e.Type) > MaxName:
				return refuse("an event type must have 1 to %d bytes", MaxName)
			case len(e.Actor) > MaxName:
				return refuse("an event's actor must have at most %d bytes", MaxName)
			case len(e.Clear) > MaxClear:
				return refuse("the clear part of %s has more than %d bytes", e.Type, MaxClear)
			case len(e.Sealed) > MaxSealed:
				return refuse("the sealed part of %s has more than %d bytes", e.Type, MaxSealed)
			case sealed != (len(e.Sealed) > 0):
				return refuse("%s has a key ID without a sealed part, or a sealed part without a key ID", e.Type)
			case sealed && w.Expected == Any:
				return refuse("%s is sealed for one revision, so the write must expect a revision", e.Type)
			}
		}
	}
	if events == 0 || events > MaxEvents {
		return refuse("a commit must have 1 to %d events", MaxEvents)
	}
	for _, claims := range [][]Claim{c.Claim, c.Release} {
		for _, k := range claims {
			if k.Kind == "" || k.Key == "" || k.Owner == "" || len(k.Kind) > MaxName || len(k.Key) > MaxName || len(k.Owner) > MaxName {
				return refuse("a claim must have a kind, a key and an owner of 1 to %d bytes each", MaxName)
			}
		}
	}
	return nil
}
