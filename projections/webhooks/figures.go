package webhooks

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"accountledger/domain"
	"accountledger/eventstore"
)

// Attempted is an attempt to deliver an event that is over, as an observer is
// told of it. An attempt of a batch is one for each of its events.
type Attempted struct {
	WebhookID string
	Outcome   string        // one of Outcomes
	Status    int           // HTTP's; 0 where there was no response
	Duration  time.Duration // of the request
	Age       time.Duration // of the event at the end of it, since it was recorded
	InTurn    bool          // nobody has asked for it to be sent once more
}

// Tracing is an attempt to deliver an event that is part of a trace.
type Tracing struct {
	WebhookID   string
	Type        string // of the public event
	Position    eventstore.Position
	Traceparent string // of what caused the event
}

// OutcomeDelivered is the outcome of an attempt that succeeded.
const OutcomeDelivered = "delivered"

// outcomes names what an attempt came to.
var outcomes = [...]string{delivered: OutcomeDelivered, refused: "refused", unavailable: "unavailable", aborted: "aborted", disabled: "disabled", internal: "internal"}

// Outcomes are all that an attempt can come to: delivered; refused and aborted
// are about the event, unavailable and disabled about the endpoint, and
// internal is a fault of ours, before there was a request.
func Outcomes() []string { return outcomes[:] }

// Figures are how the delivery to an endpoint goes, in numbers, for whoever
// watches over all of them.
type Figures struct {
	WebhookID   string
	State       domain.WebhookState
	Backlog     int64               // events of the log that are not settled, wanted by the endpoint or not
	Oldest      eventstore.Position // of the oldest event that is not settled, or that a lane owes; 0: there is none
	InFlight    int                 // requests under way
	Lanes       int                 // accounts that wait because their next event was refused
	Blocked     int                 // those of them whose next event was given up and must not be skipped
	DeadLetters int64               // events given up
	BreakerOpen bool                // it is left alone for a while
	Duplicates  int                 // events that would be sent once more after a crash, at most
}

// Figures says how all deliveries go. It asks each running one, and holds up
// none for longer than that.
func (w *Webhooks) Figures(ctx context.Context) ([]Figures, error) {
	head, err := w.c.Log.Head(ctx)
	if err != nil {
		return nil, fmt.Errorf("webhooks: figures: %w", err)
	}
	confs, err := w.store.endpoints(ctx)
	if err != nil {
		return nil, fmt.Errorf("webhooks: figures: %w", err)
	}
	dead, err := w.store.deadLetters(ctx)
	if err != nil {
		return nil, fmt.Errorf("webhooks: figures: %w", err)
	}
	all := make([]Figures, 0, len(confs))
	for _, conf := range confs {
		f := Figures{WebhookID: conf.WebhookID, State: conf.State, DeadLetters: dead[conf.WebhookID]}
		live := w.running(conf.WebhookID)
		if live == nil || !live.ask(ctx, func() { live.figures(&f, head) }) {
			if err := w.stored(ctx, &f, conf, head); err != nil {
				return nil, fmt.Errorf("webhooks: figures: %w", err)
			}
		}
		all = append(all, f)
	}
	return all, nil
}

// figures fills in what the running delivery knows.
func (e *endpoint) figures(f *Figures, head eventstore.Position) {
	f.progress(e.cursor, e.breaker, head)
	for _, l := range e.lanes.byStream {
		f.owes(l.position)
	}
	f.Lanes, f.Blocked = e.lanes.failing(), e.blockedLanes()
	f.InFlight = e.flight - e.readings
	f.Duplicates = f.InFlight*e.batch + e.unflushed()
}

// stored is figures for an endpoint that is not delivered to.
func (w *Webhooks) stored(ctx context.Context, f *Figures, conf domain.Webhook, head eventstore.Position) error {
	p, lanes, exhausted, _, err := w.store.state(ctx, conf.WebhookID, len(w.c.Schedule))
	if err != nil {
		return err
	}
	f.progress(p.cursor, p.breaker, head)
	f.Lanes = lanes
	if conf.DeadLetter == domain.DeadLetterBlock {
		f.Blocked = exhausted
	}
	owed, err := w.store.owed(ctx, p.no)
	f.owes(owed)
	return err
}

func (f *Figures) progress(c cursor, b breaker, head eventstore.Position) {
	f.Backlog = max(0, int64(head-c.low)-c.settled())
	f.BreakerOpen = b.open()
	if c.low < head {
		f.Oldest = c.low + 1
	}
}

// owes takes note of a lane whose next event is at p, or before it; 0: none.
func (f *Figures) owes(p eventstore.Position) {
	if p > 0 {
		f.Oldest = min(cmp.Or(f.Oldest, p), p)
	}
}

// deadLetters counts the events given up, by endpoint.
func (s *store) deadLetters(ctx context.Context) (map[string]int64, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT id, (SELECT count(*) FROM dead_letter WHERE endpoint = no) FROM endpoint`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	all := map[string]int64{}
	for rows.Next() {
		var id string
		var n int64
		if err := rows.Scan(&id, &n); err != nil {
			return nil, err
		}
		all[id] = n
	}
	return all, rows.Err()
}

// owed is the position of the oldest event that a lane of the endpoint waits
// with; 0: none does.
func (s *store) owed(ctx context.Context, no int64) (p eventstore.Position, err error) {
	err = s.read.QueryRowContext(ctx, `SELECT ifnull(min(next_position), 0) FROM lane WHERE endpoint = ?`, no).Scan(&p)
	return p, err
}
