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

// Query is what every query may be sent with.
type Query struct {
	MinPosition int64 `query:"min_position" minimum:"0" doc:"Answer from a state that includes this position of the log: the Ledger-Position of an earlier answer."`
	Wait        int   `query:"wait" minimum:"0" maximum:"30" default:"5" doc:"Seconds to wait for min_position, then 503."`
}

// fresh waits until the account view has applied what q asks for and begins
// the answer that says how far it is.
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

// rendered gives a the body v.
func (a *answer) rendered(v any) (*answer, error) {
	var err error
	a.Body, err = json.Marshal(v, json.Deterministic(true))
	return a, err
}

// next points a at the page after this one, RFC 8288.
func (a *answer) next(c *call, cursor string) {
	query := c.r.URL.Query()
	query.Set("after", cursor)
	link := url.URL{Path: c.r.URL.Path, RawQuery: query.Encode()}
	a.Link = "<" + link.String() + `>; rel="next"`
}
