// Package webhooks tells external systems what happened: it follows the log
// and sends public events to the endpoints that asked for them, signed as
// Standard Webhooks 1.0.0 (https://www.standardwebhooks.com), at least once,
// in order per account.
//
// Per endpoint and account, first deliveries are in log order and never
// overlap. Duplicates can occur; the webhook-id tells them. Each event has a
// sequence: a receiver ignores what is not above the last one it applied.
// Across accounts there is no order.
//
// A delivery is a POST of
//
//	{"type":"USER_CREATED","timestamp":"...","id":"...","sub":"...","sequence":0,"data":{...}}
//
// where id is also the webhook-id, and previous_sequence is there if the
// account's event before this one was given up. The body is the same, byte for
// byte, at every attempt; a payload of ids only has just those in data.
//
// An endpoint has a cursor in the log, with a bitmap of what is settled beyond
// it, and a lane for each account with a failing delivery: what the lane owes
// the cursor may pass. So a failing account holds up nobody else, and what is
// stored does not grow with the backlog. Which code is where:
//
//	run.go       follows the log; starts and stops endpoints
//	feed.go      gives the log's events to the endpoints
//	endpoint.go  the loop of one endpoint; with cursor, turns, lane, breaker
//	message.go   the body of a delivery; sign.go signs, send.go sends it
//	guard.go     which addresses are connected to
//	store.go     delivery.db
package webhooks

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/eventstore/seal"
)

// Config says what deliveries work with.
type Config struct {
	Path   string           // of delivery.db; made if it is not there
	Log    eventstore.Store // what is delivered
	Codec  domain.Codec     // opens it
	Ledger *domain.Ledger   // decides on endpoints
	Keys   *seal.Keys       // keeps the endpoints' secrets

	Allow        []netip.Prefix   // private addresses that may be connected to, on any port and over http; metadata services stay closed
	UserAgent    string           // default "accountledger"
	Logger       *slog.Logger     // default: discards
	Now          func() time.Time // default time.Now
	Timeout      time.Duration    // of one attempt, from name look-up to the response's last byte; default 15 s
	Schedule     []time.Duration  // waits between the attempts of one event; default DefaultSchedule
	InFlight     int              // requests at once per endpoint; default 64
	KeepAttempts int              // attempts remembered per endpoint, for at most 30 days; default 10,000
}

const attemptAge = 30 * 24 * time.Hour

// Webhooks delivers. All methods may be called at once by many goroutines.
type Webhooks struct {
	c      Config
	store  *store
	runner atomic.Pointer[runner] // while Run runs

	changing sync.Mutex // held while an endpoint's configuration is read and copied, so that copies do not overtake

	// transport makes an endpoint's connections; tests put their own here.
	transport func(*guard, Config) http.RoundTripper
}

// Endpoint is a webhook as it is configured and how delivery to it goes.
type Endpoint struct {
	domain.Webhook
	Position          eventstore.Position `json:"position"`    // everything up to here is settled
	Backlog           int64               `json:"backlog"`     // events of the log that are not settled, wanted by the endpoint or not
	Lanes             int                 `json:"lanes"`       // accounts that wait because their next event was refused
	DeadLetters       int64               `json:"deadLetters"` // events given up
	Breaker           Breaker             `json:"breaker"`
	LastSuccessTime   time.Time           `json:"lastSuccessTime,omitzero"`
	SecretFingerprint string              `json:"secretFingerprint"` // for comparison; of a key pair, the public key
}

// Breaker says whether an endpoint as a whole is left alone for a while.
type Breaker struct {
	State  string    `json:"state"`           // closed or open
	Reason string    `json:"reason,omitzero"` // an error code, see Attempt
	Step   int       `json:"step"`            // failures in a row
	Until  time.Time `json:"until,omitzero"`  // when it is tried again
}

// Open opens delivery.db, or makes it. It refuses a file that is not ours or
// is of another version. Open it before anything is appended to the log.
func Open(ctx context.Context, c Config) (*Webhooks, error) {
	c.UserAgent = cmp.Or(c.UserAgent, "accountledger")
	c.Timeout = cmp.Or(c.Timeout, 15*time.Second)
	c.InFlight = cmp.Or(c.InFlight, 64)
	c.KeepAttempts = cmp.Or(c.KeepAttempts, 10_000)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Schedule == nil {
		c.Schedule = DefaultSchedule
	}
	s, err := openStore(ctx, c.Path, int64(c.KeepAttempts))
	if err != nil {
		return nil, err
	}
	w := &Webhooks{c: c, store: s, transport: func(g *guard, c Config) http.RoundTripper {
		return newTransport(g, c.InFlight)
	}}
	if err := w.clamp(ctx); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return w, nil
}

// clamp takes back cursors that are ahead of the log. It is done before
// anybody appends to what may be an older copy of the log.
func (w *Webhooks) clamp(ctx context.Context) error {
	head, err := w.c.Log.Head(ctx)
	if err != nil {
		return fmt.Errorf("webhooks: open: %w", err)
	}
	n, err := w.store.clamp(ctx, head)
	if err != nil {
		return fmt.Errorf("webhooks: open: %w", err)
	}
	if n > 0 {
		w.c.Logger.WarnContext(ctx, "the log is older than the progress of webhooks; they go on at its end", "position", head, "webhooks", n)
	}
	return nil
}

func secretName(id string) string { return "webhook/" + id }

// Create registers an endpoint under id and returns it with its secret, which
// is shown this once, and the position of the event that says so. Without a
// secret it makes one. A negative After of cmd means the head of the log.
//
// The same creation asked for again, which is how a client that lost the
// response gets it, is answered with the same secret; another creation under
// the same id is refused with CodeIdempotencyKeyReused.
func (w *Webhooks) Create(ctx context.Context, r domain.Request, id string, cmd domain.CreateWebhook, secret string) (Endpoint, string, eventstore.Position, error) {
	w.changing.Lock()
	defer w.changing.Unlock()
	before, err := w.c.Ledger.Webhook(ctx, id)
	if err != nil {
		return Endpoint{}, "", 0, err
	}
	if before.Exists() {
		return w.created(ctx, before, cmd, secret)
	}
	if cmd, err = w.validate(ctx, r, id, cmd, secret); err != nil {
		return Endpoint{}, "", 0, err
	}
	if secret == "" {
		secret = newSecret()
	}
	// First the secret: an endpoint without one could not be delivered to, a
	// secret without an endpoint hurts nobody.
	if err := w.c.Keys.PutSecret(ctx, secretName(id), []byte(secret)); err != nil {
		return Endpoint{}, "", 0, fmt.Errorf("webhooks: create: %w", err)
	}
	conf, at, err := w.c.Ledger.ExecuteWebhook(ctx, r, id, cmd)
	if err != nil {
		if !conf.Exists() && domain.CodeOf(err) != "" {
			err = errors.Join(err, w.c.Keys.DeleteSecret(ctx, secretName(id)))
		}
		return Endpoint{}, "", 0, err
	}
	if err := w.copy(ctx, conf); err != nil {
		return Endpoint{}, "", 0, err
	}
	e, err := w.endpointOf(ctx, conf)
	return e, secret, at, err
}

// created answers a repeated creation.
func (w *Webhooks) created(ctx context.Context, before domain.Webhook, cmd domain.CreateWebhook, secret string) (Endpoint, string, eventstore.Position, error) {
	kept, err := w.c.Keys.Secret(ctx, secretName(before.WebhookID))
	if err != nil {
		return Endpoint{}, "", 0, fmt.Errorf("webhooks: create: %w", err)
	}
	same := cmd.URL == before.URL && slices.Equal(cmd.Events, before.Events) && cmd.Format == before.Format && cmd.Payload == before.Payload &&
		(cmd.After < 0 || cmd.After == before.After) && (secret == "" || secret == string(kept))
	if !same {
		return Endpoint{}, "", 0, &domain.Error{Code: domain.CodeIdempotencyKeyReused, Detail: "There is another webhook with this id."}
	}
	e, err := w.endpointOf(ctx, before)
	return e, string(kept), 0, err
}

// Try decides like Create and changes nothing. It returns the endpoint as it
// would be and the events there would be.
func (w *Webhooks) Try(ctx context.Context, r domain.Request, id string, cmd domain.CreateWebhook, secret string) (domain.Webhook, []domain.Entry, error) {
	cmd, err := w.validate(ctx, r, id, cmd, secret)
	if err != nil {
		return domain.Webhook{}, nil, err
	}
	return w.c.Ledger.TryWebhook(ctx, r, id, cmd)
}

// validate collects everything that is wrong with a creation: what the rules
// of webhooks say and what only delivery knows. It returns cmd with the
// position to start after.
func (w *Webhooks) validate(ctx context.Context, r domain.Request, id string, cmd domain.CreateWebhook, secret string) (domain.CreateWebhook, error) {
	if cmd.After < 0 {
		var err error
		if cmd.After, err = w.c.Log.Head(ctx); err != nil {
			return cmd, fmt.Errorf("webhooks: create: %w", err)
		}
	}
	_, _, err := w.c.Ledger.TryWebhook(ctx, r, id, cmd)
	refusal, ok := errors.AsType[*domain.Error](err)
	if err != nil && (!ok || refusal.Code != domain.CodeInvalidRequest) {
		return cmd, err
	}
	var faults []domain.Fault
	if refusal != nil {
		faults = refusal.Faults
	}
	badURL := slices.ContainsFunc(faults, func(f domain.Fault) bool { return f.Pointer == "/url" })
	if u, err := url.Parse(cmd.URL); err == nil && !badURL {
		if fault := newGuard(w.c.Allow, u.Scheme == "http").fault(u); fault != "" {
			faults = append(faults, domain.Fault{Pointer: "/url", Detail: fault})
		}
	}
	if fault := secretFault(secret); fault != "" {
		faults = append(faults, domain.Fault{Pointer: "/secret", Detail: fault})
	}
	if len(faults) > 0 {
		return cmd, &domain.Error{Code: domain.CodeInvalidRequest, Detail: "The request breaks the rules listed.", Faults: faults}
	}
	return cmd, nil
}

// How long a secret's key may be, as Standard Webhooks has it.
const (
	minKey = 24
	maxKey = 64
)

func secretFault(secret string) string {
	if secret == "" {
		return ""
	}
	if strings.ContainsAny(secret, " \t\r\n") {
		return "must not contain white space"
	}
	if _, err := parseSigner(secret); err != nil {
		return "must be " + secretPrefix + " or " + privatePrefix + " and a key in base64"
	}
	if key, err := ParseSecret(secret); err == nil && (len(key) < minKey || len(key) > maxKey) {
		return fmt.Sprintf("the key must have %d to %d bytes", minKey, maxKey)
	}
	return ""
}

func newSecret() string {
	key := make([]byte, 32)
	rand.Read(key) // never fails, see its documentation
	return secretPrefix + base64.StdEncoding.EncodeToString(key)
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
	conf, at, err := w.c.Ledger.ExecuteWebhook(ctx, r, id, cmd)
	if err != nil {
		return conf, at, err
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
		if err := w.c.Keys.DeleteSecret(ctx, secretName(conf.WebhookID)); err != nil {
			return fmt.Errorf("webhooks: forget endpoint: %w", err)
		}
	} else if r != nil {
		r.apply(conf)
	}
	return nil
}

// Get returns one endpoint, or an error with CodeWebhookNotFound.
func (w *Webhooks) Get(ctx context.Context, id string) (Endpoint, error) {
	conf, err := w.c.Ledger.Webhook(ctx, id)
	if err != nil {
		return Endpoint{}, err
	}
	if !conf.Exists() {
		return Endpoint{}, errNotFound()
	}
	return w.endpointOf(ctx, conf)
}

func errNotFound() error {
	return &domain.Error{Code: domain.CodeWebhookNotFound, Detail: "There is no such webhook."}
}

// List returns all endpoints in the order of their creation.
func (w *Webhooks) List(ctx context.Context) ([]Endpoint, error) {
	confs, err := w.store.endpoints(ctx)
	if err != nil {
		return nil, fmt.Errorf("webhooks: list: %w", err)
	}
	all := make([]Endpoint, 0, len(confs))
	for _, conf := range confs {
		e, err := w.endpointOf(ctx, conf)
		if err != nil {
			return nil, err
		}
		all = append(all, e)
	}
	return all, nil
}

// endpointOf is conf with how its delivery goes: as the running delivery knows
// it, or else as it was last written.
func (w *Webhooks) endpointOf(ctx context.Context, conf domain.Webhook) (Endpoint, error) {
	e := Endpoint{Webhook: conf}
	head, err := w.c.Log.Head(ctx)
	if err != nil {
		return e, fmt.Errorf("webhooks: %w", err)
	}
	p, lanes, dead, err := w.store.state(ctx, conf.WebhookID)
	if err != nil {
		return e, err
	}
	if live := w.running(conf.WebhookID); live != nil {
		live.ask(ctx, func() { p, lanes = live.progress, live.lanes.failing() })
	}
	e.Position, e.Lanes, e.DeadLetters, e.LastSuccessTime = p.cursor.low, lanes, dead, p.lastSuccess
	e.Backlog = max(0, int64(head-p.cursor.low)-p.cursor.settled())
	e.Breaker = Breaker{State: "closed"}
	if p.breaker.open() {
		e.Breaker = Breaker{State: "open", Reason: p.breaker.reason, Step: p.breaker.step, Until: p.breaker.until.UTC().Truncate(time.Microsecond)}
	}
	switch secrets, err := w.c.Keys.Secret(ctx, secretName(conf.WebhookID)); {
	case errors.Is(err, seal.ErrNoSecret): // seen as the missing fingerprint it is
	case err != nil:
		return e, fmt.Errorf("webhooks: %w", err)
	default:
		signers, err := parseSigners(string(secrets))
		if err != nil {
			return e, err
		}
		e.SecretFingerprint = signers[0].fingerprint()
	}
	return e, nil
}

// Check looks for damage in the file.
func (w *Webhooks) Check(ctx context.Context) error {
	var found string
	if err := w.store.read.QueryRowContext(ctx, `PRAGMA integrity_check(1)`).Scan(&found); err != nil {
		return fmt.Errorf("webhooks: check: %w", err)
	}
	if found != "ok" {
		return fmt.Errorf("webhooks: check %s: %s", w.c.Path, found)
	}
	return nil
}

// Backup writes a consistent copy of the live file to dest, which must not
// exist; it is durable when Backup returns. Restored beside a log that has
// gone on, it makes webhooks send again what was sent since.
func (w *Webhooks) Backup(ctx context.Context, dest string) error {
	f, err := os.OpenFile(dest, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("webhooks: back up: %w", err)
	}
	defer f.Close()
	if _, err := w.store.read.ExecContext(ctx, `VACUUM INTO ?`, dest); err != nil {
		return errors.Join(fmt.Errorf("webhooks: back up %s: %w", w.c.Path, err), os.Remove(dest))
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("webhooks: back up: %w", err)
	}
	dir, err := os.Open(filepath.Dir(dest))
	if err != nil {
		return fmt.Errorf("webhooks: back up: %w", err)
	}
	defer dir.Close()
	if err := dir.Sync(); err != nil {
		return fmt.Errorf("webhooks: back up: %w", err)
	}
	return nil
}

// Close closes the file. Run must have returned.
func (w *Webhooks) Close() error {
	if err := w.store.close(); err != nil {
		return fmt.Errorf("webhooks: close: %w", err)
	}
	return nil
}
