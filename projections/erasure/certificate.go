package erasure

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/projections/webhooks"
)

// Certificate states what an erasure destroyed, when and by whom. It can be
// verified against the log, which still proves that the events existed.
type Certificate struct {
	Sub           string              `json:"sub" doc:"The erased account."`
	KeyID         string              `json:"keyId" doc:"The encryption key that was destroyed."` // of the destroyed key, in hexadecimal
	ErasedTime    time.Time           `json:"erasedTime" doc:"When the account was erased."`
	Actor         domain.Actor        `json:"actor" doc:"Who requested the erasure."`
	Position      eventstore.Position `json:"position" doc:"The log position of the erasure."` // of the erasure event
	CompletedTime time.Time           `json:"completedTime,omitzero" doc:"When the data had been removed from every file."`
	Events        []SealedEvent       `json:"events" doc:"The events whose personal data was sealed under the key."`
	Checkpoint    string              `json:"checkpoint,omitzero" doc:"A signed checkpoint that covers the erasure, available within a second of it."`
	Subscribers   []Subscriber        `json:"subscribers" doc:"The webhooks subscribed to erasures, and whether each was notified of this one."`
}

// SealedEvent is an event of the account that was sealed under the key.
type SealedEvent struct {
	Position eventstore.Position `json:"position" doc:"The event's position in the log."`
	Revision eventstore.Revision `json:"revision" doc:"The event's number within the account."`
	Type     string              `json:"type" doc:"The event's type in the log, including its version."`
	Time     time.Time           `json:"time" doc:"When the event was recorded."`
}

// Subscriber is a webhook that is notified of erasures. Status is Acknowledged or
// a status of package webhooks: StatusSettled if the delivery ended so long ago
// that its attempts have been deleted.
type Subscriber struct {
	WebhookID string `json:"webhookId" doc:"The webhook's id."`
	Status    string `json:"status" doc:"acknowledged, pending, retrying, dead, or settled: nothing is left to send, and the outcome is no longer stored."`
}

// Acknowledged is the status of a subscriber that has acknowledged the delivery.
const Acknowledged = "acknowledged"

// ErrNotErased is returned for an account that is not erased.
var ErrNotErased = errors.New("erasure: the account is not erased")

// publicName is the public name of the erasure event.
const publicName = "USER_DELETED"

// checkpoints is a log that signs checkpoints.
type checkpoints interface {
	// Checkpoint returns the oldest signed checkpoint that covers p, nil if
	// there is none yet.
	Checkpoint(ctx context.Context, p eventstore.Position) ([]byte, error)
}

// Certificate returns the certificate of an erased account, or ErrNotErased.
func (e *Eraser) Certificate(ctx context.Context, sub string) (Certificate, error) {
	c := Certificate{Sub: sub, Events: []SealedEvent{}, Subscribers: []Subscriber{}}
	var key eventstore.KeyID
	for x, err := range e.Ledger.History(ctx, sub, 0) {
		if err != nil {
			return c, err
		}
		switch erased := x.Event.(type) {
		case domain.AccountErased:
			id, err := hex.DecodeString(erased.KeyID)
			if err != nil || copy(key[:], id) != len(key) {
				return c, fmt.Errorf("erasure: the event at position %d has an invalid key id", x.Position)
			}
			c.KeyID, c.ErasedTime, c.Actor, c.Position = erased.KeyID, x.Time, x.Meta.Actor, x.Position
		case domain.ErasureCompleted:
			c.CompletedTime = x.Time
		}
	}
	if c.Position == 0 {
		return c, ErrNotErased
	}
	for rec, err := range e.Log.ReadStream(ctx, domain.AccountStream(sub), 0) {
		if err != nil {
			return c, fmt.Errorf("erasure: certificate: %w", err)
		}
		if rec.KeyID == key {
			c.Events = append(c.Events, SealedEvent{rec.Position, rec.Revision, rec.Type, rec.Time})
		}
	}
	if log, ok := e.Log.(checkpoints); ok {
		note, err := log.Checkpoint(ctx, c.Position)
		if err != nil {
			return c, fmt.Errorf("erasure: certificate: %w", err)
		}
		c.Checkpoint = string(note)
	}
	return c, e.subscribers(ctx, &c)
}

// subscribers adds the webhooks that are notified of the erasure to c.
func (e *Eraser) subscribers(ctx context.Context, c *Certificate) error {
	if e.Webhooks == nil {
		return nil
	}
	endpoints, err := e.Webhooks.List(ctx)
	if err != nil {
		return err
	}
	erased := domain.PublicEvent{Type: publicName, Aliases: []string{"ACCOUNT_DELETED"}}
	for _, w := range endpoints {
		if erased.EventName(w.Events) == "" || w.After >= c.Position {
			continue
		}
		status, err := e.Webhooks.Outcome(ctx, w.WebhookID, domain.AccountStream(c.Sub), c.Position)
		if err != nil {
			return err
		}
		if status == webhooks.StatusDelivered {
			status = Acknowledged
		}
		c.Subscribers = append(c.Subscribers, Subscriber{w.WebhookID, status})
	}
	return nil
}
