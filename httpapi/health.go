package httpapi

import (
	"net/http"

	"accountledger/eventstore"
)

// healthz reports that the process answers.
func (s *server) healthz(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.Write([]byte(`{"status":"ok"}`))
}

// readyz reports that the account view has reached the end that the log had at
// the first call. A view that later lags a little behind new writes is no reason
// to take the server out of service.
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

// metrics serves the metrics to callers with the scope metrics:read. They
// reveal the number of accounts and their activity.
func (s *server) metrics(w http.ResponseWriter, r *http.Request) {
	c := callOf(r.Context())
	err := s.admit(r.Context(), c, scopeMetricsRead, r.Header.Get("Authorization"))
	if err == nil && s.Metrics == nil {
		err = newProblem(codeNotFound, "There is no resource at this path.")
	}
	if err != nil {
		writeProblem(w, s.problem(r.Context(), c, err))
		return
	}
	s.Metrics.ServeHTTP(w, r)
}
