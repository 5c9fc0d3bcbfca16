package webhooks

import (
	"cmp"
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"accountledger/domain"
	"accountledger/eventstore"
)

// courier makes an endpoint's requests, as it is configured. It decides nothing
// and keeps nothing of what comes of them.
type courier struct {
	conf   domain.Webhook
	log    eventstore.Store
	opener opener
	target *target
	form   form
	now    func() time.Time

	observe func(Attempted)
	trace   func(Tracing) (string, func(Attempted)) // nil: nobody asks
}

// courier sets up the requests to an endpoint.
func (w *Webhooks) courier(ctx context.Context, conf domain.Webhook) (*courier, error) {
	u, err := url.Parse(conf.URL)
	if err != nil {
		return nil, errURL
	}
	kept, err := w.vault(ctx, conf.WebhookID)
	if err != nil {
		return nil, err
	}
	signers, err := kept.signers(conf.Keys)
	if err != nil {
		return nil, err
	}
	t, err := w.target(conf, u, kept)
	if err != nil {
		return nil, err
	}
	t.signers = signers
	return &courier{conf: conf, log: w.c.Log, opener: opener{w.c.Codec, w.c.Ledger}, target: t, form: w.form(conf), now: w.c.Now,
		observe: w.c.Observe, trace: w.c.Trace}, nil
}

// close closes the connections kept for the next request.
func (s *courier) close() {
	transports := []http.RoundTripper{s.target.transport}
	if tokens := s.target.auth.tokens; tokens != nil {
		transports = append(transports, tokens.transport)
	}
	for _, transport := range transports {
		if t, ok := transport.(*http.Transport); ok {
			t.CloseIdleConnections()
		}
	}
}

// selected is the public events the endpoint asked for, by the names it asked
// for them.
func (s *courier) selected(messages []*message) []*message {
	for i, m := range messages {
		if s.told(m) == m {
			continue
		}
		some := append([]*message(nil), messages[:i]...)
		for _, m := range messages[i:] {
			if m = s.told(m); m != nil {
				some = append(some, m)
			}
		}
		return some
	}
	return messages
}

// told is m as the endpoint is told it, or nil. Of how its own deliveries go
// it is told nothing, for each would cause another.
func (s *courier) told(m *message) *message {
	if m.reports != "" && m.reports == s.conf.WebhookID {
		return nil
	}
	return m.told(s.conf.Events)
}

// sending is a delivery as it is when its request begins.
type sending struct {
	*delivery
	part int
}

// attempt makes one request, and tells the observer.
func (s *courier) attempt(all []sending, header http.Header) []result {
	results := s.request(all, header)
	for _, r := range results {
		if r.scope <= internal {
			a := Attempted{WebhookID: s.conf.WebhookID, Outcome: outcomes[r.scope], Status: r.status, Duration: r.duration,
				Age: r.time.Add(r.duration).Sub(r.rec.Time), InTurn: !r.byHand}
			s.observe(a)
			if r.traced != nil {
				r.traced(a)
			}
		}
	}
	return results
}

// request makes it. What goes wrong before there is one is ours.
func (s *courier) request(all []sending, header http.Header) []result {
	start := s.now()
	results := make([]result, len(all))
	var posted []int // of results
	var events []string
	var bodies [][]byte
	var request content
	var last eventstore.Position
	size := 0
	for i, one := range all {
		r := &results[i]
		*r = result{delivery: one.delivery, time: start}
		if !r.prepare(s, one) {
			continue
		}
		before, err := s.previous(one)
		var c content
		if err == nil {
			c, err = r.message.content(&s.form, before)
		}
		switch {
		case err != nil:
			r.outcome = outcome{scope: internal, err: err}
			continue
		case len(posted) > 0 && size+len(c.body) > s.batchBytes():
			r.outcome = outcome{scope: unsent}
			continue
		}
		size += len(c.body) + 2
		request, last = c, max(last, one.rec.Position)
		posted, events, bodies = append(posted, i), append(events, c.id), append(bodies, c.body)
	}
	if len(posted) == 0 {
		return results
	}
	if s.form.format == domain.FormatBatch {
		request = batched(events, bodies)
	}
	o := s.target.post(request.with(http.Header{HeaderPosition: {strconv.FormatInt(int64(last), 10)}}).with(header).with(s.traced(results, posted)))
	duration := s.now().Sub(start)
	for _, i := range posted {
		results[i].outcome, results[i].duration, results[i].batch = o, duration, len(posted)
	}
	return results
}

// traced begins to trace what is posted of results. A batch is one request for
// several traces: the receiver is sent the first.
func (s *courier) traced(results []result, posted []int) (header http.Header) {
	if s.trace == nil {
		return nil
	}
	for _, i := range posted {
		r := &results[i]
		e := &r.message.event
		if e.Traceparent == "" {
			continue
		}
		var sent string
		sent, r.traced = s.trace(Tracing{WebhookID: s.conf.WebhookID, Type: e.Type, Position: r.message.position, Traceparent: e.Traceparent})
		if header == nil && sent != "" {
			header = http.Header{"Traceparent": {sent}}
		}
	}
	return header
}

func (s *courier) batchBytes() int { return cmp.Or(s.conf.BatchBytes, 1<<20) }

// prepare finds the message to send; it reports false, with the outcome, where
// there is none.
func (r *result) prepare(s *courier, one sending) bool {
	messages, err := one.open(s.opener, r.time)
	if err != nil {
		r.outcome = outcome{scope: internal, err: err}
		return false
	}
	messages = s.selected(messages)
	r.parts = len(messages)
	if one.part >= r.parts {
		r.outcome = outcome{scope: unwanted} // not any more, since it was configured anew
		return false
	}
	r.message = messages[one.part]
	return true
}
