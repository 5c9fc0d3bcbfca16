package sqlite

import (
	"sync"

	"accountledger/eventstore"
)

// How much of the log's end is kept in memory, for subscribers that keep up.
const (
	tailEvents = 4096
	tailBytes  = 4 << 20
)

// tail is the end of the log in memory and the watermark of what is visible:
// nobody is shown a position before the commit it belongs to is durable.
type tail struct {
	mu     sync.RWMutex
	events [tailEvents]eventstore.Recorded // by position modulo tailEvents
	first  eventstore.Position             // of the events kept; last+1 if none is
	last   eventstore.Position             // the head of the log
	bytes  int                             // of the events kept
	grown  chan struct{}                   // closed, and replaced, when last moves
}

func newTail(head eventstore.Position) *tail {
	return &tail{first: head + 1, last: head, grown: make(chan struct{})}
}

func size(rec *eventstore.Recorded) int { return len(rec.Clear) + len(rec.Sealed) }

// publish makes the next events of the log visible.
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

// drop forgets the oldest event. The caller holds mu.
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

// after appends to page the events that follow a position, as many as fit into
// its capacity. Where none is kept it says why: either the caller is too far
// behind and must read the file up to head, or there is none yet, and grown
// closes with the next. Channel and events are taken under one lock, or an
// append between the two would be missed.
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
