package httpapi

import (
	"strings"
	"testing"

	"accountledger/domain"
)

// TestGroups creates, moves and deletes groups of a tree, with memberships in
// them.
func TestGroups(t *testing.T) {
	t.Parallel()
	l := start(t)
	if r := l.want(t, 200, "GET", "/v1/groups", ""); r.text(t, "groups.0.groupId") != "CIDAAS_ADMINS" || r.text(t, "groups.1.groupId") != "CIDAAS_USERS" {
		t.Errorf("built-in groups: %s", r.body)
	}
	l.want(t, 200, "PUT", "/v1/groups/CIDAAS_USERS", `{"groupName":"Everybody","groupType":"SYSTEM"}`)
	l.refused(t, domain.CodeSystemManaged, "DELETE", "/v1/groups/CIDAAS_ADMINS", "")

	l.want(t, 200, "PUT", "/v1/group-types/OFFICE", `{"roleMode":"allowed_roles","allowedRoles":["USER","ADMIN"]}`)
	l.want(t, 200, "PUT", "/v1/groups/EUROPE", `{"groupName":"Europe","groupType":"OFFICE"}`)
	berlin := l.want(t, 200, "PUT", "/v1/groups/BERLIN", `{"groupName":"Berlin","groupType":"OFFICE","parentId":"EUROPE","customFields":{"floor":3}}`)
	if got := l.want(t, 200, "GET", "/v1/groups/BERLIN", ""); string(got.body) != string(berlin.body) || got.header.Get("ETag") != berlin.header.Get("ETag") {
		t.Errorf("get: %s, put: %s", got.body, berlin.body)
	}
	r := l.refused(t, domain.CodeInvalidRequest, "PUT", "/v1/groups/EUROPE", `{"groupName":"Europe","groupType":"OFFICE","parentId":"BERLIN"}`)
	if r.text(t, "errors.0.pointer") != "/parentId" {
		t.Errorf("a cycle: %s", r.body)
	}
	for query, want := range map[string]string{"?parentId=EUROPE": "BERLIN", "?groupType=OFFICE": "BERLIN EUROPE", "?parentId=EUROPE&groupType=SYSTEM": ""} {
		var got []string
		list, _ := l.want(t, 200, "GET", "/v1/groups"+query, "").member(t, "groups").([]any)
		for _, g := range list {
			got = append(got, g.(map[string]any)["groupId"].(string))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("groups%s = %v, want %s", query, got, want)
		}
	}

	path := "/v1/accounts/" + l.create(t, "ada@example.com")
	if r := l.want(t, 200, "GET", path, ""); r.text(t, "groups.0.groupId") != "CIDAAS_USERS" || r.text(t, "groups.0.roles.0") != "USER" {
		t.Errorf("a new account: %s", r.body)
	}
	joined := l.want(t, 200, "PUT", path+"/groups/BERLIN", `{"roles":["USER","ADMIN","USER"]}`)
	if joined.text(t, "groups.1.path") != "/EUROPE/BERLIN" || joined.text(t, "groups.1.groupType") != "OFFICE" || joined.text(t, "groups.1.roles.0") != "ADMIN" || joined.member(t, "groups.1.roles.2") != nil {
		t.Errorf("joined: %s", joined.body)
	}
	if again := l.want(t, 200, "PUT", path+"/groups/BERLIN", `{"roles":["ADMIN","USER"]}`); string(again.body) != string(joined.body) {
		t.Errorf("repeated: %s", again.body)
	}
	r = l.refused(t, domain.CodeInvalidRequest, "PUT", path+"/groups/BERLIN", `{"roles":["ADMIN","CUSTOMER","NOBODY"]}`)
	if r.text(t, "errors.0.pointer") != "/roles/1" || r.text(t, "errors.1.pointer") != "/roles/2" {
		t.Errorf("roles that are not allowed: %s", r.body)
	}
	l.refused(t, domain.CodeGroupNotFound, "PUT", path+"/groups/PARIS", `{"roles":[]}`)

	// Objects in use cannot be deleted; the detail says how many use them.
	for _, tt := range []struct{ method, path, body, detail string }{
		{"DELETE", "/v1/groups/BERLIN", "", "The group has 1 members."},
		{"DELETE", "/v1/groups/EUROPE", "", "The group has 1 groups below it."},
		{"DELETE", "/v1/group-types/OFFICE", "", "2 groups have this group type."},
		{"PUT", "/v1/group-types/OFFICE", `{"roleMode":"no_roles"}`, "Existing memberships have roles that would no longer be allowed: 2."},
		{"PUT", "/v1/group-types/OFFICE", `{"roleMode":"allowed_roles","allowedRoles":["USER"]}`, "Existing memberships have roles that would no longer be allowed: 1."},
	} {
		if r := l.refused(t, domain.CodeInUse, tt.method, tt.path, tt.body); r.text(t, "detail") != tt.detail {
			t.Errorf("%s %s: %s, want %q", tt.method, tt.path, r.body, tt.detail)
		}
	}

	// Moving a group does not change its members' accounts until their memberships are set again.
	l.want(t, 200, "PUT", "/v1/groups/BERLIN", `{"groupName":"Berlin","groupType":"OFFICE"}`)
	if r := l.want(t, 200, "GET", path, ""); string(r.body) != string(joined.body) {
		t.Errorf("after the group was moved: %s", r.body)
	}
	if r := l.want(t, 200, "PUT", path+"/groups/BERLIN", `{"roles":[]}`); r.text(t, "groups.1.path") != "/BERLIN" {
		t.Errorf("set again after the group was moved: %s", r.body)
	}
	l.refused(t, domain.CodeInUse, "PUT", "/v1/group-types/OFFICE", `{"roleMode":"roles_required"}`)
	if r := l.want(t, 200, "DELETE", path+"/groups/BERLIN", ""); r.member(t, "groups.1") != nil {
		t.Errorf("left: %s", r.body)
	}
	l.want(t, 200, "PUT", "/v1/group-types/OFFICE", `{"roleMode":"roles_required"}`)
	for _, path := range []string{"/v1/groups/BERLIN", "/v1/groups/EUROPE", "/v1/group-types/OFFICE"} {
		l.want(t, 204, "DELETE", path, "")
		l.want(t, 404, "GET", path, "")
	}
	if r := l.want(t, 200, "GET", "/v1/events?types=GROUP_MEMBER_*", ""); r.text(t, "events.1.data.groupId") != "BERLIN" || r.text(t, "events.2.type") != "GROUP_MEMBER_ROLES_CHANGED" || r.text(t, "events.3.type") != "GROUP_MEMBER_REMOVED" {
		t.Errorf("feed: %s", r.body)
	}
}

// TestProtectedGroups checks that only administrators can change who is an
// administrator and who is not a user.
func TestProtectedGroups(t *testing.T) {
	t.Parallel()
	l := start(t)
	path := "/v1/accounts/" + l.create(t, "ada@example.com") + "/groups/"
	writer := "Authorization: Bearer " + l.key(t, "writer", scopeAccountsWrite)
	l.refused(t, domain.CodeAdminRequired, "PUT", path+"CIDAAS_ADMINS", `{"roles":["ADMIN"]}`, writer)
	l.refused(t, domain.CodeAdminRequired, "DELETE", path+"CIDAAS_ADMINS", "", writer)
	l.refused(t, domain.CodeAdminRequired, "DELETE", path+"CIDAAS_USERS", "", writer)
	l.want(t, 200, "PUT", path+"CIDAAS_USERS", `{"roles":["CUSTOMER","USER"]}`, writer)
	l.want(t, 200, "PUT", path+"CIDAAS_ADMINS", `{"roles":["ADMIN"]}`)
	l.want(t, 200, "DELETE", path+"CIDAAS_USERS", "")
	l.refused(t, domain.CodeSystemManaged, "PUT", "/v1/group-types/SYSTEM", `{"roleMode":"no_roles"}`)
}
