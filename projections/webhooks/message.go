package webhooks

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"accountledger/domain"
	"accountledger/eventstore"
)

// slot is one event of the log, opened once for all endpoints that are at the
// same place.
type slot struct {
	rec  eventstore.Recorded
	keys []string // the streams whose order it is part of

	mu       sync.Mutex
	opened   time.Time
	messages []*message
}

// reopenAfter is for how long an opened event is believed. What waits for
// longer is opened anew before it is sent, so that what was erased meanwhile
// is not told.
const reopenAfter = 10 * time.Second

func newSlot(rec eventstore.Recorded) *slot {
	return &slot{rec: rec, keys: []string{rec.Stream}}
}

func (s *slot) size() int { return len(s.rec.Clear) + len(s.rec.Sealed) }

// opener opens events of the log as external systems may see them.
type opener struct {
	codec  domain.Codec
	ledger *domain.Ledger
}

// public leaves internal custom fields out, for every endpoint: whoever may
// register one need not be somebody who may see them.
func (o opener) public(rec eventstore.Recorded) ([]domain.PublicEvent, error) {
	entry, err := o.codec.Decode(rec)
	if err != nil {
		return nil, err
	}
	config, err := o.ledger.Config(context.Background()) // in memory, but for the first time
	if err != nil {
		return nil, err
	}
	public, err := domain.Public(entry.Without(config.Hidden()))
	if err != nil {
		return nil, fmt.Errorf("webhooks: public events of position %d: %T", rec.Position, err)
	}
	return public, nil
}

// open returns the public events of s, none for most changes of
// configuration. An error is ours, never the endpoint's.
func (s *slot) open(o opener, now time.Time) ([]*message, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.opened.IsZero() && now.Sub(s.opened) < reopenAfter {
		return s.messages, nil
	}
	public, err := o.public(s.rec)
	if err != nil {
		return nil, err
	}
	messages := make([]*message, len(public))
	for i, e := range public {
		messages[i] = &message{event: e, part: i}
	}
	s.messages, s.opened = messages, now
	return messages, nil
}

// message is a public event as it is sent: rendered once, byte for byte the
// same for every endpoint and at every attempt.
type message struct {
	event domain.PublicEvent
	part  int // which of its log event's

	full, thin rendering
}

type rendering struct {
	once sync.Once
	body []byte
	err  error
}

// body is the request's body for a payload form.
func (m *message) body(payload string) ([]byte, error) {
	r := &m.full
	if payload == domain.PayloadThin {
		r = &m.thin
	}
	r.once.Do(func() { r.body, r.err = m.render(payload, noGap) })
	return r.body, r.err
}

// render makes the body: what Standard Webhooks wants (type, timestamp, data)
// and beside it what the feed has in its envelope. gap is the sequence of an
// event given up before it, so that the receiver sees the hole, or noGap.
// Written by hand, because it is done for every event there is and data is
// JSON already.
func (m *message) render(payload string, gap eventstore.Revision) ([]byte, error) {
	e := &m.event
	data := e.Data
	if payload == domain.PayloadThin {
		var err error
		if data, err = ids(data); err != nil {
			return nil, err
		}
	}
	b := make([]byte, 0, 256+len(data))
	var err error
	text := func(member, value string) {
		b = append(b, member...)
		if b, err = jsontext.AppendQuote(b, value); err != nil {
			b = append(b, `""`...) // not UTF-8, which no event in the log can be
		}
	}
	text(`{"type":`, e.Type)
	b = append(b, `,"timestamp":"`...) // when it became true in the world
	b = e.Time.UTC().AppendFormat(b, time.RFC3339Nano)
	text(`","id":`, e.ID)
	if e.Sub != "" {
		text(`,"sub":`, e.Sub)
	}
	b = strconv.AppendInt(append(b, `,"sequence":`...), int64(e.Sequence), 10)
	if gap != noGap {
		b = strconv.AppendInt(append(b, `,"previous_sequence":`...), int64(gap), 10)
	}
	b = append(append(b, `,"data":`...), data...)
	return append(b, '}'), err
}

// thinMembers are the members of data that are ids of the ledger's own. An id
// at a provider is not among them: that is personal.
var thinMembers = []string{"sub", "identityId", "webhookId", "groupId", "consentId", "scheduleId"}

// ids is data with its ids alone.
func ids(data jsontext.Value) (jsontext.Value, error) {
	var members map[string]jsontext.Value
	if err := json.Unmarshal(data, &members); err != nil {
		return nil, fmt.Errorf("webhooks: render ids: %T", err)
	}
	for name := range members {
		if !slices.Contains(thinMembers, name) {
			delete(members, name)
		}
	}
	var b bytes.Buffer
	err := json.MarshalWrite(&b, members, json.Deterministic(true))
	return b.Bytes(), err
}
