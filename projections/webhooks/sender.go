package webhooks

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/projections/webhooks/transport"
	"accountledger/projections/webhooks/wire"
)

// sender makes the requests of one webhook as it is configured. It keeps no
// state and draws no conclusions from the results.
type sender struct {
	conf     domain.Webhook
	log      eventstore.Store
	opener   opener
	sequence sequence
	form     wire.Form
	envelope wire.Envelope
	client   *transport.Client
	now      func() time.Time

	observe func(Attempted)
	trace   func(Tracing) (string, func(Attempted)) // nil: nothing is traced
}

// senders makes the senders of all webhooks.
type senders struct {
	config  Config
	opener  opener
	secrets secretStore
	network func(*transport.Config) // tests change it here; nil: it stays
}

// errURL quotes no URL, which may hold a secret.
var errURL = errors.New("webhooks: the endpoint's URL cannot be parsed")

// open returns a sender for a webhook. Close it when it is no longer used.
func (s *senders) open(ctx context.Context, conf domain.Webhook) (*sender, error) {
	u, err := url.Parse(conf.URL)
	if err != nil {
		return nil, errURL
	}
	secrets, err := s.secrets.load(ctx, conf.WebhookID)
	if err != nil {
		return nil, err
	}
	signers, err := secrets.signers(conf.Keys)
	if err != nil {
		return nil, err
	}
	client, err := s.connect(conf, u, secrets)
	if err != nil {
		return nil, err
	}
	headers := conf.Headers
	if conf.Verification == domain.VerifyOptions {
		headers = maps.Clone(headers)
		if headers == nil {
			headers = map[string]string{}
		}
		headers[transport.HeaderRequestOrigin] = s.origin()
	}
	return &sender{conf: conf, log: s.config.Log, opener: s.opener, sequence: sequence{s.config.Log, s.config.Codec, s.opener.ledger, conf}, form: s.form(conf),
		envelope: wire.Envelope{URL: u, UserAgent: s.config.UserAgent, Signers: signers, HubSignature: conf.HubSignature, Headers: headers},
		client:   client, now: s.config.Now, observe: s.config.Observe, trace: s.config.Trace}, nil
}

func (s *senders) connect(conf domain.Webhook, u *url.URL, secrets secrets) (*transport.Client, error) {
	c := transport.Config{URL: u, Allow: s.config.Allow, InFlight: s.config.InFlight, Timeout: s.config.Timeout, UserAgent: s.config.UserAgent,
		Auth: conf.Auth, Secret: secrets[conf.Auth.SecretID], Now: s.config.Now}
	if own := conf.ClientCertificate; own.Certificate != "" {
		pair, err := tls.X509KeyPair([]byte(own.Certificate), []byte(secrets[own.SecretID]))
		if err != nil {
			return nil, errors.New("webhooks: the client certificate does not match its key")
		}
		c.ClientCertificate = &pair
	}
	if s.network != nil {
		s.network(&c)
	}
	return transport.New(c)
}

// form returns the form in which a webhook receives events.
func (s *senders) form(conf domain.Webhook) wire.Form {
	return wire.Form{Format: conf.Format, Payload: conf.Payload, Mapping: conf.Mapping, PublicURL: s.config.PublicURL,
		Source: cmp.Or(s.config.PublicURL, "/accountledger")}
}

// origin names the ledger to receivers.
func (s *senders) origin() string {
	u, err := url.Parse(s.config.PublicURL)
	if err != nil {
		return "accountledger"
	}
	return cmp.Or(u.Hostname(), "accountledger")
}

// close closes the idle connections.
func (s *sender) close() { s.client.Close() }

// selects returns m as the webhook receives it, or nil if it does not. A webhook
// receives no reports on its own deliveries, because each would cause another.
func (s *sender) selects(m *wire.Message) *wire.Message {
	if m.ReportsOn != "" && m.ReportsOn == s.conf.WebhookID {
		return nil
	}
	return m.Select(s.conf.Events)
}

// selected returns the messages that the webhook receives.
func (s *sender) selected(messages []*wire.Message) []*wire.Message {
	for i, m := range messages {
		if s.selects(m) == m {
			continue
		}
		some := append([]*wire.Message(nil), messages[:i]...)
		for _, m := range messages[i:] {
			if m = s.selects(m); m != nil {
				some = append(some, m)
			}
		}
		return some
	}
	return messages
}

// sending is a delivery and which of its public events a request carries. The
// worker may change the delivery while the request is in flight.
type sending struct {
	*delivery
	part int
}

// attempt makes one request for all deliveries, and reports it to the observers.
func (s *sender) attempt(all []sending, header http.Header) []result {
	results := s.request(all, header)
	for _, r := range results {
		if r.Scope <= internal {
			a := Attempted{WebhookID: s.conf.WebhookID, Outcome: outcomes[r.Scope], Status: r.Status, Duration: r.duration,
				Age: r.time.Add(r.duration).Sub(r.rec.Time), Scheduled: !r.requested}
			s.observe(a)
			if r.traced != nil {
				r.traced(a)
			}
		}
	}
	return results
}

// request makes the request. An error before it is internal.
func (s *sender) request(all []sending, header http.Header) []result {
	start := s.now()
	results := make([]result, len(all))
	var posted []int // indexes of results
	var contents []wire.Content
	var last eventstore.Position
	size := 0
	for i, one := range all {
		r := &results[i]
		*r = result{delivery: one.delivery, time: start}
		if !s.prepare(r, one) {
			continue
		}
		previous, err := s.sequence.previous(one.delivery, one.part)
		var c wire.Content
		if err == nil {
			c, err = r.message.Content(&s.form, previous)
		}
		switch {
		case err != nil:
			r.Scope, r.err = internal, err
			continue
		case len(posted) > 0 && size+len(c.Body) > s.batchBytes():
			r.Scope = unsent
			continue
		}
		size += len(c.Body) + 2
		posted, contents, last = append(posted, i), append(contents, c), max(last, one.rec.Position)
	}
	if len(posted) == 0 {
		return results
	}
	content := contents[0]
	if s.form.Format == domain.FormatBatch {
		content = wire.Batch(contents...)
	}
	content = content.With(http.Header{wire.HeaderPosition: {strconv.FormatInt(int64(last), 10)}}).With(header).With(s.startTraces(results, posted))
	o := s.post(content)
	duration := s.now().Sub(start)
	for _, i := range posted {
		results[i].Outcome, results[i].duration, results[i].batch = o, duration, len(posted)
	}
	return results
}

// prepare finds the message to send. It reports false and sets the scope if
// there is none.
func (s *sender) prepare(r *result, one sending) bool {
	messages, err := one.open(s.opener, r.time)
	if err != nil {
		r.Scope, r.err = internal, err
		return false
	}
	messages = s.selected(messages)
	r.parts = len(messages)
	if one.part >= r.parts {
		r.Scope = unwanted // since the webhook's configuration changed
		return false
	}
	r.message = messages[one.part]
	return true
}

// startTraces starts the traces of the posted results. A batch is one request
// for several traces; its traceparent header is that of the first.
func (s *sender) startTraces(results []result, posted []int) (header http.Header) {
	if s.trace == nil {
		return nil
	}
	for _, i := range posted {
		r := &results[i]
		e := &r.message.Event
		if e.Traceparent == "" {
			continue
		}
		var sent string
		sent, r.traced = s.trace(Tracing{WebhookID: s.conf.WebhookID, Type: e.Type, Position: r.message.Position, Traceparent: e.Traceparent})
		if header == nil && sent != "" {
			header = http.Header{"Traceparent": {sent}}
		}
	}
	return header
}

func (s *sender) batchBytes() int { return cmp.Or(s.conf.BatchBytes, 1<<20) }

// post sends one signed request.
func (s *sender) post(c wire.Content) transport.Outcome {
	return s.client.Post(func(now time.Time) *http.Request { return s.envelope.Request(c, now) })
}

// resend sends one of an event's public events because a client asked for it,
// outside the order of deliveries.
func (s *sender) resend(rec eventstore.Recorded, part int, header http.Header) result {
	d := &delivery{event: newEvent(rec), requested: true}
	messages, err := d.open(s.opener, s.now())
	if err != nil {
		return result{delivery: d, Outcome: transport.Outcome{Scope: internal}, err: err}
	}
	if d.part = slices.IndexFunc(s.selected(messages), func(m *wire.Message) bool { return m.Part == part }); d.part < 0 {
		return result{delivery: d, Outcome: transport.Outcome{Scope: unwanted}}
	}
	return s.attempt([]sending{{d, d.part}}, header)[0]
}

// readLane reads the next events that a lane owes, from a revision up to a
// position.
func (s *sender) readLane(ctx context.Context, l *lane, from eventstore.Revision, owed eventstore.Position) laneRead {
	read := laneRead{lane: l, owed: owed}
	size := 0
	for rec, err := range s.log.ReadStream(ctx, l.stream, from) {
		if err != nil {
			read.err = fmt.Errorf("webhooks: read %s: %w", l.stream, err)
			break
		}
		if rec.Position > owed || len(read.found) == laneEvents || size > laneBytes {
			break
		}
		d := &delivery{event: newEvent(rec), lane: l}
		messages, err := d.open(s.opener, s.now())
		if err != nil {
			read.err = err
			break
		}
		if len(s.selected(messages)) > 0 || d.joint() {
			read.found = append(read.found, d)
			size += len(rec.Clear) + len(rec.Sealed)
		}
	}
	if len(read.found) > 0 {
		read.err = nil // send what was found; the next read returns the error again
	}
	return read
}
