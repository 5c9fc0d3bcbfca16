package webhooks

import (
	"context"
	"net/http"
	"time"

	"github.com/go-json-experiment/json"

	"accountledger/domain"
	"accountledger/projections/webhooks/transport"
	"accountledger/projections/webhooks/wire"
)

// TestType is the event type of the request that Test sends. No public event has
// it.
const TestType = "WEBHOOK_TEST"

// testStream is the stream of that event. The log has no such stream.
const testStream = "test"

// Probe is a request that was made to see how an endpoint responds.
type Probe struct {
	OK         bool      `json:"ok" doc:"Whether the receiver accepted the request, or agreed to deliveries."`
	Time       time.Time `json:"time" doc:"When the request was sent."`
	Status     int       `json:"status" doc:"The HTTP status of the response; 0 if there was none."`
	Error      string    `json:"error,omitzero" doc:"Why ok is false, as a code."`
	DurationMs float64   `json:"durationMs" doc:"Duration in milliseconds."`
	Response   string    `json:"response,omitzero" doc:"The beginning of the response body."`
}

// probes tries endpoints out.
type probes struct{ status }

func (p probes) result(start time.Time, o transport.Outcome) Probe {
	return Probe{OK: o.Scope == transport.Delivered, Time: start.UTC().Truncate(time.Microsecond), Status: o.Status, Error: o.Code,
		DurationMs: milliseconds(p.config.Now().Sub(start)), Response: text(o.Response)}
}

// Test sends an event that did not happen, in the webhook's form, signed, and
// marked by wire.HeaderTest. Nothing of it is stored.
func (p probes) Test(ctx context.Context, id string) (Probe, error) {
	conf, err := p.ledger.existing(ctx, id)
	if err != nil {
		return Probe{}, err
	}
	s, err := p.senders.open(ctx, conf)
	if err != nil {
		return Probe{}, err
	}
	defer s.close()
	start := p.config.Now()
	data, err := json.Marshal(map[string]any{"webhookId": id, "test": true}, json.Deterministic(true))
	if err != nil {
		return Probe{}, err
	}
	m := &wire.Message{Event: domain.PublicEvent{ID: domain.NewID().String(), Type: TestType, Stream: testStream, Time: start, Data: data}}
	f := s.form
	f.Payload = domain.PayloadFull // there is nothing to map or to refer to
	c, err := m.Content(&f, wire.NoSequence)
	if err != nil {
		return Probe{}, err
	}
	if f.Format == domain.FormatBatch {
		c = wire.Batch(c)
	}
	return p.result(start, s.post(c.With(http.Header{wire.HeaderTest: {"true"}}))), nil
}

// Verify asks an endpoint whether it wants deliveries, see transport.Client.Ask.
// If it does, Verify has the ledger record it, which enables a webhook that waits
// for it. Otherwise the webhook stays as it is.
func (p probes) Verify(ctx context.Context, by domain.Request, id string) (Probe, Endpoint, error) {
	probe, conf, err := p.verify(ctx, by, id)
	if err != nil {
		return probe, Endpoint{}, err
	}
	e, err := p.of(ctx, conf)
	return probe, e, err
}

func (p probes) verify(ctx context.Context, by domain.Request, id string) (Probe, domain.Webhook, error) {
	conf, err := p.ledger.existing(ctx, id)
	if err != nil {
		return Probe{}, conf, err
	}
	s, err := p.senders.open(ctx, conf)
	if err != nil {
		return Probe{}, conf, err
	}
	defer s.close()
	start := p.config.Now()
	o, rate := s.client.Ask(p.senders.origin(), conf.RateLimit)
	probe := p.result(start, o)
	if probe.OK {
		result, err := p.change(ctx, by, id, verified(conf, rate))
		return probe, result.State, err
	}
	return probe, conf, nil
}

// verifyBySystem verifies an endpoint once. If it does not permit deliveries, it
// is asked again when a client requests it or when the server starts.
func (p probes) verifyBySystem(ctx context.Context, id string) {
	if _, _, err := p.verify(ctx, bySystem, id); err != nil && domain.CodeOf(err) != domain.CodeWebhookNotFound {
		p.config.Logger.ErrorContext(ctx, "webhook endpoint could not be asked whether it wants deliveries", "webhook", id, "err", err)
	}
}
