package wire

import (
	"bytes"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Headers of requests. The first three are those of Standard Webhooks 1.0.0.
const (
	HeaderID        = "webhook-id"        // the event's id; of a batch, derived from its events' ids
	HeaderTimestamp = "webhook-timestamp" // when the request was signed, in Unix seconds
	HeaderSignature = "webhook-signature"

	HeaderHub      = "X-Hub-Signature-256" // GitHub's signature: the HMAC-SHA256 of the body alone
	HeaderPosition = "Ledger-Position"     // of the last event in the request, for min_position
	HeaderTest     = "Webhook-Test"        // true: the event did not happen, a user tests the webhook
	HeaderReplay   = "Webhook-Replay"      // the id of the replay that the delivery is part of
)

// Envelope holds what all requests to a webhook have in common.
type Envelope struct {
	URL          *url.URL // the endpoint
	UserAgent    string
	Signers      Signers
	HubSignature bool              // sends HeaderHub as well, if a signer has a shared secret
	Headers      map[string]string // configured for the webhook; they replace those of the content
}

// Request returns the POST request that carries c, signed at now. Its body can
// be read again, so that a transport may repeat a request that was not sent.
func (e *Envelope) Request(c Content, now time.Time) *http.Request {
	seconds := strconv.FormatInt(now.Unix(), 10)
	values := [...]string{c.Type, e.UserAgent, c.ID, seconds, e.Signers.header(c.ID, now, seconds, c.Body)}
	r := &http.Request{
		Method: http.MethodPost, URL: e.URL, Host: e.URL.Host, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		// The keys are in canonical form, and each value has a capacity of one.
		Header: http.Header{
			"Content-Type":      values[0:1:1],
			"User-Agent":        values[1:2:2],
			"Webhook-Id":        values[2:3:3],
			"Webhook-Timestamp": values[3:4:4],
			"Webhook-Signature": values[4:5:5],
		},
		Body:          io.NopCloser(bytes.NewReader(c.Body)),
		ContentLength: int64(len(c.Body)),
		// Lets the transport dial again if an idle connection turns out to have
		// been closed before the request was written to it.
		GetBody: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(c.Body)), nil },
	}
	maps.Copy(r.Header, c.Header)
	for name, value := range e.Headers {
		r.Header.Set(name, value)
	}
	if e.HubSignature {
		if value := e.Signers.hub(c.Body); value != "" {
			r.Header.Set(HeaderHub, value)
		}
	}
	return r
}
