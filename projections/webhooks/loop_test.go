package webhooks

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"accountledger/eventstore"
)

// The cursor behaves like a plain set, also after it was stored and restored.
func TestCursor(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		low := eventstore.Position(rapid.Int64Range(0, 20_000).Draw(t, "low"))
		c := newCursor(low, nil, nil)
		model := map[eventstore.Position]bool{}
		for range rapid.IntRange(0, 200).Draw(t, "steps") {
			p := c.low + eventstore.Position(rapid.Int64Range(0, rapid.SampledFrom([]int64{3, 100, windowSize}).Draw(t, "reach")).Draw(t, "p"))
			c.set(p)
			model[p] = true
			for model[low+1] {
				low++
			}
			if rapid.IntRange(0, 20).Draw(t, "restart") == 0 {
				c = newCursor(c.low, c.done(), c.partial)
			}
		}
		settled := int64(0)
		for p := low + 1; p <= low+windowSize+1; p++ {
			if c.has(p) != model[p] {
				t.Fatalf("has(%d) = %t, want %t with low %d", p, c.has(p), model[p], low)
			}
			if model[p] {
				settled++
			}
		}
		if c.low != low || c.settled() != settled || len(c.done()) > windowSize/8 {
			t.Fatalf("low %d, %d settled in %d bytes; want %d, %d", c.low, c.settled(), len(c.done()), low, settled)
		}
	})
}

func at(p eventstore.Position, keys ...string) *delivery {
	return &delivery{event: &event{rec: eventstore.Recorded{Position: p}, keys: keys}}
}

// I9: an event of several accounts waits for the earlier events of all of them, and
// later events of all of them wait for it.
func TestI9SeveralAccounts(t *testing.T) {
	t.Parallel()
	q := queues{}
	a1, b1, ab, ba, a2, b2, c1 := at(1, "a"), at(2, "b"), at(3, "a", "b"), at(4, "b", "a"), at(5, "a"), at(6, "b"), at(7, "c")
	var ready []eventstore.Position
	for _, d := range []*delivery{a1, b1, ab, ba, a2, b2, c1} {
		if q.add(d) {
			ready = append(ready, d.rec.Position)
		}
	}
	done := func(d *delivery) (next []eventstore.Position) {
		for _, d := range q.done(d) {
			next = append(next, d.rec.Position)
		}
		return next
	}
	for _, step := range []struct {
		name      string
		got, want []eventstore.Position
	}{
		{"at first", ready, []eventstore.Position{1, 2, 7}},
		{"after a1", done(a1), nil},
		{"after b1", done(b1), []eventstore.Position{3}},
		{"after ab", done(ab), []eventstore.Position{4}},
		{"after ba", done(ba), []eventstore.Position{6, 5}},
		{"after a2", done(a2), nil},
	} {
		if diff := cmp.Diff(step.want, step.got); diff != "" {
			t.Errorf("%s: %s", step.name, diff)
		}
	}
}

// With random keys, there are never two deliveries of a key at a time, they are in
// order, and all are made.
func TestQueues(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		q, last, held := queues{}, map[string]eventstore.Position{}, map[string]bool{}
		var ready []*delivery
		n := rapid.IntRange(1, 60).Draw(t, "events")
		finished := 0
		finish := func() {
			i := rapid.IntRange(0, len(ready)-1).Draw(t, "which")
			d := ready[i]
			ready = slices.Delete(ready, i, i+1)
			for _, key := range d.keys {
				if last[key] > d.rec.Position {
					t.Fatalf("%d is made after %d of %s", d.rec.Position, last[key], key)
				}
				last[key], held[key] = d.rec.Position, false
			}
			next := q.done(d)
			for _, d := range next {
				for _, key := range d.keys {
					if held[key] {
						t.Fatalf("%d is ready while another delivery of %s is made", d.rec.Position, key)
					}
					held[key] = true
				}
			}
			ready = append(ready, next...)
			finished++
		}
		for i := range n {
			keys := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", "c", "d"}), 1, 3, rapid.ID[string]).Draw(t, "keys")
			d := at(eventstore.Position(i+1), keys...)
			if q.add(d) {
				for _, key := range keys {
					held[key] = true
				}
				ready = append(ready, d)
			}
			if len(ready) > 0 && rapid.Bool().Draw(t, "finish") {
				finish()
			}
		}
		for len(ready) > 0 {
			finish()
		}
		if finished != n || len(q) != 0 {
			t.Fatalf("%d of %d made, %d keys are left", finished, n, len(q))
		}
	})
}

// Row 28: a wait is the step plus up to a fifth, evenly distributed.
func TestJitter(t *testing.T) {
	t.Parallel()
	seen := map[time.Duration]int{}
	var low, high int
	for range 10_000 {
		d := backoff(DefaultSchedule, 1)
		if d < 5*time.Minute || d > 6*time.Minute {
			t.Fatalf("%s, want 5 to 6 minutes", d)
		}
		seen[d]++
		if d < 5*time.Minute+12*time.Second {
			low++
		}
		if d > 5*time.Minute+48*time.Second {
			high++
		}
	}
	if len(seen) < 9_990 || low < 1_700 || low > 2_300 || high < 1_700 || high > 2_300 {
		t.Errorf("%d different waits of 10,000, %d in the first fifth, %d in the last; want an even spread", len(seen), low, high)
	}
	if d := backoff(DefaultSchedule, 50); d < 24*time.Hour {
		t.Errorf("%s after the last step, want at least that step", d)
	}
}

// Row 46: slow start: 1, 2, 4, ... up to the limit.
func TestBreaker(t *testing.T) {
	t.Parallel()
	now := time.Now()
	b := breaker{limit: 16, width: 16, schedule: DefaultSchedule}
	if b.allowed(now) != 16 {
		t.Error("closed, but not all requests are allowed")
	}
	b.fail(now, "timeout", 0)
	if b.allowed(now.Add(4*time.Second)) != 0 || b.allowed(now.Add(6*time.Second)) != 1 {
		t.Error("open: want no request for 5 s and then one")
	}
	var widths []int
	for width := 1; len(widths) < 6; {
		for range width {
			b.succeed()
		}
		width = b.allowed(now)
		widths = append(widths, width)
	}
	if diff := cmp.Diff([]int{2, 4, 8, 16, 16, 16}, widths); diff != "" {
		t.Error(diff)
	}
	b.fail(now, "timeout", time.Hour)
	if b.allowed(now.Add(59*time.Minute)) != 0 {
		t.Error("a request before Retry-After")
	}
	// Row 34: disabled after five days of failures alone, not before.
	if b.fail(now.Add(4*24*time.Hour), "timeout", 0) {
		t.Error("disabled after four days")
	}
	b.succeed()
	if b.fail(now.Add(6*24*time.Hour), "timeout", 0) || !b.fail(now.Add(11*24*time.Hour), "timeout", 0) {
		t.Error("not disabled five days after the first failure in a row")
	}
}

func TestRecent(t *testing.T) {
	t.Parallel()
	var r recent
	for i := range 100 {
		r.add("one", false)
		r.add(fmt.Sprint("other", i%5), false)
	}
	if r.bad() {
		t.Error("bad with only six accounts")
	}
	for i := range 40 {
		r.add(fmt.Sprint("a", i), i%2 == 0 || i%3 == 0)
	}
	if r.bad() {
		t.Error("bad with a third failing")
	}
	for i := range 11 {
		r.add(fmt.Sprint("b", i), false)
	}
	if !r.bad() {
		t.Error("not bad with more than half of twenty failing")
	}
}

// Readers at the end of the log share opened events, readers behind it get the same
// events from the log, and the cache has a bound.
func TestCache(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{})
		w.account("ada")
		w.touch("ada", 20)
		c := newCache(w.log, 10)
		for page, err := range w.log.Subscribe(t.Context(), 10) {
			if err != nil {
				t.Fatal(err)
			}
			c.push(page)
			break
		}
		positions := func(after eventstore.Position) (all []eventstore.Position, events []*event) {
			events, err := c.next(t.Context(), after)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range events {
				all = append(all, s.rec.Position)
			}
			return all, events
		}
		for _, after := range []eventstore.Position{0, 5, 10, 15, 20} {
			all, _ := positions(after)
			for i, p := range all {
				if p != after+eventstore.Position(i)+1 {
					t.Fatalf("after %d: positions %v", after, all)
				}
			}
		}
		_, one := positions(15)
		_, two := positions(15)
		if one[0] != two[0] {
			t.Error("readers at the end do not share events")
		}
		var wait sync.WaitGroup
		wait.Go(func() {
			if all, _ := positions(21); len(all) != 1 || all[0] != 22 {
				t.Errorf("woken with %v, want 22", all)
			}
		})
		synctest.Wait()
		w.touch("ada", 1)
		c.push([]eventstore.Recorded{{Position: 22}})
		wait.Wait()
		page := make([]eventstore.Recorded, 100)
		for p := eventstore.Position(23); p < 20_000; p += 100 {
			for i := range page {
				page[i] = eventstore.Recorded{Position: p + eventstore.Position(i), Event: eventstore.Event{Clear: make([]byte, 1<<10)}}
			}
			c.push(page)
			if len(c.recent) > recentSize || c.bytes > recentBytes || c.first+eventstore.Position(len(c.recent)) != c.last {
				t.Fatalf("%d events with %d bytes in (%d, %d] held", len(c.recent), c.bytes, c.first, c.last)
			}
		}
		w.stop()
		w.keys.Close()
	})
}
