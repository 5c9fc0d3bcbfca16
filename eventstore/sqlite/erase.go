package sqlite

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"slices"

	"accountledger/eventstore"
)

// ErrBusy is returned by Erase when another process reads the file for so long
// that old pages cannot be removed. The parts are deleted; ask again.
var ErrBusy = errors.New("sqlite: old pages are still on disk, another reader holds them")

// erasure is one Erase on its way through the writer.
type erasure struct {
	key     eventstore.KeyID
	streams []string
	done    chan error // with room for the answer
}

// Erase is eventstore.Store's. SQLite overwrites what it deletes
// (secure_delete); what the write-ahead log still has of it goes with the
// checkpoint that empties it. Appends wait meanwhile.
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

// column runs the query and returns its first column.
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

// erase removes the sealed parts from memory, too.
func (t *tail) erase(e erasure) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for p := t.first; p <= t.last; p++ {
		// Subscribers share the bytes, so they are let go and not overwritten.
		if rec := &t.events[p%tailEvents]; rec.KeyID == e.key && slices.Contains(e.streams, rec.Stream) {
			t.bytes -= len(rec.Sealed)
			rec.Sealed = nil
		}
	}
}
