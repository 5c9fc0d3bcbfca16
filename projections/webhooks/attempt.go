package webhooks

import (
	"strings"
	"time"

	"github.com/google/uuid"

	"accountledger/eventstore"
	"accountledger/projections/webhooks/transport"
)

// Scopes of results without an outcome, beside those of package transport.
const (
	internal transport.Scope = transport.Disabled + 1 + iota // the ledger failed before there was a request
	unwanted                                                 // the webhook no longer selects the event
	unsent                                                   // the batch had no room for the event
)

// OutcomeDelivered is the outcome of an attempt that succeeded.
const OutcomeDelivered = "delivered"

// outcomes names the outcomes of attempts by scope.
var outcomes = [...]string{transport.Delivered: OutcomeDelivered, transport.Refused: "refused", transport.Unavailable: "unavailable",
	transport.Aborted: "aborted", transport.Disabled: "disabled", internal: "internal"}

// Outcomes lists the outcomes of attempts: delivered; refused and aborted,
// which are about the event; unavailable and disabled, which are about the
// endpoint; and internal, a failure of the ledger before there was a request.
func Outcomes() []string { return outcomes[:] }

// Attempted is a completed attempt to deliver an event. A request with a batch
// of events is one attempt for each of them.
type Attempted struct {
	WebhookID string
	Outcome   string        // one of Outcomes
	Status    int           // HTTP's; 0 without a response
	Duration  time.Duration // of the request
	Age       time.Duration // from the recording of the event to the end of the attempt
	Scheduled bool          // part of the regular delivery, not of a resend or replay
}

// Tracing is an attempt to deliver an event that is part of a trace.
type Tracing struct {
	WebhookID   string
	Type        string // of the public event
	Position    eventstore.Position
	Traceparent string // of what caused the event
}

// Attempt is one request to deliver an event, and its result.
type Attempt struct {
	Time       time.Time `json:"time" doc:"When the attempt was made."`
	Trigger    string    `json:"trigger" doc:"What caused the attempt. schedule: the regular delivery or a retry; manual, recover, replay: a request to this API."`
	Status     int       `json:"status" doc:"The HTTP status of the response; 0 if there was none."`
	Error      string    `json:"error,omitzero" doc:"Why the attempt failed, as a code."`
	DurationMs float64   `json:"durationMs" doc:"Duration in milliseconds."`
	Response   string    `json:"response,omitzero" doc:"The beginning of the response body."`
}

// The triggers of attempts.
const (
	triggerSchedule = "schedule" // the regular delivery, the first time or a retry
	triggerManual   = "manual"   // a client asked to resend this event
	triggerRecover  = "recover"  // a client asked to resend all failed events
	triggerReplay   = "replay"   // a client asked to resend a part of the log
)

// place is the place of a public event in the log.
type place struct {
	position eventstore.Position
	part     int
}

// record is an attempt as delivery.db stores it, or a dead letter.
type record struct {
	position eventstore.Position
	part     int
	event    uuid.UUID
	kind     string // the public name
	sub      string
	sequence eventstore.Revision
	time     time.Time
	duration time.Duration
	outcome  transport.Outcome
	trigger  string // of an attempt
}

// attempt returns the attempt as the API shows it.
func (r record) attempt() Attempt {
	return Attempt{Time: r.time, Trigger: r.trigger, Status: r.outcome.Status, Error: r.outcome.Code,
		DurationMs: milliseconds(r.duration), Response: text(r.outcome.Response)}
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// text returns the start of a response as JSON can hold it.
func text(response []byte) string { return strings.ToValidUTF8(string(response), "\uFFFD") }
