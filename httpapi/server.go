// Package httpapi speaks HTTP: it turns requests into commands and queries,
// and what comes of them into answers. Echo routes, huma binds parameters and
// describes the resources in OpenAPI 3.1; handlers see neither.
//
// There is one file per resource, the list of all of them in routes.go, and
// one place each for what all commands and all queries have in common:
// command.go and query.go.
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

// Config says what the API speaks for.
type Config struct {
	Ledger   *domain.Ledger     // takes the commands
	Views    *projections.Views // answer the queries; somebody runs them
	Webhooks *webhooks.Webhooks // keeps the endpoints; somebody runs it
	Log      eventstore.Store   // is read for the feed
	Codec    domain.Codec       // opens it
	Keys     *seal.Keys         // keeps the credentials, see Bootstrap
	Erasure  *erasure.Eraser    // completes erasures; somebody runs it

	Logger  *slog.Logger // default: discards
	Version string       // of this program, shown in the OpenAPI document; default "dev"

	// RegisteredStatus is the status of an account that registers itself and
	// does not say one. Default PENDING.
	RegisteredStatus domain.Status

	// AwaitTimeout is how long a write waits for the account view, so that its
	// caller reads what it wrote. After that it answers nevertheless, with
	// Ledger-Lag. Default 5 s.
	AwaitTimeout time.Duration

	// Background runs work that outlives its request, with a context that ends
	// with the server. Default: such work is refused.
	Background func(work func(context.Context))

	// DeletionGrace is how long a deleted account can be restored where the
	// request does not say it; default 48 hours.
	DeletionGrace time.Duration

	// Closing is done when the server begins to shut down: streams and long
	// polls end, so that it need not wait for them. Default: never.
	Closing context.Context

	// ImportDir keeps what imports came to, by job: without it there are none.
	// Nothing of what is imported is written there.
	ImportDir string
	// MappingDir has mapping files, <name>.yaml, that imports may name.
	MappingDir string
	// ImportLimit is how many bytes one import may send; default 16 GiB.
	ImportLimit int64

	Issuer Issuer // of bearer tokens; default: none are accepted

	RateLimit        int            // requests a second and caller, on average; default any number
	AddressRateLimit int            // of those without a valid key, a second and address; default any number
	TrustedProxies   []netip.Prefix // whose X-Forwarded-For is believed; default nobody's
	CORSOrigins      []string       // whose pages may call this API from a browser, * for all; default none

	// Metrics answers at /metrics who has the scope for it. Default: nothing
	// is there.
	Metrics http.Handler
	// Observe is told of each request when it is answered, by whoever answers
	// it: it must not wait for anything. Default: nobody is.
	Observe func(Answered)
	// Trace is told of each request whose caller was let in and which is
	// answered at once. It returns the context it is carried out with; what its
	// events say as their traceparent, "" for nothing; and what is told of its
	// answer, like Observe. Default: nobody is.
	Trace func(context.Context, Admitted) (_ context.Context, traceparent string, end func(Answered))
	// Refused is told of each refusal of access, why: one of Refusals. It must
	// not wait for anything. Default: nobody is.
	Refused func(reason string)

	Heartbeat time.Duration    // of streams; default 15 s
	Now       func() time.Time // default time.Now
}

// Answered is a request that was answered. Nothing in it is the client's.
type Answered struct {
	Method   string // "other" for one that HTTP does not have
	Route    string // pattern of the path; "" where there is no such resource
	Status   int
	Duration time.Duration // until the answer's end; of a stream, until its end
}

// Admitted is a request whose caller was let in. Of what is the client's it has
// the traceparent alone.
type Admitted struct {
	Method, Route string    // as in Answered
	Request       string    // its id, a UUID
	Time          time.Time // when it came
	Traceparent   string    // as it was sent: anything
}

// server is the API at work.
type server struct {
	Config
	auth     authenticator
	rebuilds rebuilds
	epoch    atomic.Pointer[string] // see feed.go
	awaited  atomic.Int64           // see health.go
	exports  chan struct{}          // one for each that runs
	imports  imports

	byCaller, byAddress *limiter // nil: no limit
	address             func(*http.Request) string

	changingKeys sync.Mutex // held while an API key is made or patched

	api       huma.API
	described []byte // the OpenAPI document
	told      []byte // the AsyncAPI document
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
	s.described, s.told = s.describe(), s.asyncAPI()
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

// asGet answers HEAD wherever GET is answered: net/http leaves the body out,
// for it goes by the request it was given.
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

// call is one request on its way: what handlers and their helpers may know of
// it besides their input.
type call struct {
	id     string // a UUID, answered as X-Request-Id
	start  time.Time
	route  string // pattern, never the path itself
	caller        // who calls, once admitted
	admin  bool   // the caller has scopeAccountsAdmin
	sees   bool   // the caller has scopeAccountsRead
	r      *http.Request
	w      http.ResponseWriter // for streams; others return their answer
	body   []byte

	traceparent string // of the events it causes
	traced      func(Answered)
}

type callKey struct{}

func callOf(ctx context.Context) *call { return ctx.Value(callKey{}).(*call) }

// digest identifies the request: by what is asked of which resource.
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

// edge is around every request: it names it, keeps a panic from ending the
// connection without an answer, and logs what came of it. It logs the route's
// pattern and never the path or the query, which may be personal.
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

// secure sets the headers that keep browsers from doing what nobody wants of
// an API. Pages set some of them for themselves.
func secure(h http.Header, overTLS bool) {
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Referrer-Policy", "no-referrer")
	if overTLS {
		h.Set("Strict-Transport-Security", "max-age=31536000")
	}
}

// corsFor lets pages of these origins call the API with a key that their
// script has. Cookies play no part.
func corsFor(origins []string) middleware.CORSConfig {
	return middleware.CORSConfig{
		AllowOrigins: origins,
		AllowMethods: []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"},
		AllowHeaders: []string{"Authorization", "Content-Type", "Idempotency-Key", "If-Match", "If-None-Match", "Last-Event-ID", "X-Request-Id"},
		ExposeHeaders: []string{"ETag", "Ledger-Lag", "Ledger-Position", "Link", "Location", "RateLimit", "RateLimit-Policy", "Retry-After",
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
			// A panic's value may hold anything; only the runtime's own are
			// known to say no more than what kind of mistake it was.
			what := fmt.Sprintf("%T", v)
			if e, ok := v.(runtime.Error); ok {
				what = e.Error()
			}
			s.Logger.ErrorContext(c.r.Context(), "panic", "panic", what, "request", c.id, "route", c.route, "stack", string(debug.Stack()))
			err = newProblem(codeInternal, "The ledger failed; its log says why under this requestId.")
		}
	}()
	return next(ec)
}

// requestID takes over a caller's id if it is a UUID, and otherwise makes one:
// free text would end up in the log.
func requestID(r *http.Request) string {
	if id, err := uuid.Parse(r.Header.Get("X-Request-Id")); err == nil {
		return id.String()
	}
	return domain.NewID().String()
}

// writeError answers what the router refuses, and what no handler answered.
func (s *server) writeError(err error, ec echo.Context) {
	if ec.Response().Committed {
		return
	}
	c := callOf(ec.Request().Context())
	if e, ok := errors.AsType[*echo.HTTPError](err); ok {
		switch e.Code {
		case http.StatusMethodNotAllowed:
			err = newProblem(codeMethodNotAllowed, "The resource does not know the method %s.", knownMethod(c.r.Method, "asked for"))
		case http.StatusNotFound:
			err = newProblem(codeNotFound, "There is no resource at this address.")
		}
	}
	p := s.problem(c.r.Context(), c, err)
	writeProblem(ec.Response(), p)
}

// knownMethod is the method if it is HTTP's, or else what stands for the others.
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
