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

// bulkAccounts is the number of accounts indexed in one transaction, which
// blocks the live generations.
const bulkAccounts = 2 << 10

// bulk fills an empty generation with all accounts of the account view. An
// account that changes meanwhile may be indexed in its old or new state; the
// events after head then index it again.
func (w *searchWriter) bulk(ctx context.Context, g *generation, head eventstore.Position, progress func(done, total int64)) error {
	fields, err := w.search.searchable(ctx)
	if err != nil {
		return err
	}
	last, err := eventAt(ctx, g.view.views.log, head)
	if err != nil {
		return err
	}
	total, parked, err := w.search.views.accounts.totals(ctx)
	if err != nil {
		return err
	}
	if w.buckets, err = w.newBuckets(ctx); err != nil {
		return err
	}
	defer w.buckets.close()
	// One goroutine reads accounts and extracts their terms, another writes.
	group, reading := errgroup.WithContext(ctx)
	pages := make(chan []searchRow, 1)
	group.Go(func() error { return w.extractTerms(reading, fields, pages) })
	group.Go(func() error {
		if err := w.setFields(reading, fields); err != nil {
			return err
		}
		done := int64(0)
		for page := range pages {
			done = min(done+int64(len(page)), total)
			at := head / 2 * eventstore.Position(done) / eventstore.Position(max(total, 1)) // the second half is for sorting
			if err := w.commit(reading, g, page, nil, at, [16]byte{}); err != nil {         // this position only shows progress in Status
				return err
			}
			progress(int64(at), int64(head))
		}
		return reading.Err() // not nil: pages was closed early
	})
	if err := group.Wait(); err != nil {
		return err
	}
	if err := w.buckets.sort(ctx, w.addTerms, func(share float64) {
		progress(int64(float64(head)*(1+share)/2), int64(head))
	}); err != nil {
		return err
	}
	w.buckets = nil
	return w.commit(ctx, g, nil, parked, head, last)
}

// extractTerms reads every account and sends its row in the index to pages.
func (w *searchWriter) extractTerms(ctx context.Context, fields map[string]domain.DataType, pages chan<- []searchRow) error {
	defer close(pages)
	for after := ""; ; {
		rows, err := w.search.views.accounts.Next(ctx, after, bulkAccounts)
		if err != nil || len(rows) == 0 {
			return err
		}
		page := make([]searchRow, len(rows))
		for i, row := range rows {
			if page[i], err = indexAccount(row, fields); err != nil {
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

// commit writes a page of a new generation. It parks the accounts that are
// parked in the account view.
func (w *searchWriter) commit(ctx context.Context, g *generation, page []searchRow, parked []Parked, at eventstore.Position, event [16]byte) error {
	b := g.newBatch()
	b.bulk = true
	defer b.rollback()
	for _, p := range parked {
		b.park(domain.Entry{Stream: p.Stream, Revision: p.Revision, Position: p.Position}, errParkedAccount)
	}
	w.bulkRows = page
	return b.commit(ctx, at, event)
}

// posting is a row of the terms table: an account has a term.
type posting struct {
	term    string
	account int64
}

// sortPostings sorts postings in the order of the table's primary key.
func sortPostings(postings []posting) {
	slices.SortFunc(postings, func(a, b posting) int {
		if c := strings.Compare(a.term, b.term); c != 0 {
			return c
		}
		return cmp.Compare(a.account, b.account)
	})
}

// buckets sort the postings of a bulk build, a bucket sort on disk. Postings
// arrive by account, but the terms table is ordered by term: inserted in order
// of arrival, each goes to another page, and with a million accounts most pages
// are written dozens of times. So the postings are first distributed to
// buckets, each for a range of terms; then each bucket is sorted in memory and
// inserted into the terms table.
type buckets struct {
	views      *Views
	generation int64
	bounds     []string // bucket i has the terms from bounds[i-1] up to, not including, bounds[i]
	insertion  insertion
	counts     []int64 // of postings, by bucket
	closing    func() error
}

const (
	bucketCount = 128
	bucketBits  = 40      // of a row's id that number the postings of its bucket; the bits above are the bucket
	sortBatch   = 1 << 17 // postings sorted in memory at a time
	insertBatch = 1 << 13 // postings inserted in one transaction, which blocks the live generations
)

// newBuckets creates the table of the buckets.
func (w *searchWriter) newBuckets(ctx context.Context) (*buckets, error) {
	s := &buckets{views: w.search.views, generation: w.generation}
	create := fmt.Sprintf(`CREATE TABLE buckets_%d (id INTEGER PRIMARY KEY, term TEXT NOT NULL, account INTEGER NOT NULL) STRICT`, s.generation)
	if _, err := s.views.write.ExecContext(ctx, create); err != nil {
		return nil, err
	}
	const insert = `INSERT INTO buckets_%[1]d (id, term, account) VALUES (?, ?, ?)`
	var err error
	s.closing, err = s.views.prepare(ctx, s.generation, map[**sql.Stmt]string{&s.insertion.one: insert, &s.insertion.many: manyRows(insert)})
	return s, err
}

// put adds sorted postings to their buckets. The first call's postings determine
// the bounds.
func (s *buckets) put(ctx context.Context, tx *sql.Tx, postings []posting) error {
	if s.counts == nil {
		for i := 1; i < bucketCount && len(postings) > 0; i++ {
			s.bounds = append(s.bounds, postings[i*len(postings)/bucketCount].term)
		}
		s.bounds = slices.Compact(s.bounds)
		s.counts = make([]int64, len(s.bounds)+1)
	}
	rows := make([][]any, len(postings))
	for i, p := range postings {
		bucket, _ := slices.BinarySearchFunc(s.bounds, p.term, func(bound, term string) int {
			if bound <= term {
				return -1
			}
			return 1
		})
		rows[i] = []any{int64(bucket)<<bucketBits | s.counts[bucket], p.term, p.account}
		s.counts[bucket]++
	}
	_, err := s.insertion.exec(ctx, tx, rows)
	return err
}

// sort inserts all postings into the terms table with add, bucket by bucket, and
// drops the buckets' table. It reports the share done, from 0 to 1.
func (s *buckets) sort(ctx context.Context, add insertion, progress func(share float64)) error {
	for bucket, count := range s.counts {
		first := int64(bucket) << bucketBits
		for from := first; from < first+count; from += sortBatch {
			postings, err := s.read(ctx, from, min(from+sortBatch, first+count))
			if err != nil {
				return err
			}
			sortPostings(postings)
			for batch := range slices.Chunk(postings, insertBatch) {
				if err := s.write(ctx, add, batch); err != nil {
					return err
				}
			}
		}
		if _, err := s.views.write.ExecContext(ctx, fmt.Sprintf(`DELETE FROM buckets_%d WHERE id < ?`, s.generation), first+count); err != nil {
			return err
		}
		progress(float64(bucket+1) / float64(len(s.counts)))
	}
	if err := s.close(); err != nil {
		return err
	}
	_, err := s.views.write.ExecContext(ctx, fmt.Sprintf(`DROP TABLE buckets_%d`, s.generation))
	return err
}

func (s *buckets) read(ctx context.Context, from, to int64) ([]posting, error) {
	rows, err := s.views.read.QueryContext(ctx, fmt.Sprintf(`SELECT term, account FROM buckets_%d WHERE id >= ? AND id < ?`, s.generation), from, to)
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

func (s *buckets) write(ctx context.Context, add insertion, postings []posting) error {
	tx, err := s.views.write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if err := insertPostings(ctx, tx, add, postings); err != nil {
		return err
	}
	return tx.Commit()
}

// insertPostings inserts postings with add.
func insertPostings(ctx context.Context, tx *sql.Tx, add insertion, postings []posting) error {
	rows := make([][]any, len(postings))
	for i, p := range postings {
		rows[i] = []any{p.term, p.account}
	}
	_, err := add.exec(ctx, tx, rows)
	return err
}

// close closes the statements. Calls after the first do nothing.
func (s *buckets) close() error {
	closing := s.closing
	s.closing = func() error { return nil }
	return closing()
}
