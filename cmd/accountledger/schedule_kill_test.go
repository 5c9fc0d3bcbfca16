package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"accountledger/domain"
)

// scheduleKills is the minimum number of times that TestKill9Schedules kills the
// server. ACCOUNTLEDGER_TEST_SCHEDULE_KILLS sets another number.
func scheduleKills() int {
	if n, err := strconv.Atoi(os.Getenv("ACCOUNTLEDGER_TEST_SCHEDULE_KILLS")); err == nil {
		return n
	}
	return 5
}

// recorded is an event of an account's history.
type recorded struct {
	Type string    `json:"type"`
	Time time.Time `json:"time"`
	Data struct {
		ScheduleID string               `json:"scheduleId"`
		Kind       domain.ScheduleKind  `json:"kind"`
		DueTime    time.Time            `json:"dueTime"`
		State      domain.ScheduleState `json:"status"`
		Reason     string               `json:"reason"`
		Late       bool                 `json:"late"`
	} `json:"data"`
}

// history requests all events of an account.
func (p *process) history(t *testing.T, sub string) (all []recorded) {
	t.Helper()
	for after := ""; ; {
		response, text, err := p.do(t.Context(), "GET", "/v1/accounts/"+sub+"/events?limit=1000"+after, "")
		var page struct {
			Events []recorded `json:"events"`
			Next   *string    `json:"next"`
		}
		if err != nil || response.StatusCode != 200 {
			t.Fatalf("history of %s: %v, %v", sub, response, err)
		}
		if err := json.Unmarshal(text, &page); err != nil {
			t.Fatal(err)
		}
		all = append(all, page.Events...)
		if page.Next == nil {
			return all
		}
		after = "&after=" + *page.Next
	}
}

// TestKill9Schedules kills the server at random moments while schedules become
// due, some of them while no server runs. Each schedule must end once, have its
// effect once, and be marked if it was late.
func TestKill9Schedules(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	data := filepath.Join(t.TempDir(), "data")
	rounds := scheduleKills()
	span := time.Duration(rounds+2) * time.Second // in which all schedules become due
	var started []time.Time
	start := func() *process {
		started = append(started, time.Now())
		return startServer(t, data)
	}
	p := start()
	ask := func(method, path, body string) (sub string) {
		t.Helper()
		response, text, err := p.do(t.Context(), method, path, body)
		var account domain.Account
		if err != nil || response.StatusCode >= 300 || json.Unmarshal(text, &account) != nil {
			t.Fatalf("%s %s: %v, %s", method, path, err, text)
		}
		return account.Sub
	}
	ask("PUT", "/v1/schedule-setups/remind", `{"kind":"reminder","reminderNo":1,"offsetSeconds":1}`)
	ask("PUT", "/v1/schedule-setups/decline", `{"kind":"status_change","targetStatus":"DECLINED","offsetSeconds":2}`)
	ask("PUT", "/v1/schedule-setups/end", `{"kind":"deletion","offsetSeconds":3}`)
	var subs []string
	var last time.Time // when the last schedule is due
	create := func(status domain.Status) string {
		subs = append(subs, ask("POST", "/v1/accounts", fmt.Sprintf(
			`{"origin":"created","userStatus":%q,"identities":[{"provider":"self","email":"person.%d@example.com"}]}`, status, len(subs))))
		last = time.Now().Add(max(3*time.Second, time.Until(last)))
		return subs[len(subs)-1]
	}
	for i := range 20 {
		sub := create(domain.StatusVerified)
		kinds := []string{`"reminder"`, `"reminder","reminderNo":2`, `"status_change","targetStatus":"DECLINED"`}
		if i%5 == 0 {
			kinds = append(kinds, `"deletion"`)
		}
		for _, kind := range kinds {
			due := time.Now().Add(time.Second + time.Duration(random.Int64N(int64(span))))
			last = due.Add(max(0, last.Sub(due)))
			ask("POST", "/v1/accounts/"+sub+"/schedules", fmt.Sprintf(`{"kind":%s,"dueTime":%q}`, kind, due.UTC().Format(time.RFC3339Nano)))
		}
	}
	moment := func() { time.Sleep(time.Duration(random.IntN(400)) * time.Millisecond) }
	for range rounds {
		create(domain.StatusPending)
		create(domain.StatusPending)
		moment()
		p.kill()
		moment()
		p = start()
	}
	moment()
	p.kill()
	time.Sleep(time.Until(last) + 1100*time.Millisecond) // the rest becomes due while no server runs
	p = start()

	counts := map[string]int{}
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	for _, sub := range subs {
		checkSchedules(t, p.settled(ctx, t, sub), started, counts)
	}
	checkLedger(t, 0, data)
	t.Logf("%d starts: %v", len(started), counts)
	if counts["late"] == 0 || counts["late"] == counts["ends"] || counts["executed"] == 0 {
		t.Errorf("of %d schedules, %d were late and %d were executed", counts["ends"], counts["late"], counts["executed"])
	}
}

// settled waits until the account has no planned schedule and returns its history.
func (p *process) settled(ctx context.Context, t *testing.T, sub string) []recorded {
	t.Helper()
	for {
		open := 0
		all := p.history(t, sub)
		for _, x := range all {
			switch x.Type {
			case domain.TypeOf(domain.SchedulePlanned{}):
				open++
			case domain.TypeOf(domain.ScheduleExecuted{}), domain.TypeOf(domain.ScheduleCancelled{}):
				open--
			}
		}
		if open <= 0 {
			return all
		}
		if ctx.Err() != nil {
			t.Fatalf("%d schedules of %s remain planned", open, sub)
		}
	}
}

// checkSchedules checks an account's history: each schedule ended once, with its
// effect.
func checkSchedules(t *testing.T, all []recorded, started []time.Time, counts map[string]int) {
	t.Helper()
	ends, effects := map[string]int{}, map[domain.ScheduleKind]int{}
	for _, x := range all {
		switch x.Type {
		case domain.TypeOf(domain.SchedulePlanned{}):
			ends[x.Data.ScheduleID] += 0
			continue
		case "account.status-changed.v1":
			effects[domain.ScheduleStatusChange]--
			continue
		case domain.TypeOf(domain.AccountErased{}):
			effects[domain.ScheduleDeletion]--
			continue
		case domain.TypeOf(domain.ScheduleCancelled{}):
			if x.Data.Reason != "erased" {
				t.Errorf("a schedule was cancelled: %+v", x)
			}
			ends[x.Data.ScheduleID]++
			continue
		case domain.TypeOf(domain.ScheduleExecuted{}):
		default:
			continue
		}
		ends[x.Data.ScheduleID]++
		counts["ends"]++
		counts[string(x.Data.State)]++
		if x.Data.State == domain.ScheduleDone && x.Data.Kind != domain.ScheduleReminder {
			effects[x.Data.Kind]++
		}
		// Find when the server that executed it was started.
		i, _ := slices.BinarySearchFunc(started, x.Time, time.Time.Compare)
		missed := i > 0 && x.Data.DueTime.Add(time.Second).Before(started[i-1])
		switch {
		case x.Time.Before(x.Data.DueTime):
			t.Errorf("executed before it was due: %+v", x)
		case missed && !x.Data.Late, x.Data.Late && x.Time.Sub(x.Data.DueTime) <= time.Second:
			t.Errorf("late is %t, of a schedule due %s that was executed %s later", x.Data.Late, x.Data.DueTime, x.Time.Sub(x.Data.DueTime))
		}
		if x.Data.Late {
			counts["late"]++
		}
	}
	for id, n := range ends {
		if n != 1 {
			t.Errorf("schedule %s ended %d times", id, n)
		}
	}
	for kind, n := range effects {
		if n != 0 {
			t.Errorf("for %d schedules of kind %s, the mark and the effect differ", n, kind)
		}
	}
}
