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

// groupMapping says which groups a record is in, and what is known of them.
type groupMapping struct {
	members     path   // of a record: a list of paths like /staff/admins
	groupType   string // of the groups that are made
	definitions path   // of the document: a list of groups; none: the paths say all
	below       path   // of a group: the list of those below it
	definition
}

// roleMapping says which roles a record has in the group of all users, and
// what is known of them.
type roleMapping struct {
	members     path // of a record: a list of names
	definitions path // of the document: a list of roles; none: the names say all
	definition
}

// definition is where a group or role of the source says what it is.
type definition struct {
	name, description path
	customFields      []customFieldAt // by key
}

type customFieldAt struct {
	key string
	at  path
}

// definitions are the groups and roles to be, by their id.
type definitions struct {
	groups map[string]domain.PutGroup
	roles  map[string]domain.PutRole
	used   map[string]bool // roles that rows have; the others are not made
}

// memberships is what a record says about them, as ids.
type memberships struct {
	groups, roles             []string
	groupsStated, rolesStated bool
}

// define makes the groups and roles that the input speaks of and that are not
// there. What is there is left as it is: the operators may have changed it.
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
	ask := func(what string, cmd domain.ConfigCommand) error {
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
		if err := ask("role "+id, d.roles[id]); err != nil {
			return err
		}
		s.Roles = append(s.Roles, id)
	}
	// Those above come first.
	for _, id := range slices.SortedFunc(maps.Keys(d.groups), func(a, b string) int {
		return cmp.Or(d.depth(a)-d.depth(b), strings.Compare(a, b))
	}) {
		if _, exists := config.Groups[id]; exists {
			continue
		}
		groupType := d.groups[id].GroupType
		if _, exists := config.GroupTypes[groupType]; !exists && len(s.Groups) == 0 {
			if err := ask("group type "+groupType, domain.PutGroupType{GroupType: groupType, RoleMode: domain.ModeAnyRoles}); err != nil {
				return err
			}
		}
		if err := ask("group "+id, d.groups[id]); err != nil {
			return err
		}
		s.Groups = append(s.Groups, id)
	}
	return nil
}

// depth is how many groups there are from the root down to id.
func (d *definitions) depth(id string) int {
	n := 0
	for ; id != ""; id = d.groups[id].ParentID {
		n++
	}
	return n
}

// definitions reads the input for the groups and roles in it. It looks at the
// rows, too: a path or a name that a row has and no definition is a group or a
// role all the same.
func (j *Job) definitions(ctx context.Context) (*definitions, error) {
	d := &definitions{groups: map[string]domain.PutGroup{}, roles: map[string]domain.PutRole{}, used: map[string]bool{}}
	m := j.Mapping
	input, ok := j.Input.Reader.(io.ReadSeeker)
	rewind := func() error {
		if !ok {
			return errors.New("input: the mapping has groups or roles, for which it is read more than once; import a file")
		}
		if _, err := input.Seek(0, io.SeekStart); err != nil {
			return errors.New("input: the mapping has groups or roles, for which it is read more than once; this one cannot be: import a file")
		}
		return ctx.Err()
	}
	list := func(at path, each func(record)) error {
		if at == nil {
			return nil
		}
		if format, err := m.Format(j.Input.Name); err != nil || format != formatJSON {
			return errors.New("definitions are read from a JSON document, and the input is none")
		}
		if err := rewind(); err != nil {
			return err
		}
		err := readJSON(withoutMark(input), at, func(r record, _ string) bool { each(r); return true })
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

// row adds what a record has and no definition. What is no list of names is a
// fault of the row when that is imported.
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

// tree adds the group r and all below it.
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
	list, _ := m.below.of(r)
	below, _ := list.([]any)
	for _, child := range below {
		d.tree(m, segments, child)
	}
}

func (d *definitions) add(m *groupMapping, segments []string, r record) {
	put := domain.PutGroup{GroupID: groupID(segments), GroupName: segments[len(segments)-1], GroupType: m.groupType, Description: m.text(m.description, r)}
	if above := segments[:len(segments)-1]; len(above) > 0 {
		put.ParentID = groupID(above)
	}
	for _, f := range m.customFields {
		if v, _ := f.at.of(r); !empty(v) {
			if put.CustomFields == nil {
				put.CustomFields = map[string]jsontext.Value{}
			}
			v, _ = exact(v)
			put.CustomFields[f.key] = marshal(v)
		}
	}
	d.groups[put.GroupID] = put
}

// text is what r says at a place, "" if it says no text there.
func (definition) text(at path, r record) string {
	if at == nil {
		return ""
	}
	v, _ := at.of(r)
	text, _ := v.(string)
	return text
}

// namesAt are the texts in the list at a place of r. stated says whether there
// is a list.
func namesAt(at path, r record) (names []string, stated bool, err error) {
	v, _ := at.of(r)
	list, stated := v.([]any)
	for _, element := range list {
		name, ok := element.(string)
		if !ok || name == "" {
			return nil, stated, errors.New("must be a list of texts")
		}
		names = append(names, name)
	}
	if !stated && !empty(v) {
		err = errors.New("must be a list of texts")
	}
	return names, stated, err
}

// splitPath cuts a path like /staff/admins into names. A slash in a name is
// written ~/, as Keycloak does.
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

// groupID is the id of a group of the source: staff.admins of /staff/admins.
// One of the ledger's own is never meant, whatever a group is called: a source
// does not say who its administrators are.
func groupID(segments []string) string {
	plain := !slices.ContainsFunc(segments, func(s string) bool { return !plainGroup.MatchString(s) })
	id := strings.Join(segments, ".")
	return idOf(id, plain && id != domain.GroupUsers && id != domain.GroupAdmins, segments)
}

// roleID is the id of a role of the source, its name.
func roleID(name string) string { return idOf(name, plainRole.MatchString(name), []string{name}) }

// idOf is an id in the form that ids have. Where names have other characters,
// or are too long, a digest of them goes behind what can be kept; and where
// they end like one, so that no name is taken for another.
func idOf(id string, plain bool, names []string) string {
	const most, kept = 64, 51
	if plain && len(id) <= most && !digested.MatchString(id) {
		return id
	}
	digest := sha256.Sum256([]byte(strings.Join(names, "\x00")))
	id = strings.TrimLeft(strings.Map(func(r rune) rune {
		if r < 0x80 && plainRole.MatchString("x"+string(r)) {
			return r
		}
		return '_'
	}, id), "_.-")
	return cmp.Or(id[:min(kept, len(id))], "x") + "-" + hex.EncodeToString(digest[:6])
}

// belong reads the record's memberships.
func (d *draft) belong(m *Mapping, r record) {
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

// first are the memberships of a new account.
func (d *draft) first() []domain.SetMembership {
	var all []domain.SetMembership
	if len(d.roles) > 0 {
		all = append(all, domain.SetMembership{GroupID: domain.GroupUsers, Roles: append([]string{domain.RoleUser}, d.roles...)})
	}
	for _, id := range d.groups {
		all = append(all, domain.SetMembership{GroupID: id})
	}
	return all
}

// belong brings the account's memberships to what the draft says. Those in
// groups of the mapping's type, and the roles that the source has, are the
// source's to give and to take; the others stay, and so do the roles a member
// has in a group.
func (c *change) belong(account domain.Account) []domain.Command {
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
		d.warn(Finding{"/groups/" + domain.GroupUsers, "the account was taken out of the group of all users", "dropped"})
	case i >= 0:
		roles := slices.DeleteFunc(slices.Clone(account.Groups[i].Roles), func(role string) bool {
			return role != domain.RoleUser && slices.Contains(c.sourceRoles, role)
		})
		commands = append(commands, domain.SetMembership{GroupID: domain.GroupUsers, Roles: append(roles, d.roles...)})
	}
	return commands
}
