package webhooks

import (
	"context"
	"log/slog"
	"sync"

	"github.com/google/uuid"

	"accountledger/domain"
)

// reporter has the ledger record how deliveries go, one report after another, in
// a goroutine of its own: workers do not wait for it. It retries until the run
// ends.
type reporter struct {
	ctx     context.Context         // of the run
	fail    context.CancelCauseFunc // ends the run
	ledger  ledger
	store   *store
	logger  *slog.Logger
	reports chan func()

	mu   sync.Mutex
	last map[string]bool // by webhook: whether the last report of this run says that deliveries fail
}

func newReporter(ctx context.Context, fail context.CancelCauseFunc, l ledger, s *store, logger *slog.Logger) *reporter {
	return &reporter{ctx: ctx, fail: fail, ledger: l, store: s, logger: logger, reports: make(chan func(), 1024), last: map[string]bool{}}
}

// run makes the reports until close.
func (r *reporter) run() {
	for report := range r.reports {
		report()
	}
}

func (r *reporter) close() { close(r.reports) }

func (r *reporter) retry(report func() error) {
	if err := retry(r.ctx, r.logger, "report", report); err != nil {
		r.fail(err)
	}
}

// report has the ledger record that deliveries to a webhook began to fail, or
// that they succeed again.
func (r *reporter) report(id string, cmd domain.WebhookCommand) {
	_, failing := cmd.(domain.ReportFailing)
	r.mu.Lock()
	r.last[id] = failing
	r.mu.Unlock()
	r.reports <- func() {
		r.retry(func() error { return r.ledger.report(r.ctx, id, cmd) })
	}
}

// failing reports whether the last report on a webhook says that deliveries
// fail.
func (r *reporter) failing(conf domain.Webhook) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if failing, ok := r.last[conf.WebhookID]; ok {
		return failing
	}
	return !conf.FailingSince.IsZero()
}

// reportDead has the ledger record the dead letters of a webhook that it has not
// recorded yet. A crash between the record and the note of it makes it record one
// twice.
func (r *reporter) reportDead(id string) {
	r.reports <- func() {
		r.retry(func() error {
			ctx := context.WithoutCancel(r.ctx)
			all, err := r.store.unreported(ctx, id)
			if err != nil {
				return err
			}
			for _, d := range all {
				if !isReport(d.kind) { // a report of a failed report would cause the next
					if err := r.ledger.report(ctx, id, exhausted(d)); err != nil {
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

// unreported returns the dead letters of a webhook that the ledger has not
// recorded yet, oldest first.
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
		if err := rows.Scan(&r.position, &r.part, &event, &r.kind, &r.sub, &r.sequence, &r.outcome.Code); err != nil {
			return nil, err
		}
		if r.event, err = uuid.FromBytes(event); err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, rows.Err()
}

// reported notes that the ledger has recorded a dead letter.
func (s *store) reported(ctx context.Context, id string, r record) error {
	_, err := s.write.ExecContext(ctx, `UPDATE dead_letter SET reported = 1
		WHERE endpoint = (SELECT no FROM endpoint WHERE id = ?) AND position = ? AND part = ?`, id, r.position, r.part)
	return err
}
