package webhooks

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"accountledger/domain"
	"accountledger/eventstore"
)

// Bounds of the delivery to one webhook.
const (
	maxWaiting   = 512      // events in memory that are not settled
	maxBytes     = 16 << 20 // their bytes
	maxQueued    = 64       // events in memory of one account; more than that become a lane
	maxLanes     = 1000     // failing accounts before the endpoint as a whole counts as failing
	flushResults = 256      // results after which progress is written
	maxUnflushed = 1024     // results after which nothing is sent until progress is written
)

// When progress is written that has not reached flushResults.
const (
	flushAfter     = 100 * time.Millisecond // with results
	flushIdleAfter = time.Second            // if the cursor only passed events that the webhook does not select
)

// worker delivers to one webhook. All its state belongs to the goroutine of run
// (loop.go), which alone decides; other goroutines read the log, send requests
// and write progress, and report back to it. result.go holds what a result
// changes, flush.go how progress is written.
type worker struct {
	*sender
	cache      *cache
	batch      int // events that a request may carry
	pace       pace
	save       chan<- *checkpoint
	disable    func(code string)           // has the ledger disable the webhook; returns immediately
	report     func(domain.WebhookCommand) // has the ledger record how deliveries go; returns immediately
	reportDead func()                      // has the ledger record the dead letters that are written; returns immediately
	logger     *slog.Logger

	results chan []result // of one request
	reads   chan laneRead
	written chan error
	calls   chan func() // to run in the worker's goroutine
	ended   chan struct{}

	progress
	recent recent
	queues queues
	ready  []*delivery // may be sent, in order
	lanes  lanes

	busy       int  // requests and lane reads in progress
	laneReads  int  // of these
	laneBusy   int  // of these, for lanes
	waiting    int  // deliveries in queues
	bytes      int  // of these
	generation int  // counts how often memory was forgotten
	draining   bool // ctx is done: nothing new is sent
	frozen     bool // the webhook is about to be disabled

	pages    chan page // nil: not reading
	stopRead context.CancelFunc
	read     eventstore.Position // the log was read up to here
	reread   bool                // read again from low when nothing is in flight

	attempts  []record // not written yet
	dead      []record
	dirty     map[string]bool // lanes that changed
	dirtyTime time.Time       // since when there is something to write; zero: there is nothing
	flushing  *checkpoint     // being written
	retryTime time.Time       // when to write again after an error
	syncing   []chan struct{} // closed when the present state is written
}

// page is the part of the log in (after, last] that concerns the webhook.
type page struct {
	after, last eventstore.Position
	wanted      []*event
}

// strict reports whether deliveries are in the order of the log over all
// accounts. Then nothing becomes a lane: a failing event holds up all others.
func (w *worker) strict() bool { return w.conf.Order == domain.OrderStrict }

// changed notes that there is something to write.
func (w *worker) changed() {
	if w.dirtyTime.IsZero() {
		w.dirtyTime = w.now()
	}
}

// call runs f in the worker's goroutine. It reports false if the worker has
// ended.
func (w *worker) call(ctx context.Context, f func()) bool {
	done := make(chan struct{})
	select {
	case w.calls <- func() { f(); close(done) }:
		<-done
		return true
	case <-w.ended:
	case <-ctx.Done():
	}
	return false
}

// send makes one request for deliveries, without waiting for the result.
func (w *worker) send(all ...*delivery) {
	w.busy++
	w.pace.take(w.now())
	sends := make([]sending, len(all))
	for i, d := range all {
		d.generation, d.inFlight = w.generation, true
		sends[i] = sending{d, d.part}
	}
	go func() { w.results <- w.attempt(sends, nil) }()
}

// enqueue queues an event of the log: in the window, or in a lane.
func (w *worker) enqueue(e *event) {
	if w.cursor.has(e.rec.Position) {
		return // settled before a restart
	}
	if l := w.laneFor(e); l != nil {
		w.owe(l, e.rec.Position)
		return
	}
	d := &delivery{event: e, part: w.cursor.partial[e.rec.Position], generation: w.generation}
	if w.strict() {
		d.ordering = logOrder
	}
	w.waiting++
	w.bytes += e.size()
	if queue := w.queues[e.rec.Stream]; len(queue) > 0 && !queue[len(queue)-1].joint() {
		before := queue[len(queue)-1].rec
		d.follows, d.followsAfter = before.Revision, before.Position
	}
	if w.queues.add(d) {
		w.ready = append(w.ready, d)
	}
}

// requeue makes d the next delivery where it came from: the window or its lane.
func (w *worker) requeue(d *delivery) {
	switch {
	case d.lane != nil:
		w.lanes.schedule(d.lane, w.now())
	case d.generation == w.generation:
		w.ready = append([]*delivery{d}, w.ready...)
	}
}

// leave counts d out of the window.
func (w *worker) leave(d *delivery) {
	w.waiting--
	w.bytes -= d.size()
}

// forget drops everything in memory that is not settled, to read it again later.
// So an endpoint that is down costs no memory, and data that is erased meanwhile
// is not sent.
func (w *worker) forget() {
	w.stopReading()
	w.reread = true
	w.generation++
	w.queues, w.ready = queues{}, nil
	w.waiting, w.bytes = 0, 0
	w.recent = recent{}
	for _, l := range w.lanes.byStream {
		l.next = nil
	}
	w.lanes.release(w.now())
	w.changed()
}

func (w *worker) stopReading() {
	if w.pages != nil {
		w.stopRead()
		w.pages = nil
	}
}

// restoreLanes takes over the lanes of the previous owner. They may owe events
// that the cursor has passed.
func (w *worker) restoreLanes(all []*lane) {
	w.lanes.byStream = map[string]*lane{}
	for _, l := range all {
		l.owed = w.cursor.top
		w.lanes.byStream[l.stream] = l
		if !w.blocked(l) {
			w.lanes.schedule(l, l.due)
		}
	}
}

// blocked reports whether a lane waits for a client to resend its next event,
// which is a dead letter and must not be skipped. If the configuration now
// allows to skip it, the event is sent once more.
func (w *worker) blocked(l *lane) bool {
	return l.attempt > len(w.breaker.schedule) && w.conf.DeadLetter == domain.DeadLetterBlock
}

// blockedLanes counts the blocked lanes.
func (w *worker) blockedLanes() (n int) {
	for _, l := range w.lanes.byStream {
		if w.blocked(l) {
			n++
		}
	}
	return n
}

// owe makes an event a lane's, and so settles it.
func (w *worker) owe(l *lane, p eventstore.Position) {
	l.owed = max(l.owed, p)
	w.cursor.set(p)
}

// laneOf returns d's lane, and opens one for a delivery in the window. It returns
// nil if d belongs to memory that was forgotten and will be read again.
func (w *worker) laneOf(d *delivery) *lane {
	if d.lane == nil && d.generation == w.generation {
		w.openLanes(d.rec.Stream, d)
	}
	return d.lane
}

// laneFor returns the lane of an event that is not queued yet, or nil. It opens
// one if the event would have to wait for the lane of another account, or if so
// many events of the account wait that they alone would fill the window and hold
// up the other accounts.
func (w *worker) laneFor(e *event) *lane {
	if w.strict() {
		return nil
	}
	lanes := w.lanes.byStream
	needed := lanes[e.rec.Stream] == nil && len(w.queues[e.rec.Stream]) >= maxQueued
	for _, key := range e.keys[1:] {
		needed = needed || lanes[key] != nil || lanes[e.rec.Stream] != nil
	}
	if needed {
		for _, key := range e.keys {
			w.openLanes(key, nil)
		}
		if lanes[e.rec.Stream] == nil {
			w.lanes.schedule(w.addLane(e), w.now())
		}
	}
	return lanes[e.rec.Stream]
}

func (w *worker) addLane(first *event) *lane {
	l := &lane{stream: first.rec.Stream, revision: first.rec.Revision, position: first.rec.Position, owed: first.rec.Position, index: -1}
	w.lanes.byStream[l.stream] = l
	w.dirty[l.stream] = true
	return l
}

// openLanes turns the queue of a stream into a lane, and with it the queues of
// the streams that events in it join. returned is a delivery whose result is
// being handled; the caller schedules its lane.
func (w *worker) openLanes(stream string, returned *delivery) {
	streams := []string{stream}
	for i := 0; i < len(streams); i++ {
		for _, d := range w.queues[streams[i]] {
			for _, key := range d.keys {
				if !slices.Contains(streams, key) {
					streams = append(streams, key)
				}
			}
		}
	}
	for _, stream := range streams {
		var l *lane
		for _, d := range w.queues[stream] {
			if d.rec.Stream != stream {
				continue
			}
			if l == nil {
				l = w.addLane(d.event)
				l.next = []*delivery{d}
			}
			w.leave(d)
			d.lane = l
			w.owe(l, d.rec.Position)
		}
		if l == nil {
			continue
		}
		switch first := l.next[0]; {
		case first == returned:
		case first.inFlight:
			w.laneBusy++ // its result will decrement it
		default:
			w.ready = slices.DeleteFunc(w.ready, func(d *delivery) bool { return d == first })
			w.lanes.schedule(l, w.now())
		}
	}
	for _, stream := range streams {
		delete(w.queues, stream)
	}
}
