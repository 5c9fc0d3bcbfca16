package httpapi

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"

	"accountledger/domain"
	"accountledger/eventstore/seal"
)

// TokenAlgorithms are the signature algorithms that an issuer may use. They are
// asymmetric: with a symmetric one, everyone who can verify can also sign.
var TokenAlgorithms = []string{oidc.RS256, oidc.ES256, oidc.PS256, oidc.EdDSA}

// Issuer is an OpenID provider whose bearer tokens, JWTs signed for this ledger,
// are accepted in addition to API keys.
type Issuer struct {
	URL        string        // the tokens' iss; OpenID Connect Discovery finds its keys
	Audience   string        // required in a token's aud
	ScopeClaim string        // claim with the scopes, as a list or separated by spaces; default scope, then scp
	ClockSkew  time.Duration // tolerated difference between its clock and ours
	Algorithms []string      // a subset of TokenAlgorithms; default all
}

// Limits for fetching an issuer's metadata and keys.
const (
	issuerTimeout = 10 * time.Second // per request
	issuerEvery   = 30 * time.Second // between two requests to one URL, even if tokens name unknown keys
	issuerRetry   = 5 * time.Second  // after a failed request
	issuerBody    = 1 << 20          // bytes
	issuerRenewal = time.Hour        // a key that the issuer withdrew is accepted for up to this long
)

// tokens verifies an issuer's tokens.
type tokens struct {
	Issuer
	keys    *seal.Keys
	now     func() time.Time
	logger  *slog.Logger
	fetcher *fetcher

	mu       sync.Mutex
	verifier *oidc.IDTokenVerifier // nil until the issuer has been reached
	made     time.Time
}

func newTokens(i Issuer, keys *seal.Keys, now func() time.Time, logger *slog.Logger) *tokens {
	if i.URL == "" {
		return nil
	}
	if len(i.Algorithms) == 0 {
		i.Algorithms = TokenAlgorithms
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DisableKeepAlives = true // requests are an hour apart
	return &tokens{Issuer: i, keys: keys, now: now, logger: logger, fetcher: &fetcher{next: transport, now: now, kept: map[string]fetched{}}}
}

// caller returns the caller that token identifies, or the reason for refusing
// it. An error means that the issuer's keys are not available.
func (t *tokens) caller(ctx context.Context, token string) (_ caller, refused string, _ error) {
	verifier, err := t.current(ctx)
	if err != nil {
		return caller{}, "", t.unavailable(ctx, err)
	}
	verified, err := verifier.Verify(ctx, token)
	if err != nil {
		if err := t.fetcher.failing(); err != nil {
			return caller{}, "", t.unavailable(ctx, err)
		}
		return caller{}, refusedToken, nil
	}
	claims := map[string]jsontext.Value{}
	var times struct {
		NotBefore float64 `json:"nbf"`
		ClientID  string  `json:"client_id"`
		Party     string  `json:"azp"`
	}
	var raw rawClaims
	if verified.Claims(&raw) != nil || json.Unmarshal(raw, &claims) != nil || json.Unmarshal(raw, &times) != nil {
		return caller{}, refusedToken, nil
	}
	now := t.now()
	switch {
	case verified.Subject == "" || !accessToken(token):
		return caller{}, refusedToken, nil
	case verified.Expiry.IsZero() || now.After(verified.Expiry.Add(t.ClockSkew)):
		return caller{}, refusedExpired, nil
	case times.NotBefore > float64(now.Add(t.ClockSkew).Unix()) || verified.IssuedAt.After(now.Add(t.ClockSkew)):
		return caller{}, refusedToken, nil
	}
	client := times.ClientID
	if client == "" {
		client = times.Party
	}
	if !clientID.MatchString(client) {
		client = ""
	}
	return caller{domain.Actor{Kind: "oauth2", ID: t.pseudonym(verified.Subject, client), Client: client}, t.scopes(claims)}, "", nil
}

// rawClaims holds the claims of a token, undecoded.
type rawClaims []byte

// UnmarshalJSON stores a copy of data.
func (r *rawClaims) UnmarshalJSON(data []byte) error {
	*r = bytes.Clone(data)
	return nil
}

// clientID matches the client ids that are recorded in the log, permanently.
var clientID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$`)

// pseudonym returns the id under which the log permanently records the issuer's
// subject. A subject that is neither a UUID nor the client may be an e-mail
// address or a name; pseudonym replaces it with a keyed, deterministic digest.
func (t *tokens) pseudonym(subject, client string) string {
	if subject == client {
		return client
	}
	if id, err := uuid.Parse(subject); err == nil && len(subject) == 36 {
		return id.String()
	}
	return hex.EncodeToString([]byte(t.keys.Claim("oauth2", t.URL+"\x00"+subject, "").Key))
}

// scopes returns the scopes of the token that this API defines.
func (t *tokens) scopes(claims map[string]jsontext.Value) (all []scope) {
	names := []string{"scope", "scp"}
	if t.ScopeClaim != "" {
		names = []string{t.ScopeClaim}
	}
	for _, name := range names {
		value, ok := claims[name]
		if !ok {
			continue
		}
		var text string
		var list []string
		if json.Unmarshal(value, &text) == nil {
			list = strings.Fields(text)
		} else if json.Unmarshal(value, &list) != nil {
			return nil
		}
		for _, s := range list {
			if scope(s).known() {
				all = append(all, scope(s))
			}
		}
		return all
	}
	return nil
}

// accessToken reports whether a verified token is of a type meant for resource
// servers, unlike a logout token, for example.
func accessToken(token string) bool {
	encoded, _, _ := strings.Cut(token, ".")
	var header struct {
		Type string `json:"typ"`
	}
	text, err := base64.RawURLEncoding.DecodeString(encoded)
	if err != nil || json.Unmarshal(text, &header) != nil {
		return false
	}
	switch strings.TrimPrefix(strings.ToLower(header.Type), "application/") {
	case "", "jwt", "at+jwt":
		return true
	}
	return false
}

// current returns the verifier. Its keys are at most issuerRenewal old while the
// issuer can be reached.
func (t *tokens) current(ctx context.Context) (*oidc.IDTokenVerifier, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	if t.verifier != nil && now.Sub(t.made) < issuerRenewal {
		return t.verifier, nil
	}
	client := &http.Client{Transport: t.fetcher, Timeout: issuerTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	ctx = oidc.ClientContext(context.WithoutCancel(ctx), client)
	provider, err := oidc.NewProvider(ctx, t.URL)
	if err != nil {
		if t.verifier != nil {
			t.logger.WarnContext(ctx, "cannot renew the issuer's keys", "err", err)
			t.made = now.Add(issuerRetry - issuerRenewal)
			return t.verifier, nil
		}
		return nil, err
	}
	t.made = now
	t.verifier = provider.VerifierContext(ctx, &oidc.Config{ClientID: t.Audience, SupportedSigningAlgs: t.Algorithms,
		SkipExpiryCheck: true}) // caller checks it with ClockSkew
	return t.verifier, nil
}

func (t *tokens) unavailable(ctx context.Context, err error) error {
	t.logger.WarnContext(ctx, "cannot reach the issuer of bearer tokens", "err", err)
	return newProblem(codeUnavailable, "The server cannot reach the issuer of bearer tokens; retry later.").with("Retry-After", "5")
}

// fetcher caches responses and limits the requests to each URL. It protects the
// issuer from go-oidc, which fetches the keys again whenever a token names a key
// it does not have.
type fetcher struct {
	next http.RoundTripper
	now  func() time.Time

	failed atomic.Pointer[error] // error of the last request; nil: it succeeded

	mu   sync.Mutex // also held during a request: those who wait need its response
	kept map[string]fetched
}

type fetched struct {
	again time.Time // when to fetch it again
	res   http.Response
	body  []byte
	err   error
}

// failing returns the error of the last request, nil if it succeeded.
func (f *fetcher) failing() error {
	if err := f.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// RoundTrip answers a GET from the cache or the issuer.
func (f *fetcher) RoundTrip(r *http.Request) (*http.Response, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	address := r.URL.String()
	got, ok := f.kept[address]
	if now := f.now(); !ok || !now.Before(got.again) {
		got = fetched{again: now.Add(issuerEvery)}
		if got.res, got.body, got.err = f.fetch(r); got.err != nil {
			got.again = now.Add(issuerRetry)
			f.failed.Store(&got.err)
		} else {
			f.failed.Store(nil)
		}
		f.kept[address] = got
	}
	if got.err != nil {
		return nil, got.err
	}
	res := got.res
	res.Body, res.Request = io.NopCloser(bytes.NewReader(got.body)), r
	return &res, nil
}

func (f *fetcher) fetch(r *http.Request) (http.Response, []byte, error) {
	res, err := f.next.RoundTrip(r)
	if err != nil {
		return http.Response{}, nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, issuerBody))
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("httpapi: the issuer answered with status %d", res.StatusCode)
	}
	return *res, body, err
}
