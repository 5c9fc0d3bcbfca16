package webhooks

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"accountledger/domain"
	"accountledger/projections/webhooks/transport"
	"accountledger/projections/webhooks/wire"
)

// Rows 10, 11, 12, 17: the form of a request; row 11 requires that the library
// accepts the signature of the bytes as they arrived.
func TestDeliver(t *testing.T) {
	t.Parallel()
	var r receiver
	server := httptest.NewServer(&r)
	defer server.Close()
	w := newWorld(t, Config{UserAgent: "accountledger/test"})
	w.run()
	_, secret := w.hook("crm", server.URL)
	w.account("ada")
	w.touch("ada", 2)
	w.settled("crm")

	var types []string
	positions := map[string]string{}
	judge, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range r.got() {
		types = append(types, g.Type)
		if err := judge.Verify(g.body, g.header); err != nil {
			t.Errorf("the official library says %v", err)
		}
		if at := g.header.Get("webhook-timestamp"); at != strconv.FormatInt(g.time.Unix(), 10) && at != strconv.FormatInt(g.time.Unix()-1, 10) {
			t.Errorf("row 12: webhook-timestamp %s, want the time in seconds", at)
		}
		if id := g.header.Get("webhook-id"); strings.Trim(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") != "" {
			t.Errorf("row 10: webhook-id %s", id)
		}
		positions[g.ID] = g.header.Get(wire.HeaderPosition)
		if g.header.Get("webhook-id") != g.ID {
			t.Errorf("webhook-id %s is not the body's id %s", g.header.Get("webhook-id"), g.ID)
		}
		for name, want := range map[string]string{
			"Content-Type": "application/json", "User-Agent": "accountledger/test", "Content-Length": fmt.Sprint(len(g.body)),
			"Transfer-Encoding": "", "Idempotency-Key": "", "Accept-Encoding": "",
		} {
			if got := g.header.Get(name); got != want {
				t.Errorf("row 17: %s: %q, want %q", name, got, want)
			}
		}
	}
	if diff := cmp.Diff([]string{"USER_CREATED", "USER_UPDATED", "USER_UPDATED"}, types); diff != "" {
		t.Error(diff)
	}
	r.inOrder(t)
	for _, d := range w.deliveries("crm") {
		if d.Status != StatusDelivered || len(d.Attempts) != 1 || d.Attempts[0].Status != http.StatusNoContent {
			t.Errorf("delivery %+v, want one attempt with 204", d)
		}
		if positions[d.EventID] != strconv.FormatInt(int64(d.Position), 10) {
			t.Errorf("delivery %+v came with position %s", d, positions[d.EventID])
		}
	}
}

// Row 41: many accounts, slow responses in random order.
func TestI1OneInFlightPerAccount(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{delay: func() time.Duration { return rand.N(200 * time.Millisecond) }}
		w := newWorld(t, Config{})
		w.transport = r
		w.hook("crm", "https://crm.example/hook")
		w.run()
		const accounts, each = 50, 20
		for i := range accounts {
			w.account(fmt.Sprint("a", i))
		}
		for range each - 1 {
			for i := range accounts {
				w.touch(fmt.Sprint("a", i), 1)
			}
		}
		w.settled("crm")
		if n := r.count(); n != accounts*each {
			t.Errorf("%d deliveries, want %d", n, accounts*each)
		}
		r.inOrder(t)
		w.stop()
	})
}

// Row 58: no event is skipped while many goroutines append to a log in a file and
// deliveries follow it: an event gets its position when it is written.
func TestRow58NoneIsPassedOver(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	keepSecrets(t, dir)
	log, keys, err := crashLog(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	codec := domain.Codec{Keys: keys}
	ledger := domain.NewLedger(domain.LedgerConfig{Log: log, Codec: codec})
	hooks, err := Open(t.Context(), Config{Path: filepath.Join(dir, "delivery.db"), Log: log, Codec: codec, Keys: keys, Allow: loopback, Ledger: ledger})
	if err != nil {
		t.Fatal(err)
	}
	r := &receiver{}
	hooks.senders.network = func(c *transport.Config) { c.RoundTripper = r }
	w := &world{t: t, ledger: ledger, hooks: hooks}
	w.hook("crm", "https://crm.example/hook")
	w.run()
	const writers, each = 32, 20
	var writing sync.WaitGroup
	for i := range writers {
		writing.Go(func() {
			for j := range each {
				w.account(fmt.Sprintf("a%d-%d", i, j))
			}
		})
	}
	writing.Wait()
	w.until(func() bool { return r.count() >= writers*each })
	if ids := r.ids(); len(ids) != writers*each {
		t.Errorf("%d events arrived, want %d", len(ids), writers*each)
	}
	r.inOrder(t)
	w.stop()
	if err := errors.Join(log.Close(), keys.Close()); err != nil {
		t.Error(err)
	}
}

// Rows 22, 42, 43: only the account whose events are refused waits, and all its
// events arrive in order when the receiver accepts them.
func TestI2NextOnlyAfterSettled(t *testing.T) {
	t.Parallel()
	for _, status := range []int{400, 404, 405, 409, 413, 415, 422, 500, 501} {
		synctest.Test(t, func(t *testing.T) {
			refuse := true
			r := &receiver{}
			r.answer = func(g got, n int) (int, http.Header) {
				if g.Sub == "bad" && refuse {
					return status, nil
				}
				return 200, nil
			}
			w := newWorld(t, Config{})
			w.transport = r
			w.hook("crm", "https://crm.example/hook")
			w.run()
			w.account("bad")
			w.account("good")
			w.touch("bad", 3)
			w.touch("good", 3)
			time.Sleep(4 * time.Second)
			synctest.Wait()
			byAccount := map[string]int{}
			for _, g := range r.got() {
				byAccount[g.Sub]++
			}
			if diff := cmp.Diff(map[string]int{"bad": 1, "good": 4}, byAccount); diff != "" {
				t.Errorf("after %d: %s", status, diff)
			}
			if e := w.get("crm"); e.Lanes != 1 || e.Breaker.State != "closed" || e.Backlog != 0 {
				t.Errorf("after %d: %d lanes, breaker %s, backlog %d; want 1, closed, 0", status, e.Lanes, e.Breaker.State, e.Backlog)
			}
			r.set(func(*receiver) { refuse = false })
			time.Sleep(2 * time.Second)
			w.settled("crm")
			r.inOrder(t)
			if n := r.count(); n != 4+1+4 {
				t.Errorf("%d requests, want 9: one is repeated", n)
			}
			var lanes int
			w.stopDelivery()
			if err := w.hooks.store.read.QueryRow(`SELECT count(*) FROM lane`).Scan(&lanes); err != nil || lanes != 0 {
				t.Errorf("%d lanes in the file, %v; want none", lanes, err)
			}
			w.stop()
		})
	}
}

// Row 27: the schedule of an event and of an endpoint.
func TestSchedule(t *testing.T) {
	t.Parallel()
	want := []time.Duration{0, 5 * time.Second, 305 * time.Second, 2105 * time.Second, 9305 * time.Second, 7*time.Hour + 35*time.Minute + 5*time.Second,
		17*time.Hour + 35*time.Minute + 5*time.Second, 31*time.Hour + 35*time.Minute + 5*time.Second, 51*time.Hour + 35*time.Minute + 5*time.Second,
		75*time.Hour + 35*time.Minute + 5*time.Second}
	for _, status := range []int{500, 503} {
		synctest.Test(t, func(t *testing.T) {
			r := &receiver{answer: func(got, int) (int, http.Header) { return status, nil }}
			w := newWorld(t, Config{})
			w.transport = r
			w.hook("crm", "https://crm.example/hook")
			w.run()
			w.account("ada")
			start := time.Now()
			time.Sleep(91 * time.Hour)
			synctest.Wait()
			all := r.got()
			if len(all) != len(want) {
				t.Fatalf("%d requests after status %d, want %d", len(all), status, len(want))
			}
			for i, g := range all {
				if after := g.time.Sub(start); after < want[i] || after > want[i]+want[i]/5+time.Second {
					t.Errorf("attempt %d after %s, want %s and up to a fifth more", i+1, after, want[i])
				}
				if string(g.body) != string(all[0].body) || g.ID != all[0].ID {
					t.Error("the body or the id changed between attempts")
				}
				if i > 0 && (g.header.Get(wire.HeaderTimestamp) == all[0].header.Get(wire.HeaderTimestamp) || g.header.Get(wire.HeaderSignature) == all[0].header.Get(wire.HeaderSignature)) {
					t.Error("timestamp or signature did not change between attempts")
				}
			}
			w.stop()
		})
	}
}

// Row 38: after the schedule the event is a dead letter, and the account's next
// event shows the gap.
func TestDeadLetter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{}
		r.answer = func(g got, n int) (int, http.Header) {
			if g.Sequence == 1 {
				return 422, nil
			}
			return 200, nil
		}
		w := newWorld(t, Config{Schedule: []time.Duration{time.Second, time.Minute}})
		w.transport = r
		w.hook("crm", "https://crm.example/hook")
		w.run()
		w.account("ada")
		w.touch("ada", 1)
		time.Sleep(time.Hour)
		synctest.Wait()
		if e := w.get("crm"); e.DeadLetters != 1 || e.Lanes != 0 {
			t.Errorf("%d dead letters, %d lanes; want 1 and 0", e.DeadLetters, e.Lanes)
		}
		w.restart()
		w.touch("ada", 2)
		w.until(func() bool { return r.count() == 1+3+2 })
		w.settled("crm")
		var gaps []string
		for _, g := range r.got() {
			gap := "none"
			if g.PreviousSequence != nil {
				gap = fmt.Sprint(*g.PreviousSequence)
			}
			gaps = append(gaps, fmt.Sprint(g.Sequence, " ", gap))
		}
		if diff := cmp.Diff([]string{"0 none", "1 0", "1 0", "1 0", "2 1", "3 2"}, gaps); diff != "" {
			t.Error(diff)
		}
		var statuses []string
		for _, d := range w.deliveries("crm") {
			statuses = append(statuses, fmt.Sprint(d.Sequence, " ", d.Status, " ", len(d.Attempts)))
		}
		if diff := cmp.Diff([]string{"3 delivered 1", "2 delivered 1", "1 dead 3", "0 delivered 1"}, statuses); diff != "" {
			t.Error(diff)
		}
		w.stop()
	})
}

// Rows 24 to 26, 31, 37, 45: if the endpoint fails, all accounts wait, and each
// step of the schedule makes one request, however many accounts there are.
func TestEndpointDown(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		status int
		header string
		quiet  time.Duration // no request for so long
		reason string
	}{
		{"429", 429, "", 5 * time.Second, "status"},
		{"429 with Retry-After", 429, "120", 120 * time.Second, "status"},
		{"503 with a fraction", 503, "120.6", 121 * time.Second, "status"},
		{"401", 401, "", 5 * time.Second, "auth_error"},
		{"302", 302, "", 5 * time.Second, "redirect"},
		{"304", 304, "", 5 * time.Second, "redirect"},
		{"connection", 0, "", 5 * time.Second, "connection"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				down := true
				r := &receiver{}
				r.answer = func(got, int) (int, http.Header) {
					if down {
						return tt.status, http.Header{"Retry-After": {tt.header}}
					}
					return 200, nil
				}
				r.fail = func() error {
					if down && tt.status == 0 {
						return errNetwork
					}
					return nil
				}
				w := newWorld(t, Config{InFlight: 4})
				w.transport = r
				w.hook("crm", "https://crm.example/hook")
				for i := range 100 {
					w.account(fmt.Sprint("a", i))
				}
				w.run()
				time.Sleep(tt.quiet - time.Millisecond)
				synctest.Wait()
				if n := r.count(); n < 1 || n > 4 {
					t.Errorf("%d requests before %s, want those in flight at the start, 1 to 4", n, tt.quiet)
				}
				before := r.count()
				time.Sleep(tt.quiet/5 + time.Second)
				synctest.Wait()
				if n := r.count() - before; n != 1 {
					t.Errorf("%d requests at the first step, want 1", n)
				}
				if e := w.get("crm"); e.Breaker.State != "open" || e.Breaker.Reason != tt.reason || e.Breaker.Step != 2 || e.Lanes != 0 {
					t.Errorf("breaker %+v with %d lanes, want open at step 2 for %s without lanes", e.Breaker, e.Lanes, tt.reason)
				}
				r.set(func(*receiver) { down = false })
				time.Sleep(7 * time.Minute)
				w.settled("crm")
				if n := len(r.ids()); n != 100 {
					t.Errorf("%d events delivered, want 100", n)
				}
				r.inOrder(t)
				w.stop()
			})
		})
	}
}

// Row 23: a 410 disables the webhook immediately, and the cursor keeps its place.
func TestGone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		gone := true
		r := &receiver{}
		r.answer = func(g got, n int) (int, http.Header) {
			if gone && n == 3 {
				return 410, nil
			}
			return 200, nil
		}
		w := newWorld(t, Config{InFlight: 1})
		w.transport = r
		w.hook("crm", "https://crm.example/hook")
		for i := range 5 {
			w.account(fmt.Sprint("a", i))
		}
		w.run()
		w.until(func() bool { return w.get("crm").State == domain.WebhookDisabled })
		time.Sleep(100 * time.Hour)
		synctest.Wait()
		e := w.get("crm")
		if e.StateReason != "gone" || e.Position != 3 || r.count() != 3 {
			t.Errorf("disabled for %q at position %d after %d requests; want gone, 3, 3", e.StateReason, e.Position, r.count())
		}
		r.set(func(*receiver) { gone = false })
		if _, _, err := w.hooks.SetState(t.Context(), asAdmin, "crm", domain.SetWebhookState{State: domain.WebhookEnabled}); err != nil {
			t.Fatal(err)
		}
		w.settled("crm")
		if n := r.count(); n != 6 {
			t.Errorf("%d requests in all, want 6: the event that got the 410 is sent again", n)
		}
		w.stop()
	})
}

// An account with more events than the window holds and slow responses does not
// hold up other accounts.
func TestBusyAccount(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{}
		r.answer = func(g got, n int) (int, http.Header) {
			if g.Sub == "busy" {
				time.Sleep(time.Second)
			}
			return 200, nil
		}
		w := newWorld(t, Config{InFlight: 4})
		w.transport = r
		w.hook("crm", "https://crm.example/hook")
		w.account("busy")
		w.touch("busy", maxWaiting+1000)
		w.account("other")
		w.run()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if !slices.ContainsFunc(r.got(), func(g got) bool { return g.Sub == "other" }) {
			t.Errorf("after %d requests the other account still waits", r.count())
		}
		w.restart() // the lane keeps what it owes
		time.Sleep(2 * time.Hour)
		w.settled("crm")
		if n := r.count(); n != maxWaiting+1000+2 {
			t.Errorf("%d requests, want %d", n, maxWaiting+1000+2)
		}
		r.inOrder(t)
		w.stop()
	})
}
