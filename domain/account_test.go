package domain

import "github.com/go-json-experiment/json/jsontext"

func (AccountCreated) sample() sample {
	return sample{event: AccountCreated{Origin: OriginRegistered, Status: StatusPending, IdentityID: "0190a1b2-0000-7000-8000-00000000000a", Provider: "self",
		ProviderUserID: "ada-1", Profile: fullProfile, CustomFields: map[string]jsontext.Value{"employee_id": value(`"12345"`)},
		Registration:      Situation{"web", "phone", "London"},
		Groups:            []GroupJoined{{GroupID: "CIDAAS_USERS", GroupType: "SYSTEM", Path: "/CIDAAS_USERS", Roles: []string{"USER"}}},
		ClearCustomFields: map[string]jsontext.Value{"login": value(`"Ada"`)}, FieldClaims: map[string]Kind{"login": KindUsername}},
		clear: "Origin Status IdentityID Provider Groups ClearCustomFields FieldClaims"}
}
