package transport

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"sync/atomic"
	"syscall"
	"testing"
)

// fakeNet is a guard's network: names resolve to configured addresses, and dials
// are counted but not made.
type fakeNet struct {
	names map[string][]string
	dials atomic.Int64
}

func (f *fakeNet) guard(plain bool, allow ...string) *guard {
	var prefixes []netip.Prefix
	for _, p := range allow {
		prefixes = append(prefixes, netip.MustParsePrefix(p))
	}
	g := newGuard(prefixes, plain)
	g.lookup = func(_ context.Context, _, host string) ([]netip.Addr, error) {
		var addrs []netip.Addr
		for _, a := range f.names[host] {
			addrs = append(addrs, netip.MustParseAddr(a))
		}
		if addrs == nil {
			return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
		}
		return addrs, nil
	}
	// No connection is made, whatever the guard allows.
	g.dialer.ControlContext = func(_ context.Context, network, address string, _ syscall.RawConn) error {
		if err := g.control(network, address, nil); err != nil {
			return err
		}
		f.dials.Add(1)
		return errDialled
	}
	g.dialer.Control = nil
	return g
}

var errDialled = errors.New("would be dialled")

// Rows 59 to 63, 65, 66: no packet is sent to an internal address.
func TestGuardRefuses(t *testing.T) {
	t.Parallel()
	rows := map[string][]string{
		"row 59": {"127.0.0.1", "[::1]", "0.0.0.0", "[::ffff:127.0.0.1]", "10.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1", "169.254.169.254",
			"192.0.0.192", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"},
		"row 60": {"[fe80::1%25lo]", "[fd00:ec2::254]", "[64:ff9b::7f00:1]", "[64:ff9b:1::7f00:1]", "[2002:7f00:1::]", "[3fff::1]", "[5f00::1]", "[fec0::1]", "[::127.0.0.1]"},
		"row 61": {"2130706433", "0x7f000001", "127.1", "0177.0.0.1", "0X7F.1", "127.0.0.1."},
		"row 62": {"inside.example"},
		"row 63": {"mixed.example"},
		"row 65": {"168.63.129.16", "100.100.100.200", "metadata.example"},
		"row 66": {"8.8.8.8:22", "8.8.8.8:25", "8.8.8.8:6379", "8.8.8.8:5432"},
	}
	for row, hosts := range rows {
		t.Run(row, func(t *testing.T) {
			for _, host := range hosts {
				refusedByGuard(t, host)
			}
		})
	}
}

func refusedByGuard(t *testing.T, host string) {
	t.Helper()
	f := &fakeNet{names: map[string][]string{
		"mixed.example": {"8.8.8.8", "10.0.0.1"}, "metadata.example": {"169.254.169.254"}, "inside.example": {"::1"},
		// How a C library reads numbers.
		"2130706433": {"127.0.0.1"}, "127.1": {"127.0.0.1"},
	}}
	u, err := url.Parse("https://" + host)
	if err != nil {
		t.Fatal(err)
	}
	o := guarded(u, f.guard(false)).Post(request(u))
	if o.Code != codeBlocked || o.Scope != Unavailable || f.dials.Load() != 0 {
		t.Errorf("%s: %q after %d dials, want %s after none", host, o.Code, f.dials.Load(), codeBlocked)
	}
}

// Rows 62, 66, 69: public addresses are dialled, private ones only if they are
// allowed, metadata services never.
func TestGuardAllows(t *testing.T) {
	t.Parallel()
	f := &fakeNet{names: map[string][]string{
		"public.example": {"8.8.8.8", "2606:4700::1111"}, "crm.internal": {"10.1.2.3"}, "both.internal": {"8.8.8.8", "10.1.2.3"},
		"localhost": {"::1", "127.0.0.1"}, "elsewhere.internal": {"192.168.0.1"},
	}}
	for _, tt := range []struct {
		address string
		plain   bool
		allow   []string
		dials   bool
	}{
		{"public.example:443", false, nil, true},
		{"public.example:8443", false, nil, true},
		{"public.example:443", false, []string{"10.0.0.0/8"}, true},
		{"public.example:80", true, nil, false}, // without TLS
		{"public.example:80", true, []string{"10.0.0.0/8"}, false},
		{"crm.internal:80", true, []string{"10.0.0.0/8"}, true},
		{"crm.internal:22", false, []string{"10.0.0.0/8"}, true},
		{"both.internal:443", false, []string{"10.0.0.0/8"}, true},
		{"localhost:80", true, []string{"127.0.0.0/8"}, true},
		{"elsewhere.internal:443", false, []string{"10.0.0.0/8"}, false},
		{"169.254.169.254:80", true, []string{"0.0.0.0/0"}, false},
		{"168.63.129.16:80", true, []string{"0.0.0.0/0"}, false},
		{"100.100.100.200:443", false, []string{"100.64.0.0/10"}, false},
		{"[fd00:ec2::254]:80", true, []string{"::/0"}, false},
		{"[::ffff:169.254.169.254]:80", true, []string{"::/0", "0.0.0.0/0"}, false},
		{"[fe80::1%lo]:443", false, []string{"::/0"}, false},
	} {
		before := f.dials.Load()
		_, err := f.guard(tt.plain, tt.allow...).dial(t.Context(), "tcp", tt.address)
		dialled := f.dials.Load() > before
		if dialled != tt.dials || !tt.dials && !errors.Is(err, errBlocked) {
			t.Errorf("rows 62, 66, 69: %s, plain %t, allow %v: dialled %t, %v; want %t", tt.address, tt.plain, tt.allow, dialled, err, tt.dials)
		}
	}
}

// Row 62: the guard checks the address at the time of dialling.
func TestGuardRebinding(t *testing.T) {
	t.Parallel()
	f := &fakeNet{names: map[string][]string{"rebind.example": {"8.8.8.8"}}}
	g := f.guard(false)
	if _, err := g.dial(t.Context(), "tcp", "rebind.example:443"); !errors.Is(err, errDialled) {
		t.Fatalf("dial = %v, want a dial", err)
	}
	f.names["rebind.example"] = []string{"127.0.0.1"}
	if _, err := g.dial(t.Context(), "tcp", "rebind.example:443"); !errors.Is(err, errBlocked) {
		t.Errorf("row 62: dial = %v, want errBlocked", err)
	}
	// The socket's address is checked even if the lookup is bypassed.
	for _, address := range []string{"127.0.0.1:443", "[::1]:443", "8.8.8.8:22", "nonsense"} {
		if err := newGuard(nil, false).control("tcp4", address, nil); !errors.Is(err, errBlocked) {
			t.Errorf("control(%s) = %v, want errBlocked", address, err)
		}
	}
	if err := newGuard(nil, false).control("unix", "8.8.8.8:443", nil); !errors.Is(err, errBlocked) {
		t.Errorf("control of a unix socket = %v, want errBlocked", err)
	}
}

// Row 67: the environment's proxy is not used.
func TestNoProxy(t *testing.T) {
	proxy := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("row 67: the proxy got a request") }))
	defer proxy.Close()
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy"} {
		t.Setenv(name, proxy.URL)
	}
	if newTransport(newGuard(nil, false), 1).Proxy != nil {
		t.Error("row 67: the transport has a proxy")
	}
}

// Row 73: a response from a private address is not kept; row 30: of one from a
// public address the start is kept.
func TestResponseOfPrivateAddress(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		http.Error(rw, "secret of the inside", http.StatusInternalServerError)
	}))
	defer server.Close()
	u, _ := url.Parse(server.URL)
	g := newGuard(loopback, true)
	for _, private := range []func() bool{g.private.Load, func() bool { return false }} {
		client := guarded(u, g)
		client.private = private
		o := client.Post(request(u))
		if kept := len(o.Response) > 0; kept == private() {
			t.Errorf("row 73: response of private address %t kept: %t", private(), kept)
		}
	}
	if !g.private.Load() {
		t.Error("loopback does not count as private")
	}
}

func mustURL(t testing.TB, text string) *url.URL {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// Row 64: a redirect to the metadata service is not followed.
func TestRedirectInside(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.RedirectHandler("http://169.254.169.254/latest/meta-data", http.StatusFound))
	defer server.Close()
	if o := postTo(t, config(mustURL(t, server.URL))); o.Scope != Unavailable || o.Code != codeRedirect {
		t.Errorf("row 64: %q, want %s", o.Code, codeRedirect)
	}
}
