package transport

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"accountledger/domain"
)

const rfcSeed = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ" // of RFC 6238's test vectors

// RFC 6238's test vectors for SHA-1, their last six digits.
func TestTOTP(t *testing.T) {
	t.Parallel()
	key, err := seed(strings.ToLower(rfcSeed))
	if err != nil {
		t.Fatal(err)
	}
	for seconds, want := range map[int64]string{59: "287082", 1111111109: "081804", 1111111111: "050471", 1234567890: "005924", 2000000000: "279037", 20000000000: "353130"} {
		if got := totp(key, time.Unix(seconds, 0)); got != want {
			t.Errorf("at %d: %s, want %s", seconds, got, want)
		}
	}
	for _, bad := range []string{"", "GEZDGNBV", "not base32!"} {
		if _, err := seed(bad); err == nil {
			t.Errorf("%q is accepted as a seed", bad)
		}
	}
}

// Row 68: token requests connect through the same guard.
func TestTokenURLBlocked(t *testing.T) {
	t.Parallel()
	f := &fakeNet{names: map[string][]string{"idp.example": {"10.0.0.1"}}}
	for _, address := range []string{"https://idp.example/token", "https://169.254.169.254/token", "https://127.0.0.1/token"} {
		u := mustURL(t, "https://crm.example")
		client := guarded(u, f.guard(false))
		client.transport = roundTrip(func(*http.Request) int { return 204 })
		client.auth = credentials{WebhookAuth: domain.WebhookAuth{Type: domain.AuthOAuth2}, tokens: &tokens{url: mustURL(t, address), transport: newTransport(f.guard(false), 1), now: time.Now}}
		if o := client.Post(request(u)); o.Code != codeBlocked || o.Scope != Unavailable || f.dials.Load() != 0 {
			t.Errorf("row 68: %s: %q after %d dials, want %s", address, o.Code, f.dials.Load(), codeBlocked)
		}
	}
}

// roundTrip is a network that responds with a status.
type roundTrip func(r *http.Request) int

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: f(r), Header: http.Header{}, Body: http.NoBody, Request: r}, nil
}
