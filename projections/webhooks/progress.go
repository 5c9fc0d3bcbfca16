package webhooks

import (
	"context"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"
)

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
	e.save <- c
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
		if len(c.dead) > 0 {
			e.givenUp()
		}
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
	messages, err := d.open(e.opener, e.now())
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
func (r result) record(trigger string) record {
	m := r.message
	id, err := uuid.Parse(m.event.ID)
	if err != nil {
		panic("webhooks: a public event's id is a UUID: " + err.Error())
	}
	return record{position: r.rec.Position, part: m.part, event: id, kind: m.event.Type, sub: m.event.Sub, sequence: m.event.Sequence,
		time: r.time, duration: r.duration, outcome: r.outcome, trigger: trigger}
}
