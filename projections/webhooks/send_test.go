package webhooks

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
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
)

// Rows 19 to 23, 36, 37: what each answer means.
func TestJudge(t *testing.T) {
	t.Parallel()
	statuses := map[scope][]int{
		delivered:   {200, 201, 202, 204, 299},
		refused:     {400, 402, 404, 405, 409, 413, 415, 422, 451, 500, 501, 507},
		unavailable: {101, 300, 301, 302, 303, 304, 307, 308, 401, 403, 407, 408, 429, 502, 503, 504},
		disabled:    {410},
	}
	for want, all := range statuses {
		for _, status := range all {
			if o := judge(&http.Response{StatusCode: status}, time.Now()); o.scope != want || o.status != status || (o.code == "") != (want == delivered) {
				t.Errorf("%d: scope %d, code %q; want scope %d", status, o.scope, o.code, want)
			}
		}
	}
	for _, tt := range []struct {
		status int
		wish   string
		want   scope
	}{
		{500, "abort-message", aborted}, {503, "abort-message", aborted}, {200, "abort-message", delivered},
		{500, "disable", disabled}, {200, "disable", disabled}, {500, "something", refused},
	} {
		r := &http.Response{StatusCode: tt.status, Header: http.Header{"Webhook-Delivery": {tt.wish}}}
		if o := judge(r, time.Now()); o.scope != tt.want {
			t.Errorf("%d with webhook-delivery: %s: scope %d, want %d", tt.status, tt.wish, o.scope, tt.want)
		}
	}
}

// Rows 25, 26.
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

// post sends one message to a server on loopback.
func post(t *testing.T, server string, timeout time.Duration) outcome {
	t.Helper()
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	target := target{url: u, transport: newTransport(newGuard(loopback, u.Scheme == "http"), 1), timeout: timeout, now: time.Now,
		signers: anySigner(), private: func() bool { return false }}
	defer target.transport.(*http.Transport).CloseIdleConnections()
	return target.post(content{id: "id", body: []byte("{}")})
}

// Row 20: a redirect is a failure, and nobody looks where it leads.
func TestRedirectIsNotFollowed(t *testing.T) {
	t.Parallel()
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the redirect was followed") }))
	defer elsewhere.Close()
	for _, status := range []int{301, 302, 303, 307, 308} {
		server := httptest.NewServer(http.RedirectHandler(elsewhere.URL, status))
		if o := post(t, server.URL, 5*time.Second); o.scope != unavailable || o.code != codeRedirect || o.status != status {
			t.Errorf("%d: %+v, want %s", status, o, codeRedirect)
		}
		server.Close()
	}
}

// Rows 21, 29, 30: bodies and interim answers.
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
		want outcome
	}{
		{"/continue", outcome{scope: delivered, status: 200}},
		{"/silent", outcome{scope: unavailable, code: codeTimeout}},
		{"/dribble", outcome{scope: unavailable, status: 200, code: codeTimeout}},
		{"/big", outcome{scope: delivered, status: 200}},
		{"/bigrefusal", outcome{scope: refused, status: 422, code: codeStatus, response: make([]byte, keepResponse)}},
	} {
		timeout := 10 * time.Second
		if tt.want.code == codeTimeout {
			timeout = 300 * time.Millisecond
		}
		if diff := cmp.Diff(tt.want, post(t, server.URL+tt.path, timeout), cmp.AllowUnexported(outcome{})); diff != "" {
			t.Errorf("%s: %s", tt.path, diff)
		}
	}
	// What is beyond the drained part never leaves the receiver, save for what
	// the sockets' buffers take.
	if n := written.Load(); n > 2*(8<<20) {
		t.Errorf("%d bytes were written by the receivers of 20 MiB", n)
	}
}

// boundAddress is an address where nobody listens, and nobody else can.
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

// Row 31, 70: why there is no answer.
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
		if o := post(t, server, 5*time.Second); o.scope != unavailable || o.code != want {
			t.Errorf("%s: %q, want %q", server, o.code, want)
		}
	}
	for want, err := range map[string]error{
		codeDNS:        fmt.Errorf("dial: %w", &net.DNSError{IsNotFound: true}),
		codeTLSExpired: &tls.CertificateVerificationError{Err: x509.CertificateInvalidError{Reason: x509.Expired}},
		codeTLSHost:    &tls.CertificateVerificationError{Err: x509.HostnameError{Certificate: &x509.Certificate{}}},
		codeConnection: errNetwork,
	} {
		if got := transportCode(err); got != want {
			t.Errorf("%v: %q, want %q", err, got, want)
		}
	}
}

// Row 70: the certificate must be the host's, whatever address answers.
func TestCertificate(t *testing.T) {
	t.Parallel()
	server := httptest.NewUnstartedServer(nil)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	defer server.Close()
	port := server.Listener.Addr().(*net.TCPAddr).Port
	for host, want := range map[string]outcome{
		"example.com":   {scope: refused, status: 404, code: codeStatus},
		"127.0.0.1":     {scope: refused, status: 404, code: codeStatus},
		"wrong.example": {scope: unavailable, code: codeTLSHost},
	} {
		g := newGuard(loopback, false)
		g.lookup = func(context.Context, string, string) ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
		}
		g.roots = x509.NewCertPool()
		g.roots.AddCert(server.Certificate())
		target := target{url: &url.URL{Scheme: "https", Host: fmt.Sprintf("%s:%d", host, port)}, transport: newTransport(g, 1), timeout: 5 * time.Second,
			now: time.Now, signers: anySigner(), private: g.private.Load}
		if diff := cmp.Diff(want, target.post(content{id: "id", body: []byte("{}")}), cmp.AllowUnexported(outcome{})); diff != "" {
			t.Errorf("row 70: %s: %s", host, diff)
		}
		target.transport.(*http.Transport).CloseIdleConnections()
	}
}

// watched tells when its user knows that the connection is over.
type watched struct {
	net.Conn
	over chan<- struct{}
}

func (c watched) Close() error {
	c.over <- struct{}{}
	return c.Conn.Close()
}

// Row 32: a connection that was closed while idle is dialled anew, and nobody
// notices.
func TestIdleConnectionClosed(t *testing.T) {
	t.Parallel()
	var r receiver
	server := httptest.NewServer(&r)
	defer server.Close()
	w := newWorld(t, Config{})
	over := make(chan struct{}, 100)
	transport := newTransport(newGuard(loopback, true), 1)
	dial := transport.DialContext
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		return watched{conn, over}, err
	}
	w.transport = transport
	w.run()
	w.hook("crm", server.URL)
	for i := range 5 {
		w.account(fmt.Sprint("a", i))
		w.settled("crm") // the answer is back, the connection is idle
		server.CloseClientConnections()
		<-over
	}
	w.settled("crm")
	for _, d := range w.deliveries("crm") {
		if len(d.Attempts) != 1 {
			t.Errorf("attempts %+v, want one", d.Attempts)
		}
	}
	if n := r.count(); n != 5 {
		t.Errorf("%d requests, want 5", n)
	}
}

// Row 33: a connection that drops after the request is a failed attempt, and
// what follows is another one.
func TestConnectionDropsAfterRequest(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	var requests atomic.Int64
	go func() {
		for conn, err := listener.Accept(); err == nil; conn, err = listener.Accept() {
			request, err := http.ReadRequest(bufio.NewReader(conn))
			if err != nil {
				return
			}
			io.Copy(io.Discard, request.Body)
			if requests.Add(1) > 1 {
				fmt.Fprint(conn, "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
			}
			conn.Close()
		}
	}()
	w := newWorld(t, Config{Schedule: []time.Duration{50 * time.Millisecond}})
	w.run()
	w.hook("crm", "http://"+listener.Addr().String())
	w.account("ada")
	w.settled("crm")
	all := w.deliveries("crm")
	if len(all) != 1 || len(all[0].Attempts) != 2 || all[0].Attempts[0].Error != codeReset || all[0].Attempts[1].Status != 204 {
		t.Errorf("deliveries %+v, want one with a reset and a 204", all)
	}
	if n := requests.Load(); n != 2 {
		t.Errorf("%d requests, want 2", n)
	}
}

// Row 12.
func TestTimestampIsNow(t *testing.T) {
	t.Parallel()
	var r receiver
	server := httptest.NewServer(&r)
	defer server.Close()
	w := newWorld(t, Config{})
	w.run()
	_, secret := w.hook("crm", server.URL)
	w.account("ada")
	w.settled("crm")
	key, err := ParseSecret(secret)
	if err != nil {
		t.Fatal(err)
	}
	g := r.got()[0]
	if err := Verify([][]byte{key}, g.header, g.body, g.time); err != nil {
		t.Error(err)
	}
	var seconds int64
	if _, err := fmt.Sscan(g.header.Get(HeaderTimestamp), &seconds); err != nil || g.time.Sub(time.Unix(seconds, 0)).Abs() > 2*time.Second {
		t.Errorf("webhook-timestamp %q, and it is %d", g.header.Get(HeaderTimestamp), g.time.Unix())
	}
}
