package projections

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"accountledger/domain"
	"accountledger/eventstore"
)

// searchWriter indexes accounts that have changed.
type searchWriter struct {
	search            *Search
	generation        int64
	load, removeTerm  *sql.Stmt
	putRows, addTerms insertion
	addField          *sql.Stmt
	fields            map[string]domain.DataType // the custom fields the generation indexes; nil: not loaded yet
	touched           map[string]bool            // accounts the batch changes, by sub
	order             []domain.Entry             // the first entry of each in the batch
	bulkRows          []searchRow                // rows of a bulk build, which flush writes with the touched accounts
	buckets           *buckets                   // collects the postings of a bulk build; otherwise nil
}

// searchRow is an account's row in the index.
type searchRow struct {
	id                      int64 // before find: the first id to try, see searchID
	sub                     string
	listed                  bool
	created, updated, login int64
	name                    string
	terms                   []string // sorted
}

// errParkedAccount parks an account in the index that is parked in the account
// view, because its row there is out of date.
var errParkedAccount = errors.New("projections: the account is parked in the account view")

func (s *Search) writer(ctx context.Context, generation int64) (writer, error) {
	w := &searchWriter{search: s, generation: generation, touched: map[string]bool{}}
	closing, err := s.views.prepare(ctx, generation, w.statements())
	return writer{apply: w.apply, flush: w.flush, finish: w.finish, close: closing, bulk: w.bulk}, err
}

func (w *searchWriter) statements() map[**sql.Stmt]string {
	const (
		put = `INSERT INTO search_%[1]d (id, sub, listed, created, updated, login, name, terms, place) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE
			SET listed = excluded.listed, updated = excluded.updated, login = excluded.login, name = excluded.name, terms = excluded.terms`
		add = `INSERT INTO terms_%[1]d (term, account) VALUES (?, ?)`
	)
	return map[**sql.Stmt]string{
		&w.load:          `SELECT sub, listed, updated, login, name, terms FROM search_%[1]d WHERE id = ?`,
		&w.removeTerm:    `DELETE FROM terms_%[1]d WHERE term = ? AND account = ?`,
		&w.addField:      `INSERT INTO searchable_%[1]d (field, type) VALUES (?, ?)`,
		&w.putRows.one:   put,
		&w.putRows.many:  manyRows(put),
		&w.addTerms.one:  add,
		&w.addTerms.many: manyRows(add),
	}
}

// indexedFields returns the custom fields that a generation indexes.
func indexedFields(ctx context.Context, tx *sql.Tx, generation int64) (map[string]domain.DataType, error) {
	rows, err := tx.QueryContext(ctx, fmt.Sprintf(`SELECT field, type FROM searchable_%d`, generation))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	fields := map[string]domain.DataType{}
	for rows.Next() {
		var key string
		var t domain.DataType
		if err := rows.Scan(&key, &t); err != nil {
			return nil, err
		}
		fields[key] = t
	}
	return fields, rows.Err()
}

// setFields stores the custom fields that a new generation indexes.
func (w *searchWriter) setFields(ctx context.Context, fields map[string]domain.DataType) error {
	tx, err := w.search.views.write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	for _, key := range slices.Sorted(maps.Keys(fields)) {
		if _, err := tx.StmtContext(ctx, w.addField).ExecContext(ctx, key, string(fields[key])); err != nil {
			return err
		}
	}
	w.fields = fields
	return tx.Commit()
}

// apply notes which account has changed. flush reads its new state from the
// account view.
func (w *searchWriter) apply(_ context.Context, _ *batch, x domain.Entry) error {
	if x.Stream == domain.ConfigStream {
		w.search.view.outdated.raise() // the searchable custom fields may have changed
		return nil
	}
	if sub := x.Sub(); !w.touched[sub] {
		w.touched[sub] = true
		w.order = append(w.order, x)
	}
	return nil
}

// flush indexes the touched accounts and the rows of a bulk build. It reads the
// accounts before it begins the transaction, which blocks all other writers.
func (w *searchWriter) flush(ctx context.Context, b *batch) error {
	if len(w.order) == 0 && len(w.bulkRows) == 0 {
		return nil
	}
	all, err := w.readTouched(ctx, b)
	if err != nil {
		return err
	}
	tx, err := b.begin(ctx)
	if err != nil {
		return err
	}
	return w.write(ctx, tx, append(all, w.bulkRows...))
}

// readTouched computes the rows of the touched accounts. It parks accounts that
// are parked in the account view.
func (w *searchWriter) readTouched(ctx context.Context, b *batch) ([]searchRow, error) {
	if len(w.order) == 0 {
		return nil, nil
	}
	tx, generation, _, err := w.search.views.accounts.snapshot(ctx)
	if err != nil {
		return nil, err
	}
	defer tx.Rollback()
	if w.fields == nil {
		if w.fields, err = indexedFields(ctx, tx, w.generation); err != nil {
			return nil, err
		}
	}
	parked, err := loadParked(ctx, tx, AccountsView, generation)
	if err != nil {
		return nil, err
	}
	get, err := tx.PrepareContext(ctx, fmt.Sprintf(getAccount, generation))
	if err != nil {
		return nil, err
	}
	defer get.Close()
	all := make([]searchRow, 0, len(w.order))
	for _, x := range w.order {
		if slices.ContainsFunc(parked, func(p Parked) bool { return p.Stream == x.Stream }) {
			b.park(x, errParkedAccount)
			continue
		}
		row, err := scanAccount(get.QueryRowContext(ctx, x.Sub()))
		if errors.Is(err, ErrNotFound) {
			b.park(x, errors.New("projections: the account has no row"))
			continue
		}
		var account searchRow
		if err == nil {
			account, err = indexAccount(row, w.fields)
		}
		if err != nil {
			return nil, err
		}
		all = append(all, account)
	}
	return all, nil
}

// write writes the accounts' rows and updates their postings.
func (w *searchWriter) write(ctx context.Context, tx *sql.Tx, all []searchRow) error {
	var rows [][]any
	var removed, added []posting
	fresh := map[int64]string{} // the subs of new rows, by id
	for _, a := range all {
		old, exists, err := w.find(ctx, tx, &a, fresh)
		if err != nil {
			return err
		}
		if exists && old.equal(a) {
			continue
		}
		if !exists {
			fresh[a.id] = a.sub
		}
		rows = append(rows, []any{a.id, a.sub, a.listed, a.created, a.updated, a.login, a.name, joinTerms(a.terms), a.id})
		for _, term := range old.terms {
			if _, still := slices.BinarySearch(a.terms, term); !still {
				removed = append(removed, posting{term, a.id})
			}
		}
		for _, term := range a.terms {
			if _, already := slices.BinarySearch(old.terms, term); !already {
				added = append(added, posting{term, a.id})
			}
		}
	}
	if _, err := w.putRows.exec(ctx, tx, rows); err != nil {
		return err
	}
	removeTerm := tx.StmtContext(ctx, w.removeTerm)
	for _, p := range removed {
		if _, err := removeTerm.ExecContext(ctx, p.term, p.account); err != nil {
			return err
		}
	}
	sortPostings(added)
	if w.buckets != nil {
		return w.buckets.put(ctx, tx, added)
	}
	return insertPostings(ctx, tx, w.addTerms, added)
}

// find sets a.id to the id of the account's row and returns the row, or sets it
// to a free id if there is none. fresh has the rows not written yet.
func (w *searchWriter) find(ctx context.Context, tx *sql.Tx, a *searchRow, fresh map[int64]string) (old searchRow, exists bool, err error) {
	load := tx.StmtContext(ctx, w.load)
	for ; ; a.id++ {
		if fresh[a.id] != "" {
			continue // another account's, because a batch has each account once
		}
		var terms []byte
		err = load.QueryRowContext(ctx, a.id).Scan(&old.sub, &old.listed, &old.updated, &old.login, &old.name, &terms)
		if errors.Is(err, sql.ErrNoRows) {
			return searchRow{}, false, nil
		}
		if err != nil || old.sub == a.sub {
			old.terms = splitTerms(terms)
			return old, true, err
		}
	}
}

// equal reports whether two rows of an account are equal. Sub, id and created
// do not change.
func (a searchRow) equal(b searchRow) bool {
	return a.listed == b.listed && a.updated == b.updated && a.login == b.login && a.name == b.name && slices.Equal(a.terms, b.terms)
}

func (w *searchWriter) finish(bool) {
	clear(w.touched)
	w.order, w.bulkRows = w.order[:0], nil
}

// idBits is the number of bits in an id below the time.
const idBits = 21

// searchID returns the id of an account's row: the millisecond of its creation,
// then bits of a hash of its sub. If other accounts have that id, the row has
// the next free one. Since ids do not depend on the order of events, a rebuild
// assigns the same ones unless accounts collide, and cursors remain valid.
func searchID(sub string, created time.Time) int64 {
	digest := sha256.Sum256([]byte(sub))
	return idAt(created) | int64(binary.BigEndian.Uint32(digest[:])>>(32-idBits))
}

// idAt returns the lowest id of an account created in t's millisecond.
func idAt(t time.Time) int64 { return min(max(t.UnixMilli(), 0), 1<<(63-idBits)-1) << idBits }

// joinTerms encodes terms for the row: each between line feeds.
func joinTerms(terms []string) []byte {
	if len(terms) == 0 {
		return []byte{}
	}
	return []byte("\n" + strings.Join(terms, "\n") + "\n")
}

func splitTerms(terms []byte) []string {
	if terms = bytes.Trim(terms, "\n"); len(terms) == 0 {
		return nil
	}
	return strings.Split(string(terms), "\n")
}

// totals returns the number of accounts and the parked ones. Rows are never
// deleted, so the highest id is their number.
func (a *Accounts) totals(ctx context.Context) (total int64, parked []Parked, err error) {
	tx, generation, _, err := a.snapshot(ctx)
	if err != nil {
		return 0, nil, err
	}
	defer tx.Rollback()
	if parked, err = loadParked(ctx, tx, AccountsView, generation); err != nil {
		return 0, nil, err
	}
	err = tx.QueryRowContext(ctx, fmt.Sprintf(`SELECT coalesce(max(id), 0) FROM accounts_%d`, generation)).Scan(&total)
	return total, parked, err
}

// liveGeneration returns the number of a view's live generation, and the
// position it has applied.
func liveGeneration(ctx context.Context, tx *sql.Tx, view string) (generation int64, at eventstore.Position, err error) {
	err = tx.QueryRowContext(ctx, `SELECT generation, position FROM views WHERE name = ? AND state = 'live'`, view).Scan(&generation, &at)
	return generation, at, err
}
