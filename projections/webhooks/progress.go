package webhooks

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/go-json-experiment/json"

	"accountledger/eventstore"
	"accountledger/projections/webhooks/transport"
)

// errFenced says that nothing was written, because the webhook has a new owner
// or was deleted.
var errFenced = errors.New("webhooks: the webhook has another owner now")

// progress is the stored state of the delivery to a webhook, without its lanes.
type progress struct {
	no, epoch   int64 // of the webhook; of its owner
	cursor      cursor
	breaker     breaker
	lastSuccess time.Time
}

// load reads a webhook's progress.
func (s *store) load(ctx context.Context, id string) (progress, error) {
	var p progress
	var low eventstore.Position
	var done, partial []byte
	var until, first, success int64
	err := s.read.QueryRowContext(ctx, `SELECT c.endpoint, epoch, low, done, partial, breaker_step, breaker_until, breaker_reason, first_failure, last_success
		FROM cursor c JOIN endpoint e ON e.no = c.endpoint WHERE e.id = ?`, id).
		Scan(&p.no, &p.epoch, &low, &done, &partial, &p.breaker.step, &until, &p.breaker.reason, &first, &success)
	if err != nil {
		return p, fmt.Errorf("webhooks: load progress: %w", err)
	}
	var parts map[eventstore.Position]int
	if err := json.Unmarshal(partial, &parts); err != nil {
		return p, fmt.Errorf("webhooks: load progress: %w", err)
	}
	p.cursor = newCursor(low, done, parts)
	p.breaker.until, p.breaker.firstFailure, p.lastSuccess = fromMicro(until), fromMicro(first), fromMicro(success)
	return p, nil
}

// state reads a webhook's progress, how many of its lanes are failing, how many
// of these had more attempts than tries, and how many dead letters there are. All
// of it is zero for a webhook that has not been copied yet.
func (s *store) state(ctx context.Context, id string, tries int) (p progress, lanes, exhausted int, dead int64, err error) {
	p, err = s.load(ctx, id)
	if errors.Is(err, sql.ErrNoRows) {
		return p, 0, 0, 0, nil
	}
	if err != nil {
		return p, 0, 0, 0, err
	}
	err = s.read.QueryRowContext(ctx, `SELECT (SELECT count(*) FROM lane WHERE endpoint = ?1 AND attempt > 0), (SELECT count(*) FROM lane WHERE endpoint = ?1 AND attempt > ?2),
		(SELECT count(*) FROM dead_letter WHERE endpoint = ?1)`, p.no, tries).Scan(&lanes, &exhausted, &dead)
	return p, lanes, exhausted, dead, err
}

// own makes the caller the owner of a webhook's progress, under a new epoch.
func (s *store) own(ctx context.Context, no int64) (epoch int64, err error) {
	err = s.write.QueryRowContext(ctx, `UPDATE cursor SET epoch = epoch + 1 WHERE endpoint = ? RETURNING epoch`, no).Scan(&epoch)
	return epoch, err
}

// checkpoint is a worker's progress and results since its last checkpoint. The
// store writes all of it in one transaction, after the results are known and
// never before sending.
type checkpoint struct {
	progress progress
	done     []byte // of the cursor at its low
	low      eventstore.Position
	partial  []byte
	lanes    []lane
	gone     []string // streams whose lanes were closed
	dead     []record // dead letters
	attempts []record
	written  chan<- error
	synced   []chan struct{} // closed when it is written, see worker.sync
}

// save writes checkpoints in one transaction and reports the result to the
// worker of each. A fenced checkpoint does not prevent the others from being
// written.
func (s *store) save(ctx context.Context, all []*checkpoint) {
	fenced := make([]bool, len(all))
	err := s.update(ctx, func(tx *sql.Tx) error {
		for i, c := range all {
			seq, err := s.saveCursor(ctx, tx, c)
			if fenced[i] = errors.Is(err, sql.ErrNoRows); fenced[i] {
				continue
			}
			if err != nil {
				return err
			}
			if err := s.saveResults(ctx, tx, c, seq); err != nil {
				return err
			}
		}
		at := s.mark.Load()
		if at == nil {
			return nil
		}
		_, err := tx.ExecContext(ctx, follow, at.position, at.event[:])
		return err
	})
	if err != nil {
		err = fmt.Errorf("webhooks: write progress: %w", err)
	}
	for i, c := range all {
		if err == nil && fenced[i] {
			c.written <- errFenced
			continue
		}
		c.written <- err
	}
}

// saveCursor writes the cursor and returns how many attempts there were before.
// The error is sql.ErrNoRows if the writer no longer owns the progress.
func (s *store) saveCursor(ctx context.Context, tx *sql.Tx, c *checkpoint) (before int64, err error) {
	b := c.progress.breaker
	err = tx.QueryRowContext(ctx, `UPDATE cursor SET low = ?, done = ?, partial = ?, breaker_step = ?, breaker_until = ?, breaker_reason = ?,
			first_failure = ?, last_success = ?, attempts = attempts + ? WHERE endpoint = ? AND epoch = ? RETURNING attempts`,
		c.low, c.done, string(c.partial), b.step, micro(b.until), b.reason, micro(b.firstFailure), micro(c.progress.lastSuccess), len(c.attempts), c.progress.no, c.progress.epoch).Scan(&before)
	return before - int64(len(c.attempts)), err
}

func (s *store) saveResults(ctx context.Context, tx *sql.Tx, c *checkpoint, seq int64) error {
	no := c.progress.no
	for _, l := range c.lanes {
		if _, err := tx.ExecContext(ctx, `INSERT OR REPLACE INTO lane VALUES (?, ?, ?, ?, ?, ?, ?)`,
			no, l.stream, l.revision, l.position, l.attempt, micro(l.due), l.code); err != nil {
			return err
		}
	}
	for _, stream := range c.gone {
		if _, err := tx.ExecContext(ctx, `DELETE FROM lane WHERE endpoint = ? AND stream = ?`, no, stream); err != nil {
			return err
		}
	}
	for _, r := range c.dead {
		if _, err := tx.ExecContext(ctx, `INSERT INTO dead_letter VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0)
				ON CONFLICT DO UPDATE SET time = excluded.time, reason = excluded.reason`,
			no, r.position, r.part, r.event[:], r.kind, r.sub, r.sequence, micro(r.time), r.outcome.Code); err != nil {
			return err
		}
	}
	return s.saveAttempts(ctx, tx, no, seq, c.attempts)
}

// saveAttempts writes attempts; there were seq before. A successful attempt that
// a client triggered removes the dead letter.
func (s *store) saveAttempts(ctx context.Context, tx *sql.Tx, no, seq int64, all []record) error {
	if len(all) == 0 {
		return nil
	}
	insert, err := tx.PrepareContext(ctx, `INSERT OR REPLACE INTO attempt VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13,
		CASE WHEN EXISTS (SELECT 1 FROM erased WHERE sub = ?8 AND until > ?10) THEN NULL ELSE ?14 END, ?15)`)
	if err != nil {
		return err
	}
	defer insert.Close()
	for _, r := range all {
		seq++
		if _, err := insert.ExecContext(ctx, no, seq%s.ring, seq, r.position, r.part, r.event[:], r.kind, r.sub, r.sequence,
			micro(r.time), r.duration.Microseconds(), r.outcome.Status, r.outcome.Code, r.outcome.Response, r.trigger); err != nil {
			return err
		}
		if r.trigger != triggerSchedule && r.outcome.Scope == transport.Delivered {
			if _, err := tx.ExecContext(ctx, `DELETE FROM dead_letter WHERE endpoint = ? AND position = ? AND part = ?`, no, r.position, r.part); err != nil {
				return err
			}
		}
	}
	return nil
}

// writer saves checkpoints until the channel is closed, all that are waiting in
// one transaction.
func (s *store) writer(saves <-chan *checkpoint) {
	for c := range saves {
		batch := []*checkpoint{c}
		for len(saves) > 0 {
			batch = append(batch, <-saves)
		}
		s.save(context.Background(), batch)
	}
}
