package httpapi

import (
	"strings"
	"testing"

	"accountledger/domain"
)

func TestMerge(t *testing.T) {
	t.Parallel()
	l := start(t)
	hook := l.want(t, 201, "POST", "/v1/webhooks", `{"url":"http://127.0.0.1:1/hook","events":["USER_COMBINED","USER_STATUS_CHANGED"]}`).text(t, "webhookId")
	a := l.want(t, 201, "POST", "/v1/accounts", `{"identities":[{"provider":"self","email":"ada@example.com"}],"customFields":{"tier":"gold"}}`)
	b := l.want(t, 201, "POST", "/v1/accounts", `{"identities":[{"provider":"self","email":"ada@work.example"},{"provider":"google","providerUserId":"1095"}],"customFields":{"tier":"silver","size":44}}`)
	subA, subB := a.text(t, "sub"), b.text(t, "sub")
	pathA, pathB := "/v1/accounts/"+subA, "/v1/accounts/"+subB
	from := `{"from":"` + subB + `"}`

	r := l.want(t, 200, "POST", pathA+"/merge/preview", from)
	if r.text(t, "events.0.type") != "account.merged.v1" || r.text(t, "events.1.sub") != subB || r.text(t, "conflicts.0.dropped") != "silver" ||
		r.text(t, "webhooks.0.webhookId") != hook || r.text(t, "webhooks.0.events.0") != "USER_COMBINED" || r.text(t, "webhooks.0.events.1") != "USER_STATUS_CHANGED" {
		t.Errorf("preview: %s", r.body)
	}
	l.want(t, 200, "POST", pathA+"/merge?dry_run=true", from)
	if r := l.want(t, 200, "GET", pathA, ""); r.header.Get("ETag") != `"0"` {
		t.Errorf("a preview changed the account: %s", r.body)
	}

	l.refused(t, domain.CodeStaleRevision, "POST", pathA+"/merge", from, `If-Match: "7"`)
	first := l.want(t, 200, "POST", pathA+"/merge", from, "Idempotency-Key: m1", `If-Match: "0"`)
	if first.text(t, "account.combinedFrom.0.sub") != subB || first.text(t, "conflicts.0.field") != "customFields.tier" ||
		first.text(t, "conflicts.0.kept") != "gold" || first.text(t, "conflicts.0.dropped") != "silver" || first.header.Get("ETag") != `"1"` {
		t.Errorf("merged: %s", first.body)
	}
	again := l.want(t, 200, "POST", pathA+"/merge", from, "Idempotency-Key: m1", `If-Match: "0"`)
	if string(again.body) != string(first.body) {
		t.Errorf("repeated: %s\nwant %s", again.body, first.body)
	}
	for _, body := range []string{`{"identifier":"ada@work.example"}`, `{"identifier":"` + subB + `"}`, `{"identifier":"` + strings.ToUpper(subB) + `","type":"sub"}`,
		`{"identifier":"1095","type":"providerUserId","provider":"google"}`} {
		if r := l.want(t, 200, "POST", "/v1/lookup", body); r.text(t, "sub") != subA {
			t.Errorf("lookup of %s finds %s", body, r.text(t, "sub"))
		}
	}
	l.refused(t, domain.CodeAccountNotFound, "POST", "/v1/lookup", `{"identifier":"x","type":"sub"}`)
	if r := l.want(t, 200, "GET", pathB, ""); r.text(t, "userStatus") != "COMBINED" || r.text(t, "combinedInto") != subA {
		t.Errorf("B: %s", r.body)
	}
	l.refused(t, domain.CodeAccountCombined, "PATCH", pathB, `{"identity":{"nickname":"x"}}`)
	l.refused(t, domain.CodeIdentifierTaken, "POST", "/v1/accounts", `{"identities":[{"provider":"self","email":"ADA@work.example"}]}`)

	l.want(t, 200, "PUT", pathA+"/status", `{"userStatus":"PENDING"}`)
	feed := l.want(t, 200, "GET", "/v1/events?types=USER_STATUS_CHANGED", "")
	if feed.text(t, "events.1.sub") != subA || feed.text(t, "events.1.combinedSubs.0") != subB {
		t.Errorf("an event after the merge does not have both subs: %s", feed.body)
	}

	r = l.want(t, 200, "POST", pathA+"/unmerge", `{"sub":"`+subB+`"}`)
	if r.text(t, "restored.userStatus") != "VERIFIED" || r.text(t, "restored.identities.0.email") != "ada@work.example" || r.member(t, "account.combinedFrom") != nil {
		t.Errorf("unmerged: %s", r.body)
	}
	if r := l.want(t, 200, "POST", "/v1/lookup", `{"identifier":"ada@work.example"}`); r.text(t, "sub") != subB {
		t.Errorf("lookup after the unmerge finds %s", r.body)
	}
	l.refused(t, domain.CodeMergeRefused, "POST", pathA+"/unmerge", `{"sub":"`+subB+`"}`)
	l.refused(t, domain.CodeMergeRefused, "POST", pathA+"/merge", `{"from":"`+subA+`"}`)
	l.refused(t, domain.CodeAccountNotFound, "POST", pathA+"/merge", `{"from":"`+domain.NewID().String()+`"}`)
	if r := l.refused(t, domain.CodeInvalidRequest, "POST", pathA+"/merge", `{"from":"somebody"}`); r.text(t, "errors.0.pointer") != "/from" {
		t.Errorf("an invalid sub: %s", r.body)
	}

	// Callers with accounts:read are told which account to merge.
	google := `{"provider":"google","providerUserId":"1095"}`
	if r := l.refused(t, domain.CodeIdentityConflict, "POST", pathA+"/identities", google); r.text(t, "merge.from") != subB {
		t.Errorf("no suggestion to merge: %s", r.body)
	}
	blind := l.key(t, "blind", scopeAccountsWrite)
	if r := l.refused(t, domain.CodeIdentityConflict, "POST", pathA+"/identities", google, "Authorization: Bearer "+blind); strings.Contains(string(r.body), subB) {
		t.Errorf("a caller without accounts:read sees an account: %s", r.body)
	}
}
