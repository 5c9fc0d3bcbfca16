package importer

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/nyaruka/phonenumbers"

	"accountledger/domain"
)

// sample reads a file of testdata/imports and its mapping.
func sample(t testing.TB, data, mapping string) ([]byte, *Mapping) {
	t.Helper()
	const dir = "../../testdata/imports"
	input, err := os.ReadFile(filepath.Join(dir, data))
	check(t, err)
	file, err := os.ReadFile(filepath.Join(dir, mapping))
	check(t, err)
	m, err := ParseMapping(file)
	check(t, err)
	return input, m
}

// person has the members of a record that these tests check in detail.
type person struct{ Email, Phone, BirthDate, FirstName string }

// birthdate returns the person's date of birth, converted without the importer.
func (p person) birthdate() string {
	var year, month, day int
	fmt.Sscanf(p.BirthDate, "%d-%d-%d", &year, &month, &day)
	return fmt.Sprintf("%04d-%02d-%02d", year, month, day)
}

// e164 returns the person's telephone number, or "" if it is invalid. It uses the
// library directly, not the importer.
func (p person) e164() string {
	n, err := phonenumbers.Parse(p.Phone, "ZZ")
	if err != nil || !phonenumbers.IsValidNumber(n) {
		return ""
	}
	return phonenumbers.Format(n, phonenumbers.E164)
}

func TestPeople(t *testing.T) {
	t.Parallel()
	input, mapping := sample(t, "people-208.json", "people-208.yaml")
	var people []person
	check(t, json.Unmarshal(input, &people))
	invalid := int64(0)
	for _, p := range people {
		if p.e164() == "" {
			invalid++
		}
	}
	if len(people) != 208 || invalid == 0 || invalid == 208 {
		t.Fatalf("%d of %d numbers are invalid, so the sample does not test both cases", invalid, len(people))
	}

	ledger := openLedger(t)
	got, results := ledger.imports(t, mapping, "people.json", input)
	want := Summary{Rows: 208, Created: 208, Events: 208, Missed: map[string]int64{}, Findings: []Count{{Finding{"/identities/0/mobile_number",
		"must be a valid telephone number with its country code, like +4915112345678", "kept as customFields.phone_as_exported"}, invalid}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("summary (-want +got):\n%s", diff)
	}
	records := records(t, input)
	for i, p := range people {
		account := ledger.account(t, results[i].Sub)
		self := account.Identities[0]
		wantKept := ""
		if p.e164() == "" {
			wantKept = fmt.Sprintf("%q", p.Phone)
		}
		if kept := string(account.CustomFields["phone_as_exported"]); self.MobileNumber != p.e164() || kept != wantKept {
			t.Errorf("row %d: mobile_number = %q, phone_as_exported = %s, want %q, %s", i+1, self.MobileNumber, kept, p.e164(), wantKept)
		}
		if self.Birthdate != p.birthdate() || self.Email != p.Email || self.GivenName != p.FirstName ||
			self.Provider != domain.ProviderSelf || account.Status != domain.StatusVerified {
			t.Errorf("row %d: the account is %+v", i+1, account)
		}
		nothingIsLost(t, records[i], account, []string{"/password", "/ip", "/userAgent"}, map[string]string{
			"/phone": self.MobileNumber + strings.Trim(wantKept, `"`), "/birthDate": p.birthdate(),
		})
	}
}

func TestRunAgain(t *testing.T) {
	t.Parallel()
	input, mapping := sample(t, "people-208.json", "people-208.yaml")
	var people []person
	check(t, json.Unmarshal(input, &people))
	changed := slices.IndexFunc(people, func(p person) bool { return p.e164() != "" })
	ledger := openLedger(t)
	_, first := ledger.imports(t, mapping, "people.json", input)
	sub := first[changed].Sub

	if again, _ := ledger.imports(t, mapping, "people.json", input); again.Unchanged != 208 || again.Events != 0 {
		t.Errorf("the same input again: %+v, want 208 unchanged", again)
	}

	// Change a name, and a valid number to an invalid one.
	input2 := bytes.Replace(input, []byte(`"lastName": "Johnson"`), []byte(`"lastName": "King"`), 1)
	input2 = bytes.Replace(input2, []byte(people[changed].Phone), []byte("+4930"), 1)
	got, results := ledger.imports(t, mapping, "people.json", input2)
	if got.Updated != 2 || got.Unchanged != 206 || results[0].Outcome != Updated || results[changed].Outcome != Updated {
		t.Errorf("two rows changed: %+v, want them updated", got)
	}
	if name := ledger.account(t, first[0].Sub).Identities[0].FamilyName; name != "King" {
		t.Errorf("family_name = %q, want King", name)
	}
	a := ledger.account(t, sub)
	if kept := string(a.CustomFields["phone_as_exported"]); kept != `"+4930"` || a.Identities[0].MobileNumber != "" {
		t.Errorf("after a change to an invalid number: mobile_number = %q, phone_as_exported = %s", a.Identities[0].MobileNumber, kept)
	}

	// Change them back: the kept invalid value is removed.
	if back, _ := ledger.imports(t, mapping, "people.json", input); back.Updated != 2 {
		t.Errorf("two rows changed back: %+v", back)
	}
	a = ledger.account(t, sub)
	if kept := string(a.CustomFields["phone_as_exported"]); kept != "" || a.Identities[0].MobileNumber != people[changed].e164() {
		t.Errorf("after a change to a valid number: mobile_number = %q, phone_as_exported = %s", a.Identities[0].MobileNumber, kept)
	}
}

func TestKeycloak(t *testing.T) {
	t.Parallel()
	input, mapping := sample(t, "keycloak-quarkus-realm.json", "keycloak-realm.yaml")
	var realm struct{ Users json.RawMessage }
	check(t, json.Unmarshal(input, &realm))
	var users []struct{ RealmRoles, Groups []string }
	check(t, json.Unmarshal(realm.Users, &users))
	ledger := openLedger(t)
	got, results := ledger.imports(t, mapping, "realm.json", input)
	// Of the realm's six roles, those that a user has; the realm has no groups.
	want := Summary{Rows: 3, Created: 3, Events: 6, Findings: []Count{}, Missed: map[string]int64{}, Roles: []string{"admin", "confidential", "user"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("summary (-want +got):\n%s", diff)
	}
	for i, record := range records(t, realm.Users) {
		account := ledger.account(t, record.(map[string]any)["id"].(string))
		if account.Status != domain.StatusVerified || results[i].Sub != account.Sub || results[i].Key != "" {
			t.Errorf("row %d: %+v for the account %+v", i+1, results[i], account)
		}
		nothingIsLost(t, record, account, []string{"/credentials", "/disableableCredentialTypes", "/totp", "/notBefore"},
			map[string]string{"/enabled": "VERIFIED"})
		roles := slices.Sorted(slices.Values(append(users[i].RealmRoles, "USER")))
		if diff := cmp.Diff(map[string][]string{"CIDAAS_USERS": roles}, rolesByGroup(account)); diff != "" || len(users[i].Groups) > 0 {
			t.Errorf("row %d: memberships (-as in the file +got):\n%s", i+1, diff)
		}
	}
	if again, _ := ledger.imports(t, mapping, "realm.json", input); again.Unchanged != 3 || again.Events != 0 || again.Roles != nil {
		t.Errorf("the same input again: %+v, want 3 unchanged", again)
	}
}

// TestKeycloakUser imports a user with federated identities, attributes, groups and
// a time of creation as in Keycloak's documentation. The sample realm has none.
func TestKeycloakUser(t *testing.T) {
	t.Parallel()
	_, mapping := sample(t, "keycloak-quarkus-realm.json", "keycloak-realm.yaml")
	const sub = "5f0d0a3e-6a43-4d0c-8d6b-2f6f6c1f1a01"
	const user = `{"id":"` + sub + `","createdTimestamp":1588888888123,"username":"ada","enabled":false,"totp":false,
		"email":"Ada@Example.COM","emailVerified":true,"firstName":"Ada","lastName":"Lovelace",
		"attributes":{"locale":["en"],"employee":["12345"]},
		"federatedIdentities":[{"identityProvider":"Google","userId":"1095","userName":"ada@gmail.com"},{"identityProvider":"github","userId":"77","userName":"ada"}],
		"credentials":[{"type":"password"}],"realmRoles":["user"],"clientRoles":{"shop":["buyer"]},"groups":["/staff/admins"],"notBefore":0}`
	ledger := openLedger(t)
	got, _ := ledger.imports(t, mapping, "realm.json", []byte(`{"realm":"x","users":[`+user+`],"groups":[]}`))
	if got.Created != 1 || len(got.Findings) != 0 || len(got.Missed) != 0 {
		t.Fatalf("summary = %+v, want 1 created and nothing else", got)
	}
	account := ledger.account(t, sub)
	var record any
	check(t, unmarshal([]byte(user), &record))
	nothingIsLost(t, record, account, []string{"/credentials", "/totp", "/notBefore"}, map[string]string{
		"/enabled": "DECLINED", "/createdTimestamp": "2020-05-07T22:01:28.123Z", "/email": "Ada@example.com",
		"/federatedIdentities/0/identityProvider": "google", "/groups/0": "staff.admins",
	})
	var ways []string
	for _, i := range account.Identities {
		ways = append(ways, i.Provider+" "+i.ProviderUserID)
	}
	if diff := cmp.Diff([]string{"self ", "google 1095", "github 77"}, ways); diff != "" {
		t.Errorf("identities (-want +got):\n%s", diff)
	}

	// A later export has another identity, the user is enabled, and one identity
	// is missing: the account keeps it.
	later := strings.Replace(user, `"enabled":false`, `"enabled":true`, 1)
	later = strings.Replace(later, `{"identityProvider":"github","userId":"77","userName":"ada"}`, `{"identityProvider":"saml","userId":"x-1","userName":"al"}`, 1)
	got, _ = ledger.imports(t, mapping, "realm.json", []byte(`{"users":[`+later+`]}`))
	account = ledger.account(t, sub)
	if got.Updated != 1 || got.Events != 2 || len(account.Identities) != 4 || account.Status != domain.StatusVerified {
		t.Errorf("summary = %+v, account = %+v, want a fourth identity and VERIFIED by two events", got, account)
	}
}

// rolesByGroup returns the account's memberships.
func rolesByGroup(a domain.Account) map[string][]string {
	groups := map[string][]string{}
	for _, m := range a.Groups {
		groups[m.GroupID] = m.Roles
	}
	return groups
}

// nothingIsLost checks that the account has every value of a record of the source,
// unchanged or as in normalised for its place, except those below the members in
// leftOut.
func nothingIsLost(t *testing.T, record any, account domain.Account, leftOut []string, normalised map[string]string) {
	t.Helper()
	wire, err := account.JSON()
	check(t, err)
	var tree any
	check(t, unmarshal(wire, &tree))
	there := map[string]bool{}
	leaves(tree, "", func(_, text string) { there[text] = true })
	n := 0
	leaves(record, "", func(at, text string) {
		if slices.ContainsFunc(leftOut, func(out string) bool { return strings.HasPrefix(at+"/", out+"/") }) {
			return
		}
		n++
		if want, ok := normalised[at]; ok {
			text = want
		}
		if !there[text] {
			t.Errorf("the account does not have the value at %s of the source", at)
		}
	})
	if n < 4 {
		t.Errorf("the check found only %d values", n)
	}
}

// leaves calls leaf with the place and text of every scalar in v.
func leaves(v any, at string, leaf func(at, text string)) {
	switch v := v.(type) {
	case map[string]any:
		for name, member := range v {
			leaves(member, at+"/"+name, leaf)
		}
	case []any:
		for i, element := range v {
			leaves(element, fmt.Sprint(at, "/", i), leaf)
		}
	default:
		leaf(at, fmt.Sprint(v))
	}
}

// unmarshal decodes JSON and keeps the text of numbers.
func unmarshal(data []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	return d.Decode(into)
}

func records(t *testing.T, list []byte) []any {
	t.Helper()
	var all []any
	check(t, unmarshal(list, &all))
	return all
}
