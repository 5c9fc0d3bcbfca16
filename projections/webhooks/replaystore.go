package webhooks

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-json-experiment/json"

	"accountledger/domain"
	"accountledger/eventstore"
)

// putReplay writes a new replay down and returns it, or the one that is there
// under its id.
func (s *store) putReplay(ctx context.Context, job Replay) (Replay, error) {
	filter, err := json.Marshal(job.Filter)
	if err != nil {
		return job, err
	}
	err = s.update(ctx, func(tx *sql.Tx) error {
		var no int64
		var running bool
		var known []byte
		err := tx.QueryRowContext(ctx, `SELECT no, EXISTS (SELECT 1 FROM replay WHERE endpoint = no AND state = ?2), (SELECT filter FROM replay WHERE id = ?3)
			FROM endpoint WHERE id = ?1`, job.WebhookID, ReplayRunning, job.ReplayID).Scan(&no, &running, &known)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			return errNotFound()
		case err != nil:
			return err
		case known != nil:
			return nil
		case running:
			return &domain.Error{Code: domain.CodeReplayRunning, Detail: "The webhook has a replay that has not ended."}
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO replay (id, endpoint, filter, position, last, state, created) VALUES (?, ?, ?, ?, ?, ?, ?)`,
			job.ReplayID, no, string(filter), job.Position, job.Filter.UpTo, job.State, micro(job.CreatedTime))
		return err
	})
	if err != nil {
		if domain.CodeOf(err) == "" {
			err = fmt.Errorf("webhooks: replay: %w", err)
		}
		return job, err
	}
	all, err := s.replays(ctx, `e.id = ? AND r.id = ?`, job.WebhookID, job.ReplayID)
	if err != nil {
		return job, err
	}
	if len(all) == 0 || !all[0].Filter.same(job.Filter) {
		return job, &domain.Error{Code: domain.CodeIdempotencyKeyReused, Detail: "There is another replay with this id."}
	}
	return all[0], nil
}

// same reports whether f and g ask for the same, but for where the log ended.
func (f ReplayFilter) same(g ReplayFilter) bool {
	return f.After == g.After && f.Since.Equal(g.Since) && f.Until.Equal(g.Until) && slices.Equal(f.Events, g.Events) && f.Sub == g.Sub &&
		f.Missing == g.Missing && f.Recover == g.Recover
}

// replays reads those that fit a condition on replay r and endpoint e.
func (s *store) replays(ctx context.Context, condition string, args ...any) ([]Replay, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT r.id, e.id, filter, position, sent, failed, state, created, ended
		FROM replay r JOIN endpoint e ON e.no = r.endpoint WHERE `+condition, args...)
	if err != nil {
		return nil, fmt.Errorf("webhooks: replays: %w", err)
	}
	defer rows.Close()
	all := []Replay{}
	for rows.Next() {
		var r Replay
		var filter []byte
		var created, ended int64
		if err := rows.Scan(&r.ReplayID, &r.WebhookID, &filter, &r.Position, &r.Delivered, &r.Failed, &r.State, &created, &ended); err != nil {
			return nil, fmt.Errorf("webhooks: replays: %w", err)
		}
		if err := json.Unmarshal(filter, &r.Filter); err != nil {
			return nil, fmt.Errorf("webhooks: replays: %w", err)
		}
		r.CreatedTime, r.EndedTime = fromMicro(created), fromMicro(ended)
		all = append(all, r)
	}
	return all, rows.Err()
}

// saveReplay writes down how far one is.
func (s *store) saveReplay(ctx context.Context, job Replay) error {
	_, err := s.write.ExecContext(ctx, `UPDATE replay SET position = ?, sent = ?, failed = ? WHERE id = ?`, job.Position, job.Delivered, job.Failed, job.ReplayID)
	return err
}

// endReplay ends one that has not ended.
func (s *store) endReplay(ctx context.Context, id, state string, now time.Time) error {
	_, err := s.write.ExecContext(ctx, `UPDATE replay SET state = ?, ended = ? WHERE id = ? AND state = ?`, state, micro(now), id, ReplayRunning)
	return err
}

// arrived is what arrived of the public events in (after, upTo], and the
// oldest position of which attempts are remembered.
func (s *store) arrived(ctx context.Context, id string, after, upTo eventstore.Position) (map[place]bool, eventstore.Position, error) {
	rows, err := s.read.QueryContext(ctx, `WITH a AS (SELECT position, part, error FROM attempt WHERE endpoint = (SELECT no FROM endpoint WHERE id = ?))
		SELECT 0, 0, (SELECT coalesce(min(position), 0) FROM a) UNION ALL
		SELECT DISTINCT position, part, 0 FROM a WHERE error = '' AND position > ? AND position <= ?`, id, after, upTo)
	if err != nil {
		return nil, 0, err
	}
	defer rows.Close()
	all := map[place]bool{}
	var oldest eventstore.Position
	for rows.Next() {
		var at place
		var first eventstore.Position
		if err := rows.Scan(&at.position, &at.part, &first); err != nil {
			return nil, 0, err
		}
		all[at] = true
		oldest = max(oldest, first)
	}
	return all, oldest, rows.Err()
}

// unarrived is, after a position, what was given up or whose attempts all
// failed, the last one at f.Since or later.
func (s *store) unarrived(ctx context.Context, id string, f ReplayFilter, after eventstore.Position) ([]place, error) {
	rows, err := s.read.QueryContext(ctx, `WITH e AS (SELECT no FROM endpoint WHERE id = ?1), found AS (
			SELECT position, part FROM attempt WHERE endpoint = (SELECT no FROM e) AND position > ?2 AND position <= ?3
				GROUP BY position, part HAVING sum(error = '') = 0 AND max(time) >= ?4
			UNION SELECT position, part FROM dead_letter WHERE endpoint = (SELECT no FROM e) AND position > ?2 AND position <= ?3 AND time >= ?4)
		SELECT position, part FROM found ORDER BY position, part LIMIT 1000`, id, after, f.UpTo, micro(f.Since))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []place
	for rows.Next() {
		var at place
		if err := rows.Scan(&at.position, &at.part); err != nil {
			return nil, err
		}
		all = append(all, at)
	}
	return all, rows.Err()
}
