package projections

import (
	"errors"
	"strings"
	"testing"

	"accountledger/domain"
	"accountledger/eventstore"
)

// TestParking holds that one account whose event cannot be applied waits,
// visibly, that the others do not, and that it goes on when it can.
func TestParking(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		warp func(*eventstore.Recorded) // of the second event of one account
		want string                     // in the error
	}{
		{"unknown type", func(rec *eventstore.Recorded) {
			rec.Type, rec.Sealed, rec.KeyID = "account.teleported.v1", nil, eventstore.KeyID{} // the seal is of the type, too
		}, "unknown event type"},
		{"another account's seal", func(rec *eventstore.Recorded) { rec.Sealed = []byte("xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx") }, "open"},
		{"malformed", func(rec *eventstore.Recorded) { rec.Clear = []byte(`{"meta":`) }, "decode"},
		{"of something else", func(rec *eventstore.Recorded) {
			rec.Type, rec.Clear, rec.Sealed = "webhook.deleted.v1", []byte(`{"meta":{},"data":{}}`), nil
		}, "panic: domain: webhook.deleted.v1 does not belong"},
		{"out of order", func(rec *eventstore.Recorded) { rec.Revision, rec.Sealed, rec.KeyID = 7, nil, eventstore.KeyID{} }, "revision 7 follows 0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			poisoned, other := f.create(t, "poisoned@example.org"), f.create(t, "other@example.org")
			f.log.warp(func(rec *eventstore.Recorded) {
				if rec.Stream == domain.AccountStream(poisoned.Sub) && rec.Revision == 1 {
					tt.warp(rec)
				}
			})
			v := f.open(t)
			stop := run(t, v)
			for n := range 5 {
				f.change(t, poisoned.Sub, n)
				f.change(t, other.Sub, n)
			}
			head := f.caughtUp(t, v)
			f.checkFolds(t, v, []string{other.Sub})
			row, err := v.Accounts().Get(t.Context(), poisoned.Sub)
			if err != nil || row.Revision != 0 {
				t.Errorf("the parked account is at revision %d, %v, want 0", row.Revision, err)
			}
			status, err := v.Status(t.Context())
			if err != nil || len(status[0].Parked) != 1 || status[0].Lag != 0 || status[0].Position != head {
				t.Fatalf("Status = %+v, %v", status, err)
			}
			p := status[0].Parked[0]
			if p.Stream != domain.AccountStream(poisoned.Sub) || p.Revision != 1 || p.Position != 3 ||
				!strings.Contains(p.Error, tt.want) || strings.Contains(p.Error, "example.org") || p.Attempts < 1 || p.Since.IsZero() {
				t.Errorf("Parked = %+v, want revision 1 with an error about %q", p, tt.want)
			}

			// It stays parked over a restart, and while it fails.
			stop()
			v.Close()
			v = f.open(t)
			run(t, v)
			f.untilParked(t, v, func(all []Parked) bool { return len(all) == 1 && all[0].Attempts > p.Attempts+2 })
			f.change(t, other.Sub, 0)
			f.caughtUp(t, v)
			f.checkFolds(t, v, []string{other.Sub})

			f.log.warp(func(*eventstore.Recorded) {}) // a program that knows the event
			f.untilParked(t, v, func(all []Parked) bool { return len(all) == 0 })
			f.checkFolds(t, v, []string{poisoned.Sub, other.Sub})
			f.change(t, poisoned.Sub, 1)
			f.caughtUp(t, v)
			f.checkFolds(t, v, []string{poisoned.Sub, other.Sub})
		})
	}
}

// untilParked waits until the parked streams are as ok wants them.
func (f *fixture) untilParked(t *testing.T, v *Views, ok func([]Parked) bool) {
	t.Helper()
	until(t, func() bool {
		status, err := v.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return ok(status[0].Parked)
	})
}

// TestParkedIdentifiers holds that an account that waits takes no identifier
// from the account that has it by now.
func TestParkedIdentifiers(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	v := f.open(t)
	a := f.create(t, "one@example.org")
	f.log.warp(func(rec *eventstore.Recorded) {
		if rec.Stream == domain.AccountStream(a.Sub) && rec.Revision == 1 {
			rec.Type = "account.teleported.v1"
		}
	})
	// In one batch with a's creation, then again by rebuilding.
	f.execute(t, a.Sub, domain.UpdateProfile{Patch: []byte(`{"email":"two@example.org"}`)})
	b := f.create(t, "one@example.org")
	run(t, v)
	for range 2 {
		f.caughtUp(t, v)
		for email, want := range map[string]string{"one@example.org": b.Sub, "two@example.org": ""} {
			row, err := v.Accounts().Lookup(t.Context(), domain.Candidates(domain.KindEmail, "", email))
			if row.Sub != want || (want == "") != errors.Is(err, ErrNotFound) {
				t.Errorf("Lookup(%s) = %s, %v, want %s", email, row.Sub, err, want)
			}
		}
		if err := v.Rebuild(t.Context(), AccountsView, nil); err != nil {
			t.Fatal(err)
		}
	}
	// Meanwhile b gives it back to a, whose row still says it has had it all along.
	f.execute(t, b.Sub, domain.UpdateProfile{Patch: []byte(`{"email":"three@example.org"}`)})
	f.execute(t, a.Sub, domain.UpdateProfile{Patch: []byte(`{"email":"one@example.org"}`)})
	f.caughtUp(t, v)
	f.log.warp(func(*eventstore.Recorded) {})
	f.untilParked(t, v, func(all []Parked) bool { return len(all) == 0 })
	f.checkFolds(t, v, []string{a.Sub, b.Sub})
}
