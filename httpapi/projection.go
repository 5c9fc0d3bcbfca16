package httpapi

import (
	"context"
	"slices"
	"sync"
	"time"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/projections"
)

func (s *server) projectionRoutes() {
	handle(s, route{
		method: "GET", path: "/v1/projections", name: "listProjections", scope: scopeAuditRead, status: 200, answer: projectionList{},
		summary: "List the projections",
		text:    "Returns each projection's position in the log and the progress of its last rebuild.",
		codes:   onQuery,
	}, s.listProjections)
	handle(s, route{
		method: "POST", path: "/v1/projections/{name}/rebuild", name: "rebuildProjection", scope: scopeConfigWrite, status: 202, answer: rebuildState{},
		summary: "Rebuild a projection",
		text:    "Rebuilds the projection from the log. The live projection answers queries until the new one replaces it. GET /v1/projections shows the progress.",
		codes:   []domain.Code{codeProjectionNotFound, codeRebuildRunning},
	}, s.rebuildProjection)
}

// projectionList is all projections.
type projectionList struct {
	Projections []projectionState `json:"projections" doc:"All projections."`
}

// projectionState says how far a projection has followed the log.
type projectionState struct {
	Name     string              `json:"name" doc:"The projection's name."`
	Position eventstore.Position `json:"position" doc:"Log position of the last event the projection has applied."`
	Head     eventstore.Position `json:"head" doc:"Log position of the last event in the log."`
	Lag      int64               `json:"lag" doc:"Number of events the projection has not applied yet."`
	State    string              `json:"state" doc:"live, or rebuilding next to the live one."`
	Rebuild  *rebuildState       `json:"rebuild,omitzero" doc:"The last rebuild requested since the server started."`
	Parked   []parked            `json:"parked" doc:"Streams that are parked because one of their events could not be applied."`
}

// rebuildState is the progress of the last rebuild since the server started.
type rebuildState struct {
	State       string    `json:"state" enum:"running,done,failed" doc:"running, done or failed."`
	StartedTime time.Time `json:"startedTime" doc:"When the rebuild was requested."`
	EndedTime   time.Time `json:"endedTime,omitzero" doc:"When the rebuild ended."`
	Done        int64     `json:"done" doc:"Number of events applied."`
	Total       int64     `json:"total" doc:"Number of events to apply."`
}

// parked is a stream that waits because one of its events could not be applied.
type parked struct {
	Stream   string              `json:"stream" doc:"The parked stream."`
	Revision eventstore.Revision `json:"revision" doc:"Revision of the stream's first event that is not applied."`
	Position eventstore.Position `json:"position" doc:"Log position of that event."`
	Error    string              `json:"error" doc:"Why the event could not be applied."`
	Since    time.Time           `json:"since" doc:"When the stream was parked."`
	Attempts int64               `json:"attempts" doc:"Number of attempts to apply the event."`
}

// rebuilds holds the last rebuild of each projection since the server started.
type rebuilds struct {
	mu   sync.Mutex
	last map[string]*rebuildState // by projection
}

const (
	rebuildRunning = "running"
	rebuildDone    = "done"
	rebuildFailed  = "failed"
)

// start registers a rebuild unless one of the same projection is still running.
func (r *rebuilds) start(name string, now time.Time) (rebuildState, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if last := r.last[name]; last != nil && last.State == rebuildRunning {
		return *last, false
	}
	r.last[name] = &rebuildState{State: rebuildRunning, StartedTime: now}
	return *r.last[name], true
}

func (r *rebuilds) change(name string, f func(*rebuildState)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(r.last[name])
}

// state returns a copy of the last rebuild's state, nil if there was none.
func (r *rebuilds) state(name string) *rebuildState {
	r.mu.Lock()
	defer r.mu.Unlock()
	last := r.last[name]
	if last == nil {
		return nil
	}
	state := *last
	return &state
}

type listProjectionsInput struct{ Query }

func (s *server) listProjections(ctx context.Context, _ *call, in *listProjectionsInput) (*answer, error) {
	a, err := s.fresh(ctx, in.Query)
	if err != nil {
		return nil, err
	}
	statuses, err := s.Views.Status(ctx)
	if err != nil {
		return nil, err
	}
	var list projectionList
	for _, v := range statuses {
		state := projectionState{Name: v.Name, Position: v.Position, Head: v.Head, Lag: v.Lag, State: v.State, Rebuild: s.rebuilds.state(v.Name)}
		for _, p := range v.Parked {
			state.Parked = append(state.Parked, parked{p.Stream, p.Revision, p.Position, p.Error, p.Since, p.Attempts})
		}
		list.Projections = append(list.Projections, state)
	}
	return a.rendered(list)
}

type rebuildProjectionInput struct {
	Name string `path:"name" doc:"The projection's name." example:"accounts"`
}

func (s *server) rebuildProjection(ctx context.Context, c *call, in *rebuildProjectionInput) (*answer, error) {
	statuses, err := s.Views.Status(ctx)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(statuses, func(v projections.Status) bool { return v.Name == in.Name }) {
		return nil, newProblem(codeProjectionNotFound, "There is no such projection.")
	}
	if s.Background == nil {
		return nil, newProblem(codeUnavailable, "This server is not configured to run background work.")
	}
	state, ok := s.rebuilds.start(in.Name, s.Now().UTC())
	if !ok {
		return nil, newProblem(codeRebuildRunning, "The projection is already being rebuilt.")
	}
	s.Logger.InfoContext(ctx, "rebuild requested", "projection", in.Name, "actor", c.actor.ID, "request", c.id)
	s.Background(func(ctx context.Context) { s.rebuild(ctx, in.Name, c.id) })
	return (&answer{}).rendered(state)
}

func (s *server) rebuild(ctx context.Context, name, request string) {
	err := s.Views.Rebuild(ctx, name, func(done, total int64) {
		s.rebuilds.change(name, func(state *rebuildState) { state.Done, state.Total = done, total })
	})
	outcome := rebuildDone
	if err != nil {
		outcome = rebuildFailed
		s.Logger.ErrorContext(ctx, "rebuild failed", "projection", name, "request", request, "err", err)
	}
	s.rebuilds.change(name, func(state *rebuildState) { state.State, state.EndedTime = outcome, s.Now().UTC() })
}
