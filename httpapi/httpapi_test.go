package httpapi

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	gocmp "github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"golang.org/x/mod/sumdb/note"

	"accountledger/domain"
	"accountledger/eventstore/seal"
	"accountledger/eventstore/sqlite"
	"accountledger/projections"
	"accountledger/projections/erasure"
	"accountledger/projections/scheduler"
	"accountledger/projections/webhooks"
)

var update = flag.Bool("update", false, "rewrite golden files")

// ledger is a complete ledger in a directory, served over loopback.
type ledger struct {
	Config
	url   string
	admin string // the admin key

	client *http.Client // checks every exchange against the served document
	close  func()
}

// files are the files of a ledger, which can be closed and reopened.
type files struct {
	dir    string
	master seal.Master
	signer note.Signer
}

func newFiles(t testing.TB) files {
	t.Helper()
	private, _, err := note.GenerateKey(rand.Reader, "ledger.test/log")
	check(t, err)
	signer, err := note.NewSigner(private)
	check(t, err)
	return files{t.TempDir(), seal.NewMaster(), signer}
}

// start opens a new ledger and closes it with the test.
func start(t testing.TB, changes ...func(*Config)) *ledger {
	t.Helper()
	l := newFiles(t).open(t, changes...)
	t.Cleanup(l.close)
	return l
}

// open opens the ledger in f and runs its followers. Its close stops it, and may
// be called more than once.
func (f files) open(t testing.TB, changes ...func(*Config)) *ledger {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	logger := slog.New(slog.DiscardHandler)
	keys, err := seal.Open(ctx, seal.Config{Path: filepath.Join(f.dir, "keys.db"), Master: f.master})
	check(t, err)
	log, err := sqlite.Open(ctx, sqlite.Config{Dir: f.dir, Signer: f.signer, Vouch: keys.Vouch})
	check(t, err)
	codec := domain.Codec{Keys: keys}
	views, err := projections.Open(ctx, projections.Config{Path: filepath.Join(f.dir, "views.db"), Log: log, Codec: codec, Logger: logger})
	check(t, err)
	accounts := domain.NewLedger(domain.LedgerConfig{Log: log, Codec: codec, Census: views.Census()})
	hooks, err := webhooks.Open(ctx, webhooks.Config{Path: filepath.Join(f.dir, "delivery.db"), Log: log, Codec: codec, Ledger: accounts,
		Keys: keys, Logger: logger, Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	check(t, err)
	check(t, Bootstrap(ctx, keys, filepath.Join(f.dir, "admin.key")))
	admin, err := os.ReadFile(filepath.Join(f.dir, "admin.key"))
	check(t, err)

	eraser := erasure.New(erasure.Config{Ledger: accounts, Log: log, Keys: keys, Views: views, Webhooks: hooks, Logger: logger})
	var running sync.WaitGroup
	l := &ledger{admin: strings.TrimSpace(string(admin)), Config: Config{
		Ledger: accounts, Views: views, Webhooks: hooks, Log: log, Codec: codec, Keys: keys, Erasure: eraser, Logger: logger, Version: "test",
		ImportDir: filepath.Join(f.dir, "imports"), MappingDir: "../testdata/imports",
		Background: func(work func(context.Context)) { running.Go(func() { work(ctx) }) },
	}}
	for _, change := range changes {
		change(&l.Config)
	}
	running.Go(func() { views.Run(ctx) })
	running.Go(func() { hooks.Run(ctx) })
	running.Go(func() { eraser.Run(ctx) })
	running.Go(func() { scheduler.New(scheduler.Config{Ledger: accounts, Views: views}).Run(ctx) })
	server := httptest.NewServer(New(l.Config))
	l.url = server.URL
	l.client = &http.Client{Transport: newConformance(t, l.url)}
	l.close = sync.OnceFunc(func() {
		server.Close()
		cancel()
		running.Wait()
		for _, c := range []io.Closer{hooks, views, log, keys} {
			if err := c.Close(); err != nil {
				t.Errorf("close %T: %v", c, err)
			}
		}
	})
	return l
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// response is a response whose body has been read.
type response struct {
	status int
	header http.Header
	body   []byte
}

// member returns the member at a path such as "identities.0.email" or "code",
// nil if there is none.
func (r response) member(t testing.TB, path string) any {
	t.Helper()
	var v any
	if err := json.Unmarshal(r.body, &v); err != nil {
		t.Fatalf("body %q: %v", r.body, err)
	}
	for name := range strings.SplitSeq(path, ".") {
		switch at := v.(type) {
		case map[string]any:
			v = at[name]
		case []any:
			i := int(name[0] - '0')
			if i >= len(at) {
				return nil
			}
			v = at[i]
		default:
			return nil
		}
	}
	return v
}

func (r response) text(t testing.TB, path string) string {
	t.Helper()
	s, _ := r.member(t, path).(string)
	return s
}

// send sends a request as the admin. Headers are "Name: value".
func (l *ledger) send(t testing.TB, method, path, body string, headers ...string) response {
	t.Helper()
	r, err := l.try(method, path, body, headers...)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return r
}

func (l *ledger) try(method, path, body string, headers ...string) (response, error) {
	var reader io.Reader
	if body != "" {
		reader = strings.NewReader(body)
	}
	request, err := http.NewRequest(method, l.url+path, reader)
	if err != nil {
		return response{}, err
	}
	request.Header.Set("Authorization", "Bearer "+l.admin)
	if body != "" {
		request.Header.Set("Content-Type", "application/json")
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		if request.Header.Del(name); value != "" {
			request.Header.Set(name, value)
		}
	}
	res, err := l.client.Do(request)
	if err != nil {
		return response{}, err
	}
	defer res.Body.Close()
	content, err := io.ReadAll(res.Body)
	return response{res.StatusCode, res.Header, content}, err
}

// want sends a request and fails unless the response has the status.
func (l *ledger) want(t testing.TB, status int, method, path, body string, headers ...string) response {
	t.Helper()
	r := l.send(t, method, path, body, headers...)
	if r.status != status {
		t.Fatalf("%s %s = %d, want %d; body %s", method, path, r.status, status, r.body)
	}
	return r
}

// refused sends a request and fails unless it is refused with code.
func (l *ledger) refused(t testing.TB, code domain.Code, method, path, body string, headers ...string) response {
	t.Helper()
	r := l.want(t, problemKinds[code].status, method, path, body, headers...)
	if got := r.text(t, "code"); got != string(code) {
		t.Errorf("%s %s: code = %q, want %q; body %s", method, path, got, code, r.body)
	}
	return r
}

// create creates an account with an e-mail address and returns its sub.
func (l *ledger) create(t testing.TB, email string) string {
	t.Helper()
	return l.want(t, 201, "POST", "/v1/accounts", account(email)).text(t, "sub")
}

func account(email string) string {
	return `{"origin":"created","identities":[{"provider":"self","given_name":"Ada","email":"` + email + `"}]}`
}

// conformance is a transport that validates every exchange against the OpenAPI
// document that the server serves, and every error response against RFC 9457.
type conformance struct {
	next http.RoundTripper
	*contract
}

// contract validates exchanges against an OpenAPI document.
type contract struct {
	router   routers.Router
	compiler *jsonschema.Compiler
	mu       sync.Mutex
	schemas  map[string]*jsonschema.Schema // by JSON pointer into the document
}

// contracts are shared by all tests: compiling a body's schema takes a while,
// and kin-openapi would repeat it for every exchange.
var contracts sync.Map

func newConformance(t testing.TB, url string) *conformance {
	t.Helper()
	next := http.DefaultTransport.(*http.Transport).Clone()
	next.MaxIdleConnsPerHost = 128
	t.Cleanup(next.CloseIdleConnections)
	res, err := (&http.Client{Transport: next}).Get(url + "/openapi.json")
	check(t, err)
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	check(t, err)
	if known, ok := contracts.Load(string(data)); ok {
		return &conformance{next, known.(*contract)}
	}
	document, err := openapi3.NewLoader().LoadFromData(data)
	check(t, err)
	router, err := gorillamux.NewRouter(document)
	check(t, err)
	root, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	check(t, err)
	c := &contract{router: router, compiler: jsonschema.NewCompiler(), schemas: map[string]*jsonschema.Schema{}}
	c.compiler.AssertFormat()
	check(t, c.compiler.AddResource("openapi.json", root))
	contracts.Store(string(data), c)
	return &conformance{next, c}
}

// body validates a body against the schema at a place in the document.
func (c *contract) body(place []string, body []byte) error {
	pointer := "#"
	for _, token := range place {
		pointer += "/" + strings.NewReplacer("~", "~0", "/", "~1", "{", "%7B", "}", "%7D").Replace(token)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	schema, ok := c.schemas[pointer]
	if !ok {
		var err error
		if schema, err = c.compiler.Compile("openapi.json" + pointer); err != nil {
			return err
		}
		c.schemas[pointer] = schema
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil {
		return err
	}
	return schema.Validate(value)
}

func (c *conformance) RoundTrip(r *http.Request) (*http.Response, error) {
	var sent []byte
	if r.Body != nil {
		var err error
		if sent, err = io.ReadAll(r.Body); err != nil {
			return nil, err
		}
		r.Body = io.NopCloser(bytes.NewReader(sent))
	}
	res, err := c.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	got, err := io.ReadAll(res.Body)
	res.Body.Close()
	if err != nil {
		return nil, err
	}
	res.Body = io.NopCloser(bytes.NewReader(got))
	if err := c.check(r, sent, res, got); err != nil {
		return nil, err
	}
	return res, nil
}

func (c *conformance) check(r *http.Request, sent []byte, res *http.Response, got []byte) error {
	if res.StatusCode >= 400 && r.Method != http.MethodHead {
		if err := checkProblem(res, got); err != nil {
			return err
		}
	}
	again := r.Clone(r.Context())
	again.Body = io.NopCloser(bytes.NewReader(sent))
	route, params, err := c.router.FindRoute(again)
	if err != nil {
		return nil // not in the document: a page, or an unknown path
	}
	options := &openapi3filter.Options{IncludeResponseStatus: true, AuthenticationFunc: openapi3filter.NoopAuthenticationFunc,
		ExcludeRequestBody: true, ExcludeResponseBody: true}
	request := &openapi3filter.RequestValidationInput{Request: again, PathParams: params, Route: route, Options: options}
	operation := []string{"paths", route.Path, strings.ToLower(route.Method)}
	if res.StatusCode < 400 {
		err := openapi3filter.ValidateRequest(r.Context(), request)
		if route.Operation.RequestBody != nil && err == nil && route.Operation.OperationID != "importAccounts" { // whose body consists of rows
			mediaType, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
			place := append(operation, "requestBody", "content", cmp.Or(mediaType, "application/json"), "schema")
			if err = c.body(place, sent); err != nil && c.body(place, withoutNulls(sent)) == nil {
				err = nil // the API treats nulls as absent
			}
		}
		if err != nil {
			return fmt.Errorf("an accepted request does not conform to the document: %w", err)
		}
	}
	err = openapi3filter.ValidateResponse(r.Context(), &openapi3filter.ResponseValidationInput{
		RequestValidationInput: request, Status: res.StatusCode, Header: res.Header, Options: options})
	contentType := res.Header.Get("Content-Type")
	if len(got) > 0 && err == nil && strings.HasSuffix(contentType, "json") && !strings.HasSuffix(contentType, "ndjson") {
		err = c.body(append(operation, "responses", strconv.Itoa(res.StatusCode), "content", contentType, "schema"), got)
	}
	if route.Operation.OperationID == "getEvents" && err == nil {
		err = checkFeed(got)
	}
	if err != nil {
		return fmt.Errorf("the response does not conform to the document: %w", err)
	}
	return nil
}

// withoutNulls removes members that are null or an empty string.
func withoutNulls(document []byte) []byte {
	var v any
	if json.Unmarshal(document, &v) != nil {
		return nil
	}
	var clean func(v any)
	clean = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			maps.DeleteFunc(v, func(_ string, member any) bool { return member == nil || member == "" })
			for _, member := range v {
				clean(member)
			}
		case []any:
			for _, element := range v {
				clean(element)
			}
		}
	}
	clean(v)
	cleaned, err := json.Marshal(v)
	if err != nil {
		return nil
	}
	return cleaned
}

// checkFeed validates the events of a page of the feed against their schemas.
func checkFeed(page []byte) error {
	var f struct {
		Events []jsontext.Value `json:"events"`
	}
	if err := json.Unmarshal(page, &f); err != nil {
		return err
	}
	for _, e := range f.Events {
		if err := checkEvent(e); err != nil {
			return err
		}
	}
	return nil
}

func checkProblem(res *http.Response, got []byte) error {
	var p problem
	if err := json.Unmarshal(got, &p, json.RejectUnknownMembers(true)); err != nil {
		return errors.Join(errors.New("an error response is not a problem: "+string(got)), err)
	}
	want := problem{Type: "/problems/" + string(p.Code), Title: problemKinds[p.Code].title, Status: res.StatusCode, Code: p.Code,
		RequestID: res.Header.Get("X-Request-Id"), Instance: "urn:uuid:" + res.Header.Get("X-Request-Id")}
	p.Detail, p.Errors, p.Erased, p.Position, p.Fork, p.Next, p.Merge = "", nil, want.Erased, nil, nil, "", nil
	if diff := gocmp.Diff(want, p, gocmp.AllowUnexported(problem{})); diff != "" {
		return errors.New("problem (-want +got):\n" + diff)
	}
	if ct := res.Header.Get("Content-Type"); ct != problemType {
		return errors.New("a problem has the Content-Type " + ct)
	}
	return nil
}

// position returns the Ledger-Position of a response.
func (r response) position() string { return r.header.Get("Ledger-Position") }

// key creates an API key with these scopes.
func (l *ledger) key(t testing.TB, id string, scopes ...scope) string {
	t.Helper()
	secret := strings.Repeat(string(id[0]), 43)
	hash := sha256.Sum256([]byte(secret))
	data, err := json.Marshal(credential{Hash: hash[:], Scopes: scopes})
	check(t, err)
	check(t, l.Keys.PutSecret(t.Context(), credentialName(id), data))
	return keyPrefix + id + "_" + secret
}

// serve serves another API over the same ledger.
func (l *ledger) serve(t testing.TB, c Config) string { return serveHandler(t, New(c)) }

func serveHandler(t testing.TB, h http.Handler) string {
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return server.URL
}

// idleViews returns views of the log in another file that are not running.
func (l *ledger) idleViews(t testing.TB) *projections.Views {
	t.Helper()
	views, err := projections.Open(t.Context(), projections.Config{Path: filepath.Join(t.TempDir(), "views.db"), Log: l.Log, Codec: l.Codec})
	check(t, err)
	t.Cleanup(func() { views.Close() })
	return views
}

// runViews runs views until the test ends.
func (l *ledger) runViews(t testing.TB, views *projections.Views) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { views.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
}
