package domain

import (
	"testing"
)

func (ProfileUpdated) sample() sample {
	return sample{event: ProfileUpdated{"0190a1b2-0000-7000-8000-00000000000a", []string{"family_name"}, value(`{"family_name":"King"}`)},
		clear: "IdentityID Fields"}
}

func (IdentityLinked) sample() sample {
	return sample{event: IdentityLinked{"0190a1b2-0000-7000-8000-00000000000b", "google", "1095", fullProfile},
		clear: "IdentityID Provider"}
}

func (IdentityUnlinked) sample() sample {
	return sample{event: IdentityUnlinked{"0190a1b2-0000-7000-8000-00000000000b", "google"},
		clear: "IdentityID Provider"}
}

func TestDecideIdentities(t *testing.T) {
	decide(t, []decision{
		{name: "link", given: []Event{adaCreated}, when: LinkIdentity{adaGoogle}, then: []Event{adaLinked}},
		{name: "link again", given: []Event{adaCreated, adaLinked}, when: LinkIdentity{adaGoogle}},
		{name: "link a second identity of provider self", given: []Event{adaCreated}, when: LinkIdentity{NewIdentity{IdentityID: "i3", Provider: ProviderSelf, Profile: Profile{Username: "countess"}}}, code: CodeIdentityConflict},
		{name: "link without user id", given: []Event{adaCreated}, when: LinkIdentity{NewIdentity{IdentityID: "i3", Provider: "saml"}}, code: CodeInvalidRequest, faults: []string{"/providerUserId"}},
		{name: "unlink", given: []Event{adaCreated, adaLinked}, when: UnlinkIdentity{"i2"}, then: []Event{IdentityUnlinked{"i2", "google"}}},
		{name: "unlink the last identifier", given: []Event{adaCreated}, when: UnlinkIdentity{"i1"}, code: CodeIdentifierRequired},
		{name: "unlink an unknown identity", given: []Event{adaCreated}, when: UnlinkIdentity{"i9"}, code: CodeIdentityNotFound},
		{name: "update a name", given: []Event{adaCreated}, when: UpdateProfile{Patch: value(`{"family_name":"King"}`)},
			then: []Event{ProfileUpdated{"i1", []string{"family_name"}, value(`{"family_name":"King"}`)}}},
		{name: "update to the same", given: []Event{adaCreated}, when: UpdateProfile{Patch: value(`{"family_name":"Lovelace","nickname":null}`)}},
		{name: "a new e-mail address is not verified", given: []Event{adaCreated}, when: UpdateProfile{Patch: value(`{"email":"king@example.com"}`)},
			then: []Event{ProfileUpdated{"i1", []string{"email", "email_verified"}, value(`{"email":"king@example.com","email_verified":false}`)}}},
		{name: "a new e-mail address that the patch verifies", given: []Event{adaCreated}, when: UpdateProfile{Patch: value(`{"email":"king@example.com","email_verified":true}`)},
			then: []Event{ProfileUpdated{"i1", []string{"email"}, value(`{"email":"king@example.com"}`)}}},
		{name: "remove a name", given: []Event{adaCreated}, when: UpdateProfile{Patch: value(`{"given_name":null}`)},
			then: []Event{ProfileUpdated{"i1", []string{"given_name"}, value(`{"given_name":null}`)}}},
		{name: "merge an address", given: []Event{adaCreated, ProfileUpdated{"i1", []string{"address"}, value(`{"address":{"locality":"London","country":"GB"}}`)}},
			when: UpdateProfile{Patch: value(`{"address":{"country":null,"region":"Greater London"}}`)},
			then: []Event{ProfileUpdated{"i1", []string{"address"}, value(`{"address":{"locality":"London","region":"Greater London"}}`)}}},
		{name: "remove the last identifier", given: []Event{adaCreated}, when: UpdateProfile{Patch: value(`{"email":null}`)}, code: CodeIdentifierRequired},
		{name: "update an unknown member", given: []Event{adaCreated}, when: UpdateProfile{Patch: value(`{"shoe_size":7}`)}, code: CodeInvalidRequest, faults: []string{"/shoe_size"}},
		{name: "update with the wrong type", given: []Event{adaCreated}, when: UpdateProfile{Patch: value(`{"email":7}`)}, code: CodeInvalidRequest, faults: []string{"/email"}},
		{name: "update with an array", given: []Event{adaCreated}, when: UpdateProfile{Patch: value(`[]`)}, code: CodeInvalidRequest, faults: []string{""}},
		{name: "update without naming one of two identities", given: []Event{adaCreated, adaLinked}, when: UpdateProfile{Patch: value(`{}`)}, code: CodeInvalidRequest, faults: []string{"/identityId"}},
		{name: "update an unknown identity", given: []Event{adaCreated}, when: UpdateProfile{IdentityID: "i9", Patch: value(`{}`)}, code: CodeIdentityNotFound},
	})
}
