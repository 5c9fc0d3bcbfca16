// Package transport makes requests to the endpoints of webhooks: it connects
// only to addresses that are allowed, authenticates the ledger to the receiver,
// and classifies the response.
package transport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"accountledger/domain"
)

// Scope says what an outcome is about.
type Scope int

// The scopes of outcomes.
const (
	Delivered   Scope = iota
	Refused           // the receiver refused this event
	Unavailable       // the endpoint failed, whatever it was sent
	Aborted           // the receiver refused this event and rejects a retry
	Disabled          // the receiver rejects all further requests
)

// The codes of outcomes, beside HTTP's status. Only CodeStatus is known outside.
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
	codeNotAllowed   = "origin_not_allowed"
	CodeStatus       = "status" // the HTTP status says it all
)

// Outcome is the result of one request.
type Outcome struct {
	Scope      Scope
	Status     int           // HTTP's; 0 without a response
	Code       string        // why it failed; "" if Delivered
	RetryAfter time.Duration // how long the receiver asks to wait; 0 if it does not, at most 24 hours
	Response   []byte        // the first 4 KiB of a refusal's body; nil if it came from a private address
}

// Bounds of what is read of a response, in bytes.
const (
	keepResponse  = 4 << 10
	drainResponse = 64 << 10 // beyond that the connection is closed instead of drained
)

// Config says how to make the requests to one endpoint.
type Config struct {
	URL               *url.URL       // the endpoint; with the scheme http it must resolve to an address in Allow
	Allow             []netip.Prefix // private addresses that may be connected to, on any port and over http
	InFlight          int            // concurrent requests; as many idle connections are kept
	Timeout           time.Duration  // of one request, from the name lookup to the last byte of the response
	UserAgent         string         // of the requests that the client makes itself: Ask, and those for access tokens
	Auth              domain.WebhookAuth
	Secret            string           // of Auth: the API key, password, TOTP seed or client secret
	ClientCertificate *tls.Certificate // presented if the receiver requests one; nil: none
	Now               func() time.Time

	Roots        *x509.CertPool    // of certificate authorities; nil: the system's
	RoundTripper http.RoundTripper // replaces the network in tests; nil: connections that are checked against Allow
}

// Client makes requests to one endpoint. All methods may be called
// concurrently.
type Client struct {
	url       *url.URL
	userAgent string
	timeout   time.Duration
	auth      credentials
	transport http.RoundTripper
	now       func() time.Time
	private   func() bool // a connection went to a private address: responses are not kept
}

// New returns a client. Close it when it is no longer used.
func New(c Config) (*Client, error) {
	g := newGuard(c.Allow, c.URL.Scheme == "http")
	g.roots, g.client = c.Roots, c.ClientCertificate
	client := &Client{url: c.URL, userAgent: c.UserAgent, timeout: c.Timeout, now: c.Now, private: g.private.Load,
		auth: credentials{WebhookAuth: c.Auth, secret: c.Secret, now: c.Now}, transport: c.roundTripper(g)}
	if c.Auth.Type == domain.AuthOAuth2 {
		token, err := url.Parse(c.Auth.TokenURL)
		if err != nil {
			return nil, errors.New("transport: the token URL cannot be parsed") // quotes no URL, which may hold a secret
		}
		g := newGuard(c.Allow, token.Scheme == "http")
		g.roots = c.Roots
		client.auth.tokens = &tokens{url: token, client: c.Auth.ClientID, secret: c.Secret, scope: c.Auth.Scope,
			userAgent: c.UserAgent, transport: c.roundTripper(g), now: c.Now}
	}
	return client, nil
}

func (c Config) roundTripper(g *guard) http.RoundTripper {
	if c.RoundTripper != nil {
		return c.RoundTripper
	}
	return newTransport(g, c.InFlight)
}

// newTransport connects as g allows: without the environment's proxy, without
// compression, and without HTTP/2, where many requests would fail with one
// connection.
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

// Close closes the idle connections.
func (c *Client) Close() {
	transports := []http.RoundTripper{c.transport}
	if c.auth.tokens != nil {
		transports = append(transports, c.auth.tokens.transport)
	}
	for _, transport := range transports {
		if t, ok := transport.(*http.Transport); ok {
			t.CloseIdleConnections()
		}
	}
}

// Post sends the request that form returns for the current time and classifies
// the response. Where the receiver rejects an access token, it obtains a new
// one and sends the request once more, formed again. It follows no redirect and
// repeats no request that was written to a connection.
func (c *Client) Post(form func(now time.Time) *http.Request) Outcome {
	ctx, cancel := context.WithTimeout(context.Background(), c.timeout)
	defer cancel()
	response, err := c.send(ctx, form)
	if err != nil {
		return Outcome{Scope: Unavailable, Code: errorCode(err)}
	}
	defer response.Body.Close()
	kept, err := readResponse(response.Body)
	if err != nil && errors.Is(err, context.DeadlineExceeded) {
		return Outcome{Scope: Unavailable, Status: response.StatusCode, Code: codeTimeout}
	}
	o := classify(response, c.now())
	if o.Scope != Delivered && !c.private() {
		o.Response = kept
	}
	return o
}

// send calls a RoundTripper, not a Client, which would follow redirects.
func (c *Client) send(ctx context.Context, form func(now time.Time) *http.Request) (*http.Response, error) {
	for retried := false; ; retried = true {
		r := form(c.now()).WithContext(ctx)
		if err := c.auth.add(ctx, r); err != nil {
			return nil, err
		}
		response, err := c.transport.RoundTrip(r)
		if err != nil || response.StatusCode != http.StatusUnauthorized || c.auth.tokens == nil || retried {
			return response, err
		}
		_, err = readResponse(response.Body)
		response.Body.Close()
		if err != nil {
			return nil, err
		}
		c.auth.tokens.forget(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
	}
}

// readResponse returns the first bytes of a body and discards the rest, up to a
// bound, so that the connection can be reused.
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

// classify returns the outcome that a response means. A status that is not
// listed is about the event.
func classify(r *http.Response, now time.Time) Outcome {
	o := Outcome{Status: r.StatusCode, Scope: Refused, Code: CodeStatus}
	directive := strings.TrimSpace(r.Header.Get("webhook-delivery"))
	switch s := r.StatusCode; {
	case s == http.StatusGone:
		o.Scope, o.Code = Disabled, codeGone
	case directive == "disable":
		o.Scope, o.Code = Disabled, codeDisable
	case s >= 200 && s <= 299:
		return Outcome{Status: s, Scope: Delivered}
	case directive == "abort-message":
		o.Scope, o.Code = Aborted, codeAbort
	case s < 200:
		o.Scope = Unavailable
	case s >= 300 && s <= 399:
		o.Scope, o.Code = Unavailable, codeRedirect
	case s == 401 || s == 403 || s == 407:
		o.Scope, o.Code = Unavailable, codeAuth
	case s == 408 || s == 429 || s == 502 || s == 503 || s == 504:
		o.Scope = Unavailable
	}
	o.RetryAfter = retryAfter(r.Header.Get("Retry-After"), now)
	return o
}

// maxRetryAfter bounds how long a receiver can ask to wait.
const maxRetryAfter = 24 * time.Hour

// retryAfter reads the Retry-After header (RFC 9110, section 10.2.3): seconds or
// a date. It rounds fractions up, which some servers send. A value that it
// cannot read, or a date in the past, is 0.
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

// errorCode returns the code of an error of a round trip. The error itself is
// not shown, because it names hosts and addresses.
func errorCode(err error) string {
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
