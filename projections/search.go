package projections

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"accountledger/domain"
	"accountledger/eventstore"
)

// SearchView is the name of the search index.
const SearchView = "search"

// Search finds accounts. Its index is derived from the rows of the account view
// and lags a little behind it: without a waiting search, it collects changes and
// indexes many at a time. Its methods are safe for concurrent use.
//
// searchquery.go defines the queries and searchplan.go executes them.
// searchterms.go computes the terms of an account, searchwriter.go indexes the
// accounts that events change, and searchbulk.go builds a whole index.
type Search struct {
	views *Views
	view  *view

	limits  searchLimits
	onQuery func(query string, args []any) // for tests: called with every statement of a query
}

// The ids of the rows are in the order of createdTime, see searchID. So each
// term has its accounts in that order, and a query for the newest of them does
// not have to read the others. Rows are never deleted; that of an erased account
// contains only the sub and times.
//
// The row contains the account's terms, too. So one row is enough to check an
// account against all filters, and the writer finds out which terms an event
// adds and removes.
const searchTables = `
CREATE TABLE search_%[1]d (
	id      INTEGER PRIMARY KEY,
	sub     TEXT    NOT NULL,
	listed  INTEGER NOT NULL, -- 0: the account is erased, or combined into another
	created INTEGER NOT NULL, -- Unix time in microseconds
	updated INTEGER NOT NULL,
	login   INTEGER NOT NULL, -- the last login; 0: none yet
	name    TEXT    NOT NULL, -- the sort key
	terms   BLOB    NOT NULL, -- the account's terms in terms_, each between line feeds
	place   INTEGER NOT NULL  -- a copy of id, because SQLite does not seek in an index by a pair that ends with the rowid
) STRICT;
CREATE INDEX search_updated_%[1]d ON search_%[1]d (updated, place);
CREATE INDEX search_login_%[1]d ON search_%[1]d (login, place);
CREATE INDEX search_name_%[1]d ON search_%[1]d (name, place);
CREATE TABLE terms_%[1]d (
	term    TEXT    NOT NULL,
	account INTEGER NOT NULL,
	PRIMARY KEY (term, account)
) STRICT, WITHOUT ROWID;
CREATE TABLE searchable_%[1]d ( -- the custom fields that are indexed
	field TEXT NOT NULL PRIMARY KEY,
	type  TEXT NOT NULL
) STRICT, WITHOUT ROWID;`

// searchPause is the pause between batches while no search waits for the index.
const searchPause = 250 * time.Millisecond

func (s *Search) projection() projection {
	return projection{
		name:    SearchView,
		version: 1,
		follows: func(stream string) bool {
			return stream == domain.ConfigStream || strings.HasPrefix(stream, domain.AccountStream(""))
		},
		source: s.views.accounts.view,
		pause:  searchPause,
		tables: searchTables,
		clear: []string{
			`DELETE FROM terms_%[1]d WHERE (term, account) IN (SELECT term, account FROM terms_%[1]d LIMIT 1000)`,
			`DELETE FROM search_%[1]d WHERE id IN (SELECT id FROM search_%[1]d LIMIT 1000)`,
			`DELETE FROM searchable_%[1]d`,
		},
		drop: `DROP TABLE terms_%[1]d; DROP TABLE search_%[1]d; DROP TABLE searchable_%[1]d;
			DROP TABLE IF EXISTS buckets_%[1]d; DROP TABLE IF EXISTS shelves_%[1]d`, // older versions named the buckets shelves_
		count:  `SELECT count(*) FROM search_%[1]d`,
		writer: s.writer,
		// Each query looks up the live generation in its own transaction.
		serve: func(context.Context, int64) (func(), error) { return func() {}, nil },
		stale: s.stale,
	}
}

// Position returns the position of the last event the index has applied.
func (s *Search) Position() eventstore.Position {
	return eventstore.Position(s.view.position.Load())
}

// Lag returns how many events the index is behind the highest position of the
// log it knows of.
func (s *Search) Lag() int64 { return max(0, s.view.head.Load()-s.view.position.Load()) }

// Await waits until the index has applied the event at p and indexes the custom
// fields, each with its type. It returns ctx's error if ctx is done first, as it
// is if a field is not searchable, and ErrClosed if the Views are closed.
func (s *Search) Await(ctx context.Context, p eventstore.Position, fields []FieldQuery) error {
	for {
		if err := s.view.await(ctx, p); err != nil {
			return err
		}
		moved := s.view.moved.next()
		has, err := s.has(ctx, fields)
		if has || err != nil {
			return err
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		case <-s.views.closed:
			return ErrClosed
		}
	}
}

// has reports whether the live generation indexes these fields.
func (s *Search) has(ctx context.Context, fields []FieldQuery) (bool, error) {
	if len(fields) == 0 {
		return true, nil
	}
	tx, err := s.views.read.BeginTx(ctx, nil)
	if err != nil {
		return false, err
	}
	defer tx.Rollback()
	generation, _, err := liveGeneration(ctx, tx, SearchView)
	if err != nil {
		return false, err
	}
	indexed, err := indexedFields(ctx, tx, generation)
	return !slices.ContainsFunc(fields, func(f FieldQuery) bool { return indexed[f.Key] != f.Type }), err
}

// searchable returns the custom fields that the configuration defines as
// searchable, with their data types.
func (s *Search) searchable(ctx context.Context) (map[string]domain.DataType, error) {
	config := domain.NewConfig()
	for rec, err := range s.views.log.ReadStream(ctx, domain.ConfigStream, 0) {
		var x domain.Entry
		if err == nil {
			x, err = s.views.codec.Decode(rec)
		}
		if err != nil {
			return nil, fmt.Errorf("read the configuration: %w", err)
		}
		config.Evolve(x)
	}
	fields := map[string]domain.DataType{}
	for key, f := range config.Fields {
		if f.Searchable {
			fields[key] = f.DataType
		}
	}
	return fields, nil
}

// stale reports whether the live generation indexes other custom fields than
// the configuration defines as searchable.
func (s *Search) stale(ctx context.Context) (bool, error) {
	fields, err := s.searchable(ctx)
	if err != nil {
		return false, err
	}
	tx, err := s.views.read.BeginTx(ctx, nil)
	if err != nil {
		return false, err
	}
	defer tx.Rollback()
	generation, _, err := liveGeneration(ctx, tx, SearchView)
	if err != nil {
		return false, err
	}
	indexed, err := indexedFields(ctx, tx, generation)
	return !maps.Equal(fields, indexed), err
}
