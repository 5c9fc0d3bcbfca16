package httpapi

import (
	"fmt"
	"strings"
	"testing"

	"accountledger/domain"
)

func TestFields(t *testing.T) {
	t.Parallel()
	l := start(t)
	const tier = `{"dataType":"SELECT","options":["gold","silver"],"labels":{"en":"Tier"},"searchable":true}`
	if r := l.want(t, 200, "PUT", "/v1/fields/tier", tier); r.text(t, "fieldKey") != "tier" || r.member(t, "personal") != true || r.header.Get("ETag") != `"0"` {
		t.Errorf("put: %s", r.body)
	}
	l.want(t, 200, "PUT", "/v1/fields/plan", `{"dataType":"TEXT","personal":false}`)
	if r := l.want(t, 200, "GET", "/v1/fields", ""); r.text(t, "fields.0.fieldKey") != "plan" || r.member(t, "fields.0.personal") != false || r.text(t, "fields.1.fieldKey") != "tier" {
		t.Errorf("list: %s", r.body)
	}
	l.refused(t, domain.CodeInvalidRequest, "PUT", "/v1/fields/x", `{"dataType":"SELECT"}`)
	l.refused(t, domain.CodeStaleRevision, "PUT", "/v1/fields/tier", tier, `If-Match: "7"`)
	l.refused(t, domain.CodeFieldNotFound, "GET", "/v1/fields/none", "")
	l.refused(t, domain.CodeFieldNotFound, "GET", "/v1/fields/none/non-conforming", "")
	l.refused(t, domain.CodeFieldNotFound, "DELETE", "/v1/fields/none", "")

	// All faults of a request are reported together, each with its pointer.
	l.want(t, 200, "PUT", "/v1/fields/mail", `{"dataType":"EMAIL"}`)
	bad := strings.Replace(account("ada"), `"identities"`, `"customFields":{"tier":"lead","mail":"x","free":[1]},"identities"`, 1)
	r := l.refused(t, domain.CodeInvalidRequest, "POST", "/v1/accounts", bad)
	if r.text(t, "errors.0.pointer") != "/customFields/mail" || r.text(t, "errors.1.pointer") != "/customFields/tier" || r.text(t, "errors.2.pointer") != "/identities/0/email" {
		t.Errorf("faults: %s", r.body)
	}

	// A change that existing values break, without and with force.
	var subs []string
	for i := range 3 {
		sub := l.create(t, fmt.Sprintf("ada%d@example.com", i))
		l.want(t, 200, "PATCH", "/v1/accounts/"+sub+"/custom-fields", `{"tier":"gold","mail":"Ada@EXAMPLE.com","plan":"basic"}`)
		subs = append(subs, sub)
	}
	const silver = `{"dataType":"SELECT","options":["silver"]%s}`
	if r := l.refused(t, domain.CodeFieldInConflict, "PUT", "/v1/fields/tier", fmt.Sprintf(silver, "")); !strings.Contains(r.text(t, "detail"), "3 accounts") {
		t.Errorf("detail: %s", r.body)
	}
	if r := l.want(t, 200, "GET", "/v1/fields/tier/non-conforming", ""); r.text(t, "accounts.0.sub") != "" {
		t.Errorf("while all conform: %s", r.body)
	}
	l.want(t, 200, "PUT", "/v1/fields/tier", fmt.Sprintf(silver, `,"force":true`))
	l.want(t, 200, "PATCH", "/v1/accounts/"+subs[1]+"/custom-fields", `{"tier":"silver"}`)
	r = l.want(t, 200, "GET", "/v1/fields/tier/non-conforming?limit=1", "")
	if r.text(t, "accounts.0.sub") != subs[0] || r.text(t, "next") != subs[1] && r.text(t, "next") != subs[0] {
		t.Fatalf("non-conforming: %s", r.body)
	}
	r = l.want(t, 200, "GET", "/v1/fields/tier/non-conforming?limit=1&after="+r.text(t, "next"), "")
	if r.text(t, "accounts.0.sub") != subs[2] || r.member(t, "next") != nil || strings.Contains(string(r.body), "gold") {
		t.Errorf("non-conforming, the second page: %s", r.body)
	}
	l.refused(t, domain.CodeInvalidCursor, "GET", "/v1/fields/tier/non-conforming?after=x", "")
	l.refused(t, domain.CodeInUse, "PUT", "/v1/fields/mail", `{"dataType":"EMAIL","unique":true}`)
	l.refused(t, domain.CodeInUse, "PUT", "/v1/fields/plan", `{"dataType":"USERNAME"}`)
	l.want(t, 204, "DELETE", "/v1/fields/mail", "")
	l.want(t, 200, "PATCH", "/v1/accounts/"+subs[0]+"/custom-fields", `{"mail":{"any":"JSON"}}`)
	if h := l.want(t, 200, "GET", "/v1/accounts/"+subs[0]+"/events?after=0&limit=1", ""); h.text(t, "events.0.data.clearValues.plan") != "basic" || h.text(t, "events.0.data.values.tier") != "gold" {
		t.Errorf("history: %s", h.body)
	}
}

// TestSignInName checks that a USERNAME resolves to its account.
func TestSignInName(t *testing.T) {
	t.Parallel()
	l := start(t)
	l.want(t, 200, "PUT", "/v1/fields/login", `{"dataType":"USERNAME"}`)
	l.want(t, 200, "PUT", "/v1/fields/number", `{"dataType":"TEXT","unique":true}`)
	ada, bob := l.create(t, "ada@example.com"), l.create(t, "bob@example.com")
	r := l.want(t, 200, "PATCH", "/v1/accounts/"+ada+"/custom-fields", `{"login":" Ada Lovelace ","number":"X-1"}`)
	if r.text(t, "userIds.1.value") != "Ada Lovelace" || r.text(t, "userIds.1.fieldKey") != "login" || r.text(t, "userIds.1.type") != "username" {
		t.Errorf("userIds: %s", r.body)
	}
	for _, body := range []string{`{"login":"ada lovelace"}`, `{"number":"x-1"}`} {
		l.refused(t, domain.CodeIdentifierTaken, "PATCH", "/v1/accounts/"+bob+"/custom-fields", body)
	}
	for _, body := range []string{`{"identifier":"ADA LOVELACE"}`, `{"identifier":"Ada Lovelace","type":"username"}`} {
		if r := l.want(t, 200, "POST", "/v1/lookup", body); r.text(t, "sub") != ada {
			t.Errorf("lookup of %s: %s", body, r.body)
		}
	}
	l.refused(t, domain.CodeInUse, "DELETE", "/v1/fields/login", "")
	l.want(t, 200, "PATCH", "/v1/accounts/"+ada+"/custom-fields", `{"login":null}`)
	l.refused(t, domain.CodeAccountNotFound, "POST", "/v1/lookup", `{"identifier":"Ada Lovelace"}`)
	l.want(t, 200, "PATCH", "/v1/accounts/"+bob+"/custom-fields", `{"login":"ada lovelace"}`)
}

// TestInternalFields checks that no response shows an internal field to callers
// without accounts:admin.
func TestInternalFields(t *testing.T) {
	t.Parallel()
	l := start(t)
	app := "Authorization: Bearer " + l.key(t, "app", scopeAccountsRead, scopeAccountsWrite, scopeAuditRead, scopeEventsRead)
	boss := "Authorization: Bearer " + l.key(t, "boss", scopeAccountsRead, scopeAccountsWrite, scopeAccountsAdmin, scopeAuditRead, scopeEventsRead)
	l.want(t, 200, "PUT", "/v1/fields/score", `{"dataType":"TEXT","internal":true}`)
	l.want(t, 200, "PUT", "/v1/fields/tier", `{"dataType":"TEXT","readOnly":true}`)
	body := strings.Replace(account("ada@example.com"), `"identities"`, `"customFields":{"score":"sekret","tier":"gold","free":"open"},"identities"`, 1)
	l.refused(t, domain.CodeInvalidRequest, "POST", "/v1/accounts", body, app)
	sub := l.want(t, 201, "POST", "/v1/accounts", body, boss).text(t, "sub")
	other := l.want(t, 201, "POST", "/v1/accounts", account("bob@example.com"), boss).text(t, "sub")
	fields := "/v1/accounts/" + sub + "/custom-fields"
	l.want(t, 200, "PATCH", fields, `{"score":"sekret2","free":"open2"}`, boss)
	l.refused(t, domain.CodeInvalidRequest, "PATCH", fields, `{"score":"sekret2"}`, app)
	l.refused(t, domain.CodeInvalidRequest, "PATCH", fields, `{"tier":"silver"}`, app)
	for _, q := range []struct{ method, path, body string }{
		{"GET", "/v1/accounts/" + sub, ""},
		{"GET", "/v1/accounts/" + sub + "?revision=0", ""},
		{"GET", "/v1/accounts/" + sub + "/events", ""},
		{"GET", "/v1/events?types=USER_*", ""}, // definitions are not hidden
		{"POST", "/v1/lookup", `{"identifier":"ada@example.com"}`},
		{"PATCH", fields, `{"free":"open3"}`},
		{"PATCH", fields + "?dry_run=true", `{"free":"open4"}`},
		{"POST", "/v1/accounts/" + other + "/merge/preview", `{"from":"` + sub + `"}`},
	} {
		if r := l.want(t, 200, q.method, q.path, q.body, app); strings.Contains(string(r.body), "sekret") || strings.Contains(string(r.body), "score") || !strings.Contains(string(r.body), "open") {
			t.Errorf("%s %s shows: %s", q.method, q.path, r.body)
		}
		if r := l.want(t, 200, q.method, q.path, q.body, boss); !strings.Contains(string(r.body), "score") {
			t.Errorf("%s %s hides the field from an admin: %s", q.method, q.path, r.body)
		}
	}
}

// TestNonConformingByMerge checks that a merge keeps values as they were, and
// that an account which breaks a definition that way is listed.
func TestNonConformingByMerge(t *testing.T) {
	t.Parallel()
	l := start(t)
	l.want(t, 200, "PUT", "/v1/fields/tier", `{"dataType":"SELECT","options":["gold","silver"]}`)
	survivor, merged := l.create(t, "ada@example.com"), l.create(t, "ada@work.example")
	l.want(t, 200, "PATCH", "/v1/accounts/"+merged+"/custom-fields", `{"tier":"gold"}`)
	l.want(t, 200, "PUT", "/v1/fields/tier", `{"dataType":"SELECT","options":["silver"],"force":true}`)
	listed := func(want string) {
		t.Helper()
		if r := l.want(t, 200, "GET", "/v1/fields/tier/non-conforming", ""); r.text(t, "accounts.0.sub") != want || r.text(t, "accounts.1.sub") != "" {
			t.Errorf("listed: %s, want %s alone", r.body, want)
		}
	}
	listed(merged)
	r := l.want(t, 200, "POST", "/v1/accounts/"+survivor+"/merge", `{"from":"`+merged+`"}`)
	if r.text(t, "account.customFields.tier") != "gold" {
		t.Errorf("merged: %s, want the value as it was", r.body)
	}
	listed(survivor)
	l.want(t, 200, "POST", "/v1/accounts/"+survivor+"/unmerge", `{"sub":"`+merged+`"}`)
	listed(merged)
}
