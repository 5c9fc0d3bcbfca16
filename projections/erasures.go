package projections

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"sync/atomic"

	"accountledger/domain"
	"accountledger/eventstore"
)

// ErasuresView is the name of the view of erasures that are under way.
const ErasuresView = "erasures"

// Erasures answers which accounts have ended while something of them is still
// to be removed. Its methods may be called at once by many goroutines.
type Erasures struct {
	views   *Views
	reads   atomic.Int64 // the live generation
	changed signal       // rows have
}

// Erasure is an account that has ended.
type Erasure struct {
	Sub      string
	KeyID    string              // of the key to destroy, in hexadecimal
	Position eventstore.Position // of the event that ended it
}

const erasureTables = `
CREATE TABLE erasures_%[1]d (
	position INTEGER PRIMARY KEY, -- of the event that ended the account
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
		serve: func(_ context.Context, generation int64) (func(), error) {
			return func() { e.reads.Store(generation); e.changed.raise() }, nil
		},
	}
}

// erasureWriter writes what a batch leaves open.
type erasureWriter struct {
	put, remove *sql.Stmt

	open  map[string]Erasure // by sub
	done  map[string]bool
	after func()
}

func (e *Erasures) writer(ctx context.Context, generation int64) (writer, error) {
	w := &erasureWriter{open: map[string]Erasure{}, done: map[string]bool{}, after: e.changed.raise}
	closing, err := e.views.prepare(ctx, generation, map[**sql.Stmt]string{
		&w.put:    `INSERT INTO erasures_%[1]d (position, sub, kid) VALUES (?, ?, ?)`,
		&w.remove: `DELETE FROM erasures_%[1]d WHERE sub = ?`,
	})
	return writer{apply: w.apply, flush: w.flush, end: w.end, close: closing}, err
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
	tx, err := b.open(ctx)
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

func (w *erasureWriter) end(bool) {
	if len(w.open) > 0 || len(w.done) > 0 {
		w.after()
	}
	clear(w.open)
	clear(w.done)
}

// Changed is closed when an account has ended or its erasure is completed.
// Take it before asking, or a change between the two is missed.
func (e *Erasures) Changed() <-chan struct{} { return e.changed.next() }

// Next returns erasures that are not completed, the oldest first: at most
// limit of those after a position.
func (e *Erasures) Next(ctx context.Context, after eventstore.Position, limit int) ([]Erasure, error) {
	rows, err := e.views.read.QueryContext(ctx, fmt.Sprintf(`SELECT sub, kid, position FROM erasures_%d
		WHERE position > ? ORDER BY position LIMIT ?`, e.reads.Load()), after, limit)
	if err != nil {
		return nil, fmt.Errorf("projections: next erasures: %w", err)
	}
	defer rows.Close()
	var all []Erasure
	for rows.Next() {
		var x Erasure
		if err := rows.Scan(&x.Sub, &x.KeyID, &x.Position); err != nil {
			return nil, fmt.Errorf("projections: next erasures: %w", err)
		}
		all = append(all, x)
	}
	return all, rows.Err()
}

// Open reports whether the account has ended and its erasure is not completed.
func (e *Erasures) Open(ctx context.Context, sub string) (open bool, err error) {
	err = e.views.read.QueryRowContext(ctx, fmt.Sprintf(`SELECT EXISTS (SELECT 1 FROM erasures_%d WHERE sub = ?)`, e.reads.Load()), sub).Scan(&open)
	if err != nil {
		return false, fmt.Errorf("projections: erasure: %w", err)
	}
	return open, nil
}
