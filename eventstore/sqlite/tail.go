package sqlite

import (
	"sync"

	"accountledger/eventstore"
)

// Limits of the tail, which serves subscribers that are nearly up to date.
const (
	tailEvents = 4096
	tailBytes  = 4 << 20
)

// tail keeps the most recent events in memory, and the position of the last
// visible event: an event becomes visible once its commit is durable.
type tail struct {
	mu     sync.RWMutex
	events [tailEvents]eventstore.Recorded // by position modulo tailEvents
	first  eventstore.Position             // of the events in the tail; last+1 if there are none
	last   eventstore.Position             // the head of the log
	bytes  int                             // size of the events in the tail
	grown  chan struct{}                   // closed and replaced when last changes
}

func newTail(head eventstore.Position) *tail {
	return &tail{first: head + 1, last: head, grown: make(chan struct{})}
}

func size(rec *eventstore.Recorded) int { return len(rec.Clear) + len(rec.Sealed) }

// publish appends events to the tail and makes them visible.
func (t *tail) publish(recs []eventstore.Recorded) {
	if len(recs) == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range recs {
		if t.last-t.first+1 == tailEvents {
			t.drop()
		}
		t.last++
		t.events[t.last%tailEvents] = recs[i]
		for t.bytes += size(&recs[i]); t.bytes > tailBytes; {
			t.drop()
		}
	}
	close(t.grown)
	t.grown = make(chan struct{})
}

// drop removes the oldest event. The caller holds mu.
func (t *tail) drop() {
	oldest := &t.events[t.first%tailEvents]
	t.bytes -= size(oldest)
	*oldest = eventstore.Recorded{}
	t.first++
}

func (t *tail) head() eventstore.Position {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.last
}

// after appends the events after a position to page, up to its capacity. If it
// appends none, either pos is less than head and the caller must read the file
// up to head, or there are no newer events and grown is closed when the next one
// is published. after reads the events and the channel under one lock, so that a
// caller cannot miss an append between the two.
func (t *tail) after(pos eventstore.Position, page []eventstore.Recorded) (_ []eventstore.Recorded, head eventstore.Position, grown <-chan struct{}) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if pos+1 >= t.first {
		for pos < t.last && len(page) < cap(page) {
			pos++
			page = append(page, t.events[pos%tailEvents])
		}
	}
	return page, t.last, t.grown
}
