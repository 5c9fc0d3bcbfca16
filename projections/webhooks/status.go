package webhooks

import (
	"context"
	"errors"
	"fmt"
	"time"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/eventstore/seal"
)

// Endpoint is a webhook's configuration and the state of its delivery. The name
// is the one that the API gives this resource.
type Endpoint struct {
	domain.Webhook
	Position          eventstore.Position `json:"position" doc:"Every event up to this log position is settled."`
	Backlog           int64               `json:"backlog" doc:"Number of events in the log after position, whether or not the webhook subscribes to them."`
	Lanes             int                 `json:"lanes" doc:"Number of accounts whose events wait because a delivery failed."`
	Blocked           int                 `json:"blocked" doc:"Number of those accounts that wait because a delivery was given up and deadLetter is block."`
	DeadLetters       int64               `json:"deadLetters" doc:"Number of deliveries given up."`
	Breaker           Breaker             `json:"breaker" doc:"Whether deliveries to the endpoint are suspended."`
	LastSuccessTime   time.Time           `json:"lastSuccessTime,omitzero" doc:"When a delivery last succeeded."`
	SecretFingerprint string              `json:"secretFingerprint" doc:"Fingerprint of the newest key. It identifies the secret without revealing it."`
}

// Breaker is the state of a webhook's circuit breaker.
type Breaker struct {
	State  string    `json:"state" doc:"closed: deliveries are sent; open: deliveries to the endpoint are suspended."`
	Reason string    `json:"reason,omitzero" doc:"Why the breaker is open, as a code."`
	Step   int       `json:"step" doc:"Number of consecutive failures."`
	Until  time.Time `json:"until,omitzero" doc:"When the next delivery is tried."`
}

// status shows webhooks and how their delivery goes.
type status struct{ *engine }

// Get returns one webhook, or an error with CodeWebhookNotFound.
func (s status) Get(ctx context.Context, id string) (Endpoint, error) {
	conf, err := s.ledger.existing(ctx, id)
	if err != nil {
		return Endpoint{}, err
	}
	return s.of(ctx, conf)
}

// List returns all webhooks, oldest first.
func (s status) List(ctx context.Context) ([]Endpoint, error) {
	confs := s.confs.all()
	all := make([]Endpoint, 0, len(confs))
	for _, conf := range confs {
		e, err := s.of(ctx, conf)
		if err != nil {
			return nil, err
		}
		all = append(all, e)
	}
	return all, nil
}

// of adds to conf the state of its delivery, from the worker or else from
// delivery.db.
func (s status) of(ctx context.Context, conf domain.Webhook) (Endpoint, error) {
	e := Endpoint{Webhook: conf}
	head, err := s.config.Log.Head(ctx)
	if err != nil {
		return e, fmt.Errorf("webhooks: %w", err)
	}
	p, lanes, blocked, dead, err := s.store.state(ctx, conf.WebhookID, len(s.config.Schedule))
	if err != nil {
		return e, err
	}
	if w := s.worker(conf.WebhookID); w != nil {
		w.call(ctx, func() { p, lanes, blocked = w.progress, w.lanes.failing(), w.blockedLanes() })
	}
	if conf.DeadLetter == domain.DeadLetterBlock {
		e.Blocked = blocked
	}
	e.Position, e.Lanes, e.DeadLetters, e.LastSuccessTime = p.cursor.low, lanes, dead, p.lastSuccess
	e.Backlog = p.cursor.backlog(head)
	e.Breaker = Breaker{State: "closed"}
	if p.breaker.open() {
		e.Breaker = Breaker{State: "open", Reason: p.breaker.reason, Step: p.breaker.step, Until: p.breaker.until.UTC().Truncate(time.Microsecond)}
	}
	secrets, err := s.secrets.load(ctx, conf.WebhookID)
	if err != nil && !errors.Is(err, seal.ErrNoSecret) { // without secrets, the fingerprints are missing
		return e, fmt.Errorf("webhooks: %w", err)
	}
	e.Webhook = secrets.fingerprinted(conf, s.config.Now())
	if len(e.Keys) > 0 {
		e.SecretFingerprint = e.Keys[0].Fingerprint
	}
	return e, nil
}

// Lanes lists the accounts of a webhook whose events wait, by their subs. after
// is the next of the previous call, or "" for the first; next is "" if there are
// no more. limit is 1 to 1000.
func (s status) Lanes(ctx context.Context, id, after string, limit int) (all []Lane, next string, err error) {
	conf, err := s.ledger.existing(ctx, id)
	if err != nil {
		return nil, "", err
	}
	s.sync(ctx, id)
	place := domain.Entry{Stream: after}
	if after != "" && place.Sub() == "" && place.WebhookID() == "" && after != domain.ConfigStream && after != domain.APIKeyStream && after != domain.LineageStream {
		return nil, "", errCursor()
	}
	all, next, err = s.store.listLanes(ctx, conf, s.config.Schedule, after, min(max(limit, 1), 1000))
	if err != nil {
		return nil, "", fmt.Errorf("webhooks: lanes: %w", err)
	}
	return all, next, nil
}

func errCursor() error {
	return &domain.Error{Code: domain.CodeInvalidCursor, Detail: "The cursor is not one of this list."}
}
