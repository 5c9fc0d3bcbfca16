// Package webhooks delivers public events to the endpoints of webhooks: it follows
// the log and sends each webhook the events that it selects, signed as Standard
// Webhooks 1.0.0 (https://www.standardwebhooks.com), at least once, in order per
// account.
//
// A webhook is what a client registers; its endpoint is the address that it
// receives events at. Per webhook and account, first deliveries are in the order
// of the log and never overlap. Duplicates can occur; receivers recognize them by
// the webhook-id. Each event has a sequence: a receiver ignores events that are
// not above the last one it applied. There is no order across accounts.
//
// A delivery is a POST of
//
//	{"type":"USER_CREATED","timestamp":"...","id":"...","sub":"...","sequence":0,"data":{...}}
//
// where id is also the webhook-id, and previous_sequence, missing in the first
// delivery, is that of the account's event which the webhook received before. The
// body is the same, byte for byte, at every attempt. Other payloads have only the
// ids in data, or what a mapping names; other formats are CloudEvents, also in
// batches, with at most one event per account so that the order is kept.
//
// A webhook has a cursor in the log, with a bitmap of what is settled beyond it,
// and a lane for each account with a failing delivery: the cursor may pass the
// events that a lane owes. So a failing account does not hold up the others, and
// delivery.db does not grow with the backlog.
//
// An event passes these files, from the log to its request:
//
//	run.go      follows the log
//	engine.go   starts and stops a worker for each webhook; applies changed configurations
//	loop.go     decides what a worker reads and sends next
//	worker.go   holds its state: what waits, in cache.go, queue.go, lane.go, cursor.go
//	sender.go   makes requests of deliveries; sequence.go finds what came before
//	wire        defines the body, headers and signature of a request
//	transport   connects, authenticates and sends
//
// Its result passes result.go (with breaker.go and pace.go), flush.go and
// progress.go, which stores it in delivery.db (store.go).
//
// The package follows the log, but also asks the ledger: ledger.go has all it
// asks for; report.go reports how deliveries go.
//
// The API is in configure.go and key.go (registration), status.go and stats.go,
// delivery.go and resend.go, replay.go, disclosure.go and probe.go.
package webhooks

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Webhooks registers webhooks and delivers to them. All methods may be called
// concurrently.
type Webhooks struct {
	*engine
	status
	registry
	deliveries
	disclosures
	probes
	*replays
}

// Open opens delivery.db, or creates it, and reads the settings of all webhooks
// from the log. It refuses a file of another program or of a later version, and,
// with a *projections.AheadError and before it changes anything, a file that is
// ahead of the log or has followed another one. The error is
// eventstore.ErrTampered if the log cannot prove a webhook's settings.
func Open(ctx context.Context, c Config) (*Webhooks, error) {
	c = c.withDefaults()
	s, err := openStore(ctx, c)
	if err != nil {
		return nil, err
	}
	l := ledger{c.Ledger}
	secrets := secretStore{c.Keys, c.Now}
	e := &engine{config: c, store: s, ledger: l, secrets: secrets,
		senders: senders{config: c, opener: opener{c.Codec, l}, secrets: secrets}}
	if err := e.begin(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("webhooks: open: %w", err), s.close())
	}
	st := status{e}
	return &Webhooks{engine: e, status: st, registry: registry{st}, deliveries: deliveries{e}, disclosures: disclosures{e}, probes: probes{st},
		replays: &replays{engine: e, jobs: map[string]context.CancelFunc{}}}, nil
}

// Run delivers until ctx is done. Then it sends nothing new, waits for the
// requests in flight, at most for the timeout of one, stores the progress of each
// webhook, and returns nil: the next Run sends nothing twice. It returns an error
// only if it cannot begin, or if the log is tampered with.
func (w *Webhooks) Run(ctx context.Context) error {
	return w.serve(ctx, w.verifyBySystem, w.resume)
}

// Check returns an error if delivery.db is damaged.
func (w *Webhooks) Check(ctx context.Context) error {
	var found string
	if err := w.store.read.QueryRowContext(ctx, `PRAGMA integrity_check(1)`).Scan(&found); err != nil {
		return fmt.Errorf("webhooks: check: %w", err)
	}
	if found != "ok" {
		return fmt.Errorf("webhooks: check %s: %s", w.config.Path, found)
	}
	return nil
}

// Backup writes a consistent copy of the live file to dest, which must not exist.
// The copy is durable when Backup returns. Restored beside a later log, it makes
// webhooks send again what they sent since.
func (w *Webhooks) Backup(ctx context.Context, dest string) error {
	f, err := os.OpenFile(dest, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("webhooks: back up: %w", err)
	}
	defer f.Close()
	if _, err := w.store.read.ExecContext(ctx, `VACUUM INTO ?`, dest); err != nil {
		return errors.Join(fmt.Errorf("webhooks: back up %s: %w", w.config.Path, err), os.Remove(dest))
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

// Purge deletes the stored responses to requests about these accounts, which may
// quote the requests, from delivery.db and its write-ahead log. Requests are not
// stored. Responses that arrive later, to requests in flight, are not stored
// either. Purge does not need Run.
func (w *Webhooks) Purge(ctx context.Context, subs ...string) error {
	for _, sub := range subs {
		if err := w.forget(ctx, sub); err != nil {
			return fmt.Errorf("webhooks: purge: %w", err)
		}
	}
	if err := w.store.scrub(ctx); err != nil {
		return fmt.Errorf("webhooks: purge: %w", err)
	}
	return nil
}

// Close closes delivery.db. Run must have returned.
func (w *Webhooks) Close() error {
	if err := w.store.close(); err != nil {
		return fmt.Errorf("webhooks: close: %w", err)
	}
	return nil
}
