package domain

import (
	"bytes"
	"maps"
	"regexp"
	"slices"

	"github.com/go-json-experiment/json/jsontext"
)

// Limits of custom fields. A whole account must stay a small document.
const (
	maxCustomFields     = 200
	maxCustomFieldValue = 16 << 10 // bytes of JSON
)

var customFieldKey = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]{0,63}$`)

// CustomFieldsUpdated sets fields of an application's own; null unsets.
type CustomFieldsUpdated struct {
	Fields []string                  `json:"fields" pii:"clear"`         // keys of Values, sorted
	Values map[string]jsontext.Value `json:"values,omitzero" pii:"seal"` // unknown fields are personal
}

func (CustomFieldsUpdated) eventType() string { return "account.custom-fields-updated.v1" }

func (e CustomFieldsUpdated) evolve(a Account, _ Entry) Account {
	a.CustomFields = maps.Clone(a.CustomFields)
	for key, value := range e.Values {
		if value.Kind() == 'n' {
			delete(a.CustomFields, key)
		} else {
			a.CustomFields[key] = value
		}
	}
	a.CombinedFrom = changedSince(a.CombinedFrom, e.Fields)
	a.UserIDs = userIDs(a)
	return a
}

// SetCustomFields sets the fields given and leaves the others; null unsets.
type SetCustomFields struct {
	Values map[string]jsontext.Value
}

func (SetCustomFields) command() {}

func (c SetCustomFields) decide(_ Setting, a Account) ([]Event, error) {
	var f faults
	values := f.customFields("", c.Values)
	left := len(a.CustomFields)
	for key, value := range values {
		old, had := a.CustomFields[key]
		unset := value.Kind() == 'n'
		switch {
		case !had && unset, had && bytes.Equal(old, value):
			delete(values, key)
		case had && unset:
			left--
		case !had:
			left++
		}
	}
	if left > maxCustomFields {
		f.add("", "an account has at most %d custom fields", maxCustomFields)
	}
	if err := f.err(); err != nil || len(values) == 0 {
		return nil, err
	}
	return []Event{CustomFieldsUpdated{Fields: slices.Sorted(maps.Keys(values)), Values: values}}, nil
}

// customFields checks keys and values and returns the values in canonical
// form (RFC 8785), so that equal values are equal bytes.
func (f *faults) customFields(pointer string, values map[string]jsontext.Value) map[string]jsontext.Value {
	canonical := make(map[string]jsontext.Value, len(values))
	for _, key := range slices.Sorted(maps.Keys(values)) {
		value := values[key].Clone()
		at := pointer + "/" + string(jsontext.Pointer("").AppendToken(key)[1:])
		switch {
		case !customFieldKey.MatchString(key):
			f.add(pointer, "a field key is a letter and up to 63 letters, digits, '_', '.' or '-'")
		case len(value) > maxCustomFieldValue:
			f.add(at, "at most %d bytes", maxCustomFieldValue)
		case value.Canonicalize() != nil:
			f.add(at, "not valid JSON")
		default:
			canonical[key] = value
		}
	}
	if len(values) > maxCustomFields {
		f.add(pointer, "at most %d custom fields", maxCustomFields)
	}
	return canonical
}
