package webhooks

import (
	"slices"
	"time"
)

// handleAll draws the consequences of a request, event by event.
func (e *endpoint) handleAll(all []result) {
	e.flight--
	if slices.ContainsFunc(all, func(r result) bool { return r.scope == delivered && r.era == e.era }) {
		e.breaker.succeed()
	}
	for _, r := range all {
		r.flying = false
		if r.lane != nil {
			e.laneFlight--
		}
		e.handle(r)
	}
}

// handle draws the consequences of a request for one of its events.
func (e *endpoint) handle(r result) {
	if r.scope < internal {
		e.attempts = append(e.attempts, r.record(triggerSchedule))
		e.changed()
	}
	switch r.scope {
	case delivered:
		e.lastSuccess = r.time.Add(r.duration)
		if r.era == e.era {
			e.recent.add(r.rec.Stream, true)
		}
		e.advance(r.delivery, r.parts)
	case refused, aborted:
		switch {
		case r.batch > 1:
			// Which of them is meant is found out one by one, so that one bad
			// event holds up nobody but its account.
			r.alone = true
			e.again(r.delivery)
		case r.scope == aborted:
			e.abandon(r)
		default:
			e.refuse(r)
		}
	case unavailable:
		e.unavailable(r, r.code, false)
	case disabled:
		e.again(r.delivery)
		e.freeze(r.code)
	case unwanted:
		e.advance(r.delivery, r.parts)
	case unsent:
		e.again(r.delivery)
	case internal:
		e.logger.Error("webhook delivery failed inside the ledger", "webhook", e.conf.WebhookID, "position", r.rec.Position, "err", r.err)
		if e.strict() && r.lane == nil {
			e.again(r.delivery)
			e.pace.hold = e.now().Add(time.Second)
		} else if l := e.laneOf(r.delivery); l != nil {
			e.troubled(l)
		}
	}
	if r.scope < internal {
		e.assess(r)
	}
}

// advance moves on after a message was delivered.
func (e *endpoint) advance(d *delivery, parts int) {
	p := d.rec.Position
	if d.part++; d.part < parts {
		e.cursor.partial[p] = d.part
		e.again(d)
		return
	}
	delete(e.cursor.partial, p)
	if l := d.lane; l != nil {
		l.passed(d)
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
func (e *endpoint) again(d *delivery) {
	switch {
	case d.lane != nil:
		e.lanes.wait(d.lane, e.now())
	case d.era == e.era:
		e.ready = append([]*delivery{d}, e.ready...)
	}
}

// refuse makes the event's account wait; or, when most accounts are refused,
// the endpoint.
func (e *endpoint) refuse(r result) {
	if e.strict() {
		e.unavailable(r, r.code, false)
		return
	}
	if r.era == e.era {
		e.recent.add(r.rec.Stream, false)
	}
	crowded := r.lane == nil && len(e.lanes.byStream) >= maxLanes && e.lanes.failing() >= maxLanes
	escalate := crowded || e.recent.bad() || e.breaker.open() && e.breaker.escalated
	if r.era == e.era && !escalate {
		e.breaker.answered()
	}
	if r.lane == nil && escalate {
		e.unavailable(r, codeFailing, true)
		return
	}
	if l := e.laneOf(r.delivery); l != nil {
		if l.attempt++; l.attempt == 1 {
			l.since = r.time
		}
		l.revision, l.position, l.code = r.rec.Revision, r.rec.Position, r.code
		if l.attempt > len(e.breaker.schedule) {
			e.abandon(r)
		} else {
			e.lanes.wait(l, e.now().Add(max(wait(e.breaker.schedule, l.attempt-1), r.retryAfter)))
			e.dirty[l.stream] = true
		}
	}
	switch {
	case escalate:
		e.unavailable(r, codeFailing, true)
	case e.breaker.missed(e.now()):
		e.freeze(codeFailing)
	}
}

// abandon gives an event up: it becomes a dead letter. The account goes on with
// the next one, or waits for somebody to send this one again. Where the
// receiver itself does not want it again, that would be in vain.
func (e *endpoint) abandon(r result) {
	if e.strict() && r.lane == nil {
		e.dead = append(e.dead, r.record(triggerSchedule))
		e.advance(r.delivery, r.parts)
		return
	}
	l := e.laneOf(r.delivery)
	if l == nil {
		return
	}
	e.dead = append(e.dead, r.record(triggerSchedule))
	e.dirty[l.stream] = true
	e.logger.Warn("webhook delivery given up", "webhook", e.conf.WebhookID, "event", r.message.event.ID, "reason", r.code)
	if r.scope == refused && e.blocked(l) {
		l.next = nil
		return
	}
	if r.part++; r.part < r.parts {
		e.cursor.partial[r.rec.Position] = r.part
		l.attempt = 0
		e.lanes.wait(l, e.now())
		return
	}
	delete(e.cursor.partial, r.rec.Position)
	l.passed(r.delivery)
	e.continueLane(l)
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
	e.lanes.release(e.now())
	e.changed()
}

func (e *endpoint) freeze(code string) {
	if !e.frozen {
		e.frozen = true
		e.forget()
		e.giveUp(code)
	}
}
