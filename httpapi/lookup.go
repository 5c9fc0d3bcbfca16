package httpapi

import (
	"context"
	"slices"

	"accountledger/domain"
	"accountledger/projections"
)

func (s *server) lookupRoutes() {
	handle(s, route{
		method: "POST", path: "/v1/lookup", name: "lookup", scope: scopeAccountsRead, status: 200, answer: domain.Account{},
		summary: "Look up an account by identifier",
		text:    "Returns the account that an identifier resolves to. The identifier is sent in the body, which keeps it out of access logs. Without a type, the ledger tries it as an e-mail address, mobile number and username.",
		example: `{"identifier":"ada@example.com","type":"email"}`,
		codes:   codes(onAccount, onQuery),
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

// find returns the account an identifier resolves to.
func (s *server) find(ctx context.Context, i identifier) (projections.AccountRow, error) {
	if sub, err := canonical(i.Identifier); i.Type == kindSub || i.Type == "" && err == nil {
		if err != nil {
			return projections.AccountRow{}, err
		}
		return s.survivor(ctx, sub)
	}
	row, err := s.Views.Accounts().Lookup(ctx, domain.Candidates(i.Type, i.Provider, i.Identifier))
	return row, missing(err)
}
