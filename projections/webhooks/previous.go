package webhooks

import (
	"context"
	"fmt"

	"accountledger/domain"
	"accountledger/eventstore"
)

// none is the sequence before an account's first event.
const none eventstore.Revision = -1

// previous is the sequence of the event that the endpoint was to be told of
// before this one, of the same account; none if this is the first since the
// endpoint began. A receiver that has not seen that one sees the hole.
//
// It follows from the log and what the endpoint selects, and so it is the same
// at every attempt, and nothing is remembered of accounts.
func (s *courier) previous(one sending) (eventstore.Revision, error) {
	if one.part > 0 {
		return one.rec.Revision, nil // one event of the log, told as several
	}
	if one.follows > 0 {
		return one.follows - 1, nil
	}
	for until, reach := one.rec.Revision, eventstore.Revision(1); until > 0; reach *= 8 {
		from := max(0, until-reach)
		found, began, err := s.lastTold(one.rec.Stream, from, until)
		if err != nil || found != none || began {
			return found, err
		}
		until = from
	}
	return none, nil
}

// lastTold is the last revision in [from, until) of a stream that the endpoint
// is told of. began says that some there are from before it began.
func (s *courier) lastTold(stream string, from, until eventstore.Revision) (found eventstore.Revision, began bool, err error) {
	found = none
	for rec, err := range s.log.ReadStream(context.Background(), stream, from) {
		if err != nil {
			return none, false, fmt.Errorf("webhooks: read %s: %w", stream, err)
		}
		if rec.Revision >= until {
			break
		}
		if rec.Position <= s.conf.After {
			began = true
			continue
		}
		x, err := s.opener.codec.Decode(rec)
		if err != nil {
			return none, false, err
		}
		if !s.own(x) && domain.Tells(x, s.conf.Events) {
			found = rec.Revision
		}
	}
	return found, began, nil
}

// own reports whether x says how the endpoint's own deliveries go.
func (s *courier) own(x domain.Entry) bool {
	return domain.OfDelivery(x.Type) && x.WebhookID() == s.conf.WebhookID
}
