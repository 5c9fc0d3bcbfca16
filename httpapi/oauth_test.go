package httpapi

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-json-experiment/json"

	"accountledger/domain"
)

// provider is the part of an OpenID provider that verifying tokens needs: its
// discovery document and its keys, served on loopback.
type provider struct {
	*httptest.Server
	fetched atomic.Int64 // requests for its keys
	down    atomic.Bool

	mu   sync.Mutex
	keys []jose.JSONWebKey
}

func newProvider(t *testing.T) *provider {
	p := &provider{}
	mux := http.NewServeMux()
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		json.MarshalWrite(w, map[string]any{"issuer": p.URL, "jwks_uri": p.URL + "/keys",
			"authorization_endpoint": p.URL + "/auth", "token_endpoint": p.URL + "/token"})
	})
	mux.HandleFunc("/keys", func(w http.ResponseWriter, _ *http.Request) {
		p.fetched.Add(1)
		p.mu.Lock()
		defer p.mu.Unlock()
		set := jose.JSONWebKeySet{}
		for _, key := range p.keys {
			set.Keys = append(set.Keys, key.Public())
		}
		data, err := json.Marshal(set)
		check(t, err)
		w.Write(data)
	})
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p.down.Load() {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(p.Close)
	return p
}

// key generates and publishes a key for an algorithm.
func (p *provider) key(t *testing.T, kid string, algorithm jose.SignatureAlgorithm) jose.JSONWebKey {
	t.Helper()
	var private crypto.PrivateKey
	var err error
	switch algorithm {
	case jose.ES256:
		private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case jose.EdDSA:
		_, private, err = ed25519.GenerateKey(rand.Reader)
	default:
		private, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	check(t, err)
	key := jose.JSONWebKey{Key: private, KeyID: kid, Algorithm: string(algorithm), Use: "sig"}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keys = append(p.keys, key)
	return key
}

type claims map[string]any

// but returns c with claims replaced, or removed if they are nil.
func (c claims) but(changes claims) claims {
	all := claims{}
	for name, value := range c {
		all[name] = value
	}
	for name, value := range changes {
		if all[name] = value; value == nil {
			delete(all, name)
		}
	}
	return all
}

// sign returns a signed token with claims; headers are added to those of the key.
func sign(t *testing.T, key jose.JSONWebKey, c claims, headers ...map[string]any) string {
	t.Helper()
	options := (&jose.SignerOptions{}).WithType("JWT")
	for _, h := range headers {
		for name, value := range h {
			options.WithHeader(jose.HeaderKey(name), value)
		}
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.SignatureAlgorithm(key.Algorithm), Key: key}, options)
	check(t, err)
	payload, err := json.Marshal(c)
	check(t, err)
	signed, err := signer.Sign(payload)
	check(t, err)
	token, err := signed.CompactSerialize()
	check(t, err)
	return token
}

// forge returns a token with the given header and signature.
func forge(t *testing.T, header map[string]any, c claims, signature []byte) string {
	t.Helper()
	encode := func(v any) string {
		text, err := json.Marshal(v)
		check(t, err)
		return base64.RawURLEncoding.EncodeToString(text)
	}
	return encode(header) + "." + encode(c) + "." + base64.RawURLEncoding.EncodeToString(signature)
}

// trusting starts a ledger that accepts a provider's tokens.
func trusting(t *testing.T, p *provider, c *clock) *ledger {
	return start(t, func(conf *Config) {
		conf.Now = c.now
		conf.Issuer = Issuer{URL: p.URL, Audience: "ledger", ClockSkew: 30 * time.Second}
	})
}

func goodClaims(p *provider, c *clock) claims {
	now := c.now()
	return claims{"iss": p.URL, "aud": "ledger", "sub": "0190b0c2-5f3e-7c1a-9d5e-3f6a1b2c4d5e", "client_id": "portal", "scope": "openid audit:read accounts:write",
		"iat": now.Unix(), "exp": now.Add(time.Hour).Unix()}
}

func TestTokens(t *testing.T) {
	t.Parallel()
	p, c := newProvider(t), newClock()
	l := trusting(t, p, c)
	good := goodClaims(p, c)
	for _, algorithm := range TokenAlgorithms {
		key := p.key(t, "key-"+algorithm, jose.SignatureAlgorithm(algorithm))
		c.pass(issuerEvery) // so that the keys can be fetched again
		l.want(t, 200, "GET", "/v1/projections", "", bearer(sign(t, key, good)))
	}
	key := p.keys[1]
	for name, changes := range map[string]claims{
		"list of audiences": {"aud": []string{"other", "ledger"}},
		"scp list":          {"scope": nil, "scp": []string{"audit:read"}},
		"scp text":          {"scope": nil, "scp": "audit:read"},
		"ends within skew":  {"exp": c.now().Add(-20 * time.Second).Unix()},
		"begins in skew":    {"nbf": c.now().Add(20 * time.Second).Unix()},
	} {
		if r := l.send(t, "GET", "/v1/projections", "", bearer(sign(t, key, good.but(changes)))); r.status != 200 {
			t.Errorf("%s: %d %s", name, r.status, r.body)
		}
	}
	l.want(t, 200, "GET", "/v1/projections", "", bearer(sign(t, key, good, map[string]any{"typ": "at+jwt"})))
	l.refused(t, codeForbidden, "GET", "/v1/roles", "", bearer(sign(t, key, good)))
	l.refused(t, codeForbidden, "GET", "/v1/projections", "", bearer(sign(t, key, good.but(claims{"scope": nil}))))
	l.refused(t, codeForbidden, "GET", "/v1/projections", "", bearer(sign(t, key, good.but(claims{"scope": 7}))))

	// The log names the actor, but no e-mail address.
	for subject, want := range map[string]string{
		"0190b0c2-5f3e-7c1a-9d5e-3f6a1b2c4d5e": "0190b0c2-5f3e-7c1a-9d5e-3f6a1b2c4d5e",
		"portal":                               "portal",
		"ada@example.com":                      "",
	} {
		path := l.want(t, 201, "POST", "/v1/accounts", account(domain.NewID().String()+"@example.com"), bearer(sign(t, key, good.but(claims{"sub": subject})))).header.Get("Location")
		r := l.want(t, 200, "GET", path+"/events", "")
		got := r.text(t, "events.0.actor.id")
		if r.text(t, "events.0.actor.kind") != "oauth2" || r.text(t, "events.0.actor.client") != "portal" || want != "" && got != want || want == "" && len(got) != 32 {
			t.Errorf("actor of %s: %s", subject, r.body)
		}
	}
}

// TestTokenAttacks sends tokens that must be refused.
func TestTokenAttacks(t *testing.T) {
	t.Parallel()
	p, c := newProvider(t), newClock()
	l := trusting(t, p, c)
	good := goodClaims(p, c)
	key := p.key(t, "k1", jose.RS256)
	l.want(t, 200, "GET", "/v1/projections", "", bearer(sign(t, key, good)))

	public, err := x509.MarshalPKIXPublicKey(key.Public().Key)
	check(t, err)
	hmacWithPublic := jose.JSONWebKey{Key: public, KeyID: "k1", Algorithm: string(jose.HS256)}
	stranger := newProvider(t)
	strange := stranger.key(t, "k1", jose.RS256) // the same id, another key
	other := strange
	other.KeyID = "other"
	nobody := strange
	nobody.KeyID = "../../../../keys/k1"
	own := strange.Public()
	whole := sign(t, key, good)
	head, rest, _ := strings.Cut(whole, ".")
	for name, token := range map[string]string{
		"another issuer":            sign(t, strange, good.but(claims{"iss": stranger.URL})),
		"another issuer's key":      sign(t, strange, good),
		"another issuer in iss":     sign(t, key, good.but(claims{"iss": "https://id.example"})),
		"no issuer":                 sign(t, key, good.but(claims{"iss": nil})),
		"another audience":          sign(t, key, good.but(claims{"aud": "shop"})),
		"no audience":               sign(t, key, good.but(claims{"aud": nil})),
		"expired":                   sign(t, key, good.but(claims{"exp": c.now().Add(-time.Minute).Unix()})),
		"never expires":             sign(t, key, good.but(claims{"exp": nil})),
		"not yet valid":             sign(t, key, good.but(claims{"nbf": c.now().Add(time.Minute).Unix()})),
		"issued in the future":      sign(t, key, good.but(claims{"iat": c.now().Add(time.Minute).Unix()})),
		"no subject":                sign(t, key, good.but(claims{"sub": nil})),
		"alg none":                  forge(t, map[string]any{"alg": "none", "typ": "JWT"}, good, nil),
		"alg None":                  forge(t, map[string]any{"alg": "None", "kid": "k1"}, good, []byte("x")),
		"alg missing":               forge(t, map[string]any{"kid": "k1"}, good, []byte("x")),
		"HS256 with the public key": sign(t, hmacWithPublic, good),
		"unknown kid":               sign(t, other, good),
		"kid is a path":             sign(t, nobody, good),
		"its own jwk":               sign(t, other, good, map[string]any{"jwk": own}),
		"jku":                       sign(t, strange, good, map[string]any{"jku": stranger.URL + "/keys"}),
		"x5u":                       sign(t, strange, good, map[string]any{"x5u": stranger.URL + "/keys"}),
		"a logout token":            sign(t, key, good, map[string]any{"typ": "logout+jwt"}),
		"signature cut off":         whole[:strings.LastIndex(whole, ".")+1],
		"payload changed":           head + "." + rest[1:],
		"nothing between dots":      "..",
		"dots":                      "a.b.c",
	} {
		r := l.send(t, "GET", "/v1/projections", "", bearer(token))
		if r.status != http.StatusUnauthorized || !strings.Contains(r.header.Get("WWW-Authenticate"), "invalid_token") {
			t.Errorf("%s: %d %s", name, r.status, r.body)
		}
	}
	if n := stranger.fetched.Load(); n != 0 {
		t.Errorf("keys were fetched %d times from a URL that a token named", n)
	}
	if n := p.fetched.Load(); n != 1 {
		t.Errorf("tokens with unknown key ids caused %d requests for keys", n)
	}
	// A new key of the issuer is found as soon as keys may be fetched again.
	next := p.key(t, "k2", jose.ES256)
	l.refused(t, codeUnauthorized, "GET", "/v1/projections", "", bearer(sign(t, next, good)))
	c.pass(issuerEvery)
	l.want(t, 200, "GET", "/v1/projections", "", bearer(sign(t, next, good)))
	if n := p.fetched.Load(); n != 2 {
		t.Errorf("the keys were fetched %d times, want 2", n)
	}
}

// TestIssuerDown checks that an unreachable issuer does not make tokens invalid,
// and that API keys keep working.
func TestIssuerDown(t *testing.T) {
	t.Parallel()
	p, c := newProvider(t), newClock()
	l := trusting(t, p, c)
	key := p.key(t, "k1", jose.ES256)
	token := bearer(sign(t, key, goodClaims(p, c)))
	p.down.Store(true)
	r := l.refused(t, codeUnavailable, "GET", "/v1/projections", "", token)
	if r.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	l.want(t, 200, "GET", "/v1/projections", "")
	p.down.Store(false)
	c.pass(issuerRetry)
	l.want(t, 200, "GET", "/v1/projections", "", token)
	// Known keys are used while the issuer cannot be reached.
	p.down.Store(true)
	c.pass(issuerRenewal)
	l.want(t, 200, "GET", "/v1/projections", "", bearer(sign(t, key, goodClaims(p, c))))
}
