package domain

import (
	"slices"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// alias is another name of a public event, for systems that know it by that.
type alias struct {
	name string
	of   string              // the public event's name
	when func(data any) bool // of its data; nil: always
}

// aliases are all there are. Those with a condition come first: who asks by a
// prefix is told the more particular name.
var aliases = []alias{
	{"ACCOUNT_CREATED_WITH_CIDAAS_IDENTITY", "USER_CREATED", func(data any) bool { return data.(userCreated).Provider == ProviderSelf }},
	{"ACCOUNT_CREATED_WITH_SOCIAL_IDENTITY", "USER_CREATED", func(data any) bool { return data.(userCreated).Provider != ProviderSelf }},
	{"ACCOUNT_ACTIVATED", "USER_STATUS_CHANGED", func(data any) bool { return data.(statusChanged).To == StatusVerified }},
	{"ACCOUNT_DEACTIVATED", "USER_STATUS_CHANGED", func(data any) bool {
		to := data.(statusChanged).To // deleted and combined ones have names of their own
		return to == StatusDeclined || to == StatusPending
	}},
	{"ACCOUNT_CIDAASIDENTITY_ADDED", "IDENTITY_LINKED", ofSelf},
	{"ACCOUNT_SOCIALIDENTITY_ADDED", "IDENTITY_LINKED", ofOthers},
	{"ACCOUNT_CIDAASIDENTITY_REMOVED", "IDENTITY_UNLINKED", ofSelf},
	{"ACCOUNT_SOCIALIDENTITY_REMOVED", "IDENTITY_UNLINKED", ofOthers},
	{"LOGIN_WITH_CIDAAS", "USER_LOGIN", func(data any) bool { return data.(userLogin).Provider == ProviderSelf }},
	{"LOGIN_WITH_SOCIAL", "USER_LOGIN", func(data any) bool { return data.(userLogin).Provider != ProviderSelf }},
	{"ACCOUNT_EMAIL_VERIFIED", "USER_UPDATED", func(data any) bool { return data.(userUpdated).verified("email_verified") }},
	{"ACCOUNT_MOBILE_NO_VERIFIED", "USER_UPDATED", func(data any) bool { return data.(userUpdated).verified("mobile_number_verified") }},
	{"ACCOUNT_MODIFIED", "USER_UPDATED", nil},
	{"ACCOUNT_DELETION_SCHEDULED", "USER_DELETION_SCHEDULED", nil},
	{"ACCOUNT_DELETED", "USER_DELETED", nil},
	{"COMBINED", "USER_COMBINED", nil},
	{"LOGIN_FAILURE", "USER_LOGIN_FAILED", nil},
}

func ofSelf(data any) bool   { return data.(identityChanged).Provider == ProviderSelf }
func ofOthers(data any) bool { return !ofSelf(data) }

// verified reports whether a flag was set by the change.
func (u userUpdated) verified(flag string) bool {
	changes, ok := u.Changes.(jsontext.Value)
	if !ok || !slices.Contains(u.Fields, flag) {
		return false
	}
	var members map[string]jsontext.Value
	return json.Unmarshal(changes, &members, trusted) == nil && string(members[flag]) == "true"
}

// aliases are the further names of p.
func (p publicEvent) aliases() (names []string) {
	for _, a := range aliases {
		if a.of == p.name && (a.when == nil || a.when(p.data)) {
			names = append(names, a.name)
		}
	}
	return names
}

// Told is the name under which somebody who asked for patterns is told of e:
// that of the first pattern that selects the event or one of its aliases; or
// "". Who asks by an alias is told by the alias: his system knows no other
// name. An event that several patterns select is told once.
func (e PublicEvent) Told(patterns []string) string {
	for _, p := range patterns {
		if Selects(p, e.Type) {
			return e.Type
		}
		for _, name := range e.Aliases {
			if Selects(p, name) {
				return name
			}
		}
	}
	return ""
}
