// Package httpapi is the HTTP API: it turns requests into commands and queries,
// and their results into responses. Echo routes, huma binds parameters and
// describes the resources in OpenAPI 3.1; handlers see neither.
//
// Each resource has one file with its routes, inputs and handlers; routes.go
// lists the groups of routes. command.go holds what all commands share,
// query.go what all queries share.
package httpapi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humaecho"
	"github.com/go-json-experiment/json"
	"github.com/google/uuid"
	"github.com/labstack/echo/v4"
	"github.com/labstack/echo/v4/middleware"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/eventstore/seal"
	"accountledger/projections"
	"accountledger/projections/erasure"
	"accountledger/projections/webhooks"
)

// Config configures the API.
type Config struct {
	Ledger   *domain.Ledger     // executes the commands
	Views    *projections.Views // answer the queries; the caller of New runs them
	Webhooks *webhooks.Webhooks // manages the webhooks; the caller of New runs it
	Log      eventstore.Store   // source of the feed
	Codec    domain.Codec       // decodes the events of Log
	Keys     *seal.Keys         // stores the credentials, see Bootstrap
	Erasure  *erasure.Eraser    // completes erasures; the caller of New runs it

	Logger  *slog.Logger // default: discards
	Version string       // of this program, shown in the OpenAPI document; default "dev"

	// RegisteredStatus is the initial status of a registered account whose
	// request does not state one. Default PENDING.
	RegisteredStatus domain.Status

	// AwaitTimeout is how long a write waits for the account view to apply it,
	// so that callers read their own writes. When it expires the write still
	// succeeds, and Ledger-Lag says how far the view is behind. Default 5 s.
	AwaitTimeout time.Duration

	// Background runs work that outlives its request, with a context that ends
	// when the server stops. Default: requests for such work are refused.
	Background func(work func(context.Context))

	// DeletionGrace is how long a deleted account can be restored if the
	// request does not state a grace period; default 48 hours.
	DeletionGrace time.Duration

	// Closing is done when the server begins to shut down. Streams and long
	// polls then end, so that the shutdown does not wait for them. Default: never.
	Closing context.Context

	// ImportDir stores the state and the results of imports, but no imported
	// data. Default: imports are refused.
	ImportDir string
	// MappingDir holds the mapping files, <name>.yaml, that imports can name.
	MappingDir string
	// ImportLimit is the maximum size of one import in bytes; default 16 GiB.
	ImportLimit int64

	Issuer Issuer // issues bearer tokens; default: none are accepted

	RateLimit        int            // average requests per second and caller; default unlimited
	AddressRateLimit int            // average requests per second and address without a valid key; default unlimited
	TrustedProxies   []netip.Prefix // proxies whose X-Forwarded-For header is used; default none
	CORSOrigins      []string       // origins whose pages may call this API from a browser, * for all; default none

	// Metrics answers /metrics for callers with the scope metrics:read. Default:
	// /metrics does not exist.
	Metrics http.Handler
	// Observe is called for each answered request, on the goroutine that
	// answered it, and must not block. Default: not called.
	Observe func(Answered)
	// Trace is called for each request whose caller was admitted, except
	// streams and transfers of unlimited length. It returns the context for the
	// request, the traceparent recorded in its events ("" for none), and a
	// function called like Observe when the request has been answered. Default:
	// not called.
	Trace func(context.Context, Admitted) (_ context.Context, traceparent string, end func(Answered))
	// Refused is called for each refused access with the reason, one of
	// Refusals. It must not block. Default: not called.
	Refused func(reason string)

	Heartbeat time.Duration    // interval of heartbeats in streams; default 15 s
	Now       func() time.Time // default time.Now
}

// Answered is an answered request. It contains nothing that the client sent.
type Answered struct {
	Method   string // "other" for a method that HTTP does not define
	Route    string // path pattern; "" if no route matches
	Status   int
	Duration time.Duration // until the end of the response, also for streams
}

// Admitted is a request whose caller was admitted. Traceparent is the only part
// of it that the client sent.
type Admitted struct {
	Method, Route string    // as in Answered
	Request       string    // request id, a UUID
	Time          time.Time // when it arrived
	Traceparent   string    // as sent, unchecked
}

// server implements the API.
type server struct {
	Config
	auth     authenticator
	rebuilds rebuilds
	epoch    atomic.Pointer[string] // see feed.go
	awaited  atomic.Int64           // see health.go
	exports  chan struct{}          // one element per running export
	imports  imports

	byCaller, byAddress *limiter // nil: no limit
	address             func(*http.Request) string

	changingKeys sync.Mutex // held while an API key is created or patched

	api                               huma.API
	openAPIDocument, asyncAPIDocument []byte
}

// New returns the API as one handler. The caller sets the server's timeouts.
func New(c Config) http.Handler {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Version == "" {
		c.Version = "dev"
	}
	if c.RegisteredStatus == "" {
		c.RegisteredStatus = domain.StatusPending
	}
	if c.AwaitTimeout == 0 {
		c.AwaitTimeout = 5 * time.Second
	}
	if c.DeletionGrace == 0 {
		c.DeletionGrace = 48 * time.Hour
	}
	if c.Closing == nil {
		c.Closing = context.Background()
	}
	if c.ImportLimit == 0 {
		c.ImportLimit = 16 << 30
	}
	if c.Observe == nil {
		c.Observe = func(Answered) {}
	}
	if c.Refused == nil {
		c.Refused = func(string) {}
	}
	if c.Heartbeat == 0 {
		c.Heartbeat = defaultHeartbeat
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	s := &server{Config: c}
	s.auth = authenticator{keys: c.Keys, ledger: c.Ledger, now: c.Now, logger: c.Logger, known: map[string]knownCredential{},
		tokens: newTokens(c.Issuer, c.Keys, c.Now, c.Logger)}
	s.byCaller, s.byAddress = newLimiter("caller", c.RateLimit, c.Now), newLimiter("address", c.AddressRateLimit, c.Now)
	s.address = clientAddress(c.TrustedProxies)
	s.rebuilds.last = map[string]*rebuildState{}
	s.awaited.Store(-1)
	s.exports = make(chan struct{}, maxExports)
	s.imports.running = map[string]*runningImport{}

	e := echo.New()
	e.HTTPErrorHandler = s.writeError
	if len(c.CORSOrigins) > 0 {
		e.Pre(middleware.CORSWithConfig(corsFor(c.CORSOrigins)))
	}
	e.Use(s.edge)
	s.api = humaecho.NewV4(e, s.humaConfig())
	s.routes()
	s.openAPIDocument, s.asyncAPIDocument = s.describe(), s.asyncAPI()
	for path, handler := range s.pages() {
		e.GET(path, echo.WrapHandler(s.keyless(path, handler)))
	}
	return asGet(e)
}

func (s *server) humaConfig() huma.Config {
	format := huma.Format{
		Marshal: func(w io.Writer, v any) error { return json.MarshalWrite(w, v) },
	}
	return huma.Config{
		OpenAPI:       s.document(),
		Formats:       map[string]huma.Format{"application/json": format, "json": format},
		DefaultFormat: "application/json",
		Transformers:  []huma.Transformer{s.transform},
	}
}

// asGet routes HEAD requests as GET. net/http still omits the body, because it
// keeps the original request.
func asGet(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead {
			get := *r
			get.Method = http.MethodGet
			r = &get
		}
		h.ServeHTTP(w, r)
	})
}

// call is the request being handled: what handlers and their helpers can read
// in addition to their input.
type call struct {
	id     string // a UUID, answered as X-Request-Id
	start  time.Time
	route  string // pattern, never the path itself
	caller        // set once the caller is admitted
	admin  bool   // the caller has scopeAccountsAdmin
	sees   bool   // the caller has scopeAccountsRead
	r      *http.Request
	w      http.ResponseWriter // for streams; other handlers return their answer
	body   []byte

	traceparent string // recorded in the events the request causes
	traced      func(Answered)
}

type callKey struct{}

func callOf(ctx context.Context) *call { return ctx.Value(callKey{}).(*call) }

// digest identifies the request by its method, path, query and body.
func (c *call) digest() string {
	h := sha256.New()
	path := c.r.URL.Path
	if query := c.r.URL.RawQuery; query != "" {
		path += "?" + query
	}
	for _, part := range [][]byte{[]byte(c.r.Method), []byte(path), c.body} {
		h.Write(part)
		h.Write([]byte{0})
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// edge wraps every request: it assigns the request id, answers panics with a
// problem, and reports and logs the outcome. It logs the route's pattern, never
// the path or query, which may contain personal data.
func (s *server) edge(next echo.HandlerFunc) echo.HandlerFunc {
	return func(ec echo.Context) error {
		start := s.Now()
		r := ec.Request()
		c := &call{id: requestID(r), route: ec.Path(), start: start}
		ctx := context.WithValue(r.Context(), callKey{}, c)
		c.r = r.WithContext(ctx)
		ec.SetRequest(c.r)
		c.w = ec.Response()
		header := ec.Response().Header()
		header.Set("X-Request-Id", c.id)
		secure(header, r.TLS != nil)
		if err := s.guarded(next, ec, c); err != nil {
			ec.Error(err)
		}
		a := Answered{Method: knownMethod(r.Method, "other"), Route: c.route, Status: ec.Response().Status, Duration: s.Now().Sub(start)}
		s.Observe(a)
		if c.traced != nil {
			c.traced(a)
		}
		if s.Logger.Enabled(ctx, slog.LevelDebug) {
			s.Logger.DebugContext(ctx, "request", "method", a.Method, "route", a.Route, "status", a.Status,
				"duration", a.Duration, "actor", c.actor.ID, "request", c.id)
		}
		return nil
	}
}

// secure sets the security headers for responses that browsers should neither
// render nor cache. The HTML pages override some of them.
func secure(h http.Header, overTLS bool) {
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Referrer-Policy", "no-referrer")
	if overTLS {
		h.Set("Strict-Transport-Security", "max-age=31536000")
	}
}

// corsFor allows scripts on pages of these origins to call the API with an API
// key. Credentials in cookies are not allowed.
func corsFor(origins []string) middleware.CORSConfig {
	return middleware.CORSConfig{
		AllowOrigins: origins,
		AllowMethods: []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"},
		AllowHeaders: []string{"Authorization", "Content-Type", "Idempotency-Key", "If-Match", "If-None-Match", "Last-Event-ID", "X-Request-Id"},
		ExposeHeaders: []string{"ETag", "Ledger-Cursor", "Ledger-Lag", "Ledger-Position", "Link", "Location", "RateLimit", "RateLimit-Policy", "Retry-After",
			"WWW-Authenticate", "X-Request-Id"},
		MaxAge: 600,
	}
}

func (s *server) guarded(next echo.HandlerFunc, ec echo.Context, c *call) (err error) {
	defer func() {
		switch v := recover(); v {
		case nil:
		case http.ErrAbortHandler:
			panic(v)
		default:
			// A panic's value may contain personal data. Only runtime errors
			// are known to describe nothing but the kind of error.
			what := fmt.Sprintf("%T", v)
			if e, ok := v.(runtime.Error); ok {
				what = e.Error()
			}
			s.Logger.ErrorContext(c.r.Context(), "panic", "panic", what, "request", c.id, "route", c.route, "stack", string(debug.Stack()))
			err = newProblem(codeInternal, "The server failed. Its log contains the cause under this requestId.")
		}
	}()
	return next(ec)
}

// requestID returns the caller's X-Request-Id if it is a UUID, and otherwise a
// new id: free text would end up in the log.
func requestID(r *http.Request) string {
	if id, err := uuid.Parse(r.Header.Get("X-Request-Id")); err == nil {
		return id.String()
	}
	return domain.NewID().String()
}

// writeError answers errors of the router and errors that no handler answered.
func (s *server) writeError(err error, ec echo.Context) {
	if ec.Response().Committed {
		return
	}
	c := callOf(ec.Request().Context())
	if e, ok := errors.AsType[*echo.HTTPError](err); ok {
		switch e.Code {
		case http.StatusMethodNotAllowed:
			err = newProblem(codeMethodNotAllowed, "The resource does not support the method %s.", knownMethod(c.r.Method, "of the request"))
		case http.StatusNotFound:
			err = newProblem(codeNotFound, "There is no resource at this path.")
		}
	}
	p := s.problem(c.r.Context(), c, err)
	writeProblem(ec.Response(), p)
}

// knownMethod returns method if HTTP defines it, and otherwise other.
func knownMethod(method, other string) string {
	switch method {
	case "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT":
		return method
	}
	return other
}

func writeProblem(w http.ResponseWriter, p *problem) {
	header := w.Header()
	for name, values := range p.header {
		header[name] = values
	}
	header.Set("Content-Type", problemType)
	w.WriteHeader(p.Status)
	w.Write(p.body())
}
