package wire

import (
	"bytes"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"

	"accountledger/domain"
	"accountledger/eventstore"
)

func TestRender(t *testing.T) {
	t.Parallel()
	m := &Message{Event: domain.PublicEvent{ID: "id-1", Type: "USER_UPDATED", Sub: `a"b`, Stream: `account-a"b`, Sequence: 7, Time: time.Date(2026, 1, 2, 3, 4, 5, 60_000, time.FixedZone("", 3600)),
		Data: []byte(`{"sub":"a\"b","identityId":"i","providerUserId":"1095","changes":{"email":"ada@example.com"}}`)}}
	for _, tt := range []struct {
		payload  string
		previous eventstore.Revision
		want     string
	}{
		{domain.PayloadFull, NoSequence, `{"type":"USER_UPDATED","timestamp":"2026-01-02T02:04:05.00006Z","id":"id-1","sub":"a\"b","stream":"account-a\"b","sequence":7,"data":{"sub":"a\"b","identityId":"i","providerUserId":"1095","changes":{"email":"ada@example.com"}}}`},
		{domain.PayloadThin, NoSequence, `{"type":"USER_UPDATED","timestamp":"2026-01-02T02:04:05.00006Z","id":"id-1","sub":"a\"b","stream":"account-a\"b","sequence":7,"data":{"identityId":"i","sub":"a\"b"}}`},
		{domain.PayloadThin, 5, `{"type":"USER_UPDATED","timestamp":"2026-01-02T02:04:05.00006Z","id":"id-1","sub":"a\"b","stream":"account-a\"b","sequence":7,"previous_sequence":5,"data":{"identityId":"i","sub":"a\"b"}}`},
	} {
		got, err := m.render(&Form{Format: domain.FormatStandard, Payload: tt.payload}, tt.previous)
		if err != nil || string(got) != tt.want {
			t.Errorf("%s after %d:\n%s, %v, want\n%s", tt.payload, tt.previous, got, err, tt.want)
		}
	}
	a, _ := m.body(&Form{Format: domain.FormatStandard, Payload: domain.PayloadThin}, NoSequence)
	b, _ := m.body(&Form{Format: domain.FormatStandard, Payload: domain.PayloadThin}, NoSequence)
	if &a[0] != &b[0] || bytes.Contains(a, []byte("ada@example.com")) {
		t.Error("a thin body is rendered twice or has more than ids")
	}
}

const ledgerURL = "https://ledger.example"

func formOf(format, payload string) *Form {
	return &Form{Format: format, Payload: payload, Source: ledgerURL, PublicURL: ledgerURL, Mapping: domain.WebhookMapping{"customer_id": "sub", "mail": "email"}}
}

var sample = &Message{Position: 17, Part: 1, Event: domain.PublicEvent{ID: "id-1", Type: "USER_UPDATED", Sub: "s-1", Stream: "account-s-1", Sequence: 7,
	Time: time.Date(2026, 1, 2, 3, 4, 5, 60_000, time.UTC), Data: []byte(`{"sub":"s-1","fields":["email"],"changes":{"email":"ada@example.com"}}`)}}

// Rows 74, 75, 78, 84: the content of each format and payload.
func TestForms(t *testing.T) {
	t.Parallel()
	const head = `{"specversion":"1.0","id":"id-1","source":"https://ledger.example","type":"USER_UPDATED","time":"2026-01-02T03:04:05.00006Z","stream":"account-s-1","sequence":"00000000000000000007","subject":"s-1","partitionkey":"s-1",`
	const full = `{"sub":"s-1","fields":["email"],"changes":{"email":"ada@example.com"}}`
	header := http.Header{"Ce-Specversion": {"1.0"}, "Ce-Id": {"id-1"}, "Ce-Source": {ledgerURL}, "Ce-Type": {"USER_UPDATED"},
		"Ce-Time": {"2026-01-02T03:04:05.00006Z"}, "Ce-Stream": {"account-s-1"}, "Ce-Sequence": {"00000000000000000007"}, "Ce-Subject": {"s-1"}, "Ce-Partitionkey": {"s-1"}}
	thin := header.Clone()
	thin.Set("Ce-Dataref", ledgerURL+"/v1/events/17.1/data")
	for _, tt := range []struct {
		name, format, payload string
		want                  Content
	}{
		{"row 74: structured", domain.FormatEvent, domain.PayloadFull, Content{"id-1", structuredType, nil, []byte(head + `"datacontenttype":"application/json","data":` + full + `}`)}},
		{"row 84: thin", domain.FormatEvent, domain.PayloadThin, Content{"id-1", structuredType, nil,
			[]byte(head + `"dataref":"https://ledger.example/v1/events/17.1/data","datacontenttype":"application/json","data":{"sub":"s-1"}}`)}},
		{"row 75: binary", domain.FormatBinary, domain.PayloadFull, Content{"id-1", jsonType, header, []byte(full)}},
		{"row 84: binary and thin", domain.FormatBinary, domain.PayloadThin, Content{"id-1", jsonType, thin, []byte(`{"sub":"s-1"}`)}},
		{"fields", domain.FormatStandard, domain.PayloadFields, Content{"id-1", jsonType, nil,
			[]byte(`{"type":"USER_UPDATED","timestamp":"2026-01-02T03:04:05.00006Z","id":"id-1","sub":"s-1","stream":"account-s-1","sequence":7,"data":{"customer_id":"s-1","mail":"ada@example.com"}}`)}},
		{"fields, binary", domain.FormatBinary, domain.PayloadFields, Content{"id-1", jsonType, header, []byte(`{"customer_id":"s-1","mail":"ada@example.com"}`)}},
	} {
		for range 2 { // row 9, row 79: the same at every attempt
			got, err := sample.Content(formOf(tt.format, tt.payload), NoSequence)
			if diff := cmp.Diff(tt.want, got); diff != "" || err != nil {
				t.Errorf("%s: %v (-want +got):\n%s", tt.name, err, diff)
			}
		}
	}
	// CloudEvents have the traceparent of a traced event; the standard format has none.
	traced := &Message{Event: sample.Event}
	traced.Event.Traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	if got, err := traced.Content(formOf(domain.FormatBinary, domain.PayloadFull), NoSequence); err != nil || got.Header.Get("Ce-Traceparent") != traced.Event.Traceparent {
		t.Errorf("traced: %v, %v", got.Header, err)
	}
	if got, err := traced.Content(formOf(domain.FormatStandard, domain.PayloadFull), NoSequence); err != nil || bytes.Contains(got.Body, []byte("traceparent")) {
		t.Errorf("traced, standard: %s, %v", got.Body, err)
	}
	if c, err := sample.Content(formOf(domain.FormatEvent, domain.PayloadFull), 5); err != nil || !bytes.Contains(c.Body, []byte(`"previoussequence":"00000000000000000005"`)) {
		t.Errorf("the previous sequence is missing: %s, %v", c.Body, err)
	}
	if c, err := sample.Content(formOf(domain.FormatBinary, domain.PayloadFull), 5); err != nil || c.Header.Get("ce-previoussequence") == "" {
		t.Errorf("the previous sequence is missing: %v, %v", c.Header, err)
	}
}

// After a fork the source, the stream and the dataref name the incarnation: the log
// reuses positions and revisions, so none of them may be the same as before.
func TestIncarnation(t *testing.T) {
	t.Parallel()
	x := domain.Entry{ID: domain.NewID(), Stream: "account-s-1", Revision: 7, Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Event: domain.StatusChanged{To: domain.StatusVerified}}
	public, err := domain.Public(x, 2)
	if err != nil {
		t.Fatal(err)
	}
	m := &Message{Position: 17, Event: public[0]}
	c, err := m.Content(formOf(domain.FormatBinary, domain.PayloadThin), NoSequence)
	want := map[string]string{"source": ledgerURL + "/~2", "stream": "account-s-1~2", "dataref": ledgerURL + "/v1/events/17.0~2/data", "subject": "s-1", "sequence": "00000000000000000007"}
	for name, value := range want {
		if got := c.Header.Get("Ce-" + name); got != value || err != nil {
			t.Errorf("%s = %q, %v; want %q", name, got, err, value)
		}
	}
	c, err = m.Content(formOf(domain.FormatStandard, domain.PayloadThin), NoSequence)
	if !bytes.Contains(c.Body, []byte(`"stream":"account-s-1~2","sequence":7,`)) || err != nil {
		t.Errorf("%s, %v", c.Body, err)
	}
}

// Rows 76, 77: attributes in headers.
func TestHeaderEncoding(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]string{
		"Euro € 😀": "Euro%20%E2%82%AC%20%F0%9F%98%80", // row 76
		`a"b%c d`:  "a%22b%25c%20d", "\x01\x7f": "%01%7F", "plain;=~": "plain;=~", "": "",
	} {
		got := encodeHeader(value)
		back, err := decodeHeader(got)
		if got != want || back != value || err != nil {
			t.Errorf("row 77: %q: %s and back %q, %v; want %s", value, got, back, err, want)
		}
	}
	if got, err := decodeHeader("%e2%82%ac"); got != "€" || err != nil {
		t.Errorf("row 77: lower case: %q, %v", got, err)
	}
	for _, bad := range []string{"%C0%A0", "%E2%82", "%", "%zz"} {
		if got, err := decodeHeader(bad); err == nil {
			t.Errorf("row 77: %s is decoded as %q", bad, got)
		}
	}
}

// Row 81: the body is never empty, whatever data an event has.
func TestNoEmptyBody(t *testing.T) {
	t.Parallel()
	empty := &Message{Event: domain.PublicEvent{ID: "id", Type: "USER_LOGIN", Data: []byte("{}")}}
	for _, format := range domain.Formats {
		for _, payload := range []string{domain.PayloadFull, domain.PayloadThin, domain.PayloadFields} {
			if c, err := empty.Content(formOf(format, payload), NoSequence); err != nil || len(c.Body) == 0 {
				t.Errorf("row 81: %s, %s: %q, %v", format, payload, c.Body, err)
			}
		}
	}
}

// A batch is a JSON array, and its id depends only on its events.
func TestBatch(t *testing.T) {
	t.Parallel()
	c := Batch(Content{ID: "a", Body: []byte(`{"id":"a"}`)})
	if c.ID != "a" || string(c.Body) != `[{"id":"a"}]` {
		t.Errorf("a batch of one: %s %s", c.ID, c.Body)
	}
	two := []Content{{ID: "a", Body: []byte(`{"id":"a"}`)}, {ID: "b", Body: []byte(`{"id":"b"}`)}}
	first, again := Batch(two...), Batch(two...)
	var list []struct {
		ID string `json:"id"`
	}
	if err := json.Unmarshal(first.Body, &list); err != nil || len(list) != 2 || first.ID != again.ID || first.ID == "a" || strings.Contains(first.ID, ".") {
		t.Errorf("a batch of two: %s %s, %v", first.ID, first.Body, err)
	}
}

// A receiver can read every format and verify it with keys of both types.
func TestReadDelivery(t *testing.T) {
	t.Parallel()
	keys := signersOf(t, v1Secret+" "+v3Private)
	want := Received{"id-1", "USER_UPDATED", "s-1", "account-s-1", 7}
	for _, format := range domain.Formats {
		c, err := sample.Content(formOf(format, domain.PayloadFull), NoSequence)
		if err != nil {
			t.Fatal(err)
		}
		if format == domain.FormatBatch {
			c = Batch(c, c)
		}
		header := (&Envelope{URL: endpoint, Signers: keys}).Request(c, time.Now()).Header
		got, err := ReadDelivery(header, c.Body)
		if err != nil || got[0] != want || len(got) != map[bool]int{true: 2, false: 1}[format == domain.FormatBatch] {
			t.Errorf("%s: %+v, %v; want %+v", format, got, err, want)
		}
		for _, secret := range []string{v1Secret, v3Private, v3Public} {
			key := verifierOf(t, secret)
			if err := Verify([]Verifier{key}, header, c.Body, time.Now()); err != nil {
				t.Errorf("%s by %.5s: %v", format, secret, err)
			}
			if err := Verify([]Verifier{key}, header, append([]byte(" "), c.Body...), time.Now()); err == nil {
				t.Errorf("%s by %.5s: another body is accepted", format, secret)
			}
		}
	}
	for _, bad := range []string{"", "whpk_x", "whpk_" + v3Private[5:], "x"} {
		if _, err := ParseVerifier(bad); err == nil {
			t.Errorf("%q is accepted as a key", bad)
		}
	}
	for kind, body := range map[string]string{"application/cloudevents+json": `{"id":"a"}`, "application/cloudevents-batch+json": `{}`, jsonType: `[]`} {
		if got, err := ReadDelivery(http.Header{"Content-Type": {kind}}, []byte(body)); err == nil {
			t.Errorf("%s %s is read as %+v", kind, body, got)
		}
	}
}
