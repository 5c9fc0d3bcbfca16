package webhooks

import (
	"context"
	"fmt"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/projections/webhooks/wire"
)

// sequence finds the previous sequence of a webhook's deliveries. It follows
// from the log and what the webhook selects, so it is the same at every attempt,
// and delivery.db stores nothing about accounts that are not failing.
type sequence struct {
	log    eventstore.Store
	codec  domain.Codec
	ledger ledger
	conf   domain.Webhook
}

// previous returns the sequence of the stream's event that the webhook selects
// before a delivery's public event, or wire.NoSequence if this is the first one
// since the webhook's start or since a fork, which begins a new stream. A receiver
// that lacks that event detects the gap.
func (s *sequence) previous(d *delivery, part int) (eventstore.Revision, error) {
	if part > 0 {
		return d.rec.Revision, nil // another public event of the same log event
	}
	lineage, err := s.ledger.lineage(context.Background())
	if err != nil {
		return wire.NoSequence, err
	}
	after := max(s.conf.After, lineage.At(d.rec.Position).Fork)
	if d.followsAfter > after {
		return d.follows, nil
	}
	for until, reach := d.rec.Revision, eventstore.Revision(1); until > 0; reach *= 8 {
		from := max(0, until-reach)
		found, began, err := s.lastSelected(d.rec.Stream, after, from, until)
		if err != nil || found != wire.NoSequence || began {
			return found, err
		}
		until = from
	}
	return wire.NoSequence, nil
}

// lastSelected returns the last revision in [from, until) of a stream that the
// webhook selects and that is after a position. began reports that the range
// reaches back to that position.
func (s *sequence) lastSelected(stream string, after eventstore.Position, from, until eventstore.Revision) (found eventstore.Revision, began bool, err error) {
	found = wire.NoSequence
	for rec, err := range s.log.ReadStream(context.Background(), stream, from) {
		if err != nil {
			return wire.NoSequence, false, fmt.Errorf("webhooks: read %s: %w", stream, err)
		}
		if rec.Revision >= until {
			break
		}
		if rec.Position <= after {
			began = true
			continue
		}
		x, err := s.codec.Decode(rec)
		if err != nil {
			return wire.NoSequence, false, err
		}
		if !s.reportsOnItself(x) && domain.Tells(x, s.conf.Events) {
			found = rec.Revision
		}
	}
	return found, began, nil
}

// reportsOnItself reports whether x is a report on the webhook's own deliveries,
// which it does not receive.
func (s *sequence) reportsOnItself(x domain.Entry) bool {
	return domain.OfDelivery(x.Type) && x.WebhookID() == s.conf.WebhookID
}
