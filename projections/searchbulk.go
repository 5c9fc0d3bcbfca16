package projections

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"accountledger/domain"
	"accountledger/eventstore"
)

// bulkAccounts is how many accounts are indexed in one transaction; the live
// generations wait that long.
const bulkAccounts = 2 << 10

// bulk fills an empty generation with the accounts that the account view has.
// Accounts that change meanwhile may be in it as they were or as they are; the
// log says which, and they are indexed once more.
func (w *searchWriter) bulk(ctx context.Context, g *generation, head eventstore.Position, progress func(done, total int64)) error {
	fields, err := w.search.searchable(ctx)
	if err != nil {
		return err
	}
	last, err := g.view.eventAt(ctx, head)
	if err != nil {
		return err
	}
	total, waiting, err := w.search.views.accounts.survey(ctx)
	if err != nil {
		return err
	}
	if w.shelves, err = w.openShelves(ctx); err != nil {
		return err
	}
	defer w.shelves.close()
	// Reading and understanding accounts takes one core, writing another.
	group, reading := errgroup.WithContext(ctx)
	pages := make(chan []indexed, 1)
	group.Go(func() error { return w.understand(reading, fields, pages) })
	group.Go(func() error {
		if err := w.setFields(reading, fields); err != nil {
			return err
		}
		done := int64(0)
		for page := range pages {
			done = min(done+int64(len(page)), total)
			at := head / 2 * eventstore.Position(done) / eventstore.Position(max(total, 1)) // sorting is the other half
			if err := w.commit(reading, g, page, nil, at, [16]byte{}); err != nil {         // nobody goes on from there, but it can be seen
				return err
			}
			progress(int64(at), int64(head))
		}
		if reading.Err() != nil {
			return reading.Err() // and not the end of the accounts
		}
		return nil
	})
	if err := group.Wait(); err != nil {
		return err
	}
	if err := w.shelves.sort(ctx, w.add, func(share float64) {
		progress(int64(float64(head)*(1+share)/2), int64(head))
	}); err != nil {
		return err
	}
	w.shelves = nil
	return w.commit(ctx, g, nil, waiting, head, last)
}

// understand makes of all accounts what the index has of them.
func (w *searchWriter) understand(ctx context.Context, fields map[string]domain.DataType, pages chan<- []indexed) error {
	defer close(pages)
	for after := ""; ; {
		rows, err := w.search.views.accounts.Next(ctx, after, bulkAccounts)
		if err != nil || len(rows) == 0 {
			return err
		}
		page := make([]indexed, len(rows))
		for i, row := range rows {
			if page[i], err = index(row, fields); err != nil {
				return err
			}
		}
		select {
		case pages <- page:
		case <-ctx.Done():
			return ctx.Err()
		}
		after = rows[len(rows)-1].Sub
	}
}

// commit writes a part of a new generation. Who waits in the account view
// waits here, too.
func (w *searchWriter) commit(ctx context.Context, g *generation, page []indexed, waiting []Parked, at eventstore.Position, event [16]byte) error {
	b := g.begin()
	b.whole = true
	defer b.rollback()
	for _, p := range waiting {
		b.park(domain.Entry{Stream: p.Stream, Revision: p.Revision, Position: p.Position}, errWaits)
	}
	w.pending = page
	return b.commit(ctx, at, event)
}

// posting says that an account has a term.
type posting struct {
	term    string
	account int64
}

// inOrder sorts postings as their table has them.
func inOrder(postings []posting) {
	slices.SortFunc(postings, func(a, b posting) int {
		if c := strings.Compare(a.term, b.term); c != 0 {
			return c
		}
		return cmp.Compare(a.account, b.account)
	})
}

// shelves hold the postings of an index that is made as a whole. They come by
// account and are kept by term: put where they belong one by one, each goes to
// another page, and with a million accounts most pages are written dozens of
// times. So they are first laid on shelves, each for the terms between two
// others, and then one shelf after the other is sorted in memory and put away.
type shelves struct {
	views      *Views
	generation int64
	bounds     []string // a term is on the shelf of the first bound that is greater
	lay        insertion
	laid       []int64 // on each shelf
	closing    func() error
}

const (
	shelfCount = 128
	shelfBits  = 40      // of an id are the number on the shelf
	armful     = 1 << 17 // postings that are sorted at once
	putAway    = 1 << 13 // postings in one transaction, which the live generations wait for
)

func (w *searchWriter) openShelves(ctx context.Context) (*shelves, error) {
	s := &shelves{views: w.search.views, generation: w.generation}
	create := fmt.Sprintf(`CREATE TABLE shelves_%d (id INTEGER PRIMARY KEY, term TEXT NOT NULL, account INTEGER NOT NULL) STRICT`, s.generation)
	if _, err := s.views.write.ExecContext(ctx, create); err != nil {
		return nil, err
	}
	const lay = `INSERT INTO shelves_%[1]d (id, term, account) VALUES (?, ?, ?)`
	var err error
	s.closing, err = s.views.prepare(ctx, s.generation, map[**sql.Stmt]string{&s.lay.one: lay, &s.lay.many: manyRows(lay)})
	return s, err
}

// put lays postings on their shelves. The first ones decide what the shelves
// are for.
func (s *shelves) put(ctx context.Context, tx *sql.Tx, postings []posting) error {
	if s.laid == nil {
		for i := 1; i < shelfCount && len(postings) > 0; i++ {
			s.bounds = append(s.bounds, postings[i*len(postings)/shelfCount].term)
		}
		s.bounds = slices.Compact(s.bounds)
		s.laid = make([]int64, len(s.bounds)+1)
	}
	rows := make([][]any, len(postings))
	for i, p := range postings {
		shelf, _ := slices.BinarySearchFunc(s.bounds, p.term, func(bound, term string) int {
			if bound <= term {
				return -1
			}
			return 1
		})
		rows[i] = []any{int64(shelf)<<shelfBits | s.laid[shelf], p.term, p.account}
		s.laid[shelf]++
	}
	_, err := s.lay.exec(ctx, tx, rows)
	return err
}

// sort puts all postings into their table with add, and removes the shelves.
func (s *shelves) sort(ctx context.Context, add insertion, progress func(share float64)) error {
	for shelf, laid := range s.laid {
		first := int64(shelf) << shelfBits
		for from := first; from < first+laid; from += armful {
			postings, err := s.read(ctx, from, min(from+armful, first+laid))
			if err != nil {
				return err
			}
			inOrder(postings)
			for some := range slices.Chunk(postings, putAway) {
				if err := s.write(ctx, add, some); err != nil {
					return err
				}
			}
		}
		if _, err := s.views.write.ExecContext(ctx, fmt.Sprintf(`DELETE FROM shelves_%d WHERE id < ?`, s.generation), first+laid); err != nil {
			return err
		}
		progress(float64(shelf+1) / float64(len(s.laid)))
	}
	if err := s.close(); err != nil {
		return err
	}
	_, err := s.views.write.ExecContext(ctx, fmt.Sprintf(`DROP TABLE shelves_%d`, s.generation))
	return err
}

func (s *shelves) read(ctx context.Context, from, to int64) ([]posting, error) {
	rows, err := s.views.read.QueryContext(ctx, fmt.Sprintf(`SELECT term, account FROM shelves_%d WHERE id >= ? AND id < ?`, s.generation), from, to)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var postings []posting
	for rows.Next() {
		var p posting
		if err := rows.Scan(&p.term, &p.account); err != nil {
			return nil, err
		}
		postings = append(postings, p)
	}
	return postings, rows.Err()
}

func (s *shelves) write(ctx context.Context, add insertion, postings []posting) error {
	tx, err := s.views.write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if err := insert(ctx, tx, add, postings); err != nil {
		return err
	}
	return tx.Commit()
}

// insert adds postings to the index.
func insert(ctx context.Context, tx *sql.Tx, add insertion, postings []posting) error {
	rows := make([][]any, len(postings))
	for i, p := range postings {
		rows[i] = []any{p.term, p.account}
	}
	_, err := add.exec(ctx, tx, rows)
	return err
}

// close may be called again.
func (s *shelves) close() error {
	closing := s.closing
	s.closing = func() error { return nil }
	return closing()
}
