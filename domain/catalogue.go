package domain

import (
	"slices"
	"strings"
)

// PublicType is an entry of the public catalogue: a kind of public event that
// external systems select by name.
type PublicType struct {
	Name    string   // USER_CREATED
	When    string   // it is told, as what completes «told when»
	Data    any      // a zero value of what PublicEvent.Data is made of
	From    []string // types of the events in the log that it comes of
	Aliases []Alias
}

// Alias is another name of a public event, for systems that know it by that.
type Alias struct {
	Name string
	Of   string // which of the events; "" for all

	when func(data any) bool // says the same of the event's data; nil: always
}

// OfAccount reports whether events of this type are about an account; the
// others are about the configuration.
func (t PublicType) OfAccount() bool { return strings.HasPrefix(t.From[0], "account.") }

// Catalogue is all public events there are, as pages list them. Aliases with a condition
// come before those without: who asks by a prefix is told the more particular
// name. A test holds it to what publicNames makes of the log's events.
var Catalogue = slices.Concat(
	accountCatalogue,
	configCatalogue("CONSENT_DEFINITION", "a consent", "consent-definition"),
	configCatalogue("FIELD", "a custom field", "field"),
	configCatalogue("GROUP", "a group", "group"),
	configCatalogue("GROUP_TYPE", "a group type", "group-type"),
	configCatalogue("ROLE", "a role", "role"),
	configCatalogue("SCHEDULE_SETUP", "a setup of schedules", "schedule-setup"),
	[]PublicType{
		{Name: "API_KEY_CREATED", When: "an API key is made", Data: configChanged{}, From: []string{"api-key.created.v1"}},
		{Name: "API_KEY_UPDATED", When: "an API key is changed", Data: configChanged{}, From: []string{"api-key.updated.v1"}},
		{Name: "API_KEY_DELETED", When: "an API key is revoked", Data: configChanged{}, From: []string{"api-key.revoked.v1"}},
		{Name: "WEBHOOK_CREATED", When: "a webhook is registered", Data: webhookChanged{}, From: []string{"webhook.created.v1"}},
		{Name: "WEBHOOK_UPDATED", When: "a webhook's settings, keys or state change", Data: webhookChanged{},
			From: []string{"webhook.updated.v1", "webhook.key-rotated.v1", "webhook.state-changed.v1", "webhook.verified.v1"}},
		{Name: "WEBHOOK_DELETED", When: "a webhook is deleted", Data: webhookChanged{}, From: []string{"webhook.deleted.v1"}},
		{Name: "WEBHOOK_DELIVERY_FAILING", When: "a delivery to a webhook, or the webhook as a whole, has failed twice in a row", Data: deliveryHealth{}, From: []string{"webhook.delivery-failing.v1"}},
		{Name: "WEBHOOK_DELIVERY_RECOVERED", When: "a delivery arrives and nothing fails any more", Data: deliveryHealth{}, From: []string{"webhook.delivery-recovered.v1"}},
		{Name: "WEBHOOK_DELIVERY_EXHAUSTED", When: "a delivery is given up", Data: deliveryGivenUp{}, From: []string{"webhook.delivery-exhausted.v1"}},
	},
)

// PublicNames is the names of the public catalogue, sorted.
var PublicNames = func() []string {
	names := make([]string, len(Catalogue))
	for i, t := range Catalogue {
		names[i] = t.Name
	}
	slices.Sort(names)
	return names
}()

var accountCatalogue = []PublicType{
	{Name: "USER_CREATED", When: "there is a new account, however it came about", Data: UserCreated{}, From: []string{"account.created.v1"},
		Aliases: []Alias{
			{"ACCOUNT_CREATED_WITH_CIDAAS_IDENTITY", "with an identity of provider self", func(data any) bool { return data.(UserCreated).Provider == ProviderSelf }},
			{"ACCOUNT_CREATED_WITH_SOCIAL_IDENTITY", "with an identity of another provider", func(data any) bool { return data.(UserCreated).Provider != ProviderSelf }},
		}},
	{Name: "USER_REGISTERED", When: "somebody registered; USER_CREATED is told beside it", Data: userRegistered{}, From: []string{"account.created.v1"}},
	{Name: "USER_UPDATED", When: "the profile, an identifier, a custom field or a verification changes", Data: userUpdated{},
		From: []string{"account.profile-updated.v1", "account.custom-fields-updated.v1"},
		Aliases: []Alias{
			{"ACCOUNT_EMAIL_VERIFIED", "that verify an e-mail address", func(data any) bool { return data.(userUpdated).verified("email_verified") }},
			{"ACCOUNT_MOBILE_NO_VERIFIED", "that verify a mobile number", func(data any) bool { return data.(userUpdated).verified("mobile_number_verified") }},
			{"ACCOUNT_MODIFIED", "", nil},
		}},
	{Name: "USER_STATUS_CHANGED", When: "the status changes, for whatever reason", Data: statusChanged{},
		From: []string{"account.status-changed.v1", "account.combined.v1", "account.restored.v1", "account.deletion-scheduled.v1", "account.deletion-cancelled.v1"},
		Aliases: []Alias{
			{"ACCOUNT_ACTIVATED", "to VERIFIED", func(data any) bool { return data.(statusChanged).To == StatusVerified }},
			{"ACCOUNT_DEACTIVATED", "to DECLINED or PENDING", func(data any) bool {
				to := data.(statusChanged).To // deleted and combined ones have names of their own
				return to == StatusDeclined || to == StatusPending
			}},
		}},
	{Name: "USER_DELETION_SCHEDULED", When: "the account is to be erased when its grace is over", Data: deletionScheduled{},
		From: []string{"account.deletion-scheduled.v1"}, Aliases: []Alias{{"ACCOUNT_DELETION_SCHEDULED", "", nil}}},
	{Name: "USER_DELETION_CANCELLED", When: "the account is not to be erased after all", Data: deletionCancelled{}, From: []string{"account.deletion-cancelled.v1"}},
	{Name: "USER_DELETED", When: "the account has ended and its personal data is destroyed", Data: subOnly{},
		From: []string{AccountErased{}.eventType()}, Aliases: []Alias{{"ACCOUNT_DELETED", "", nil}}},
	{Name: "USER_LOGIN", When: "somebody logs in", Data: userLogin{}, From: []string{"account.login-recorded.v1"},
		Aliases: []Alias{
			{"LOGIN_WITH_CIDAAS", "with provider self", func(data any) bool { return data.(userLogin).Provider == ProviderSelf }},
			{"LOGIN_WITH_SOCIAL", "with another provider", func(data any) bool { return data.(userLogin).Provider != ProviderSelf }},
		}},
	{Name: "USER_LOGIN_FAILED", When: "somebody may not log in to an account there is", Data: userLogin{},
		From: []string{"account.login-failed.v1"}, Aliases: []Alias{{"LOGIN_FAILURE", "", nil}}},
	{Name: "IDENTITY_LINKED", When: "a way to sign in is added", Data: identityChanged{}, From: []string{"account.identity-linked.v1"},
		Aliases: []Alias{{"ACCOUNT_CIDAASIDENTITY_ADDED", "of provider self", ofSelf}, {"ACCOUNT_SOCIALIDENTITY_ADDED", "of another provider", ofOthers}}},
	{Name: "IDENTITY_UNLINKED", When: "a way to sign in is removed", Data: identityChanged{}, From: []string{"account.identity-unlinked.v1"},
		Aliases: []Alias{{"ACCOUNT_CIDAASIDENTITY_REMOVED", "of provider self", ofSelf}, {"ACCOUNT_SOCIALIDENTITY_REMOVED", "of another provider", ofOthers}}},
	{Name: "USER_COMBINED", When: "another account is merged into the account", Data: combinedChanged{},
		From: []string{"account.merged.v1"}, Aliases: []Alias{{"COMBINED", "", nil}}},
	{Name: "USER_SEPARATED", When: "a merge is undone", Data: combinedChanged{}, From: []string{"account.separated.v1"}},
	{Name: "GROUP_MEMBER_ADDED", When: "the account becomes a member of a group", Data: memberChanged{}, From: []string{"account.created.v1", "account.group-joined.v1"}},
	{Name: "GROUP_MEMBER_ROLES_CHANGED", When: "a member's roles in a group change", Data: memberChanged{}, From: []string{"account.group-roles-changed.v1"}},
	{Name: "GROUP_MEMBER_REMOVED", When: "the account is no longer a member of a group", Data: groupLeft{}, From: []string{"account.group-left.v1"}},
	{Name: "CONSENT_ACCEPTED", When: "a version of a consent is accepted", Data: consentDecided{}, From: []string{"account.consent-decided.v1"}},
	{Name: "CONSENT_DECLINED", When: "a version of a consent is declined", Data: consentDecided{}, From: []string{"account.consent-decided.v1"}},
	{Name: "CONSENT_REVOKED", When: "an accepted consent is revoked", Data: consentDecided{}, From: []string{"account.consent-decided.v1"}},
	{Name: "SCHEDULE_PLANNED", When: "something is planned for the account", Data: schedulePlanned{}, From: []string{SchedulePlanned{}.eventType()}},
	{Name: "SCHEDULE_POSTPONED", When: "what is planned gets another time", Data: schedulePostponed{}, From: []string{SchedulePostponed{}.eventType()}},
	{Name: "SCHEDULE_CANCELLED", When: "what is planned is given up", Data: scheduleCancelled{}, From: []string{ScheduleCancelled{}.eventType()}},
	{Name: "SCHEDULE_EXECUTED", When: "what was planned is done, skipped or refused", Data: scheduleExecuted{}, From: []string{ScheduleExecuted{}.eventType()}},
	{Name: "USER_VERIFICATION_REMINDER", When: "a reminder is due: remind the person", Data: reminder{}, From: []string{ScheduleExecuted{}.eventType()}},
}

// configCatalogue is what is told of objects of the configuration that are set
// and deleted.
func configCatalogue(noun, what, eventType string) []PublicType {
	set, deleted := []string{eventType + ".set.v1"}, []string{eventType + ".deleted.v1"}
	return []PublicType{
		{Name: noun + "_CREATED", When: what + " is made", Data: configChanged{}, From: set},
		{Name: noun + "_UPDATED", When: what + " is changed", Data: configChanged{}, From: set},
		{Name: noun + "_DELETED", When: what + " is deleted", Data: configChanged{}, From: deleted},
	}
}

func ofSelf(data any) bool   { return data.(identityChanged).Provider == ProviderSelf }
func ofOthers(data any) bool { return !ofSelf(data) }

// catalogued are the entries of the catalogue by their names.
var catalogued = func() map[string]PublicType {
	types := make(map[string]PublicType, len(Catalogue))
	for _, t := range Catalogue {
		types[t.Name] = t
	}
	return types
}()

// Selectable reports whether pattern names a public event or an alias, or is a
// prefix of one's name followed by a star.
func Selectable(pattern string) bool {
	return slices.ContainsFunc(Catalogue, func(t PublicType) bool {
		return Selects(pattern, t.Name) || slices.ContainsFunc(t.Aliases, func(a Alias) bool { return Selects(pattern, a.Name) })
	})
}

// Selects reports whether pattern, a public name or a prefix followed by a
// star, selects name.
func Selects(pattern, name string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(name, prefix)
	}
	return pattern == name
}
