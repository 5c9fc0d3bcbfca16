package httpapi

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/zitadel/oidc/v3/example/server/storage"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"
)

// deployment configures an OpenID provider for a ledger: services get JWTs for
// the audience ledger with the scopes they requested. Everything else is the
// library's default.
type deployment struct{ *storage.Storage }

// Client credentials that the library's storage knows.
const serviceID, serviceSecret = "sid1", "verysecret"

type service struct{ op.Client }

func (service) AccessTokenType() op.AccessTokenType { return op.AccessTokenTypeJWT }

func (d deployment) ClientCredentials(ctx context.Context, id, secret string) (op.Client, error) {
	client, err := d.Storage.ClientCredentials(ctx, id, secret)
	return service{client}, err
}

func (d deployment) ClientCredentialsTokenRequest(_ context.Context, id string, scopes []string) (op.TokenRequest, error) {
	return &oidc.JWTTokenRequest{Subject: id, Audience: []string{"ledger"}, Scopes: scopes}, nil
}

func (d deployment) GetPrivateClaimsFromScopes(_ context.Context, _, _ string, scopes []string) (map[string]any, error) {
	return map[string]any{"scope": strings.Join(scopes, " ")}, nil
}

// newOpenIDProvider serves an OpenID provider. rotate restarts it with new keys.
func newOpenIDProvider(t *testing.T) (issuer string, rotate func()) {
	t.Helper()
	var current atomic.Pointer[op.Provider]
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { current.Load().ServeHTTP(w, r) }))
	t.Cleanup(server.Close)
	rotate = func() {
		store := deployment{storage.NewStorage(storage.NewUserStore(server.URL))}
		p, err := op.NewProvider(&op.Config{CryptoKeyId: "k", AuthMethodPost: true}, store, op.StaticIssuer(server.URL), op.WithAllowInsecure())
		check(t, err)
		current.Store(p)
	}
	rotate()
	return server.URL, rotate
}

// serviceToken gets a token like a service, from the endpoint in the discovery document.
func serviceToken(t *testing.T, issuer, scopes string) string {
	t.Helper()
	get := func(method, address string, form url.Values, into any) {
		request, err := http.NewRequest(method, address, strings.NewReader(form.Encode()))
		check(t, err)
		request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		request.SetBasicAuth(serviceID, serviceSecret)
		res, err := http.DefaultClient.Do(request)
		check(t, err)
		defer res.Body.Close()
		if res.StatusCode != 200 {
			t.Fatalf("%s %s: %s", method, address, res.Status)
		}
		check(t, json.UnmarshalRead(res.Body, into))
	}
	var discovered, answered map[string]any
	get("GET", issuer+oidc.DiscoveryEndpoint, nil, &discovered)
	get("POST", discovered["token_endpoint"].(string), url.Values{"grant_type": {"client_credentials"}, "scope": {scopes}}, &answered)
	return answered["access_token"].(string)
}

// TestOpenIDProvider accepts tokens issued by a certified provider's library,
// also after the provider changes its keys.
func TestOpenIDProvider(t *testing.T) {
	t.Parallel()
	issuer, rotate := newOpenIDProvider(t)
	var passed atomic.Int64 // nanoseconds that the clock is ahead
	trust := func(audience string) func(*Config) {
		return func(c *Config) {
			c.Now = func() time.Time { return time.Now().Add(time.Duration(passed.Load())) }
			c.Issuer = Issuer{URL: issuer, Audience: audience, ClockSkew: 5 * time.Second}
		}
	}
	l := start(t, trust("ledger"))
	first := serviceToken(t, issuer, "accounts:write audit:read")
	created := l.want(t, 201, "POST", "/v1/accounts", account("ada@example.com"), bearer(first))
	history := l.want(t, 200, "GET", created.header.Get("Location")+"/events", "", bearer(first))
	if history.text(t, "events.0.actor.kind") != "oauth2" || history.text(t, "events.0.actor.client") != serviceID {
		t.Errorf("history: %s", history.body)
	}
	l.refused(t, codeForbidden, "GET", created.header.Get("Location"), "", bearer(first))
	l.want(t, 200, "GET", created.header.Get("Location"), "", bearer(serviceToken(t, issuer, "accounts:read")))

	other := start(t, trust("another ledger"))
	other.refused(t, codeUnauthorized, "GET", "/v1/projections", "", bearer(first))

	rotate()
	passed.Add(int64(issuerEvery))
	l.want(t, 200, "GET", "/v1/projections", "", bearer(serviceToken(t, issuer, "audit:read")))
}
