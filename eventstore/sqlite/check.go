package sqlite

import (
	"context"
	"database/sql/driver"
	"fmt"
	"io"

	"accountledger/eventstore"
)

// Check looks for damage to the file itself: it runs SQLite's integrity_check
// and looks for rows that refer to missing rows. It does not detect changes to
// the content of the log; Verify does. It returns at most 200 findings, one
// sentence each.
func (r *Reader) Check(ctx context.Context) ([]string, error) {
	var found []string
	err := r.use(ctx, func(c *readConn) error {
		ctx, cancel := r.untilClosed(ctx)
		defer cancel(nil)
		err := c.each(ctx, "PRAGMA integrity_check(100)", func(row []driver.Value) {
			if row[0] != "ok" {
				found = append(found, fmt.Sprint(row[0]))
			}
		})
		if err != nil {
			return err
		}
		return c.each(ctx, "SELECT \"table\", rowid, parent FROM pragma_foreign_key_check LIMIT 100", func(row []driver.Value) {
			found = append(found, fmt.Sprintf("row %v of %v refers to a row of %v that does not exist", row[1], row[0], row[2]))
		})
	})
	if err != nil {
		return nil, fmt.Errorf("sqlite: check: %w", err)
	}
	return found, nil
}

// untilClosed derives a context that is canceled with the cause
// eventstore.ErrClosed when r is closed.
func (r *Reader) untilClosed(ctx context.Context) (context.Context, context.CancelCauseFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-r.closing:
			cancel(eventstore.ErrClosed)
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// each runs a query, which the end of ctx interrupts, and calls f with each row.
func (c *conn) each(ctx context.Context, query string, f func(row []driver.Value)) error {
	rows, err := c.db.QueryContext(ctx, query, nil)
	if err == nil {
		defer rows.Close()
		for row := make([]driver.Value, len(rows.Columns())); ; {
			if err = rows.Next(row); err != nil {
				break
			}
			f(row)
		}
	}
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err == io.EOF:
		return nil
	default:
		return classify(err)
	}
}
