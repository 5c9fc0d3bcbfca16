// Package domain holds the account, its commands, the events that record what
// the commands decide, and the Ledger that loads, decides and appends.
//
// Decide and Evolve are pure: the caller passes in time, ids and who is acting.
package domain

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Code names a reason for refusal. It is part of the API and never changes.
type Code string

// The reasons for refusal. Package httpapi maps each to an HTTP status.
const (
	CodeAccountNotFound         Code = "account-not-found"
	CodeAccountErased           Code = "account-erased"
	CodeAccountExists           Code = "account-exists"
	CodeAccountDeleted          Code = "account-deleted"
	CodeAccountCombined         Code = "account-combined"
	CodeInvalidRequest          Code = "invalid-request"
	CodeIdentifierTaken         Code = "identifier-taken"
	CodeIdentifierRequired      Code = "identifier-required"
	CodeIdentityConflict        Code = "identity-conflict"
	CodeIdentityNotFound        Code = "identity-not-found"
	CodeStatusSystemManaged     Code = "status-system-managed"
	CodeInvalidStatusTransition Code = "invalid-status-transition"
	CodeStaleRevision           Code = "stale-revision"
	CodeConcurrentChange        Code = "concurrent-change"
	CodeIdempotencyKeyReused    Code = "idempotency-key-reused"
	CodeTooLarge                Code = "too-large"
	CodeInvalidCursor           Code = "invalid-cursor"
	CodeMergeRefused            Code = "merge-refused"
	CodeInUse                   Code = "in-use"
	CodeSystemManaged           Code = "system-managed"
	CodeRoleNotFound            Code = "role-not-found"
	CodeGroupNotFound           Code = "group-not-found"
	CodeGroupTypeNotFound       Code = "group-type-not-found"
	CodeAdminRequired           Code = "admin-required"
	CodeScheduleNotFound        Code = "schedule-not-found"
	CodeScheduleEnded           Code = "schedule-ended"
	CodeScheduleSetupNotFound   Code = "schedule-setup-not-found"
	CodeScheduleSetupOrder      Code = "schedule-setup-order"
	CodeDeletionNotFound        Code = "deletion-not-found"
	CodeFieldNotFound           Code = "field-not-found"
	CodeFieldInConflict         Code = "field-in-conflict"
	CodeConsentNotFound         Code = "consent-not-found"
	CodeConsentNotAccepted      Code = "consent-not-accepted"
	CodeWebhookNotFound         Code = "webhook-not-found"
	CodeTooManyKeys             Code = "too-many-keys"
	CodeAPIKeyNotFound          Code = "api-key-not-found"
	CodeDeliveryNotFound        Code = "delivery-not-found"
	CodeReplayNotFound          Code = "replay-not-found"
	CodeReplayRunning           Code = "replay-running"
)

// Codes lists every code an *Error may carry, for tables that must be complete.
var Codes = []Code{
	CodeAccountNotFound, CodeAccountErased, CodeAccountExists, CodeAccountDeleted, CodeAccountCombined,
	CodeInvalidRequest, CodeIdentifierTaken, CodeIdentifierRequired, CodeIdentityConflict, CodeIdentityNotFound,
	CodeStatusSystemManaged, CodeInvalidStatusTransition, CodeStaleRevision, CodeConcurrentChange,
	CodeIdempotencyKeyReused, CodeTooLarge, CodeInvalidCursor, CodeWebhookNotFound, CodeTooManyKeys, CodeDeliveryNotFound, CodeReplayNotFound, CodeReplayRunning,
	CodeMergeRefused, CodeInUse, CodeSystemManaged, CodeRoleNotFound,
	CodeGroupNotFound, CodeGroupTypeNotFound, CodeAdminRequired,
	CodeScheduleNotFound, CodeScheduleEnded, CodeScheduleSetupNotFound, CodeScheduleSetupOrder, CodeDeletionNotFound,
	CodeFieldNotFound, CodeFieldInConflict, CodeConsentNotFound, CodeConsentNotAccepted,
	CodeAPIKeyNotFound,
}

// Error is a refusal by rule, which the caller can correct. Every other error is
// a fault of the server. An Error never carries personal data.
type Error struct {
	Code   Code
	Detail string  // a sentence
	Faults []Fault // with CodeInvalidRequest: every fault, not only the first
	Holder string  // with CodeIdentityConflict: the sub of the other account, for callers that may read accounts
}

// Fault is one thing wrong with a request.
type Fault struct {
	Pointer string `json:"pointer"` // RFC 6901, into the request's body
	Detail  string `json:"detail"`  // the rule that was broken; never the value
}

func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s", e.Code, e.Detail)
	for _, f := range e.Faults {
		fmt.Fprintf(&b, " [%s: %s]", f.Pointer, f.Detail)
	}
	return b.String()
}

// CodeOf returns the code of the *Error in err's tree, or "" if there is none.
func CodeOf(err error) Code {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return ""
}

func refuse(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Detail: fmt.Sprintf(format, args...)}
}

// faults collects what is wrong with a request.
type faults []Fault

func (f *faults) add(pointer, format string, args ...any) {
	*f = append(*f, Fault{pointer, fmt.Sprintf(format, args...)})
}

func (f faults) err() error {
	if len(f) == 0 {
		return nil
	}
	slices.SortStableFunc(f, func(a, b Fault) int { return strings.Compare(a.Pointer, b.Pointer) })
	return &Error{Code: CodeInvalidRequest, Detail: "The request breaks the rules listed.", Faults: f}
}
