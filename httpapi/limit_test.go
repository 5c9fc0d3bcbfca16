package httpapi

import (
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestRateLimit(t *testing.T) {
	t.Parallel()
	c := newClock()
	l := start(t, func(conf *Config) { conf.Now, conf.RateLimit = c.now, 2 })
	reader := bearer(l.key(t, "reader", scopeAuditRead))
	const quota = 2 * limitWindow
	get := func() response { t.Helper(); return l.send(t, "GET", "/v1/projections", "", reader) }
	first := get()
	if got, want := first.header.Get("RateLimit-Policy"), `"caller";q=20;w=10`; got != want {
		t.Errorf("RateLimit-Policy = %s, want %s", got, want)
	}
	if got, want := first.header.Get("RateLimit"), `"caller";r=19;t=1`; got != want {
		t.Errorf("RateLimit = %s, want %s", got, want)
	}
	for range quota - 1 {
		if r := get(); r.status != 200 {
			t.Fatalf("%d within the quota: %s", r.status, r.body)
		}
	}
	r := l.refused(t, codeTooManyRequests, "GET", "/v1/projections", "", reader)
	if r.header.Get("Retry-After") != "1" || r.header.Get("RateLimit") != `"caller";r=0;t=10` {
		t.Errorf("refused with %v", r.header)
	}
	l.want(t, 200, "GET", "/v1/projections", "") // another caller
	c.pass(time.Second)
	for range 2 {
		l.want(t, 200, "GET", "/v1/projections", "", reader)
	}
	l.refused(t, codeTooManyRequests, "GET", "/v1/projections", "", reader)
}

// TestAddressLimit checks that the limit per address applies only to requests
// without a valid key.
func TestAddressLimit(t *testing.T) {
	t.Parallel()
	c := newClock()
	l := start(t, func(conf *Config) {
		conf.Now, conf.AddressRateLimit = c.now, 1
		conf.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/8")}
	})
	from := func(address string) string { return "X-Forwarded-For: " + address }
	guess := func(address string) response {
		t.Helper()
		return l.send(t, "GET", "/v1/projections", "", "Authorization: Bearer alk_admin_"+strings.Repeat("x", 43), from(address))
	}
	for range limitWindow {
		if r := guess("203.0.113.7"); r.status != 401 {
			t.Fatalf("%d: %s", r.status, r.body)
		}
	}
	for _, address := range []string{
		"203.0.113.7",
		"198.51.100.1, 203.0.113.7",           // an address sent by the client comes before the one that the proxy saw
		"198.51.100.1, 203.0.113.7, 10.1.2.3", // through two trusted proxies
	} {
		if r := guess(address); r.status != http.StatusTooManyRequests {
			t.Errorf("%s: %d", address, r.status)
		}
	}
	if r := guess("203.0.113.8"); r.status != 401 {
		t.Errorf("another address: %d", r.status)
	}
	l.want(t, 200, "GET", "/v1/projections", "", from("203.0.113.7")) // with a key
	l.refused(t, codeTooManyRequests, "GET", "/docs", "", from("203.0.113.7"))
	l.want(t, 200, "GET", "/healthz", "", from("203.0.113.7"))

	// All addresses of an IPv6 /64 share one limit.
	for range limitWindow {
		guess("2001:db8:1:2::1")
	}
	if r := guess("2001:db8:1:2:ffff::9"); r.status != http.StatusTooManyRequests {
		t.Errorf("the same network: %d", r.status)
	}
	if r := guess("2001:db8:1:3::1"); r.status != 401 {
		t.Errorf("another network: %d", r.status)
	}
}

// TestForwardedFor checks that only trusted proxies can set the client address.
func TestForwardedFor(t *testing.T) {
	r, err := http.NewRequest("GET", "/", nil)
	check(t, err)
	r.RemoteAddr = "198.51.100.9:1234"
	for _, name := range []string{"X-Forwarded-For", "X-Real-Ip", "Forwarded"} {
		r.Header.Set(name, "203.0.113.7")
	}
	for _, proxies := range [][]netip.Prefix{nil, {netip.MustParsePrefix("10.0.0.0/8")}} {
		if got := clientAddress(proxies)(r); got != "198.51.100.9" {
			t.Errorf("with proxies %v the address is %s", proxies, got)
		}
	}
	if got := clientAddress([]netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")})(r); got != "203.0.113.7" {
		t.Errorf("behind a trusted proxy the address is %s", got)
	}
}

func TestCORS(t *testing.T) {
	t.Parallel()
	const page = "https://app.example"
	closed := start(t)
	if r := closed.want(t, 200, "GET", "/healthz", "", "Origin: "+page); r.header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("without a setting: %v", r.header)
	}
	l := start(t, func(c *Config) { c.CORSOrigins = []string{page} })
	ask := func(origin string) http.Header {
		t.Helper()
		r := l.send(t, "OPTIONS", "/v1/accounts", "", "Origin: "+origin, "Authorization: ", "Access-Control-Request-Method: PATCH",
			"Access-Control-Request-Headers: authorization,if-match,idempotency-key")
		return r.header
	}
	h := ask(page)
	if h.Get("Access-Control-Allow-Origin") != page || !strings.Contains(h.Get("Access-Control-Allow-Methods"), "PATCH") ||
		!strings.Contains(h.Get("Access-Control-Allow-Headers"), "Idempotency-Key") || h.Get("Access-Control-Allow-Credentials") != "" {
		t.Errorf("preflight: %v", h)
	}
	for _, origin := range []string{"https://evil.example", "https://app.example.evil.example", "null", "http://app.example"} {
		if got := ask(origin).Get("Access-Control-Allow-Origin"); got != "" {
			t.Errorf("origin %s is allowed as %s", origin, got)
		}
	}
	r := l.want(t, 200, "GET", "/v1/projections", "", "Origin: "+page)
	if r.header.Get("Access-Control-Allow-Origin") != page || !strings.Contains(r.header.Get("Access-Control-Expose-Headers"), "ETag") {
		t.Errorf("response: %v", r.header)
	}
}

func TestSecurityHeaders(t *testing.T) {
	t.Parallel()
	l := start(t)
	for _, path := range []string{"/v1/projections", "/healthz", "/docs", "/problems", "/nowhere"} {
		h := l.send(t, "GET", path, "").header
		for name, want := range map[string]string{"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
			"Content-Security-Policy": "default-src 'none'", "Strict-Transport-Security": ""} {
			if got := h.Get(name); !strings.HasPrefix(got, want) || (got == "") != (want == "") {
				t.Errorf("%s of %s = %q, want %q", name, path, got, want)
			}
		}
	}
}
