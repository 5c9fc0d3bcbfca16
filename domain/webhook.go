package domain

import (
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"accountledger/eventstore"
)

// Webhook is an endpoint of an external system and what it asked to be told.
// Its secrets are in the key store; where it stands in the log is delivery's.
type Webhook struct {
	WebhookID   string              `json:"webhookId"`
	URL         string              `json:"url"`
	Events      []string            `json:"events"`  // public names, or prefixes like USER_*
	Format      string              `json:"format"`  // standard
	Payload     string              `json:"payload"` // full or thin
	After       eventstore.Position `json:"after"`   // it gets the events after this position
	State       WebhookState        `json:"state"`
	StateReason string              `json:"stateReason,omitzero"`
	CreatedTime time.Time           `json:"createdTime"`
	Revision    eventstore.Revision `json:"revision"`
}

// WebhookState says whether an endpoint is delivered to.
type WebhookState string

// The states an operator or the ledger puts an endpoint in.
const (
	WebhookEnabled  WebhookState = "enabled"
	WebhookPaused   WebhookState = "paused"   // by a caller: events wait
	WebhookDisabled WebhookState = "disabled" // by the ledger, because the endpoint is gone
)

// What a webhook can be asked to look like.
const (
	FormatStandard = "standard" // Standard Webhooks: type, timestamp, data
	PayloadFull    = "full"     // all data of the event
	PayloadThin    = "thin"     // ids only
)

const webhookPrefix = "webhook-"

// WebhookStream is the stream that holds the configuration of one endpoint.
func WebhookStream(id string) string { return webhookPrefix + id }

// WebhookID is the endpoint whose stream it is, or "" for another stream.
func (x Entry) WebhookID() string {
	id, ok := strings.CutPrefix(x.Stream, webhookPrefix)
	if !ok {
		return ""
	}
	return id
}

// WebhookCreated registers an endpoint.
type WebhookCreated struct {
	URL     string              `json:"url" pii:"clear"`
	Events  []string            `json:"events" pii:"clear"`
	Format  string              `json:"format" pii:"clear"`
	Payload string              `json:"payload" pii:"clear"`
	After   eventstore.Position `json:"after" pii:"clear"`
}

func (WebhookCreated) eventType() string { return "webhook.created.v1" }

// WebhookStateChanged starts or stops deliveries to an endpoint.
type WebhookStateChanged struct {
	From   WebhookState `json:"from" pii:"clear"`
	To     WebhookState `json:"to" pii:"clear"`
	Reason string       `json:"reason,omitzero" pii:"clear"` // a code, like gone
}

func (WebhookStateChanged) eventType() string { return "webhook.state-changed.v1" }

// WebhookDeleted removes an endpoint for good.
type WebhookDeleted struct{}

func (WebhookDeleted) eventType() string { return "webhook.deleted.v1" }

// Evolve returns w after x.
func (w Webhook) Evolve(x Entry) Webhook {
	switch e := x.Event.(type) {
	case WebhookCreated:
		w = Webhook{WebhookID: x.WebhookID(), URL: e.URL, Events: e.Events, Format: e.Format, Payload: e.Payload,
			After: e.After, State: WebhookEnabled, CreatedTime: x.Time}
	case WebhookStateChanged:
		w.State, w.StateReason = e.To, e.Reason
	case WebhookDeleted:
		w = Webhook{WebhookID: w.WebhookID}
	default:
		panic("domain: " + x.Type + " does not belong to a webhook")
	}
	w.Revision = x.Revision
	return w
}

// NewWebhook is an endpoint before its first event.
func NewWebhook(id string) Webhook { return Webhook{WebhookID: id, Revision: eventstore.NoStream} }

// Exists reports whether the endpoint was created and not deleted.
func (w Webhook) Exists() bool { return w.URL != "" }

// WebhookCommand is something a caller asks of one endpoint.
type WebhookCommand interface {
	decide(w Webhook) ([]Event, error)
}

// CreateWebhook registers an endpoint. Whether its address may be connected
// to is checked at every connection, not here.
type CreateWebhook WebhookCreated

func (c CreateWebhook) decide(w Webhook) ([]Event, error) {
	if w.Revision >= 0 {
		return nil, nil
	}
	var f faults
	u, err := url.Parse(c.URL)
	switch {
	case err != nil || u.Host == "" || u.Opaque != "" || len(c.URL) > 2048:
		f.add("/url", "must be an absolute URL of at most 2048 bytes")
	case u.Scheme != "https" && u.Scheme != "http":
		f.add("/url", "the scheme must be https or http")
	case u.User != nil:
		f.add("/url", "must not carry credentials")
	case u.Fragment != "":
		f.add("/url", "must not have a fragment")
	}
	if len(c.Events) == 0 || len(c.Events) > 100 {
		f.add("/events", "1 to 100 names")
	}
	for _, name := range c.Events {
		if !selectable(name) {
			f.add("/events", "must name public events, like USER_CREATED, or prefixes of some, like USER_*")
			break
		}
	}
	if c.Format != FormatStandard {
		f.add("/format", "must be %s", FormatStandard)
	}
	if c.Payload != PayloadFull && c.Payload != PayloadThin {
		f.add("/payload", "must be %s or %s", PayloadFull, PayloadThin)
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	return []Event{WebhookCreated(c)}, nil
}

// SetWebhookState pauses, resumes or disables an endpoint.
type SetWebhookState struct {
	State  WebhookState
	Reason string // a code of lower-case letters and dashes
}

var reasonCode = regexp.MustCompile(`^[a-z][a-z0-9-]{0,63}$`)

func (c SetWebhookState) decide(w Webhook) ([]Event, error) {
	var f faults
	if !slices.Contains([]WebhookState{WebhookEnabled, WebhookPaused, WebhookDisabled}, c.State) {
		f.add("/state", "must be enabled, paused or disabled")
	}
	if c.Reason != "" && !reasonCode.MatchString(c.Reason) {
		f.add("/reason", "a code of lower-case letters, digits and dashes")
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	if !w.Exists() {
		return nil, refuse(CodeWebhookNotFound, "There is no such webhook.")
	}
	if w.State == c.State {
		return nil, nil
	}
	return []Event{WebhookStateChanged{From: w.State, To: c.State, Reason: c.Reason}}, nil
}

// DeleteWebhook removes an endpoint; removing it again changes nothing.
type DeleteWebhook struct{}

func (DeleteWebhook) decide(w Webhook) ([]Event, error) {
	if !w.Exists() {
		if w.Revision > 0 {
			return nil, nil
		}
		return nil, refuse(CodeWebhookNotFound, "There is no such webhook.")
	}
	return []Event{WebhookDeleted{}}, nil
}
