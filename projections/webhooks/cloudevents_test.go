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

	cloudevent "github.com/cloudevents/sdk-go/v2/event"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"accountledger/domain"
)

const ledgerURL = "https://ledger.example"

// judged is a receiver built on the verifier of Standard Webhooks and the
// CloudEvents SDK. It fails the test for a request that they reject.
type judged struct {
	t      testing.TB
	mu     sync.Mutex
	secret string
	sizes  []int // events of each request
	events []cloudevent.Event
	refuse func(events []cloudevent.Event) int // status; may be nil
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
	var events []cloudevent.Event
	if strings.HasPrefix(r.Header.Get("Content-Type"), "application/cloudevents-batch") {
		events, err = cehttp.NewEventsFromHTTPRequest(r)
	} else {
		var one *cloudevent.Event
		if one, err = cehttp.NewEventFromHTTPRequest(r); err == nil {
			events = []cloudevent.Event{*one}
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

// The SDK accepts every CloudEvents format, and each account's events arrive in
// order. Row 80: a batch has at most one event per account, and as many events as
// configured.
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

// Row 80: a refused event in a batch holds up only its account, and events that do
// not fit into a batch are sent in the next one.
func TestBatchRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		healed := false
		j := &judged{t: t}
		j.refuse = func(events []cloudevent.Event) int {
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
			t.Errorf("webhook %+v, want a closed breaker and no dead letters", e)
		}
		time.Sleep(time.Minute)
		w.settled("crm")
		if len(j.events) != 20 {
			t.Errorf("%d events, want 20", len(j.events))
		}
		w.stop()
	})
}
