package domain

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"accountledger/eventstore"
)

var (
	subA, subB, subC = testSub(1), testSub(2), testSub(3)
)

func identityOf(id, provider, userID, email string) NewIdentity {
	return NewIdentity{IdentityID: id, Provider: provider, ProviderUserID: userID, Profile: Profile{Email: email}}
}

func createWith(fields map[string]jsontext.Value, identities ...NewIdentity) CreateAccount {
	return CreateAccount{Origin: OriginCreated, Identities: identities, CustomFields: fields}
}

func TestMerge(t *testing.T) {
	w := newWorld()
	w.must(t, subA, createWith(map[string]jsontext.Value{"tier": value(`"gold"`), "same": value("1")}, identityOf("a1", ProviderSelf, "", "ada@example.com")))
	w.must(t, subB, createWith(map[string]jsontext.Value{"tier": value(`"silver"`), "same": value("1"), "employee_id": value(`"7"`)},
		identityOf("b1", ProviderSelf, "", "ada@work.example"), identityOf("b2", "google", "1095", "ada@gmail.com")))
	w.must(t, subB, SetStatus{Status: StatusDeclined})
	w.must(t, subA, SetMembership{GroupID: "G", Roles: []string{"CUSTOMER"}})
	w.must(t, subB, SetMembership{GroupID: "G", Roles: []string{"ADMIN"}})
	w.must(t, subB, SetMembership{GroupID: "H", Roles: []string{"USER"}})
	held := len(w.claims)
	events := w.must(t, subA, MergeAccount{From: subB})
	w.check(t)

	a, b := w.accounts[subA], w.accounts[subB]
	if a.Status != StatusVerified || b.Status != StatusCombined || b.CombinedInto != subA || len(w.claims) != held {
		t.Errorf("A is %s, B is %s into %q, %d claims of %d", a.Status, b.Status, b.CombinedInto, len(w.claims), held)
	}
	type way struct {
		id, from  string
		secondary bool
	}
	var ways []way
	for _, i := range a.Identities {
		ways = append(ways, way{i.IdentityID, i.From, i.Secondary})
	}
	if diff := cmp.Diff([]way{{"a1", "", false}, {"b1", subB, true}, {"b2", subB, false}}, ways, cmp.AllowUnexported(way{})); diff != "" {
		t.Errorf("identities (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]jsontext.Value{"tier": value(`"gold"`), "same": value("1"), "employee_id": value(`"7"`)}, a.CustomFields); diff != "" {
		t.Errorf("custom fields (-want +got):\n%s", diff)
	}
	memberships := func(a Account) string {
		var all []string
		for _, m := range a.Groups {
			all = append(all, fmt.Sprint(m.GroupID, m.Roles))
		}
		return strings.Join(all, " ")
	}
	if got := memberships(a); got != "CIDAAS_USERS[USER] G[ADMIN CUSTOMER] H[USER]" {
		t.Errorf("memberships: %s", got)
	}
	merged := events[0].(AccountMerged)
	if diff := cmp.Diff([]string{"tier"}, merged.Conflicts); diff != "" || string(merged.CustomFields["tier"]) != `"silver"` {
		t.Errorf("conflicts: %s", diff)
	}
	if got := owner(a, merged); got != subB {
		t.Errorf("the merge is sealed under the key of %s", got)
	}
	// The identity is linked already, as a second one of provider self.
	if again := w.must(t, subA, LinkIdentity{identityOf("b9", ProviderSelf, "", "ada@work.example")}); len(again) != 0 {
		t.Errorf("linking an identity that came with a merge: %v", again)
	}
	// Changes of B's identity after the merge go back with it. A filled field stays
	// if it has changed since the merge, and is unset otherwise.
	w.must(t, subA, UpdateProfile{IdentityID: "b1", Patch: value(`{"email":"ada@new.example","nickname":"Countess"}`)})
	w.must(t, subA, UnlinkIdentity{IdentityID: "b2"})
	w.check(t)
	w.must(t, subA, UnmergeAccount{Sub: subB})
	w.check(t)
	a, b = w.accounts[subA], w.accounts[subB]
	if b.Status != StatusDeclined || b.CombinedInto != "" || len(b.Identities) != 1 || b.Identities[0].Email != "ada@new.example" || b.Identities[0].From != "" || b.Identities[0].Secondary {
		t.Errorf("restored: %+v", b)
	}
	if got := memberships(a) + ", " + memberships(b); got != "CIDAAS_USERS[USER] G[CUSTOMER], CIDAAS_USERS[USER] G[ADMIN] H[USER]" {
		t.Errorf("memberships after the un-merge: %s", got)
	}
	if _, still := a.CustomFields["employee_id"]; still || len(a.Identities) != 1 || len(a.CombinedFrom) != 0 {
		t.Errorf("left: %+v", a)
	}
	if string(b.CustomFields["employee_id"]) != `"7"` || string(b.CustomFields["tier"]) != `"silver"` {
		t.Errorf("restored fields: %v", b.CustomFields)
	}

	// Merge again and change the filled field, which makes it A's own.
	w.must(t, subA, MergeAccount{From: subB})
	w.must(t, subA, SetCustomFields{Values: map[string]jsontext.Value{"employee_id": value(`"8"`)}})
	w.must(t, subA, UnmergeAccount{Sub: subB})
	w.check(t)
	if got := string(w.accounts[subA].CustomFields["employee_id"]); got != `"8"` {
		t.Errorf("A's employee_id = %s, want its own", got)
	}
}

func TestMergeRefused(t *testing.T) {
	status := func(s Status) func(*world) {
		return func(w *world) {
			a := w.accounts[subA]
			a.Status = s
			w.accounts[subA] = a
		}
	}
	otherStatus := func(s Status) func(*world) {
		return func(w *world) {
			b := w.accounts[subB]
			b.Status = s
			w.accounts[subB] = b
		}
	}
	for _, tt := range []struct {
		name  string
		given func(*world)
		when  Command
		code  Code
	}{
		{"itself", nil, MergeAccount{From: subA}, CodeMergeRefused},
		{"an unknown account", nil, MergeAccount{From: testSub(99)}, CodeAccountNotFound},
		{"into declined", status(StatusDeclined), MergeAccount{From: subB}, CodeMergeRefused},
		{"into deleted", status(StatusDeleted), MergeAccount{From: subB}, CodeAccountDeleted},
		{"into combined", status(StatusCombined), MergeAccount{From: subB}, CodeAccountCombined},
		{"deleted", otherStatus(StatusDeleted), MergeAccount{From: subB}, CodeMergeRefused},
		{"combined elsewhere", otherStatus(StatusCombined), MergeAccount{From: subB}, CodeMergeRefused},
		{"an administrator, by a caller who is none", func(w *world) {
			w.execute(subB, SetMembership{GroupID: GroupAdmins, Roles: []string{"ADMIN"}})
			w.user = true
		}, MergeAccount{From: subB}, CodeAdminRequired},
		{"pending into verified", otherStatus(StatusPending), MergeAccount{From: subB}, ""},
		{"into pending", status(StatusPending), MergeAccount{From: subB}, ""},
		{"again", func(w *world) { w.execute(subA, MergeAccount{From: subB}) }, MergeAccount{From: subB}, ""},
		{"separate what is not combined", nil, UnmergeAccount{Sub: subB}, CodeMergeRefused},
		{"separate what came along", func(w *world) {
			w.execute(subB, MergeAccount{From: subC})
			w.execute(subA, MergeAccount{From: subB})
		}, UnmergeAccount{Sub: subC}, CodeMergeRefused},
		{"a cycle", func(w *world) { w.execute(subB, MergeAccount{From: subA}) }, MergeAccount{From: subB}, CodeAccountCombined},
		{"separate with a shared identifier", func(w *world) {
			w.execute(subA, MergeAccount{From: subB})
			w.execute(subA, UpdateProfile{IdentityID: "b1", Patch: value(`{"email":"ada@example.com"}`)})
		}, UnmergeAccount{Sub: subB}, CodeIdentifierTaken},
		{"separate without an identifier left", func(w *world) {
			w.execute(subA, MergeAccount{From: subB})
			w.execute(subA, UnlinkIdentity{IdentityID: "a1"})
		}, UnmergeAccount{Sub: subB}, CodeIdentifierRequired},
		{"separate without an identifier to go", func(w *world) {
			w.execute(subA, MergeAccount{From: subB})
			w.execute(subA, UnlinkIdentity{IdentityID: "b1"})
		}, UnmergeAccount{Sub: subB}, CodeIdentifierRequired},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld()
			w.must(t, subA, createWith(nil, identityOf("a1", ProviderSelf, "", "ada@example.com")))
			w.must(t, subB, createWith(nil, identityOf("b1", ProviderSelf, "", "ada@work.example")))
			w.must(t, subC, createWith(nil, identityOf("c1", ProviderSelf, "", "ada@home.example")))
			if tt.given != nil {
				tt.given(w)
			}
			_, err := w.execute(subA, tt.when)
			if CodeOf(err) != tt.code || err != nil && tt.code == "" {
				t.Errorf("%T = %v, want %q", tt.when, err, tt.code)
			}
		})
	}
}

// TestMergeChain merges C into B and B into A, and undoes both.
func TestMergeChain(t *testing.T) {
	w := newWorld()
	for i, sub := range []string{subA, subB, subC} {
		w.must(t, sub, createWith(nil, identityOf(fmt.Sprint("i", i), ProviderSelf, "", fmt.Sprintf("%d@example.com", i))))
	}
	b, c := w.accounts[subB], w.accounts[subC]
	w.must(t, subB, MergeAccount{From: subC})
	w.must(t, subA, MergeAccount{From: subB})
	w.check(t)
	if got := w.accounts[subA].subs(); !slices.Equal(got, []string{subA, subB, subC}) || len(w.accounts[subA].Identities) != 3 {
		t.Errorf("A has the identities %v", got)
	}
	w.must(t, subA, UpdateProfile{IdentityID: "i2", Patch: value(`{"nickname":"C"}`)})
	w.must(t, subA, UnmergeAccount{Sub: subB})
	w.check(t)
	if got := w.accounts[subB]; len(got.Identities) != 2 || got.Identities[1].From != subC || got.Identities[1].Nickname != "C" {
		t.Errorf("B has the identities %+v", got.Identities)
	}
	w.must(t, subB, UnmergeAccount{Sub: subC})
	w.check(t)
	if diff := cmp.Diff(b.UserIDs, w.accounts[subB].UserIDs); diff != "" {
		t.Errorf("B's identifiers (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff(c.UserIDs, w.accounts[subC].UserIDs); diff != "" {
		t.Errorf("C's identifiers (-before +after):\n%s", diff)
	}
}

// TestUnmergeRestores checks, after random commands, that undoing a merge at once
// restores both accounts.
func TestUnmergeRestores(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld()
		var m machine
		m.init(rt, w)
		for range rapid.IntRange(0, 20).Draw(rt, "before") {
			m.step(rt)
		}
		// Every run merges two accounts that are not combined: one that the random
		// commands have made, if there is any, and a new one.
		w.must(rt, testSub(8), createWith(nil, identityOf("eight", ProviderSelf, "", "eight@example.com")))
		w.must(rt, testSub(9), createWith(nil, identityOf("nine", ProviderSelf, "", "nine@example.com")))
		free := []string{testSub(9)}
		for _, sub := range m.subs() {
			if a := w.accounts[sub]; sub != testSub(8) && sub != testSub(9) && !a.Status.systemManaged() {
				free = append(free, sub)
			}
		}
		pair := []string{testSub(8), rapid.SampledFrom(free).Draw(rt, "other")}
		if other := w.accounts[pair[1]]; other.Status != StatusDeclined && rapid.Bool().Draw(rt, "into the other") {
			pair[0], pair[1] = pair[1], pair[0]
		}
		a, b := w.accounts[pair[0]], w.accounts[pair[1]]
		w.must(rt, a.Sub, MergeAccount{From: b.Sub})
		w.check(rt)
		if _, err := w.execute(a.Sub, UnmergeAccount{Sub: b.Sub}); err != nil {
			rt.Fatalf("un-merge: %v", err)
		}
		w.check(rt)
		for _, before := range []Account{a, b} {
			after := w.accounts[before.Sub]
			after.Revision, after.Position, after.UpdatedTime = before.Revision, before.Position, before.UpdatedTime
			after.StatusReason = before.StatusReason // the reason of a status that has changed
			if len(after.planned()) == 0 && before.Sub == b.Sub {
				after.Schedules = before.Schedules // its planned schedules stay cancelled
			}
			was, _ := before.JSON()
			is, _ := after.JSON()
			if string(was) != string(is) {
				rt.Fatalf("not restored (before, after):\n%s\n%s", was, is)
			}
		}
	})
}

// TestMergeErased checks that destroying B's key erases B's data in A's history and
// nothing else.
func TestMergeErased(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	a, b := NewID().String(), NewID().String()
	mustExecute(t, l, by("", ""), a, create("ada@example.com"))
	restored := mustExecute(t, l, by("", ""), b, create("ada@work.example"))
	id := restored.State.Identities[0].IdentityID
	mustExecute(t, l, by("", ""), a, MergeAccount{From: b})
	mustExecute(t, l, by("", ""), a, UpdateProfile{IdentityID: id, Patch: value(`{"nickname":"Countess"}`)})
	result := mustExecute(t, l, by("", ""), a, UnmergeAccount{Sub: b})
	if got := result.Others[0].Identities[0]; got.Nickname != "Countess" {
		t.Errorf("restored %+v", got)
	}
	var sealed []eventstore.KeyID
	for x, err := range l.History(t.Context(), a, 0) {
		if err != nil {
			t.Fatal(err)
		}
		sealed = append(sealed, x.keyID)
	}
	bKey := result.Others[0].key
	if sealed[0] == bKey || sealed[1] != bKey || sealed[2] != bKey {
		t.Errorf("A's events are sealed under the wrong keys")
	}
	if err := l.codec.Keys.Destroy(t.Context(), bKey); err != nil {
		t.Fatal(err)
	}
	l.cache.InvalidateAll()
	after, err := l.Account(t.Context(), a)
	if err != nil || len(after.Identities) != 1 || after.Identities[0].Email != "ada@example.com" || len(after.CombinedFrom) != 0 {
		t.Errorf("A without B's key: %+v, %v", after, err)
	}
	for x, err := range l.History(t.Context(), a, 1) {
		if err != nil || x.Revision < 3 && !x.Erased {
			t.Errorf("revision %d: erased %v, %v", x.Revision, x.Erased, err)
		}
	}
}

// TestMergeConsents checks that the latest decision overrides, or of two at the same
// time the stricter one, and that un-merging restores the account's own.
func TestMergeConsents(t *testing.T) {
	w := newWorld()
	for _, id := range []string{"later", "earlier", "same", "same2", "only", "again"} {
		w.configure(PutConsent{ConsentID: id, Name: id, Versions: []ConsentVersion{{Version: 1, Text: map[string]string{"en": "?"}}}})
	}
	w.must(t, subA, createWith(nil, identityOf("a1", ProviderSelf, "", "ada@example.com")))
	w.must(t, subB, createWith(nil, identityOf("b1", ProviderSelf, "", "ada@work.example")))
	noon := w.now
	w.now = w.now.Add(time.Hour)
	decide := func(sub, id string, status ConsentStatus, minute int) {
		w.must(t, sub, DecideConsent{ConsentID: id, Version: 1, Status: status, Time: noon.Add(time.Duration(minute) * time.Minute)})
	}
	decide(subA, "later", ConsentAccepted, 1)
	decide(subB, "later", ConsentDeclined, 2)
	decide(subA, "earlier", ConsentAccepted, 2)
	decide(subB, "earlier", ConsentDeclined, 1)
	decide(subA, "same", ConsentAccepted, 3)
	decide(subB, "same", ConsentDeclined, 3)
	decide(subA, "same2", ConsentDeclined, 3)
	decide(subB, "same2", ConsentAccepted, 3)
	decide(subB, "only", ConsentAccepted, 1)
	decide(subA, "again", ConsentAccepted, 1)
	decide(subB, "again", ConsentDeclined, 2)
	stands := func(want string) {
		t.Helper()
		var all []string
		for _, d := range w.accounts[subA].Consents {
			all = append(all, d.ConsentID+" "+string(d.Status))
		}
		if got := strings.Join(all, ", "); got != want {
			t.Errorf("decisions: %s, want %s", got, want)
		}
	}
	w.must(t, subA, MergeAccount{From: subB})
	w.check(t)
	stands("again declined, earlier accepted, later declined, only accepted, same declined, same2 declined")
	decide(subA, "again", ConsentAccepted, 5)
	w.must(t, subA, UnmergeAccount{Sub: subB})
	w.check(t)
	stands("again accepted, earlier accepted, later accepted, same accepted, same2 declined")
}

func (AccountMerged) sample() sample {
	return sample{event: AccountMerged{From: "0190a1b2-0000-7000-8000-000000000002", Via: "0190a1b2-0000-7000-8000-000000000003", Status: StatusVerified,
		CreatedTime: goldenMeta.EffectiveTime, IdentityIDs: []string{fullIdentity.IdentityID}, Identities: []Identity{fullIdentity},
		CustomFields: map[string]jsontext.Value{"tier": value(`"silver"`)}, Filled: []string{"employee_id"}, Conflicts: []string{"tier"},
		Groups:      []Membership{{GroupID: "BERLIN", GroupType: "OFFICE", Path: "/EUROPE/BERLIN", Roles: []string{"USER"}, JoinedTime: goldenMeta.EffectiveTime}},
		Consents:    []ConsentDecision{{ConsentID: "newsletter", Version: 2, Status: ConsentAccepted, Time: goldenMeta.EffectiveTime, Channel: "web"}},
		FieldClaims: map[string]Kind{"tier": "customFields.tier"}},
		clear: "From Via Status CreatedTime IdentityIDs Filled Conflicts Groups FieldClaims"}
}

func (AccountCombined) sample() sample {
	return sample{event: AccountCombined{"0190a1b2-0000-7000-8000-000000000001", StatusPending},
		clear: "Into From"}
}

func (AccountSeparated) sample() sample {
	return sample{event: AccountSeparated{From: "0190a1b2-0000-7000-8000-000000000002", IdentityIDs: []string{fullIdentity.IdentityID}, Unset: []string{"employee_id"}},
		clear: "From IdentityIDs Unset"}
}

func (AccountRestored) sample() sample {
	return sample{event: AccountRestored{"0190a1b2-0000-7000-8000-000000000001", StatusPending, []string{fullIdentity.IdentityID}, []Identity{fullIdentity}},
		clear: "Survivor To IdentityIDs"}
}

func (IdentitiesReturned) sample() sample {
	return sample{event: IdentitiesReturned{"0190a1b2-0000-7000-8000-000000000003", []string{fullIdentity.IdentityID}, []Identity{fullIdentity}},
		clear: "From IdentityIDs", hidden: true}
}
