package scheduler

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/eventstore/seal"
	"accountledger/eventstore/sqlite"
	"accountledger/eventstore/tlog"
	"accountledger/projections"
)

// clock is a clock that the test moves.
type clock struct {
	mu     sync.Mutex
	now    time.Time
	ticked chan time.Time // closed, and replaced, at each move
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) After(time.Duration) <-chan time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ticked
}

func (c *clock) move(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
	close(c.ticked)
	c.ticked = make(chan time.Time)
}

// world is a ledger with real files that can be closed and reopened.
type world struct {
	dir    string
	master seal.Master
	signer note.Signer
	clock  *clock
}

func newWorld(t testing.TB) *world {
	key, _, err := tlog.GenerateKey("accountledger/test")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(key)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	return &world{t.TempDir(), seal.NewMaster(), signer, &clock{now: start, ticked: make(chan time.Time)}}
}

type running struct {
	*domain.Ledger
	log   *sqlite.Store
	views *projections.Views
	close func()
}

// open opens the ledger and runs a number of schedulers, each with its own
// domain.Ledger on the same log.
func (w *world) open(t testing.TB, schedulers int) running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	keys, err := seal.Open(ctx, seal.Config{Path: filepath.Join(w.dir, "keys.db"), Master: w.master})
	if err != nil {
		t.Fatal(err)
	}
	log, err := sqlite.Open(ctx, sqlite.Config{Dir: w.dir, Signer: w.signer, Vouch: keys.Vouch, Now: w.clock.Now})
	if err != nil {
		t.Fatal(err)
	}
	codec := domain.Codec{Keys: keys}
	views, err := projections.Open(ctx, projections.Config{Path: filepath.Join(w.dir, "views.db"), Log: log, Codec: codec})
	if err != nil {
		t.Fatal(err)
	}
	ledger := func() *domain.Ledger {
		return domain.NewLedger(domain.LedgerConfig{Log: log, Codec: codec, Now: w.clock.Now})
	}
	var loops sync.WaitGroup
	loops.Go(func() { views.Run(ctx) })
	for range schedulers {
		s := New(Config{Ledger: ledger(), Views: views, Now: w.clock.Now, After: w.clock.After})
		loops.Go(func() {
			if err := s.Run(ctx); err != nil {
				t.Errorf("Run = %v", err)
			}
		})
	}
	r := running{ledger(), log, views, sync.OnceFunc(func() {
		cancel()
		loops.Wait()
		views.Close()
		log.Close()
		keys.Close()
	})}
	t.Cleanup(r.close)
	return r
}

func (r running) do(t testing.TB, sub string, cmd domain.Command) {
	t.Helper()
	if _, err := r.Execute(t.Context(), domain.Request{Meta: domain.Metadata{Actor: domain.Actor{Kind: "system", ID: "test"}}}, sub, cmd); err != nil {
		t.Fatalf("%T: %v", cmd, err)
	}
}

// executions returns the executions in an account's history.
func (r running) executions(t testing.TB, sub string) (all []domain.ScheduleExecuted) {
	t.Helper()
	for x, err := range r.History(t.Context(), sub, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := x.Event.(domain.ScheduleExecuted); ok {
			all = append(all, e)
		}
	}
	return all
}

// settle waits until no schedule is due any more.
func (r running) settle(t testing.TB, c *clock) {
	t.Helper()
	if err := r.settled(t.Context(), c); err != nil {
		t.Fatal(err)
	}
}

func (r running) settled(ctx context.Context, c *clock) error {
	for {
		changed := r.views.Schedules().Changed()
		next, err := r.views.Schedules().Next(ctx, projections.Due{}, 1)
		if err != nil || len(next) == 0 || next[0].Time.After(c.Now()) {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (r running) plan(t testing.TB, w *world, sub, id string, in time.Duration, period int64) {
	t.Helper()
	r.do(t, sub, domain.PlanSchedule{ScheduleID: id, Kind: domain.ScheduleReminder, DueTime: w.clock.Now().Add(in), PeriodSeconds: period})
	a, err := r.Account(t.Context(), sub)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.views.Await(t.Context(), projections.SchedulesView, a.Position); err != nil {
		t.Fatal(err)
	}
}

func (r running) create(t testing.TB, sub string) {
	r.do(t, sub, domain.CreateAccount{Origin: domain.OriginCreated, Identities: []domain.NewIdentity{
		{IdentityID: "i-" + sub, Provider: domain.ProviderSelf, Profile: domain.Profile{Email: sub + "@example.com"}}}})
}

// TestOnce checks that each schedule takes effect once: with two concurrent
// schedulers, after restarts, and when the clock jumps.
func TestOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.open(t, 2)
	const accounts = 20
	for i := range accounts {
		sub := fmt.Sprint("a", i)
		r.create(t, sub)
		r.plan(t, w, sub, "soon", time.Minute, 0)
		r.plan(t, w, sub, "down", time.Hour, 0)
		r.plan(t, w, sub, "daily", 2*time.Minute, 86400)
	}
	w.clock.move(time.Minute)
	r.settle(t, w.clock)
	w.clock.move(-30 * time.Minute) // backwards: nothing is executed again or early
	r.settle(t, w.clock)
	r.close()
	w.clock.move(50 * time.Hour) // the server is down for two days
	r = w.open(t, 2)
	r.plan(t, w, "a0", "later", time.Hour, 0)
	r.settle(t, w.clock)
	for i := range accounts {
		counts := map[string]int{}
		for _, e := range r.executions(t, fmt.Sprint("a", i)) {
			counts[e.ScheduleID]++
			if daily := e.ScheduleID == "daily"; daily != e.NextDueTime.After(w.clock.Now()) {
				t.Errorf("%s is next due at %s", e.ScheduleID, e.NextDueTime)
			}
			if late := e.ScheduleID != "soon"; e.Late != late {
				t.Errorf("%s: late %t, want %t", e.ScheduleID, e.Late, late)
			}
		}
		if counts["soon"] != 1 || counts["down"] != 1 || counts["daily"] != 1 || counts["later"] != 0 {
			t.Errorf("account %d: executed %v, want each that was due once", i, counts)
		}
	}
}

// TestPostponed checks that a postponed or cancelled schedule is not executed at
// its original time.
func TestPostponed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.open(t, 1)
	r.create(t, "a")
	r.plan(t, w, "a", "postponed", time.Minute, 0)
	r.plan(t, w, "a", "cancelled", time.Minute, 0)
	r.do(t, "a", domain.PostponeSchedule{ScheduleID: "postponed", DueTime: w.clock.Now().Add(time.Hour)})
	r.do(t, "a", domain.CancelSchedule{ScheduleID: "cancelled"})
	r.plan(t, w, "a", "mark", 2*time.Minute, 0)
	w.clock.move(2 * time.Minute)
	r.settle(t, w.clock)
	if got := r.executions(t, "a"); len(got) != 1 || got[0].ScheduleID != "mark" {
		t.Fatalf("executed %v, want only mark", got)
	}
	w.clock.move(time.Hour)
	r.settle(t, w.clock)
	if got := r.executions(t, "a"); len(got) != 2 || got[1].ScheduleID != "postponed" {
		t.Errorf("executed %v, want postponed as the second", got)
	}
}

// tamperedLog is a log that cannot prove its events.
type tamperedLog struct{ eventstore.Store }

func (tamperedLog) ReadProven(context.Context, string, eventstore.Revision) iter.Seq2[eventstore.Recorded, error] {
	return func(yield func(eventstore.Recorded, error) bool) {
		yield(eventstore.Recorded{}, eventstore.ErrTampered)
	}
}

// TestTampered checks that Run executes nothing and ends if the log cannot prove
// the events of an account.
func TestTampered(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.open(t, 0)
	r.do(t, "ada", domain.CreateAccount{Origin: domain.OriginCreated, Identities: []domain.NewIdentity{
		{IdentityID: "i", Provider: domain.ProviderSelf, Profile: domain.Profile{Email: "ada@example.org"}}}})
	r.do(t, "ada", domain.PlanSchedule{ScheduleID: "s", Kind: domain.ScheduleReminder, ReminderNo: 1, DueTime: w.clock.Now().Add(time.Hour)})
	w.clock.move(2 * time.Hour)
	a, err := r.Account(t.Context(), "ada")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.views.Await(t.Context(), projections.SchedulesView, a.Position); err != nil {
		t.Fatal(err)
	}
	keys, err := seal.OpenReader(t.Context(), seal.Config{Path: filepath.Join(w.dir, "keys.db"), Master: w.master})
	if err != nil {
		t.Fatal(err)
	}
	defer keys.Close()
	ledger := domain.NewLedger(domain.LedgerConfig{Log: tamperedLog{r.log}, Codec: domain.Codec{Keys: keys}, Now: w.clock.Now})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := New(Config{Ledger: ledger, Views: r.views, Now: w.clock.Now, After: w.clock.After}).Run(ctx); !errors.Is(err, eventstore.ErrTampered) {
		t.Errorf("Run = %v, want ErrTampered", err)
	}
	if all := r.executions(t, "ada"); len(all) > 0 {
		t.Errorf("executed: %+v", all)
	}
}
