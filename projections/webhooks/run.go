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
	b, err := e.begin(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil // nothing has begun
		}
		return fmt.Errorf("webhooks: %w", err)
	}
	r := &run{engine: e, ctx: ctx, cache: newCache(e.config.Log, b.after), saves: make(chan *checkpoint, 1024), verify: verify,
		reporter: newReporter(ctx, e.ledger, e.store, e.config.Logger), tasks: map[string]*task{}, asked: map[string]eventstore.Revision{}}
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
	return nil
}

// beginning is the state in which a run begins.
type beginning struct {
	after eventstore.Position // the log was followed up to here
	head  eventstore.Position // of the log
	fresh bool                // delivery.db is new, and earlier deliveries are unknown
}

// begin reads the beginning, and deletes attempts that are too old.
func (e *engine) begin(ctx context.Context) (b beginning, err error) {
	if b.head, err = e.config.Log.Head(ctx); err != nil {
		return b, err
	}
	if b.after, err = e.store.followed(ctx); err != nil {
		return b, err
	}
	if err := e.store.expire(ctx, e.config.Now().Add(-attemptAge)); err != nil {
		return b, err
	}
	known, err := e.store.webhooks(ctx)
	b.fresh = b.after == 0 && len(known) == 0
	return b, err
}

// clamp moves cursors that are ahead of the log back to its head. It must run
// before anything is appended to the log, which may be an older copy.
func (e *engine) clamp(ctx context.Context) error {
	head, err := e.config.Log.Head(ctx)
	if err != nil {
		return fmt.Errorf("webhooks: open: %w", err)
	}
	n, err := e.store.clamp(ctx, head)
	if err != nil {
		return fmt.Errorf("webhooks: open: %w", err)
	}
	if n > 0 {
		e.config.Logger.WarnContext(ctx, "the log is older than the progress of webhooks; they continue at its end", "position", head, "webhooks", n)
	}
	return nil
}

// follow gives the log to the workers, and applies the changes of webhooks that
// it finds. No worker starts before the log was followed up to its head: a
// webhook may have been deleted since the last run.
func (r *run) follow(b beginning, started func(*run) error) {
	after, stored := b.after, b.after
	if after >= b.head {
		r.start(b.fresh, started)
	}
	for r.ctx.Err() == nil {
		for page, err := range r.config.Log.Subscribe(r.ctx, after) {
			if err != nil {
				if r.ctx.Err() == nil {
					r.config.Logger.ErrorContext(r.ctx, "webhooks cannot follow the log, retrying", "err", err)
					sleep(r.ctx, time.Second)
				}
				break
			}
			r.cache.push(page)
			after = page[len(page)-1].Position
			if r.learn(page) || after >= stored+windowSize {
				r.retry("follow", func() error { return r.store.follow(r.ctx, after) })
				stored = after
			}
			if after >= b.head {
				r.start(b.fresh, started)
			}
		}
	}
	if err := r.store.follow(context.WithoutCancel(r.ctx), after); err != nil {
		r.config.Logger.ErrorContext(r.ctx, "webhooks could not store their position in the log", "err", err)
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

func (r *run) retry(what string, f func() error) { retry(r.ctx, r.config.Logger, what, f) }

// start starts the workers, once.
func (r *run) start(fresh bool, started func(*run) error) {
	r.mu.Lock()
	begun := r.started
	r.started = true
	r.mu.Unlock()
	if begun {
		return
	}
	r.retry("start", func() error {
		all, err := r.store.webhooks(r.ctx)
		if err != nil {
			return err
		}
		if fresh && len(all) > 0 {
			r.config.Logger.WarnContext(r.ctx, "the delivery file is new: webhooks start at their configured positions and send earlier events again", "webhooks", len(all))
		}
		for _, conf := range all {
			r.apply(conf)
		}
		return started(r)
	})
}
