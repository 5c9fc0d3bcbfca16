package httpapi

import (
	"context"
	"net/url"
	"reflect"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"accountledger/domain"
)

// route is one operation of the API: its method and path, the scope it needs,
// and its description.
type route struct {
	method, path string
	name         string // operationId
	scope        scope
	status       int    // of success
	answer       any    // a value of the response's type; nil for an empty body
	done         any    // a value of the response's type for 200: the work that status announces is already done
	summary      string // a phrase
	text         string // sentences
	example      string // request body
	codes        []domain.Code
	paged        bool // the response has a Link to the next page

	// stream answers instead of the handler if the client accepts server-sent events.
	stream func(context.Context, *call) error

	// raw always answers instead of the handler: it reads or writes bodies that
	// do not fit into memory, of the types in media. It returns an error only
	// before it has begun to answer.
	raw   func(context.Context, *call) error
	media []string
	takes []string // media types of its request body
	job   bool     // changes a job or sends a request, and is not a command of the ledger

	body reflect.Type // B of JSON[B]; set by handle
}

// Problem codes shared by routes of one kind. Each route adds its own.
var (
	onAccount = []domain.Code{domain.CodeAccountNotFound, domain.CodeAccountErased}
	onCommand = []domain.Code{domain.CodeInvalidRequest, domain.CodeStaleRevision, domain.CodeConcurrentChange,
		domain.CodeIdempotencyKeyReused, domain.CodeTooLarge, codeInvalidPrecondition}
	onChange = slices.Concat(onAccount, onCommand, []domain.Code{domain.CodeAccountDeleted, domain.CodeAccountCombined})
	onCursor = []domain.Code{domain.CodeInvalidCursor, codeCursorForked}
	onQuery  = []domain.Code{domain.CodeInvalidRequest, codeNotFresh}
)

func codes(lists ...[]domain.Code) []domain.Code { return slices.Concat(lists...) }

// routes registers all resources under /v1, one group of routes per file.
func (s *server) routes() {
	s.accountRoutes()
	s.identityRoutes()
	s.statusRoutes()
	s.customFieldRoutes()
	s.historyRoutes()
	s.lookupRoutes()
	s.feedRoutes()
	s.projectionRoutes()
	s.webhookRoutes()
	s.disclosureRoutes()
	s.deletionRoutes()
	s.mergeRoutes()
	s.roleRoutes()
	s.groupRoutes()
	s.loginRoutes()
	s.membershipRoutes()
	s.scheduleRoutes()
	s.fieldRoutes()
	s.consentRoutes()
	s.searchRoutes()
	s.exportRoutes()
	s.importRoutes()
	s.apiKeyRoutes()
}

// answer is a handler's response. Bodies are already encoded: an account goes
// from the view to the socket without being decoded.
type answer struct {
	Status         int
	ContentType    string `header:"Content-Type" hidden:"true"`
	ETag           string `header:"ETag" hidden:"true"`
	LedgerPosition string `header:"Ledger-Position" hidden:"true"`
	LedgerLag      string `header:"Ledger-Lag" hidden:"true"`
	Location       string `header:"Location" hidden:"true"`
	Link           string `header:"Link" hidden:"true"`
	Body           []byte
}

// handle registers a route whose handler takes an I. The handler is called with
// a decoded body and an admitted caller; an error it returns becomes a problem.
func handle[I any](s *server, rt route, h func(context.Context, *call, *I) (*answer, error)) {
	if b, ok := any(new(I)).(body); ok {
		rt.body = b.bodyType()
	}
	op := s.operation(rt)
	known := map[string]bool{}
	op.Middlewares = huma.Middlewares{func(hc huma.Context, next func(huma.Context)) {
		c := callOf(hc.Context())
		err := s.admit(hc.Context(), c, rt.scope, hc.Header("Authorization"))
		answers := rt.raw
		if rt.stream != nil && wantsStream(hc.Header("Accept")) {
			answers = rt.stream
		}
		// A stream may never end, and neither would its trace.
		if err == nil && answers == nil && s.Trace != nil {
			hc = huma.WithContext(hc, s.trace(hc.Context(), c))
		}
		if err == nil {
			err = parameters(c.r.URL.RawQuery, known)
		}
		if err == nil && op.RequestBody != nil {
			err = mediaType(hc.Header("Content-Type"))
		}
		if err == nil && answers != nil {
			if err = answers(hc.Context(), c); err == nil {
				return
			}
		}
		if err != nil {
			s.problem(hc.Context(), c, err).write(hc)
			return
		}
		next(hc)
	}}
	huma.Register(s.api, op, func(ctx context.Context, in *I) (*answer, error) {
		c := callOf(ctx)
		if b, ok := any(in).(body); ok {
			c.body = b.raw()
			if err := b.decode(); err != nil {
				return nil, s.problem(ctx, c, err)
			}
		}
		a, err := h(ctx, c, in)
		if err != nil {
			return nil, s.problem(ctx, c, err)
		}
		if a.Status == 0 {
			a.Status = op.DefaultStatus
		}
		if len(a.Body) > 0 {
			a.ContentType = "application/json"
		}
		return a, nil
	})
	s.finish(rt, known)
}

// trace starts the request's trace. It is called once the caller is admitted:
// other clients can neither start a trace nor join one.
func (s *server) trace(ctx context.Context, c *call) context.Context {
	ctx, c.traceparent, c.traced = s.Trace(ctx, Admitted{Method: knownMethod(c.r.Method, "other"), Route: c.route, Request: c.id, Time: c.start,
		Traceparent: c.r.Header.Get("traceparent")})
	return ctx
}

// parameters refuses a query with an unknown or repeated parameter: a caller
// would assume that an ignored parameter had an effect.
func parameters(query string, known map[string]bool) error {
	if query == "" {
		return nil
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		return newProblem(codeInvalidParameter, "The query is not well-formed.")
	}
	var p *problem
	for name := range values {
		var detail string
		switch {
		case !known[name]:
			detail = "unknown parameter"
		case len(values[name]) > 1:
			detail = "given more than once"
		default:
			continue
		}
		if p == nil {
			p = newProblem(codeInvalidParameter, "The query contains parameters that are unknown or repeated.")
		}
		p.Errors = append(p.Errors, fault{Parameter: printable(name), Detail: detail})
	}
	if p == nil {
		return nil
	}
	slices.SortFunc(p.Errors, func(a, b fault) int { return strings.Compare(a.Parameter, b.Parameter) })
	return p
}

// printable returns name if it can be shown, and "?" if it is long or unusual.
func printable(name string) string {
	if len(name) > 64 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") != "" {
		return "?"
	}
	return name
}

// operation returns the huma operation of a route.
func (s *server) operation(rt route) huma.Operation {
	op := huma.Operation{
		Method: rt.method, Path: rt.path, OperationID: rt.name, Summary: rt.summary, Description: rt.text,
		DefaultStatus: rt.status, Tags: []string{strings.Split(rt.path, "/")[2]},
		Security:         []map[string][]string{{securityScheme: {string(rt.scope)}}, {tokenScheme: {string(rt.scope)}}},
		MaxBodyBytes:     maxBody + 1, // huma refuses what reaches its limit
		SkipValidateBody: true,        // see JSON
		Responses:        s.responses(rt),
	}
	if rt.body != nil {
		op.RequestBody = &huma.RequestBody{}
	}
	return op
}
