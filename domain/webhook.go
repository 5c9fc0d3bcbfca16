package domain

import (
	"context"
	"errors"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"accountledger/eventstore"
)

// Webhook is an endpoint of an external system and what it asked to be told.
// Its secrets are in the key store; where it stands in the log is delivery's.
type Webhook struct {
	WebhookID string `json:"webhookId"`
	WebhookSettings
	Keys        []WebhookKey        `json:"keys"`  // that deliveries are signed with, newest first
	After       eventstore.Position `json:"after"` // it gets the events after this position
	State       WebhookState        `json:"state"`
	StateReason string              `json:"stateReason,omitzero"`
	CreatedTime time.Time           `json:"createdTime"`
	Revision    eventstore.Revision `json:"revision"` // of the last change of its configuration or state

	FailingSince time.Time            `json:"failingSince,omitzero"` // as the last report of its deliveries says
	Verified     *WebhookVerification `json:"verified,omitzero"`     // what it said to being asked

	last eventstore.Revision // of its stream
}

// WebhookSettings is what an endpoint can be configured to.
type WebhookSettings struct {
	URL     string   `json:"url"`
	Events  []string `json:"events"`  // public names, or prefixes like USER_*
	Format  string   `json:"format"`  // one of Formats
	Payload string   `json:"payload"` // full, thin or fields
	WebhookOptions
}

// WebhookOptions are the settings that may be left out.
type WebhookOptions struct {
	Description  string         `json:"description,omitzero"`
	Preset       string         `json:"preset,omitzero"`       // what it started from; its events and mapping may differ since
	Mapping      WebhookMapping `json:"mapping,omitzero"`      // of the payload fields
	BatchSize    int            `json:"batchSize,omitzero"`    // events in a request at most, of FormatBatch
	BatchBytes   int            `json:"batchBytes,omitzero"`   // of the body at most; an event that is larger goes alone
	HubSignature bool           `json:"hubSignature,omitzero"` // deliveries carry X-Hub-Signature-256, too

	Auth              WebhookAuth        `json:"auth,omitzero"`
	ClientCertificate WebhookCertificate `json:"clientCertificate,omitzero"`
	Headers           map[string]string  `json:"headers,omitzero"`     // of its own; nothing secret
	RateLimit         float64            `json:"rateLimit,omitzero"`   // requests a second; 0: as many as it takes
	Burst             int                `json:"burst,omitzero"`       // requests at once after a pause, of a rate limit; 0: one
	MaxInFlight       int                `json:"maxInFlight,omitzero"` // requests at a time; 0: the ledger's default
	Order             string             `json:"order,omitzero"`       // OrderStrict, or "": per account

	DeadLetter   string `json:"deadLetter,omitzero"`   // DeadLetterBlock, or "": skip
	Verification string `json:"verification,omitzero"` // VerifyOptions, or "": none
}

// WebhookState says whether an endpoint is delivered to.
type WebhookState string

// The states an operator or the ledger puts an endpoint in.
const (
	WebhookEnabled  WebhookState = "enabled"
	WebhookPaused   WebhookState = "paused"   // by a caller: events wait
	WebhookDisabled WebhookState = "disabled" // by the ledger, because the endpoint is gone
)

// How deliveries can look.
const (
	FormatStandard = "standard"           // Standard Webhooks: type, timestamp, data
	FormatEvent    = "cloudevents"        // CloudEvents 1.0.2, structured
	FormatBinary   = "cloudevents-binary" // the same with the attributes in headers
	FormatBatch    = "cloudevents-batch"  // several events in a request
	PayloadFull    = "full"               // all data of the event
	PayloadThin    = "thin"               // ids only
	PayloadFields  = "fields"             // what a mapping names
)

// OrderStrict keeps the log's order over all accounts: one request at a time,
// and none after a failure until it is mended.
const OrderStrict = "strict"

// DeadLetterBlock keeps an account whose event was given up from getting any
// other, until somebody has sent it again by hand. Otherwise the event is
// skipped.
const DeadLetterBlock = "block"

// Bounds of how fast an endpoint can be sent to.
const (
	MaxRateLimit = 10_000
	MaxInFlight  = 256
)

// Formats are all of them.
var Formats = []string{FormatStandard, FormatEvent, FormatBinary, FormatBatch}

// Bounds of a batch.
const (
	MaxBatchSize  = 1000
	MinBatchBytes = 1 << 10
	MaxBatchBytes = 8 << 20
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
	Options WebhookOptions      `json:"options,omitzero" pii:"clear"`
	Keys    []WebhookKey        `json:"keys,omitzero" pii:"clear"` // none: one with the id FirstKey
}

func (WebhookCreated) eventType() string { return "webhook.created.v1" }

func (WebhookCreated) public(x Entry) []publicEvent {
	return webhookUpdate("WEBHOOK_CREATED", x, WebhookEnabled, "url", "events", "format", "payload")
}

func (WebhookCreated) catalogue() []PublicType {
	return []PublicType{{Name: "WEBHOOK_CREATED", When: "a webhook is registered", Data: webhookChanged{}}}
}

type webhookChanged struct {
	WebhookID string       `json:"webhookId"`
	Fields    []string     `json:"fields"`
	State     WebhookState `json:"state,omitzero"`
}

// webhookUpdate returns the public event of a change of these fields. state is
// "" where the change leaves it.
func webhookUpdate(name string, x Entry, state WebhookState, fields ...string) []publicEvent {
	return []publicEvent{{name, webhookChanged{x.WebhookID(), fields, state}}}
}

func (e WebhookCreated) settings() WebhookSettings {
	return WebhookSettings{e.URL, e.Events, e.Format, e.Payload, e.Options}
}

// WebhookUpdated changes what an endpoint is configured to. It holds all of
// it, so that a change never depends on how an older one was merged.
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

// WebhookStateChanged starts or stops deliveries to an endpoint.
type WebhookStateChanged struct {
	From   WebhookState `json:"from" pii:"clear"`
	To     WebhookState `json:"to" pii:"clear"`
	Reason string       `json:"reason,omitzero" pii:"clear"` // a code, like gone
}

func (WebhookStateChanged) eventType() string { return "webhook.state-changed.v1" }

func (e WebhookStateChanged) public(x Entry) []publicEvent {
	return webhookUpdate("WEBHOOK_UPDATED", x, e.To, "state")
}

// WebhookDeleted removes an endpoint for good.
type WebhookDeleted struct{}

func (WebhookDeleted) eventType() string { return "webhook.deleted.v1" }

func (WebhookDeleted) public(x Entry) []publicEvent { return webhookUpdate("WEBHOOK_DELETED", x, "") }

func (WebhookDeleted) catalogue() []PublicType {
	return []PublicType{{Name: "WEBHOOK_DELETED", When: "a webhook is deleted", Data: webhookChanged{}}}
}

// Evolve returns w after x.
func (w Webhook) Evolve(x Entry) Webhook {
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
	w.last = x.Revision
	if !OfDelivery(TypeOf(x.Event)) {
		w.Revision = x.Revision
	}
	return w
}

// NewWebhook is an endpoint before its first event.
func NewWebhook(id string) Webhook {
	return Webhook{WebhookID: id, Revision: eventstore.NoStream, last: eventstore.NoStream}
}

// Exists reports whether the endpoint was created and not deleted.
func (w Webhook) Exists() bool { return w.URL != "" }

// WebhookCommand is something a caller asks of one endpoint.
type WebhookCommand interface {
	decide(w Webhook) ([]Event, error)
}

// CreateWebhook registers an endpoint. Whether its address may be connected
// to is checked at every connection, not here.
type CreateWebhook WebhookCreated

// Settings is what the endpoint would be configured to.
func (c CreateWebhook) Settings() WebhookSettings { return WebhookCreated(c).settings() }

func (c CreateWebhook) decide(w Webhook) ([]Event, error) {
	if w.Revision >= 0 {
		return nil, nil
	}
	if f := c.Settings().faults(); len(f) > 0 {
		return nil, f.err()
	}
	return []Event{WebhookCreated(c)}, nil
}

// UpdateWebhook configures an endpoint anew.
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

// Same reports whether s and t are the same settings.
func (s WebhookSettings) Same(t WebhookSettings) bool {
	fields, err := s.changed(t)
	return err == nil && len(fields) == 0
}

// changed names the members in which s and t differ, sorted.
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

// faults is everything that is wrong with s.
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

// urlFault says what is wrong with an address to send to, or "".
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

// SetWebhookState pauses, resumes or disables an endpoint. One that is resumed
// before it has said that it wants deliveries is asked first.
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

// Webhook returns the endpoint as its stream says, created or not.
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

// ExecuteWebhook asks cmd of the endpoint id. The position is that of the
// last event it caused, 0 if it changed nothing. What was executed before is
// not executed again; the endpoint is then as it is now.
func (l *Ledger) ExecuteWebhook(ctx context.Context, r Request, id string, cmd WebhookCommand) (w Webhook, last eventstore.Position, err error) {
	start := time.Now()
	defer func() { l.executed(ctx, cmd, start, last > 0, err) }()
	for range tries {
		w, entries, repeated, err := l.decideWebhook(ctx, r, id, cmd)
		if err != nil || repeated {
			return w, 0, err
		}
		// Webhooks are changed too seldom for their fold to remember commands:
		// each is remembered apart.
		if len(entries) == 0 {
			err := l.rememberUnchanged(ctx, r, WebhookStream(id), eventstore.KeyID{}, w.Revision)
			if _, conflict := errors.AsType[*eventstore.ConflictError](err); conflict {
				continue
			}
			return w, 0, err
		}
		write := eventstore.Write{Stream: WebhookStream(id), Expected: w.last}
		for _, x := range entries {
			encoded, err := l.codec.encode(x, eventstore.KeyID{})
			if err != nil {
				return w, 0, err
			}
			write.Events = append(write.Events, encoded)
		}
		commit := eventstore.Commit{Writes: []eventstore.Write{write}}
		if m := r.Meta; m.CommandID != "" {
			last := entries[len(entries)-1].Revision
			remembered, err := l.remember(m, write.Stream, eventstore.KeyID{}, command{id: m.CommandID, requestHash: m.requestHash, revision: last}, eventstore.NoStream)
			if err != nil {
				return w, 0, err
			}
			commit.Writes = append(commit.Writes, remembered)
		}
		receipt, err := l.log.Append(ctx, commit)
		if _, conflict := errors.AsType[*eventstore.ConflictError](err); conflict {
			continue
		}
		if err != nil {
			return w, 0, err
		}
		for _, x := range entries {
			x.Time = receipt.Time
			w = w.Evolve(x)
		}
		return w, receipt.First + eventstore.Position(len(entries)-1), nil
	}
	return Webhook{}, 0, refuse(CodeConcurrentChange, "Others change this webhook all the time; try again.")
}

// TryWebhook decides like ExecuteWebhook and appends nothing. It returns the
// endpoint as it would be and the events there would be.
func (l *Ledger) TryWebhook(ctx context.Context, r Request, id string, cmd WebhookCommand) (Webhook, []Entry, error) {
	w, entries, _, err := l.decideWebhook(ctx, r, id, cmd)
	for _, x := range entries {
		w = w.Evolve(x)
	}
	return w, entries, err
}

// decideWebhook returns the endpoint as it is, and what cmd would cause in it:
// nothing if it was executed before.
func (l *Ledger) decideWebhook(ctx context.Context, r Request, id string, cmd WebhookCommand) (w Webhook, entries []Entry, repeated bool, err error) {
	if w, err = l.Webhook(ctx, id); err != nil {
		return w, nil, false, err
	}
	if _, repeated, err = l.recall(ctx, nil, r.Meta); repeated || err != nil {
		return w, nil, repeated, err
	}
	if r.Expected != nil && *r.Expected != w.Revision {
		return w, nil, false, refuse(CodeStaleRevision, "The webhook is at revision %d, not %d.", w.Revision, *r.Expected)
	}
	events, err := cmd.decide(w)
	if err != nil {
		return w, nil, false, err
	}
	now := l.now().UTC().Truncate(time.Microsecond)
	for i, e := range events {
		entries = append(entries, Entry{ID: NewID(), Type: e.eventType(), Stream: WebhookStream(id),
			Revision: w.last + 1 + eventstore.Revision(i), Time: now, Meta: r.Meta, Event: e})
	}
	return w, entries, false, nil
}
