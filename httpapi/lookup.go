package httpapi

import (
	"context"
	"slices"

	"accountledger/domain"
)

type lookupInput struct {
	Query
	JSON[identifier]
}

// identifier is the body of POST /v1/lookup.
type identifier struct {
	Identifier string      `json:"identifier" minLength:"1" maxLength:"512"`
	Type       domain.Kind `json:"type,omitzero" enum:"email,mobile_number,username,providerUserId"`
	Provider   string      `json:"provider,omitzero" maxLength:"64"`
}

// kinds are the types of identifiers one can ask for.
var kinds = []domain.Kind{"", domain.KindEmail, domain.KindMobileNumber, domain.KindUsername, domain.KindProviderUserID}

func (i identifier) check() error {
	var faults []domain.Fault
	if i.Identifier == "" || len(i.Identifier) > 512 {
		faults = append(faults, domain.Fault{Pointer: "/identifier", Detail: "1 to 512 bytes"})
	}
	if !slices.Contains(kinds, i.Type) {
		faults = append(faults, domain.Fault{Pointer: "/type", Detail: "must be email, mobile_number, username or providerUserId"})
	}
	if (i.Type == domain.KindProviderUserID) != (i.Provider != "") {
		faults = append(faults, domain.Fault{Pointer: "/provider", Detail: "required with the type providerUserId, and only then"})
	}
	if faults != nil {
		return invalid(faults)
	}
	return nil
}

func (s *server) lookup(ctx context.Context, _ *call, in *lookupInput) (*answer, error) {
	a, err := s.fresh(ctx, in.Query)
	if err == nil {
		err = in.value.check()
	}
	if err != nil {
		return nil, err
	}
	row, err := s.Views.Accounts().Lookup(ctx, domain.Candidates(in.value.Type, in.value.Provider, in.value.Identifier))
	if err != nil {
		return nil, missing(err)
	}
	return a.account(row)
}
