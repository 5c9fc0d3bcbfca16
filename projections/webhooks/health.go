package webhooks

import (
	"cmp"

	"accountledger/domain"
)

// failsAfter is how many failures in a row, of an event or the endpoint, are
// reported: one may be chance.
const failsAfter = 2

// assess has it recorded when deliveries begin to fail, and when none does any
// more, after a result. Failures of deliveries of such records are not, for
// they would cause others.
func (e *endpoint) assess(r result) {
	switch {
	case e.failing && r.scope == delivered && !e.breaker.open() && e.lanes.failing() == 0:
		e.failing = false
		e.report(domain.ReportRecovered{})
	case !e.failing && r.scope != delivered && r.message.reports == "":
		since := e.breaker.firstFailure
		if l := e.lanes.byStream[r.rec.Stream]; l != nil && l.attempt >= failsAfter {
			if since = l.since; since.IsZero() {
				since = r.time
			}
		} else if e.breaker.step < failsAfter {
			return
		}
		e.failing = true
		e.report(domain.ReportFailing{Since: since.UTC(), Reason: cmp.Or(r.code, codeStatus)})
	}
}
