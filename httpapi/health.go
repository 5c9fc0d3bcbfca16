package httpapi

import (
	"fmt"
	"maps"
	"net/http"
	"slices"

	"accountledger/eventstore"
)

// healthz says that the process answers.
func (s *server) healthz(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.Write([]byte(`{"status":"ok"}`))
}

// readyz says that queries answer what was in the log when it was first
// asked: the account view has caught up once. That it lags a little behind
// new writes later is not a reason to take the server out of service.
func (s *server) readyz(w http.ResponseWriter, r *http.Request) {
	c := callOf(r.Context())
	awaited := eventstore.Position(s.awaited.Load())
	if awaited < 0 {
		head, err := s.Log.Head(r.Context())
		if err != nil {
			writeProblem(w, s.problem(r.Context(), c, err))
			return
		}
		awaited = head
		s.awaited.CompareAndSwap(-1, int64(head))
	}
	if p := s.Views.Accounts().Position(); p < awaited {
		refusal := newProblem(codeNotReady, "The account view is at position %d of %d.", p, awaited).with("Retry-After", "1").of(c)
		refusal.Position = &p
		writeProblem(w, refusal)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write([]byte(`{"status":"ready"}`))
}

// metrics are the figures of this API in the text format of Prometheus.
func (s *server) metrics(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	fmt.Fprintf(w, "# HELP accountledger_access_refused_total Requests whose caller was not let in, by reason.\n# TYPE accountledger_access_refused_total counter\n")
	for _, reason := range slices.Sorted(maps.Keys(s.refused)) {
		fmt.Fprintf(w, "accountledger_access_refused_total{reason=%q} %d\n", reason, s.refused[reason].Load())
	}
	accounts := s.Views.Accounts()
	fmt.Fprintf(w, "# HELP accountledger_account_view_position Position of the log that the account view has applied.\n# TYPE accountledger_account_view_position gauge\n")
	fmt.Fprintf(w, "accountledger_account_view_position %d\n", accounts.Position())
	fmt.Fprintf(w, "# HELP accountledger_account_view_lag Events of the log that the account view has not applied.\n# TYPE accountledger_account_view_lag gauge\n")
	fmt.Fprintf(w, "accountledger_account_view_lag %d\n", accounts.Lag())
}
