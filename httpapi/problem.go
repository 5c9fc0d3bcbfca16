package httpapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/go-json-experiment/json"

	"accountledger/domain"
	"accountledger/eventstore"
)

// What HTTP itself refuses for, besides the ledger's own domain.Codes.
const (
	codeUnauthorized         domain.Code = "unauthorized"
	codeForbidden            domain.Code = "forbidden"
	codeNotFound             domain.Code = "not-found"
	codeMethodNotAllowed     domain.Code = "method-not-allowed"
	codeBodyTooLarge         domain.Code = "body-too-large"
	codeUnsupportedMediaType domain.Code = "unsupported-media-type"
	codeMalformedJSON        domain.Code = "malformed-json"
	codeInvalidParameter     domain.Code = "invalid-parameter"
	codeInvalidPrecondition  domain.Code = "invalid-precondition"
	codeRevisionNotFound     domain.Code = "revision-not-found"
	codeEventNotFound        domain.Code = "event-not-found"
	codeProjectionNotFound   domain.Code = "projection-not-found"
	codeFieldNotIndexed      domain.Code = "field-not-indexed"
	codeRebuildRunning       domain.Code = "rebuild-running"
	codeImportNotFound       domain.Code = "import-not-found"
	codeImportRefused        domain.Code = "import-refused"
	codeTooManyJobs          domain.Code = "too-many-jobs"
	codeTimeout              domain.Code = "timeout"
	codeNotFresh             domain.Code = "not-fresh"
	codeNotReady             domain.Code = "not-ready"
	codeUnavailable          domain.Code = "unavailable"
	codeInternal             domain.Code = "internal"
	codeTooManyRequests      domain.Code = "too-many-requests"
)

// problemKind is what a code means over HTTP, and what to do about it.
type problemKind struct {
	status          int
	title           string
	meaning, remedy string // sentences, shown at /problems/<code>
}

// problemKinds holds every code there is: the ledger's and HTTP's own.
var problemKinds = map[domain.Code]problemKind{
	domain.CodeAccountNotFound: {http.StatusNotFound, "Account not found",
		"No account has this sub, or no account has this identifier.",
		"Check the sub, or look the account up by one of its identifiers."},
	domain.CodeAccountErased: {http.StatusGone, "Account erased",
		"The account has ended and its personal data was destroyed at the time given in erasedTime. Its sub is never used again.",
		"Remove the account on your side too."},
	domain.CodeAccountExists: {http.StatusConflict, "Account exists",
		"There is an account under the sub that was to be created.",
		"Use a new Idempotency-Key for a new account."},
	domain.CodeAccountDeleted: {http.StatusConflict, "Account deleted",
		"The account is scheduled for deletion and can no longer be changed.",
		"Restore it by setting its status to VERIFIED, then try again."},
	domain.CodeAccountCombined: {http.StatusConflict, "Account combined",
		"The account was combined into another one and can no longer be changed.",
		"Change the surviving account."},
	domain.CodeInvalidRequest: {http.StatusUnprocessableEntity, "Invalid request",
		"The request was understood, and what it says breaks the rules listed under errors, each with a JSON pointer into the body or the name of a parameter.",
		"Mend what is listed; repeating the request as it is cannot succeed."},
	domain.CodeIdentifierTaken: {http.StatusConflict, "Identifier taken",
		"Another account has an identifier this request asks for. The detail names its kind.",
		"Look the identifier up; it may be the same person's account."},
	domain.CodeIdentifierRequired: {http.StatusConflict, "Identifier required",
		"The account would be left without an e-mail address, mobile number or username.",
		"Give it another identifier first."},
	domain.CodeIdentityConflict: {http.StatusConflict, "Identity conflict",
		"The identity, or an identifier of it, belongs to another account, or the account has its one identity of provider self.",
		"If both accounts are the same person's, merge them."},
	domain.CodeIdentityNotFound: {http.StatusNotFound, "Identity not found",
		"The account has no identity with this identityId.",
		"Get the account and use an identityId it lists."},
	domain.CodeStatusSystemManaged: {http.StatusBadRequest, "Status is system-managed",
		"COMBINED and DELETED come of merging and deleting and cannot be set.",
		"Merge or delete the account instead."},
	domain.CodeInvalidStatusTransition: {http.StatusBadRequest, "Invalid status transition",
		"The status machine has no transition from the account's status to this one. The detail names both.",
		"Get the account and choose a status that can be reached from its present one."},
	domain.CodeStaleRevision: {http.StatusPreconditionFailed, "Stale revision",
		"If-Match names another revision than the one the account is at: someone changed it since it was read.",
		"Get the account again, decide again, and send its new ETag."},
	domain.CodeConcurrentChange: {http.StatusConflict, "Concurrent change",
		"Other writers changed the same object at the same time, again and again.",
		"Try again after a moment."},
	domain.CodeIdempotencyKeyReused: {http.StatusUnprocessableEntity, "Idempotency-Key reused",
		"This Idempotency-Key was used before by this caller, for another request.",
		"Use a new key for each new request, and the same key only to repeat one."},
	domain.CodeTooLarge: {http.StatusRequestEntityTooLarge, "Too large",
		"What this request would record is more than one event can hold.",
		"Split the request, or shorten its texts."},
	domain.CodeMergeRefused: {http.StatusConflict, "Merge refused",
		"The accounts cannot be merged, or un-merged, as they are. The detail says why.",
		"See the detail; a preview shows what a merge would do."},
	domain.CodeInUse: {http.StatusConflict, "In use",
		"It cannot be deleted or changed so while others depend on it. The detail says how many.",
		"Change those first."},
	domain.CodeSystemManaged: {http.StatusConflict, "System-managed",
		"It is there from the start, and the ledger depends on it.",
		"Leave it; make one of your own."},
	domain.CodeRoleNotFound: {http.StatusNotFound, "Role not found",
		"There is no role of this id.",
		"List the roles and use an id of one of them."},
	domain.CodeGroupNotFound: {http.StatusNotFound, "Group not found",
		"There is no group of this id.",
		"List the groups and use an id of one of them."},
	domain.CodeGroupTypeNotFound: {http.StatusNotFound, "Group type not found",
		"There is no group type of this id.",
		"List the group types and use an id of one of them."},
	domain.CodeAdminRequired: {http.StatusForbidden, "Administrator required",
		"The rules allow this to callers with the scope accounts:admin only.",
		"Ask with a key that has the scope."},
	domain.CodeScheduleNotFound: {http.StatusNotFound, "Schedule not found",
		"The account has no schedule with this id, or it ended too long ago to be kept with the account.",
		"List the account's schedules, or look into its history."},
	domain.CodeScheduleEnded: {http.StatusConflict, "Schedule ended",
		"The schedule was executed, skipped or cancelled already. The detail says which.",
		"Plan another one."},
	domain.CodeScheduleSetupNotFound: {http.StatusNotFound, "Schedule setup not found",
		"There is no schedule setup of this id.",
		"List the schedule setups and use an id of one of them."},
	domain.CodeScheduleSetupOrder: {http.StatusConflict, "Schedule setup order",
		"Reminders are numbered without holes, so only the last one can be removed.",
		"Remove the reminders with higher numbers first."},
	domain.CodeDeletionNotFound: {http.StatusNotFound, "Deletion not found",
		"No deletion of the account is scheduled.",
		"Get the account; its status tells where it stands."},
	domain.CodeFieldNotFound: {http.StatusNotFound, "Field not found",
		"There is no definition of a custom field of this key.",
		"List the fields and use a key of one of them."},
	domain.CodeFieldInConflict: {http.StatusConflict, "Field in conflict",
		"Accounts have values that the new definition does not allow. The detail says how many.",
		"Change those values first, or send force and mend the accounts that are listed as non-conforming afterwards."},
	domain.CodeConsentNotFound: {http.StatusNotFound, "Consent not found",
		"There is no consent of this id.",
		"List the consents and use an id of one of them."},
	domain.CodeConsentNotAccepted: {http.StatusConflict, "Consent not accepted",
		"Only what is accepted can be revoked, and this version of the consent is not.",
		"Get the account's decisions and revoke the version that is accepted."},
	domain.CodeDeliveryNotFound: {http.StatusNotFound, "Delivery not found",
		"The webhook has no delivery of this event, is not told of it any more, or it happened too long ago to be remembered.",
		"List the deliveries and use an id of one of them, or replay that part of the log."},
	domain.CodeReplayNotFound: {http.StatusNotFound, "Replay not found",
		"The webhook has no replay of this id.",
		"List the webhook's replays and use an id of one of them."},
	domain.CodeReplayRunning: {http.StatusConflict, "Replay running",
		"The webhook has a replay that has not ended.",
		"Wait for it to end, or cancel it."},
	domain.CodeWebhookNotFound: {http.StatusNotFound, "Webhook not found",
		"There is no webhook with this id, or it was deleted.",
		"List the webhooks and use an id of one of them."},
	domain.CodeTooManyKeys: {http.StatusConflict, "Too many keys",
		"So many keys of the webhook sign on after they were replaced that there is no room for another one.",
		"Wait until the next one ends, at the time in the detail."},
	domain.CodeAPIKeyNotFound: {http.StatusNotFound, "API key not found",
		"There is no API key with this id, or it was revoked.",
		"List the API keys and use an id of one of them."},

	codeUnauthorized: {http.StatusUnauthorized, "Unauthorized",
		"The request carries no valid API key and no valid token of the configured issuer.",
		"Send Authorization: Bearer alk_..., with a key that was not revoked and has not expired, or a token for this ledger."},
	codeForbidden: {http.StatusForbidden, "Forbidden",
		"The API key or token is valid, but does not have the scope that the detail names.",
		"Use one with that scope."},
	codeTooManyRequests: {http.StatusTooManyRequests, "Too many requests",
		"The caller, or the address of one without a valid key, has made more requests than are allowed; the header RateLimit-Policy says how many.",
		"Try again after Retry-After; watch the header RateLimit."},
	codeNotFound: {http.StatusNotFound, "Not found",
		"There is no resource at this address.",
		"See /docs for the resources there are."},
	codeMethodNotAllowed: {http.StatusMethodNotAllowed, "Method not allowed",
		"The resource does not know this method; the header Allow lists those it knows.",
		"See /docs for what the resource can do."},
	codeBodyTooLarge: {http.StatusRequestEntityTooLarge, "Body too large",
		"The body has more than 1 MiB.",
		"Send less in one request."},
	codeUnsupportedMediaType: {http.StatusUnsupportedMediaType, "Unsupported media type",
		"The body is not declared as JSON.",
		"Send Content-Type: application/json, in UTF-8."},
	codeMalformedJSON: {http.StatusBadRequest, "Malformed JSON",
		"The body is missing or is not JSON as RFC 8259 and RFC 7493 say: bad syntax, a member twice in one object, text that is not UTF-8, or nested too deep.",
		"Mend the JSON at the place given."},
	codeInvalidParameter: {http.StatusBadRequest, "Invalid parameter",
		"The query has a parameter that the resource does not know, or has one twice. None is ignored.",
		"Leave it out; see /docs for the parameters of each resource."},
	codeInvalidPrecondition: {http.StatusBadRequest, "Invalid precondition",
		"If-Match is neither * nor one strong entity tag like \"3\".",
		"Send the ETag of the account as it was answered."},
	domain.CodeInvalidCursor: {http.StatusBadRequest, "Invalid cursor",
		"The cursor was not made by this resource of this ledger, or lies after the end of its log, as after a restore from a backup.",
		"Start from a position you know, or from 0."},
	codeEventNotFound: {http.StatusNotFound, "Event not found",
		"Nothing that external systems are told of is at this place in the log.",
		"Use the dataref of an event as it was delivered."},
	codeRevisionNotFound: {http.StatusNotFound, "Revision not found",
		"The account exists, but has not reached this revision.",
		"Ask for a revision between 0 and the account's present one."},
	codeProjectionNotFound: {http.StatusNotFound, "Projection not found",
		"There is no projection of this name.",
		"List the projections and use the name of one of them."},
	codeFieldNotIndexed: {http.StatusServiceUnavailable, "Field not indexed",
		"The custom field has become searchable, or has changed its data type, and the search index does not have it yet.",
		"Try again after Retry-After; GET /v1/projections shows how far the index is."},
	codeRebuildRunning: {http.StatusConflict, "Rebuild running",
		"The projection is being rebuilt already.",
		"Wait for it; GET /v1/projections shows how far it is."},
	codeImportNotFound: {http.StatusNotFound, "Import not found",
		"There is no import of this id, or it ended too long ago to be remembered.",
		"List the imports and use an id of one of them."},
	codeImportRefused: {http.StatusUnprocessableEntity, "Import refused",
		"The mapping has faults, or the input cannot be read further. The detail says where. Rows before that are in.",
		"Mend what the detail names, and send the input again: rows that are in change nothing."},
	codeTooManyJobs: {http.StatusTooManyRequests, "Too many jobs",
		"As many exports or imports are running as may at a time.",
		"Try again after Retry-After."},
	codeTimeout: {http.StatusRequestTimeout, "Timeout",
		"The request's body did not arrive in time.",
		"Send it again."},
	codeNotFresh: {http.StatusServiceUnavailable, "Not fresh",
		"The read model has not reached min_position within the time given by wait. The present position is in the member position.",
		"Try again after Retry-After, or read without min_position."},
	codeNotReady: {http.StatusServiceUnavailable, "Not ready",
		"The read models are still catching up with the log after the start.",
		"Wait."},
	codeUnavailable: {http.StatusServiceUnavailable, "Unavailable",
		"The ledger is shutting down.",
		"Try again after Retry-After; a write under an Idempotency-Key can be repeated safely."},
	codeInternal: {http.StatusInternalServerError, "Internal error",
		"The ledger failed; the fault is not the request's. The reason is in its log under the requestId.",
		"Try again; if it stays, give the requestId to who runs this ledger."},
}

// problem is a refusal on the wire: RFC 9457, with a code that programs can
// rely on. It never shows what the request said, only where it is wrong.
type problem struct {
	Type      string               `json:"type" doc:"URI of a page that documents the problem."`
	Title     string               `json:"title" doc:"Short summary of the kind of problem."`
	Status    int                  `json:"status" doc:"The HTTP status."`
	Detail    string               `json:"detail,omitzero" doc:"What went wrong in this request. It never contains personal data."`
	Instance  string               `json:"instance" doc:"URN of this occurrence: the requestId."`
	Code      domain.Code          `json:"code" doc:"The problem's stable code, for programs."`
	RequestID string               `json:"requestId" doc:"The request's X-Request-Id, which also appears in the server's log."`
	Errors    []fault              `json:"errors,omitzero" doc:"Everything that is wrong with the request."`
	Erased    time.Time            `json:"erasedTime,omitzero" doc:"With account-erased: when the account was erased."`
	Position  *eventstore.Position `json:"position,omitzero" doc:"With not-fresh and not-ready: the log position of the read model."`
	Merge     *mergeFrom           `json:"merge,omitzero" doc:"With identity-conflict, for callers with the scope accounts:read: the request body for merging the conflicting account into this one."`

	header http.Header
}

// fault is one thing wrong with a request.
type fault struct {
	Pointer   *string `json:"pointer,omitzero" doc:"JSON pointer to the member of the request body."`
	Parameter string  `json:"parameter,omitzero" doc:"Name of the path, query or header parameter."`
	Detail    string  `json:"detail" doc:"The rule that was broken. It never contains the value."`
}

const problemType = "application/problem+json"

// newProblem makes a problem of one of problemKinds.
func newProblem(code domain.Code, format string, args ...any) *problem {
	kind, ok := problemKinds[code]
	if !ok {
		panic("httpapi: no problem kind for code " + string(code))
	}
	return &problem{Type: problemAddress(code), Title: kind.title, Status: kind.status, Code: code, Detail: fmt.Sprintf(format, args...)}
}

// problemAddress is the type of a problem: the address of its page.
func problemAddress(code domain.Code) string { return "/problems/" + string(code) }

// with returns p with a response header to go with it.
func (p *problem) with(name, value string) *problem {
	if p.header == nil {
		p.header = http.Header{}
	}
	p.header.Set(name, value)
	return p
}

// The methods by which huma takes a *problem for an error it can write.
func (p *problem) Error() string             { return string(p.Code) + ": " + p.Detail }
func (p *problem) GetStatus() int            { return p.Status }
func (p *problem) GetHeaders() http.Header   { return p.header }
func (p *problem) ContentType(string) string { return problemType }

// write answers with p where huma has not yet called a handler.
func (p *problem) write(hc huma.Context) {
	for name, values := range p.header {
		hc.SetHeader(name, values[0])
	}
	hc.SetHeader("Content-Type", problemType)
	hc.SetStatus(p.Status)
	hc.BodyWriter().Write(p.body())
}

func (p *problem) body() []byte {
	body, err := json.Marshal(p)
	if err != nil {
		panic("httpapi: a problem does not marshal: " + err.Error())
	}
	return body
}

// of names the request p is the answer to.
func (p *problem) of(c *call) *problem {
	p.RequestID, p.Instance = c.id, "urn:uuid:"+c.id
	return p
}

// problem makes of any error what the caller may see of it. An error that is
// ours to mend is logged here, once, and shown as its request id.
func (s *server) problem(ctx context.Context, c *call, err error) *problem {
	if p, ok := errors.AsType[*problem](err); ok {
		return p.of(c)
	}
	if refusal, ok := errors.AsType[*domain.Error](err); ok {
		p := newProblem(refusal.Code, "%s", refusal.Detail).of(c)
		for _, f := range refusal.Faults {
			p.Errors = append(p.Errors, fault{Pointer: &f.Pointer, Detail: f.Detail})
		}
		if refusal.Holder != "" && c.sees {
			if from, err := s.survivor(ctx, refusal.Holder); err == nil {
				p.Merge = &mergeFrom{From: from.Sub}
			}
		}
		return p
	}
	if errors.Is(err, eventstore.ErrClosed) || ctx.Err() != nil && errors.Is(err, context.Cause(ctx)) {
		// Also where the caller has gone: nobody reads this then.
		return newProblem(codeUnavailable, "The ledger is shutting down, or the request was given up.").with("Retry-After", "5").of(c)
	}
	s.Logger.ErrorContext(ctx, "request failed", "request", c.id, "route", c.route, "actor", c.actor.ID, "err", err)
	return newProblem(codeInternal, "The ledger failed; its log says why under this requestId.").of(c)
}

// transform turns the errors that huma makes itself into ours. Their messages
// name rules, never values; the values huma attaches are left behind.
func (s *server) transform(ctx huma.Context, _ string, body any) (any, error) {
	m, ok := body.(*huma.ErrorModel)
	if !ok {
		return body, nil
	}
	c := callOf(ctx.Context())
	switch m.Status {
	case http.StatusUnprocessableEntity:
		p := newProblem(domain.CodeInvalidRequest, "A parameter breaks the rules listed.").of(c)
		for _, e := range m.Errors {
			_, name, _ := strings.Cut(e.Location, ".")
			p.Errors = append(p.Errors, fault{Parameter: name, Detail: e.Message})
		}
		return p, nil
	case http.StatusRequestEntityTooLarge:
		return newProblem(codeBodyTooLarge, "The body has more than %d bytes.", maxBody).of(c), nil
	case http.StatusBadRequest:
		return newProblem(codeMalformedJSON, "The body is missing.").of(c), nil
	case http.StatusRequestTimeout:
		return newProblem(codeTimeout, "The body did not arrive in time.").of(c), nil
	}
	// What is left is a body that broke off: huma has the status 500 for it.
	p := newProblem(codeInternal, "The request's body could not be read.").of(c)
	p.Status = m.Status
	return p, nil
}
