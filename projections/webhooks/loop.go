package webhooks

import (
	"context"
	"errors"
	"slices"
	"time"

	"accountledger/eventstore"
)

// run delivers until ctx is done. Then it sends nothing new, waits for the
// requests in flight, and writes its progress. It ends early only with
// errFenced.
func (w *worker) run(ctx context.Context) error {
	defer close(w.ended)
	defer w.stopReading()
	w.read = w.cursor.low
	timer := time.NewTimer(0)
	defer timer.Stop()
	done := ctx.Done()
	for {
		now := w.now()
		w.startReading(ctx, now)
		w.launch(now)
		w.flush(now)
		if w.draining && w.busy == 0 && w.flushing == nil && (w.dirtyTime.IsZero() || w.retryTime.After(now)) {
			return nil // what could not be written is sent again
		}
		var pages chan page
		if w.hasRoom() {
			pages = w.pages
		}
		timer.Reset(max(0, w.wake(now).Sub(now)))
		select {
		case p := <-pages:
			w.takePage(p)
		case r := <-w.results:
			w.handleAll(r)
			for len(w.results) > 0 { // handle the others before sending more
				w.handleAll(<-w.results)
			}
		case r := <-w.reads:
			w.handleRead(r)
		case err := <-w.written:
			if errors.Is(err, errFenced) {
				return err
			}
			w.flushed(err)
		case f := <-w.calls:
			f()
		case <-timer.C:
		case <-done:
			done = nil
			w.draining = true
			w.stopReading()
		}
	}
}

// wake returns when the loop must continue if nothing happens before.
func (w *worker) wake(now time.Time) time.Time {
	wake := now.Add(time.Hour)
	sooner := func(t time.Time) {
		if t.After(now) && t.Before(wake) {
			wake = t
		}
	}
	if w.breaker.open() {
		sooner(w.breaker.until)
	}
	sooner(w.pace.next(now))
	if len(w.lanes.waiting) > 0 {
		sooner(w.lanes.waiting[0].due)
	}
	if !w.dirtyTime.IsZero() {
		sooner(w.flushTime())
	}
	return wake
}

// startReading starts to read the log where the worker stopped, or again from
// low after memory was forgotten. It waits for the requests of that time first,
// because an event must not be sent twice concurrently.
func (w *worker) startReading(ctx context.Context, now time.Time) {
	if w.pages != nil || w.draining || w.frozen || w.reread && w.busy > 0 || w.breaker.allowed(now) == 0 {
		return
	}
	if w.reread {
		w.reread, w.read = false, w.cursor.low
	}
	ctx, w.stopRead = context.WithCancel(ctx)
	w.pages = make(chan page)
	go w.follow(ctx, w.pages, w.read)
}

// follow reads the log and opens its events, one page ahead of run.
func (w *worker) follow(ctx context.Context, pages chan<- page, after eventstore.Position) {
	for ctx.Err() == nil {
		events, err := w.cache.next(ctx, after)
		if err != nil || len(events) == 0 {
			if ctx.Err() == nil {
				w.logger.ErrorContext(ctx, "webhook cannot read the log", "webhook", w.conf.WebhookID, "err", err)
				sleep(ctx, time.Second)
			}
			continue
		}
		p := page{after: after, last: events[len(events)-1].rec.Position}
		for _, e := range events {
			messages, err := e.open(w.opener, w.now())
			// An event that cannot be opened may be selected: its lane opens it
			// again. An event that joins two accounts keeps them in order, whether
			// it is selected or not.
			if err != nil || len(w.selected(messages)) > 0 || e.joint() {
				p.wanted = append(p.wanted, e)
			}
		}
		select {
		case pages <- p:
			after = p.last
		case <-ctx.Done():
		}
	}
}

// hasRoom reports whether the window has room for another page.
func (w *worker) hasRoom() bool {
	return w.cursor.room(w.read) >= pageSize && w.waiting <= maxWaiting-pageSize && w.bytes < maxBytes &&
		(len(w.lanes.byStream) < maxLanes || w.lanes.failing() < maxLanes)
}

// takePage queues the events of a page and settles the positions between them.
func (w *worker) takePage(p page) {
	at := p.after
	for _, e := range p.wanted {
		for at++; at < e.rec.Position; at++ {
			w.cursor.set(at) // not selected
		}
		w.enqueue(e)
	}
	for at++; at <= p.last; at++ {
		w.cursor.set(at)
	}
	w.read = p.last
	w.changed()
}

// launch sends what may be sent now.
func (w *worker) launch(now time.Time) {
	if w.draining || w.frozen || w.reread {
		return // before reading again, all requests must be over
	}
	allowed := w.breaker.allowed(now)
	for w.busy < allowed && w.unflushed() < maxUnflushed && !w.pace.next(now).After(now) {
		if w.launchLane(now, allowed) {
			continue
		}
		if len(w.ready) == 0 {
			return
		}
		w.send(w.nextBatch()...)
	}
}

// nextBatch takes the deliveries of one request: one, or as many as a batch may
// have. The ready deliveries are of different accounts.
func (w *worker) nextBatch() []*delivery {
	n := 1
	for n < min(w.batch, len(w.ready)) && !w.ready[n-1].alone && !w.ready[n].alone {
		n++
	}
	all := slices.Clone(w.ready[:n])
	clear(w.ready[:n])
	w.ready = w.ready[n:]
	return all
}

// launchLane sends or reads the next event of the lane that has been due
// longest. Lanes get a quarter of the requests. A failing endpoint is probed with
// a lane only if it opened the breaker because too many accounts fail, or if
// nothing else is ready.
func (w *worker) launchLane(now time.Time, allowed int) bool {
	l := w.lanes.due(now)
	if l == nil || w.laneBusy >= max(1, allowed/4) || w.breaker.open() && !w.breaker.escalated && len(w.ready) > 0 {
		return false
	}
	w.lanes.unschedule(l)
	if len(l.next) > 0 && w.lanes.holds(l.next[0]) {
		w.lanes.held = append(w.lanes.held, l)
		return true
	}
	w.laneBusy++
	if len(l.next) > 0 {
		w.send(l.next[0])
		return true
	}
	w.busy++
	w.laneReads++
	from, owed := l.revision, l.owed
	go func() { w.reads <- w.readLane(context.Background(), l, from, owed) }()
	return true
}

// spare reserves a request for a replay, which yields to regular deliveries. It
// returns 0, or how long to wait before asking again.
func (w *worker) spare() time.Duration {
	now := w.now()
	switch next := w.pace.next(now); {
	case w.draining || w.frozen || len(w.ready) > 0 || w.busy > 0 && w.busy >= w.breaker.allowed(now):
		return spareWait
	case w.breaker.open():
		return min(max(w.breaker.until.Sub(now), spareWait), time.Second)
	case next.After(now):
		return next.Sub(now)
	}
	w.pace.take(now)
	return 0
}

// spareWait is how long a replay waits for regular deliveries before it asks
// again.
const spareWait = 5 * time.Millisecond
