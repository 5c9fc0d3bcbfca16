package webhooks

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"

	"accountledger/domain"
	"accountledger/eventstore"
)

// CloudEvents 1.0.2 (https://github.com/cloudevents/spec/tree/v1.0.2): an
// event's id is the public event's, its source the ledger, its subject and
// partitionkey the account, its sequence the account's revision with zeroes in
// front, so that it can be compared as text; previoussequence likewise that of
// the account's event before it. The extension for distributed tracing is there
// where the request that caused the event was traced. Where only ids are sent,
// dataref is where all data can be got from.
const (
	structuredType = "application/cloudevents+json; charset=utf-8"
	batchType      = "application/cloudevents-batch+json; charset=utf-8"
	jsonType       = "application/json"
)

// attribute is one of a CloudEvent's, by its name on the wire.
type attribute struct{ name, value string }

// attributes are those of a message, except its content type.
func (m *message) attributes(f *form, before eventstore.Revision) []attribute {
	e := &m.event
	all := []attribute{
		{"specversion", "1.0"}, {"id", e.ID}, {"source", f.source}, {"type", e.Type},
		{"time", e.Time.UTC().Format(time.RFC3339Nano)}, {"sequence", padded(e.Sequence)},
	}
	if e.Sub != "" {
		all = append(all, attribute{"subject", e.Sub}, attribute{"partitionkey", e.Sub})
	}
	if before != none {
		all = append(all, attribute{"previoussequence", padded(before)})
	}
	if e.Traceparent != "" {
		// Where the event began, and not this attempt: the same each time.
		all = append(all, attribute{"traceparent", e.Traceparent})
	}
	if f.payload == domain.PayloadThin {
		all = append(all, attribute{"dataref", fmt.Sprintf("%s/v1/events/%d.%d/data", f.public, m.position, m.part)})
	}
	return all
}

// padded is a sequence with as many digits as any has.
func padded(sequence eventstore.Revision) string { return fmt.Sprintf("%020d", int64(sequence)) }

// structured is the message as one JSON object.
func (m *message) structured(f *form, before eventstore.Revision, data jsontext.Value) ([]byte, error) {
	w := writer{b: make([]byte, 0, 512+len(data))}
	separator := byte('{')
	for _, a := range m.attributes(f, before) {
		w.b = append(w.b, separator)
		w.text(`"`+a.name+`":`, a.value)
		separator = ','
	}
	w.text(`,"datacontenttype":`, jsonType)
	w.b = append(append(append(w.b, `,"data":`...), data...), '}')
	return w.b, w.err
}

// content is what one request carries.
type content struct {
	id     string // webhook-id
	kind   string // Content-Type
	header http.Header
	body   []byte
}

// with is c with further headers.
func (c content) with(header http.Header) content {
	if len(header) > 0 {
		more := header.Clone()
		maps.Copy(more, c.header)
		c.header = more
	}
	return c
}

// content is the message as a request of its own.
func (m *message) content(f *form, before eventstore.Revision) (content, error) {
	body, err := m.body(f, before)
	c := content{id: m.event.ID, kind: jsonType, body: body}
	switch f.format {
	case domain.FormatEvent:
		c.kind = structuredType
	case domain.FormatBinary:
		c.header = http.Header{}
		for _, a := range m.attributes(f, before) {
			c.header.Set("Ce-"+a.name, encodeHeader(a.value))
		}
	}
	return c, err
}

// batched is several messages' bodies as one request. Its id follows from
// those of its events, so that the same batch sent again has the same.
func batched(events []string, bodies [][]byte) content {
	c := content{id: events[0], kind: batchType, body: []byte{'['}}
	if len(events) > 1 {
		c.id = uuid.NewSHA1(uuid.NameSpaceURL, []byte(strings.Join(events, " "))).String()
	}
	for i, body := range bodies {
		if i > 0 {
			c.body = append(c.body, ',')
		}
		c.body = append(c.body, body...)
	}
	c.body = append(c.body, ']')
	return c
}

// encodeHeader is a value as the HTTP binding, section 3.1.3.2, wants it in a
// header: what is not printable ASCII, spaces, quotes and percent signs are
// percent-encoded.
func encodeHeader(value string) string {
	if !strings.ContainsFunc(value, func(c rune) bool { return c <= ' ' || c >= 0x7f || c == '"' || c == '%' }) {
		return value
	}
	var b strings.Builder
	for i := range len(value) {
		if c := value[i]; c <= ' ' || c >= 0x7f || c == '"' || c == '%' {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

var errHeader = errors.New("webhooks: a header is not encoded as CloudEvents say")

// decodeHeader is what encodeHeader has encoded, or another sender: lower-case
// digits are fine, what is not UTF-8 is not.
func decodeHeader(value string) (string, error) {
	if !strings.Contains(value, "%") {
		return value, nil
	}
	decoded, err := url.PathUnescape(value)
	if err != nil || !utf8.ValidString(decoded) {
		return "", errHeader
	}
	return decoded, nil
}

// Told is what a receiver learns of an event besides its data.
type Told struct {
	ID, Type, Sub string
	Sequence      eventstore.Revision
}

// ReadDelivery reads what a delivery in any format tells: one event, or those
// of a batch.
func ReadDelivery(header http.Header, body []byte) ([]Told, error) {
	kind, _, _ := strings.Cut(header.Get("Content-Type"), ";")
	switch {
	case kind == "application/cloudevents-batch+json":
		var batch []cloudEvent
		if err := json.Unmarshal(body, &batch); err != nil {
			return nil, errNoEvent
		}
		all := make([]Told, len(batch))
		for i, e := range batch {
			var err error
			if all[i], err = e.told(); err != nil {
				return nil, err
			}
		}
		return all, nil
	case kind == "application/cloudevents+json":
		var e cloudEvent
		if err := json.Unmarshal(body, &e); err != nil {
			return nil, errNoEvent
		}
		told, err := e.told()
		return []Told{told}, err
	case header.Get("ce-specversion") != "":
		var e cloudEvent
		for name, to := range map[string]*string{"id": &e.ID, "type": &e.Type, "subject": &e.Subject, "sequence": &e.Sequence} {
			var err error
			if *to, err = decodeHeader(header.Get("ce-" + name)); err != nil {
				return nil, err
			}
		}
		told, err := e.told()
		return []Told{told}, err
	}
	var e struct {
		ID       string              `json:"id"`
		Type     string              `json:"type"`
		Sub      string              `json:"sub"`
		Sequence eventstore.Revision `json:"sequence"`
	}
	if err := json.Unmarshal(body, &e); err != nil {
		return nil, errNoEvent
	}
	if e.ID == "" {
		e.ID = header.Get(HeaderID)
	}
	return []Told{{e.ID, e.Type, e.Sub, e.Sequence}}, nil
}

var errNoEvent = errors.New("the body is not an event")

// cloudEvent is what is read of one.
type cloudEvent struct {
	ID       string `json:"id"`
	Type     string `json:"type"`
	Subject  string `json:"subject"`
	Sequence string `json:"sequence"`
}

func (e cloudEvent) told() (Told, error) {
	n, err := strconv.ParseInt(e.Sequence, 10, 64)
	if err != nil || e.ID == "" {
		return Told{}, errNoEvent
	}
	return Told{e.ID, e.Type, e.Subject, eventstore.Revision(n)}, nil
}
