package domain

import (
	"context"
	"errors"
	"slices"
	"time"

	"accountledger/eventstore"
)

// aggregate is the state that the events of one stream fold to: an Account, the
// Config, the APIKeys or a Webhook. Values are shared, so no method changes its
// receiver.
type aggregate[S any] interface {
	head() head
	// with returns the state after entries, which follow its last event.
	with(entries ...Entry) S
	// initial returns the state before the stream's first event.
	initial() S
}

// head is the end of a stream, and what the pipeline must know about it.
type head struct {
	stream   string
	revision eventstore.Revision // of the last event; NoStream before the first
	position eventstore.Position // of the last event
	key      eventstore.KeyID    // seals the stream's personal data; zero where there is none
	commands commands            // the latest that changed the stream

	combinedSubs string // see Metadata

	// repeatable reports whether the stream recognises repeated commands. An
	// account does so while it exists: erasing it destroys the digests of its
	// commands with its key.
	repeatable bool
}

// Request says how to carry out a command.
//
// All commands share one meaning of it, in this order. A repetition, a command
// under an id that the stream has seen, returns the first outcome and does
// nothing; with another request under the id it is refused with
// CodeIdempotencyKeyReused. A precondition that does not hold is refused with
// CodeStaleRevision, unless the object does not exist and the command is
// refused for that (RFC 9110, section 13.2.1). A dry run decides like a real one
// and stores nothing.
type Request struct {
	Meta     Metadata
	Expected *eventstore.Revision // the revision that the object must be at
	DryRun   bool
	Admin    bool // the caller may write what is read-only to users, and see and write what is internal

	// Prepare runs when a command is about to append events, to make durable
	// what they refer to, such as a secret. It may run and the append still
	// fail, so what it stores must do no harm alone. Its error ends the command.
	Prepare func(ctx context.Context) error
}

// Result is the outcome of a command.
type Result[S aggregate[S]] struct {
	State    S       // after the command; at a repetition, as it was then
	Others   []S     // further states that the command decided over, likewise
	Events   []Entry // that it caused in all of them; none if it changed nothing
	Repeated bool    // the command was carried out before; nothing was done now
}

// Position returns the position of the last event of the state's stream.
func (r Result[S]) Position() eventstore.Position { return r.State.head().position }

// order is a command as the pipeline carries it out: over one state or several,
// of which the first is the one that the caller addressed.
type order[S aggregate[S]] struct {
	Request
	noun string // of the object, in refusals
	// revision returns what Expected is compared with: the revision of the
	// object, or NoStream if it does not exist.
	revision func(S) eventstore.Revision
	// decide returns the events that the command causes in each state.
	decide func(now time.Time, states []S) ([][]Event, error)
	// encode seals entries that follow a state, and sets their keys. Nil: nothing
	// in them is personal.
	encode func(ctx context.Context, state S, entries []Entry) (eventstore.Write, error)
	// claims returns the unique keys that the commit takes and releases. Nil: none.
	claims func(before, after []S) (claim, release []eventstore.Claim)
	// keep puts a state into memory once its events are durable.
	keep func(S)
}

// tries is how often a command is decided again after a conflict with another
// writer. Only other processes conflict: this one locks the stream.
const tries = 5

// retry calls try until it does not conflict with another writer, a few times.
func retry[S aggregate[S]](try func() (Result[S], error)) (Result[S], error) {
	for range tries {
		result, err := try()
		if _, conflict := errors.AsType[*eventstore.ConflictError](err); !conflict {
			return result, err
		}
	}
	return Result[S]{}, refuse(CodeConcurrentChange, "Other requests are changing the same object; retry the request.")
}

// carryOut decides o over states and appends what was decided. A
// *eventstore.ConflictError means that a state is not the latest one.
func carryOut[S aggregate[S]](ctx context.Context, l *Ledger, o order[S], states []S) (Result[S], error) {
	if addressed := states[0].head(); addressed.repeatable {
		seen, repeated, err := l.recall(ctx, addressed.commands, o.Meta)
		if err != nil {
			return Result[S]{}, err
		}
		if repeated {
			return repetition(ctx, l, states, seen)
		}
	}
	var stale error
	if at := o.revision(states[0]); o.Expected != nil && *o.Expected != at {
		if at != eventstore.NoStream {
			return Result[S]{}, refuse(CodeStaleRevision, "The %s is at revision %d, not %d.", o.noun, at, *o.Expected)
		}
		stale = refuse(CodeStaleRevision, "The %s does not exist, so it is not at revision %d.", o.noun, *o.Expected)
	}
	now := l.now().UTC().Truncate(time.Microsecond)
	decided, err := o.decide(now, states)
	if err == nil {
		err = stale
	}
	if err != nil {
		return Result[S]{}, err
	}
	after, entries := make([]S, len(states)), make([][]Entry, len(states))
	caused := 0
	for i, s := range states {
		after[i], entries[i] = record(s, o.Meta, decided[i], now)
		caused += len(entries[i])
	}
	switch {
	case o.DryRun:
	case caused > 0:
		err = o.append(ctx, l, states, after, entries)
	case states[0].head().repeatable:
		err = l.rememberUnchanged(ctx, o.Meta, states[0].head())
	}
	if err != nil {
		return Result[S]{}, err
	}
	return Result[S]{State: after[0], Others: after[1:], Events: slices.Concat(entries...)}, nil
}

// record returns the entries of events as they will be if they are appended
// now, and the state after them.
func record[S aggregate[S]](s S, m Metadata, events []Event, now time.Time) (S, []Entry) {
	entries := make([]Entry, len(events))
	for i, e := range events {
		at := s.head()
		m.CombinedSubs = at.combinedSubs
		entries[i] = Entry{ID: NewID(), Type: e.eventType(), Stream: at.stream, Revision: at.revision + 1, Position: at.position,
			Time: now, Meta: m, Event: e}
		s = s.with(entries[i])
	}
	return s, entries
}

// append appends entries as one commit, gives them their places and their time,
// and sets after to the states that they lead to.
func (o order[S]) append(ctx context.Context, l *Ledger, before, after []S, entries [][]Entry) error {
	var commit eventstore.Commit
	for i, s := range before {
		if len(entries[i]) == 0 {
			continue
		}
		write, err := o.write(ctx, l, s, entries[i])
		if err != nil {
			return err
		}
		commit.Writes = append(commit.Writes, write)
	}
	// These writes come last, because the positions of the states' events are
	// counted from the receipt's first.
	for i, s := range before {
		if len(entries[i]) == 0 || !s.head().repeatable {
			continue
		}
		remembered, err := l.rememberForgotten(s.head(), o.Meta)
		if err == nil && i == 0 && after[0].head().repeatable {
			remembered, err = l.rememberForeign(remembered, s.head(), o.Meta, commit.Writes[0])
		}
		if err != nil {
			return err
		}
		commit.Writes = append(commit.Writes, remembered...)
	}
	if o.claims != nil {
		commit.Claim, commit.Release = o.claims(before, after)
	}
	if o.Prepare != nil {
		if err := o.Prepare(ctx); err != nil {
			return err
		}
	}
	receipt, err := l.log.Append(ctx, commit)
	if err != nil {
		return err
	}
	next := receipt.First
	for i := range entries {
		if len(entries[i]) == 0 {
			continue
		}
		for j := range entries[i] {
			entries[i][j].Position, entries[i][j].Time = next, receipt.Time
			next++
		}
		after[i] = before[i].with(entries[i]...)
		o.keep(after[i])
	}
	return nil
}

// repetition returns the outcome of a command that was carried out before.
func repetition[S aggregate[S]](ctx context.Context, l *Ledger, states []S, seen command) (Result[S], error) {
	r := Result[S]{Repeated: true, Others: slices.Clone(states[1:])}
	for i, s := range states {
		if seen.unchanged && i > 0 {
			break
		}
		var history []Entry
		caused := 0
		for x, err := range l.entries(ctx, s.head().stream, 0) {
			if err != nil {
				return Result[S]{}, err
			}
			by := x.Meta.CommandID == seen.id
			if seen.unchanged && x.Revision > seen.revision || caused > 0 && !by {
				break
			}
			if by {
				caused++
			}
			history = append(history, x)
		}
		r.Events = append(r.Events, history[len(history)-caused:]...)
		then := s.initial().with(history...)
		if i == 0 {
			r.State = then
		} else {
			r.Others[i-1] = then
		}
	}
	return r, nil
}

// write encodes entries that follow a state.
func (o order[S]) write(ctx context.Context, l *Ledger, state S, entries []Entry) (eventstore.Write, error) {
	if o.encode != nil {
		return o.encode(ctx, state, entries)
	}
	at := state.head()
	w := eventstore.Write{Stream: at.stream, Expected: at.revision}
	for _, x := range entries {
		encoded, err := l.codec.encode(x, eventstore.KeyID{})
		if err != nil {
			return w, err
		}
		w.Events = append(w.Events, encoded)
	}
	return w, nil
}
