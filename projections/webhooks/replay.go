package webhooks

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"accountledger/domain"
	"accountledger/eventstore"
)

// ReplayFilter says which events are sent once more: those after a position up
// to another that fit all that is given.
type ReplayFilter struct {
	After   eventstore.Position `json:"after" doc:"Only events after this log position."`
	UpTo    eventstore.Position `json:"upTo" doc:"Only events up to and including this log position."`
	Since   time.Time           `json:"since,omitzero" doc:"Only events recorded at or after this time; in a recovery, deliveries that failed or were given up at or after it."` // recorded then or later; with Recover: failed then or later
	Until   time.Time           `json:"until,omitzero" doc:"Only events recorded before this time."`                                                                             // recorded before
	Events  []string            `json:"events,omitzero" doc:"Only these public event names or prefixes."`                                                                        // like the endpoint's, of which only those it is told of count
	Sub     string              `json:"sub,omitzero" doc:"Only events of this account."`                                                                                         // of one account
	Missing bool                `json:"missing,omitzero" doc:"Only events without a successful attempt."`                                                                        // without a successful attempt, as far as attempts are remembered
	Recover bool                `json:"recover,omitzero" doc:"Only events whose attempts all failed, and dead letters."`                                                         // whose attempts all failed, as far as they are remembered, or that were given up
}

// The states of a replay.
const (
	ReplayRunning   = "running"
	ReplayDone      = "done"
	ReplayCancelled = "cancelled"
)

// Replay is events that are sent once more, one attempt each, whatever comes
// of it. It yields to what the log brings, outlives a restart, and counts for
// nothing in the endpoint's health.
type Replay struct {
	ReplayID    string              `json:"replayId" doc:"The replay's id; also the header webhook-replay of its deliveries."`
	WebhookID   string              `json:"webhookId" doc:"The webhook's id."`
	Filter      ReplayFilter        `json:"filter" doc:"Which events the replay sends."`
	State       string              `json:"state" doc:"running, done or cancelled."`
	Position    eventstore.Position `json:"position" doc:"The log position the replay has reached."` // up to here it is done
	Delivered   int64               `json:"delivered" doc:"Number of deliveries that succeeded."`
	Failed      int64               `json:"failed" doc:"Number of deliveries that failed. A replay sends each event once."`
	CreatedTime time.Time           `json:"createdTime" doc:"When the replay was requested."`
	EndedTime   time.Time           `json:"endedTime,omitzero" doc:"When the replay ended."`
}

// StartReplay begins a replay under an id; the same one asked for again is
// answered as it is. UpTo 0 is the log's head. An endpoint has one at a time,
// else the error has CodeReplayRunning. It goes on while Run runs.
func (w *Webhooks) StartReplay(ctx context.Context, id, replayID string, f ReplayFilter) (Replay, error) {
	if _, err := w.existing(ctx, id); err != nil {
		return Replay{}, err
	}
	asked := Replay{ReplayID: replayID, WebhookID: id, State: ReplayRunning, CreatedTime: w.c.Now().UTC().Truncate(time.Microsecond)}
	var err error
	if asked.Filter, err = w.bounded(ctx, f); err != nil {
		return Replay{}, err
	}
	asked.Position = asked.Filter.After
	job, err := w.store.putReplay(ctx, asked)
	if err != nil {
		return Replay{}, err
	}
	if r := w.runner.Load(); r != nil && job.State == ReplayRunning {
		r.startReplay(job)
	}
	return job, nil
}

// bounded is f with its times as positions, as far as they are of the log.
func (w *Webhooks) bounded(ctx context.Context, f ReplayFilter) (ReplayFilter, error) {
	head, err := w.c.Log.Head(ctx)
	if err != nil {
		return f, fmt.Errorf("webhooks: replay: %w", err)
	}
	var faults []domain.Fault
	for i, name := range f.Events {
		if !domain.Selectable(name) {
			faults = append(faults, domain.Fault{Pointer: fmt.Sprintf("/events/%d", i), Detail: "must name public events, or a prefix of some"})
		}
	}
	if f.UpTo == 0 {
		f.UpTo = head
	}
	if f.After < 0 || f.After > head {
		faults = append(faults, domain.Fault{Pointer: "/after", Detail: "must be a position of the log"})
	}
	if f.UpTo < 0 || f.UpTo > head {
		faults = append(faults, domain.Fault{Pointer: "/upTo", Detail: "must be a position of the log"})
	}
	if len(faults) > 0 {
		return f, faulty(faults...)
	}
	if !f.Since.IsZero() && !f.Recover {
		from, err := w.StartingAt(ctx, f.Since)
		if err != nil {
			return f, err
		}
		f.After = max(f.After, from)
	}
	if !f.Until.IsZero() {
		to, err := w.StartingAt(ctx, f.Until)
		if err != nil {
			return f, err
		}
		f.UpTo = min(f.UpTo, to)
	}
	return f, nil
}

// Replays lists an endpoint's replays, the newest first, at most 1000.
func (w *Webhooks) Replays(ctx context.Context, id string) ([]Replay, error) {
	if _, err := w.existing(ctx, id); err != nil {
		return nil, err
	}
	return w.store.replays(ctx, `e.id = ? ORDER BY created DESC, r.id LIMIT 1000`, id)
}

// Replay returns one, or an error with CodeReplayNotFound.
func (w *Webhooks) Replay(ctx context.Context, id, replayID string) (Replay, error) {
	if _, err := w.existing(ctx, id); err != nil {
		return Replay{}, err
	}
	all, err := w.store.replays(ctx, `e.id = ? AND r.id = ?`, id, replayID)
	if err != nil {
		return Replay{}, err
	}
	if len(all) == 0 {
		return Replay{}, &domain.Error{Code: domain.CodeReplayNotFound, Detail: "The webhook has no such replay."}
	}
	return all[0], nil
}

// CancelReplay ends a replay. What is under way arrives. One that has ended
// stays as it is.
func (w *Webhooks) CancelReplay(ctx context.Context, id, replayID string) (Replay, error) {
	if _, err := w.Replay(ctx, id, replayID); err != nil {
		return Replay{}, err
	}
	if err := w.store.endReplay(ctx, replayID, ReplayCancelled, w.c.Now()); err != nil {
		return Replay{}, err
	}
	if r := w.runner.Load(); r != nil {
		r.mu.Lock()
		if cancel := r.jobs[replayID]; cancel != nil {
			cancel()
		}
		r.mu.Unlock()
	}
	return w.Replay(ctx, id, replayID)
}

// resumeReplays goes on with those that had not ended.
func (r *runner) resumeReplays() error {
	all, err := r.store.replays(r.ctx, `r.state = ?`, ReplayRunning)
	for _, job := range all {
		r.startReplay(job)
	}
	return err
}

func (r *runner) startReplay(job Replay) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.started || r.ctx.Err() != nil || r.jobs[job.ReplayID] != nil {
		return
	}
	ctx, cancel := context.WithCancel(r.ctx)
	r.jobs[job.ReplayID] = cancel
	r.all.Go(func() {
		defer cancel()
		r.replay(ctx, job)
		r.mu.Lock()
		delete(r.jobs, job.ReplayID)
		r.mu.Unlock()
	})
}

// replayStep is how many events are sent before it is written down how far a
// replay is: as many are sent twice after a crash.
const replayStep = 64

// replay works on one until it is done or ctx is. What goes wrong inside the
// ledger is tried again.
func (r *runner) replay(ctx context.Context, job Replay) {
	var s *courier
	defer func() {
		if s != nil {
			s.close()
		}
	}()
	pace := pace{}
	for pause := time.Second; ctx.Err() == nil && job.Position < job.Filter.UpTo; {
		err := func() error {
			conf, err := r.existing(ctx, job.WebhookID)
			if err != nil {
				return err
			}
			if s == nil || s.conf.Revision != conf.Revision {
				if s != nil {
					s.close()
				}
				if s, err = r.courier(ctx, conf); err != nil {
					return err
				}
				pace = paceOf(conf)
			}
			items, upTo, err := r.replayed(ctx, s, job)
			if err != nil {
				return err
			}
			delivered, failed := r.sendReplayed(ctx, s, job, items, &pace)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			job.Position, job.Delivered, job.Failed = upTo, job.Delivered+delivered, job.Failed+failed
			return r.store.saveReplay(ctx, job)
		}()
		switch {
		case err == nil:
			pause = time.Second
		case domain.CodeOf(err) == domain.CodeWebhookNotFound:
			return
		case ctx.Err() == nil:
			r.c.Logger.ErrorContext(ctx, "webhook replay cannot go on, trying again", "webhook", job.WebhookID, "replay", job.ReplayID, "err", err)
			sleep(ctx, pause)
			pause = min(2*pause, time.Minute)
		}
	}
	if ctx.Err() == nil {
		if live := r.running(job.WebhookID); live != nil {
			live.settled(ctx) // who sees that it is done sees what came of it
		}
		r.again("replay", func() error { return r.store.endReplay(ctx, job.ReplayID, ReplayDone, r.c.Now()) })
	}
}

// item is a public event to be sent once more.
type item struct {
	rec  eventstore.Recorded
	part int
}

// replayed finds what a replay sends next, and up to where it looked.
func (r *runner) replayed(ctx context.Context, s *courier, job Replay) (items []item, upTo eventstore.Position, err error) {
	f := job.Filter
	if f.Recover {
		return r.recovered(ctx, job)
	}
	for page, err := range r.c.Log.Subscribe(ctx, job.Position) {
		if err != nil {
			return nil, 0, fmt.Errorf("webhooks: replay: %w", err)
		}
		arrived, oldest := map[place]bool{}, eventstore.Position(0)
		if f.Missing {
			if arrived, oldest, err = r.store.arrived(ctx, job.WebhookID, job.Position, page[len(page)-1].Position); err != nil {
				return nil, 0, fmt.Errorf("webhooks: replay: %w", err)
			}
		}
		for _, rec := range page {
			if rec.Position > f.UpTo || len(items) >= replayStep {
				break
			}
			upTo = rec.Position
			if f.Sub != "" && rec.Stream != domain.AccountStream(f.Sub) || rec.Position < oldest {
				continue
			}
			messages, err := newSlot(rec).open(s.opener, s.now())
			if err != nil {
				return nil, 0, err
			}
			for _, m := range messages {
				if s.told(m) == nil || len(f.Events) > 0 && m.told(f.Events) == nil || arrived[place{rec.Position, m.part}] {
					continue
				}
				if f.Missing {
					if settled, err := r.settled(ctx, job.WebhookID, rec.Stream, rec.Position); err != nil {
						return nil, 0, err
					} else if !settled {
						continue // it will come in its turn
					}
				}
				items = append(items, item{rec, m.part})
			}
		}
		return items, max(upTo, job.Position+1), nil
	}
	return nil, 0, ctx.Err()
}

// recovered is the same of what had failed.
func (r *runner) recovered(ctx context.Context, job Replay) (items []item, upTo eventstore.Position, err error) {
	if live := r.running(job.WebhookID); live != nil {
		live.settled(ctx)
	}
	places, err := r.store.unarrived(ctx, job.WebhookID, job.Filter, job.Position)
	if err != nil {
		return nil, 0, fmt.Errorf("webhooks: recover: %w", err)
	}
	upTo = job.Filter.UpTo
	var rec eventstore.Recorded
	for _, at := range places {
		if rec.Position != at.position {
			if len(items) >= replayStep {
				return items, rec.Position, nil
			}
			if rec, err = r.recordAt(ctx, at.position); err != nil {
				return nil, 0, err
			}
		}
		items = append(items, item{rec, at.part})
	}
	return items, upTo, nil
}

// sendReplayed sends items, one at a time per account, in the order of the log.
func (r *runner) sendReplayed(ctx context.Context, s *courier, job Replay, items []item, own *pace) (arrived, failed int64) {
	limit := s.conf.MaxInFlight
	if limit == 0 {
		limit = r.c.InFlight
	}
	if s.conf.Order == domain.OrderStrict {
		limit = 1
	}
	header, trigger := http.Header{HeaderReplay: {job.ReplayID}}, triggerReplay
	if job.Filter.Recover {
		trigger = triggerRecover
	}
	free := make(chan struct{}, max(1, limit/4)) // the same share as lanes have
	var all sync.WaitGroup
	var mu sync.Mutex // held for the counts and own
	for len(items) > 0 && ctx.Err() == nil {
		stream := items[0].rec.Stream
		mine := slices.DeleteFunc(slices.Clone(items), func(i item) bool { return i.rec.Stream != stream })
		items = slices.DeleteFunc(items, func(i item) bool { return i.rec.Stream == stream })
		free <- struct{}{}
		all.Go(func() {
			defer func() { <-free }()
			for _, i := range mine {
				if !r.turn(ctx, job.WebhookID, &mu, own) {
					return
				}
				result := s.again(i.rec, i.part, header)
				if result.scope == unwanted {
					continue
				}
				if result.scope == internal {
					r.c.Logger.ErrorContext(ctx, "webhook delivery failed inside the ledger", "webhook", job.WebhookID, "position", i.rec.Position, "err", result.err)
				} else if err := r.keep(context.WithoutCancel(ctx), job.WebhookID, result, trigger); err != nil {
					r.c.Logger.ErrorContext(ctx, "webhook delivery not written down", "webhook", job.WebhookID, "err", err)
				}
				mu.Lock()
				if result.scope == delivered {
					arrived++
				} else {
					failed++
				}
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return arrived, failed
}

// spareWait is after how long an endpoint with something else to do is looked
// at again.
const spareWait = 5 * time.Millisecond

// turn waits until a replay may send one request: not while there is something
// to send in its turn, and not faster than the endpoint wants. It reports
// false if ctx is done.
func (r *runner) turn(ctx context.Context, id string, mu *sync.Mutex, own *pace) bool {
	for ctx.Err() == nil {
		var pause time.Duration
		if live := r.running(id); live == nil || !live.ask(ctx, func() { pause = live.spare() }) {
			mu.Lock()
			now := r.c.Now()
			if pause = own.next(now).Sub(now); pause == 0 {
				own.take(now)
			}
			mu.Unlock()
		}
		if pause == 0 {
			return ctx.Err() == nil
		}
		sleep(ctx, pause)
	}
	return false
}

// spare takes a request of e's for something out of turn; where there is none
// to spare, it returns after how long to ask again.
func (e *endpoint) spare() time.Duration {
	now := e.now()
	switch next := e.pace.next(now); {
	case e.draining || e.frozen || len(e.ready) > 0 || e.flight > 0 && e.flight >= e.breaker.allowed(now):
		return spareWait
	case e.breaker.open():
		return min(max(e.breaker.until.Sub(now), spareWait), time.Second)
	case next.After(now):
		return next.Sub(now)
	}
	e.pace.take(now)
	return 0
}
