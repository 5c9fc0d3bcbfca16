package webhooks

import (
	"container/heap"
	"context"
	"fmt"
	"slices"
	"time"

	"accountledger/domain"
	"accountledger/eventstore"
)

// lane is an account with a failing delivery: from a revision of its stream
// on, everything is still owed and is read from there when its time comes.
// The cursor may pass what a lane owes.
//
// A lane is one stream's. What joins two accounts is sent from a lane when the
// lane of the other account, if it has one, is past it: both are past what was
// before, and neither goes on without it. The other account has an event of the
// same commit, and is held at that likewise. Whoever waits does so for an event
// with a lower position, so nobody waits for whom waits for him.
type lane struct {
	stream   string
	revision eventstore.Revision // the next event's, or before it
	position eventstore.Position // likewise
	attempt  int                 // failed ones of the next event
	due      time.Time
	code     string // of the last error

	owed    eventstore.Position // up to here events of the stream are this lane's
	next    []*delivery         // read and not sent yet
	trouble int                 // failures of our own in a row
	since   time.Time           // the next event's first failure, as far as it is known
	index   int                 // in the heap of lanes that wait; in hand, held or blocked: -1
}

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
		messages, err := d.open(e.opener, e.now())
		if err != nil {
			r.err = err
			break
		}
		if len(e.selected(messages)) > 0 || d.joint() {
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
	held     []*lane // until another one moves
}

// holds reports whether d must wait for the lane of another account.
func (s *lanes) holds(d *delivery) bool {
	for _, key := range d.keys[1:] {
		if other := s.byStream[key]; other != nil && other.position <= d.rec.Position {
			return true
		}
	}
	return false
}

// release lets those that are held look again, for a lane has moved.
func (s *lanes) release(now time.Time) {
	for _, l := range s.held {
		s.wait(l, now)
	}
	s.held = nil
}

// blockedLanes counts them.
func (e *endpoint) blockedLanes() (n int) {
	for _, l := range e.lanes.byStream {
		if e.blocked(l) {
			n++
		}
	}
	return n
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

// take takes a waiting lane out of line, to work on it.
func (s *lanes) take(l *lane) { heap.Remove(&s.waiting, l.index) }

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

// adopt takes over the lanes an owner before has written. What was settled may
// be owed by them.
func (e *endpoint) adopt(all []*lane) {
	e.lanes.byStream = map[string]*lane{}
	for _, l := range all {
		l.owed = e.cursor.top
		e.lanes.byStream[l.stream] = l
		if !e.blocked(l) {
			e.lanes.wait(l, l.due)
		}
	}
}

// blocked reports whether a lane waits for somebody to send its next event
// again: it was given up and must not be skipped. Where it may be skipped, by
// now, it is tried once more.
func (e *endpoint) blocked(l *lane) bool {
	return l.attempt > len(e.breaker.schedule) && e.conf.DeadLetter == domain.DeadLetterBlock
}

// launchLane works on the lane that waits longest. Lanes get a quarter of the
// requests. A failing endpoint is tried with a lane only if it is the accounts
// that failed, or if there is nothing else.
func (e *endpoint) launchLane(now time.Time, allowed int) bool {
	l := e.lanes.due(now)
	if l == nil || e.laneFlight >= max(1, allowed/4) || e.breaker.open() && !e.breaker.escalated && len(e.ready) > 0 {
		return false
	}
	e.lanes.take(l)
	if len(l.next) > 0 && e.lanes.holds(l.next[0]) {
		e.lanes.held = append(e.lanes.held, l)
		return true
	}
	e.laneFlight++
	if len(l.next) > 0 {
		e.send(l.next[0])
		return true
	}
	e.flight++
	e.readings++
	from, owed := l.revision, l.owed
	go func() { e.reads <- e.readLane(context.Background(), l, from, owed) }()
	return true
}

// owe makes an event a lane's, and so settles it.
func (e *endpoint) owe(l *lane, p eventstore.Position) {
	l.owed = max(l.owed, p)
	e.cursor.set(p)
}

// laneOf is d's lane. For one in the window a lane is opened; nil if d belongs
// to memory that was forgotten and will be read again.
func (e *endpoint) laneOf(d *delivery) *lane {
	if d.lane == nil && d.era == e.era {
		e.open(d.rec.Stream, d)
	}
	return d.lane
}

// laneFor is the lane that an event not in line yet belongs into, or nil. It is
// opened where the event would have to wait for the lane of another account,
// and for an account of which so much waits that it would fill the window alone
// and hold up the others.
func (e *endpoint) laneFor(s *slot) *lane {
	if e.strict() {
		return nil
	}
	lanes := e.lanes.byStream
	needed := lanes[s.rec.Stream] == nil && len(e.turns[s.rec.Stream]) >= maxTurn
	for _, key := range s.keys[1:] {
		needed = needed || lanes[key] != nil || lanes[s.rec.Stream] != nil
	}
	if needed {
		for _, key := range s.keys {
			e.open(key, nil)
		}
		if lanes[s.rec.Stream] == nil {
			e.lanes.wait(e.addLane(s), e.now())
		}
	}
	return lanes[s.rec.Stream]
}

func (e *endpoint) addLane(first *slot) *lane {
	l := &lane{stream: first.rec.Stream, revision: first.rec.Revision, position: first.rec.Position, owed: first.rec.Position, index: -1}
	e.lanes.byStream[l.stream] = l
	e.dirty[l.stream] = true
	return l
}

// open makes a lane of what is in line of a stream, and of the streams that are
// joined with it there. back is one that has just come back, which its caller
// puts where it belongs.
func (e *endpoint) open(stream string, back *delivery) {
	streams := []string{stream}
	for i := 0; i < len(streams); i++ {
		for _, d := range e.turns[streams[i]] {
			for _, key := range d.keys {
				if !slices.Contains(streams, key) {
					streams = append(streams, key)
				}
			}
		}
	}
	for _, stream := range streams {
		var l *lane
		for _, d := range e.turns[stream] {
			if d.rec.Stream != stream {
				continue
			}
			if l == nil {
				l = e.addLane(d.slot)
				l.next = []*delivery{d}
			}
			e.leave(d)
			d.lane = l
			e.owe(l, d.rec.Position)
		}
		if l == nil {
			continue
		}
		switch first := l.next[0]; {
		case first == back:
		case first.flying:
			e.laneFlight++ // as what its result will end
		default:
			e.ready = slices.DeleteFunc(e.ready, func(d *delivery) bool { return d == first })
			e.lanes.wait(l, e.now())
		}
	}
	for _, stream := range streams {
		delete(e.turns, stream)
	}
}

// passed moves l behind d: to its next event, where that is known. Others may
// wait for l to be there.
func (l *lane) passed(d *delivery) {
	l.revision, l.position = d.rec.Revision+1, d.rec.Position+1
	l.attempt, l.trouble, l.code, l.since = 0, 0, "", time.Time{}
	if len(l.next) > 0 {
		l.next = l.next[1:]
	}
	if len(l.next) > 0 {
		l.revision, l.position = l.next[0].rec.Revision, l.next[0].rec.Position
	}
}

// continueLane goes on with a lane's next event, or finds out that there is
// none.
func (e *endpoint) continueLane(l *lane) {
	e.dirty[l.stream] = true
	e.changed()
	e.lanes.wait(l, e.now())
	e.lanes.release(e.now())
}

// handleRead takes what was read of a lane. Where nothing was found, and
// nothing has come meanwhile, the lane is closed.
func (e *endpoint) handleRead(r laneRead) {
	e.flight--
	e.readings--
	e.laneFlight--
	l := r.lane
	switch {
	case r.err != nil:
		e.logger.Error("webhook cannot read an account", "webhook", e.conf.WebhookID, "position", l.position, "err", r.err)
		e.troubled(l)
	case len(r.found) > 0:
		l.next, l.trouble = r.found, 0
		l.next[0].part = e.cursor.partial[l.next[0].rec.Position]
		l.revision, l.position = l.next[0].rec.Revision, l.next[0].rec.Position
		e.lanes.wait(l, e.now())
		e.lanes.release(e.now())
	case l.owed > r.owed:
		e.lanes.wait(l, e.now())
	default:
		delete(e.lanes.byStream, l.stream)
		e.dirty[l.stream] = true
		e.changed()
		e.lanes.release(e.now())
	}
}

// troubled makes a lane wait because of something of ours: a second, two,
// four, at most about a minute, and no attempt is counted.
func (e *endpoint) troubled(l *lane) {
	l.next = nil
	l.trouble = min(l.trouble+1, 7)
	e.lanes.wait(l, e.now().Add(time.Second<<(l.trouble-1)))
	e.changed()
}
