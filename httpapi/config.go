package httpapi

import (
	"context"
	"net/http"
	"strconv"

	"accountledger/domain"
	"accountledger/eventstore"
)

// configure executes cmd on the configuration and answers with the object that
// show returns; if it is nil, with an empty body.
func (s *server) configure(ctx context.Context, c *call, in Command, cmd domain.ConfigCommand, show func(*domain.Config) (object any, revision eventstore.Revision)) (*answer, error) {
	r, err := in.request(c)
	if err != nil {
		return nil, err
	}
	result, err := s.Ledger.Configure(ctx, r, cmd)
	if err != nil {
		return nil, err
	}
	if in.DryRun {
		events, err := planned(result.Events)
		if err != nil {
			return nil, err
		}
		return (&answer{Status: http.StatusOK}).rendered(triedConfig{events})
	}
	a := s.settled(ctx, result.Position())
	object, revision := show(result.State)
	if object == nil {
		return a, nil
	}
	a.ETag = etag(revision)
	return a.rendered(object)
}

// triedConfig is the result of a dry run on the configuration.
type triedConfig struct {
	Events []plannedEvent `json:"events" doc:"The events the command would append."`
}

// config starts the answer to a query of the configuration. The configuration
// comes from memory and is always current; config still waits for q.MinPosition.
func (s *server) config(ctx context.Context, q Query) (*answer, *domain.Config, error) {
	a, err := s.fresh(ctx, q)
	if err != nil {
		return nil, nil, err
	}
	config, err := s.Ledger.Config(ctx)
	if err != nil {
		return nil, nil, err
	}
	if p, err := strconv.ParseInt(a.LedgerPosition, 10, 64); err == nil && int64(config.Position) > p {
		a.LedgerPosition = strconv.FormatInt(int64(config.Position), 10)
	}
	return a, config, nil
}
