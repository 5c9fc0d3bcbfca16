package webhooks

import (
	"time"

	"accountledger/domain"
)

// pace bounds how often an endpoint is asked, as a bucket of tokens that fills
// with time. The zero pace bounds nothing.
type pace struct {
	perSecond float64
	burst     float64
	tokens    float64 // at a time; may be a debt
	at        time.Time
	hold      time.Time // nothing before that, because of trouble of our own
}

func newPace(perSecond float64, burst int) pace {
	full := float64(max(burst, 1))
	return pace{perSecond: perSecond, burst: full, tokens: full}
}

// paceOf is the pace of an endpoint: as fast as its settings say, and as it
// said itself.
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

// next is when the next request may go: now, or later.
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
		// Rounded up, or it would be asked again just before its time.
		if due := now.Add(time.Duration(missing/p.perSecond*float64(time.Second)) + time.Microsecond); due.After(next) {
			return due
		}
	}
	return next
}

// take counts a request.
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
