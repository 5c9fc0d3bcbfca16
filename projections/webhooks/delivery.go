package webhooks

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"accountledger/domain"
	"accountledger/eventstore"
)

// What became of a delivery.
const (
	StatusDelivered = "delivered"
	StatusRetrying  = "retrying" // the last attempt failed; there will be others
	StatusDead      = "dead"     // given up
	StatusPending   = "pending"  // read, and waiting for its first attempt
	StatusSettled   = "settled"  // nothing is left to send, and what came of it is not remembered any more
)

// Statuses lists what may have become of a delivery.
var Statuses = []string{StatusPending, StatusDelivered, StatusRetrying, StatusDead, StatusSettled}

// Delivery is one public event on its way to one endpoint.
type Delivery struct {
	EventID  string              `json:"eventId" doc:"The public event's id; the webhook-id of every attempt."` // the webhook-id
	Type     string              `json:"type" doc:"The event's name in the public catalogue."`
	Sub      string              `json:"sub,omitzero" doc:"The account the event is about."`
	Sequence eventstore.Revision `json:"sequence" doc:"The account's revision."`
	Position eventstore.Position `json:"position" doc:"The event's position in the log."`
	Status   string              `json:"status" doc:"delivered, retrying, dead, pending, or settled: nothing is left to send, and the outcome is no longer stored."`
	Attempts []Attempt           `json:"attempts" doc:"The attempts, oldest first."` // those remembered, oldest first
}

// Attempt is one request and what came of it.
type Attempt struct {
	Time       time.Time `json:"time" doc:"When the attempt was made."`
	Trigger    string    `json:"trigger" doc:"What caused the attempt. schedule: the regular delivery or a retry; manual, recover, replay: a request to this API."` // schedule, manual, recover or replay
	Status     int       `json:"status" doc:"The HTTP status of the response; 0 if there was none."`                                                                // HTTP's; 0 where there was no response
	Error      string    `json:"error,omitzero" doc:"Why the attempt failed, as a code."`
	DurationMs float64   `json:"durationMs" doc:"Duration in milliseconds."`
	Response   string    `json:"response,omitzero" doc:"The beginning of the response body."` // the start of a refusal's body; never of a private address
}

// placed is a delivery with its place: a position, and among its public
// events.
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

// cursor is what continues a list behind p.
func (p placed) cursor() string { return fmt.Sprintf("%d.%d", p.Position, p.part) }

// DeliveryQuery says which deliveries are listed; the zero value: all.
type DeliveryQuery struct {
	Status string // one of Statuses, or "": any
	Sub    string // of the account they tell of, or "": any
}

// Deliveries lists an endpoint's deliveries, the newest event first, as far as
// they are remembered. after is what the call before returned as next, or "";
// next is "" where there are no more. limit is 1 to 1000.
func (w *Webhooks) Deliveries(ctx context.Context, id string, q DeliveryQuery, after string, limit int) (all []Delivery, next string, err error) {
	before := placed{Delivery: Delivery{Position: math.MaxInt64}}
	if after != "" {
		if _, err := fmt.Sscanf(after, "%d.%d", &before.Position, &before.part); err != nil || after != before.cursor() {
			return nil, "", &domain.Error{Code: domain.CodeInvalidCursor, Detail: "The cursor is not one of this list."}
		}
	}
	conf, err := w.c.Ledger.Webhook(ctx, id)
	if err != nil {
		return nil, "", err
	}
	if !conf.Exists() {
		return nil, "", errNotFound()
	}
	limit = min(max(limit, 1), 1000)
	pending := map[place]placed{}
	if live := w.running(id); live != nil {
		for _, p := range live.settled(ctx) {
			pending[place{p.Position, p.part}] = p
		}
	}
	var found []placed
	for p, err := range w.store.deliveries(ctx, id, q.Sub, before.Position, before.part) {
		if err != nil {
			return nil, "", fmt.Errorf("webhooks: deliveries: %w", err)
		}
		delete(pending, place{p.Position, p.part}) // what is stored knows the attempts
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

// Outcome says what became of the event at position p of a stream, which the
// endpoint asked for: one of the statuses.
func (w *Webhooks) Outcome(ctx context.Context, id, stream string, p eventstore.Position) (status string, err error) {
	// First this: what is settled in between has attempts then.
	settled, err := w.settled(ctx, id, stream, p)
	if err != nil {
		return "", err
	}
	// The page that begins with the event right after is this one's.
	all, _, err := w.Deliveries(ctx, id, DeliveryQuery{}, fmt.Sprintf("%d.0", p+1), 1)
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
func (w *Webhooks) settled(ctx context.Context, id, stream string, p eventstore.Position) (settled bool, err error) {
	if live := w.running(id); live != nil {
		asked := live.ask(ctx, func() {
			l := live.lanes.byStream[stream]
			settled = live.cursor.has(p) && (l == nil || l.position > p)
		})
		if asked {
			return settled, nil
		}
	}
	stored, err := w.store.load(ctx, id)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil // not copied yet
	}
	if err != nil {
		return false, err
	}
	owed, err := w.store.owes(ctx, stored.no, stream, p)
	return stored.cursor.has(p) && !owed, err
}

// deliveries yields the deliveries of an endpoint, or those that tell of one
// account, newest first, from before a place in the log on.
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
				&r.outcome.status, &r.outcome.code, &r.outcome.response, &r.trigger, &dead)
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

// attempted adds an attempt to those before it.
func (p *placed) attempted(r record) {
	p.Attempts = append(p.Attempts, Attempt{Time: r.time, Trigger: r.trigger, Status: r.outcome.status, Error: r.outcome.code,
		DurationMs: float64(r.duration.Microseconds()) / 1000, Response: strings.ToValidUTF8(string(r.outcome.response), "\uFFFD")})
	switch {
	case p.Status == StatusDead || p.Status == StatusDelivered:
	case r.outcome.code == "":
		p.Status = StatusDelivered
	case r.trigger == triggerSchedule:
		p.Status = StatusRetrying
	case p.Status == "":
		p.Status = StatusSettled // that it was sent by hand says nothing of its turn
	}
}
