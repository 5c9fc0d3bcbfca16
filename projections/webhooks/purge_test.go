package webhooks

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"accountledger/domain"
	"accountledger/eventstore"
)

// The erasure of an account deletes the stored responses about it, and its events
// are sent without the erased data.
func TestErased(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{}
		w := newWorld(t, Config{})
		w.transport = r
		w.hook("crm", "https://crm.example/hook")
		w.account("ada")
		w.log.records[1].Sealed = nil
		w.run()
		time.Sleep(time.Second)
		w.settled("crm")
		if all := r.got(); len(all) != 1 || all[0].Type != "USER_CREATED" || strings.Contains(string(all[0].body), "example.com") {
			t.Errorf("%d requests; want one without the e-mail", len(all))
		}
		if _, err := w.hooks.store.write.Exec(`UPDATE attempt SET response = CAST('no ada@example.com here' AS BLOB)`); err != nil {
			t.Fatal(err)
		}
		if _, err := w.log.Append(t.Context(), eventstore.Commit{Writes: []eventstore.Write{{Stream: domain.AccountStream("ada"), Expected: eventstore.Any,
			Events: []eventstore.Event{{ID: [16]byte(domain.NewID()), Type: domain.TypeOf(domain.AccountErased{}), Clear: []byte(`{"meta":{"actor":{"kind":"system","id":"x"}},"data":{}}`)}}}}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		w.settled("crm")
		var n int
		if err := w.hooks.store.read.QueryRow(`SELECT count(*) FROM attempt WHERE response IS NOT NULL`).Scan(&n); err != nil || n != 0 {
			t.Errorf("%d responses left, %v", n, err)
		}
		if all := r.got(); len(all) != 2 || all[1].Type != "USER_DELETED" {
			t.Errorf("%d requests; want USER_DELETED as the second", len(all))
		}
		w.stop()
	})
}

// answers is a receiver that responds with a status and a body.
type answers func(*http.Request) (status int, body string)

func (a answers) RoundTrip(r *http.Request) (*http.Response, error) {
	status, body := a(r)
	return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
}

// The response to a request that was in flight when an account was purged is not
// stored; later responses are.
func TestErasedInFlight(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		begun, hang := make(chan struct{}, 100), make(chan struct{})
		w := newWorld(t, Config{})
		w.transport = answers(func(*http.Request) (int, string) {
			begun <- struct{}{}
			<-hang
			return 400, "no ada@example.com here"
		})
		w.hook("crm", "https://crm.example/hook")
		w.run()
		w.account("ada")
		w.account("bob")
		<-begun
		<-begun
		if err := w.hooks.Purge(t.Context(), "ada"); err != nil {
			t.Fatal(err)
		}
		close(hang)
		time.Sleep(time.Second)
		said := func(sub string) (all []string) {
			for _, d := range w.deliveries("crm") {
				for _, a := range d.Attempts {
					if d.Sub == sub {
						all = append(all, a.Response)
					}
				}
			}
			return all
		}
		if ada, bob := said("ada"), said("bob"); len(ada) != 1 || ada[0] != "" || len(bob) != 1 || bob[0] == "" {
			t.Errorf("of ada %q is stored and of bob %q, want only the response about bob", ada, bob)
		}
		time.Sleep(time.Hour) // events that are sent now were opened after the purge
		if ada := said("ada"); len(ada) < 2 || ada[0] != "" || ada[len(ada)-1] == "" {
			t.Errorf("of ada %q is stored later, want the last response", ada)
		}
		w.stop()
	})
}
