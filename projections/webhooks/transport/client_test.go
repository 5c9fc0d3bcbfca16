package transport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"accountledger/projections/webhooks/wire"
)

// Rows 19 to 23, 36, 37: the meaning of each response.
func TestClassify(t *testing.T) {
	t.Parallel()
	statuses := map[Scope][]int{
		Delivered:   {200, 201, 202, 204, 299},
		Refused:     {400, 402, 404, 405, 409, 413, 415, 422, 451, 500, 501, 507},
		Unavailable: {101, 300, 301, 302, 303, 304, 307, 308, 401, 403, 407, 408, 429, 502, 503, 504},
		Disabled:    {410},
	}
	for want, all := range statuses {
		for _, status := range all {
			if o := classify(&http.Response{StatusCode: status}, time.Now()); o.Scope != want || o.Status != status || (o.Code == "") != (want == Delivered) {
				t.Errorf("%d: scope %d, code %q; want scope %d", status, o.Scope, o.Code, want)
			}
		}
	}
	for _, tt := range []struct {
		status    int
		directive string
		want      Scope
	}{
		{500, "abort-message", Aborted}, {503, "abort-message", Aborted}, {200, "abort-message", Delivered},
		{500, "disable", Disabled}, {200, "disable", Disabled}, {500, "something", Refused},
	} {
		r := &http.Response{StatusCode: tt.status, Header: http.Header{"Webhook-Delivery": {tt.directive}}}
		if o := classify(r, time.Now()); o.Scope != tt.want {
			t.Errorf("%d with webhook-delivery: %s: scope %d, want %d", tt.status, tt.directive, o.Scope, tt.want)
		}
	}
}

// Rows 25, 26: the forms of Retry-After.
func TestRetryAfter(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"120": 2 * time.Minute, "120.6": 121 * time.Second, "0": 0, "-5": 0, "abc": 0, "": 0, "99999999": 24 * time.Hour, "1e300": 24 * time.Hour,
		"NaN": 0, "Inf": 24 * time.Hour,
		"Sun, 22 Nov 2026 12:10:00 GMT": 10 * time.Minute, "Sun, 22 Nov 2026 11:00:00 GMT": 0, "Sun, 22 Nov 2037 12:00:00 GMT": 24 * time.Hour,
	} {
		if got := retryAfter(value, now); got != want {
			t.Errorf("Retry-After: %s: %s, want %s", value, got, want)
		}
	}
}

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

// config returns the configuration of a client that may connect to loopback.
func config(u *url.URL) Config {
	return Config{URL: u, Allow: loopback, InFlight: 1, Timeout: 5 * time.Second, Now: time.Now}
}

// request returns a function that forms a signed request to u.
func request(u *url.URL) func(now time.Time) *http.Request {
	signer, err := wire.ParseSigner("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	if err != nil {
		panic(err)
	}
	e := wire.Envelope{URL: u, Signers: wire.Signers{signer}}
	return func(now time.Time) *http.Request { return e.Request(wire.Content{ID: "id", Body: []byte("{}")}, now) }
}

// postTo makes one request with a client and closes it.
func postTo(t *testing.T, c Config) Outcome {
	t.Helper()
	client, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	return client.Post(request(c.URL))
}

// guarded returns a client that connects through g.
func guarded(u *url.URL, g *guard) *Client {
	return &Client{url: u, timeout: 5 * time.Second, transport: newTransport(g, 1), now: time.Now, private: g.private.Load}
}

// post makes one request to a server on loopback.
func post(t *testing.T, server string, timeout time.Duration) Outcome {
	t.Helper()
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	c := config(u)
	c.Timeout = timeout
	client, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	client.private = func() bool { return false } // loopback counts as public here
	defer client.Close()
	return client.Post(request(u))
}

// Row 20: a redirect is a failure and is not followed.
func TestRedirectIsNotFollowed(t *testing.T) {
	t.Parallel()
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the redirect was followed") }))
	defer elsewhere.Close()
	for _, status := range []int{301, 302, 303, 307, 308} {
		server := httptest.NewServer(http.RedirectHandler(elsewhere.URL, status))
		if o := post(t, server.URL, 5*time.Second); o.Scope != Unavailable || o.Code != codeRedirect || o.Status != status {
			t.Errorf("%d: %+v, want %s", status, o, codeRedirect)
		}
		server.Close()
	}
}

// Rows 21, 29, 30: bodies and interim responses.
func TestResponses(t *testing.T) {
	t.Parallel()
	var written atomic.Int64
	mux := http.NewServeMux()
	mux.HandleFunc("/continue", func(rw http.ResponseWriter, r *http.Request) {
		rw.WriteHeader(http.StatusContinue)
		rw.WriteHeader(http.StatusOK)
	})
	mux.HandleFunc("/silent", func(_ http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body); <-r.Context().Done() })
	mux.HandleFunc("/dribble", func(rw http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		for r.Context().Err() == nil {
			fmt.Fprint(rw, "x")
			rw.(http.Flusher).Flush()
			time.Sleep(10 * time.Millisecond)
		}
	})
	big := func(status int) http.HandlerFunc {
		return func(rw http.ResponseWriter, r *http.Request) {
			rw.WriteHeader(status)
			for range 10 << 20 >> 10 {
				n, err := rw.Write(make([]byte, 1<<10))
				written.Add(int64(n))
				if err != nil {
					return
				}
			}
		}
	}
	mux.HandleFunc("/big", big(200))
	mux.HandleFunc("/bigrefusal", big(422))
	server := httptest.NewServer(mux)
	defer server.Close()
	for _, tt := range []struct {
		path string
		want Outcome
	}{
		{"/continue", Outcome{Scope: Delivered, Status: 200}},
		{"/silent", Outcome{Scope: Unavailable, Code: codeTimeout}},
		{"/dribble", Outcome{Scope: Unavailable, Status: 200, Code: codeTimeout}},
		{"/big", Outcome{Scope: Delivered, Status: 200}},
		{"/bigrefusal", Outcome{Scope: Refused, Status: 422, Code: CodeStatus, Response: make([]byte, keepResponse)}},
	} {
		timeout := 10 * time.Second
		if tt.want.Code == codeTimeout {
			timeout = 300 * time.Millisecond
		}
		if diff := cmp.Diff(tt.want, post(t, server.URL+tt.path, timeout)); diff != "" {
			t.Errorf("%s: %s", tt.path, diff)
		}
	}
	// The client reads a bounded part of each body; the sockets' buffers hold some
	// more.
	if n := written.Load(); n > 2*(8<<20) {
		t.Errorf("the receivers wrote %d bytes of 20 MiB", n)
	}
}

// boundAddress returns an address that is bound but not listened on, so that no
// other process can listen there.
func boundAddress(t *testing.T) string {
	t.Helper()
	socket, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(socket) })
	if err := syscall.Bind(socket, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(socket)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint("127.0.0.1:", name.(*syscall.SockaddrInet4).Port)
}

// Rows 31, 70: the codes of requests without a response.
func TestTransportCodes(t *testing.T) {
	t.Parallel()
	silent := "http://" + boundAddress(t)
	dropping, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer dropping.Close()
	go func() {
		for conn, err := dropping.Accept(); err == nil; conn, err = dropping.Accept() {
			conn.Close()
		}
	}()
	quiet := func(s *httptest.Server) *httptest.Server {
		s.Config.ErrorLog = log.New(io.Discard, "", 0)
		return s
	}
	authority := quiet(httptest.NewTLSServer(nil))
	defer authority.Close()
	old := quiet(httptest.NewUnstartedServer(nil))
	old.TLS = &tls.Config{MaxVersion: tls.VersionTLS11}
	old.StartTLS()
	defer old.Close()
	plain := quiet(httptest.NewServer(nil))
	defer plain.Close()
	for server, want := range map[string]string{
		silent:                               codeRefused,
		"http://" + dropping.Addr().String(): codeReset,
		authority.URL:                        codeTLSAuthority,
		old.URL:                              codeTLS,
		strings.Replace(plain.URL, "http:", "https:", 1): codeTLS,
	} {
		if o := post(t, server, 5*time.Second); o.Scope != Unavailable || o.Code != want {
			t.Errorf("%s: %q, want %q", server, o.Code, want)
		}
	}
	for want, err := range map[string]error{
		codeDNS:        fmt.Errorf("dial: %w", &net.DNSError{IsNotFound: true}),
		codeTLSExpired: &tls.CertificateVerificationError{Err: x509.CertificateInvalidError{Reason: x509.Expired}},
		codeTLSHost:    &tls.CertificateVerificationError{Err: x509.HostnameError{Certificate: &x509.Certificate{}}},
		codeConnection: errors.New("connection reset by a test"),
	} {
		if got := errorCode(err); got != want {
			t.Errorf("%v: %q, want %q", err, got, want)
		}
	}
}

// Row 70: the certificate must be valid for the host, whatever its address.
func TestCertificate(t *testing.T) {
	t.Parallel()
	server := httptest.NewUnstartedServer(nil)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	defer server.Close()
	port := server.Listener.Addr().(*net.TCPAddr).Port
	for host, want := range map[string]Outcome{
		"example.com":   {Scope: Refused, Status: 404, Code: CodeStatus},
		"127.0.0.1":     {Scope: Refused, Status: 404, Code: CodeStatus},
		"wrong.example": {Scope: Unavailable, Code: codeTLSHost},
	} {
		g := newGuard(loopback, false)
		g.lookup = func(context.Context, string, string) ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
		}
		g.roots = x509.NewCertPool()
		g.roots.AddCert(server.Certificate())
		u := &url.URL{Scheme: "https", Host: fmt.Sprintf("%s:%d", host, port)}
		client := guarded(u, g)
		if diff := cmp.Diff(want, client.Post(request(u))); diff != "" {
			t.Errorf("row 70: %s: %s", host, diff)
		}
		client.Close()
	}
}

// watched reports when the transport closes the connection.
type watched struct {
	net.Conn
	over chan<- struct{}
}

func (c watched) Close() error {
	c.over <- struct{}{}
	return c.Conn.Close()
}

// Row 32: if the receiver closed an idle connection, the client dials again, and
// the request succeeds.
func TestIdleConnectionClosed(t *testing.T) {
	t.Parallel()
	var requests atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		rw.WriteHeader(http.StatusNoContent)
	}))
	defer server.Close()
	u := mustURL(t, server.URL)
	over := make(chan struct{}, 100)
	network := newTransport(newGuard(loopback, true), 1)
	dial := network.DialContext
	network.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		return watched{conn, over}, err
	}
	c := config(u)
	c.RoundTripper = network
	client, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for range 5 {
		if o := client.Post(request(u)); o.Scope != Delivered || o.Status != http.StatusNoContent {
			t.Errorf("%+v, want it delivered", o)
		}
		server.CloseClientConnections()
		<-over
	}
	if n := requests.Load(); n != 5 {
		t.Errorf("%d requests, want 5", n)
	}
}
