package webhooks

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/projections/webhooks/transport"
)

// A resend is outside the order of regular deliveries. Its result does not count
// for the webhook's health. But a resent dead letter that succeeds is settled,
// and an account that waits for it continues.

// Resend sends an event once more, under the same webhook-id and signed with the
// present keys, and returns the delivery including the attempt. The event must be
// one that Deliveries lists and that the webhook still selects, else the error
// has CodeDeliveryNotFound. A response that refuses the event is not an error.
func (s deliveries) Resend(ctx context.Context, id, eventID string) (Delivery, error) {
	conf, err := s.ledger.existing(ctx, id)
	if err != nil {
		return Delivery{}, err
	}
	event, err := uuid.Parse(eventID)
	if err != nil {
		return Delivery{}, errNoDelivery()
	}
	at, err := s.store.find(ctx, id, event)
	if errors.Is(err, sql.ErrNoRows) {
		return Delivery{}, errNoDelivery()
	}
	if err != nil {
		return Delivery{}, fmt.Errorf("webhooks: resend: %w", err)
	}
	sender, err := s.senders.open(ctx, conf)
	if err != nil {
		return Delivery{}, err
	}
	defer sender.close()
	rec, err := s.recordAt(ctx, at.position)
	if err != nil {
		return Delivery{}, err
	}
	r := sender.resend(rec, at.part, nil)
	switch r.Scope {
	case internal:
		return Delivery{}, fmt.Errorf("webhooks: resend: %w", r.err)
	case unwanted:
		return Delivery{}, errNoDelivery()
	}
	if err := s.resent(ctx, id, r, triggerManual); err != nil {
		return Delivery{}, err
	}
	all, _, err := s.Deliveries(ctx, id, DeliveryQuery{}, placed{Delivery: Delivery{Position: at.position}, part: at.part + 1}.cursor(), 1)
	if err != nil {
		return Delivery{}, err
	}
	if len(all) == 0 || all[0].EventID != event.String() {
		return Delivery{}, errNoDelivery() // the webhook was deleted meanwhile
	}
	return all[0], nil
}

func errNoDelivery() error {
	return &domain.Error{Code: domain.CodeDeliveryNotFound, Detail: "There is no such delivery, or it is no longer stored."}
}

// recordAt returns the event at a position.
func (e *engine) recordAt(ctx context.Context, p eventstore.Position) (eventstore.Recorded, error) {
	for page, err := range e.config.Log.Subscribe(ctx, p-1) {
		if err != nil {
			return eventstore.Recorded{}, fmt.Errorf("webhooks: read the log at %d: %w", p, err)
		}
		return page[0], nil
	}
	return eventstore.Recorded{}, ctx.Err()
}

// resent stores the result of a resend. It leaves that to the worker, if there
// is one, which owns the lanes.
func (e *engine) resent(ctx context.Context, id string, r result, trigger string) error {
	if w := e.worker(id); w != nil && w.call(ctx, func() { w.resent(r, trigger) }) {
		return nil
	}
	if err := e.store.resent(ctx, id, r, trigger); err != nil {
		return fmt.Errorf("webhooks: store a resend: %w", err)
	}
	return nil
}

// resent notes the result of a resend. If the event is the one that a lane waits
// for, and it is not in flight, the account continues.
func (w *worker) resent(r result, trigger string) {
	w.attempts = append(w.attempts, r.record(trigger))
	w.changed()
	l := w.lanes.byStream[r.rec.Stream]
	if r.Scope != transport.Delivered || l == nil || l.attempt == 0 || l.position != r.rec.Position || w.cursor.partial[l.position] != r.part {
		return
	}
	switch {
	case l.index >= 0:
		w.lanes.unschedule(l)
	case !w.blocked(l):
		return // held or in flight
	}
	l.next = nil
	l.attempt = 0
	r.lane = l
	w.advance(r.delivery, r.parts)
	w.dirty[l.stream] = true
}

// resent is worker.resent for a webhook without a worker.
func (s *store) resent(ctx context.Context, id string, r result, trigger string) error {
	return s.update(ctx, func(tx *sql.Tx) error {
		var no, before int64
		err := tx.QueryRowContext(ctx, `UPDATE cursor SET attempts = attempts + 1 WHERE endpoint = (SELECT no FROM endpoint WHERE id = ?)
			RETURNING endpoint, attempts - 1`, id).Scan(&no, &before)
		if errors.Is(err, sql.ErrNoRows) {
			return nil // deleted meanwhile
		}
		if err != nil {
			return err
		}
		if err := s.saveAttempts(ctx, tx, no, before, []record{r.record(trigger)}); err != nil || r.Scope != transport.Delivered {
			return err
		}
		// A lane that waits for this event continues.
		member := fmt.Sprintf(`$."%d"`, r.rec.Position)
		const waits = `EXISTS (SELECT 1 FROM lane WHERE endpoint = ?1 AND stream = ?2 AND next_position = ?3 AND attempt > 0)
			AND ?4 = (SELECT coalesce(json_extract(partial, ?5), 0) FROM cursor WHERE endpoint = ?1)`
		var ours bool
		if err := tx.QueryRowContext(ctx, `SELECT `+waits, no, r.rec.Stream, r.rec.Position, r.part, member).Scan(&ours); err != nil || !ours {
			return err
		}
		revision, position, partial := r.rec.Revision+1, r.rec.Position+1, `json_remove(partial, ?2)`
		if r.part+1 < r.parts {
			revision, position, partial = r.rec.Revision, r.rec.Position, `json_set(partial, ?2, ?3)`
		}
		if _, err := tx.ExecContext(ctx, `UPDATE cursor SET partial = `+partial+` WHERE endpoint = ?1`, no, member, r.part+1); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `UPDATE lane SET next_revision = ?, next_position = ?, attempt = 0, not_before = 0, error = '' WHERE endpoint = ? AND stream = ?`,
			revision, position, no, r.rec.Stream)
		return err
	})
}

// find returns the place of a public event among the stored attempts and dead
// letters of a webhook.
func (s *store) find(ctx context.Context, id string, event uuid.UUID) (at place, err error) {
	err = s.read.QueryRowContext(ctx, `WITH e AS (SELECT no FROM endpoint WHERE id = ?1)
		SELECT position, part FROM dead_letter WHERE endpoint = (SELECT no FROM e) AND event = ?2
		UNION ALL SELECT position, part FROM attempt WHERE endpoint = (SELECT no FROM e) AND event = ?2 LIMIT 1`, id, event[:]).Scan(&at.position, &at.part)
	return at, err
}
