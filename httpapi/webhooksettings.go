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

// WebhookBody is what a caller configures an endpoint to.
type WebhookBody struct {
	URL          string                `json:"url" maxLength:"2048"`
	Events       []string              `json:"events,omitzero" minItems:"1" maxItems:"100"`
	Format       string                `json:"format,omitzero" enum:"standard,cloudevents,cloudevents-binary,cloudevents-batch" default:"standard"`
	Payload      string                `json:"payload,omitzero" enum:"full,thin,fields" default:"full"`
	Preset       string                `json:"preset,omitzero" enum:"crm,marketing,analytics"`
	Mapping      domain.WebhookMapping `json:"mapping,omitzero"`
	BatchSize    int                   `json:"batchSize,omitzero" minimum:"1" maximum:"1000"`
	BatchBytes   int                   `json:"batchBytes,omitzero" minimum:"1024" maximum:"8388608"`
	Description  string                `json:"description,omitzero" maxLength:"1024"`
	HubSignature bool                  `json:"hubSignature,omitzero"`
	Headers      map[string]string     `json:"headers,omitzero"`
	RateLimit    float64               `json:"rateLimit,omitzero" minimum:"0.01" maximum:"10000"`
	Burst        int                   `json:"burst,omitzero" minimum:"1" maximum:"10000"`
	MaxInFlight  int                   `json:"maxInFlight,omitzero" minimum:"1" maximum:"256"`
	Order        string                `json:"order,omitzero" enum:"account,strict" default:"account"`
	DeadLetter   string                `json:"deadLetter,omitzero" enum:"skip,block" default:"skip"`
	Verification string                `json:"verification,omitzero" enum:"none,options" default:"none"`

	Auth              *NewAuth        `json:"auth,omitzero"`
	ClientCertificate *NewCertificate `json:"clientCertificate,omitzero"`
}

// NewAuth is how a caller says how to authenticate toward a receiver.
type NewAuth struct {
	Type     domain.WebhookAuthType `json:"type" enum:"api-key,basic,totp,oauth2"`
	In       string                 `json:"in,omitzero" enum:"header,query"`
	Name     string                 `json:"name,omitzero" maxLength:"64"`
	Username string                 `json:"username,omitzero" maxLength:"255"`
	TokenURL string                 `json:"tokenUrl,omitzero" maxLength:"2048"`
	ClientID string                 `json:"clientId,omitzero" maxLength:"255"`
	Scope    string                 `json:"scope,omitzero" maxLength:"1024"`
	Secret   string                 `json:"secret,omitzero" maxLength:"4096"`
}

// NewCertificate is a client certificate with its key.
type NewCertificate struct {
	Certificate string `json:"certificate"`
	Key         string `json:"key,omitzero"`
}

// The wire's names of the domain's defaults.
const (
	orderAccount     = "account"
	deadLetterSkip   = "skip"
	verificationNone = "none"
)

// secrets are those that b gives.
func (b WebhookBody) secrets() (s webhooks.Secrets) {
	if b.Auth != nil {
		s.Auth = b.Auth.Secret
	}
	if b.ClientCertificate != nil {
		s.ClientKey = b.ClientCertificate.Key
	}
	return s
}

// settings is b as the domain has it, with what a preset or the defaults say
// where b says nothing.
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

// settingsOf is what a caller would have to say for s.
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

// Schema describes the patch for OpenAPI.
func (webhookPatch) Schema(r huma.Registry) *huma.Schema {
	schema := huma.SchemaFromType(r, reflect.TypeFor[WebhookBody]())
	schema.Required = nil
	for name, member := range schema.Properties {
		switch values, _ := member.AdditionalProperties.(*huma.Schema); {
		case member.Ref != "": // a part of it is enough
			member = &huma.Schema{Type: huma.TypeObject, AdditionalProperties: true}
		case values != nil:
			values.Nullable = true
		case member.Enum != nil:
			member.Enum = append(member.Enum, nil)
		}
		member.Nullable = true
		schema.Properties[name] = member
		member.Description = memberTexts["NewWebhook"][name]
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
		if _, anew := in.value["preset"]; anew {
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
