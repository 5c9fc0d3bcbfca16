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

// searchLimits is how much a query looks at.
type searchLimits struct {
	// sorted is how many ids of candidates are put in order at most, gathered
	// how many accounts are read to put them in another order.
	sorted, gathered int64
	walked           int64 // accounts that are looked at on the way
	counted          int64 // accounts that are looked at to count those that pass several filters
	distinct         int64 // ids of candidates that are looked at to count each once
}

// defaultLimits keep the worst query on a million accounts near 20 ms.
var defaultLimits = searchLimits{sorted: 10_000, gathered: 1000, walked: 4000, counted: 300, distinct: 2000}

// finder answers one query in one transaction.
//
// It goes along accounts in the order asked for, holds each, by its own row,
// against the filters, and ends when the page is full. What it goes along is
// the driver: the filter with the fewest accounts. Sorted by creation, those of
// one term are in order, and those of other filters are put in order, unless
// they are too many; then it goes along any one term, or else along all
// accounts. Sorted otherwise, the driver's accounts are gathered, or if they
// are too many it goes along all accounts.
//
// An account's row costs as much as the ids of many candidates. So where the
// candidates of two filters are few, it is their ids that are compared.
type finder struct {
	tx                   *sql.Tx
	q                    Query
	limits               searchLimits
	generation, accounts int64

	filters []filter
	rarest  *filter // one of filters, the accounts of which are few; nil: there is none
	second  *filter // another such that is asked as a whole, together with the driver; nil: there is none
	driver  *filter // one of filters; nil: all accounts

	asked func(query string, args []any) // every statement; tests look at its plan
}

// filter is a condition that accounts pass.
type filter struct {
	where string // SQL on search_ as s
	args  []any

	// candidates is SQL for the ids of all accounts that pass, some of them
	// twice, as a column account. "": nobody knows but by looking.
	candidates string
	from       []any

	term    string // to have this is all it asks; "": it asks otherwise
	column  string // a period of this is all it asks; "": it asks otherwise
	implies bool   // whoever passes is listed, or asked for although they are not
	n       int64  // of candidates, as far as they were counted
}

// rowCost is how many ids of candidates take as long as one account's row: with
// a million accounts 0.5 to 0.7 and 13 microseconds, as measured.
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
		if f.n, err = x.number(ctx, `SELECT count(*) FROM (`+f.candidates+` LIMIT ?)`, slices.Concat(f.from, []any{most + 1})...); err != nil {
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
		x.driver = nil // all accounts are in the order asked for, and the way is from one end of the period to the other
	case x.rarest == nil && x.q.Sort == SortCreated:
		for i := range x.filters {
			if f := &x.filters[i]; f.term != "" {
				x.driver = f
			}
		}
	}
	return nil
}

// number asks for one. In all SQL here # is the generation.
func (x *finder) number(ctx context.Context, query string, args ...any) (n int64, err error) {
	query = x.text(query, args)
	err = x.tx.QueryRowContext(ctx, query, args...).Scan(&n)
	return n, err
}

func (x *finder) text(query string, args []any) string {
	query = strings.ReplaceAll(query, "#", strconv.FormatInt(x.generation, 10))
	if x.asked != nil {
		x.asked(query, args)
	}
	return query
}

func (x *finder) makeFilters(ctx context.Context) error {
	q := x.q
	if q.Identifier != nil {
		ids, err := x.identified(ctx)
		if err != nil {
			return err
		}
		f := filter{candidates: `SELECT id AS account FROM search_# WHERE id IN (` + marks(len(ids)) + `)`}
		for _, id := range ids {
			f.from = append(f.from, id)
		}
		f.where, f.args = `s.id IN (`+marks(len(ids))+`)`, f.from
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
		address := cut(strings.TrimSpace(fold(q.Email)))
		if address == "" {
			return ErrNoWord
		}
		x.filters = append(x.filters, beginning(termEmail+address))
	}
	if q.Status != "" {
		x.filters = append(x.filters, having(termStatus+string(q.Status)))
	}
	switch {
	case q.Role != "" && q.Group != "":
		x.filters = append(x.filters, having(termRole+q.Role+"/"+q.Group))
	case q.Role != "":
		x.filters = append(x.filters, beginning(termRole+q.Role+"/"))
	case q.Group != "":
		x.filters = append(x.filters, having(termGroup+q.Group))
	}
	if q.Provider != "" {
		x.filters = append(x.filters, having(termProvider+q.Provider))
	}
	if err := x.fieldFilters(ctx); err != nil {
		return err
	}
	x.periodFilter("created", q.Created)
	x.periodFilter("updated", q.Updated)
	x.periodFilter("login", q.LastLogin)
	return nil
}

// wordFilters pass who has, for each word, a term of one of the kinds that
// begins with it.
func (x *finder) wordFilters(all []string, kinds ...string) error {
	if len(all) == 0 {
		return ErrNoWord
	}
	for _, word := range all {
		var prefixes []string
		for _, kind := range kinds {
			prefixes = append(prefixes, kind+word)
		}
		x.filters = append(x.filters, beginning(prefixes...))
	}
	return nil
}

// marks are n placeholders.
func marks(n int) string { return strings.TrimSuffix(strings.Repeat("?, ", n), ", ") }

// having passes who has a term.
func having(term string) filter {
	return filter{
		where: `instr(s.terms, ?) > 0`, args: []any{[]byte("\n" + term + "\n")},
		candidates: `SELECT account FROM terms_# WHERE term = ?`, from: []any{term},
		term: term, implies: true,
	}
}

// beginning passes who has a term that begins like one of these.
func beginning(prefixes ...string) filter {
	f := filter{implies: true}
	var where, candidates []string
	for _, p := range prefixes {
		where = append(where, `instr(s.terms, ?) > 0`)
		f.args = append(f.args, []byte("\n"+p))
		candidates = append(candidates, `SELECT account FROM terms_# WHERE term >= ? AND term < ?`)
		f.from = append(f.from, p, p+"\xff")
	}
	f.where, f.candidates = `(`+strings.Join(where, ` OR `)+`)`, strings.Join(candidates, ` UNION ALL `)
	return f
}

// between passes who has a term that begins with a prefix and goes on with
// size bytes that are at least from and less than to.
func between(prefix string, size int, from, to string) filter {
	p := []byte("\n" + prefix)
	rest := `substr(s.terms, instr(s.terms, ?) + ?, ?)`
	return filter{
		where:      `(instr(s.terms, ?) > 0 AND ` + rest + ` >= ? AND ` + rest + ` < ?)`,
		args:       []any{p, p, len(p), size, []byte(from), p, len(p), size, []byte(to)},
		candidates: `SELECT account FROM terms_# WHERE term >= ? AND term < ?`, from: []any{prefix + from, prefix + to},
		implies: true,
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
			x.filters = append(x.filters, having(prefix+term))
			continue
		}
		if !t.Ordered() {
			return &FieldError{f.Key, "", "ranges are of numbers and dates"}
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
		x.filters = append(x.filters, between(prefix, map[domain.DataType]int{domain.TypeNumber: 16, domain.TypeDate: 10}[t], from, to))
	}
	return nil
}

// periodFilter passes whose time is in a period.
func (x *finder) periodFilter(column string, p Period) {
	if p == (Period{}) {
		return
	}
	from, to := int64(math.MinInt64), int64(math.MaxInt64)
	if column == "login" {
		from = 1 // 0 is no time
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
		f.from = f.args
	}
	x.filters = append(x.filters, f)
}

// ceilMicro is the first microsecond that is not before t.
func ceilMicro(t time.Time) int64 {
	us := t.UnixMicro()
	if t.After(time.UnixMicro(us)) {
		us++
	}
	return us
}

// conditions are all but some filters', as SQL that goes on after others.
func (x *finder) conditions(but ...*filter) (where string, args []any) {
	listed := false
	for i := range x.filters {
		f := &x.filters[i]
		listed = listed || f.implies
		if !slices.Contains(but, f) {
			where += ` AND ` + f.where
			args = append(args, f.args...)
		}
	}
	if !listed {
		where += ` AND s.listed`
	}
	return where, args
}

// bound is a place between accounts in the order asked for.
type bound struct {
	key any // of the sort's column
	id  int64
}

// bounds are what lies around the accounts of the pages to come.
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

// page returns the subs of a page and where the next one begins.
func (x *finder) page(ctx context.Context) (subs []string, next *Place, err error) {
	if column := x.q.Sort.column(); x.driver != nil && column != "id" {
		where, args := x.conditions(x.driver)
		inside, ends := x.within(`s.`+column, `s.place`)
		places, found, err := x.places(ctx, `SELECT s.sub, s.`+column+`, s.id FROM search_# s NOT INDEXED WHERE s.id IN (`+x.driver.candidates+`) AND `+inside+where+x.order(`s.`+column, `s.place`)+` LIMIT ?`,
			slices.Concat(x.driver.from, ends, args, []any{x.q.Limit + 1})...)
		subs, next = x.fit(found, places)
		return subs, next, err
	}
	where, args := x.conditions(x.driver, x.second)
	way, from := x.way()
	walked := x.limits.walked
	if x.driver != nil && where == "" {
		walked = min(walked, 4*int64(x.q.Limit+1)) // all of them pass, and few come twice
	}
	places, found, err := x.places(ctx, `SELECT s.sub, w.key, w.id FROM (`+way+` LIMIT ?) w CROSS JOIN search_# s ON s.id = w.id WHERE true`+where,
		slices.Concat(from, []any{walked}, args)...)
	if err != nil {
		return nil, nil, err
	}
	if subs, next = x.fit(found, places); next != nil || x.driver != nil && x.driver == x.rarest && x.driver.n <= walked {
		return subs, next, nil
	}
	// The way has ended, or it is too long to go to its end at once.
	last, _, err := x.places(ctx, `SELECT '', key, id FROM (`+way+` LIMIT 1 OFFSET ?)`, slices.Concat(from, []any{walked - 1})...)
	if err != nil || len(last) == 0 {
		return subs, nil, err
	}
	return subs, &last[0], nil
}

// way is SQL for the accounts to go along, in their order; some come twice, one
// after the other.
func (x *finder) way() (sql string, from []any) {
	column := x.q.Sort.column()
	switch {
	case x.driver != nil:
		inside, ends := x.within("", `account`)
		sql, from = `SELECT account AS id, account AS key FROM (`+x.driver.candidates+`) WHERE `+inside, slices.Concat(x.driver.from, ends)
		if x.second != nil {
			sql, from = sql+` AND account IN (`+x.second.candidates+`)`, slices.Concat(from, x.second.from)
		}
		if x.driver.term != "" {
			return sql + x.order("", `account`), from
		}
		// SQLite finds the first few of an expression without putting all in
		// order, but of columns it merges what it has sorted.
		return sql + x.order("", `+account`), from
	case column == "id":
		inside, ends := x.within("", `id`)
		return `SELECT id, id AS key FROM search_# WHERE ` + inside + x.order("", `id`), ends
	}
	inside, ends := x.within(column, `place`)
	return `SELECT place AS id, ` + column + ` AS key FROM search_# INDEXED BY search_` + column + `_# WHERE ` + inside + x.order(column, `place`), ends
}

// within is SQL on the columns of a table that have the sort's key and the id:
// what is within the bounds.
func (x *finder) within(key, id string) (where string, args []any) {
	lo, hi := x.bounds()
	if x.q.Sort == SortCreated {
		return id + ` > ? AND ` + id + ` < ?`, []any{lo.id, hi.id}
	}
	return `(` + key + `, ` + id + `) > (?, ?) AND (` + key + `, ` + id + `) < (?, ?)`, []any{lo.key, lo.id, hi.key, hi.id}
}

// order is SQL on the same columns: their order.
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

// fit takes the one account too many off a page: it shows that there is
// another page.
func (x *finder) fit(subs []string, places []Place) ([]string, *Place) {
	if len(subs) <= x.q.Limit {
		return subs, nil
	}
	return subs[:x.q.Limit], &places[x.q.Limit-1]
}

// places asks for subs, keys of the sort and ids, and takes one more than fit on
// a page.
func (x *finder) places(ctx context.Context, query string, args ...any) (places []Place, subs []string, err error) {
	rows, err := x.tx.QueryContext(ctx, x.text(query, args), args...)
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

// count says how many accounts there are, if that takes little, and otherwise
// how many there are at most.
func (x *finder) count(ctx context.Context) (n int64, exact bool, err error) {
	where, args := x.conditions(x.rarest)
	if f := x.rarest; f != nil {
		switch {
		case where == "" && f.term != "":
			return f.n, true, nil
		case where == "" && f.n > x.limits.distinct:
			return f.n, false, nil
		case where == "":
			n, err = x.number(ctx, `SELECT count(DISTINCT account) FROM (`+f.candidates+`)`, f.from...)
		case f.n > x.limits.counted:
			return f.n, false, nil
		default:
			n, err = x.number(ctx, `SELECT count(*) FROM search_# s NOT INDEXED WHERE s.id IN (`+f.candidates+`)`+where, slices.Concat(f.from, args)...)
		}
		return n, err == nil, err
	}
	// Rows are never deleted, so the highest number is their count.
	err = x.tx.QueryRowContext(ctx, fmt.Sprintf(`SELECT coalesce(max(id), 0) FROM accounts_%d`, x.accounts)).Scan(&n)
	if err != nil || n > x.limits.counted {
		return n, false, err
	}
	n, err = x.number(ctx, `SELECT count(*) FROM search_# s NOT INDEXED WHERE true`+where, args...)
	return n, err == nil, err
}
