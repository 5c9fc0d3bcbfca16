package webhooks

import (
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"accountledger/domain"
)

// Row 120: the metrics while deliveries succeed, while an account's events are
// refused, while the endpoint is down, and without a worker.
func TestStats(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		attempts := map[string]int{}
		var latency time.Duration
		var status, bad atomic.Int64
		status.Store(200)
		bad.Store(200)
		r := &receiver{delay: func() time.Duration { return 250 * time.Millisecond }}
		r.answer = func(g got, _ int) (int, http.Header) {
			if g.Sub == "bad" {
				return int(bad.Load()), nil
			}
			return int(status.Load()), nil
		}
		w := newWorld(t, Config{Observe: func(a Attempted) {
			mu.Lock()
			defer mu.Unlock()
			attempts[a.WebhookID+" "+a.Outcome]++
			if a.Outcome == OutcomeDelivered && a.Scheduled {
				latency = max(latency, a.Age)
			}
			if a.Duration < 250*time.Millisecond {
				t.Errorf("an attempt took %s, want at least the 250ms of the receiver", a.Duration)
			}
		}})
		w.transport = r
		w.hook("crm", "https://crm.example/hook")
		look := func(want Stats) {
			t.Helper()
			all, err := w.hooks.Stats(t.Context())
			if err != nil || len(all) != 1 {
				t.Fatalf("Stats = %v, %v", all, err)
			}
			if diff := cmp.Diff(want, all[0]); diff != "" {
				t.Errorf("stats (-want +got):\n%s", diff)
			}
		}
		w.account("ada")
		w.touch("ada", 2)
		look(Stats{WebhookID: "crm", State: domain.WebhookEnabled, Backlog: 4, Oldest: 1}) // no worker yet
		w.run()
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		look(Stats{WebhookID: "crm", State: domain.WebhookEnabled, Backlog: 3, Oldest: 2, InFlight: 1, Duplicates: 1})
		w.settled("crm")
		time.Sleep(2 * time.Second) // stored
		look(Stats{WebhookID: "crm", State: domain.WebhookEnabled})
		if latency < 750*time.Millisecond || latency > 2*time.Second || attempts["crm delivered"] != 3 {
			t.Errorf("latency %s after %v, want that of three consecutive requests", latency, attempts)
		}

		bad.Store(400)
		w.account("bad")
		first := w.head()
		w.touch("ada", 1)
		time.Sleep(2 * time.Second)
		look(Stats{WebhookID: "crm", State: domain.WebhookEnabled, Lanes: 1, Oldest: first})

		status.Store(503)
		w.touch("ada", 1)
		time.Sleep(2 * time.Second)
		look(Stats{WebhookID: "crm", State: domain.WebhookEnabled, Lanes: 1, Oldest: first, Backlog: 1, BreakerOpen: true})
		if diff := cmp.Diff(map[string]int{"crm delivered": 4, "crm refused": 1, "crm unavailable": 1}, attempts); diff != "" {
			t.Errorf("attempts (-want +got):\n%s", diff)
		}

		// Without a worker, the stats come from delivery.db.
		w.stopDelivery()
		look(Stats{WebhookID: "crm", State: domain.WebhookEnabled, Lanes: 1, Oldest: first, Backlog: 1, BreakerOpen: true})

		// An event becomes a dead letter when its schedule ends, which the outage
		// delays.
		w.run()
		time.Sleep(100 * time.Hour)
		status.Store(200)
		time.Sleep(24 * time.Hour)
		for range 200 {
			time.Sleep(time.Hour)
			if w.get("crm").DeadLetters > 0 {
				break
			}
		}
		all, err := w.hooks.Stats(t.Context())
		if err != nil || all[0].DeadLetters != 1 || all[0].BreakerOpen {
			t.Errorf("Stats = %+v, %v; want one dead letter", all, err)
		}
		w.stop()
	})
}

// A resend counts as an attempt but not for the latency.
func TestAttemptedByHand(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var observed []Attempted
		w := newWorld(t, Config{Observe: func(a Attempted) { mu.Lock(); observed = append(observed, a); mu.Unlock() }})
		w.transport = &receiver{}
		w.hook("crm", "https://crm.example/hook")
		w.run()
		w.account("ada")
		w.settled("crm")
		id := w.deliveries("crm")[0].EventID
		if _, err := w.hooks.Resend(t.Context(), "crm", id); err != nil {
			t.Fatal(err)
		}
		if len(observed) != 2 || !observed[0].Scheduled || observed[1].Scheduled || observed[1].Outcome != OutcomeDelivered {
			t.Errorf("observed %+v, want a scheduled attempt and a resend", observed)
		}
		w.stop()
	})
}
