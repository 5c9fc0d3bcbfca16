package domain

import (
	"testing"

	"github.com/go-json-experiment/json/jsontext"
)

func (CustomFieldsUpdated) sample() sample {
	return sample{event: CustomFieldsUpdated{Fields: []string{"employee_id", "tier"},
		Values: map[string]jsontext.Value{"employee_id": value("null")}, ClearValues: map[string]jsontext.Value{"tier": value(`"gold"`)},
		FieldClaims: map[string]Kind{"tier": "customFields.tier"}},
		clear: "Fields ClearValues FieldClaims"}
}

func TestSetCustomFields(t *testing.T) {
	decide(t, []decision{
		{name: "set fields", given: []Event{adaCreated}, when: SetCustomFields{map[string]jsontext.Value{"tier": value(`"gold"`), "gone": value("null"), "n": value("1.0")}},
			then: []Event{CustomFieldsUpdated{Fields: []string{"n", "tier"}, Values: map[string]jsontext.Value{"tier": value(`"gold"`), "n": value("1")}}}},
		{name: "set the same fields", given: []Event{adaCreated, CustomFieldsUpdated{Fields: []string{"o"}, Values: map[string]jsontext.Value{"o": value(`{"a":1,"b":2}`)}}},
			when: SetCustomFields{map[string]jsontext.Value{"o": value(`{ "b": 2, "a": 1 }`)}}},
		{name: "unset a field", given: []Event{adaCreated, CustomFieldsUpdated{Fields: []string{"tier"}, Values: map[string]jsontext.Value{"tier": value(`"gold"`)}}},
			when: SetCustomFields{map[string]jsontext.Value{"tier": value("null")}},
			then: []Event{CustomFieldsUpdated{Fields: []string{"tier"}, Values: map[string]jsontext.Value{"tier": value("null")}}}},
		{name: "set a field with a bad key", given: []Event{adaCreated}, when: SetCustomFields{map[string]jsontext.Value{"a b": value("1")}}, code: CodeInvalidRequest, faults: []string{""}},
	})
}
