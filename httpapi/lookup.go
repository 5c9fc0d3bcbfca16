package httpapi

import (
	"context"
	"errors"
	"slices"

	"accountledger/domain"
	"accountledger/projections"
)

func (s *server) lookupRoutes() {
	handle(s, route{
		method: "POST", path: "/v1/lookup", name: "lookup", scope: scopeAccountsRead, status: 200, answer: domain.Account{},
		summary: "Look up an account by identifier",
		text:    "Returns the account that an identifier resolves to. The identifier is sent in the body, which keeps it out of access logs. Without a type, the ledger tries it as a sub, e-mail address, mobile number and username; if that leads to several accounts, it chooses none.",
		example: `{"identifier":"ada@example.com","type":"email"}`,
		codes:   codes(onAccount, onQuery, []domain.Code{codeAmbiguous}),
	}, s.lookup)
}

type lookupInput struct {
	Query
	JSON[identifier]
}

// identifier is the body of POST /v1/lookup.
type identifier struct {
	Identifier string      `json:"identifier" minLength:"1" maxLength:"512" doc:"An e-mail address, mobile number, username or user id at a provider, in any spelling."`
	Type       domain.Kind `json:"type,omitzero" enum:"email,mobile_number,username,providerUserId,sub" doc:"The kind of identifier. Without it, the ledger tries e-mail address, mobile number and username."`
	Provider   string      `json:"provider,omitzero" maxLength:"64" doc:"The identity provider; required with type providerUserId."`
}

// kindSub looks up an account by its own sub or by the sub of an account merged
// into it.
const kindSub domain.Kind = "sub"

// kinds are the types of identifiers that lookups accept.
var kinds = []domain.Kind{"", domain.KindEmail, domain.KindMobileNumber, domain.KindUsername, domain.KindProviderUserID, kindSub}

func (i identifier) check() error {
	var faults []domain.Fault
	if i.Identifier == "" || len(i.Identifier) > 512 {
		faults = append(faults, domain.Fault{Pointer: "/identifier", Detail: "must be 1 to 512 bytes long"})
	}
	if !slices.Contains(kinds, i.Type) {
		faults = append(faults, domain.Fault{Pointer: "/type", Detail: "must be email, mobile_number, username, providerUserId or sub"})
	}
	if (i.Type == domain.KindProviderUserID) != (i.Provider != "") {
		faults = append(faults, domain.Fault{Pointer: "/provider", Detail: "required with type providerUserId, not allowed otherwise"})
	}
	if faults != nil {
		return invalid(faults)
	}
	return nil
}

func (s *server) lookup(ctx context.Context, c *call, in *lookupInput) (*answer, error) {
	a, err := s.fresh(ctx, in.Query)
	if err == nil {
		err = in.value.check()
	}
	if err != nil {
		return nil, err
	}
	row, err := s.find(ctx, in.value)
	if err != nil {
		return nil, err
	}
	return s.account(ctx, c, a, row)
}

// find returns the account an identifier resolves to. Without a type it may be a
// sub, and a username may look like another account's sub.
func (s *server) find(ctx context.Context, i identifier) (projections.AccountRow, error) {
	var bySub projections.AccountRow
	if i.Type == kindSub || i.Type == "" {
		sub, err := canonical(i.Identifier)
		if err == nil {
			bySub, err = s.survivor(ctx, sub)
		}
		if i.Type == kindSub || err != nil && domain.CodeOf(err) != domain.CodeAccountNotFound {
			return bySub, err
		}
	}
	row, err := s.Views.Accounts().Lookup(ctx, domain.Candidates(i.Type, i.Provider, i.Identifier))
	switch {
	case errors.Is(err, projections.ErrAmbiguous), err == nil && bySub.Sub != "" && bySub.Sub != row.Sub:
		return row, newProblem(codeAmbiguous, "Several accounts have this identifier.")
	case errors.Is(err, projections.ErrNotFound) && bySub.Sub != "":
		return bySub, nil
	}
	return row, missing(err)
}
