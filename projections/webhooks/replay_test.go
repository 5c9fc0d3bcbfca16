package webhooks

import (
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"accountledger/domain"
	"accountledger/projections/webhooks/wire"
)

// ended waits until a replay has ended.
func (w *world) ended(id, replayID string) (r Replay) {
	w.t.Helper()
	w.until(func() bool {
		var err error
		if r, err = w.hooks.Replay(w.t.Context(), id, replayID); err != nil {
			w.t.Fatal(err)
		}
		return r.State != ReplayRunning
	})
	return r
}

func (w *world) replay(id, replayID string, f ReplayFilter) {
	w.t.Helper()
	if _, err := w.hooks.StartReplay(w.t.Context(), id, replayID, f); err != nil {
		w.t.Fatal(err)
	}
}

// Row 116: events that failed since a time are sent once more, in the order of each
// account, and dead letters that arrive are removed.
func TestRecover(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		refuse := map[string]bool{"ada": true, "bob": true}
		r := &receiver{overlaps: true}
		r.answer = func(g got, n int) (int, http.Header) {
			if refuse[g.Sub] {
				return 422, nil
			}
			return 200, nil
		}
		w := newWorld(t, Config{Schedule: short})
		w.transport = r
		w.hook("crm", "https://crm.example/hook")
		w.run()
		w.account("old")
		w.settled("crm")
		r.set(func(*receiver) { refuse["old"] = true })
		w.touch("old", 1)
		time.Sleep(time.Hour)
		since := time.Now()
		for _, sub := range []string{"ada", "bob", "eve"} {
			w.account(sub)
			w.touch(sub, 2)
		}
		time.Sleep(time.Hour)
		r.set(func(*receiver) { refuse["ada"], refuse["old"] = false, false })
		if e := w.get("crm"); e.DeadLetters != 7 {
			t.Fatalf("%d dead letters, want 7", e.DeadLetters)
		}
		before := r.count()
		w.replay("crm", "r", ReplayFilter{Since: since, Recover: true})
		job := w.ended("crm", "r")
		if job.State != ReplayDone || job.Delivered != 3 || job.Failed != 3 {
			t.Errorf("row 116: %+v, want 3 delivered and 3 failed", job)
		}
		var ada, bob []int64
		for _, g := range r.got()[before:] {
			switch {
			case g.header.Get(wire.HeaderReplay) != "r":
				t.Errorf("row 116: the replay header is missing: %v", g.header)
			case g.Sub == "ada":
				ada = append(ada, int64(g.Sequence))
			case g.Sub == "bob":
				bob = append(bob, int64(g.Sequence))
			default:
				t.Errorf("row 116: sent again: %s %d", g.Sub, g.Sequence)
			}
		}
		for _, got := range [][]int64{ada, bob} {
			if diff := cmp.Diff([]int64{0, 1, 2}, got); diff != "" {
				t.Errorf("row 116: want each once and in order: %s", diff)
			}
		}
		if e := w.get("crm"); e.DeadLetters != 4 || e.Breaker.State != "closed" {
			t.Errorf("row 116: %d dead letters, breaker %s; want 4, closed", e.DeadLetters, e.Breaker.State)
		}
		w.stop()
	})
}

// An account that waits for its next attempt continues as soon as a replay has
// delivered the event.
func TestRecoverLane(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		refuse := true
		r := &receiver{}
		r.answer = func(g got, n int) (int, http.Header) {
			if refuse && g.Sub == "ada" {
				return 500, nil
			}
			return 200, nil
		}
		w := newWorld(t, Config{})
		w.transport = r
		w.hook("crm", "https://crm.example/hook")
		w.run()
		w.account("ada")
		w.touch("ada", 3)
		time.Sleep(10 * time.Hour)
		r.set(func(*receiver) { refuse = false })
		before := r.count()
		w.replay("crm", "r", ReplayFilter{Since: time.Now().Add(-24 * time.Hour), Recover: true})
		w.ended("crm", "r")
		w.settled("crm")
		if n := r.count() - before; n != 4 {
			t.Errorf("row 116: %d requests, want 4: the failed event and those behind it", n)
		}
		r.inOrder(t)
		w.stop()
	})
}

// A replay sends the selected events with one attempt each, to disabled webhooks as
// well. Events that arrived are not missing.
func TestReplay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		down := false
		r := &receiver{overlaps: true}
		r.answer = func(g got, n int) (int, http.Header) {
			if down && g.Sequence == 1 {
				return 503, nil
			}
			return 200, nil
		}
		w := newWorld(t, Config{Schedule: short})
		w.transport = r
		w.hook("crm", "https://crm.example/hook")
		w.run()
		for i := range 10 {
			w.account(fmt.Sprint("a", i))
		}
		middle := time.Now().Add(time.Minute)
		time.Sleep(2 * time.Minute)
		for i := range 10 {
			w.touch(fmt.Sprint("a", i), 2)
		}
		w.settled("crm")
		for i, tt := range []struct {
			name         string
			filter       ReplayFilter
			sent, failed int64
			down         bool
		}{
			{"all", ReplayFilter{}, 30, 0, false},
			{"positions", ReplayFilter{After: 6, UpTo: 9}, 3, 0, false},
			{"since", ReplayFilter{Since: middle}, 20, 0, false},
			{"until", ReplayFilter{Until: middle}, 10, 0, false},
			{"types", ReplayFilter{Events: []string{"USER_CREATED"}}, 10, 0, false},
			{"other types", ReplayFilter{Events: []string{"GROUP_*"}}, 0, 0, false},
			{"account", ReplayFilter{Sub: "a3"}, 3, 0, false},
			{"missing", ReplayFilter{Missing: true}, 0, 0, false},
			{"one attempt each", ReplayFilter{}, 20, 10, true},
		} {
			for _, state := range []domain.WebhookState{domain.WebhookEnabled, domain.WebhookDisabled} {
				if _, _, err := w.hooks.SetState(t.Context(), asAdmin, "crm", domain.SetWebhookState{State: state}); err != nil {
					t.Fatal(err)
				}
				down = tt.down
				time.Sleep(time.Minute)
				before, requests, id := w.get("crm"), r.count(), fmt.Sprint("r", i, state)
				w.replay("crm", id, tt.filter)
				job := w.ended("crm", id)
				if job.State != ReplayDone || job.Delivered != tt.sent || job.Failed != tt.failed || job.EndedTime.IsZero() {
					t.Errorf("%s, %s: %+v, want %d delivered and %d failed", tt.name, state, job, tt.sent, tt.failed)
				}
				if n := r.count() - requests; n != int(tt.sent+tt.failed) {
					t.Errorf("%s, %s: %d requests, want %d", tt.name, state, n, tt.sent+tt.failed)
				}
				if diff := cmp.Diff(before, w.get("crm"), cmp.AllowUnexported(domain.Webhook{})); diff != "" {
					t.Errorf("%s, %s: health: %s", tt.name, state, diff)
				}
			}
		}
		last := map[string]int64{}
		for _, g := range r.got()[30:60] { // all, the first time
			if before, ok := last[g.Sub]; ok && int64(g.Sequence) <= before {
				t.Errorf("%s: %d after %d", g.Sub, g.Sequence, before)
			}
			last[g.Sub] = int64(g.Sequence)
		}
		for name, f := range map[string]ReplayFilter{"after": {After: 1000}, "upTo": {UpTo: 1000}, "events": {Events: []string{"NOBODY"}}} {
			if _, err := w.hooks.StartReplay(t.Context(), "crm", name, f); domain.CodeOf(err) != domain.CodeInvalidRequest {
				t.Errorf("%s: %v, want %s", name, err, domain.CodeInvalidRequest)
			}
		}
		w.stop()
	})
}

// Events that never arrived and are not retried are missing.
func TestReplayMissing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		refuse := true
		r := &receiver{overlaps: true}
		r.answer = func(g got, n int) (int, http.Header) {
			if refuse && g.Sub == "ada" {
				return 422, nil
			}
			return 200, nil
		}
		w := newWorld(t, Config{Schedule: short})
		w.transport = r
		w.hook("crm", "https://crm.example/hook")
		w.run()
		w.account("ada")
		w.account("bob")
		time.Sleep(time.Hour)
		w.touch("ada", 1) // in its lane when the replay starts
		time.Sleep(2 * time.Second)
		r.set(func(*receiver) { refuse = false })
		w.replay("crm", "r", ReplayFilter{Missing: true})
		if job := w.ended("crm", "r"); job.Delivered != 1 || w.get("crm").DeadLetters != 0 {
			t.Errorf("%+v, %d dead letters; want the dead letter to arrive", job, w.get("crm").DeadLetters)
		}
		time.Sleep(2 * time.Minute)
		w.settled("crm")
		w.stop()
	})
}

// Row 117: a large replay yields to regular deliveries, can be cancelled, and
// continues after a restart.
func TestReplayYields(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const accounts, each = 100, 20
		r := &receiver{overlaps: true, delay: func() time.Duration { return 20 * time.Millisecond }}
		w := newWorld(t, Config{InFlight: 8})
		w.transport = r
		w.hook("crm", "https://crm.example/hook")
		for i := range accounts {
			w.account(fmt.Sprint("a", i))
			w.touch(fmt.Sprint("a", i), each-1)
		}
		w.run()
		w.settled("crm")
		latency := func(n int) (worst time.Duration) {
			t.Helper()
			for i := range n {
				begun, before := time.Now(), w.head()
				w.touch(fmt.Sprint("a", i), 1)
				w.until(func() bool { return w.get("crm").Position > before })
				worst = max(worst, time.Since(begun))
			}
			return worst
		}
		alone := latency(20)
		w.replay("crm", "r", ReplayFilter{})
		if _, err := w.hooks.StartReplay(t.Context(), "crm", "other", ReplayFilter{}); domain.CodeOf(err) != domain.CodeReplayRunning {
			t.Errorf("a second replay: %v, want %s", err, domain.CodeReplayRunning)
		}
		if again, err := w.hooks.StartReplay(t.Context(), "crm", "r", ReplayFilter{}); err != nil || again.State != ReplayRunning {
			t.Errorf("the same replay repeated: %+v, %v", again, err)
		}
		if _, err := w.hooks.StartReplay(t.Context(), "crm", "r", ReplayFilter{Missing: true}); domain.CodeOf(err) != domain.CodeIdempotencyKeyReused {
			t.Errorf("another replay under its id: %v, want %s", err, domain.CodeIdempotencyKeyReused)
		}
		if beside := latency(20); beside > alone+50*time.Millisecond {
			t.Errorf("row 117: regular deliveries take %s during a replay, %s without one", beside, alone)
		}
		w.restart()
		time.Sleep(time.Second)
		job, err := w.hooks.Replay(t.Context(), "crm", "r")
		if err != nil || job.State != ReplayRunning || job.Position == 0 {
			t.Fatalf("row 117: after a restart: %+v, %v; want it to continue", job, err)
		}
		if job, err = w.hooks.CancelReplay(t.Context(), "crm", "r"); err != nil || job.State != ReplayCancelled {
			t.Errorf("row 117: cancelled: %+v, %v", job, err)
		}
		time.Sleep(time.Second)
		n := r.count()
		time.Sleep(time.Minute)
		if r.count() != n {
			t.Errorf("row 117: %d requests after it was cancelled", r.count()-n)
		}
		w.replay("crm", "s", ReplayFilter{UpTo: 500})
		before := r.count()
		for range 5 {
			time.Sleep(300 * time.Millisecond)
			w.restart()
		}
		job = w.ended("crm", "s")
		ids := map[string]int{}
		for _, g := range r.got()[before:] {
			if g.header.Get(wire.HeaderReplay) == "s" {
				ids[g.ID]++
			}
		}
		if most := 5 * (replayStep + 2); len(ids) < 450 || r.count()-before > 500+most {
			t.Errorf("row 117: %d events in %d requests, want 499 and at most %d more", len(ids), r.count()-before, most)
		}
		if all, err := w.hooks.Replays(t.Context(), "crm"); err != nil || len(all) != 2 || all[0].ReplayID != "s" {
			t.Errorf("replays %+v, %v; want two, the newest first", all, err)
		}
		if _, err := w.hooks.Replay(t.Context(), "crm", "none"); domain.CodeOf(err) != domain.CodeReplayNotFound {
			t.Errorf("an unknown replay: %v", err)
		}
		w.stop()
	})
}
