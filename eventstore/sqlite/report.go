package sqlite

import (
	"fmt"

	"accountledger/eventstore"
	"accountledger/eventstore/tlog"
)

// Kind classifies a finding of Verify.
type Kind string

// The kinds of findings. All but the last two are faults.
const (
	Altered            Kind = "altered"             // the event does not match its hash or the tree
	Missing            Kind = "missing"             // there is no event at this position
	Chain              Kind = "chain"               // the next event of the stream does not follow this one, or this one's predecessor is missing
	SealedAltered      Kind = "sealed-altered"      // the sealed part does not match its hash, or the event should not have one
	UnexplainedErasure Kind = "unexplained-erasure" // the sealed part is missing, and no later event says that its key was destroyed
	TileAltered        Kind = "tile-altered"        // a tile does not match the tree; the position is the first that the wrong hash covers
	CheckpointAltered  Kind = "checkpoint-altered"  // the stored checkpoint of this size is not a valid checkpoint of the log
	Root               Kind = "root"                // a checkpoint of this size was signed for a different tree
	OriginAltered      Kind = "origin-altered"      // the log names another origin than its key
	Truncated          Kind = "truncated"           // the log ends here, but an anchor proves that it was longer
	Unreadable         Kind = "unreadable"          // part of the file from here on is damaged and cannot be read

	Uncovered Kind = "uncovered" // no checkpoint covers the events from here on
	TimeBack  Kind = "time"      // the event's time is earlier than its predecessor's
)

// Fault is one finding.
type Fault struct {
	Kind     Kind
	Position eventstore.Position // of the event, or the size of the checkpoint
	Detail   string              // a sentence for people, without personal data
}

// String returns the kind and the position: "altered@123".
func (f Fault) String() string { return fmt.Sprintf("%s@%d", f.Kind, f.Position) }

// maxFaults is the number of findings that a report lists at most, so that a
// report on a badly damaged file fits into memory.
const maxFaults = 1000

// Report is the result of Verify.
type Report struct {
	Events      int64     // number of positions checked, which is the log's size
	Checkpoints int       // number of checkpoints and anchors that match the log
	Covered     int64     // size of the largest of them
	Faults      []Fault   // proof of damage or tampering; the first maxFaults found
	Unlisted    int64     // number of further faults
	Warnings    []Fault   // findings that prove nothing by themselves
	Root        tlog.Hash // of the tree over the events; zero if one of its hashes is missing
}

// OK reports whether Verify found no faults.
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

// missing reports each position from first to last as missing.
func (r *Report) missing(first, last int64) {
	for ; first <= last && len(r.Faults) < maxFaults; first++ {
		r.fault(Missing, first, "there is no event at this position")
	}
	r.Unlisted += max(0, last-first+1)
}
