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

// The ways to be let in.
const (
	securityScheme = "apiKey"
	tokenScheme    = "oauth2"
)

// document begins the OpenAPI document; the routes fill it.
func (s *server) document() *huma.OpenAPI {
	schemas := newRegistry("#/components/schemas/")
	return &huma.OpenAPI{
		OpenAPI: "3.1.0",
		Info: &huma.Info{
			Title:   "accountledger",
			Version: s.Version,
			Description: "An event-sourced ledger of user accounts. Every change to an account is an appended event; queries answer from read models that follow.\n\n" +
				"Writes answer with Ledger-Position, and a client reads what it has written. Every write may carry If-Match, Idempotency-Key and dry_run; every read may carry min_position. " +
				"Refusals are problems (RFC 9457); their type is the address of a page that explains them. Unknown members and parameters are refused. A member that is null is as if it was not there, except where null is said to mean something; so is an empty text where the values are listed.",
			License: &huma.License{Name: "Apache-2.0", Identifier: "Apache-2.0"},
		},
		Servers: []*huma.Server{{URL: "/"}},
		Tags: []*huma.Tag{
			{Name: "accounts", Description: "Accounts, their identities and their history."},
			{Name: "lookup", Description: "From an identifier to its account."},
			{Name: "events", Description: "What happened, for systems that poll."},
			{Name: "logins", Description: "May this account log in."},
			{Name: "webhooks", Description: "What happened, for systems that are called."},
			{Name: "roles", Description: "What members of groups may be there."},
			{Name: "groups", Description: "What accounts are members of: a tree."},
			{Name: "group-types", Description: "Which roles the members of a kind of group have."},
			{Name: "fields", Description: "The custom fields of accounts."},
			{Name: "consents", Description: "What people may consent to."},
			{Name: "exports", Description: "All accounts at once."},
			{Name: "imports", Description: "Accounts of another system."},
			{Name: "reconciliation", Description: "Does a target system have what the ledger has."},
			{Name: "schedule-setups", Description: "What is planned for new accounts."},
			{Name: "api-keys", Description: "Who may ask what of this API."},
			{Name: "projections", Description: "The read models."},
		},
		Components: &huma.Components{
			Schemas: schemas,
			SecuritySchemes: map[string]*huma.SecurityScheme{securityScheme: {
				Type: "http", Scheme: "bearer", BearerFormat: "alk_<id>_<secret>",
				Description: "An API key. The first one, with every right, is in the file admin.key of the data directory. What a key may do is said by its scopes; each operation names the one it needs:\n\n" + scopeText(),
			}, tokenScheme: {
				Type: "http", Scheme: "bearer", BearerFormat: "JWT",
				Description: "A token of the issuer that this ledger is configured with, for its audience, with scopes as for API keys.",
			}},
		},
	}
}

// always are the refusals any route may answer with.
var always = []domain.Code{codeUnauthorized, codeForbidden, codeTooManyRequests, codeInvalidParameter, codeUnavailable, codeInternal}

// withBody are those of routes that read a body.
var withBody = []domain.Code{codeMalformedJSON, codeBodyTooLarge, codeUnsupportedMediaType, codeTimeout}

// responses describes what a route answers: its success, and its refusals by
// status, each status with the codes it stands for.
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
			responses["200"] = &huma.Response{Description: "Of a dry run", Content: content(tried)}
			if rt.done != nil {
				responses["200"] = &huma.Response{Description: "Done at once, or of a dry run",
					Content: content(&huma.Schema{OneOf: []*huma.Schema{schema(rt.done), tried}})}
			}
		}
	}
	if rt.name == "getAccount" {
		responses["304"] = &huma.Response{Description: "Not modified since the ETag given"}
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

// command reports whether the route changes something under Command.
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
	add("Ledger-Position", "integer", "Of a write: where it is in the log. Of a read: up to where the answer knows the log.")
	add("Ledger-Lag", "integer", "How many events of the log the read model has not applied.")
	if _, account := rt.answer.(domain.Account); account || rt.command() {
		add("ETag", "string", "The revision, for If-Match.")
	}
	if rt.status == http.StatusCreated {
		add("Location", "string", "Where the new object is.")
	}
	if rt.paged {
		add("Link", "string", "The next page, rel=\"next\".")
	}
	return headers
}

// finish completes the description of a route that huma has registered, and
// lists the parameters that its query may have.
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

// describe renders the finished document.
func (s *server) describe() []byte {
	document := s.api.OpenAPI()
	schemas := document.Components.Schemas.Map()
	delete(schemas, "ErrorModel") // huma's own, which transform replaces
	delete(schemas, "ErrorDetail")
	schemas["NewIdentity"].Required = []string{"provider"} // a profile states what it states
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

// forbidNullArrays corrects what huma assumes of slices: the API writes an
// empty array, never null.
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
