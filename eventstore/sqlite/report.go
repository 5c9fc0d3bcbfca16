package sqlite

import (
	"fmt"

	"accountledger/eventstore"
)

// Kind says what is wrong at a position of the log.
type Kind string

// What a verification finds. All but the last two are faults.
const (
	Altered            Kind = "altered"             // the event is not the one that the tree holds
	Missing            Kind = "missing"             // there is no event
	Chain              Kind = "chain"               // the next event of its stream was appended to another one, or its own predecessor is not there
	SealedAltered      Kind = "sealed-altered"      // the sealed part is not the event's
	UnexplainedErasure Kind = "unexplained-erasure" // the sealed part is gone, and nothing later in its stream says why
	TileAltered        Kind = "tile-altered"        // a tile is not that of the tree; the position is the first that the wrong hash covers
	CheckpointAltered  Kind = "checkpoint-altered"  // what is stored for this size is not a checkpoint of the log
	Root               Kind = "root"                // a checkpoint of this size is signed for another tree
	Truncated          Kind = "truncated"           // the log ends here, but it was longer
	Unreadable         Kind = "unreadable"          // from here on the file could not be read for a while

	Uncovered Kind = "uncovered" // from here on no checkpoint says what the log holds
	TimeBack  Kind = "time"      // the event is dated before its predecessor
)

// Fault is one finding.
type Fault struct {
	Kind     Kind
	Position eventstore.Position // or size, which is the position of the last event
	Detail   string              // for a reader; no personal data
}

// String returns the kind and the place: "altered@123".
func (f Fault) String() string { return fmt.Sprintf("%s@%d", f.Kind, f.Position) }

// maxFaults is how many findings a report lists, so that no file, however
// damaged, makes one that does not fit into memory.
const maxFaults = 1000

// Report is what a verification of a whole log found.
type Report struct {
	Events      int64   // positions that were looked at: the log's size
	Checkpoints int     // that were signed for exactly this log
	Covered     int64   // size of the largest of them
	Faults      []Fault // what proves damage or tampering: the first of them, in the order of the log
	Unlisted    int64   // how many more faults there are
	Warnings    []Fault // what proves nothing by itself
}

// OK reports whether no fault was found.
func (r *Report) OK() bool { return len(r.Faults) == 0 }

func (r *Report) fault(k Kind, at int64, format string, args ...any) {
	if len(r.Faults) == maxFaults {
		r.Unlisted++
		return
	}
	r.Faults = append(r.Faults, Fault{k, eventstore.Position(at), fmt.Sprintf(format, args...)})
}

func (r *Report) warn(k Kind, at int64, format string, args ...any) {
	if len(r.Warnings) < maxFaults {
		r.Warnings = append(r.Warnings, Fault{k, eventstore.Position(at), fmt.Sprintf(format, args...)})
	}
}

// missing reports each position from first to last.
func (r *Report) missing(first, last int64) {
	for ; first <= last && len(r.Faults) < maxFaults; first++ {
		r.fault(Missing, first, "there is no event")
	}
	r.Unlisted += max(0, last-first+1)
}
