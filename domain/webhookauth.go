package domain

import (
	"regexp"
	"slices"
	"strings"
)

// WebhookAuth says how deliveries authenticate to the receiver, in addition to
// their signature. The key store has the secret.
type WebhookAuth struct {
	Type        WebhookAuthType `json:"type" doc:"api-key: a secret in a header or query parameter; basic: username and password; totp: the current RFC 6238 code in a header, six digits, 30 seconds, SHA-1; oauth2: a bearer token from the client credentials grant."`
	In          string          `json:"in,omitzero" doc:"With api-key: header or query."`
	Name        string          `json:"name,omitzero" doc:"With api-key or totp: the name of the header or query parameter."`
	Username    string          `json:"username,omitzero" doc:"With basic: the username."`
	TokenURL    string          `json:"tokenUrl,omitzero" doc:"With oauth2: the token endpoint. Addresses refused for deliveries are refused here too."`
	ClientID    string          `json:"clientId,omitzero" doc:"With oauth2: the client id."`
	Scope       string          `json:"scope,omitzero" doc:"With oauth2: the scope to request. Optional."`
	SecretID    string          `json:"secretId,omitzero" doc:"Id of the stored secret."`                                                       // in the key store
	Fingerprint string          `json:"fingerprint,omitzero" doc:"Fingerprint of the secret: shows whether one is set and whether it changed."` // never in an event
}

// WebhookAuthType is a method to authenticate to a receiver.
type WebhookAuthType string

// The authentication methods.
const (
	AuthAPIKey WebhookAuthType = "api-key" // in a header or a query parameter
	AuthBasic  WebhookAuthType = "basic"   // RFC 7617
	AuthTOTP   WebhookAuthType = "totp"    // RFC 6238: six digits, 30 seconds, SHA-1, in a header
	AuthOAuth2 WebhookAuthType = "oauth2"  // RFC 6749, section 4.4: client credentials
)

// WebhookCertificate is a TLS client certificate for receivers that require one.
type WebhookCertificate struct {
	Certificate string `json:"certificate" doc:"The certificate and its chain, PEM."`
	SecretID    string `json:"secretId,omitzero" doc:"Id of the stored private key."` // in the key store
}

var (
	headerName    = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}$")
	parameterName = regexp.MustCompile(`^[A-Za-z0-9_.~-]{1,64}$`)
)

// Headers that a webhook cannot set, because deliveries set them or because they
// control the connection.
var (
	reservedHeaders = []string{"accept-encoding", "authorization", "connection", "content-length", "content-type", "cookie", "date", "expect", "host",
		"idempotency-key", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "user-agent", "via", "x-hub-signature-256"}
	reservedPrefixes = []string{"webhook-", "ce-", "proxy-", "content-", "sec-", "ledger-"}
)

// headerFault returns why a webhook cannot set a header, or "".
func headerFault(name string) string {
	lower := strings.ToLower(name)
	switch {
	case !headerName.MatchString(name):
		return "is not a valid header name"
	case slices.Contains(reservedHeaders, lower) || slices.ContainsFunc(reservedPrefixes, func(f string) bool { return strings.HasPrefix(lower, f) }):
		return "is a header that deliveries or the connection set"
	}
	return ""
}

// printableASCII reports whether value can be a header's value.
func printableASCII(value string) bool {
	return !strings.ContainsFunc(value, func(c rune) bool { return c < ' ' || c > '~' })
}

func (a WebhookAuth) faults(f *faults) {
	switch a.Type {
	case "":
		if a != (WebhookAuth{}) {
			f.add("/auth/type", "must be %s, %s, %s or %s", AuthAPIKey, AuthBasic, AuthTOTP, AuthOAuth2)
		}
	case AuthAPIKey:
		if a.In == "query" {
			if !parameterName.MatchString(a.Name) {
				f.add("/auth/name", "must be a parameter name of 1 to 64 letters, digits, dots, dashes, tildes and underscores")
			}
		} else if fault := headerFault(a.Name); a.In != "header" {
			f.add("/auth/in", "must be header or query")
		} else if fault != "" {
			f.add("/auth/name", "%s", fault)
		}
	case AuthBasic:
		if a.Username == "" || len(a.Username) > 255 || strings.Contains(a.Username, ":") {
			f.add("/auth/username", "must be 1 to 255 bytes without a colon")
		}
	case AuthTOTP:
		if fault := headerFault(a.Name); fault != "" {
			f.add("/auth/name", "%s", fault)
		}
	case AuthOAuth2:
		if fault := urlFault(a.TokenURL); fault != "" {
			f.add("/auth/tokenUrl", "%s", fault)
		}
		if a.ClientID == "" || len(a.ClientID) > 255 {
			f.add("/auth/clientId", "must be 1 to 255 bytes")
		}
		if len(a.Scope) > 1024 || !printableASCII(a.Scope) {
			f.add("/auth/scope", "must be at most 1024 bytes of printable ASCII")
		}
	default:
		f.add("/auth/type", "must be %s, %s, %s or %s", AuthAPIKey, AuthBasic, AuthTOTP, AuthOAuth2)
	}
}

// MaxHeaders is the maximum number of headers that a webhook can set.
const MaxHeaders = 20

func (s WebhookSettings) headerFaults(f *faults) {
	if len(s.Headers) > MaxHeaders {
		f.add("/headers", "must have at most %d headers", MaxHeaders)
	}
	for name, value := range s.Headers {
		fault := headerFault(name)
		if fault == "" && strings.EqualFold(name, s.Auth.Name) && s.Auth.In != "query" {
			fault = "is used by auth"
		}
		if fault == "" && (len(value) > 1024 || !printableASCII(value)) {
			fault = "must be at most 1024 bytes of printable ASCII"
		}
		if fault != "" {
			pointer := "/headers"
			if headerName.MatchString(name) {
				pointer += "/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(name)
			}
			f.add(pointer, "%s", fault)
		}
	}
}
