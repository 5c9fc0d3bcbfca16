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

// accountWriter folds accounts and writes their rows.
type accountWriter struct {
	load, update, release *sql.Stmt
	count, uncount        *sql.Stmt // members
	insert, take, offer   insertion

	recent, older map[string]account // accounts as committed, see remember
	touched       map[string]*touched
	order         []*touched // in order of their first event in the batch
}

// account is a row and what it shows.
type account struct {
	id int64 // 0 before it has a row
	domain.Account
}

// touched is an account that a batch changes.
type touched struct {
	account
	before  []domain.UserID
	groups  []domain.Membership // before
	first   domain.Entry
	written bool // its row is as it is
}

const (
	insertAccount   = `INSERT INTO accounts_%[1]d (json, revision, position, erased, sub) VALUES (?, ?, ?, ?, ?)`
	takeIdentifier  = `INSERT INTO identifiers_%[1]d (kind, key, account) VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET account = excluded.account`
	offerIdentifier = `INSERT INTO identifiers_%[1]d (kind, key, account) VALUES (?, ?, ?) ON CONFLICT DO NOTHING`
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
		&w.offer.one:   offerIdentifier,
		&w.offer.many:  manyRows(offerIdentifier),
	})
	return writer{apply: w.apply, flush: w.flush, end: w.end, close: closing}, err
}

func (w *accountWriter) apply(ctx context.Context, b *batch, x domain.Entry) error {
	sub := x.Sub()
	t, known := w.touched[sub]
	if !known {
		a, err := w.find(ctx, b, sub, x.Revision)
		if err != nil {
			return err
		}
		t = &touched{account: a, before: a.UserIDs, groups: a.Groups, first: x}
	}
	switch {
	case x.Revision <= t.Revision:
		return nil
	case x.Revision != t.Revision+1:
		gap := fmt.Errorf("projections: revision %d follows %d", x.Revision, t.Revision)
		x.Revision = t.Revision + 1 // what is missing is read, too, when it is tried again
		b.park(x, gap)
		return nil
	}
	x.Meta.CommandID = "" // which commands were executed is the ledger's to remember
	t.Account = domain.Evolve(t.Account, x)
	if !known {
		w.touched[sub] = t
		w.order = append(w.order, t)
	}
	return nil
}

// find gives the account as committed: from memory, or its row.
func (w *accountWriter) find(ctx context.Context, b *batch, sub string, next eventstore.Revision) (account, error) {
	if next == 0 {
		return account{Account: domain.NewAccount(sub)}, nil // it cannot have a row
	}
	if a, ok := w.recent[sub]; ok {
		return a, nil
	}
	if a, ok := w.older[sub]; ok {
		return a, nil
	}
	tx, err := b.open(ctx)
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
		// A JSON error may quote what it stumbled over.
		return account{}, unfitError{fmt.Errorf("projections: the account's own row does not parse: %T", err)}
	}
	return a, nil
}

// identifier is one row of the identifiers.
type identifier struct {
	kind    domain.Kind
	key     string
	account int64
}

func identifiers(ids []domain.UserID, account int64) map[identifier]bool {
	m := make(map[identifier]bool, len(ids))
	for _, u := range ids {
		m[identifier{u.Type, u.Key(), account}] = true
	}
	return m
}

// flush writes each touched account's row once.
func (w *accountWriter) flush(ctx context.Context, b *batch) error {
	if len(w.order) == 0 {
		return nil
	}
	tx, err := b.open(ctx)
	if err != nil {
		return err
	}
	if err := w.writeRows(ctx, tx, b); err != nil {
		return err
	}
	if err := w.writeIdentifiers(ctx, tx, b); err != nil {
		return err
	}
	return w.writeMembers(ctx, tx)
}

// writeRows writes the accounts' rows. It parks the stream of one that has no
// JSON.
func (w *accountWriter) writeRows(ctx context.Context, tx *sql.Tx, b *batch) error {
	var fresh []*touched
	var rows [][]any
	update := tx.StmtContext(ctx, w.update)
	for _, t := range w.order {
		document, err := t.JSON()
		if err != nil {
			b.park(t.first, unfitError{fmt.Errorf("projections: the account has no JSON: %T", err)})
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
		// Nobody else writes and no row is ever deleted: they are numbered on.
		t.id = last - int64(len(fresh)-1-i)
	}
	return err
}

// writeIdentifiers frees what the batch frees before anything is taken, so
// that it does not matter in which order an identifier goes from account to
// account.
//
// A row of a parked stream is older than the others, so one of its
// identifiers may meanwhile be another account's: it never takes one away.
func (w *accountWriter) writeIdentifiers(ctx context.Context, tx *sql.Tx, b *batch) error {
	var release, take, offer []identifier
	for _, t := range w.order {
		if !t.written || !b.replay && slices.Equal(t.before, t.UserIDs) {
			continue
		}
		before, after := identifiers(t.before, t.id), identifiers(t.UserIDs, t.id)
		for i := range before {
			if !after[i] {
				release = append(release, i)
			}
		}
		for i := range after {
			switch {
			case before[i] && !b.replay: // while it was parked, another may have taken and left it
			case b.cut(t.first.Stream):
				offer = append(offer, i)
			default:
				take = append(take, i)
			}
		}
	}
	for _, row := range ordered(release) {
		if _, err := tx.StmtContext(ctx, w.release).ExecContext(ctx, row...); err != nil {
			return err
		}
	}
	if _, err := w.take.exec(ctx, tx, ordered(take)); err != nil {
		return err
	}
	_, err := w.offer.exec(ctx, tx, ordered(offer))
	return err
}

// ordered makes rows of identifiers in the order of the keys, which is that of
// the pages.
func ordered(all []identifier) [][]any {
	slices.SortFunc(all, func(a, b identifier) int {
		return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.key, b.key))
	})
	rows := make([][]any, len(all))
	for i, id := range all {
		rows[i] = []any{string(id.kind), id.key, id.account}
	}
	return rows
}

// rememberAccounts bounds what is kept folded in memory.
const rememberAccounts = 2048

// end keeps what was committed and forgets what was not; in a bulk build, which
// meets each account once, it keeps nothing. Two maps make a
// cache: when the recent one is full it becomes the older one, and what was
// not touched since is forgotten.
func (w *accountWriter) end(keep bool) {
	for _, t := range w.order {
		if !keep || !t.written {
			continue // the row is as it was, and so is what we remember of it
		}
		if len(w.recent) >= rememberAccounts {
			w.recent, w.older = make(map[string]account, rememberAccounts), w.recent
		}
		w.recent[t.Sub] = t.account
	}
	clear(w.touched)
	clear(w.order)
	w.order = w.order[:0]
}
