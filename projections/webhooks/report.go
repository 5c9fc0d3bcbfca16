package webhooks

import (
	"context"
	"strings"

	"github.com/google/uuid"

	"accountledger/domain"
)

// report has the ledger record how deliveries to an endpoint go.
func (r *runner) report(id string, cmd domain.WebhookCommand) {
	_, failing := cmd.(domain.ReportFailing)
	r.mu.Lock()
	r.failing[id] = failing
	r.mu.Unlock()
	r.reports <- func() {
		r.again("report", func() error { return r.record(id, cmd) })
	}
}

// record is done also while Run ends: what it says would not be found out again.
func (r *runner) record(id string, cmd domain.WebhookCommand) error {
	_, _, err := r.c.Ledger.ExecuteWebhook(context.WithoutCancel(r.ctx), bySystem, id, cmd)
	return err
}

// isFailing is whether the last report of an endpoint says that it fails.
func (r *runner) isFailing(conf domain.Webhook) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if failing, ok := r.failing[conf.WebhookID]; ok {
		return failing
	}
	return !conf.FailingSince.IsZero()
}

// reportGivenUp has the ledger record the dead letters of an endpoint that it
// has not recorded yet. A crash between that and the note that it was done has
// one recorded twice.
func (r *runner) reportGivenUp(id string) {
	r.reports <- func() {
		r.again("report", func() error {
			ctx := context.WithoutCancel(r.ctx)
			all, err := r.store.unreported(ctx, id)
			if err != nil {
				return err
			}
			for _, d := range all {
				// Of a report that was given up there is none.
				if !strings.HasPrefix(d.kind, "WEBHOOK_DELIVERY_") {
					cmd := domain.ReportExhausted{EventID: d.event.String(), EventType: d.kind, Sub: d.sub, Sequence: d.sequence, Position: d.position, Reason: d.outcome.code}
					if err := r.record(id, cmd); err != nil {
						return err
					}
				}
				if err := r.store.reported(ctx, id, d); err != nil {
					return err
				}
			}
			return nil
		})
	}
}

// unreported returns the dead letters of an endpoint that the log does not
// tell of yet, oldest first.
func (s *store) unreported(ctx context.Context, id string) ([]record, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT position, part, event, type, sub, sequence, reason FROM dead_letter
		WHERE endpoint = (SELECT no FROM endpoint WHERE id = ?) AND reported = 0 ORDER BY position, part`, id)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []record
	for rows.Next() {
		var r record
		var event []byte
		if err := rows.Scan(&r.position, &r.part, &event, &r.kind, &r.sub, &r.sequence, &r.outcome.code); err != nil {
			return nil, err
		}
		if r.event, err = uuid.FromBytes(event); err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, rows.Err()
}

// reported notes that the log tells of a dead letter.
func (s *store) reported(ctx context.Context, id string, r record) error {
	_, err := s.write.ExecContext(ctx, `UPDATE dead_letter SET reported = 1
		WHERE endpoint = (SELECT no FROM endpoint WHERE id = ?) AND position = ? AND part = ?`, id, r.position, r.part)
	return err
}
