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

// WebhookMapping defines the data of a payload with the setting fields: for each
// name, the path of its value in the public event. A path is type, timestamp, id,
// sub, stream or sequence of the envelope, or a member of the event's data or of
// the changes in it: email is the address an account was created with, or its new
// one.
// A dot leads into customFields and address. Values that an event lacks are left
// out; in USER_UPDATED these are all unchanged ones.
type WebhookMapping map[string]string

// MaxMapped is the maximum number of members of a mapping.
const MaxMapped = 64

var mappedName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]{0,63}$`)

func (m WebhookMapping) faults(f *faults) {
	if len(m) == 0 || len(m) > MaxMapped {
		f.add("/mapping", "must have 1 to %d members", MaxMapped)
		return
	}
	for name, path := range m {
		switch {
		case !mappedName.MatchString(name):
			f.add("/mapping", "names must be a letter or underscore followed by up to 63 letters, digits, dots, dashes or underscores")
		case !mappable(path):
			f.add("/mapping/"+name, "must be a member of public events, such as email or customFields.tier")
		}
	}
}

// envelopeMembers lists the members of a public event outside its data.
var envelopeMembers = []string{"type", "timestamp", "id", "sub", "stream", "sequence"}

// mappable reports whether path can exist in a public event.
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

// dataMembers lists the members of all data of public events, and of the profiles
// in their changes.
var dataMembers = sync.OnceValue(func() []string {
	names := membersOfType(reflect.TypeFor[Profile]())
	for _, t := range Catalogue {
		names = append(names, membersOfType(reflect.TypeOf(t.Data))...)
	}
	return names
})

// membersOfType returns the JSON names of a struct's fields.
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

// Apply returns the data that m selects from e: a JSON object, sorted by name.
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

// envelope returns a member of e outside its data.
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
	case "stream":
		return e.Stream, true
	case "sequence":
		return e.Sequence, true
	}
	return nil, false
}

// at returns the value at a path in an object.
func at(members map[string]jsontext.Value, path string) (jsontext.Value, bool) {
	first, rest, deeper := strings.Cut(path, ".")
	value, ok := members[first]
	if !ok || !deeper {
		return value, ok
	}
	var nested map[string]jsontext.Value
	if json.Unmarshal(value, &nested, trusted) != nil {
		return nil, false // for example an address that was removed
	}
	value, ok = nested[rest]
	return value, ok
}
