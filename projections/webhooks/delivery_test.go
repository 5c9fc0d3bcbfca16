package webhooks

import (
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"accountledger/domain"
	"accountledger/eventstore"
)

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
		asked := func(q DeliveryQuery, limit int) (all []Delivery) {
			for after := ""; ; {
				page, next, err := w.hooks.Deliveries(t.Context(), "crm", q, after, limit)
				if err != nil || len(page) > limit {
					t.Fatalf("%d deliveries, %v", len(page), err)
				}
				all = append(all, page...)
				if after = next; next == "" {
					return all
				}
			}
		}
		pages := func(limit int) []Delivery { return asked(DeliveryQuery{}, limit) }
		want := pages(1000)
		if len(want) != 23 || want[0].Status != StatusPending || want[1].Status != StatusDelivered || want[22].Type != "USER_CREATED" || want[21].Type != "USER_REGISTERED" {
			t.Errorf("%d deliveries, the first %s, the last %s; want 23, pending, USER_CREATED", len(want), want[0].Status, want[len(want)-1].Type)
		}
		for _, limit := range []int{1, 2, 7, 22, 23} {
			for _, status := range append(slices.Clone(Statuses), "") {
				for _, sub := range []string{"", "ada", "slow", "nobody"} {
					want := slices.DeleteFunc(slices.Clone(want), func(d Delivery) bool { return status != "" && d.Status != status || sub != "" && d.Sub != sub })
					if diff := cmp.Diff(want, asked(DeliveryQuery{status, sub}, limit), cmpopts.EquateEmpty()); diff != "" {
						t.Errorf("%s %s, pages of %d: %s", status, sub, limit, diff)
					}
				}
			}
		}
		if _, _, err := w.hooks.Deliveries(t.Context(), "crm", DeliveryQuery{}, "nonsense", 10); domain.CodeOf(err) != domain.CodeInvalidCursor {
			t.Errorf("with a broken cursor: %v, want CodeInvalidCursor", err)
		}
		close(hang)
		w.touch("ada", 100)
		time.Sleep(time.Second)
		if n := len(pages(1000)); n != 40 {
			t.Errorf("%d deliveries stored, want 40", n)
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

// The status of a delivery is known while its attempts are stored. Later it is
// settled, unless a lane owes the event.
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
		for range 2 { // from the worker, and from delivery.db
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
