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
	keys []string // the streams whose order it is part of, its own first

	mu       sync.Mutex
	opened   time.Time
	messages []*message
}

// reopenAfter is for how long an opened event is believed. What waits for
// longer is opened anew before it is sent, so that what was erased meanwhile
// is not told.
const reopenAfter = 10 * time.Second

func newSlot(rec eventstore.Recorded) *slot {
	keys := []string{rec.Stream}
	if other := domain.Joined(rec); other != "" {
		keys = append(keys, other)
	}
	return &slot{rec: rec, keys: keys}
}

// joint reports whether s is part of the order of several accounts.
func (s *slot) joint() bool { return len(s.keys) > 1 }

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
		messages[i] = &message{event: e, position: s.rec.Position, part: i}
		if domain.OfDelivery(domain.CurrentType(s.rec.Type)) {
			messages[i].reports = domain.Entry{Stream: s.rec.Stream}.WebhookID()
		}
	}
	s.messages, s.opened = messages, now
	return messages, nil
}

// message is a public event as it is sent: byte for byte the same at every
// attempt.
type message struct {
	event    domain.PublicEvent
	position eventstore.Position
	part     int    // which of its log event's
	reports  string // the endpoint of whose deliveries it tells; "": it tells of something else

	rendered [4]rendering // what many endpoints share, see form.shared
}

// told is m as somebody is told it who asked for patterns, or nil. Under an
// alias it is a message of its own, which nobody shares.
func (m *message) told(patterns []string) *message {
	name := m.event.Told(patterns)
	switch name {
	case m.event.Type:
		return m
	case "":
		return nil
	}
	other := &message{event: m.event, position: m.position, part: m.part, reports: m.reports}
	other.event.Type = name
	return other
}

// rendering is a body, as it is for those who were told of the same event
// before: of endpoints that select the same, all.
type rendering struct {
	mu     sync.Mutex
	made   bool
	before eventstore.Revision
	body   []byte
	err    error
}

// form is how an endpoint wants to be told.
type form struct {
	format, payload string
	mapping         domain.WebhookMapping
	source          string // of CloudEvents: the ledger
	public          string // the ledger's address, for references to data
}

// shared is where a message keeps what it looks like in this form, for other
// endpoints and attempts; -1 where it is not kept.
func (f *form) shared() int {
	i := slices.Index([]string{domain.PayloadFull, domain.PayloadThin}, f.payload)
	switch {
	case i < 0 || f.format == domain.FormatBinary:
		return -1
	case f.format == domain.FormatStandard:
		return i
	}
	return 2 + i
}

// body is the message in a form. before is the sequence of the event that the
// receiver was to be told of before this one, so that it sees a hole, or none.
func (m *message) body(f *form, before eventstore.Revision) ([]byte, error) {
	i := f.shared()
	if i < 0 {
		return m.render(f, before)
	}
	r := &m.rendered[i]
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case !r.made:
		r.body, r.err = m.render(f, before)
		r.made, r.before = true, before
	case r.before != before:
		return m.render(f, before)
	}
	return r.body, r.err
}

// data is the event's own part of the message.
func (m *message) data(f *form) (jsontext.Value, error) {
	switch f.payload {
	case domain.PayloadThin:
		return ids(m.event.Data)
	case domain.PayloadFields:
		return f.mapping.Apply(m.event)
	}
	return m.event.Data, nil
}

func (m *message) render(f *form, before eventstore.Revision) ([]byte, error) {
	data, err := m.data(f)
	if err != nil || f.format == domain.FormatBinary {
		return data, err
	}
	if f.format != domain.FormatStandard {
		return m.structured(f, before, data)
	}
	return m.standard(before, data)
}

// standard makes what Standard Webhooks wants (type, timestamp, data) and
// beside it what the feed has in its envelope.
func (m *message) standard(before eventstore.Revision, data jsontext.Value) ([]byte, error) {
	e := &m.event
	w := writer{b: make([]byte, 0, 256+len(data))}
	w.text(`{"type":`, e.Type)
	w.time(`,"timestamp":`, e.Time) // when it became true in the world
	w.text(`,"id":`, e.ID)
	if e.Sub != "" {
		w.text(`,"sub":`, e.Sub)
	}
	w.b = strconv.AppendInt(append(w.b, `,"sequence":`...), int64(e.Sequence), 10)
	if before != none {
		w.b = strconv.AppendInt(append(w.b, `,"previous_sequence":`...), int64(before), 10)
	}
	w.b = append(append(append(w.b, `,"data":`...), data...), '}')
	return w.b, w.err
}

// writer writes JSON by hand, because it is done for every event there is and
// data is JSON already.
type writer struct {
	b   []byte
	err error
}

func (w *writer) text(member, value string) {
	b, err := jsontext.AppendQuote(append(w.b, member...), value)
	if err != nil { // not UTF-8, which no event in the log can be
		b, w.err = append(w.b, `""`...), err
	}
	w.b = b
}

func (w *writer) time(member string, t time.Time) {
	w.b = append(append(w.b, member...), '"')
	w.b = append(t.UTC().AppendFormat(w.b, time.RFC3339Nano), '"')
}

// thinMembers are the members of data that are ids of the ledger's own. An id
// at a provider is not among them: that is personal.
var thinMembers = []string{"sub", "identityId", "webhookId", "groupId", "consentId", "scheduleId", "eventId"}

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
