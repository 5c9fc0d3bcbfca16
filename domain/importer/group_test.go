package importer

import (
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"accountledger/domain"
)

// realm is an export of a realm as Keycloak's documentation describes it: the users
// precede their groups, and one group has no definition.
const realm = `{"users":[
	{"id":"5f0d0a3e-6a43-4d0c-8d6b-2f6f6c1f1a01","username":"ada","enabled":true,"groups":["/staff/admins","/Büro~/Süd","/CIDAAS_ADMINS"],"realmRoles":["auditor","user"]},
	{"id":"5f0d0a3e-6a43-4d0c-8d6b-2f6f6c1f1a02","username":"bob","enabled":true,"groups":["/staff","/ghosts/old"],"realmRoles":[]},
	{"id":"5f0d0a3e-6a43-4d0c-8d6b-2f6f6c1f1a03","username":"eve","enabled":true}],
 "roles":{"realm":[{"id":"r1","name":"user","description":"Everybody"},{"id":"r2","name":"auditor"},{"id":"r3","name":"unused"}],"client":{}},
 "groups":[{"id":"g1","name":"staff","path":"/staff","description":"Who works here","attributes":{"floor":["4"]},"realmRoles":["user"],
   "subGroups":[{"id":"g2","name":"admins","path":"/staff/admins","subGroups":[]},{"id":"g3","name":"empty","path":"/staff/empty"}]},
  {"id":"g4","name":"Büro/Süd","path":"/Büro~/Süd"},{"id":"g5","name":"CIDAAS_ADMINS","path":"/CIDAAS_ADMINS"}]}`

const (
	ada    = "5f0d0a3e-6a43-4d0c-8d6b-2f6f6c1f1a01"
	bob    = "5f0d0a3e-6a43-4d0c-8d6b-2f6f6c1f1a02"
	eve    = "5f0d0a3e-6a43-4d0c-8d6b-2f6f6c1f1a03"
	south  = "B_ro_S_d-"
	admins = "CIDAAS_ADMINS-"
)

func TestGroups(t *testing.T) {
	t.Parallel()
	_, mapping := sample(t, "keycloak-quarkus-realm.json", "keycloak-realm.yaml")
	ledger := openLedger(t)
	got, results := ledger.imports(t, mapping, "realm.json", []byte(realm))
	config, err := ledger.Config(t.Context())
	check(t, err)
	ids := slices.Sorted(maps.Keys(config.Groups))
	hashed := func(prefix string) string {
		i := slices.IndexFunc(ids, func(id string) bool { return strings.HasPrefix(id, prefix) && len(id) == len(prefix)+12 })
		if i < 0 {
			t.Fatalf("no group %s... in %v", prefix, ids)
		}
		return ids[i]
	}
	south, admins := hashed(south), hashed(admins)
	made := []string{south, admins, "ghosts", "staff", "ghosts.old", "staff.admins", "staff.empty"}
	if diff := cmp.Diff(made, got.Groups); diff != "" || got.Created != 3 || !slices.Equal(got.Roles, []string{"auditor", "user"}) || got.Missed["/groups"] != 0 {
		t.Errorf("summary = %+v; groups (-want +got):\n%s", got, diff)
	}
	if diff := cmp.Diff([]string{south, admins, "staff.admins"}, results[0].Joined); diff != "" {
		t.Errorf("the first row joined (-want +got):\n%s", diff)
	}
	for id, want := range map[string]domain.Group{
		"staff":        {GroupName: "staff", Description: "Who works here"},
		"staff.admins": {GroupName: "admins", ParentID: "staff"},
		"ghosts.old":   {GroupName: "old", ParentID: "ghosts"},
		south:          {GroupName: "Büro/Süd"},
	} {
		g := config.Groups[id]
		if g.GroupName != want.GroupName || g.ParentID != want.ParentID || g.Description != want.Description || g.GroupType != "KEYCLOAK" {
			t.Errorf("group %s = %+v, want %+v", id, g, want)
		}
	}
	if floor := string(config.Groups["staff"].CustomFields["keycloak_attributes"]); floor != `{"floor":["4"]}` || config.Roles["user"].Description != "Everybody" {
		t.Errorf("attributes of staff = %s, role = %+v", floor, config.Roles["user"])
	}
	memberships := func(sub string, want map[string][]string) {
		t.Helper()
		if diff := cmp.Diff(want, rolesByGroup(ledger.account(t, sub))); diff != "" {
			t.Errorf("memberships (-want +got):\n%s", diff)
		}
	}
	// No account becomes an administrator of the ledger through the name of a group.
	memberships(ada, map[string][]string{"CIDAAS_USERS": {"USER", "auditor", "user"}, "staff.admins": nil, south: nil, admins: nil})
	memberships(bob, map[string][]string{"CIDAAS_USERS": {"USER"}, "staff": nil, "ghosts.old": nil})
	memberships(eve, map[string][]string{"CIDAAS_USERS": {"USER"}})
	if at := ledger.account(t, ada).Groups; at[3].Path != "/staff/staff.admins" {
		t.Errorf("the path of staff.admins is %s", at[3].Path)
	}

	again, _ := ledger.imports(t, mapping, "realm.json", []byte(realm))
	if again.Unchanged != 3 || again.Events != 0 || len(again.Groups)+len(again.Roles) > 0 {
		t.Errorf("the same input again: %+v, want 3 unchanged", again)
	}

	// A later run keeps the operators' changes and removes memberships that the
	// source no longer has.
	admin := domain.Request{Admin: true}
	_, err = ledger.Configure(t.Context(), admin, domain.PutGroup{GroupID: "staff", GroupName: "Staff", GroupType: "KEYCLOAK"})
	check(t, err)
	_, err = ledger.Configure(t.Context(), admin, domain.PutGroupType{GroupType: "TEAM", RoleMode: domain.ModeAnyRoles})
	check(t, err)
	_, err = ledger.Configure(t.Context(), admin, domain.PutGroup{GroupID: "TEAM", GroupName: "Team", GroupType: "TEAM"})
	check(t, err)
	for _, m := range []domain.SetMembership{{GroupID: "TEAM"}, {GroupID: "staff.admins", Roles: []string{"ADMIN"}},
		{GroupID: domain.GroupUsers, Roles: []string{"CUSTOMER", "USER", "auditor", "user"}}} {
		_, err := ledger.Execute(t.Context(), admin, ada, m)
		check(t, err)
	}
	later := strings.NewReplacer(`,"/Büro~/Süd","/CIDAAS_ADMINS"`, "", `["auditor","user"]`, `["user"]`, `["/staff","/ghosts/old"]`, `[]`).Replace(realm)
	got, results = ledger.imports(t, mapping, "realm.json", []byte(later))
	if got.Updated != 2 || got.Unchanged != 1 || got.Events != 5 || len(got.Groups) > 0 || !slices.Equal(results[1].Left, []string{"ghosts.old", "staff"}) {
		t.Errorf("summary = %+v, bob = %+v, want two updated by five events", got, results[1])
	}
	memberships(ada, map[string][]string{"CIDAAS_USERS": {"CUSTOMER", "USER", "user"}, "TEAM": nil, "staff.admins": {"ADMIN"}})
	memberships(bob, map[string][]string{"CIDAAS_USERS": {"USER"}})
	if config, err = ledger.Config(t.Context()); err != nil || config.Groups["staff"].GroupName != "Staff" {
		t.Errorf("staff is called %q, %v", config.Groups["staff"].GroupName, err)
	}
}

// TestGroupFaults checks that an invalid list of groups is a fault of its row, and
// that the other rows are imported.
func TestGroupFaults(t *testing.T) {
	t.Parallel()
	_, mapping := sample(t, "keycloak-quarkus-realm.json", "keycloak-realm.yaml")
	for _, tt := range []struct{ members, field string }{
		{`"groups":"/staff"`, "/groups"}, {`"groups":["staff"]`, "/groups"}, {`"groups":["/staff//x"]`, "/groups"},
		{`"groups":[{"name":"staff"}]`, "/groups"}, {`"realmRoles":[1]`, "/groups/CIDAAS_USERS/roles"},
	} {
		ledger := openLedger(t)
		input := strings.Replace(realm, `"username":"eve"`, `"username":"eve",`+tt.members, 1)
		got, results := ledger.imports(t, mapping, "realm.json", []byte(input))
		if got.Created != 2 || got.Failed != 1 || len(results[2].Faults) != 1 || results[2].Faults[0].Field != tt.field {
			t.Errorf("%s: %+v, %+v", tt.members, got, results[2])
		}
	}
}

// TestGroupsOfStream checks that a mapping with groups refuses an input that cannot
// be read twice.
func TestGroupsOfStream(t *testing.T) {
	t.Parallel()
	_, mapping := sample(t, "keycloak-quarkus-realm.json", "keycloak-realm.yaml")
	job := Job{Ledger: openLedger(t).Ledger, Mapping: mapping, Input: Input{Name: "-", Reader: io.MultiReader(strings.NewReader(realm))}, Results: io.Discard}
	if _, err := job.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "must be a file") {
		t.Errorf("error = %v, want one that requires a file", err)
	}
}

func TestIDs(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 65)
	const digest = "-[0-9a-f]{12}"
	seen := map[string]string{}
	for path, want := range map[string]string{
		"/staff":            "staff",
		"/staff/admins":     "staff[.]admins",
		"/staff.admins":     "staff[.]admins" + digest, // must differ from the id above
		"/Büro":             "B_ro" + digest,
		"/日本":               "x" + digest,
		"/-a":               "a" + digest,
		"/CIDAAS_USERS":     "CIDAAS_USERS" + digest,
		"/CIDAAS_ADMINS":    "CIDAAS_ADMINS" + digest,
		"/a-0123456789ab":   "a-0123456789ab" + digest, // must differ from an id with a digest
		"/" + long:          "x{51}" + digest,
		"/" + long + "/b":   "x{51}" + digest,
		"/" + long[:64]:     "x{64}",
		"/with~/slash/~/~/": "with_slash[.]__" + digest,
	} {
		segments, err := splitPath(path)
		check(t, err)
		id := groupID(segments)
		if !regexp.MustCompile("^" + want + "$").MatchString(id) {
			t.Errorf("the id of %s is %s, want %s", path, id, want)
		}
		if other, duplicate := seen[id]; duplicate {
			t.Errorf("%s and %s have the same id %s", path, other, id)
		}
		seen[id] = path
	}
	for name, want := range map[string]string{"admin": "admin", "app.admin": "app[.]admin", "Büro": "B_ro" + digest} {
		if id := roleID(name); !regexp.MustCompile("^" + want + "$").MatchString(id) {
			t.Errorf("the id of the role %s is %s, want %s", name, id, want)
		}
	}
	// Ids must never change; this is a fixed example.
	if id := groupID([]string{"Büro"}); id != "B_ro-96eecebccfb4" {
		t.Errorf("the id of /Büro is %s", id)
	}
}
