package httpapi

import (
	"context"
	"net/http"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/projections/webhooks"
)

type createWebhookInput struct {
	Command
	JSON[newWebhook]
}

// newWebhook is the body of POST /v1/webhooks.
type newWebhook struct {
	URL     string               `json:"url" maxLength:"2048"`
	Events  []string             `json:"events" minItems:"1" maxItems:"100"`
	Format  string               `json:"format,omitzero" enum:"standard" default:"standard"`
	Payload string               `json:"payload,omitzero" enum:"full,thin" default:"full"`
	After   *eventstore.Position `json:"after,omitzero" minimum:"0"`
	Secret  string               `json:"secret,omitzero"`
}

// newEndpoint is an endpoint with its secret, which is shown this once.
type newEndpoint struct {
	webhooks.Endpoint
	Secret string `json:"secret"`
}

func (s *server) createWebhook(ctx context.Context, c *call, in *createWebhookInput) (*answer, error) {
	body := in.value
	cmd := domain.CreateWebhook{URL: body.URL, Events: body.Events, Format: body.Format, Payload: body.Payload, After: -1}
	if cmd.Format == "" {
		cmd.Format = domain.FormatStandard
	}
	if cmd.Payload == "" {
		cmd.Payload = domain.PayloadFull
	}
	if body.After != nil {
		cmd.After = *body.After
	}
	if head, err := s.Log.Head(ctx); err != nil {
		return nil, err
	} else if body.After != nil && (*body.After < 0 || *body.After > head) {
		return nil, invalid([]domain.Fault{{Pointer: "/after", Detail: "must be a position of the log"}})
	}
	r, err := in.request(c)
	if err != nil {
		return nil, err
	}
	if in.DryRun {
		w, events, err := s.Webhooks.Try(ctx, r, in.newID(c), cmd, body.Secret)
		return triedWebhookAnswer(w, events, err)
	}
	endpoint, secret, p, err := s.Webhooks.Create(ctx, r, in.newID(c), cmd, body.Secret)
	if err != nil {
		return nil, err
	}
	a := s.endpointAnswer(ctx, endpoint, p)
	a.Location = "/v1/webhooks/" + endpoint.WebhookID
	return a.rendered(newEndpoint{endpoint, secret})
}

// endpointAnswer begins the answer to a command that left an endpoint so. A
// command that changed nothing has no position.
func (s *server) endpointAnswer(ctx context.Context, e webhooks.Endpoint, p eventstore.Position) *answer {
	if p == 0 {
		p = s.Views.Accounts().Position()
	}
	a := s.settled(ctx, p)
	a.ETag = etag(e.Revision)
	return a
}

// triedWebhook is the endpoint as a command would leave it.
type triedWebhook struct {
	Events  []plannedEvent `json:"events"`
	Webhook domain.Webhook `json:"webhook"`
}

func triedWebhookAnswer(w domain.Webhook, entries []domain.Entry, err error) (*answer, error) {
	if err != nil {
		return nil, err
	}
	events, err := planned(entries)
	if err != nil {
		return nil, err
	}
	return (&answer{Status: http.StatusOK}).rendered(triedWebhook{events, w})
}

// tryWebhook answers a dry run: with the endpoint as it would be.
func (s *server) tryWebhook(ctx context.Context, r domain.Request, id string, cmd domain.WebhookCommand) (*answer, error) {
	w, events, err := s.Ledger.TryWebhook(ctx, r, id, cmd)
	return triedWebhookAnswer(w, events, err)
}

// WebhookID is the endpoint a request is about.
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
	Webhooks []webhooks.Endpoint `json:"webhooks"`
	Next     *string             `json:"next"` // always null: they fit on one page
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
	State  domain.WebhookState `json:"state" enum:"enabled,paused,disabled"`
	Reason string              `json:"reason,omitzero" maxLength:"64"`
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
		return s.tryWebhook(ctx, r, id, cmd)
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
		return s.tryWebhook(ctx, r, id, domain.DeleteWebhook{})
	}
	p, err := s.Webhooks.Delete(ctx, r, id)
	if err != nil {
		return nil, err
	}
	a := s.endpointAnswer(ctx, webhooks.Endpoint{}, p)
	a.ETag = ""
	return a, nil
}

type listDeliveriesInput struct {
	WebhookID
	Query
	After string `query:"after" maxLength:"64" doc:"Continue after this cursor, the next of an earlier page."`
	Limit int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"Deliveries on a page."`
}

// deliveries is a page of deliveries, newest first.
type deliveries struct {
	Deliveries []webhooks.Delivery `json:"deliveries"`
	Next       *string             `json:"next"` // null on the last page
}

func (s *server) listDeliveries(ctx context.Context, c *call, in *listDeliveriesInput) (*answer, error) {
	a, err := s.fresh(ctx, in.Query)
	if err != nil {
		return nil, err
	}
	id, err := in.check()
	if err != nil {
		return nil, err
	}
	list, next, err := s.Webhooks.Deliveries(ctx, id, in.After, in.Limit)
	if err != nil {
		return nil, err
	}
	page := deliveries{Deliveries: list}
	if next != "" {
		page.Next = &next
		a.next(c, next)
	}
	return a.rendered(page)
}
