package scheduler

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"accountledger/domain"
	"accountledger/projections"
)

// burst returns the number of schedules that are due in the same second: normal,
// or the value of ACCOUNTLEDGER_TEST_DUE.
func burst(normal int) int {
	if n, err := strconv.Atoi(os.Getenv("ACCOUNTLEDGER_TEST_DUE")); err == nil {
		return n
	}
	return normal
}

// createAll creates n accounts, each with a reminder that is due in an hour.
func (r running) createAll(t testing.TB, n int) {
	t.Helper()
	request := domain.Request{Meta: domain.Metadata{Actor: domain.Actor{Kind: "system", ID: "test"}}}
	if _, err := r.Configure(t.Context(), request, domain.PutScheduleSetup{SetupID: "hour", Kind: domain.ScheduleReminder, ReminderNo: 1, OffsetSeconds: 3600}); err != nil {
		t.Fatal(err)
	}
	var group errgroup.Group
	group.SetLimit(64)
	for i := range n {
		group.Go(func() error {
			sub := burstSub(i)
			_, err := r.Execute(t.Context(), request, sub, domain.CreateAccount{Origin: domain.OriginCreated, Status: domain.StatusPending,
				Identities: []domain.NewIdentity{{IdentityID: "i-" + sub, Provider: domain.ProviderSelf, Profile: domain.Profile{Email: sub + "@example.com"}}}})
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	r.catchUp(t)
}

func burstSub(n int) string { return fmt.Sprintf("0190a1b2-0000-7000-8000-%012d", n) }

// catchUp waits until the views have applied the whole log.
func (r running) catchUp(t testing.TB) {
	t.Helper()
	r.create(t, domain.NewID().String())
	for _, name := range []string{projections.SchedulesView, projections.AccountsView} {
		head, err := r.log.Head(t.Context())
		if err == nil {
			err = r.views.Await(t.Context(), name, head)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// change sets the status of an account, waits for the view as the API does, and
// returns how long that took.
func (r running) change(t testing.TB, sub string, to domain.Status) time.Duration {
	t.Helper()
	begun := time.Now()
	result, err := r.Execute(t.Context(), domain.Request{Meta: domain.Metadata{Actor: domain.Actor{Kind: "system", ID: "test"}}}, sub, domain.SetStatus{Status: to})
	if err == nil {
		err = r.views.Await(t.Context(), projections.AccountsView, result.State.Position)
	}
	if err != nil {
		t.Fatal(err)
	}
	return time.Since(begun)
}

// settling returns a channel that is closed when no schedule is due any more.
func (r running) settling(t testing.TB, w *world) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := r.settled(t.Context(), w.clock); err != nil {
			t.Error(err)
		}
	}()
	return done
}

// beside changes an account repeatedly until done is closed, and returns the
// durations of the changes, shortest first.
func (r running) beside(t testing.TB, done <-chan struct{}) (took []time.Duration) {
	t.Helper()
	statuses := [2]domain.Status{domain.StatusDeclined, domain.StatusVerified}
	for {
		took = append(took, r.change(t, "other", statuses[len(took)%2]))
		select {
		case <-done:
			slices.Sort(took)
			return took
		default:
		}
	}
}

// TestBurst checks that many schedules that are due in the same second are each
// executed once, while other commands continue.
func TestBurst(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.open(t, 1)
	n := burst(2000)
	r.createAll(t, n)
	r.create(t, "other")
	w.clock.move(time.Hour)
	if took := r.beside(t, r.settling(t, w)); len(took) < 3 {
		t.Errorf("only %d other commands were executed meanwhile", len(took))
	}
	for i := range n {
		if got := r.executions(t, burstSub(i)); len(got) != 1 || got[0].State != domain.ScheduleDone {
			t.Fatalf("account %d: executed %v, want the one reminder, once", i, got)
		}
	}
}

// BenchmarkBurst measures how long schedules take that are due in the same
// second, and how long another command takes meanwhile compared with an idle
// scheduler. ACCOUNTLEDGER_TEST_DUE sets the number of schedules.
func BenchmarkBurst(b *testing.B) {
	for range b.N {
		w := newWorld(b)
		r := w.open(b, 1)
		n := burst(100_000)
		r.createAll(b, n)
		r.create(b, "other")
		quiet, cancel := context.WithTimeout(b.Context(), 5*time.Second)
		idle := r.beside(b, quiet.Done())
		cancel()
		b.ResetTimer()
		begun := time.Now()
		w.clock.move(time.Hour)
		busy := r.beside(b, r.settling(b, w))
		took := time.Since(begun)
		b.StopTimer()
		b.ReportMetric(float64(n)/took.Seconds(), "due/s")
		for name, took := range map[string][]time.Duration{"idle": idle, "busy": busy} {
			for _, percent := range []int{50, 99} {
				b.ReportMetric(float64(took[len(took)*percent/100].Microseconds())/1000, fmt.Sprintf("%s-p%d-ms", name, percent))
			}
		}
		r.close()
	}
}
