package domain

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"accountledger/eventstore"
)

// Event is a fact, named in the past tense. Every field of an event has a tag:
// pii:"clear" fields are covered by the log's proofs and kept forever; pii:"seal"
// fields are encrypted under the account's own key until that key is destroyed.
type Event interface {
	eventType() string

	// public returns what external systems receive of x, whose event this is, under
	// names that the Catalogue lists. It returns internal if they receive nothing.
	public(x Entry) []publicEvent
}

// events lists a zero value of every event. Catalogue follows their order.
var events = []Event{
	AccountCreated{},
	ProfileUpdated{},
	CustomFieldsUpdated{},
	StatusChanged{},
	DeletionScheduled{},
	DeletionCancelled{},
	AccountErased{},
	ErasureCompleted{},
	LoginRecorded{},
	LoginFailed{},
	UnknownLogin{},
	IdentityLinked{},
	IdentityUnlinked{},
	AccountMerged{},
	AccountCombined{},
	AccountSeparated{},
	AccountRestored{},
	IdentitiesReturned{},
	GroupJoined{},
	GroupRolesChanged{},
	GroupLeft{},
	ConsentDecided{},
	SchedulePlanned{},
	SchedulePostponed{},
	ScheduleCancelled{},
	ScheduleExecuted{},

	ConsentDefinitionSet{},
	ConsentDefinitionDeleted{},
	FieldSet{},
	FieldDeleted{},
	GroupSet{},
	GroupDeleted{},
	GroupTypeSet{},
	GroupTypeDeleted{},
	RoleSet{},
	RoleDeleted{},
	ScheduleSetupSet{},
	ScheduleSetupDeleted{},
	APIKeyCreated{},
	APIKeyUpdated{},
	APIKeyRevoked{},
	WebhookCreated{},
	WebhookUpdated{},
	WebhookKeyRotated{},
	WebhookStateChanged{},
	WebhookVerified{},
	WebhookDeleted{},
	WebhookDeliveryFailing{},
	WebhookDeliveryRecovered{},
	WebhookDeliveryExhausted{},
	LedgerForked{},

	CommandRemembered{},
}

// decoders finds the decoder of an event by its event type.
var decoders = func() map[string]decoder {
	all := make(map[string]decoder, len(events))
	for _, e := range events {
		if all[e.eventType()] != nil {
			panic("domain: two events have the type " + e.eventType())
		}
		all[e.eventType()] = decoderOf(reflect.TypeOf(e))
	}
	return all
}()

// TypeOf returns the current type of e, "" for nil. The log may hold older events
// of the same kind under an older type; see CurrentType.
func TypeOf(e Event) string {
	if e == nil {
		return ""
	}
	return e.eventType()
}

// upcasters bring an event written in an older version to the next one, JSON
// to JSON, one step at a time, so that no other code sees the older one.
// The rows of the log are never rewritten.
var upcasters = map[string]upcaster{}

// upcaster takes and returns the members of the two parts of an event. personal is
// nil if it was erased.
type upcaster struct {
	to     string
	upcast func(clear, personal jsontext.Value) (jsontext.Value, jsontext.Value, error)
}

// document is one part of an event as it is recorded. The clear and the sealed
// fields are in two documents, with different members set.
type document[D any] struct {
	Meta    *Metadata `json:"meta,omitzero"`
	Data    D         `json:"data"`
	Request string    `json:"request,omitzero"` // see Metadata.requestHash
}

// decoder decodes the two documents of an event and fills in its metadata.
// personal is nil if it was erased; the personal fields then stay empty.
type decoder func(clear, personal []byte, m *Metadata) (Event, error)

// The ledger writes no duplicate names; checking for them takes a third of the time.
var trusted = jsontext.AllowDuplicateNames(true)

// decoderOf returns the decoder of the events of one Go type.
func decoderOf(event reflect.Type) decoder {
	return func(clear, personal []byte, m *Metadata) (Event, error) {
		e := reflect.New(event)
		d := document[into]{Meta: m, Data: into{e.Interface()}}
		if err := json.Unmarshal(clear, &d, trusted); err != nil {
			return nil, err
		}
		if personal != nil {
			if err := json.Unmarshal(personal, &d, trusted); err != nil {
				return nil, err
			}
			m.requestHash = d.Request
		}
		return e.Elem().Interface().(Event), nil
	}
}

// into decodes a JSON value into the variable behind a pointer, on top of its
// present value.
type into struct{ pointer any }

// UnmarshalJSONFrom implements json.UnmarshalerFrom.
func (i into) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	return json.UnmarshalDecode(dec, i.pointer)
}

// CurrentType follows the upcasters from the type an event is stored under to
// the type it has today. Nothing else may compare a stored type: TestStoredTypes
// holds all packages to that.
func CurrentType(stored string) string {
	for {
		up, old := upcasters[stored]
		if !old {
			return stored
		}
		stored = up.to
	}
}

// StoredTypes returns every type that the log may hold an event of e's type
// under, for queries that select rows by type. The current one comes first.
func StoredTypes(e Event) []string {
	types := []string{TypeOf(e)}
	for stored := range upcasters {
		if CurrentType(stored) == types[0] {
			types = append(types, stored)
		}
	}
	slices.Sort(types[1:])
	return types
}

// Is reports whether rec holds an event of type E, in whichever version.
func Is[E Event](rec *eventstore.Recorded) bool {
	var e E
	return CurrentType(rec.Type) == e.eventType()
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

// encodePersonal returns the personal document of an event, nil if the event has no
// personal data.
func encodePersonal(e Event, m Metadata) ([]byte, error) {
	d := document[members]{Data: members{e, personalPart}, Request: m.requestHash}
	if d.Data.empty() && d.Request == "" {
		return nil, nil
	}
	return json.Marshal(d, trusted, json.Deterministic(true))
}

// members encodes the non-empty fields of one part of an event as a JSON object.
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

// MarshalJSONTo implements json.MarshalerTo.
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
