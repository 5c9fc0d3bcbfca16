package domain

import (
	"slices"

	"accountledger/eventstore"
)

// commands are the commands a stream has seen, newest last: a repetition is
// answered and not executed again.
type commands []command

// command remembers what a command id led to.
type command struct {
	id, requestHash string
	revision        eventstore.Revision // of the last event it caused
}

// maxCommands is how many commands of one stream can be repeated safely. A
// client repeats within seconds; it does not first send 128 other commands.
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
	return append(c[max(0, n+1-maxCommands):n:n], command{id, x.Meta.requestHash, x.Revision})
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
		return command{}, true, refuse(CodeIdempotencyKeyReused, "This Idempotency-Key was used for another request.")
	}
	return c[i], true, nil
}
