package webhooks

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"strings"
	"sync"
	"time"

	"accountledger/domain"
	"accountledger/eventstore"
)

// runner is one Run: it follows the log, and has one goroutine per endpoint
// that is delivered to.
type runner struct {
	*Webhooks
	ctx   context.Context
	feed  *feed
	saves chan *checkpoint
	all   sync.WaitGroup

	mu      sync.Mutex
	started bool // the log was followed up to where it ended when Run began
	live    map[string]*live
	failing map[string]bool                // endpoints, where that was found out by this runner
	asked   map[string]eventstore.Revision // endpoints that were asked whether they want deliveries, and one more than their revision then
	jobs    map[string]context.CancelFunc  // replays

	reports chan func() // run one after another
}

// live is an endpoint that is delivered to, or about to be.
type live struct {
	conf   domain.Webhook
	cancel context.CancelFunc
	ended  chan struct{}

	mu       sync.Mutex
	endpoint *endpoint // nil while it is being set up
}

// Run delivers until ctx is done. Then it sends nothing new, waits for the
// requests under way, at most as long as one may take, writes down where each
// endpoint is, and returns nil: after that nothing is sent twice.
func (w *Webhooks) Run(ctx context.Context) error {
	b, err := w.begin(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil // nothing has begun
		}
		return fmt.Errorf("webhooks: %w", err)
	}
	r := &runner{Webhooks: w, ctx: ctx, feed: newFeed(w.c.Log, b.after), saves: make(chan *checkpoint, 1024),
		live: map[string]*live{}, failing: map[string]bool{}, asked: map[string]eventstore.Revision{},
		jobs: map[string]context.CancelFunc{}, reports: make(chan func(), 1024)}
	if !w.runner.CompareAndSwap(nil, r) {
		return errors.New("webhooks: running already")
	}
	defer w.runner.Store(nil)
	var writer, reporter sync.WaitGroup
	writer.Go(func() { w.store.writer(r.saves) })
	reporter.Go(func() {
		for report := range r.reports {
			report()
		}
	})
	r.follow(b.after, b.head, b.fresh)
	r.mu.Lock()
	r.started = false // nothing is started any more
	r.mu.Unlock()
	r.all.Wait()
	close(r.saves)
	close(r.reports)
	writer.Wait()
	reporter.Wait()
	return nil
}

// beginning is where a Run begins.
type beginning struct {
	after eventstore.Position // the log was followed up to here
	head  eventstore.Position // of the log
	fresh bool                // the file is new
}

// begin finds that out, and drops what is too old to be remembered.
func (w *Webhooks) begin(ctx context.Context) (b beginning, err error) {
	if b.head, err = w.c.Log.Head(ctx); err != nil {
		return b, err
	}
	if b.after, err = w.store.followed(ctx); err != nil {
		return b, err
	}
	if err := w.store.expire(ctx, w.c.Now().Add(-attemptAge)); err != nil {
		return b, err
	}
	known, err := w.store.endpoints(ctx)
	b.fresh = b.after == 0 && len(known) == 0
	return b, err
}

// follow brings the log to the endpoints, and to itself what it says about
// them. Up to head it only learns: an endpoint may have been deleted since.
// fresh says that the file is new, and what was delivered before is not known.
func (r *runner) follow(after, head eventstore.Position, fresh bool) {
	stored := after
	if after >= head {
		r.start(fresh)
	}
	for r.ctx.Err() == nil {
		for page, err := range r.c.Log.Subscribe(r.ctx, after) {
			if err != nil {
				if r.ctx.Err() == nil {
					r.c.Logger.ErrorContext(r.ctx, "webhooks cannot follow the log, trying again", "err", err)
					sleep(r.ctx, time.Second)
				}
				break
			}
			r.feed.push(page)
			after = page[len(page)-1].Position
			if r.learn(page) || after >= stored+windowSize {
				r.again("follow", func() error { return r.store.follow(r.ctx, after) })
				stored = after
			}
			if after >= head {
				r.start(fresh)
			}
		}
	}
	if err := r.store.follow(context.WithoutCancel(r.ctx), after); err != nil {
		r.c.Logger.ErrorContext(r.ctx, "webhooks cannot write how far they followed", "err", err)
	}
}

// learn takes from a page what concerns endpoints; it reports whether there
// was anything.
func (r *runner) learn(page []eventstore.Recorded) bool {
	found := false
	for _, rec := range page {
		place := domain.Entry{Stream: rec.Stream}
		if id := place.WebhookID(); id != "" {
			found = true
			r.again("endpoint", func() error { return r.refresh(r.ctx, id) })
		}
		if domain.Is[domain.AccountErased](&rec) { // after which nothing of the account may be left
			found = true
			r.again("erasure", func() error { return r.forget(r.ctx, place.Sub()) })
		}
	}
	return found
}

// again does something until it works or ctx is done.
func (r *runner) again(what string, f func() error) {
	for {
		err := f()
		if err == nil || r.ctx.Err() != nil {
			return
		}
		r.c.Logger.ErrorContext(r.ctx, "webhooks cannot follow a change, trying again", "change", what, "err", err)
		sleep(r.ctx, time.Second)
	}
}

// start begins to deliver, once.
func (r *runner) start(fresh bool) {
	r.mu.Lock()
	begun := r.started
	r.started = true
	r.mu.Unlock()
	if begun {
		return
	}
	r.again("start", func() error {
		all, err := r.store.endpoints(r.ctx)
		if err != nil {
			return err
		}
		if fresh && len(all) > 0 {
			r.c.Logger.WarnContext(r.ctx, "the delivery file is new: webhooks start again where they were created to, and send again what they sent before", "webhooks", len(all))
		}
		for _, conf := range all {
			r.apply(conf)
		}
		return r.resumeReplays()
	})
}

// apply starts, stops or restarts the delivery to an endpoint.
func (r *runner) apply(conf domain.Webhook) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.live[conf.WebhookID]
	wanted := conf.Exists() && conf.State == domain.WebhookEnabled && r.started && r.ctx.Err() == nil
	if old != nil && wanted && old.conf.Revision == conf.Revision {
		return
	}
	var before <-chan struct{}
	if old != nil {
		old.cancel()
		before = old.ended
		delete(r.live, conf.WebhookID)
	}
	if conf.State == domain.WebhookPending && r.started && r.ctx.Err() == nil && r.asked[conf.WebhookID] != conf.Revision+1 {
		r.asked[conf.WebhookID] = conf.Revision + 1
		r.all.Go(func() { r.verify(conf.WebhookID) })
	}
	if !wanted {
		return
	}
	ctx, cancel := context.WithCancel(r.ctx)
	l := &live{conf: conf, cancel: cancel, ended: make(chan struct{})}
	r.live[conf.WebhookID] = l
	r.all.Go(func() {
		defer close(l.ended)
		defer cancel()
		if before != nil {
			<-before // its last progress must be written before it is read
		}
		r.deliver(ctx, l)
	})
}

// deliver runs an endpoint until ctx is done. What keeps it from being set up
// is ours, so it is tried again.
func (r *runner) deliver(ctx context.Context, l *live) {
	for pause := time.Second; ctx.Err() == nil; pause = min(2*pause, time.Minute) {
		e, err := r.endpoint(ctx, l.conf)
		if err == nil {
			l.set(e)
			err = e.run(ctx)
			l.set(nil)
			e.close()
		}
		switch {
		case err == nil || ctx.Err() != nil:
			return
		case errors.Is(err, errFenced):
			r.c.Logger.WarnContext(ctx, "webhook left to its new owner", "webhook", l.conf.WebhookID)
			return
		}
		r.c.Logger.ErrorContext(ctx, "webhook cannot be delivered to, trying again", "webhook", l.conf.WebhookID, "err", err)
		sleep(ctx, pause)
	}
}

func (l *live) set(e *endpoint) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.endpoint = e
}

// running is the endpoint that delivers to id, or nil.
func (w *Webhooks) running(id string) *endpoint {
	r := w.runner.Load()
	if r == nil {
		return nil
	}
	r.mu.Lock()
	l := r.live[id]
	r.mu.Unlock()
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.endpoint
}

// endpoint sets up the delivery to an endpoint and takes it over from whoever
// had it.
func (r *runner) endpoint(ctx context.Context, conf domain.Webhook) (*endpoint, error) {
	s, err := r.courier(ctx, conf)
	if err != nil {
		return nil, err
	}
	p, err := r.store.load(ctx, conf.WebhookID)
	if err != nil {
		return nil, err
	}
	if p.epoch, err = r.store.own(ctx, p.no); err != nil {
		return nil, fmt.Errorf("webhooks: own endpoint: %w", err)
	}
	lanes, err := r.store.lanes(ctx, p.no)
	if err != nil {
		return nil, err
	}
	limit := cmp.Or(conf.MaxInFlight, r.c.InFlight)
	if conf.Order == domain.OrderStrict {
		limit = 1
	}
	p.breaker.limit, p.breaker.width, p.breaker.schedule = limit, limit, r.c.Schedule
	p.breaker.escalated = p.breaker.reason == codeFailing
	e := &endpoint{
		courier: s, feed: r.feed, save: r.saves, logger: r.c.Logger,
		pace:     paceOf(conf),
		batch:    1,
		giveUp:   func(code string) { r.all.Go(func() { r.disable(conf.WebhookID, code) }) },
		report:   func(cmd domain.WebhookCommand) { r.report(conf.WebhookID, cmd) },
		givenUp:  func() { r.reportGivenUp(conf.WebhookID) },
		failing:  r.isFailing(conf),
		results:  make(chan []result, limit),
		reads:    make(chan laneRead, limit),
		written:  make(chan error, 1),
		asks:     make(chan func()),
		ended:    make(chan struct{}),
		progress: p, turns: turns{}, dirty: map[string]bool{},
	}
	if conf.Format == domain.FormatBatch {
		e.batch = cmp.Or(conf.BatchSize, defaultBatch)
	}
	e.adopt(lanes)
	e.givenUp() // what a crash may have kept from being reported
	return e, nil
}

// target is where an endpoint is, and what shows it who is sending.
func (w *Webhooks) target(conf domain.Webhook, u *url.URL, kept vault) (*target, error) {
	g := newGuard(w.c.Allow, u.Scheme == "http")
	if c := conf.ClientCertificate; c.Certificate != "" {
		pair, err := tls.X509KeyPair([]byte(c.Certificate), []byte(kept[c.SecretID]))
		if err != nil {
			return nil, errors.New("webhooks: its client certificate and key do not fit")
		}
		g.client = &pair
	}
	headers := conf.Headers
	if conf.Verification == domain.VerifyOptions {
		headers = maps.Clone(headers)
		if headers == nil {
			headers = map[string]string{}
		}
		headers[HeaderRequestOrigin] = w.origin()
	}
	t := &target{url: u, userAgent: w.c.UserAgent, timeout: w.c.Timeout, hub: conf.HubSignature, headers: headers,
		auth:      credentials{WebhookAuth: conf.Auth, secret: kept[conf.Auth.SecretID], now: w.c.Now},
		transport: w.transport(g, w.c), now: w.c.Now, private: g.private.Load}
	if conf.Auth.Type == domain.AuthOAuth2 {
		token, err := url.Parse(conf.Auth.TokenURL)
		if err != nil {
			return nil, errors.New("webhooks: its token URL cannot be parsed")
		}
		t.auth.tokens = &tokens{url: token, client: conf.Auth.ClientID, secret: t.auth.secret, scope: conf.Auth.Scope,
			userAgent: w.c.UserAgent, transport: w.transport(newGuard(w.c.Allow, token.Scheme == "http"), w.c), now: w.c.Now}
	}
	return t, nil
}

// defaultBatch is how many events a batch has at most where the endpoint does
// not say.
const defaultBatch = 100

// form is how an endpoint wants to be told.
func (w *Webhooks) form(conf domain.Webhook) form {
	return form{format: conf.Format, payload: conf.Payload, mapping: conf.Mapping, public: w.c.PublicURL,
		source: cmp.Or(w.c.PublicURL, "/accountledger")}
}

// bySystem is how deliveries ask the ledger for something.
var bySystem = domain.Request{Meta: domain.Metadata{Actor: domain.Actor{Kind: "system", ID: "webhooks"}}}

// errURL quotes no URL, for it may have a secret in it.
var errURL = errors.New("webhooks: its URL cannot be parsed")

// verify asks an endpoint once whether it wants deliveries. Who has not said so
// is asked again when somebody wants that, or with the next start.
func (r *runner) verify(id string) {
	if _, _, err := r.Verify(r.ctx, bySystem, id); err != nil && domain.CodeOf(err) != domain.CodeWebhookNotFound {
		r.c.Logger.ErrorContext(r.ctx, "webhook could not be asked whether it wants deliveries", "webhook", id, "err", err)
	}
}

// disable has the ledger put an endpoint out of service, because the receiver
// said so or has answered nothing but failures for days.
func (r *runner) disable(id, code string) {
	cmd := domain.SetWebhookState{State: domain.WebhookDisabled, Reason: strings.ReplaceAll(code, "_", "-")}
	r.again("disable", func() error {
		_, _, err := r.SetState(r.ctx, bySystem, id, cmd)
		if domain.CodeOf(err) == domain.CodeWebhookNotFound {
			return nil
		}
		return err
	})
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
