package domain

import (
	"fmt"
	"reflect"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Event is a fact in the past tense. Every field of an event is tagged
// pii:"clear", and then proved and kept forever, or pii:"seal", and then
// sealed under the account's own key until that is destroyed.
type Event interface{ eventType() string }

// decoders holds every event type there is, under its name and version. To
// add one, add a line here and a golden file under testdata/events.
var decoders = map[string]decoder{
	"account.created.v1":               decode[AccountCreated],
	"account.identity-linked.v1":       decode[IdentityLinked],
	"account.identity-unlinked.v1":     decode[IdentityUnlinked],
	"account.profile-updated.v1":       decode[ProfileUpdated],
	"account.status-changed.v1":        decode[StatusChanged],
	"account.custom-fields-updated.v1": decode[CustomFieldsUpdated],
	"account.merged.v1":                decode[AccountMerged],
	"account.combined.v1":              decode[AccountCombined],
	"account.separated.v1":             decode[AccountSeparated],
	"account.restored.v1":              decode[AccountRestored],
	"account.identities-returned.v1":   decode[IdentitiesReturned],
	"account.schedule-planned.v1":      decode[SchedulePlanned],
	"account.schedule-postponed.v1":    decode[SchedulePostponed],
	"account.schedule-cancelled.v1":    decode[ScheduleCancelled],
	"account.schedule-executed.v1":     decode[ScheduleExecuted],
	"account.deletion-scheduled.v1":    decode[DeletionScheduled],
	"account.deletion-cancelled.v1":    decode[DeletionCancelled],
	"account.consent-decided.v1":       decode[ConsentDecided],
	"account.erased.v1":                decode[AccountErased],
	"account.group-joined.v1":          decode[GroupJoined],
	"account.group-roles-changed.v1":   decode[GroupRolesChanged],
	"account.group-left.v1":            decode[GroupLeft],
	"account.login-recorded.v1":        decode[LoginRecorded],
	"account.login-failed.v1":          decode[LoginFailed],
	"login.unknown.v1":                 decode[UnknownLogin],
	"role.set.v1":                      decode[RoleSet],
	"role.deleted.v1":                  decode[RoleDeleted],
	"group-type.set.v1":                decode[GroupTypeSet],
	"group-type.deleted.v1":            decode[GroupTypeDeleted],
	"group.set.v1":                     decode[GroupSet],
	"group.deleted.v1":                 decode[GroupDeleted],
	"account.erasure-completed.v1":     decode[ErasureCompleted],
	"schedule-setup.set.v1":            decode[ScheduleSetupSet],
	"schedule-setup.deleted.v1":        decode[ScheduleSetupDeleted],
	"field.set.v1":                     decode[FieldSet],
	"field.deleted.v1":                 decode[FieldDeleted],
	"consent-definition.set.v1":        decode[ConsentDefinitionSet],
	"consent-definition.deleted.v1":    decode[ConsentDefinitionDeleted],
	"webhook.created.v1":               decode[WebhookCreated],
	"webhook.updated.v1":               decode[WebhookUpdated],
	"webhook.key-rotated.v1":           decode[WebhookKeyRotated],
	"webhook.state-changed.v1":         decode[WebhookStateChanged],
	"webhook.deleted.v1":               decode[WebhookDeleted],
	"command.remembered.v1":            decode[CommandRemembered],
	"api-key.created.v1":               decode[APIKeyCreated],
	"api-key.updated.v1":               decode[APIKeyUpdated],
	"api-key.revoked.v1":               decode[APIKeyRevoked],
	"webhook.verified.v1":              decode[WebhookVerified],
	"webhook.delivery-failing.v1":      decode[WebhookDeliveryFailing],
	"webhook.delivery-recovered.v1":    decode[WebhookDeliveryRecovered],
	"webhook.delivery-exhausted.v1":    decode[WebhookDeliveryExhausted],
}

// upcasters bring an event written in an older version to the next one, JSON
// to JSON, one step at a time, so that nobody else ever sees the older one.
// The rows of the log are never rewritten.
var upcasters = map[string]upcaster{}

// upcaster takes and returns the members of the two parts of an event;
// personal is nil where they were erased.
type upcaster struct {
	to     string
	upcast func(clear, personal jsontext.Value) (jsontext.Value, jsontext.Value, error)
}

// document is one part of an event as it is recorded: what of it is clear, and
// what of it is sealed, are two documents with different members filled.
type document[D any] struct {
	Meta    *Metadata `json:"meta,omitzero"`
	Data    D         `json:"data"`
	Request string    `json:"request,omitzero"` // see Metadata.requestHash
}

// decoder makes an event of its two documents, and fills in its metadata.
// Without the personal one, because it was erased, those fields stay empty.
type decoder func(clear, personal []byte, m *Metadata) (Event, error)

// What we wrote has no duplicate names; looking for some takes a third of the time.
var trusted = jsontext.AllowDuplicateNames(true)

func decode[E Event](clear, personal []byte, m *Metadata) (Event, error) {
	var e E
	d := document[*E]{Meta: m, Data: &e}
	if err := json.Unmarshal(clear, &d, trusted); err != nil {
		return nil, err
	}
	if personal != nil {
		if err := json.Unmarshal(personal, &d, trusted); err != nil {
			return nil, err
		}
		m.requestHash = d.Request
	}
	return e, nil
}

// DecodeEvent makes an event of what the log holds of it: the two documents,
// the personal one nil where it was erased. A type it does not know is an
// error: it was written by a newer version of this program.
func DecodeEvent(eventType string, clear, personal []byte) (Event, Metadata, error) {
	var m Metadata
	for {
		up, old := upcasters[eventType]
		if !old {
			break
		}
		var err error
		if clear, personal, err = up.documents(clear, personal); err != nil {
			return nil, m, fmt.Errorf("domain: upcast %s to %s: %T", eventType, up.to, err)
		}
		eventType = up.to
	}
	decode, ok := decoders[eventType]
	if !ok {
		return nil, m, fmt.Errorf("domain: unknown event type %q: written by a newer version?", eventType)
	}
	e, err := decode(clear, personal, &m)
	if err != nil {
		// The error's text may quote what it stumbled over.
		return nil, m, fmt.Errorf("domain: decode %s: %T", eventType, err)
	}
	return e, m, nil
}

// documents upcasts the members of two documents and leaves the rest.
func (u upcaster) documents(clear, personal []byte) ([]byte, []byte, error) {
	var c, p document[jsontext.Value]
	if err := json.Unmarshal(clear, &c); err != nil {
		return nil, nil, err
	}
	if personal != nil {
		if err := json.Unmarshal(personal, &p); err != nil {
			return nil, nil, err
		}
	}
	var err error
	if c.Data, p.Data, err = u.upcast(c.Data, p.Data); err != nil {
		return nil, nil, err
	}
	if clear, err = json.Marshal(c); err != nil || personal == nil {
		return clear, nil, err
	}
	personal, err = json.Marshal(p)
	return clear, personal, err
}

// part selects fields of an event by their tag.
type part string

const (
	clearPart    part = "clear"
	personalPart part = "seal"
)

// encodeClear returns the clear document of an event.
func encodeClear(e Event, m Metadata) ([]byte, error) {
	d := document[members]{Meta: &m, Data: members{e, clearPart}}
	return json.Marshal(d, trusted, json.Deterministic(true))
}

// encodePersonal returns the personal document of an event, nil if there is
// nothing personal about it.
func encodePersonal(e Event, m Metadata) ([]byte, error) {
	d := document[members]{Data: members{e, personalPart}, Request: m.requestHash}
	if d.Data.empty() && d.Request == "" {
		return nil, nil
	}
	return json.Marshal(d, trusted, json.Deterministic(true))
}

// members is the JSON object of an event's fields of one part, without the
// empty ones.
type members struct {
	event Event
	part  part
}

func (m members) empty() bool {
	v := reflect.ValueOf(m.event)
	for i := range v.NumField() {
		if part(v.Type().Field(i).Tag.Get("pii")) == m.part && !v.Field(i).IsZero() {
			return false
		}
	}
	return true
}

// MarshalJSONTo writes the object.
func (m members) MarshalJSONTo(enc *jsontext.Encoder) error {
	v := reflect.ValueOf(m.event)
	if err := enc.WriteToken(jsontext.BeginObject); err != nil {
		return err
	}
	for i := range v.NumField() {
		field, value := v.Type().Field(i), v.Field(i)
		if part(field.Tag.Get("pii")) != m.part || value.IsZero() {
			continue
		}
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		if err := enc.WriteToken(jsontext.String(name)); err != nil {
			return err
		}
		if err := json.MarshalEncode(enc, value.Interface()); err != nil {
			return err
		}
	}
	return enc.WriteToken(jsontext.EndObject)
}
