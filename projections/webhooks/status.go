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
	Position          eventstore.Position `json:"position"`    // everything up to here is settled
	Backlog           int64               `json:"backlog"`     // events of the log that are not settled, whether the webhook selects them or not
	Lanes             int                 `json:"lanes"`       // accounts that wait because their next event was refused
	Blocked           int                 `json:"blocked"`     // of these, accounts whose next event is a dead letter and must not be skipped
	DeadLetters       int64               `json:"deadLetters"` // events that are no longer retried
	Breaker           Breaker             `json:"breaker"`
	LastSuccessTime   time.Time           `json:"lastSuccessTime,omitzero"`
	SecretFingerprint string              `json:"secretFingerprint"` // of the newest key
}

// Breaker is the state of a webhook's circuit breaker.
type Breaker struct {
	State  string    `json:"state"`           // closed or open
	Reason string    `json:"reason,omitzero"` // an error code, see Attempt
	Step   int       `json:"step"`            // failures in a row
	Until  time.Time `json:"until,omitzero"`  // when the endpoint is probed
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
	confs, err := s.store.webhooks(ctx)
	if err != nil {
		return nil, fmt.Errorf("webhooks: list: %w", err)
	}
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
	if after != "" && place.Sub() == "" && place.WebhookID() == "" && after != domain.ConfigStream && after != domain.APIKeyStream {
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
