package projections

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"time"

	"accountledger/domain"
)

// SchedulesView is the name of the view of the planned schedules of all
// accounts.
const SchedulesView = "schedules"

// Schedules queries the planned schedules. Its methods are safe for concurrent
// use.
type Schedules struct {
	views   *Views
	changed signal // raised when rows change
}

// Due is a planned schedule.
type Due struct {
	Time       time.Time // UTC
	Sub        string
	ScheduleID string
}

const scheduleTables = `
CREATE TABLE schedules_%[1]d (
	sub      TEXT    NOT NULL,
	schedule TEXT    NOT NULL,
	due      INTEGER NOT NULL, -- Unix time in microseconds
	PRIMARY KEY (sub, schedule)
) STRICT, WITHOUT ROWID;
CREATE INDEX schedules_due_%[1]d ON schedules_%[1]d (due, sub, schedule);`

func (s *Schedules) projection() projection {
	return projection{
		name:    SchedulesView,
		version: 1,
		follows: func(stream string) bool { return strings.HasPrefix(stream, domain.AccountStream("")) },
		types: typesOf(domain.SchedulePlanned{}, domain.SchedulePostponed{}, domain.ScheduleCancelled{}, domain.ScheduleExecuted{},
			domain.AccountErased{}),
		tables: scheduleTables,
		clear:  []string{`DELETE FROM schedules_%[1]d WHERE (sub, schedule) IN (SELECT sub, schedule FROM schedules_%[1]d LIMIT 1000)`},
		drop:   `DROP TABLE schedules_%[1]d`,
		count:  `SELECT count(*) FROM schedules_%[1]d`,
		writer: s.writer,
		serve: func(context.Context, int64) (func(), error) {
			return s.changed.raise, nil
		},
	}
}

// scheduleWriter writes the schedules that a batch changes.
type scheduleWriter struct {
	put, remove, removeAll *sql.Stmt

	due     map[Due]time.Time // by Sub and ScheduleID; zero: no longer planned
	erased  map[string]bool   // accounts erased in the batch, by sub
	changed *signal
}

func (s *Schedules) writer(ctx context.Context, generation int64) (writer, error) {
	w := &scheduleWriter{due: map[Due]time.Time{}, erased: map[string]bool{}, changed: &s.changed}
	closing, err := s.views.prepare(ctx, generation, map[**sql.Stmt]string{
		&w.put:       `INSERT INTO schedules_%[1]d (sub, schedule, due) VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET due = excluded.due`,
		&w.remove:    `DELETE FROM schedules_%[1]d WHERE sub = ? AND schedule = ?`,
		&w.removeAll: `DELETE FROM schedules_%[1]d WHERE sub = ?`,
	})
	return writer{apply: w.apply, flush: w.flush, finish: w.finish, close: closing}, err
}

func (w *scheduleWriter) apply(_ context.Context, _ *batch, x domain.Entry) error {
	sub := x.Sub()
	set := func(id string, due time.Time) { w.due[Due{Sub: sub, ScheduleID: id}] = due }
	switch e := x.Event.(type) {
	case domain.SchedulePlanned:
		set(e.ScheduleID, e.DueTime)
	case domain.SchedulePostponed:
		set(e.ScheduleID, e.DueTime)
	case domain.ScheduleCancelled:
		set(e.ScheduleID, time.Time{})
	case domain.ScheduleExecuted:
		set(e.ScheduleID, e.NextDueTime)
	case domain.AccountErased:
		w.erased[sub] = true
	}
	return nil
}

func (w *scheduleWriter) flush(ctx context.Context, b *batch) error {
	if len(w.due) == 0 && len(w.erased) == 0 {
		return nil
	}
	tx, err := b.begin(ctx)
	if err != nil {
		return err
	}
	put, remove, removeAll := tx.StmtContext(ctx, w.put), tx.StmtContext(ctx, w.remove), tx.StmtContext(ctx, w.removeAll)
	for key, due := range w.due {
		if due.IsZero() {
			_, err = remove.ExecContext(ctx, key.Sub, key.ScheduleID)
		} else {
			_, err = put.ExecContext(ctx, key.Sub, key.ScheduleID, due.UnixMicro())
		}
		if err != nil {
			return err
		}
	}
	for sub := range w.erased { // last: an erased account has no schedules, whatever the batch has for it
		if _, err := removeAll.ExecContext(ctx, sub); err != nil {
			return err
		}
	}
	return nil
}

func (w *scheduleWriter) finish(bool) {
	if len(w.due) > 0 || len(w.erased) > 0 {
		w.changed.raise()
	}
	clear(w.due)
	clear(w.erased)
}

// Changed returns a channel that is closed at the next change of the view. Call
// it before Next, so that no change after the query is missed.
func (s *Schedules) Changed() <-chan struct{} { return s.changed.next() }

// Next returns up to limit planned schedules, earliest first, starting after
// the given one. The zero Due is before all others.
func (s *Schedules) Next(ctx context.Context, after Due, limit int) ([]Due, error) {
	var all []Due
	err := s.views.onLive(ctx, SchedulesView, func(tx *sql.Tx, generation int64) error {
		rows, err := tx.QueryContext(ctx, fmt.Sprintf(`SELECT due, sub, schedule FROM schedules_%[1]d
			WHERE (due, sub, schedule) > (?, ?, ?) ORDER BY due, sub, schedule LIMIT ?`, generation), micro(after.Time), after.Sub, after.ScheduleID, limit)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var d Due
			var due int64
			if err := rows.Scan(&due, &d.Sub, &d.ScheduleID); err != nil {
				return err
			}
			d.Time = time.UnixMicro(due).UTC()
			all = append(all, d)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("projections: next schedules: %w", err)
	}
	return all, nil
}

// micro returns t as it is stored in the rows; the zero time is before all of
// them.
func micro(t time.Time) int64 {
	if t.IsZero() {
		return -1 << 63
	}
	return t.UnixMicro()
}
