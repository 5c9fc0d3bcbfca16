package webhooks

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"accountledger/domain"
)

const ledgerURL = "https://ledger.example"

func formOf(format, payload string) *form {
	return &form{format: format, payload: payload, source: ledgerURL, public: ledgerURL, mapping: domain.WebhookMapping{"customer_id": "sub", "mail": "email"}}
}

var sample = &message{position: 17, part: 1, event: domain.PublicEvent{ID: "id-1", Type: "USER_UPDATED", Sub: "s-1", Sequence: 7,
	Time: time.Date(2026, 1, 2, 3, 4, 5, 60_000, time.UTC), Data: []byte(`{"sub":"s-1","fields":["email"],"changes":{"email":"ada@example.com"}}`)}}

// Rows 74, 75, 78, 84: what each form looks like.
func TestForms(t *testing.T) {
	t.Parallel()
	const head = `{"specversion":"1.0","id":"id-1","source":"https://ledger.example","type":"USER_UPDATED","time":"2026-01-02T03:04:05.00006Z","sequence":"00000000000000000007","subject":"s-1","partitionkey":"s-1",`
	const full = `{"sub":"s-1","fields":["email"],"changes":{"email":"ada@example.com"}}`
	header := http.Header{"Ce-Specversion": {"1.0"}, "Ce-Id": {"id-1"}, "Ce-Source": {ledgerURL}, "Ce-Type": {"USER_UPDATED"},
		"Ce-Time": {"2026-01-02T03:04:05.00006Z"}, "Ce-Sequence": {"00000000000000000007"}, "Ce-Subject": {"s-1"}, "Ce-Partitionkey": {"s-1"}}
	thin := header.Clone()
	thin.Set("Ce-Dataref", ledgerURL+"/v1/events/17.1/data")
	for _, tt := range []struct {
		name, format, payload string
		want                  content
	}{
		{"row 74: structured", domain.FormatEvent, domain.PayloadFull, content{"id-1", structuredType, nil, []byte(head + `"datacontenttype":"application/json","data":` + full + `}`)}},
		{"row 84: thin", domain.FormatEvent, domain.PayloadThin, content{"id-1", structuredType, nil,
			[]byte(head + `"dataref":"https://ledger.example/v1/events/17.1/data","datacontenttype":"application/json","data":{"sub":"s-1"}}`)}},
		{"row 75: binary", domain.FormatBinary, domain.PayloadFull, content{"id-1", jsonType, header, []byte(full)}},
		{"row 84: binary and thin", domain.FormatBinary, domain.PayloadThin, content{"id-1", jsonType, thin, []byte(`{"sub":"s-1"}`)}},
		{"fields", domain.FormatStandard, domain.PayloadFields, content{"id-1", jsonType, nil,
			[]byte(`{"type":"USER_UPDATED","timestamp":"2026-01-02T03:04:05.00006Z","id":"id-1","sub":"s-1","sequence":7,"data":{"customer_id":"s-1","mail":"ada@example.com"}}`)}},
		{"fields, binary", domain.FormatBinary, domain.PayloadFields, content{"id-1", jsonType, header, []byte(`{"customer_id":"s-1","mail":"ada@example.com"}`)}},
	} {
		for range 2 { // row 9, row 79: the same whenever it is made
			got, err := sample.content(formOf(tt.format, tt.payload), none)
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(content{})); diff != "" || err != nil {
				t.Errorf("%s: %v (-want +got):\n%s", tt.name, err, diff)
			}
		}
	}
	// What was traced says so where CloudEvents have a place for it.
	traced := &message{event: sample.event}
	traced.event.Traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	if got, err := traced.content(formOf(domain.FormatBinary, domain.PayloadFull), none); err != nil || got.header.Get("Ce-Traceparent") != traced.event.Traceparent {
		t.Errorf("traced: %v, %v", got.header, err)
	}
	if got, err := traced.content(formOf(domain.FormatStandard, domain.PayloadFull), none); err != nil || bytes.Contains(got.body, []byte("traceparent")) {
		t.Errorf("traced, standard: %s, %v", got.body, err)
	}
	if c, err := sample.content(formOf(domain.FormatEvent, domain.PayloadFull), 5); err != nil || !bytes.Contains(c.body, []byte(`"previoussequence":"00000000000000000005"`)) {
		t.Errorf("a gap is not told: %s, %v", c.body, err)
	}
	if c, err := sample.content(formOf(domain.FormatBinary, domain.PayloadFull), 5); err != nil || c.header.Get("ce-previoussequence") == "" {
		t.Errorf("a gap is not told: %v, %v", c.header, err)
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
			t.Errorf("row 77: %s is taken for %q", bad, got)
		}
	}
}

// Row 81: there is always a body, whatever is left of an event.
func TestNoEmptyBody(t *testing.T) {
	t.Parallel()
	empty := &message{event: domain.PublicEvent{ID: "id", Type: "USER_LOGIN", Data: []byte("{}")}}
	for _, format := range domain.Formats {
		for _, payload := range []string{domain.PayloadFull, domain.PayloadThin, domain.PayloadFields} {
			if c, err := empty.content(formOf(format, payload), none); err != nil || len(c.body) == 0 {
				t.Errorf("row 81: %s, %s: %q, %v", format, payload, c.body, err)
			}
		}
	}
}

// judged is a receiver built on libraries that are not ours: Standard Webhooks'
// verifier and the CloudEvents SDK. It refuses what they refuse.
type judged struct {
	t      testing.TB
	mu     sync.Mutex
	secret string
	sizes  []int // events of each request
	events []event.Event
	refuse func(events []event.Event) int // status; may be nil
}

func (j *judged) RoundTrip(r *http.Request) (*http.Response, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	status := http.StatusNoContent
	if verifier, err := standardwebhooks.NewWebhook(j.secret); err != nil {
		j.t.Error(err)
	} else if err := verifier.VerifyIgnoringTimestamp(body, r.Header); err != nil { // its clock is not the test's
		j.t.Errorf("the Standard Webhooks library says %v", err)
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	var events []event.Event
	if strings.HasPrefix(r.Header.Get("Content-Type"), "application/cloudevents-batch") {
		events, err = cehttp.NewEventsFromHTTPRequest(r)
	} else {
		var one *event.Event
		if one, err = cehttp.NewEventFromHTTPRequest(r); err == nil {
			events = []event.Event{*one}
		}
	}
	if err != nil {
		j.t.Errorf("the CloudEvents SDK says %v", err)
	}
	j.sizes = append(j.sizes, len(events))
	if j.refuse != nil {
		status = j.refuse(events)
	}
	if status < 300 {
		for _, e := range events {
			if err := e.Validate(); err != nil {
				j.t.Errorf("the CloudEvents SDK says %v", err)
			}
		}
		j.events = append(j.events, events...)
	}
	return &http.Response{StatusCode: status, Header: http.Header{}, Body: http.NoBody, Request: r}, nil
}

// The SDK accepts every form, and each account's events come in order. Row 80:
// a batch has at most one event of an account, and as many as asked for.
func TestSDKAccepts(t *testing.T) {
	t.Parallel()
	for _, format := range domain.Formats[1:] {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				j := &judged{t: t}
				w := newWorld(t, Config{PublicURL: ledgerURL})
				w.transport = j
				for i := range 10 {
					w.account(fmt.Sprint("a", i))
					w.touch(fmt.Sprint("a", i), 2)
				}
				c := creation("https://crm.example")
				c.Format, c.Payload = format, domain.PayloadThin
				if format == domain.FormatBatch {
					c.Options.BatchSize = 4
				}
				_, j.secret = w.create("crm", c)
				w.run()
				w.settled("crm")
				if len(j.events) != 30 {
					t.Errorf("%d events, want 30", len(j.events))
				}
				last := map[string]string{}
				for _, e := range j.events {
					sequence := fmt.Sprint(e.Extensions()["sequence"])
					if e.Subject() == "" || sequence <= last[e.Subject()] || e.Source() != ledgerURL || !strings.HasPrefix(fmt.Sprint(e.Extensions()["dataref"]), ledgerURL) {
						t.Errorf("row 78: after %s: %s", last[e.Subject()], e)
					}
					last[e.Subject()] = sequence
				}
				most := 0
				for _, n := range j.sizes {
					most = max(most, n)
				}
				if want := map[bool]int{true: 4, false: 1}[format == domain.FormatBatch]; most != want {
					t.Errorf("row 80: at most %d events in a request, want %d", most, want)
				}
				w.stop()
			})
		})
	}
}

// Row 80: one bad event of a batch holds up nobody but its account, and what a
// batch is too small for goes with the next.
func TestBatchRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		healed := false
		j := &judged{t: t}
		j.refuse = func(events []event.Event) int {
			seen := map[string]bool{}
			for _, e := range events {
				if seen[e.Subject()] {
					t.Errorf("two events of %s in a batch", e.Subject())
				}
				seen[e.Subject()] = true
			}
			if seen["a3"] && !healed {
				return http.StatusUnprocessableEntity
			}
			return http.StatusOK
		}
		w := newWorld(t, Config{})
		w.transport = j
		for i := range 10 {
			w.account(fmt.Sprint("a", i))
			w.touch(fmt.Sprint("a", i), 1)
		}
		c := creation("https://crm.example")
		c.Format = domain.FormatBatch
		c.Options.BatchBytes = domain.MinBatchBytes
		_, j.secret = w.create("crm", c)
		w.run()
		w.until(func() bool { e := w.get("crm"); return e.Backlog == 0 && e.Lanes == 1 })
		j.mu.Lock()
		n := len(j.events)
		healed = true
		j.mu.Unlock()
		if n != 18 {
			t.Errorf("%d events, want those of all but a3", n)
		}
		if e := w.get("crm"); e.Breaker.State != "closed" || e.DeadLetters != 0 {
			t.Errorf("endpoint %+v, want it to be well", e)
		}
		time.Sleep(time.Minute)
		w.settled("crm")
		if len(j.events) != 20 {
			t.Errorf("%d events, want 20", len(j.events))
		}
		w.stop()
	})
}

// The bytes of a batch are bounded, but for an event that is larger by itself.
func TestBatchBytes(t *testing.T) {
	t.Parallel()
	c := batched([]string{"a"}, [][]byte{[]byte(`{"id":"a"}`)})
	if c.id != "a" || string(c.body) != `[{"id":"a"}]` {
		t.Errorf("a batch of one: %s %s", c.id, c.body)
	}
	two := [][]byte{[]byte(`{"id":"a"}`), []byte(`{"id":"b"}`)}
	first, again := batched([]string{"a", "b"}, two), batched([]string{"a", "b"}, two)
	var list []struct {
		ID string `json:"id"`
	}
	if err := json.Unmarshal(first.body, &list); err != nil || len(list) != 2 || first.id != again.id || first.id == "a" || strings.Contains(first.id, ".") {
		t.Errorf("a batch of two: %s %s, %v", first.id, first.body, err)
	}
}

// What is sent in each format can be read again, and verified by keys of both
// kinds.
func TestReadDelivery(t *testing.T) {
	t.Parallel()
	keys := signersOf(t, v1Secret+" "+v3Private)
	want := Told{"id-1", "USER_UPDATED", "s-1", 7}
	for _, format := range domain.Formats {
		c, err := sample.content(formOf(format, domain.PayloadFull), none)
		if err != nil {
			t.Fatal(err)
		}
		if format == domain.FormatBatch {
			c = batched([]string{c.id, c.id}, [][]byte{c.body, c.body})
		}
		target := target{url: mustURL(t, "https://crm.example"), signers: keys, now: time.Now}
		header := target.request(t.Context(), c).Header
		got, err := ReadDelivery(header, c.body)
		if err != nil || got[0] != want || len(got) != map[bool]int{true: 2, false: 1}[format == domain.FormatBatch] {
			t.Errorf("%s: %+v, %v; want %+v", format, got, err, want)
		}
		for _, secret := range []string{v1Secret, v3Private, v3Public} {
			key, err := ParseVerifier(secret)
			if err != nil {
				t.Fatal(err)
			}
			if err := VerifyWith([]Verifier{key}, header, c.body, time.Now()); err != nil {
				t.Errorf("%s by %.5s: %v", format, secret, err)
			}
			if err := VerifyWith([]Verifier{key}, header, append([]byte(" "), c.body...), time.Now()); err == nil {
				t.Errorf("%s by %.5s: another body is taken", format, secret)
			}
		}
	}
	for _, bad := range []string{"", "whpk_x", "whpk_" + v3Private[5:], "x"} {
		if _, err := ParseVerifier(bad); err == nil {
			t.Errorf("%q is taken for a key", bad)
		}
	}
	for kind, body := range map[string]string{"application/cloudevents+json": `{"id":"a"}`, "application/cloudevents-batch+json": `{}`, jsonType: `[]`} {
		if got, err := ReadDelivery(http.Header{"Content-Type": {kind}}, []byte(body)); err == nil {
			t.Errorf("%s %s is read as %+v", kind, body, got)
		}
	}
}
