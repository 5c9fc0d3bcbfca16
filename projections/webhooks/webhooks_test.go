package webhooks

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/eventstore/seal"
)

// Row 55: what happens while an endpoint is paused comes when it is resumed.
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
		// The pause's own event may have been passed before it took hold.
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

// A state set by hand makes an open breaker be tried at once.
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
		w.restart() // an open breaker outlives it
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

// Row 54: an endpoint that is deleted while a request is under way.
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
			t.Errorf("%d requests, want the two that were under way", n)
		}
		for _, table := range []string{"endpoint", "cursor", "lane", "attempt", "dead_letter"} {
			var n int
			if err := w.hooks.store.read.QueryRow(`SELECT count(*) FROM ` + table).Scan(&n); err != nil || n != 0 {
				t.Errorf("%d rows in %s, %v; want none", n, table, err)
			}
		}
		if _, err := w.keys.Secret(t.Context(), vaultName("crm")); !errors.Is(err, seal.ErrNoSecret) {
			t.Errorf("the secret: %v, want ErrNoSecret", err)
		}
		if _, err := w.hooks.Get(t.Context(), "crm"); domain.CodeOf(err) != domain.CodeWebhookNotFound {
			t.Errorf("Get = %v, want CodeWebhookNotFound", err)
		}
		if _, _, err := w.hooks.Deliveries(t.Context(), "crm", "", 10); domain.CodeOf(err) != domain.CodeWebhookNotFound {
			t.Errorf("Deliveries = %v, want CodeWebhookNotFound", err)
		}
		w.stop()
	})
}

// Row 53: another URL counts from the next attempt on.
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
		w.hooks.runner.Load().apply(changed)
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

// Row 52: the cursor goes on, and is written, although nothing is sent.
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
			t.Errorf("written up to %d of %d, %v, with %d requests", low, w.head(), err, r.count())
		}
		w.stop()
	})
}

// Row 36: the receiver's own word on an event and on itself.
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

// Row 34: days of nothing but failures.
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

func TestDeliveries(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		r := &receiver{}
		r.answer = func(g got, n int) (int, http.Header) {
			if g.Sub == "slow" {
				<-hang
			}
			return 200, nil
		}
		w := newWorld(t, Config{KeepAttempts: 40})
		w.transport = r
		w.run()
		w.hook("crm", "https://crm.example/hook")
		w.execute("ada", domain.CreateAccount{Origin: domain.OriginRegistered, Identities: []domain.NewIdentity{{
			IdentityID: domain.NewID().String(), Provider: domain.ProviderSelf, Profile: domain.Profile{Email: "ada@example.com"}}}})
		w.touch("ada", 20)
		w.account("slow")
		time.Sleep(time.Second)
		pages := func(limit int) (all []Delivery) {
			for after := ""; ; {
				page, next, err := w.hooks.Deliveries(t.Context(), "crm", after, limit)
				if err != nil || len(page) > limit {
					t.Fatalf("%d deliveries, %v", len(page), err)
				}
				all = append(all, page...)
				if after = next; next == "" {
					return all
				}
			}
		}
		want := pages(1000)
		if len(want) != 23 || want[0].Status != StatusPending || want[1].Status != StatusDelivered || want[22].Type != "USER_CREATED" || want[21].Type != "USER_REGISTERED" {
			t.Errorf("%d deliveries, the first %s, the last %s; want 23, pending, USER_CREATED", len(want), want[0].Status, want[len(want)-1].Type)
		}
		for _, limit := range []int{1, 2, 7, 22, 23} {
			if diff := cmp.Diff(want, pages(limit)); diff != "" {
				t.Errorf("pages of %d: %s", limit, diff)
			}
		}
		if _, _, err := w.hooks.Deliveries(t.Context(), "crm", "nonsense", 10); domain.CodeOf(err) != domain.CodeInvalidCursor {
			t.Errorf("with a broken cursor: %v, want CodeInvalidCursor", err)
		}
		close(hang)
		w.touch("ada", 100)
		time.Sleep(time.Second)
		if n := len(pages(1000)); n != 40 {
			t.Errorf("%d deliveries remembered, want 40", n)
		}
		var last eventstore.Position
		for _, d := range slices.Backward(pages(1000)) {
			if d.Position < last {
				t.Errorf("position %d listed before %d", last, d.Position)
			}
			last = d.Position
		}
		w.stop()
	})
}

// What an erased account's receivers answered goes with it, and its events go
// out with what is left.
func TestErased(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{}
		w := newWorld(t, Config{})
		w.transport = r
		w.hook("crm", "https://crm.example/hook")
		w.account("ada")
		w.log.records[1].Sealed = nil
		w.run()
		time.Sleep(time.Second)
		w.settled("crm")
		if all := r.got(); len(all) != 1 || all[0].Type != "USER_CREATED" || strings.Contains(string(all[0].body), "example.com") {
			t.Errorf("%d requests; want one without the e-mail", len(all))
		}
		if _, err := w.hooks.store.write.Exec(`UPDATE attempt SET response = CAST('no ada@example.com here' AS BLOB)`); err != nil {
			t.Fatal(err)
		}
		if _, err := w.log.Append(t.Context(), eventstore.Commit{Writes: []eventstore.Write{{Stream: domain.AccountStream("ada"), Expected: eventstore.Any,
			Events: []eventstore.Event{{ID: [16]byte(domain.NewID()), Type: erasedType, Clear: []byte(`{"meta":{"actor":{"kind":"system","id":"x"}},"data":{}}`)}}}}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		w.settled("crm")
		var n int
		if err := w.hooks.store.read.QueryRow(`SELECT count(*) FROM attempt WHERE response IS NOT NULL`).Scan(&n); err != nil || n != 0 {
			t.Errorf("%d responses left, %v", n, err)
		}
		if all := r.got(); len(all) != 2 || all[1].Type != "USER_DELETED" {
			t.Errorf("%d requests; want USER_DELETED as the second", len(all))
		}
		w.stop()
	})
}

// answers is a receiver that answers as told, with a body.
type answers func(*http.Request) (status int, body string)

func (a answers) RoundTrip(r *http.Request) (*http.Response, error) {
	status, body := a(r)
	return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
}

// The answer to a request that was under way when an account was purged is
// written without what the receiver said; what it says later is kept again.
func TestErasedInFlight(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		begun, hang := make(chan struct{}, 100), make(chan struct{})
		w := newWorld(t, Config{})
		w.transport = answers(func(*http.Request) (int, string) {
			begun <- struct{}{}
			<-hang
			return 400, "no ada@example.com here"
		})
		w.hook("crm", "https://crm.example/hook")
		w.run()
		w.account("ada")
		w.account("bob")
		<-begun
		<-begun
		if err := w.hooks.Purge(t.Context(), "ada"); err != nil {
			t.Fatal(err)
		}
		close(hang)
		time.Sleep(time.Second)
		said := func(sub string) (all []string) {
			for _, d := range w.deliveries("crm") {
				for _, a := range d.Attempts {
					if d.Sub == sub {
						all = append(all, a.Response)
					}
				}
			}
			return all
		}
		if ada, bob := said("ada"), said("bob"); len(ada) != 1 || ada[0] != "" || len(bob) != 1 || bob[0] == "" {
			t.Errorf("of ada %q is written and of bob %q, want of bob alone what was answered", ada, bob)
		}
		time.Sleep(time.Hour) // what is sent now was opened after the purge
		if ada := said("ada"); len(ada) < 2 || ada[0] != "" || ada[len(ada)-1] == "" {
			t.Errorf("of ada %q is written later, want what was answered to the last request", ada)
		}
		w.stop()
	})
}

// What became of an event is known as long as its attempts are remembered.
// Longer ago, it says no more than that nothing is left to send; not while a
// lane owes it.
func TestOutcome(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{answer: func(g got, n int) (int, http.Header) {
			if g.Sub == "bad" {
				return 400, nil
			}
			return 200, nil
		}}
		w := newWorld(t, Config{})
		w.transport = r
		w.hook("crm", "https://crm.example/hook")
		w.run()
		w.account("ada")
		ada := w.head()
		w.account("bad")
		refused := w.head()
		w.touch("bad", 1)
		owed := w.head()
		time.Sleep(time.Second)
		want := func(sub string, p eventstore.Position, want string) {
			t.Helper()
			if got, err := w.hooks.Outcome(t.Context(), "crm", domain.AccountStream(sub), p); err != nil || got != want {
				t.Errorf("position %d of %s is %q, %v; want %q", p, sub, got, err, want)
			}
		}
		if e := w.get("crm"); e.Position < owed {
			t.Fatalf("the cursor is at %d, want it to have passed %d", e.Position, owed)
		}
		for range 2 { // while it delivers, and from the file
			want("ada", ada, StatusDelivered)
			want("bad", refused, StatusRetrying)
			want("bad", owed, StatusPending)
			w.stopDelivery()
		}
		if err := w.hooks.store.expire(t.Context(), time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		want("ada", ada, StatusSettled)
		want("bad", refused, StatusPending)
		want("ada", w.head()+1, StatusPending)
		w.stop()
	})
}

func TestFile(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	w.hook("crm", "https://crm.example/hook")
	if err := w.hooks.Check(t.Context()); err != nil {
		t.Error(err)
	}
	dest := filepath.Join(t.TempDir(), "copy.db")
	if err := w.hooks.Backup(t.Context(), dest); err != nil {
		t.Fatal(err)
	}
	if err := w.hooks.Backup(t.Context(), dest); !errors.Is(err, os.ErrExist) {
		t.Errorf("a second backup to the same place: %v, want ErrExist", err)
	}
	c := w.config
	c.Path = dest
	restored, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if list, err := restored.List(t.Context()); err != nil || len(list) != 1 || list[0].WebhookID != "crm" {
		t.Errorf("the copy has %+v, %v", list, err)
	}
	if err := restored.Close(); err != nil {
		t.Error(err)
	}
	db, err := connect(dest, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(`DROP TABLE erased; PRAGMA user_version = 1`); err != nil {
		t.Fatal(err)
	}
	db.Close()
	older, err := Open(t.Context(), c)
	if err != nil {
		t.Fatalf("a file of version 1: %v", err)
	}
	if err := older.Purge(t.Context(), "ada"); err != nil {
		t.Error(err)
	}
	if err := older.Close(); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]string{
		"not ours": `PRAGMA application_id = 1`, "newer": `PRAGMA user_version = 99`,
	} {
		db, err := connect(dest, "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := db.Exec(spoil); err != nil {
			t.Fatal(err)
		}
		db.Close()
		if _, err := Open(t.Context(), c); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
	c.Path = w.config.Path + "/nowhere"
	if _, err := Open(t.Context(), c); err == nil {
		t.Error("opened in a directory that is none")
	}
}

// A log that was restored from an older copy does not make events be skipped.
func TestLogRestored(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{}
		w := newWorld(t, Config{})
		w.transport = r
		w.run()
		w.hook("crm", "https://crm.example/hook")
		w.account("ada")
		for i := range 10 {
			w.account(fmt.Sprint("lost", i))
		}
		w.settled("crm")
		w.stop()
		w.log.mu.Lock()
		w.log.records = w.log.records[:2]
		w.log.mu.Unlock()
		w.open()
		w.run()
		w.account("bob")
		w.until(func() bool { return slices.ContainsFunc(r.got(), func(g got) bool { return g.Sub == "bob" }) })
		w.stop()
	})
}
