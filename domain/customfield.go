package domain

import (
	"bytes"
	"maps"
	"regexp"
	"slices"

	"github.com/go-json-experiment/json/jsontext"
)

// Limits of custom fields. They keep the account a small document.
const (
	maxCustomFields     = 200
	maxCustomFieldValue = 16 << 10 // bytes of JSON
	maxClearValues      = 16 << 10 // bytes of JSON in one change: the log limits the clear part of an event
)

var customFieldKey = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]{0,63}$`)

// CustomFieldsUpdated sets custom fields; null unsets one.
type CustomFieldsUpdated struct {
	Fields      []string                  `json:"fields" pii:"clear"`               // keys of Values and ClearValues, sorted
	Values      map[string]jsontext.Value `json:"values,omitzero" pii:"seal"`       // personal: those of undefined fields, too
	ClearValues map[string]jsontext.Value `json:"clearValues,omitzero" pii:"clear"` // of fields defined as not personal
	FieldClaims map[string]Kind           `json:"fieldClaims,omitzero" pii:"clear"` // those of the fields whose values are unique, with their kinds
}

func (CustomFieldsUpdated) eventType() string { return "account.custom-fields-updated.v1" }

func (e CustomFieldsUpdated) evolve(a Account, _ Entry) Account {
	a.CustomFields = maps.Clone(a.CustomFields)
	claims := maps.Clone(a.FieldClaims)
	for _, values := range []map[string]jsontext.Value{e.Values, e.ClearValues} {
		for key, value := range values {
			delete(claims, key)
			if value.Kind() == 'n' {
				delete(a.CustomFields, key)
				continue
			}
			a.CustomFields[key] = value
			if kind, ok := e.FieldClaims[key]; ok {
				claims = with(claims, key, kind)
			}
		}
	}
	if a.FieldClaims = claims; len(claims) == 0 {
		a.FieldClaims = nil
	}
	a.CombinedFrom = changedSince(a.CombinedFrom, e.Fields)
	a.UserIDs = userIDs(a)
	return a
}

func (e CustomFieldsUpdated) public(x Entry) []publicEvent {
	return []publicEvent{{"USER_UPDATED", userUpdated{x.Sub(), "", x.OccurredTime(), prefixed("customFields.", e.Fields), map[string]any{"customFields": e.all()}}}}
}

// all returns the personal and the clear values of e.
func (e CustomFieldsUpdated) all() map[string]jsontext.Value { return merged(e.Values, e.ClearValues) }

func merged(a, b map[string]jsontext.Value) map[string]jsontext.Value {
	if len(b) == 0 {
		return a
	}
	all := maps.Clone(b)
	maps.Copy(all, a)
	return all
}

// with sets a member of m, which it allocates if it is nil, and returns m.
func with[V any](m map[string]V, key string, value V) map[string]V {
	if m == nil {
		m = map[string]V{}
	}
	m[key] = value
	return m
}

// customFieldsUpdated returns the event that makes changes, which must have been
// checked. It records what the fold needs of the field definitions, because these
// may have changed when the event is folded again.
func (c *Config) customFieldsUpdated(changes map[string]jsontext.Value) CustomFieldsUpdated {
	e := CustomFieldsUpdated{Fields: slices.Sorted(maps.Keys(changes))}
	for _, key := range e.Fields {
		f, defined := c.Fields[key]
		if defined && !f.Personal {
			e.ClearValues = with(e.ClearValues, key, changes[key])
		} else {
			e.Values = with(e.Values, key, changes[key])
		}
		if kind := f.claim(); kind != "" && changes[key].Kind() != 'n' {
			e.FieldClaims = with(e.FieldClaims, key, kind)
		}
	}
	return e
}

// SetCustomFields sets the given fields and leaves the others; null unsets one.
// Values of defined fields must meet their definition. Undefined keys are
// allowed: their values are any JSON, and personal.
type SetCustomFields struct {
	Values map[string]jsontext.Value
}

func (SetCustomFields) command() {}

func (c SetCustomFields) decide(s Setting, a Account) ([]Event, error) {
	var f faults
	changes := f.customFields(s, "", a.CustomFields, c.Values)
	left := len(a.CustomFields)
	for key, value := range changes {
		switch _, had := a.CustomFields[key]; {
		case value.Kind() == 'n':
			left--
		case !had:
			left++
		}
	}
	if left > maxCustomFields {
		f.add("", "an account can have at most %d custom fields", maxCustomFields)
	}
	if err := f.err(); err != nil || len(changes) == 0 {
		return nil, err
	}
	return append([]Event{s.Config.customFieldsUpdated(changes)}, linkedDecisions(s, a, changes)...), nil
}

// customFields checks keys and values against their definitions and returns those
// that differ from the old ones. Values are in canonical JSON (RFC 8785), so that
// equal values are equal bytes.
func (f *faults) customFields(s Setting, pointer string, old, values map[string]jsontext.Value) map[string]jsontext.Value {
	changes := make(map[string]jsontext.Value, len(values))
	clear := 0
	for _, key := range slices.Sorted(maps.Keys(values)) {
		at := pointer + "/" + string(jsontext.Pointer("").AppendToken(key)[1:])
		field, defined := s.Config.Fields[key]
		switch {
		case !customFieldKey.MatchString(key):
			f.add(pointer, "a field key must be a letter followed by up to 63 letters, digits, '_', '.' or '-'")
			continue
		case field.Internal && !s.Admin: // also if nothing would change: otherwise a caller could guess values
			f.add(at, "only an administrator may change this field")
			continue
		}
		value, ok := f.customField(at, field, values[key])
		had := old[key]
		unset := value.Kind() == 'n'
		switch {
		case !ok, had == nil && unset, had != nil && bytes.Equal(had, value):
			continue
		case field.ReadOnly && !s.Admin:
			f.add(at, "only an administrator may change this field")
		case field.Required && unset:
			f.add(at, "required: cannot be unset")
		}
		if changes[key] = value; defined && !field.Personal {
			clear += len(value)
		}
	}
	if clear > maxClearValues {
		f.add(pointer, "values of fields that are not personal can have at most %d bytes in one request", maxClearValues)
	}
	if len(values) > maxCustomFields {
		f.add(pointer, "at most %d custom fields", maxCustomFields)
	}
	return changes
}

// customField checks one value. An undefined field takes any value.
func (f *faults) customField(at string, field Field, given jsontext.Value) (value jsontext.Value, ok bool) {
	value = given.Clone()
	if len(value) > maxCustomFieldValue {
		f.add(at, "at most %d bytes", maxCustomFieldValue)
		return nil, false
	}
	if rule, defined := field.DataType.rule(); defined && value.Kind() != 'n' {
		checked, wrong := rule.check(field, value)
		if wrong != "" {
			f.add(at, "%s", wrong)
			return nil, false
		}
		value = checked
	}
	if value.Canonicalize() != nil {
		f.add(at, "must be valid JSON")
		return nil, false
	}
	return value, true
}

// requiredFields reports the required fields that a new account lacks, except
// those that the caller may not write. An imported account may lack them: it is
// reported as not conforming.
func (f *faults) requiredFields(s Setting, origin Origin, given map[string]jsontext.Value) {
	if origin == OriginImported {
		return
	}
	for key, field := range s.Config.Fields {
		value, ok := given[key]
		if field.Required && (!ok || value.Kind() == 'n') && (s.Admin || !field.ReadOnly && !field.Internal) {
			f.add("/customFields/"+key, "required")
		}
	}
}
