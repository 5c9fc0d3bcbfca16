package webhooks

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/projections/webhooks/transport"
	"accountledger/projections/webhooks/wire"
)

// Creation is what a client asks of Create.
type Creation struct {
	domain.CreateWebhook                       // a negative After stands for the head of the log
	Secrets                                    // those that its settings need
	Secret               string                // to sign with; "": Create generates one
	KeyType              domain.WebhookKeyType // of a generated secret; default KeyHMAC
}

// Secrets are the secrets that settings need. The API never shows them; "" keeps
// the present one.
type Secrets struct {
	Auth      string // the API key, password, TOTP seed in base32, or client secret
	ClientKey string // PEM, of the client certificate
}

// assign sets the ids of secrets in settings and returns the new secrets. Without a
// new secret it keeps the present one, but not for another receiver: a secret is
// only sent to the receiver that it was given for.
func (s Secrets) assign(settings *domain.WebhookSettings, before domain.WebhookSettings) (secrets, []domain.Fault) {
	fresh := secrets{}
	var faults []domain.Fault
	fault := func(pointer, detail string) { faults = append(faults, domain.Fault{Pointer: pointer, Detail: detail}) }
	if a := &settings.Auth; a.Type != "" {
		kept := before.Auth
		switch {
		case s.Auth != "":
			if detail := transport.SecretFault(a.Type, s.Auth); detail != "" {
				fault("/auth/secret", detail)
			}
			a.SecretID = domain.NewID().String()
			fresh[a.SecretID] = s.Auth
		case kept.SecretID == "" || kept.Type != a.Type:
			fault("/auth/secret", "is missing")
		case kept.TokenURL != a.TokenURL || a.Type != domain.AuthOAuth2 && origin(before.URL) != origin(settings.URL):
			fault("/auth/secret", "must be given again for another receiver")
		default:
			a.SecretID = kept.SecretID
		}
	}
	if c := &settings.ClientCertificate; c.Certificate != "" {
		switch {
		case s.ClientKey != "":
			if _, err := tls.X509KeyPair([]byte(c.Certificate), []byte(s.ClientKey)); err != nil {
				fault("/clientCertificate/key", "must be, like the certificate, PEM, and belong to it")
			}
			c.SecretID = domain.NewID().String()
			fresh[c.SecretID] = s.ClientKey
		case before.ClientCertificate.Certificate != c.Certificate:
			fault("/clientCertificate/key", "is missing")
		default:
			c.SecretID = before.ClientCertificate.SecretID
		}
	}
	return fresh, faults
}

// origin returns the scheme and host of a URL.
func origin(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return ""
	}
	return u.Scheme + "://" + strings.ToLower(u.Host)
}

// registry registers and configures webhooks.
type registry struct{ status }

// Create registers a webhook under id. It returns the webhook, its signing
// secret, and the position of the creation's event. Only the first outcome has
// the secret: a repetition returns "".
func (r registry) Create(ctx context.Context, by domain.Request, id string, c Creation) (Endpoint, string, eventstore.Position, error) {
	r.changing.Lock()
	defer r.changing.Unlock()
	c, fresh, tried, err := r.validate(ctx, by, id, c)
	if err != nil {
		return Endpoint{}, "", 0, err
	}
	if tried.Repeated {
		e, err := r.of(ctx, tried.State)
		return e, "", tried.Position(), err
	}
	if c.Secret == "" {
		c.Secret = wire.NewSecret(c.KeyType)
	}
	fresh[c.Keys[0].KeyID] = c.Secret
	result, err := r.changeWith(ctx, by, id, c.CreateWebhook, fresh)
	if err != nil {
		return Endpoint{}, "", 0, err
	}
	e, err := r.of(ctx, result.State)
	return e, c.Secret, result.Position(), err
}

// Try decides like Create and changes nothing.
func (r registry) Try(ctx context.Context, by domain.Request, id string, c Creation) (domain.Result[domain.Webhook], error) {
	_, _, tried, err := r.validate(ctx, by, id, c)
	return tried, err
}

// validate collects everything that is wrong with a creation: by the rules of
// the domain and by those of delivery. It returns c with the position to start
// after and the ids of its secrets; the new secrets except that of the first key;
// and the outcome of a dry run, which may be that of a repetition.
func (r registry) validate(ctx context.Context, by domain.Request, id string, c Creation) (Creation, secrets, domain.Result[domain.Webhook], error) {
	var tried domain.Result[domain.Webhook]
	if c.After < 0 {
		var err error
		if c.After, err = r.config.Log.Head(ctx); err != nil {
			return c, nil, tried, fmt.Errorf("webhooks: create: %w", err)
		}
	}
	settings := c.Settings()
	fresh, faults := c.Secrets.assign(&settings, domain.WebhookSettings{})
	c.Options = settings.WebhookOptions
	if c.Secret != "" {
		if fault := wire.SecretFault(c.Secret, c.KeyType); fault != "" {
			faults = append(faults, domain.Fault{Pointer: "/secret", Detail: fault})
		}
		c.KeyType = wire.KeyType(c.Secret)
	}
	c.KeyType = cmp.Or(c.KeyType, domain.KeyHMAC)
	c.Keys = []domain.WebhookKey{{KeyID: domain.NewID().String(), Type: c.KeyType}}
	tried, err := r.ledger.try(ctx, by, id, c.CreateWebhook)
	if err == nil && tried.Repeated {
		return c, nil, tried, nil
	}
	return c, fresh, tried, r.check(settings, faults, err)
}

// check adds the faults that were found already, and those that only delivery
// can find in settings, to the domain's refusal, err, which may be nil.
func (r registry) check(s domain.WebhookSettings, faults []domain.Fault, err error) error {
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
			if fault := transport.URLFault(u, r.config.Allow); fault != "" {
				faults = append(faults, domain.Fault{Pointer: pointer, Detail: fault})
			}
		}
	}
	if r.config.PublicURL == "" && s.Payload == domain.PayloadThin && s.Format != domain.FormatStandard {
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

// Change returns the new settings of a webhook, given its present configuration,
// and the secrets that are new.
type Change func(before domain.Webhook) (domain.WebhookSettings, Secrets, error)

// Update changes the settings of a webhook. They apply to all events that were
// not sent yet; the webhook keeps its position in the log.
func (r registry) Update(ctx context.Context, by domain.Request, id string, change Change) (Endpoint, eventstore.Position, error) {
	r.changing.Lock()
	defer r.changing.Unlock()
	cmd, fresh, _, err := r.updated(ctx, by, id, change)
	if err != nil {
		return Endpoint{}, 0, err
	}
	result, err := r.changeWith(ctx, by, id, cmd, fresh)
	return r.outcome(ctx, result, err)
}

// TryUpdate decides like Update and changes nothing.
func (r registry) TryUpdate(ctx context.Context, by domain.Request, id string, change Change) (domain.Result[domain.Webhook], error) {
	_, _, tried, err := r.updated(ctx, by, id, change)
	return tried, err
}

func (r registry) updated(ctx context.Context, by domain.Request, id string, change Change) (cmd domain.UpdateWebhook, fresh secrets, tried domain.Result[domain.Webhook], err error) {
	before, err := r.ledger.webhook(ctx, id)
	if err != nil {
		return cmd, nil, tried, err
	}
	var faults []domain.Fault
	if before.Exists() { // else the ledger refuses, or recognises a repetition
		settings, given, err := change(before)
		if err != nil {
			return cmd, nil, tried, err
		}
		fresh, faults = given.assign(&settings, before.WebhookSettings)
		cmd.Settings = settings
	}
	tried, err = r.ledger.try(ctx, by, id, cmd)
	if err == nil && tried.Repeated {
		return cmd, nil, tried, nil
	}
	return cmd, fresh, tried, r.check(cmd.Settings, faults, err)
}

// SetState pauses, resumes or disables a webhook. Events that were not sent wait.
// Resuming closes the breaker, so that the endpoint is tried immediately.
func (r registry) SetState(ctx context.Context, by domain.Request, id string, cmd domain.SetWebhookState) (Endpoint, eventstore.Position, error) {
	result, err := r.change(ctx, by, id, cmd)
	return r.outcome(ctx, result, err)
}

// TrySetState decides like SetState and changes nothing.
func (r registry) TrySetState(ctx context.Context, by domain.Request, id string, cmd domain.SetWebhookState) (domain.Result[domain.Webhook], error) {
	return r.ledger.try(ctx, by, id, cmd)
}

// outcome adds the state of its delivery to the webhook that a command returned.
func (r registry) outcome(ctx context.Context, result domain.Result[domain.Webhook], err error) (Endpoint, eventstore.Position, error) {
	if err != nil {
		return Endpoint{}, 0, err
	}
	e, err := r.of(ctx, result.State)
	return e, result.Position(), err
}

// Delete deletes a webhook, its progress, its dead letters and its secrets. It
// does not abort the requests in flight; no others follow.
func (r registry) Delete(ctx context.Context, by domain.Request, id string) (eventstore.Position, error) {
	result, err := r.change(ctx, by, id, domain.DeleteWebhook{})
	if err != nil {
		return 0, err
	}
	return result.Position(), nil
}

// TryDelete decides like Delete and changes nothing.
func (r registry) TryDelete(ctx context.Context, by domain.Request, id string) (domain.Result[domain.Webhook], error) {
	return r.ledger.try(ctx, by, id, domain.DeleteWebhook{})
}

// StartingAt returns the position before the first event that was recorded at a
// time or later, or the head of the log if there is none: the After of a webhook
// that starts at that time.
func (e *engine) StartingAt(ctx context.Context, t time.Time) (eventstore.Position, error) {
	head, err := e.config.Log.Head(ctx)
	if err != nil {
		return 0, fmt.Errorf("webhooks: find a time: %w", err)
	}
	low, high := eventstore.Position(0), head // times do not decrease from one position to the next
	for low < high {
		middle := low + (high-low)/2 // decide by the event after it
		for page, err := range e.config.Log.Subscribe(ctx, middle) {
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
