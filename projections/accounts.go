package projections

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"accountledger/domain"
	"accountledger/eventstore"
)

// AccountsView is the name of the account view. It holds each account as the
// API returns it, indexed by its sub and its identifiers.
const AccountsView = "accounts"

// ErrNotFound is returned if no account matches.
var ErrNotFound = errors.New("projections: no such account")

// ErrAmbiguous is returned if identifiers lead to several accounts, which took
// them by rules of earlier versions.
var ErrAmbiguous = errors.New("projections: several accounts have this identifier")

// Accounts queries the account view. Its methods are safe for concurrent use.
type Accounts struct {
	views *Views
	view  *view
	reads atomic.Pointer[accountReads] // of the live generation; nil after OpenReader, where one looks it up
}

// AccountRow is one account in the account view.
type AccountRow struct {
	Sub        string
	JSON       []byte              // the result of domain.Account.JSON; without personal data once the account is erased
	Revision   eventstore.Revision // of the account
	Position   eventstore.Position // of its last event
	ErasedTime time.Time           // UTC; zero unless the account is erased
}

// Account decodes the row's document.
func (r AccountRow) Account() (domain.Account, error) {
	a, err := domain.ParseAccount(r.JSON)
	if err != nil {
		// Only the error's type: a JSON error may quote personal data.
		return a, fmt.Errorf("projections: a row of the account view does not parse: %T", err)
	}
	return a, nil
}

// Accounts are numbered in order of creation, because writing rows in random
// key order costs four times as much. Rows are never deleted, so the highest
// id is the number of accounts.
const accountTables = `
CREATE TABLE accounts_%[1]d (
	id       INTEGER PRIMARY KEY,
	sub      TEXT    NOT NULL UNIQUE,
	revision INTEGER NOT NULL,
	position INTEGER NOT NULL,
	erased   INTEGER, -- Unix time in microseconds
	json     BLOB    NOT NULL
) STRICT;
CREATE TABLE identifiers_%[1]d (
	kind    TEXT    NOT NULL,
	key     TEXT    NOT NULL, -- normalized for comparison
	account INTEGER NOT NULL,
	PRIMARY KEY (kind, key, account)
) STRICT, WITHOUT ROWID;
CREATE TABLE members_%[1]d ( -- numbers of members; the accounts have the memberships
	group_id TEXT    NOT NULL,
	role     TEXT    NOT NULL, -- '' counts all members, domain.NoRole those without a role
	count    INTEGER NOT NULL, -- never 0
	PRIMARY KEY (group_id, role)
) STRICT, WITHOUT ROWID;`

func (a *Accounts) projection() projection {
	return projection{
		name:    AccountsView,
		version: 5,
		follows: func(stream string) bool { return strings.HasPrefix(stream, domain.AccountStream("")) },
		tables:  accountTables,
		clear: []string{
			`DELETE FROM accounts_%[1]d WHERE id IN (SELECT id FROM accounts_%[1]d LIMIT 1000)`,
			`DELETE FROM identifiers_%[1]d WHERE (kind, key, account) IN (SELECT kind, key, account FROM identifiers_%[1]d LIMIT 1000)`,
			`DELETE FROM members_%[1]d`,
		},
		drop:   `DROP TABLE accounts_%[1]d; DROP TABLE identifiers_%[1]d; DROP TABLE members_%[1]d`,
		count:  `SELECT coalesce(max(id), 0) FROM accounts_%[1]d`,
		writer: a.writer,
		serve:  a.serve,
	}
}

// accountReads are the prepared queries of one generation.
type accountReads struct {
	get, lookup *sql.Stmt

	mu     sync.RWMutex // read-locked during a query
	closed bool         // another generation is live; use its statements
}

const (
	accountColumns = `SELECT a.sub, a.json, a.revision, a.position, a.erased FROM accounts_%[1]d a`
	getAccount     = accountColumns + ` WHERE a.sub = ?`
	identified     = accountColumns + ` JOIN identifiers_%[1]d i ON i.account = a.id WHERE i.kind = ? AND i.key = ? ORDER BY a.id`
	lookupAccounts = `SELECT a.sub, a.json, a.revision, a.position, a.erased,
		EXISTS (SELECT 1 FROM parked WHERE view = 'accounts' AND generation = %[1]d AND stream = 'account-' || a.sub)
		FROM (VALUES (?, ?), (?, ?), (?, ?), (?, ?)) AS c JOIN identifiers_%[1]d i ON i.kind = c.column1 AND i.key = c.column2 JOIN accounts_%[1]d a ON a.id = i.account`
	nextAccounts  = accountColumns + ` WHERE a.sub > ? ORDER BY a.sub LIMIT ?`
	allAccounts   = accountColumns + ` WHERE a.position > ? ORDER BY a.sub`
	allRevisions  = `SELECT a.sub, x'', a.revision, a.position, a.erased FROM accounts_%[1]d a WHERE a.position > ?`
	countAccounts = `SELECT count(*) FROM accounts_%[1]d WHERE position > ?`
)

func (a *Accounts) serve(ctx context.Context, generation int64) (swap func(), err error) {
	r := &accountReads{}
	if r.get, err = a.views.read.PrepareContext(ctx, fmt.Sprintf(getAccount, generation)); err != nil {
		return nil, err
	}
	if r.lookup, err = a.views.read.PrepareContext(ctx, fmt.Sprintf(lookupAccounts, generation)); err != nil {
		return nil, errors.Join(err, r.get.Close())
	}
	return func() {
		old := a.reads.Swap(r)
		if old == nil {
			return
		}
		old.mu.Lock()
		defer old.mu.Unlock()
		old.closed = true
		old.get.Close()
		old.lookup.Close()
	}, nil
}

// acquire returns the live generation's queries, read-locked.
func (a *Accounts) acquire() *accountReads {
	for {
		r := a.reads.Load()
		r.mu.RLock()
		if !r.closed {
			return r
		}
		r.mu.RUnlock()
	}
}

// Get returns the account with a sub, or ErrNotFound.
func (a *Accounts) Get(ctx context.Context, sub string) (AccountRow, error) {
	row, err := a.one(ctx, getAccount, func(r *accountReads) *sql.Stmt { return r.get }, sub)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return row, fmt.Errorf("projections: get account: %w", err)
	}
	return row, err
}

// maxCandidates is the number of candidates in one query.
const maxCandidates = 4

// Lookup returns the account that the candidates lead to, or ErrNotFound if they
// lead to none, or ErrAmbiguous if they lead to several.
func (a *Accounts) Lookup(ctx context.Context, candidates []domain.Candidate) (AccountRow, error) {
	var found AccountRow
	parked := false
	for page := range slices.Chunk(candidates, maxCandidates) {
		err := a.lookup(ctx, page, func(row AccountRow, isParked bool) error {
			switch {
			case row.Sub == found.Sub:
				return nil
			case found.Sub == "", parked && !isParked:
				found, parked = row, isParked
				return nil
			case isParked && !parked:
				return nil // its row is outdated: it may have released the identifier
			}
			return ErrAmbiguous
		})
		switch {
		case errors.Is(err, ErrAmbiguous):
			return AccountRow{}, ErrAmbiguous
		case err != nil:
			return AccountRow{}, fmt.Errorf("projections: look up account: %w", err)
		}
	}
	if found.Sub == "" {
		return AccountRow{}, ErrNotFound
	}
	return found, nil
}

// lookup calls each with every account that has one of at most maxCandidates
// identifiers, and whether it is parked. It ends with the first error.
func (a *Accounts) lookup(ctx context.Context, candidates []domain.Candidate, each func(row AccountRow, parked bool) error) error {
	args := make([]any, 0, 2*maxCandidates)
	for i := range maxCandidates {
		var c domain.Candidate // no account has this one
		if i < len(candidates) {
			c = candidates[i]
		}
		args = append(args, string(c.Kind), c.Key)
	}
	return a.query(ctx, lookupAccounts, func(r *accountReads) *sql.Stmt { return r.lookup }, args, func(rows *sql.Rows) error {
		for rows.Next() {
			var row AccountRow
			var erased sql.NullInt64
			var parked bool
			if err := rows.Scan(&row.Sub, &row.JSON, &row.Revision, &row.Position, &erased, &parked); err != nil {
				return err
			}
			if erased.Valid {
				row.ErasedTime = time.UnixMicro(erased.Int64).UTC()
			}
			if err := each(row, parked); err != nil {
				return err
			}
		}
		return nil
	})
}

// one queries one row.
func (a *Accounts) one(ctx context.Context, query string, prepared func(*accountReads) *sql.Stmt, args ...any) (row AccountRow, err error) {
	err = a.query(ctx, query, prepared, args, func(rows *sql.Rows) error {
		if !rows.Next() {
			return cmp.Or(rows.Err(), ErrNotFound)
		}
		row, err = scanAccount(rows)
		return err
	})
	return row, err
}

// query passes the rows of a query to scan. In the process that writes the views
// it uses a prepared statement of the live generation. A reader uses a
// transaction that first looks up which generation is live, because the writer
// may replace it.
func (a *Accounts) query(ctx context.Context, query string, prepared func(*accountReads) *sql.Stmt, args []any, scan func(*sql.Rows) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	// The query takes microseconds. A cancelable ctx would double that, because
	// the driver starts a goroutine to watch it.
	ctx = context.WithoutCancel(ctx)
	var rows *sql.Rows
	var err error
	if a.views.write != nil {
		r := a.acquire()
		defer r.mu.RUnlock()
		rows, err = prepared(r).QueryContext(ctx, args...)
	} else {
		tx, generation, _, failed := a.snapshot(ctx)
		if failed != nil {
			return failed
		}
		defer tx.Rollback()
		rows, err = tx.QueryContext(ctx, fmt.Sprintf(query, generation), args...)
	}
	if err != nil {
		return err
	}
	defer rows.Close()
	if err := scan(rows); err != nil {
		return err
	}
	return rows.Err()
}

// snapshot begins a read transaction and looks up the live generation in it and
// the position it has applied.
func (a *Accounts) snapshot(ctx context.Context) (tx *sql.Tx, generation int64, at eventstore.Position, err error) {
	if tx, err = a.views.read.BeginTx(ctx, nil); err != nil {
		return nil, 0, 0, err
	}
	if generation, at, err = liveGeneration(ctx, tx, AccountsView); err != nil {
		tx.Rollback()
		return nil, 0, 0, err
	}
	return tx, generation, at, nil
}

// Next returns up to limit accounts in the order of their subs, starting after
// a sub. It includes erased accounts.
func (a *Accounts) Next(ctx context.Context, after string, limit int) ([]AccountRow, error) {
	tx, generation, _, err := a.snapshot(ctx)
	if err != nil {
		return nil, fmt.Errorf("projections: next accounts: %w", err)
	}
	defer tx.Rollback()
	rows, err := tx.QueryContext(ctx, fmt.Sprintf(nextAccounts, generation), after, limit)
	if err != nil {
		return nil, fmt.Errorf("projections: next accounts: %w", err)
	}
	defer rows.Close()
	var page []AccountRow
	for rows.Next() {
		row, err := scanAccount(rows)
		if err != nil {
			return nil, fmt.Errorf("projections: next accounts: %w", err)
		}
		page = append(page, row)
	}
	return page, rows.Err()
}

func scanAccount(row interface{ Scan(...any) error }) (AccountRow, error) {
	var r AccountRow
	var erased sql.NullInt64
	err := row.Scan(&r.Sub, &r.JSON, &r.Revision, &r.Position, &erased)
	if errors.Is(err, sql.ErrNoRows) {
		return r, ErrNotFound
	}
	if erased.Valid {
		r.ErasedTime = time.UnixMicro(erased.Int64).UTC()
	}
	return r, err
}

// Position returns the position of the last event the view has applied, without
// a query. It is 0 after OpenReader, which does not follow the log.
func (a *Accounts) Position() eventstore.Position {
	return eventstore.Position(a.view.position.Load())
}

// Lag returns how many events the view is behind the highest position of the
// log it knows of, without a query.
func (a *Accounts) Lag() int64 { return max(0, a.view.head.Load()-a.view.position.Load()) }

// All returns a consistent snapshot of all accounts, erased ones included, in
// the order of their subs: the state after the event at position at. total is
// their number. The caller must range over rows once or cancel ctx; until then
// the snapshot occupies a connection and the write-ahead log grows.
func (a *Accounts) All(ctx context.Context) (at eventstore.Position, total int64, rows iter.Seq2[AccountRow, error], err error) {
	return a.Changed(ctx, 0)
}

// Changed is All restricted to accounts with an event after position since. To
// update a copy of All, pass the position that All returned.
func (a *Accounts) Changed(ctx context.Context, since eventstore.Position) (at eventstore.Position, total int64, rows iter.Seq2[AccountRow, error], err error) {
	return a.scan(ctx, allAccounts, since)
}

// Revisions is All without the documents (JSON is empty) and in no particular
// order. It takes a fraction of the time.
func (a *Accounts) Revisions(ctx context.Context) (at eventstore.Position, total int64, rows iter.Seq2[AccountRow, error], err error) {
	return a.scan(ctx, allRevisions, 0)
}

// scan runs a query for the accounts with an event after position since.
func (a *Accounts) scan(ctx context.Context, query string, since eventstore.Position) (at eventstore.Position, total int64, rows iter.Seq2[AccountRow, error], err error) {
	tx, generation, at, err := a.snapshot(ctx)
	if err != nil {
		return 0, 0, nil, fmt.Errorf("projections: all accounts: %w", err)
	}
	if err := tx.QueryRowContext(ctx, fmt.Sprintf(countAccounts, generation), since).Scan(&total); err != nil {
		tx.Rollback()
		return 0, 0, nil, fmt.Errorf("projections: all accounts: %w", err)
	}
	return at, total, func(yield func(AccountRow, error) bool) {
		defer tx.Rollback()
		rows, err := tx.QueryContext(ctx, fmt.Sprintf(query, generation), since)
		if err != nil {
			yield(AccountRow{}, fmt.Errorf("projections: all accounts: %w", err))
			return
		}
		defer rows.Close()
		for rows.Next() {
			row, err := scanAccount(rows)
			if err != nil {
				err = fmt.Errorf("projections: all accounts: %w", err)
			}
			if !yield(row, err) || err != nil {
				return
			}
		}
		if err := rows.Err(); err != nil {
			yield(AccountRow{}, fmt.Errorf("projections: all accounts: %w", err))
		}
	}, nil
}
