package sqlite

import (
	"crypto/sha256"
	"database/sql/driver"
	"io"
	"time"

	"accountledger/eventstore"
	"accountledger/eventstore/tlog"
)

// This file contains the checks of Verify that look at one row at a time.

// eventRow is a row of events joined with its stream and its sealed part.
type eventRow struct {
	eventstore.Recorded
	num        int64 // number of the stream
	prev       tlog.Hash
	sealedHash tlog.Hash
	leaf       tlog.Hash
	hasSealed  bool
}

// eventColumns are the columns of selectEvents.
const eventColumns = 14

// selectEvents selects events with all that their leaves consist of. With outer
// joins, an event whose stream is missing is reported as damaged, not skipped.
const selectEvents = `SELECT e.position, e.stream, s.name, e.revision, e.time, e.id, e.type, e.actor, e.clear,
		e.prev, e.kid, e.sealed_hash, e.leaf_hash, p.bytes
	FROM events e LEFT JOIN streams s ON s.num = e.stream LEFT JOIN sealed p ON p.position = e.position`

// decodeEvent decodes a row of selectEvents. It returns false if the store cannot
// have written the row, so that no hash of it can be right.
func decodeEvent(row []driver.Value) (e eventRow, ok bool) {
	f := fields{row: row}
	e.Position = eventstore.Position(f.int())
	e.num, e.Stream, e.Revision = f.int(), f.text(), eventstore.Revision(f.int())
	e.Time = time.UnixMicro(f.int()).UTC()
	e.ID, e.Type, e.Actor, e.Clear = f.id(), f.text(), f.text(), f.blob()
	// NULL and a zero hash have the same leaf, but the store only writes NULL.
	hasPrev := f.maybe()
	if hasPrev {
		e.prev = f.hash()
	}
	hasKey := f.maybe()
	if hasKey {
		e.KeyID = f.hash()
	}
	hasHash := f.maybe()
	if hasHash {
		e.sealedHash = f.hash()
	}
	e.leaf = f.hash()
	if e.hasSealed = f.maybe(); e.hasSealed {
		e.Sealed = f.blob()
	}
	return e, !f.bad && hasPrev == (e.Revision > 0) && hasKey == hasHash && hasKey == (e.KeyID != eventstore.KeyID{})
}

// leafHash computes the leaf hash of the row's columns into buf. It returns false
// if the store cannot have appended such an event.
func (e *eventRow) leafHash(buf []byte) (tlog.Hash, []byte, bool) {
	leaf := tlog.NewLeaf(e.Recorded, e.prev, e.sealedHash)
	h, buf, err := leaf.HashIn(buf)
	return h, buf, err == nil
}

// checkRows checks the events from first to last one by one and stores the
// results in events, indexed by the distance from first. It returns the number
// of events and reports whether all of them could be read.
func (v *verification) checkRows(first, last int64, events *[tlog.TileWidth]checked) (count int, readable bool, err error) {
	rows, err := v.block.query(first, last)
	if err != nil {
		return 0, false, v.unreadable(first, err)
	}
	defer rows.Close()
	for at := first; err == nil; {
		if err = rows.Next(v.row[:]); err == io.EOF {
			return count, true, nil
		} else if err != nil {
			return count, false, v.unreadable(at, classify(err))
		}
		e, ok := decodeEvent(v.row[:])
		at = int64(e.Position) + 1
		if e.Position < eventstore.Position(first) || e.Position > eventstore.Position(last) {
			continue // happens only in a damaged B-tree, in which rows are then missing
		}
		count++
		c := &events[int64(e.Position)-first]
		*c = checked{exists: true, stored: e.leaf, time: e.Time.UnixMicro()}
		if ok {
			c.computed, v.buf, ok = e.leafHash(v.buf)
			c.sound = ok && c.computed == c.stored
		}
		if !c.sound {
			v.report.fault(Altered, int64(e.Position), "the event does not match its leaf hash")
		}
		err = v.checkEvent(&e, c.sound)
	}
	return count, false, err
}

// checkEvent checks an event against its stream, its sealed part and the
// previous event. It does not check an event that is not sound, which checkRows
// has reported: its columns prove nothing about other events.
func (v *verification) checkEvent(e *eventRow, sound bool) error {
	s := &v.streams[uint64(e.num)%uint64(len(v.streams))]
	if sound {
		if e.Time.UnixMicro() < v.time {
			v.report.warn(TimeBack, int64(e.Position), "its time is earlier than that of the previous event")
		}
		v.time = e.Time.UnixMicro()
		if err := v.checkChain(e, s); err != nil {
			return err
		}
		if err := v.checkSealed(e); err != nil {
			return err
		}
	}
	if s.num != e.num {
		*s = seen{num: e.num}
	}
	s.revision, s.position, s.leaf = int64(e.Revision), int64(e.Position), e.leaf
	return nil
}

// checkChain checks that the event follows the previous event of its stream:
// that its prev is that event's leaf hash.
func (v *verification) checkChain(e *eventRow, s *seen) error {
	if e.Revision == 0 {
		return nil
	}
	at, leaf := s.position, s.leaf
	if s.num != e.num || s.revision != int64(e.Revision)-1 {
		found, err := v.predecessor.row(v.row[:2], e.num, int64(e.Revision)-1)
		if err != nil {
			return v.unreadable(int64(e.Position), err)
		}
		if !found {
			v.report.fault(Chain, int64(e.Position), "the previous event of its stream is missing")
			return nil
		}
		f := fields{row: v.row[:2]}
		if at, leaf = f.int(), f.hash(); f.bad {
			return nil // that event is reported as altered
		}
	}
	switch {
	case at >= int64(e.Position):
		v.report.fault(Chain, int64(e.Position), "the previous event of its stream is at the later position %d", at)
	case leaf != e.prev:
		v.report.fault(Chain, at, "the next event of its stream, at %d, was appended to a different event", e.Position)
	}
	return nil
}

// checkSealed checks the sealed part, or that an erasure explains its absence.
func (v *verification) checkSealed(e *eventRow) error {
	sealed := e.KeyID != eventstore.KeyID{}
	switch {
	case e.hasSealed && (!sealed || sha256.Sum256(e.Sealed) != e.sealedHash):
		v.report.fault(SealedAltered, int64(e.Position), "the sealed part does not match the event's hash of it")
		return nil
	case e.hasSealed || !sealed:
		return nil
	}
	if v.erased == nil {
		if err := v.readErasures(); err != nil {
			return v.unreadable(int64(e.Position), err)
		}
	}
	if v.erased[e.KeyID] <= int64(e.Position) {
		v.report.fault(UnexplainedErasure, int64(e.Position), "the sealed part is missing, and no later event says that its key was destroyed")
	}
	return nil
}

// readErasures reads the erasure events and fills v.erased. It runs once, when
// the first sealed part is missing. Its memory use grows with the number of
// erased keys.
func (v *verification) readErasures() error {
	v.erased = map[eventstore.KeyID]int64{}
	if v.trust.ErasedKey == nil {
		return nil
	}
	for _, storedType := range v.trust.Erasures {
		err := v.erasures.each(2, func(f *fields) error {
			position, clear := f.int(), f.blob()
			if key, ok := v.trust.ErasedKey(storedType, clear); ok && !f.bad {
				v.erased[key] = position
			}
			return nil
		}, storedType, v.head)
		if err != nil {
			return err
		}
	}
	return nil
}
