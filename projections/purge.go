package projections

import (
	"context"
	"errors"
	"fmt"

	"accountledger/eventstore"
)

// ErrBusy is returned by Purge when old pages cannot be removed, because
// someone reads the file for long. Ask again.
var ErrBusy = errors.New("projections: old pages are still on disk, another reader holds them")

// Purge returns when nothing that the event at p made the views drop is left
// in their file, neither in a row nor in a free page nor in the write-ahead
// log. The event is one of the stream. A view that is being made again may
// have read what is dropped, so Purge waits for its end.
func (v *Views) Purge(ctx context.Context, stream string, p eventstore.Position) error {
	if v.write == nil {
		return errors.New("projections: opened for reading only")
	}
	for _, w := range v.all {
		if err := w.purge(ctx, p); err != nil {
			return fmt.Errorf("projections: purge %s: %w", w.name, err)
		}
	}
	// A view passes the events of a stream it has parked, and keeps the row.
	var parked int
	err := v.read.QueryRowContext(ctx, `SELECT count(*) FROM parked WHERE stream = ? AND position <= ?`, stream, p).Scan(&parked)
	if err == nil && parked > 0 {
		err = errors.New("the stream is parked")
	}
	if err != nil {
		return fmt.Errorf("projections: purge: %w", err)
	}
	// SQLite overwrites what it deletes (secure_delete); what the write-ahead
	// log still has of it goes with the checkpoint that empties it.
	var busy, pages, moved int
	if err := v.write.QueryRowContext(ctx, `PRAGMA wal_checkpoint(TRUNCATE)`).Scan(&busy, &pages, &moved); err != nil {
		return fmt.Errorf("projections: purge: %w", err)
	}
	if busy != 0 {
		return ErrBusy
	}
	return nil
}

// purge returns when there is one generation of the view, and it has applied
// the event at p.
func (w *view) purge(ctx context.Context, p eventstore.Position) error {
	if err := w.views.claimBuilder(ctx); err != nil {
		return err
	}
	err := w.dropOld(ctx)
	// Not held any longer: the view may need it to get to p.
	w.views.releaseBuilder()
	if err != nil {
		return err
	}
	return w.await(ctx, p)
}
