package domain

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestAliases checks the aliases of public events.
func TestAliases(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, tt := range []struct {
		event Event
		want  []string // aliases of its first public event
	}{
		{AccountCreated{Provider: ProviderSelf}, []string{"ACCOUNT_CREATED_WITH_CIDAAS_IDENTITY"}},
		{AccountCreated{Provider: "google"}, []string{"ACCOUNT_CREATED_WITH_SOCIAL_IDENTITY"}},
		{ProfileUpdated{Fields: []string{"family_name"}, Changes: value(`{"family_name":"King"}`)}, []string{"ACCOUNT_MODIFIED"}},
		{ProfileUpdated{Fields: []string{"email", "email_verified"}, Changes: value(`{"email":"a@b","email_verified":true}`)}, []string{"ACCOUNT_EMAIL_VERIFIED", "ACCOUNT_MODIFIED"}},
		{ProfileUpdated{Fields: []string{"email_verified"}, Changes: value(`{"email_verified":false}`)}, []string{"ACCOUNT_MODIFIED"}},
		{ProfileUpdated{Fields: []string{"email_verified"}}, []string{"ACCOUNT_MODIFIED"}}, // erased
		{ProfileUpdated{Fields: []string{"mobile_number_verified"}, Changes: value(`{"mobile_number_verified":true}`)}, []string{"ACCOUNT_MOBILE_NO_VERIFIED", "ACCOUNT_MODIFIED"}},
		{CustomFieldsUpdated{Fields: []string{"tier"}}, []string{"ACCOUNT_MODIFIED"}},
		{StatusChanged{From: StatusPending, To: StatusVerified}, []string{"ACCOUNT_ACTIVATED"}},
		{StatusChanged{From: StatusVerified, To: StatusDeclined}, []string{"ACCOUNT_DEACTIVATED"}},
		{StatusChanged{From: StatusVerified, To: StatusPending}, []string{"ACCOUNT_DEACTIVATED"}},
		{AccountCombined{From: StatusVerified}, nil},
		{AccountMerged{}, []string{"COMBINED"}},
		{DeletionScheduled{From: StatusVerified}, []string{"ACCOUNT_DELETION_SCHEDULED"}},
		{AccountErased{}, []string{"ACCOUNT_DELETED"}},
		{IdentityLinked{Provider: ProviderSelf}, []string{"ACCOUNT_CIDAASIDENTITY_ADDED"}},
		{IdentityLinked{Provider: "google"}, []string{"ACCOUNT_SOCIALIDENTITY_ADDED"}},
		{IdentityUnlinked{Provider: ProviderSelf}, []string{"ACCOUNT_CIDAASIDENTITY_REMOVED"}},
		{IdentityUnlinked{Provider: "google"}, []string{"ACCOUNT_SOCIALIDENTITY_REMOVED"}},
		{LoginRecorded{Provider: ProviderSelf}, []string{"LOGIN_WITH_CIDAAS"}},
		{LoginRecorded{Provider: "google"}, []string{"LOGIN_WITH_SOCIAL"}},
		{LoginFailed{Provider: ProviderSelf}, []string{"LOGIN_FAILURE"}},
	} {
		public, err := Public(Entry{ID: NewID(), Type: tt.event.eventType(), Stream: "account-s", Time: goldenTime, Event: tt.event}, 0)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tt.want, public[0].Aliases); diff != "" {
			t.Errorf("%+v (-want +got):\n%s", tt.event, diff)
		}
		for _, name := range public[0].Aliases {
			seen[name] = true
		}
	}
	for _, public := range Catalogue {
		for _, a := range public.Aliases {
			if !seen[a.Name] || slices.Contains(PublicNames, a.Name) || !Selectable(a.Name) || (a.Of == "") != (a.when == nil) {
				t.Errorf("%s is never used, equals a public name, or lacks a condition or its text", a.Name)
			}
		}
	}
}

// TestEventName checks which name patterns select.
func TestEventName(t *testing.T) {
	t.Parallel()
	e := PublicEvent{Type: "USER_UPDATED", Aliases: []string{"ACCOUNT_EMAIL_VERIFIED", "ACCOUNT_MODIFIED"}}
	for _, tt := range []struct {
		patterns []string
		want     string
	}{
		{[]string{"USER_UPDATED"}, "USER_UPDATED"}, {[]string{"USER_*"}, "USER_UPDATED"}, {[]string{"*"}, "USER_UPDATED"},
		{[]string{"ACCOUNT_MODIFIED"}, "ACCOUNT_MODIFIED"}, {[]string{"ACCOUNT_*"}, "ACCOUNT_EMAIL_VERIFIED"},
		{[]string{"ACCOUNT_MODIFIED", "ACCOUNT_EMAIL_VERIFIED"}, "ACCOUNT_MODIFIED"}, {[]string{"ACCOUNT_EMAIL_VERIFIED", "USER_*"}, "ACCOUNT_EMAIL_VERIFIED"},
		{[]string{"ACCOUNT_DELETED", "USER_CREATED"}, ""}, {nil, ""},
	} {
		if got := e.EventName(tt.patterns); got != tt.want {
			t.Errorf("%v: EventName = %q, want %q", tt.patterns, got, tt.want)
		}
	}
}
