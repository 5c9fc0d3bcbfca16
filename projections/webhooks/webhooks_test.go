package webhooks

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/eventstore/seal"
)

// Row 55: the events during a pause are sent when the webhook is resumed.
func TestPause(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{}
		w := newWorld(t, Config{})
		w.transport = r
		w.run()
		w.hook("crm", "https://crm.example/hook")
		w.account("ada")
		w.settled("crm")
		set := func(state domain.WebhookState) {
			t.Helper()
			e, at, err := w.hooks.SetState(t.Context(), asAdmin, "crm", domain.SetWebhookState{State: state})
			if err != nil || e.State != state || at != w.head() {
				t.Fatalf("SetState(%s) = %s at %d, %v", state, e.State, at, err)
			}
		}
		set(domain.WebhookPaused)
		w.touch("ada", 50)
		time.Sleep(time.Hour)
		if n := r.count(); n != 1 {
			t.Errorf("%d requests while paused, want 1 from before", n)
		}
		// The cursor may have passed the pause's own event before the pause took effect.
		if e := w.get("crm"); e.Backlog != 50 && e.Backlog != 51 {
			t.Errorf("backlog %d, want 50 events and perhaps the pause itself", e.Backlog)
		}
		set(domain.WebhookEnabled)
		w.settled("crm")
		if n := r.count(); n != 51 {
			t.Errorf("%d requests, want 51", n)
		}
		r.inOrder(t)
		w.stop()
	})
}

// Resuming a webhook makes an attempt immediately, although its breaker was open.
func TestResumeTriesAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		down := true
		r := &receiver{}
		r.answer = func(got, int) (int, http.Header) {
			if down {
				return 503, nil
			}
			return 200, nil
		}
		w := newWorld(t, Config{})
		w.transport = r
		w.run()
		w.hook("crm", "https://crm.example/hook")
		w.account("ada")
		time.Sleep(24 * time.Hour)
		w.restart() // an open breaker survives it
		time.Sleep(time.Minute)
		before := r.count()
		if e := w.get("crm"); e.Breaker.State != "open" || time.Until(e.Breaker.Until) < time.Hour {
			t.Fatalf("breaker %+v, want it open for hours", e.Breaker)
		}
		r.set(func(*receiver) { down = false })
		for _, state := range []domain.WebhookState{domain.WebhookPaused, domain.WebhookEnabled} {
			if _, _, err := w.hooks.SetState(t.Context(), asAdmin, "crm", domain.SetWebhookState{State: state}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		w.settled("crm")
		if n := r.count() - before; n != 1 {
			t.Errorf("%d requests after it was resumed, want 1", n)
		}
		w.stop()
	})
}

// Row 54: a webhook is deleted while a request is in flight.
func TestDeleteInFlight(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		answer := make(chan struct{})
		r := &receiver{answer: func(got, int) (int, http.Header) { <-answer; return 500, nil }}
		w := newWorld(t, Config{})
		w.transport = r
		w.run()
		w.hook("crm", "https://crm.example/hook")
		w.account("ada")
		w.touch("ada", 3)
		w.account("bob")
		time.Sleep(time.Second)
		if _, err := w.hooks.Delete(t.Context(), asAdmin, "crm"); err != nil {
			t.Fatal(err)
		}
		close(answer)
		w.account("eve")
		time.Sleep(100 * time.Hour)
		synctest.Wait()
		if n := r.count(); n != 2 {
			t.Errorf("%d requests, want the two that were in flight", n)
		}
		for _, table := range []string{"endpoint", "cursor", "lane", "attempt", "dead_letter"} {
			var n int
			if err := w.hooks.store.read.QueryRow(`SELECT count(*) FROM ` + table).Scan(&n); err != nil || n != 0 {
				t.Errorf("%d rows in %s, %v; want none", n, table, err)
			}
		}
		if _, err := w.keys.Secret(t.Context(), secretName("crm")); !errors.Is(err, seal.ErrNoSecret) {
			t.Errorf("the secret: %v, want ErrNoSecret", err)
		}
		if _, err := w.hooks.Get(t.Context(), "crm"); domain.CodeOf(err) != domain.CodeWebhookNotFound {
			t.Errorf("Get = %v, want CodeWebhookNotFound", err)
		}
		if _, _, err := w.hooks.Deliveries(t.Context(), "crm", DeliveryQuery{}, "", 10); domain.CodeOf(err) != domain.CodeWebhookNotFound {
			t.Errorf("Deliveries = %v, want CodeWebhookNotFound", err)
		}
		w.stop()
	})
}

// Row 53: a changed URL applies from the next attempt on.
func TestURLChangesInFlight(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		answer := make(chan struct{})
		r := &receiver{}
		r.answer = func(g got, n int) (int, http.Header) {
			if n == 1 {
				<-answer
				return 500, nil
			}
			return 200, nil
		}
		w := newWorld(t, Config{})
		w.transport = r
		w.run()
		e, _ := w.hook("crm", "https://old.example/hook")
		w.account("ada")
		w.touch("ada", 1)
		time.Sleep(time.Second)
		changed := e.Webhook
		changed.URL, changed.Revision = "https://new.example/hook", changed.Revision+1
		w.hooks.current.Load().apply(changed)
		close(answer)
		time.Sleep(10 * time.Second)
		var hosts []string
		for _, g := range r.got() {
			hosts = append(hosts, fmt.Sprint(g.header.Get("Test-Host"), " ", g.Sequence))
		}
		if diff := cmp.Diff([]string{"old.example 0", "new.example 0", "new.example 1"}, hosts); diff != "" {
			t.Error(diff)
		}
		if all := w.deliveries("crm"); len(all) != 2 || len(all[1].Attempts) != 2 || len(all[0].Attempts) != 1 {
			t.Errorf("deliveries %+v, want both attempts of the first", all)
		}
		w.stop()
	})
}

// Row 52: the cursor advances and is stored although nothing is sent.
func TestNothingSelected(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{}
		w := newWorld(t, Config{})
		w.transport = r
		w.hook("crm", "https://crm.example/hook", "USER_DELETED", "IDENTITY_*")
		w.account("ada")
		w.touch("ada", 2000)
		w.run()
		time.Sleep(5 * time.Second)
		synctest.Wait()
		var low eventstore.Position
		if err := w.hooks.store.read.QueryRow(`SELECT low FROM cursor`).Scan(&low); err != nil || low != w.head() || r.count() != 0 {
			t.Errorf("stored up to %d of %d, %v, with %d requests", low, w.head(), err, r.count())
		}
		w.stop()
	})
}

// Row 36: the receiver decides about an event and about the webhook by a header.
func TestReceiverDecides(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{}
		r.answer = func(g got, n int) (int, http.Header) {
			switch {
			case g.Sequence == 1:
				return 500, http.Header{"Webhook-Delivery": {"abort-message"}}
			case g.Sequence == 3:
				return 500, http.Header{"Webhook-Delivery": {"disable"}}
			}
			return 200, nil
		}
		w := newWorld(t, Config{})
		w.transport = r
		w.run()
		w.hook("crm", "https://crm.example/hook")
		w.account("ada")
		w.touch("ada", 3)
		time.Sleep(100 * time.Hour)
		e := w.get("crm")
		if e.State != domain.WebhookDisabled || e.StateReason != "disabled-by-receiver" || e.DeadLetters != 1 || r.count() != 4 {
			t.Errorf("%s for %q, %d dead letters, %d requests; want disabled, disabled-by-receiver, 1, 4", e.State, e.StateReason, e.DeadLetters, r.count())
		}
		var statuses []string
		for _, d := range w.deliveries("crm") {
			statuses = append(statuses, d.Status)
		}
		if diff := cmp.Diff([]string{StatusRetrying, StatusDelivered, StatusDead, StatusDelivered}, statuses); diff != "" {
			t.Error(diff)
		}
		w.stop()
	})
}

// Row 34: a webhook is disabled after days of failures alone.
func TestHopeless(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{answer: func(got, int) (int, http.Header) { return 503, nil }}
		w := newWorld(t, Config{})
		w.transport = r
		w.run()
		w.hook("crm", "https://crm.example/hook")
		w.account("ada")
		time.Sleep(4 * 24 * time.Hour)
		if e := w.get("crm"); e.State != domain.WebhookEnabled {
			t.Errorf("%s after four days, want enabled", e.State)
		}
		time.Sleep(4 * 24 * time.Hour)
		if e := w.get("crm"); e.State != domain.WebhookDisabled || e.StateReason != codeFailing {
			t.Errorf("%s for %q after eight days, want disabled, %s", e.State, e.StateReason, codeFailing)
		}
		w.stop()
	})
}

// Row 35: one failure followed by days without events does not disable a webhook.
func TestOneFailure(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{answer: func(got, int) (int, http.Header) {
			return 503, http.Header{"Webhook-Delivery": {"abort-message"}} // so it is not retried
		}}
		w := newWorld(t, Config{})
		w.transport = r
		w.run()
		w.hook("crm", "https://crm.example/hook")
		w.account("ada")
		time.Sleep(6 * 24 * time.Hour)
		if e := w.get("crm"); e.State != domain.WebhookEnabled || r.count() != 1 {
			t.Errorf("%s after %d failures and six days, want enabled after one", e.State, r.count())
		}
		w.stop()
	})
}

// Row 50: while one endpoint takes ten seconds for each request, another webhook
// gets every event immediately.
func TestSlowNeighbour(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{overlaps: true} // each webhook has a request for an account
		r.answer = func(g got, _ int) (int, http.Header) {
			if g.header.Get("Test-Host") == "slow.example" {
				time.Sleep(10 * time.Second)
			}
			return 200, nil
		}
		w := newWorld(t, Config{InFlight: 4})
		w.transport = r
		w.run()
		w.hook("slow", "https://slow.example/hook")
		w.hook("fast", "https://fast.example/hook")
		for i := range 50 {
			w.account(fmt.Sprint("a", i))
			begun := time.Now()
			w.settled("fast")
			if took := time.Since(begun); took > 100*time.Millisecond {
				t.Errorf("event %d arrived after %s", i, took)
			}
		}
		if e := w.get("slow"); e.Backlog < 40 {
			t.Errorf("the slow webhook has a backlog of only %d", e.Backlog)
		}
		w.stop()
	})
}

// Run with a context that is already done returns nil.
func TestRunEndsBeforeItBegan(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.hooks.Run(ctx); err != nil {
		t.Errorf("Run = %v, want nil", err)
	}
}
