package sqlite

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"slices"

	"accountledger/eventstore"
)

// ErrBusy is returned by Erase if old pages with the erased parts cannot be
// removed from the disk because a reader holds them. The parts are deleted from
// the log; call Erase again to remove the pages.
var ErrBusy = errors.New("sqlite: erased data is still on disk because a reader holds old pages; try again")

// erasure is a request to the writer to erase sealed parts.
type erasure struct {
	key     eventstore.KeyID
	streams []string
	done    chan error // buffered, so that the writer does not block
}

// Erase implements eventstore.Store. SQLite overwrites deleted data in the file
// (secure_delete); a checkpoint then truncates the write-ahead log, which may
// contain old versions of pages. Appends wait meanwhile. Erase fails with
// ErrBusy if a reader prevents the truncation.
func (s *Store) Erase(ctx context.Context, key eventstore.KeyID, streams ...string) error {
	e := erasure{key, streams, make(chan error, 1)}
	select {
	case s.writer.erasing <- e:
	case <-s.writer.closing:
		return eventstore.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := <-e.done; err != nil {
		return fmt.Errorf("sqlite: erase: %w", err)
	}
	s.tail.erase(e)
	return nil
}

func (w *writer) erase(e erasure) error {
	err := w.transact(func() error {
		for _, stream := range e.streams {
			h, err := w.streamHead(stream)
			if err != nil {
				return err
			}
			positions, err := w.selectSealed.column(h.num, e.key[:])
			if err != nil {
				return err
			}
			for _, p := range positions {
				if err := w.eraseSealed.exec(p); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	busy, err := w.db.scalar(`PRAGMA wal_checkpoint(TRUNCATE)`)
	if err == nil && busy != int64(0) {
		err = ErrBusy
	}
	return err
}

// column runs the statement and returns its first column.
func (s *stmt) column(args ...driver.Value) ([]driver.Value, error) {
	rows, err := s.query(args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []driver.Value
	for row := make([]driver.Value, 1); rows.Next(row) == nil; {
		all = append(all, row[0])
	}
	return all, nil
}

// erase removes the sealed parts from the tail.
func (t *tail) erase(e erasure) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for p := t.first; p <= t.last; p++ {
		// Drop the slice instead of overwriting its bytes: subscribers share it.
		if rec := &t.events[p%tailEvents]; rec.KeyID == e.key && slices.Contains(e.streams, rec.Stream) {
			t.bytes -= len(rec.Sealed)
			rec.Sealed = nil
		}
	}
}
