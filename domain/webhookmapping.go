package domain

import (
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// WebhookMapping says what the data of a fields payload holds: under each name
// what is at a path of the public event. A path is type, timestamp, id, sub or
// sequence of the envelope, or a member of the event's data, and so of what
// changed: email is the address an account was created with or has changed to.
// A dot leads into customFields and address. What an event does not have is
// left out; of USER_UPDATED that is whatever did not change.
type WebhookMapping map[string]string

// MaxMapped is how many members a mapping may have.
const MaxMapped = 64

var mappedName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]{0,63}$`)

func (m WebhookMapping) faults(f *faults) {
	if len(m) == 0 || len(m) > MaxMapped {
		f.add("/mapping", "1 to %d members", MaxMapped)
		return
	}
	for name, path := range m {
		switch {
		case !mappedName.MatchString(name):
			f.add("/mapping", "names are a letter or underscore, and up to 63 letters, digits, dots, dashes and underscores")
		case !mappable(path):
			f.add("/mapping/"+name, "must be a member of public events, like email or customFields.tier")
		}
	}
}

// envelopeMembers are the members of public events outside their data.
var envelopeMembers = []string{"type", "timestamp", "id", "sub", "sequence"}

// mappable reports whether path leads to something in some public event.
func mappable(path string) bool {
	if slices.Contains(envelopeMembers, path) {
		return true
	}
	first, rest, deeper := strings.Cut(path, ".")
	switch {
	case first == "customFields" && deeper:
		return rest != "" && len(rest) <= 64
	case first == "address" && deeper:
		return slices.Contains(membersOfType(reflect.TypeFor[Address]()), rest)
	}
	return !deeper && slices.Contains(dataMembers(), first)
}

// publicData is a value of every type of data that public events carry.
var publicData = []any{
	userRegistered{}, userUpdated{}, Profile{}, statusChanged{}, combinedChanged{}, identityChanged{}, userLogin{}, memberChanged{}, groupLeft{},
	schedulePlanned{}, schedulePostponed{}, scheduleCancelled{}, scheduleExecuted{}, reminder{}, deletionScheduled{}, deletionCancelled{},
	consentDecided{}, configChanged{}, webhookChanged{}, deliveryHealth{}, deliveryGivenUp{},
}

var dataMembers = sync.OnceValue(func() (names []string) {
	for _, data := range publicData {
		names = append(names, membersOfType(reflect.TypeOf(data))...)
	}
	return names
})

// membersOfType are the names a struct's fields have in JSON.
func membersOfType(t reflect.Type) (names []string) {
	for i := range t.NumField() {
		field := t.Field(i)
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		if field.Anonymous && name == "" {
			names = append(names, membersOfType(field.Type)...)
			continue
		}
		names = append(names, name)
	}
	return names
}

// Apply is the data that m makes of e: a JSON object, sorted by name.
func (m WebhookMapping) Apply(e PublicEvent) (jsontext.Value, error) {
	var data, changes map[string]jsontext.Value
	if err := json.Unmarshal(e.Data, &data, trusted); err != nil {
		return nil, fmt.Errorf("domain: map %s: %T", e.Type, err)
	}
	if nested, ok := data["changes"]; ok {
		if err := json.Unmarshal(nested, &changes, trusted); err != nil {
			return nil, fmt.Errorf("domain: map %s: %T", e.Type, err)
		}
	}
	mapped := map[string]any{}
	for name, path := range m {
		if value, ok := e.envelope(path); ok {
			mapped[name] = value
		} else if value, ok := at(data, path); ok {
			mapped[name] = value
		} else if value, ok := at(changes, path); ok {
			mapped[name] = value
		}
	}
	return json.Marshal(mapped, json.Deterministic(true))
}

// envelope is the member of e outside its data.
func (e PublicEvent) envelope(name string) (any, bool) {
	switch name {
	case "type":
		return e.Type, true
	case "timestamp":
		return e.Time, true
	case "id":
		return e.ID, true
	case "sub":
		return e.Sub, e.Sub != ""
	case "sequence":
		return e.Sequence, true
	}
	return nil, false
}

// at is what a path leads to in an object.
func at(members map[string]jsontext.Value, path string) (jsontext.Value, bool) {
	first, rest, deeper := strings.Cut(path, ".")
	value, ok := members[first]
	if !ok || !deeper {
		return value, ok
	}
	var nested map[string]jsontext.Value
	if json.Unmarshal(value, &nested, trusted) != nil {
		return nil, false // an address that was removed, say
	}
	value, ok = nested[rest]
	return value, ok
}
