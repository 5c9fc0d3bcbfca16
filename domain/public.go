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
	ID       string              `json:"id"`   // the same at every delivery
	Type     string              `json:"type"` // of the public catalogue: USER_CREATED
	Sub      string              `json:"sub,omitzero"`
	Subs     []string            `json:"combinedSubs,omitzero"` // further subs of the account, merged into it by then
	Sequence eventstore.Revision `json:"sequence"`              // the account's revision: ignore what is not above the last one applied
	Time     time.Time           `json:"time"`
	Data     jsontext.Value      `json:"data"`
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
	SchedulePlanned{}.eventType(): func(x Entry) []publicEvent {
		e := x.Event.(SchedulePlanned)
		return []publicEvent{{"SCHEDULE_PLANNED", schedulePlanned{x.Sub(), e}}}
	},
	SchedulePostponed{}.eventType(): func(x Entry) []publicEvent {
		e := x.Event.(SchedulePostponed)
		return []publicEvent{{"SCHEDULE_POSTPONED", schedulePostponed{x.Sub(), e}}}
	},
	ScheduleCancelled{}.eventType(): func(x Entry) []publicEvent {
		e := x.Event.(ScheduleCancelled)
		return []publicEvent{{"SCHEDULE_CANCELLED", scheduleCancelled{x.Sub(), e}}}
	},
	ScheduleExecuted{}.eventType(): func(x Entry) []publicEvent {
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
	AccountErased{}.eventType(): func(x Entry) []publicEvent {
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
		Sub string `json:"sub"`
	}
	// UserCreated is exported because it is a part of another one, and what
	// describes these types passes over parts that are not.
	UserCreated struct {
		Sub           string                    `json:"sub"`
		Email         string                    `json:"email,omitzero"`
		EmailVerified bool                      `json:"email_verified"`
		MobileNumber  string                    `json:"mobile_number,omitzero"`
		Locale        string                    `json:"locale,omitzero"`
		GivenName     string                    `json:"given_name,omitzero"`
		FamilyName    string                    `json:"family_name,omitzero"`
		Status        Status                    `json:"userStatus"`
		Provider      string                    `json:"provider"`
		CreatedTime   time.Time                 `json:"createdTime"`
		CustomFields  map[string]jsontext.Value `json:"customFields"`
	}
	userRegistered struct {
		UserCreated
		Situation
	}
	userUpdated struct {
		Sub        string    `json:"sub"`
		IdentityID string    `json:"identityId,omitzero"`
		Timestamp  time.Time `json:"timestamp"`
		Fields     []string  `json:"fields"`
		Changes    any       `json:"changes,omitzero"`
	}
	statusChanged struct {
		Sub        string `json:"sub"`
		From       Status `json:"from"`
		To         Status `json:"to"`
		ReasonCode string `json:"reasonCode,omitzero"`
	}
	combinedChanged struct {
		Sub         string   `json:"sub"`         // of the account that goes on
		CombinedSub string   `json:"combinedSub"` // of the one that was merged into it, or is its own again
		IdentityIDs []string `json:"identityIds"`
		Conflicts   []string `json:"conflicts,omitzero"` // members of which the first account kept its own value
	}
	identityChanged struct {
		Sub        string `json:"sub"`
		IdentityID string `json:"identityId"`
		Provider   string `json:"provider"`
	}
	userLogin struct {
		Sub        string       `json:"sub"`
		IdentityID string       `json:"identity,omitzero"`
		Provider   string       `json:"provider"`
		Method     string       `json:"method,omitzero"`
		Reason     LoginRefusal `json:"reason,omitzero"`
		Time       time.Time    `json:"time"`
		Situation
	}
	memberChanged struct {
		Sub     string   `json:"sub"`
		GroupID string   `json:"groupId"`
		Roles   []string `json:"roles"`
	}
	groupLeft struct {
		Sub     string `json:"sub"`
		GroupID string `json:"groupId"`
	}
	schedulePlanned struct {
		Sub string `json:"sub"`
		SchedulePlanned
	}
	schedulePostponed struct {
		Sub string `json:"sub"`
		SchedulePostponed
	}
	scheduleCancelled struct {
		Sub string `json:"sub"`
		ScheduleCancelled
	}
	scheduleExecuted struct {
		Sub string `json:"sub"`
		ScheduleExecuted
	}
	reminder struct {
		Sub        string    `json:"sub"`
		ScheduleID string    `json:"scheduleId"`
		ReminderNo int       `json:"reminderNo,omitzero"`
		DueTime    time.Time `json:"dueTime"`
	}
	deletionScheduled struct {
		Sub     string    `json:"sub"`
		DueTime time.Time `json:"dueTime"`
	}
	deletionCancelled struct {
		Sub    string `json:"sub"`
		Status Status `json:"userStatus"` // restored
	}
	consentDecided struct {
		Sub       string    `json:"sub"`
		ConsentID string    `json:"consentId"`
		Version   int       `json:"version"`
		Time      time.Time `json:"time"`
	}
	configChanged struct {
		ID     string   `json:"id"`
		Fields []string `json:"fields,omitzero"`
	}
	webhookChanged struct {
		WebhookID string       `json:"webhookId"`
		Fields    []string     `json:"fields"`
		State     WebhookState `json:"state,omitzero"`
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
