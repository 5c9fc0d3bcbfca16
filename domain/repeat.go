package domain

import (
	"context"
	"errors"
	"slices"
	"time"

	"accountledger/eventstore"
	"accountledger/eventstore/seal"
)

// A command that is repeated under its id gets the first outcome and is not
// carried out again. The fold keeps the stream's latest command ids in memory, at
// no extra cost: commands. CommandRemembered events record those that the fold
// forgets and those that changed nothing. Each is in a stream named after the
// command's id, so it is found without an index.

// commands are the latest commands that changed a stream, newest last.
type commands []command

// command is the outcome of the command under an id.
type command struct {
	id, requestHash string
	revision        eventstore.Revision // of the stream after it
	unchanged       bool                // it caused no event
}

// maxCommands is how many commands a fold keeps. As a rule, a client repeats a
// command within seconds, before 128 others change the same stream.
const maxCommands = 128

// with returns c after x. It shares memory with c but does not change c.
func (c commands) with(x Entry) commands {
	id, n := x.Meta.CommandID, len(c)
	switch {
	case id == "":
		return c
	case n > 0 && c[n-1].id == id:
		c = slices.Clone(c)
		c[n-1].revision = x.Revision
		if c[n-1].requestHash == "" { // erased with an event of another account's data
			c[n-1].requestHash = x.Meta.requestHash
		}
		return c
	}
	return append(c[max(0, n+1-maxCommands):n:n], command{id: id, requestHash: x.Meta.requestHash, revision: x.Revision})
}

// forgets returns the command that with drops to make room for the one under id.
func (c commands) forgets(id string) (command, bool) {
	n := len(c)
	if id == "" || n < maxCommands || c[n-1].id == id {
		return command{}, false
	}
	return c[0], true
}

// find returns the command under id, if c remembers it.
func (c commands) find(id string) (seen command, ok bool) {
	i := slices.IndexFunc(c, func(c command) bool { return c.id == id })
	if i < 0 {
		return command{}, false
	}
	return c[i], true
}

func errReused() *Error {
	return refuse(CodeIdempotencyKeyReused, "This Idempotency-Key was used for another request.")
}

// CommandRemembered records the outcome of a command that the fold of its stream
// does not keep.
type CommandRemembered struct {
	Stream    string              `json:"stream" pii:"clear"`
	Revision  eventstore.Revision `json:"revision" pii:"clear"`           // of Stream, after the command
	Unchanged bool                `json:"unchanged,omitzero" pii:"clear"` // it caused no event
	KeyID     []byte              `json:"keyId,omitzero" pii:"clear"`     // of the addressed account, if the command had one

	// Request is the digest of the request. With it an attacker could test
	// guesses at personal data, so it is sealed under KeyID where there is one.
	// Destroying the key makes it meaningless, so an erasure need not find it.
	Request []byte `json:"request,omitzero" pii:"clear"`
}

func (CommandRemembered) eventType() string { return "command.remembered.v1" }

func (CommandRemembered) public(Entry) []publicEvent { return internal } // bookkeeping, not a change

func commandStream(id string) string { return "command-" + id }

// remember returns the write that remembers what c led to in a stream. Its
// digest is sealed under the stream's key, where it has one.
func (l *Ledger) remember(m Metadata, at head, c command, expected eventstore.Revision) (eventstore.Write, error) {
	e := CommandRemembered{Stream: at.stream, Revision: c.revision, Unchanged: c.unchanged, Request: []byte(c.requestHash)}
	x := Entry{ID: NewID(), Type: e.eventType(), Stream: commandStream(c.id), Time: l.now().UTC().Truncate(time.Microsecond), Meta: m}
	x.Meta.CommandID, x.Meta.requestHash = c.id, ""
	if at.key != (eventstore.KeyID{}) {
		sealed, err := l.codec.Keys.Seal(at.key, x.place(), e.Request)
		if err != nil {
			return eventstore.Write{}, err
		}
		e.KeyID, e.Request = at.key[:], sealed
	}
	x.Event = e
	encoded, err := l.codec.encode(x, eventstore.KeyID{})
	return eventstore.Write{Stream: x.Stream, Expected: expected, Events: []eventstore.Event{encoded}}, err
}

// rememberUnchanged remembers that the command of m, if it may be repeated,
// changed nothing in a stream. If another writer was faster the error is a
// *eventstore.ConflictError.
func (l *Ledger) rememberUnchanged(ctx context.Context, m Metadata, at head) error {
	if m.CommandID == "" {
		return nil
	}
	w, err := l.remember(m, at, command{m.CommandID, m.requestHash, at.revision, true}, eventstore.NoStream)
	if err != nil {
		return err
	}
	_, err = l.log.Append(ctx, eventstore.Commit{Writes: []eventstore.Write{w}})
	return err
}

// rememberForgotten returns the writes that go with the next command of a
// stream, for the command that its fold forgets with it.
func (l *Ledger) rememberForgotten(at head, m Metadata) ([]eventstore.Write, error) {
	old, ok := at.commands.forgets(m.CommandID)
	if !ok {
		return nil, nil
	}
	// A command on two accounts is forgotten by both folds, and remembered twice.
	w, err := l.remember(m, at, old, eventstore.Any)
	return []eventstore.Write{w}, err
}

// rememberForeign adds a write for a command whose digest is sealed in events
// that hold other accounts' data: it would go when those are erased, and the
// command could no longer be told from another one under its id.
func (l *Ledger) rememberForeign(remembered []eventstore.Write, at head, m Metadata, events eventstore.Write) ([]eventstore.Write, error) {
	own := func(e eventstore.Event) bool { return e.KeyID == at.key }
	if m.requestHash == "" || at.key == (eventstore.KeyID{}) || slices.ContainsFunc(events.Events, own) {
		return remembered, nil
	}
	w, err := l.remember(m, at, command{m.CommandID, m.requestHash, at.revision + eventstore.Revision(len(events.Events)), false}, eventstore.Any)
	return append(remembered, w), err
}

// recall returns the command of m if it was carried out before, whether c, the
// fold's memory, has it or not. Another request under its id is refused.
func (l *Ledger) recall(ctx context.Context, c commands, m Metadata) (seen command, ok bool, err error) {
	if m.CommandID == "" {
		return command{}, false, nil
	}
	seen, ok = c.find(m.CommandID)
	if ok && seen.requestHash == m.requestHash {
		return seen, true, nil
	}
	if ok && seen.requestHash != "" {
		return command{}, false, errReused()
	}
	for x, err := range l.entries(ctx, commandStream(m.CommandID), 0) {
		if err != nil {
			return command{}, false, err
		}
		ok = true
		e, hash := x.Event.(CommandRemembered), []byte(nil)
		if hash = e.Request; len(e.KeyID) > 0 {
			hash, err = l.codec.Keys.Open(eventstore.KeyID(e.KeyID), x.place(), e.Request)
		}
		switch {
		case errors.Is(err, seal.ErrErased): // another record may still be readable
		case err != nil:
			return command{}, false, err
		case string(hash) != m.requestHash:
			return command{}, false, errReused()
		default:
			return command{m.CommandID, m.requestHash, e.Revision, e.Unchanged}, true, nil
		}
	}
	if ok { // but nothing is left to compare the request with
		return command{}, false, errReused()
	}
	return command{}, false, nil
}
