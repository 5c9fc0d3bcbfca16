// Package scheduler executes schedules when they are due. It reads the due ones
// from a view and sends a command to the ledger for each. The ledger appends the
// effect and the record of the execution together, so each schedule takes effect
// once, however many schedulers run and whenever they crash.
package scheduler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/projections"
)

// Config configures a Scheduler.
type Config struct {
	Ledger *domain.Ledger     // executes the due schedules
	Views  *projections.Views // have the planned schedules; the caller runs them
	Logger *slog.Logger       // default: discards

	Now   func() time.Time                     // the ledger's clock; default time.Now
	After func(time.Duration) <-chan time.Time // default time.After

	// Observe is called after each attempt to execute a schedule, by several
	// goroutines concurrently, which wait for it. Default: does nothing.
	Observe func(Execution)
}

// Execution is an attempt to execute a due schedule.
type Execution struct {
	Outcome string        // one of the outcomes below
	Late    time.Duration // the time since the schedule was due
}

// The outcomes of an Execution.
const (
	OutcomeExecuted = "executed" // the log has recorded the execution, and whether its effect was refused
	OutcomeVain     = "vain"     // nothing to do: another scheduler was faster, or the account is erased
	OutcomeFailed   = "failed"   // an error; the scheduler retries
)

// Scheduler executes schedules. Create it with New.
type Scheduler struct{ Config }

// New returns a Scheduler. Call Run to execute schedules.
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
	page = 256 // schedules per query

	// Concurrent commands. More of them work off a burst faster, but slow down
	// other commands: with 16, a command during a burst took six times as long
	// as without, see BenchmarkBurst.
	workers = 4

	// The longest wait while a schedule is planned. A timer does not notice if
	// the system clock is set forward.
	pollInterval = 500 * time.Millisecond
	maxBackoff   = time.Minute
)

// actor is the actor of the events that schedules cause.
var actor = domain.Actor{Kind: "system", ID: "scheduler"}

// Run executes schedules when they are due until ctx is done, then returns nil.
// It executes those that are overdue when it starts at once. If the log is
// tampered with, it returns the error.
func (s *Scheduler) Run(ctx context.Context) error {
	backoff := pollInterval
	for ctx.Err() == nil {
		changed := s.Views.Schedules().Changed()
		next, noEffect, err := s.sweep(ctx)
		wait := pollInterval
		switch {
		case ctx.Err() != nil || errors.Is(err, eventstore.ErrClosed):
			return nil
		case errors.Is(err, eventstore.ErrTampered):
			return fmt.Errorf("scheduler: %w", err)
		case err != nil || noEffect:
			// A row that remains although its schedule needs no execution is
			// that of a lagging view or a parked stream: back off, too.
			wait, backoff, changed = backoff, min(2*backoff, maxBackoff), nil
			if err != nil {
				s.Logger.ErrorContext(ctx, "schedules not executed", "retry", wait, "err", err)
			}
		case next.IsZero():
			backoff = pollInterval
			select { // nothing is planned
			case <-changed:
			case <-ctx.Done():
			}
			continue
		default:
			backoff = pollInterval
			wait = max(0, min(pollInterval, next.Sub(s.Now())))
		}
		select {
		case <-s.After(wait):
		case <-changed:
		case <-ctx.Done():
		}
	}
	return nil
}

// sweep executes all due schedules, earliest first. It returns the time of the
// next one, zero if none is planned, and whether there were due schedules but
// none had an effect.
func (s *Scheduler) sweep(ctx context.Context) (next time.Time, noEffect bool, err error) {
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

// execute has the ledger execute these schedules and waits until the view has
// applied the results. It returns the number of those that had an effect.
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
				// A refusal, for example of an erased account: continue with the others.
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

// outcome returns the outcome of the ledger's result.
func outcome(result domain.Result[domain.Account], err error) string {
	switch {
	case err != nil && domain.CodeOf(err) == "":
		return OutcomeFailed
	case err != nil || len(result.Events) == 0:
		return OutcomeVain
	}
	return OutcomeExecuted
}
