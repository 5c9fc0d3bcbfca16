package domain

import (
	"context"
	"regexp"
	"slices"
	"time"

	"accountledger/eventstore"
)

// Role is a role that members of groups can have.
type Role struct {
	Role        string              `json:"role" doc:"The role's id."`
	Name        string              `json:"name" doc:"Display name."`
	Description string              `json:"description,omitzero" doc:"What the role is for."`
	System      bool                `json:"system" doc:"A built-in role, which cannot be deleted."`
	Revision    eventstore.Revision `json:"revision" doc:"Revision of the configuration in which the role last changed, or -1 if it never has. Also the ETag."`
}

// systemRoles are the built-in roles.
var systemRoles = []Role{
	{Role: "ADMIN", Name: "Administrator", System: true, Revision: eventstore.NoStream},
	{Role: "USER", Name: "User", System: true, Revision: eventstore.NoStream},
	{Role: "CUSTOMER", Name: "Customer", System: true, Revision: eventstore.NoStream},
}

// RoleSet defines or changes a role.
type RoleSet struct {
	Role        string   `json:"role" pii:"clear"`
	Name        string   `json:"name" pii:"clear"`
	Description string   `json:"description,omitzero" pii:"clear"`
	Created     bool     `json:"created,omitzero" pii:"clear"` // the id was new
	Fields      []string `json:"fields" pii:"clear"`           // names of the members that changed
}

func (RoleSet) eventType() string { return "role.set.v1" }

func (e RoleSet) evolve(c *Config, x Entry) {
	c.Roles[e.Role] = Role{Role: e.Role, Name: e.Name, Description: e.Description, System: c.Roles[e.Role].System, Revision: x.Revision}
}

func (e RoleSet) public(Entry) []publicEvent {
	return objectSet("ROLE", e.Created, e.Role, e.Fields)
}

func (RoleSet) catalogue() []PublicType { return objectSetTypes("ROLE", "a role") }

// RoleDeleted removes a role that no member has.
type RoleDeleted struct {
	Role string `json:"role" pii:"clear"`
}

func (RoleDeleted) eventType() string { return "role.deleted.v1" }

func (e RoleDeleted) evolve(c *Config, _ Entry) { delete(c.Roles, e.Role) }

func (e RoleDeleted) public(Entry) []publicEvent { return objectDeleted("ROLE", e.Role) }

func (RoleDeleted) catalogue() []PublicType { return objectDeletedTypes("ROLE", "a role is deleted") }

// objectID matches the ids that operators give to roles, groups, consents and so on.
var objectID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`)

const objectIDRule = "must be a letter or digit followed by up to 63 letters, digits, '_', '.' or '-'"

// PutRole defines or changes a role.
type PutRole struct {
	Role, Name, Description string
}

func (p PutRole) revision(c *Config) eventstore.Revision { return roleRevision(c, p.Role) }

func roleRevision(c *Config, role string) eventstore.Revision {
	if r, ok := c.Roles[role]; ok {
		return r.Revision
	}
	return eventstore.NoStream
}

func (p PutRole) decide(c *Config, _ time.Time) ([]Event, error) {
	var f faults
	if !objectID.MatchString(p.Role) {
		f.add("/role", objectIDRule)
	}
	f.text("/name", p.Name, 255)
	f.text("/description", p.Description, 2048)
	if err := f.err(); err != nil {
		return nil, err
	}
	old, exists := c.Roles[p.Role]
	e := RoleSet{Role: p.Role, Name: p.Name, Description: p.Description, Created: !exists}
	e.Fields = changed(!exists, member{"name", old.Name != p.Name}, member{"description", old.Description != p.Description})
	if len(e.Fields) == 0 {
		return nil, nil
	}
	return []Event{e}, nil
}

// member is a JSON member of an object, and whether a command changes it.
type member struct {
	name    string
	changed bool
}

// changed returns the names of the members that changed, or of all of them.
func changed(all bool, members ...member) []string {
	var names []string
	for _, m := range members {
		if all || m.changed {
			names = append(names, m.name)
		}
	}
	return names
}

// DeleteRole removes a role. A built-in one, one that a member has or one that a
// group type allows cannot be removed.
type DeleteRole struct {
	Role string

	members int64 // memberships with the role
}

func (d DeleteRole) revision(c *Config) eventstore.Revision { return roleRevision(c, d.Role) }

func (d DeleteRole) survey(ctx context.Context, _ *Config, census Census) (ConfigCommand, error) {
	var err error
	d.members, err = census.Members(ctx, "", d.Role)
	return d, err
}

func (d DeleteRole) decide(c *Config, _ time.Time) ([]Event, error) {
	r, ok := c.Roles[d.Role]
	types := 0
	for _, t := range c.GroupTypes {
		if slices.Contains(t.AllowedRoles, d.Role) {
			types++
		}
	}
	switch {
	case !ok:
		return nil, refuse(CodeRoleNotFound, "There is no such role.")
	case r.System:
		return nil, refuse(CodeSystemManaged, "A built-in role cannot be deleted.")
	case types > 0:
		return nil, refuse(CodeInUse, "%d group types allow this role.", types)
	case d.members > 0:
		return nil, refuse(CodeInUse, "%d memberships have this role.", d.members)
	}
	return []Event{RoleDeleted{d.Role}}, nil
}
