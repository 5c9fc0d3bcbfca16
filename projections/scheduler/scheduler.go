// Package scheduler executes what is planned for accounts when it is due. It
// decides nothing: it reads what is due from a view and asks the ledger, where
// the effect and its mark are one append. So nothing happens twice, however
// many schedulers there are and whatever happens to them.
package scheduler

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/projections"
)

// Config says what a Scheduler works with.
type Config struct {
	Ledger *domain.Ledger     // is asked to execute what is due
	Views  *projections.Views // say what that is; somebody runs them
	Logger *slog.Logger       // default: discards

	Now   func() time.Time                     // the ledger's clock; default time.Now
	After func(time.Duration) <-chan time.Time // default time.After

	// Observe is told of each schedule whose turn has come, by several
	// goroutines at once; they wait for it. Default: nobody is.
	Observe func(Execution)
}

// Execution is what came of one schedule that was due.
type Execution struct {
	Outcome string        // one of those below
	Late    time.Duration // after its due time
}

// What came of a schedule.
const (
	OutcomeExecuted = "executed" // the log has its mark; whether its effect was refused is in there
	OutcomeVain     = "vain"     // others were faster, or the account has ended
	OutcomeFailed   = "failed"   // it is tried again
)

// Scheduler executes schedules. Make it with New.
type Scheduler struct{ Config }

// New returns a Scheduler for Run.
func New(c Config) *Scheduler {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.After == nil {
		c.After = time.After
	}
	if c.Observe == nil {
		c.Observe = func(Execution) {}
	}
	return &Scheduler{c}
}

const (
	page = 256 // schedules read at once

	// Commands at once. With more of them a burst is worked off faster, and
	// others wait longer: with 16 a command beside it took six times as long
	// as else, see BenchmarkBurst.
	workers = 4

	// A timer runs by another clock than the one that says what time it is.
	// Looking this often, a clock that was set forward is noticed in time.
	glance     = 500 * time.Millisecond
	maxBackoff = time.Minute
)

// actor is who causes what was planned.
var actor = domain.Actor{Kind: "system", ID: "scheduler"}

// Run executes what is due until ctx is done, and then returns nil. What was
// due before it began is executed at once, late.
func (s *Scheduler) Run(ctx context.Context) error {
	backoff := glance
	for ctx.Err() == nil {
		changed := s.Views.Schedules().Changed()
		next, vain, err := s.sweep(ctx)
		wait := glance
		switch {
		case ctx.Err() != nil || errors.Is(err, eventstore.ErrClosed):
			return nil
		case err != nil || vain:
			// A row that stays although there was nothing to execute is of a
			// view that lags or is parked: that is not worth haste either.
			wait, backoff, changed = backoff, min(2*backoff, maxBackoff), nil
			if err != nil {
				s.Logger.ErrorContext(ctx, "schedules not executed", "retry", wait, "err", err)
			}
		case next.IsZero():
			backoff = glance
			select { // nothing is planned
			case <-changed:
			case <-ctx.Done():
			}
			continue
		default:
			backoff = glance
			wait = max(0, min(glance, next.Sub(s.Now())))
		}
		select {
		case <-s.After(wait):
		case <-changed:
		case <-ctx.Done():
		}
	}
	return nil
}

// sweep executes everything that is due, in the order of time, and returns
// when the next is, zero if nothing more is planned. It was in vain if there
// was something due and nothing came of it.
func (s *Scheduler) sweep(ctx context.Context) (next time.Time, vain bool, err error) {
	var after projections.Due
	executed, due := 0, 0
	for {
		all, err := s.Views.Schedules().Next(ctx, after, page)
		if err != nil {
			return time.Time{}, false, err
		}
		now := s.Now()
		n := 0
		for n < len(all) && !all[n].Time.After(now) {
			n++
		}
		count, err := s.execute(ctx, all[:n])
		executed, due = executed+count, due+n
		if err != nil {
			return time.Time{}, false, err
		}
		if n < len(all) {
			return all[n].Time, due > 0 && executed == 0, nil
		}
		if n < page {
			return time.Time{}, due > 0 && executed == 0, nil
		}
		after = all[n-1]
	}
}

// execute asks the ledger to execute all of these, and waits until the view
// shows what came of it. It counts those that had an effect.
func (s *Scheduler) execute(ctx context.Context, due []projections.Due) (int, error) {
	if len(due) == 0 {
		return 0, nil
	}
	var effects, last atomic.Int64
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(workers)
	for _, d := range due {
		group.Go(func() error {
			request := domain.Request{Meta: domain.Metadata{Actor: actor}}
			result, err := s.Ledger.Execute(groupCtx, request, d.Sub, domain.ExecuteSchedule{ScheduleID: d.ScheduleID, DueTime: d.Time})
			s.Observe(Execution{outcome(result, err), s.Now().Sub(d.Time)})
			if code := domain.CodeOf(err); code != "" {
				// The account has ended, or others were faster: not worth holding up the rest.
				s.Logger.InfoContext(ctx, "schedule not executed", "sub", d.Sub, "schedule", d.ScheduleID, "code", code)
				return nil
			}
			if err != nil || len(result.Events) == 0 {
				return err
			}
			effects.Add(1)
			for p := int64(result.State.Position); ; {
				if seen := last.Load(); p <= seen || last.CompareAndSwap(seen, p) {
					return nil
				}
			}
		})
	}
	if err := group.Wait(); err != nil {
		return int(effects.Load()), err
	}
	return int(effects.Load()), s.Views.Await(ctx, projections.SchedulesView, eventstore.Position(last.Load()))
}

// outcome is what came of asking the ledger.
func outcome(result domain.Result[domain.Account], err error) string {
	switch {
	case err != nil && domain.CodeOf(err) == "":
		return OutcomeFailed
	case err != nil || len(result.Events) == 0:
		return OutcomeVain
	}
	return OutcomeExecuted
}
