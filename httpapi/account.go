package httpapi

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/projections"
)

func (s *server) accountRoutes() {
	handle(s, route{
		method: "POST", path: "/v1/accounts", name: "createAccount", scope: scopeAccountsWrite, status: 201, answer: domain.Account{},
		summary: "Create or register an account",
		text:    "Creates an account with its identities. With an Idempotency-Key, the sub is derived from the caller and the key, so a repeated request returns the account it created the first time.",
		example: `{"origin":"registered","identities":[{"provider":"self","given_name":"Ada","family_name":"Lovelace","email":"ada@example.com"}],"customFields":{"employee_id":"12345"}}`,
		codes:   codes(onCommand, []domain.Code{domain.CodeAccountExists, domain.CodeAccountErased, domain.CodeIdentifierTaken, domain.CodeStatusSystemManaged}),
	}, s.createAccount)
	handle(s, route{
		method: "GET", path: "/v1/accounts/{sub}", name: "getAccount", scope: scopeAccountsRead, status: 200, answer: domain.Account{},
		summary: "Get an account",
		text:    "Returns the account in its current state, or as it was at an earlier revision.",
		codes:   codes(onAccount, onQuery, []domain.Code{codeRevisionNotFound}),
	}, s.getAccount)
}

type createAccountInput struct {
	Command
	JSON[newAccount]
}

// newAccount is the body of POST /v1/accounts.
type newAccount struct {
	Origin       domain.Origin             `json:"origin,omitzero" enum:"registered,created,imported" default:"created" doc:"registered: by the person; created: by the caller; imported: by a batch import. Default created."`
	UserStatus   domain.Status             `json:"userStatus,omitzero" enum:"PENDING,VERIFIED,DECLINED" doc:"The initial status. Default VERIFIED; for a registration PENDING, unless the server is configured otherwise."`
	Identities   []newIdentity             `json:"identities" minItems:"1" maxItems:"50" doc:"The ways to sign in, at most one of provider self. At least one has an e-mail address, mobile number or username."`
	CustomFields map[string]jsontext.Value `json:"customFields,omitzero" doc:"The application's custom fields: values by field key."`
	Registration domain.Situation          `json:"registration,omitzero" doc:"Where the registration came from."`
}

func (s *server) createAccount(ctx context.Context, c *call, in *createAccountInput) (*answer, error) {
	body := in.value
	cmd := domain.CreateAccount{Origin: body.Origin, Status: body.UserStatus, CustomFields: body.CustomFields, Registration: body.Registration}
	if cmd.Origin == "" {
		cmd.Origin = domain.OriginCreated
	}
	if cmd.Status == "" && cmd.Origin == domain.OriginRegistered {
		cmd.Status = s.RegisteredStatus
	}
	for _, i := range body.Identities {
		cmd.Identities = append(cmd.Identities, i.named())
	}
	sub := in.newID(c)
	a, err := s.execute(ctx, c, in.Command, sub, cmd)
	if err == nil && !in.DryRun {
		a.Location = "/v1/accounts/" + sub
	}
	return a, err
}

// Sub identifies the account a request is about.
type Sub struct {
	Sub string `path:"sub" doc:"The account's sub, a UUID." example:"0190b0c2-5f3e-7c1a-9d5e-3f6a1b2c4d5e"`
}

type getAccountInput struct {
	Sub
	Query
	Revision    int64  `query:"revision" minimum:"-1" default:"-1" doc:"Return the account as it was at this revision. Default -1: the current state."`
	IfNoneMatch string `header:"If-None-Match" doc:"Return 304 Not Modified if the account is still at the revision of this ETag." example:"\"3\""`
}

func (s *server) getAccount(ctx context.Context, c *call, in *getAccountInput) (*answer, error) {
	a, err := s.fresh(ctx, in.Query)
	if err != nil {
		return nil, err
	}
	sub, err := canonical(in.Sub.Sub)
	if err != nil {
		return nil, err
	}
	if in.Revision >= 0 {
		return s.accountAt(ctx, c, a, sub, eventstore.Revision(in.Revision))
	}
	row, err := s.Views.Accounts().Get(ctx, sub)
	if err != nil {
		return nil, missing(err)
	}
	a, err = s.account(ctx, c, a, row)
	if err == nil && matches(in.IfNoneMatch, a.ETag) {
		a.Status, a.Body = http.StatusNotModified, nil
	}
	return a, err
}

// row starts the answer to a query about an account and reads the account's
// row, whether the account is erased or not.
func (s *server) row(ctx context.Context, q Query, sub Sub) (*answer, projections.AccountRow, error) {
	a, err := s.fresh(ctx, q)
	if err != nil {
		return nil, projections.AccountRow{}, err
	}
	id, err := canonical(sub.Sub)
	if err != nil {
		return nil, projections.AccountRow{}, err
	}
	row, err := s.Views.Accounts().Get(ctx, id)
	return a, row, missing(err)
}

// current starts the answer to a query that reads part of an account's current
// state.
func (s *server) current(ctx context.Context, q Query, sub Sub) (*answer, domain.Account, error) {
	a, row, err := s.row(ctx, q, sub)
	if err != nil {
		return nil, domain.Account{}, err
	}
	if !row.ErasedTime.IsZero() {
		return nil, domain.Account{}, errErased(row.ErasedTime)
	}
	a.ETag = etag(row.Revision)
	account, err := row.Account()
	return a, account, err
}

// accountAt answers with the account folded from its events up to revision r.
// Data erased since then is missing.
func (s *server) accountAt(ctx context.Context, c *call, a *answer, sub string, r eventstore.Revision) (*answer, error) {
	then, err := s.Ledger.AccountAt(ctx, sub, r)
	switch {
	case err != nil:
		return nil, err
	case !then.Exists():
		return nil, missing(projections.ErrNotFound)
	case then.Revision < r:
		return nil, newProblem(codeRevisionNotFound, "The account is at revision %d.", then.Revision)
	}
	hidden, err := s.hidden(ctx, c)
	if err != nil {
		return nil, err
	}
	a.ETag = etag(then.Revision)
	a.Body, err = then.Without(hidden).JSON()
	return a, err
}

// account sets a's body to the account. It is the view's JSON byte for byte,
// unless fields are hidden from the caller.
func (s *server) account(ctx context.Context, c *call, a *answer, row projections.AccountRow) (*answer, error) {
	if !row.ErasedTime.IsZero() {
		return nil, errErased(row.ErasedTime)
	}
	a.ETag, a.Body = etag(row.Revision), row.JSON
	hidden, err := s.hidden(ctx, c)
	if err != nil || len(hidden) == 0 {
		return a, err
	}
	account, err := row.Account()
	if err != nil {
		return nil, err
	}
	a.Body, err = account.Without(hidden).JSON()
	return a, err
}

// hidden returns the fields of accounts and events that the caller may not see.
func (s *server) hidden(ctx context.Context, c *call) (domain.Hidden, error) {
	if c.admin {
		return nil, nil
	}
	config, err := s.Ledger.Config(ctx)
	if err != nil {
		return nil, err
	}
	return config.Hidden(), nil
}

// errErased is the refusal for an account that was erased at the given time.
func errErased(when time.Time) error {
	p := newProblem(domain.CodeAccountErased, "The account was erased at %s.", when.Format(time.RFC3339))
	p.Erased = when
	return p
}

// accountErased is errErased with the time read from the account itself.
func (s *server) accountErased(ctx context.Context, sub string) error {
	account, err := s.Ledger.Account(ctx, sub)
	if err != nil {
		return err
	}
	return errErased(account.ErasedTime)
}

// missing turns the view's ErrNotFound into the problem account-not-found.
func missing(err error) error {
	if errors.Is(err, projections.ErrNotFound) {
		return &domain.Error{Code: domain.CodeAccountNotFound, Detail: "There is no such account."}
	}
	return err
}

// matches reports whether the If-None-Match header lists tag. The comparison is
// weak, as RFC 9110, section 13.1.2, requires.
func matches(header, tag string) bool {
	if header == "" {
		return false
	}
	for candidate := range strings.SplitSeq(header, ",") {
		candidate = strings.TrimSpace(candidate)
		if candidate == "*" || strings.TrimPrefix(candidate, "W/") == tag {
			return true
		}
	}
	return false
}
