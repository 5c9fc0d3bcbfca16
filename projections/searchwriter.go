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
	search       *Search
	generation   int64
	load, remove *sql.Stmt
	put, add     insertion
	field        *sql.Stmt
	fields       map[string]domain.DataType // that the generation indexes; nil: not known yet
	touched      map[string]bool            // subs
	order        []domain.Entry             // the first event of each in the batch
	pending      []indexed                  // to be written besides
	shelves      *shelves                   // for postings, while the whole index is made
}

// indexed is an account as the index has it.
type indexed struct {
	id                      int64 // or the first one to try, see searchID
	sub                     string
	listed                  bool
	created, updated, login int64
	name                    string
	terms                   []string // sorted
}

// errWaits parks an account in the index whose row is not as the log has it.
var errWaits = errors.New("projections: the account waits in the account view")

func (s *Search) writer(ctx context.Context, generation int64) (writer, error) {
	w := &searchWriter{search: s, generation: generation, touched: map[string]bool{}}
	closing, err := s.views.prepare(ctx, generation, w.statements())
	return writer{apply: w.apply, flush: w.flush, end: w.end, close: closing, bulk: w.bulk}, err
}

func (w *searchWriter) statements() map[**sql.Stmt]string {
	const (
		put = `INSERT INTO search_%[1]d (id, sub, listed, created, updated, login, name, terms, place) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE
			SET listed = excluded.listed, updated = excluded.updated, login = excluded.login, name = excluded.name, terms = excluded.terms`
		add = `INSERT INTO terms_%[1]d (term, account) VALUES (?, ?)`
	)
	return map[**sql.Stmt]string{
		&w.load:     `SELECT sub, listed, updated, login, name, terms FROM search_%[1]d WHERE id = ?`,
		&w.remove:   `DELETE FROM terms_%[1]d WHERE term = ? AND account = ?`,
		&w.field:    `INSERT INTO searchable_%[1]d (field, type) VALUES (?, ?)`,
		&w.put.one:  put,
		&w.put.many: manyRows(put),
		&w.add.one:  add,
		&w.add.many: manyRows(add),
	}
}

// indexedFields are the custom fields that a generation indexes.
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

// setFields says what an empty generation is to index.
func (w *searchWriter) setFields(ctx context.Context, fields map[string]domain.DataType) error {
	tx, err := w.search.views.write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	for _, key := range slices.Sorted(maps.Keys(fields)) {
		if _, err := tx.StmtContext(ctx, w.field).ExecContext(ctx, key, string(fields[key])); err != nil {
			return err
		}
	}
	w.fields = fields
	return tx.Commit()
}

// apply notes which account has changed: what it is now is in its row.
func (w *searchWriter) apply(_ context.Context, _ *batch, x domain.Entry) error {
	if x.Stream == domain.ConfigStream {
		w.search.view.outdated.raise() // custom fields may have become searchable, or ceased to be
		return nil
	}
	if sub := x.Sub(); !w.touched[sub] {
		w.touched[sub] = true
		w.order = append(w.order, x)
	}
	return nil
}

// flush indexes what has been touched. Only then does it take the file, whose
// other writers must not wait while accounts are read.
func (w *searchWriter) flush(ctx context.Context, b *batch) error {
	if len(w.order) == 0 && len(w.pending) == 0 {
		return nil
	}
	all, err := w.read(ctx, b)
	if err != nil {
		return err
	}
	tx, err := b.open(ctx)
	if err != nil {
		return err
	}
	return w.write(ctx, tx, append(all, w.pending...))
}

// read reads the touched accounts. One that waits in the account view is not
// what it should be, and waits here, too.
func (w *searchWriter) read(ctx context.Context, b *batch) ([]indexed, error) {
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
	all := make([]indexed, 0, len(w.order))
	for _, x := range w.order {
		if slices.ContainsFunc(parked, func(p Parked) bool { return p.Stream == x.Stream }) {
			b.park(x, errWaits)
			continue
		}
		row, err := scanAccount(get.QueryRowContext(ctx, x.Sub()))
		if errors.Is(err, ErrNotFound) {
			b.park(x, errors.New("projections: the account has no row"))
			continue
		}
		var account indexed
		if err == nil {
			account, err = index(row, w.fields)
		}
		if err != nil {
			return nil, err
		}
		all = append(all, account)
	}
	return all, nil
}

// write makes the index say of these accounts what they are.
func (w *searchWriter) write(ctx context.Context, tx *sql.Tx, all []indexed) error {
	var rows [][]any
	var gone, come []posting
	fresh := map[int64]string{} // rows of this batch
	for _, a := range all {
		old, exists, err := w.find(ctx, tx, &a, fresh)
		if err != nil {
			return err
		}
		if exists && old.same(a) {
			continue
		}
		if !exists {
			fresh[a.id] = a.sub
		}
		rows = append(rows, []any{a.id, a.sub, a.listed, a.created, a.updated, a.login, a.name, joined(a.terms), a.id})
		for _, term := range old.terms {
			if _, still := slices.BinarySearch(a.terms, term); !still {
				gone = append(gone, posting{term, a.id})
			}
		}
		for _, term := range a.terms {
			if _, already := slices.BinarySearch(old.terms, term); !already {
				come = append(come, posting{term, a.id})
			}
		}
	}
	if _, err := w.put.exec(ctx, tx, rows); err != nil {
		return err
	}
	remove := tx.StmtContext(ctx, w.remove)
	for _, p := range gone {
		if _, err := remove.ExecContext(ctx, p.term, p.account); err != nil {
			return err
		}
	}
	inOrder(come)
	if w.shelves != nil {
		return w.shelves.put(ctx, tx, come)
	}
	return insert(ctx, tx, w.add, come)
}

// find gives a the id of its row, or of the one it is to have.
func (w *searchWriter) find(ctx context.Context, tx *sql.Tx, a *indexed, fresh map[int64]string) (old indexed, exists bool, err error) {
	load := tx.StmtContext(ctx, w.load)
	for ; ; a.id++ {
		if fresh[a.id] != "" {
			continue // another account's: each is in a batch once
		}
		var terms []byte
		err = load.QueryRowContext(ctx, a.id).Scan(&old.sub, &old.listed, &old.updated, &old.login, &old.name, &terms)
		if errors.Is(err, sql.ErrNoRows) {
			return indexed{}, false, nil
		}
		if err != nil || old.sub == a.sub {
			old.terms = split(terms)
			return old, true, err
		}
	}
}

// same reports whether two rows of an account have the same in them.
func (a indexed) same(b indexed) bool {
	return a.listed == b.listed && a.updated == b.updated && a.login == b.login && a.name == b.name && slices.Equal(a.terms, b.terms)
}

func (w *searchWriter) end(bool) {
	clear(w.touched)
	w.order, w.pending = w.order[:0], nil
}

// idBits is how much of an id is not time.
const idBits = 21

// searchID is the id of an account's row, or the first one that is free after
// it: the millisecond of its creation, and then bits of the sub, so that a
// rebuild finds the same one, unless accounts collide, and a cursor holds.
func searchID(sub string, created time.Time) int64 {
	digest := sha256.Sum256([]byte(sub))
	return idAt(created) | int64(binary.BigEndian.Uint32(digest[:])>>(32-idBits))
}

// idAt is the first id of the accounts that were created in t's millisecond.
func idAt(t time.Time) int64 { return min(max(t.UnixMilli(), 0), 1<<(63-idBits)-1) << idBits }

// joined is how a row has its terms: each between line feeds.
func joined(terms []string) []byte {
	if len(terms) == 0 {
		return []byte{}
	}
	return []byte("\n" + strings.Join(terms, "\n") + "\n")
}

func split(terms []byte) []string {
	if terms = bytes.Trim(terms, "\n"); len(terms) == 0 {
		return nil
	}
	return strings.Split(string(terms), "\n")
}

// survey counts the accounts and says which of them wait. Rows are never
// deleted, so the highest number is their count.
func (a *Accounts) survey(ctx context.Context) (total int64, waiting []Parked, err error) {
	tx, generation, _, err := a.snapshot(ctx)
	if err != nil {
		return 0, nil, err
	}
	defer tx.Rollback()
	if waiting, err = loadParked(ctx, tx, AccountsView, generation); err != nil {
		return 0, nil, err
	}
	err = tx.QueryRowContext(ctx, fmt.Sprintf(`SELECT coalesce(max(id), 0) FROM accounts_%d`, generation)).Scan(&total)
	return total, waiting, err
}

// liveGeneration is the generation of a view that answers, and how far it is.
func liveGeneration(ctx context.Context, tx *sql.Tx, view string) (generation int64, at eventstore.Position, err error) {
	err = tx.QueryRowContext(ctx, `SELECT generation, position FROM views WHERE name = ? AND state = 'live'`, view).Scan(&generation, &at)
	return generation, at, err
}
