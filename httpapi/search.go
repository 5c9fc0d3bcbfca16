package httpapi

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/projections"
)

func (s *server) searchRoutes() {
	handle(s, route{
		method: "GET", path: "/v1/accounts", name: "listAccounts", scope: scopeAccountsRead, status: 200, answer: accountPage{}, paged: true,
		summary: "List accounts",
		text: "Filters accounts by criteria that are not personal data, which does not belong in a URL; use POST /v1/accounts/search to search by name and similar. Accounts must match all given filters. Erased accounts are never listed; merged accounts only with status=COMBINED. " +
			"A page may be short or empty although more accounts follow. Paging is stable: an account that does not change appears once.",
		codes: codes(onQuery, []domain.Code{domain.CodeInvalidCursor}),
	}, s.listAccounts)
	handle(s, route{
		method: "POST", path: "/v1/accounts/search", name: "searchAccounts", scope: scopeAccountsRead, status: 200, answer: accountPage{},
		summary: "Search accounts",
		text: "Filters accounts by the criteria of GET /v1/accounts and by names, e-mail addresses, identifiers and searchable custom fields. The criteria are sent in the body, which keeps them out of access logs. " +
			"To get the next page, repeat the request with after set to next.",
		example: `{"q":"lovelace ada@ex","group":"EUROPE","customFields":{"tier":"gold","visits":{"from":10}},"sort":"lastLoggedInTime","limit":50}`,
		codes:   codes(onQuery, []domain.Code{domain.CodeInvalidCursor, codeFieldNotIndexed}),
	}, s.searchAccounts)
}

// Criteria are the filters of a list of accounts. None of them is personal data.
type Criteria struct {
	Status        domain.Status `query:"status" json:"status,omitzero" enum:"PENDING,VERIFIED,DECLINED,COMBINED,DELETED" doc:"Only accounts with this status."`
	Group         string        `query:"group" json:"group,omitzero" maxLength:"64" doc:"Only members of this group or of a group below it." example:"EUROPE"`
	Role          string        `query:"role" json:"role,omitzero" maxLength:"64" doc:"Only accounts with this role: in the given group, or in any group if group is absent." example:"ADMIN"`
	Provider      string        `query:"provider" json:"provider,omitzero" maxLength:"64" doc:"Only accounts with an identity of this provider." example:"google"`
	CreatedFrom   time.Time     `query:"created_from" json:"createdFrom,omitzero" doc:"Only accounts created at or after this time."`
	CreatedTo     time.Time     `query:"created_to" json:"createdTo,omitzero" doc:"Only accounts created before this time."`
	UpdatedFrom   time.Time     `query:"updated_from" json:"updatedFrom,omitzero" doc:"Only accounts whose last event was recorded at or after this time."`
	UpdatedTo     time.Time     `query:"updated_to" json:"updatedTo,omitzero" doc:"Only accounts whose last event was recorded before this time."`
	LastLoginFrom time.Time     `query:"last_login_from" json:"lastLoginFrom,omitzero" doc:"Only accounts whose last login was at or after this time."`
	LastLoginTo   time.Time     `query:"last_login_to" json:"lastLoginTo,omitzero" doc:"Only accounts whose last login was before this time. Accounts that never logged in are excluded."`

	Sort  projections.Sort `query:"sort" json:"sort,omitzero" enum:"createdTime,updatedTime,lastLoggedInTime,name" default:"createdTime" doc:"The sort key; default createdTime."`
	Order string           `query:"order" json:"order,omitzero" enum:"asc,desc" doc:"Sort order. Default: desc for times, asc for names."`
	Limit int              `query:"limit" json:"limit,omitzero" minimum:"1" maximum:"1000" default:"100" doc:"Maximum number of accounts on a page; default 100."`
	After string           `query:"after" json:"after,omitzero" maxLength:"1000" doc:"The next cursor of an earlier page of the same search. Default: the first page."`
}

type listAccountsInput struct {
	Query
	Criteria
}

type searchAccountsInput struct {
	Query
	JSON[accountSearch]
}

// accountSearch is the body of POST /v1/accounts/search.
type accountSearch struct {
	Criteria
	Q            string                    `json:"q,omitzero" maxLength:"200" doc:"Words to search for. Each must begin a word of a name, an e-mail address, or a word of an e-mail address. Case and accents are ignored."`
	Name         string                    `json:"name,omitzero" maxLength:"200" doc:"Words to search for. Each must begin a word of a name."`
	Email        string                    `json:"email,omitzero" maxLength:"320" doc:"The beginning of an e-mail address."`
	Identifier   *identifier               `json:"identifier,omitzero" doc:"An identifier of the account, matched exactly."`
	CustomFields map[string]jsontext.Value `json:"customFields,omitzero" maxProperties:"10" doc:"Searchable custom fields, by field key. A value matches accounts that have it, also as an array element; a NUMBER or date also takes an object with from and to."`
}

// accountPage is a page of accounts.
type accountPage struct {
	Accounts []domain.Account `json:"accounts" doc:"The accounts in their current state, in the requested order."`
	Count    accountCount     `json:"count" doc:"How many accounts the search matches on all pages."`
	Next     *string          `json:"next" doc:"Cursor of the next page; null on the last page."`
}

// accountCount is the number of accounts on all pages.
type accountCount struct {
	Value int64 `json:"value" doc:"The number of accounts; an upper bound unless exact is true."`
	Exact bool  `json:"exact" doc:"Whether value is exact. A search that combines several filters may return an upper bound."`
}

func (s *server) listAccounts(ctx context.Context, c *call, in *listAccountsInput) (*answer, error) {
	page, err := s.searchPage(ctx, c, in.Query, accountSearch{Criteria: in.Criteria})
	if err != nil {
		return nil, err
	}
	if page.next != nil {
		page.answer.next(c, *page.next)
	}
	return page.answer, nil
}

func (s *server) searchAccounts(ctx context.Context, c *call, in *searchAccountsInput) (*answer, error) {
	if err := in.value.check(); err != nil {
		return nil, err
	}
	page, err := s.searchPage(ctx, c, in.Query, in.value)
	return page.answer, err
}

// maxWords limits the words of a search: each is a condition of the query.
const maxWords = 10

// check validates the body like huma validates the parameters of the list.
func (b accountSearch) check() error {
	var faults []domain.Fault
	add := func(wrong bool, pointer, detail string) {
		if wrong {
			faults = append(faults, domain.Fault{Pointer: pointer, Detail: detail})
		}
	}
	add(b.Status != "" && !slices.Contains(domain.Statuses, b.Status), "/status", "must be PENDING, VERIFIED, DECLINED, COMBINED or DELETED")
	add(b.Sort != "" && !slices.Contains(projections.Sorts, b.Sort), "/sort", "must be createdTime, updatedTime, lastLoggedInTime or name")
	add(b.Order != "" && b.Order != "asc" && b.Order != "desc", "/order", "must be asc or desc")
	add(b.Limit < 0 || b.Limit > 1000, "/limit", "must be from 1 to 1000")
	for pointer, text := range map[string]string{"/group": b.Group, "/role": b.Role, "/provider": b.Provider} {
		add(len(text) > 64, pointer, "must be at most 64 bytes long")
	}
	add(len(b.After) > 1000, "/after", "must be at most 1000 bytes long")
	for pointer, text := range map[string]string{"/q": b.Q, "/name": b.Name} {
		add(len(text) > 200 || len(strings.Fields(text)) > maxWords, pointer, "must be at most 200 bytes and 10 words long")
	}
	add(len(b.Email) > 320, "/email", "must be at most 320 bytes long")
	add(len(b.CustomFields) > 10, "/customFields", "must have at most 10 fields")
	if faults != nil {
		slices.SortFunc(faults, func(a, b domain.Fault) int { return strings.Compare(a.Pointer, b.Pointer) })
		return invalid(faults)
	}
	if b.Identifier == nil {
		return nil
	}
	return under("/identifier", b.Identifier.check())
}

// searchedPage is a page of a list or a search, with its cursor.
type searchedPage struct {
	answer *answer
	next   *string
}

// searchPage executes a list or a search.
func (s *server) searchPage(ctx context.Context, c *call, fresh Query, b accountSearch) (searchedPage, error) {
	q, err := s.searchQuery(ctx, c, b)
	if err != nil {
		return searchedPage{}, err
	}
	if err := s.searchable(ctx, fresh, q); err != nil {
		return searchedPage{}, err
	}
	search := s.Views.Search()
	found, err := search.Find(ctx, q)
	if err != nil {
		return searchedPage{}, searchRefusal(err)
	}
	page := struct {
		Accounts []jsontext.Value `json:"accounts"`
		Count    accountCount     `json:"count"`
		Next     *string          `json:"next"`
	}{make([]jsontext.Value, len(found.Accounts)), accountCount{found.Count, found.Exact}, nil}
	for i, row := range found.Accounts {
		page.Accounts[i] = row.JSON
		if len(q.Hidden) > 0 {
			account, err := row.Account()
			if err == nil {
				page.Accounts[i], err = account.Without(q.Hidden).JSON()
			}
			if err != nil {
				return searchedPage{}, err
			}
		}
	}
	if found.Next != nil {
		cursor, err := s.sealPlace(q, *found.Next)
		if err != nil {
			return searchedPage{}, err
		}
		page.Next = &cursor
	}
	a := &answer{LedgerPosition: strconv.FormatInt(int64(found.Position), 10), LedgerLag: strconv.FormatInt(search.Lag(), 10)}
	a, err = a.rendered(page)
	return searchedPage{a, page.Next}, err
}

// searchQuery translates a request into a query.
func (s *server) searchQuery(ctx context.Context, c *call, b accountSearch) (projections.Query, error) {
	hidden, err := s.hidden(ctx, c)
	if err != nil {
		return projections.Query{}, err
	}
	q := projections.Query{
		Text: b.Q, Name: b.Name, Email: b.Email, Status: b.Status, Group: b.Group, Role: b.Role, Provider: b.Provider,
		Created:   projections.Period{From: b.CreatedFrom, To: b.CreatedTo},
		Updated:   projections.Period{From: b.UpdatedFrom, To: b.UpdatedTo},
		LastLogin: projections.Period{From: b.LastLoginFrom, To: b.LastLoginTo},
		Hidden:    hidden, Sort: b.Sort, Limit: b.Limit,
	}
	if q.Sort == "" {
		q.Sort = projections.SortCreated
	}
	if q.Limit == 0 {
		q.Limit = 100
	}
	q.Descending = b.Order == "desc" || b.Order == "" && q.Sort != projections.SortName
	if b.After != "" {
		if q.After, err = s.openPlace(q, b.After); err != nil {
			return q, err
		}
	}
	if i := b.Identifier; i != nil {
		if q.Identifier, err = s.candidates(ctx, *i); err != nil {
			return q, err
		}
	}
	q.Fields, err = s.fieldQueries(ctx, hidden, b.CustomFields)
	return q, err
}

// candidates returns the identifiers that i may stand for. A sub is replaced by
// the account's first identifier; every account has one.
func (s *server) candidates(ctx context.Context, i identifier) ([]domain.Candidate, error) {
	found := []domain.Candidate{}
	sub, err := canonical(i.Identifier)
	if i.Type != kindSub && (i.Type != "" || err != nil) {
		return append(found, domain.Candidates(i.Type, i.Provider, i.Identifier)...), nil
	}
	if err != nil {
		return found, nil
	}
	row, err := s.survivor(ctx, sub)
	if domain.CodeOf(err) == domain.CodeAccountNotFound {
		return found, nil
	}
	if err != nil {
		return nil, err
	}
	a, err := row.Account()
	if err != nil || len(a.UserIDs) == 0 {
		return found, err
	}
	return append(found, domain.Candidate{Kind: a.UserIDs[0].Type, Key: a.UserIDs[0].Key()}), nil
}

// fieldQueries translates the conditions on custom fields. Fields hidden from
// the caller count as not existing.
func (s *server) fieldQueries(ctx context.Context, hidden domain.Hidden, asked map[string]jsontext.Value) ([]projections.FieldQuery, error) {
	if len(asked) == 0 {
		return nil, nil
	}
	config, err := s.Ledger.Config(ctx)
	if err != nil {
		return nil, err
	}
	var fields []projections.FieldQuery
	var faults []domain.Fault
	for _, key := range slices.Sorted(maps.Keys(asked)) {
		field, defined := config.Fields[key]
		if !defined || !field.Searchable || hidden[key] {
			faults = append(faults, domain.Fault{Pointer: "/customFields/" + printable(key), Detail: "must be the key of a searchable field"})
			continue
		}
		f := projections.FieldQuery{Key: key, Type: field.DataType, Value: asked[key]}
		if field.DataType.Ordered() && f.Value.Kind() == '{' {
			var ends struct {
				From jsontext.Value `json:"from,omitzero"`
				To   jsontext.Value `json:"to,omitzero"`
			}
			if err := json.Unmarshal(f.Value, &ends, json.RejectUnknownMembers(true)); err != nil || ends.From == nil && ends.To == nil {
				faults = append(faults, domain.Fault{Pointer: "/customFields/" + key, Detail: "must be a value, or an object with from and to"})
				continue
			}
			f.Value, f.From, f.To = nil, ends.From, ends.To
		}
		fields = append(fields, f)
	}
	if faults != nil {
		return nil, invalid(faults)
	}
	return fields, nil
}

// searchRefusal turns an error of the search index into the caller's problem.
func searchRefusal(err error) error {
	var wrong *projections.FieldError
	switch {
	case errors.As(err, &wrong):
		pointer := "/customFields/" + wrong.Key
		if wrong.Member != "" {
			pointer += "/" + wrong.Member
		}
		return invalid([]domain.Fault{{Pointer: pointer, Detail: wrong.Rule}})
	case errors.Is(err, projections.ErrNotIndexed):
		return newProblem(codeFieldNotIndexed, "The search index does not contain a custom field of this search yet.").with("Retry-After", "10")
	case errors.Is(err, projections.ErrNoWord):
		return invalid([]domain.Fault{{Pointer: "", Detail: "q and name must contain a letter or digit, email at least one character"}})
	}
	return err
}

// searchable waits, as long as the request allows, until the search index has
// reached the account view, so that callers find what they have just written or
// read. After that it accepts the index as it is if it has min_position.
func (s *server) searchable(ctx context.Context, fresh Query, q projections.Query) error {
	search, min := s.Views.Search(), eventstore.Position(fresh.MinPosition)
	bounded, cancel := context.WithTimeout(ctx, time.Duration(fresh.Wait)*time.Second)
	defer cancel()
	err := search.Await(bounded, max(min, s.Views.Accounts().Position()), q.Fields)
	if bounded.Err() == nil || ctx.Err() != nil {
		return err
	}
	if p := search.Position(); p < min || p == 0 && search.Lag() > 0 {
		return s.notFresh(p)
	}
	return nil
}

// searchPlace is the content of a cursor.
type searchPlace struct {
	Sort       projections.Sort `json:"s"`
	Descending bool             `json:"d"`
	projections.Place
}

// places encrypts cursors: they appear in URLs, and the cursor of a list sorted
// by name contains a name. The key is derived from the ledger's key, so that
// cursors stay valid after a restart.
func (s *server) places() cipher.AEAD {
	block, err := aes.NewCipher([]byte(s.Keys.Claim("search cursor", "", "").Key))
	if err != nil {
		panic("httpapi: " + err.Error())
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic("httpapi: " + err.Error())
	}
	return aead
}

func (s *server) sealPlace(q projections.Query, p projections.Place) (string, error) {
	plain, err := json.Marshal(searchPlace{q.Sort, q.Descending, p})
	return base64.RawURLEncoding.EncodeToString(s.places().Seal(nil, nil, plain, nil)), err
}

func (s *server) openPlace(q projections.Query, cursor string) (*projections.Place, error) {
	var p searchPlace
	sealed, err := base64.RawURLEncoding.DecodeString(cursor)
	var plain []byte
	if err == nil {
		plain, err = s.places().Open(nil, nil, sealed, nil)
	}
	if err == nil {
		err = json.Unmarshal(plain, &p)
	}
	if err != nil || p.Sort != q.Sort || p.Descending != q.Descending {
		return nil, newProblem(domain.CodeInvalidCursor, "The cursor does not belong to this list in this order.")
	}
	return &p.Place, nil
}
