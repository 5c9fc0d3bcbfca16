package domain

import "github.com/go-json-experiment/json/jsontext"

func (CustomFieldsUpdated) sample() sample {
	return sample{event: CustomFieldsUpdated{Fields: []string{"employee_id", "tier"},
		Values: map[string]jsontext.Value{"employee_id": value("null")}, ClearValues: map[string]jsontext.Value{"tier": value(`"gold"`)},
		FieldClaims: map[string]Kind{"tier": "customFields.tier"}},
		clear: "Fields ClearValues FieldClaims"}
}
