package webhooks

import (
	"cmp"
	"math/rand/v2"
	"time"

	"accountledger/domain"
	"accountledger/projections/webhooks/transport"
)

// DefaultSchedule lists the waits after each failure, of an event or of an
// endpoint: attempts at 0, 5 s, 5 min, 35 min, 2.5 h, 7.5 h, 17.5 h, 31.5 h,
// 51.5 h and 75.5 h, each with some jitter.
var DefaultSchedule = []time.Duration{
	5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour,
	10 * time.Hour, 14 * time.Hour, 20 * time.Hour, 24 * time.Hour,
}

// backoff returns a step of the schedule plus up to a fifth of it, so that
// endpoints that failed together are not retried together.
func backoff(schedule []time.Duration, step int) time.Duration {
	d := schedule[min(step, len(schedule)-1)]
	return d + rand.N(d/5+1)
}

// giveUpAfter is how long all deliveries to a webhook must fail before it is
// disabled: the time between the first and the last failure since a success. So
// it takes at least two failures, and a time without deliveries is no failure.
const giveUpAfter = 5 * 24 * time.Hour

// reportAfter is how many failures in a row, of an event or of the endpoint, are
// reported as failing: a single one may be chance.
const reportAfter = 2

// codeFailing is the reason of a breaker that opened because too many accounts
// fail, and of a webhook that was disabled after giveUpAfter.
const codeFailing = "failing"

// breaker is a webhook's circuit breaker. It decides how many concurrent requests
// the endpoint gets: all that are configured, none for a while after the endpoint
// failed, then one as a probe, then more with each success (slow start).
type breaker struct {
	limit    int // concurrent requests
	schedule []time.Duration

	step         int       // failures in a row; 0: closed
	until        time.Time // no requests before that
	reason       string    // an error code
	firstFailure time.Time // since the last success, of an event or the endpoint
	escalated    bool      // opened because too many accounts failed, not the endpoint
	width        int       // concurrent requests while recovering; limit or more: recovered
	failing      bool      // the ledger has recorded that deliveries fail
}

func (b *breaker) open() bool { return b.step > 0 }

// allowed returns how many requests may be in flight at now.
func (b *breaker) allowed(now time.Time) int {
	switch {
	case !b.open():
		return min(b.width, b.limit)
	case now.Before(b.until):
		return 0
	}
	return 1
}

// succeed closes b and allows one more request. So the number of requests in
// flight doubles with each round of successes.
func (b *breaker) succeed() {
	b.answered()
	b.firstFailure = time.Time{}
}

// answered closes b in the same way, for an endpoint that works and refuses an
// event.
func (b *breaker) answered() {
	if b.open() {
		b.width = 1
	}
	b.step, b.until, b.reason, b.escalated = 0, time.Time{}, "", false
	b.width = min(b.width+1, b.limit)
}

// missed notes a failed delivery. It reports whether all deliveries have failed
// for giveUpAfter.
func (b *breaker) missed(now time.Time) (hopeless bool) {
	if b.firstFailure.IsZero() {
		b.firstFailure = now
	}
	return now.Sub(b.firstFailure) >= giveUpAfter
}

// fail opens b until the next step of the schedule, or longer if the receiver
// asked for it. It reports what missed reports.
func (b *breaker) fail(now time.Time, reason string, retryAfter time.Duration) (hopeless bool) {
	b.until = now.Add(max(backoff(b.schedule, b.step), retryAfter))
	b.step++
	b.reason = reason
	return b.missed(now)
}

// postpone keeps b open for at least as long as the receiver asked.
func (b *breaker) postpone(now time.Time, retryAfter time.Duration) {
	if until := now.Add(retryAfter); until.After(b.until) {
		b.until = until
	}
}

// report decides, after a result, whether the ledger must record that deliveries
// began to fail or that all of them succeed again. l is the lane of the result's
// account, or nil; failingLanes counts the webhook's failing lanes. Failed
// deliveries of such reports are not reported, because each report would cause
// the next.
func (b *breaker) report(r result, l *lane, failingLanes int) (domain.WebhookCommand, bool) {
	switch {
	case b.failing && r.Scope == transport.Delivered && !b.open() && failingLanes == 0:
		b.failing = false
		return domain.ReportRecovered{}, true
	case !b.failing && r.Scope != transport.Delivered && r.message.ReportsOn == "":
		since := b.firstFailure
		if l != nil && l.attempt >= reportAfter {
			if since = l.since; since.IsZero() {
				since = r.time
			}
		} else if b.step < reportAfter {
			return nil, false
		}
		b.failing = true
		return domain.ReportFailing{Since: since.UTC(), Reason: cmp.Or(r.Code, transport.CodeStatus)}, true
	}
	return nil, false
}

// recent holds the latest result of each of the last distinct accounts. If most
// of them were refused, the endpoint is at fault and not the events.
type recent struct {
	results []accountResult // oldest first
}

type accountResult struct {
	key string
	ok  bool
}

const recentAccounts = 20

func (r *recent) add(key string, ok bool) {
	for i, f := range r.results {
		if f.key == key {
			r.results = append(r.results[:i], r.results[i+1:]...)
			break
		}
	}
	if len(r.results) == recentAccounts {
		r.results = append(r.results[:0], r.results[1:]...)
	}
	r.results = append(r.results, accountResult{key, ok})
}

// bad reports whether more than half of the last accounts were refused.
func (r *recent) bad() bool {
	failed := 0
	for _, f := range r.results {
		if !f.ok {
			failed++
		}
	}
	return len(r.results) == recentAccounts && failed > recentAccounts/2
}
