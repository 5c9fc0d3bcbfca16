package httpapi

import (
	"cmp"
	"context"
	"reflect"

	"github.com/danielgtaylor/huma/v2"
	"github.com/go-json-experiment/json/jsontext"

	"accountledger/domain"
	"accountledger/projections/webhooks"
)

// WebhookBody holds a webhook's settings as a caller sends them.
type WebhookBody struct {
	URL          string                `json:"url" maxLength:"2048" doc:"The endpoint: the URL deliveries are sent to."`
	Events       []string              `json:"events,omitzero" minItems:"1" maxItems:"100" doc:"Names of public events, their aliases such as ACCOUNT_MODIFIED, or prefixes such as USER_*. An event is sent once, under the first entry that matches it: by its alias if that entry is an alias. Optional with a preset."`
	Format       string                `json:"format,omitzero" enum:"standard,cloudevents,cloudevents-binary,cloudevents-batch" default:"standard" doc:"standard: Standard Webhooks; cloudevents: CloudEvents 1.0.2, structured; cloudevents-binary: the same with attributes in headers, which are not signed; cloudevents-batch: several events in one request, at most one per account."`
	Payload      string                `json:"payload,omitzero" enum:"full,thin,fields" default:"full" doc:"full: all data of the event; thin: ids only, and in CloudEvents a dataref; fields: the members named by mapping."`
	Preset       string                `json:"preset,omitzero" enum:"crm,marketing,analytics" doc:"crm, marketing or analytics. Sets events, payload and mapping if they are not given."`
	Mapping      domain.WebhookMapping `json:"mapping,omitzero" doc:"With payload fields: the path of the value for each member of data, such as {\"customer_id\":\"sub\",\"mail\":\"email\",\"tier\":\"customFields.tier\"}. Values an event does not have are left out; for USER_UPDATED, those that did not change."`
	BatchSize    int                   `json:"batchSize,omitzero" minimum:"1" maximum:"1000" doc:"With format cloudevents-batch: maximum number of events in a request; default 100."`
	BatchBytes   int                   `json:"batchBytes,omitzero" minimum:"1024" maximum:"8388608" doc:"With format cloudevents-batch: maximum size of a body in bytes; default 1 MiB. A larger event is sent on its own."`
	Description  string                `json:"description,omitzero" maxLength:"1024" doc:"Free text. Do not put personal data in it."`
	HubSignature bool                  `json:"hubSignature,omitzero" doc:"Also sign deliveries as GitHub does, with X-Hub-Signature-256."`
	Headers      map[string]string     `json:"headers,omitzero" doc:"Additional HTTP headers. Put secrets in auth instead."`
	RateLimit    float64               `json:"rateLimit,omitzero" minimum:"0.01" maximum:"10000" doc:"Maximum requests per second. Default: unlimited."`
	Burst        int                   `json:"burst,omitzero" minimum:"1" maximum:"10000" doc:"With rateLimit: how many requests may be sent at once after a pause; default 1."`
	MaxInFlight  int                   `json:"maxInFlight,omitzero" minimum:"1" maximum:"256" doc:"Maximum number of concurrent requests. Default: the server's setting."`
	Order        string                `json:"order,omitzero" enum:"account,strict" default:"account" doc:"account: events are delivered in order per account; strict: in order over all accounts, one request at a time, and a failure delays all later events."`
	DeadLetter   string                `json:"deadLetter,omitzero" enum:"skip,block" default:"skip" doc:"What happens to an account's later events after a delivery is given up. skip: they are delivered; block: they wait until the event is resent or deadLetter is set to skip."`
	Verification string                `json:"verification,omitzero" enum:"none,options" default:"none" doc:"options: the receiver must first allow deliveries from this ledger, as the CloudEvents webhook specification describes; none: no verification."`

	Auth              *NewAuth        `json:"auth,omitzero" doc:"Credentials sent to the receiver in addition to the signature."`
	ClientCertificate *NewCertificate `json:"clientCertificate,omitzero" doc:"The client certificate for receivers that require one in TLS."`
}

// NewAuth holds the credentials for a receiver as a caller sends them.
type NewAuth struct {
	Type     domain.WebhookAuthType `json:"type" enum:"api-key,basic,totp,oauth2" doc:"api-key: a secret in a header or query parameter; basic: username and password; totp: the current RFC 6238 code in a header, six digits, 30 seconds, SHA-1; oauth2: a bearer token from the client credentials grant."`
	In       string                 `json:"in,omitzero" enum:"header,query" doc:"With api-key: header or query."`
	Name     string                 `json:"name,omitzero" maxLength:"64" doc:"With api-key or totp: the name of the header or query parameter."`
	Username string                 `json:"username,omitzero" maxLength:"255" doc:"With basic: the username."`
	TokenURL string                 `json:"tokenUrl,omitzero" maxLength:"2048" doc:"With oauth2: the token endpoint. Addresses refused for deliveries are refused here too."`
	ClientID string                 `json:"clientId,omitzero" maxLength:"255" doc:"With oauth2: the client id."`
	Scope    string                 `json:"scope,omitzero" maxLength:"1024" doc:"With oauth2: the scope to request. Optional."`
	Secret   string                 `json:"secret,omitzero" maxLength:"4096" doc:"The API key, password, base32 TOTP seed or client secret. It is never returned. Required again if tokenUrl changes, or if url moves to another origin and type is not oauth2."`
}

// NewCertificate is a client certificate with its key.
type NewCertificate struct {
	Certificate string `json:"certificate" doc:"The certificate and its chain, PEM."`
	Key         string `json:"key,omitzero" doc:"The certificate's private key, PEM. It is never returned."`
}

// The API's names for the domain's default settings.
const (
	orderAccount     = "account"
	deadLetterSkip   = "skip"
	verificationNone = "none"
)

// secrets returns the secrets in b.
func (b WebhookBody) secrets() (s webhooks.Secrets) {
	if b.Auth != nil {
		s.Auth = b.Auth.Secret
	}
	if b.ClientCertificate != nil {
		s.ClientKey = b.ClientCertificate.Key
	}
	return s
}

// settings returns b as the domain's settings. Members that b does not set come
// from its preset or the defaults.
func (b WebhookBody) settings() domain.WebhookSettings {
	if p, ok := domain.PresetOf(b.Preset); ok {
		if b.Events == nil {
			b.Events = p.Events
		}
		if b.Payload == "" {
			b.Payload = domain.PayloadFields
		}
		if b.Mapping == nil && b.Payload == domain.PayloadFields {
			b.Mapping = p.Mapping
		}
	}
	settings := domain.WebhookSettings{URL: b.URL, Events: b.Events, Format: cmp.Or(b.Format, domain.FormatStandard),
		Payload: cmp.Or(b.Payload, domain.PayloadFull), WebhookOptions: domain.WebhookOptions{
			Description: b.Description, Preset: b.Preset, Mapping: b.Mapping, BatchSize: b.BatchSize, BatchBytes: b.BatchBytes,
			HubSignature: b.HubSignature, Headers: b.Headers, RateLimit: b.RateLimit, Burst: b.Burst, MaxInFlight: b.MaxInFlight}}
	if b.Order != orderAccount {
		settings.Order = b.Order
	}
	if b.DeadLetter != deadLetterSkip {
		settings.DeadLetter = b.DeadLetter
	}
	if b.Verification != verificationNone {
		settings.Verification = b.Verification
	}
	if a := b.Auth; a != nil {
		settings.Auth = domain.WebhookAuth{Type: a.Type, In: a.In, Name: a.Name, Username: a.Username, TokenURL: a.TokenURL, ClientID: a.ClientID, Scope: a.Scope}
	}
	if c := b.ClientCertificate; c != nil {
		settings.ClientCertificate.Certificate = c.Certificate
	}
	return settings
}

// settingsOf returns the body that a caller would send for s.
func settingsOf(s domain.WebhookSettings) WebhookBody {
	b := WebhookBody{URL: s.URL, Events: s.Events, Format: s.Format, Payload: s.Payload,
		Description: s.Description, Preset: s.Preset, Mapping: s.Mapping, BatchSize: s.BatchSize, BatchBytes: s.BatchBytes,
		HubSignature: s.HubSignature, Headers: s.Headers, RateLimit: s.RateLimit, Burst: s.Burst, MaxInFlight: s.MaxInFlight, Order: s.Order,
		DeadLetter: s.DeadLetter, Verification: s.Verification}
	if a := s.Auth; a.Type != "" {
		b.Auth = &NewAuth{Type: a.Type, In: a.In, Name: a.Name, Username: a.Username, TokenURL: a.TokenURL, ClientID: a.ClientID, Scope: a.Scope}
	}
	if c := s.ClientCertificate; c.Certificate != "" {
		b.ClientCertificate = &NewCertificate{Certificate: c.Certificate}
	}
	return b
}

type patchWebhookInput struct {
	WebhookID
	Command
	JSON[webhookPatch]
}

// webhookPatch is an RFC 7396 merge patch of WebhookBody, as sent.
type webhookPatch map[string]jsontext.Value

// Schema returns the OpenAPI schema of the patch.
func (webhookPatch) Schema(r huma.Registry) *huma.Schema {
	schema := huma.SchemaFromType(r, reflect.TypeFor[WebhookBody]())
	schema.Required = nil
	for name, member := range schema.Properties {
		switch values, _ := member.AdditionalProperties.(*huma.Schema); {
		case member.Ref != "": // every member of it is optional
			member = &huma.Schema{Type: huma.TypeObject, AdditionalProperties: true, Description: member.Description}
		case values != nil:
			values.Nullable = true
		case member.Enum != nil:
			member.Enum = append(member.Enum, nil)
		}
		member.Nullable = true
		schema.Properties[name] = member
	}
	return schema
}

func (s *server) patchWebhook(ctx context.Context, c *call, in *patchWebhookInput) (*answer, error) {
	id, err := in.check()
	if err != nil {
		return nil, err
	}
	r, err := in.request(c)
	if err != nil {
		return nil, err
	}
	change := func(before domain.Webhook) (domain.WebhookSettings, webhooks.Secrets, error) {
		var body WebhookBody
		now := settingsOf(before.WebhookSettings)
		if _, newPreset := in.value["preset"]; newPreset {
			now.Events, now.Payload, now.Mapping = nil, "", nil
		}
		if err := decodeMerged(now, in.RawBody, &body); err != nil {
			return domain.WebhookSettings{}, webhooks.Secrets{}, err
		}
		return body.settings(), body.secrets(), nil
	}
	if in.DryRun {
		return triedWebhookAnswer(s.Webhooks.TryUpdate(ctx, r, id, change))
	}
	endpoint, p, err := s.Webhooks.Update(ctx, r, id, change)
	if err != nil {
		return nil, err
	}
	return s.endpointAnswer(ctx, endpoint, p).rendered(endpoint)
}
