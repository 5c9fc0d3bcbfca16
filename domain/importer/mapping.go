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

// Mapping says what becomes of the members of a source's records. It is read
// from a YAML file; a field of it is a pointer (RFC 6901) into the record, a
// constant, or an object:
//
//	source: crm                   # names the source: with the key it makes the sub
//	format: json                  # json, ndjson or csv; else by the input's name
//	records: /users               # of json: where the list is, if it is not the document
//	delimiter: ";"                # of csv; else a comma
//	key: /id                      # identifies the record for good, or:
//	sub: /uuid                    # the record brings the account's sub
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
//	  members: /groups            # the record's, as paths like /staff/admins: it is a member of staff.admins
//	  groupType: KEYCLOAK         # of groups that are made; itself made, with any roles
//	  definitions: /groups        # of json: where the document lists the groups, as pointers into each say
//	  name: /name
//	  description: /description
//	  below: /subGroups           # the groups below it
//	  customFields: {keycloak_attributes: /attributes}
//	roles:                        # roles that records have become roles in the group of all users
//	  members: /realmRoles        # the record's, by name
//	  definitions: /roles/realm
//	  name: /name
//	  description: /description
//	ignore: [/password]           # not taken, on purpose
//
// A member that is absent or empty in a record says nothing and leaves the
// account as it is; null unsets. A constant status is for new accounts only,
// so that a later run does not lift a suspension.
//
// A group or a role that the ledger has is left as it is. A record's list of
// groups, also an empty one, is all there is of groups of that type: it takes
// the account out of the others. So is its list of roles, of the roles that the
// source has.
type Mapping struct {
	Source string // name of the source
	Digest string // SHA-256 of the file, in hexadecimal

	format       string // json, ndjson, csv, or empty
	records      path
	delimiter    rune
	key, sub     *field // exactly one of them
	personalKey  bool
	namespace    uuid.UUID // of the subs made from keys
	origin       domain.Origin
	createdTime  *field
	status       *field
	identities   []identityMapping
	customFields []field // by key
	groups       *groupMapping
	roles        *roleMapping
	taken        members
}

// identityMapping makes one identity of a record or, with each, one of every
// element of a list.
type identityMapping struct {
	each                     path
	provider, providerUserID *field
	profile                  []field // by name; those of an address as address/locality
}

// field is one value of an account to be.
type field struct {
	name       string // where it goes, relative to its parent: "email", "address/region"
	from       []path // none: constant
	constant   string
	join       *string // of several from
	transforms []transform
	invalid    policy
	keep       string // custom field that takes the raw value, of invalidKeep
}

// policy is what becomes of a value that the rules refuse.
type policy int

const (
	invalidFail policy = iota // the row fails
	invalidDrop               // as if the source had not said it, with a warning
	invalidKeep               // the raw value goes to a custom field, with a warning
)

// Formats of inputs.
const (
	formatJSON   = "json"
	formatNDJSON = "ndjson"
	formatCSV    = "csv"
)

// ParseMapping reads a mapping file. The error names every fault with its
// line.
func ParseMapping(file []byte) (*Mapping, error) {
	var document yaml.Node
	if err := yaml.Unmarshal(file, &document); err != nil {
		return nil, fmt.Errorf("mapping: %w", err)
	}
	digest := sha256.Sum256(file)
	m := &Mapping{Digest: hex.EncodeToString(digest[:]), origin: domain.OriginImported, delimiter: ','}
	p := mappingParser{kept: map[string]bool{}}
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
	// Version 5 UUIDs (RFC 9562): whoever knows source and key knows the sub,
	// on every machine and in every run.
	m.namespace = uuid.NewSHA1(uuid.NameSpaceURL, []byte("accountledger/import/"+m.Source))
	return m, nil
}

// Defines reports whether the mapping makes groups or roles, for which the input
// is read more than once.
func (m *Mapping) Defines() bool { return m.groups != nil || m.roles != nil }

// mappingParser walks the YAML by hand rather than by struct tags: nearly
// every place takes a scalar or an object, and every fault is to have a line.
type mappingParser struct {
	faults []mappingFault
	kept   map[string]bool // custom fields that are written, to find two writers of one
}

type mappingFault struct {
	line int
	text string
}

func (p *mappingParser) fault(n *yaml.Node, format string, args ...any) {
	p.faults = append(p.faults, mappingFault{n.Line, fmt.Sprintf(format, args...)})
}

// object calls member for every member of n, and faults what is no object and
// names that come twice.
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
			p.fault(key, "%s: %q is there twice", what, key.Value)
			continue
		}
		seen[key.Value] = true
		member(key.Value, key, value)
	}
}

func (p *mappingParser) unknown(key *yaml.Node, what string, known ...string) {
	slices.Sort(known)
	p.fault(key, "%s: unknown member %q; there are %s", what, key.Value, strings.Join(known, ", "))
}

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

func (p *mappingParser) pointer(n *yaml.Node, what string) path {
	at, err := parsePath(p.text(n, what))
	if err != nil && n.Value != "" {
		p.fault(n, "%s: %s", what, err)
	}
	return at
}

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
				p.fault(value, "delimiter: must be one character, not a quote or the end of a line")
			}
			m.delimiter = r
		case "key":
			m.key = p.keyField(value, m)
		case "sub":
			m.sub = p.field(value, name, m.taken.add, nil)
		case "origin":
			m.origin = domain.Origin(p.text(value, name, string(domain.OriginImported), string(domain.OriginCreated), string(domain.OriginRegistered)))
		case "createdTime":
			m.createdTime = p.field(value, name, m.taken.add, nil)
		case "status":
			m.status = p.field(value, name, m.taken.add, nil)
		case "identities":
			if value.Kind != yaml.SequenceNode || len(value.Content) == 0 {
				p.fault(value, "identities: must be a list of at least one")
				return
			}
			for i, identity := range value.Content {
				m.identities = append(m.identities, p.identity(identity, fmt.Sprintf("identities[%d]", i), &m.taken))
			}
		case "customFields":
			p.object(value, name, func(fieldKey string, key, value *yaml.Node) {
				p.writes(key, fieldKey)
				f := p.field(value, "customFields."+fieldKey, m.taken.add, nil)
				f.name = fieldKey
				m.customFields = append(m.customFields, *f)
			})
		case "groups":
			m.groups = p.groups(value, &m.taken)
		case "roles":
			m.roles = p.roles(value, &m.taken)
		case "ignore":
			if value.Kind != yaml.SequenceNode {
				p.fault(value, "ignore: must be a list of pointers")
				return
			}
			for _, ignored := range value.Content {
				m.taken.add(p.pointer(ignored, name))
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

// keyField is a field that may also say personal: true.
func (p *mappingParser) keyField(n *yaml.Node, m *Mapping) *field {
	return p.field(n, "key", m.taken.add, func(name string, value *yaml.Node) bool {
		if name == "personal" {
			m.personalKey = p.text(value, "key.personal", "true", "false") == "true"
		}
		return name == "personal"
	})
}

func (p *mappingParser) identity(n *yaml.Node, what string, taken *members) identityMapping {
	var m identityMapping
	take := taken.add
	// The pointers of a list's elements are relative to the element, so the
	// list has to be known first.
	for i := 0; n.Kind == yaml.MappingNode && i < len(n.Content); i += 2 {
		if n.Content[i].Value == "each" {
			m.each = p.pointer(n.Content[i+1], what+".each")
			take = func(at path) { taken.add(slices.Concat(m.each, path{each}, at)) }
		}
	}
	p.object(n, what, func(name string, key, value *yaml.Node) {
		what := what + "." + name
		switch {
		case name == "each":
		case name == "provider":
			m.provider = p.field(value, what, take, nil)
		case name == "providerUserId":
			m.providerUserID = p.field(value, what, take, nil)
		case name == "address":
			p.object(value, what, func(part string, key, value *yaml.Node) {
				m.profile = append(m.profile, p.profileField(key, value, "address/"+part, what+"."+part, take, m.each != nil))
			})
		default:
			m.profile = append(m.profile, p.profileField(key, value, name, what, take, m.each != nil))
		}
	})
	if m.provider == nil {
		p.fault(n, "%s: provider is required", what)
	}
	return m
}

func (p *mappingParser) groups(n *yaml.Node, taken *members) *groupMapping {
	var m groupMapping
	p.object(n, "groups", func(name string, key, value *yaml.Node) {
		what := "groups." + name
		switch name {
		case "groupType":
			if m.groupType = p.text(value, what); domain.NewConfig().GroupTypes[m.groupType].System {
				p.fault(value, "%s: must not be one of the ledger's own", what)
			}
		case "below":
			m.below = p.pointer(value, what)
		case "customFields":
			p.object(value, what, func(fieldKey string, key, value *yaml.Node) {
				m.customFields = append(m.customFields, customFieldAt{fieldKey, p.pointer(value, what+"."+fieldKey)})
			})
		default:
			if !p.defined(name, value, what, taken, &m.members, &m.definitions, &m.definition) {
				p.unknown(key, "groups", "members", "groupType", "definitions", "name", "description", "below", "customFields")
			}
		}
	})
	if m.members == nil || m.groupType == "" || (m.definitions == nil) != (m.name == nil) {
		p.fault(n, "groups: members and groupType are required, and name with definitions")
	}
	return &m
}

func (p *mappingParser) roles(n *yaml.Node, taken *members) *roleMapping {
	var m roleMapping
	p.object(n, "roles", func(name string, key, value *yaml.Node) {
		if !p.defined(name, value, "roles."+name, taken, &m.members, &m.definitions, &m.definition) {
			p.unknown(key, "roles", "members", "definitions", "name", "description")
		}
	})
	if m.members == nil || (m.definitions == nil) != (m.name == nil) {
		p.fault(n, "roles: members is required, and name with definitions")
	}
	return &m
}

// defined reads a member that groups and roles both have. It reports whether
// it was one.
func (p *mappingParser) defined(name string, value *yaml.Node, what string, taken *members, of, definitions *path, d *definition) bool {
	switch name {
	case "members":
		*of = p.pointer(value, what)
		taken.add(*of)
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

func (p *mappingParser) profileField(key, value *yaml.Node, name, what string, take func(path), inList bool) field {
	if _, ok := profileFields[name]; !ok {
		p.fault(key, "%s: an identity has no such member", what)
	}
	f := p.field(value, what, take, nil)
	f.name = name
	if f.invalid == invalidKeep && inList {
		p.fault(key, "%s: keep is not for elements of a list: there is one field and there may be many values", what)
	}
	return *f
}

// field reads a pointer, a constant, or an object with from or value. What
// else the object may have, extra takes.
func (p *mappingParser) field(n *yaml.Node, what string, take func(path), extra func(name string, value *yaml.Node) bool) *field {
	f := &field{name: what}
	if n.Kind == yaml.ScalarNode {
		if strings.HasPrefix(n.Value, "/") {
			f.from = []path{p.pointer(n, what)}
			take(f.from[0])
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
		take(from)
	}
	switch {
	case n.Kind != yaml.MappingNode:
	case (len(f.from) == 0) == (f.constant == ""):
		p.fault(n, "%s: either from or value is required", what)
	case (len(f.from) > 1) != (f.join != nil):
		p.fault(n, "%s: join goes with a list of pointers in from", what)
	}
	return f
}

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

// writes notes that a custom field is written, which may be done once.
func (p *mappingParser) writes(n *yaml.Node, key string) {
	if p.kept[key] {
		p.fault(n, "customFields.%s: is written twice", key)
	}
	p.kept[key] = true
}

// profileFields is where each member of a profile is in a domain.Profile: by
// the name it has on the wire, those of the address behind "address/".
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

// kindOf is the kind of a profile's member: reflect.String or reflect.Bool.
func kindOf(name string) reflect.Kind {
	return reflect.TypeFor[domain.Profile]().FieldByIndex(profileFields[name]).Type.Kind()
}
