package webhooks

import (
	"context"
	"time"

	"github.com/go-json-experiment/json"

	"accountledger/projections/webhooks/wire"
)

func (w *worker) unflushed() int {
	n := len(w.attempts)
	if w.flushing != nil {
		n += len(w.flushing.attempts)
	}
	return n
}

func (w *worker) flushTime() time.Time {
	after := flushIdleAfter
	switch {
	case len(w.attempts) >= flushResults || w.draining || len(w.syncing) > 0:
		after = 0
	case len(w.attempts) > 0 || len(w.dirty) > 0:
		after = flushAfter
	}
	due := w.dirtyTime.Add(after)
	if due.Before(w.retryTime) {
		return w.retryTime
	}
	return due
}

// flush has the writer save the progress when it is time to.
func (w *worker) flush(now time.Time) {
	if w.flushing != nil || w.dirtyTime.IsZero() || w.flushTime().After(now) {
		return
	}
	partial, err := json.Marshal(w.cursor.partial)
	if err != nil {
		panic("webhooks: a map of numbers: " + err.Error())
	}
	c := &checkpoint{
		progress: progress{no: w.no, epoch: w.epoch, breaker: w.breaker, lastSuccess: w.lastSuccess},
		low:      w.cursor.low, done: w.cursor.done(), partial: partial,
		attempts: w.attempts, dead: w.dead, written: w.written,
	}
	for stream := range w.dirty {
		if l := w.lanes.byStream[stream]; l != nil {
			c.lanes = append(c.lanes, *l)
		} else {
			c.gone = append(c.gone, stream)
		}
	}
	c.synced = w.syncing
	w.flushing, w.attempts, w.dead, w.dirty, w.dirtyTime, w.syncing = c, nil, nil, map[string]bool{}, time.Time{}, nil
	w.save <- c
}

// flushed handles the result of a flush. What was not written goes into the next
// flush.
func (w *worker) flushed(err error) {
	c := w.flushing
	w.flushing = nil
	for _, written := range c.synced {
		close(written)
	}
	if err == nil {
		w.retryTime = time.Time{}
		if len(c.dead) > 0 {
			w.reportDead()
		}
		return
	}
	w.logger.Error("webhook progress could not be stored, retrying", "webhook", w.conf.WebhookID, "err", err)
	w.attempts, w.dead = append(c.attempts, w.attempts...), append(c.dead, w.dead...)
	for _, l := range c.lanes {
		w.dirty[l.stream] = true
	}
	for _, stream := range c.gone {
		w.dirty[stream] = true
	}
	w.changed()
	w.retryTime = w.now().Add(time.Second)
}

// sync waits until the present state is written, or could not be written. It
// returns the messages that wait in memory.
func (w *worker) sync(ctx context.Context) (pending []*wire.Message) {
	written := make(chan struct{})
	called := w.call(ctx, func() {
		switch {
		case !w.dirtyTime.IsZero():
			w.syncing = append(w.syncing, written)
		case w.flushing != nil:
			w.flushing.synced = append(w.flushing.synced, written)
		default:
			close(written)
		}
		for _, queue := range w.queues {
			for _, d := range queue {
				pending = append(pending, w.pending(d)...)
			}
		}
	})
	if !called {
		return nil
	}
	select {
	case <-written:
	case <-w.ended:
	case <-ctx.Done():
	}
	return pending
}

func (w *worker) pending(d *delivery) []*wire.Message {
	messages, err := d.open(w.opener, w.now())
	if err != nil {
		return nil
	}
	messages = w.selected(messages)
	return messages[min(d.part, len(messages)):]
}
