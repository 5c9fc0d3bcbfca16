package domain

import (
	"bytes"
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"accountledger/eventstore"
)

// GroupType says which roles the members of its groups can have.
type GroupType struct {
	GroupType    string              `json:"groupType" doc:"The group type's id."`
	RoleMode     RoleMode            `json:"roleMode" doc:"any_roles: any number of roles; no_roles: none; roles_required: at least one; allowed_roles: any number of those in allowedRoles."`
	AllowedRoles []string            `json:"allowedRoles" doc:"With roleMode allowed_roles: the roles members may have."` // sorted
	System       bool                `json:"system" doc:"A built-in group type, which cannot be changed or deleted."`
	Revision     eventstore.Revision `json:"revision" doc:"Revision of the configuration in which the group type last changed, or -1 if it never has. Also the ETag."`
}

// RoleMode says which roles a membership can have.
type RoleMode string

// The role modes.
const (
	ModeAnyRoles      RoleMode = "any_roles"      // any, or none
	ModeNoRoles       RoleMode = "no_roles"       // none
	ModeRolesRequired RoleMode = "roles_required" // any, and at least one
	ModeAllowedRoles  RoleMode = "allowed_roles"  // those of GroupType.AllowedRoles, or none
)

// RoleModes lists every role mode.
var RoleModes = []RoleMode{ModeAnyRoles, ModeNoRoles, ModeRolesRequired, ModeAllowedRoles}

func (t GroupType) allows(role string) bool {
	switch t.RoleMode {
	case ModeNoRoles:
		return false
	case ModeAllowedRoles:
		return slices.Contains(t.AllowedRoles, role)
	}
	return true
}

// Group is a group of accounts. Groups form a tree.
type Group struct {
	GroupID      string                    `json:"groupId" doc:"The group's id."`
	GroupName    string                    `json:"groupName" doc:"Display name."`
	GroupType    string                    `json:"groupType" doc:"The group's type."`
	ParentID     string                    `json:"parentId,omitzero" doc:"The parent group. Absent for a root group."`
	Description  string                    `json:"description,omitzero" doc:"What the group is for."`
	CustomFields map[string]jsontext.Value `json:"customFields" doc:"The application's custom fields. Configuration cannot be erased; do not put personal data in it."`
	System       bool                      `json:"system" doc:"A built-in group, which cannot be deleted or moved."`
	Revision     eventstore.Revision       `json:"revision" doc:"Revision of the configuration in which the group last changed, or -1 if it never has. Also the ETag."`
}

// The built-in groups.
const (
	GroupUsers  = "CIDAAS_USERS"  // every new account joins it with RoleUser
	GroupAdmins = "CIDAAS_ADMINS" // only administrators can change its members
)

// groupTypeSystem is the type of the built-in groups.
const groupTypeSystem = "SYSTEM"

var (
	systemGroupTypes = []GroupType{
		{GroupType: groupTypeSystem, RoleMode: ModeAnyRoles, System: true, Revision: eventstore.NoStream},
	}
	systemGroups = []Group{
		{GroupID: GroupUsers, GroupName: "Users", GroupType: groupTypeSystem, System: true, Revision: eventstore.NoStream},
		{GroupID: GroupAdmins, GroupName: "Administrators", GroupType: groupTypeSystem, System: true, Revision: eventstore.NoStream},
	}
)

// maxGroupDepth is the maximum depth of the tree.
const maxGroupDepth = 32

// path returns a group's place in the tree: the ids from the root down, as in
// "/EUROPE/BERLIN". It terminates, because the tree has no cycles.
func (c *Config) path(id string) string {
	if id == "" {
		return ""
	}
	return c.path(c.Groups[id].ParentID) + "/" + id
}

// depth returns the number of groups from the root down to id.
func (c *Config) depth(id string) int { return strings.Count(c.path(id), "/") }

// children returns the ids of the groups directly below id.
func (c *Config) children(id string) []string {
	var ids []string
	for _, g := range c.Groups {
		if g.ParentID == id {
			ids = append(ids, g.GroupID)
		}
	}
	return ids
}

// height returns the number of groups from id down to its lowest descendant.
func (c *Config) height(id string) int {
	below := 0
	for _, child := range c.children(id) {
		below = max(below, c.height(child))
	}
	return 1 + below
}

// below reports whether id is above itself or one of its descendants.
func (c *Config) below(id, above string) bool {
	for ; id != ""; id = c.Groups[id].ParentID {
		if id == above {
			return true
		}
	}
	return false
}

// GroupTypeSet defines or changes a group type.
type GroupTypeSet struct {
	GroupType    string   `json:"groupType" pii:"clear"`
	RoleMode     RoleMode `json:"roleMode" pii:"clear"`
	AllowedRoles []string `json:"allowedRoles,omitzero" pii:"clear"`
	Created      bool     `json:"created,omitzero" pii:"clear"` // the id was new
	Fields       []string `json:"fields" pii:"clear"`           // names of the members that changed
}

func (GroupTypeSet) eventType() string { return "group-type.set.v1" }

func (e GroupTypeSet) evolve(c *Config, x Entry) {
	c.GroupTypes[e.GroupType] = GroupType{GroupType: e.GroupType, RoleMode: e.RoleMode, AllowedRoles: e.AllowedRoles, Revision: x.Revision}
}

func (e GroupTypeSet) public(Entry) []publicEvent {
	return objectSet("GROUP_TYPE", e.Created, e.GroupType, e.Fields)
}

func (GroupTypeSet) catalogue() []PublicType { return objectSetTypes("GROUP_TYPE", "a group type") }

// GroupTypeDeleted removes a group type that no group uses.
type GroupTypeDeleted struct {
	GroupType string `json:"groupType" pii:"clear"`
}

func (GroupTypeDeleted) eventType() string { return "group-type.deleted.v1" }

func (e GroupTypeDeleted) evolve(c *Config, _ Entry) { delete(c.GroupTypes, e.GroupType) }

func (e GroupTypeDeleted) public(Entry) []publicEvent {
	return objectDeleted("GROUP_TYPE", e.GroupType)
}

func (GroupTypeDeleted) catalogue() []PublicType {
	return objectDeletedTypes("GROUP_TYPE", "a group type is deleted")
}

// GroupSet defines or changes a group, and its place in the tree.
type GroupSet struct {
	GroupID      string                    `json:"groupId" pii:"clear"`
	GroupName    string                    `json:"groupName" pii:"clear"`
	GroupType    string                    `json:"groupType" pii:"clear"`
	ParentID     string                    `json:"parentId,omitzero" pii:"clear"`
	Description  string                    `json:"description,omitzero" pii:"clear"`
	CustomFields map[string]jsontext.Value `json:"customFields,omitzero" pii:"clear"`
	Created      bool                      `json:"created,omitzero" pii:"clear"` // the id was new
	Fields       []string                  `json:"fields" pii:"clear"`           // names of the members that changed
}

func (GroupSet) eventType() string { return "group.set.v1" }

func (e GroupSet) evolve(c *Config, x Entry) {
	c.Groups[e.GroupID] = Group{GroupID: e.GroupID, GroupName: e.GroupName, GroupType: e.GroupType, ParentID: e.ParentID,
		Description: e.Description, CustomFields: e.CustomFields, System: c.Groups[e.GroupID].System, Revision: x.Revision}
}

func (e GroupSet) public(Entry) []publicEvent {
	return objectSet("GROUP", e.Created, e.GroupID, e.Fields)
}

func (GroupSet) catalogue() []PublicType { return objectSetTypes("GROUP", "a group") }

// GroupDeleted removes an empty group.
type GroupDeleted struct {
	GroupID string `json:"groupId" pii:"clear"`
}

func (GroupDeleted) eventType() string { return "group.deleted.v1" }

func (e GroupDeleted) evolve(c *Config, _ Entry) { delete(c.Groups, e.GroupID) }

func (e GroupDeleted) public(Entry) []publicEvent { return objectDeleted("GROUP", e.GroupID) }

func (GroupDeleted) catalogue() []PublicType {
	return objectDeletedTypes("GROUP", "a group is deleted")
}

// PutGroupType defines or changes a group type. A change that existing
// memberships would break is refused.
type PutGroupType struct {
	GroupType    string
	RoleMode     RoleMode
	AllowedRoles []string // only and always with ModeAllowedRoles

	broken int64 // violations by existing memberships, see broken
}

func (p PutGroupType) revision(c *Config) eventstore.Revision {
	return groupTypeRevision(c, p.GroupType)
}

func groupTypeRevision(c *Config, id string) eventstore.Revision {
	if t, ok := c.GroupTypes[id]; ok {
		return t.Revision
	}
	return eventstore.NoStream
}

func (p PutGroupType) survey(ctx context.Context, c *Config, census Census) (ConfigCommand, error) {
	t := GroupType{RoleMode: p.RoleMode, AllowedRoles: p.AllowedRoles}
	for _, g := range c.Groups {
		if g.GroupType != p.GroupType {
			continue
		}
		n, err := broken(ctx, c, census, g.GroupID, t)
		if err != nil {
			return nil, err
		}
		p.broken += n
	}
	return p, nil
}

// broken counts how often memberships of a group would violate type t: the roles
// that t does not allow or, if t requires roles, the members without one.
func broken(ctx context.Context, c *Config, census Census, groupID string, t GroupType) (int64, error) {
	if t.RoleMode == ModeRolesRequired {
		return census.Members(ctx, groupID, NoRole)
	}
	sum := int64(0)
	for role := range c.Roles {
		if t.allows(role) {
			continue
		}
		n, err := census.Members(ctx, groupID, role)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

// refuseBroken refuses a change that existing memberships would violate.
func refuseBroken(mode RoleMode, n int64) error {
	switch {
	case n == 0:
		return nil
	case mode == ModeRolesRequired:
		return refuse(CodeInUse, "%d members have no role, which this role mode requires.", n)
	}
	return refuse(CodeInUse, "Existing memberships have roles that would no longer be allowed: %d.", n)
}

func (p PutGroupType) decide(c *Config, _ time.Time) ([]Event, error) {
	var f faults
	if !objectID.MatchString(p.GroupType) {
		f.add("/groupType", objectIDRule)
	}
	if !slices.Contains(RoleModes, p.RoleMode) {
		f.add("/roleMode", "must be any_roles, no_roles, roles_required or allowed_roles")
	}
	if (p.RoleMode == ModeAllowedRoles) != (len(p.AllowedRoles) > 0) {
		f.add("/allowedRoles", "required with roleMode allowed_roles, not allowed otherwise")
	}
	allowed := f.roles("/allowedRoles", c, p.AllowedRoles)
	if err := f.err(); err != nil {
		return nil, err
	}
	old, exists := c.GroupTypes[p.GroupType]
	e := GroupTypeSet{GroupType: p.GroupType, RoleMode: p.RoleMode, AllowedRoles: allowed, Created: !exists}
	e.Fields = changed(!exists, member{"roleMode", old.RoleMode != e.RoleMode}, member{"allowedRoles", !slices.Equal(old.AllowedRoles, allowed)})
	if len(e.Fields) == 0 {
		return nil, nil
	}
	if old.System {
		return nil, refuse(CodeSystemManaged, "A built-in group type cannot be changed or deleted.")
	}
	if err := refuseBroken(p.RoleMode, p.broken); err != nil {
		return nil, err
	}
	return []Event{e}, nil
}

// roles checks that roles exist and returns them sorted and without duplicates.
func (f *faults) roles(pointer string, c *Config, roles []string) []string {
	if len(roles) > maxRoles {
		f.add(pointer, "at most %d roles", maxRoles)
		return nil
	}
	for i, role := range roles {
		if _, ok := c.Roles[role]; !ok {
			f.add(pointer+"/"+strconv.Itoa(i), "there is no such role")
		}
	}
	if len(roles) == 0 {
		return nil
	}
	sorted := slices.Clone(roles)
	slices.Sort(sorted)
	return slices.Compact(sorted)
}

// maxRoles is the maximum number of roles of a membership or group type.
const maxRoles = 100

// DeleteGroupType removes a group type. A built-in one, or one that a group uses,
// cannot be removed.
type DeleteGroupType struct{ GroupType string }

func (d DeleteGroupType) revision(c *Config) eventstore.Revision {
	return groupTypeRevision(c, d.GroupType)
}

func (d DeleteGroupType) decide(c *Config, _ time.Time) ([]Event, error) {
	t, ok := c.GroupTypes[d.GroupType]
	groups := 0
	for _, g := range c.Groups {
		if g.GroupType == d.GroupType {
			groups++
		}
	}
	switch {
	case !ok:
		return nil, refuse(CodeGroupTypeNotFound, "There is no such group type.")
	case t.System:
		return nil, refuse(CodeSystemManaged, "A built-in group type cannot be changed or deleted.")
	case groups > 0:
		return nil, refuse(CodeInUse, "%d groups have this group type.", groups)
	}
	return []Event{GroupTypeDeleted(d)}, nil
}

// PutGroup defines or changes a group. The type and the parent of a built-in group
// cannot change.
type PutGroup struct {
	GroupID, GroupName, GroupType, ParentID, Description string
	CustomFields                                         map[string]jsontext.Value

	broken int64 // see PutGroupType
}

func (p PutGroup) revision(c *Config) eventstore.Revision { return groupRevision(c, p.GroupID) }

func groupRevision(c *Config, id string) eventstore.Revision {
	if g, ok := c.Groups[id]; ok {
		return g.Revision
	}
	return eventstore.NoStream
}

func (p PutGroup) survey(ctx context.Context, c *Config, census Census) (ConfigCommand, error) {
	t, ok := c.GroupTypes[p.GroupType]
	if old, exists := c.Groups[p.GroupID]; !ok || !exists || old.GroupType == p.GroupType {
		return p, nil
	}
	var err error
	p.broken, err = broken(ctx, c, census, p.GroupID, t)
	return p, err
}

func (p PutGroup) decide(c *Config, _ time.Time) ([]Event, error) {
	var f faults
	if !objectID.MatchString(p.GroupID) {
		f.add("/groupId", objectIDRule)
	}
	f.text("/groupName", p.GroupName, 255)
	f.text("/description", p.Description, 2048)
	if _, ok := c.GroupTypes[p.GroupType]; !ok {
		f.add("/groupType", "there is no such group type")
	}
	f.parent(c, p)
	fields := f.customFields(Setting{Config: &Config{}}, "/customFields", nil, p.CustomFields) // field definitions apply to accounts only
	if err := f.err(); err != nil {
		return nil, err
	}
	old, exists := c.Groups[p.GroupID]
	e := GroupSet{GroupID: p.GroupID, GroupName: p.GroupName, GroupType: p.GroupType, ParentID: p.ParentID, Description: p.Description,
		CustomFields: fields, Created: !exists}
	equal := func(a, b jsontext.Value) bool { return bytes.Equal(a, b) }
	e.Fields = changed(!exists, member{"groupName", old.GroupName != e.GroupName}, member{"groupType", old.GroupType != e.GroupType},
		member{"parentId", old.ParentID != e.ParentID}, member{"description", old.Description != e.Description},
		member{"customFields", !maps.EqualFunc(old.CustomFields, fields, equal)})
	switch {
	case len(e.Fields) == 0:
		return nil, nil
	case old.System && (old.GroupType != e.GroupType || old.ParentID != e.ParentID):
		return nil, refuse(CodeSystemManaged, "The type and the parent of a built-in group cannot change.")
	}
	if err := refuseBroken(c.GroupTypes[p.GroupType].RoleMode, p.broken); err != nil {
		return nil, err
	}
	return []Event{e}, nil
}

// parent checks that the result is a tree and not too deep.
func (f *faults) parent(c *Config, p PutGroup) {
	if p.ParentID == "" {
		return
	}
	_, ok := c.Groups[p.ParentID]
	switch {
	case p.ParentID == p.GroupID, ok && c.below(p.ParentID, p.GroupID):
		f.add("/parentId", "must not be the group itself or one below it")
	case !ok:
		f.add("/parentId", "there is no such group")
	case c.depth(p.ParentID)+c.height(p.GroupID) > maxGroupDepth:
		f.add("/parentId", "the tree can be at most %d groups deep", maxGroupDepth)
	}
}

// DeleteGroup removes a group. A built-in one, or one with members or with groups
// below it, cannot be removed.
type DeleteGroup struct {
	GroupID string

	members int64
}

func (d DeleteGroup) revision(c *Config) eventstore.Revision { return groupRevision(c, d.GroupID) }

func (d DeleteGroup) survey(ctx context.Context, _ *Config, census Census) (ConfigCommand, error) {
	var err error
	d.members, err = census.Members(ctx, d.GroupID, "")
	return d, err
}

func (d DeleteGroup) decide(c *Config, _ time.Time) ([]Event, error) {
	g, ok := c.Groups[d.GroupID]
	children := len(c.children(d.GroupID))
	switch {
	case !ok:
		return nil, refuse(CodeGroupNotFound, "There is no such group.")
	case g.System:
		return nil, refuse(CodeSystemManaged, "A built-in group cannot be deleted.")
	case children > 0:
		return nil, refuse(CodeInUse, "The group has %d groups below it.", children)
	case d.members > 0:
		return nil, refuse(CodeInUse, "The group has %d members.", d.members)
	}
	return []Event{GroupDeleted{d.GroupID}}, nil
}
