package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"accountledger/cmd/accountledger/cli"
	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/eventstore/seal"
	"accountledger/projections"
	"accountledger/projections/erasure"
	"accountledger/projections/scheduler"
	"accountledger/projections/webhooks"
)

// ledger is a data directory opened for writing. Only one process can have it
// open.
type ledger struct {
	dir       directory
	vkey      string // public key of the log's checkpoints
	keys      *seal.Keys
	log       ledgerLog
	failed    chan error // the log was changed by others
	codec     domain.Codec
	ledger    *domain.Ledger
	views     *projections.Views
	hooks     *webhooks.Webhooks
	schedules *scheduler.Scheduler
	erasures  *erasure.Eraser
	exports   *scheduledExports // nil: none
	metrics   *metrics
	tracing   *tracing // nil: none
	logger    *slog.Logger
	lock      *os.File
	work      chan func(context.Context) // started by run
}

// openLedger opens the ledger in c.Data, and creates it if there is none. It
// returns errLocked if another process has it open.
func openLedger(ctx context.Context, c cli.Config, logger *slog.Logger) (*ledger, error) {
	return openTraced(ctx, c, logger, nil)
}

// openTraced is openLedger with tracing; t may be nil.
func openTraced(ctx context.Context, c cli.Config, logger *slog.Logger, t *tracing) (_ *ledger, err error) {
	l := &ledger{dir: directory(c.Data), metrics: newMetrics(), tracing: t, logger: logger, failed: make(chan error, 1), work: make(chan func(context.Context), 16)}
	defer func() {
		if err != nil {
			err = errors.Join(explain(c, err), l.close())
		}
	}()
	if err := l.dir.make(logger); err != nil {
		return nil, err
	}
	if l.lock, err = l.dir.lock(); err != nil {
		return nil, err
	}
	id, err := l.dir.establish(c, logger)
	if err != nil {
		return nil, err
	}
	l.vkey = id.vkey
	last, err := openLastSigned(c, id.known)
	if err != nil {
		return nil, err
	}
	ledger := ledgerID(id.signer.Name())
	if l.keys, err = seal.Open(ctx, seal.Config{Path: l.dir.path(keysFile), Master: id.master, Ledger: ledger, Existing: id.complete}); err != nil {
		return nil, err
	}
	// The name of keys.db must be durable before events depend on its keys.
	if err := cli.SyncDir(c.Data); err != nil {
		return nil, err
	}
	// A key file whose secrets have changed has had a log.
	existing := id.complete || l.keys.State().Changes > 0
	l.log, err = openStore(ctx, c, id, l.keys, last, existing, false, logger, storeHooks{l.metrics.committed, hook(t, t.appended), func(err error) { l.failed <- err }, func(err error) {
		logger.Error("no checkpoint was signed; the next attempt follows", "err", err)
	}})
	if err != nil {
		return nil, err
	}
	if err := l.keys.MarkLogSealed(ctx); err != nil && !errors.Is(err, seal.ErrBusy) {
		return nil, err
	}
	if err := l.dir.complete(id.vkey); err != nil {
		return nil, err
	}
	if err := last.create(ctx, l.log, logger); err != nil {
		return nil, err
	}
	l.codec = domain.Codec{Keys: l.keys}
	l.views, err = projections.Open(ctx, projections.Config{
		Path: l.dir.path(viewsFile), LedgerID: ledger, Log: l.log, Codec: l.codec, Logger: logger, Trace: hook(t, t.applied),
	})
	if err != nil {
		return nil, err
	}
	if l.exports, err = exportsOf(c, l.views, logger); err != nil {
		return nil, err
	}
	l.ledger = domain.NewLedger(domain.LedgerConfig{Log: l.log, Codec: l.codec, Census: l.views.Census(), Observe: func(ctx context.Context, x domain.Executed) {
		l.metrics.executed(x)
		t.executed(ctx, x)
	}})
	if err := l.ledger.RebuildClaims(ctx, reporter(logger, "rebuilding the claims on identifiers")); err != nil {
		return nil, err
	}
	l.schedules = scheduler.New(scheduler.Config{Ledger: l.ledger, Views: l.views, Logger: logger, Observe: l.metrics.scheduled})
	public, err := publicURL(c)
	if err != nil {
		return nil, err
	}
	l.hooks, err = webhooks.Open(ctx, webhooks.Config{
		Path: l.dir.path(deliveryFile), LedgerID: ledger, Log: l.log, Codec: l.codec, Ledger: l.ledger, Keys: l.keys,
		Allow: c.WebhookAllow, PublicURL: public, UserAgent: "accountledger/" + version(), Logger: logger, Observe: l.metrics.attempted,
		Trace: hook(t, t.delivering),
	})
	if err != nil {
		return nil, err
	}
	l.erasures = erasure.New(erasure.Config{
		Ledger: l.ledger, Log: l.log, Keys: l.keys, Views: l.views, Webhooks: l.hooks, Logger: logger,
	})
	if sealed := l.log.Sealed(); l.keys.State().Destroyed < sealed.Destroyed {
		logger.Warn("keys.db is older than the last erasures; destroying the keys of erased accounts again")
		n, err := l.erasures.Repeat(ctx)
		if err != nil {
			return nil, err
		}
		if now := l.keys.State().Destroyed; now < sealed.Destroyed {
			return nil, refuse(refuseKeysBehind, nil, "data", c.Data, "why", fmt.Sprintf("it has %d destroyed keys, the log has seen %d", now, sealed.Destroyed))
		}
		logger.Info("destroyed keys again", "keys", n)
	}
	return l, l.metrics.watch(ctx, l)
}

// publicURL returns the setting public-url, validated and without a final slash.
func publicURL(c cli.Config) (string, error) {
	if c.PublicURL == "" {
		return "", nil
	}
	u, err := url.Parse(c.PublicURL)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return "", cli.Usagef("public-url is %q; it must be an https URL without query and credentials", c.PublicURL)
	}
	return strings.TrimRight(u.String(), "/"), nil
}

// run keeps the views up to date, delivers webhooks, writes scheduled exports and,
// once it has proven the log, executes schedules and completes erasures, until ctx
// is done. It then returns nil.
func (l *ledger) run(ctx context.Context) error {
	loops, ctx := errgroup.WithContext(ctx)
	loops.Go(func() error { return l.views.Run(ctx) })
	loops.Go(func() error { return l.hooks.Run(ctx) })
	if l.exports != nil {
		loops.Go(func() error { return l.exports.run(ctx) })
	}
	loops.Go(func() error {
		select {
		case err := <-l.failed:
			return err
		case <-ctx.Done():
			return nil
		}
	})
	loops.Go(func() error {
		// Schedules and erasures destroy data, so they start only after the proof.
		// Without it, an attacker could hide an event that cancels a deletion.
		if err := l.prove(ctx); err != nil {
			return err
		}
		loops.Go(func() error { return l.schedules.Run(ctx) })
		loops.Go(func() error { return l.erasures.Run(ctx) })
		return nil
	})
	loops.Go(func() error {
		for {
			select {
			case work := <-l.work:
				loops.Go(func() error { work(ctx); return nil })
			case <-ctx.Done():
				return nil
			}
		}
	})
	if err := loops.Wait(); ctx.Err() == nil || !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// prove reads the whole log once, beside the server, and compares the events and
// the claims with the sealed head.
func (l *ledger) prove(ctx context.Context) error {
	for {
		err := l.log.CheckClaims(ctx)
		if err == nil {
			head, failed := l.log.Head(ctx)
			if err = failed; err == nil {
				err = l.log.Prove(ctx, head, logged(l.logger, "proving the log"))
			}
		}
		switch {
		case err == nil || ctx.Err() != nil || errors.Is(err, eventstore.ErrClosed):
			return nil
		case errors.Is(err, eventstore.ErrTampered):
			return err
		}
		l.logger.ErrorContext(ctx, "the log was not compared with its sealed head; the next attempt follows", "retry", proofRetry, "err", err)
		select {
		case <-time.After(proofRetry):
		case <-ctx.Done():
			return nil
		}
	}
}

// proofRetry is the time between attempts to prove the log, if it cannot be read.
const proofRetry = 10 * time.Second

// reporter returns a function that shows the progress of work that a start waits
// for: as a bar on a terminal, and otherwise in the log.
func reporter(logger *slog.Logger, what string) func(done, total int64) {
	begun := time.Now()
	log := logged(logger, what)
	var bar *cli.Progress
	return func(done, total int64) {
		if bar == nil && time.Since(begun) >= progressInterval {
			bar = cli.Bar(what)
		}
		if bar == nil {
			log(done, total)
			return
		}
		if bar.Set(done, total); done >= total {
			bar.End()
			bar, begun = nil, time.Now()
		}
	}
}

// logged returns a function that logs the progress of long work every few seconds.
func logged(logger *slog.Logger, what string) func(done, total int64) {
	begun := time.Now()
	last := begun
	return func(done, total int64) {
		if time.Since(last) < progressInterval || done == 0 {
			return
		}
		last = time.Now()
		rate := float64(done) / last.Sub(begun).Seconds()
		left := time.Duration(float64(total-done) / rate * float64(time.Second))
		logger.Info(what, "done", done, "of", total, "perSecond", int64(rate), "left", left.Round(time.Second))
	}
}

// progressInterval is how often progress is logged, and how long work takes before
// it is shown.
const progressInterval = 2 * time.Second

// background makes run start work, with a context that ends with run.
func (l *ledger) background(work func(context.Context)) { l.work <- work }

// close closes everything that is open and unlocks the directory. It closes the
// followers of the log before the log, which signs a last checkpoint.
func (l *ledger) close() error {
	var errs []error
	if l.hooks != nil {
		errs = append(errs, l.hooks.Close())
	}
	if l.views != nil {
		errs = append(errs, l.views.Close())
	}
	if l.log != nil {
		errs = append(errs, l.log.Close())
	}
	if l.keys != nil {
		errs = append(errs, l.keys.Close())
	}
	if l.lock != nil {
		errs = append(errs, l.lock.Close())
	}
	return errors.Join(errs...)
}

// reader is a data directory opened for reading, also while a server runs. Only
// the log is open; commands open the other files they need.
type reader struct {
	config cli.Config
	dir    directory
	log    storeReader
	logger *slog.Logger
}

// openReadOnly opens the ledger in c.Data for reading.
func openReadOnly(ctx context.Context, c cli.Config, logger *slog.Logger) (*reader, error) {
	if err := requireStore(c); err != nil {
		return nil, err
	}
	log, err := openStoreReader(ctx, c)
	if err != nil {
		return nil, explain(c, err)
	}
	return &reader{c, directory(c.Data), log, logger}, nil
}

func (r *reader) close() error { return r.log.Close() }

// verifiers returns the keys that verify checkpoints: those in vkey, or the
// directory's if vkey is empty.
func (r *reader) verifiers(vkey string) (verifiers, error) {
	if vkey == "" {
		var err error
		if vkey, err = cli.ReadTrimmed(r.dir.path(logVKeyFile)); errors.Is(err, fs.ErrNotExist) {
			_, vkey, _, err = r.dir.signer()
		}
		if err != nil {
			return nil, err
		}
	}
	return parseVerifiers(vkey)
}

// keys opens the accounts' keys. It needs the master key.
func (r *reader) keys(ctx context.Context) (*seal.Keys, error) {
	master, err := r.dir.masterKey(r.config, false, r.logger)
	if err != nil {
		return nil, err
	}
	keys, err := seal.OpenReader(ctx, seal.Config{Path: r.dir.path(keysFile), Master: master})
	return keys, explain(r.config, err)
}
