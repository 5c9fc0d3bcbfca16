package domain

import (
	"context"
	"errors"
	"iter"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"accountledger/eventstore"
)

func (LedgerForked) sample() sample {
	return sample{event: LedgerForked{2, "accountledger/0190a1b2-0000-7000-8000-000000000001/2", "accountledger/0190a1b2-0000-7000-8000-000000000001/1",
		1200, "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=", 1234, "restored the backup of Tuesday"},
		clear: "Incarnation Origin PreviousOrigin Size Root SignedSize Reason"}
}

// fork is a command that forks l at its end.
func fork(t *testing.T, l *Ledger, number int) ForkLedger {
	t.Helper()
	size, err := l.log.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return ForkLedger{LedgerID: "accountledger/x", Incarnation: number, PreviousOrigin: "accountledger/x", Size: size, Root: "root", SignedSize: size + 3, Reason: "restored"}
}

func TestFork(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	mustExecute(t, l, by("", ""), "a", create("ada@example.com"))
	none, err := l.Lineage(t.Context())
	if err != nil || none.Last() != (Incarnation{}) || none.At(7).Number != 0 {
		t.Fatalf("Lineage of a ledger without forks = %+v, %v", none, err)
	}
	first := fork(t, l, 1)
	for name, change := range map[string]func(*ForkLedger){
		"/ledgerId":       func(c *ForkLedger) { c.LedgerID = "" },
		"/previousOrigin": func(c *ForkLedger) { c.PreviousOrigin = "" },
		"/incarnation":    func(c *ForkLedger) { c.Incarnation = 0 },
		"/size":           func(c *ForkLedger) { c.Size-- },
		"/root":           func(c *ForkLedger) { c.Root = "" },
		"/reason":         func(c *ForkLedger) { c.Reason = "" },
	} {
		c := first
		change(&c)
		_, err := l.Fork(t.Context(), by("", ""), c)
		if refusal, ok := errors.AsType[*Error](err); !ok || len(refusal.Faults) != 1 || refusal.Faults[0].Pointer != name {
			t.Errorf("Fork with a wrong %s = %v", name, err)
		}
	}
	dry := by("", "")
	dry.DryRun = true
	if r, err := l.Fork(t.Context(), dry, first); err != nil || len(r.Events) != 1 {
		t.Errorf("a dry run = %+v, %v", r, err)
	}
	r, err := l.Fork(t.Context(), by("", ""), first)
	if err != nil || len(r.Events) != 1 || r.Events[0].Position != first.Size+1 || r.Events[0].Stream != LineageStream {
		t.Fatalf("Fork = %+v, %v", r, err)
	}
	// The command was interrupted, and the operator repeats it.
	if again, err := l.Fork(t.Context(), by("", ""), first); err != nil || len(again.Events) != 0 {
		t.Errorf("the same fork again = %+v, %v; want no event", again, err)
	}
	if _, err := l.Fork(t.Context(), by("", ""), fork(t, l, 1)); CodeOf(err) != CodeInvalidRequest {
		t.Errorf("the same number again = %v", err)
	}
	mustExecute(t, l, by("", ""), "b", create("bob@example.com"))
	second := fork(t, l, 4) // the numbers between were rolled back
	if _, err := l.Fork(t.Context(), by("", ""), second); err != nil {
		t.Fatal(err)
	}
	kept, err := l.Lineage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	fresh, err := NewLedger(LedgerConfig{Log: l.log, Codec: l.codec}).Lineage(t.Context())
	if diff := cmp.Diff(kept, fresh, cmp.AllowUnexported(Incarnation{})); err != nil || diff != "" {
		t.Errorf("the lineage in memory and in the log differ: %v\n%s", err, diff)
	}
	want := []Incarnation{{}, {Number: 1, Fork: first.Size, First: first.Size + 1, Origin: "accountledger/x/1", Reason: "restored"},
		{Number: 4, Fork: second.Size, First: second.Size + 1, Origin: "accountledger/x/4", Reason: "restored"}}
	if diff := cmp.Diff(want, fresh.Incarnations, cmpopts.IgnoreFields(Incarnation{}, "Time"), cmpopts.IgnoreUnexported(Incarnation{})); diff != "" {
		t.Errorf("incarnations (-want +got):\n%s", diff)
	}
	for p, number := range map[eventstore.Position]int{0: 0, first.Size: 0, first.Size + 1: 1, second.Size: 1, second.Size + 1: 4, 1000: 4} {
		if got := fresh.At(p).Number; got != number {
			t.Errorf("At(%d) = %d, want %d", p, got, number)
		}
	}
}

// tampered is a log whose proven reads fail.
type tampered struct{ eventstore.Store }

func (tampered) ReadProven(context.Context, string, eventstore.Revision) iter.Seq2[eventstore.Recorded, error] {
	return func(yield func(eventstore.Recorded, error) bool) {
		yield(eventstore.Recorded{}, eventstore.ErrTampered)
	}
}

func TestForgedFork(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.log = tampered{l.log}
	if _, err := l.Lineage(t.Context()); !errors.Is(err, eventstore.ErrTampered) {
		t.Errorf("Lineage of a log with a forged fork = %v", err)
	}
}

// TestShared compares Shared with logs that are written, rolled back and written
// again: two logs share the positions that hold the same events in both.
func TestShared(t *testing.T) {
	t.Parallel()
	type event struct{ incarnation int }
	type log struct {
		events  []*event
		lineage *Lineage
	}
	grow := func(l log, number, n int) log {
		l.events = slices.Clone(l.events)
		for range n {
			l.events = append(l.events, &event{number})
		}
		return l
	}
	rollBack := func(l log, number, size, n int) log {
		x := Entry{Event: LedgerForked{Incarnation: number, Size: eventstore.Position(size)}}
		lineage := newLineage()
		for _, i := range l.lineage.Incarnations[1:] {
			if int(i.Fork) < size {
				lineage = lineage.with(Entry{Event: LedgerForked{Incarnation: i.Number, Size: i.Fork}})
			}
		}
		return grow(log{l.events[:size], lineage.with(x)}, number, n)
	}
	origin := grow(log{lineage: newLineage()}, 0, 12)
	once := rollBack(origin, 1, 8, 6)
	logs := map[string]log{"never": origin, "once": once, "twice": rollBack(once, 2, 11, 3), "before the first fork": rollBack(once, 2, 5, 9),
		"at the first fork": rollBack(once, 2, 8, 4), "from an older copy": rollBack(origin, 3, 7, 4), "from a copy beyond the second fork": rollBack(origin, 3, 10, 4)}
	for from, a := range logs {
		for to, b := range logs {
			for p := range eventstore.Position(len(a.events) + 1) {
				forks := a.lineage.Forks(p)
				shared, forked, known := b.lineage.Shared(forks)
				same := int(p) <= len(b.events) && slices.Equal(a.events[:p], b.events[:min(int(p), len(b.events))])
				if int(p) > len(b.events) && !forked {
					continue // beyond the end: not a question of forks
				}
				if got := known && (!forked || p <= shared); got != same {
					t.Errorf("a reader of %q at %d can go on with %q: %v (shared %d), want %v", from, p, to, got, shared, same)
				}
				if known && forked && p > shared && !slices.Equal(a.events[:shared], b.events[:shared]) {
					t.Errorf("a reader of %q at %d is sent back to %d in %q, which is too far on", from, p, shared, to)
				}
			}
		}
	}
}

// TestForkedStreams: an event keeps its stream while it exists, and none that
// replaces it has the same one.
func TestForkedStreams(t *testing.T) {
	t.Parallel()
	x := Entry{ID: NewID(), Stream: "account-s", Event: StatusChanged{From: StatusPending, To: StatusVerified}}
	for number, want := range map[int]string{0: "account-s", 1: "account-s~1", 12: "account-s~12"} {
		public, err := Public(x, number)
		if err != nil || public[0].Stream != want || public[0].Incarnation != number {
			t.Errorf("in incarnation %d: %+v, %v; want stream %s", number, public, err, want)
		}
	}
}
