package webhooks

import (
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"accountledger/domain"
)

// Row 57: the rate limit, and the burst after a pause.
func TestRateLimit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{}
		w := newWorld(t, Config{})
		w.transport = r
		for i := range 120 {
			w.account(fmt.Sprint("a", i))
		}
		c := creation("https://crm.example")
		c.Options.RateLimit, c.Options.Burst = 10, 5
		w.create("crm", c)
		w.run()
		synctest.Wait()
		if n := r.count(); n != 5 {
			t.Errorf("row 57: %d concurrent requests, want the burst of 5", n)
		}
		for second := range 10 {
			before := r.count()
			time.Sleep(time.Second)
			synctest.Wait()
			if n := r.count() - before; n < 9 || n > 11 {
				t.Errorf("row 57: %d requests in second %d, want 9 to 11", n, second)
			}
		}
		w.settled("crm")
		w.stop()
	})
}

// Row 56: with strict order there is one request at a time, in the order of the log
// over all accounts, and none after a failure until that event succeeds.
func TestStrict(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{delay: func() time.Duration { return 10 * time.Millisecond }}
		failing := true
		r.answer = func(g got, _ int) (int, http.Header) {
			if g.Sub == "a1" && g.Sequence == 1 && failing {
				return 422, nil
			}
			return 200, nil
		}
		w := newWorld(t, Config{})
		w.transport = r
		for i := range 3 {
			w.account(fmt.Sprint("a", i))
		}
		for range 2 {
			for i := range 3 {
				w.touch(fmt.Sprint("a", i), 1)
			}
		}
		c := creation("https://crm.example")
		c.Options.Order = domain.OrderStrict
		w.create("crm", c)
		w.run()
		time.Sleep(4 * time.Second)
		synctest.Wait()
		if n := r.count(); n != 5 {
			t.Errorf("row 56: %d requests, want none after the fifth, which fails", n)
		}
		if e := w.get("crm"); e.Lanes != 0 || e.Breaker.State != "open" {
			t.Errorf("row 56: %+v, want the webhook to wait", e)
		}
		r.set(func(*receiver) { failing = false })
		time.Sleep(10 * time.Second)
		w.settled("crm")
		want := []string{"a0/0", "a1/0", "a2/0", "a0/1", "a1/1", "a1/1", "a2/1", "a0/2", "a1/2", "a2/2"}
		var came []string
		for _, g := range r.got() {
			came = append(came, fmt.Sprintf("%s/%d", g.Sub, g.Sequence))
		}
		if fmt.Sprint(came) != fmt.Sprint(want) {
			t.Errorf("row 56: %v, want %v", came, want)
		}
		all := r.got()
		for i := range all[1:] {
			if gap := all[i+1].time.Sub(all[i].time); gap < 10*time.Millisecond {
				t.Errorf("row 56: requests %d and %d are %s apart, so both were in flight", i, i+1, gap)
			}
		}
		w.stop()
	})
}

// A webhook can start at the first event that was recorded at a time or later.
func TestStartingAt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{})
		var times []time.Time
		for i := range 5 {
			times = append(times, time.Now())
			w.account(fmt.Sprint("a", i))
			w.touch(fmt.Sprint("a", i), 2)
			time.Sleep(time.Minute)
		}
		for i, at := range times {
			for wait, want := range map[time.Duration]int{0: 3 * i, -time.Second: 3 * i, time.Second: 3*i + 3} {
				if got, err := w.hooks.StartingAt(t.Context(), at.Add(wait)); err != nil || int(got) != want {
					t.Errorf("%s after minute %d: %d, %v; want %d", wait, i, got, err, want)
				}
			}
		}
		w.stop()
	})
}
