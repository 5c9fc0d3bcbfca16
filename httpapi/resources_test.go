package httpapi

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"

	"accountledger/domain"
	"accountledger/projections"
	"accountledger/projections/webhooks"
	"accountledger/projections/webhooks/wire"
)

func TestPatchAccount(t *testing.T) {
	t.Parallel()
	l := start(t)
	created := l.want(t, 201, "POST", "/v1/accounts", ada)
	path := created.header.Get("Location")
	self := created.text(t, "identities.0.identityId")

	r := l.want(t, 200, "PATCH", path, `{"identity":{"family_name":"King","middle_name":"Byron"}}`)
	if got := r.text(t, "identities.0.family_name") + r.text(t, "identities.0.middle_name"); got != "KingByron" || r.header.Get("ETag") != `"1"` {
		t.Errorf("patched: %s", r.body)
	}
	r = l.want(t, 200, "PATCH", path, `{"identity":{"middle_name":null}}`, "Content-Type: application/merge-patch+json")
	if got := r.member(t, "identities.0.middle_name"); got != nil {
		t.Errorf("middle_name = %v after null", got)
	}
	r = l.want(t, 200, "PATCH", path, `{"identity":{"identityId":"`+self+`","given_name":"Augusta Ada"}}`)
	if r.text(t, "identities.0.given_name") != "Augusta Ada" {
		t.Errorf("patched: %s", r.body)
	}
	r = l.want(t, 200, "PATCH", path+"/identities/"+self, `{"email":"Ada@Example.ORG","address":{"country":"GB"}}`)
	if r.text(t, "identities.0.email") != "Ada@example.org" || r.text(t, "identities.0.address.country") != "GB" {
		t.Errorf("patched: %s", r.body)
	}
	if r := l.want(t, 200, "PATCH", path, `{"identity":{}}`); r.header.Get("ETag") != `"4"` {
		t.Errorf("an empty patch moved the revision to %s", r.header.Get("ETag"))
	}
	for _, tt := range []struct {
		code          domain.Code
		path, body    string
		pointer, also string
	}{
		{domain.CodeInvalidRequest, path, `{"identity":null}`, "/identity", ""},
		{domain.CodeInvalidRequest, path, `{}`, "/identity", ""},
		{domain.CodeInvalidRequest, path, `{"identity":{"identityId":7}}`, "/identity/identityId", ""},
		{domain.CodeInvalidRequest, path, `{"identity":{"shoe_size":44}}`, "/identity/shoe_size", ""},
		{domain.CodeInvalidRequest, path, `{"identity":{"provider":"google"}}`, "/identity/provider", ""},
		{domain.CodeInvalidRequest, path, `{"identity":{"email":"nowhere"}}`, "/identity/email", ""},
		{domain.CodeInvalidRequest, path, `{"identity":{},"status":"VERIFIED","x":1}`, "/status", "/x"},
		{domain.CodeInvalidRequest, path + "/identities/" + self, `{"email":"nowhere"}`, "/email", ""},
		{domain.CodeInvalidRequest, path + "/identities/" + self, `{"birthdate":"soon","locale":"?"}`, "/birthdate", "/locale"},
		{domain.CodeIdentifierRequired, path, `{"identity":{"email":null}}`, "", ""},
		{domain.CodeIdentityNotFound, path, `{"identity":{"identityId":"nobody","given_name":"x"}}`, "", ""},
		{domain.CodeIdentityNotFound, path + "/identities/nobody", `{"given_name":"x"}`, "", ""},
		{domain.CodeAccountNotFound, "/v1/accounts/" + domain.NewID().String(), `{"identity":{"given_name":"x"}}`, "", ""},
		{domain.CodeAccountNotFound, "/v1/accounts/x", `{"identity":{"given_name":"x"}}`, "", ""},
	} {
		r := l.refused(t, tt.code, "PATCH", tt.path, tt.body)
		if got := r.text(t, "errors.0.pointer"); got != tt.pointer {
			t.Errorf("PATCH of %s points at %q, want %q", tt.body, got, tt.pointer)
		}
		if got := r.text(t, "errors.1.pointer"); got != tt.also {
			t.Errorf("PATCH of %s also points at %q, want %q", tt.body, got, tt.also)
		}
	}
	l.create(t, "taken@example.com")
	r = l.refused(t, domain.CodeIdentifierTaken, "PATCH", path, `{"identity":{"email":"TAKEN@example.com"}}`)
	if detail := r.text(t, "detail"); !strings.Contains(detail, "email") || strings.Contains(strings.ToLower(detail), "taken@") {
		t.Errorf("the detail %q does not name the kind, or contains the value", detail)
	}
}

func TestIdentities(t *testing.T) {
	t.Parallel()
	l := start(t)
	path := "/v1/accounts/" + l.create(t, "ada@example.com")
	const google = `{"provider":"google","providerUserId":"1095","email":"ada@gmail.com","email_verified":true}`
	r := l.want(t, 201, "POST", path+"/identities", google)
	if r.text(t, "identities.1.provider") != "google" || r.header.Get("Location") != path || r.header.Get("ETag") != `"1"` {
		t.Errorf("linked: %s %v", r.body, r.header)
	}
	id := r.text(t, "identities.1.identityId")
	if r := l.want(t, 201, "POST", path+"/identities", google); r.header.Get("ETag") != `"1"` {
		t.Errorf("linking again moved the revision to %s", r.header.Get("ETag"))
	}
	if r := l.want(t, 200, "POST", "/v1/lookup", `{"identifier":"1095","type":"providerUserId","provider":"google"}`); "/v1/accounts/"+r.text(t, "sub") != path {
		t.Errorf("lookup by provider: %s", r.body)
	}
	l.refused(t, domain.CodeInvalidRequest, "PATCH", path, `{"identity":{"given_name":"which?"}}`)
	l.refused(t, domain.CodeIdentityConflict, "POST", path+"/identities", `{"provider":"self","email":"second@example.com"}`)
	other := "/v1/accounts/" + l.create(t, "other@example.com")
	l.refused(t, domain.CodeIdentityConflict, "POST", other+"/identities", google)

	r = l.want(t, 200, "DELETE", path+"/identities/"+id, "")
	if r.member(t, "identities.1") != nil || r.header.Get("ETag") != `"2"` {
		t.Errorf("unlinked: %s", r.body)
	}
	l.refused(t, domain.CodeIdentityNotFound, "DELETE", path+"/identities/"+id, "")
	l.refused(t, domain.CodeIdentifierRequired, "DELETE", path+"/identities/"+r.text(t, "identities.0.identityId"), "")
	l.want(t, 201, "POST", other+"/identities", google)
}

func TestStatus(t *testing.T) {
	t.Parallel()
	l := start(t)
	path := "/v1/accounts/" + l.create(t, "ada@example.com") + "/status"
	r := l.want(t, 200, "PUT", path, `{"userStatus":"DECLINED","reason":"chargeback"}`)
	if r.text(t, "userStatus") != "DECLINED" || r.text(t, "user_status_reason") != "chargeback" {
		t.Errorf("status: %s", r.body)
	}
	if r := l.want(t, 200, "PUT", path, `{"userStatus":"DECLINED"}`); r.header.Get("ETag") != `"1"` {
		t.Errorf("the same status again: ETag %s", r.header.Get("ETag"))
	}
	l.refused(t, domain.CodeStatusSystemManaged, "PUT", path, `{"userStatus":"COMBINED"}`)
	l.refused(t, domain.CodeStatusSystemManaged, "PUT", path, `{"userStatus":"DELETED"}`)
	l.refused(t, domain.CodeInvalidRequest, "PUT", path, `{"userStatus":"ACTIVE"}`)
	l.refused(t, domain.CodeInvalidRequest, "PUT", path, `{}`)
}

func TestCustomFields(t *testing.T) {
	t.Parallel()
	l := start(t)
	path := l.want(t, 201, "POST", "/v1/accounts", ada).header.Get("Location") + "/custom-fields"
	r := l.want(t, 200, "PATCH", path, `{"employee_id":null,"tier":"gold","tags":["a",{"b":1.50}],"n":12345678901234567890,"a.b":{"deep":[[[]]]}}`)
	fields, _ := r.member(t, "customFields").(map[string]any)
	if _, ok := fields["employee_id"]; ok || fields["tier"] != "gold" || len(fields) != 4 {
		t.Errorf("custom fields: %s", r.body)
	}
	l.refused(t, domain.CodeInvalidRequest, "PATCH", path, `{"no spaces":1}`)
	l.refused(t, domain.CodeInvalidRequest, "PATCH", path, `{"big":"`+strings.Repeat("x", 20_000)+`"}`)
}

func TestLookup(t *testing.T) {
	t.Parallel()
	l := start(t)
	sub := l.want(t, 201, "POST", "/v1/accounts",
		`{"identities":[{"provider":"self","email":"Ada@example.com","mobile_number":"+49 151 12345678","username":"Ada.L"}]}`).text(t, "sub")
	for _, body := range []string{
		`{"identifier":"ada@example.com","type":"email"}`, `{"identifier":" ADA@EXAMPLE.com "}`, `{"identifier":"+4915112345678"}`,
		`{"identifier":"+49 (151) 12345678","type":"mobile_number"}`, `{"identifier":"ada.l"}`, `{"identifier":"ADA.L","type":"username"}`,
	} {
		r := l.want(t, 200, "POST", "/v1/lookup", body)
		if r.text(t, "sub") != sub || r.header.Get("ETag") != `"0"` || r.position() == "" {
			t.Errorf("lookup of %s: %s %v", body, r.body, r.header)
		}
	}
	for body, code := range map[string]domain.Code{
		`{"identifier":"nobody@example.com"}`:                          domain.CodeAccountNotFound,
		`{"identifier":"ada@example.com","type":"username"}`:           domain.CodeAccountNotFound,
		`{"identifier":"1","type":"providerUserId","provider":"acme"}`: domain.CodeAccountNotFound,
		`{"identifier":"1","type":"providerUserId"}`:                   domain.CodeInvalidRequest,
		`{"identifier":"a@b.de","provider":"acme"}`:                    domain.CodeInvalidRequest,
		`{"identifier":"x","type":"shoe"}`:                             domain.CodeInvalidRequest,
		`{"identifier":""}`:                                            domain.CodeInvalidRequest,
		`{}`:                                                           domain.CodeInvalidRequest,
	} {
		l.refused(t, code, "POST", "/v1/lookup", body)
	}
}

func TestHistory(t *testing.T) {
	t.Parallel()
	l := start(t)
	id := "0190b0c2-5f3e-7c1a-9d5e-3f6a1b2c4d5e"
	path := l.want(t, 201, "POST", "/v1/accounts", ada, "X-Request-Id: "+id, "Idempotency-Key: k").header.Get("Location")
	for i := range 4 {
		l.want(t, 200, "PATCH", path+"/custom-fields", fmt.Sprintf(`{"n":%d}`, i))
	}
	r := l.want(t, 200, "GET", path+"/events", "")
	got := map[string]any{}
	first := r.member(t, "events.0").(map[string]any)
	for _, name := range []string{"position", "revision", "type", "correlationId"} {
		got[name] = first[name]
	}
	want := map[string]any{"position": 1.0, "revision": 0.0, "type": "account.created.v1", "correlationId": id}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("first event (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]any{"kind": "api-key", "id": "admin"}, first["actor"]); diff != "" {
		t.Errorf("actor (-want +got):\n%s", diff)
	}
	if r.text(t, "events.0.data.profile.email") != "ada@example.com" || r.text(t, "events.0.id") == "" || r.text(t, "events.0.time") == "" || r.text(t, "events.0.commandId") == "" {
		t.Errorf("first event: %s", r.body)
	}
	if next := r.member(t, "next"); next != nil {
		t.Errorf("next = %v, want null", next)
	}

	var revisions []float64
	pages := 0
	for at := path + "/events?limit=2"; at != ""; pages++ {
		r := l.want(t, 200, "GET", at, "")
		for _, e := range r.member(t, "events").([]any) {
			revisions = append(revisions, e.(map[string]any)["revision"].(float64))
		}
		at = nextLink(t, r)
		if (at == "") != (r.member(t, "next") == nil) {
			t.Errorf("Link %q beside next %v", at, r.member(t, "next"))
		}
	}
	if diff := cmp.Diff([]float64{0, 1, 2, 3, 4}, revisions); diff != "" || pages != 3 {
		t.Errorf("%d pages (-want +got):\n%s", pages, diff)
	}
	for query, code := range map[string]domain.Code{"?after=x": domain.CodeInvalidCursor, "?after=-1": domain.CodeInvalidCursor,
		"?limit=0": domain.CodeInvalidRequest, "?limit=1001": domain.CodeInvalidRequest, "?limit=many": domain.CodeInvalidRequest} {
		l.refused(t, code, "GET", path+"/events"+query, "")
	}
	if r := l.want(t, 200, "GET", path+"/events?after=4", ""); len(r.member(t, "events").([]any)) != 0 {
		t.Errorf("after the last event: %s", r.body)
	}
	l.refused(t, domain.CodeAccountNotFound, "GET", "/v1/accounts/"+domain.NewID().String()+"/events", "")
}

// nextLink returns the path of the link with rel="next", or "".
func nextLink(t testing.TB, r response) string {
	t.Helper()
	link := r.header.Get("Link")
	if link == "" {
		return ""
	}
	path, rel, ok := strings.Cut(strings.TrimPrefix(link, "<"), ">; ")
	if !ok || rel != `rel="next"` {
		t.Fatalf("Link = %q", link)
	}
	return path
}

// Row 114: pages have a stable order, and each continues where the previous one ended.
func TestFeed(t *testing.T) {
	t.Parallel()
	l := start(t)
	empty := l.want(t, 200, "GET", "/v1/events?after=0", "")
	if len(empty.member(t, "events").([]any)) != 0 || empty.text(t, "next") == "" {
		t.Errorf("feed of an empty log: %s", empty.body)
	}
	path := l.want(t, 201, "POST", "/v1/accounts", ada).header.Get("Location")
	l.want(t, 200, "PATCH", path, `{"identity":{"family_name":"King"}}`)
	l.want(t, 200, "PUT", path+"/status", `{"userStatus":"VERIFIED"}`)
	l.want(t, 201, "POST", path+"/identities", `{"provider":"google","providerUserId":"1"}`)

	want := []string{"USER_CREATED 0", "USER_REGISTERED 0", "GROUP_MEMBER_ADDED 0", "USER_UPDATED 1", "USER_STATUS_CHANGED 2", "IDENTITY_LINKED 3"}
	for _, limit := range []int{1, 2, 3, 1000} {
		var got []string
		cursor := "0"
		for {
			r := l.want(t, 200, "GET", fmt.Sprintf("/v1/events?after=%s&limit=%d", cursor, limit), "")
			events := r.member(t, "events").([]any)
			if len(events) > limit {
				t.Errorf("%d events with limit %d", len(events), limit)
			}
			for _, e := range events {
				e := e.(map[string]any)
				got = append(got, fmt.Sprintf("%v %v", e["type"], e["sequence"]))
				if e["id"] == "" || "/v1/accounts/"+e["sub"].(string) != path || e["time"] == "" || e["data"] == nil {
					t.Errorf("event %v", e)
				}
			}
			cursor = r.text(t, "next")
			if got := nextLink(t, r); !strings.Contains(got, "after="+cursor) {
				t.Errorf("Link has the cursor %s, next is %s", got, cursor)
			}
			if r.member(t, "more") == false {
				break
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("limit %d (-want +got):\n%s", limit, diff)
		}
		if r := l.want(t, 200, "GET", "/v1/events?after="+cursor, ""); len(r.member(t, "events").([]any)) != 0 || r.text(t, "next") != cursor {
			t.Errorf("after the end: %s", r.body)
		}
	}
	for types, n := range map[string]int{"USER_*": 4, "USER_REGISTERED": 1, "IDENTITY_LINKED,USER_UPDATED": 2, "*": 6} {
		r := l.want(t, 200, "GET", "/v1/events?types="+types, "")
		if got := len(r.member(t, "events").([]any)); got != n {
			t.Errorf("types=%s gives %d events, want %d", types, got, n)
		}
	}
	// A bare log position is also a cursor.
	if r := l.want(t, 200, "GET", "/v1/events?after=3", ""); r.text(t, "events.0.type") != "IDENTITY_LINKED" {
		t.Errorf("after=3: %s", r.body)
	}
	l.want(t, 200, "GET", "/v1/events?after="+empty.text(t, "next"), "")

	cursor := l.want(t, 200, "GET", "/v1/events", "").text(t, "next")
	other := start(t)
	other.create(t, "ada@example.com")
	for _, bad := range []string{"-1", "x", "v1", "v2.1.2", "v1.00000000.1", cursor + ".0", cursor + ".x", cursor + ".1.1", "99", strings.Replace(cursor, "v1.", "v1.0", 1)} {
		l.refused(t, domain.CodeInvalidCursor, "GET", "/v1/events?after="+bad, "")
	}
	other.refused(t, domain.CodeInvalidCursor, "GET", "/v1/events?after="+cursor[:len(cursor)-1]+"1", "")
	for _, query := range []string{"limit=0", "limit=1001", "types=SHOE_*", "types=USER_*,", "wait=31"} {
		l.refused(t, domain.CodeInvalidRequest, "GET", "/v1/events?"+query, "")
	}
}

// Row 114: TestFeedWaits waits for an event that does not exist yet.
func TestFeedWaits(t *testing.T) {
	t.Parallel()
	l := start(t)
	l.create(t, "first@example.com")
	got := make(chan response)
	go func() {
		r, err := l.try("GET", "/v1/events?after=1&wait=30&types=USER_STATUS_CHANGED", "")
		if err != nil {
			t.Error(err)
		}
		got <- r
	}()
	l.want(t, 200, "PUT", "/v1/accounts/"+l.create(t, "second@example.com")+"/status", `{"userStatus":"DECLINED"}`)
	if r := <-got; r.status != 200 || r.text(t, "events.0.type") != "USER_STATUS_CHANGED" {
		t.Errorf("the long poll got %d %s", r.status, r.body)
	}
	if r := l.want(t, 200, "GET", "/v1/events?after=3&wait=1", ""); len(r.member(t, "events").([]any)) != 0 {
		t.Errorf("a wait without an event got %s", r.body)
	}
}

func TestWebhooks(t *testing.T) {
	t.Parallel()
	l := start(t)
	received := make(chan error, 16)
	var secret string
	ready := make(chan struct{})
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		<-ready
		body, err := io.ReadAll(r.Body)
		key, keyErr := wire.ParseVerifier(secret)
		if err == nil && keyErr == nil {
			err = wire.Verify([]wire.Verifier{key}, r.Header, body, time.Now())
		}
		received <- err
	}))
	defer receiver.Close()

	body := `{"url":"` + receiver.URL + `/hook","events":["USER_*"],"format":"standard","payload":"full"}`
	if r := l.want(t, 200, "POST", "/v1/webhooks?dry_run=true", body); r.text(t, "webhook.state") != "enabled" || r.text(t, "events.0.type") != "webhook.created.v1" {
		t.Errorf("dry run: %s", r.body)
	}
	r := l.want(t, 201, "POST", "/v1/webhooks", body, "Idempotency-Key: hook")
	id := r.text(t, "webhookId")
	path := "/v1/webhooks/" + id
	secret = r.text(t, "secret")
	close(ready)
	if !strings.HasPrefix(secret, "whsec_") || r.header.Get("Location") != path || r.header.Get("ETag") != `"0"` || r.position() != "1" {
		t.Errorf("created: %s %v", r.body, r.header)
	}
	if again := l.want(t, 201, "POST", "/v1/webhooks", body, "Idempotency-Key: hook"); again.text(t, "webhookId") != id || strings.Contains(string(again.body), secret) {
		t.Errorf("repeated: %s; want the same webhook, and its secret not again", again.body)
	}
	l.create(t, "ada@example.com")
	if err := <-received; err != nil {
		t.Errorf("delivery: %v", err)
	}
	list := l.want(t, 200, "GET", "/v1/webhooks", "")
	if list.text(t, "webhooks.0.webhookId") != id || strings.Contains(string(list.body), secret) {
		t.Errorf("list: %s", list.body)
	}
	deadline := time.Now().Add(20 * time.Second)
	for status := ""; status != webhooks.StatusDelivered; {
		r := l.want(t, 200, "GET", path+"/deliveries", "")
		if status = r.text(t, "deliveries.0.status"); time.Now().After(deadline) {
			t.Fatalf("deliveries: %s", r.body)
		}
	}
	l.refused(t, domain.CodeInvalidCursor, "GET", path+"/deliveries?after=x", "")
	l.refused(t, domain.CodeInvalidRequest, "GET", path+"/deliveries?status=lost", "")
	for _, status := range webhooks.Statuses {
		r := l.want(t, 200, "GET", path+"/deliveries?status="+status, "")
		if has := strings.Contains(string(r.body), `"status":"`+status); has != (status == webhooks.StatusDelivered) {
			t.Errorf("deliveries with status %s: %s", status, r.body)
		}
	}

	if r := l.want(t, 200, "PUT", path+"/state?dry_run=true", `{"state":"paused"}`); r.text(t, "webhook.state") != "paused" || r.text(t, "events.0.data.to") != "paused" {
		t.Errorf("dry run: %s", r.body)
	}
	r = l.want(t, 200, "PUT", path+"/state", `{"state":"paused","reason":"maintenance"}`, `If-Match: "0"`)
	if r.text(t, "state") != "paused" || r.text(t, "stateReason") != "maintenance" || r.header.Get("ETag") != `"1"` {
		t.Errorf("paused: %s", r.body)
	}
	l.refused(t, domain.CodeStaleRevision, "PUT", path+"/state", `{"state":"enabled"}`, `If-Match: "0"`)
	l.refused(t, domain.CodeInvalidRequest, "PUT", path+"/state", `{"state":"sleepy"}`)
	l.want(t, 200, "PUT", path+"/state", `{"state":"enabled"}`)
	if r := l.want(t, 200, "GET", path, ""); r.text(t, "state") != "enabled" || r.header.Get("ETag") != `"2"` {
		t.Errorf("get: %s", r.body)
	}
	l.want(t, 200, "DELETE", path+"?dry_run=true", "")
	if r := l.want(t, 204, "DELETE", path, ""); len(r.body) > 0 || r.position() == "" {
		t.Errorf("deleted: %q %v", r.body, r.header)
	}
	l.want(t, 204, "DELETE", path, "")
	for _, path := range []string{path, "/v1/webhooks/x", "/v1/webhooks/" + domain.NewID().String()} {
		l.refused(t, domain.CodeWebhookNotFound, "GET", path, "")
		l.refused(t, domain.CodeWebhookNotFound, "GET", path+"/deliveries", "")
		l.refused(t, domain.CodeWebhookNotFound, "PUT", path+"/state", `{"state":"paused"}`)
	}
	l.refused(t, domain.CodeWebhookNotFound, "DELETE", "/v1/webhooks/x", "")
}

func TestWebhookFaults(t *testing.T) {
	t.Parallel()
	l := start(t)
	for pointer, body := range map[string]string{
		"/url":     `{"url":"ftp://x","events":["USER_*"]}`,
		"/events":  `{"url":"https://example.com/","events":["SHOE_LACED"]}`,
		"/format":  `{"url":"https://example.com/","events":["USER_*"],"format":"xml"}`,
		"/payload": `{"url":"https://example.com/","events":["USER_*"],"payload":"fat"}`,
		"/secret":  `{"url":"https://example.com/","events":["USER_*"],"secret":"hunter2"}`,
		"/after":   `{"url":"https://example.com/","events":["USER_*"],"after":7}`,
	} {
		r := l.refused(t, domain.CodeInvalidRequest, "POST", "/v1/webhooks", body)
		if got := r.text(t, "errors.0.pointer"); got != pointer || strings.Contains(string(r.body), "hunter2") {
			t.Errorf("%s points at %s: %s", body, got, r.body)
		}
	}
}

func TestProjections(t *testing.T) {
	t.Parallel()
	l := start(t)
	sub := l.create(t, "ada@example.com")
	find := func() (state projectionState) {
		t.Helper()
		var list projectionList
		check(t, json.Unmarshal(l.want(t, 200, "GET", "/v1/projections", "").body, &list))
		for _, p := range list.Projections {
			if p.Name == projections.AccountsView {
				return p
			}
		}
		t.Fatal("the account view is not listed")
		return
	}
	if p := find(); p.Position != 1 || p.Lag != 0 || p.State != "live" || p.Rebuild != nil || p.Parked == nil {
		t.Errorf("projection: %+v", p)
	}
	r := l.want(t, 202, "POST", "/v1/projections/accounts/rebuild", "")
	if r.text(t, "state") != rebuildRunning {
		t.Errorf("rebuild: %s", r.body)
	}
	deadline := time.Now().Add(30 * time.Second)
	for p := find(); p.Rebuild.State != rebuildDone; p = find() {
		if p.Rebuild.State == rebuildFailed || time.Now().After(deadline) {
			t.Fatalf("rebuild: %+v", p.Rebuild)
		}
	}
	l.want(t, 200, "GET", "/v1/accounts/"+sub, "")
	l.refused(t, codeProjectionNotFound, "POST", "/v1/projections/shoes/rebuild", "")
}

// TestRebuildTwice requests a rebuild while one runs, and on a server without
// background work.
func TestRebuildTwice(t *testing.T) {
	t.Parallel()
	l := start(t)
	c := l.Config
	c.Background = func(func(context.Context)) {} // never runs the work
	busy := &ledger{Config: c, url: l.serve(t, c), admin: l.admin, client: l.client}
	busy.want(t, 202, "POST", "/v1/projections/accounts/rebuild", "")
	busy.refused(t, codeRebuildRunning, "POST", "/v1/projections/accounts/rebuild", "")
	c.Background = nil
	idle := &ledger{Config: c, url: l.serve(t, c), admin: l.admin, client: l.client}
	idle.refused(t, codeUnavailable, "POST", "/v1/projections/accounts/rebuild", "")
}

// TestCursors checks that every list refuses cursors of other lists with the
// same problem.
func TestCursors(t *testing.T) {
	t.Parallel()
	l := start(t)
	sub := l.create(t, "ada@example.com")
	l.want(t, 200, "PUT", "/v1/fields/tier", `{"dataType":"TEXT"}`)
	webhook := l.want(t, 201, "POST", "/v1/webhooks", `{"url":"http://127.0.0.1:9/","events":["USER_*"]}`).text(t, "webhookId")
	rows, header := withMapping(crmMapping, "")
	job := l.want(t, 201, "POST", "/v1/imports", rows, header).text(t, "importId")
	document := description(t)
	lists := map[string]bool{}
	for _, path := range []string{"/v1/accounts", "/v1/events", "/v1/imports/" + job + "/rows", "/v1/accounts/" + sub + "/events", "/v1/fields/tier/non-conforming", "/v1/webhooks/" + webhook + "/deliveries",
		"/v1/accounts/" + sub + "/disclosures", "/v1/webhooks/" + webhook + "/lanes"} {
		lists[operationAt(document, "GET", path).OperationID] = true
		for _, cursor := range []string{"x", "-1", "1.2x", "99999999999999999999", strings.Repeat("1", 300)} {
			l.refused(t, domain.CodeInvalidCursor, "GET", path+"?after="+cursor, "")
		}
	}
	for path, item := range document.Paths.Map() {
		if item.Get != nil && item.Get.Parameters.GetByInAndName("query", "after") != nil && !lists[item.Get.OperationID] {
			t.Errorf("GET %s is not tested", path)
		}
	}
}
