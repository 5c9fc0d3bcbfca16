package httpapi

import (
	"strings"
	"sync"
	"testing"
	"time"

	"accountledger/domain"
)

// clock is a clock that tests set.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: time.Now()} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func bearer(key string) string { return "Authorization: Bearer " + key }

// TestAPIKeys follows a key from its creation to its revocation, across a restart.
func TestAPIKeys(t *testing.T) {
	t.Parallel()
	f := newFiles(t)
	l := f.open(t)
	t.Cleanup(func() { l.close() })
	const asked = `{"name":"reports","scopes":["audit:read","accounts:read"]}`

	if r := l.want(t, 200, "POST", "/v1/api-keys?dry_run=true", asked); r.text(t, "events.0.type") != "api-key.created.v1" || strings.Contains(string(r.body), keyPrefix) {
		t.Errorf("dry run: %s", r.body)
	}
	made := l.want(t, 201, "POST", "/v1/api-keys", asked, "Idempotency-Key: k1")
	id, key := made.text(t, "keyId"), made.text(t, "key")
	path := made.header.Get("Location")
	if path != "/v1/api-keys/"+id || made.header.Get("ETag") != `"0"` || !strings.HasPrefix(key, "alk_"+id+"_") || made.text(t, "scopes.0") != "accounts:read" {
		t.Fatalf("created: %v %s", made.header, made.body)
	}
	l.want(t, 200, "GET", "/v1/projections", "", bearer(key))
	l.refused(t, codeForbidden, "GET", "/v1/roles", "", bearer(key))

	// A repeated request creates no second key and does not return the key.
	again := l.want(t, 201, "POST", "/v1/api-keys", asked, "Idempotency-Key: k1")
	if again.text(t, "keyId") != id || again.text(t, "key") != "" {
		t.Errorf("repeated: %s", again.body)
	}
	l.refused(t, domain.CodeIdempotencyKeyReused, "POST", "/v1/api-keys", `{"name":"other","scopes":["audit:read"]}`, "Idempotency-Key: k1")

	got := l.want(t, 200, "GET", path, "")
	if got.text(t, "lastUsedTime") == "" || strings.Contains(string(got.body), strings.TrimPrefix(key, "alk_"+id+"_")) {
		t.Errorf("get: %s", got.body)
	}
	l.close()
	l = f.open(t)
	l.want(t, 200, "GET", "/v1/projections", "", bearer(key))
	if r := l.want(t, 200, "GET", "/v1/api-keys", ""); r.text(t, "apiKeys.0.keyId") != "admin" || r.text(t, "apiKeys.1.keyId") != id || r.member(t, "apiKeys.2") != nil {
		t.Errorf("list: %s", r.body)
	}

	// A change applies to the next request.
	r := l.want(t, 200, "PATCH", path, `{"scopes":["config:read"]}`, `If-Match: "0"`)
	if r.text(t, "scopes.0") != "config:read" || r.text(t, "name") != "reports" || r.header.Get("ETag") != `"1"` {
		t.Errorf("patched: %s", r.body)
	}
	l.refused(t, codeForbidden, "GET", "/v1/projections", "", bearer(key))
	l.want(t, 200, "GET", "/v1/roles", "", bearer(key))
	l.refused(t, domain.CodeStaleRevision, "PATCH", path, `{"name":"x"}`, `If-Match: "0"`)
	l.refused(t, domain.CodeInvalidRequest, "PATCH", path, `{"name":null}`)
	l.refused(t, domain.CodeInvalidRequest, "PATCH", path, `{"colour":"blue"}`)

	// So does a revocation.
	l.want(t, 200, "DELETE", path+"?dry_run=true", "")
	l.want(t, 204, "DELETE", path, "")
	l.refused(t, codeUnauthorized, "GET", "/v1/roles", "", bearer(key))
	for _, method := range []string{"GET", "DELETE"} {
		l.refused(t, domain.CodeAPIKeyNotFound, method, path, "")
	}
	l.refused(t, domain.CodeAPIKeyNotFound, "PATCH", path, `{"name":"x"}`)
	l.close()
	l = f.open(t)
	l.refused(t, codeUnauthorized, "GET", "/v1/roles", "", bearer(key))
	feed := l.want(t, 200, "GET", "/v1/events?types=API_KEY_*", "")
	for i, want := range []string{"API_KEY_CREATED", "API_KEY_UPDATED", "API_KEY_DELETED"} {
		if at := "events." + string(rune('0'+i)); feed.text(t, at+".type") != want || feed.text(t, at+".data.id") != id {
			t.Errorf("feed: %s", feed.body)
		}
	}
}

// TestAPIKeyRules tests the rules for keys and their scopes.
func TestAPIKeyRules(t *testing.T) {
	t.Parallel()
	c := newClock()
	l := start(t, func(conf *Config) { conf.Now = c.now })
	maker := bearer(l.want(t, 201, "POST", "/v1/api-keys", `{"name":"maker","scopes":["keys:write","keys:read","audit:read"]}`).text(t, "key"))
	for body, code := range map[string]domain.Code{
		`{"name":"x","scopes":["audit:read"]}`:                                            "",
		`{"name":"x","scopes":["accounts:read"]}`:                                         codeForbidden,
		`{"name":"x","scopes":["audit:read","ledger:admin"]}`:                             codeForbidden,
		`{"name":"x","scopes":["audit:all"]}`:                                             domain.CodeInvalidRequest,
		`{"name":"x","scopes":[]}`:                                                        domain.CodeInvalidRequest,
		`{"name":"","scopes":["audit:read"]}`:                                             domain.CodeInvalidRequest,
		`{"scopes":["audit:read"]}`:                                                       domain.CodeInvalidRequest,
		`{"name":"x","scopes":["audit:read"],"expiresTime":"2020-01-01T00:00:00Z"}`:       domain.CodeInvalidRequest,
		`{"name":"x","scopes":["audit:read"],"expiresTime":"tomorrow"}`:                   domain.CodeInvalidRequest,
		`{"name":"` + strings.Repeat("x", 256) + `","scopes":["audit:read"]}`:             domain.CodeInvalidRequest,
		`{"name":"x","scopes":["audit:read"],"key":"alk_mine_0000000000000000000000000"}`: domain.CodeInvalidRequest,
	} {
		if code == "" {
			l.want(t, 201, "POST", "/v1/api-keys", body, maker)
		} else {
			l.refused(t, code, "POST", "/v1/api-keys", body, maker)
		}
	}
	// A key cannot obtain more than its own scopes, not even by changing another key.
	strong := l.want(t, 201, "POST", "/v1/api-keys", `{"name":"strong","scopes":["accounts:read"]}`).header.Get("Location")
	l.refused(t, codeForbidden, "PATCH", strong, `{"expiresTime":"2100-01-01T00:00:00Z"}`, maker)
	l.want(t, 200, "PATCH", strong, `{"scopes":["audit:read"]}`, maker)
	for _, method := range []string{"PATCH", "DELETE"} {
		l.refused(t, domain.CodeSystemManaged, method, "/v1/api-keys/admin", map[string]string{"PATCH": `{"name":"x"}`}[method], maker)
	}
	if r := l.want(t, 200, "GET", "/v1/api-keys/admin", "", maker); r.member(t, "system") != true || r.text(t, "scopes.0") != "ledger:admin" {
		t.Errorf("admin key: %s", r.body)
	}
	l.refused(t, domain.CodeAPIKeyNotFound, "GET", "/v1/api-keys/nobody", "")

	// A key expires.
	end := c.now().Add(time.Hour).UTC().Format(time.RFC3339)
	r := l.want(t, 201, "POST", "/v1/api-keys", `{"name":"short","scopes":["audit:read"],"expiresTime":"`+end+`"}`)
	short := bearer(r.text(t, "key"))
	l.want(t, 200, "GET", "/v1/projections", "", short)
	c.pass(time.Hour)
	l.refused(t, codeUnauthorized, "GET", "/v1/projections", "", short)
	l.want(t, 200, "PATCH", r.header.Get("Location"), `{"expiresTime":null}`)
	l.want(t, 200, "GET", "/v1/projections", "", short)
}

// TestLastUse checks that the use of a key is recorded at most once an hour.
func TestLastUse(t *testing.T) {
	t.Parallel()
	c := newClock()
	l := start(t, func(conf *Config) { conf.Now = c.now })
	r := l.want(t, 201, "POST", "/v1/api-keys", `{"name":"x","scopes":["audit:read"]}`)
	path, key := r.header.Get("Location"), bearer(r.text(t, "key"))
	if r.text(t, "lastUsedTime") != "" {
		t.Errorf("lastUsedTime before the first use: %s", r.body)
	}
	lastUse := func() string { t.Helper(); return l.want(t, 200, "GET", path, "").text(t, "lastUsedTime") }
	use := func() { t.Helper(); l.want(t, 200, "GET", "/v1/projections", "", key) }
	use()
	first := lastUse()
	c.pass(useEvery / 2)
	if use(); first == "" || lastUse() != first {
		t.Errorf("recorded %q, then %q half an hour later", first, lastUse())
	}
	c.pass(useEvery / 2)
	if use(); lastUse() == first {
		t.Error("not recorded an hour later")
	}
}

// TestOtherProcess checks for how long a process accepts a key that another one
// has revoked.
func TestOtherProcess(t *testing.T) {
	t.Parallel()
	c := newClock()
	l := start(t, func(conf *Config) { conf.Now = c.now })
	other := l.Config
	other.Ledger = domain.NewLedger(domain.LedgerConfig{Log: l.Log, Codec: l.Codec, Census: l.Views.Census()})
	there := &ledger{Config: other, url: l.serve(t, other), client: l.client, admin: l.admin}
	r := l.want(t, 201, "POST", "/v1/api-keys", `{"name":"x","scopes":["audit:read"]}`)
	key := bearer(r.text(t, "key"))
	there.want(t, 200, "GET", "/v1/projections", "", key)
	l.want(t, 204, "DELETE", r.header.Get("Location"), "")
	l.refused(t, codeUnauthorized, "GET", "/v1/projections", "", key)
	c.pass(credentialTTL)
	there.refused(t, codeUnauthorized, "GET", "/v1/projections", "", key)
}
