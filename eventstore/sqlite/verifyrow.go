package sqlite

import (
	"crypto/sha256"
	"database/sql/driver"
	"io"
	"time"

	"accountledger/eventstore"
	"accountledger/eventstore/tlog"
)

// This is the part of a verification that looks at one row at a time.

// eventRow is a row of events with what other tables have to it.
type eventRow struct {
	eventstore.Recorded
	num        int64 // of the stream
	prev       tlog.Hash
	sealedHash tlog.Hash
	leaf       tlog.Hash
	hasSealed  bool
}

// readRow takes an event out of v.row. It is not ok where the store would not
// have written such a row: then no hash can be right.
func (v *verification) readRow() (e eventRow, ok bool) {
	f := fields{row: v.row[:]}
	e.Position = eventstore.Position(f.int())
	e.num, e.Stream, e.Revision = f.int(), f.text(), eventstore.Revision(f.int())
	e.Time = time.UnixMicro(f.int())
	e.ID, e.Type, e.Actor, e.Clear = f.id(), f.text(), f.text(), f.blob()
	// Either way of writing "none" would have the same leaf; only one is ours.
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

// checkRows checks the events from first to last one by one and fills in what
// it found, by their distance from first. It counts them, and says whether all
// that are there could be read.
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
		e, ok := v.readRow()
		at = int64(e.Position) + 1
		if e.Position < eventstore.Position(first) || e.Position > eventstore.Position(last) {
			continue // only in a damaged tree of pages, whose other rows are then missing
		}
		count++
		c := &events[int64(e.Position)-first]
		*c = checked{there: true, stored: e.leaf, time: e.Time.UnixMicro()}
		if ok {
			leaf := tlog.NewLeaf(e.Recorded, e.prev, e.sealedHash)
			if c.ours, v.buf, err = leaf.HashIn(v.buf); err == nil {
				c.sound = c.ours == c.stored
			}
			err = nil // what AL1 cannot hold was not appended
		}
		if !c.sound {
			v.report.fault(Altered, int64(e.Position), "the event does not have its leaf hash")
		}
		err = v.checkEvent(&e, c.sound)
	}
	return count, false, err
}

// checkEvent checks an event against its stream, its sealed part and the
// event before it. If it is not sound it is named already, and no witness
// against others.
func (v *verification) checkEvent(e *eventRow, sound bool) error {
	s := &v.streams[uint64(e.num)%uint64(len(v.streams))]
	if sound {
		if e.Time.UnixMicro() < v.time {
			v.report.warn(TimeBack, int64(e.Position), "it is dated before the event before it")
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

// checkChain checks that the event was appended to the one that precedes it in
// its stream.
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
			v.report.fault(Chain, int64(e.Position), "the event before it in its stream is not there")
			return nil
		}
		f := fields{row: v.row[:2]}
		if at, leaf = f.int(), f.hash(); f.bad {
			return nil // named as altered itself
		}
	}
	switch {
	case at >= int64(e.Position):
		v.report.fault(Chain, int64(e.Position), "the event before it in its stream is at %d", at)
	case leaf != e.prev:
		v.report.fault(Chain, at, "the next event of its stream, at %d, was appended to another one", e.Position)
	}
	return nil
}

// checkSealed checks the sealed part, or what explains that it is gone.
func (v *verification) checkSealed(e *eventRow) error {
	sealed := e.KeyID != eventstore.KeyID{}
	switch {
	case e.hasSealed && (!sealed || sha256.Sum256(e.Sealed) != e.sealedHash):
		v.report.fault(SealedAltered, int64(e.Position), "the sealed part is not the event's")
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
		v.report.fault(UnexplainedErasure, int64(e.Position), "the sealed part is gone, and no later event says that its key was destroyed")
	}
	return nil
}

// readErasures collects what erasures there are. Most logs that lack a sealed
// part lack many, so it is done once; it takes memory by the erased account.
func (v *verification) readErasures() error {
	v.erased = map[eventstore.KeyID]int64{}
	if v.trust.ErasedKey == nil {
		return nil
	}
	for _, storedType := range v.trust.Erasures {
		rows, err := v.erasures.query(storedType, v.head)
		if err != nil {
			return err
		}
		for row := make([]driver.Value, 2); rows.Next(row) == nil; {
			f := fields{row: row}
			position, clear := f.int(), f.blob()
			if key, ok := v.trust.ErasedKey(storedType, clear); ok && !f.bad {
				v.erased[key] = position
			}
		}
		rows.Close()
	}
	return nil
}
