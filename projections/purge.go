package projections

import (
	"context"
	"errors"
	"fmt"

	"accountledger/eventstore"
)

// ErrBusy is returned by Purge if a reader of the file prevents it from
// emptying the write-ahead log. Retry when the reader has finished.
var ErrBusy = errors.New("projections: a reader of views.db keeps the write-ahead log from being emptied")

// Purge waits until the data that the views delete because of the event at p,
// an event of the stream, is gone from views.db: from the rows, the free pages
// and the write-ahead log. A rebuild may have read data that the event deletes,
// so Purge also waits for a running rebuild to end.
func (v *Views) Purge(ctx context.Context, stream string, p eventstore.Position) error {
	if v.write == nil {
		return errors.New("projections: views.db is open read-only")
	}
	for _, w := range v.all {
		if err := w.purge(ctx, p); err != nil {
			return fmt.Errorf("projections: purge %s: %w", w.name, err)
		}
	}
	// A view skips the events of a parked stream and keeps its rows.
	var parked int
	err := v.read.QueryRowContext(ctx, `SELECT count(*) FROM parked WHERE stream = ? AND position <= ?`, stream, p).Scan(&parked)
	if err == nil && parked > 0 {
		err = errors.New("the stream is parked")
	}
	if err != nil {
		return fmt.Errorf("projections: purge: %w", err)
	}
	// SQLite overwrites deleted rows in the file (secure_delete). The
	// write-ahead log may still have them; this checkpoint empties it.
	var busy, pages, moved int
	if err := v.write.QueryRowContext(ctx, `PRAGMA wal_checkpoint(TRUNCATE)`).Scan(&busy, &pages, &moved); err != nil {
		return fmt.Errorf("projections: purge: %w", err)
	}
	if busy != 0 {
		return ErrBusy
	}
	return nil
}

// purge drops all generations but the live one, and waits until that has
// applied the event at p.
func (w *view) purge(ctx context.Context, p eventstore.Position) error {
	if err := w.views.claimBuilder(ctx); err != nil {
		return err
	}
	err := w.dropOld(ctx)
	// Release it before await: the view may have to rebuild to reach p.
	w.views.releaseBuilder()
	if err != nil {
		return err
	}
	return w.await(ctx, p)
}
