package domain

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"accountledger/eventstore"
)

// configure returns c after events.
func configure(c *Config, events ...Event) *Config {
	c = c.clone()
	for _, e := range events {
		c.Evolve(Entry{Type: e.eventType(), Stream: ConfigStream, Revision: c.Revision + 1, Event: e})
	}
	return c
}

// folding is a Census of accounts in memory.
type folding []Account

func (f folding) Accounts(context.Context) (eventstore.Position, iter.Seq2[Account, error], error) {
	return 0, func(yield func(Account, error) bool) {
		for _, a := range f {
			if !yield(a, nil) {
				return
			}
		}
	}, nil
}

func (f folding) Members(_ context.Context, groupID, role string) (n int64, _ error) {
	for _, a := range f {
		for _, m := range a.Groups {
			in := groupID == "" || m.GroupID == groupID
			has := role == "" || slices.Contains(m.Roles, role) || role == NoRole && len(m.Roles) == 0
			if in && has {
				n++
			}
		}
	}
	return n, nil
}

// ask decides cmd on c as the Ledger does.
func ask(t interface{ Fatal(...any) }, c *Config, census Census, cmd ConfigCommand) ([]Event, error) {
	if s, ok := cmd.(surveyed); ok {
		var err error
		if cmd, err = s.survey(context.Background(), c, census); err != nil {
			t.Fatal(err)
		}
	}
	return cmd.decide(c, time.Time{})
}

var offices = configure(NewConfig(),
	GroupTypeSet{GroupType: "OFFICE", RoleMode: ModeAllowedRoles, AllowedRoles: []string{"ADMIN", "USER"}},
	GroupTypeSet{GroupType: "OPEN", RoleMode: ModeAnyRoles},
	GroupTypeSet{GroupType: "BARE", RoleMode: ModeNoRoles},
	GroupTypeSet{GroupType: "STRICT", RoleMode: ModeRolesRequired},
	GroupSet{GroupID: "EUROPE", GroupName: "Europe", GroupType: "OFFICE"},
	GroupSet{GroupID: "BERLIN", GroupName: "Berlin", GroupType: "OFFICE", ParentID: "EUROPE"},
	GroupSet{GroupID: "OPEN", GroupType: "OPEN"}, GroupSet{GroupID: "BARE", GroupType: "BARE"}, GroupSet{GroupID: "STRICT", GroupType: "STRICT"},
)

func TestDecideGroups(t *testing.T) {
	berliner := fold(adaCreated, GroupJoined{GroupID: "BERLIN", Roles: []string{"ADMIN", "USER"}}, GroupJoined{GroupID: "OPEN"})
	tests := []struct {
		name   string
		when   ConfigCommand
		then   []Event
		code   Code
		faults []string
	}{
		{name: "define a type", when: PutGroupType{GroupType: "TEAM", RoleMode: ModeAllowedRoles, AllowedRoles: []string{"USER", "ADMIN", "USER"}},
			then: []Event{GroupTypeSet{GroupType: "TEAM", RoleMode: ModeAllowedRoles, AllowedRoles: []string{"ADMIN", "USER"}, Created: true, Fields: []string{"roleMode", "allowedRoles"}}}},
		{name: "define the same type", when: PutGroupType{GroupType: "OFFICE", RoleMode: ModeAllowedRoles, AllowedRoles: []string{"USER", "ADMIN"}}},
		{name: "widen a type", when: PutGroupType{GroupType: "OFFICE", RoleMode: ModeAnyRoles},
			then: []Event{GroupTypeSet{GroupType: "OFFICE", RoleMode: ModeAnyRoles, Fields: []string{"roleMode", "allowedRoles"}}}},
		{name: "forbid a role that a member has", when: PutGroupType{GroupType: "OFFICE", RoleMode: ModeAllowedRoles, AllowedRoles: []string{"USER"}}, code: CodeInUse},
		{name: "require roles while a member has none", when: PutGroupType{GroupType: "OPEN", RoleMode: ModeRolesRequired}, code: CodeInUse},
		{name: "require roles while all members have one", when: PutGroupType{GroupType: "OFFICE", RoleMode: ModeRolesRequired},
			then: []Event{GroupTypeSet{GroupType: "OFFICE", RoleMode: ModeRolesRequired, Fields: []string{"roleMode", "allowedRoles"}}}},
		{name: "every fault of a type", when: PutGroupType{GroupType: "-", RoleMode: "some", AllowedRoles: []string{"USER", "NOBODY"}}, code: CodeInvalidRequest,
			faults: []string{"/allowedRoles", "/allowedRoles/1", "/groupType", "/roleMode"}},
		{name: "allow nothing", when: PutGroupType{GroupType: "TEAM", RoleMode: ModeAllowedRoles}, code: CodeInvalidRequest, faults: []string{"/allowedRoles"}},
		{name: "change a built-in type", when: PutGroupType{GroupType: groupTypeSystem, RoleMode: ModeNoRoles}, code: CodeSystemManaged},
		{name: "delete a type in use", when: DeleteGroupType{"OFFICE"}, code: CodeInUse},
		{name: "delete a built-in type", when: DeleteGroupType{groupTypeSystem}, code: CodeSystemManaged},
		{name: "delete an unknown type", when: DeleteGroupType{"NONE"}, code: CodeGroupTypeNotFound},
		{name: "delete a role that a type allows", when: DeleteRole{Role: "AUDITOR"}, code: CodeInUse},

		{name: "define a group", when: PutGroup{GroupID: "PARIS", GroupName: "Paris", GroupType: "OFFICE", ParentID: "EUROPE"},
			then: []Event{GroupSet{GroupID: "PARIS", GroupName: "Paris", GroupType: "OFFICE", ParentID: "EUROPE", Created: true,
				Fields: []string{"groupName", "groupType", "parentId", "description", "customFields"}}}},
		{name: "move a group", when: PutGroup{GroupID: "BERLIN", GroupName: "Berlin", GroupType: "OFFICE"},
			then: []Event{GroupSet{GroupID: "BERLIN", GroupName: "Berlin", GroupType: "OFFICE", Fields: []string{"parentId"}}}},
		{name: "the same group", when: PutGroup{GroupID: "BERLIN", GroupName: "Berlin", GroupType: "OFFICE", ParentID: "EUROPE"}},
		{name: "a group above itself", when: PutGroup{GroupID: "EUROPE", GroupType: "OFFICE", ParentID: "EUROPE"}, code: CodeInvalidRequest, faults: []string{"/parentId"}},
		{name: "a cycle", when: PutGroup{GroupID: "EUROPE", GroupType: "OFFICE", ParentID: "BERLIN"}, code: CodeInvalidRequest, faults: []string{"/parentId"}},
		{name: "every fault of a group", when: PutGroup{GroupID: "a b", GroupName: strings.Repeat("n", 256), GroupType: "NONE", ParentID: "NONE"},
			code: CodeInvalidRequest, faults: []string{"/groupId", "/groupName", "/groupType", "/parentId"}},
		{name: "a type that memberships violate", when: PutGroup{GroupID: "BERLIN", GroupName: "Berlin", GroupType: "BARE", ParentID: "EUROPE"}, code: CodeInUse},
		{name: "rename a built-in group", when: PutGroup{GroupID: GroupUsers, GroupName: "All", GroupType: groupTypeSystem},
			then: []Event{GroupSet{GroupID: GroupUsers, GroupName: "All", GroupType: groupTypeSystem, Fields: []string{"groupName"}}}},
		{name: "move a built-in group", when: PutGroup{GroupID: GroupAdmins, GroupType: groupTypeSystem, ParentID: "EUROPE"}, code: CodeSystemManaged},
		{name: "delete a group with groups below it", when: DeleteGroup{GroupID: "EUROPE"}, code: CodeInUse},
		{name: "delete a group with members", when: DeleteGroup{GroupID: "BERLIN"}, code: CodeInUse},
		{name: "delete an empty group", when: DeleteGroup{GroupID: "STRICT"}, then: []Event{GroupDeleted{"STRICT"}}},
		{name: "delete a built-in group", when: DeleteGroup{GroupID: GroupUsers}, code: CodeSystemManaged},
		{name: "delete an unknown group", when: DeleteGroup{GroupID: "NONE"}, code: CodeGroupNotFound},
	}
	c := configure(offices, RoleSet{Role: "AUDITOR"}, GroupTypeSet{GroupType: "AUDIT", RoleMode: ModeAllowedRoles, AllowedRoles: []string{"AUDITOR"}})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ask(t, c, folding{berliner}, tt.when)
			decided(t, got, err, tt.then, tt.code, tt.faults)
		})
	}
}

// TestRoleModes checks each role mode with no role, with an allowed role, and with an
// existing role that is not allowed.
func TestRoleModes(t *testing.T) {
	given := [][]string{nil, {"USER"}, {"CUSTOMER"}, {"CUSTOMER", "USER"}, {"NOBODY"}}
	for group, want := range map[string]string{ // y: accepted, n: refused
		"OPEN":   "yyyyn",
		"BARE":   "ynnnn",
		"STRICT": "nyyyn",
		"BERLIN": "yynnn",
	} {
		for i, roles := range given {
			events, err := Decide(Setting{Config: offices}, fold(adaCreated), SetMembership{group, roles})
			switch {
			case want[i] == 'n' && CodeOf(err) != CodeInvalidRequest:
				t.Errorf("%s with %v: %v, want a refusal", group, roles, err)
			case want[i] == 'y' && (err != nil || len(events) != 1 || !slices.Equal(events[0].(GroupJoined).Roles, roles)):
				t.Errorf("%s with %v: %v, %v, want the membership", group, roles, events, err)
			}
		}
	}
}

func TestMembership(t *testing.T) {
	a := fold(adaCreated, GroupJoined{GroupID: "BERLIN", GroupType: "OFFICE", Path: "/BERLIN", Roles: []string{"USER"}})
	tests := []struct {
		name  string
		when  Command
		admin bool
		then  []Event
		code  Code
	}{
		{name: "replace the roles", when: SetMembership{"BERLIN", []string{"ADMIN"}},
			then: []Event{GroupRolesChanged{GroupID: "BERLIN", GroupType: "OFFICE", Path: "/EUROPE/BERLIN", Roles: []string{"ADMIN"}}}},
		{name: "the same roles", when: SetMembership{"BERLIN", []string{"USER", "USER"}}},
		{name: "leave", when: LeaveGroup{"BERLIN"}, then: []Event{GroupLeft{"BERLIN"}}},
		{name: "leave a group without a membership", when: LeaveGroup{"OPEN"}},
		{name: "leave an unknown group", when: LeaveGroup{"NONE"}, code: CodeGroupNotFound},
		{name: "join an unknown group", when: SetMembership{"NONE", nil}, code: CodeGroupNotFound},
		{name: "leave the users", when: LeaveGroup{GroupUsers}, code: CodeAdminRequired},
		{name: "leave the users, as an administrator", when: LeaveGroup{GroupUsers}, admin: true, then: []Event{GroupLeft{GroupUsers}}},
		{name: "join the administrators", when: SetMembership{GroupAdmins, nil}, code: CodeAdminRequired},
		{name: "join the administrators, as an administrator", when: SetMembership{GroupAdmins, nil}, admin: true,
			then: []Event{GroupJoined{GroupID: GroupAdmins, GroupType: groupTypeSystem, Path: "/" + GroupAdmins}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Decide(Setting{Config: offices, Admin: tt.admin}, a, tt.when)
			if CodeOf(err) != tt.code || (err == nil) != (tt.code == "") {
				t.Fatalf("error = %v, want code %q", err, tt.code)
			}
			if diff := cmp.Diff(tt.then, got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("events (-want +got):\n%s", diff)
			}
		})
	}
}

func TestCreateInGroups(t *testing.T) {
	create := CreateAccount{Origin: OriginImported, Identities: []NewIdentity{{Provider: ProviderSelf, Profile: Profile{Username: "ada"}}}}
	for _, tt := range []struct {
		name   string
		groups []SetMembership
		admin  bool
		want   map[string][]string // roles by group
		faults []string            // their pointers
		code   Code
	}{
		{name: "none", want: map[string][]string{GroupUsers: {"USER"}}},
		{name: "some", groups: []SetMembership{{"BERLIN", []string{"USER", "ADMIN"}}, {"OPEN", nil}},
			want: map[string][]string{GroupUsers: {"USER"}, "BERLIN": {"ADMIN", "USER"}, "OPEN": nil}},
		{name: "other roles in the first", groups: []SetMembership{{GroupUsers, []string{"USER", "CUSTOMER"}}}, want: map[string][]string{GroupUsers: {"CUSTOMER", "USER"}}},
		{name: "faults together", groups: []SetMembership{{"BARE", []string{"USER"}}, {"OPEN", nil}, {"BERLIN", []string{"USER", "CUSTOMER"}}, {"OPEN", nil}},
			faults: []string{"/groups/0/roles", "/groups/2/roles/1", "/groups/3"}, code: CodeInvalidRequest},
		{name: "unknown group", groups: []SetMembership{{"NONE", nil}}, code: CodeGroupNotFound},
		{name: "too many", groups: make([]SetMembership, maxGroups), faults: []string{"/groups"}, code: CodeInvalidRequest},
		{name: "administrators", groups: []SetMembership{{GroupAdmins, nil}}, code: CodeAdminRequired},
		{name: "administrators, as an administrator", groups: []SetMembership{{GroupAdmins, nil}}, admin: true, want: map[string][]string{GroupUsers: {"USER"}, GroupAdmins: nil}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			create.Groups = tt.groups
			events, err := Decide(Setting{Config: offices, Admin: tt.admin}, fold(), create)
			var got map[string][]string
			for _, m := range fold(events...).Groups {
				got = with(got, m.GroupID, m.Roles)
			}
			var pointers []string
			if refused, ok := errors.AsType[*Error](err); ok {
				for _, fault := range refused.Faults {
					pointers = append(pointers, fault.Pointer)
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" || CodeOf(err) != tt.code || !slices.Equal(pointers, tt.faults) {
				t.Errorf("error = %v, want %q at %v; memberships (-want +got):\n%s", err, tt.code, tt.faults, diff)
			}
		})
	}
}

// TestTree executes random commands. After each, the groups must form a tree of at
// most maxGroupDepth levels, and no account may be in a group that does not exist.
func TestTree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := NewConfig()
		a := fold(adaCreated)
		var ids []string
		for i := range 40 { // a chain of all of them is too deep
			ids = append(ids, fmt.Sprint("g", i))
		}
		// Few groups make cycles likely; many in a row make the tree deep.
		few := rapid.SampledFrom(ids[:6])
		step := func(t *rapid.T, cmd ConfigCommand) bool {
			events, err := ask(t, c, folding{a}, cmd)
			if err != nil && CodeOf(err) == "" {
				t.Fatal(err)
			}
			c = configure(c, events...)
			return err == nil
		}
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				parent := few
				if rapid.Bool().Draw(t, "root") {
					parent = rapid.Just("")
				}
				step(t, PutGroup{GroupID: few.Draw(t, "group"), GroupType: groupTypeSystem, ParentID: parent.Draw(t, "parent")})
			},
			"chain": func(t *rapid.T) {
				n := rapid.IntRange(2, len(ids)).Draw(t, "length")
				for i := 1; i < n; i++ {
					step(t, PutGroup{GroupID: ids[i], GroupType: groupTypeSystem, ParentID: ids[i-1]})
				}
			},
			"delete": func(t *rapid.T) { step(t, DeleteGroup{GroupID: few.Draw(t, "group")}) },
			"join": func(t *rapid.T) {
				if events, err := Decide(Setting{Config: c}, a, SetMembership{few.Draw(t, "group"), nil}); err == nil {
					for _, e := range events {
						a = Evolve(a, Entry{Type: e.eventType(), Revision: a.Revision + 1, Event: e})
					}
				}
			},
			"": func(t *rapid.T) {
				for id := range maps.Keys(c.Groups) {
					seen := 0
					for at := id; at != ""; at = c.Groups[at].ParentID {
						if _, ok := c.Groups[at]; !ok {
							t.Fatalf("%s is below %s, which does not exist", id, at)
						}
						if seen++; seen > maxGroupDepth {
							t.Fatalf("%s is below itself, or %d levels deep", id, seen)
						}
					}
				}
				for _, m := range a.Groups {
					if _, ok := c.Groups[m.GroupID]; !ok {
						t.Fatalf("the account is in %s, which does not exist", m.GroupID)
					}
				}
			},
		})
	})
}

func (GroupSet) sample() sample {
	return sample{event: GroupSet{GroupID: "BERLIN", GroupName: "Berlin", GroupType: "OFFICE", ParentID: "EUROPE", Description: "Next to the station.",
		CustomFields: map[string]jsontext.Value{"floor": value("3")}, Created: true,
		Fields: []string{"groupName", "groupType", "parentId", "description", "customFields"}},
		clear:  "GroupID GroupName GroupType ParentID Description CustomFields Created Fields",
		others: []Event{GroupSet{GroupID: "BERLIN", Fields: []string{"parentId"}}}}
}

func (GroupDeleted) sample() sample {
	return sample{event: GroupDeleted{GroupID: "BERLIN"},
		clear: "GroupID"}
}

func (GroupTypeSet) sample() sample {
	return sample{event: GroupTypeSet{GroupType: "OFFICE", RoleMode: ModeAllowedRoles, AllowedRoles: []string{"ADMIN", "USER"}, Created: true, Fields: []string{"roleMode", "allowedRoles"}},
		clear:  "GroupType RoleMode AllowedRoles Created Fields",
		others: []Event{GroupTypeSet{GroupType: "OFFICE", Fields: []string{"roleMode"}}}}
}

func (GroupTypeDeleted) sample() sample {
	return sample{event: GroupTypeDeleted{GroupType: "OFFICE"},
		clear: "GroupType"}
}
