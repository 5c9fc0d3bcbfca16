package domain

import (
	"context"
	"errors"
	"slices"
	"time"

	"accountledger/eventstore"
	"accountledger/eventstore/seal"
)

// A command that is asked for again under its id is answered and not executed
// again. What a stream was asked for lately its fold remembers, for nothing:
// commands. What it forgets, and what changed nothing in it, is remembered by
// CommandRemembered events, each in a stream that is named by the command's id
// and so is found without an index.

// commands are the latest commands that changed a stream, newest last.
type commands []command

// command remembers what a command id led to.
type command struct {
	id, requestHash string
	revision        eventstore.Revision // of the stream after it
	unchanged       bool                // it caused no event
}

// maxCommands is how many commands a fold remembers. A client repeats within
// seconds and does not first send 128 other commands, as a rule.
const maxCommands = 128

// with returns c after x. It shares memory with c and leaves c as it is.
func (c commands) with(x Entry) commands {
	id, n := x.Meta.CommandID, len(c)
	switch {
	case id == "":
		return c
	case n > 0 && c[n-1].id == id:
		c = slices.Clone(c)
		c[n-1].revision = x.Revision
		return c
	}
	return append(c[max(0, n+1-maxCommands):n:n], command{id: id, requestHash: x.Meta.requestHash, revision: x.Revision})
}

// forgets is the command that with forgets for the one under id.
func (c commands) forgets(id string) (command, bool) {
	n := len(c)
	if id == "" || n < maxCommands || c[n-1].id == id {
		return command{}, false
	}
	return c[0], true
}

// find returns the command of m, if it was seen. Another request under its id
// is refused.
func (c commands) find(m Metadata) (seen command, ok bool, err error) {
	if m.CommandID == "" {
		return command{}, false, nil
	}
	i := slices.IndexFunc(c, func(c command) bool { return c.id == m.CommandID })
	if i < 0 {
		return command{}, false, nil
	}
	if c[i].requestHash != m.requestHash {
		return command{}, true, errReused()
	}
	return c[i], true, nil
}

func errReused() *Error {
	return refuse(CodeIdempotencyKeyReused, "This Idempotency-Key was used for another request.")
}

// CommandRemembered says what a command came to that the stream it was asked
// of does not remember.
type CommandRemembered struct {
	Stream    string              `json:"stream" pii:"clear"`
	Revision  eventstore.Revision `json:"revision" pii:"clear"`           // of Stream, after the command
	Unchanged bool                `json:"unchanged,omitzero" pii:"clear"` // it caused no event
	KeyID     []byte              `json:"keyId,omitzero" pii:"clear"`     // the account's that it was asked of, if one

	// Request is the digest of the request. It tests guesses at what was in
	// there, so it is sealed under KeyID where there is one, and means nothing
	// once that is destroyed; nobody need look for it then.
	Request []byte `json:"request,omitzero" pii:"clear"`
}

func (CommandRemembered) eventType() string { return "command.remembered.v1" }

func (CommandRemembered) public(Entry) []publicEvent { return internal } // bookkeeping: nothing happened

func commandStream(id string) string { return "command-" + id }

// remember makes the write that remembers what c came to in a stream, of the
// account whose key it is.
func (l *Ledger) remember(m Metadata, stream string, key eventstore.KeyID, c command, expected eventstore.Revision) (eventstore.Write, error) {
	e := CommandRemembered{Stream: stream, Revision: c.revision, Unchanged: c.unchanged, Request: []byte(c.requestHash)}
	x := Entry{ID: NewID(), Type: e.eventType(), Stream: commandStream(c.id), Time: l.now().UTC().Truncate(time.Microsecond), Meta: m}
	x.Meta.CommandID, x.Meta.requestHash = c.id, ""
	if key != (eventstore.KeyID{}) {
		sealed, err := l.codec.Keys.Seal(key, x.place(), e.Request)
		if err != nil {
			return eventstore.Write{}, err
		}
		e.KeyID, e.Request = key[:], sealed
	}
	x.Event = e
	encoded, err := l.codec.encode(x, eventstore.KeyID{})
	return eventstore.Write{Stream: x.Stream, Expected: expected, Events: []eventstore.Event{encoded}}, err
}

// rememberUnchanged remembers that the command of m, if it may be repeated,
// changed nothing in a stream at a revision. If somebody was faster it is a
// *eventstore.ConflictError.
func (l *Ledger) rememberUnchanged(ctx context.Context, r Request, stream string, key eventstore.KeyID, at eventstore.Revision) error {
	if r.DryRun || r.Meta.CommandID == "" {
		return nil
	}
	w, err := l.remember(r.Meta, stream, key, command{r.Meta.CommandID, r.Meta.requestHash, at, true}, eventstore.NoStream)
	if err != nil {
		return err
	}
	_, err = l.log.Append(ctx, eventstore.Commit{Writes: []eventstore.Write{w}})
	return err
}

// rememberForgotten makes the writes that go with the next command of a
// stream, so that what its fold forgets with it is remembered.
func (l *Ledger) rememberForgotten(c commands, m Metadata, stream string, key eventstore.KeyID) ([]eventstore.Write, error) {
	old, ok := c.forgets(m.CommandID)
	if !ok {
		return nil, nil
	}
	// Of a command on two accounts both folds forget: whoever is first counts.
	w, err := l.remember(m, stream, key, old, eventstore.Any)
	return []eventstore.Write{w}, err
}

// recall returns the command of m if it was executed before, whether c, the
// fold of the stream it is asked of, remembers it or not. Another request under
// its id is refused.
func (l *Ledger) recall(ctx context.Context, c commands, m Metadata) (seen command, ok bool, err error) {
	seen, ok, err = c.find(m)
	if ok || m.CommandID == "" {
		return seen, ok, err
	}
	for x, err := range l.entries(ctx, commandStream(m.CommandID), 0) {
		if err != nil {
			return command{}, false, err
		}
		e, hash := x.Event.(CommandRemembered), []byte(nil)
		if hash = e.Request; len(e.KeyID) > 0 {
			hash, err = l.codec.Keys.Open(eventstore.KeyID(e.KeyID), x.place(), e.Request)
		}
		if err != nil && !errors.Is(err, seal.ErrErased) {
			return command{}, false, err
		}
		if err != nil || string(hash) != m.requestHash {
			return command{}, true, errReused()
		}
		return command{m.CommandID, m.requestHash, e.Revision, e.Unchanged}, true, nil
	}
	return command{}, false, nil
}
