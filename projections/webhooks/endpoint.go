package webhooks

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"

	"accountledger/domain"
	"accountledger/eventstore"
)

// Bounds of one endpoint's delivery.
const (
	maxWaiting   = 4096     // events in memory that are not settled
	maxBytes     = 16 << 20 // and their bytes
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
	conf   domain.Webhook
	log    eventstore.Store
	codec  domain.Codec
	feed   *feed
	target *target
	save   chan<- checkpoint
	giveUp func(code string) // has the ledger disable the endpoint; returns at once
	now    func() time.Time
	logger *slog.Logger

	results chan result
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
	laneFlight int
	waiting    int // deliveries in turns
	bytes      int
	era        int  // counts the times memory was forgotten
	draining   bool // ctx is done: nothing new
	frozen     bool // the receiver wants no more

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
	time     time.Time // when it was begun
	duration time.Duration
	outcome
}

// page is what the log holds for the endpoint in (after, last].
type page struct {
	after, last eventstore.Position
	wanted      []*slot
}

// selected is the public events the endpoint asked for.
func (e *endpoint) selected(messages []*message) []*message {
	for i, m := range messages {
		if selects(e.conf.Events, m.event.Type) {
			continue
		}
		some := append([]*message(nil), messages[:i]...)
		for _, m := range messages[i+1:] {
			if selects(e.conf.Events, m.event.Type) {
				some = append(some, m)
			}
		}
		return some
	}
	return messages
}

// run delivers until ctx is done; then it sends nothing new, waits for what is
// under way and writes down where it is. It ends early with errFenced alone.
func (e *endpoint) run(ctx context.Context) error {
	defer close(e.ended)
	defer e.stopReading()
	e.reread = true
	timer := time.NewTimer(0)
	defer timer.Stop()
	done := ctx.Done()
	for {
		now := e.now()
		e.launch(now)
		e.startReading(ctx, now)
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
			e.handle(r)
			for len(e.results) > 0 { // look at the others before sending more
				e.handle(<-e.results)
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

// adopt takes over the lanes an owner before has written. What was settled may
// be owed by them.
func (e *endpoint) adopt(all []*lane) {
	e.lanes.byStream = map[string]*lane{}
	for _, l := range all {
		l.owed = e.cursor.top
		e.lanes.byStream[l.stream] = l
		e.lanes.wait(l, l.due)
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
	if e.draining || e.frozen {
		return
	}
	allowed := e.breaker.allowed(now)
	if e.reread && e.breaker.open() && e.flight > 0 {
		return // the one to try with comes when the others are back
	}
	for e.flight < allowed && e.unflushed() < maxUnflushed {
		if e.launchLane(now, allowed) {
			continue
		}
		if len(e.ready) == 0 {
			return
		}
		d := e.ready[0]
		e.ready[0], e.ready = nil, e.ready[1:]
		e.send(d)
	}
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
	e.laneFlight++
	if len(l.next) > 0 {
		e.send(l.next[0])
		return true
	}
	e.flight++
	from, owed := l.revision, l.owed
	go func() { e.reads <- e.readLane(context.Background(), l, from, owed) }()
	return true
}

func (e *endpoint) send(d *delivery) {
	e.flight++
	d.era = e.era
	gap := noGap
	if d.lane != nil {
		gap = d.lane.gap
	}
	go func() { e.results <- e.attempt(d, d.part, gap) }()
}

// attempt sends one message. What goes wrong before there is a request is
// ours.
func (e *endpoint) attempt(d *delivery, part int, gap eventstore.Revision) result {
	r := result{delivery: d, time: e.now()}
	messages, err := d.open(e.codec, r.time)
	if err == nil {
		if messages = e.selected(messages); part >= len(messages) {
			err = errors.New("webhooks: the event has changed its public form")
		}
		r.parts = len(messages)
	}
	var body []byte
	if err == nil {
		r.message = messages[part]
		if gap == noGap {
			body, err = r.message.body(e.conf.Payload)
		} else {
			body, err = r.message.render(e.conf.Payload, gap)
		}
	}
	if err != nil {
		r.outcome = outcome{scope: internal, err: err}
		return r
	}
	r.outcome = e.target.post(r.message, body)
	r.duration = e.now().Sub(r.time)
	return r
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
			messages, err := s.open(e.codec, e.now())
			// What cannot be opened may be wanted: its lane will try again.
			if err != nil || len(e.selected(messages)) > 0 {
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

func (e *endpoint) line(s *slot) {
	if e.cursor.has(s.rec.Position) {
		return // settled before a restart
	}
	if l := e.lanes.byStream[s.rec.Stream]; l != nil {
		e.owe(l, s.rec.Position)
		return
	}
	d := &delivery{slot: s, part: e.cursor.partial[s.rec.Position]}
	e.waiting++
	e.bytes += s.size()
	if e.turns.add(d) {
		e.ready = append(e.ready, d)
	}
}

// owe makes an event a lane's, and so settles it.
func (e *endpoint) owe(l *lane, p eventstore.Position) {
	l.owed = max(l.owed, p)
	e.cursor.set(p)
	if l.idle {
		l.idle = false
		e.lanes.wait(l, e.now())
	}
}

// handle draws the consequences of a request.
func (e *endpoint) handle(r result) {
	e.flight--
	if r.lane != nil {
		e.laneFlight--
	}
	if r.scope != internal {
		e.seq++
		e.attempts = append(e.attempts, r.record(e.seq))
		e.changed()
	}
	switch r.scope {
	case delivered:
		e.lastSuccess = r.time.Add(r.duration)
		if r.era == e.era {
			e.recent.add(r.rec.Stream, true)
			e.breaker.succeed()
		}
		e.advance(r.delivery, r.parts)
	case refused:
		e.refuse(r)
	case aborted:
		e.abandon(r)
	case unavailable:
		e.unavailable(r, r.code, false)
	case disabled:
		e.again(r.delivery, 0)
		e.freeze(r.code)
	case internal:
		e.logger.Error("webhook delivery failed inside the ledger", "webhook", e.conf.WebhookID, "position", r.rec.Position, "err", r.err)
		if l := e.laneOf(r.delivery); l != nil {
			e.troubled(l)
		}
	}
}

// advance moves on after a message was delivered.
func (e *endpoint) advance(d *delivery, parts int) {
	p := d.rec.Position
	if d.part++; d.part < parts {
		e.cursor.partial[p] = d.part
		e.again(d, 0)
		return
	}
	delete(e.cursor.partial, p)
	if l := d.lane; l != nil {
		l.passed(d)
		l.gap = noGap
		e.continueLane(l)
		return
	}
	e.cursor.set(p)
	if d.era != e.era {
		return // turns has forgotten it
	}
	e.leave(d)
	e.ready = append(e.ready, e.turns.done(d)...)
}

func (e *endpoint) leave(d *delivery) {
	e.waiting--
	e.bytes -= d.size()
}

// again puts d back where it came from, first in line.
func (e *endpoint) again(d *delivery, after time.Duration) {
	switch {
	case d.lane != nil:
		e.lanes.wait(d.lane, e.now().Add(after))
	case d.era == e.era:
		e.ready = append([]*delivery{d}, e.ready...)
	}
}

// refuse makes the event's account wait; or, when most accounts are refused,
// the endpoint.
func (e *endpoint) refuse(r result) {
	if r.era == e.era {
		e.recent.add(r.rec.Stream, false)
	}
	crowded := r.lane == nil && len(e.lanes.byStream) >= maxLanes && e.lanes.failing() >= maxLanes
	escalate := crowded || e.recent.bad() || e.breaker.open() && e.breaker.escalated
	if r.era == e.era && !escalate {
		e.breaker.succeed() // it answers
	}
	if r.lane == nil && escalate {
		e.unavailable(r, codeFailing, true)
		return
	}
	if l := e.laneOf(r.delivery); l != nil {
		l.attempt++
		if l.attempt > len(e.breaker.schedule) {
			e.abandon(r)
		} else {
			e.lanes.wait(l, e.now().Add(max(wait(e.breaker.schedule, l.attempt-1), r.retryAfter)))
			e.dirty[l.stream] = true
		}
	}
	if escalate {
		e.unavailable(r, codeFailing, true)
	}
}

// abandon gives an event up: it becomes a dead letter, and the account's next
// one tells of the gap.
func (e *endpoint) abandon(r result) {
	l := e.laneOf(r.delivery)
	if l == nil {
		return
	}
	e.dead = append(e.dead, r.record(0))
	e.logger.Warn("webhook delivery given up", "webhook", e.conf.WebhookID, "event", r.message.event.ID, "reason", r.code)
	l.gap = r.message.event.Sequence
	if r.part++; r.part < r.parts {
		e.cursor.partial[r.rec.Position] = r.part
		l.attempt = 0
		e.lanes.wait(l, e.now())
		e.dirty[l.stream] = true
		return
	}
	delete(e.cursor.partial, r.rec.Position)
	l.passed(r.delivery)
	e.continueLane(l)
}

// laneOf is d's lane. For one in the window a lane is opened, which takes over
// d and what waits behind it; nil if d belongs to memory that was forgotten
// and will be read again.
func (e *endpoint) laneOf(d *delivery) *lane {
	if d.lane != nil || d.era != e.era {
		return d.lane
	}
	l := &lane{stream: d.rec.Stream, revision: d.rec.Revision, position: d.rec.Position, gap: noGap, index: -1}
	e.lanes.byStream[l.stream] = l
	e.dirty[l.stream] = true
	queue := e.turns[l.stream]
	delete(e.turns, l.stream)
	for _, d := range queue {
		e.leave(d)
		d.lane = l
		l.owed = d.rec.Position
		e.cursor.set(d.rec.Position)
	}
	l.next = queue[:1:1]
	return l
}

// passed moves l behind d.
func (l *lane) passed(d *delivery) {
	l.revision, l.position = d.rec.Revision+1, d.rec.Position+1
	l.attempt, l.trouble = 0, 0
	if len(l.next) > 0 {
		l.next = l.next[1:]
	}
}

// continueLane goes on with a lane's next event, or finds out that there is
// none.
func (e *endpoint) continueLane(l *lane) {
	e.dirty[l.stream] = true
	e.changed()
	e.lanes.wait(l, e.now())
}

// handleRead takes what was read of a lane. Where nothing was found, and
// nothing has come meanwhile, the lane is closed; but one that has a gap to
// tell of stays, idle, for the account's next event.
func (e *endpoint) handleRead(r laneRead) {
	e.flight--
	e.laneFlight--
	l := r.lane
	switch {
	case r.err != nil:
		e.logger.Error("webhook cannot read an account", "webhook", e.conf.WebhookID, "position", l.position, "err", r.err)
		e.troubled(l)
	case len(r.found) > 0:
		l.next, l.trouble = r.found, 0
		l.next[0].part = e.cursor.partial[l.next[0].rec.Position]
		e.lanes.wait(l, e.now())
	case l.owed > r.owed:
		e.lanes.wait(l, e.now())
	case l.gap != noGap:
		l.idle = true
	default:
		delete(e.lanes.byStream, l.stream)
		e.dirty[l.stream] = true
		e.changed()
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

// unavailable leaves the whole endpoint alone for a while. Of many requests
// that were under way together, the first to fail counts.
func (e *endpoint) unavailable(r result, code string, escalated bool) {
	if r.lane != nil && !escalated {
		e.lanes.wait(r.lane, r.lane.due)
	}
	now := e.now()
	if r.era != e.era {
		e.breaker.postpone(now, r.retryAfter)
		return
	}
	hopeless := e.breaker.fail(now, code, r.retryAfter)
	e.breaker.escalated = escalated
	e.forget()
	if hopeless {
		e.freeze(codeFailing)
	}
}

// forget drops what is in memory and not settled; it is read again. So an
// endpoint that is down costs no memory, and nothing is sent to it later that
// was erased meanwhile.
func (e *endpoint) forget() {
	e.stopReading()
	e.reread = true
	e.era++
	e.turns, e.ready = turns{}, nil
	e.waiting, e.bytes = 0, 0
	e.recent = recent{}
	for _, l := range e.lanes.byStream {
		l.next = nil
	}
	e.changed()
}

func (e *endpoint) freeze(code string) {
	if !e.frozen {
		e.frozen = true
		e.forget()
		e.giveUp(code)
	}
}

// changed notes that there is something to write.
func (e *endpoint) changed() {
	if e.dirtyTime.IsZero() {
		e.dirtyTime = e.now()
	}
}

func (e *endpoint) unflushed() int {
	n := len(e.attempts)
	if e.flushing != nil {
		n += len(e.flushing.attempts)
	}
	return n
}

func (e *endpoint) flushTime() time.Time {
	after := flushIdleAfter
	switch {
	case len(e.attempts) >= flushResults || e.draining || len(e.waiters) > 0:
		after = 0
	case len(e.attempts) > 0 || len(e.dirty) > 0:
		after = flushAfter
	}
	due := e.dirtyTime.Add(after)
	if due.Before(e.retryTime) {
		return e.retryTime
	}
	return due
}

// flush has progress written when it is time to.
func (e *endpoint) flush(now time.Time) {
	if e.flushing != nil || e.dirtyTime.IsZero() || e.flushTime().After(now) {
		return
	}
	partial, err := json.Marshal(e.cursor.partial)
	if err != nil {
		panic("webhooks: a map of numbers: " + err.Error())
	}
	c := &checkpoint{
		progress: progress{no: e.no, epoch: e.epoch, breaker: e.breaker, lastSuccess: e.lastSuccess},
		low:      e.cursor.low, done: e.cursor.done(), partial: partial,
		attempts: e.attempts, dead: e.dead, written: e.written,
	}
	for stream := range e.dirty {
		if l := e.lanes.byStream[stream]; l != nil {
			c.lanes = append(c.lanes, *l)
		} else {
			c.gone = append(c.gone, stream)
		}
	}
	c.waiters = e.waiters
	e.flushing, e.attempts, e.dead, e.dirty, e.dirtyTime, e.waiters = c, nil, nil, map[string]bool{}, time.Time{}, nil
	e.save <- *c
}

// flushed takes note of how the writing went. What was not written is kept
// and goes with the next.
func (e *endpoint) flushed(err error) {
	c := e.flushing
	e.flushing = nil
	for _, w := range c.waiters {
		close(w)
	}
	if err == nil {
		e.retryTime = time.Time{}
		return
	}
	e.logger.Error("webhook progress not written, trying again", "webhook", e.conf.WebhookID, "err", err)
	e.attempts, e.dead = append(c.attempts, e.attempts...), append(c.dead, e.dead...)
	for _, l := range c.lanes {
		e.dirty[l.stream] = true
	}
	for _, stream := range c.gone {
		e.dirty[stream] = true
	}
	e.changed()
	e.retryTime = e.now().Add(time.Second)
}

// ask runs f with the state of e in hand; it reports false if e has ended.
func (e *endpoint) ask(ctx context.Context, f func()) bool {
	done := make(chan struct{})
	select {
	case e.asks <- func() { f(); close(done) }:
		<-done
		return true
	case <-e.ended:
	case <-ctx.Done():
	}
	return false
}

// settled waits until what is known now is written, or could not be. It
// returns the events that wait in memory.
func (e *endpoint) settled(ctx context.Context) (pending []placed) {
	written := make(chan struct{})
	asked := e.ask(ctx, func() {
		switch {
		case !e.dirtyTime.IsZero():
			e.waiters = append(e.waiters, written)
		case e.flushing != nil:
			e.flushing.waiters = append(e.flushing.waiters, written)
		default:
			close(written)
		}
		for _, queue := range e.turns {
			for _, d := range queue {
				pending = append(pending, e.pending(d)...)
			}
		}
	})
	if !asked {
		return nil
	}
	select {
	case <-written:
	case <-e.ended:
	case <-ctx.Done():
	}
	return pending
}

func (e *endpoint) pending(d *delivery) (all []placed) {
	messages, err := d.open(e.codec, e.now())
	if err != nil {
		return nil
	}
	messages = e.selected(messages)
	for _, m := range messages[min(d.part, len(messages)):] {
		all = append(all, placed{part: m.part, Delivery: Delivery{EventID: m.event.ID, Type: m.event.Type, Sub: m.event.Sub,
			Sequence: m.event.Sequence, Position: d.rec.Position, Status: StatusPending, Attempts: []Attempt{}}})
	}
	return all
}

// record is r as it is written down.
func (r result) record(seq int64) record {
	m := r.message
	id, err := uuid.Parse(m.event.ID)
	if err != nil {
		panic("webhooks: a public event's id is a UUID: " + err.Error())
	}
	return record{position: r.rec.Position, part: m.part, event: id, kind: m.event.Type, sub: m.event.Sub, sequence: m.event.Sequence,
		time: r.time, duration: r.duration, outcome: r.outcome, seq: seq}
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
