package webhooks

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"accountledger/domain"
	"accountledger/eventstore"
)

// engine starts, stops and reaches the workers, and changes the configuration
// they work with.
type engine struct {
	config  Config
	store   *store
	ledger  ledger
	secrets secretStore
	senders senders
	confs   settings
	fresh   bool                // delivery.db is new, and earlier deliveries are unknown
	current atomic.Pointer[run] // while Run runs

	changing sync.Mutex // held while a configuration is read or changed and then applied, so that changes stay in order
}

// run is one call of Run: it follows the log and has a worker for each webhook
// that is enabled.
type run struct {
	*engine
	ctx      context.Context
	fail     context.CancelCauseFunc // ends the run, with an error
	cache    *cache
	saves    chan *checkpoint
	reporter *reporter
	verify   func(ctx context.Context, id string) // asks an endpoint whether it wants deliveries
	all      sync.WaitGroup

	mu      sync.Mutex
	started bool // the log was followed up to its head at the start, and the run has not ended
	tasks   map[string]*task
	asked   map[string]eventstore.Revision // by webhook: one more than its revision when its endpoint was asked to verify
}

// task is a webhook that is delivered to.
type task struct {
	conf   domain.Webhook
	cancel context.CancelFunc
	ended  chan struct{}

	mu     sync.Mutex
	worker *worker // nil while it is being set up
}

func (t *task) set(w *worker) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.worker = w
}

// worker returns the worker that delivers to a webhook, or nil.
func (e *engine) worker(id string) *worker {
	r := e.current.Load()
	if r == nil {
		return nil
	}
	r.mu.Lock()
	t := r.tasks[id]
	r.mu.Unlock()
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.worker
}

// sync waits until the worker of a webhook, if it has one, has written its
// present state.
func (e *engine) sync(ctx context.Context, id string) {
	if w := e.worker(id); w != nil {
		w.sync(ctx)
	}
}

// change has the ledger decide on a command, and applies the new configuration.
func (e *engine) change(ctx context.Context, r domain.Request, id string, cmd domain.WebhookCommand) (domain.Result[domain.Webhook], error) {
	e.changing.Lock()
	defer e.changing.Unlock()
	return e.changeWith(ctx, r, id, cmd, nil)
}

// changeWith is change with a command that refers to new secrets. The caller
// holds changing.
func (e *engine) changeWith(ctx context.Context, r domain.Request, id string, cmd domain.WebhookCommand, more secrets) (domain.Result[domain.Webhook], error) {
	// First the secrets: a webhook without them cannot be delivered to, secrets
	// that nothing refers to do no harm.
	r.Prepare = func(ctx context.Context) error { return e.secrets.add(ctx, id, more) }
	result, err := e.ledger.execute(ctx, r, id, cmd)
	if err != nil || result.Repeated {
		return result, err
	}
	if len(result.Events) > 0 && result.State.Exists() {
		if err := e.secrets.prune(ctx, result.State); err != nil {
			e.config.Logger.WarnContext(ctx, "unused secrets of a webhook stay until its next change", "webhook", id, "err", err)
		}
	}
	return result, e.copy(ctx, result.State)
}

// refresh applies a webhook's current configuration.
func (e *engine) refresh(ctx context.Context, id string) error {
	e.changing.Lock()
	defer e.changing.Unlock()
	conf, err := e.ledger.webhook(ctx, id)
	if err != nil {
		return err
	}
	return e.copy(ctx, conf)
}

// copy applies conf to memory, to delivery.db and to the workers.
func (e *engine) copy(ctx context.Context, conf domain.Webhook) error {
	r := e.current.Load()
	if r != nil && !conf.Exists() {
		r.apply(conf) // stop the worker before its rows are deleted
	}
	if err := e.store.put(ctx, conf); err != nil {
		return fmt.Errorf("webhooks: apply configuration: %w", err)
	}
	e.confs.put(conf)
	if !conf.Exists() {
		if err := e.secrets.drop(ctx, conf.WebhookID); err != nil {
			return fmt.Errorf("webhooks: delete secrets: %w", err)
		}
	} else if r != nil {
		r.apply(conf)
	}
	return nil
}

// apply starts, stops or restarts the worker of a webhook.
func (r *run) apply(conf domain.Webhook) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.tasks[conf.WebhookID]
	wanted := conf.Exists() && conf.State == domain.WebhookEnabled && r.started && r.ctx.Err() == nil
	if old != nil && wanted && old.conf.Revision == conf.Revision {
		return
	}
	var before <-chan struct{}
	if old != nil {
		old.cancel()
		before = old.ended
		delete(r.tasks, conf.WebhookID)
	}
	if conf.State == domain.WebhookPending && r.started && r.ctx.Err() == nil && r.asked[conf.WebhookID] != conf.Revision+1 {
		r.asked[conf.WebhookID] = conf.Revision + 1
		r.all.Go(func() { r.verify(r.ctx, conf.WebhookID) })
	}
	if !wanted {
		return
	}
	ctx, cancel := context.WithCancel(r.ctx)
	t := &task{conf: conf, cancel: cancel, ended: make(chan struct{})}
	r.tasks[conf.WebhookID] = t
	r.all.Go(func() {
		defer close(t.ended)
		defer cancel()
		if before != nil {
			<-before // its last progress must be written before it is read
		}
		r.deliver(ctx, t)
	})
}

// spawn runs f in a goroutine that the run waits for. It reports false if the
// run has not started yet or has ended.
func (r *run) spawn(f func()) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.started || r.ctx.Err() != nil {
		return false
	}
	r.all.Go(f)
	return true
}

// deliver runs a worker until ctx is done. An error in setting it up is the
// ledger's fault, so it is retried.
func (r *run) deliver(ctx context.Context, t *task) {
	for pause := time.Second; ctx.Err() == nil; pause = min(2*pause, time.Minute) {
		w, err := r.newWorker(ctx, t.conf)
		if err == nil {
			t.set(w)
			err = w.run(ctx)
			t.set(nil)
			w.close()
		}
		switch {
		case err == nil || ctx.Err() != nil:
			return
		case errors.Is(err, eventstore.ErrTampered):
			r.fail(err)
			return
		case errors.Is(err, errFenced):
			r.config.Logger.WarnContext(ctx, "webhook is delivered to by another owner now", "webhook", t.conf.WebhookID)
			return
		}
		r.config.Logger.ErrorContext(ctx, "delivery to webhook cannot start, retrying", "webhook", t.conf.WebhookID, "err", err)
		sleep(ctx, pause)
	}
}

// defaultBatch is the highest number of events in a batch, unless the webhook
// sets one.
const defaultBatch = 100

// newWorker sets up the worker of a webhook and takes over its progress from the
// previous owner.
func (r *run) newWorker(ctx context.Context, conf domain.Webhook) (*worker, error) {
	s, err := r.senders.open(ctx, conf)
	if err != nil {
		return nil, err
	}
	p, err := r.store.load(ctx, conf.WebhookID)
	if err != nil {
		return nil, err
	}
	if p.epoch, err = r.store.own(ctx, p.no); err != nil {
		return nil, fmt.Errorf("webhooks: own progress: %w", err)
	}
	lanes, err := r.store.lanes(ctx, p.no)
	if err != nil {
		return nil, err
	}
	limit := requestLimit(conf, r.config.InFlight)
	p.breaker.limit, p.breaker.width, p.breaker.schedule = limit, limit, r.config.Schedule
	p.breaker.escalated = p.breaker.reason == codeFailing
	p.breaker.failing = r.reporter.failing(conf)
	w := &worker{
		sender: s, cache: r.cache, save: r.saves, logger: r.config.Logger,
		pace:       paceOf(conf),
		batch:      1,
		disable:    func(code string) { r.all.Go(func() { r.disable(conf.WebhookID, code) }) },
		report:     func(cmd domain.WebhookCommand) { r.reporter.report(conf.WebhookID, cmd) },
		reportDead: func() { r.reporter.reportDead(conf.WebhookID) },
		results:    make(chan []result, limit),
		reads:      make(chan laneRead, limit),
		written:    make(chan error, 1),
		calls:      make(chan func()),
		ended:      make(chan struct{}),
		progress:   p, queues: queues{}, dirty: map[string]bool{},
	}
	if conf.Format == domain.FormatBatch {
		w.batch = cmp.Or(conf.BatchSize, defaultBatch)
	}
	w.restoreLanes(lanes)
	w.reportDead() // a crash may have prevented the last report
	return w, nil
}

// requestLimit returns how many concurrent requests a webhook may have.
func requestLimit(conf domain.Webhook, inFlight int) int {
	if conf.Order == domain.OrderStrict {
		return 1
	}
	return cmp.Or(conf.MaxInFlight, inFlight)
}

// disable has the ledger disable a webhook.
func (r *run) disable(id, code string) {
	r.retry("disable", func() error {
		_, err := r.change(r.ctx, bySystem, id, disabling(code))
		if domain.CodeOf(err) == domain.CodeWebhookNotFound {
			return nil
		}
		return err
	})
}
