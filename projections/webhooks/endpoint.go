package webhooks

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"accountledger/domain"
	"accountledger/eventstore"
)

// Bounds of one endpoint's delivery.
const (
	maxWaiting   = 512      // events in memory that are not settled
	maxBytes     = 16 << 20 // and their bytes
	maxTurn      = 64       // of them of one account; more make it a lane
	maxLanes     = 1000     // failing accounts before the endpoint as a whole counts as failing
	flushResults = 256      // results after which progress is written
	maxUnflushed = 1024     // results after which nothing is sent until progress is written
)

// When progress is written that has not reached flushResults.
const (
	flushAfter     = 100 * time.Millisecond // with results
	flushIdleAfter = time.Second            // where the cursor only passed what was not asked for
)

// endpoint delivers to one endpoint. All its state belongs to the goroutine of
// run, which alone decides; others look names up, read, send, write, and
// report back to it.
type endpoint struct {
	*courier
	feed    *feed
	batch   int // events a request may carry
	pace    pace
	save    chan<- *checkpoint
	giveUp  func(code string)           // has the ledger disable the endpoint; returns at once
	report  func(domain.WebhookCommand) // has the ledger record how deliveries go; returns at once
	givenUp func()                      // likewise, what was given up and is written
	logger  *slog.Logger

	results chan []result // of one request
	reads   chan laneRead
	written chan error
	asks    chan func() // run with the state in hand
	ended   chan struct{}

	progress
	recent recent
	turns  turns
	ready  []*delivery // may go, in order
	lanes  lanes

	flight     int // requests and lane readings under way
	readings   int // of these
	laneFlight int
	waiting    int // deliveries in turns
	bytes      int
	era        int  // counts the times memory was forgotten
	draining   bool // ctx is done: nothing new
	frozen     bool // the receiver wants no more
	failing    bool // and the ledger was told so

	pages    chan page // nil: not reading
	stopRead context.CancelFunc
	read     eventstore.Position // read up to here
	reread   bool                // from low, when nothing is in flight any more

	attempts  []record // not written yet
	dead      []record
	dirty     map[string]bool // lanes that changed
	dirtyTime time.Time       // since when there is something to write; zero: there is nothing
	flushing  *checkpoint     // being written
	retryTime time.Time       // when to write again after an error
	waiters   []chan struct{} // closed when what there is now is written
}

// result is a request that is over.
type result struct {
	*delivery
	message  *message
	parts    int       // public events the endpoint selects of the delivery
	batch    int       // events in the request
	time     time.Time // when it was begun
	duration time.Duration
	traced   func(Attempted) // nil: nobody traces it
	outcome
}

// page is what the log holds for the endpoint in (after, last].
type page struct {
	after, last eventstore.Position
	wanted      []*slot
}

// run delivers until ctx is done; then it sends nothing new, waits for what is
// under way and writes down where it is. It ends early with errFenced alone.
func (e *endpoint) run(ctx context.Context) error {
	defer close(e.ended)
	defer e.stopReading()
	e.read = e.cursor.low
	timer := time.NewTimer(0)
	defer timer.Stop()
	done := ctx.Done()
	for {
		now := e.now()
		e.startReading(ctx, now)
		e.launch(now)
		e.flush(now)
		if e.draining && e.flight == 0 && e.flushing == nil && (e.dirtyTime.IsZero() || e.retryTime.After(now)) {
			return nil // what could not be written is sent again
		}
		var pages chan page
		if e.room() {
			pages = e.pages
		}
		timer.Reset(max(0, e.wake(now).Sub(now)))
		select {
		case p := <-pages:
			e.take(p)
		case r := <-e.results:
			e.handleAll(r)
			for len(e.results) > 0 { // look at the others before sending more
				e.handleAll(<-e.results)
			}
		case r := <-e.reads:
			e.handleRead(r)
		case err := <-e.written:
			if errors.Is(err, errFenced) {
				return err
			}
			e.flushed(err)
		case f := <-e.asks:
			f()
		case <-timer.C:
		case <-done:
			done = nil
			e.draining = true
			e.stopReading()
		}
	}
}

// wake is when something is to be done if nothing happens.
func (e *endpoint) wake(now time.Time) time.Time {
	wake := now.Add(time.Hour)
	sooner := func(t time.Time) {
		if t.After(now) && t.Before(wake) {
			wake = t
		}
	}
	if e.breaker.open() {
		sooner(e.breaker.until)
	}
	sooner(e.pace.next(now))
	if len(e.lanes.waiting) > 0 {
		sooner(e.lanes.waiting[0].due)
	}
	if !e.dirtyTime.IsZero() {
		sooner(e.flushTime())
	}
	return wake
}

// launch sends what may be sent.
func (e *endpoint) launch(now time.Time) {
	if e.draining || e.frozen || e.reread {
		return // to read again, everything must be back first
	}
	allowed := e.breaker.allowed(now)
	for e.flight < allowed && e.unflushed() < maxUnflushed && !e.pace.next(now).After(now) {
		if e.launchLane(now, allowed) {
			continue
		}
		if len(e.ready) == 0 {
			return
		}
		e.send(e.turn()...)
	}
}

// turn takes what is ready for one request: an event, or as many as a batch
// may have. Of an account there is never more than one among what is ready.
func (e *endpoint) turn() []*delivery {
	n := 1
	for n < min(e.batch, len(e.ready)) && !e.ready[n-1].alone && !e.ready[n].alone {
		n++
	}
	all := slices.Clone(e.ready[:n])
	clear(e.ready[:n])
	e.ready = e.ready[n:]
	return all
}

func (e *endpoint) send(all ...*delivery) {
	e.flight++
	e.pace.take(e.now())
	sends := make([]sending, len(all))
	for i, d := range all {
		d.era, d.flying = e.era, true
		sends[i] = sending{d, d.part}
	}
	go func() { e.results <- e.attempt(sends, nil) }()
}

// startReading begins to read the log where it stopped, or again from low
// where memory was forgotten, but not while something of then is under way:
// it might be sent twice at once.
func (e *endpoint) startReading(ctx context.Context, now time.Time) {
	if e.pages != nil || e.draining || e.frozen || e.reread && e.flight > 0 || e.breaker.allowed(now) == 0 {
		return
	}
	if e.reread {
		e.reread, e.read = false, e.cursor.low
	}
	ctx, e.stopRead = context.WithCancel(ctx)
	e.pages = make(chan page)
	go e.follow(ctx, e.pages, e.read)
}

func (e *endpoint) stopReading() {
	if e.pages != nil {
		e.stopRead()
		e.pages = nil
	}
}

// follow reads the log and opens what it finds, one page ahead of run.
func (e *endpoint) follow(ctx context.Context, pages chan<- page, after eventstore.Position) {
	for ctx.Err() == nil {
		slots, err := e.feed.next(ctx, after)
		if err != nil || len(slots) == 0 {
			if ctx.Err() == nil {
				e.logger.ErrorContext(ctx, "webhook cannot read the log", "webhook", e.conf.WebhookID, "err", err)
				sleep(ctx, time.Second)
			}
			continue
		}
		p := page{after: after, last: slots[len(slots)-1].rec.Position}
		for _, s := range slots {
			messages, err := s.open(e.opener, e.now())
			// What cannot be opened may be wanted: its lane will try again. What
			// joins two accounts keeps them in order, told or not.
			if err != nil || len(e.selected(messages)) > 0 || s.joint() {
				p.wanted = append(p.wanted, s)
			}
		}
		select {
		case pages <- p:
			after = p.last
		case <-ctx.Done():
		}
	}
}

// room reports whether another page may be read.
func (e *endpoint) room() bool {
	return e.cursor.room(e.read) >= pageSize && e.waiting <= maxWaiting-pageSize && e.bytes < maxBytes &&
		(len(e.lanes.byStream) < maxLanes || e.lanes.failing() < maxLanes)
}

// take puts a page in line.
func (e *endpoint) take(p page) {
	at := p.after
	for _, s := range p.wanted {
		for at++; at < s.rec.Position; at++ {
			e.cursor.set(at) // nothing in it for this endpoint
		}
		e.line(s)
	}
	for at++; at <= p.last; at++ {
		e.cursor.set(at)
	}
	e.read = p.last
	e.changed()
}

// strict reports whether the order is the log's over all accounts. Nothing is
// put into a lane then: what fails holds up everything.
func (e *endpoint) strict() bool { return e.conf.Order == domain.OrderStrict }

// line puts an event in line: behind those in the window, or into a lane.
func (e *endpoint) line(s *slot) {
	if e.cursor.has(s.rec.Position) {
		return // settled before a restart
	}
	if l := e.laneFor(s); l != nil {
		e.owe(l, s.rec.Position)
		return
	}
	d := &delivery{slot: s, part: e.cursor.partial[s.rec.Position], era: e.era}
	if e.strict() {
		d.turn = oneTurn
	}
	e.waiting++
	e.bytes += s.size()
	if queue := e.turns[s.rec.Stream]; len(queue) > 0 && !queue[len(queue)-1].joint() {
		d.follows = queue[len(queue)-1].rec.Revision + 1
	}
	if e.turns.add(d) {
		e.ready = append(e.ready, d)
	}
}
