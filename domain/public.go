package domain

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"

	"accountledger/eventstore"
)

// PublicEvent is what external systems are told: the form in which an event
// of the log goes out through webhooks and the feed.
type PublicEvent struct {
	ID       string              `json:"id" doc:"The event's id, the same in every delivery and in the feed."` // the same at every delivery
	Type     string              `json:"type" doc:"The event's name in the public catalogue."`                 // of the public catalogue: USER_CREATED
	Sub      string              `json:"sub,omitzero" doc:"The account the event is about."`
	Subs     []string            `json:"combinedSubs,omitzero" doc:"The accounts that had been merged into this account when the event happened."`        // further subs of the account, merged into it by then
	Sequence eventstore.Revision `json:"sequence" doc:"The account's revision. Ignore an event whose sequence is not greater than the last one applied."` // the account's revision: ignore what is not above the last one applied
	Time     time.Time           `json:"time" doc:"When the event took effect."`
	Data     jsontext.Value      `json:"data" doc:"The event's data."`
	Aliases  []string            `json:"-"` // further names, for those who asked for them, see Told

	Traceparent string `json:"-"` // see Metadata
}

// publicNames says for each type of event in the log what it is in public, of
// what Catalogue has. The first one is sent under the event's own id.
var publicNames = map[string]func(x Entry) []publicEvent{
	"account.created.v1": func(x Entry) []publicEvent {
		e := x.Event.(AccountCreated)
		created := UserCreated{
			Sub: x.Sub(), Email: e.Profile.Email, GivenName: e.Profile.GivenName, FamilyName: e.Profile.FamilyName,
			EmailVerified: e.Profile.EmailVerified, MobileNumber: e.Profile.MobileNumber, Locale: e.Profile.Locale, Status: e.Status, Provider: e.Provider,
			CreatedTime: x.OccurredTime(), CustomFields: merged(e.CustomFields, e.ClearCustomFields),
		}
		events := []publicEvent{{"USER_CREATED", created}}
		if e.Origin == OriginRegistered {
			events = append(events, publicEvent{"USER_REGISTERED", userRegistered{created, e.Registration}})
		}
		for _, g := range e.Groups {
			events = append(events, publicEvent{"GROUP_MEMBER_ADDED", memberChanged{x.Sub(), g.GroupID, g.Roles}})
		}
		return events
	},
	"account.profile-updated.v1": func(x Entry) []publicEvent {
		e := x.Event.(ProfileUpdated)
		return []publicEvent{{"USER_UPDATED", userUpdated{x.Sub(), e.IdentityID, x.OccurredTime(), e.Fields, e.Changes}}}
	},
	"account.custom-fields-updated.v1": func(x Entry) []publicEvent {
		e := x.Event.(CustomFieldsUpdated)
		return []publicEvent{{"USER_UPDATED", userUpdated{x.Sub(), "", x.OccurredTime(), prefixed("customFields.", e.Fields), map[string]any{"customFields": e.all()}}}}
	},
	"account.status-changed.v1": func(x Entry) []publicEvent {
		e := x.Event.(StatusChanged)
		return []publicEvent{{"USER_STATUS_CHANGED", statusChanged{x.Sub(), e.From, e.To, x.Meta.ReasonCode}}}
	},
	"account.consent-decided.v1": func(x Entry) []publicEvent {
		e := x.Event.(ConsentDecided)
		return []publicEvent{{"CONSENT_" + strings.ToUpper(string(e.Status)), consentDecided{x.Sub(), e.ConsentID, e.Version, e.Decision(x).Time}}}
	},
	"account.identity-linked.v1": func(x Entry) []publicEvent {
		e := x.Event.(IdentityLinked)
		return []publicEvent{{"IDENTITY_LINKED", identityChanged{x.Sub(), e.IdentityID, e.Provider}}}
	},
	"account.identity-unlinked.v1": func(x Entry) []publicEvent {
		e := x.Event.(IdentityUnlinked)
		return []publicEvent{{"IDENTITY_UNLINKED", identityChanged{x.Sub(), e.IdentityID, e.Provider}}}
	},
	"account.merged.v1": func(x Entry) []publicEvent {
		e := x.Event.(AccountMerged)
		return []publicEvent{{"USER_COMBINED", combinedChanged{x.Sub(), e.From, e.IdentityIDs, prefixed("customFields.", e.Conflicts)}}}
	},
	"account.combined.v1": func(x Entry) []publicEvent {
		e := x.Event.(AccountCombined)
		return []publicEvent{{"USER_STATUS_CHANGED", statusChanged{x.Sub(), e.From, StatusCombined, x.Meta.ReasonCode}}}
	},
	"account.separated.v1": func(x Entry) []publicEvent {
		e := x.Event.(AccountSeparated)
		return []publicEvent{{"USER_SEPARATED", combinedChanged{x.Sub(), e.From, e.IdentityIDs, nil}}}
	},
	"account.restored.v1": func(x Entry) []publicEvent {
		e := x.Event.(AccountRestored)
		return []publicEvent{{"USER_STATUS_CHANGED", statusChanged{x.Sub(), StatusCombined, e.To, x.Meta.ReasonCode}}}
	},
	"account.identities-returned.v1": func(x Entry) []publicEvent { return nil }, // USER_SEPARATED has told of them
	"account.group-joined.v1": func(x Entry) []publicEvent {
		e := x.Event.(GroupJoined)
		return []publicEvent{{"GROUP_MEMBER_ADDED", memberChanged{x.Sub(), e.GroupID, e.Roles}}}
	},
	"account.group-roles-changed.v1": func(x Entry) []publicEvent {
		e := x.Event.(GroupRolesChanged)
		return []publicEvent{{"GROUP_MEMBER_ROLES_CHANGED", memberChanged{x.Sub(), e.GroupID, e.Roles}}}
	},
	"account.group-left.v1": func(x Entry) []publicEvent {
		return []publicEvent{{"GROUP_MEMBER_REMOVED", groupLeft{x.Sub(), x.Event.(GroupLeft).GroupID}}}
	},
	"account.login-recorded.v1": func(x Entry) []publicEvent {
		e := x.Event.(LoginRecorded)
		return []publicEvent{{"USER_LOGIN", userLogin{x.Sub(), e.IdentityID, e.Provider, e.Method, "", x.OccurredTime(), e.Situation}}}
	},
	"account.login-failed.v1": func(x Entry) []publicEvent {
		e := x.Event.(LoginFailed)
		return []publicEvent{{"USER_LOGIN_FAILED", userLogin{x.Sub(), e.IdentityID, e.Provider, e.Method, e.Reason, x.OccurredTime(), e.Situation}}}
	},
	"login.unknown.v1": func(Entry) []publicEvent { return nil }, // it is nobody's, and subscribers follow accounts
	SchedulePlannedType: func(x Entry) []publicEvent {
		e := x.Event.(SchedulePlanned)
		return []publicEvent{{"SCHEDULE_PLANNED", schedulePlanned{x.Sub(), e}}}
	},
	SchedulePostponedType: func(x Entry) []publicEvent {
		e := x.Event.(SchedulePostponed)
		return []publicEvent{{"SCHEDULE_POSTPONED", schedulePostponed{x.Sub(), e}}}
	},
	ScheduleCancelledType: func(x Entry) []publicEvent {
		e := x.Event.(ScheduleCancelled)
		return []publicEvent{{"SCHEDULE_CANCELLED", scheduleCancelled{x.Sub(), e}}}
	},
	ScheduleExecutedType: func(x Entry) []publicEvent {
		e := x.Event.(ScheduleExecuted)
		events := []publicEvent{{"SCHEDULE_EXECUTED", scheduleExecuted{x.Sub(), e}}}
		if e.Kind == ScheduleReminder && e.State == ScheduleDone {
			events = append(events, publicEvent{"USER_VERIFICATION_REMINDER", reminder{x.Sub(), e.ScheduleID, e.ReminderNo, e.DueTime}})
		}
		return events
	},
	"account.deletion-scheduled.v1": func(x Entry) []publicEvent {
		e := x.Event.(DeletionScheduled)
		return []publicEvent{
			{"USER_DELETION_SCHEDULED", deletionScheduled{x.Sub(), e.DueTime}},
			{"USER_STATUS_CHANGED", statusChanged{x.Sub(), e.From, StatusDeleted, x.Meta.ReasonCode}},
		}
	},
	"account.deletion-cancelled.v1": func(x Entry) []publicEvent {
		e := x.Event.(DeletionCancelled)
		return []publicEvent{
			{"USER_DELETION_CANCELLED", deletionCancelled{x.Sub(), e.To}},
			{"USER_STATUS_CHANGED", statusChanged{x.Sub(), StatusDeleted, e.To, x.Meta.ReasonCode}},
		}
	},
	ErasedType: func(x Entry) []publicEvent {
		return []publicEvent{{"USER_DELETED", subOnly{x.Sub()}}}
	},
	"role.set.v1": func(x Entry) []publicEvent {
		e := x.Event.(RoleSet)
		return configEventOf("ROLE", e.Created, e.Role, e.Fields)
	},
	"role.deleted.v1": func(x Entry) []publicEvent {
		return []publicEvent{{"ROLE_DELETED", configChanged{x.Event.(RoleDeleted).Role, nil}}}
	},
	"group-type.set.v1": func(x Entry) []publicEvent {
		e := x.Event.(GroupTypeSet)
		return configEventOf("GROUP_TYPE", e.Created, e.GroupType, e.Fields)
	},
	"group-type.deleted.v1": func(x Entry) []publicEvent {
		return []publicEvent{{"GROUP_TYPE_DELETED", configChanged{x.Event.(GroupTypeDeleted).GroupType, nil}}}
	},
	"group.set.v1": func(x Entry) []publicEvent {
		e := x.Event.(GroupSet)
		return configEventOf("GROUP", e.Created, e.GroupID, e.Fields)
	},
	"group.deleted.v1": func(x Entry) []publicEvent {
		return []publicEvent{{"GROUP_DELETED", configChanged{x.Event.(GroupDeleted).GroupID, nil}}}
	},
	"schedule-setup.set.v1": func(x Entry) []publicEvent {
		e := x.Event.(ScheduleSetupSet)
		return configEventOf("SCHEDULE_SETUP", e.Created, e.SetupID, e.Fields)
	},
	"schedule-setup.deleted.v1": func(x Entry) []publicEvent {
		return []publicEvent{{"SCHEDULE_SETUP_DELETED", configChanged{x.Event.(ScheduleSetupDeleted).SetupID, nil}}}
	},
	"field.set.v1": func(x Entry) []publicEvent {
		e := x.Event.(FieldSet)
		return configEventOf("FIELD", e.Created, e.Field.FieldKey, e.Fields)
	},
	"field.deleted.v1": func(x Entry) []publicEvent {
		return []publicEvent{{"FIELD_DELETED", configChanged{x.Event.(FieldDeleted).FieldKey, nil}}}
	},
	"consent-definition.set.v1": func(x Entry) []publicEvent {
		e := x.Event.(ConsentDefinitionSet)
		return configEventOf("CONSENT_DEFINITION", e.Created, e.ConsentID, e.Fields)
	},
	"consent-definition.deleted.v1": func(x Entry) []publicEvent {
		return []publicEvent{{"CONSENT_DEFINITION_DELETED", configChanged{x.Event.(ConsentDefinitionDeleted).ConsentID, nil}}}
	},
	"webhook.created.v1":       webhookEvent("WEBHOOK_CREATED"),
	"webhook.updated.v1":       webhookEvent("WEBHOOK_UPDATED"),
	"webhook.key-rotated.v1":   webhookEvent("WEBHOOK_UPDATED"),
	"webhook.state-changed.v1": webhookEvent("WEBHOOK_UPDATED"),
	"webhook.verified.v1":      webhookEvent("WEBHOOK_UPDATED"),
	"webhook.deleted.v1":       webhookEvent("WEBHOOK_DELETED"),
	"command.remembered.v1":    func(Entry) []publicEvent { return nil }, // bookkeeping: nothing happened
	"api-key.created.v1": func(x Entry) []publicEvent {
		return configEventOf("API_KEY", true, x.Event.(APIKeyCreated).KeyID, []string{"name", "scopes", "expiresTime"})
	},
	"api-key.updated.v1": func(x Entry) []publicEvent {
		e := x.Event.(APIKeyUpdated)
		return configEventOf("API_KEY", false, e.KeyID, e.Fields)
	},
	"api-key.revoked.v1": func(x Entry) []publicEvent {
		return []publicEvent{{"API_KEY_DELETED", configChanged{x.Event.(APIKeyRevoked).KeyID, nil}}}
	},

	"webhook.delivery-failing.v1":   deliveryEvent,
	"webhook.delivery-recovered.v1": deliveryEvent,
	"webhook.delivery-exhausted.v1": deliveryEvent,
}

type publicEvent struct {
	name string
	data any
}

// What public events carry besides their envelope, SPEC section 12.
type (
	subOnly struct {
		Sub string `json:"sub" doc:"The account."`
	}
	// UserCreated is exported because it is a part of another one, and what
	// describes these types passes over parts that are not.
	UserCreated struct {
		Sub           string                    `json:"sub" doc:"The account."`
		Email         string                    `json:"email,omitzero" doc:"E-mail address of the first identity."`
		EmailVerified bool                      `json:"email_verified" doc:"Whether the person is verified to own the e-mail address."`
		MobileNumber  string                    `json:"mobile_number,omitzero" doc:"Mobile number of the first identity in E.164 format."`
		Locale        string                    `json:"locale,omitzero" doc:"Language tag (BCP 47)."`
		GivenName     string                    `json:"given_name,omitzero" doc:"Given name."`
		FamilyName    string                    `json:"family_name,omitzero" doc:"Family name."`
		Status        Status                    `json:"userStatus" doc:"The initial status."`
		Provider      string                    `json:"provider" doc:"Provider of the first identity."`
		CreatedTime   time.Time                 `json:"createdTime" doc:"When the account was created; for an imported account, the original time if known."`
		CustomFields  map[string]jsontext.Value `json:"customFields" doc:"The application's custom fields: values by field key, without internal fields."`
	}
	userRegistered struct {
		UserCreated
		Situation
	}
	userUpdated struct {
		Sub        string    `json:"sub" doc:"The account."`
		IdentityID string    `json:"identityId,omitzero" doc:"The identity that changed; absent if custom fields changed."`
		Timestamp  time.Time `json:"timestamp" doc:"When the change took effect."`
		Fields     []string  `json:"fields" doc:"The members that changed."`
		Changes    any       `json:"changes,omitzero" doc:"The new values, by member; null for removed ones. Absent once they are erased."`
	}
	statusChanged struct {
		Sub        string `json:"sub" doc:"The account."`
		From       Status `json:"from" doc:"The previous status."`
		To         Status `json:"to" doc:"The new status."`
		ReasonCode string `json:"reasonCode,omitzero" doc:"Why the status changed, as a code."`
	}
	combinedChanged struct {
		Sub         string   `json:"sub" doc:"The surviving account."`                                             // of the account that goes on
		CombinedSub string   `json:"combinedSub" doc:"The account that was merged into it, or separated from it."` // of the one that was merged into it, or is its own again
		IdentityIDs []string `json:"identityIds" doc:"The identities of that account."`
		Conflicts   []string `json:"conflicts,omitzero" doc:"Members that differed and in which the surviving account kept its value."` // members of which the first account kept its own value
	}
	identityChanged struct {
		Sub        string `json:"sub" doc:"The account."`
		IdentityID string `json:"identityId" doc:"The identity."`
		Provider   string `json:"provider" doc:"The identity's provider."`
	}
	userLogin struct {
		Sub        string       `json:"sub" doc:"The account."`
		IdentityID string       `json:"identity,omitzero" doc:"The identityId used for the login."`
		Provider   string       `json:"provider" doc:"The identity provider."`
		Method     string       `json:"method,omitzero" doc:"How the person signed in, as a code, such as password."`
		Reason     LoginRefusal `json:"reason,omitzero" doc:"Why the login was refused: pending, declined, combined or deleted."`
		Time       time.Time    `json:"time" doc:"When the login happened."`
		Situation
	}
	memberChanged struct {
		Sub     string   `json:"sub" doc:"The account."`
		GroupID string   `json:"groupId" doc:"The group."`
		Roles   []string `json:"roles" doc:"All roles of the member in the group."`
	}
	groupLeft struct {
		Sub     string `json:"sub" doc:"The account."`
		GroupID string `json:"groupId" doc:"The group."`
	}
	schedulePlanned struct {
		Sub string `json:"sub" doc:"The account."`
		SchedulePlanned
	}
	schedulePostponed struct {
		Sub string `json:"sub" doc:"The account."`
		SchedulePostponed
	}
	scheduleCancelled struct {
		Sub string `json:"sub" doc:"The account."`
		ScheduleCancelled
	}
	scheduleExecuted struct {
		Sub string `json:"sub" doc:"The account."`
		ScheduleExecuted
	}
	reminder struct {
		Sub        string    `json:"sub" doc:"The account."`
		ScheduleID string    `json:"scheduleId" doc:"The schedule's id."`
		ReminderNo int       `json:"reminderNo,omitzero" doc:"The reminder's number."`
		DueTime    time.Time `json:"dueTime" doc:"When the reminder was due."`
	}
	deletionScheduled struct {
		Sub     string    `json:"sub" doc:"The account."`
		DueTime time.Time `json:"dueTime" doc:"When the account will be erased."`
	}
	deletionCancelled struct {
		Sub    string `json:"sub" doc:"The account."`
		Status Status `json:"userStatus" doc:"The restored status."` // restored
	}
	consentDecided struct {
		Sub       string    `json:"sub" doc:"The account."`
		ConsentID string    `json:"consentId" doc:"The consent."`
		Version   int       `json:"version" doc:"The version decided on."`
		Time      time.Time `json:"time" doc:"When the decision was made."`
	}
	configChanged struct {
		ID     string   `json:"id" doc:"The id of the configuration object."`
		Fields []string `json:"fields,omitzero" doc:"The members that changed; absent if the object was deleted."`
	}
	webhookChanged struct {
		WebhookID string       `json:"webhookId" doc:"The webhook's id."`
		Fields    []string     `json:"fields" doc:"The members that changed."`
		State     WebhookState `json:"state,omitzero" doc:"The new state, if it changed."`
	}
)

func webhookEvent(name string) func(Entry) []publicEvent {
	return func(x Entry) []publicEvent {
		data := webhookChanged{WebhookID: x.WebhookID(), Fields: []string{}}
		switch e := x.Event.(type) {
		case WebhookCreated:
			data.Fields, data.State = []string{"url", "events", "format", "payload"}, WebhookEnabled
		case WebhookUpdated:
			data.Fields = e.Fields
		case WebhookKeyRotated:
			data.Fields = []string{"keys"}
		case WebhookVerified:
			data.Fields = []string{"verified"}
		case WebhookStateChanged:
			data.Fields, data.State = []string{"state"}, e.To
		}
		return []publicEvent{{name, data}}
	}
}

// configEventOf is the public event of an object of the configuration that
// was set: <noun>_CREATED or <noun>_UPDATED.
func configEventOf(noun string, created bool, id string, fields []string) []publicEvent {
	name := noun + "_UPDATED"
	if created {
		name = noun + "_CREATED"
	}
	return []publicEvent{{name, configChanged{id, fields}}}
}

func prefixed(prefix string, names []string) []string {
	out := make([]string, len(names))
	for i, name := range names {
		out[i] = prefix + name
	}
	return out
}

// Public returns what x is in public: one event or several, each with an id
// of its own that is the same whenever it is asked for.
func Public(x Entry) ([]PublicEvent, error) {
	name, ok := publicNames[TypeOf(x.Event)]
	if !ok {
		return nil, nil
	}
	var events []PublicEvent
	for i, p := range name(x) {
		data, err := json.Marshal(p.data, json.Deterministic(true))
		if err != nil {
			return nil, err
		}
		id := x.ID
		if i > 0 {
			name := p.name
			if p.name == events[i-1].Type {
				name += strconv.Itoa(i) // several of one name: by their places
			}
			id = uuid.NewSHA1(x.ID, []byte(name))
		}
		events = append(events, PublicEvent{id.String(), p.name, x.Sub(), strings.Fields(x.Meta.CombinedSubs), x.Revision, x.OccurredTime(), data, p.aliases(), x.Meta.Traceparent})
	}
	return events, nil
}

// Tells reports whether who asked for patterns is told of x.
func Tells(x Entry, patterns []string) bool {
	name, ok := publicNames[TypeOf(x.Event)]
	return ok && slices.ContainsFunc(name(x), func(p publicEvent) bool {
		return PublicEvent{Type: p.name, Aliases: p.aliases()}.Told(patterns) != ""
	})
}
