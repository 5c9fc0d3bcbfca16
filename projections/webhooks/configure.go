package webhooks

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"time"

	"accountledger/domain"
	"accountledger/eventstore"
)

// Creation asks for an endpoint.
type Creation struct {
	domain.CreateWebhook                       // a negative After means the head of the log
	Secrets                                    // those its settings need
	Secret               string                // to sign with; "": one is made
	KeyType              domain.WebhookKeyType // of the one that is made; default KeyHMAC
}

// Create registers an endpoint under id and returns it with its secret, which
// is shown this once, and the position of the event that says so.
//
// The same creation asked for again, which is how a client that lost the
// response gets it, is answered with the same secret; another creation under
// the same id is refused with CodeIdempotencyKeyReused.
func (w *Webhooks) Create(ctx context.Context, r domain.Request, id string, c Creation) (Endpoint, string, eventstore.Position, error) {
	w.changing.Lock()
	defer w.changing.Unlock()
	before, err := w.c.Ledger.Webhook(ctx, id)
	if err != nil {
		return Endpoint{}, "", 0, err
	}
	if before.Exists() {
		return w.created(ctx, before, c)
	}
	c, fresh, err := w.validate(ctx, r, id, c)
	if err != nil {
		return Endpoint{}, "", 0, err
	}
	if c.Secret == "" {
		c.Secret = newSecret(c.KeyType)
	}
	// First the secret: an endpoint without one could not be delivered to, a
	// secret without an endpoint hurts nobody.
	fresh[c.Keys[0].KeyID] = c.Secret
	if err := w.putVault(ctx, id, fresh); err != nil {
		return Endpoint{}, "", 0, err
	}
	conf, at, err := w.c.Ledger.ExecuteWebhook(ctx, r, id, c.CreateWebhook)
	if err != nil {
		if !conf.Exists() && domain.CodeOf(err) != "" {
			err = errors.Join(err, w.c.Keys.DeleteSecret(ctx, vaultName(id)))
		}
		return Endpoint{}, "", 0, err
	}
	if err := w.copy(ctx, conf); err != nil {
		return Endpoint{}, "", 0, err
	}
	e, err := w.endpointOf(ctx, conf)
	return e, c.Secret, at, err
}

// created answers a repeated creation.
func (w *Webhooks) created(ctx context.Context, before domain.Webhook, c Creation) (Endpoint, string, eventstore.Position, error) {
	kept, err := w.vault(ctx, before.WebhookID)
	if err != nil {
		return Endpoint{}, "", 0, fmt.Errorf("webhooks: create: %w", err)
	}
	first := before.Keys[len(before.Keys)-1]
	asked, was := c.Settings(), before.WebhookSettings
	asked.Auth.SecretID, asked.ClientCertificate.SecretID = was.Auth.SecretID, was.ClientCertificate.SecretID
	same := asked.Same(was) && c.Auth == kept[was.Auth.SecretID] && c.ClientKey == kept[was.ClientCertificate.SecretID] && (c.After < 0 || c.After == before.After) &&
		(c.Secret == "" || c.Secret == kept[first.KeyID])
	if !same {
		return Endpoint{}, "", 0, &domain.Error{Code: domain.CodeIdempotencyKeyReused, Detail: "There is another webhook with this id."}
	}
	e, err := w.endpointOf(ctx, before)
	return e, kept[first.KeyID], 0, err
}

// Try decides like Create and changes nothing. It returns the endpoint as it
// would be and the events there would be.
func (w *Webhooks) Try(ctx context.Context, r domain.Request, id string, c Creation) (domain.Webhook, []domain.Entry, error) {
	c, _, err := w.validate(ctx, r, id, c)
	if err != nil {
		return domain.Webhook{}, nil, err
	}
	return w.c.Ledger.TryWebhook(ctx, r, id, c.CreateWebhook)
}

// validate collects everything that is wrong with a creation: what the rules
// of webhooks say and what only delivery knows. It returns c with the position
// to start after and the ids of its secrets, and those but the first key's.
func (w *Webhooks) validate(ctx context.Context, r domain.Request, id string, c Creation) (Creation, vault, error) {
	if c.After < 0 {
		var err error
		if c.After, err = w.c.Log.Head(ctx); err != nil {
			return c, nil, fmt.Errorf("webhooks: create: %w", err)
		}
	}
	settings := c.Settings()
	fresh, faults := c.Secrets.into(&settings, domain.WebhookSettings{})
	c.Options = settings.WebhookOptions
	if c.Secret != "" {
		if fault := secretFault(c.Secret, c.KeyType); fault != "" {
			faults = append(faults, domain.Fault{Pointer: "/secret", Detail: fault})
		}
		c.KeyType = keyType(c.Secret)
	}
	c.KeyType = cmp.Or(c.KeyType, domain.KeyHMAC)
	c.Keys = []domain.WebhookKey{{KeyID: domain.NewID().String(), Type: c.KeyType}}
	_, _, err := w.c.Ledger.TryWebhook(ctx, r, id, c.CreateWebhook)
	return c, fresh, w.check(settings, faults, err)
}

// check adds to what the rules of webhooks refused, or did not, what is wrong
// with settings as only delivery knows, and faults found already.
func (w *Webhooks) check(s domain.WebhookSettings, faults []domain.Fault, err error) error {
	refusal, ok := errors.AsType[*domain.Error](err)
	if err != nil && (!ok || refusal.Code != domain.CodeInvalidRequest) {
		return err
	}
	if refusal != nil {
		faults = append(refusal.Faults, faults...)
	}
	for pointer, address := range map[string]string{"/url": s.URL, "/auth/tokenUrl": s.Auth.TokenURL} {
		bad := address == "" || slices.ContainsFunc(faults, func(f domain.Fault) bool { return f.Pointer == pointer })
		if u, err := url.Parse(address); err == nil && !bad {
			if fault := newGuard(w.c.Allow, u.Scheme == "http").fault(u); fault != "" {
				faults = append(faults, domain.Fault{Pointer: pointer, Detail: fault})
			}
		}
	}
	if w.c.PublicURL == "" && s.Payload == domain.PayloadThin && s.Format != domain.FormatStandard {
		faults = append(faults, domain.Fault{Pointer: "/payload", Detail: "thin CloudEvents refer to the ledger, which does not know its own address: set public-url"})
	}
	if len(faults) > 0 {
		return faulty(faults...)
	}
	return nil
}

func faulty(faults ...domain.Fault) error {
	return &domain.Error{Code: domain.CodeInvalidRequest, Detail: "The request breaks the rules listed.", Faults: faults}
}

// Change says what an endpoint is to be configured to, given what it is, and
// the secrets that are new.
type Change func(before domain.Webhook) (domain.WebhookSettings, Secrets, error)

// Update configures an endpoint anew. What it has not been sent yet it is sent
// as configured then; where it stands in the log stays.
func (w *Webhooks) Update(ctx context.Context, r domain.Request, id string, change Change) (Endpoint, eventstore.Position, error) {
	w.changing.Lock()
	defer w.changing.Unlock()
	cmd, fresh, err := w.updated(ctx, r, id, change)
	if err != nil {
		return Endpoint{}, 0, err
	}
	conf, at, err := w.changeWith(ctx, r, id, cmd, fresh)
	if err != nil {
		return Endpoint{}, 0, err
	}
	e, err := w.endpointOf(ctx, conf)
	return e, at, err
}

// TryUpdate decides like Update and changes nothing.
func (w *Webhooks) TryUpdate(ctx context.Context, r domain.Request, id string, change Change) (domain.Webhook, []domain.Entry, error) {
	cmd, _, err := w.updated(ctx, r, id, change)
	if err != nil {
		return domain.Webhook{}, nil, err
	}
	return w.c.Ledger.TryWebhook(ctx, r, id, cmd)
}

func (w *Webhooks) updated(ctx context.Context, r domain.Request, id string, change Change) (cmd domain.UpdateWebhook, fresh vault, err error) {
	before, err := w.c.Ledger.Webhook(ctx, id)
	if err != nil {
		return cmd, nil, err
	}
	if !before.Exists() {
		return cmd, nil, errNotFound()
	}
	settings, secrets, err := change(before)
	if err != nil {
		return cmd, nil, err
	}
	fresh, faults := secrets.into(&settings, before.WebhookSettings)
	cmd.Settings = settings
	_, _, err = w.c.Ledger.TryWebhook(ctx, r, id, cmd)
	return cmd, fresh, w.check(settings, faults, err)
}

// SetState pauses, resumes or disables an endpoint. What was not sent waits.
// Resuming one tries it at once, whatever its breaker says.
func (w *Webhooks) SetState(ctx context.Context, r domain.Request, id string, cmd domain.SetWebhookState) (Endpoint, eventstore.Position, error) {
	conf, at, err := w.change(ctx, r, id, cmd)
	if err != nil {
		return Endpoint{}, 0, err
	}
	e, err := w.endpointOf(ctx, conf)
	return e, at, err
}

// Delete removes an endpoint, its progress, its dead letters and its secret.
// Requests under way end; there are no others.
func (w *Webhooks) Delete(ctx context.Context, r domain.Request, id string) (eventstore.Position, error) {
	_, at, err := w.change(ctx, r, id, domain.DeleteWebhook{})
	return at, err
}

func (w *Webhooks) change(ctx context.Context, r domain.Request, id string, cmd domain.WebhookCommand) (domain.Webhook, eventstore.Position, error) {
	w.changing.Lock()
	defer w.changing.Unlock()
	return w.changeWith(ctx, r, id, cmd, nil)
}

// changeWith changes an endpoint by a command that refers to new secrets. The
// caller holds changing.
func (w *Webhooks) changeWith(ctx context.Context, r domain.Request, id string, cmd domain.WebhookCommand, secrets vault) (domain.Webhook, eventstore.Position, error) {
	if err := w.add(ctx, id, secrets); err != nil {
		return domain.Webhook{}, 0, err
	}
	conf, at, err := w.c.Ledger.ExecuteWebhook(ctx, r, id, cmd)
	if err != nil {
		return conf, at, err
	}
	if at > 0 && conf.Exists() {
		if err := w.prune(ctx, conf); err != nil {
			w.c.Logger.WarnContext(ctx, "secrets of a webhook that are not used any more stay until its next change", "webhook", id, "err", err)
		}
	}
	return conf, at, w.copy(ctx, conf)
}

// refresh copies what the log says about an endpoint now.
func (w *Webhooks) refresh(ctx context.Context, id string) error {
	w.changing.Lock()
	defer w.changing.Unlock()
	conf, err := w.c.Ledger.Webhook(ctx, id)
	if err != nil {
		return err
	}
	return w.copy(ctx, conf)
}

// copy makes delivery.db and the running deliveries follow conf.
func (w *Webhooks) copy(ctx context.Context, conf domain.Webhook) error {
	r := w.runner.Load()
	if r != nil && !conf.Exists() {
		r.apply(conf) // stop before its rows go
	}
	if err := w.store.put(ctx, conf); err != nil {
		return fmt.Errorf("webhooks: copy endpoint: %w", err)
	}
	if !conf.Exists() {
		if err := w.c.Keys.DeleteSecret(ctx, vaultName(conf.WebhookID)); err != nil {
			return fmt.Errorf("webhooks: forget endpoint: %w", err)
		}
	} else if r != nil {
		r.apply(conf)
	}
	return nil
}

// StartingAt is the position after which the first event is that was recorded
// at a time or after it; the head of the log if there is none. An endpoint
// created with it starts there.
func (w *Webhooks) StartingAt(ctx context.Context, t time.Time) (eventstore.Position, error) {
	head, err := w.c.Log.Head(ctx)
	if err != nil {
		return 0, fmt.Errorf("webhooks: find a time: %w", err)
	}
	low, high := eventstore.Position(0), head // times grow with positions
	for low < high {
		middle := low + (high-low)/2 // the event after it is looked at
		for page, err := range w.c.Log.Subscribe(ctx, middle) {
			if err != nil {
				return 0, fmt.Errorf("webhooks: find a time: %w", err)
			}
			if page[0].Time.Before(t) {
				low = middle + 1
			} else {
				high = middle
			}
			break
		}
		if err := ctx.Err(); err != nil {
			return 0, err
		}
	}
	return low, nil
}
