package webhooks

import (
	"math/rand/v2"
	"time"
)

// DefaultSchedule is how long an event, or an endpoint as a whole, waits
// after each failure: attempts at 0, 5 s, 5 min, 35 min, 2.5 h, 7.5 h, 17.5 h,
// 31.5 h, 51.5 h and 75.5 h, a few seconds more each.
var DefaultSchedule = []time.Duration{
	5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour,
	10 * time.Hour, 14 * time.Hour, 20 * time.Hour, 24 * time.Hour,
}

// wait is a schedule's step with up to a fifth more, so that endpoints that
// failed together do not come back together.
func wait(schedule []time.Duration, step int) time.Duration {
	d := schedule[min(step, len(schedule)-1)]
	return d + rand.N(d/5+1)
}

// Why an endpoint is given up for good: nothing it was sent arrived for so
// long, as the first and the last failure since an arrival say. So there are
// two at least, and silence is no failure.
const giveUpAfter = 5 * 24 * time.Hour

// breaker decides how many requests an endpoint gets at once: all it may have,
// none for a while after it failed as a whole, then one to try, then more
// with each success.
type breaker struct {
	limit    int // requests at once
	schedule []time.Duration

	step         int       // failures in a row; 0: closed
	until        time.Time // left alone before that
	reason       string    // an error code
	firstFailure time.Time // since something arrived, of an event or the endpoint
	escalated    bool      // opened because too many accounts failed, not the endpoint
	width        int       // requests at once while recovering; limit or more: recovered
}

func (b *breaker) open() bool { return b.step > 0 }

// allowed is how many requests may be in flight at now.
func (b *breaker) allowed(now time.Time) int {
	switch {
	case !b.open():
		return min(b.width, b.limit)
	case now.Before(b.until):
		return 0
	}
	return 1
}

// succeed closes b and lets one more request go: with every answer to as many
// requests as were let go, their number doubles.
func (b *breaker) succeed() {
	b.answered()
	b.firstFailure = time.Time{}
}

// answered closes b likewise, for an endpoint that refuses an event but works.
func (b *breaker) answered() {
	if b.open() {
		b.width = 1
	}
	b.step, b.until, b.reason, b.escalated = 0, time.Time{}, "", false
	b.width = min(b.width+1, b.limit)
}

// missed notes that something did not arrive. It reports whether nothing did
// for so long that the endpoint should be given up.
func (b *breaker) missed(now time.Time) (hopeless bool) {
	if b.firstFailure.IsZero() {
		b.firstFailure = now
	}
	return now.Sub(b.firstFailure) >= giveUpAfter
}

// fail opens b until the schedule's next step, or for longer if the endpoint
// asked for it. It reports what missed does.
func (b *breaker) fail(now time.Time, reason string, retryAfter time.Duration) (hopeless bool) {
	b.until = now.Add(max(wait(b.schedule, b.step), retryAfter))
	b.step++
	b.reason = reason
	return b.missed(now)
}

// postpone keeps b open for at least as long as the endpoint asked.
func (b *breaker) postpone(now time.Time, retryAfter time.Duration) {
	if until := now.Add(retryAfter); until.After(b.until) {
		b.until = until
	}
}

// recent remembers how the last distinct accounts fared. When most of them
// are refused, it is not the events that are bad but the endpoint.
type recent struct {
	seen []fared // oldest first
}

type fared struct {
	key string
	ok  bool
}

const recentAccounts = 20

func (r *recent) add(key string, ok bool) {
	for i, f := range r.seen {
		if f.key == key {
			r.seen = append(r.seen[:i], r.seen[i+1:]...)
			break
		}
	}
	if len(r.seen) == recentAccounts {
		r.seen = append(r.seen[:0], r.seen[1:]...)
	}
	r.seen = append(r.seen, fared{key, ok})
}

// bad reports whether more than half of the last accounts failed.
func (r *recent) bad() bool {
	failed := 0
	for _, f := range r.seen {
		if !f.ok {
			failed++
		}
	}
	return len(r.seen) == recentAccounts && failed > recentAccounts/2
}
