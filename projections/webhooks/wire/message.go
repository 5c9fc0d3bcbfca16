// Package wire defines the requests that webhooks receive: their bodies, their
// headers and their signatures. It sends nothing; package transport does.
//
// A request carries one public event, or a batch of them, in one of four
// formats (domain.Formats):
//
//   - standard: Standard Webhooks 1.0.0 (https://www.standardwebhooks.com)
//   - cloudevents, structured, binary or batched: CloudEvents 1.0.2
//     (https://github.com/cloudevents/spec/tree/v1.0.2)
//
// Every request is signed as Standard Webhooks specifies, whatever its format.
// The receiver's side, which verifies signatures and reads deliveries, is here
// as well, so that both sides share one definition.
package wire

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"accountledger/domain"
	"accountledger/eventstore"
)

// NoSequence is the previous sequence of a delivery that has no predecessor.
const NoSequence eventstore.Revision = -1

// Form says in which format and with which payload a webhook receives events.
type Form struct {
	Format    string                // one of domain.Formats
	Payload   string                // domain.PayloadFull, PayloadThin or PayloadFields
	Mapping   domain.WebhookMapping // of PayloadFields
	Source    string                // the source attribute of CloudEvents: the ledger in incarnation 0
	PublicURL string                // the ledger's address, without a final slash; thin CloudEvents refer to it
}

// Message is a public event as webhooks receive it. Its body is the same, byte
// for byte, at every attempt. All methods may be called concurrently.
type Message struct {
	Event     domain.PublicEvent
	Position  eventstore.Position // of the log event that it comes from
	Part      int                 // its index among the public events of that log event
	ReportsOn string              // the webhook whose deliveries the event reports on; "": it reports on none

	rendered [4]rendering // bodies that webhooks share, see Form.shared
}

// Select returns the message that a webhook with these event patterns
// receives: m itself, a copy of m under the alias that the patterns name, or
// nil if no pattern matches.
func (m *Message) Select(patterns []string) *Message {
	name := m.Event.EventName(patterns)
	switch name {
	case m.Event.Type:
		return m
	case "":
		return nil
	}
	renamed := &Message{Event: m.Event, Position: m.Position, Part: m.Part, ReportsOn: m.ReportsOn}
	renamed.Event.Type = name
	return renamed
}

// Data returns the event's data as the form's payload selects it: all of it,
// its ids alone, or the members that the mapping names.
func (m *Message) Data(f *Form) (jsontext.Value, error) {
	switch f.Payload {
	case domain.PayloadThin:
		return ids(m.Event.Data)
	case domain.PayloadFields:
		return f.Mapping.Apply(m.Event)
	}
	return m.Event.Data, nil
}

// Content is the part of a request that depends on the events it carries.
type Content struct {
	ID     string // the webhook-id header
	Type   string // the Content-Type header
	Header http.Header
	Body   []byte
}

// With returns c with more headers. A header of c keeps its value.
func (c Content) With(header http.Header) Content {
	if len(header) > 0 {
		all := header.Clone()
		for name, values := range c.Header {
			all[name] = values
		}
		c.Header = all
	}
	return c
}

// Content returns the content of a request that carries m alone. previous is
// the sequence of the stream's event that the webhook received before this one,
// so that the receiver detects a gap, or NoSequence.
func (m *Message) Content(f *Form, previous eventstore.Revision) (Content, error) {
	body, err := m.body(f, previous)
	c := Content{ID: m.Event.ID, Type: jsonType, Body: body}
	switch f.Format {
	case domain.FormatEvent:
		c.Type = structuredType
	case domain.FormatBinary:
		c.Header = m.binaryHeader(f, previous)
	}
	return c, err
}

// rendering is a body that several webhooks share. Webhooks that select the
// same events have the same previous sequence, and so the same body.
type rendering struct {
	mu       sync.Mutex
	made     bool
	previous eventstore.Revision
	body     []byte
	err      error
}

// shared returns the index in Message.rendered of the bodies in this form, or
// -1 if they are not kept: a mapping belongs to one webhook, and the binary
// format sends the event's data as it is.
func (f *Form) shared() int {
	i := slices.Index([]string{domain.PayloadFull, domain.PayloadThin}, f.Payload)
	switch {
	case i < 0 || f.Format == domain.FormatBinary:
		return -1
	case f.Format == domain.FormatStandard:
		return i
	}
	return 2 + i
}

func (m *Message) body(f *Form, previous eventstore.Revision) ([]byte, error) {
	i := f.shared()
	if i < 0 {
		return m.render(f, previous)
	}
	r := &m.rendered[i]
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case !r.made:
		r.body, r.err = m.render(f, previous)
		r.made, r.previous = true, previous
	case r.previous != previous:
		return m.render(f, previous)
	}
	return r.body, r.err
}

func (m *Message) render(f *Form, previous eventstore.Revision) ([]byte, error) {
	data, err := m.Data(f)
	if err != nil || f.Format == domain.FormatBinary {
		return data, err
	}
	if f.Format != domain.FormatStandard {
		return m.structured(f, previous, data)
	}
	return m.standard(previous, data)
}

// standard returns the members that Standard Webhooks requires (type,
// timestamp, data) and those of the event feed's envelope.
func (m *Message) standard(previous eventstore.Revision, data jsontext.Value) ([]byte, error) {
	e := &m.Event
	w := writer{b: make([]byte, 0, 256+len(data))}
	w.text(`{"type":`, e.Type)
	w.time(`,"timestamp":`, e.Time) // when the event occurred, not when it was recorded
	w.text(`,"id":`, e.ID)
	if e.Sub != "" {
		w.text(`,"sub":`, e.Sub)
	}
	w.text(`,"stream":`, e.Stream)
	w.b = strconv.AppendInt(append(w.b, `,"sequence":`...), int64(e.Sequence), 10)
	if previous != NoSequence {
		w.b = strconv.AppendInt(append(w.b, `,"previous_sequence":`...), int64(previous), 10)
	}
	w.b = append(append(append(w.b, `,"data":`...), data...), '}')
	return w.b, w.err
}

// writer appends JSON members without a marshaller: it runs for every event,
// and the data is JSON already.
type writer struct {
	b   []byte
	err error
}

func (w *writer) text(member, value string) {
	b, err := jsontext.AppendQuote(append(w.b, member...), value)
	if err != nil { // invalid UTF-8, which no event in the log has
		b, w.err = append(w.b, `""`...), err
	}
	w.b = b
}

func (w *writer) time(member string, t time.Time) {
	w.b = append(append(w.b, member...), '"')
	w.b = append(t.UTC().AppendFormat(w.b, time.RFC3339Nano), '"')
}

// thinMembers are the members of data that hold ids issued by the ledger, and those
// that say where it forked. Ids issued by an identity provider are personal data
// and are not among them.
var thinMembers = []string{"sub", "identityId", "webhookId", "groupId", "consentId", "scheduleId", "eventId", "incarnation", "fork"}

// ids returns data with only its thinMembers.
func ids(data jsontext.Value) (jsontext.Value, error) {
	var members map[string]jsontext.Value
	if err := json.Unmarshal(data, &members); err != nil {
		return nil, fmt.Errorf("wire: render ids: %T", err)
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
