package webhooks

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"math"
	"slices"
	"time"

	"github.com/google/uuid"

	"accountledger/eventstore"
)

// The statuses of deliveries.
const (
	StatusDelivered = "delivered"
	StatusRetrying  = "retrying" // the last attempt failed, and another follows
	StatusDead      = "dead"     // no attempt follows: a dead letter
	StatusPending   = "pending"  // waits for its first attempt
	StatusSettled   = "settled"  // nothing is left to send; its attempts are no longer stored
)

// Statuses lists the statuses of deliveries.
var Statuses = []string{StatusPending, StatusDelivered, StatusRetrying, StatusDead, StatusSettled}

// Delivery is one public event on its way to one webhook.
type Delivery struct {
	EventID  string              `json:"eventId" doc:"The public event's id; the webhook-id of every attempt."`
	Type     string              `json:"type" doc:"The event's name in the public catalogue."`
	Sub      string              `json:"sub,omitzero" doc:"The account the event is about."`
	Sequence eventstore.Revision `json:"sequence" doc:"The account's revision."`
	Position eventstore.Position `json:"position" doc:"The event's position in the log."`
	Status   string              `json:"status" doc:"delivered, retrying, dead, pending, or settled: nothing is left to send, and the outcome is no longer stored."`
	Attempts []Attempt           `json:"attempts" doc:"The attempts, oldest first."`
}

// placed is a delivery with its place in the log: its position, and its index
// among the public events there.
type placed struct {
	Delivery
	part int
}

func (p placed) compare(q placed) int {
	if p.Position != q.Position {
		return int(p.Position - q.Position)
	}
	return p.part - q.part
}

// cursor returns the cursor of the page that follows p.
func (p placed) cursor() string { return fmt.Sprintf("%d.%d", p.Position, p.part) }

// DeliveryQuery selects deliveries; the zero value selects all.
type DeliveryQuery struct {
	Status string // one of Statuses, or "": any
	Sub    string // the account that the events are about, or "": any
}

// deliveries lists deliveries and sends some of them again.
type deliveries struct{ *engine }

// Deliveries lists a webhook's deliveries whose attempts are stored, newest event
// first. after is the next of the previous call, or "" for the first; next is ""
// if there are no more. limit is 1 to 1000.
func (s deliveries) Deliveries(ctx context.Context, id string, q DeliveryQuery, after string, limit int) (all []Delivery, next string, err error) {
	before := placed{Delivery: Delivery{Position: math.MaxInt64}}
	if after != "" {
		if _, err := fmt.Sscanf(after, "%d.%d", &before.Position, &before.part); err != nil || after != before.cursor() {
			return nil, "", errCursor()
		}
	}
	if _, err := s.ledger.existing(ctx, id); err != nil {
		return nil, "", err
	}
	limit = min(max(limit, 1), 1000)
	pending := map[place]placed{}
	if w := s.worker(id); w != nil {
		for _, m := range w.sync(ctx) {
			pending[place{m.Position, m.Part}] = placed{part: m.Part, Delivery: Delivery{EventID: m.Event.ID, Type: m.Event.Type, Sub: m.Event.Sub,
				Sequence: m.Event.Sequence, Position: m.Position, Status: StatusPending, Attempts: []Attempt{}}}
		}
	}
	var found []placed
	for p, err := range s.store.deliveries(ctx, id, q.Sub, before.Position, before.part) {
		if err != nil {
			return nil, "", fmt.Errorf("webhooks: deliveries: %w", err)
		}
		delete(pending, place{p.Position, p.part}) // the stored delivery has the attempts
		if q.Status == "" || p.Status == q.Status {
			found = append(found, p)
		}
		if len(found) > limit {
			break
		}
	}
	for _, p := range pending {
		if p.compare(before) < 0 && (q.Status == "" || p.Status == q.Status) && (q.Sub == "" || p.Sub == q.Sub) {
			found = append(found, p)
		}
	}
	slices.SortFunc(found, func(p, q placed) int { return q.compare(p) })
	if len(found) > limit {
		found = found[:limit]
		next = found[limit-1].cursor()
	}
	all = make([]Delivery, len(found))
	for i, p := range found {
		all[i] = p.Delivery
	}
	return all, next, nil
}

// Outcome returns the status of the delivery of the event at position p of a
// stream, which the webhook selects.
func (s deliveries) Outcome(ctx context.Context, id, stream string, p eventstore.Position) (status string, err error) {
	// Check this first: an event that is settled in between then has attempts.
	settled, err := s.settled(ctx, id, stream, p)
	if err != nil {
		return "", err
	}
	// The page before the next position begins with this event.
	all, _, err := s.Deliveries(ctx, id, DeliveryQuery{}, fmt.Sprintf("%d.0", p+1), 1)
	switch {
	case err != nil:
		return "", err
	case len(all) > 0 && all[0].Position == p:
		return all[0].Status, nil
	case settled:
		return StatusSettled, nil
	}
	return StatusPending, nil
}

// settled reports whether nothing of an event is left to send: the cursor has
// passed it, and no lane of its stream owes it.
func (e *engine) settled(ctx context.Context, id, stream string, p eventstore.Position) (settled bool, err error) {
	if w := e.worker(id); w != nil {
		called := w.call(ctx, func() {
			l := w.lanes.byStream[stream]
			settled = w.cursor.has(p) && (l == nil || l.position > p)
		})
		if called {
			return settled, nil
		}
	}
	stored, err := e.store.load(ctx, id)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil // not copied yet
	}
	if err != nil {
		return false, err
	}
	owed, err := e.store.owes(ctx, stored.no, stream, p)
	return stored.cursor.has(p) && !owed, err
}

// deliveries yields the deliveries of a webhook before a place in the log, newest
// first; with sub, those of that account.
func (s *store) deliveries(ctx context.Context, id, sub string, before eventstore.Position, beforePart int) iter.Seq2[placed, error] {
	return func(yield func(placed, error) bool) {
		rows, err := s.read.QueryContext(ctx, `
			WITH e AS (SELECT no FROM endpoint WHERE id = ?1), found AS (
				SELECT position, part, event, type, sub, sequence, seq, time, duration, status, error, response, trigger, 0 AS dead
					FROM attempt WHERE endpoint = (SELECT no FROM e) AND (position, part) < (?2, ?3) AND (?4 = '' OR sub = ?4)
				UNION ALL
				SELECT position, part, event, type, sub, sequence, 0, time, 0, 0, reason, NULL, '', 1
					FROM dead_letter WHERE endpoint = (SELECT no FROM e) AND (position, part) < (?2, ?3) AND (?4 = '' OR sub = ?4))
			SELECT * FROM found ORDER BY position DESC, part DESC, dead DESC, seq`, id, before, beforePart, sub)
		if err != nil {
			yield(placed{}, err)
			return
		}
		defer rows.Close()
		var p placed // the one whose attempts are being read
		for rows.Next() {
			var r record
			var event []byte
			var seq, at, duration int64
			var dead bool
			err := rows.Scan(&r.position, &r.part, &event, &r.kind, &r.sub, &r.sequence, &seq, &at, &duration,
				&r.outcome.Status, &r.outcome.Code, &r.outcome.Response, &r.trigger, &dead)
			if err == nil {
				r.event, err = uuid.FromBytes(event)
			}
			if err != nil {
				yield(placed{}, err)
				return
			}
			if p.EventID == "" || p.Position != r.position || p.part != r.part {
				if p.EventID != "" && !yield(p, nil) {
					return
				}
				p = placed{part: r.part, Delivery: Delivery{EventID: r.event.String(), Type: r.kind, Sub: r.sub,
					Sequence: r.sequence, Position: r.position, Attempts: []Attempt{}}}
			}
			if dead {
				p.Status = StatusDead
			} else {
				r.time, r.duration = fromMicro(at), time.Duration(duration)*time.Microsecond
				p.attempted(r)
			}
		}
		if err := rows.Err(); err != nil {
			yield(placed{}, err)
			return
		}
		if p.EventID != "" {
			yield(p, nil)
		}
	}
}

// attempted adds an attempt to the earlier ones.
func (p *placed) attempted(r record) {
	p.Attempts = append(p.Attempts, r.attempt())
	switch {
	case p.Status == StatusDead || p.Status == StatusDelivered:
	case r.outcome.Code == "":
		p.Status = StatusDelivered
	case r.trigger == triggerSchedule:
		p.Status = StatusRetrying
	case p.Status == "":
		p.Status = StatusSettled // a resend alone does not show the status of the regular delivery
	}
}
