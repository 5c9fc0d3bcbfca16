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

// Problem codes of the API, in addition to domain.Codes.
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
	codeCursorForked         domain.Code = "cursor-forked"
	codeRevisionNotFound     domain.Code = "revision-not-found"
	codeEventNotFound        domain.Code = "event-not-found"
	codeAmbiguous            domain.Code = "ambiguous"
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

// problemKind says what a code means over HTTP and what the caller can do.
type problemKind struct {
	status          int
	title           string
	meaning, remedy string // sentences, shown at /problems/<code>
}

// problemKinds holds every code: the domain's and the API's.
var problemKinds = map[domain.Code]problemKind{
	domain.CodeAccountNotFound: {http.StatusNotFound, "Account not found",
		"No account has this sub or identifier.",
		"Check the sub, or look up the account by one of its identifiers."},
	domain.CodeAccountErased: {http.StatusGone, "Account erased",
		"The account was erased: its personal data was destroyed at erasedTime. Its sub is never reused.",
		"Remove the account from your system too."},
	domain.CodeAccountExists: {http.StatusConflict, "Account exists",
		"An account with this sub already exists.",
		"Use a new Idempotency-Key for each new account."},
	domain.CodeAccountDeleted: {http.StatusConflict, "Account deleted",
		"The account is scheduled for deletion and can no longer be changed.",
		"Restore it by setting its status to VERIFIED, then retry."},
	domain.CodeAccountCombined: {http.StatusConflict, "Account combined",
		"The account was merged into another one and can no longer be changed.",
		"Change the surviving account."},
	domain.CodeInvalidRequest: {http.StatusUnprocessableEntity, "Invalid request",
		"The request is well-formed but breaks the rules listed under errors. Each error has a JSON pointer into the body or the name of a parameter.",
		"Correct the listed members or parameters. The same request will fail again."},
	domain.CodeIdentifierTaken: {http.StatusConflict, "Identifier taken",
		"An identifier in the request belongs to another account. The detail names its kind.",
		"Look up the identifier; it may be the same person's account."},
	domain.CodeIdentifierRequired: {http.StatusConflict, "Identifier required",
		"The request would leave the account without an e-mail address, mobile number or username.",
		"Add another identifier first."},
	domain.CodeIdentityConflict: {http.StatusConflict, "Identity conflict",
		"The identity or one of its identifiers belongs to another account, or the account already has an identity of provider self.",
		"If both accounts belong to the same person, merge them."},
	domain.CodeIdentityNotFound: {http.StatusNotFound, "Identity not found",
		"The account has no identity with this identityId.",
		"Get the account and use one of its identityIds."},
	domain.CodeStatusSystemManaged: {http.StatusBadRequest, "Status is system-managed",
		"The statuses COMBINED and DELETED result from merging and deleting an account and cannot be set directly.",
		"Merge or delete the account instead."},
	domain.CodeInvalidStatusTransition: {http.StatusBadRequest, "Invalid status transition",
		"The account's current status does not allow a change to this status. The detail names both.",
		"Get the account and choose a status that its current status allows."},
	domain.CodeStaleRevision: {http.StatusPreconditionFailed, "Stale revision",
		"The object is no longer at the revision in If-Match: it has changed since it was read.",
		"Read the object again, reapply the change, and send its new ETag."},
	domain.CodeConcurrentChange: {http.StatusConflict, "Concurrent change",
		"Other requests kept changing the same object concurrently.",
		"Retry the request."},
	domain.CodeIdempotencyKeyReused: {http.StatusUnprocessableEntity, "Idempotency-Key reused",
		"The caller has already used this Idempotency-Key for another request.",
		"Use a new key for each new request; reuse a key only to repeat the same request."},
	domain.CodeTooLarge: {http.StatusRequestEntityTooLarge, "Too large",
		"The request would append an event that is larger than the limit.",
		"Split the request, or shorten its values."},
	domain.CodeMergeRefused: {http.StatusConflict, "Merge refused",
		"The accounts cannot be merged or unmerged in their current state. The detail says why.",
		"Resolve what the detail names. A preview shows what a merge would do."},
	domain.CodeInUse: {http.StatusConflict, "In use",
		"The object cannot be deleted or changed this way while others depend on it. The detail says how many.",
		"Change the dependent objects first."},
	domain.CodeSystemManaged: {http.StatusConflict, "System-managed",
		"The object is built in, and the ledger depends on it.",
		"Leave it unchanged and create your own."},
	domain.CodeRoleNotFound: {http.StatusNotFound, "Role not found",
		"There is no role with this id.",
		"List the roles and use one of their ids."},
	domain.CodeGroupNotFound: {http.StatusNotFound, "Group not found",
		"There is no group with this id.",
		"List the groups and use one of their ids."},
	domain.CodeGroupTypeNotFound: {http.StatusNotFound, "Group type not found",
		"There is no group type with this id.",
		"List the group types and use one of their ids."},
	domain.CodeAdminRequired: {http.StatusForbidden, "Administrator required",
		"Only callers with the scope accounts:admin may do this.",
		"Use a key or token with the scope accounts:admin."},
	domain.CodeScheduleNotFound: {http.StatusNotFound, "Schedule not found",
		"The account has no schedule with this id, or the schedule ended too long ago to be kept with the account.",
		"List the account's schedules, or read its history."},
	domain.CodeScheduleEnded: {http.StatusConflict, "Schedule ended",
		"The schedule has already been executed, skipped or cancelled. The detail says which.",
		"Create another schedule."},
	domain.CodeScheduleSetupNotFound: {http.StatusNotFound, "Schedule setup not found",
		"There is no schedule setup with this id.",
		"List the schedule setups and use one of their ids."},
	domain.CodeScheduleSetupOrder: {http.StatusConflict, "Schedule setup order",
		"Reminders are numbered without gaps, so only the last one can be removed.",
		"Remove the reminders with higher numbers first."},
	domain.CodeDeletionNotFound: {http.StatusNotFound, "Deletion not found",
		"No deletion of the account is scheduled.",
		"Get the account and check its status."},
	domain.CodeFieldNotFound: {http.StatusNotFound, "Field not found",
		"There is no definition of a custom field with this key.",
		"List the fields and use one of their keys."},
	domain.CodeFieldInConflict: {http.StatusConflict, "Field in conflict",
		"Accounts have values that the new definition does not allow. The detail says how many.",
		"Change those values first, or set force and then correct the accounts listed as non-conforming."},
	domain.CodeConsentNotFound: {http.StatusNotFound, "Consent not found",
		"There is no consent with this id.",
		"List the consents and use one of their ids."},
	domain.CodeConsentNotAccepted: {http.StatusConflict, "Consent not accepted",
		"Only an accepted consent can be revoked, and this version has not been accepted.",
		"Get the account's decisions and revoke the accepted version."},
	domain.CodeDeliveryNotFound: {http.StatusNotFound, "Delivery not found",
		"The webhook has no delivery of this event, no longer subscribes to it, or the delivery is too old to be stored.",
		"List the deliveries and use one of their ids, or replay that part of the log."},
	domain.CodeReplayNotFound: {http.StatusNotFound, "Replay not found",
		"The webhook has no replay with this id.",
		"List the webhook's replays and use one of their ids."},
	domain.CodeReplayRunning: {http.StatusConflict, "Replay running",
		"The webhook already has a running replay.",
		"Wait for it to end, or cancel it."},
	domain.CodeWebhookNotFound: {http.StatusNotFound, "Webhook not found",
		"There is no webhook with this id, or it was deleted.",
		"List the webhooks and use one of their ids."},
	domain.CodeTooManyKeys: {http.StatusConflict, "Too many keys",
		"Too many replaced keys of the webhook are still signing for another one to be added.",
		"Wait until the next key ends, at the time in the detail."},
	domain.CodeAPIKeyNotFound: {http.StatusNotFound, "API key not found",
		"There is no API key with this id, or it was revoked.",
		"List the API keys and use one of their ids."},

	codeUnauthorized: {http.StatusUnauthorized, "Unauthorized",
		"The request has neither a valid API key nor a valid token of the configured issuer.",
		"Send Authorization: Bearer with an API key that is neither revoked nor expired, or with a token for this ledger."},
	codeForbidden: {http.StatusForbidden, "Forbidden",
		"The API key or token is valid but lacks the scope that the detail names.",
		"Use a key or token with that scope."},
	codeTooManyRequests: {http.StatusTooManyRequests, "Too many requests",
		"The caller, or the client address if the key is not valid, has exceeded the rate limit in the header RateLimit-Policy.",
		"Retry after the time in Retry-After, and watch the header RateLimit."},
	codeNotFound: {http.StatusNotFound, "Not found",
		"There is no resource at this path.",
		"See /docs for the available resources."},
	codeMethodNotAllowed: {http.StatusMethodNotAllowed, "Method not allowed",
		"The resource does not support this method; the header Allow lists those it supports.",
		"See /docs for the methods of each resource."},
	codeBodyTooLarge: {http.StatusRequestEntityTooLarge, "Body too large",
		"The body is larger than the limit.",
		"Send less data in one request."},
	codeUnsupportedMediaType: {http.StatusUnsupportedMediaType, "Unsupported media type",
		"The Content-Type is not one that the resource accepts.",
		"Send Content-Type: application/json, in UTF-8, or one of the types in the header Accept."},
	codeMalformedJSON: {http.StatusBadRequest, "Malformed JSON",
		"The body is missing or is not valid JSON (RFC 8259, RFC 7493): malformed syntax, a repeated member, invalid UTF-8, a number out of range, or too deep nesting.",
		"Correct the JSON at the place given."},
	codeInvalidParameter: {http.StatusBadRequest, "Invalid parameter",
		"The query has an unknown, repeated or unsupported parameter. The server ignores none.",
		"Remove the parameter; see /docs for the parameters of each resource."},
	codeInvalidPrecondition: {http.StatusBadRequest, "Invalid precondition",
		"If-Match is neither * nor a single strong entity tag such as \"3\".",
		"Send the ETag exactly as the server returned it."},
	domain.CodeInvalidCursor: {http.StatusBadRequest, "Invalid cursor",
		"The cursor does not belong to this resource or this ledger, or it is beyond the end of the log, for example after a restore from a backup.",
		"Start from a known position, or from the beginning."},
	codeCursorForked: {http.StatusGone, "Cursor forked",
		"The ledger was rolled back to the position in the member fork. The cursor follows an event after it, which no longer exists; the log has other events at that position now. A log position without a cursor counts as one from before the first roll-back.",
		"Undo what you applied from events after the fork, or compare with GET /v1/reconciliation. Then continue with the cursor in the member next."},
	codeEventNotFound: {http.StatusNotFound, "Event not found",
		"There is no public event at this place in the log.",
		"Use the dataref of a delivered event unchanged."},
	codeRevisionNotFound: {http.StatusNotFound, "Revision not found",
		"The account has not reached this revision yet.",
		"Use a revision between 0 and the account's current revision."},
	codeAmbiguous: {http.StatusConflict, "Ambiguous",
		"The identifier leads to several accounts: an earlier version of the ledger let them take it. The ledger chooses none of them.",
		"Give the type of the identifier. If that does not tell the accounts apart, find them with a search, and change the identifier of one or merge them."},
	codeProjectionNotFound: {http.StatusNotFound, "Projection not found",
		"There is no projection with this name.",
		"List the projections and use one of their names."},
	codeFieldNotIndexed: {http.StatusServiceUnavailable, "Field not indexed",
		"The custom field recently became searchable or changed its data type, and the search index does not contain it yet.",
		"Retry after the time in Retry-After; GET /v1/projections shows the progress of the index."},
	codeRebuildRunning: {http.StatusConflict, "Rebuild running",
		"The projection is already being rebuilt.",
		"Wait for the rebuild to end; GET /v1/projections shows its progress."},
	codeImportNotFound: {http.StatusNotFound, "Import not found",
		"There is no import with this id, or it ended too long ago to be stored.",
		"List the imports and use one of their ids."},
	codeImportRefused: {http.StatusUnprocessableEntity, "Import refused",
		"The mapping is invalid, or the rest of the input cannot be read. The detail says where. Earlier rows have been imported.",
		"Correct what the detail names and send the input again; rows that are already imported change nothing."},
	codeTooManyJobs: {http.StatusTooManyRequests, "Too many jobs",
		"The maximum number of exports or imports is already running.",
		"Retry after the time in Retry-After."},
	codeTimeout: {http.StatusRequestTimeout, "Timeout",
		"The request body did not arrive in time.",
		"Send the request again."},
	codeNotFresh: {http.StatusServiceUnavailable, "Not fresh",
		"The read model did not reach min_position within the wait time. The member position holds its current position.",
		"Retry after the time in Retry-After, or read without min_position."},
	codeNotReady: {http.StatusServiceUnavailable, "Not ready",
		"The read models are still catching up with the log after the server started.",
		"Retry after the time in Retry-After."},
	codeUnavailable: {http.StatusServiceUnavailable, "Unavailable",
		"The server is shutting down, or cannot currently provide what the request needs. The detail says which.",
		"Retry after the time in Retry-After; a write with an Idempotency-Key can be repeated safely."},
	codeInternal: {http.StatusInternalServerError, "Internal error",
		"The server failed to process the request. Its log contains the cause under the requestId.",
		"Retry. If the error persists, give the requestId to the operator of the server."},
}

// problem is an error response: RFC 9457, with a stable code for programs. It
// never repeats values of the request, only where they are wrong.
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
	Fork      *eventstore.Position `json:"fork,omitzero" doc:"With cursor-forked: the log position of the last event that the ledger did not lose."`
	Next      string               `json:"next,omitzero" doc:"With cursor-forked: the cursor to continue with. Absent: start without a cursor."`
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

// newProblem returns a problem with one of the codes in problemKinds.
func newProblem(code domain.Code, format string, args ...any) *problem {
	kind, ok := problemKinds[code]
	if !ok {
		panic("httpapi: no problem kind for code " + string(code))
	}
	return &problem{Type: problemAddress(code), Title: kind.title, Status: kind.status, Code: code, Detail: fmt.Sprintf(format, args...)}
}

// invalidParameters returns a problem for parameters that break their rules.
func invalidParameters(faults ...fault) *problem {
	p := newProblem(domain.CodeInvalidRequest, "Parameters break the rules listed.")
	p.Errors = faults
	return p
}

// problemAddress returns the type of a problem: the path of its page.
func problemAddress(code domain.Code) string { return "/problems/" + string(code) }

// with adds a response header to p.
func (p *problem) with(name, value string) *problem {
	if p.header == nil {
		p.header = http.Header{}
	}
	p.header.Set(name, value)
	return p
}

// These methods make *problem an error that huma can write.
func (p *problem) Error() string             { return string(p.Code) + ": " + p.Detail }
func (p *problem) GetStatus() int            { return p.Status }
func (p *problem) GetHeaders() http.Header   { return p.header }
func (p *problem) ContentType(string) string { return problemType }

// write writes p as the response of a middleware, before huma calls a handler.
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

// of sets the request id in p.
func (p *problem) of(c *call) *problem {
	p.RequestID, p.Instance = c.id, "urn:uuid:"+c.id
	return p
}

// problem turns any error into the problem that the caller sees. It logs
// internal errors, once, and shows only their request id.
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
		// If the client has disconnected, the response is discarded.
		return newProblem(codeUnavailable, "The server is shutting down, or the request was cancelled.").with("Retry-After", "5").of(c)
	}
	s.Logger.ErrorContext(ctx, "request failed", "request", c.id, "route", c.route, "actor", c.actor.ID, "err", err)
	return newProblem(codeInternal, "The server failed. Its log contains the cause under this requestId.").of(c)
}

// transform turns huma's own errors into problems. It keeps their messages,
// which name only rules, and drops the values that huma attaches.
func (s *server) transform(ctx huma.Context, _ string, body any) (any, error) {
	m, ok := body.(*huma.ErrorModel)
	if !ok {
		return body, nil
	}
	c := callOf(ctx.Context())
	switch m.Status {
	case http.StatusUnprocessableEntity:
		p := invalidParameters().of(c)
		for _, e := range m.Errors {
			_, name, _ := strings.Cut(e.Location, ".")
			p.Errors = append(p.Errors, fault{Parameter: name, Detail: e.Message})
		}
		return p, nil
	case http.StatusRequestEntityTooLarge:
		return newProblem(codeBodyTooLarge, "The body is larger than %d bytes.", maxBody).of(c), nil
	case http.StatusBadRequest:
		return newProblem(codeMalformedJSON, "The body is missing.").of(c), nil
	case http.StatusRequestTimeout:
		return newProblem(codeTimeout, "The body did not arrive in time.").of(c), nil
	}
	// The remaining case is a body that ended early, for which huma sets status 500.
	p := newProblem(codeInternal, "The request body could not be read.").of(c)
	p.Status = m.Status
	return p, nil
}
