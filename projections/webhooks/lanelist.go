package webhooks

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"

	"accountledger/domain"
	"accountledger/eventstore"
)

// What an account waits for.
const (
	LaneRetrying = "retrying" // its next event was refused and is tried again
	LaneBlocked  = "blocked"  // its next event was given up and must not be skipped
	LaneWaiting  = "waiting"  // its events come one after another, behind others
)

// Lane is an account whose events wait, as far as it is written down.
type Lane struct {
	Sub             string              `json:"sub,omitzero" doc:"The account. Absent: changes of the configuration."` // "": it is the configuration, or another endpoint
	Status          string              `json:"status" doc:"retrying: the next event failed and will be retried; blocked: its delivery was given up and must not be skipped; waiting: earlier events are still being sent."`
	Sequence        eventstore.Revision `json:"sequence" doc:"Sequence of the next event, or a lower bound."`                                    // of the next event, or before it
	Position        eventstore.Position `json:"position" doc:"Log position of the next event, or a lower bound."`                                // likewise
	EventID         string              `json:"eventId,omitzero" doc:"Id of the next event, if its delivery was given up: the event to resend."` // of the next event, where it was given up
	Attempts        int                 `json:"attempts" doc:"Number of failed attempts for the next event."`                                    // that failed, of the next event
	Error           string              `json:"error,omitzero" doc:"Why the last attempt failed, as a code."`                                    // of the last one
	NextAttemptTime time.Time           `json:"nextAttemptTime,omitzero" doc:"When the next attempt is due."`
}

// Lanes lists the accounts of an endpoint whose events wait, by their subs.
// after is what the call before returned as next, or ""; next is "" where
// there are no more. limit is 1 to 1000.
func (w *Webhooks) Lanes(ctx context.Context, id, after string, limit int) (all []Lane, next string, err error) {
	conf, err := w.existing(ctx, id)
	if err != nil {
		return nil, "", err
	}
	if live := w.running(id); live != nil {
		live.settled(ctx)
	}
	place := domain.Entry{Stream: after}
	if after != "" && place.Sub() == "" && place.WebhookID() == "" && after != domain.ConfigStream && after != domain.APIKeyStream {
		return nil, "", &domain.Error{Code: domain.CodeInvalidCursor, Detail: "The cursor is not one of this list."}
	}
	limit = min(max(limit, 1), 1000)
	rows, err := w.store.read.QueryContext(ctx, `SELECT stream, next_revision, next_position, attempt, not_before, error,
			(SELECT event FROM dead_letter d WHERE d.endpoint = l.endpoint AND d.position = next_position ORDER BY part DESC LIMIT 1)
		FROM lane l WHERE endpoint = (SELECT no FROM endpoint WHERE id = ?) AND stream > ? ORDER BY stream LIMIT ?`, id, after, limit+1)
	if err != nil {
		return nil, "", fmt.Errorf("webhooks: lanes: %w", err)
	}
	defer rows.Close()
	all = []Lane{}
	var last string
	for rows.Next() {
		if len(all) == limit {
			return all, last, nil
		}
		var l Lane
		var due int64
		var event []byte
		if err := rows.Scan(&last, &l.Sequence, &l.Position, &l.Attempts, &due, &l.Error, &event); err != nil {
			return nil, "", fmt.Errorf("webhooks: lanes: %w", err)
		}
		l.Sub = domain.Entry{Stream: last}.Sub()
		switch {
		case l.Attempts == 0:
			l.Status = LaneWaiting
		case l.Attempts > len(w.c.Schedule) && conf.DeadLetter == domain.DeadLetterBlock:
			l.Status = LaneBlocked
			if id, err := uuid.FromBytes(event); err == nil {
				l.EventID = id.String()
			}
		default:
			l.Status, l.NextAttemptTime = LaneRetrying, fromMicro(due)
		}
		all = append(all, l)
	}
	return all, "", rows.Err()
}
