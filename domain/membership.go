package domain

import (
	"slices"
	"strconv"
	"time"
)

// Membership is an account in a group. Its type and path are the group's when
// the membership was last set: a group that is moved later leaves its
// members' accounts as they are, so that no account changes without an event
// of its own, and a move is one event however many members there are.
type Membership struct {
	GroupID    string    `json:"groupId"`
	GroupType  string    `json:"groupType"`
	Path       string    `json:"path"` // ids of groups from the root down: /EUROPE/BERLIN
	Roles      []string  `json:"roles"`
	JoinedTime time.Time `json:"joinedTime"`

	// Where accounts that were merged into this one are members, too, Roles is
	// the union. Then OwnRoles are the account's own, unless it is Merged: it
	// was no member before.
	OwnRoles []string `json:"ownRoles,omitzero"`
	Merged   bool     `json:"merged,omitzero"`
}

// RoleUser is the role with which every new account joins GroupUsers.
const RoleUser = "USER"

// NoRole stands for having none, where Census.Members is asked for a role. It
// is no role's id.
const NoRole = "-"

// GroupID is the group that the entry is about, "" where it is about none.
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
	Sub     string   `json:"sub"`
	GroupID string   `json:"groupId"`
	Roles   []string `json:"roles"`
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

// setSince returns merged without what they brought along to a group: its
// membership was set since, and is the account's own.
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

// regroup makes a's memberships the union of its own and of those that the
// accounts merged into it brought along.
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
		for _, brought := range c.Groups {
			i := slices.IndexFunc(groups, func(m Membership) bool { return m.GroupID == brought.GroupID })
			if i < 0 {
				brought.Merged = true
				groups = append(groups, brought)
				continue
			}
			m := &groups[i]
			if !m.Merged && m.OwnRoles == nil {
				m.OwnRoles = append([]string{}, m.Roles...)
			}
			m.Roles = union(m.Roles, brought.Roles)
		}
	}
	a.Groups = groups
	return a
}

// union is what either has, sorted.
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
	Sub     string `json:"sub"`
	GroupID string `json:"groupId"`
}

// maxGroups keeps an account a small document.
const maxGroups = 200

func (a Account) membership(groupID string) (Membership, bool) {
	i := slices.IndexFunc(a.Groups, func(m Membership) bool { return m.GroupID == groupID })
	if i < 0 {
		return Membership{}, false
	}
	return a.Groups[i], true
}

// firstGroups are the memberships every new account has.
func firstGroups(c *Config) []GroupJoined {
	return []GroupJoined{{GroupID: GroupUsers, GroupType: c.Groups[GroupUsers].GroupType, Path: c.path(GroupUsers), Roles: []string{RoleUser}}}
}

// newMemberships are those of a new account: the first ones, with the roles
// that are asked for there, and the others that are asked for.
func (f *faults) newMemberships(s Setting, asked []SetMembership) (first, joined []GroupJoined, err error) {
	first = firstGroups(s.Config)
	if len(first)+len(asked) > maxGroups {
		f.add("/groups", "an account is in at most %d groups", maxGroups)
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
			f.add("/groups/"+strconv.Itoa(i), "each group once")
		} else {
			joined = append(joined, e)
		}
	}
	return first, joined, nil
}

// SetMembership makes the account a member of a group with these roles, and no
// others.
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
		f.add("", "an account is in at most %d groups", maxGroups)
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
// returns them sorted, each once.
func (f *faults) membershipRoles(pointer string, c *Config, t GroupType, roles []string) []string {
	switch {
	case t.RoleMode == ModeNoRoles && len(roles) > 0:
		f.add(pointer, "the members of this group have no roles")
		return nil
	case t.RoleMode == ModeRolesRequired && len(roles) == 0:
		f.add(pointer, "the members of this group have at least one role")
	}
	sorted := f.roles(pointer, c, roles)
	for i, role := range roles {
		if _, exists := c.Roles[role]; exists && !t.allows(role) {
			f.add(pointer+"/"+strconv.Itoa(i), "must be a role that the group's type allows")
		}
	}
	return sorted
}

// groupToChange gives a group whose members the caller may change.
func groupToChange(s Setting, id string) (Group, error) {
	g, ok := s.Config.Groups[id]
	switch {
	case !ok:
		return g, refuse(CodeGroupNotFound, "There is no such group.")
	case id == GroupAdmins && !s.Admin:
		return g, refuse(CodeAdminRequired, "Only administrators change who is in this group.")
	}
	return g, nil
}

// LeaveGroup ends a membership. Leaving a group one is not in changes nothing.
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
