package transport

import (
	"context"
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"

	"accountledger/domain"
)

// SecretFault returns what is wrong with a secret for a type of authentication,
// or "". It never quotes the secret.
func SecretFault(kind domain.WebhookAuthType, secret string) string {
	if len(secret) > 4096 || strings.ContainsFunc(secret, func(c rune) bool { return c < ' ' || c > '~' }) {
		return "must be at most 4096 bytes of printable ASCII"
	}
	if kind == domain.AuthTOTP {
		if _, err := seed(secret); err != nil {
			return "must be base32 of 16 to 64 bytes"
		}
	}
	return ""
}

// credentials authenticate the ledger to a receiver.
type credentials struct {
	domain.WebhookAuth
	secret string
	tokens *tokens // of domain.AuthOAuth2
	now    func() time.Time
}

// add adds the credentials to a request. It replaces r.URL instead of changing
// it, because requests share it.
func (c *credentials) add(ctx context.Context, r *http.Request) error {
	switch c.Type {
	case domain.AuthAPIKey:
		if c.In == "query" {
			u := *r.URL
			if u.RawQuery != "" {
				u.RawQuery += "&"
			}
			u.RawQuery += url.QueryEscape(c.Name) + "=" + url.QueryEscape(c.secret)
			r.URL = &u
			return nil
		}
		r.Header.Set(c.Name, c.secret)
	case domain.AuthBasic:
		r.SetBasicAuth(c.Username, c.secret)
	case domain.AuthTOTP:
		key, err := seed(c.secret)
		if err != nil {
			return err
		}
		r.Header.Set(c.Name, totp(key, c.now()))
	case domain.AuthOAuth2:
		token, err := c.tokens.get(ctx)
		if err != nil {
			return err
		}
		r.Header.Set("Authorization", "Bearer "+token)
	}
	return nil
}

// seed decodes a TOTP secret: base32, as authenticator apps show it.
func seed(secret string) ([]byte, error) {
	key, err := base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(strings.ToUpper(strings.TrimRight(strings.ReplaceAll(secret, " ", ""), "=")))
	if err != nil || len(key) < 16 || len(key) > 64 {
		return nil, errors.New("transport: not a TOTP secret")
	}
	return key, nil
}

// totp returns the time-based one-time password of RFC 6238: SHA-1, six digits,
// a time step of 30 seconds.
func totp(key []byte, now time.Time) string {
	mac := hmac.New(sha1.New, key)
	mac.Write(binary.BigEndian.AppendUint64(nil, uint64(now.Unix()/30)))
	sum := mac.Sum(nil)
	code := binary.BigEndian.Uint32(sum[sum[len(sum)-1]&0xf:]) & 0x7fffffff
	return fmt.Sprintf("%06d", code%1_000_000)
}

// tokens obtains access tokens from an OAuth 2.0 server with the client
// credentials grant (RFC 6749, section 4.4), and keeps one until shortly before
// it expires. It connects under the same restrictions as deliveries.
type tokens struct {
	url       *url.URL
	client    string
	secret    string
	scope     string
	userAgent string
	transport http.RoundTripper
	now       func() time.Time

	mu    sync.Mutex // held while a token is requested, so that concurrent deliveries request one
	token string
	until time.Time
}

// Bounds of access tokens.
const (
	tokenMargin  = 30 * time.Second // a token is replaced this long before it expires
	tokenDefault = 5 * time.Minute  // how long a token is kept if the server names no expiry
	maxToken     = 64 << 10         // bytes read of a response
)

// errToken is returned if the server issues no token. It does not quote the
// server's response, which may quote the client's secret.
var errToken = errors.New("transport: no access token")

func (s *tokens) get(ctx context.Context) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.token != "" && s.now().Before(s.until) {
		return s.token, nil
	}
	form := url.Values{"grant_type": {"client_credentials"}}
	if s.scope != "" {
		form.Set("scope", s.scope)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url.String(), strings.NewReader(form.Encode()))
	if err != nil {
		return "", errToken
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Accept", "application/json")
	r.Header.Set("User-Agent", s.userAgent)
	r.SetBasicAuth(url.QueryEscape(s.client), url.QueryEscape(s.secret)) // RFC 6749, section 2.3.1
	requested := s.now()
	response, err := s.transport.RoundTrip(r)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxToken))
	if err != nil {
		return "", err
	}
	var answer struct {
		Token     string  `json:"access_token"`
		Type      string  `json:"token_type"`
		ExpiresIn float64 `json:"expires_in"`
	}
	if response.StatusCode != http.StatusOK || json.Unmarshal(body, &answer) != nil || answer.Token == "" ||
		!strings.EqualFold(answer.Type, "bearer") || strings.ContainsFunc(answer.Token, func(c rune) bool { return c <= ' ' || c > '~' }) {
		return "", errToken
	}
	kept := tokenDefault
	if answer.ExpiresIn > 0 {
		kept = time.Duration(min(answer.ExpiresIn, 24*60*60)*float64(time.Second)) - tokenMargin
	}
	s.token, s.until = answer.Token, requested.Add(kept)
	return s.token, nil
}

// forget drops a rejected token, unless another has replaced it.
func (s *tokens) forget(rejected string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.token == rejected {
		s.token = ""
	}
}
