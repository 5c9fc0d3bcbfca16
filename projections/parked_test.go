package projections

import (
	"errors"
	"strings"
	"testing"

	"accountledger/domain"
	"accountledger/eventstore"
)

// TestParking checks that a stream with an event that cannot be applied is
// parked and shown in Status, that other streams are not affected, and that it
// continues when a retry succeeds.
func TestParking(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		rewrite func(*eventstore.Recorded) // changes the second event of one account
		want    string                     // in the error
	}{
		{"unknown type", func(rec *eventstore.Recorded) {
			rec.Type, rec.Sealed, rec.KeyID = "account.teleported.v1", nil, eventstore.KeyID{} // remove the seal, which is bound to the type
		}, "unknown event type"},
		{"another account's seal", func(rec *eventstore.Recorded) { rec.Sealed = []byte("xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx") }, "open"},
		{"malformed", func(rec *eventstore.Recorded) { rec.Clear = []byte(`{"meta":`) }, "decode"},
		{"not of an account", func(rec *eventstore.Recorded) {
			rec.Type, rec.Clear, rec.Sealed = "webhook.deleted.v1", []byte(`{"meta":{},"data":{}}`), nil
		}, "panic: domain: webhook.deleted.v1 does not belong"},
		{"out of order", func(rec *eventstore.Recorded) { rec.Revision, rec.Sealed, rec.KeyID = 7, nil, eventstore.KeyID{} }, "revision 7 follows 0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			broken, other := f.create(t, "broken@example.org"), f.create(t, "other@example.org")
			f.log.rewrite(func(rec *eventstore.Recorded) {
				if rec.Stream == domain.AccountStream(broken.Sub) && rec.Revision == 1 {
					tt.rewrite(rec)
				}
			})
			v := f.open(t)
			stop := run(t, v)
			for n := range 5 {
				f.change(t, broken.Sub, n)
				f.change(t, other.Sub, n)
			}
			head := f.awaitHead(t, v)
			f.checkFolds(t, v, []string{other.Sub})
			row, err := v.Accounts().Get(t.Context(), broken.Sub)
			if err != nil || row.Revision != 0 {
				t.Errorf("the parked account is at revision %d, %v, want 0", row.Revision, err)
			}
			status, err := v.Status(t.Context())
			if err != nil || len(status[0].Parked) != 1 || status[0].Lag != 0 || status[0].Position != head {
				t.Fatalf("Status = %+v, %v", status, err)
			}
			p := status[0].Parked[0]
			if p.Stream != domain.AccountStream(broken.Sub) || p.Revision != 1 || p.Position != 3 ||
				!strings.Contains(p.Error, tt.want) || strings.Contains(p.Error, "example.org") || p.Attempts < 1 || p.Since.IsZero() {
				t.Errorf("Parked = %+v, want revision 1 with an error about %q", p, tt.want)
			}

			// It stays parked after a restart and while retries fail.
			stop()
			v.Close()
			v = f.open(t)
			run(t, v)
			f.untilParked(t, v, func(all []Parked) bool { return len(all) == 1 && all[0].Attempts > p.Attempts+2 })
			f.change(t, other.Sub, 0)
			f.awaitHead(t, v)
			f.checkFolds(t, v, []string{other.Sub})

			f.log.rewrite(func(*eventstore.Recorded) {}) // as after an upgrade to a version that supports the event
			f.untilParked(t, v, func(all []Parked) bool { return len(all) == 0 })
			f.checkFolds(t, v, []string{broken.Sub, other.Sub})
			f.change(t, broken.Sub, 1)
			f.awaitHead(t, v)
			f.checkFolds(t, v, []string{broken.Sub, other.Sub})
		})
	}
}

// untilParked waits until ok returns true for the parked streams.
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

// TestParkedIdentifiers checks that a parked account does not take an identifier
// from the account that has it now.
func TestParkedIdentifiers(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	v := f.open(t)
	a := f.create(t, "one@example.org")
	f.log.rewrite(func(rec *eventstore.Recorded) {
		if rec.Stream == domain.AccountStream(a.Sub) && rec.Revision == 1 {
			rec.Type = "account.teleported.v1"
		}
	})
	// First in one batch with a's creation, then in a rebuild.
	f.execute(t, a.Sub, domain.UpdateProfile{Patch: []byte(`{"email":"two@example.org"}`)})
	b := f.create(t, "one@example.org")
	run(t, v)
	for range 2 {
		f.awaitHead(t, v)
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
	// b releases the address and a takes it back, while a's outdated row still
	// has it.
	f.execute(t, b.Sub, domain.UpdateProfile{Patch: []byte(`{"email":"three@example.org"}`)})
	f.execute(t, a.Sub, domain.UpdateProfile{Patch: []byte(`{"email":"one@example.org"}`)})
	f.awaitHead(t, v)
	f.log.rewrite(func(*eventstore.Recorded) {})
	f.untilParked(t, v, func(all []Parked) bool { return len(all) == 0 })
	f.checkFolds(t, v, []string{a.Sub, b.Sub})
}
