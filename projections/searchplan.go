package projections

import (
	"context"
	"database/sql"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"accountledger/domain"
)

// searchLimits bounds the work of a query.
type searchLimits struct {
	sorted   int64 // candidate ids to sort
	gathered int64 // accounts to read in order to sort them by something else than their ids
	walked   int64 // accounts to check against the filters for one page
	counted  int64 // accounts to check against several filters for the count
	distinct int64 // candidate ids to count without duplicates
}

// defaultLimits keep the slowest query on a million accounts near 20 ms.
var defaultLimits = searchLimits{sorted: 10_000, gathered: 1000, walked: 4000, counted: 300, distinct: 2000}

// finder executes one query in one transaction.
//
// It walks accounts in the query's order, checks the row of each against the
// filters, and stops when the page is full. The accounts it walks are the
// candidates of one filter, the driver: that with the fewest candidates. If the
// order is that of creation, the candidates of a single term are already in
// order and those of another filter are sorted by id; if each filter has too
// many candidates, it walks those of any term, or else all accounts. For another
// order, it reads the driver's accounts and sorts them, or, if they are too
// many, walks all accounts by an index on that order.
//
// Reading an account's row costs as much as reading many candidate ids. So if
// two filters have few candidates, it intersects their ids before reading rows.
type finder struct {
	tx                   *sql.Tx
	q                    Query
	limits               searchLimits
	generation, accounts int64

	filters []filter
	rarest  *filter // the filter with the fewest candidates within the limits; nil: none is within them
	second  *filter // the filter whose candidates are intersected with the driver's; nil: none
	driver  *filter // the filter whose candidates are walked; nil: walk all accounts

	onQuery func(query string, args []any) // called with every statement, for tests of its plan
}

// filter is a condition on accounts.
type filter struct {
	where string // SQL on search_ as s
	args  []any  // of where

	// candidates is SQL for the ids of all accounts that pass, possibly with
	// duplicates, as a column account. "": only where can tell.
	candidates     string
	candidatesArgs []any

	term          string // the filter passes accounts with this term; "": it is of another kind
	column        string // the filter passes a period of this column; "": it is of another kind
	impliesListed bool   // passing accounts need no check of listed: unlisted rows have no terms, except that of the status COMBINED
	n             int64  // the number of candidates, counted up to one more than the limit
}

// rowCost is the time to read an account's row, in candidate ids that can be
// read in that time: with a million accounts, a row takes about 13 microseconds
// and an id 0.5 to 0.7.
const rowCost = 20

// prepare makes the filters, counts their candidates and picks the driver.
func (x *finder) prepare(ctx context.Context) error {
	if err := x.makeFilters(ctx); err != nil {
		return err
	}
	most := x.limits.gathered
	if x.q.Sort == SortCreated {
		most = x.limits.sorted
	}
	for i := range x.filters {
		f := &x.filters[i]
		if f.candidates == "" {
			continue
		}
		var err error
		if f.n, err = x.queryInt(ctx, `SELECT count(*) FROM (`+f.candidates+` LIMIT ?)`, slices.Concat(f.candidatesArgs, []any{most + 1})...); err != nil {
			return err
		}
		switch {
		case f.n > most:
		case x.rarest == nil || f.n < x.rarest.n:
			x.rarest, x.second = f, x.rarest
		case x.second == nil || f.n < x.second.n:
			x.second = f
		}
	}
	if x.second != nil && (x.q.Sort != SortCreated || x.second.n > rowCost*x.rarest.n) {
		x.second = nil
	}
	x.driver = x.rarest
	switch {
	case x.rarest != nil && x.rarest.column == x.q.Sort.column():
		x.driver = nil // walk the index on the sort's column, bounded by the period
	case x.rarest == nil && x.q.Sort == SortCreated:
		for i := range x.filters {
			if f := &x.filters[i]; f.term != "" {
				x.driver = f
			}
		}
	}
	return nil
}

// queryInt executes a query for one number.
func (x *finder) queryInt(ctx context.Context, query string, args ...any) (n int64, err error) {
	query = x.expand(query, args)
	err = x.tx.QueryRowContext(ctx, query, args...).Scan(&n)
	return n, err
}

// expand replaces each # in the query with the generation's number.
func (x *finder) expand(query string, args []any) string {
	query = strings.ReplaceAll(query, "#", strconv.FormatInt(x.generation, 10))
	if x.onQuery != nil {
		x.onQuery(query, args)
	}
	return query
}

func (x *finder) makeFilters(ctx context.Context) error {
	q := x.q
	if q.Identifier != nil {
		ids, err := x.identifierIDs(ctx)
		if err != nil {
			return err
		}
		f := filter{candidates: `SELECT id AS account FROM search_# WHERE id IN (` + placeholders(len(ids)) + `)`}
		for _, id := range ids {
			f.candidatesArgs = append(f.candidatesArgs, id)
		}
		f.where, f.args = `s.id IN (`+placeholders(len(ids))+`)`, f.candidatesArgs
		x.filters = append(x.filters, f)
	}
	if q.Text != "" {
		if err := x.wordFilters(searchWords(q.Text), termName, termEmail, termPart); err != nil {
			return err
		}
	}
	if q.Name != "" {
		if err := x.wordFilters(words(q.Name), termName); err != nil {
			return err
		}
	}
	if q.Email != "" {
		address := truncateTerm(strings.TrimSpace(foldText(q.Email)))
		if address == "" {
			return ErrNoWord
		}
		x.filters = append(x.filters, hasPrefix(termEmail+address))
	}
	if q.Status != "" {
		x.filters = append(x.filters, hasTerm(termStatus+string(q.Status)))
	}
	switch {
	case q.Role != "" && q.Group != "":
		x.filters = append(x.filters, hasTerm(termRole+q.Role+"/"+q.Group))
	case q.Role != "":
		x.filters = append(x.filters, hasPrefix(termRole+q.Role+"/"))
	case q.Group != "":
		x.filters = append(x.filters, hasTerm(termGroup+q.Group))
	}
	if q.Provider != "" {
		x.filters = append(x.filters, hasTerm(termProvider+q.Provider))
	}
	if err := x.fieldFilters(ctx); err != nil {
		return err
	}
	x.periodFilter("created", q.Created)
	x.periodFilter("updated", q.Updated)
	x.periodFilter("login", q.LastLogin)
	return nil
}

// wordFilters adds a filter for each word, which passes accounts with a term of
// one of the kinds that begins with the word.
func (x *finder) wordFilters(words []string, kinds ...string) error {
	if len(words) == 0 {
		return ErrNoWord
	}
	for _, word := range words {
		var prefixes []string
		for _, kind := range kinds {
			prefixes = append(prefixes, kind+word)
		}
		x.filters = append(x.filters, hasPrefix(prefixes...))
	}
	return nil
}

// placeholders returns n placeholders for SQL's IN.
func placeholders(n int) string { return strings.TrimSuffix(strings.Repeat("?, ", n), ", ") }

// hasTerm returns a filter for accounts with a term.
func hasTerm(term string) filter {
	return filter{
		where: `instr(s.terms, ?) > 0`, args: []any{[]byte("\n" + term + "\n")},
		candidates: `SELECT account FROM terms_# WHERE term = ?`, candidatesArgs: []any{term},
		term: term, impliesListed: true,
	}
}

// hasPrefix returns a filter for accounts with a term that begins with one of
// these prefixes.
func hasPrefix(prefixes ...string) filter {
	f := filter{impliesListed: true}
	var where, candidates []string
	for _, p := range prefixes {
		where = append(where, `instr(s.terms, ?) > 0`)
		f.args = append(f.args, []byte("\n"+p))
		candidates = append(candidates, `SELECT account FROM terms_# WHERE term >= ? AND term < ?`)
		f.candidatesArgs = append(f.candidatesArgs, p, p+"\xff")
	}
	f.where, f.candidates = `(`+strings.Join(where, ` OR `)+`)`, strings.Join(candidates, ` UNION ALL `)
	return f
}

// inRange returns a filter for accounts with a term that consists of a prefix and
// size bytes that are at least from and less than to.
func inRange(prefix string, size int, from, to string) filter {
	p := []byte("\n" + prefix)
	rest := `substr(s.terms, instr(s.terms, ?) + ?, ?)`
	return filter{
		where:      `(instr(s.terms, ?) > 0 AND ` + rest + ` >= ? AND ` + rest + ` < ?)`,
		args:       []any{p, p, len(p), size, []byte(from), p, len(p), size, []byte(to)},
		candidates: `SELECT account FROM terms_# WHERE term >= ? AND term < ?`, candidatesArgs: []any{prefix + from, prefix + to},
		impliesListed: true,
	}
}

func (x *finder) fieldFilters(ctx context.Context) error {
	if len(x.q.Fields) == 0 {
		return nil
	}
	fields, err := indexedFields(ctx, x.tx, x.generation)
	if err != nil {
		return err
	}
	for _, f := range x.q.Fields {
		t, ok := fields[f.Key]
		if !ok || t != f.Type {
			return ErrNotIndexed
		}
		prefix := termField + f.Key + "="
		if f.Value != nil {
			term, err := fieldTerm(t, f.Value)
			if err != nil {
				return &FieldError{f.Key, "", err.Error()}
			}
			x.filters = append(x.filters, hasTerm(prefix+term))
			continue
		}
		if !t.Ordered() {
			return &FieldError{f.Key, "", "must have the type number or date to be searched by range"}
		}
		from, to := "", "\xff"
		if f.From != nil {
			if from, err = fieldTerm(t, f.From); err != nil {
				return &FieldError{f.Key, "from", err.Error()}
			}
		}
		if f.To != nil {
			if to, err = fieldTerm(t, f.To); err != nil {
				return &FieldError{f.Key, "to", err.Error()}
			}
		}
		x.filters = append(x.filters, inRange(prefix, map[domain.DataType]int{domain.TypeNumber: 16, domain.TypeDate: 10}[t], from, to))
	}
	return nil
}

// periodFilter adds a filter for accounts with a time within p in a column.
func (x *finder) periodFilter(column string, p Period) {
	if p == (Period{}) {
		return
	}
	from, to := int64(math.MinInt64), int64(math.MaxInt64)
	if column == "login" {
		from = 1 // 0 means that there is no last login
	}
	if !p.From.IsZero() {
		from = ceilMicro(p.From)
	}
	if !p.To.IsZero() {
		to = ceilMicro(p.To)
	}
	f := filter{column: column, where: `(s.` + column + ` >= ? AND s.` + column + ` < ?)`, args: []any{from, to}}
	if column != "created" {
		f.candidates = `SELECT place AS account FROM search_# INDEXED BY search_` + column + `_# WHERE ` + column + ` >= ? AND ` + column + ` < ?`
		f.candidatesArgs = f.args
	}
	x.filters = append(x.filters, f)
}

// ceilMicro returns the first microsecond that is not before t.
func ceilMicro(t time.Time) int64 {
	us := t.UnixMicro()
	if t.After(time.UnixMicro(us)) {
		us++
	}
	return us
}

// conditions returns the conditions of all filters except some, as SQL that
// continues a WHERE clause.
func (x *finder) conditions(except ...*filter) (where string, args []any) {
	listed := false
	for i := range x.filters {
		f := &x.filters[i]
		listed = listed || f.impliesListed
		if !slices.Contains(except, f) {
			where += ` AND ` + f.where
			args = append(args, f.args...)
		}
	}
	if !listed {
		where += ` AND s.listed`
	}
	return where, args
}

// bound is a position in the query's order.
type bound struct {
	key any // a value of the sort's column
	id  int64
}

// bounds returns the exclusive bounds of the accounts on this and later pages,
// as far as they follow from the cursor and the period of the sort's column.
func (x *finder) bounds() (lo, hi bound) {
	q := x.q
	lo, hi = bound{int64(math.MinInt64), math.MinInt64}, bound{int64(math.MaxInt64), math.MaxInt64}
	period := map[Sort]Period{SortUpdated: q.Updated, SortLastLogin: q.LastLogin}[q.Sort]
	if !period.From.IsZero() {
		lo.key = ceilMicro(period.From)
	}
	if !period.To.IsZero() {
		hi = bound{ceilMicro(period.To), math.MinInt64}
	}
	switch q.Sort {
	case SortName:
		lo.key, hi.key = "", "\xff"
	case SortCreated:
		if !q.Created.From.IsZero() {
			lo.id = idAt(q.Created.From) - 1
		}
		if !q.Created.To.IsZero() {
			hi.id = idAt(q.Created.To.Add(time.Millisecond))
		}
	}
	if q.After == nil {
		return lo, hi
	}
	after := bound{q.After.Time, q.After.ID}
	if q.Sort == SortName {
		after.key = q.After.Name
	}
	if q.Descending {
		return lo, after
	}
	return after, hi
}

// page returns the subs of a page, and the place where the next page begins.
func (x *finder) page(ctx context.Context) (subs []string, next *Place, err error) {
	if column := x.q.Sort.column(); x.driver != nil && column != "id" {
		where, args := x.conditions(x.driver)
		inside, ends := x.within(`s.`+column, `s.place`)
		places, found, err := x.places(ctx, `SELECT s.sub, s.`+column+`, s.id FROM search_# s NOT INDEXED WHERE s.id IN (`+x.driver.candidates+`) AND `+inside+where+x.order(`s.`+column, `s.place`)+` LIMIT ?`,
			slices.Concat(x.driver.candidatesArgs, ends, args, []any{x.q.Limit + 1})...)
		subs, next = x.trimPage(found, places)
		return subs, next, err
	}
	where, args := x.conditions(x.driver, x.second)
	walk, walkArgs := x.walk()
	walked := x.limits.walked
	if x.driver != nil && where == "" {
		walked = min(walked, 4*int64(x.q.Limit+1)) // all candidates pass, and few are duplicates
	}
	places, found, err := x.places(ctx, `SELECT s.sub, w.key, w.id FROM (`+walk+` LIMIT ?) w CROSS JOIN search_# s ON s.id = w.id WHERE true`+where,
		slices.Concat(walkArgs, []any{walked}, args)...)
	if err != nil {
		return nil, nil, err
	}
	if subs, next = x.trimPage(found, places); next != nil || x.driver != nil && x.driver == x.rarest && x.driver.n <= walked {
		return subs, next, nil
	}
	// Either there are no more accounts to walk, or this page has reached the
	// limit; then the next page begins at the last account it has walked.
	last, _, err := x.places(ctx, `SELECT '', key, id FROM (`+walk+` LIMIT 1 OFFSET ?)`, slices.Concat(walkArgs, []any{walked - 1})...)
	if err != nil || len(last) == 0 {
		return subs, nil, err
	}
	return subs, &last[0], nil
}

// walk returns SQL for the accounts to walk, in the query's order. Duplicates
// are adjacent.
func (x *finder) walk() (sql string, args []any) {
	column := x.q.Sort.column()
	switch {
	case x.driver != nil:
		inside, ends := x.within("", `account`)
		sql, args = `SELECT account AS id, account AS key FROM (`+x.driver.candidates+`) WHERE `+inside, slices.Concat(x.driver.candidatesArgs, ends)
		if x.second != nil {
			sql, args = sql+` AND account IN (`+x.second.candidates+`)`, slices.Concat(args, x.second.candidatesArgs)
		}
		if x.driver.term != "" {
			return sql + x.order("", `account`), args
		}
		// The + keeps SQLite from sorting each part of the union and merging
		// them: with LIMIT, it then keeps only the first rows while it sorts.
		return sql + x.order("", `+account`), args
	case column == "id":
		inside, ends := x.within("", `id`)
		return `SELECT id, id AS key FROM search_# WHERE ` + inside + x.order("", `id`), ends
	}
	inside, ends := x.within(column, `place`)
	return `SELECT place AS id, ` + column + ` AS key FROM search_# INDEXED BY search_` + column + `_# WHERE ` + inside + x.order(column, `place`), ends
}

// within returns an SQL condition that holds within the bounds. key and id are
// the columns with the sort's key and the id.
func (x *finder) within(key, id string) (where string, args []any) {
	lo, hi := x.bounds()
	if x.q.Sort == SortCreated {
		return id + ` > ? AND ` + id + ` < ?`, []any{lo.id, hi.id}
	}
	return `(` + key + `, ` + id + `) > (?, ?) AND (` + key + `, ` + id + `) < (?, ?)`, []any{lo.key, lo.id, hi.key, hi.id}
}

// order returns an ORDER BY clause on the same columns.
func (x *finder) order(key, id string) string {
	direction := ` ASC`
	if x.q.Descending {
		direction = ` DESC`
	}
	if x.q.Sort == SortCreated {
		return ` ORDER BY ` + id + direction
	}
	return ` ORDER BY ` + key + direction + `, ` + id + direction
}

// trimPage removes the account beyond the limit from a page. If there is one,
// there is a next page, and trimPage returns the place where it begins.
func (x *finder) trimPage(subs []string, places []Place) ([]string, *Place) {
	if len(subs) <= x.q.Limit {
		return subs, nil
	}
	return subs[:x.q.Limit], &places[x.q.Limit-1]
}

// places executes a query for subs, sort keys and ids. It drops duplicates and
// reads at most one account more than the page's limit.
func (x *finder) places(ctx context.Context, query string, args ...any) (places []Place, subs []string, err error) {
	rows, err := x.tx.QueryContext(ctx, x.expand(query, args), args...)
	if err != nil {
		return nil, nil, err
	}
	defer rows.Close()
	for len(places) <= x.q.Limit && rows.Next() {
		var p Place
		var sub string
		var key any = &p.Time
		if x.q.Sort == SortName {
			key = &p.Name
		}
		if err := rows.Scan(&sub, key, &p.ID); err != nil {
			return nil, nil, err
		}
		if n := len(places); n == 0 || places[n-1].ID != p.ID {
			places, subs = append(places, p), append(subs, sub)
		}
	}
	return places, subs, rows.Err()
}

// count returns the number of accounts on all pages if it is cheap to compute,
// and otherwise an upper bound.
func (x *finder) count(ctx context.Context) (n int64, exact bool, err error) {
	where, args := x.conditions(x.rarest)
	if f := x.rarest; f != nil {
		switch {
		case where == "" && f.term != "":
			return f.n, true, nil
		case where == "" && f.n > x.limits.distinct:
			return f.n, false, nil
		case where == "":
			n, err = x.queryInt(ctx, `SELECT count(DISTINCT account) FROM (`+f.candidates+`)`, f.candidatesArgs...)
		case f.n > x.limits.counted:
			return f.n, false, nil
		default:
			n, err = x.queryInt(ctx, `SELECT count(*) FROM search_# s NOT INDEXED WHERE s.id IN (`+f.candidates+`)`+where, slices.Concat(f.candidatesArgs, args)...)
		}
		return n, err == nil, err
	}
	// Rows are never deleted, so the highest id is their number.
	err = x.tx.QueryRowContext(ctx, fmt.Sprintf(`SELECT coalesce(max(id), 0) FROM accounts_%d`, x.accounts)).Scan(&n)
	if err != nil || n > x.limits.counted {
		return n, false, err
	}
	n, err = x.queryInt(ctx, `SELECT count(*) FROM search_# s NOT INDEXED WHERE true`+where, args...)
	return n, err == nil, err
}
