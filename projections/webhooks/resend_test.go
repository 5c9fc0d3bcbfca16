package webhooks

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"

	"accountledger/domain"
	"accountledger/projections/webhooks/transport"
	"accountledger/projections/webhooks/wire"
)

// short is a schedule that ends soon.
var short = []time.Duration{time.Second, time.Minute}

// patch changes the settings of a webhook.
func (w *world) patch(id string, change func(*domain.WebhookSettings)) {
	w.t.Helper()
	if _, _, err := w.hooks.Update(w.t.Context(), asAdmin, id, func(before domain.Webhook) (domain.WebhookSettings, Secrets, error) {
		change(&before.WebhookSettings)
		return before.WebhookSettings, Secrets{}, nil
	}); err != nil {
		w.t.Fatal(err)
	}
}

// with creates a webhook that selects the events of accounts, with more options.
func (w *world) with(id string, change func(*domain.WebhookOptions)) {
	w.t.Helper()
	c := creation("https://" + id + ".example/hook")
	change(&c.Options)
	w.create(id, c)
}

// reports returns the types of the log's reports on a webhook's deliveries.
func (w *world) reports(id string) (types []string) {
	w.log.mu.Lock()
	defer w.log.mu.Unlock()
	for _, rec := range w.log.records {
		if domain.OfDelivery(rec.Type) && rec.Stream == domain.WebhookStream(id) {
			types = append(types, rec.Type[len("webhook.delivery-"):])
		}
	}
	return types
}

// sequences returns the sequences that a receiver got, each with the previous one.
func (r *receiver) sequences(sub string) (all []string) {
	for _, g := range r.got() {
		if g.Sub != sub {
			continue
		}
		before := "none"
		if g.PreviousSequence != nil {
			before = fmt.Sprint(*g.PreviousSequence)
		}
		all = append(all, fmt.Sprint(g.Sequence, " after ", before))
	}
	return all
}

// Row 39: with the policy block an account visibly waits at its dead letter, and
// other accounts continue. Row 115: it continues after a resend, whether the webhook
// is enabled or not, or after a change of the policy.
func TestBlock(t *testing.T) {
	t.Parallel()
	for _, release := range []string{"resend", "resend while paused", "skip"} {
		t.Run("row 39: "+release, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				refuse := true
				r := &receiver{}
				r.answer = func(g got, n int) (int, http.Header) {
					if g.Sub == "ada" && g.Sequence == 1 && refuse {
						return 422, nil
					}
					return 200, nil
				}
				w := newWorld(t, Config{Schedule: short})
				w.transport = r
				w.with("crm", func(o *domain.WebhookOptions) { o.DeadLetter = domain.DeadLetterBlock })
				w.run()
				w.account("ada")
				w.touch("ada", 2)
				w.account("bob")
				time.Sleep(time.Hour)
				w.restart() // the lane stays blocked
				w.touch("bob", 1)
				time.Sleep(100 * time.Hour)
				e := w.get("crm")
				if e.Lanes != 1 || e.Blocked != 1 || e.DeadLetters != 1 || e.Breaker.State != "closed" || r.count() != 1+3+2 {
					t.Fatalf("%d lanes, %d blocked, %d dead letters, breaker %s, %d requests; want 1, 1, 1, closed, 6", e.Lanes, e.Blocked, e.DeadLetters, e.Breaker.State, r.count())
				}
				lanes, _, err := w.hooks.Lanes(t.Context(), "crm", "", 10)
				if err != nil || len(lanes) != 1 {
					t.Fatalf("lanes %+v, %v; want one", lanes, err)
				}
				dead := w.deliveries("crm")[slices.IndexFunc(w.deliveries("crm"), func(d Delivery) bool { return d.Status == StatusDead })]
				want := Lane{Sub: "ada", Status: LaneBlocked, Sequence: 1, Position: dead.Position, EventID: dead.EventID, Attempts: 3, Error: "status"}
				if diff := cmp.Diff(want, lanes[0]); diff != "" {
					t.Errorf("lane: %s", diff)
				}
				if diff := cmp.Diff([]string{"failing.v1", "exhausted.v1"}, w.reports("crm")); diff != "" {
					t.Errorf("row 119: reports: %s", diff)
				}
				resend := func(want string) {
					t.Helper()
					d, err := w.hooks.Resend(t.Context(), "crm", dead.EventID)
					if last := d.Attempts[len(d.Attempts)-1]; err != nil || d.Status != want || last.Trigger != triggerManual {
						t.Errorf("row 115: resent: %+v, %v; want it %s by a manual attempt", d, err, want)
					}
				}
				switch release {
				case "resend while paused":
					if _, _, err := w.hooks.SetState(t.Context(), asAdmin, "crm", domain.SetWebhookState{State: domain.WebhookPaused}); err != nil {
						t.Fatal(err)
					}
					fallthrough
				case "resend":
					resend(StatusDead) // refused again
					if e := w.get("crm"); e.Blocked != 1 || e.DeadLetters != 1 {
						t.Errorf("after a refused resend: %d blocked, %d dead letters; want 1 and 1", e.Blocked, e.DeadLetters)
					}
					r.set(func(*receiver) { refuse = false })
					resend(StatusDelivered)
					if _, _, err := w.hooks.SetState(t.Context(), asAdmin, "crm", domain.SetWebhookState{State: domain.WebhookEnabled}); err != nil {
						t.Fatal(err)
					}
				case "skip":
					w.patch("crm", func(s *domain.WebhookSettings) { s.DeadLetter = "" })
				}
				w.until(func() bool { return slices.Contains(r.sequences("ada"), "2 after 1") })
				w.settled("crm")
				got := r.sequences("ada")
				if last := got[len(got)-1]; last != "2 after 1" {
					t.Errorf("ada got %v, want 2 after 1 in the end", got)
				}
				if e := w.get("crm"); e.Blocked != 0 || (e.DeadLetters != 0) != (release == "skip") {
					t.Errorf("%d blocked, %d dead letters after %s", e.Blocked, e.DeadLetters, release)
				}
				if n := map[string]int{"skip": 6 + 2}[release]; n > 0 && r.count() != n {
					t.Errorf("%d requests, want %d: the event is retried once", r.count(), n)
				} else if n == 0 && r.count() != 6+2+1 {
					t.Errorf("%d requests, want 9: a resent event is not sent again", r.count())
				}
				w.stop()
			})
		})
	}
}

// Row 115: a delivered event can be resent any number of times, with the same id,
// signed with the present key, without any effect on the webhook's health.
func TestResend(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		down := false
		r := &receiver{overlaps: true}
		r.answer = func(got, int) (int, http.Header) {
			if down {
				return 503, nil
			}
			return 200, nil
		}
		w := newWorld(t, Config{})
		w.transport = r
		w.hook("crm", "https://crm.example/hook")
		w.run()
		w.account("ada")
		w.touch("ada", 1)
		w.settled("crm")
		first := r.got()[1]
		if _, _, _, err := w.hooks.Rotate(t.Context(), asAdmin, "crm", Rotation{RotateWebhookKey: domain.RotateWebhookKey{KeyID: "new", Overlap: 0}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		w.settled("crm")
		before := w.get("crm")
		for i := range 3 {
			down = i == 2
			time.Sleep(time.Second)
			d, err := w.hooks.Resend(t.Context(), "crm", first.ID)
			if err != nil || d.Status != StatusDelivered || len(d.Attempts) != i+2 {
				t.Fatalf("row 115: resend %d: %+v, %v", i+1, d, err)
			}
			again := r.got()[2+i]
			if again.ID != first.ID || string(again.body) != string(first.body) || again.header.Get(wire.HeaderSignature) == first.header.Get(wire.HeaderSignature) {
				t.Errorf("row 115: %s with signature %s, first %s", again.body, again.header.Get(wire.HeaderSignature), first.body)
			}
		}
		after := w.get("crm")
		if diff := cmp.Diff(before, after, cmp.AllowUnexported(domain.Webhook{})); diff != "" {
			t.Errorf("row 115: the webhook's health: %s", diff)
		}
		for _, id := range []string{domain.NewID().String(), "x"} {
			if _, err := w.hooks.Resend(t.Context(), "crm", id); domain.CodeOf(err) != domain.CodeDeliveryNotFound {
				t.Errorf("resend of %s: %v, want %s", id, err, domain.CodeDeliveryNotFound)
			}
		}
		if _, err := w.hooks.Resend(t.Context(), "nobody", first.ID); domain.CodeOf(err) != domain.CodeWebhookNotFound {
			t.Errorf("resend to an unknown webhook: %v", err)
		}
		w.stop()
	})
}

// The previous sequence is that of the event which the webhook selected before,
// whatever else is in the log, and is the same at every attempt.
func TestPrevious(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		bodies := map[string]string{}
		tries := map[string]int{}
		r := &receiver{}
		r.answer = func(g got, n int) (int, http.Header) {
			g.ID += g.header.Get("Test-Host")
			if before, ok := bodies[g.ID]; ok && before != string(g.body) {
				t.Errorf("the body changed between attempts: %s, before %s", g.body, before)
			}
			bodies[g.ID] = string(g.body)
			if tries[g.ID]++; tries[g.ID] < 3 {
				return 500, nil
			}
			return 200, nil
		}
		w := newWorld(t, Config{Schedule: []time.Duration{time.Second}})
		w.config.Schedule = []time.Duration{time.Second, time.Second, time.Second}
		w.hooks.config.Schedule = w.config.Schedule
		w.transport = r
		c := creation("https://crm.example/hook")
		c.Events = []string{"USER_STATUS_CHANGED"}
		w.create("crm", c)
		w.account("ada") // 0
		status := func(s domain.Status) { w.execute("ada", domain.SetStatus{Status: s}) }
		status(domain.StatusDeclined) // 1
		w.touch("ada", 100)
		status(domain.StatusVerified) // 102
		status(domain.StatusDeclined) // 103
		w.run()
		w.settled("crm")
		time.Sleep(time.Minute)
		w.touch("ada", 3)
		status(domain.StatusVerified) // 107
		time.Sleep(time.Minute)
		w.settled("crm")
		seen := slices.Compact(r.sequences("ada"))
		if diff := cmp.Diff([]string{"1 after none", "102 after 1", "103 after 102", "107 after 103"}, seen); diff != "" {
			t.Error(diff)
		}
		// A webhook that starts later gets no earlier sequence.
		c.After, c.URL = w.head(), "https://late.example/hook"
		w.create("late", c)
		status(domain.StatusDeclined)
		w.touch("ada", 2)
		status(domain.StatusVerified)
		time.Sleep(time.Minute)
		w.settled("late")
		var late []string
		for _, g := range r.got() {
			if g.PreviousSequence == nil && g.Sequence > 1 {
				late = append(late, fmt.Sprint(g.Sequence))
			}
		}
		if diff := cmp.Diff([]string{"108"}, slices.Compact(late)); diff != "" {
			t.Errorf("without an earlier event: %s", diff)
		}
		w.stop()
	})
}

// Row 118: a test is signed and marked in every format, and nothing of it is stored.
func TestTest(t *testing.T) {
	t.Parallel()
	for _, format := range domain.Formats {
		var got []wire.Received
		var header http.Header
		secret := ""
		status := 204
		server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			if err := verify(secret, r.Header, body, time.Now()); err != nil {
				t.Errorf("row 118: %s: %v", format, err)
			}
			if got, err = wire.ReadDelivery(r.Header, body); err != nil {
				t.Errorf("row 118: %s: %v in %s", format, err, body)
			}
			header = r.Header
			rw.WriteHeader(status)
		}))
		w := newWorld(t, Config{})
		c := creation(server.URL)
		c.Format = format
		_, secret = w.create("crm", c)
		head := w.head()
		p, err := w.hooks.Test(t.Context(), "crm")
		if err != nil || !p.OK || p.Status != 204 || p.Error != "" || p.Time.IsZero() {
			t.Errorf("row 118: %s: %+v, %v", format, p, err)
		}
		if len(got) != 1 || got[0].Type != TestType || header.Get(wire.HeaderTest) != "true" {
			t.Errorf("row 118: %s: %+v with %v", format, got, header)
		}
		status = 500
		if p, err := w.hooks.Test(t.Context(), "crm"); err != nil || p.OK || p.Status != 500 || p.Error != "status" {
			t.Errorf("row 118: %s: %+v, %v; want 500", format, p, err)
		}
		server.Close()
		if p, err := w.hooks.Test(t.Context(), "crm"); err != nil || p.OK || p.Status != 0 || p.Error != "connection_refused" {
			t.Errorf("row 118: %s: %+v, %v; want %s", format, p, err, "connection_refused")
		}
		if e := w.get("crm"); len(w.deliveries("crm")) != 0 || w.head() != head || e.Breaker.State != "closed" {
			t.Errorf("row 118: %s: %d deliveries, the log at %d, breaker %s; want no trace", format, len(w.deliveries("crm")), w.head(), e.Breaker.State)
		}
	}
}

// Rows 82, 83: an endpoint that must be verified gets no delivery before it permits
// them, and then not more than the rate it allows.
func TestVerification(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		answer := http.Header{}
		status := 200
		var asked []http.Header
		r := &receiver{}
		w := newWorld(t, Config{PublicURL: "https://ledger.example/api"})
		w.transport = transportFunc(func(req *http.Request) (*http.Response, error) {
			if req.Method == http.MethodOptions {
				asked = append(asked, req.Header)
				return &http.Response{StatusCode: status, Header: answer, Body: http.NoBody, Request: req}, nil
			}
			return r.RoundTrip(req)
		})
		w.run()
		w.with("crm", func(o *domain.WebhookOptions) { o.Verification, o.RateLimit = domain.VerifyOptions, 10 })
		for i := range 300 {
			w.account(fmt.Sprint("a", i))
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(asked) != 1 || asked[0].Get(transport.HeaderRequestOrigin) != "ledger.example" || asked[0].Get("Webhook-Request-Rate") != "600" {
			t.Fatalf("row 82: asked %d times, with %v", len(asked), asked)
		}
		for _, tt := range []struct {
			status int
			origin string
		}{{200, ""}, {200, "other.example"}, {204, "example"}, {404, ""}, {405, "other.example"}, {500, "*"}} {
			status, answer = tt.status, http.Header{"Webhook-Allowed-Origin": {tt.origin}}
			p, e, err := w.hooks.Verify(t.Context(), asAdmin, "crm")
			if err != nil || p.OK || p.Status != tt.status || e.State != domain.WebhookPending {
				t.Errorf("row 82: after %d and %q: %+v, %s, %v; want %s", tt.status, tt.origin, p, e.State, err, domain.WebhookPending)
			}
		}
		if _, _, err := w.hooks.SetState(t.Context(), asAdmin, "crm", domain.SetWebhookState{State: domain.WebhookEnabled}); err != nil || w.get("crm").State != domain.WebhookPending || r.count() != 0 {
			t.Errorf("row 82: enabled by a client it is %s, %v, with %d requests", w.get("crm").State, err, r.count())
		}
		status, answer = 200, http.Header{"Webhook-Allowed-Origin": {"Ledger.Example"}, "Webhook-Allowed-Rate": {"100"}}
		p, e, err := w.hooks.Verify(t.Context(), asAdmin, "crm")
		if err != nil || !p.OK || e.State != domain.WebhookEnabled || e.Verified == nil || e.Verified.AllowedRate != 100 {
			t.Fatalf("row 82: %+v, %+v, %v; want it enabled for 100 a minute", p, e.Webhook, err)
		}
		start := time.Now()
		for minute := range 2 {
			time.Sleep(time.Until(start.Add(time.Duration(minute+1)*time.Minute - time.Millisecond)))
			if n := r.count(); n < 95*(minute+1) || n > 100*(minute+1) {
				t.Errorf("row 83: %d requests in %d minutes, want 100 a minute", n, minute+1)
			}
		}
		time.Sleep(2 * time.Minute)
		w.settled("crm")
		for _, g := range r.got() {
			if g.header.Get(transport.HeaderRequestOrigin) != "ledger.example" {
				t.Fatalf("row 83: a delivery with %v", g.header)
			}
		}
		answer = http.Header{"Webhook-Allowed-Origin": {"*"}, "Webhook-Allowed-Rate": {"*"}}
		if _, e, err := w.hooks.Verify(t.Context(), asAdmin, "crm"); err != nil || e.Verified.AllowedRate != 0 {
			t.Errorf("row 83: %+v, %v; want no bound", e.Verified, err)
		}
		// After a change of the URL, the new endpoint is asked without a request to do so.
		synctest.Wait()
		before := len(asked)
		answer = http.Header{}
		w.patch("crm", func(s *domain.WebhookSettings) { s.URL = "https://other.example/" })
		time.Sleep(time.Minute)
		synctest.Wait()
		if e := w.get("crm"); e.State != domain.WebhookPending || len(asked) != before+1 {
			t.Errorf("row 82: with a new URL it is %s, asked %d times; want %s, once", e.State, len(asked)-before, domain.WebhookPending)
		}
		w.stop()
	})
}

// Row 119: the log has one report for each time that deliveries fail, recover or
// are exhausted. Other webhooks receive it, the webhook itself does not.
func TestReports(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		fail := map[string]int{}
		var received []string
		r := &receiver{overlaps: true}
		r.answer = func(g got, n int) (int, http.Header) {
			host := g.header.Get("Test-Host")
			if status := fail[host]; status != 0 {
				return status, nil
			}
			if g.Type != "USER_CREATED" && g.Type != "USER_UPDATED" {
				received = append(received, host+" "+g.Type)
			}
			return 200, nil
		}
		set := func(host string, status int) { r.set(func(*receiver) { fail[host] = status }) }
		w := newWorld(t, Config{Schedule: short})
		w.transport = r
		for _, id := range []string{"crm", "ops"} {
			w.hook(id, "https://"+id+".example/", "USER_*", "WEBHOOK_DELIVERY_*")
		}
		w.run()
		w.account("ada")
		w.settled("crm")
		set("crm.example", 503)
		w.touch("ada", 1)
		time.Sleep(500 * time.Millisecond)
		if got := w.reports("crm"); got != nil {
			t.Errorf("row 119: after one failure: %v, want nothing", got)
		}
		time.Sleep(10 * time.Minute)
		if diff := cmp.Diff([]string{"failing.v1"}, w.reports("crm")); diff != "" {
			t.Errorf("row 119: after many failures: %s", diff)
		}
		if e := w.get("crm"); e.FailingSince.IsZero() || e.Revision != 0 {
			t.Errorf("row 119: failing since %s at revision %d; want a time and 0", e.FailingSince, e.Revision)
		}
		w.restart()
		time.Sleep(time.Hour)
		set("crm.example", 0)
		time.Sleep(time.Hour)
		if diff := cmp.Diff([]string{"failing.v1", "recovered.v1"}, w.reports("crm")); diff != "" {
			t.Errorf("row 119: after a restart and a recovery: %s", diff)
		}
		// If the receiver refuses the report of a dead letter as well, no report follows.
		set("crm.example", 422)
		set("ops.example", 422)
		w.touch("ada", 1)
		time.Sleep(100 * time.Hour)
		for _, id := range []string{"crm", "ops"} {
			exhausted := 0
			for _, report := range w.reports(id) {
				if report == "exhausted.v1" {
					exhausted++
				}
			}
			if exhausted != 1 {
				t.Errorf("row 119: %s: %v, want one report of a dead letter", id, w.reports(id))
			}
		}
		head := w.head()
		time.Sleep(100 * time.Hour)
		if w.head() != head {
			t.Errorf("row 119: the log grows from %d to %d without a command", head, w.head())
		}
		set("crm.example", 0)
		set("ops.example", 0)
		w.touch("ada", 1)
		time.Sleep(100 * time.Hour)
		r.mu.Lock()
		got := slices.Clone(received)
		r.mu.Unlock()
		want := []string{"ops.example WEBHOOK_DELIVERY_FAILING", "ops.example WEBHOOK_DELIVERY_RECOVERED"}
		if len(got) < 2 || !slices.Equal(got[:2], want) {
			t.Errorf("row 119: received %v, want %v first", got, want)
		}
		for _, g := range r.got() {
			var data struct {
				WebhookID string `json:"webhookId"`
			}
			if err := json.Unmarshal(g.Data, &data); err != nil {
				t.Fatal(err)
			}
			if data.WebhookID != "" && data.WebhookID+".example" == g.header.Get("Test-Host") {
				t.Errorf("row 119: %s receives reports on its own deliveries: %s", data.WebhookID, g.body)
			}
		}
		w.stop()
	})
}

// transportFunc is a network that returns whole responses.
type transportFunc func(*http.Request) (*http.Response, error)

func (f transportFunc) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
