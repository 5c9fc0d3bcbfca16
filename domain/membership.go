package domain

import (
	"slices"
	"strconv"
	"time"
)

// Membership is an account's membership in a group. GroupType and Path are those
// of the group when the membership was last set. Moving a group does not change
// them: no account changes without an event of its own, and a move is one event
// for any number of members.
type Membership struct {
	GroupID    string    `json:"groupId" doc:"The group."`
	GroupType  string    `json:"groupType" doc:"The group's type when the membership was last set."`
	Path       string    `json:"path" doc:"The group's place in the tree when the membership was last set: group ids from the root down."` // /EUROPE/BERLIN
	Roles      []string  `json:"roles" doc:"The account's roles in the group, sorted."`
	JoinedTime time.Time `json:"joinedTime" doc:"When the account joined the group."`

	// If accounts that were merged into this one are members, too, Roles is the
	// union of all roles, and OwnRoles are the account's own. Merged says that the
	// account itself was not a member.
	OwnRoles []string `json:"ownRoles,omitzero" doc:"If a merged account is also a member: the roles without that account's."`
	Merged   bool     `json:"merged,omitzero" doc:"Whether the membership comes only from accounts that were merged into this one."`
}

// RoleUser is the role that every new account has in GroupUsers.
const RoleUser = "USER"

// NoRole makes Census.Members count the members without a role. It is not a valid
// role id.
const NoRole = "-"

// GroupID returns the group that x is about, "" if it is about none.
func (x Entry) GroupID() string {
	switch e := x.Event.(type) {
	case GroupJoined:
		return e.GroupID
	case GroupRolesChanged:
		return e.GroupID
	case GroupLeft:
		return e.GroupID
	case GroupSet:
		return e.GroupID
	case GroupDeleted:
		return e.GroupID
	}
	return ""
}

// GroupJoined makes the account a member of a group.
type GroupJoined struct {
	GroupID   string   `json:"groupId" pii:"clear"`
	GroupType string   `json:"groupType" pii:"clear"`
	Path      string   `json:"path" pii:"clear"`
	Roles     []string `json:"roles,omitzero" pii:"clear"`
}

func (GroupJoined) eventType() string { return "account.group-joined.v1" }

func (e GroupJoined) evolve(a Account, x Entry) Account {
	a.Groups = append(slices.Clip(a.Groups), e.membership(x))
	return a
}

func (e GroupJoined) public(x Entry) []publicEvent {
	return []publicEvent{{"GROUP_MEMBER_ADDED", memberChanged{x.Sub(), e.GroupID, e.Roles}}}
}

func (GroupJoined) catalogue() []PublicType {
	return []PublicType{{Name: "GROUP_MEMBER_ADDED", When: "the account becomes a member of a group", Data: memberChanged{},
		From: typesOf(AccountCreated{}, GroupJoined{})}}
}

type memberChanged struct {
	Sub     string   `json:"sub" doc:"The account."`
	GroupID string   `json:"groupId" doc:"The group."`
	Roles   []string `json:"roles" doc:"All roles of the member in the group."`
}

func (e GroupJoined) membership(x Entry) Membership {
	return Membership{GroupID: e.GroupID, GroupType: e.GroupType, Path: e.Path, Roles: e.Roles, JoinedTime: x.OccurredTime()}
}

// GroupRolesChanged replaces the roles of a membership.
type GroupRolesChanged struct {
	GroupID   string   `json:"groupId" pii:"clear"`
	GroupType string   `json:"groupType" pii:"clear"`
	Path      string   `json:"path" pii:"clear"`
	Roles     []string `json:"roles,omitzero" pii:"clear"`
}

func (GroupRolesChanged) eventType() string { return "account.group-roles-changed.v1" }

func (e GroupRolesChanged) evolve(a Account, _ Entry) Account {
	a.Groups = slices.Clone(a.Groups)
	for i := range a.Groups {
		if m := &a.Groups[i]; m.GroupID == e.GroupID {
			m.GroupType, m.Path, m.Roles = e.GroupType, e.Path, e.Roles
			m.OwnRoles, m.Merged = nil, false
		}
	}
	a.CombinedFrom = setSince(a.CombinedFrom, e.GroupID)
	return a
}

func (e GroupRolesChanged) public(x Entry) []publicEvent {
	return []publicEvent{{"GROUP_MEMBER_ROLES_CHANGED", memberChanged{x.Sub(), e.GroupID, e.Roles}}}
}

func (GroupRolesChanged) catalogue() []PublicType {
	return []PublicType{{Name: "GROUP_MEMBER_ROLES_CHANGED", When: "a member's roles in a group change", Data: memberChanged{}}}
}

// setSince returns merged without their memberships in a group, because the
// account's own membership was set since the merge.
func setSince(merged []Combined, groupID string) []Combined {
	in := func(m Membership) bool { return m.GroupID == groupID }
	if !slices.ContainsFunc(merged, func(c Combined) bool { return slices.ContainsFunc(c.Groups, in) }) {
		return merged
	}
	merged = slices.Clone(merged)
	for i := range merged {
		merged[i].Groups = slices.DeleteFunc(slices.Clone(merged[i].Groups), in)
	}
	return merged
}

// regroup returns a with the union of its own memberships and of those of the
// accounts merged into it.
func (a Account) regroup() Account {
	var groups []Membership
	for _, m := range a.Groups {
		if m.Merged {
			continue
		}
		if m.OwnRoles != nil {
			m.Roles, m.OwnRoles = m.OwnRoles, nil
		}
		groups = append(groups, m)
	}
	for _, c := range a.CombinedFrom {
		for _, theirs := range c.Groups {
			i := slices.IndexFunc(groups, func(m Membership) bool { return m.GroupID == theirs.GroupID })
			if i < 0 {
				theirs.Merged = true
				groups = append(groups, theirs)
				continue
			}
			m := &groups[i]
			if !m.Merged && m.OwnRoles == nil {
				m.OwnRoles = append([]string{}, m.Roles...)
			}
			m.Roles = union(m.Roles, theirs.Roles)
		}
	}
	a.Groups = groups
	return a
}

// union returns the elements of a and b, sorted and without duplicates.
func union(a, b []string) []string {
	all := slices.Concat(a, b)
	slices.Sort(all)
	return slices.Compact(all)
}

// GroupLeft ends a membership.
type GroupLeft struct {
	GroupID string `json:"groupId" pii:"clear"`
}

func (GroupLeft) eventType() string { return "account.group-left.v1" }

func (e GroupLeft) evolve(a Account, _ Entry) Account {
	a.Groups = slices.DeleteFunc(slices.Clone(a.Groups), func(m Membership) bool { return m.GroupID == e.GroupID })
	a.CombinedFrom = setSince(a.CombinedFrom, e.GroupID)
	return a
}

func (e GroupLeft) public(x Entry) []publicEvent {
	return []publicEvent{{"GROUP_MEMBER_REMOVED", groupLeft{x.Sub(), e.GroupID}}}
}

func (GroupLeft) catalogue() []PublicType {
	return []PublicType{{Name: "GROUP_MEMBER_REMOVED", When: "the account is no longer a member of a group", Data: groupLeft{}}}
}

type groupLeft struct {
	Sub     string `json:"sub" doc:"The account."`
	GroupID string `json:"groupId" doc:"The group."`
}

// maxGroups is the maximum number of memberships. It keeps an account a small
// document.
const maxGroups = 200

func (a Account) membership(groupID string) (Membership, bool) {
	i := slices.IndexFunc(a.Groups, func(m Membership) bool { return m.GroupID == groupID })
	if i < 0 {
		return Membership{}, false
	}
	return a.Groups[i], true
}

// firstGroups returns the memberships of every new account.
func firstGroups(c *Config) []GroupJoined {
	return []GroupJoined{{GroupID: GroupUsers, GroupType: c.Groups[GroupUsers].GroupType, Path: c.path(GroupUsers), Roles: []string{RoleUser}}}
}

// newMemberships returns the memberships of a new account: first, those of
// firstGroups with the requested roles; joined, the other requested ones.
func (f *faults) newMemberships(s Setting, asked []SetMembership) (first, joined []GroupJoined, err error) {
	first = firstGroups(s.Config)
	if len(first)+len(asked) > maxGroups {
		f.add("/groups", "an account can be in at most %d groups", maxGroups)
		return first, nil, nil
	}
	for i, c := range asked {
		g, err := groupToChange(s, c.GroupID)
		if err != nil {
			return nil, nil, err
		}
		e := GroupJoined{GroupID: c.GroupID, GroupType: g.GroupType, Path: s.Config.path(c.GroupID),
			Roles: f.membershipRoles("/groups/"+strconv.Itoa(i)+"/roles", s.Config, s.Config.GroupTypes[g.GroupType], c.Roles)}
		same := func(j GroupJoined) bool { return j.GroupID == c.GroupID }
		if at := slices.IndexFunc(first, same); at >= 0 {
			first[at] = e
		} else if slices.ContainsFunc(joined, same) {
			f.add("/groups/"+strconv.Itoa(i), "the group is listed twice")
		} else {
			joined = append(joined, e)
		}
	}
	return first, joined, nil
}

// SetMembership makes the account a member of a group with exactly these roles.
type SetMembership struct {
	GroupID string
	Roles   []string
}

func (SetMembership) command() {}

func (c SetMembership) decide(s Setting, a Account) ([]Event, error) {
	g, err := groupToChange(s, c.GroupID)
	if err != nil {
		return nil, err
	}
	var f faults
	roles := f.membershipRoles("/roles", s.Config, s.Config.GroupTypes[g.GroupType], c.Roles)
	old, member := a.membership(c.GroupID)
	if !member && len(a.Groups) >= maxGroups {
		f.add("", "an account can be in at most %d groups", maxGroups)
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	joined := GroupJoined{GroupID: c.GroupID, GroupType: g.GroupType, Path: s.Config.path(c.GroupID), Roles: roles}
	switch {
	case !member:
		return []Event{joined}, nil
	case slices.Equal(old.Roles, roles):
		return nil, nil
	}
	return []Event{GroupRolesChanged(joined)}, nil
}

// membershipRoles checks the roles of a membership in a group of type t and
// returns them sorted and without duplicates.
func (f *faults) membershipRoles(pointer string, c *Config, t GroupType, roles []string) []string {
	switch {
	case t.RoleMode == ModeNoRoles && len(roles) > 0:
		f.add(pointer, "members of this group cannot have roles")
		return nil
	case t.RoleMode == ModeRolesRequired && len(roles) == 0:
		f.add(pointer, "members of this group must have at least one role")
	}
	sorted := f.roles(pointer, c, roles)
	for i, role := range roles {
		if _, exists := c.Roles[role]; exists && !t.allows(role) {
			f.add(pointer+"/"+strconv.Itoa(i), "the group's type does not allow this role")
		}
	}
	return sorted
}

// groupToChange returns a group whose members the caller may change.
func groupToChange(s Setting, id string) (Group, error) {
	g, ok := s.Config.Groups[id]
	switch {
	case !ok:
		return g, refuse(CodeGroupNotFound, "There is no such group.")
	case id == GroupAdmins && !s.Admin:
		return g, refuse(CodeAdminRequired, "Only an administrator may change the members of this group.")
	}
	return g, nil
}

// LeaveGroup ends a membership. If there is none, it changes nothing.
type LeaveGroup struct{ GroupID string }

func (LeaveGroup) command() {}

func (c LeaveGroup) decide(s Setting, a Account) ([]Event, error) {
	if _, err := groupToChange(s, c.GroupID); err != nil {
		return nil, err
	}
	if _, member := a.membership(c.GroupID); !member {
		return nil, nil
	}
	if c.GroupID == GroupUsers && !s.Admin {
		return nil, refuse(CodeAdminRequired, "Only administrators take an account out of the group of all users.")
	}
	return []Event{GroupLeft(c)}, nil
}
