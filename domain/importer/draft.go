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

// Finding is something about a record that a person should know. It never
// holds a value of the source.
type Finding struct {
	Field  string `json:"field,omitzero"`  // pointer into the account; empty: the row as a whole
	Rule   string `json:"rule"`            // what the value breaks
	Action string `json:"action,omitzero"` // what became of the value; empty: the row failed
}

// draft is what a record asks for, before the ledger has seen it.
type draft struct {
	key, sub     string
	origin       domain.Origin
	status       domain.Status // empty: not said
	statusStated bool          // by the record, and not by the mapping for new accounts
	createdTime  time.Time     // zero: not said
	identities   []identityDraft
	unset        []identityDraft // of which the record says only what they do not have
	custom       []statement
	kept         map[string]any // custom fields that take raw values, null to unset what an earlier run kept
	memberships
	warnings []Finding
	faults   []Finding // a row with faults of its own is not tried
}

type identityDraft struct {
	id                       string // of the identity, if it is new
	provider, providerUserID string
	profile                  []statement
}

// statement is one value as a record states it.
type statement struct {
	field  *field
	at     string // pointer into the account
	value  any    // fit for its place; nil unsets
	raw    any    // as the source has it
	unsaid bool   // it was dropped: as if the record had not stated it
}

// read takes f's value from r. found says whether the record says anything.
func (f *field) read(r record) (value, raw any, found bool, err error) {
	switch {
	case len(f.from) == 0:
		value, raw = f.constant, f.constant
	case f.join != nil:
		var parts []string
		var raws []any
		for _, from := range f.from {
			part, ok := from.of(r)
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
		if raw, found = f.from[0].of(r); !found || raw == nil {
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
			break // nothing is said, or it is no text
		}
		value, err = transform(text)
	}
	return value, raw, err != nil || value != "", err
}

// draft maps r. Times after now are refused.
func (m *Mapping) draft(r record, now time.Time) draft {
	d := draft{origin: m.origin, kept: map[string]any{}}
	if _, object := r.(map[string]any); !object {
		d.faults = []Finding{{Rule: "must be an object"}}
		return d
	}
	d.identify(m, r)
	for i := range m.customFields {
		f := &m.customFields[i]
		if s, ok := d.state(f, "/customFields/"+f.name, r, nil); ok {
			d.custom = append(d.custom, s)
		}
	}
	if f := m.createdTime; f != nil {
		s, ok := d.state(f, "/createdTime", r, func(v any) (any, error) {
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
		s, ok := d.state(f, "/userStatus", r, func(v any) (any, error) { return textOf(v) })
		if ok && s.value != nil {
			d.status, d.statusStated = domain.Status(s.value.(string)), len(f.from) > 0
		}
	}
	for i := range m.identities {
		d.addIdentities(&m.identities[i], r)
	}
	d.belong(m, r)
	return d
}

// state is what r states for f; ok is false where it states nothing. fit makes
// a value that is not null fit for its place.
func (d *draft) state(f *field, at string, r record, fit func(any) (any, error)) (s statement, ok bool) {
	value, raw, found, err := f.read(r)
	if !found {
		return s, false
	}
	if err == nil && value != nil && fit != nil {
		value, err = fit(value)
	}
	s = statement{field: f, at: at, value: value, raw: raw}
	if err != nil {
		d.settle(&s, err.Error())
	} else if f.invalid == invalidKeep {
		d.kept[f.keep] = nil
	}
	return s, !s.unsaid
}

// settle deals with a value that a rule refuses as the mapping says.
func (d *draft) settle(s *statement, rule string) {
	switch s.field.invalid {
	case invalidDrop:
		s.unsaid = true
		d.warnings = append(d.warnings, Finding{s.at, rule, "dropped"})
	case invalidKeep:
		s.value = nil
		d.kept[s.field.keep] = s.raw
		d.warnings = append(d.warnings, Finding{s.at, rule, "kept as customFields." + s.field.keep})
	default:
		s.unsaid = true
		d.faults = append(d.faults, Finding{Field: s.at, Rule: rule})
	}
}

// mend deals with the values that the ledger refused. It reports whether every
// fault was settled, so that there is reason to try again.
func (d *draft) mend(refused *domain.Error) bool {
	settled := make([]*statement, len(refused.Faults))
	for i, fault := range refused.Faults {
		if settled[i] = d.find(fault.Pointer); settled[i] == nil || settled[i].field.invalid == invalidFail {
			return false
		}
	}
	for i, s := range settled {
		if !s.unsaid && s.value != nil { // one value may break two rules
			d.settle(s, refused.Faults[i].Detail)
		}
	}
	return len(settled) > 0
}

// find returns the value stated for a place.
func (d *draft) find(at string) *statement {
	among := func(statements []statement) *statement {
		for i := range statements {
			if s := &statements[i]; s.at == at && s.value != nil && !s.unsaid {
				return s
			}
		}
		return nil
	}
	for i := range d.identities {
		if s := among(d.identities[i].profile); s != nil {
			return s
		}
	}
	return among(d.custom)
}

// identify finds the record's key and sub.
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
		d.faults = append(d.faults, Finding{Field: "/key", Rule: "must be there to identify the record"})
		return
	case !m.personalKey && strings.Contains(key, "@"):
		d.faults = append(d.faults, Finding{Field: "/key",
			Rule: "looks like an e-mail address; say personal: true beside it, and it is left out of the results"})
		return
	case !m.personalKey:
		d.key = key
	}
	d.sub = uuid.NewSHA1(m.namespace, []byte(key)).String()
}

// identifier is the key or sub of r, to tell apart the records of different
// accounts before they are looked at.
func (m *Mapping) identifier(r record) string {
	f := m.key
	if f == nil {
		f = m.sub
	}
	value, _, _, _ := f.read(r)
	text, _ := textOf(value)
	return strings.ToLower(text)
}

// text is what r states for a place that takes text, and no null.
func (d *draft) text(f *field, at string, r record) string {
	if f == nil {
		return ""
	}
	s, ok := d.state(f, at, r, func(v any) (any, error) { return textOf(v) })
	if !ok || s.value == nil {
		return ""
	}
	return s.value.(string)
}

func (d *draft) addIdentities(m *identityMapping, r record) {
	if m.each == nil {
		d.addIdentity(m, r)
		return
	}
	list, _ := m.each.of(r)
	elements, isList := list.([]any)
	if !isList && !empty(list) {
		d.faults = append(d.faults, Finding{Field: "/identities", Rule: "must come from a list"})
	}
	for _, element := range elements {
		d.addIdentity(m, element)
	}
}

// addIdentity adds what m makes of r; nothing, where r itself says nothing.
func (d *draft) addIdentity(m *identityMapping, r record) {
	at := "/identities/" + strconv.Itoa(len(d.identities))
	n := identityDraft{
		id:             domain.NewID().String(),
		provider:       d.text(m.provider, at+"/provider", r),
		providerUserID: d.text(m.providerUserID, at+"/providerUserId", r),
	}
	said, unset := n.providerUserID != "", false
	for i := range m.profile {
		f := &m.profile[i]
		if s, ok := d.state(f, at+"/"+f.name, r, fits[kindOf(f.name)]); ok {
			n.profile = append(n.profile, s)
			said = said || len(f.from) > 0 && s.raw != nil
			unset = unset || s.raw == nil
		}
	}
	if said {
		d.identities = append(d.identities, n)
	} else if unset {
		d.unset = append(d.unset, n)
	}
}

// fits says how a value comes to have the type of a profile's member.
var fits = map[reflect.Kind]func(any) (any, error){
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

// command is d as the creation of an account.
func (d *draft) command() domain.CreateAccount {
	c := domain.CreateAccount{Origin: d.origin, Status: d.status, CustomFields: d.customValues(), Groups: d.first()}
	for _, n := range d.identities {
		c.Identities = append(c.Identities, n.identity())
	}
	return c
}

func (n identityDraft) identity() domain.NewIdentity {
	identity := domain.NewIdentity{IdentityID: n.id, Provider: n.provider, ProviderUserID: n.providerUserID}
	for _, s := range n.profile {
		if s.unsaid || s.value == nil {
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

// patch is what n states as a merge patch (RFC 7396) of a profile.
func (n identityDraft) patch() jsontext.Value {
	profile, address := map[string]any{}, map[string]any{}
	for _, s := range n.profile {
		part, inAddress := strings.CutPrefix(s.field.name, "address/")
		switch {
		case s.unsaid:
		case inAddress:
			address[part] = s.value
			profile["address"] = address
		default:
			profile[s.field.name] = s.value
		}
	}
	return marshal(profile)
}

// customValues is what d states about custom fields; null unsets.
func (d *draft) customValues() map[string]jsontext.Value {
	values := make(map[string]jsontext.Value, len(d.custom)+len(d.kept))
	set := func(key string, value any) {
		value, replaced := exact(value)
		if replaced {
			d.warn(Finding{"/customFields/" + key, "a number has more digits than readers of JSON keep", "kept as text"})
		}
		values[key] = marshal(value)
	}
	for _, s := range d.custom {
		if !s.unsaid {
			set(s.field.name, s.value)
		}
	}
	for key, raw := range d.kept {
		set(key, raw)
	}
	return values
}

// warn adds a warning that may come up at every try.
func (d *draft) warn(f Finding) {
	for _, w := range d.warnings {
		if w == f {
			return
		}
	}
	d.warnings = append(d.warnings, f)
}

// marshal encodes what was decoded from JSON or is text: it cannot fail.
func marshal(v any) jsontext.Value {
	encoded, err := json.Marshal(v)
	if err != nil {
		panic("importer: " + err.Error())
	}
	return encoded
}
