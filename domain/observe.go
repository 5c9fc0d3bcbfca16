package domain

import (
	"context"
	"errors"
	"reflect"
	"time"
)

// Executed is a command that was carried out or refused. Nothing in it is
// personal, and its texts are few: it is made to be counted.
type Executed struct {
	Command  string        // its Go type: CreateAccount
	Outcome  string        // one of those below, or the Code of a refusal
	Duration time.Duration // with all the waiting
}

// Outcomes of commands that were not refused.
const (
	OutcomeChanged   = "changed"   // its events are in the log
	OutcomeUnchanged = "unchanged" // nothing to change, or executed before, or a dry run
	OutcomeCanceled  = "canceled"  // nobody waits for it any more
	OutcomeFailed    = "failed"    // by a fault of ours
)

// executed tells the observer of a command that was begun at start.
func (l *Ledger) executed(ctx context.Context, cmd any, start time.Time, changed bool, err error) {
	if l.observe == nil {
		return
	}
	x := Executed{Command: reflect.TypeOf(cmd).Name(), Outcome: OutcomeUnchanged, Duration: time.Since(start)}
	switch code := CodeOf(err); {
	case code != "":
		x.Outcome = string(code)
	case errors.Is(err, context.Canceled):
		x.Outcome = OutcomeCanceled
	case err != nil:
		x.Outcome = OutcomeFailed
	case changed:
		x.Outcome = OutcomeChanged
	}
	l.observe(ctx, x)
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
