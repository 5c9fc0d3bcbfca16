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

// FieldDefinition is what the operators say of one custom field.
type FieldDefinition struct {
	FieldKey   string   `json:"fieldKey"` // never changes
	DataType   DataType `json:"dataType"`
	Required   bool     `json:"required"`   // a new account must have it, and none may unset it
	ReadOnly   bool     `json:"readOnly"`   // only admins may change it
	Internal   bool     `json:"internal"`   // only admins may see and change it
	Unique     bool     `json:"unique"`     // at most one account has a value; case does not matter
	Searchable bool     `json:"searchable"` // accounts can be found by it
	Personal   bool     `json:"personal"`   // its values are sealed, and can be erased

	Min       *float64 `json:"min,omitzero"`
	Max       *float64 `json:"max,omitzero"`
	MinLength int      `json:"minLength,omitzero"`
	MaxLength int      `json:"maxLength,omitzero"` // 0: as the data type has it
	Regex     string   `json:"regex,omitzero"`     // RE2, matched with the whole value
	Options   []string `json:"options,omitzero"`

	Labels        map[string]string `json:"labels,omitzero"`        // by language tag
	LinkedConsent string            `json:"linkedConsent,omitzero"` // accepted where the value is true
}

// Field is a custom field that the operators have defined.
type Field struct {
	FieldDefinition
	Revision eventstore.Revision `json:"revision"` // of the configuration, when it last changed

	pattern *regexp.Regexp // Regex, nil without one
}

// FieldSet defines a custom field, or changes it.
type FieldSet struct {
	Field   FieldDefinition `json:"field" pii:"clear"`
	Created bool            `json:"created,omitzero" pii:"clear"` // there was none of this key
	Fields  []string        `json:"fields" pii:"clear"`           // names of the members that changed
}

func (FieldSet) eventType() string { return "field.set.v1" }

func (e FieldSet) evolve(c *Config, x Entry) {
	f := Field{FieldDefinition: e.Field, Revision: x.Revision}
	f.pattern, _ = compilePattern(f.Regex) // PutField has seen to it
	c.Fields[f.FieldKey] = f
	c.hidden = hidden(c.Fields)
}

func (e FieldSet) public(Entry) []publicEvent {
	return objectSet("FIELD", e.Created, e.Field.FieldKey, e.Fields)
}

func (FieldSet) catalogue() []PublicType { return objectSetTypes("FIELD", "a custom field") }

// FieldDeleted removes a definition. Values stay, as those of any field that
// is not defined.
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

// claim is the kind of identifier that values of the field are: "" if other
// accounts may have the same.
func (f Field) claim() Kind {
	switch {
	case f.DataType == TypeUsername:
		return KindUsername
	case f.Unique:
		return fieldClaim(f.FieldKey)
	}
	return ""
}

// fieldClaim is the kind under which a unique field's values are claimed.
func fieldClaim(key string) Kind { return Kind("customFields." + key) }

func compilePattern(regex string) (*regexp.Regexp, error) {
	if regex == "" {
		return nil, nil
	}
	if _, err := regexp.Compile(regex); err != nil {
		return nil, err // on its own, or parentheses could be closed that are ours
	}
	return regexp.Compile(`\A(?:` + regex + `)\z`)
}

// PutField defines a custom field, or changes it. A change that values break
// which accounts have is refused, unless Force.
type PutField struct {
	FieldDefinition
	Force bool // change it all the same: those accounts do not conform from then on

	inTheWay int64 // accounts
}

func (p PutField) revision(c *Config) eventstore.Revision { return fieldRevision(c, p.FieldKey) }

func fieldRevision(c *Config, key string) eventstore.Revision {
	if f, ok := c.Fields[key]; ok {
		return f.Revision
	}
	return eventstore.NoStream
}

// inspect asks for accounts that have a value, where it is to become an
// identifier or no longer to be one, and otherwise for those whose value the
// new rules refuse.
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

// rules is what of a definition decides about values.
func (d FieldDefinition) rules() FieldDefinition {
	return FieldDefinition{DataType: d.DataType, Required: d.Required, Min: d.Min, Max: d.Max,
		MinLength: d.MinLength, MaxLength: d.MaxLength, Regex: d.Regex, Options: d.Options}
}

func hasField(key string) func(Account) bool {
	return func(a Account) bool { _, has := a.CustomFields[key]; return has }
}

func (p PutField) inspected(n int64) ConfigCommand {
	p.inTheWay = n
	return p
}

// fault is the rule of the definition that the account's value breaks, "" if
// none. That it has none is no reason to refuse a definition: whoever makes a
// field required means the accounts to come.
func (f Field) fault(a Account) string {
	value, has := a.CustomFields[f.FieldKey]
	if !has {
		return ""
	}
	rule, _ := f.DataType.rule()
	_, wrong := rule.check(f, value)
	return wrong
}

// Fault is what keeps the account from conforming to the definition, "" if it
// does. One that has ended has nothing to conform with.
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
	case p.inTheWay > 0 && f.claim() != old.claim():
		return nil, refuse(CodeInUse, "%d accounts have a value of this field; it cannot become unique or a USERNAME, or stop being so.", p.inTheWay)
	case p.inTheWay > 0 && !p.Force:
		return nil, refuse(CodeFieldInConflict, "%d accounts have a value that this definition does not allow.", p.inTheWay)
	}
	return []Event{e}, nil
}

// differing names the members in which two values of a struct differ.
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

// Limits of definitions: one is recorded in the clear part of one event.
const (
	maxFields  = 500
	maxOptions = 500
	maxRegex   = 1000
)

// field checks the definition and completes it.
func (p PutField) field(c *Config) (Field, error) {
	var f faults
	d := p.FieldDefinition
	rule, ok := d.DataType.rule()
	if !ok {
		f.add("/dataType", "must be one of the data types")
		return Field{}, f.err()
	}
	if !customFieldKey.MatchString(d.FieldKey) {
		f.add("", "a field key is a letter and up to 63 letters, digits, '_', '.' or '-'")
	}
	if _, exists := c.Fields[d.FieldKey]; !exists && len(c.Fields) >= maxFields {
		f.add("", "there are at most %d definitions", maxFields)
	}
	d.Unique = d.Unique || d.DataType == TypeUsername
	if d.Unique && !rule.Unique {
		f.add("/unique", "not of a field of this data type")
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
		f.add("/regex", "must be a regular expression of RE2, of at most %d bytes", maxRegex)
	}
	f.link(d, rule, c)
	return Field{FieldDefinition: d, pattern: pattern}, f.err()
}

// limits checks the bounds of a definition.
func (f *faults) limits(d FieldDefinition, rule DataTypeRule) {
	const not = "not of a field of this data type"
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
		f.add("/minLength", "0 to %d", maxCustomFieldValue)
	}
	if d.MaxLength < 0 || d.MaxLength > maxCustomFieldValue || d.MaxLength > 0 && d.MaxLength < d.MinLength {
		f.add("/maxLength", "minLength to %d", maxCustomFieldValue)
	}
}

func (f *faults) options(d FieldDefinition, rule DataTypeRule) {
	if rule.Chosen && (len(d.Options) == 0 || len(d.Options) > maxOptions) {
		f.add("/options", "1 to %d", maxOptions)
	}
	seen := map[string]bool{}
	for i, o := range d.Options {
		at := "/options/" + strconv.Itoa(i)
		if f.text(at, o, 255); o == "" || seen[o] {
			f.add(at, "must be text, and there once")
		}
		seen[o] = true
	}
}

// labels checks texts by language tag.
func (f *faults) labels(pointer string, labels map[string]string, most int) {
	for tag, label := range labels {
		if _, err := language.Parse(tag); err != nil || len(tag) > 35 {
			f.add(pointer, "must be texts by language tag (BCP 47)")
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
		f.add("/linkedConsent", "only of a field that is true or false")
	}
	if _, ok := c.Consents[d.LinkedConsent]; !ok {
		f.add("/linkedConsent", "there is no such consent")
	}
	if other, ok := c.linkedTo(d.LinkedConsent); ok && other != d.FieldKey {
		f.add("/linkedConsent", "another field is linked to this consent")
	}
}

// linkedTo is the field that is linked to a consent.
func (c *Config) linkedTo(consentID string) (fieldKey string, ok bool) {
	for key, f := range c.Fields {
		if f.LinkedConsent == consentID {
			return key, true
		}
	}
	return "", false
}

// DeleteField removes a definition. One of an identifier is refused while
// accounts have a value: nobody would know that it may be there once.
type DeleteField struct {
	FieldKey string

	inTheWay int64
}

func (d DeleteField) revision(c *Config) eventstore.Revision { return fieldRevision(c, d.FieldKey) }

func (d DeleteField) inspect(c *Config) func(Account) bool {
	if c.Fields[d.FieldKey].claim() == "" {
		return nil
	}
	return hasField(d.FieldKey)
}

func (d DeleteField) inspected(n int64) ConfigCommand {
	d.inTheWay = n
	return d
}

func (d DeleteField) decide(c *Config, _ time.Time) ([]Event, error) {
	if _, ok := c.Fields[d.FieldKey]; !ok {
		return nil, refuse(CodeFieldNotFound, "There is no definition of such a field.")
	}
	if d.inTheWay > 0 {
		return nil, refuse(CodeInUse, "%d accounts have a value of this field, which is an identifier.", d.inTheWay)
	}
	return []Event{FieldDeleted{d.FieldKey}}, nil
}
