package domain

import (
	"testing"

	"github.com/go-json-experiment/json/jsontext"
)

func (AccountCreated) sample() sample {
	return sample{event: AccountCreated{Origin: OriginRegistered, Status: StatusPending, IdentityID: "0190a1b2-0000-7000-8000-00000000000a", Provider: "self",
		ProviderUserID: "ada-1", Profile: fullProfile, CustomFields: map[string]jsontext.Value{"employee_id": value(`"12345"`)},
		Registration:      Situation{"web", "phone", "London"},
		Groups:            []GroupJoined{{GroupID: "CIDAAS_USERS", GroupType: "SYSTEM", Path: "/CIDAAS_USERS", Roles: []string{"USER"}}},
		ClearCustomFields: map[string]jsontext.Value{"login": value(`"Ada"`)}, FieldClaims: map[string]Kind{"login": KindUsername}},
		clear: "Origin Status IdentityID Provider Groups ClearCustomFields FieldClaims"}
}

func TestCreateAccount(t *testing.T) {
	ada := NewIdentity{IdentityID: "i1", Provider: ProviderSelf, Profile: adaProfile}
	with := func(change func(*NewIdentity)) []NewIdentity {
		n := ada
		change(&n)
		return []NewIdentity{n}
	}
	decide(t, []decision{
		{name: "create", when: CreateAccount{Origin: OriginCreated, Identities: []NewIdentity{ada}}, then: []Event{adaCreated}},
		{name: "create registered is pending", when: CreateAccount{Origin: OriginRegistered, Identities: []NewIdentity{ada}},
			then: []Event{AccountCreated{Origin: OriginRegistered, Status: StatusPending, IdentityID: "i1", Provider: ProviderSelf, Profile: adaProfile, Groups: inUsers}}},
		{name: "create with two identities", when: CreateAccount{Origin: OriginCreated, Identities: []NewIdentity{ada, adaGoogle}}, then: []Event{adaCreated, adaLinked}},
		{name: "create twice", given: []Event{adaCreated}, when: CreateAccount{Origin: OriginCreated, Identities: []NewIdentity{ada}}, code: CodeAccountExists},
		{name: "create normalizes", when: CreateAccount{Origin: OriginCreated, Identities: with(func(n *NewIdentity) {
			n.Profile = Profile{Email: "Ada@EXAMPLE.com", MobileNumber: "+49 1511 2345678", Username: "Ada"}
		})}, then: []Event{AccountCreated{Origin: OriginCreated, Status: StatusVerified, IdentityID: "i1", Provider: ProviderSelf, Groups: inUsers,
			Profile: Profile{Email: "Ada@example.com", MobileNumber: "+4915112345678", Username: "Ada"}}}},
		{name: "create reports every fault", when: CreateAccount{Origin: "magic", Status: "ODD", CustomFields: map[string]jsontext.Value{"1st": value("1")},
			Identities: []NewIdentity{
				{Provider: "Google", Profile: Profile{Email: "ada", Birthdate: "1815-13-10", Picture: "javascript:x", Zoneinfo: "Mars/Base", Locale: "??"}},
				{Provider: "google", Profile: Profile{MobileNumber: "12"}}, {Provider: "self"}, {Provider: "self"}}},
			code: CodeInvalidRequest, faults: []string{"/customFields", "/identities", "/identities/0/birthdate", "/identities/0/email", "/identities/0/locale",
				"/identities/0/picture", "/identities/0/provider", "/identities/0/providerUserId", "/identities/0/zoneinfo",
				"/identities/1/mobile_number", "/identities/1/providerUserId", "/origin", "/userStatus"}},
		{name: "create without an identifier", when: CreateAccount{Origin: OriginCreated, Identities: with(func(n *NewIdentity) { n.Profile.Email = "" })},
			code: CodeInvalidRequest, faults: []string{"/identities"}},
		{name: "create without identities", when: CreateAccount{Origin: OriginCreated}, code: CodeInvalidRequest, faults: []string{"/identities"}},
		{name: "create deleted", when: CreateAccount{Origin: OriginImported, Status: StatusDeleted, Identities: []NewIdentity{ada}}, code: CodeStatusSystemManaged},
	})
}
