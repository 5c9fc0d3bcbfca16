package httpapi

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"

	"accountledger/domain"
)

// found returns the subs of a page.
func (r response) found(t testing.TB) []string {
	t.Helper()
	var subs []string
	for _, a := range r.member(t, "accounts").([]any) {
		subs = append(subs, a.(map[string]any)["sub"].(string))
	}
	return subs
}

// TestSearch checks that callers find their own writes immediately, on all pages
// and with both operations.
func TestSearch(t *testing.T) {
	t.Parallel()
	l := start(t)
	var subs []string
	for i := range 5 {
		subs = append(subs, l.create(t, fmt.Sprintf("ada%d@example.com", i)))
		if got := l.want(t, 200, "POST", "/v1/accounts/search", fmt.Sprintf(`{"email":"ada%d@"}`, i)).found(t); !slices.Equal(got, subs[i:]) {
			t.Fatalf("found %v, want what was just created", got)
		}
	}
	slices.Reverse(subs)
	var listed, searched []string
	cursor := ""
	for path := "/v1/accounts?limit=2"; path != ""; {
		r := l.want(t, 200, "GET", path, "")
		listed = append(listed, r.found(t)...)
		path = ""
		if link, ok := strings.CutSuffix(r.header.Get("Link"), `>; rel="next"`); ok {
			path = link[1:]
			after, err := url.Parse(path)
			if err != nil || after.Query().Get("after") != r.text(t, "next") {
				t.Errorf("Link %s, next %s", path, r.text(t, "next"))
			}
		}
		s := l.want(t, 200, "POST", "/v1/accounts/search", fmt.Sprintf(`{"q":"example","limit":2,"after":%q}`, cursor))
		searched = append(searched, s.found(t)...)
		cursor = s.text(t, "next")
		if s.header.Get("Ledger-Position") == "" || s.header.Get("Ledger-Lag") != "0" {
			t.Errorf("headers: %v", s.header)
		}
	}
	if !slices.Equal(listed, subs) || !slices.Equal(searched, subs) {
		t.Errorf("listed %v, searched %v, want %v", listed, searched, subs)
	}
	l.want(t, 200, "PUT", "/v1/accounts/"+subs[0]+"/status", `{"userStatus":"DECLINED"}`)
	if got := l.want(t, 200, "GET", "/v1/accounts?status=DECLINED&provider=self", "").found(t); !slices.Equal(got, subs[:1]) {
		t.Errorf("declined: %v", got)
	}
	l.want(t, 200, "DELETE", "/v1/accounts/"+subs[0]+"?immediate=true", "")
	for _, body := range []string{`{"q":"ada4"}`, `{"identifier":{"identifier":"ada4@example.com"}}`, `{"identifier":{"identifier":"` + subs[0] + `"}}`} {
		if got := l.want(t, 200, "POST", "/v1/accounts/search", body).found(t); len(got) != 0 {
			t.Errorf("%s finds %v, which is erased", body, got)
		}
	}
	if got := l.want(t, 200, "POST", "/v1/accounts/search", `{"identifier":{"identifier":"`+subs[1]+`"}}`).found(t); !slices.Equal(got, subs[1:2]) {
		t.Errorf("by sub: %v", got)
	}
}

// TestSearchRefused checks which searches are refused, and that the problem says
// where the fault is but not what was searched for.
func TestSearchRefused(t *testing.T) {
	t.Parallel()
	l := start(t)
	l.want(t, 200, "PUT", "/v1/fields/age", `{"dataType":"NUMBER","searchable":true}`)
	l.want(t, 200, "PUT", "/v1/fields/plain", `{"dataType":"TEXT"}`)
	l.want(t, 200, "PUT", "/v1/fields/secret", `{"dataType":"USERNAME","internal":true,"searchable":true}`)
	for body, pointers := range map[string]string{
		`{"status":"canary","sort":"canary","order":"canary","limit":1001}`: "/limit /order /sort /status",
		`{"q":"` + strings.Repeat("canary ", 11) + `"}`:                     "/q",
		`{"q":"!!!"}`: "",
		`{"identifier":{"identifier":"","type":"canary"}}`:                     "/identifier/identifier /identifier/type",
		`{"customFields":{"none":"canary","plain":"canary"}}`:                  "/customFields/none /customFields/plain",
		`{"customFields":{"age":"canary"}}`:                                    "/customFields/age",
		`{"customFields":{"age":{"from":"canary"}}}`:                           "/customFields/age/from",
		`{"customFields":{"age":{"canary":1}}}`:                                "/customFields/age",
		`{"createdFrom":"canary"}`:                                             "/createdFrom",
		`{"canary":1}`:                                                         "/canary",
		`{"group":"` + strings.Repeat("canary", 20) + `"}`:                     "/group",
		`{"identifier":{"identifier":"canary","type":"email","provider":"x"}}`: "/identifier/provider",
	} {
		r := l.refused(t, domain.CodeInvalidRequest, "POST", "/v1/accounts/search", body)
		var got []string
		for _, f := range r.member(t, "errors").([]any) {
			got = append(got, f.(map[string]any)["pointer"].(string))
		}
		if strings.Join(got, " ") != pointers || strings.Contains(strings.ReplaceAll(string(r.body), "/canary", ""), "canary") {
			t.Errorf("%s: %s, want faults at %s", body, r.body, pointers)
		}
	}
	for _, query := range []string{"status=canary", "sort=canary", "order=canary", "limit=1001", "created_from=canary"} {
		if r := l.refused(t, domain.CodeInvalidRequest, "GET", "/v1/accounts?"+query, ""); strings.Contains(string(r.body), "canary") {
			t.Errorf("%s: %s", query, r.body)
		}
	}
	l.refused(t, codeInvalidParameter, "GET", "/v1/accounts?email=a", "")
	l.refused(t, domain.CodeInvalidCursor, "GET", "/v1/accounts?after=canary", "")
	l.refused(t, codeNotFresh, "GET", "/v1/accounts?min_position=1000&wait=0", "")
	nobody := "Authorization: Bearer " + l.key(t, "nobody", scopeAuditRead)
	l.refused(t, codeForbidden, "GET", "/v1/accounts", "", nobody)
	l.refused(t, codeForbidden, "POST", "/v1/accounts/search", `{}`, nobody)
}

// TestSearchHidden checks that callers without accounts:admin neither see
// internal fields nor find accounts by them, not even as identifiers.
func TestSearchHidden(t *testing.T) {
	t.Parallel()
	l := start(t)
	l.want(t, 200, "PUT", "/v1/fields/login", `{"dataType":"USERNAME","internal":true,"searchable":true}`)
	sub := l.create(t, "ada@example.com")
	l.want(t, 200, "PATCH", "/v1/accounts/"+sub+"/custom-fields", `{"login":"Canary"}`)
	app := "Authorization: Bearer " + l.key(t, "app", scopeAccountsRead)
	for _, body := range []string{`{"identifier":{"identifier":"canary"}}`, `{"customFields":{"login":"canary"}}`} {
		r := l.want(t, 200, "POST", "/v1/accounts/search", body)
		if got := r.found(t); !slices.Equal(got, []string{sub}) || !strings.Contains(string(r.body), "Canary") {
			t.Errorf("%s finds %v for an administrator", body, got)
		}
	}
	if r := l.want(t, 200, "POST", "/v1/accounts/search", `{"identifier":{"identifier":"canary"}}`, app); len(r.found(t)) != 0 {
		t.Errorf("an application finds %s", r.body)
	}
	l.refused(t, domain.CodeInvalidRequest, "POST", "/v1/accounts/search", `{"customFields":{"login":"canary"}}`, app)
	if r := l.want(t, 200, "GET", "/v1/accounts", "", app); len(r.found(t)) != 1 || strings.Contains(string(r.body), "Canary") {
		t.Errorf("an application sees %s", r.body)
	}
}

// TestSearchCursor checks that a cursor reveals nothing about its account, stays
// valid after a restart, and is refused if it was modified.
func TestSearchCursor(t *testing.T) {
	t.Parallel()
	l := start(t)
	for _, name := range []string{"a", "b"} {
		l.want(t, 201, "POST", "/v1/accounts", fmt.Sprintf(`{"identities":[{"provider":"self","family_name":"canary","email":"%s@example.com"}]}`, name))
	}
	const path = "/v1/accounts?sort=name&limit=1"
	first, again := l.want(t, 200, "GET", path, "").text(t, "next"), l.want(t, 200, "GET", path, "").text(t, "next")
	if first == again {
		t.Error("one place always has the same cursor, which reveals accounts with the same name")
	}
	for i := range first {
		changed := []byte(first)
		changed[i] = 'A' + (changed[i]-'A'+1)%26
		l.refused(t, domain.CodeInvalidCursor, "GET", path+"&after="+string(changed), "")
		break
	}
	other := *l
	other.url = l.serve(t, l.Config)
	if got := other.want(t, 200, "GET", path+"&after="+first, "").found(t); len(got) != 1 {
		t.Errorf("after a restart: %v", got)
	}
}
