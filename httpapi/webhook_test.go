package httpapi

import (
	"strings"
	"testing"

	"accountledger/domain"
)

// TestPatchWebhook changes a webhook's settings by merge patch.
func TestPatchWebhook(t *testing.T) {
	t.Parallel()
	l := start(t)
	r := l.want(t, 201, "POST", "/v1/webhooks", `{"url":"https://crm.example/hook","events":["USER_*"],"description":"Sales"}`)
	path := "/v1/webhooks/" + r.text(t, "webhookId")
	r = l.want(t, 200, "PATCH", path, `{"events":["USER_CREATED"],"payload":"thin","description":null}`, "Content-Type: application/merge-patch+json", `If-Match: "0"`)
	if r.text(t, "events.0") != "USER_CREATED" || r.text(t, "payload") != "thin" || strings.Contains(string(r.body), "Sales") || r.header.Get("ETag") != `"1"` {
		t.Errorf("patched: %s", r.body)
	}
	if again := l.want(t, 200, "PATCH", path, `{"payload":"thin"}`); again.header.Get("ETag") != `"1"` {
		t.Errorf("patched to the same: %s", again.body)
	}
	if r := l.want(t, 200, "PATCH", path+"?dry_run=true", `{"payload":null}`); r.text(t, "webhook.payload") != "full" || r.text(t, "events.0.type") != "webhook.updated.v1" {
		t.Errorf("dry run: %s", r.body)
	}
	for pointer, body := range map[string]string{
		"/events": `{"events":null}`, "/url": `{"url":"ftp://x"}`, "/after": `{"after":7}`, "/webhookId": `{"webhookId":"x"}`, "/payload": `{"payload":"fat"}`,
	} {
		if r := l.refused(t, domain.CodeInvalidRequest, "PATCH", path, body); r.text(t, "errors.0.pointer") != pointer {
			t.Errorf("%s points at %s", body, r.body)
		}
	}
	l.refused(t, domain.CodeStaleRevision, "PATCH", path, `{"payload":"full"}`, `If-Match: "0"`)
	l.refused(t, domain.CodeWebhookNotFound, "PATCH", "/v1/webhooks/"+domain.NewID().String(), `{"payload":"full"}`)
	l.refused(t, domain.CodeWebhookNotFound, "PATCH", "/v1/webhooks/x", `{"payload":"full"}`)
}

// TestRotateSecret tests rows 13 to 15 through the API.
func TestRotateSecret(t *testing.T) {
	t.Parallel()
	l := start(t)
	r := l.want(t, 201, "POST", "/v1/webhooks", `{"url":"https://crm.example/hook","events":["USER_*"],"keyType":"v1a"}`)
	path, first := "/v1/webhooks/"+r.text(t, "webhookId"), r.text(t, "secret")
	if !strings.HasPrefix(first, "whsk_") || !strings.HasPrefix(r.text(t, "secretFingerprint"), "whpk_") {
		t.Errorf("webhook with an Ed25519 key: %s", r.body)
	}
	r = l.want(t, 200, "POST", path+"/rotate-secret", `{"overlap":60}`, "Idempotency-Key: turn")
	second := r.text(t, "secret")
	if second == first || r.text(t, "keys.1.notAfter") == "" || r.text(t, "keys.0.keyId") == r.text(t, "keys.1.keyId") {
		t.Errorf("rotated: %s", r.body)
	}
	if again := l.want(t, 200, "POST", path+"/rotate-secret", `{"overlap":60}`, "Idempotency-Key: turn"); strings.Contains(string(again.body), second) || again.text(t, "keys.0.keyId") != r.text(t, "keys.0.keyId") {
		t.Errorf("repeated: %s; want the same key, and its secret not again", again.body)
	}
	if r := l.want(t, 200, "GET", path, ""); strings.Contains(string(r.body), second) || r.text(t, "keys.0.fingerprint") == "" {
		t.Errorf("row 14: read back: %s", r.body)
	}
	if r := l.want(t, 200, "POST", path+"/rotate-secret?dry_run=true", `{"type":"v1"}`); r.text(t, "events.0.type") != "webhook.key-rotated.v1" {
		t.Errorf("dry run: %s", r.body)
	}
	for pointer, body := range map[string]string{
		"/secret": `{"secret":"hunter2"}`, "/type": `{"type":"v2"}`, "/overlap": `{"overlap":2592001}`,
	} {
		r := l.refused(t, domain.CodeInvalidRequest, "POST", path+"/rotate-secret", body)
		if r.text(t, "errors.0.pointer") != pointer || strings.Contains(string(r.body), "hunter2") {
			t.Errorf("%s: %s", body, r.body)
		}
	}
	for range domain.MaxOldKeys - 1 {
		l.want(t, 200, "POST", path+"/rotate-secret", `{}`)
	}
	if r := l.refused(t, domain.CodeTooManyKeys, "POST", path+"/rotate-secret", `{}`); !strings.Contains(r.text(t, "detail"), "20") {
		t.Errorf("row 15: %s, want the date of the next expiry", r.body)
	}
	l.refused(t, domain.CodeWebhookNotFound, "POST", "/v1/webhooks/x/rotate-secret", `{}`)
}

// TestPresets creates a webhook from a preset and changes its settings.
func TestPresets(t *testing.T) {
	t.Parallel()
	l := start(t)
	r := l.want(t, 201, "POST", "/v1/webhooks", `{"url":"https://crm.example/hook","preset":"crm"}`)
	path := "/v1/webhooks/" + r.text(t, "webhookId")
	if r.text(t, "events.0") != "USER_CREATED" || r.text(t, "payload") != "fields" || r.text(t, "mapping.customer_id") != "sub" {
		t.Errorf("preset: %s", r.body)
	}
	r = l.want(t, 200, "PATCH", path, `{"mapping":{"email":null,"mail":"email"}}`)
	if r.text(t, "mapping.mail") != "email" || strings.Contains(string(r.body), `"email":"email"`) || r.text(t, "mapping.customer_id") != "sub" {
		t.Errorf("edited: %s", r.body)
	}
	r = l.want(t, 200, "PATCH", path, `{"preset":"analytics","events":["USER_LOGIN"]}`)
	if r.text(t, "mapping.event_type") != "type" || strings.Contains(string(r.body), "customer_id") || strings.Contains(string(r.body), "USER_REGISTERED") {
		t.Errorf("another preset: %s", r.body)
	}
	for pointer, body := range map[string]string{
		"/preset": `{"url":"https://x.example","preset":"shoes","events":["USER_*"]}`, "/events": `{"url":"https://x.example"}`,
		"/mapping/a": `{"url":"https://x.example","events":["USER_*"],"payload":"fields","mapping":{"a":"shoe"}}`,
		"/payload":   `{"url":"https://x.example","events":["USER_*"],"payload":"thin","format":"cloudevents"}`,
	} {
		if r := l.refused(t, domain.CodeInvalidRequest, "POST", "/v1/webhooks", body); r.text(t, "errors.0.pointer") != pointer {
			t.Errorf("%s: %s", body, r.body)
		}
	}
}

// TestEventData: row 84, a dataref returns the data of the full event.
func TestEventData(t *testing.T) {
	t.Parallel()
	l := start(t)
	l.create(t, "ada@example.com")
	full := l.want(t, 200, "GET", "/v1/events?after=0", "")
	data := l.want(t, 200, "GET", "/v1/events/1.0/data", "")
	if !strings.Contains(string(full.body), `"data":`+string(data.body)) || data.text(t, "email") != "ada@example.com" {
		t.Errorf("row 84: %s is not the data of %s", data.body, full.body)
	}
	for _, place := range []string{"0.0", "1.9", "2.0", "1", "x", "99999999999999999999.0", "01.0"} {
		l.refused(t, codeEventNotFound, "GET", "/v1/events/"+place+"/data", "")
	}
}

// TestWebhookAuth sets, keeps, replaces and removes the credentials for a
// receiver; they are never returned.
func TestWebhookAuth(t *testing.T) {
	t.Parallel()
	l := start(t)
	r := l.want(t, 201, "POST", "/v1/webhooks", `{"url":"https://crm.example/hook","events":["USER_*"],"rateLimit":2.5,"burst":5,"order":"account","headers":{"X-Tenant":"7"},
		"auth":{"type":"api-key","in":"header","name":"X-API-Key","secret":"hunter2"}}`)
	path := "/v1/webhooks/" + r.text(t, "webhookId")
	first := r.text(t, "auth.fingerprint")
	if first == "" || r.text(t, "headers.X-Tenant") != "7" {
		t.Errorf("created: %s", r.body)
	}
	if r := l.want(t, 200, "PATCH", path, `{"headers":{"X-Tenant":null},"maxInFlight":4}`); r.text(t, "auth.fingerprint") != first || strings.Contains(string(r.body), "X-Tenant") {
		t.Errorf("patched: %s", r.body)
	}
	if r := l.want(t, 200, "PATCH", path, `{"auth":{"secret":"hunter3"}}`); r.text(t, "auth.fingerprint") == first || r.text(t, "auth.name") != "X-API-Key" {
		t.Errorf("another secret: %s", r.body)
	}
	for _, r := range []response{l.want(t, 200, "GET", path, ""), l.want(t, 200, "GET", "/v1/webhooks", "")} {
		if strings.Contains(string(r.body), "hunter") {
			t.Errorf("the response contains the secret: %s", r.body)
		}
	}
	for pointer, body := range map[string]string{
		"/auth/secret": `{"auth":{"type":"basic","username":"u"}}`, "/headers/Host": `{"headers":{"Host":"x"}}`, "/order": `{"order":"random"}`,
		"/auth/tokenUrl": `{"auth":{"type":"oauth2","clientId":"c","tokenUrl":"ftp://x","secret":"hunter4"}}`, "/clientCertificate/key": `{"clientCertificate":{"certificate":"x"}}`,
	} {
		if r := l.refused(t, domain.CodeInvalidRequest, "PATCH", path, body); r.text(t, "errors.0.pointer") != pointer || strings.Contains(string(r.body), "hunter") {
			t.Errorf("%s: %s", body, r.body)
		}
	}
	if r := l.want(t, 200, "PATCH", path, `{"auth":null}`); strings.Contains(string(r.body), "X-API-Key") {
		t.Errorf("removed: %s", r.body)
	}
}

// TestStart tests where deliveries to a new webhook start.
func TestStart(t *testing.T) {
	t.Parallel()
	l := start(t)
	l.create(t, "ada@example.com")
	for begin, want := range map[string]float64{"beginning": 0, "2020-01-01T00:00:00Z": 0, "2999-01-01T00:00:00Z": -1, "now": -1} {
		r := l.want(t, 200, "POST", "/v1/webhooks?dry_run=true", `{"url":"https://crm.example/","events":["USER_*"],"start":"`+begin+`"}`)
		if want < 0 {
			want = 1
		}
		if r.member(t, "webhook.after") != want {
			t.Errorf("%s: %s, want it to start after %v", begin, r.body, want)
		}
	}
	for _, body := range []string{`"start":"yesterday"`, `"start":"now","after":0`} {
		if r := l.refused(t, domain.CodeInvalidRequest, "POST", "/v1/webhooks", `{"url":"https://crm.example/","events":["USER_*"],`+body+`}`); r.text(t, "errors.0.pointer") != "/start" {
			t.Errorf("%s: %s", body, r.body)
		}
	}
}
