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

// Search finds accounts. Its index is made of the rows of the account view and
// follows it at a distance: what is not asked for is indexed a little later,
// many changes at a time. Its methods may be called at once by many goroutines.
//
// What events are indexed by is in searchwriter.go, a whole index is made in
// searchbulk.go, the words are in searchterms.go, and which way a query goes
// through the index in searchplan.go.
type Search struct {
	views *Views
	view  *view

	limits searchLimits
	asked  func(query string, args []any) // in tests: every statement of a query
}

// A row's id follows the order of createdTime, see searchID, so that each term
// has its accounts in that order, and the newest of them can be read without
// looking at the others. Rows stay for good; that of an account which has ended
// has nothing in it but the sub and times.
//
// The terms of an account are in its row, too: to find out what else is true of
// an account takes one row and not one index per question, and what an event
// changes is the difference.
const searchTables = `
CREATE TABLE search_%[1]d (
	id      INTEGER PRIMARY KEY,
	sub     TEXT    NOT NULL,
	listed  INTEGER NOT NULL, -- 0: it is erased, or combined into another
	created INTEGER NOT NULL, -- Unix time in microseconds
	updated INTEGER NOT NULL,
	login   INTEGER NOT NULL, -- the last one; 0: none yet
	name    TEXT    NOT NULL, -- as it is sorted
	terms   BLOB    NOT NULL, -- those in terms_, each between line feeds
	place   INTEGER NOT NULL  -- id again: SQLite finds no place in an index by a pair whose second is the rowid
) STRICT;
CREATE INDEX search_updated_%[1]d ON search_%[1]d (updated, place);
CREATE INDEX search_login_%[1]d ON search_%[1]d (login, place);
CREATE INDEX search_name_%[1]d ON search_%[1]d (name, place);
CREATE TABLE terms_%[1]d (
	term    TEXT    NOT NULL,
	account INTEGER NOT NULL,
	PRIMARY KEY (term, account)
) STRICT, WITHOUT ROWID;
CREATE TABLE searchable_%[1]d ( -- the custom fields that are in the terms
	field TEXT NOT NULL PRIMARY KEY,
	type  TEXT NOT NULL
) STRICT, WITHOUT ROWID;`

// searchPause is how long the index lets changes gather while nobody searches.
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
		drop:   `DROP TABLE terms_%[1]d; DROP TABLE search_%[1]d; DROP TABLE searchable_%[1]d; DROP TABLE IF EXISTS shelves_%[1]d`,
		count:  `SELECT count(*) FROM search_%[1]d`,
		writer: s.writer,
		// Each query finds out in its transaction which generation is live.
		serve: func(context.Context, int64) (func(), error) { return func() {}, nil },
		stale: s.stale,
	}
}

// Position is the position of the last event the index has applied.
func (s *Search) Position() eventstore.Position {
	return eventstore.Position(s.view.position.Load())
}

// Lag is how many events of the log the index has not applied, as far as it
// has heard of them.
func (s *Search) Lag() int64 { return max(0, s.view.head.Load()-s.view.position.Load()) }

// Await returns when the index has applied the event at p and has these custom
// fields. While none that are asked for are to come it never returns before ctx
// is done, and then ctx's error.
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

// searchable are the custom fields that accounts are to be found by, with
// their data types, as the configuration has them now.
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
// it should. Then another one is made, and this one answers what it can.
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
