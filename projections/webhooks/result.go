package webhooks

import (
	"slices"
	"time"

	"accountledger/projections/webhooks/transport"
)

// handleAll handles the results of one request.
func (w *worker) handleAll(all []result) {
	w.busy--
	if slices.ContainsFunc(all, func(r result) bool { return r.Scope == transport.Delivered && r.generation == w.generation }) {
		w.breaker.succeed()
	}
	for _, r := range all {
		r.inFlight = false
		if r.lane != nil {
			w.laneBusy--
		}
		w.handle(r)
	}
}

// handle handles the result of a request for one of its events.
func (w *worker) handle(r result) {
	if r.Scope < internal {
		w.attempts = append(w.attempts, r.record(triggerSchedule))
		w.changed()
	}
	switch r.Scope {
	case transport.Delivered:
		w.lastSuccess = r.time.Add(r.duration)
		if r.generation == w.generation {
			w.recent.add(r.rec.Stream, true)
		}
		w.advance(r.delivery, r.parts)
	case transport.Refused, transport.Aborted:
		switch {
		case r.batch > 1:
			// The receiver refused the whole batch. Sending the events one by one
			// shows which of them it refuses, so that only its account waits.
			r.alone = true
			w.requeue(r.delivery)
		case r.Scope == transport.Aborted:
			w.abandon(r)
		default:
			w.refuse(r)
		}
	case transport.Unavailable:
		w.unavailable(r, r.Code, false)
	case transport.Disabled:
		w.requeue(r.delivery)
		w.freeze(r.Code)
	case unwanted:
		w.advance(r.delivery, r.parts)
	case unsent:
		w.requeue(r.delivery)
	case internal:
		w.logger.Error("webhook delivery failed inside the ledger", "webhook", w.conf.WebhookID, "position", r.rec.Position, "err", r.err)
		if w.strict() && r.lane == nil {
			w.requeue(r.delivery)
			w.pace.hold = w.now().Add(time.Second)
		} else if l := w.laneOf(r.delivery); l != nil {
			w.delayLane(l)
		}
	}
	if r.Scope < internal {
		if cmd, ok := w.breaker.report(r, w.lanes.byStream[r.rec.Stream], w.lanes.failing()); ok {
			w.report(cmd)
		}
	}
}

// advance continues after a message was delivered.
func (w *worker) advance(d *delivery, parts int) {
	p := d.rec.Position
	if d.part++; d.part < parts {
		w.cursor.partial[p] = d.part
		w.requeue(d)
		return
	}
	delete(w.cursor.partial, p)
	if l := d.lane; l != nil {
		l.advance(d)
		w.continueLane(l)
		return
	}
	w.cursor.set(p)
	if d.generation != w.generation {
		return // the queues have forgotten it
	}
	w.leave(d)
	w.ready = append(w.ready, w.queues.done(d)...)
}

// refuse makes the event's account wait, or the whole endpoint if it refuses most
// accounts.
func (w *worker) refuse(r result) {
	if w.strict() {
		w.unavailable(r, r.Code, false)
		return
	}
	if r.generation == w.generation {
		w.recent.add(r.rec.Stream, false)
	}
	crowded := r.lane == nil && len(w.lanes.byStream) >= maxLanes && w.lanes.failing() >= maxLanes
	escalate := crowded || w.recent.bad() || w.breaker.open() && w.breaker.escalated
	if r.generation == w.generation && !escalate {
		w.breaker.answered()
	}
	if r.lane == nil && escalate {
		w.unavailable(r, codeFailing, true)
		return
	}
	if l := w.laneOf(r.delivery); l != nil {
		if l.attempt++; l.attempt == 1 {
			l.since = r.time
		}
		l.revision, l.position, l.code = r.rec.Revision, r.rec.Position, r.Code
		if l.attempt > len(w.breaker.schedule) {
			w.abandon(r)
		} else {
			w.lanes.schedule(l, w.now().Add(max(backoff(w.breaker.schedule, l.attempt-1), r.RetryAfter)))
			w.dirty[l.stream] = true
		}
	}
	switch {
	case escalate:
		w.unavailable(r, codeFailing, true)
	case w.breaker.missed(w.now()):
		w.freeze(codeFailing)
	}
}

// abandon makes an event a dead letter. The account continues with its next
// event, or waits for a client to resend this one; it does not wait if the
// receiver asked for no retry.
func (w *worker) abandon(r result) {
	if w.strict() && r.lane == nil {
		w.dead = append(w.dead, r.record(triggerSchedule))
		w.advance(r.delivery, r.parts)
		return
	}
	l := w.laneOf(r.delivery)
	if l == nil {
		return
	}
	w.dead = append(w.dead, r.record(triggerSchedule))
	w.dirty[l.stream] = true
	w.logger.Warn("webhook delivery is exhausted", "webhook", w.conf.WebhookID, "event", r.message.Event.ID, "reason", r.Code)
	if r.Scope == transport.Refused && w.blocked(l) {
		l.next = nil
		return
	}
	if r.part++; r.part < r.parts {
		w.cursor.partial[r.rec.Position] = r.part
		l.attempt = 0
		w.lanes.schedule(l, w.now())
		return
	}
	delete(w.cursor.partial, r.rec.Position)
	l.advance(r.delivery)
	w.continueLane(l)
}

// unavailable opens the breaker. Of concurrent requests only the first failure
// counts.
func (w *worker) unavailable(r result, code string, escalated bool) {
	if r.lane != nil && !escalated {
		w.lanes.schedule(r.lane, r.lane.due)
	}
	now := w.now()
	if r.generation != w.generation {
		w.breaker.postpone(now, r.RetryAfter)
		return
	}
	hopeless := w.breaker.fail(now, code, r.RetryAfter)
	w.breaker.escalated = escalated
	w.forget()
	if hopeless {
		w.freeze(codeFailing)
	}
}

// freeze stops sending for good and has the webhook disabled.
func (w *worker) freeze(code string) {
	if !w.frozen {
		w.frozen = true
		w.forget()
		w.disable(code)
	}
}

// continueLane makes a lane due, which then sends its next event or finds that it
// has none.
func (w *worker) continueLane(l *lane) {
	w.dirty[l.stream] = true
	w.changed()
	w.lanes.schedule(l, w.now())
	w.lanes.release(w.now())
}

// handleRead handles the result of reading a lane. It closes a lane that owes no
// more events.
func (w *worker) handleRead(r laneRead) {
	w.busy--
	w.laneReads--
	w.laneBusy--
	l := r.lane
	switch {
	case r.err != nil:
		w.logger.Error("webhook cannot read an account", "webhook", w.conf.WebhookID, "position", l.position, "err", r.err)
		w.delayLane(l)
	case len(r.found) > 0:
		l.next, l.trouble = r.found, 0
		l.next[0].part = w.cursor.partial[l.next[0].rec.Position]
		l.revision, l.position = l.next[0].rec.Revision, l.next[0].rec.Position
		w.lanes.schedule(l, w.now())
		w.lanes.release(w.now())
	case l.owed > r.owed:
		w.lanes.schedule(l, w.now())
	default:
		delete(w.lanes.byStream, l.stream)
		w.dirty[l.stream] = true
		w.changed()
		w.lanes.release(w.now())
	}
}

// delayLane makes a lane wait after a failure of the ledger: one second, two,
// four, and so on up to 64. It counts no attempt.
func (w *worker) delayLane(l *lane) {
	l.next = nil
	l.trouble = min(l.trouble+1, 7)
	w.lanes.schedule(l, w.now().Add(time.Second<<(l.trouble-1)))
	w.changed()
}
