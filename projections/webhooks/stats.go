package webhooks

import (
	"cmp"
	"context"
	"fmt"

	"accountledger/domain"
	"accountledger/eventstore"
)

// Stats are the metrics of the delivery to a webhook.
type Stats struct {
	WebhookID   string
	State       domain.WebhookState
	Backlog     int64               // events of the log that are not settled, whether the webhook selects them or not
	Oldest      eventstore.Position // of the oldest event that is not settled or that a lane owes; 0: there is none
	InFlight    int                 // requests in flight
	Lanes       int                 // accounts that wait because their next event was refused
	Blocked     int                 // of these, accounts whose next event is a dead letter and must not be skipped
	DeadLetters int64               // events that are no longer retried
	BreakerOpen bool                // the endpoint gets no requests for a while
	Duplicates  int                 // events that a crash now would send again, at most
}

// Stats returns the metrics of all webhooks, oldest first. It interrupts each
// worker only to read its state.
func (s status) Stats(ctx context.Context) ([]Stats, error) {
	head, err := s.config.Log.Head(ctx)
	if err != nil {
		return nil, fmt.Errorf("webhooks: stats: %w", err)
	}
	confs := s.confs.all()
	dead, err := s.store.deadLetters(ctx)
	if err != nil {
		return nil, fmt.Errorf("webhooks: stats: %w", err)
	}
	all := make([]Stats, 0, len(confs))
	for _, conf := range confs {
		f := Stats{WebhookID: conf.WebhookID, State: conf.State, DeadLetters: dead[conf.WebhookID]}
		w := s.worker(conf.WebhookID)
		if w == nil || !w.call(ctx, func() { w.stats(&f, head) }) {
			if err := s.stored(ctx, &f, conf, head); err != nil {
				return nil, fmt.Errorf("webhooks: stats: %w", err)
			}
		}
		all = append(all, f)
	}
	return all, nil
}

// stats fills in the state of the worker.
func (w *worker) stats(f *Stats, head eventstore.Position) {
	f.progress(w.cursor, w.breaker, head)
	for _, l := range w.lanes.byStream {
		f.owes(l.position)
	}
	f.Lanes, f.Blocked = w.lanes.failing(), w.blockedLanes()
	f.InFlight = w.busy - w.laneReads
	f.Duplicates = f.InFlight*w.batch + w.unflushed()
}

// stored fills in the state in delivery.db, of a webhook without a worker.
func (s status) stored(ctx context.Context, f *Stats, conf domain.Webhook, head eventstore.Position) error {
	p, lanes, exhausted, _, err := s.store.state(ctx, conf.WebhookID, len(s.config.Schedule))
	if err != nil {
		return err
	}
	f.progress(p.cursor, p.breaker, head)
	f.Lanes = lanes
	if conf.DeadLetter == domain.DeadLetterBlock {
		f.Blocked = exhausted
	}
	owed, err := s.store.owed(ctx, p.no)
	f.owes(owed)
	return err
}

// progress fills in what follows from the cursor and the breaker.
func (f *Stats) progress(c cursor, b breaker, head eventstore.Position) {
	f.Backlog = c.backlog(head)
	f.BreakerOpen = b.open()
	if c.low < head {
		f.Oldest = c.low + 1
	}
}

// owes notes a lane whose next event is at p or before it; 0: there is none.
func (f *Stats) owes(p eventstore.Position) {
	if p > 0 {
		f.Oldest = min(cmp.Or(f.Oldest, p), p)
	}
}

// deadLetters counts the dead letters by webhook.
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

// owed returns the position of the oldest event that a lane of the webhook owes,
// 0 if there is none.
func (s *store) owed(ctx context.Context, no int64) (p eventstore.Position, err error) {
	err = s.read.QueryRowContext(ctx, `SELECT ifnull(min(next_position), 0) FROM lane WHERE endpoint = ?`, no).Scan(&p)
	return p, err
}
