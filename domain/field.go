package domain

import (
	"math"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/text/language"

	"accountledger/eventstore"
)

// FieldDefinition is an operator's definition of a custom field.
type FieldDefinition struct {
	FieldKey   string   `json:"fieldKey" doc:"The field's key. It never changes."`
	DataType   DataType `json:"dataType" doc:"The type of the values: TEXT, NUMBER, SELECT and so on."`
	Required   bool     `json:"required" doc:"Whether a new account must have a value, unless it is imported. A required field cannot be unset."`
	ReadOnly   bool     `json:"readOnly" doc:"Whether only callers with the scope accounts:admin may change the field."`
	Internal   bool     `json:"internal" doc:"Whether only callers with the scope accounts:admin may see and change the field. Webhooks never contain it."`
	Unique     bool     `json:"unique" doc:"Whether values are unique across accounts, ignoring case. USERNAME fields always are."`
	Searchable bool     `json:"searchable" doc:"Whether accounts can be searched by this field."`
	Personal   bool     `json:"personal" doc:"Whether values are personal data, which is sealed and can be erased. Default true."`

	Min       *float64 `json:"min,omitzero" doc:"The smallest allowed NUMBER."`
	Max       *float64 `json:"max,omitzero" doc:"The largest allowed NUMBER."`
	MinLength int      `json:"minLength,omitzero" doc:"Minimum length in characters, or number of elements."`
	MaxLength int      `json:"maxLength,omitzero" doc:"Maximum length in characters, or number of elements; 0 for the limit of the data type."`
	Regex     string   `json:"regex,omitzero" doc:"An RE2 regular expression that must match the whole value."`
	Options   []string `json:"options,omitzero" doc:"The allowed options."`

	Labels        map[string]string `json:"labels,omitzero" doc:"Display names, by language tag."`
	LinkedConsent string            `json:"linkedConsent,omitzero" doc:"The consentId of a linked consent: true accepts it, any other value revokes it."`
}

// Field is a defined custom field.
type Field struct {
	FieldDefinition
	Revision eventstore.Revision `json:"revision" doc:"Revision of the configuration in which the field last changed. Also the ETag."`

	pattern *regexp.Regexp // compiled from Regex, nil without one
}

// FieldSet defines a custom field or changes its definition.
type FieldSet struct {
	Field   FieldDefinition `json:"field" pii:"clear"`
	Created bool            `json:"created,omitzero" pii:"clear"` // the key had no definition
	Fields  []string        `json:"fields" pii:"clear"`           // names of the members that changed
}

func (FieldSet) eventType() string { return "field.set.v1" }

func (e FieldSet) evolve(c *Config, x Entry) {
	f := Field{FieldDefinition: e.Field, Revision: x.Revision}
	f.pattern, _ = compilePattern(f.Regex) // PutField has checked it
	c.Fields[f.FieldKey] = f
	c.hidden = hidden(c.Fields)
}

func (e FieldSet) public(Entry) []publicEvent {
	return objectSet("FIELD", e.Created, e.Field.FieldKey, e.Fields)
}

func (FieldSet) catalogue() []PublicType { return objectSetTypes("FIELD", "a custom field") }

// FieldDeleted removes a definition. Accounts keep their values, as those of an
// undefined field.
type FieldDeleted struct {
	FieldKey string `json:"fieldKey" pii:"clear"`
}

func (FieldDeleted) eventType() string { return "field.deleted.v1" }

func (e FieldDeleted) evolve(c *Config, _ Entry) {
	delete(c.Fields, e.FieldKey)
	c.hidden = hidden(c.Fields)
}

func (e FieldDeleted) public(Entry) []publicEvent { return objectDeleted("FIELD", e.FieldKey) }

func (FieldDeleted) catalogue() []PublicType {
	return objectDeletedTypes("FIELD", "a custom field is deleted")
}

// claim returns the kind under which values of the field are claimed, "" if they
// need not be unique.
func (f Field) claim() Kind {
	switch {
	case f.DataType == TypeUsername:
		return KindUsername
	case f.Unique:
		return fieldClaim(f.FieldKey)
	}
	return ""
}

// fieldClaim returns the kind under which values of a unique field are claimed.
func fieldClaim(key string) Kind { return Kind("customFields." + key) }

func compilePattern(regex string) (*regexp.Regexp, error) {
	if regex == "" {
		return nil, nil
	}
	if _, err := regexp.Compile(regex); err != nil {
		return nil, err // checked alone first, so that it cannot close the parentheses below
	}
	return regexp.Compile(`\A(?:` + regex + `)\z`)
}

// PutField defines a custom field or changes its definition. Unless Force is set,
// a change that existing values would break is refused.
type PutField struct {
	FieldDefinition
	Force bool // accept that some accounts no longer conform

	conflicting int64 // accounts that prevent the change
}

func (p PutField) revision(c *Config) eventstore.Revision { return fieldRevision(c, p.FieldKey) }

func fieldRevision(c *Config, key string) eventstore.Revision {
	if f, ok := c.Fields[key]; ok {
		return f.Revision
	}
	return eventstore.NoStream
}

// inspect selects the accounts that have a value, if the field becomes an
// identifier or stops being one, and otherwise those whose value the new rules
// refuse.
func (p PutField) inspect(c *Config) func(Account) bool {
	f, err := p.field(c)
	old, defined := c.Fields[p.FieldKey]
	switch {
	case err != nil:
		return nil
	case f.claim() != old.claim():
		return hasField(p.FieldKey)
	case p.Force, defined && reflect.DeepEqual(f.rules(), old.rules()):
		return nil
	}
	return func(a Account) bool { return f.fault(a) != "" }
}

// rules returns the part of a definition that decides which values are valid.
func (d FieldDefinition) rules() FieldDefinition {
	return FieldDefinition{DataType: d.DataType, Required: d.Required, Min: d.Min, Max: d.Max,
		MinLength: d.MinLength, MaxLength: d.MaxLength, Regex: d.Regex, Options: d.Options}
}

func hasField(key string) func(Account) bool {
	return func(a Account) bool { _, has := a.CustomFields[key]; return has }
}

func (p PutField) inspected(n int64) ConfigCommand {
	p.conflicting = n
	return p
}

// fault returns the rule that the account's value breaks, "" if none. A missing
// value breaks none: making a field required applies to new accounts.
func (f Field) fault(a Account) string {
	value, has := a.CustomFields[f.FieldKey]
	if !has {
		return ""
	}
	rule, _ := f.DataType.rule()
	_, wrong := rule.check(f, value)
	return wrong
}

// Fault returns why the account does not conform to the definition, "" if it
// conforms. A combined or erased account always does.
func (f Field) Fault(a Account) string {
	if !a.Exists() || a.Erased() || a.Status == StatusCombined {
		return ""
	}
	if _, has := a.CustomFields[f.FieldKey]; !has && f.Required {
		return "required"
	}
	return f.fault(a)
}

func (p PutField) decide(c *Config, _ time.Time) ([]Event, error) {
	f, err := p.field(c)
	if err != nil {
		return nil, err
	}
	old, exists := c.Fields[p.FieldKey]
	e := FieldSet{Field: f.FieldDefinition, Created: !exists, Fields: differing(old.FieldDefinition, f.FieldDefinition)}
	switch {
	case exists && len(e.Fields) == 0:
		return nil, nil
	case p.conflicting > 0 && f.claim() != old.claim():
		return nil, refuse(CodeInUse, "%d accounts have a value of this field, so it cannot become unique or a USERNAME, or stop being one.", p.conflicting)
	case p.conflicting > 0 && !p.Force:
		return nil, refuse(CodeFieldInConflict, "%d accounts have a value that this definition does not allow.", p.conflicting)
	}
	return []Event{e}, nil
}

// differing returns the JSON names of the fields in which two structs differ.
func differing[T any](old, new T) []string {
	names := []string{}
	a, b := reflect.ValueOf(old), reflect.ValueOf(new)
	for i := range a.NumField() {
		if !reflect.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()) {
			name, _, _ := strings.Cut(a.Type().Field(i).Tag.Get("json"), ",")
			names = append(names, name)
		}
	}
	return names
}

// Limits of definitions. A definition must fit into the clear part of an event.
const (
	maxFields  = 500
	maxOptions = 500
	maxRegex   = 1000
)

// field checks the definition and fills in what follows from it.
func (p PutField) field(c *Config) (Field, error) {
	var f faults
	d := p.FieldDefinition
	rule, ok := d.DataType.rule()
	if !ok {
		f.add("/dataType", "must be one of the data types")
		return Field{}, f.err()
	}
	if !customFieldKey.MatchString(d.FieldKey) {
		f.add("", "a field key must be a letter followed by up to 63 letters, digits, '_', '.' or '-'")
	}
	if _, exists := c.Fields[d.FieldKey]; !exists && len(c.Fields) >= maxFields {
		f.add("", "at most %d fields can be defined", maxFields)
	}
	d.Unique = d.Unique || d.DataType == TypeUsername
	if d.Unique && !rule.Unique {
		f.add("/unique", "not allowed with this data type")
	}
	f.limits(d, rule)
	f.options(d, rule)
	f.labels("/labels", d.Labels, 255)
	if len(d.Options) == 0 {
		d.Options = nil
	}
	if len(d.Labels) == 0 {
		d.Labels = nil
	}
	pattern, err := compilePattern(d.Regex)
	if err != nil || len(d.Regex) > maxRegex {
		f.add("/regex", "must be an RE2 regular expression of at most %d bytes", maxRegex)
	}
	f.link(d, rule, c)
	return Field{FieldDefinition: d, pattern: pattern}, f.err()
}

// limits checks the bounds of a definition.
func (f *faults) limits(d FieldDefinition, rule DataTypeRule) {
	const not = "not allowed with this data type"
	for _, l := range []struct {
		name  string
		given bool
		may   bool
	}{
		{"/min", d.Min != nil, rule.Bounded}, {"/max", d.Max != nil, rule.Bounded},
		{"/minLength", d.MinLength != 0, rule.Sized}, {"/maxLength", d.MaxLength != 0, rule.Sized},
		{"/regex", d.Regex != "", rule.Patterned}, {"/options", len(d.Options) > 0, rule.Chosen},
	} {
		if l.given && !l.may {
			f.add(l.name, not)
		}
	}
	if d.Min != nil && d.Max != nil && *d.Min > *d.Max {
		f.add("/max", "must not be less than min")
	}
	for _, bound := range []*float64{d.Min, d.Max} {
		if bound != nil && (math.IsInf(*bound, 0) || math.IsNaN(*bound)) {
			f.add("/min", "must be a number")
		}
	}
	if d.MinLength < 0 || d.MinLength > maxCustomFieldValue {
		f.add("/minLength", "must be 0 to %d", maxCustomFieldValue)
	}
	if d.MaxLength < 0 || d.MaxLength > maxCustomFieldValue || d.MaxLength > 0 && d.MaxLength < d.MinLength {
		f.add("/maxLength", "must be at least minLength and at most %d", maxCustomFieldValue)
	}
}

func (f *faults) options(d FieldDefinition, rule DataTypeRule) {
	if rule.Chosen && (len(d.Options) == 0 || len(d.Options) > maxOptions) {
		f.add("/options", "must have 1 to %d options", maxOptions)
	}
	seen := map[string]bool{}
	for i, o := range d.Options {
		at := "/options/" + strconv.Itoa(i)
		if f.text(at, o, 255); o == "" || seen[o] {
			f.add(at, "must not be empty or listed twice")
		}
		seen[o] = true
	}
}

// labels checks texts by language tag.
func (f *faults) labels(pointer string, labels map[string]string, most int) {
	for tag, label := range labels {
		if _, err := language.Parse(tag); err != nil || len(tag) > 35 {
			f.add(pointer, "keys must be language tags (BCP 47)")
			continue
		}
		f.text(pointer+"/"+tag, label, most)
	}
}

func (f *faults) link(d FieldDefinition, rule DataTypeRule, c *Config) {
	if d.LinkedConsent == "" {
		return
	}
	if !rule.Linked {
		f.add("/linkedConsent", "only a BOOLEAN or CHECKBOX field can be linked")
	}
	if _, ok := c.Consents[d.LinkedConsent]; !ok {
		f.add("/linkedConsent", "there is no such consent")
	}
	if other, ok := c.linkedTo(d.LinkedConsent); ok && other != d.FieldKey {
		f.add("/linkedConsent", "another field is linked to this consent")
	}
}

// linkedTo returns the field that is linked to a consent.
func (c *Config) linkedTo(consentID string) (fieldKey string, ok bool) {
	for key, f := range c.Fields {
		if f.LinkedConsent == consentID {
			return key, true
		}
	}
	return "", false
}

// DeleteField removes a definition. While accounts have a value, the definition of
// an identifier cannot be removed: its values would no longer be kept unique.
type DeleteField struct {
	FieldKey string

	conflicting int64 // accounts that prevent the deletion
}

func (d DeleteField) revision(c *Config) eventstore.Revision { return fieldRevision(c, d.FieldKey) }

func (d DeleteField) inspect(c *Config) func(Account) bool {
	if c.Fields[d.FieldKey].claim() == "" {
		return nil
	}
	return hasField(d.FieldKey)
}

func (d DeleteField) inspected(n int64) ConfigCommand {
	d.conflicting = n
	return d
}

func (d DeleteField) decide(c *Config, _ time.Time) ([]Event, error) {
	if _, ok := c.Fields[d.FieldKey]; !ok {
		return nil, refuse(CodeFieldNotFound, "There is no field with this key.")
	}
	if d.conflicting > 0 {
		return nil, refuse(CodeInUse, "The field is an identifier, and %d accounts have a value of it.", d.conflicting)
	}
	return []Event{FieldDeleted{d.FieldKey}}, nil
}
