package webhooks

import (
	"time"

	"accountledger/domain"
)

// pace limits the rate of requests to an endpoint with a token bucket. The zero
// pace does not limit it.
type pace struct {
	perSecond float64
	burst     float64
	tokens    float64 // at the time at; may be negative
	at        time.Time
	hold      time.Time // no request before that, after a failure of the ledger
}

func newPace(perSecond float64, burst int) pace {
	full := float64(max(burst, 1))
	return pace{perSecond: perSecond, burst: full, tokens: full}
}

// paceOf returns the pace of a webhook: the lower of the rate in its settings and
// the rate that its endpoint allowed when it was verified.
func paceOf(conf domain.Webhook) pace {
	if v := conf.Verified; v != nil && v.AllowedRate > 0 {
		perSecond := float64(v.AllowedRate) / 60
		if conf.RateLimit > 0 {
			perSecond = min(perSecond, conf.RateLimit)
		}
		return newPace(perSecond, 1)
	}
	return newPace(conf.RateLimit, conf.Burst)
}

// next returns when the next request may be sent: now or later.
func (p *pace) next(now time.Time) time.Time {
	next := now
	if p.hold.After(now) {
		next = p.hold
	}
	if p.perSecond == 0 {
		return next
	}
	p.fill(now)
	if missing := 1 - p.tokens; missing > 0 {
		// Round up, or the caller would ask again just before it is due.
		if due := now.Add(time.Duration(missing/p.perSecond*float64(time.Second)) + time.Microsecond); due.After(next) {
			return due
		}
	}
	return next
}

// take takes the token of a request.
func (p *pace) take(now time.Time) {
	if p.perSecond > 0 {
		p.fill(now)
		p.tokens--
	}
}

func (p *pace) fill(now time.Time) {
	if p.at.IsZero() {
		p.at = now
	}
	p.tokens = min(p.burst, p.tokens+now.Sub(p.at).Seconds()*p.perSecond)
	p.at = now
}
