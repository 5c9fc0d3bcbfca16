package httpapi

import (
	"cmp"
	"context"
	"regexp"
	"strconv"

	"accountledger/domain"
	"accountledger/eventstore"
)

type getEventDataInput struct {
	Event string `path:"event" doc:"The event: its log position, a dot, and its index among the public events at that position; for events after a roll-back, also a tilde and the number of the ledger's incarnation. Taken from the event's dataref."`
	Query
}

var eventPlace = regexp.MustCompile(`^([1-9][0-9]{0,17})\.([0-9]{1,3})(?:~([1-9][0-9]{0,8}))?$`)

func (s *server) getEventData(ctx context.Context, _ *call, in *getEventDataInput) (*answer, error) {
	a, err := s.fresh(ctx, in.Query)
	if err != nil {
		return nil, err
	}
	missing := newProblem(codeEventNotFound, "There is no public event at this position and index.")
	place := eventPlace.FindStringSubmatch(in.Event)
	if place == nil {
		return nil, missing
	}
	position, err := strconv.ParseInt(place[1], 10, 64)
	if err != nil {
		return nil, missing
	}
	head, err := s.Log.Head(ctx)
	if err != nil {
		return nil, err
	}
	if eventstore.Position(position) > head {
		return nil, missing
	}
	lineage, err := s.Ledger.Lineage(ctx)
	if err != nil {
		return nil, err
	}
	// The event that the dataref meant may have been lost in a roll-back.
	if n := lineage.At(eventstore.Position(position)).Number; cmp.Or(place[3], "0") != strconv.Itoa(n) {
		return nil, missing
	}
	public, err := s.publicAt(ctx, eventstore.Position(position))
	if err != nil {
		return nil, err
	}
	part, err := strconv.Atoi(place[2])
	if err != nil || part >= len(public) {
		return nil, missing
	}
	a.Body = public[part].Data
	return a, nil
}

// publicAt returns the public events that webhooks are sent for the event at p.
func (s *server) publicAt(ctx context.Context, p eventstore.Position) ([]domain.PublicEvent, error) {
	config, err := s.Ledger.Config(ctx)
	if err != nil {
		return nil, err
	}
	for records, err := range s.Log.Subscribe(ctx, p-1) {
		if err != nil {
			return nil, err
		}
		x, err := s.Codec.Decode(records[0])
		if err != nil {
			return nil, err
		}
		return domain.Public(x.Without(config.Hidden()), 0) // only the data is used
	}
	return nil, ctx.Err()
}
