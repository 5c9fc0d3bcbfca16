package httpapi

import (
	"context"
	"net/http"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/projections/webhooks"
)

var onWebhook = []domain.Code{domain.CodeWebhookNotFound}

func (s *server) webhookRoutes() {
	handle(s, route{
		method: "POST", path: "/v1/webhooks", name: "createWebhook", scope: scopeWebhooksWrite, status: 201, answer: newEndpoint{},
		summary: "Register a webhook",
		text:    "Registers a webhook. Deliveries start after the log position in after, or at start; by default with the next event. Only this response contains the secret. A preset sets events, payload and mapping if they are not given.",
		example: `{"url":"https://crm.example/hook","events":["USER_*"],"format":"standard","payload":"full"}`,
		codes:   onCommand,
	}, s.createWebhook)
	handle(s, route{
		method: "GET", path: "/v1/webhooks", name: "listWebhooks", scope: scopeWebhooksRead, status: 200, answer: endpoints{},
		summary: "List the webhooks",
		text:    "Returns all webhooks with the state of their deliveries, oldest first.",
		codes:   onQuery,
	}, s.listWebhooks)
	handle(s, route{
		method: "GET", path: "/v1/webhooks/{webhookId}", name: "getWebhook", scope: scopeWebhooksRead, status: 200, answer: webhooks.Endpoint{},
		summary: "Get a webhook",
		text:    "Returns the webhook's settings and the state of its deliveries.",
		codes:   codes(onWebhook, onQuery),
	}, s.getWebhook)
	handle(s, route{
		method: "PATCH", path: "/v1/webhooks/{webhookId}", name: "patchWebhook", scope: scopeWebhooksWrite, status: 200, answer: webhooks.Endpoint{},
		summary: "Change a webhook",
		text:    "The body is an RFC 7396 merge patch of the webhook's settings; null resets a member to its default. Pending deliveries use the new settings; the webhook's position in the log does not change.",
		example: `{"events":["USER_CREATED","USER_UPDATED"],"description":null}`,
		codes:   codes(onWebhook, onCommand),
	}, s.patchWebhook)
	handle(s, route{
		method: "POST", path: "/v1/webhooks/{webhookId}/rotate-secret", name: "rotateSecret", scope: scopeWebhooksWrite, status: 200, answer: newEndpoint{},
		summary: "Rotate the signing key of a webhook",
		text:    "Generates a key, or uses the given one, and returns its secret. The key of the same type that it replaces keeps signing alongside it for overlap seconds, so that the receiver can switch; a key of the other type stays unless all is true. A repeated request with the same Idempotency-Key returns the same secret.",
		example: `{"overlap":3600}`,
		codes:   codes(onWebhook, onCommand, []domain.Code{domain.CodeTooManyKeys}),
	}, s.rotateSecret)
	handle(s, route{
		method: "PUT", path: "/v1/webhooks/{webhookId}/state", name: "setWebhookState", scope: scopeWebhooksWrite, status: 200, answer: webhooks.Endpoint{},
		summary: "Enable, pause or disable a webhook",
		text:    "Sets the webhook's state. While it is not enabled, its events wait.",
		example: `{"state":"paused","reason":"maintenance"}`,
		codes:   codes(onWebhook, onCommand),
	}, s.setWebhookState)
	handle(s, route{
		method: "DELETE", path: "/v1/webhooks/{webhookId}", name: "deleteWebhook", scope: scopeWebhooksWrite, status: 204,
		summary: "Delete a webhook",
		text:    "Deletes the webhook and destroys its secrets. Deleting it again changes nothing.",
		codes:   codes(onWebhook, onCommand),
	}, s.deleteWebhook)
	handle(s, route{
		method: "GET", path: "/v1/events/{event}/data", name: "getEventData", scope: scopeEventsRead, status: 200, answer: map[string]jsontext.Value{},
		summary: "Get the data of a public event",
		text:    "Returns what the dataref of a thin CloudEvent refers to: the same bytes that a full event has as data. For an account erased since then, personal data is missing.",
		codes:   codes(onQuery, []domain.Code{codeEventNotFound}),
	}, s.getEventData)
	s.webhookOperationRoutes()
}

type createWebhookInput struct {
	Command
	JSON[newWebhook]
}

// newWebhook is the body of POST /v1/webhooks.
type newWebhook struct {
	WebhookBody
	After   *eventstore.Position  `json:"after,omitzero" minimum:"0" doc:"Deliver the events after this log position; 0 for all events. Default: only future events."`
	Start   string                `json:"start,omitzero" maxLength:"64" doc:"now, beginning, or a time (RFC 3339): deliver the events recorded at or after it. Default: now."`
	Secret  string                `json:"secret,omitzero" doc:"whsec_ followed by 24 to 64 bytes in base64, or whsk_ followed by a 64-byte Ed25519 private key in base64. Default: a generated secret."`
	KeyType domain.WebhookKeyType `json:"keyType,omitzero" enum:"v1,v1a" default:"v1" doc:"Type of the generated key: v1 (HMAC-SHA256) or v1a (Ed25519)."`
}

// newEndpoint is a webhook with its secret, which only the first response contains.
type newEndpoint struct {
	webhooks.Endpoint
	Secret string `json:"secret,omitzero" doc:"The signing secret. Only the first response contains it: a repeated request with the same Idempotency-Key gets none."`
}

func (s *server) createWebhook(ctx context.Context, c *call, in *createWebhookInput) (*answer, error) {
	body := in.value
	settings := body.settings()
	after, err := s.start(ctx, body)
	if err != nil {
		return nil, err
	}
	creation := webhooks.Creation{CreateWebhook: domain.CreateWebhook{URL: settings.URL, Events: settings.Events, Format: settings.Format,
		Payload: settings.Payload, Options: settings.WebhookOptions, After: after}, Secrets: body.secrets(), Secret: body.Secret, KeyType: body.KeyType}
	r, err := in.request(c)
	if err != nil {
		return nil, err
	}
	if in.DryRun {
		return triedWebhookAnswer(s.Webhooks.Try(ctx, r, in.newID(c), creation))
	}
	endpoint, secret, p, err := s.Webhooks.Create(ctx, r, in.newID(c), creation)
	if err != nil {
		return nil, err
	}
	a := s.endpointAnswer(ctx, endpoint, p)
	a.Location = "/v1/webhooks/" + endpoint.WebhookID
	return a.rendered(newEndpoint{endpoint, secret})
}

// start returns the position after which a new webhook starts; -1 for the log's head.
func (s *server) start(ctx context.Context, body newWebhook) (eventstore.Position, error) {
	head, err := s.Log.Head(ctx)
	if err != nil {
		return 0, err
	}
	switch {
	case body.After != nil && body.Start != "":
		return 0, invalid([]domain.Fault{{Pointer: "/start", Detail: "must not be combined with after"}})
	case body.After != nil && (*body.After < 0 || *body.After > head):
		return 0, invalid([]domain.Fault{{Pointer: "/after", Detail: "must be a log position"}})
	case body.After != nil:
		return *body.After, nil
	case body.Start == "" || body.Start == "now":
		return -1, nil
	case body.Start == "beginning":
		return 0, nil
	}
	t, err := time.Parse(time.RFC3339, body.Start)
	if err != nil {
		return 0, invalid([]domain.Fault{{Pointer: "/start", Detail: "must be now, beginning, or a time in RFC 3339 format"}})
	}
	return s.Webhooks.StartingAt(ctx, t)
}

type rotateSecretInput struct {
	WebhookID
	Command
	JSON[secretRotation]
}

// secretRotation is the body of POST /v1/webhooks/{webhookId}/rotate-secret.
type secretRotation struct {
	Type    domain.WebhookKeyType `json:"type,omitzero" enum:"v1,v1a" doc:"Type of the new key: v1 (HMAC-SHA256) or v1a (Ed25519). Default: the type of secret, or of the newest key."`
	Overlap *int64                `json:"overlap,omitzero" minimum:"0" maximum:"2592000" default:"86400" doc:"Seconds for which the replaced key keeps signing; at most 30 days."`
	Secret  string                `json:"secret,omitzero" doc:"whsec_ followed by 24 to 64 bytes in base64, or whsk_ followed by a 64-byte Ed25519 private key in base64. Default: a generated secret."`
	All     bool                  `json:"all,omitzero" doc:"Also replace the keys of the other type."`
}

// defaultOverlap is how many seconds a replaced key keeps signing.
const defaultOverlap = 24 * 60 * 60

func (s *server) rotateSecret(ctx context.Context, c *call, in *rotateSecretInput) (*answer, error) {
	id, err := in.check()
	if err != nil {
		return nil, err
	}
	r, err := in.request(c)
	if err != nil {
		return nil, err
	}
	seconds := int64(defaultOverlap)
	if in.value.Overlap != nil {
		seconds = min(max(*in.value.Overlap, -1), int64(domain.MaxOverlap.Seconds())+1) // avoids an overflow as a Duration
	}
	rotation := webhooks.Rotation{RotateWebhookKey: domain.RotateWebhookKey{KeyID: in.newID(c), Type: in.value.Type,
		Overlap: time.Duration(seconds) * time.Second, All: in.value.All}, Secret: in.value.Secret}
	if in.DryRun {
		return triedWebhookAnswer(s.Webhooks.TryRotate(ctx, r, id, rotation))
	}
	endpoint, secret, p, err := s.Webhooks.Rotate(ctx, r, id, rotation)
	if err != nil {
		return nil, err
	}
	return s.endpointAnswer(ctx, endpoint, p).rendered(newEndpoint{endpoint, secret})
}

// endpointAnswer starts the answer to a command that returned webhook e. p is the
// position of its last event.
func (s *server) endpointAnswer(ctx context.Context, e webhooks.Endpoint, p eventstore.Position) *answer {
	a := s.settled(ctx, p)
	a.ETag = etag(e.Revision)
	return a
}

// triedWebhook is the result of a dry run on a webhook.
type triedWebhook struct {
	Events  []plannedEvent `json:"events" doc:"The events the command would append."`
	Webhook domain.Webhook `json:"webhook" doc:"The webhook after the command."`
}

// triedWebhookAnswer answers a dry run with the webhook as it would be.
func triedWebhookAnswer(result domain.Result[domain.Webhook], err error) (*answer, error) {
	if err != nil {
		return nil, err
	}
	events, err := planned(result.Events)
	if err != nil {
		return nil, err
	}
	return (&answer{Status: http.StatusOK}).rendered(triedWebhook{events, result.State})
}

// WebhookID identifies the webhook a request is about.
type WebhookID struct {
	ID string `path:"webhookId" doc:"The webhook's id, a UUID."`
}

func (id WebhookID) check() (string, error) {
	canonical, err := canonical(id.ID)
	if err != nil {
		return "", &domain.Error{Code: domain.CodeWebhookNotFound, Detail: "There is no such webhook."}
	}
	return canonical, nil
}

// endpoints is the list of all webhooks.
type endpoints struct {
	Webhooks []webhooks.Endpoint `json:"webhooks" doc:"All webhooks, oldest first."`
	Next     *string             `json:"next" doc:"Always null: the list is never paged."`
}

type listWebhooksInput struct{ Query }

func (s *server) listWebhooks(ctx context.Context, _ *call, in *listWebhooksInput) (*answer, error) {
	a, err := s.fresh(ctx, in.Query)
	if err != nil {
		return nil, err
	}
	list, err := s.Webhooks.List(ctx)
	if err != nil {
		return nil, err
	}
	return a.rendered(endpoints{Webhooks: list})
}

type getWebhookInput struct {
	WebhookID
	Query
}

func (s *server) getWebhook(ctx context.Context, _ *call, in *getWebhookInput) (*answer, error) {
	a, err := s.fresh(ctx, in.Query)
	if err != nil {
		return nil, err
	}
	id, err := in.check()
	if err != nil {
		return nil, err
	}
	endpoint, err := s.Webhooks.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	a.ETag = etag(endpoint.Revision)
	return a.rendered(endpoint)
}

type setWebhookStateInput struct {
	WebhookID
	Command
	JSON[newWebhookState]
}

// newWebhookState is the body of PUT /v1/webhooks/{webhookId}/state.
type newWebhookState struct {
	State  domain.WebhookState `json:"state" enum:"enabled,paused,disabled" doc:"The new state."`
	Reason string              `json:"reason,omitzero" maxLength:"64" doc:"Why, as a code of lower-case letters, digits and dashes."`
}

func (s *server) setWebhookState(ctx context.Context, c *call, in *setWebhookStateInput) (*answer, error) {
	id, err := in.check()
	if err != nil {
		return nil, err
	}
	r, err := in.request(c)
	if err != nil {
		return nil, err
	}
	cmd := domain.SetWebhookState{State: in.value.State, Reason: in.value.Reason}
	if in.DryRun {
		return triedWebhookAnswer(s.Webhooks.TrySetState(ctx, r, id, cmd))
	}
	endpoint, p, err := s.Webhooks.SetState(ctx, r, id, cmd)
	if err != nil {
		return nil, err
	}
	return s.endpointAnswer(ctx, endpoint, p).rendered(endpoint)
}

type deleteWebhookInput struct {
	WebhookID
	Command
}

func (s *server) deleteWebhook(ctx context.Context, c *call, in *deleteWebhookInput) (*answer, error) {
	id, err := in.check()
	if err != nil {
		return nil, err
	}
	r, err := in.request(c)
	if err != nil {
		return nil, err
	}
	if in.DryRun {
		return triedWebhookAnswer(s.Webhooks.TryDelete(ctx, r, id))
	}
	p, err := s.Webhooks.Delete(ctx, r, id)
	if err != nil {
		return nil, err
	}
	a := s.endpointAnswer(ctx, webhooks.Endpoint{}, p)
	a.ETag = ""
	return a, nil
}
