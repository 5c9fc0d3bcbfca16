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
	"account.erased.v1":                decode[AccountErased],
	"webhook.created.v1":               decode[WebhookCreated],
	"webhook.state-changed.v1":         decode[WebhookStateChanged],
	"webhook.deleted.v1":               decode[WebhookDeleted],
}

// decoder makes an event of its clear and its personal members. Without the
// personal ones, because they were erased, those fields stay empty.
type decoder func(clear, personal jsontext.Value) (Event, error)

func decode[E Event](clear, personal jsontext.Value) (Event, error) {
	var e E
	if err := json.Unmarshal(clear, &e); err != nil {
		return nil, err
	}
	if personal != nil {
		if err := json.Unmarshal(personal, &e); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// upcasters bring an event written in an older version to the next one, JSON
// to JSON, one step at a time, so that nobody else ever sees the older one.
// The rows of the log are never rewritten.
var upcasters = map[string]upcaster{}

type upcaster struct {
	to     string
	upcast func(clear, personal jsontext.Value) (jsontext.Value, jsontext.Value, error)
}

// DecodeEvent makes an event of what the log holds of it. A type it does not
// know is an error: it was written by a newer version of this program.
func DecodeEvent(eventType string, clear, personal jsontext.Value) (Event, error) {
	for {
		up, old := upcasters[eventType]
		if !old {
			break
		}
		var err error
		if clear, personal, err = up.upcast(clear, personal); err != nil {
			return nil, fmt.Errorf("domain: upcast %s to %s: %w", eventType, up.to, err)
		}
		eventType = up.to
	}
	decode, ok := decoders[eventType]
	if !ok {
		return nil, fmt.Errorf("domain: unknown event type %q: written by a newer version?", eventType)
	}
	e, err := decode(clear, personal)
	if err != nil {
		// A decoding error may quote what it stumbled over.
		return nil, fmt.Errorf("domain: decode %s: %T", eventType, err)
	}
	return e, nil
}

// part selects fields of an event by their tag.
type part string

const (
	clearPart    part = "clear"
	personalPart part = "seal"
)

// appendPart appends the JSON object of e's fields of one part; empty fields
// are left out. It reports whether any was there.
func appendPart(enc *jsontext.Encoder, e Event, p part) (any bool, err error) {
	v := reflect.ValueOf(e)
	if err := enc.WriteToken(jsontext.BeginObject); err != nil {
		return false, err
	}
	for i := range v.NumField() {
		field, value := v.Type().Field(i), v.Field(i)
		if part(field.Tag.Get("pii")) != p || value.IsZero() {
			continue
		}
		any = true
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		if err := enc.WriteToken(jsontext.String(name)); err != nil {
			return false, err
		}
		if err := json.MarshalEncode(enc, value.Interface(), json.Deterministic(true)); err != nil {
			return false, err
		}
	}
	return any, enc.WriteToken(jsontext.EndObject)
}
