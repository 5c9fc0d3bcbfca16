package httpapi

import (
	"context"
	"reflect"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"accountledger/domain"
)

func (s *server) identityRoutes() {
	handle(s, route{
		method: "PATCH", path: "/v1/accounts/{sub}", name: "patchAccount", scope: scopeAccountsWrite, status: 200, answer: domain.Account{},
		summary: "Change the profile of one identity",
		text:    "Changes the profile of one identity: identity is an RFC 7396 merge patch of it. identityId is optional if the account has exactly one identity. A changed e-mail address or mobile number becomes unverified unless the patch states that it is verified.",
		example: `{"identity":{"family_name":"King"}}`,
		codes:   codes(onChange, []domain.Code{domain.CodeIdentityNotFound, domain.CodeIdentifierTaken, domain.CodeIdentifierRequired}),
	}, s.patchAccount)
	handle(s, route{
		method: "POST", path: "/v1/accounts/{sub}/identities", name: "linkIdentity", scope: scopeAccountsWrite, status: 201, answer: domain.Account{},
		summary: "Link an identity",
		text:    "Adds a way to sign in. Linking an identity that is already linked changes nothing and succeeds.",
		example: `{"provider":"google","providerUserId":"1095","email":"ada@gmail.com","email_verified":true}`,
		codes:   codes(onChange, []domain.Code{domain.CodeIdentityConflict}),
	}, s.linkIdentity)
	handle(s, route{
		method: "PATCH", path: "/v1/accounts/{sub}/identities/{identityId}", name: "patchIdentity", scope: scopeAccountsWrite, status: 200, answer: domain.Account{},
		summary: "Change the profile of an identity",
		text:    "The body is an RFC 7396 merge patch of the identity's profile; null removes a member.",
		example: `{"family_name":"King","middle_name":null}`,
		codes:   codes(onChange, []domain.Code{domain.CodeIdentityNotFound, domain.CodeIdentifierTaken, domain.CodeIdentifierRequired}),
	}, s.patchIdentity)
	handle(s, route{
		method: "DELETE", path: "/v1/accounts/{sub}/identities/{identityId}", name: "unlinkIdentity", scope: scopeAccountsWrite, status: 200, answer: domain.Account{},
		summary: "Unlink an identity",
		text:    "Removes a way to sign in. Refused if it would leave the account without an e-mail address, mobile number or username.",
		codes:   codes(onChange, []domain.Code{domain.CodeIdentityNotFound, domain.CodeIdentifierRequired}),
	}, s.unlinkIdentity)
}

// newIdentity is an identity as a caller sends it; the ledger generates its id.
type newIdentity struct {
	Provider       string `json:"provider" minLength:"1" maxLength:"64" doc:"The identity provider: self, google, or any other lower-case key. It never changes."`
	ProviderUserID string `json:"providerUserId,omitzero" maxLength:"255" doc:"The person's user id at the provider. Required unless provider is self."`
	domain.Profile
}

func (n newIdentity) named() domain.NewIdentity {
	return domain.NewIdentity{IdentityID: domain.NewID().String(), Provider: n.Provider, ProviderUserID: n.ProviderUserID, Profile: n.Profile}
}

type linkIdentityInput struct {
	Sub
	Command
	JSON[newIdentity]
}

func (s *server) linkIdentity(ctx context.Context, c *call, in *linkIdentityInput) (*answer, error) {
	a, err := s.execute(ctx, c, in.Command, in.Sub.Sub, domain.LinkIdentity{Identity: in.value.named()})
	if err == nil && !in.DryRun {
		a.Location = "/v1/accounts/" + strings.ToLower(in.Sub.Sub)
	}
	return a, err
}

type unlinkIdentityInput struct {
	Sub
	IdentityID string `path:"identityId" doc:"The id of one of the account's identities."`
	Command
}

func (s *server) unlinkIdentity(ctx context.Context, c *call, in *unlinkIdentityInput) (*answer, error) {
	return s.execute(ctx, c, in.Command, in.Sub.Sub, domain.UnlinkIdentity{IdentityID: in.IdentityID})
}

type patchAccountInput struct {
	Sub
	Command
	JSON[accountPatch]
}

// accountPatch is the body of PATCH /v1/accounts/{sub}.
type accountPatch struct {
	Identity identityPatch `json:"identity" doc:"An RFC 7396 merge patch of one identity's profile; null removes a member."`
}

// identityPatch is a profilePatch that may name the identity it changes.
type identityPatch map[string]jsontext.Value

// Schema returns the OpenAPI schema of the patch.
func (identityPatch) Schema(r huma.Registry) *huma.Schema {
	schema := profilePatch{}.Schema(r)
	schema.Properties["identityId"] = &huma.Schema{Type: huma.TypeString, Description: "The identity to change. Optional if the account has exactly one identity."}
	return schema
}

func (s *server) patchAccount(ctx context.Context, c *call, in *patchAccountInput) (*answer, error) {
	patch := in.value.Identity
	var identityID string
	if id, ok := patch["identityId"]; ok {
		if err := json.Unmarshal(id, &identityID); err != nil || identityID == "" {
			return nil, invalid([]domain.Fault{{Pointer: "/identity/identityId", Detail: "must be an identityId"}})
		}
		delete(patch, "identityId")
	}
	if patch == nil {
		return nil, invalid([]domain.Fault{{Pointer: "/identity", Detail: "must be an object"}})
	}
	profile, err := json.Marshal(patch, json.Deterministic(true))
	if err != nil {
		return nil, err
	}
	a, err := s.execute(ctx, c, in.Command, in.Sub.Sub, domain.UpdateProfile{IdentityID: identityID, Patch: profile})
	return a, under("/identity", err)
}

type patchIdentityInput struct {
	Sub
	IdentityID string `path:"identityId" doc:"The id of one of the account's identities."`
	Command
	JSON[profilePatch]
}

// profilePatch is an RFC 7396 merge patch of a domain.Profile, as sent.
type profilePatch map[string]jsontext.Value

// Schema returns the OpenAPI schema of the patch: every member of a profile,
// each optional and nullable.
func (profilePatch) Schema(r huma.Registry) *huma.Schema {
	profile := huma.SchemaFromType(r, reflect.TypeFor[domain.Profile]())
	profile.Required = nil
	for name, member := range profile.Properties {
		if member.Ref != "" {
			profile.Properties[name] = &huma.Schema{Description: member.Description, AnyOf: []*huma.Schema{{Ref: member.Ref}, {Type: "null"}}}
		} else {
			member.Nullable = true
		}
	}
	return profile
}

func (s *server) patchIdentity(ctx context.Context, c *call, in *patchIdentityInput) (*answer, error) {
	profile, err := json.Marshal(in.value, json.Deterministic(true))
	if err != nil {
		return nil, err
	}
	return s.execute(ctx, c, in.Command, in.Sub.Sub, domain.UpdateProfile{IdentityID: in.IdentityID, Patch: profile})
}
