package httpapi

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"accountledger/domain"
)

// TestProblems checks that every code has a problem and every problem a page.
func TestProblems(t *testing.T) {
	t.Parallel()
	l := start(t)
	codes := append([]domain.Code{}, domain.Codes...)
	file, err := parser.ParseFile(token.NewFileSet(), "problem.go", nil, 0)
	check(t, err)
	ast.Inspect(file, func(n ast.Node) bool {
		if spec, ok := n.(*ast.ValueSpec); ok && strings.HasPrefix(spec.Names[0].Name, "code") {
			code, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			check(t, err)
			codes = append(codes, domain.Code(code))
		}
		return true
	})
	if len(codes) != len(problemKinds) {
		t.Errorf("%d codes and %d problems", len(codes), len(problemKinds))
	}
	for _, code := range codes {
		kind, ok := problemKinds[code]
		if !ok || kind.status < 400 || kind.title == "" || kind.meaning == "" || kind.remedy == "" {
			t.Errorf("the problem of %s is not complete: %+v", code, kind)
		}
		r := l.want(t, 200, "GET", "/problems/"+string(code), "", "Authorization: ")
		if !strings.Contains(string(r.body), kind.title) || !strings.HasPrefix(r.header.Get("Content-Type"), "text/html") {
			t.Errorf("page of %s: %s", code, r.body)
		}
	}
	l.want(t, 200, "GET", "/problems", "")
	l.refused(t, codeNotFound, "GET", "/problems/no-such", "")
}

// TestStatuses pins the statuses that clients and black-box tests rely on.
func TestStatuses(t *testing.T) {
	t.Parallel()
	want := map[domain.Code]int{
		domain.CodeAccountNotFound: 404, domain.CodeAccountErased: 410, domain.CodeIdentityNotFound: 404, domain.CodeWebhookNotFound: 404,
		domain.CodeInvalidRequest: 422, domain.CodeIdempotencyKeyReused: 422,
		domain.CodeStatusSystemManaged: 400, domain.CodeInvalidStatusTransition: 400,
		domain.CodeIdentifierTaken: 409, domain.CodeIdentityConflict: 409, domain.CodeAccountExists: 409, domain.CodeIdentifierRequired: 409,
		domain.CodeStaleRevision: 412, codeUnauthorized: 401, codeForbidden: 403, codeNotFound: 404, codeMethodNotAllowed: 405,
		codeTimeout: 408, codeBodyTooLarge: 413, codeUnsupportedMediaType: 415, codeMalformedJSON: 400, codeInvalidParameter: 400,
		codeInvalidPrecondition: 400, codeInternal: 500, codeNotFresh: 503,
	}
	got := map[domain.Code]int{}
	for code := range want {
		got[code] = problemKinds[code].status
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("statuses (-want +got):\n%s", diff)
	}
}

func TestBodies(t *testing.T) {
	t.Parallel()
	l := start(t)
	const path = "/v1/accounts"
	deep := strings.Repeat("[", 100) + strings.Repeat("]", 100)
	for body, code := range map[string]domain.Code{
		``:                                     codeMalformedJSON,
		` `:                                    codeMalformedJSON,
		`{`:                                    codeMalformedJSON,
		`{"identities":[}`:                     codeMalformedJSON,
		`{} {}`:                                codeMalformedJSON,
		"{\"origin\":\"\xff\"}":                codeMalformedJSON,
		`{"origin":"\ud800"}`:                  codeMalformedJSON,
		`{"a":1,"a":1}`:                        codeMalformedJSON,
		`{'origin':1}`:                         codeMalformedJSON,
		`{"origin":"x","origin":"x"}`:          codeMalformedJSON,
		`{"customFields":{"a":{"b":1,"b":2}}}`: codeMalformedJSON,
		`{"customFields":{"a":` + deep + `}}`:  codeMalformedJSON,
		`null`:                                 domain.CodeInvalidRequest,
		`[]`:                                   domain.CodeInvalidRequest,
		`"x"`:                                  domain.CodeInvalidRequest,
		`1`:                                    domain.CodeInvalidRequest,
		`{}`:                                   domain.CodeInvalidRequest,
		`{"identities":null}`:                  domain.CodeInvalidRequest,
		`{"identities":{}}`:                    domain.CodeInvalidRequest,
		`{"identities":[null]}`:                domain.CodeInvalidRequest,
		`{"Identities":[]}`:                    domain.CodeInvalidRequest,
		`{"origin":7}`:                         domain.CodeInvalidRequest,
	} {
		l.refused(t, code, "POST", path, body, "Content-Type: application/json")
	}
	for _, path := range []string{"/v1/lookup", "/v1/webhooks"} {
		l.refused(t, domain.CodeInvalidRequest, "POST", path, `null`)
	}
	account := path + "/" + l.create(t, "ada@example.com")
	l.refused(t, domain.CodeInvalidRequest, "PATCH", account, `null`)
	l.refused(t, domain.CodeInvalidRequest, "PATCH", account+"/custom-fields", `null`)
	l.refused(t, domain.CodeInvalidRequest, "PATCH", account+"/custom-fields", `[1]`)
	l.refused(t, domain.CodeInvalidRequest, "PUT", account+"/status", `null`)

	r := l.refused(t, domain.CodeInvalidRequest, "POST", path,
		`{"colour":"blue","identities":[{"provider":1,"email":true,"shoe":{"size":44}},{"given_name":["Ada Lovelace"]}],"customFields":[]}`)
	var p problem
	check(t, json.Unmarshal(r.body, &p))
	got := map[string]string{}
	for _, f := range p.Errors {
		got[*f.Pointer] = f.Detail
	}
	want := map[string]string{"/colour": "unknown member", "/identities/0/provider": "must be a string", "/identities/0/email": "must be a string",
		"/identities/0/shoe": "unknown member", "/identities/1/given_name": "must be a string", "/customFields": "must be an object"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("faults (-want +got):\n%s", diff)
	}
	if strings.Contains(string(r.body), "Lovelace") {
		t.Errorf("the problem contains a value: %s", r.body)
	}
}

func TestBodySize(t *testing.T) {
	t.Parallel()
	l := start(t)
	fill := func(size int) string { return `{"colour":"` + strings.Repeat("x", size-13) + `"}` }
	l.refused(t, domain.CodeInvalidRequest, "POST", "/v1/accounts", fill(maxBody))
	l.refused(t, codeBodyTooLarge, "POST", "/v1/accounts", fill(maxBody+1))
	l.refused(t, codeBodyTooLarge, "POST", "/v1/accounts", fill(3*maxBody))
}

func TestMediaTypes(t *testing.T) {
	t.Parallel()
	l := start(t)
	for i, tt := range []struct {
		contentType string
		ok          bool
	}{
		{"application/json", true}, {"application/json; charset=utf-8", true}, {"application/json;charset=UTF-8", true}, {"Application/JSON", true}, {"", true},
		{"application/json; charset=latin1", false}, {"text/plain", false}, {"application/x-www-form-urlencoded", false}, {"application/xml", false},
		{"multipart/form-data; boundary=x", false}, {"application/json, text/plain", false}, {"garbage", false},
	} {
		request, err := http.NewRequest("POST", l.url+"/v1/accounts", strings.NewReader(account(fmt.Sprintf("a%d@example.com", i))))
		check(t, err)
		request.Header.Set("Authorization", "Bearer "+l.admin)
		if tt.contentType != "" {
			request.Header.Set("Content-Type", tt.contentType)
		}
		res, err := http.DefaultClient.Do(request)
		check(t, err)
		res.Body.Close()
		if want := map[bool]int{true: 201, false: 415}[tt.ok]; res.StatusCode != want {
			t.Errorf("Content-Type %q = %d, want %d", tt.contentType, res.StatusCode, want)
		}
	}
}

func TestRouter(t *testing.T) {
	t.Parallel()
	l := start(t)
	for _, path := range []string{"/", "/v1", "/v2/accounts", "/v1/accounts/x/y", "/v1/../etc/passwd", "/favicon.ico", "/docs/../server.go"} {
		l.refused(t, codeNotFound, "GET", path, "")
	}
	r := l.refused(t, codeMethodNotAllowed, "DELETE", "/v1/lookup", "")
	if got := r.header.Get("Allow"); !strings.Contains(got, "POST") {
		t.Errorf("Allow = %q", got)
	}
	l.refused(t, codeMethodNotAllowed, "PUT", "/v1/accounts", `{}`)
	l.refused(t, codeMethodNotAllowed, "BREW", "/v1/accounts", "")
	l.refused(t, codeMethodNotAllowed, "POST", "/healthz", "")
	l.refused(t, codeInvalidParameter, "GET", "/v1/events?limit=%zz", "")

	id := uuid.NewString()
	if got := l.send(t, "GET", "/healthz", "", "X-Request-Id: "+id).header.Get("X-Request-Id"); got != id {
		t.Errorf("X-Request-Id = %q, want the caller's %q", got, id)
	}
	if got := l.send(t, "GET", "/healthz", "", "X-Request-Id: ada@example.com").header.Get("X-Request-Id"); uuid.Validate(got) != nil {
		t.Errorf("X-Request-Id = %q, want a new UUID", got)
	}
}

func TestPages(t *testing.T) {
	t.Parallel()
	l := start(t)
	for path, want := range map[string]string{"/healthz": `{"status":"ok"}`, "/readyz": `{"status":"ready"}`, "/docs": "/docs/docs.js",
		"/docs/docs.js": "openapi.json", "/docs/style.css": "font"} {
		r := l.want(t, 200, "GET", path, "", "Authorization: ")
		if !strings.Contains(string(r.body), want) {
			t.Errorf("%s does not have %q: %s", path, want, r.body)
		}
		if strings.Contains(string(r.body), "://") {
			t.Errorf("%s refers to another server: %s", path, r.body)
		}
	}
}

// TestAccess tries every operation of the document without a key, with invalid
// keys, and with a key that has every scope but the required one.
func TestAccess(t *testing.T) {
	t.Parallel()
	refusals := map[string]int{}
	var mu sync.Mutex
	l := start(t, func(c *Config) {
		c.Refused = func(reason string) { mu.Lock(); refusals[reason]++; mu.Unlock() }
	})
	var all []scope
	for _, row := range scopeTable {
		if row.scope != scopeAdmin {
			all = append(all, row.scope)
		}
	}
	without := map[string]string{}
	for i, s := range all {
		others := append(append([]scope{}, all[:i]...), all[i+1:]...)
		without[string(s)] = l.key(t, string(rune('a'+i))+"-other", others...)
	}
	var document struct {
		Paths map[string]map[string]struct {
			Security []map[string][]string `json:"security"`
		} `json:"paths"`
	}
	check(t, json.Unmarshal(l.want(t, 200, "GET", "/openapi.json", "").body, &document))
	operations := 0
	for path, item := range document.Paths {
		for method, op := range item {
			operations++
			method, path := strings.ToUpper(method), strings.NewReplacer("{", "", "}", "").Replace(path)
			r := l.refused(t, codeUnauthorized, method, path, "", "Authorization: ")
			if got := r.header.Get("WWW-Authenticate"); got != `Bearer realm="accountledger"` {
				t.Errorf("WWW-Authenticate = %q", got)
			}
			need := op.Security[0][securityScheme][0]
			r = l.refused(t, codeForbidden, method, path, "", "Authorization: Bearer "+without[need])
			if !strings.Contains(r.text(t, "detail"), need) || !strings.Contains(r.header.Get("WWW-Authenticate"), `scope="`+need+`"`) {
				t.Errorf("%s %s does not name %s: %s", method, path, need, r.body)
			}
		}
	}
	if operations < 19 {
		t.Errorf("only %d operations", operations)
	}
	secret := l.admin[len("alk_admin_"):]
	for _, authorization := range []string{
		"Bearer", "Bearer ", "Bearer x", "Basic " + l.admin, l.admin, "Bearer " + l.admin + "x", "Bearer " + l.admin[:len(l.admin)-1],
		"Bearer alk_nobody_" + secret, "Bearer alk_Admin_" + secret, "Bearer alk__" + secret, "Bearer alk_admin_" + strings.Repeat("A", 43),
		"Bearer alk_../admin_" + secret, "Bearer alk_" + strings.Repeat("a", 40) + "_" + secret, "Bearer  " + l.admin,
	} {
		l.refused(t, codeUnauthorized, "GET", "/v1/projections", "", "Authorization: "+authorization)
	}
	l.want(t, 200, "GET", "/v1/projections", "", "Authorization: bearer "+l.admin)
	mu.Lock()
	defer mu.Unlock()
	for reason, n := range map[string]int{refusedNoKey: operations + 9, refusedUnknown: 1, refusedSecret: 1, refusedScope: operations} {
		if refusals[reason] < n {
			t.Errorf("%d refusals for %s, want at least %d", refusals[reason], reason, n)
		}
	}
	for reason := range refusals {
		if !slices.Contains(Refusals, reason) {
			t.Errorf("a refusal for %q, which is not in Refusals", reason)
		}
	}
}

// TestMetrics checks that /metrics requires its scope, and that requests are
// observed with the pattern of their route.
func TestMetrics(t *testing.T) {
	t.Parallel()
	l := start(t)
	l.refused(t, codeNotFound, "GET", "/metrics", "")

	answered := make(chan Answered, 64)
	l = start(t, func(c *Config) {
		c.Metrics = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "figures") })
		c.Observe = func(a Answered) { answered <- a }
	})
	watcher := l.key(t, "watcher", scopeMetricsRead)
	if r := l.want(t, 200, "GET", "/metrics", "", bearer(watcher)); string(r.body) != "figures" {
		t.Errorf("/metrics is answered with %s", r.body)
	}
	l.refused(t, codeUnauthorized, "GET", "/metrics", "", "Authorization: ")
	l.refused(t, codeForbidden, "GET", "/metrics", "", bearer(l.key(t, "reader", scopeAccountsRead)))
	l.refused(t, codeForbidden, "GET", "/v1/projections", "", bearer(watcher))
	sub := l.create(t, "ada@example.com")
	l.want(t, 200, "GET", "/v1/accounts/"+sub, "")
	l.refused(t, codeNotFound, "GET", "/v1/nowhere/"+sub, "")
	l.refused(t, codeNotFound, "GET", "/"+sub, "")
	l.refused(t, codeMethodNotAllowed, "DELETE", "/v1/accounts", "")
	want := []Answered{{"GET", "/openapi.json", 200, 0}, {"GET", "/metrics", 200, 0}, {"GET", "/metrics", 401, 0}, {"GET", "/metrics", 403, 0}, {"GET", "/v1/projections", 403, 0},
		{"POST", "/v1/accounts", 201, 0}, {"GET", "/v1/accounts/:sub", 200, 0}, {"GET", "", 404, 0}, {"GET", "", 404, 0}, {"DELETE", "/v1/accounts", 405, 0}}
	counts := map[Answered]int{} // Observe may be called after the client's next request
	for _, w := range want {
		counts[w]++
		a := <-answered
		if a.Duration < 0 || a.Duration > time.Minute {
			t.Errorf("%s %s took %v", a.Method, a.Route, a.Duration)
		}
		a.Duration = 0
		counts[a]--
	}
	for a, n := range counts {
		if n != 0 {
			t.Errorf("%+v: %d are missing", a, n)
		}
	}
}

func TestCredentialIsForgotten(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	now := time.Now()
	clock := func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	l := start(t, func(c *Config) { c.Now = clock })
	key := "Authorization: Bearer " + l.key(t, "guest", scopeAuditRead)
	l.want(t, 200, "GET", "/v1/projections", "", key)
	check(t, l.Keys.DeleteSecret(t.Context(), credentialName("guest")))
	mu.Lock()
	now = now.Add(credentialTTL)
	mu.Unlock()
	l.refused(t, codeUnauthorized, "GET", "/v1/projections", "", key)
}

func TestBootstrap(t *testing.T) {
	t.Parallel()
	l := start(t)
	path := filepath.Join(t.TempDir(), "admin.key")
	check(t, Bootstrap(t.Context(), l.Keys, path))
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("a second start created another key: %v", err)
	}
	l.want(t, 200, "GET", "/v1/projections", "")
	check(t, NewAdminKey(t.Context(), l.Keys, path))
	info, err := os.Stat(path)
	check(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, want 0600", info.Mode())
	}
	key, err := os.ReadFile(path)
	check(t, err)
	again := &ledger{Config: l.Config, url: l.serve(t, l.Config), client: l.client}
	again.admin = strings.TrimSpace(string(key))
	again.want(t, 200, "GET", "/v1/projections", "")
	again.admin = l.admin
	again.refused(t, codeUnauthorized, "GET", "/v1/projections", "")
	check(t, os.Remove(path))
	check(t, os.Mkdir(path, 0o700))
	if err := NewAdminKey(t.Context(), l.Keys, path); err == nil {
		t.Error("a key was written over a directory")
	}
	l2 := &ledger{Config: l.Config, url: l.serve(t, l.Config), client: l.client, admin: strings.TrimSpace(string(key))}
	l2.want(t, 200, "GET", "/v1/projections", "")
}

// TestFailures makes a handler panic and closes the log: the caller gets a
// request id and nothing else.
func TestFailures(t *testing.T) {
	t.Parallel()
	l := start(t)
	var mu sync.Mutex
	var logged bytes.Buffer
	c := l.Config
	c.Ledger, c.Views = nil, nil
	c.Logger = slog.New(slog.NewTextHandler(lockedWriter{&mu, &logged}, nil))
	broken := &ledger{Config: c, url: l.serve(t, c), admin: l.admin, client: l.client}
	for range 2 { // the connection and the server survive
		r := broken.refused(t, codeInternal, "POST", "/v1/accounts", ada)
		mu.Lock()
		text := logged.String()
		mu.Unlock()
		if strings.Contains(string(r.body), "nil") || !strings.Contains(text, r.text(t, "requestId")) || !strings.Contains(text, "nil pointer") {
			t.Errorf("panic: %s\n%s", r.body, text)
		}
	}
	f := newFiles(t)
	gone := f.open(t)
	client := gone.client
	c = gone.Config
	gone.want(t, 200, "GET", "/v1/projections", "")
	url := l.serve(t, c)
	check(t, c.Log.Close())
	closed := &ledger{Config: c, url: url, admin: gone.admin, client: client}
	closed.refused(t, codeUnavailable, "POST", "/v1/accounts", ada)
	closed.refused(t, codeUnavailable, "GET", "/v1/events", "")
	closed.refused(t, codeUnavailable, "GET", "/readyz", "")
	gone.close()
}

// TestNothingPersonalInTheLog checks that the API's debug log contains what it
// should, and neither personal data nor secrets.
func TestNothingPersonalInTheLog(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var logged bytes.Buffer
	l := start(t, func(c *Config) {
		c.Logger = slog.New(slog.NewTextHandler(lockedWriter{&mu, &logged}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	path := l.want(t, 201, "POST", "/v1/accounts", ada, "Idempotency-Key: ada@example.com").header.Get("Location")
	l.want(t, 200, "GET", path, "")
	l.want(t, 200, "POST", "/v1/lookup", `{"identifier":"ada@example.com"}`)
	l.refused(t, domain.CodeIdentifierTaken, "POST", "/v1/accounts", ada)
	l.refused(t, domain.CodeInvalidRequest, "PATCH", path, `{"identity":{"email":"Ada Lovelace"}}`)
	l.refused(t, codeNotFound, "GET", "/ada@example.com?email=ada@example.com", "")
	l.refused(t, codeInvalidParameter, "GET", "/v1/accounts/ada@example.com?email=ada@example.com", "")
	l.refused(t, codeUnauthorized, "GET", path, "", "Authorization: Bearer "+l.admin+"x", "X-Request-Id: ada@example.com")
	mu.Lock()
	defer mu.Unlock()
	text := logged.String()
	for _, secret := range []string{"ada@", "Lovelace", "12345", l.admin[len("alk_admin_"):], path} {
		if strings.Contains(text, secret) {
			t.Errorf("the log contains %q:\n%s", secret, text)
		}
	}
	for _, want := range []string{"method=POST route=/v1/accounts status=201", "route=/v1/accounts/:sub status=200", "actor=admin", `msg="access refused" reason=no-key`} {
		if !strings.Contains(text, want) {
			t.Errorf("the log does not contain %q:\n%s", want, text)
		}
	}
}

type lockedWriter struct {
	mu *sync.Mutex
	w  *bytes.Buffer
}

func (l lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// TestConformance checks that conformance, which all other tests rely on, finds errors.
func TestConformance(t *testing.T) {
	t.Parallel()
	l := start(t)
	sub := l.create(t, "ada@example.com")
	judge := l.client.Transport.(*conformance)
	request, err := http.NewRequest("GET", l.url+"/v1/accounts/"+sub, nil)
	check(t, err)
	good := l.want(t, 200, "GET", "/v1/accounts/"+sub, "")
	res := &http.Response{StatusCode: 200, Header: good.header}
	if err := judge.check(request, nil, res, good.body); err != nil {
		t.Errorf("a valid response: %v", err)
	}
	for _, change := range [][2]string{{`"sub":`, `"sob":`}, {`"VERIFIED"`, `"HAPPY"`}, {`"revision":0`, `"revision":"0"`}, {`"identities":[`, `"shoes":1,"identities":[`}} {
		bad := strings.Replace(string(good.body), change[0], change[1], 1)
		if err := judge.check(request, nil, res, []byte(bad)); err == nil {
			t.Errorf("a response with %s instead of %s passes", change[1], change[0])
		}
	}
	res.StatusCode = 299
	if err := judge.check(request, nil, res, good.body); err == nil {
		t.Error("a status that is not in the document passes")
	}
}

// TestNumbers checks which numbers a body may contain: those that every reader
// of the ledger's events can represent.
func TestNumbers(t *testing.T) {
	t.Parallel()
	l := start(t)
	path := "/v1/accounts/" + l.create(t, "ada@example.com") + "/custom-fields"
	for number, ok := range map[string]bool{
		"0": true, "-1": true, "1e308": true, "1E-400": true, "123456789012345678901234567890": true, "0.1e-5": true,
		"1e309": false, "-1e999": false, "1E+99999": false, strings.Repeat("9", 400): false, "01": false, "1e": false, "0x10": false, "NaN": false, "+1": false,
	} {
		body := `{"n":` + number + `,"text":"1e999 and \"1e999"}`
		if r := l.send(t, "PATCH", path, body); (r.status == 200) != ok || !ok && r.status != 400 {
			t.Errorf("%s: %d %s", number, r.status, r.body)
		}
	}
	for _, body := range []string{`{"kind":"deletion","dueTime":"2100-01-01T00:00:00Z","reminderNo":1e3}`, `{"kind":"deletion","dueTime":"2100-01-01T00:00:00Z","reminderNo":1.5}`,
		`{"kind":"deletion","dueTime":"2100-01-01T00:00:00Z","reminderNo":99999999999999999999}`, `{"kind":"deletion","dueTime":"soon"}`} {
		l.refused(t, domain.CodeInvalidRequest, "POST", strings.TrimSuffix(path, "/custom-fields")+"/schedules", body)
	}
}

// TestProblemsForMachines reads the catalogue of problems as JSON.
func TestProblemsForMachines(t *testing.T) {
	t.Parallel()
	l := start(t)
	r := l.want(t, 200, "GET", "/problems", "", "Accept: application/json", "Authorization: ")
	var list problemEntries
	check(t, json.Unmarshal(r.body, &list))
	if len(list.Problems) != len(problemKinds) || r.header.Get("Content-Type") != "application/json" {
		t.Errorf("%d problems of %d: %v", len(list.Problems), len(problemKinds), r.header)
	}
	for _, p := range list.Problems {
		one := l.want(t, 200, "GET", p.Type, "", "Accept: application/problem+json, application/json")
		var again problemEntry
		check(t, json.Unmarshal(one.body, &again))
		if again != p {
			t.Errorf("%s alone: %+v, in the list: %+v", p.Type, again, p)
		}
	}
	if r := l.want(t, 200, "GET", "/problems/not-found", "", "Accept: text/html,application/xhtml+xml,application/json;q=0.9"); !strings.Contains(r.header.Get("Content-Type"), "html") {
		t.Errorf("a browser gets %v", r.header)
	}
}
