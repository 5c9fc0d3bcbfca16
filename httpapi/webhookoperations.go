package httpapi

import (
	"context"
	"net/http"
	"time"

	"github.com/google/uuid"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/projections/webhooks"
)

// webhookOperationRoutes registers the operations on deliveries. None of them is
// a command: deliveries are not recorded in the log.
func (s *server) webhookOperationRoutes() {
	const base = "/v1/webhooks/{webhookId}"
	onReplay := []domain.Code{domain.CodeReplayNotFound}
	handle(s, route{
		method: "GET", path: base + "/deliveries", name: "listDeliveries", scope: scopeWebhooksRead, status: 200, answer: deliveries{}, paged: true,
		summary: "List the deliveries of a webhook",
		text:    "Returns the stored deliveries, newest first. Use status=dead for those that were given up.",
		codes:   codes(onWebhook, onQuery, []domain.Code{domain.CodeInvalidCursor}),
	}, s.listDeliveries)
	handle(s, route{
		method: "GET", path: base + "/lanes", name: "listLanes", scope: scopeWebhooksRead, status: 200, answer: lanes{}, paged: true,
		summary: "List the waiting accounts of a webhook",
		text:    "Returns the accounts with undelivered events that the webhook as a whole has already passed, sorted by sub: their next delivery failed, or was given up and must not be skipped.",
		codes:   codes(onWebhook, onQuery, []domain.Code{domain.CodeInvalidCursor}),
	}, s.listLanes)
	handle(s, route{
		method: "POST", path: base + "/deliveries/{eventId}/resend", name: "resendDelivery", scope: scopeWebhooksWrite, status: 200, answer: webhooks.Delivery{}, job: true,
		summary: "Resend an event",
		text:    "Sends the event immediately, whatever the webhook's state, with the same webhook-id and signed with the current keys, and returns the delivery when the receiver has responded. The outcome does not affect the webhook's breaker. A dead letter that is accepted is settled, and an account that waits for it continues. Only stored deliveries can be resent.",
		codes:   codes(onWebhook, []domain.Code{domain.CodeDeliveryNotFound}),
	}, s.resendDelivery)
	handle(s, route{
		method: "POST", path: base + "/recover", name: "recoverWebhook", scope: scopeWebhooksWrite, status: 202, answer: webhooks.Replay{}, job: true,
		summary: "Resend failed deliveries",
		text:    "Starts a replay of every event whose attempts all failed, the last of them at or after since, or that was given up at or after since. Each event is sent once, in log order per account.",
		example: `{"since":"2026-11-20T00:00:00Z"}`,
		codes:   codes(onWebhook, []domain.Code{domain.CodeInvalidRequest, domain.CodeReplayRunning, domain.CodeIdempotencyKeyReused}),
	}, s.recoverWebhook)
	handle(s, route{
		method: "POST", path: base + "/replay", name: "replayWebhook", scope: scopeWebhooksWrite, status: 202, answer: webhooks.Replay{}, job: true,
		summary: "Replay a part of the log",
		text:    "Starts a replay of the events that the webhook subscribes to, with one attempt each and the header webhook-replay, in parallel with regular deliveries. A disabled webhook can be replayed to. A webhook has at most one running replay. A repeated request with the same Idempotency-Key returns the same replay.",
		example: `{"since":"2026-11-20T00:00:00Z","missing":true}`,
		codes:   codes(onWebhook, []domain.Code{domain.CodeInvalidRequest, domain.CodeReplayRunning, domain.CodeIdempotencyKeyReused}),
	}, s.replayWebhook)
	handle(s, route{
		method: "GET", path: base + "/replays", name: "listReplays", scope: scopeWebhooksRead, status: 200, answer: replays{},
		summary: "List the replays of a webhook",
		text:    "Returns the webhook's replays, newest first.",
		codes:   codes(onWebhook, onQuery),
	}, s.listReplays)
	handle(s, route{
		method: "GET", path: base + "/replays/{replayId}", name: "getReplay", scope: scopeWebhooksRead, status: 200, answer: webhooks.Replay{},
		summary: "Get a replay",
		text:    "Returns the replay and its progress.",
		codes:   codes(onWebhook, onQuery, onReplay),
	}, s.getReplay)
	handle(s, route{
		method: "DELETE", path: base + "/replays/{replayId}", name: "cancelReplay", scope: scopeWebhooksWrite, status: 200, answer: webhooks.Replay{}, job: true,
		summary: "Cancel a replay",
		text:    "Stops the replay; requests already in progress complete. Cancelling a replay that has ended changes nothing.",
		codes:   codes(onWebhook, onReplay),
	}, s.cancelReplay)
	handle(s, route{
		method: "POST", path: base + "/test", name: "testWebhook", scope: scopeWebhooksWrite, status: 200, answer: webhooks.Probe{}, job: true,
		summary: "Send a test event to a webhook",
		text:    "Sends an artificial event of type WEBHOOK_TEST, signed and in the webhook's format, with the header webhook-test: true, and returns the receiver's response. The test is not stored.",
		codes:   onWebhook,
	}, s.testWebhook)
	handle(s, route{
		method: "POST", path: base + "/verify", name: "verifyWebhook", scope: scopeWebhooksWrite, status: 200, answer: verification{}, job: true,
		summary: "Verify a webhook",
		text:    "Sends the OPTIONS request of the CloudEvents webhook specification with WebHook-Request-Origin. A webhook with verification options that is pending_verification receives deliveries once the receiver allows this ledger's origin or *.",
		codes:   codes(onWebhook, []domain.Code{domain.CodeConcurrentChange}),
	}, s.verifyWebhook)
}

// Repeatable is embedded in the inputs of requests that create something but
// are not commands.
type Repeatable struct {
	IdempotencyKey string `header:"Idempotency-Key" maxLength:"255" doc:"Makes the request safe to repeat: the same request of the same caller with the same key returns what the first one created."`
}

func (r Repeatable) newID(c *call) string {
	return Command{IdempotencyKey: r.IdempotencyKey}.newID(c)
}

type listDeliveriesInput struct {
	WebhookID
	Query
	Status string `query:"status" enum:"pending,delivered,retrying,dead,settled" doc:"Only deliveries with this status."`
	Sub    string `query:"sub" doc:"Only deliveries about this account."`
	After  string `query:"after" doc:"The next cursor of an earlier page. Default: the first page."`
	Limit  int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"Maximum number of deliveries on a page."`
}

// deliveries is a page of deliveries, newest first.
type deliveries struct {
	Deliveries []webhooks.Delivery `json:"deliveries" doc:"The deliveries, newest first."`
	Next       *string             `json:"next" doc:"Cursor of the next page; null on the last page."`
}

func (s *server) listDeliveries(ctx context.Context, c *call, in *listDeliveriesInput) (*answer, error) {
	list := func(ctx context.Context, id, after string, limit int) ([]webhooks.Delivery, string, error) {
		return s.Webhooks.Deliveries(ctx, id, webhooks.DeliveryQuery{Status: in.Status, Sub: in.Sub}, after, limit)
	}
	return listed(ctx, s, c, in.WebhookID, in.Query, in.After, in.Limit, list, func(list []webhooks.Delivery, next *string) any {
		return deliveries{list, next}
	})
}

type listLanesInput struct {
	WebhookID
	Query
	After string `query:"after" doc:"The next cursor of an earlier page. Default: the first page."`
	Limit int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"Maximum number of accounts on a page."`
}

// lanes is a page of the accounts whose events wait.
type lanes struct {
	Lanes []webhooks.Lane `json:"lanes" doc:"The accounts, sorted by sub."`
	Next  *string         `json:"next" doc:"Cursor of the next page; null on the last page."`
}

func (s *server) listLanes(ctx context.Context, c *call, in *listLanesInput) (*answer, error) {
	return listed(ctx, s, c, in.WebhookID, in.Query, in.After, in.Limit, s.Webhooks.Lanes, func(list []webhooks.Lane, next *string) any {
		return lanes{list, next}
	})
}

// listed answers with a page of a list that belongs to a webhook.
func listed[T any](ctx context.Context, s *server, c *call, webhook WebhookID, q Query, after string, limit int,
	list func(ctx context.Context, id, after string, limit int) ([]T, string, error), page func([]T, *string) any) (*answer, error) {
	a, err := s.fresh(ctx, q)
	if err != nil {
		return nil, err
	}
	id, err := webhook.check()
	if err != nil {
		return nil, err
	}
	all, next, err := list(ctx, id, after, limit)
	if err != nil {
		return nil, err
	}
	if next == "" {
		return a.rendered(page(all, nil))
	}
	a.next(c, next)
	return a.rendered(page(all, &next))
}

type resendDeliveryInput struct {
	WebhookID
	EventID string `path:"eventId" doc:"The public event's id, the webhook-id of its deliveries."`
}

func (s *server) resendDelivery(ctx context.Context, _ *call, in *resendDeliveryInput) (*answer, error) {
	id, err := in.check()
	if err != nil {
		return nil, err
	}
	d, err := s.Webhooks.Resend(ctx, id, in.EventID)
	if err != nil {
		return nil, err
	}
	return (&answer{}).rendered(d)
}

type recoverWebhookInput struct {
	WebhookID
	Repeatable
	JSON[recovery]
}

// recovery is the body of POST /v1/webhooks/{webhookId}/recover.
type recovery struct {
	Since time.Time `json:"since" doc:"Only deliveries that failed or were given up at or after this time (RFC 3339)."`
}

func (s *server) recoverWebhook(ctx context.Context, c *call, in *recoverWebhookInput) (*answer, error) {
	if in.value.Since.IsZero() {
		return nil, invalid([]domain.Fault{{Pointer: "/since", Detail: "is required"}})
	}
	return s.startReplay(ctx, in.WebhookID, in.newID(c), webhooks.ReplayFilter{Since: in.value.Since, Recover: true})
}

type replayWebhookInput struct {
	WebhookID
	Repeatable
	JSON[newReplay]
}

// newReplay is the body of POST /v1/webhooks/{webhookId}/replay.
type newReplay struct {
	After   eventstore.Position `json:"after,omitzero" minimum:"0" doc:"Only events after this log position. Default: from the beginning of the log."`
	UpTo    eventstore.Position `json:"upTo,omitzero" minimum:"1" doc:"Only events up to and including this log position. Default: the current end of the log."`
	Since   time.Time           `json:"since,omitzero" doc:"Only events recorded at or after this time (RFC 3339)."`
	Until   time.Time           `json:"until,omitzero" doc:"Only events recorded before this time."`
	Events  []string            `json:"events,omitzero" maxItems:"100" doc:"Only these public event names or prefixes such as USER_*, and only if the webhook subscribes to them."`
	Sub     string              `json:"sub,omitzero" doc:"Only events of this account."`
	Missing bool                `json:"missing,omitzero" doc:"Only events without a successful attempt, as far back as attempts are stored."`
}

func (s *server) replayWebhook(ctx context.Context, c *call, in *replayWebhookInput) (*answer, error) {
	b := in.value
	f := webhooks.ReplayFilter{After: b.After, UpTo: b.UpTo, Since: b.Since, Until: b.Until, Events: b.Events, Missing: b.Missing}
	if b.Sub != "" {
		sub, err := canonical(b.Sub)
		if err != nil {
			return nil, invalid([]domain.Fault{{Pointer: "/sub", Detail: "must be the sub of an account, a UUID"}})
		}
		f.Sub = sub
	}
	return s.startReplay(ctx, in.WebhookID, in.newID(c), f)
}

func (s *server) startReplay(ctx context.Context, webhook WebhookID, replayID string, f webhooks.ReplayFilter) (*answer, error) {
	id, err := webhook.check()
	if err != nil {
		return nil, err
	}
	r, err := s.Webhooks.StartReplay(ctx, id, replayID, f)
	if err != nil {
		return nil, err
	}
	return (&answer{Location: "/v1/webhooks/" + id + "/replays/" + r.ReplayID}).rendered(r)
}

// replays is the list of a webhook's replays.
type replays struct {
	Replays []webhooks.Replay `json:"replays" doc:"The replays, newest first."`
	Next    *string           `json:"next" doc:"Always null: the list is never paged."`
}

type listReplaysInput struct {
	WebhookID
	Query
}

func (s *server) listReplays(ctx context.Context, _ *call, in *listReplaysInput) (*answer, error) {
	a, err := s.fresh(ctx, in.Query)
	if err != nil {
		return nil, err
	}
	id, err := in.check()
	if err != nil {
		return nil, err
	}
	all, err := s.Webhooks.Replays(ctx, id)
	if err != nil {
		return nil, err
	}
	return a.rendered(replays{Replays: all})
}

// ReplayID identifies the replay a request is about.
type ReplayID struct {
	Replay string `path:"replayId" doc:"The replay's id, a UUID."`
}

func (id ReplayID) check() (string, error) {
	parsed, err := uuid.Parse(id.Replay)
	if err != nil {
		return "", &domain.Error{Code: domain.CodeReplayNotFound, Detail: "The webhook has no replay with this id."}
	}
	return parsed.String(), nil
}

type getReplayInput struct {
	WebhookID
	ReplayID
	Query
}

func (s *server) getReplay(ctx context.Context, _ *call, in *getReplayInput) (*answer, error) {
	a, err := s.fresh(ctx, in.Query)
	if err != nil {
		return nil, err
	}
	return s.aboutReplay(ctx, a, in.WebhookID, in.ReplayID, s.Webhooks.Replay)
}

type cancelReplayInput struct {
	WebhookID
	ReplayID
}

func (s *server) cancelReplay(ctx context.Context, _ *call, in *cancelReplayInput) (*answer, error) {
	return s.aboutReplay(ctx, &answer{}, in.WebhookID, in.ReplayID, s.Webhooks.CancelReplay)
}

func (s *server) aboutReplay(ctx context.Context, a *answer, webhook WebhookID, replay ReplayID,
	ask func(ctx context.Context, id, replayID string) (webhooks.Replay, error)) (*answer, error) {
	id, err := webhook.check()
	if err != nil {
		return nil, err
	}
	replayID, err := replay.check()
	if err != nil {
		return nil, err
	}
	r, err := ask(ctx, id, replayID)
	if err != nil {
		return nil, err
	}
	return a.rendered(r)
}

type testWebhookInput struct{ WebhookID }

func (s *server) testWebhook(ctx context.Context, _ *call, in *testWebhookInput) (*answer, error) {
	id, err := in.check()
	if err != nil {
		return nil, err
	}
	p, err := s.Webhooks.Test(ctx, id)
	if err != nil {
		return nil, err
	}
	return (&answer{Status: http.StatusOK}).rendered(p)
}

// verification is the receiver's answer and the webhook after it.
type verification struct {
	Answer  webhooks.Probe    `json:"answer" doc:"The receiver's answer."`
	Webhook webhooks.Endpoint `json:"webhook" doc:"The webhook after the verification."`
}

func (s *server) verifyWebhook(ctx context.Context, c *call, in *testWebhookInput) (*answer, error) {
	id, err := in.check()
	if err != nil {
		return nil, err
	}
	r, err := Command{}.request(c)
	if err != nil {
		return nil, err
	}
	p, e, err := s.Webhooks.Verify(ctx, r, id)
	if err != nil {
		return nil, err
	}
	a := s.endpointAnswer(ctx, e, 0)
	return a.rendered(verification{p, e})
}
