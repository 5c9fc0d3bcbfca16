package webhooks

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"accountledger/domain"
	"accountledger/eventstore"
)

// serve delivers until ctx is done. It calls verify for each endpoint that has
// to permit deliveries first, and started once, when workers run.
func (e *engine) serve(ctx context.Context, verify func(ctx context.Context, id string), started func(*run) error) error {
	b, err := e.beginning(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil // nothing has begun
		}
		return fmt.Errorf("webhooks: %w", err)
	}
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	r := &run{engine: e, ctx: ctx, fail: fail, cache: newCache(e.config.Log, b.after), saves: make(chan *checkpoint, 1024), verify: verify,
		reporter: newReporter(ctx, fail, e.ledger, e.store, e.config.Logger), tasks: map[string]*task{}, asked: map[string]eventstore.Revision{}}
	if !e.current.CompareAndSwap(nil, r) {
		return errors.New("webhooks: already running")
	}
	defer e.current.Store(nil)
	var writer, reporter sync.WaitGroup
	writer.Go(func() { e.store.writer(r.saves) })
	reporter.Go(r.reporter.run)
	r.follow(b, started)
	r.mu.Lock()
	r.started = false // from now on nothing starts
	r.mu.Unlock()
	r.all.Wait()
	close(r.saves)
	r.reporter.close()
	writer.Wait()
	reporter.Wait()
	if err := context.Cause(ctx); errors.Is(err, eventstore.ErrTampered) {
		return fmt.Errorf("webhooks: %w", err)
	}
	return nil
}

// beginning is the state in which a run begins.
type beginning struct {
	after eventstore.Position // the log was followed up to here
	head  eventstore.Position // of the log
}

// beginning reads the beginning, and deletes attempts that are too old.
func (e *engine) beginning(ctx context.Context) (b beginning, err error) {
	if b.head, err = e.config.Log.Head(ctx); err != nil {
		return b, err
	}
	if b.after, err = e.store.followed(ctx); err != nil {
		return b, err
	}
	return b, e.store.expire(ctx, e.config.Now().Add(-attemptAge))
}

// begin loads the settings of all webhooks.
func (e *engine) begin(ctx context.Context) error {
	after, err := e.store.followed(ctx)
	if err != nil {
		return err
	}
	stored, err := e.store.ids(ctx)
	if err != nil {
		return err
	}
	e.fresh = after == 0 && len(stored) == 0
	if err := e.loadSettings(ctx, stored); err != nil {
		return err
	}
	e.fresh = e.fresh && len(e.confs.all()) > 0
	return nil
}

// follow gives the log to the workers, and applies the changes of webhooks that
// it finds. No worker starts before the log was followed up to its head: a
// webhook may have been deleted since the last run.
func (r *run) follow(b beginning, started func(*run) error) {
	after, stored := b.after, b.after
	if after >= b.head {
		r.start(started)
	}
	for r.ctx.Err() == nil {
		for page, err := range r.config.Log.Subscribe(r.ctx, after) {
			if err != nil {
				if errors.Is(err, eventstore.ErrTampered) {
					r.fail(err)
				}
				if r.ctx.Err() == nil {
					r.config.Logger.ErrorContext(r.ctx, "webhooks cannot follow the log, retrying", "err", err)
					sleep(r.ctx, time.Second)
				}
				break
			}
			last := page[len(page)-1]
			at := mark{last.Position, last.ID}
			r.cache.push(page)
			learned := r.learn(page)
			if r.ctx.Err() != nil {
				break // what the page says may not have been applied: the next run reads it again
			}
			after = at.position
			r.store.mark.Store(&at)
			if learned || after >= stored+windowSize {
				r.retry("follow", func() error { return r.store.follow(r.ctx, at) })
				stored = after
			}
			if after >= b.head {
				r.start(started)
			}
		}
	}
	if at := r.store.mark.Load(); at != nil {
		if err := r.store.follow(context.WithoutCancel(r.ctx), *at); err != nil {
			r.config.Logger.ErrorContext(r.ctx, "webhooks could not store their position in the log", "err", err)
		}
	}
}

// learn applies what a page says about webhooks and erasures. It reports whether
// there was anything.
func (r *run) learn(page []eventstore.Recorded) bool {
	found := false
	for _, rec := range page {
		place := domain.Entry{Stream: rec.Stream}
		if id := place.WebhookID(); id != "" {
			found = true
			r.retry("webhook", func() error { return r.refresh(r.ctx, id) })
		}
		if domain.Is[domain.AccountErased](&rec) { // after which nothing of the account may be left
			found = true
			r.retry("erasure", func() error { return r.forget(r.ctx, place.Sub()) })
		}
	}
	return found
}

// forget deletes the responses to requests about an account, and those still to
// come for messages that were opened before the erasure.
func (e *engine) forget(ctx context.Context, sub string) error {
	return e.store.forget(ctx, sub, e.config.Now().Add(reopenAfter))
}

// retry calls f until it succeeds or the run ends. It ends the run if the log is
// tampered with.
func (r *run) retry(what string, f func() error) {
	if err := retry(r.ctx, r.config.Logger, what, f); err != nil {
		r.fail(err)
	}
}

// start starts the workers, once.
func (r *run) start(started func(*run) error) {
	r.mu.Lock()
	begun := r.started
	r.started = true
	r.mu.Unlock()
	if begun {
		return
	}
	r.retry("start", func() error {
		all := r.confs.all()
		if r.fresh {
			r.fresh = false
			r.config.Logger.WarnContext(r.ctx, "the delivery file is new: webhooks start at their configured positions and send earlier events again", "webhooks", len(all))
		}
		for _, conf := range all {
			r.apply(conf)
		}
		return started(r)
	})
}
