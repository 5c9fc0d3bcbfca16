package importer

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/google/uuid"
	"go.yaml.in/yaml/v3"

	"accountledger/domain"
)

// Mapping defines how the members of a source's records become accounts. It is
// read from a YAML file. A field in it is a pointer (RFC 6901) into the record, a
// constant, or an object:
//
//	source: crm                   # the source's name; the sub is derived from it and the key
//	format: json                  # json, ndjson or csv; default: by the input's name
//	records: /users               # json only: where the list is; default: the document is the list
//	delimiter: ";"                # csv only; default: a comma
//	key: /id                      # the record's permanent key, or:
//	sub: /uuid                    # the account's sub
//	origin: imported              # or created, registered
//	createdTime: /created
//	status: {from: /enabled, transform: [{lookup: {true: VERIFIED, false: DECLINED}}]}
//	identities:
//	  - provider: self
//	    email: /mail
//	    mobile_number: {from: /phone, transform: [{phone: DE}], onInvalid: {keep: customFields.phone_as_exported}}
//	    address: {locality: /city}
//	  - each: /federatedIdentities   # one per element; pointers are into the element
//	    provider: /identityProvider
//	    providerUserId: /userId
//	customFields: {tier: /tier}
//	groups:                       # groups of the source become groups of the ledger
//	  members: /groups            # the record's groups, as paths: /staff/admins is the group staff.admins
//	  groupType: KEYCLOAK         # the type of created groups; created if missing, with any roles
//	  definitions: /groups        # json only: the document's list of groups; the pointers below are into its elements
//	  name: /name
//	  description: /description
//	  below: /subGroups           # the list of subgroups
//	  customFields: {keycloak_attributes: /attributes}
//	roles:                        # roles of the records become roles in the group of all users
//	  members: /realmRoles        # the record's roles, by name
//	  definitions: /roles/realm
//	  name: /name
//	  description: /description
//	ignore: [/password]           # intentionally not imported
//
// A member that is absent or empty in a record leaves the account unchanged; null
// removes the value. A constant status applies to new accounts only, so that a
// later run does not lift a suspension.
//
// The import does not change groups and roles that the ledger already has. A
// record's list of groups, even an empty one, is complete for the group type: the
// account leaves all other groups of that type. Likewise, its list of roles is
// complete for the roles that the source has.
type Mapping struct {
	Source string // name of the source
	Digest string // SHA-256 of the file, in hexadecimal

	format       string // json, ndjson, csv, or empty
	records      path
	delimiter    rune
	key, sub     *field // exactly one is set
	personalKey  bool
	namespace    uuid.UUID // of the subs derived from keys
	origin       domain.Origin
	createdTime  *field
	status       *field
	identities   []identityMapping
	customFields []field // by key
	groups       *groupMapping
	roles        *roleMapping
	mapped       members // the source's members that the mapping uses or ignores
}

// identityMapping defines one identity of a record or, with each, one for every
// element of a list.
type identityMapping struct {
	each                     path
	provider, providerUserID *field
	profile                  []field // by name; those of an address as address/locality
}

// field defines one value of an account.
type field struct {
	name       string // its place relative to its parent, like "email" or "address/region"
	from       []path // empty: the value is constant
	constant   string
	join       *string // the separator between the values of several from
	transforms []transform
	invalid    policy
	keep       string // with invalidKeep: the custom field for the raw value
}

// policy defines what happens to an invalid value.
type policy int

const (
	invalidFail policy = iota // the row fails
	invalidDrop               // the value is treated as absent, with a warning
	invalidKeep               // the raw value is stored in a custom field, with a warning
)

// The formats of inputs.
const (
	formatJSON   = "json"
	formatNDJSON = "ndjson"
	formatCSV    = "csv"
)

// ParseMapping parses a mapping file. The error lists every fault with its line.
func ParseMapping(file []byte) (*Mapping, error) {
	var document yaml.Node
	if err := yaml.Unmarshal(file, &document); err != nil {
		return nil, fmt.Errorf("mapping: %w", err)
	}
	digest := sha256.Sum256(file)
	m := &Mapping{Digest: hex.EncodeToString(digest[:]), origin: domain.OriginImported, delimiter: ','}
	p := mappingParser{written: map[string]bool{}}
	if len(document.Content) != 1 {
		return nil, errors.New("mapping: the file is empty")
	}
	p.mapping(document.Content[0], m)
	if len(p.faults) > 0 {
		slices.SortStableFunc(p.faults, func(a, b mappingFault) int { return cmp.Compare(a.line, b.line) })
		lines := make([]string, len(p.faults))
		for i, f := range p.faults {
			lines[i] = fmt.Sprintf("line %d: %s", f.line, f.text)
		}
		return nil, errors.New("mapping: " + strings.Join(lines, "; "))
	}
	// Subs are version 5 UUIDs (RFC 9562), so that source and key result in the
	// same sub on every machine and in every run.
	m.namespace = uuid.NewSHA1(uuid.NameSpaceURL, []byte("accountledger/import/"+m.Source))
	return m, nil
}

// Defines reports whether the mapping creates groups or roles. Job.Run then reads
// the input more than once.
func (m *Mapping) Defines() bool { return m.groups != nil || m.roles != nil }

// mappingParser walks the YAML nodes instead of using struct tags, because most
// members are either a scalar or an object, and every fault needs a line.
type mappingParser struct {
	faults  []mappingFault
	written map[string]bool // the custom fields that the mapping writes, to find duplicates
}

type mappingFault struct {
	line int
	text string
}

// fault records a fault at a node.
func (p *mappingParser) fault(n *yaml.Node, format string, args ...any) {
	p.faults = append(p.faults, mappingFault{n.Line, fmt.Sprintf(format, args...)})
}

// object calls member for every member of n. It is a fault if n is not an object
// or has two members with the same name.
func (p *mappingParser) object(n *yaml.Node, what string, member func(name string, key, value *yaml.Node)) {
	if n.Kind != yaml.MappingNode {
		p.fault(n, "%s: must be an object", what)
		return
	}
	seen := map[string]bool{}
	for i := 0; i < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		for value.Kind == yaml.AliasNode {
			value = value.Alias
		}
		if seen[key.Value] {
			p.fault(key, "%s: duplicate member %q", what, key.Value)
			continue
		}
		seen[key.Value] = true
		member(key.Value, key, value)
	}
}

// unknown records an unknown member.
func (p *mappingParser) unknown(key *yaml.Node, what string, known ...string) {
	slices.Sort(known)
	p.fault(key, "%s: unknown member %q; use one of %s", what, key.Value, strings.Join(known, ", "))
}

// text returns the text of a scalar; if allowed is not empty, one of its values.
func (p *mappingParser) text(n *yaml.Node, what string, allowed ...string) string {
	if n.Kind != yaml.ScalarNode || n.Value == "" || n.Tag == "!!null" {
		p.fault(n, "%s: must be text", what)
		return ""
	}
	if len(allowed) > 0 && !slices.Contains(allowed, n.Value) {
		p.fault(n, "%s: must be one of %s", what, strings.Join(allowed, ", "))
	}
	return n.Value
}

// pointer parses a JSON pointer.
func (p *mappingParser) pointer(n *yaml.Node, what string) path {
	at, err := parsePath(p.text(n, what))
	if err != nil && n.Value != "" {
		p.fault(n, "%s: %s", what, err)
	}
	return at
}

// mapping parses the whole file.
func (p *mappingParser) mapping(n *yaml.Node, m *Mapping) {
	p.object(n, "mapping", func(name string, key, value *yaml.Node) {
		switch name {
		case "source":
			m.Source = p.text(value, name)
		case "format":
			m.format = p.text(value, name, formatJSON, formatNDJSON, formatCSV)
		case "records":
			m.records = p.pointer(value, name)
		case "delimiter":
			r, size := utf8.DecodeRuneInString(p.text(value, name))
			if size != len(value.Value) || strings.ContainsRune("\"\r\n", r) {
				p.fault(value, "delimiter: must be one character, not a quote or a line break")
			}
			m.delimiter = r
		case "key":
			m.key = p.keyField(value, m)
		case "sub":
			m.sub = p.field(value, name, m.mapped.add, nil)
		case "origin":
			m.origin = domain.Origin(p.text(value, name, string(domain.OriginImported), string(domain.OriginCreated), string(domain.OriginRegistered)))
		case "createdTime":
			m.createdTime = p.field(value, name, m.mapped.add, nil)
		case "status":
			m.status = p.field(value, name, m.mapped.add, nil)
		case "identities":
			if value.Kind != yaml.SequenceNode || len(value.Content) == 0 {
				p.fault(value, "identities: must be a list with at least one element")
				return
			}
			for i, identity := range value.Content {
				m.identities = append(m.identities, p.identity(identity, fmt.Sprintf("identities[%d]", i), &m.mapped))
			}
		case "customFields":
			p.object(value, name, func(fieldKey string, key, value *yaml.Node) {
				p.writes(key, fieldKey)
				f := p.field(value, "customFields."+fieldKey, m.mapped.add, nil)
				f.name = fieldKey
				m.customFields = append(m.customFields, *f)
			})
		case "groups":
			m.groups = p.groups(value, &m.mapped)
		case "roles":
			m.roles = p.roles(value, &m.mapped)
		case "ignore":
			if value.Kind != yaml.SequenceNode {
				p.fault(value, "ignore: must be a list of pointers")
				return
			}
			for _, ignored := range value.Content {
				m.mapped.add(p.pointer(ignored, name))
			}
		default:
			p.unknown(key, "mapping", "source", "format", "records", "delimiter", "key", "sub", "origin",
				"createdTime", "status", "identities", "customFields", "groups", "roles", "ignore")
		}
	})
	if m.Source == "" {
		p.fault(n, "mapping: source is required")
	}
	if (m.key == nil) == (m.sub == nil) {
		p.fault(n, "mapping: either key or sub is required")
	}
	if len(m.identities) == 0 {
		p.fault(n, "mapping: identities is required")
	}
}

// keyField parses the key: a field that may also have the member personal.
func (p *mappingParser) keyField(n *yaml.Node, m *Mapping) *field {
	return p.field(n, "key", m.mapped.add, func(name string, value *yaml.Node) bool {
		if name == "personal" {
			m.personalKey = p.text(value, "key.personal", "true", "false") == "true"
		}
		return name == "personal"
	})
}

// identity parses an element of identities.
func (p *mappingParser) identity(n *yaml.Node, what string, mapped *members) identityMapping {
	var m identityMapping
	mark := mapped.add
	// With each, the other pointers are relative to the list's elements, so
	// each must be parsed first.
	for i := 0; n.Kind == yaml.MappingNode && i < len(n.Content); i += 2 {
		if n.Content[i].Value == "each" {
			m.each = p.pointer(n.Content[i+1], what+".each")
			mark = func(at path) { mapped.add(slices.Concat(m.each, path{each}, at)) }
		}
	}
	p.object(n, what, func(name string, key, value *yaml.Node) {
		what := what + "." + name
		switch {
		case name == "each":
		case name == "provider":
			m.provider = p.field(value, what, mark, nil)
		case name == "providerUserId":
			m.providerUserID = p.field(value, what, mark, nil)
		case name == "address":
			p.object(value, what, func(part string, key, value *yaml.Node) {
				m.profile = append(m.profile, p.profileField(key, value, "address/"+part, what+"."+part, mark, m.each != nil))
			})
		default:
			m.profile = append(m.profile, p.profileField(key, value, name, what, mark, m.each != nil))
		}
	})
	if m.provider == nil {
		p.fault(n, "%s: provider is required", what)
	}
	return m
}

// groups parses the member groups.
func (p *mappingParser) groups(n *yaml.Node, mapped *members) *groupMapping {
	var m groupMapping
	p.object(n, "groups", func(name string, key, value *yaml.Node) {
		what := "groups." + name
		switch name {
		case "groupType":
			if m.groupType = p.text(value, what); domain.NewConfig().GroupTypes[m.groupType].System {
				p.fault(value, "%s: must not be a system group type", what)
			}
		case "below":
			m.below = p.pointer(value, what)
		case "customFields":
			p.object(value, what, func(fieldKey string, key, value *yaml.Node) {
				m.customFields = append(m.customFields, customFieldAt{fieldKey, p.pointer(value, what+"."+fieldKey)})
			})
		default:
			if !p.defined(name, value, what, mapped, &m.members, &m.definitions, &m.definition) {
				p.unknown(key, "groups", "members", "groupType", "definitions", "name", "description", "below", "customFields")
			}
		}
	})
	if m.members == nil || m.groupType == "" || (m.definitions == nil) != (m.name == nil) {
		p.fault(n, "groups: members and groupType are required; definitions requires name, and name definitions")
	}
	return &m
}

// roles parses the member roles.
func (p *mappingParser) roles(n *yaml.Node, mapped *members) *roleMapping {
	var m roleMapping
	p.object(n, "roles", func(name string, key, value *yaml.Node) {
		if !p.defined(name, value, "roles."+name, mapped, &m.members, &m.definitions, &m.definition) {
			p.unknown(key, "roles", "members", "definitions", "name", "description")
		}
	})
	if m.members == nil || (m.definitions == nil) != (m.name == nil) {
		p.fault(n, "roles: members is required; definitions requires name, and name definitions")
	}
	return &m
}

// defined parses a member that both groups and roles have. It returns false for
// any other member.
func (p *mappingParser) defined(name string, value *yaml.Node, what string, mapped *members, of, definitions *path, d *definition) bool {
	switch name {
	case "members":
		*of = p.pointer(value, what)
		mapped.add(*of)
	case "definitions":
		*definitions = p.pointer(value, what)
	case "name":
		d.name = p.pointer(value, what)
	case "description":
		d.description = p.pointer(value, what)
	default:
		return false
	}
	return true
}

// profileField parses a field of an identity's profile.
func (p *mappingParser) profileField(key, value *yaml.Node, name, what string, mark func(path), inList bool) field {
	if _, ok := profileFields[name]; !ok {
		p.fault(key, "%s: unknown member of an identity", what)
	}
	f := p.field(value, what, mark, nil)
	f.name = name
	if f.invalid == invalidKeep && inList {
		p.fault(key, "%s: keep cannot be used with each, because one custom field cannot hold the values of many elements", what)
	}
	return *f
}

// field parses a field: a pointer, a constant, or an object with from or value.
// It passes unknown members of the object to extra, which may be nil and returns
// whether it accepts the member.
func (p *mappingParser) field(n *yaml.Node, what string, mark func(path), extra func(name string, value *yaml.Node) bool) *field {
	f := &field{name: what}
	if n.Kind == yaml.ScalarNode {
		if strings.HasPrefix(n.Value, "/") {
			f.from = []path{p.pointer(n, what)}
			mark(f.from[0])
		} else {
			f.constant = p.text(n, what)
		}
		return f
	}
	p.object(n, what, func(name string, key, value *yaml.Node) {
		switch name {
		case "from":
			sources := []*yaml.Node{value}
			if value.Kind == yaml.SequenceNode {
				sources = value.Content
			}
			for _, source := range sources {
				f.from = append(f.from, p.pointer(source, what+".from"))
			}
		case "value":
			f.constant = p.text(value, what+".value")
		case "join":
			if value.Kind != yaml.ScalarNode {
				p.fault(value, "%s.join: must be text", what)
			}
			f.join = &value.Value
		case "transform":
			p.transforms(value, what+".transform", f)
		case "onInvalid":
			p.onInvalid(value, what+".onInvalid", f)
		default:
			if extra == nil || !extra(name, value) {
				p.unknown(key, what, "from", "value", "join", "transform", "onInvalid")
			}
		}
	})
	for _, from := range f.from {
		mark(from)
	}
	switch {
	case n.Kind != yaml.MappingNode:
	case (len(f.from) == 0) == (f.constant == ""):
		p.fault(n, "%s: either from or value is required", what)
	case (len(f.from) > 1) != (f.join != nil):
		p.fault(n, "%s: join is required with several pointers in from, and only allowed then", what)
	}
	return f
}

// onInvalid parses the policy of a field.
func (p *mappingParser) onInvalid(n *yaml.Node, what string, f *field) {
	switch {
	case n.Kind == yaml.ScalarNode && n.Value == "fail":
		f.invalid = invalidFail
	case n.Kind == yaml.ScalarNode && n.Value == "drop":
		f.invalid = invalidDrop
	case n.Kind == yaml.MappingNode:
		p.object(n, what, func(name string, key, value *yaml.Node) {
			custom, ok := strings.CutPrefix(p.text(value, what+".keep"), "customFields.")
			if name != "keep" || !ok || custom == "" {
				p.fault(key, "%s: must be {keep: customFields.<key>}", what)
				return
			}
			p.writes(value, custom)
			f.invalid, f.keep = invalidKeep, custom
		})
	default:
		p.fault(n, "%s: must be fail, drop or {keep: customFields.<key>}", what)
	}
}

// writes records that the mapping writes a custom field. Writing one twice is a
// fault.
func (p *mappingParser) writes(n *yaml.Node, key string) {
	if p.written[key] {
		p.fault(n, "customFields.%s: the mapping must write a field only once", key)
	}
	p.written[key] = true
}

// profileFields maps the JSON name of each member of a profile to its index in
// domain.Profile. The names of an address's members have the prefix "address/".
var profileFields = func() map[string][]int {
	fields := map[string][]int{}
	index := func(prefix string, of reflect.Type, at ...int) {
		for i := range of.NumField() {
			name, _, _ := strings.Cut(of.Field(i).Tag.Get("json"), ",")
			if of.Field(i).Type.Kind() != reflect.Pointer {
				fields[prefix+name] = append(slices.Clone(at), i)
			}
		}
	}
	profile := reflect.TypeFor[domain.Profile]()
	address, _ := profile.FieldByName("Address")
	index("", profile)
	index("address/", address.Type.Elem(), address.Index...)
	return fields
}()

// kindOf returns the kind of a profile's member: reflect.String or reflect.Bool.
func kindOf(name string) reflect.Kind {
	return reflect.TypeFor[domain.Profile]().FieldByIndex(profileFields[name]).Type.Kind()
}
