package webhooks

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"io"
	"maps"
	"math"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// scope says what an outcome is about, and so who waits because of it.
type scope int

const (
	delivered   scope = iota
	refused           // this event: its account waits
	unavailable       // the endpoint: everything waits
	aborted           // this event, and the endpoint does not want it again
	disabled          // the endpoint does not want anything any more
	internal          // ours: nobody is charged
	unwanted          // the endpoint has asked for something else since
	unsent            // there was no room for it in a batch
)

// Error codes of attempts, beside HTTP's status.
const (
	codeBlocked      = "blocked_address"
	codeDNS          = "dns"
	codeRefused      = "connection_refused"
	codeReset        = "connection_reset"
	codeConnection   = "connection"
	codeTimeout      = "timeout"
	codeTLS          = "tls"
	codeTLSExpired   = "tls_expired"
	codeTLSHost      = "tls_hostname"
	codeTLSAuthority = "tls_authority"
	codeRedirect     = "redirect"
	codeAuth         = "auth_error"
	codeGone         = "gone"
	codeDisable      = "disabled_by_receiver"
	codeAbort        = "aborted_by_receiver"
	codeStatus       = "status"
	codeFailing      = "failing" // too many accounts at once
)

// outcome is what came of one request.
type outcome struct {
	scope      scope
	status     int
	code       string
	retryAfter time.Duration
	response   []byte // the start of a refusal's body
	err        error  // of internal
}

// Bounds of what is read of a response.
const (
	keepResponse  = 4 << 10
	drainResponse = 64 << 10 // above that the connection is closed rather than drained
)

// newTransport connects as g allows and to nothing else: no proxy of the
// environment, no old TLS, no compression, no HTTP/2 whose connection many
// requests would fall with.
func newTransport(g *guard, inFlight int) *http.Transport {
	return &http.Transport{
		Proxy:                  nil,
		DialContext:            g.dial,
		DialTLSContext:         g.dialTLS,
		DisableCompression:     true,
		MaxIdleConnsPerHost:    inFlight,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: drainResponse,
		WriteBufferSize:        1 << 10,
		ReadBufferSize:         1 << 10,
	}
}

// target is where and as what an endpoint is sent to.
type target struct {
	url       *url.URL
	userAgent string
	timeout   time.Duration
	signers   signers
	hub       bool // sign as GitHub does, too
	headers   map[string]string
	auth      credentials
	transport http.RoundTripper
	now       func() time.Time
	private   func() bool // responses are not kept
}

// post sends one request and reads what it is answered. It is called on a
// RoundTripper, not on a Client, so that no redirect is ever followed. A POST
// that was written is not repeated by it, so one call is one request.
func (t *target) post(c content) outcome {
	ctx, cancel := context.WithTimeout(context.Background(), t.timeout)
	defer cancel()
	response, err := t.send(ctx, c)
	if err != nil {
		return outcome{scope: unavailable, code: transportCode(err)}
	}
	defer response.Body.Close()
	kept, err := readResponse(response.Body)
	if err != nil && errors.Is(err, context.DeadlineExceeded) {
		return outcome{scope: unavailable, status: response.StatusCode, code: codeTimeout}
	}
	o := judge(response, t.now())
	if o.scope != delivered && !t.private() {
		o.response = kept
	}
	return o
}

// send makes the request, once more with a new token where one was refused.
func (t *target) send(ctx context.Context, c content) (*http.Response, error) {
	for again := false; ; again = true {
		r := t.request(ctx, c)
		if err := t.auth.add(ctx, r); err != nil {
			return nil, err
		}
		response, err := t.transport.RoundTrip(r)
		if err != nil || response.StatusCode != http.StatusUnauthorized || t.auth.tokens == nil || again {
			return response, err
		}
		_, err = readResponse(response.Body)
		response.Body.Close()
		if err != nil {
			return nil, err
		}
		t.auth.tokens.forget(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
	}
}

func (t *target) request(ctx context.Context, c content) *http.Request {
	now := t.now()
	seconds := strconv.FormatInt(now.Unix(), 10)
	values := [...]string{c.kind, t.userAgent, c.id, seconds, t.signers.header(c.id, now, seconds, c.body)}
	r := &http.Request{
		Method: http.MethodPost, URL: t.url, Host: t.url.Host, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		// The keys are in canonical form, and each value has a capacity of one.
		Header: http.Header{
			"Content-Type":      values[0:1:1],
			"User-Agent":        values[1:2:2],
			"Webhook-Id":        values[2:3:3],
			"Webhook-Timestamp": values[3:4:4],
			"Webhook-Signature": values[4:5:5],
		},
		Body:          io.NopCloser(bytes.NewReader(c.body)),
		ContentLength: int64(len(c.body)),
		// Lets the transport dial again when an idle connection turns out to
		// have been closed before anything was written to it.
		GetBody: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(c.body)), nil },
	}
	maps.Copy(r.Header, c.header)
	for name, value := range t.headers {
		r.Header.Set(name, value)
	}
	if t.hub {
		if value := t.signers.hub(c.body); value != "" {
			r.Header.Set(HeaderHub, value)
		}
	}
	return r.WithContext(ctx)
}

// readResponse returns the start of a body and reads the rest of it, within
// bounds, so that the connection can be used again.
func readResponse(body io.Reader) ([]byte, error) {
	if body == http.NoBody {
		return nil, nil
	}
	kept, err := io.ReadAll(io.LimitReader(body, keepResponse))
	if err != nil || len(kept) < keepResponse {
		return kept, err
	}
	_, err = io.CopyN(io.Discard, body, drainResponse-keepResponse)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return kept, err
}

// judge says what a response means. What is not listed is about the event.
func judge(r *http.Response, now time.Time) outcome {
	o := outcome{status: r.StatusCode, scope: refused, code: codeStatus}
	wish := strings.TrimSpace(r.Header.Get("webhook-delivery"))
	switch s := r.StatusCode; {
	case s == http.StatusGone:
		o.scope, o.code = disabled, codeGone
	case wish == "disable":
		o.scope, o.code = disabled, codeDisable
	case s >= 200 && s <= 299:
		return outcome{status: s, scope: delivered}
	case wish == "abort-message":
		o.scope, o.code = aborted, codeAbort
	case s < 200:
		o.scope = unavailable
	case s >= 300 && s <= 399:
		o.scope, o.code = unavailable, codeRedirect
	case s == 401 || s == 403 || s == 407:
		o.scope, o.code = unavailable, codeAuth
	case s == 408 || s == 429 || s == 502 || s == 503 || s == 504:
		o.scope = unavailable
	}
	o.retryAfter = retryAfter(r.Header.Get("Retry-After"), now)
	return o
}

// maxRetryAfter is the longest an endpoint can ask to be left alone.
const maxRetryAfter = 24 * time.Hour

// retryAfter reads RFC 9110's Retry-After, seconds or a date; fractions, which
// some send, are rounded up. What it cannot read, or what is past, is 0.
func retryAfter(value string, now time.Time) time.Duration {
	value = strings.TrimSpace(value)
	var d time.Duration
	if seconds, err := strconv.ParseFloat(value, 64); err == nil {
		if !(seconds > 0) {
			return 0
		}
		d = time.Duration(min(math.Ceil(seconds), maxRetryAfter.Seconds())) * time.Second
	} else if date, err := http.ParseTime(value); err == nil {
		d = date.Sub(now)
	}
	return min(max(d, 0), maxRetryAfter)
}

// transportCode names why there was no response, without quoting an error:
// those name hosts and addresses.
func transportCode(err error) string {
	var (
		dns       *net.DNSError
		hostname  x509.HostnameError
		invalid   x509.CertificateInvalidError
		authority x509.UnknownAuthorityError
		network   net.Error
	)
	switch {
	case errors.Is(err, errBlocked):
		return codeBlocked
	case errors.Is(err, errToken):
		return codeAuth
	case errors.As(err, &dns):
		return codeDNS
	case errors.Is(err, context.DeadlineExceeded) || errors.As(err, &network) && network.Timeout():
		return codeTimeout
	case errors.As(err, &hostname):
		return codeTLSHost
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return codeTLSExpired
	case errors.As(err, &authority):
		return codeTLSAuthority
	case errors.Is(err, errTLS):
		return codeTLS
	case errors.Is(err, syscall.ECONNREFUSED):
		return codeRefused
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF),
		strings.HasSuffix(err.Error(), "server closed idle connection"): // net/http exports no value for it
		return codeReset
	}
	return codeConnection
}
