package webhooks

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/google/uuid"

	"accountledger/domain"
	"accountledger/eventstore"
)

// What is sent by hand is sent out of turn, beside what the log brings. It
// says nothing of an endpoint's health and changes nothing of its order; but a
// dead letter that arrives is settled, and an account that waits for it goes
// on.

// Resend sends an event once more, under its webhook-id and signed with
// today's keys, and returns the delivery with the attempt. The event must be
// one of those Deliveries remembers and the endpoint is still told of, or the
// error has CodeDeliveryNotFound. What the endpoint answers is no error.
func (w *Webhooks) Resend(ctx context.Context, id, eventID string) (Delivery, error) {
	conf, err := w.existing(ctx, id)
	if err != nil {
		return Delivery{}, err
	}
	event, err := uuid.Parse(eventID)
	if err != nil {
		return Delivery{}, errNoDelivery()
	}
	at, err := w.store.find(ctx, id, event)
	if errors.Is(err, sql.ErrNoRows) {
		return Delivery{}, errNoDelivery()
	}
	if err != nil {
		return Delivery{}, fmt.Errorf("webhooks: resend: %w", err)
	}
	s, err := w.courier(ctx, conf)
	if err != nil {
		return Delivery{}, err
	}
	defer s.close()
	rec, err := w.recordAt(ctx, at.position)
	if err != nil {
		return Delivery{}, err
	}
	r := s.again(rec, at.part, nil)
	switch r.scope {
	case internal:
		return Delivery{}, fmt.Errorf("webhooks: resend: %w", r.err)
	case unwanted:
		return Delivery{}, errNoDelivery()
	}
	if err := w.keep(ctx, id, r, triggerManual); err != nil {
		return Delivery{}, err
	}
	all, _, err := w.Deliveries(ctx, id, DeliveryQuery{}, placed{Delivery: Delivery{Position: at.position}, part: at.part + 1}.cursor(), 1)
	if err != nil {
		return Delivery{}, err
	}
	if len(all) == 0 || all[0].EventID != event.String() {
		return Delivery{}, errNoDelivery() // the endpoint was deleted meanwhile
	}
	return all[0], nil
}

func errNoDelivery() error {
	return &domain.Error{Code: domain.CodeDeliveryNotFound, Detail: "There is no such delivery, or it is not remembered any more."}
}

// existing is the endpoint id, or an error with CodeWebhookNotFound.
func (w *Webhooks) existing(ctx context.Context, id string) (domain.Webhook, error) {
	conf, err := w.c.Ledger.Webhook(ctx, id)
	if err == nil && !conf.Exists() {
		err = errNotFound()
	}
	return conf, err
}

// recordAt is the event at a position.
func (w *Webhooks) recordAt(ctx context.Context, p eventstore.Position) (eventstore.Recorded, error) {
	for page, err := range w.c.Log.Subscribe(ctx, p-1) {
		if err != nil {
			return eventstore.Recorded{}, fmt.Errorf("webhooks: read the log at %d: %w", p, err)
		}
		return page[0], nil
	}
	return eventstore.Recorded{}, ctx.Err()
}

// again sends one of an event's public events, out of turn.
func (s *courier) again(rec eventstore.Recorded, part int, header http.Header) result {
	d := &delivery{slot: newSlot(rec), byHand: true}
	messages, err := d.open(s.opener, s.now())
	if err != nil {
		return result{delivery: d, outcome: outcome{scope: internal, err: err}}
	}
	if d.part = slices.IndexFunc(s.selected(messages), func(m *message) bool { return m.part == part }); d.part < 0 {
		return result{delivery: d, outcome: outcome{scope: unwanted}}
	}
	return s.attempt([]sending{{d, d.part}}, header)[0]
}

// keep writes down what came of something sent by hand. The running delivery
// does that itself, for it has the lanes in hand.
func (w *Webhooks) keep(ctx context.Context, id string, r result, trigger string) error {
	if live := w.running(id); live != nil && live.ask(ctx, func() { live.byHand(r, trigger) }) {
		return nil
	}
	if err := w.store.byHand(ctx, id, r, trigger); err != nil {
		return fmt.Errorf("webhooks: write what was sent by hand: %w", err)
	}
	return nil
}

// byHand takes note of something sent by hand. If it is what an account waits
// for, and it is not under way, the account goes on.
func (e *endpoint) byHand(r result, trigger string) {
	e.attempts = append(e.attempts, r.record(trigger))
	e.changed()
	l := e.lanes.byStream[r.rec.Stream]
	if r.scope != delivered || l == nil || l.attempt == 0 || l.position != r.rec.Position || e.cursor.partial[l.position] != r.part {
		return
	}
	switch {
	case l.index >= 0:
		e.lanes.take(l)
	case !e.blocked(l):
		return // in hand
	}
	l.next = nil
	l.attempt = 0
	r.lane = l
	e.advance(r.delivery, r.parts)
	e.dirty[l.stream] = true
}

// byHand is the same for an endpoint that is not delivered to.
func (s *store) byHand(ctx context.Context, id string, r result, trigger string) error {
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
		if err := s.saveAttempts(ctx, tx, no, before, []record{r.record(trigger)}); err != nil || r.scope != delivered {
			return err
		}
		// What a lane waits for, it waits for no more.
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

// place is where a public event is in the log.
type place struct {
	position eventstore.Position
	part     int
}

// find looks a public event up among what is remembered of an endpoint.
func (s *store) find(ctx context.Context, id string, event uuid.UUID) (at place, err error) {
	err = s.read.QueryRowContext(ctx, `WITH e AS (SELECT no FROM endpoint WHERE id = ?1)
		SELECT position, part FROM dead_letter WHERE endpoint = (SELECT no FROM e) AND event = ?2
		UNION ALL SELECT position, part FROM attempt WHERE endpoint = (SELECT no FROM e) AND event = ?2 LIMIT 1`, id, event[:]).Scan(&at.position, &at.part)
	return at, err
}
