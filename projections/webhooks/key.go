package webhooks

import (
	"context"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/projections/webhooks/wire"
)

// Rotation is what a client asks of Rotate.
type Rotation struct {
	domain.RotateWebhookKey
	Secret string // "": Rotate generates one
}

// Rotate gives a webhook a new signing key. It returns the webhook, the key's
// secret, and the position of the event. Only the first outcome has the secret:
// a repetition returns "".
func (r registry) Rotate(ctx context.Context, by domain.Request, id string, c Rotation) (Endpoint, string, eventstore.Position, error) {
	r.changing.Lock()
	defer r.changing.Unlock()
	c, tried, err := r.checkRotation(ctx, by, id, c)
	if err != nil {
		return Endpoint{}, "", 0, err
	}
	if tried.Repeated {
		e, err := r.of(ctx, tried.State)
		return e, "", tried.Position(), err
	}
	if c.Secret == "" {
		c.Secret = wire.NewSecret(c.Type)
	}
	result, err := r.changeWith(ctx, by, id, c.RotateWebhookKey, secrets{c.KeyID: c.Secret})
	if err != nil {
		return Endpoint{}, "", 0, err
	}
	e, err := r.of(ctx, result.State)
	return e, c.Secret, result.Position(), err
}

// TryRotate decides like Rotate and changes nothing.
func (r registry) TryRotate(ctx context.Context, by domain.Request, id string, c Rotation) (domain.Result[domain.Webhook], error) {
	_, tried, err := r.checkRotation(ctx, by, id, c)
	return tried, err
}

// checkRotation validates c and completes it: without a type, the key has that of
// its secret, or that of the newest key. It returns the outcome of a dry run, which
// may be that of a repetition.
func (r registry) checkRotation(ctx context.Context, by domain.Request, id string, c Rotation) (Rotation, domain.Result[domain.Webhook], error) {
	c.Now = r.config.Now()
	before, err := r.ledger.webhook(ctx, id)
	if err != nil {
		return c, domain.Result[domain.Webhook]{}, err
	}
	if c.Secret != "" {
		if fault := wire.SecretFault(c.Secret, c.Type); fault != "" {
			return c, domain.Result[domain.Webhook]{}, faulty(domain.Fault{Pointer: "/secret", Detail: fault})
		}
		c.Type = wire.KeyType(c.Secret)
	}
	if c.Type == "" && before.Exists() {
		c.Type = before.Keys[0].Type
	}
	tried, err := r.ledger.try(ctx, by, id, c.RotateWebhookKey)
	return c, tried, err
}
