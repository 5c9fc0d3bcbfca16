package projections

import (
	"strings"
	"testing"

	"accountledger/domain"
	"accountledger/eventstore"
)

// TestMembers checks the numbers of members after accounts join, change and
// leave groups, and that an answer includes all events appended before it.
func TestMembers(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	v := f.open(t)
	run(t, v)
	type question struct{ group, role string }
	wants := func(after string, want map[question]int64) {
		t.Helper()
		for q, n := range want {
			if got, err := v.Census().Members(t.Context(), q.group, q.role); err != nil || got != n {
				t.Errorf("after %s: Members(%q, %q) = %d, %v, want %d", after, q.group, q.role, got, err, n)
			}
		}
	}
	a, b := f.create(t, "a@example.org").Sub, f.create(t, "b@example.org").Sub
	if _, err := f.ledger.Configure(t.Context(), request, domain.PutGroup{GroupID: "CLUB", GroupName: "Club", GroupType: "SYSTEM"}); err != nil {
		t.Fatal(err)
	}
	users, club := domain.GroupUsers, "CLUB"
	wants("creation", map[question]int64{{users, ""}: 2, {users, "USER"}: 2, {"", ""}: 2, {"", "USER"}: 2, {users, domain.NoRole}: 0, {club, ""}: 0})
	f.execute(t, a, domain.SetMembership{GroupID: club, Roles: []string{"ADMIN", "USER"}})
	f.execute(t, b, domain.SetMembership{GroupID: club})
	wants("joining", map[question]int64{{club, ""}: 2, {club, "ADMIN"}: 1, {club, domain.NoRole}: 1, {"", "USER"}: 3, {"", ""}: 4})
	f.execute(t, a, domain.SetMembership{GroupID: club, Roles: []string{"CUSTOMER"}})
	f.execute(t, b, domain.LeaveGroup{GroupID: club})
	wants("changing", map[question]int64{{club, ""}: 1, {club, "ADMIN"}: 0, {club, "CUSTOMER"}: 1, {club, domain.NoRole}: 0, {"", "USER"}: 2})
	if rows := dump(t, f.path()); strings.Contains(rows, "|0\n") {
		t.Errorf("a row has a count of 0:\n%s", rows)
	}
	before := dump(t, f.path())
	if err := v.Rebuild(t.Context(), AccountsView, nil); err != nil {
		t.Fatal(err)
	}
	if after := dump(t, f.path()); after != before {
		t.Errorf("rebuilt:\n%s\nlive:\n%s", after, before)
	}
	erase(t, f, a)
	wants("erasure", map[question]int64{{club, ""}: 0, {users, ""}: 1})

	// While an account is parked, the numbers are unknown.
	f.append(t, domain.AccountStream(b), revisionOf(t, f, b), "account.teleported.v1", `{"meta":{},"data":{}}`)
	if n, err := v.Census().Members(t.Context(), users, ""); err == nil {
		t.Errorf("Members beside a parked account = %d, want an error", n)
	}
}

func revisionOf(t *testing.T, f *fixture, sub string) eventstore.Revision {
	t.Helper()
	a, err := f.ledger.Account(t.Context(), sub)
	if err != nil {
		t.Fatal(err)
	}
	return a.Revision
}
