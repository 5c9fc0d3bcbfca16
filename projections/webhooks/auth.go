package webhooks

import (
	"context"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/tls"
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

// Secrets go with settings that need some, and are only ever written: what is
// "" stays as it is.
type Secrets struct {
	Auth      string // the API key, password, TOTP seed in base32, or client secret
	ClientKey string // PEM, of the client certificate
}

// into puts the ids of secrets into settings, of those given or of those there
// are, and returns the new ones. A secret that is there is not sent to another
// place than the one it was given for: it has to be given again.
func (s Secrets) into(settings *domain.WebhookSettings, before domain.WebhookSettings) (vault, []domain.Fault) {
	fresh := vault{}
	var faults []domain.Fault
	fault := func(pointer, detail string) { faults = append(faults, domain.Fault{Pointer: pointer, Detail: detail}) }
	if a := &settings.Auth; a.Type != "" {
		kept := before.Auth
		switch {
		case s.Auth != "":
			if detail := authFault(a.Type, s.Auth); detail != "" {
				fault("/auth/secret", detail)
			}
			a.SecretID = domain.NewID().String()
			fresh[a.SecretID] = s.Auth
		case kept.SecretID == "" || kept.Type != a.Type:
			fault("/auth/secret", "is missing")
		case kept.TokenURL != a.TokenURL || a.Type != domain.AuthOAuth2 && origin(before.URL) != origin(settings.URL):
			fault("/auth/secret", "must be given again for another receiver")
		default:
			a.SecretID = kept.SecretID
		}
	}
	if c := &settings.ClientCertificate; c.Certificate != "" {
		switch {
		case s.ClientKey != "":
			if _, err := tls.X509KeyPair([]byte(c.Certificate), []byte(s.ClientKey)); err != nil {
				fault("/clientCertificate/key", "must be, like the certificate, PEM, and belong to it")
			}
			c.SecretID = domain.NewID().String()
			fresh[c.SecretID] = s.ClientKey
		case before.ClientCertificate.Certificate != c.Certificate:
			fault("/clientCertificate/key", "is missing")
		default:
			c.SecretID = before.ClientCertificate.SecretID
		}
	}
	return fresh, faults
}

func origin(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return ""
	}
	return u.Scheme + "://" + strings.ToLower(u.Host)
}

func authFault(kind domain.WebhookAuthType, secret string) string {
	if len(secret) > 4096 || strings.ContainsFunc(secret, func(c rune) bool { return c < ' ' || c > '~' }) {
		return "at most 4096 bytes of printable ASCII"
	}
	if kind == domain.AuthTOTP {
		if _, err := seed(secret); err != nil {
			return "must be base32 of 16 to 64 bytes"
		}
	}
	return ""
}

// credentials show a receiver who is sending.
type credentials struct {
	domain.WebhookAuth
	secret string
	tokens *tokens // of domain.AuthOAuth2
	now    func() time.Time
}

// add puts them into a request, in a URL or header of its own.
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

// seed reads a TOTP secret as authenticators show it.
func seed(secret string) ([]byte, error) {
	key, err := base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(strings.ToUpper(strings.TrimRight(strings.ReplaceAll(secret, " ", ""), "=")))
	if err != nil || len(key) < 16 || len(key) > 64 {
		return nil, errors.New("webhooks: not a TOTP secret")
	}
	return key, nil
}

// totp is RFC 6238's code at a time, with six digits and 30 seconds.
func totp(key []byte, now time.Time) string {
	mac := hmac.New(sha1.New, key)
	mac.Write(binary.BigEndian.AppendUint64(nil, uint64(now.Unix()/30)))
	sum := mac.Sum(nil)
	code := binary.BigEndian.Uint32(sum[sum[len(sum)-1]&0xf:]) & 0x7fffffff
	return fmt.Sprintf("%06d", code%1_000_000)
}

// tokens gets access tokens of an OAuth 2.0 server for a client, through the
// same guard as deliveries, and keeps one until shortly before it expires.
type tokens struct {
	url       *url.URL
	client    string
	secret    string
	scope     string
	userAgent string
	transport http.RoundTripper
	now       func() time.Time

	mu    sync.Mutex // held while a token is asked for, so that many requests ask once
	token string
	until time.Time
}

// How long tokens are kept.
const (
	tokenMargin  = 30 * time.Second // before its expiry a token is not used any more
	tokenDefault = 5 * time.Minute  // where the server does not say
	maxToken     = 64 << 10         // bytes of an answer
)

// errToken is in the chain of every refusal by the server; what it said is
// not, for it may quote what it was sent.
var errToken = errors.New("webhooks: no access token")

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
	r.Header.Set("Accept", jsonType)
	r.Header.Set("User-Agent", s.userAgent)
	r.SetBasicAuth(url.QueryEscape(s.client), url.QueryEscape(s.secret)) // RFC 6749, section 2.3.1
	asked := s.now()
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
	s.token, s.until = answer.Token, asked.Add(kept)
	return s.token, nil
}

// forget drops a token that was refused, unless there is another by now.
func (s *tokens) forget(refused string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.token == refused {
		s.token = ""
	}
}
