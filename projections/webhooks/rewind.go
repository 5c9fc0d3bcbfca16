package webhooks

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"os"

	"github.com/go-json-experiment/json"

	"accountledger/eventstore"
)

// Rewind prepares the delivery file at path for a log that is rolled back to the
// event with an id at a position: it forgets the progress beyond it, so that the
// events that the log gets there next are delivered. It keeps everything about
// the events up to it. No Webhooks may be open on the file; a missing file needs
// nothing.
func Rewind(ctx context.Context, path string, to eventstore.Position, event [16]byte) (err error) {
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("webhooks: rewind %s: %w", path, err)
		}
	}()
	s := &store{path: path}
	if s.write, err = connect(path, writing); err != nil {
		return err
	}
	s.write.SetMaxOpenConns(1)
	defer func() { err = errors.Join(err, s.write.Close()) }()
	if err := s.prepare(ctx, ""); err != nil {
		return err
	}
	return s.update(ctx, func(tx *sql.Tx) error {
		if err := rewindCursors(ctx, tx, to); err != nil {
			return err
		}
		for _, statement := range []string{
			// A lane's position is that of the next event that it owes, or before
			// it: up to this position such a lane owes nothing.
			`DELETE FROM lane WHERE next_position > ?1`,
			`DELETE FROM dead_letter WHERE position > ?1`,
			// Otherwise they would be taken for attempts to deliver the events
			// that the log gets there next.
			`DELETE FROM attempt WHERE position > ?1`,
			`UPDATE replay SET position = min(position, ?1), last = min(last, ?1), filter = json_set(filter,
				'$.after', min(coalesce(json_extract(filter, '$.after'), 0), ?1), '$.upTo', min(coalesce(json_extract(filter, '$.upTo'), 0), ?1))
				WHERE max(position, last) > ?1`,
		} {
			if _, err := tx.ExecContext(ctx, statement, to); err != nil {
				return err
			}
		}
		_, err := tx.ExecContext(ctx, `UPDATE follow SET position = ?1, event = ?2 WHERE position > ?1`, to, event[:])
		return err
	})
}

// rewindCursors moves the cursors that are beyond a position back to it, and
// forgets what they have settled there.
func rewindCursors(ctx context.Context, tx *sql.Tx, to eventstore.Position) error {
	all := map[int64]cursor{}
	rows, err := tx.QueryContext(ctx, `SELECT endpoint, low, done, partial FROM cursor`)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var no int64
		var low eventstore.Position
		var done, partial []byte
		if err := rows.Scan(&no, &low, &done, &partial); err != nil {
			return err
		}
		var parts map[eventstore.Position]int
		if err := json.Unmarshal(partial, &parts); err != nil {
			return err
		}
		all[no] = newCursor(low, done, parts)
	}
	if err := rows.Err(); err != nil {
		return err
	}
	for no, c := range all {
		back := cursor{low: min(c.low, to), top: min(c.low, to)}
		for p := back.low + 1; p <= min(c.top, to); p++ {
			if c.has(p) {
				back.set(p)
			}
		}
		maps.DeleteFunc(c.partial, func(p eventstore.Position, _ int) bool { return p > to })
		partial, err := json.Marshal(c.partial, json.Deterministic(true))
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `UPDATE cursor SET low = ?, done = ?, partial = ? WHERE endpoint = ?`, back.low, back.done(), string(partial), no); err != nil {
			return err
		}
	}
	return nil
}
