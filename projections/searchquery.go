package projections

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"accountledger/domain"
	"accountledger/eventstore"
)

// Query says which accounts are asked for. What is set must all be so; the
// zero Query asks for all. Erased accounts are never found, and combined ones
// only by their status.
type Query struct {
	Identifier []domain.Candidate // any of them leads to the account; nil: any account, but empty: none

	Text  string // words: each begins a word of a name, or an e-mail address or a word of one
	Name  string // words: each begins a word of a name
	Email string // an e-mail address begins so

	Status   domain.Status
	Group    string // of which the account is a member, or of one below it
	Role     string // that it has in Group, or in any
	Provider string // of an identity

	Fields []FieldQuery

	Created, Updated, LastLogin Period

	Hidden domain.Hidden // what must not play a part in Identifier

	Sort       Sort // default SortCreated
	Descending bool
	Limit      int    // accounts at most
	After      *Place // where an earlier page of the same query ended; nil: begin
}

// FieldQuery asks for accounts by a custom field.
type FieldQuery struct {
	Key   string
	Type  domain.DataType // as the configuration has it
	Value jsontext.Value  // it is this, or has it as an element

	// Without a Value: a number or date that is at least From and less than To.
	// Either may be left out.
	From, To jsontext.Value
}

// Period is from a time to another, which is not part of it. Zero: open.
type Period struct{ From, To time.Time }

// Sort is what accounts are sorted by.
type Sort string

// The sorts. Accounts that are alike in it come in the order of their creation.
const (
	SortCreated   Sort = "createdTime" // to the millisecond
	SortUpdated   Sort = "updatedTime"
	SortLastLogin Sort = "lastLoggedInTime" // those without one are before all others
	SortName      Sort = "name"             // family name, then given name, of the first identity that has one
)

// Sorts lists every sort.
var Sorts = []Sort{SortCreated, SortUpdated, SortLastLogin, SortName}

// column is that of the index which a sort goes by.
func (s Sort) column() string {
	switch s {
	case SortUpdated:
		return "updated"
	case SortLastLogin:
		return "login"
	case SortName:
		return "name"
	}
	return "id"
}

// Place is where a page ends: after an account, or where one would be. Name is
// personal.
type Place struct {
	Name string // of SortName
	Time int64  // of the others; Unix time in microseconds
	ID   int64
}

// Found is a page of accounts.
type Found struct {
	Accounts []AccountRow // as they are now, not decoded
	Next     *Place       // for the next page; nil: there is none

	// Count is how many accounts there are on all pages, or, where that is
	// not Exact, how many there are at most.
	Count int64
	Exact bool

	Position eventstore.Position // up to which the index knows the log
}

// FieldError refuses a FieldQuery.
type FieldError struct {
	Key    string
	Member string // of it: "", "from" or "to"
	Rule   string // that it breaks
}

func (e *FieldError) Error() string { return "projections: search: a custom field: " + e.Rule }

// ErrNotIndexed is returned by Find for a custom field that is not in the
// index yet, or not with its present data type.
var ErrNotIndexed = errors.New("projections: the field is not in the search index yet")

// ErrNoWord is returned by Find where a text has nothing to search by.
var ErrNoWord = errors.New("projections: nothing to search by")

// Find returns a page of accounts. The work it does has a bound: where much
// has to be looked at for few accounts, the page is shorter than it might be,
// even empty, and Next says where to go on.
func (s *Search) Find(ctx context.Context, q Query) (Found, error) {
	// Its statements take milliseconds; see Accounts.one.
	if err := ctx.Err(); err != nil {
		return Found{}, err
	}
	found, err := s.find(context.WithoutCancel(ctx), q)
	if err != nil {
		return Found{}, fmt.Errorf("projections: search: %w", err)
	}
	return found, nil
}

func (s *Search) find(ctx context.Context, q Query) (found Found, err error) {
	if q.Sort == "" {
		q.Sort = SortCreated
	}
	tx, accounts, _, err := s.views.accounts.snapshot(ctx)
	if err != nil {
		return found, err
	}
	defer tx.Rollback()
	x := finder{tx: tx, q: q, accounts: accounts, limits: s.limits, asked: s.asked}
	if x.generation, found.Position, err = liveGeneration(ctx, tx, SearchView); err != nil {
		return found, err
	}
	if err = x.prepare(ctx); err != nil {
		return found, err
	}
	subs, next, err := x.page(ctx)
	if err != nil {
		return found, err
	}
	found.Next = next
	if found.Count, found.Exact, err = x.count(ctx); err != nil {
		return found, err
	}
	found.Accounts, err = x.rows(ctx, subs)
	return found, err
}

// rows reads the accounts from the account view, which may know more than the
// index: who has ended since is left out.
func (x *finder) rows(ctx context.Context, subs []string) ([]AccountRow, error) {
	if len(subs) == 0 {
		return nil, nil
	}
	args := make([]any, len(subs))
	for i, sub := range subs {
		args[i] = sub
	}
	rows, err := x.tx.QueryContext(ctx, fmt.Sprintf(accountColumns+` WHERE a.sub IN (`+marks(len(subs))+`)`, x.accounts), args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	found := make(map[string]AccountRow, len(subs))
	for rows.Next() {
		row, err := scanAccount(rows)
		if err != nil {
			return nil, err
		}
		found[row.Sub] = row
	}
	page := make([]AccountRow, 0, len(subs))
	for _, sub := range subs {
		if row, ok := found[sub]; ok && row.ErasedTime.IsZero() {
			page = append(page, row)
		}
	}
	return page, rows.Err()
}

// identified are the ids of the accounts that the identifiers lead to.
func (x *finder) identified(ctx context.Context) ([]int64, error) {
	ids := []int64{}
	for _, c := range x.q.Identifier {
		row, err := scanAccount(x.tx.QueryRowContext(ctx, fmt.Sprintf(lookupAccount, x.accounts), string(c.Kind), c.Key))
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		a, err := row.Account()
		if err != nil {
			return nil, err
		}
		leads := func(u domain.UserID) bool { return u.Type == c.Kind && u.Key() == c.Key }
		if !slices.ContainsFunc(a.Without(x.q.Hidden).UserIDs, leads) {
			continue
		}
		for id := searchID(a.Sub, a.CreatedTime); ; id++ {
			var sub string
			err := x.tx.QueryRowContext(ctx, fmt.Sprintf(`SELECT sub FROM search_%d WHERE id = ?`, x.generation), id).Scan(&sub)
			if errors.Is(err, sql.ErrNoRows) {
				break // not indexed yet
			}
			if err != nil {
				return nil, err
			}
			if sub == a.Sub {
				ids = append(ids, id)
				break
			}
		}
	}
	return ids, nil
}
