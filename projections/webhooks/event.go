package webhooks

import (
	"context"
	"fmt"
	"sync"
	"time"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/projections/webhooks/wire"
)

// event is one event of the log, opened once for all webhooks that read it at
// about the same time.
type event struct {
	rec  eventstore.Recorded
	keys []string // the streams whose order it is part of, its own first

	mu       sync.Mutex
	opened   time.Time
	messages []*wire.Message
}

// reopenAfter is how long an opened event is reused. An event that waits longer
// is opened again before it is sent, so that data erased meanwhile is not sent.
const reopenAfter = 10 * time.Second

func newEvent(rec eventstore.Recorded) *event {
	keys := []string{rec.Stream}
	if other := domain.Joined(rec); other != "" {
		keys = append(keys, other)
	}
	return &event{rec: rec, keys: keys}
}

// joint reports whether the event is part of the order of several accounts.
func (e *event) joint() bool { return len(e.keys) > 1 }

func (e *event) size() int { return len(e.rec.Clear) + len(e.rec.Sealed) }

// open returns the event's public events; most changes of the configuration
// have none. An error is the ledger's fault, never the endpoint's.
func (e *event) open(o opener, now time.Time) ([]*wire.Message, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.opened.IsZero() && now.Sub(e.opened) < reopenAfter {
		return e.messages, nil
	}
	public, err := o.public(e.rec)
	if err != nil {
		return nil, err
	}
	messages := make([]*wire.Message, len(public))
	for i, p := range public {
		messages[i] = &wire.Message{Event: p, Position: e.rec.Position, Part: i}
		if domain.OfDelivery(domain.CurrentType(e.rec.Type)) {
			messages[i].ReportsOn = domain.Entry{Stream: e.rec.Stream}.WebhookID()
		}
	}
	e.messages, e.opened = messages, now
	return messages, nil
}

// opener decrypts events and makes public events of them.
type opener struct {
	codec  domain.Codec
	ledger ledger
}

func (o opener) public(rec eventstore.Recorded) ([]domain.PublicEvent, error) {
	entry, err := o.codec.Decode(rec)
	if err != nil {
		return nil, err
	}
	if entry, err = o.ledger.without(context.Background(), entry); err != nil {
		return nil, err
	}
	lineage, err := o.ledger.lineage(context.Background())
	if err != nil {
		return nil, err
	}
	public, err := domain.Public(entry, lineage.At(rec.Position).Number)
	if err != nil {
		return nil, fmt.Errorf("webhooks: public events of position %d: %T", rec.Position, err)
	}
	return public, nil
}
