package projections

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"accountledger/domain"
)

// SchedulesView is the name of the view of what is planned for all accounts,
// and when it is due.
const SchedulesView = "schedules"

// Schedules answers what is due when. Its methods may be called at once by
// many goroutines.
type Schedules struct {
	views   *Views
	reads   atomic.Int64 // the live generation
	changed signal       // rows have
}

// Due is a planned schedule.
type Due struct {
	Time       time.Time
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
		serve: func(_ context.Context, generation int64) (func(), error) {
			return func() { s.reads.Store(generation); s.changed.raise() }, nil
		},
	}
}

// scheduleWriter writes what a batch leaves planned.
type scheduleWriter struct {
	put, remove, removeAll *sql.Stmt

	due   map[Due]time.Time // by sub and id; zero for what has ended
	ended map[string]bool   // subs of accounts that have
	after func()
}

func (s *Schedules) writer(ctx context.Context, generation int64) (writer, error) {
	w := &scheduleWriter{due: map[Due]time.Time{}, ended: map[string]bool{}, after: s.changed.raise}
	closing, err := s.views.prepare(ctx, generation, map[**sql.Stmt]string{
		&w.put:       `INSERT INTO schedules_%[1]d (sub, schedule, due) VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET due = excluded.due`,
		&w.remove:    `DELETE FROM schedules_%[1]d WHERE sub = ? AND schedule = ?`,
		&w.removeAll: `DELETE FROM schedules_%[1]d WHERE sub = ?`,
	})
	return writer{apply: w.apply, flush: w.flush, end: w.end, close: closing}, err
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
		w.ended[sub] = true
	}
	return nil
}

func (w *scheduleWriter) flush(ctx context.Context, b *batch) error {
	if len(w.due) == 0 && len(w.ended) == 0 {
		return nil
	}
	tx, err := b.open(ctx)
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
	for sub := range w.ended { // last: nothing follows the end of an account
		if _, err := removeAll.ExecContext(ctx, sub); err != nil {
			return err
		}
	}
	return nil
}

func (w *scheduleWriter) end(bool) {
	if len(w.due) > 0 || len(w.ended) > 0 {
		w.after()
	}
	clear(w.due)
	clear(w.ended)
}

// Changed is closed when something is planned, moved or ended. Take it before
// asking Next, or a change between the two is missed.
func (s *Schedules) Changed() <-chan struct{} { return s.changed.next() }

// Next returns planned schedules in the order of their times, the earliest
// first: at most limit of those that come after the one given.
func (s *Schedules) Next(ctx context.Context, after Due, limit int) ([]Due, error) {
	rows, err := s.views.read.QueryContext(ctx, fmt.Sprintf(`SELECT due, sub, schedule FROM schedules_%[1]d
		WHERE (due, sub, schedule) > (?, ?, ?) ORDER BY due, sub, schedule LIMIT ?`, s.reads.Load()), micro(after.Time), after.Sub, after.ScheduleID, limit)
	if err != nil {
		return nil, fmt.Errorf("projections: next schedules: %w", err)
	}
	defer rows.Close()
	var all []Due
	for rows.Next() {
		var d Due
		var due int64
		if err := rows.Scan(&due, &d.Sub, &d.ScheduleID); err != nil {
			return nil, fmt.Errorf("projections: next schedules: %w", err)
		}
		d.Time = time.UnixMicro(due).UTC()
		all = append(all, d)
	}
	return all, rows.Err()
}

// micro is a time as the rows have it; the zero one is before all of them.
func micro(t time.Time) int64 {
	if t.IsZero() {
		return -1 << 63
	}
	return t.UnixMicro()
}
