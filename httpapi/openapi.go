package httpapi

import (
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/go-json-experiment/json"

	"accountledger/domain"
)

// The names of the security schemes.
const (
	securityScheme = "apiKey"
	tokenScheme    = "oauth2"
)

// document returns the OpenAPI document without the routes, which add themselves.
func (s *server) document() *huma.OpenAPI {
	schemas := newRegistry("#/components/schemas/")
	return &huma.OpenAPI{
		OpenAPI: "3.1.0",
		Info: &huma.Info{
			Title:   "accountledger",
			Version: s.Version,
			Description: "An event-sourced ledger of user accounts. Every change appends an event to a log; queries are answered from read models that follow the log.\n\n" +
				"Every write returns its Ledger-Position and is visible to reads that follow it. Writes accept If-Match, Idempotency-Key and dry_run; reads accept min_position. " +
				"Errors are problem documents (RFC 9457) whose type is the path of a page that documents them. Unknown members and parameters are refused. A null member is treated as absent unless its description says otherwise; so is an empty string where the allowed values are listed.",
			License: &huma.License{Name: "Apache-2.0", Identifier: "Apache-2.0"},
		},
		Servers: []*huma.Server{{URL: "/"}},
		Tags: []*huma.Tag{
			{Name: "accounts", Description: "Accounts with their identities, custom fields, consents, memberships, schedules and history."},
			{Name: "lookup", Description: "Find an account by an identifier."},
			{Name: "events", Description: "The feed of public events, for systems that poll or stream."},
			{Name: "logins", Description: "Check whether an account may log in, and record the login."},
			{Name: "webhooks", Description: "Deliver public events to external systems over HTTP."},
			{Name: "roles", Description: "The roles that members can have in groups."},
			{Name: "groups", Description: "The tree of groups that accounts are members of."},
			{Name: "group-types", Description: "Kinds of groups: which roles their members may have."},
			{Name: "fields", Description: "Definitions of custom fields."},
			{Name: "consents", Description: "Consents and the versions of their texts."},
			{Name: "exports", Description: "Export all accounts as of one log position."},
			{Name: "imports", Description: "Import accounts from another system."},
			{Name: "reconciliation", Description: "Compare a target system's accounts with the ledger's."},
			{Name: "schedule-setups", Description: "Schedules that the ledger plans for every new account."},
			{Name: "api-keys", Description: "API keys and their scopes."},
			{Name: "projections", Description: "The read models and their rebuilds."},
		},
		Components: &huma.Components{
			Schemas: schemas,
			SecuritySchemes: map[string]*huma.SecurityScheme{securityScheme: {
				Type: "http", Scheme: "bearer", BearerFormat: "alk_<id>_<secret>",
				Description: "An API key. The first key, which has every scope, is in the file admin.key of the data directory. A key's scopes say what it may do; each operation names the scope it requires:\n\n" + scopeText(),
			}, tokenScheme: {
				Type: "http", Scheme: "bearer", BearerFormat: "JWT",
				Description: "A JWT access token from the issuer and for the audience configured on this server. Its scopes are those of API keys.",
			}},
		},
	}
}

// always are the problem codes that any route may return.
var always = []domain.Code{codeUnauthorized, codeForbidden, codeTooManyRequests, codeInvalidParameter, codeUnavailable, codeInternal}

// withBody are the problem codes of routes that read a body.
var withBody = []domain.Code{codeMalformedJSON, codeBodyTooLarge, codeUnsupportedMediaType, codeTimeout}

// responses describes a route's responses: its success, and one response for
// each error status with the problem codes that have it.
func (s *server) responses(rt route) map[string]*huma.Response {
	registry := s.api.OpenAPI().Components.Schemas
	schema := func(v any) *huma.Schema { return registry.Schema(reflect.TypeOf(v), true, "") }
	success := &huma.Response{Description: http.StatusText(rt.status), Headers: answerHeaders(rt)}
	responses := map[string]*huma.Response{strconv.Itoa(rt.status): success}
	content := func(v *huma.Schema) map[string]*huma.MediaType {
		return map[string]*huma.MediaType{"application/json": {Schema: v}}
	}
	if rt.answer != nil {
		success.Content = content(schema(rt.answer))
	}
	for _, t := range rt.media {
		if success.Content == nil {
			success.Content = map[string]*huma.MediaType{}
		}
		success.Content[t] = &huma.MediaType{Schema: &huma.Schema{Type: huma.TypeString}}
	}
	if rt.stream != nil {
		success.Content[eventStream] = &huma.MediaType{Schema: &huma.Schema{Type: huma.TypeString}}
	}
	if rt.command() {
		tried := schema(dryRun{})
		switch rt.scope {
		case scopeWebhooksWrite:
			tried = schema(triedWebhook{})
		case scopeConfigWrite, scopeKeysWrite:
			tried = schema(triedConfig{})
		}
		if rt.status == http.StatusOK {
			success.Content = content(&huma.Schema{OneOf: []*huma.Schema{schema(rt.answer), tried}})
		} else {
			responses["200"] = &huma.Response{Description: "Result of a dry run", Content: content(tried)}
			if rt.done != nil {
				responses["200"] = &huma.Response{Description: "Completed immediately, or result of a dry run",
					Content: content(&huma.Schema{OneOf: []*huma.Schema{schema(rt.done), tried}})}
			}
		}
	}
	if rt.name == "getAccount" {
		responses["304"] = &huma.Response{Description: "Not modified: the account still has the given ETag"}
	}
	codes := slices.Concat(rt.codes, always)
	if rt.example != "" {
		codes = append(codes, withBody...)
	}
	byStatus := map[int][]string{}
	for _, code := range codes {
		status := problemKinds[code].status
		byStatus[status] = append(byStatus[status], "`"+string(code)+"`")
	}
	for status, codes := range byStatus {
		slices.Sort(codes)
		responses[strconv.Itoa(status)] = &huma.Response{
			Description: http.StatusText(status) + ": " + strings.Join(slices.Compact(codes), ", "),
			Content:     map[string]*huma.MediaType{problemType: {Schema: schema(problem{})}},
		}
	}
	return responses
}

// command reports whether the route is a command, which accepts Command's parameters.
func (rt route) command() bool {
	return !rt.job && (rt.scope == scopeAccountsWrite || rt.scope == scopeWebhooksWrite || rt.scope == scopeKeysWrite || rt.scope == scopeConfigWrite && rt.name != "rebuildProjection")
}

func answerHeaders(rt route) map[string]*huma.Param {
	headers := map[string]*huma.Param{}
	add := func(name, kind, text string) {
		headers[name] = &huma.Param{Description: text, Schema: &huma.Schema{Type: kind}}
	}
	if rt.name == "rebuildProjection" || rt.job && rt.raw == nil {
		return headers
	}
	add("Ledger-Position", "integer", "The log position of the write; for a read, the log position that the response reflects.")
	if rt.name == "exportAccounts" {
		add("Ledger-Cursor", "string", "The log position as a cursor of the feed.")
	}
	add("Ledger-Lag", "integer", "Number of events in the log that the read model has not applied yet.")
	if _, account := rt.answer.(domain.Account); account || rt.command() {
		add("ETag", "string", "The object's revision, for If-Match.")
	}
	if rt.status == http.StatusCreated {
		add("Location", "string", "Path of the new object.")
	}
	if rt.paged {
		add("Link", "string", "Link to the next page, with rel=\"next\".")
	}
	return headers
}

// finish completes the description of a route that huma has registered, and
// adds the names of its query parameters to known.
func (s *server) finish(rt route, known map[string]bool) {
	document := s.api.OpenAPI()
	item := document.Paths[rt.path]
	op := map[string]*huma.Operation{"GET": item.Get, "POST": item.Post, "PUT": item.Put, "PATCH": item.Patch, "DELETE": item.Delete}[rt.method]
	for _, p := range op.Parameters {
		known[p.Name] = known[p.Name] || p.In == "query"
	}
	if len(rt.takes) > 0 {
		op.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{}}
		for _, t := range rt.takes {
			op.RequestBody.Content[t] = &huma.MediaType{Schema: &huma.Schema{Type: huma.TypeString}}
		}
		return
	}
	if op.RequestBody == nil {
		return
	}
	var example any
	if err := json.Unmarshal([]byte(rt.example), &example); err != nil {
		panic(fmt.Sprintf("httpapi: the example of %s: %v", rt.name, err))
	}
	schema := document.Components.Schemas.Schema(rt.body, true, "")
	media := &huma.MediaType{Schema: schema, Example: example}
	op.RequestBody.Required = true
	op.RequestBody.Content = map[string]*huma.MediaType{"application/json": media}
	if rt.method == http.MethodPatch {
		op.RequestBody.Content["application/merge-patch+json"] = media
	}
}

// describe returns the complete OpenAPI document.
func (s *server) describe() []byte {
	document := s.api.OpenAPI()
	schemas := document.Components.Schemas.Map()
	delete(schemas, "ErrorModel") // huma's own errors, which transform replaces
	delete(schemas, "ErrorDetail")
	schemas["NewIdentity"].Required = []string{"provider"} // all members of a profile are optional
	types := make([]domain.DataType, len(domain.DataTypes))
	for i, t := range domain.DataTypes {
		types[i] = t.Type
	}
	schemas["NewField"].Properties["dataType"].Enum = enum(types)
	schemas["Account"].Properties["userStatus"].Enum = enum(domain.Statuses)
	schemas["UserID"].Properties["type"].Enum = enum(kinds[1:slices.Index(kinds, kindSub)])
	s.describeWebhooks()
	forbidNullArrays(schemas)
	text, err := document.MarshalJSON()
	if err != nil {
		panic("httpapi: the OpenAPI document does not marshal: " + err.Error())
	}
	return indented(text)
}

// forbidNullArrays marks arrays as not nullable: huma assumes that a nil slice
// becomes null, but the API writes an empty array.
func forbidNullArrays(schemas map[string]*huma.Schema) {
	for _, schema := range schemas {
		for _, p := range schema.Properties {
			if p.Type == huma.TypeArray {
				p.Nullable = false
			}
		}
	}
}

func enum[S ~string](values []S) []any {
	var all []any
	for _, v := range values {
		all = append(all, string(v))
	}
	return all
}
