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

// Query selects accounts. An account must match all members that are set; the
// zero Query matches all accounts. Erased accounts are never found, and combined
// ones only if Status is domain.StatusCombined.
type Query struct {
	Identifier []domain.Candidate // the account has one of these; nil: any account; empty: none

	Text  string // each word begins a word of a name, an e-mail address, or a word of one
	Name  string // each word begins a word of a name
	Email string // the beginning of an e-mail address

	Status   domain.Status
	Group    string // the account is a member of this group or of one below it
	Role     string // the account has this role in Group, or in any group
	Provider string // of an identity of the account

	Fields []FieldQuery

	Created, Updated, LastLogin Period

	Hidden domain.Hidden // Identifier must not match these fields

	Sort       Sort // default SortCreated
	Descending bool
	Limit      int    // the maximum number of accounts on the page
	After      *Place // Found.Next of the previous page; nil: the first page
}

// FieldQuery selects accounts by a custom field.
type FieldQuery struct {
	Key   string
	Type  domain.DataType // as configured
	Value jsontext.Value  // the field equals this, or has it as an element

	// Without Value: the field is a number or date that is at least From and
	// less than To. Either may be missing.
	From, To jsontext.Value
}

// Period is the time from From up to, but not including, To. A zero time means
// no bound.
type Period struct{ From, To time.Time }

// Sort is the order of found accounts.
type Sort string

// The sorts. Accounts with equal keys are in the order of their creation.
const (
	SortCreated   Sort = "createdTime" // in milliseconds
	SortUpdated   Sort = "updatedTime"
	SortLastLogin Sort = "lastLoggedInTime" // accounts without a login sort before all others
	SortName      Sort = "name"             // family name, then given name, of the first identity that has either
)

// Sorts lists every sort.
var Sorts = []Sort{SortCreated, SortUpdated, SortLastLogin, SortName}

// column returns the column of the index that has the sort's key.
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

// Place is the position in a query's order at which a page ends. Name is
// personal data.
type Place struct {
	Name string // the key of SortName
	Time int64  // the key of the other sorts; Unix time in microseconds
	ID   int64
}

// Found is a page of accounts.
type Found struct {
	Accounts []AccountRow // the current rows of the account view
	Next     *Place       // Query.After for the next page; nil: this is the last

	// Count is the number of accounts on all pages if Exact, and otherwise an
	// upper bound.
	Count int64
	Exact bool

	Position eventstore.Position // of the last event the index has applied
}

// FieldError reports an invalid FieldQuery.
type FieldError struct {
	Key    string
	Member string // "" for Value or the field itself, "from" or "to"
	Rule   string // the rule it breaks, like "must be a number"
}

func (e *FieldError) Error() string { return "projections: search: a custom field: " + e.Rule }

// ErrNotIndexed is returned by Find if the index does not have a custom field
// yet, or has it with another data type.
var ErrNotIndexed = errors.New("projections: the field is not in the search index yet")

// ErrNoWord is returned by Find if a text of the query contains no word.
var ErrNoWord = errors.New("projections: the search text contains no word")

// Find returns a page of accounts. Its work is bounded: if it has to check many
// accounts to find few, the page may be short or even empty although Next is not
// nil.
func (s *Search) Find(ctx context.Context, q Query) (Found, error) {
	// As in Accounts.one, a cancelable ctx would cost more than the statements.
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
	x := finder{tx: tx, q: q, accounts: accounts, limits: s.limits, onQuery: s.onQuery}
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

// rows reads the accounts from the account view. The view may be ahead of the
// index, so rows omits accounts erased meanwhile.
func (x *finder) rows(ctx context.Context, subs []string) ([]AccountRow, error) {
	if len(subs) == 0 {
		return nil, nil
	}
	args := make([]any, len(subs))
	for i, sub := range subs {
		args[i] = sub
	}
	rows, err := x.tx.QueryContext(ctx, fmt.Sprintf(accountColumns+` WHERE a.sub IN (`+placeholders(len(subs))+`)`, x.accounts), args...)
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

// identifierIDs returns the ids in the index of the accounts that have one of
// the query's identifiers.
func (x *finder) identifierIDs(ctx context.Context) ([]int64, error) {
	var accounts []domain.Account
	for _, c := range x.q.Identifier {
		found, err := x.identified(ctx, c)
		if err != nil {
			return nil, err
		}
		for _, a := range found {
			leads := func(u domain.UserID) bool { return u.Type == c.Kind && u.Key() == c.Key }
			if slices.ContainsFunc(a.Without(x.q.Hidden).UserIDs, leads) {
				accounts = append(accounts, a)
			}
		}
	}
	ids := []int64{}
	for _, a := range accounts {
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

// identified returns the accounts that have an identifier.
func (x *finder) identified(ctx context.Context, c domain.Candidate) (found []domain.Account, err error) {
	rows, err := x.tx.QueryContext(ctx, fmt.Sprintf(identified, x.accounts), string(c.Kind), c.Key)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		row, err := scanAccount(rows)
		if err != nil {
			return nil, err
		}
		a, err := row.Account()
		if err != nil {
			return nil, err
		}
		found = append(found, a)
	}
	return found, rows.Err()
}
