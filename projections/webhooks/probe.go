package webhooks

import (
	"cmp"
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"accountledger/domain"
)

// Headers besides those of Standard Webhooks: of deliveries, of requests that
// are not deliveries in their turn, and of asking an endpoint first.
const (
	HeaderPosition = "Ledger-Position" // of a delivery: where its event is in the log, for min_position

	HeaderTest          = "Webhook-Test"   // true: nothing happened, somebody tries the endpoint out
	HeaderReplay        = "Webhook-Replay" // the id of the replay that the delivery is part of
	HeaderRequestOrigin = "Webhook-Request-Origin"
	headerRequestRate   = "Webhook-Request-Rate"
	headerAllowedOrigin = "Webhook-Allowed-Origin"
	headerAllowedRate   = "Webhook-Allowed-Rate"
)

// TestType is the type of what Test sends. It is no public event.
const TestType = "WEBHOOK_TEST"

// Probe is a request that was made to find out what an endpoint answers.
type Probe struct {
	OK         bool      `json:"ok" doc:"Whether the receiver accepted the request, or agreed to deliveries."` // the endpoint took it, or wants deliveries
	Time       time.Time `json:"time" doc:"When the request was sent."`
	Status     int       `json:"status" doc:"The HTTP status of the response; 0 if there was none."` // HTTP's; 0 where there was no response
	Error      string    `json:"error,omitzero" doc:"Why ok is false, as a code."`
	DurationMs float64   `json:"durationMs" doc:"Duration in milliseconds."`
	Response   string    `json:"response,omitzero" doc:"The beginning of the response body."` // see Attempt
}

func (s *courier) probed(start time.Time, o outcome) Probe {
	return Probe{OK: o.scope == delivered, Time: start.UTC().Truncate(time.Microsecond), Status: o.status, Error: o.code,
		DurationMs: float64(s.now().Sub(start).Microseconds()) / 1000, Response: strings.ToValidUTF8(string(o.response), "\uFFFD")}
}

// Test sends something that happened never, as deliveries are sent: signed, in
// the endpoint's form, and marked by HeaderTest. Nothing of it is remembered.
func (w *Webhooks) Test(ctx context.Context, id string) (Probe, error) {
	conf, err := w.existing(ctx, id)
	if err != nil {
		return Probe{}, err
	}
	s, err := w.courier(ctx, conf)
	if err != nil {
		return Probe{}, err
	}
	defer s.close()
	start := s.now()
	data, err := json.Marshal(map[string]any{"webhookId": id, "test": true}, json.Deterministic(true))
	if err != nil {
		return Probe{}, err
	}
	m := &message{event: domain.PublicEvent{ID: domain.NewID().String(), Type: TestType, Time: start, Data: data}}
	f := s.form
	f.payload = domain.PayloadFull // there is nothing to map or to refer to
	c, err := m.content(&f, none)
	if err != nil {
		return Probe{}, err
	}
	if f.format == domain.FormatBatch {
		c = batched([]string{c.id}, [][]byte{c.body})
	}
	return s.probed(start, s.target.post(c.with(http.Header{HeaderTest: {"true"}}))), nil
}

// Verify asks an endpoint whether it wants deliveries, as the CloudEvents
// webhook specification says (https://github.com/cloudevents/spec, HTTP 1.1 Web
// Hooks for Event Delivery, section 4), and if it is one that must be asked,
// has the ledger record that it does. One that says nothing stays as it is.
func (w *Webhooks) Verify(ctx context.Context, r domain.Request, id string) (Probe, Endpoint, error) {
	conf, err := w.existing(ctx, id)
	if err != nil {
		return Probe{}, Endpoint{}, err
	}
	s, err := w.courier(ctx, conf)
	if err != nil {
		return Probe{}, Endpoint{}, err
	}
	defer s.close()
	start := s.now()
	o, rate := s.target.ask(w.origin(), conf.RateLimit)
	p := s.probed(start, o)
	if p.OK {
		if conf, _, err = w.change(ctx, r, id, domain.VerifyWebhook{URL: conf.URL, AllowedRate: rate}); err != nil {
			return p, Endpoint{}, err
		}
	}
	e, err := w.endpointOf(ctx, conf)
	return p, e, err
}

// origin is what receivers know the ledger by.
func (w *Webhooks) origin() string {
	u, err := url.Parse(w.c.PublicURL)
	if err != nil {
		return "accountledger"
	}
	return cmp.Or(u.Hostname(), "accountledger")
}

const codeNotAllowed = "origin_not_allowed"

// ask asks for the permission to deliver; perSecond is how often at most, 0 if
// that is not known. The answer is delivered with the rate a minute that is
// allowed, 0 for any; or why it is not.
func (t *target) ask(origin string, perSecond float64) (outcome, int) {
	ctx, cancel := context.WithTimeout(context.Background(), t.timeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodOptions, t.url.String(), nil)
	if err != nil {
		return outcome{scope: unavailable, code: codeConnection}, 0
	}
	r.Header.Set("User-Agent", t.userAgent)
	r.Header.Set(HeaderRequestOrigin, origin)
	if perSecond > 0 {
		r.Header.Set(headerRequestRate, strconv.Itoa(max(1, int(perSecond*60))))
	}
	if err := t.auth.add(ctx, r); err != nil {
		return outcome{scope: unavailable, code: transportCode(err)}, 0
	}
	response, err := t.transport.RoundTrip(r)
	if err != nil {
		return outcome{scope: unavailable, code: transportCode(err)}, 0
	}
	defer response.Body.Close()
	io.CopyN(io.Discard, response.Body, drainResponse)
	o := outcome{scope: refused, status: response.StatusCode, code: codeNotAllowed}
	allowed := strings.TrimSpace(response.Header.Get(headerAllowedOrigin))
	if response.StatusCode > 299 || allowed != "*" && !strings.EqualFold(allowed, origin) {
		return o, 0
	}
	rate, err := strconv.Atoi(strings.TrimSpace(response.Header.Get(headerAllowedRate)))
	if err != nil || rate < 0 {
		rate = 0 // none is given, or *
	}
	return outcome{scope: delivered, status: response.StatusCode}, rate
}
