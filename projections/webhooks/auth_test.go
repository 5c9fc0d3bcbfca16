package webhooks

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base32"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-json-experiment/json"

	"accountledger/domain"
	"accountledger/projections/webhooks/transport"
)

const rfcSeed = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ" // of RFC 6238's test vectors

// totp is RFC 6238's password for a seed in base32, as a receiver computes it.
func totp(t *testing.T, seed string, now time.Time) string {
	key, err := base32.StdEncoding.DecodeString(seed)
	if err != nil {
		t.Fatal(err)
	}
	mac := hmac.New(sha1.New, key)
	mac.Write(binary.BigEndian.AppendUint64(nil, uint64(now.Unix()/30)))
	sum := mac.Sum(nil)
	code := binary.BigEndian.Uint32(sum[sum[19]&0xf:]) & 0x7fffffff
	return fmt.Sprintf("%06d", code%1_000_000)
}

// authenticated returns a creation with authentication.
func authenticated(a domain.WebhookAuth, secret string) Creation {
	c := creation("https://crm.example/hook?x=1")
	c.Options.Auth, c.Auth = a, secret
	return c
}

// Each type of authentication adds its credentials to requests, and its secret
// appears nowhere else.
func TestAuth(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		auth   domain.WebhookAuth
		secret string
		shown  func(r *http.Request) bool
	}{
		{"a key in a header", domain.WebhookAuth{Type: domain.AuthAPIKey, In: "header", Name: "X-API-Key"}, "hunter2", func(r *http.Request) bool { return r.Header.Get("X-API-Key") == "hunter2" }},
		{"a key in the query", domain.WebhookAuth{Type: domain.AuthAPIKey, In: "query", Name: "key"}, "hunter&2", func(r *http.Request) bool {
			return r.URL.Query().Get("key") == "hunter&2" && r.URL.Query().Get("x") == "1"
		}},
		{"basic", domain.WebhookAuth{Type: domain.AuthBasic, Username: "ledger"}, "hunter2", func(r *http.Request) bool {
			user, password, ok := r.BasicAuth()
			return ok && user == "ledger" && password == "hunter2"
		}},
		{"totp", domain.WebhookAuth{Type: domain.AuthTOTP, Name: "X-TOTP"}, rfcSeed, func(r *http.Request) bool {
			return r.Header.Get("X-TOTP") == totp(t, rfcSeed, time.Now())
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var lines bytes.Buffer
				w := newWorld(t, Config{Logger: slog.New(slog.NewTextHandler(&lines, &slog.HandlerOptions{Level: slog.LevelDebug}))})
				n := 0
				w.transport = roundTrip(func(r *http.Request) int {
					n++
					if !tt.shown(r) {
						t.Errorf("request %s %v", r.URL, r.Header)
					}
					return 204
				})
				e, _ := w.create("crm", authenticated(tt.auth, tt.secret))
				w.run()
				w.account("ada")
				w.settled("crm")
				document, err := json.Marshal(w.get("crm"))
				if err != nil || n != 1 || e.Auth.Fingerprint == "" {
					t.Errorf("%d requests, fingerprint %q, %v", n, e.Auth.Fingerprint, err)
				}
				for i, rec := range w.log.records {
					if bytes.Contains(rec.Clear, []byte(tt.secret)) {
						t.Errorf("event %d has the secret", i)
					}
				}
				if bytes.Contains(document, []byte(tt.secret)) || bytes.Contains(lines.Bytes(), []byte(tt.secret)) {
					t.Error("the webhook or the log shows the secret")
				}
				w.stop()
			})
		})
	}
}

// roundTrip is a network that responds with a status.
type roundTrip func(r *http.Request) int

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: f(r), Header: http.Header{}, Body: http.NoBody, Request: r}, nil
}

// A secret is kept until a client replaces it, must be given again for another
// receiver, and is deleted when nothing refers to it.
func TestAuthChanges(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	w.create("crm", authenticated(domain.WebhookAuth{Type: domain.AuthAPIKey, In: "header", Name: "X-API-Key"}, "one"))
	update := func(secrets Secrets, change func(s *domain.WebhookSettings)) (Endpoint, error) {
		e, _, err := w.hooks.Update(t.Context(), asAdmin, "crm", func(before domain.Webhook) (domain.WebhookSettings, Secrets, error) {
			s := before.WebhookSettings
			s.Auth.SecretID, s.Auth.Fingerprint = "", "" // as a client sends it
			change(&s)
			return s, secrets, nil
		})
		return e, err
	}
	before := w.get("crm")
	if e, err := update(Secrets{}, func(s *domain.WebhookSettings) { s.Description = "Sales"; s.URL += "&y=2" }); err != nil || e.Auth.Fingerprint != before.Auth.Fingerprint {
		t.Errorf("another description: %+v, %v; want the same secret", e.Auth, err)
	}
	if e, err := update(Secrets{Auth: "two"}, func(*domain.WebhookSettings) {}); err != nil || e.Auth.Fingerprint == before.Auth.Fingerprint {
		t.Errorf("another secret: %+v, %v", e.Auth, err)
	}
	for name, change := range map[string]func(s *domain.WebhookSettings){
		"another host":   func(s *domain.WebhookSettings) { s.URL = "https://evil.example/" },
		"another scheme": func(s *domain.WebhookSettings) { s.URL = "http://127.0.0.1/" },
		"another type":   func(s *domain.WebhookSettings) { s.Auth = domain.WebhookAuth{Type: domain.AuthBasic, Username: "u"} },
		"another server": func(s *domain.WebhookSettings) {
			s.Auth = domain.WebhookAuth{Type: domain.AuthOAuth2, ClientID: "c", TokenURL: "https://evil.example/"}
		},
	} {
		_, err := update(Secrets{}, change)
		if refusal, ok := errors.AsType[*domain.Error](err); !ok || refusal.Faults[0].Pointer != "/auth/secret" {
			t.Errorf("%s: %v, want a fault at /auth/secret", name, err)
		}
	}
	if kept, err := w.hooks.secrets.load(t.Context(), "crm"); err != nil || len(kept) != 2 {
		t.Errorf("%d secrets, %v; want the signing key and the new one", len(kept), err)
	}
	if e, err := update(Secrets{}, func(s *domain.WebhookSettings) { s.Auth = domain.WebhookAuth{} }); err != nil || e.Auth.Fingerprint != "" {
		t.Errorf("no auth: %+v, %v", e.Auth, err)
	}
	if kept, err := w.hooks.secrets.load(t.Context(), "crm"); err != nil || len(kept) != 1 {
		t.Errorf("%d secrets, %v; want the signing key alone", len(kept), err)
	}
}

// issuer is an OAuth 2.0 server and a receiver that accepts its tokens.
type issuer struct {
	mu       sync.Mutex
	issued   int
	status   int
	expires  int
	revoked  map[string]bool
	seen     []string // tokens at the receiver
	requests []string // bodies and authorization at the server
}

func (s *issuer) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *issuer) RoundTrip(r *http.Request) (*http.Response, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	answer := func(status int, body string) (*http.Response, error) {
		return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
	}
	if r.URL.Host == "idp.example" {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		user, password, _ := r.BasicAuth()
		s.requests = append(s.requests, fmt.Sprintf("%s %s:%s %s", r.Method, user, password, body))
		if s.status != 0 {
			return answer(s.status, `{"error":"invalid_client","error_description":"hunter2"}`)
		}
		s.issued++
		return answer(200, fmt.Sprintf(`{"access_token":"token-%d","token_type":"Bearer","expires_in":%d}`, s.issued, s.expires))
	}
	token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	s.seen = append(s.seen, token)
	if s.revoked[token] {
		return answer(401, "")
	}
	return answer(204, "")
}

// Row 72: a token is requested once and kept until shortly before it expires, and
// requested again after a 401. If the server issues none, the endpoint fails.
func TestOAuth2(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var lines bytes.Buffer
		s := &issuer{expires: 100, revoked: map[string]bool{}}
		w := newWorld(t, Config{Logger: slog.New(slog.NewTextHandler(&lines, &slog.HandlerOptions{Level: slog.LevelDebug}))})
		w.transport = s
		w.create("crm", authenticated(domain.WebhookAuth{Type: domain.AuthOAuth2, TokenURL: "https://idp.example/token", ClientID: "led ger", Scope: "hooks"}, "hunter2"))
		w.run()
		step := func(sub string, want ...string) {
			t.Helper()
			s.set(func() { s.seen = nil })
			w.account(sub)
			w.settled("crm")
			synctest.Wait()
			if fmt.Sprint(s.seen) != fmt.Sprint(want) {
				t.Errorf("row 72: %s: tokens %v, want %v", sub, s.seen, want)
			}
		}
		step("a", "token-1")
		time.Sleep(60 * time.Second)
		step("kept", "token-1")
		time.Sleep(15 * time.Second)
		step("early", "token-2")
		s.set(func() { s.revoked["token-2"] = true })
		step("refused", "token-2", "token-3")
		if want := "POST led+ger:hunter2 grant_type=client_credentials&scope=hooks"; s.requests[0] != want {
			t.Errorf("row 72: the server received %q, want %q", s.requests[0], want)
		}
		s.set(func() { s.revoked["token-3"], s.revoked["token-4"], s.seen = true, true, nil })
		w.account("again")
		time.Sleep(time.Second)
		synctest.Wait()
		if e := w.get("crm"); fmt.Sprint(s.seen) != "[token-3 token-4]" || e.Breaker.Reason != "auth_error" {
			t.Errorf("row 72: tokens %v, breaker %+v; want one refresh, then %s", s.seen, e.Breaker, "auth_error")
		}
		s.set(func() { s.status = 400 })
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if e := w.get("crm"); e.Breaker.Reason != "auth_error" || e.Breaker.Step != 2 || e.Lanes != 0 {
			t.Errorf("without a token: %+v, want the breaker open for %s", e.Breaker, "auth_error")
		}
		s.set(func() { s.status = 0 })
		time.Sleep(10 * time.Minute)
		w.settled("crm")
		w.stop()
		for _, secret := range []string{"hunter2", "token-"} {
			if bytes.Contains(lines.Bytes(), []byte(secret)) {
				t.Errorf("row 72: the log shows %s", secret)
			}
		}
	})
}

// pair returns a self-signed client certificate and its key.
func pair(t *testing.T, name string) (certificate, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	block := func(kind string, bytes []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: bytes}))
	}
	return block("CERTIFICATE", der), block("PRIVATE KEY", encoded)
}

// Row 71: the client certificate of a webhook is presented, and requests of other
// webhooks do not use its connections.
func TestClientCertificate(t *testing.T) {
	t.Parallel()
	type seen struct{ name, address string }
	requests := make(chan seen, 10)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		name := ""
		if len(r.TLS.PeerCertificates) > 0 {
			name = r.TLS.PeerCertificates[0].Subject.CommonName
		}
		requests <- seen{name, r.RemoteAddr}
	}))
	server.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	server.StartTLS()
	defer server.Close()
	w := newWorld(t, Config{})
	w.hooks.senders.network = func(c *transport.Config) {
		c.Roots = x509.NewCertPool()
		c.Roots.AddCert(server.Certificate())
	}
	certificate, key := pair(t, "ledger")
	c := creation(server.URL)
	c.Options.ClientCertificate.Certificate, c.ClientKey = certificate, key
	w.create("secured", c)
	w.hook("plain", server.URL)
	w.run()
	w.account("ada")
	w.settled("secured")
	w.settled("plain")
	first, second := <-requests, <-requests
	if first.name == second.name || first.name+second.name != "ledger" || first.address == second.address {
		t.Errorf("row 71: %+v and %+v, want one with the certificate, on a connection of its own", first, second)
	}
	_, other := pair(t, "other")
	c.ClientKey = other
	_, _, _, err := w.hooks.Create(t.Context(), asAdmin, "wrong", c)
	if refusal, ok := errors.AsType[*domain.Error](err); !ok || refusal.Faults[0].Pointer != "/clientCertificate/key" {
		t.Errorf("another key: %v, want a fault at /clientCertificate/key", err)
	}
	if document, err := json.Marshal(w.get("secured")); err != nil || bytes.Contains(document, []byte("PRIVATE")) {
		t.Errorf("the webhook shows its key: %v", err)
	}
}

// Row 68: creation refuses a token URL that must not be connected to.
func TestTokenURLRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{Allow: []netip.Prefix{}})
	_, _, _, err := w.hooks.Create(t.Context(), asAdmin, "crm", authenticated(domain.WebhookAuth{Type: domain.AuthOAuth2, TokenURL: "http://127.0.0.1/token", ClientID: "c"}, "s"))
	if refusal, ok := errors.AsType[*domain.Error](err); !ok || refusal.Faults[0].Pointer != "/auth/tokenUrl" {
		t.Errorf("row 68: %v, want a fault at /auth/tokenUrl", err)
	}
}
