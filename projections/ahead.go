package projections

import (
	"context"
	"fmt"
	"path/filepath"

	"accountledger/eventstore"
)

// Mark says which log a file has followed, and how far.
type Mark struct {
	Ledger   string              // id of the ledger; "" if the file does not name it
	Position eventstore.Position // of the last event that the file has seen
	Event    [16]byte            // the id of that event; zero if the file does not have it
}

// The reasons of an AheadError.
const (
	OtherLedger = "ledger" // the file names another ledger
	AheadOfLog  = "ahead"  // the file has seen events that the log does not have
	OtherEvent  = "event"  // the log has another event at the position that the file has seen
)

// AheadError is the refusal to open a file that has followed another log than
// the one beside it, or an earlier state of it. The file is unchanged: it may be
// the last copy of what the log has lost.
type AheadError struct {
	File       string              // its path
	Seen, Head eventstore.Position // of the file, and of the log
	Why        string              // OtherLedger, AheadOfLog or OtherEvent
}

func (e *AheadError) Error() string {
	name := filepath.Base(e.File)
	switch e.Why {
	case OtherLedger:
		return name + " belongs to another ledger than log.db"
	case AheadOfLog:
		return fmt.Sprintf("%s has seen event %d, but log.db ends at event %d", name, e.Seen, e.Head)
	default:
		return fmt.Sprintf("%s has seen another event at position %d than log.db has there", name, e.Seen)
	}
}

// Check returns an *AheadError unless the file at path, which has the mark m, has
// seen only events that the log of a ledger has. It does not compare ids of
// ledgers that are "".
func (m Mark) Check(ctx context.Context, path, ledger string, log eventstore.Store) error {
	head, err := log.Head(ctx)
	if err != nil {
		return err
	}
	refusal := &AheadError{File: path, Seen: m.Position, Head: head}
	switch {
	case m.Ledger != "" && ledger != "" && m.Ledger != ledger:
		refusal.Why = OtherLedger
		return refusal
	case m.Position > head:
		refusal.Why = AheadOfLog
		return refusal
	case m.Position == 0 || m.Event == [16]byte{}:
		return nil
	}
	found, err := eventAt(ctx, log, m.Position)
	if err == nil && found != m.Event {
		refusal.Why = OtherEvent
		err = refusal
	}
	return err
}

// eventAt returns the id of the event at a position of the log.
func eventAt(ctx context.Context, log eventstore.Store, position eventstore.Position) (id [16]byte, err error) {
	for page, err := range log.Subscribe(ctx, position-1) {
		if err != nil {
			return id, err
		}
		return page[0].ID, nil
	}
	return id, ctx.Err()
}
