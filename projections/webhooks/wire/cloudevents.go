package wire

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"

	"accountledger/domain"
	"accountledger/eventstore"
)

// Content types of the formats.
const (
	structuredType = "application/cloudevents+json; charset=utf-8"
	batchType      = "application/cloudevents-batch+json; charset=utf-8"
	jsonType       = "application/json"
)

// attribute is a context attribute of a CloudEvent.
type attribute struct{ name, value string }

// attributes returns the context attributes of the message, except
// datacontenttype: id is the public event's, source the ledger and its
// incarnation, subject and partitionkey the account, stream the event's stream,
// sequence its revision with leading zeros so that it compares as text, and
// previoussequence the one before it. dataref leads to the complete data where
// only ids are sent.
func (m *Message) attributes(f *Form, previous eventstore.Revision) []attribute {
	e := &m.Event
	all := []attribute{
		{"specversion", "1.0"}, {"id", e.ID}, {"source", f.Source + m.after("/")}, {"type", e.Type},
		{"time", e.Time.UTC().Format(time.RFC3339Nano)}, {"stream", e.Stream}, {"sequence", padded(e.Sequence)},
	}
	if e.Sub != "" {
		all = append(all, attribute{"subject", e.Sub}, attribute{"partitionkey", e.Sub})
	}
	if previous != NoSequence {
		all = append(all, attribute{"previoussequence", padded(previous)})
	}
	if e.Traceparent != "" {
		// The trace of the event's cause, not of this attempt: the body must not
		// change between attempts. The traceparent header is the attempt's.
		all = append(all, attribute{"traceparent", e.Traceparent})
	}
	if f.Payload == domain.PayloadThin {
		all = append(all, attribute{"dataref", fmt.Sprintf("%s/v1/events/%d.%d%s/data", f.PublicURL, m.Position, m.Part, m.after(""))})
	}
	return all
}

// after returns what distinguishes a name of the message's incarnation from the
// same name in incarnation 0.
func (m *Message) after(separator string) string {
	if m.Event.Incarnation == 0 {
		return ""
	}
	return separator + "~" + strconv.Itoa(m.Event.Incarnation)
}

// padded formats a sequence with enough digits for any.
func padded(sequence eventstore.Revision) string { return fmt.Sprintf("%020d", int64(sequence)) }

// structured returns the message in the JSON event format.
func (m *Message) structured(f *Form, previous eventstore.Revision, data jsontext.Value) ([]byte, error) {
	w := writer{b: make([]byte, 0, 512+len(data))}
	separator := byte('{')
	for _, a := range m.attributes(f, previous) {
		w.b = append(w.b, separator)
		w.text(`"`+a.name+`":`, a.value)
		separator = ','
	}
	w.text(`,"datacontenttype":`, jsonType)
	w.b = append(append(append(w.b, `,"data":`...), data...), '}')
	return w.b, w.err
}

// binaryHeader returns the attributes as headers, as the HTTP protocol binding
// specifies for the binary content mode (section 3.1.3).
func (m *Message) binaryHeader(f *Form, previous eventstore.Revision) http.Header {
	header := http.Header{}
	for _, a := range m.attributes(f, previous) {
		header.Set("Ce-"+a.name, encodeHeader(a.value))
	}
	return header
}

// Batch returns the contents of several requests as one, in the batched
// content mode. Its ID is derived from the IDs of the contents, so the same
// batch has the same ID when it is sent again. contents is not empty.
func Batch(contents ...Content) Content {
	all := Content{ID: contents[0].ID, Type: batchType, Body: []byte{'['}}
	if len(contents) > 1 {
		ids := make([]string, len(contents))
		for i, c := range contents {
			ids[i] = c.ID
		}
		all.ID = uuid.NewSHA1(uuid.NameSpaceURL, []byte(strings.Join(ids, " "))).String()
	}
	for i, c := range contents {
		if i > 0 {
			all.Body = append(all.Body, ',')
		}
		all.Body = append(all.Body, c.Body...)
	}
	all.Body = append(all.Body, ']')
	return all
}

// encodeHeader percent-encodes an attribute for a header: spaces, quotes,
// percent signs and everything that is not printable ASCII (HTTP protocol
// binding, section 3.1.3.2).
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
