package webhooks

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"accountledger/domain"
	"accountledger/eventstore"
)

// I3: progress is stored after the result: while a request is in flight its event
// is not settled, and afterwards cursor and attempt appear together.
func TestI3WrittenAfterTheResult(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		answer := make(chan struct{})
		r := &receiver{answer: func(got, int) (int, http.Header) { <-answer; return 200, nil }}
		w := newWorld(t, Config{})
		w.transport = r
		w.hook("crm", "https://crm.example/hook")
		w.account("ada") // position 2, after the webhook's creation
		w.run()
		time.Sleep(5 * time.Second)
		synctest.Wait()
		written := func() (low, attempts int64) {
			err := w.hooks.store.read.QueryRow(`SELECT low, (SELECT count(*) FROM attempt) FROM cursor`).Scan(&low, &attempts)
			if err != nil {
				t.Fatal(err)
			}
			return low, attempts
		}
		if low, attempts := written(); low != 1 || attempts != 0 {
			t.Errorf("in flight: low %d with %d attempts, want 1 and 0", low, attempts)
		}
		close(answer)
		for {
			low, attempts := written()
			if (low == 2) != (attempts == 1) {
				t.Fatalf("low %d with %d attempts: not stored together", low, attempts)
			}
			if low == 2 {
				break
			}
			time.Sleep(time.Millisecond)
		}
		w.stop()
	})
}

// I4: at any time, the lane of a failing account owes every position that the
// cursor has passed.
func TestI4LaneWithTheCursor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{delay: func() time.Duration { return rand.N(30 * time.Millisecond) }}
		arrived := map[string]bool{}
		r.answer = func(g got, n int) (int, http.Header) {
			if rand.N(10) == 0 {
				return 500, nil
			}
			r.set(func(*receiver) { arrived[g.ID] = true })
			return 200, nil
		}
		w := newWorld(t, Config{InFlight: 8, Schedule: []time.Duration{time.Second, time.Second, time.Second, time.Second, time.Second, time.Second}})
		w.transport = r
		w.hook("crm", "https://crm.example/hook")
		for i := range 30 {
			w.account(fmt.Sprint("a", i))
		}
		for range 10 {
			for i := range 30 {
				w.touch(fmt.Sprint("a", i), 1)
			}
		}
		w.run()
		for range 100 {
			time.Sleep(37 * time.Millisecond)
			tx, err := w.hooks.store.read.BeginTx(t.Context(), &sql.TxOptions{ReadOnly: true})
			if err != nil {
				t.Fatal(err)
			}
			var low eventstore.Position
			var done []byte
			if err := tx.QueryRow(`SELECT low, done FROM cursor`).Scan(&low, &done); err != nil {
				t.Fatal(err)
			}
			c := newCursor(low, done, nil)
			for _, rec := range w.log.records {
				if !c.has(rec.Position) || !strings.HasPrefix(rec.Stream, "account-") {
					continue
				}
				s := newEvent(rec)
				messages, err := s.open(opener{w.config.Codec, ledger{w.config.Ledger}}, time.Now())
				if err != nil {
					t.Fatal(err)
				}
				r.mu.Lock()
				delivered := arrived[messages[0].Event.ID]
				r.mu.Unlock()
				var owed bool
				if err := tx.QueryRow(`SELECT count(*) FROM lane WHERE stream = ? AND next_position <= ?`, rec.Stream, rec.Position).Scan(&owed); err != nil {
					t.Fatal(err)
				}
				if !delivered && !owed {
					t.Fatalf("position %d is settled, was not delivered, and no lane owes it", rec.Position)
				}
			}
			if err := tx.Rollback(); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Minute)
		w.settled("crm")
		r.inOrder(t)
		if len(arrived) != 330 {
			t.Errorf("%d events arrived, want 330", len(arrived))
		}
		w.stop()
	})
}

// I5: a worker that no longer owns a webhook writes nothing.
func TestI5Fencing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	w.hook("crm", "https://crm.example/hook")
	s := w.hooks.store
	mine, err := s.load(t.Context(), "crm")
	if err != nil {
		t.Fatal(err)
	}
	if mine.epoch, err = s.own(t.Context(), mine.no); err != nil {
		t.Fatal(err)
	}
	theirs := mine
	if theirs.epoch, err = s.own(t.Context(), mine.no); err != nil {
		t.Fatal(err)
	}
	written := make(chan error, 2)
	save := func(p progress, low eventstore.Position) *checkpoint {
		return &checkpoint{progress: p, low: low, done: []byte{}, partial: []byte("{}"), written: written, lanes: []lane{{stream: fmt.Sprint("of ", p.epoch)}}, attempts: []record{{trigger: triggerSchedule}}}
	}
	s.save(t.Context(), []*checkpoint{save(mine, 7), save(theirs, 5)})
	if first, second := <-written, <-written; !errors.Is(first, errFenced) || second != nil {
		t.Errorf("saved: %v and %v, want errFenced and nil", first, second)
	}
	var low, lanes, attempts int
	if err := s.read.QueryRow(`SELECT low, (SELECT count(*) FROM lane), (SELECT count(*) FROM attempt) FROM cursor`).Scan(&low, &lanes, &attempts); err != nil {
		t.Fatal(err)
	}
	if low != 5 || lanes != 1 || attempts != 1 {
		t.Errorf("low %d, %d lanes, %d attempts; want the owner's alone: 5, 1, 1", low, lanes, attempts)
	}
}

// I5 and row 49: of two processes with one file, the first one stops delivering.
func TestI5TakenOver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{}
		w := newWorld(t, Config{})
		w.transport = r
		w.hook("crm", "https://crm.example/hook")
		w.run()
		w.account("ada")
		w.settled("crm")
		first := w.hooks.worker("crm")
		if _, err := w.hooks.store.own(t.Context(), first.no); err != nil {
			t.Fatal(err)
		}
		w.touch("ada", 1)
		<-first.ended
		w.touch("ada", 1)
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := r.count(); n != 2 {
			t.Errorf("%d requests, want 2: none after it noticed the new owner", n)
		}
		w.restart()
		time.Sleep(time.Second)
		w.settled("crm")
		if diff := cmp.Diff(3, len(r.ids())); diff != "" {
			t.Error(diff)
		}
		w.stop()
	})
}

// I6: waiting for a predecessor costs no attempts.
func TestI6WaitingCostsNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		bad := true
		r := &receiver{}
		r.answer = func(g got, n int) (int, http.Header) {
			if bad && g.Sequence == 0 {
				return 500, nil
			}
			return 200, nil
		}
		w := newWorld(t, Config{})
		w.transport = r
		w.hook("crm", "https://crm.example/hook")
		w.account("ada")
		w.touch("ada", 3)
		w.run()
		time.Sleep(10 * time.Hour) // six attempts of the first event
		r.set(func(*receiver) { bad = false })
		time.Sleep(12 * time.Hour) // the seventh comes after 17:35, or a fifth later for its jitter
		var attempts []int
		for _, d := range w.deliveries("crm") {
			attempts = append(attempts, len(d.Attempts))
		}
		if diff := cmp.Diff([]int{1, 1, 1, 7}, attempts); diff != "" {
			t.Error(diff)
		}
		w.stop()
	})
}

// I8 and row 40: a failure inside the ledger does not count against the endpoint
// and loses no event, and deliveries continue after it.
func TestI8OurErrorsAreOurs(t *testing.T) {
	t.Parallel()
	blameless := func(t *testing.T, w *world) {
		t.Helper()
		if e := w.get("crm"); e.Breaker.State != "closed" || e.Lanes != 0 || e.DeadLetters != 0 {
			t.Errorf("the failure counts against the endpoint: %+v", e)
		}
		for _, d := range w.deliveries("crm") {
			for _, a := range d.Attempts {
				if a.Status != 200 {
					t.Errorf("attempt %+v, want only attempts with 200", a)
				}
			}
		}
	}
	t.Run("the file is locked", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			r := &receiver{answer: func(got, int) (int, http.Header) { return 200, nil }}
			w := newWorld(t, Config{})
			w.transport = r
			w.hook("crm", "https://crm.example/hook")
			w.run()
			w.account("ada")
			w.settled("crm")
			db, err := connect(w.config.Path, "_txlock=immediate")
			if err != nil {
				t.Fatal(err)
			}
			tx, err := db.Begin()
			if err != nil {
				t.Fatal(err)
			}
			for i := range 3000 {
				w.account(fmt.Sprint("a", i))
			}
			w.until(func() bool { return r.count() >= maxUnflushed })
			if n := r.count(); n > 1+maxUnflushed+64+1 {
				t.Errorf("%d sent while nothing can be stored: a crash would send as many twice", n)
			}
			if err := errors.Join(tx.Rollback(), db.Close()); err != nil {
				t.Fatal(err)
			}
			w.settled("crm")
			if ids := r.ids(); len(ids) != 3001 || r.count() != 3001 {
				t.Errorf("%d events in %d requests, want 3001 in as many", len(ids), r.count())
			}
			blameless(t, w)
			w.stop()
		})
	})
	t.Run("the log cannot be read", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			r := &receiver{answer: func(got, int) (int, http.Header) { return 200, nil }}
			w := newWorld(t, Config{})
			w.transport = r
			w.hook("crm", "https://crm.example/hook")
			for i := range 3 {
				w.account(fmt.Sprint("a", i))
			}
			w.log.mu.Lock()
			w.log.fail = errors.New("disk")
			w.log.mu.Unlock()
			w.run()
			time.Sleep(time.Minute)
			w.log.mu.Lock()
			w.log.fail = nil
			w.log.mu.Unlock()
			time.Sleep(time.Minute)
			w.settled("crm")
			if r.count() != 3 {
				t.Errorf("%d requests, want 3", r.count())
			}
			blameless(t, w)
			w.stop()
		})
	})
	t.Run("an event cannot be opened", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			r := &receiver{answer: func(got, int) (int, http.Header) { return 200, nil }}
			w := newWorld(t, Config{})
			w.transport = r
			w.hook("crm", "https://crm.example/hook")
			w.account("ada")
			w.account("bob")
			sealed := w.log.reseal(2, []byte("damaged, but not erased"))
			w.touch("ada", 2)
			w.run()
			time.Sleep(2 * time.Hour)
			if n := r.count(); n != 1 {
				t.Errorf("%d requests, want bob's one", n)
			}
			w.log.reseal(2, sealed)
			time.Sleep(5 * time.Minute)
			w.settled("crm")
			if r.count() != 4 {
				t.Errorf("%d requests, want 4", r.count())
			}
			r.inOrder(t)
			blameless(t, w)
			w.stop()
		})
	})
	t.Run("the secret is missing", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			r := &receiver{answer: func(got, int) (int, http.Header) { return 200, nil }}
			w := newWorld(t, Config{})
			w.transport = r
			w.hook("crm", "https://crm.example/hook")
			kept, err := w.keys.Secret(t.Context(), secretName("crm"))
			if err != nil {
				t.Fatal(err)
			}
			if err := w.keys.DeleteSecret(t.Context(), secretName("crm")); err != nil {
				t.Fatal(err)
			}
			w.account("ada")
			w.run()
			time.Sleep(time.Hour)
			if e := w.get("crm"); r.count() != 0 || e.SecretFingerprint != "" {
				t.Errorf("%d requests and fingerprint %q without a secret", r.count(), e.SecretFingerprint)
			}
			if err := w.keys.PutSecret(t.Context(), secretName("crm"), kept); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Minute)
			w.settled("crm")
			blameless(t, w)
			w.stop()
		})
	})
}

// The second part of row 44, and the escalation: if the receiver refuses most
// accounts, the endpoint counts as failing.
func TestEscalation(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		down := true
		r := &receiver{}
		r.answer = func(got, int) (int, http.Header) {
			if down {
				return 500, nil
			}
			return 200, nil
		}
		w := newWorld(t, Config{InFlight: 4})
		w.transport = r
		w.hook("crm", "https://crm.example/hook")
		for i := range 500 {
			w.account(fmt.Sprint("a", i))
		}
		w.run()
		time.Sleep(3 * time.Hour)
		synctest.Wait()
		e := w.get("crm")
		if e.Breaker.State != "open" || e.Breaker.Reason != codeFailing || e.Lanes > 40 || r.count() > 60 {
			t.Errorf("breaker %+v, %d lanes, %d requests; want it open for %s after some twenty", e.Breaker, e.Lanes, r.count(), codeFailing)
		}
		r.set(func(*receiver) { down = false })
		time.Sleep(100 * time.Hour)
		w.settled("crm")
		if n := len(r.ids()); n != 500 {
			t.Errorf("%d events arrived, want 500", n)
		}
		r.inOrder(t)
		w.stop()
	})
}

// Row 48: after an orderly stop nothing is sent twice.
func TestCleanRestart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{delay: func() time.Duration { return rand.N(100 * time.Millisecond) }}
		w := newWorld(t, Config{InFlight: 16})
		w.transport = r
		w.hook("crm", "https://crm.example/hook")
		for i := range 100 {
			w.execute(fmt.Sprint("a", i), domain.CreateAccount{Origin: domain.OriginRegistered, Identities: []domain.NewIdentity{{
				IdentityID: domain.NewID().String(), Provider: domain.ProviderSelf, Profile: domain.Profile{Email: fmt.Sprint("a", i, "@example.com")}}}})
		}
		for i := range 100 {
			w.touch(fmt.Sprint("a", i), 3)
		}
		w.run()
		for range 20 {
			time.Sleep(rand.N(200 * time.Millisecond))
			w.restart()
		}
		time.Sleep(10 * time.Second)
		w.settled("crm")
		// A registration is one event of the log with two public events.
		if ids := r.ids(); len(ids) != 500 || r.count() != 500 {
			t.Errorf("%d events in %d requests, want 500 in as many", len(ids), r.count())
		}
		r.inOrder(t)
		w.stop()
	})
}

// A lost delivery.db is created again from the log; events are sent again.
func TestLostFile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{}
		w := newWorld(t, Config{})
		w.transport = r
		w.run()
		w.hook("crm", "https://crm.example/hook")
		w.hook("gone", "https://gone.example/hook")
		w.account("ada")
		time.Sleep(time.Second)
		if _, err := w.hooks.Delete(t.Context(), asAdmin, "gone"); err != nil {
			t.Fatal(err)
		}
		w.settled("crm")
		w.stop()
		w.config.Path = filepath.Join(t.TempDir(), "delivery.db")
		before := r.count()
		w.open()
		w.run()
		time.Sleep(time.Second)
		w.settled("crm")
		all := r.got()[before:]
		if len(all) != 1 || all[0].header.Get("Test-Host") != "crm.example" {
			t.Errorf("%d requests after the file was lost, want the one event again for the remaining webhook", len(all))
		}
		if list, err := w.hooks.List(context.Background()); err != nil || len(list) != 1 {
			t.Errorf("%d webhooks, %v; want 1", len(list), err)
		}
		w.stop()
	})
}
