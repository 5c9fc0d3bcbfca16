package webhooks

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/go-json-experiment/json"

	"accountledger/domain"
	"accountledger/eventstore"
)

// obedient does to the letter what docs/webhooks.md asks of a receiver.
type obedient struct {
	applied []got
	seen    map[string]bool                // webhook-ids
	last    map[string]eventstore.Revision // applied sequence, by stream
}

func (o *obedient) take(t *testing.T, g got) {
	t.Helper()
	switch last, ok := o.last[g.Stream]; {
	case o.seen[g.ID] || ok && g.Sequence < last:
		return
	case g.Type == "LEDGER_FORKED":
		var data struct {
			Incarnation int
			Fork        eventstore.Position
		}
		if err := json.Unmarshal(g.Data, &data, json.MatchCaseInsensitiveNames(true)); err != nil {
			t.Fatal(err)
		}
		// What was applied above the fork in earlier incarnations is undone.
		o.applied = slices.DeleteFunc(o.applied, func(a got) bool { return positionOf(t, a) > data.Fork && incarnation(t, a) < data.Incarnation })
	}
	o.seen[g.ID], o.last[g.Stream] = true, g.Sequence
	o.applied = append(o.applied, g)
}

// positionOf returns the position of a delivery.
func positionOf(t *testing.T, g got) eventstore.Position {
	t.Helper()
	p, err := strconv.ParseInt(g.header.Get("Ledger-Position"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return eventstore.Position(p)
}

// incarnation returns the incarnation that a delivery's stream names.
func incarnation(t *testing.T, g got) int {
	t.Helper()
	_, number, ok := strings.Cut(g.Stream, "~")
	if !ok {
		return 0
	}
	n, err := strconv.Atoi(number)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// rollBack drops the events after a position and begins a new incarnation, as the
// offline command does while the server is stopped.
func (w *world) rollBack(size eventstore.Position, number int) {
	w.t.Helper()
	w.stop()
	w.log.mu.Lock()
	w.log.records = w.log.records[:size:size]
	last := w.log.records[size-1].ID
	for stream, places := range w.log.streams {
		w.log.streams[stream] = slices.DeleteFunc(slices.Clone(places), func(i int) bool { return i >= int(size) })
	}
	w.log.mu.Unlock()
	w.ledger = domain.NewLedger(domain.LedgerConfig{Log: w.log, Codec: w.config.Codec})
	w.config.Ledger = w.ledger
	if err := Rewind(w.t.Context(), w.config.Path, size, last); err != nil {
		w.t.Fatal(err)
	}
	w.open()
	if _, err := w.ledger.Fork(w.t.Context(), asAdmin, domain.ForkLedger{LedgerID: "accountledger/x", Incarnation: number, PreviousOrigin: "accountledger/x",
		Size: size, Root: "root", Reason: "a test"}); err != nil {
		w.t.Fatal(err)
	}
}

// TestRolledBack: the ledger is rolled back twice under a webhook that had received
// everything, and reuses positions and sequences. An obedient receiver then has
// exactly the events of the log, whichever it had before.
func TestRolledBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{}
		w := newWorld(t, Config{})
		w.transport = r
		w.run()
		w.hook("crm", "https://crm.example/hook", "*")
		w.account("ada")
		w.touch("ada", 3)
		w.account("bob")
		w.settled("crm")
		fork := w.head()
		w.touch("ada", 4)
		w.account("lost")
		w.touch("bob", 1)
		w.settled("crm")

		w.rollBack(fork, 1)
		w.run()
		w.touch("ada", 6) // at revisions 4 to 9, of which 4 to 7 are used
		w.touch("bob", 2)
		w.account("cy")
		w.settled("crm")
		later := w.head() - 4
		w.touch("cy", 1)
		w.settled("crm")

		w.rollBack(later, 2)
		w.run()
		w.touch("ada", 2)
		w.account("cy") // again
		w.touch("cy", 3)
		w.account("dan")
		w.settled("crm")

		o := &obedient{seen: map[string]bool{}, last: map[string]eventstore.Revision{}}
		for _, g := range r.got() {
			o.take(t, g)
		}
		want := w.everything("crm")
		has := map[string]bool{}
		for _, g := range o.applied {
			has[g.ID] = true
		}
		for _, id := range want {
			if !has[id] {
				t.Errorf("the receiver lost event %s", id)
			}
		}
		if len(o.applied) != len(want) {
			t.Errorf("the receiver has applied %d events, the log has %d", len(o.applied), len(want))
		}
		// The first event of each stream has no predecessor, and the others have the
		// one that the receiver got before them.
		last := map[string]eventstore.Revision{}
		for _, g := range r.got() {
			previous, ok := last[g.Stream]
			if ok != (g.PreviousSequence != nil) || ok && *g.PreviousSequence != previous {
				t.Errorf("%s %d: previous_sequence %v, the receiver has %d", g.Stream, g.Sequence, g.PreviousSequence, previous)
			}
			last[g.Stream] = g.Sequence
		}
		w.stop()
	})
}

// everything returns the ids of the public events that a webhook which selects
// everything is sent.
func (w *world) everything(id string) (ids []string) {
	w.t.Helper()
	lineage, err := w.ledger.Lineage(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	conf, err := w.ledger.Webhook(w.t.Context(), id)
	if err != nil {
		w.t.Fatal(err)
	}
	w.log.mu.Lock()
	records := slices.Clone(w.log.records)
	w.log.mu.Unlock()
	for _, rec := range records {
		x, err := w.config.Codec.Decode(rec)
		if err != nil {
			w.t.Fatal(err)
		}
		public, err := domain.Public(x, lineage.At(rec.Position).Number)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, p := range public {
			if rec.Position > conf.After {
				ids = append(ids, p.ID)
			}
		}
	}
	return ids
}

// An event that waits behind one from before the fork, in the same queue, still has
// no predecessor: the fork began its stream.
func TestPreviousAcrossFork(t *testing.T) {
	t.Parallel()
	for _, start := range []string{"while the first waits", "after the first"} {
		t.Run(start, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := &receiver{}
				w := newWorld(t, Config{})
				w.transport = r
				w.hook("crm", "https://crm.example/hook", "USER_*")
				w.account("ada")
				if start == "after the first" {
					w.run()
					w.settled("crm")
				}
				w.rollBack(w.head(), 1)
				w.touch("ada", 2)
				w.run()
				w.settled("crm")
				var got []string
				for _, g := range r.got() {
					previous := "none"
					if g.PreviousSequence != nil {
						previous = fmt.Sprint(*g.PreviousSequence)
					}
					got = append(got, fmt.Sprintf("%s %d after %s", g.Stream, g.Sequence, previous))
				}
				want := []string{"account-ada 0 after none", "account-ada~1 1 after none", "account-ada~1 2 after 1"}
				if !slices.Equal(got, want) {
					t.Errorf("got %q, want %q", got, want)
				}
				w.stop()
			})
		})
	}
}
