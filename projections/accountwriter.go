package projections

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"slices"

	"accountledger/domain"
	"accountledger/eventstore"
)

// accountWriter folds events into accounts and writes the accounts' rows.
type accountWriter struct {
	load, update, release *sql.Stmt
	count, uncount        *sql.Stmt // members
	insert, take          insertion

	recent, older map[string]account // cache of committed accounts, see finish
	touched       map[string]*touched
	order         []*touched // in order of their first event in the batch
}

// account is an account and the id of its row.
type account struct {
	id int64 // 0 before it has a row
	domain.Account
}

// touched is an account that the batch changes.
type touched struct {
	account
	userIDs []domain.UserID     // before the batch
	groups  []domain.Membership // before the batch
	first   domain.Entry        // the account's first entry in the batch
	written bool                // the row has been written
}

const (
	insertAccount  = `INSERT INTO accounts_%[1]d (json, revision, position, erased, sub) VALUES (?, ?, ?, ?, ?)`
	takeIdentifier = `INSERT INTO identifiers_%[1]d (kind, key, account) VALUES (?, ?, ?) ON CONFLICT DO NOTHING`
)

func (a *Accounts) writer(ctx context.Context, generation int64) (writer, error) {
	w := &accountWriter{recent: map[string]account{}, touched: map[string]*touched{}}
	closing, err := a.views.prepare(ctx, generation, map[**sql.Stmt]string{
		&w.load:        `SELECT id, json FROM accounts_%[1]d WHERE sub = ?`,
		&w.update:      `UPDATE accounts_%[1]d SET json = ?, revision = ?, position = ?, erased = ? WHERE id = ?`,
		&w.release:     `DELETE FROM identifiers_%[1]d WHERE kind = ? AND key = ? AND account = ?`,
		&w.count:       countMembers,
		&w.uncount:     uncountMembers,
		&w.insert.one:  insertAccount,
		&w.insert.many: manyRows(insertAccount),
		&w.take.one:    takeIdentifier,
		&w.take.many:   manyRows(takeIdentifier),
	})
	return writer{apply: w.apply, flush: w.flush, finish: w.finish, close: closing}, err
}

func (w *accountWriter) apply(ctx context.Context, b *batch, x domain.Entry) error {
	sub := x.Sub()
	t, known := w.touched[sub]
	if !known {
		a, err := w.find(ctx, b, sub, x.Revision)
		if err != nil {
			return err
		}
		t = &touched{account: a, userIDs: a.UserIDs, groups: a.Groups, first: x}
	}
	switch {
	case x.Revision <= t.Revision:
		return nil
	case x.Revision != t.Revision+1:
		gap := fmt.Errorf("projections: revision %d follows %d", x.Revision, t.Revision)
		x.Revision = t.Revision + 1 // so that the retry reads the missing revisions, too
		b.park(x, gap)
		return nil
	}
	x.Meta.CommandID = "" // only the ledger needs the ids of executed commands
	t.Account = domain.Evolve(t.Account, x)
	if !known {
		w.touched[sub] = t
		w.order = append(w.order, t)
	}
	return nil
}

// find returns the account as last committed, from the cache or from its row.
func (w *accountWriter) find(ctx context.Context, b *batch, sub string, next eventstore.Revision) (account, error) {
	if next == 0 {
		return account{Account: domain.NewAccount(sub)}, nil // a new account has no row
	}
	if a, ok := w.recent[sub]; ok {
		return a, nil
	}
	if a, ok := w.older[sub]; ok {
		return a, nil
	}
	tx, err := b.begin(ctx)
	if err != nil {
		return account{}, err
	}
	var a account
	var document sql.RawBytes
	rows, err := tx.StmtContext(ctx, w.load).QueryContext(context.WithoutCancel(ctx), sub)
	if err != nil {
		return account{}, err
	}
	defer rows.Close()
	if !rows.Next() {
		return account{Account: domain.NewAccount(sub)}, rows.Err()
	}
	if err := rows.Scan(&a.id, &document); err != nil {
		return account{}, err
	}
	if a.Account, err = domain.ParseAccount(document); err != nil {
		// Only the error's type: a JSON error may quote personal data.
		return account{}, entryError{fmt.Errorf("projections: the account's own row does not parse: %T", err)}
	}
	return a, nil
}

// identifier is a row of the identifiers table.
type identifier struct {
	kind    domain.Kind
	key     string
	account int64
}

// identifiers returns the rows of an account with these user IDs.
func identifiers(ids []domain.UserID, account int64) map[identifier]bool {
	m := make(map[identifier]bool, len(ids))
	for _, u := range ids {
		m[identifier{u.Type, u.Key(), account}] = true
	}
	return m
}

// flush writes the batch: each touched account's row once, then the rows of
// identifiers and members that changed.
func (w *accountWriter) flush(ctx context.Context, b *batch) error {
	if len(w.order) == 0 {
		return nil
	}
	tx, err := b.begin(ctx)
	if err != nil {
		return err
	}
	if err := w.writeRows(ctx, tx, b); err != nil {
		return err
	}
	if err := w.writeIdentifiers(ctx, tx); err != nil {
		return err
	}
	return w.writeMembers(ctx, tx)
}

// writeRows writes the accounts' rows. It parks an account that cannot be
// encoded as JSON.
func (w *accountWriter) writeRows(ctx context.Context, tx *sql.Tx, b *batch) error {
	var fresh []*touched
	var rows [][]any
	update := tx.StmtContext(ctx, w.update)
	for _, t := range w.order {
		document, err := t.JSON()
		if err != nil {
			b.park(t.first, entryError{fmt.Errorf("projections: encode the account: %T", err)})
			continue
		}
		t.written = true
		erased := sql.NullInt64{Int64: t.ErasedTime.UnixMicro(), Valid: t.Erased()}
		if t.id == 0 {
			fresh = append(fresh, t)
			rows = append(rows, []any{document, t.Revision, t.Position, erased, t.Sub})
		} else if _, err := update.ExecContext(ctx, document, t.Revision, t.Position, erased, t.id); err != nil {
			return err
		}
	}
	last, err := w.insert.exec(ctx, tx, rows)
	for i, t := range fresh {
		// The ids are consecutive, because this is the only writer and no row
		// is ever deleted.
		t.id = last - int64(len(fresh)-1-i)
	}
	return err
}

// writeIdentifiers writes the accounts' identifiers that the batch changed. Each
// account has rows for its own, whoever else has the same ones.
func (w *accountWriter) writeIdentifiers(ctx context.Context, tx *sql.Tx) error {
	var release, take []identifier
	for _, t := range w.order {
		if !t.written || slices.Equal(t.userIDs, t.UserIDs) {
			continue
		}
		before, after := identifiers(t.userIDs, t.id), identifiers(t.UserIDs, t.id)
		for i := range before {
			if !after[i] {
				release = append(release, i)
			}
		}
		for i := range after {
			if !before[i] {
				take = append(take, i)
			}
		}
	}
	for _, row := range ordered(release) {
		if _, err := tx.StmtContext(ctx, w.release).ExecContext(ctx, row...); err != nil {
			return err
		}
	}
	_, err := w.take.exec(ctx, tx, ordered(take))
	return err
}

// ordered returns identifiers as rows in key order, the order of the table's
// pages.
func ordered(all []identifier) [][]any {
	slices.SortFunc(all, func(a, b identifier) int {
		return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.key, b.key), cmp.Compare(a.account, b.account))
	})
	rows := make([][]any, len(all))
	for i, id := range all {
		rows[i] = []any{string(id.kind), id.key, id.account}
	}
	return rows
}

// cachedAccounts is the capacity of each of the two maps of the cache.
const cachedAccounts = 2048

// finish caches the accounts that the batch has written, unless it was rolled
// back or is part of a bulk build, which sees each account once. The cache
// consists of two maps: when recent is full, it replaces older, which drops the
// accounts not written since.
func (w *accountWriter) finish(keep bool) {
	for _, t := range w.order {
		if !keep || !t.written {
			continue // the row has not changed, nor has its cached copy
		}
		if len(w.recent) >= cachedAccounts {
			w.recent, w.older = make(map[string]account, cachedAccounts), w.recent
		}
		w.recent[t.Sub] = t.account
	}
	clear(w.touched)
	clear(w.order)
	w.order = w.order[:0]
}
