package importer

import (
	"errors"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"

	"accountledger/domain"
)

// Finding is a problem of a record. It contains no value of the source.
type Finding struct {
	Field  string `json:"field,omitzero"`  // pointer into the account; empty: the row as a whole
	Rule   string `json:"rule"`            // the rule that the value breaks
	Action string `json:"action,omitzero"` // what the import did with the value; empty: the row failed
}

// draft is an account as a record describes it, before the ledger checks it.
type draft struct {
	key, sub     string
	origin       domain.Origin
	status       domain.Status // empty: none
	statusStated bool          // status is from the record; otherwise the mapping's constant, for new accounts
	createdTime  time.Time     // zero: none
	identities   []identityDraft
	unset        []identityDraft // identities for which the record has only null values
	custom       []statement
	kept         map[string]any // custom fields for raw values; null removes a value that an earlier run kept
	memberships
	warnings []Finding
	faults   []Finding // if any, the row fails without a command to the ledger
}

type identityDraft struct {
	id                       string // of a new identity
	provider, providerUserID string
	profile                  []statement
}

// statement is one value of a record for a place in the account.
type statement struct {
	field   *field
	at      string // pointer into the account
	value   any    // converted to the type of its place; nil removes the value
	raw     any    // as in the source
	dropped bool   // the value was invalid and is treated as absent
}

// read reads f's value from r. found is false if r has none, or an empty one.
func (f *field) read(r record) (value, raw any, found bool, err error) {
	switch {
	case len(f.from) == 0:
		value, raw = f.constant, f.constant
	case f.join != nil:
		var parts []string
		var raws []any
		for _, from := range f.from {
			part, ok := from.lookup(r)
			if !ok || empty(part) {
				continue
			}
			text, notText := textOf(part)
			parts, raws, err = append(parts, text), append(raws, part), errors.Join(err, notText)
		}
		if len(parts) == 0 {
			return nil, nil, false, nil
		}
		value, raw = strings.Join(parts, *f.join), raws
	default:
		if raw, found = f.from[0].lookup(r); !found || raw == nil {
			return nil, nil, found, nil
		}
		value = raw
	}
	for _, transform := range f.transforms {
		var text string
		if err == nil {
			text, err = textOf(value)
		}
		if text == "" {
			break // the value is empty or not text
		}
		value, err = transform(text)
	}
	return value, raw, err != nil || value != "", err
}

// draft maps r to an account. Times after now are invalid.
func (m *Mapping) draft(r record, now time.Time) draft {
	d := draft{origin: m.origin, kept: map[string]any{}}
	if _, object := r.(map[string]any); !object {
		d.faults = []Finding{{Rule: "must be an object"}}
		return d
	}
	d.identify(m, r)
	for i := range m.customFields {
		f := &m.customFields[i]
		if s, ok := d.evaluate(f, "/customFields/"+f.name, r, nil); ok {
			d.custom = append(d.custom, s)
		}
	}
	if f := m.createdTime; f != nil {
		s, ok := d.evaluate(f, "/createdTime", r, func(v any) (any, error) {
			text, err := textOf(v)
			if err != nil {
				return nil, err
			}
			return parseTime(text, now)
		})
		if ok && s.value != nil {
			d.createdTime = s.value.(time.Time)
		}
	}
	if f := m.status; f != nil {
		s, ok := d.evaluate(f, "/userStatus", r, func(v any) (any, error) { return textOf(v) })
		if ok && s.value != nil {
			d.status, d.statusStated = domain.Status(s.value.(string)), len(f.from) > 0
		}
	}
	for i := range m.identities {
		d.addIdentities(&m.identities[i], r)
	}
	d.readMemberships(m, r)
	return d
}

// evaluate returns r's value for f; ok is false if it has none. convert, which may
// be nil, converts a value that is not null to the type of its place.
func (d *draft) evaluate(f *field, at string, r record, convert func(any) (any, error)) (s statement, ok bool) {
	value, raw, found, err := f.read(r)
	if !found {
		return s, false
	}
	if err == nil && value != nil && convert != nil {
		value, err = convert(value)
	}
	s = statement{field: f, at: at, value: value, raw: raw}
	if err != nil {
		d.handleInvalid(&s, err.Error())
	} else if f.invalid == invalidKeep {
		d.kept[f.keep] = nil
	}
	return s, !s.dropped
}

// handleInvalid applies the mapping's policy to a value that breaks a rule.
func (d *draft) handleInvalid(s *statement, rule string) {
	switch s.field.invalid {
	case invalidDrop:
		s.dropped = true
		d.warnings = append(d.warnings, Finding{s.at, rule, "dropped"})
	case invalidKeep:
		s.value = nil
		d.kept[s.field.keep] = s.raw
		d.warnings = append(d.warnings, Finding{s.at, rule, "kept as customFields." + s.field.keep})
	default:
		s.dropped = true
		d.faults = append(d.faults, Finding{Field: s.at, Rule: rule})
	}
}

// handleRefusal applies the mapping's policies to the values that the ledger
// refused. It reports whether that resolved every fault, so that the caller can
// retry the command.
func (d *draft) handleRefusal(refused *domain.Error) bool {
	invalid := make([]*statement, len(refused.Faults))
	for i, fault := range refused.Faults {
		if invalid[i] = d.find(fault.Pointer); invalid[i] == nil || invalid[i].field.invalid == invalidFail {
			return false
		}
	}
	for i, s := range invalid {
		if !s.dropped && s.value != nil { // one value may break two rules
			d.handleInvalid(s, refused.Faults[i].Detail)
		}
	}
	return len(invalid) > 0
}

// find returns the statement for a place, nil if there is none with a value.
func (d *draft) find(at string) *statement {
	in := func(statements []statement) *statement {
		for i := range statements {
			if s := &statements[i]; s.at == at && s.value != nil && !s.dropped {
				return s
			}
		}
		return nil
	}
	for i := range d.identities {
		if s := in(d.identities[i].profile); s != nil {
			return s
		}
	}
	return in(d.custom)
}

// identify sets the record's key and sub.
func (d *draft) identify(m *Mapping, r record) {
	if m.sub != nil {
		text := d.text(m.sub, "/sub", r)
		id, err := uuid.Parse(text)
		if err != nil || len(text) != 36 || id == uuid.Nil {
			d.faults = append(d.faults, Finding{Field: "/sub", Rule: "must be a UUID"})
			return
		}
		d.sub = id.String()
		return
	}
	key := d.text(m.key, "/key", r)
	switch {
	case key == "":
		d.faults = append(d.faults, Finding{Field: "/key", Rule: "is required to identify the record"})
		return
	case !m.personalKey && strings.Contains(key, "@"):
		d.faults = append(d.faults, Finding{Field: "/key",
			Rule: "looks like an e-mail address; set personal to true in the mapping's key, to omit it from the results"})
		return
	case !m.personalKey:
		d.key = key
	}
	d.sub = uuid.NewSHA1(m.namespace, []byte(key)).String()
}

// identifier returns r's key or sub in lower case. Records of one account have
// the same identifier.
func (m *Mapping) identifier(r record) string {
	f := m.key
	if f == nil {
		f = m.sub
	}
	value, _, _, _ := f.read(r)
	text, _ := textOf(value)
	return strings.ToLower(text)
}

// text returns r's value for a text place, "" if it has none or null.
func (d *draft) text(f *field, at string, r record) string {
	if f == nil {
		return ""
	}
	s, ok := d.evaluate(f, at, r, func(v any) (any, error) { return textOf(v) })
	if !ok || s.value == nil {
		return ""
	}
	return s.value.(string)
}

// addIdentities adds the identities that m defines.
func (d *draft) addIdentities(m *identityMapping, r record) {
	if m.each == nil {
		d.addIdentity(m, r)
		return
	}
	list, _ := m.each.lookup(r)
	elements, isList := list.([]any)
	if !isList && !empty(list) {
		d.faults = append(d.faults, Finding{Field: "/identities", Rule: "the mapping's each must lead to a list"})
	}
	for _, element := range elements {
		d.addIdentity(m, element)
	}
}

// addIdentity adds the identity that m defines, unless r has no values for it.
func (d *draft) addIdentity(m *identityMapping, r record) {
	at := "/identities/" + strconv.Itoa(len(d.identities))
	n := identityDraft{
		id:             domain.NewID().String(),
		provider:       d.text(m.provider, at+"/provider", r),
		providerUserID: d.text(m.providerUserID, at+"/providerUserId", r),
	}
	hasValues, unset := n.providerUserID != "", false
	for i := range m.profile {
		f := &m.profile[i]
		if s, ok := d.evaluate(f, at+"/"+f.name, r, converters[kindOf(f.name)]); ok {
			n.profile = append(n.profile, s)
			hasValues = hasValues || len(f.from) > 0 && s.raw != nil
			unset = unset || s.raw == nil
		}
	}
	if hasValues {
		d.identities = append(d.identities, n)
	} else if unset {
		d.unset = append(d.unset, n)
	}
}

// converters convert values to the kinds of a profile's members.
var converters = map[reflect.Kind]func(any) (any, error){
	reflect.String: func(v any) (any, error) { return textOf(v) },
	reflect.Bool: func(v any) (any, error) {
		switch text, _ := textOf(v); text {
		case "true", "1":
			return true, nil
		case "false", "0":
			return false, nil
		}
		return nil, errors.New("must be true or false")
	},
}

// command returns the command that creates the account.
func (d *draft) command() domain.CreateAccount {
	c := domain.CreateAccount{Origin: d.origin, Status: d.status, CustomFields: d.customValues(), Groups: d.initialMemberships()}
	for _, n := range d.identities {
		c.Identities = append(c.Identities, n.identity())
	}
	return c
}

// identity returns n as a new identity.
func (n identityDraft) identity() domain.NewIdentity {
	identity := domain.NewIdentity{IdentityID: n.id, Provider: n.provider, ProviderUserID: n.providerUserID}
	for _, s := range n.profile {
		if s.dropped || s.value == nil {
			continue
		}
		index := profileFields[s.field.name]
		if len(index) > 1 && identity.Profile.Address == nil {
			identity.Profile.Address = &domain.Address{}
		}
		reflect.ValueOf(&identity.Profile).Elem().FieldByIndex(index).Set(reflect.ValueOf(s.value))
	}
	return identity
}

// patch returns n's values as a merge patch (RFC 7396) of a profile.
func (n identityDraft) patch() jsontext.Value {
	profile, address := map[string]any{}, map[string]any{}
	for _, s := range n.profile {
		part, inAddress := strings.CutPrefix(s.field.name, "address/")
		switch {
		case s.dropped:
		case inAddress:
			address[part] = s.value
			profile["address"] = address
		default:
			profile[s.field.name] = s.value
		}
	}
	return marshal(profile)
}

// customValues returns d's values for custom fields; null removes a value.
func (d *draft) customValues() map[string]jsontext.Value {
	values := make(map[string]jsontext.Value, len(d.custom)+len(d.kept))
	set := func(key string, value any) {
		value, replaced := exact(value)
		if replaced {
			d.warn(Finding{"/customFields/" + key, "a number has more digits than a JSON number preserves", "kept as text"})
		}
		values[key] = marshal(value)
	}
	for _, s := range d.custom {
		if !s.dropped {
			set(s.field.name, s.value)
		}
	}
	for key, raw := range d.kept {
		set(key, raw)
	}
	return values
}

// warn adds a warning unless an earlier attempt has added it.
func (d *draft) warn(f Finding) {
	for _, w := range d.warnings {
		if w == f {
			return
		}
	}
	d.warnings = append(d.warnings, f)
}

// marshal encodes a value of a record, which cannot fail.
func marshal(v any) jsontext.Value {
	encoded, err := json.Marshal(v)
	if err != nil {
		panic("importer: " + err.Error())
	}
	return encoded
}
