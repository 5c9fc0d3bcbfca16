package projections

import (
	"context"
	"database/sql"
	"fmt"
	"strings"

	"accountledger/domain"
	"accountledger/eventstore"
)

// ErasuresView is the name of the view of erasures that are not completed.
const ErasuresView = "erasures"

// Erasures queries the accounts whose erasure has begun and is not completed.
// Its methods are safe for concurrent use.
type Erasures struct {
	views   *Views
	changed signal // raised when rows change
}

// Erasure is an account whose erasure is not completed.
type Erasure struct {
	Sub      string
	KeyID    string              // of the key to destroy, in hexadecimal
	Position eventstore.Position // of the event that erased the account
}

const erasureTables = `
CREATE TABLE erasures_%[1]d (
	position INTEGER PRIMARY KEY, -- of the event that erased the account
	sub      TEXT NOT NULL UNIQUE,
	kid      TEXT NOT NULL
) STRICT;`

func (e *Erasures) projection() projection {
	return projection{
		name:    ErasuresView,
		version: 1,
		follows: func(stream string) bool { return strings.HasPrefix(stream, domain.AccountStream("")) },
		types:   typesOf(domain.AccountErased{}, domain.ErasureCompleted{}),
		tables:  erasureTables,
		clear:   []string{`DELETE FROM erasures_%[1]d WHERE position IN (SELECT position FROM erasures_%[1]d LIMIT 1000)`},
		drop:    `DROP TABLE erasures_%[1]d`,
		count:   `SELECT count(*) FROM erasures_%[1]d`,
		writer:  e.writer,
		serve: func(context.Context, int64) (func(), error) {
			return e.changed.raise, nil
		},
	}
}

// erasureWriter writes the erasures that a batch begins and removes those it
// completes.
type erasureWriter struct {
	put, remove *sql.Stmt

	open    map[string]Erasure // begun in the batch and not completed, by sub
	done    map[string]bool    // completed in the batch, by sub
	changed *signal
}

func (e *Erasures) writer(ctx context.Context, generation int64) (writer, error) {
	w := &erasureWriter{open: map[string]Erasure{}, done: map[string]bool{}, changed: &e.changed}
	closing, err := e.views.prepare(ctx, generation, map[**sql.Stmt]string{
		&w.put:    `INSERT INTO erasures_%[1]d (position, sub, kid) VALUES (?, ?, ?)`,
		&w.remove: `DELETE FROM erasures_%[1]d WHERE sub = ?`,
	})
	return writer{apply: w.apply, flush: w.flush, finish: w.finish, close: closing}, err
}

func (w *erasureWriter) apply(_ context.Context, _ *batch, x domain.Entry) error {
	switch e := x.Event.(type) {
	case domain.AccountErased:
		w.open[x.Sub()] = Erasure{x.Sub(), e.KeyID, x.Position}
	case domain.ErasureCompleted:
		delete(w.open, x.Sub())
		w.done[x.Sub()] = true
	}
	return nil
}

func (w *erasureWriter) flush(ctx context.Context, b *batch) error {
	if len(w.open) == 0 && len(w.done) == 0 {
		return nil
	}
	tx, err := b.begin(ctx)
	if err != nil {
		return err
	}
	put, remove := tx.StmtContext(ctx, w.put), tx.StmtContext(ctx, w.remove)
	for _, o := range w.open {
		if _, err := put.ExecContext(ctx, o.Position, o.Sub, o.KeyID); err != nil {
			return err
		}
	}
	for sub := range w.done {
		if _, err := remove.ExecContext(ctx, sub); err != nil {
			return err
		}
	}
	return nil
}

func (w *erasureWriter) finish(bool) {
	if len(w.open) > 0 || len(w.done) > 0 {
		w.changed.raise()
	}
	clear(w.open)
	clear(w.done)
}

// Changed returns a channel that is closed at the next change of the view. Call
// it before a query, so that no change after the query is missed.
func (e *Erasures) Changed() <-chan struct{} { return e.changed.next() }

// Next returns up to limit erasures that are not completed, oldest first,
// starting after a position.
func (e *Erasures) Next(ctx context.Context, after eventstore.Position, limit int) ([]Erasure, error) {
	var all []Erasure
	err := e.views.onLive(ctx, ErasuresView, func(tx *sql.Tx, generation int64) error {
		rows, err := tx.QueryContext(ctx, fmt.Sprintf(`SELECT sub, kid, position FROM erasures_%d
			WHERE position > ? ORDER BY position LIMIT ?`, generation), after, limit)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var x Erasure
			if err := rows.Scan(&x.Sub, &x.KeyID, &x.Position); err != nil {
				return err
			}
			all = append(all, x)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("projections: next erasures: %w", err)
	}
	return all, nil
}

// Open reports whether the account's erasure has begun and is not completed.
func (e *Erasures) Open(ctx context.Context, sub string) (open bool, err error) {
	err = e.views.onLive(ctx, ErasuresView, func(tx *sql.Tx, generation int64) error {
		return tx.QueryRowContext(ctx, fmt.Sprintf(`SELECT EXISTS (SELECT 1 FROM erasures_%d WHERE sub = ?)`, generation), sub).Scan(&open)
	})
	if err != nil {
		return false, fmt.Errorf("projections: erasure: %w", err)
	}
	return open, nil
}
