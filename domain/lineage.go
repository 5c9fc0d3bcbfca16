package domain

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"accountledger/eventstore"
)

// Lineage is the list of the ledger's incarnations. It is the fold of one stream,
// and stays in memory. A value never changes.
//
// A ledger that is rolled back, usually to an older backup, loses its last events
// and reuses their positions and revisions. Everything that the ledger tells other
// systems about a position therefore names the incarnation as well.
type Lineage struct {
	Incarnations []Incarnation       // oldest first; the first one has number 0
	Revision     eventstore.Revision // of its stream
	Position     eventstore.Position // of its last event
}

// Incarnation is the ledger between two roll-backs.
type Incarnation struct {
	Number int                 // unique, and higher than those before; 0 for a ledger that was never rolled back
	Fork   eventstore.Position // of the last event that it shares with the incarnations before
	First  eventstore.Position // of its first event, LedgerForked; 0 for incarnation 0
	Origin string              // of its checkpoints; "" for incarnation 0, whose origin is the ledger's id
	Time   time.Time           // when it began; zero for incarnation 0
	Reason string

	root string // of the tree at Fork
}

// Fork is the place in the log at which an incarnation began.
type Fork struct {
	Incarnation int
	Position    eventstore.Position // of the last event before it
}

// newLineage returns the lineage of a ledger that was never rolled back.
func newLineage() *Lineage {
	return &Lineage{Incarnations: []Incarnation{{}}, Revision: eventstore.NoStream}
}

// Last returns the present incarnation.
func (l *Lineage) Last() Incarnation { return l.Incarnations[len(l.Incarnations)-1] }

// At returns the incarnation that the event at a position belongs to. Events that
// were recorded before a fork keep the incarnation that they had.
func (l *Lineage) At(p eventstore.Position) Incarnation {
	for _, i := range slices.Backward(l.Incarnations) {
		if i.Fork < p {
			return i
		}
	}
	return l.Incarnations[0]
}

// Forks returns the forks before the event at a position, oldest first. Together
// with the position they say which events a reader of the log has seen.
func (l *Lineage) Forks(p eventstore.Position) (all []Fork) {
	for _, i := range l.Incarnations[1:] {
		if i.Fork < p {
			all = append(all, Fork{i.Number, i.Fork})
		}
	}
	return all
}

// Shared returns up to which position this log has the same events as the one in
// which a client has seen these forks and none after them. forked is false if
// everything after the forks is the same as well. known is false if the forks are
// not all in this log, and no fork in it explains that.
func (l *Lineage) Shared(forks []Fork) (shared eventstore.Position, forked, known bool) {
	mine := l.Incarnations[1:]
	for i, f := range forks {
		if i == len(mine) {
			return 0, true, false
		}
		if mine[i].Number != f.Incarnation || mine[i].Fork != f.Position {
			return min(mine[i].Fork, f.Position), true, true
		}
	}
	if len(mine) == len(forks) {
		return 0, false, true
	}
	return mine[len(forks)].Fork, true, true
}

func (l *Lineage) head() head {
	return head{stream: LineageStream, revision: l.Revision, position: l.Position}
}

func (*Lineage) initial() *Lineage { return newLineage() }

func (l *Lineage) with(entries ...Entry) *Lineage {
	after := *l
	after.Incarnations = slices.Clone(l.Incarnations)
	for _, x := range entries {
		e, ok := x.Event.(LedgerForked)
		if !ok {
			panic("domain: " + x.Type + " does not belong to the lineage")
		}
		after.Incarnations = append(after.Incarnations, Incarnation{Number: e.Incarnation, Fork: e.Size, First: x.Position,
			Origin: e.Origin, Time: x.Time, Reason: e.Reason, root: e.Root})
		after.Revision, after.Position = x.Revision, x.Position
	}
	return &after
}

// LineageStream is the stream that holds the forks of the log.
const LineageStream = "ledger"

// LedgerForked begins a new incarnation of the ledger. It is the first event after
// the fork.
type LedgerForked struct {
	Incarnation    int                 `json:"incarnation" pii:"clear"`
	Origin         string              `json:"origin" pii:"clear"`         // of checkpoints from now on
	PreviousOrigin string              `json:"previousOrigin" pii:"clear"` // of the last checkpoint before
	Size           eventstore.Position `json:"size" pii:"clear"`           // number of events that remain
	Root           string              `json:"root" pii:"clear"`           // of their tree; base64, as in checkpoints
	SignedSize     eventstore.Position `json:"signedSize" pii:"clear"`     // highest size that a checkpoint was signed for; 0: not known
	Reason         string              `json:"reason" pii:"clear"`
}

func (LedgerForked) eventType() string { return "ledger.forked.v1" }

func (e LedgerForked) public(Entry) []publicEvent {
	return []publicEvent{{"LEDGER_FORKED", ledgerForked{e.Incarnation, e.Size, e.Root, e.Origin, e.PreviousOrigin, e.SignedSize, e.Reason}}}
}

func (LedgerForked) catalogue() []PublicType {
	return []PublicType{{Name: "LEDGER_FORKED", When: "the ledger was rolled back to an earlier state and continues from there", Data: ledgerForked{}}}
}

type ledgerForked struct {
	Incarnation    int                 `json:"incarnation" doc:"The number of the ledger's new incarnation. The stream of each later event ends in a tilde and this number."`
	Fork           eventstore.Position `json:"fork" doc:"The log position of the last event that remains. The ledger lost all events after it."`
	Root           string              `json:"root" doc:"The root of the log's Merkle tree at that position, in base64."`
	Origin         string              `json:"origin" doc:"The origin of the log's checkpoints from now on."`
	PreviousOrigin string              `json:"previousOrigin" doc:"The origin of the checkpoints before."`
	SignedSize     eventstore.Position `json:"signedSize,omitzero" doc:"The highest log position that a checkpoint was signed for, if it is known: at least the events up to it existed."`
	Reason         string              `json:"reason" doc:"Why the ledger was rolled back."`
}

// ForkLedger begins a new incarnation after a roll-back.
type ForkLedger struct {
	LedgerID       string // the origin of the checkpoints of incarnation 0
	Incarnation    int    // above every number that the ledger ever used
	PreviousOrigin string // of the last checkpoint that was signed
	Size           eventstore.Position
	Root           string // of the log, base64
	SignedSize     eventstore.Position
	Reason         string // permanent and public, so not personal; 1 to 1024 characters
}

// decide returns the events that c causes in a log of a size.
func (c ForkLedger) decide(l *Lineage, size eventstore.Position) ([]Event, error) {
	last := l.Last()
	if last.Number > 0 && last.Number == c.Incarnation && last.Fork == c.Size && last.root == c.Root && last.First == size {
		return nil, nil // interrupted after the event was appended
	}
	var f faults
	if c.LedgerID == "" {
		f.add("/ledgerId", "must be given")
	}
	if c.PreviousOrigin == "" {
		f.add("/previousOrigin", "must be given")
	}
	if c.Incarnation <= last.Number {
		f.add("/incarnation", "must be above that of the last fork in the log, %d", last.Number)
	}
	if c.Size != size {
		f.add("/size", "must be the number of events in the log, %d", size)
	}
	if c.Root == "" {
		f.add("/root", "must be given")
	}
	if c.Reason == "" {
		f.add("/reason", "must be given")
	}
	f.text("/reason", c.Reason, 1024)
	if err := f.err(); err != nil {
		return nil, err
	}
	return []Event{LedgerForked{c.Incarnation, c.LedgerID + "/" + strconv.Itoa(c.Incarnation), c.PreviousOrigin, c.Size, c.Root, c.SignedSize, c.Reason}}, nil
}

// Lineage returns the ledger's incarnations. It reads them once, and fails with
// eventstore.ErrTampered if a fork was forged.
func (l *Ledger) Lineage(ctx context.Context) (*Lineage, error) {
	if lineage := l.lineage.Load(); lineage != nil {
		return lineage, nil
	}
	l.forking.Lock()
	defer l.forking.Unlock()
	return l.loadLineage(ctx)
}

// loadLineage applies the events that the Lineage in memory does not have yet. The
// caller holds l.forking.
func (l *Ledger) loadLineage(ctx context.Context) (*Lineage, error) {
	lineage := l.lineage.Load()
	if lineage == nil {
		lineage = newLineage()
	}
	var more []Entry
	for rec, err := range l.log.ReadProven(ctx, LineageStream, lineage.Revision+1) {
		if err != nil {
			return nil, fmt.Errorf("domain: read %s: %w", LineageStream, err)
		}
		x, err := l.codec.Decode(rec)
		if err != nil {
			return nil, err
		}
		more = append(more, x)
	}
	lineage = lineage.with(more...)
	l.lineage.Store(lineage)
	return lineage, nil
}

// Fork carries out cmd, and so begins a new incarnation. The event is durable when
// it returns. A refusal is an *Error. Nothing else may write to the log meanwhile:
// only the offline command calls Fork.
func (l *Ledger) Fork(ctx context.Context, r Request, cmd ForkLedger) (Result[*Lineage], error) {
	return observed(ctx, l, cmd, r, func() (Result[*Lineage], error) {
		l.forking.Lock()
		defer l.forking.Unlock()
		return retry(func() (Result[*Lineage], error) {
			before, err := l.loadLineage(ctx)
			if err != nil {
				return Result[*Lineage]{}, err
			}
			size, err := l.log.Head(ctx)
			if err != nil {
				return Result[*Lineage]{}, err
			}
			return carryOut(ctx, l, order[*Lineage]{
				Request:  r,
				noun:     "ledger",
				revision: func(l *Lineage) eventstore.Revision { return l.Revision },
				decide: func(time.Time, []*Lineage) ([][]Event, error) {
					events, err := cmd.decide(before, size)
					return [][]Event{events}, err
				},
				keep: func(lineage *Lineage) { l.lineage.Store(lineage) },
			}, []*Lineage{before})
		})
	})
}
