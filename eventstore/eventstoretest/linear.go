package eventstoretest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"

	"accountledger/eventstore"
)

// linearizable checks that concurrent appends and reads of a stream are
// linearizable: an acknowledged append is in every read that begins later, and
// no later read misses what an earlier read returned.
func linearizable(e *env) {
	s := e.store()
	const clients, each, streams = 6, 25, 3
	histories := make([][]porcupine.Operation, clients)
	began := time.Now()
	concurrently(clients, func(client int) {
		seen := [streams]eventstore.Revision{eventstore.NoStream, eventstore.NoStream, eventstore.NoStream}
		for range each {
			n := rand.N(streams)
			in := operation{stream: fmt.Sprintf("account-%d", n), read: rand.N(2) == 0}
			if !in.read {
				// At the last revision this client knows; others may be faster.
				in.event, in.expected = event(), seen[n]
			}
			call := time.Since(began).Nanoseconds()
			out := in.do(e, s)
			seen[n] = out.head
			histories[client] = append(histories[client], porcupine.Operation{
				ClientId: client, Input: in, Call: call, Output: out, Return: time.Since(began).Nanoseconds(),
			})
		}
	})
	if e.Failed() {
		return
	}
	if result := porcupine.CheckOperationsTimeout(sequential(), slices.Concat(histories...), e.timeout); result != porcupine.Ok {
		e.Errorf("the history of appends and reads is not linearizable (%s)", result)
	}
	e.audit(s)
}

// operation is a read of a stream or an append to it.
type operation struct {
	stream   string
	read     bool
	expected eventstore.Revision
	event    eventstore.Event
}

// outcome is the result of an operation.
type outcome struct {
	head     eventstore.Revision // last revision of the stream after the operation
	ids      string              // concatenated IDs of the events that a read returned
	appended bool                // whether an append succeeded
}

func (op operation) do(e *env, s eventstore.Store) (out outcome) {
	out.head = eventstore.NoStream
	if op.read {
		for rec, err := range s.ReadStream(e.ctx(), op.stream, 0) {
			if err != nil {
				e.Errorf("ReadStream = %v", err)
				return out
			}
			out.head, out.ids = rec.Revision, out.ids+string(rec.ID[:])
		}
		return out
	}
	_, err := s.Append(e.ctx(), eventstore.Commit{Writes: []eventstore.Write{{Stream: op.stream, Expected: op.expected, Events: []eventstore.Event{op.event}}}})
	var conflict *eventstore.ConflictError
	switch {
	case err == nil:
		out.appended, out.head = true, op.expected+1
	case errors.As(err, &conflict):
		out.head = conflict.Actual
	default:
		e.Errorf("Append = %v, want success or *ConflictError", err)
	}
	return out
}

// sequential models a stream that is used sequentially. Its state is the
// concatenated IDs of the events.
func sequential() porcupine.Model {
	return porcupine.Model{
		Partition: func(history []porcupine.Operation) (parts [][]porcupine.Operation) {
			byStream := map[string][]porcupine.Operation{}
			for _, op := range history {
				name := op.Input.(operation).stream
				byStream[name] = append(byStream[name], op)
			}
			for _, part := range byStream {
				parts = append(parts, part)
			}
			return parts
		},
		Init: func() any { return "" },
		Step: func(state, input, output any) (bool, any) {
			ids, in, out := state.(string), input.(operation), output.(outcome)
			head := eventstore.Revision(len(ids)/len(in.event.ID) - 1)
			switch {
			case in.read:
				return out.ids == ids && out.head == head, ids
			case in.expected == head:
				return out.appended, ids + string(in.event.ID[:])
			default:
				return !out.appended && out.head == head, ids
			}
		},
	}
}
