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

// erasure names sealed parts to erase.
type erasure struct {
	key     eventstore.KeyID
	streams []string
}

// Erase implements eventstore.Store. SQLite overwrites deleted data in the file
// (secure_delete); a checkpoint then truncates the write-ahead log, which may
// contain old versions of pages. Appends wait meanwhile. Erase fails with
// ErrBusy if a reader prevents the truncation.
func (s *Store) Erase(ctx context.Context, key eventstore.KeyID, streams ...string) error {
	e := erasure{key, streams}
	var erased error
	if err := s.writer.do(ctx, func() { erased = s.writer.erase(e) }); err != nil {
		return err
	}
	if erased != nil {
		return fmt.Errorf("sqlite: erase: %w", erased)
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
func (s *stmt) column(args ...driver.Value) (all []driver.Value, err error) {
	err = s.each(1, func(f *fields) error {
		all = append(all, f.row[0])
		return nil
	}, args...)
	return all, err
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
