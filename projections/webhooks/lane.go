package webhooks

import (
	"container/heap"
	"context"
	"fmt"
	"time"

	"accountledger/eventstore"
)

// lane is an account with a failing delivery: from a revision of its stream
// on, everything is still owed and is read from there when its time comes.
// The cursor may pass what a lane owes.
type lane struct {
	stream   string
	revision eventstore.Revision // the next event's, or before it
	position eventstore.Position // likewise
	attempt  int                 // failed ones of the next event
	due      time.Time
	gap      eventstore.Revision // sequence of the event given up before the next one; noGap

	owed    eventstore.Position // up to here events of the stream are this lane's
	idle    bool                // nothing is owed, but there is a gap to tell of
	next    []*delivery         // read and not sent yet
	trouble int                 // failures of our own in a row
	index   int                 // in the heap of lanes that wait; idle or in hand: -1
}

const noGap eventstore.Revision = -1

// What one reading of a lane takes: enough to catch up fast, little enough
// for a thousand lanes.
const (
	laneEvents = 32
	laneBytes  = 256 << 10
)

// laneRead is what was found of a lane.
type laneRead struct {
	lane  *lane
	owed  eventstore.Position // up to here was looked
	found []*delivery         // none: caught up
	err   error               // ours
}

// readLane reads the next events a lane owes up to a position.
func (e *endpoint) readLane(ctx context.Context, l *lane, from eventstore.Revision, owed eventstore.Position) laneRead {
	r := laneRead{lane: l, owed: owed}
	size := 0
	for rec, err := range e.log.ReadStream(ctx, l.stream, from) {
		if err != nil {
			r.err = fmt.Errorf("webhooks: read %s: %w", l.stream, err)
			break
		}
		if rec.Position > owed || len(r.found) == laneEvents || size > laneBytes {
			break
		}
		d := &delivery{slot: newSlot(rec), lane: l}
		messages, err := d.open(e.codec, e.now())
		if err != nil {
			r.err = err
			break
		}
		if len(e.selected(messages)) > 0 {
			r.found = append(r.found, d)
			size += len(rec.Clear) + len(rec.Sealed)
		}
	}
	if len(r.found) > 0 {
		r.err = nil // what is there comes first; the error will come again
	}
	return r
}

// lanes is the lanes of an endpoint, those that wait ordered by when they are
// due.
type lanes struct {
	byStream map[string]*lane
	waiting  laneHeap
}

// wait puts l in line.
func (s *lanes) wait(l *lane, due time.Time) {
	l.due = due
	if l.index >= 0 {
		heap.Fix(&s.waiting, l.index)
		return
	}
	heap.Push(&s.waiting, l)
}

// due is the lane that has waited longest past its time, or nil.
func (s *lanes) due(now time.Time) *lane {
	if len(s.waiting) == 0 || s.waiting[0].due.After(now) {
		return nil
	}
	return s.waiting[0]
}

// take takes l out of line, to work on it or because it has nothing to wait
// for.
func (s *lanes) take(l *lane) {
	if l.index >= 0 {
		heap.Remove(&s.waiting, l.index)
	}
}

// failing counts the lanes whose next event was refused.
func (s *lanes) failing() (n int) {
	for _, l := range s.byStream {
		if l.attempt > 0 {
			n++
		}
	}
	return n
}

type laneHeap []*lane

func (h laneHeap) Len() int           { return len(h) }
func (h laneHeap) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h laneHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *laneHeap) Push(x any) {
	l := x.(*lane)
	l.index = len(*h)
	*h = append(*h, l)
}

func (h *laneHeap) Pop() any {
	last := len(*h) - 1
	l := (*h)[last]
	(*h)[last], *h = nil, (*h)[:last]
	l.index = -1
	return l
}
