package domain

import (
	"context"
	"errors"
	"reflect"
	"time"
)

// Executed describes a command that was carried out or refused, for metrics. It
// holds no personal data, and its texts take few values.
type Executed struct {
	Command  string        // its Go type: CreateAccount
	Outcome  string        // one of the outcomes below, or the Code of a refusal
	Duration time.Duration // including the time spent waiting
}

// Outcomes of commands that were not refused.
const (
	OutcomeChanged   = "changed"   // its events are in the log
	OutcomeUnchanged = "unchanged" // nothing to change, a repetition, or a dry run
	OutcomeCanceled  = "canceled"  // the caller's context was cancelled
	OutcomeFailed    = "failed"    // an internal error
)

// observed calls f, which carries out cmd, and reports the outcome to the
// observer.
func observed[S aggregate[S]](ctx context.Context, l *Ledger, cmd any, r Request, f func() (Result[S], error)) (Result[S], error) {
	start := time.Now()
	result, err := f()
	if l.observe == nil {
		return result, err
	}
	x := Executed{Command: reflect.TypeOf(cmd).Name(), Outcome: OutcomeUnchanged, Duration: time.Since(start)}
	switch code := CodeOf(err); {
	case code != "":
		x.Outcome = string(code)
	case errors.Is(err, context.Canceled):
		x.Outcome = OutcomeCanceled
	case err != nil:
		x.Outcome = OutcomeFailed
	case len(result.Events) > 0 && !result.Repeated && !r.DryRun:
		x.Outcome = OutcomeChanged
	}
	l.observe(ctx, x)
	return result, err
}

// CacheStats are how the accounts kept in memory serve.
type CacheStats struct {
	Accounts     int   // kept now
	Hits, Misses int64 // look-ups since the start
}

// CacheStats says how the cache of folded accounts does.
func (l *Ledger) CacheStats() CacheStats {
	return CacheStats{Accounts: l.cache.EstimatedSize(), Hits: l.hits.Load(), Misses: l.misses.Load()}
}
