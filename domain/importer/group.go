package importer

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"accountledger/domain"
)

// groupMapping defines the groups of a record and the properties of groups.
type groupMapping struct {
	members     path   // in a record: the list of its groups' paths, like /staff/admins
	groupType   string // of the groups that the import creates
	definitions path   // in the document: the list of groups; empty: none, and only the paths are known
	below       path   // in a group: the list of its subgroups
	definition
}

// roleMapping defines the roles of a record in the group of all users and the
// properties of roles.
type roleMapping struct {
	members     path // in a record: the list of its roles' names
	definitions path // in the document: the list of roles; empty: none, and only the names are known
	definition
}

// definition has the paths of a group's or role's properties.
type definition struct {
	name, description path
	customFields      []customFieldAt // by key
}

type customFieldAt struct {
	key string
	at  path
}

// definitions are the groups and roles in the input, by id.
type definitions struct {
	groups map[string]domain.PutGroup
	roles  map[string]domain.PutRole
	used   map[string]bool // the roles that rows have; the others are not created
}

// memberships are a record's groups and roles, as ids.
type memberships struct {
	groups, roles             []string
	groupsStated, rolesStated bool // the record has a list, which may be empty
}

// define creates the groups and roles in the input that the ledger does not have.
// It does not change existing ones, because an operator may have edited them.
func (j *Job) define(ctx context.Context, s *Summary) error {
	if j.Mapping.groups == nil && j.Mapping.roles == nil {
		return nil
	}
	d, err := j.definitions(ctx)
	if err != nil {
		return err
	}
	config, err := j.Ledger.Config(ctx)
	if err != nil {
		return err
	}
	configure := func(what string, cmd domain.ConfigCommand) error {
		result, err := j.Ledger.Configure(ctx, j.request(), cmd)
		if refused, ok := errors.AsType[*domain.Error](err); ok && len(refused.Faults) > 0 {
			return fmt.Errorf("%s: %s: %s", what, refused.Faults[0].Pointer, refused.Faults[0].Detail)
		} else if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		s.Events += int64(len(result.Events))
		return nil
	}
	j.sourceRoles = slices.Sorted(maps.Keys(d.roles))
	for _, id := range j.sourceRoles {
		if _, exists := config.Roles[id]; exists || !d.used[id] {
			continue
		}
		if err := configure("role "+id, d.roles[id]); err != nil {
			return err
		}
		s.Roles = append(s.Roles, id)
	}
	// Create parents before their children.
	for _, id := range slices.SortedFunc(maps.Keys(d.groups), func(a, b string) int {
		return cmp.Or(d.depth(a)-d.depth(b), strings.Compare(a, b))
	}) {
		if _, exists := config.Groups[id]; exists {
			continue
		}
		groupType := d.groups[id].GroupType
		if _, exists := config.GroupTypes[groupType]; !exists && len(s.Groups) == 0 {
			if err := configure("group type "+groupType, domain.PutGroupType{GroupType: groupType, RoleMode: domain.ModeAnyRoles}); err != nil {
				return err
			}
		}
		if err := configure("group "+id, d.groups[id]); err != nil {
			return err
		}
		s.Groups = append(s.Groups, id)
	}
	return nil
}

// depth returns the number of groups from the root down to id.
func (d *definitions) depth(id string) int {
	n := 0
	for ; id != ""; id = d.groups[id].ParentID {
		n++
	}
	return n
}

// definitions reads the groups and roles in the input. It also reads the rows,
// because a row can have a group or role without a definition.
func (j *Job) definitions(ctx context.Context) (*definitions, error) {
	d := &definitions{groups: map[string]domain.PutGroup{}, roles: map[string]domain.PutRole{}, used: map[string]bool{}}
	m := j.Mapping
	input, ok := j.Input.Reader.(io.ReadSeeker)
	rewind := func() error {
		if !ok {
			return errors.New("input: must be a file, because a mapping with groups or roles reads it more than once")
		}
		if _, err := input.Seek(0, io.SeekStart); err != nil {
			return errors.New("input: must be a regular file, because a mapping with groups or roles reads it more than once")
		}
		return ctx.Err()
	}
	list := func(at path, each func(record)) error {
		if at == nil {
			return nil
		}
		if format, err := m.Format(j.Input.Name); err != nil || format != formatJSON {
			return errors.New("definitions in the mapping require an input in the format json")
		}
		if err := rewind(); err != nil {
			return err
		}
		err := readJSON(skipBOM(input), at, func(r record, _ string) bool { each(r); return true })
		if _, missing := errors.AsType[missingMember](err); missing {
			return nil
		}
		return err
	}
	var err error
	if m.groups != nil {
		err = list(m.groups.definitions, func(r record) { d.tree(m.groups, nil, r) })
	}
	if m.roles != nil && err == nil {
		err = list(m.roles.definitions, func(r record) {
			if name := m.roles.text(m.roles.name, r); name != "" {
				d.roles[roleID(name)] = domain.PutRole{Role: roleID(name), Name: name, Description: m.roles.text(m.roles.description, r)}
			}
		})
	}
	if err = cmp.Or(err, rewind()); err != nil {
		return nil, err
	}
	for r, err := range m.rows(j.Input.Name, input) {
		if err := cmp.Or(err, ctx.Err()); err != nil {
			return nil, err
		}
		d.row(m, r.record)
	}
	return d, rewind()
}

// row adds the record's groups and roles that have no definition. It ignores
// invalid lists; they are faults when the row is imported.
func (d *definitions) row(m *Mapping, r record) {
	if m.groups != nil {
		names, _, _ := namesAt(m.groups.members, r)
		for _, name := range names {
			segments, err := splitPath(name)
			for i := range segments {
				if _, known := d.groups[groupID(segments[:i+1])]; !known && err == nil {
					d.add(m.groups, segments[:i+1], nil)
				}
			}
		}
	}
	if m.roles != nil {
		names, _, _ := namesAt(m.roles.members, r)
		for _, name := range names {
			id := roleID(name)
			if _, known := d.roles[id]; !known {
				d.roles[id] = domain.PutRole{Role: id, Name: name}
			}
			d.used[id] = true
		}
	}
}

// tree adds the group r and all its subgroups.
func (d *definitions) tree(m *groupMapping, above []string, r record) {
	name := m.text(m.name, r)
	if name == "" {
		return
	}
	segments := append(slices.Clip(above), name)
	d.add(m, segments, r)
	if m.below == nil {
		return
	}
	list, _ := m.below.lookup(r)
	below, _ := list.([]any)
	for _, child := range below {
		d.tree(m, segments, child)
	}
}

// add adds the group r, which is nil without a definition.
func (d *definitions) add(m *groupMapping, segments []string, r record) {
	put := domain.PutGroup{GroupID: groupID(segments), GroupName: segments[len(segments)-1], GroupType: m.groupType, Description: m.text(m.description, r)}
	if above := segments[:len(segments)-1]; len(above) > 0 {
		put.ParentID = groupID(above)
	}
	for _, f := range m.customFields {
		if v, _ := f.at.lookup(r); !empty(v) {
			if put.CustomFields == nil {
				put.CustomFields = map[string]jsontext.Value{}
			}
			v, _ = exact(v)
			put.CustomFields[f.key] = marshal(v)
		}
	}
	d.groups[put.GroupID] = put
}

// text returns the text at a path of r, "" if there is none.
func (definition) text(at path, r record) string {
	if at == nil {
		return ""
	}
	v, _ := at.lookup(r)
	text, _ := v.(string)
	return text
}

// namesAt returns the texts in the list at a path of r. stated reports whether
// there is a list.
func namesAt(at path, r record) (names []string, stated bool, err error) {
	v, _ := at.lookup(r)
	list, stated := v.([]any)
	for _, element := range list {
		name, ok := element.(string)
		if !ok || name == "" {
			return nil, stated, errors.New("must be a list of text values")
		}
		names = append(names, name)
	}
	if !stated && !empty(v) {
		err = errors.New("must be a list of text values")
	}
	return names, stated, err
}

// splitPath splits a path like /staff/admins into names. A slash within a name is
// escaped as ~/, as in Keycloak.
func splitPath(p string) ([]string, error) {
	rest, ok := strings.CutPrefix(p, "/")
	segments := strings.Split(strings.ReplaceAll(rest, "~/", "\x00"), "/")
	if !ok || slices.Contains(segments, "") {
		return nil, errors.New("must be a path of names like /staff/admins")
	}
	for i := range segments {
		segments[i] = strings.ReplaceAll(segments[i], "\x00", "/")
	}
	return segments, nil
}

var (
	plainGroup = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]*$`)
	plainRole  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]*$`)
	digested   = regexp.MustCompile(`-[0-9a-f]{12}$`)
)

// groupID returns the id of a group of the source: staff.admins for
// /staff/admins. It is never the id of a system group, because a source must not
// appoint the ledger's administrators.
func groupID(segments []string) string {
	plain := !slices.ContainsFunc(segments, func(s string) bool { return !plainGroup.MatchString(s) })
	id := strings.Join(segments, ".")
	return idOf(id, plain && id != domain.GroupUsers && id != domain.GroupAdmins, segments)
}

// roleID returns the id of a role of the source.
func roleID(name string) string { return idOf(name, plainRole.MatchString(name), []string{name}) }

// idOf returns a valid id: id itself if it is plain and short enough. Otherwise it
// replaces the invalid characters, truncates the id and appends a digest of names.
// It also appends one to an id that already ends like a digest, so that different
// names have different ids.
func idOf(id string, plain bool, names []string) string {
	const maxLength, keptLength = 64, 51
	if plain && len(id) <= maxLength && !digested.MatchString(id) {
		return id
	}
	digest := sha256.Sum256([]byte(strings.Join(names, "\x00")))
	id = strings.TrimLeft(strings.Map(func(r rune) rune {
		if r < 0x80 && plainRole.MatchString("x"+string(r)) {
			return r
		}
		return '_'
	}, id), "_.-")
	return cmp.Or(id[:min(keptLength, len(id))], "x") + "-" + hex.EncodeToString(digest[:6])
}

// readMemberships reads the record's memberships.
func (d *draft) readMemberships(m *Mapping, r record) {
	if m.groups != nil {
		names, stated, err := namesAt(m.groups.members, r)
		for _, name := range names {
			segments, invalid := splitPath(name)
			if err = cmp.Or(err, invalid); err == nil {
				d.groups = append(d.groups, groupID(segments))
			}
		}
		if d.groupsStated = stated; err != nil {
			d.faults = append(d.faults, Finding{Field: "/groups", Rule: err.Error()})
		}
	}
	if m.roles != nil {
		names, stated, err := namesAt(m.roles.members, r)
		for _, name := range names {
			d.roles = append(d.roles, roleID(name))
		}
		if d.rolesStated = stated; err != nil {
			d.faults = append(d.faults, Finding{Field: "/groups/" + domain.GroupUsers + "/roles", Rule: err.Error()})
		}
	}
	slices.Sort(d.groups)
	d.groups = slices.Compact(d.groups)
}

// initialMemberships returns the memberships of a new account.
func (d *draft) initialMemberships() []domain.SetMembership {
	var all []domain.SetMembership
	if len(d.roles) > 0 {
		all = append(all, domain.SetMembership{GroupID: domain.GroupUsers, Roles: append([]string{domain.RoleUser}, d.roles...)})
	}
	for _, id := range d.groups {
		all = append(all, domain.SetMembership{GroupID: id})
	}
	return all
}

// membershipCommands returns the commands that make the account's memberships
// match the draft. It adds and removes only groups of the mapping's type and roles
// of the source. Other memberships, and the roles within the source's groups, do
// not change.
func (c *change) membershipCommands(account domain.Account) []domain.Command {
	d := c.draft
	var commands []domain.Command
	in := func(id string) func(domain.Membership) bool {
		return func(m domain.Membership) bool { return m.GroupID == id }
	}
	for _, id := range d.groups {
		if !slices.ContainsFunc(account.Groups, in(id)) {
			commands = append(commands, domain.SetMembership{GroupID: id})
		}
	}
	for _, m := range account.Groups {
		if d.groupsStated && m.GroupType == c.Mapping.groups.groupType && !m.Merged && !slices.Contains(d.groups, m.GroupID) {
			commands = append(commands, domain.LeaveGroup{GroupID: m.GroupID})
		}
	}
	i := slices.IndexFunc(account.Groups, in(domain.GroupUsers))
	switch {
	case !d.rolesStated:
	case i < 0 && len(d.roles) > 0:
		d.warn(Finding{"/groups/" + domain.GroupUsers, "the account is not a member of the group of all users", "dropped"})
	case i >= 0:
		roles := slices.DeleteFunc(slices.Clone(account.Groups[i].Roles), func(role string) bool {
			return role != domain.RoleUser && slices.Contains(c.sourceRoles, role)
		})
		commands = append(commands, domain.SetMembership{GroupID: domain.GroupUsers, Roles: append(roles, d.roles...)})
	}
	return commands
}
