package httpapi

import (
	"context"
	"net/url"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"

	"accountledger/eventstore"
	"accountledger/projections"
)

// Query holds the parameters that every query accepts.
type Query struct {
	MinPosition int64 `query:"min_position" minimum:"0" doc:"Answer only from a state that includes this log position, such as the Ledger-Position of an earlier response."`
	Wait        int   `query:"wait" minimum:"0" maximum:"30" default:"5" doc:"Seconds to wait for min_position before the request fails with 503."`
}

// fresh waits until the account view has reached q.MinPosition and starts the
// answer with the view's position and lag.
func (s *server) fresh(ctx context.Context, q Query) (*answer, error) {
	accounts := s.Views.Accounts()
	p := accounts.Position()
	if min := eventstore.Position(q.MinPosition); p < min {
		bounded, cancel := context.WithTimeout(ctx, time.Duration(q.Wait)*time.Second)
		defer cancel()
		err := s.Views.Await(bounded, projections.AccountsView, min)
		p = accounts.Position()
		if bounded.Err() != nil && ctx.Err() == nil && p < min {
			return nil, s.notFresh(p)
		}
		if err != nil && p < min {
			return nil, err
		}
	}
	return &answer{LedgerPosition: strconv.FormatInt(int64(p), 10), LedgerLag: strconv.FormatInt(accounts.Lag(), 10)}, nil
}

func (s *server) notFresh(p eventstore.Position) error {
	refusal := newProblem(codeNotFresh, "The read model is at position %d.", p).
		with("Retry-After", "1").
		with("Ledger-Position", strconv.FormatInt(int64(p), 10)).
		with("Ledger-Lag", strconv.FormatInt(s.Views.Accounts().Lag(), 10))
	refusal.Position = &p
	return refusal
}

// rendered sets a's body to v as JSON.
func (a *answer) rendered(v any) (*answer, error) {
	var err error
	a.Body, err = json.Marshal(v, json.Deterministic(true))
	return a, err
}

// next sets a's Link header (RFC 8288) to the page after cursor.
func (a *answer) next(c *call, cursor string) {
	query := c.r.URL.Query()
	query.Set("after", cursor)
	link := url.URL{Path: c.r.URL.Path, RawQuery: query.Encode()}
	a.Link = "<" + link.String() + `>; rel="next"`
}
