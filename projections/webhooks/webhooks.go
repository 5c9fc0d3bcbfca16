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
// where id is also the webhook-id, and previous_sequence is that of the
// account's event which the endpoint was told of before, unless this is the
// first. The body is the same, byte for byte, at every attempt; a payload of ids only has just those in data, one of
// fields what a mapping names. Or it is a CloudEvent, or a batch of them: at
// most one event per account, so that the order stays.
//
// An endpoint has a cursor in the log, with a bitmap of what is settled beyond
// it, and a lane for each account with a failing delivery: what the lane owes
// the cursor may pass. So a failing account holds up nobody else, and what is
// stored does not grow with the backlog. Which code is where:
//
//	run.go       follows the log; starts and stops endpoints
//	feed.go      gives the log's events to the endpoints
//	endpoint.go  the loop of one endpoint; with cursor, turns, lane, breaker
//	configure.go what endpoints there are and how they are configured
//	message.go   the body of a delivery; cloudevents.go as CloudEvents; previous.go what came before it
//	courier.go   makes requests of deliveries; sign.go signs, send.go sends them
//	guard.go     which addresses are connected to
//	hand.go      what is sent by hand; replay.go much of it; probe.go what only tries an endpoint out
//	health.go    what the ledger is told of deliveries, by report.go
//	figures.go   what whoever watches over the ledger is told
//	auth.go      what else shows a receiver who is sending; pace.go how fast
//	vault.go     an endpoint's secrets; key.go those it is signed with
//	store.go     delivery.db
package webhooks

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
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
	PublicURL    string           // where others reach the ledger's API, without a slash at the end; "": nothing refers to it
	UserAgent    string           // default "accountledger"
	Logger       *slog.Logger     // default: discards
	Now          func() time.Time // default time.Now
	Timeout      time.Duration    // of one attempt, from name look-up to the response's last byte; default 15 s
	Schedule     []time.Duration  // waits between the attempts of one event; default DefaultSchedule
	InFlight     int              // requests at once per endpoint; default 64
	KeepAttempts int              // attempts remembered per endpoint, for at most 30 days; default 10,000

	// Observe is told of each attempt when it is over, by many goroutines at
	// once; the delivery waits for it. Default: nobody is.
	Observe func(Attempted)

	// Trace is told of each attempt at an event with a traceparent before there
	// is a request, and returns what the receiver is sent as traceparent, ""
	// for nothing, and what is told of the attempt when it is over. Default:
	// nobody is.
	Trace func(Tracing) (traceparent string, end func(Attempted))
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
	Position          eventstore.Position `json:"position" doc:"Every event up to this log position is settled."`                                            // everything up to here is settled
	Backlog           int64               `json:"backlog" doc:"Number of events in the log after position, whether or not the webhook subscribes to them."`  // events of the log that are not settled, wanted by the endpoint or not
	Lanes             int                 `json:"lanes" doc:"Number of accounts whose events wait because a delivery failed."`                               // accounts that wait because their next event was refused
	Blocked           int                 `json:"blocked" doc:"Number of those accounts that wait because a delivery was given up and deadLetter is block."` // those of them whose next event was given up and must not be skipped
	DeadLetters       int64               `json:"deadLetters" doc:"Number of deliveries given up."`                                                          // events given up
	Breaker           Breaker             `json:"breaker" doc:"Whether deliveries to the endpoint are suspended."`
	LastSuccessTime   time.Time           `json:"lastSuccessTime,omitzero" doc:"When a delivery last succeeded."`
	SecretFingerprint string              `json:"secretFingerprint" doc:"Fingerprint of the newest key. It identifies the secret without revealing it."` // of the newest key
}

// Breaker says whether an endpoint as a whole is left alone for a while.
type Breaker struct {
	State  string    `json:"state" doc:"closed: deliveries are sent; open: deliveries to the endpoint are suspended."` // closed or open
	Reason string    `json:"reason,omitzero" doc:"Why the breaker is open, as a code."`                                // an error code, see Attempt
	Step   int       `json:"step" doc:"Number of consecutive failures."`                                               // failures in a row
	Until  time.Time `json:"until,omitzero" doc:"When the next delivery is tried."`                                    // when it is tried again
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
	if c.Observe == nil {
		c.Observe = func(Attempted) {}
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
	p, lanes, blocked, dead, err := w.store.state(ctx, conf.WebhookID, len(w.c.Schedule))
	if err != nil {
		return e, err
	}
	if live := w.running(conf.WebhookID); live != nil {
		live.ask(ctx, func() { p, lanes, blocked = live.progress, live.lanes.failing(), live.blockedLanes() })
	}
	if conf.DeadLetter == domain.DeadLetterBlock {
		e.Blocked = blocked
	}
	e.Position, e.Lanes, e.DeadLetters, e.LastSuccessTime = p.cursor.low, lanes, dead, p.lastSuccess
	e.Backlog = max(0, int64(head-p.cursor.low)-p.cursor.settled())
	e.Breaker = Breaker{State: "closed"}
	if p.breaker.open() {
		e.Breaker = Breaker{State: "open", Reason: p.breaker.reason, Step: p.breaker.step, Until: p.breaker.until.UTC().Truncate(time.Microsecond)}
	}
	kept, err := w.vault(ctx, conf.WebhookID)
	if err != nil && !errors.Is(err, seal.ErrNoSecret) { // none is seen by the missing fingerprint
		return e, fmt.Errorf("webhooks: %w", err)
	}
	e.Webhook = kept.fingerprinted(conf, w.c.Now())
	if len(e.Keys) > 0 {
		e.SecretFingerprint = e.Keys[0].Fingerprint
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
