package domain

import (
	"context"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"accountledger/eventstore"
)

// Webhook is a registered webhook: an endpoint of an external system, and the
// events to send to it. The key store has its secrets, and the delivery engine its
// progress in the log.
type Webhook struct {
	WebhookID string `json:"webhookId" doc:"The webhook's id."`
	WebhookSettings
	Keys        []WebhookKey        `json:"keys" doc:"The keys that sign deliveries, newest first."`
	After       eventstore.Position `json:"after" doc:"The webhook receives events after this log position."`
	State       WebhookState        `json:"state" doc:"enabled; paused by a caller; disabled by the ledger; pending_verification until the receiver agrees to deliveries."`
	StateReason string              `json:"stateReason,omitzero" doc:"Why the webhook is in this state, as a code."`
	CreatedTime time.Time           `json:"createdTime" doc:"When the webhook was registered."`
	Revision    eventstore.Revision `json:"revision" doc:"The webhook's revision. Also the ETag."` // delivery reports do not change it

	FailingSince time.Time            `json:"failingSince,omitzero" doc:"When deliveries began to fail, for one account or for all, as recorded in the log."`
	Verified     *WebhookVerification `json:"verified,omitzero" doc:"The receiver's answer to the verification request."`

	last     eventstore.Revision // of its stream
	position eventstore.Position // of the last event
	commands commands
}

// WebhookSettings are the settings of a webhook that a caller can change.
type WebhookSettings struct {
	URL     string   `json:"url" doc:"The endpoint: the URL deliveries are sent to."`
	Events  []string `json:"events" doc:"Names of public events, their aliases such as ACCOUNT_MODIFIED, or prefixes such as USER_*. An event is sent once, under the first entry that matches it: by its alias if that entry is an alias."`
	Format  string   `json:"format" doc:"standard: Standard Webhooks; cloudevents: CloudEvents 1.0.2, structured; cloudevents-binary: attributes in headers; cloudevents-batch: several events in one request."` // one of Formats
	Payload string   `json:"payload" doc:"full: all data of the event; thin: ids only; fields: the members named by mapping."`
	WebhookOptions
}

// WebhookOptions are the optional settings.
type WebhookOptions struct {
	Description  string         `json:"description,omitzero" doc:"Free text. Do not put personal data in it."`
	Preset       string         `json:"preset,omitzero" doc:"The preset the webhook was created from: crm, marketing or analytics."` // its events and mapping may have changed since
	Mapping      WebhookMapping `json:"mapping,omitzero" doc:"With payload fields: the path of the value for each member of data."`
	BatchSize    int            `json:"batchSize,omitzero" doc:"With format cloudevents-batch: maximum number of events in a request."`
	BatchBytes   int            `json:"batchBytes,omitzero" doc:"With format cloudevents-batch: maximum size of a body in bytes."` // a larger event is sent alone
	HubSignature bool           `json:"hubSignature,omitzero" doc:"Whether deliveries also carry GitHub's X-Hub-Signature-256 header, made with the newest v1 key."`

	Auth              WebhookAuth        `json:"auth,omitzero" doc:"Credentials sent to the receiver in addition to the signature."`
	ClientCertificate WebhookCertificate `json:"clientCertificate,omitzero" doc:"The client certificate for receivers that require one in TLS."`
	Headers           map[string]string  `json:"headers,omitzero" doc:"Additional HTTP headers. Put secrets in auth instead."`
	RateLimit         float64            `json:"rateLimit,omitzero" doc:"Maximum requests per second. Absent: unlimited."`
	Burst             int                `json:"burst,omitzero" doc:"With rateLimit: how many requests may be sent at once after a pause; default 1."`
	MaxInFlight       int                `json:"maxInFlight,omitzero" doc:"Maximum number of concurrent requests."`                                                                                                          // 0: the ledger's default
	Order             string             `json:"order,omitzero" doc:"account: events are delivered in order per account; strict: in order over all accounts, one request at a time, and a failure delays all later events."` // OrderStrict, or "": per account

	DeadLetter   string `json:"deadLetter,omitzero" doc:"What happens to an account's later events after a delivery is given up. skip: they are delivered; block: they wait until the event is resent or deadLetter is set to skip."` // DeadLetterBlock, or "": skip
	Verification string `json:"verification,omitzero" doc:"options: the receiver must first allow deliveries from this ledger, as the CloudEvents webhook specification describes; none: no verification."`                           // VerifyOptions, or "": none
}

// WebhookState says whether the ledger delivers to a webhook.
type WebhookState string

// The states of a webhook, besides WebhookPending.
const (
	WebhookEnabled  WebhookState = "enabled"
	WebhookPaused   WebhookState = "paused"   // by a caller; events wait
	WebhookDisabled WebhookState = "disabled" // by the ledger, because the endpoint is gone
)

// The formats and payloads of deliveries.
const (
	FormatStandard = "standard"           // Standard Webhooks: type, timestamp, data
	FormatEvent    = "cloudevents"        // CloudEvents 1.0.2, structured
	FormatBinary   = "cloudevents-binary" // the same with the attributes in headers
	FormatBatch    = "cloudevents-batch"  // several events in a request
	PayloadFull    = "full"               // all data of the event
	PayloadThin    = "thin"               // ids only
	PayloadFields  = "fields"             // the members that a mapping names
)

// OrderStrict delivers in the log's order over all accounts: one request at a time.
// A delivery that fails holds up all later ones.
const OrderStrict = "strict"

// DeadLetterBlock holds up an account's later events after a delivery was given up,
// until a caller has resent it. Without it, the ledger skips the event.
const DeadLetterBlock = "block"

// Limits of a webhook's delivery rate.
const (
	MaxRateLimit = 10_000
	MaxInFlight  = 256
)

// Formats lists every format.
var Formats = []string{FormatStandard, FormatEvent, FormatBinary, FormatBatch}

// Limits of a batch.
const (
	MaxBatchSize  = 1000
	MinBatchBytes = 1 << 10
	MaxBatchBytes = 8 << 20
)

const webhookPrefix = "webhook-"

// WebhookStream returns the name of the stream that holds a webhook's events.
func WebhookStream(id string) string { return webhookPrefix + id }

// WebhookID returns the webhook whose stream x is in, or "" for another stream.
func (x Entry) WebhookID() string {
	id, ok := strings.CutPrefix(x.Stream, webhookPrefix)
	if !ok {
		return ""
	}
	return id
}

// WebhookCreated registers a webhook.
type WebhookCreated struct {
	URL     string              `json:"url" pii:"clear"`
	Events  []string            `json:"events" pii:"clear"`
	Format  string              `json:"format" pii:"clear"`
	Payload string              `json:"payload" pii:"clear"`
	After   eventstore.Position `json:"after" pii:"clear"`
	Options WebhookOptions      `json:"options,omitzero" pii:"clear"`
	Keys    []WebhookKey        `json:"keys,omitzero" pii:"clear"` // empty: one key with the id FirstKey
}

func (WebhookCreated) eventType() string { return "webhook.created.v1" }

func (WebhookCreated) public(x Entry) []publicEvent {
	return webhookUpdate("WEBHOOK_CREATED", x, WebhookEnabled, "url", "events", "format", "payload")
}

func (WebhookCreated) catalogue() []PublicType {
	return []PublicType{{Name: "WEBHOOK_CREATED", When: "a webhook is registered", Data: webhookChanged{}}}
}

type webhookChanged struct {
	WebhookID string       `json:"webhookId" doc:"The webhook's id."`
	Fields    []string     `json:"fields" doc:"The members that changed."`
	State     WebhookState `json:"state,omitzero" doc:"The new state, if it changed."`
}

// webhookUpdate returns the public event of a change of these fields. state is the
// new state, "" if it does not change.
func webhookUpdate(name string, x Entry, state WebhookState, fields ...string) []publicEvent {
	return []publicEvent{{name, webhookChanged{x.WebhookID(), fields, state}}}
}

func (e WebhookCreated) settings() WebhookSettings {
	return WebhookSettings{e.URL, e.Events, e.Format, e.Payload, e.Options}
}

// WebhookUpdated changes the settings of a webhook. It holds all settings, so that
// folding it does not depend on earlier events.
type WebhookUpdated struct {
	Settings WebhookSettings `json:"settings" pii:"clear"`
	Fields   []string        `json:"fields" pii:"clear"` // that changed
}

func (WebhookUpdated) eventType() string { return "webhook.updated.v1" }

func (e WebhookUpdated) public(x Entry) []publicEvent {
	return webhookUpdate("WEBHOOK_UPDATED", x, "", e.Fields...)
}

func (WebhookUpdated) catalogue() []PublicType {
	return []PublicType{{Name: "WEBHOOK_UPDATED", When: "a webhook's settings, keys or state change", Data: webhookChanged{},
		From: typesOf(WebhookUpdated{}, WebhookKeyRotated{}, WebhookStateChanged{}, WebhookVerified{})}}
}

// WebhookStateChanged starts or stops the deliveries of a webhook.
type WebhookStateChanged struct {
	From   WebhookState `json:"from" pii:"clear"`
	To     WebhookState `json:"to" pii:"clear"`
	Reason string       `json:"reason,omitzero" pii:"clear"` // a code, such as gone
}

func (WebhookStateChanged) eventType() string { return "webhook.state-changed.v1" }

func (e WebhookStateChanged) public(x Entry) []publicEvent {
	return webhookUpdate("WEBHOOK_UPDATED", x, e.To, "state")
}

// WebhookDeleted removes a webhook. Its id is never reused.
type WebhookDeleted struct{}

func (WebhookDeleted) eventType() string { return "webhook.deleted.v1" }

func (WebhookDeleted) public(x Entry) []publicEvent { return webhookUpdate("WEBHOOK_DELETED", x, "") }

func (WebhookDeleted) catalogue() []PublicType {
	return []PublicType{{Name: "WEBHOOK_DELETED", When: "a webhook is deleted", Data: webhookChanged{}}}
}

// Evolve returns w after x.
func (w Webhook) Evolve(x Entry) Webhook {
	before := w
	switch e := x.Event.(type) {
	case WebhookCreated:
		w = Webhook{WebhookID: x.WebhookID(), WebhookSettings: e.settings(), Keys: e.Keys,
			After: e.After, State: WebhookEnabled, CreatedTime: x.Time}
		if w.unverified(w) {
			w.State = WebhookPending
		}
		if len(e.Keys) == 0 {
			w.Keys = []WebhookKey{{KeyID: FirstKey, Type: KeyHMAC}}
		}
	case WebhookUpdated:
		if e.Settings.Verification == "" || e.Settings.URL != w.URL {
			w.Verified = nil
		}
		w.WebhookSettings = e.Settings
	case WebhookKeyRotated:
		w.Keys = e.rotated(w.Keys, x.Time)
	case WebhookStateChanged:
		w.State, w.StateReason = e.To, e.Reason
	case WebhookVerified:
		w.Verified = &WebhookVerification{x.Time, e.AllowedRate}
	case WebhookDeliveryFailing:
		w.FailingSince = e.Since
	case WebhookDeliveryRecovered:
		w.FailingSince = time.Time{}
	case WebhookDeliveryExhausted:
	case WebhookDeleted:
		w = Webhook{WebhookID: w.WebhookID}
	default:
		panic("domain: " + x.Type + " does not belong to a webhook")
	}
	w.last, w.position, w.commands = x.Revision, x.Position, before.commands.with(x)
	if !OfDelivery(TypeOf(x.Event)) {
		w.Revision = x.Revision
	}
	return w
}

// NewWebhook returns a webhook before its first event.
func NewWebhook(id string) Webhook {
	return Webhook{WebhookID: id, Revision: eventstore.NoStream, last: eventstore.NoStream}
}

func (w Webhook) head() head {
	return head{stream: WebhookStream(w.WebhookID), revision: w.last, position: w.position, commands: w.commands, repeatable: true}
}

func (w Webhook) with(entries ...Entry) Webhook {
	for _, x := range entries {
		w = w.Evolve(x)
	}
	return w
}

func (w Webhook) initial() Webhook { return NewWebhook(w.WebhookID) }

// Exists reports whether the webhook was created and not deleted.
func (w Webhook) Exists() bool { return w.URL != "" }

// WebhookCommand is a command on one webhook.
type WebhookCommand interface {
	decide(w Webhook) ([]Event, error)
}

// CreateWebhook registers a webhook. Delivery checks at every connection whether
// it may connect to the endpoint; this command does not.
type CreateWebhook WebhookCreated

// Settings returns the settings that the webhook would have.
func (c CreateWebhook) Settings() WebhookSettings { return WebhookCreated(c).settings() }

func (c CreateWebhook) decide(w Webhook) ([]Event, error) {
	if w.last >= 0 {
		return nil, refuse(CodeIdempotencyKeyReused, "This Idempotency-Key was used for another webhook.")
	}
	if f := c.Settings().faults(); len(f) > 0 {
		return nil, f.err()
	}
	return []Event{WebhookCreated(c)}, nil
}

// UpdateWebhook replaces the settings of a webhook.
type UpdateWebhook struct{ Settings WebhookSettings }

func (c UpdateWebhook) decide(w Webhook) ([]Event, error) {
	if !w.Exists() {
		return nil, refuse(CodeWebhookNotFound, "There is no such webhook.")
	}
	if f := c.Settings.faults(); len(f) > 0 {
		return nil, f.err()
	}
	fields, err := w.WebhookSettings.changed(c.Settings)
	if err != nil || len(fields) == 0 {
		return nil, err
	}
	events := []Event{WebhookUpdated{c.Settings, fields}}
	switch unverified := c.Settings.unverified(w); {
	case unverified && w.State == WebhookEnabled:
		events = append(events, WebhookStateChanged{From: w.State, To: WebhookPending})
	case !unverified && w.State == WebhookPending:
		events = append(events, WebhookStateChanged{From: w.State, To: WebhookEnabled})
	}
	return events, nil
}

// Same reports whether s and t are equal.
func (s WebhookSettings) Same(t WebhookSettings) bool {
	fields, err := s.changed(t)
	return err == nil && len(fields) == 0
}

// changed returns the names of the members in which s and t differ, sorted.
func (s WebhookSettings) changed(t WebhookSettings) ([]string, error) {
	before, err := membersOf(s)
	if err != nil {
		return nil, err
	}
	after, err := membersOf(t)
	if err != nil {
		return nil, err
	}
	var fields []string
	for name, value := range before {
		if string(after[name]) != string(value) {
			fields = append(fields, name)
		}
	}
	for name := range after {
		if _, ok := before[name]; !ok {
			fields = append(fields, name)
		}
	}
	slices.Sort(fields)
	return fields, nil
}

func membersOf(v any) (members map[string]jsontext.Value, err error) {
	data, err := json.Marshal(v, json.Deterministic(true))
	if err != nil {
		return nil, err
	}
	return members, json.Unmarshal(data, &members)
}

// faults returns all faults of s.
func (s WebhookSettings) faults() faults {
	var f faults
	if fault := urlFault(s.URL); fault != "" {
		f.add("/url", "%s", fault)
	}
	if len(s.Events) == 0 || len(s.Events) > 100 {
		f.add("/events", "1 to 100 names")
	}
	for _, name := range s.Events {
		if !Selectable(name) {
			f.add("/events", "must name public events, like USER_CREATED, or prefixes of some, like USER_*")
			break
		}
	}
	if !slices.Contains(Formats, s.Format) {
		f.add("/format", "must be one of %s", strings.Join(Formats, ", "))
	}
	s.payloadFaults(&f)
	s.Auth.faults(&f)
	s.headerFaults(&f)
	s.paceFaults(&f)
	if s.DeadLetter != "" && s.DeadLetter != DeadLetterBlock {
		f.add("/deadLetter", "must be skip or %s", DeadLetterBlock)
	}
	if s.Verification != "" && s.Verification != VerifyOptions {
		f.add("/verification", "must be none or %s", VerifyOptions)
	}
	if len(s.Description) > 1024 {
		f.add("/description", "at most 1024 bytes")
	}
	return f
}

func (s WebhookSettings) payloadFaults(f *faults) {
	switch s.Payload {
	case PayloadFields:
		s.Mapping.faults(f)
	case PayloadFull, PayloadThin:
		if len(s.Mapping) > 0 {
			f.add("/mapping", "goes with the payload %s", PayloadFields)
		}
	default:
		f.add("/payload", "must be %s, %s or %s", PayloadFull, PayloadThin, PayloadFields)
	}
	if _, ok := PresetOf(s.Preset); s.Preset != "" && !ok {
		f.add("/preset", "must be crm, marketing or analytics")
	}
	if s.Format != FormatBatch && (s.BatchSize != 0 || s.BatchBytes != 0) {
		f.add("/batchSize", "goes with the format %s", FormatBatch)
	}
	if s.BatchSize < 0 || s.BatchSize > MaxBatchSize {
		f.add("/batchSize", "1 to %d", MaxBatchSize)
	}
	if s.BatchBytes != 0 && (s.BatchBytes < MinBatchBytes || s.BatchBytes > MaxBatchBytes) {
		f.add("/batchBytes", "%d to %d", MinBatchBytes, MaxBatchBytes)
	}
}

func (s WebhookSettings) paceFaults(f *faults) {
	if s.RateLimit != 0 && !(s.RateLimit >= 0.01 && s.RateLimit <= MaxRateLimit) {
		f.add("/rateLimit", "0.01 to %d a second", MaxRateLimit)
	}
	if s.Burst < 0 || s.Burst > MaxRateLimit || s.Burst > 0 && s.RateLimit == 0 {
		f.add("/burst", "1 to %d, with a rateLimit", MaxRateLimit)
	}
	if s.MaxInFlight < 0 || s.MaxInFlight > MaxInFlight {
		f.add("/maxInFlight", "1 to %d", MaxInFlight)
	}
	if s.Order != "" && s.Order != OrderStrict {
		f.add("/order", "must be account or %s", OrderStrict)
	}
	if s.Order == OrderStrict && s.Format == FormatBatch {
		f.add("/order", "does not go with the format %s", FormatBatch)
	}
}

// urlFault returns what is wrong with an endpoint's URL, or "".
func urlFault(text string) string {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.Opaque != "" || len(text) > 2048:
		return "must be an absolute URL of at most 2048 bytes"
	case u.Scheme != "https" && u.Scheme != "http":
		return "the scheme must be https or http"
	case u.User != nil:
		return "must not carry credentials"
	case u.Fragment != "":
		return "must not have a fragment"
	}
	return ""
}

// SetWebhookState pauses, resumes or disables a webhook. A webhook that is resumed
// before its endpoint agreed to deliveries becomes pending.
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
	if c.State == WebhookEnabled && w.WebhookSettings.unverified(w) {
		c.State = WebhookPending
	}
	if w.State == c.State {
		return nil, nil
	}
	return []Event{WebhookStateChanged{From: w.State, To: c.State, Reason: c.Reason}}, nil
}

// DeleteWebhook deletes a webhook. Deleting it again changes nothing.
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

// Webhook returns the webhook as its stream defines it. It may not exist.
func (l *Ledger) Webhook(ctx context.Context, id string) (Webhook, error) {
	w := NewWebhook(id)
	for x, err := range l.entries(ctx, WebhookStream(id), 0) {
		if err != nil {
			return w, err
		}
		w = w.Evolve(x)
	}
	return w, nil
}

// ChangeWebhook carries out cmd on the webhook id. The events are durable when
// it returns. A refusal is an *Error.
func (l *Ledger) ChangeWebhook(ctx context.Context, r Request, id string, cmd WebhookCommand) (Result[Webhook], error) {
	return observed(ctx, l, cmd, r, func() (Result[Webhook], error) {
		defer l.lock(WebhookStream(id))()
		return retry(func() (Result[Webhook], error) {
			before, err := l.Webhook(ctx, id)
			if err != nil {
				return Result[Webhook]{}, err
			}
			return carryOut(ctx, l, order[Webhook]{
				Request: r,
				noun:    "webhook",
				revision: func(w Webhook) eventstore.Revision {
					if !w.Exists() {
						return eventstore.NoStream
					}
					return w.Revision
				},
				decide: func(time.Time, []Webhook) ([][]Event, error) {
					events, err := cmd.decide(before)
					return [][]Event{events}, err
				},
				keep: func(Webhook) {}, // webhooks change too seldom to stay in memory
			}, []Webhook{before})
		})
	})
}
