package sqlite

import (
	"bytes"
	"cmp"
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"math"
	"slices"

	"golang.org/x/mod/sumdb/note"

	"accountledger/eventstore"
	"accountledger/eventstore/tlog"
)

// Trust holds what Verify trusts: information about the log that does not come
// from its file.
type Trust struct {
	// Verifiers hold the public keys of the log's checkpoints: that of its
	// present incarnation first, then those of earlier ones. Required.
	Verifiers []note.Verifier
	// Anchors are checkpoints of the log that were stored elsewhere. Without
	// one, Verify cannot detect that the end of the log and its last checkpoints
	// were both deleted.
	Anchors [][]byte
	// Erasures are the stored types of the event that explains why sealed parts
	// are gone, and ErasedKey reads from one which key was destroyed. Earlier
	// events sealed under that key may lack their sealed part, in any stream.
	Erasures  []string
	ErasedKey func(storedType string, clear []byte) (eventstore.KeyID, bool)
}

// Verify checks the log up to its current head against t: each row against its
// leaf hash, the tiles and the next event of its stream; positions and
// revisions for gaps; sealed parts against their hashes; and the tree (RFC 6962)
// against every checkpoint. It calls progress, if not nil, with numbers of
// events after each block. The report contains the findings; an error means that
// Verify could not complete.
//
// Verify may run beside a process that appends. Because the log only grows, its
// part up to the head does not change, and Verify reads it in short reads, which
// do not delay WAL checkpoints. Its memory use does not grow with the log, except
// by the erased keys.
func (r *Reader) Verify(ctx context.Context, t Trust, progress func(done, total int64)) (Report, error) {
	if len(t.Verifiers) == 0 {
		return Report{}, errors.New("sqlite: verify: a key to check signatures is required")
	}
	v := &verification{trust: t}
	for i, msg := range t.Anchors {
		c, err := t.open(msg)
		if err != nil {
			return Report{}, fmt.Errorf("sqlite: verify: anchor %d: %w", i+1, err)
		}
		switch {
		case c.Size > 0:
			v.anchors = append(v.anchors, c)
		case c.Root != new(tlog.Tree).Root():
			v.report.fault(Root, 0, "an anchor was signed for a log without events, but not for its root")
		}
	}
	slices.SortFunc(v.anchors, func(a, b tlog.Checkpoint) int { return cmp.Compare(a.Size, b.Size) })
	err := r.use(ctx, func(*readConn) error { // occupies one of the concurrent reads
		c, err := dial(r.path, readOnly)
		if err != nil {
			return err
		}
		defer c.close()
		if err := v.open(c); err != nil {
			return err
		}
		return v.run(func(done int64) error {
			if progress != nil {
				progress(done, v.head)
			}
			select {
			case <-r.closing:
				return eventstore.ErrClosed
			default:
				return ctx.Err()
			}
		})
	})
	if err != nil {
		return v.report, fmt.Errorf("sqlite: verify: %w", err)
	}
	return v.report, nil
}

// open opens a checkpoint of any incarnation.
func (t *Trust) open(msg []byte) (c tlog.Checkpoint, err error) {
	for i, v := range t.Verifiers {
		opened, failed := tlog.OpenCheckpoint(msg, v)
		if failed == nil {
			return opened, nil
		}
		// The reason that counts is that of the key with the note's name.
		if i == 0 || bytes.HasPrefix(msg, []byte(v.Name()+"\n")) {
			err = failed
		}
	}
	return c, err
}

// Verify is like Reader.Verify.
func (s *Store) Verify(ctx context.Context, t Trust, progress func(done, total int64)) (Report, error) {
	return s.files.Verify(ctx, t, progress)
}

// verification is one run of Verify. It processes the log in blocks of events
// that share a level-0 tile.
type verification struct {
	trust  Trust
	report Report
	head   int64 // position of the last event at the start

	block, next, predecessor, erasures, tile, checkpoint, surplus, origin *stmt

	row     [eventColumns]driver.Value
	buf     []byte                     // encoding of a leaf
	streams []seen                     // cache, by stream number modulo its length
	erased  map[eventstore.KeyID]int64 // position of the erasure event; nil until a sealed part is missing
	time    int64                      // of the last sound event

	// tree is built from the most plausible hashes. Once a hash is not
	// available, incomplete is set, and the tree proves nothing more.
	tree       tlog.Tree
	incomplete bool

	anchors []tlog.Checkpoint // not yet compared, by size
	stored  *storedCheckpoint // the next stored checkpoint; nil after the last
	passed  int64             // size of the last stored checkpoint read
	limit   int64             // size of the largest stored checkpoint at the start
	forked  bool              // whether a checkpoint did not match
}

// seenStreams is the number of streams in the cache, which takes 4 MiB.
const seenStreams = 1 << 16

// seen caches the last event of a stream. Streams share entries, so check num.
type seen struct {
	num, revision, position int64
	leaf                    tlog.Hash // the stored leaf hash
}

type storedCheckpoint struct {
	tlog.Checkpoint
	time int64
}

func (v *verification) open(c *conn) error {
	err := c.keep(map[**stmt]string{
		&v.block: selectEvents + ` WHERE e.position BETWEEN ? AND ? ORDER BY e.position`,
		// A level has a tile for every 256 hashes, and level 0 only full ones. The
		// log may have grown since the head was read.
		&v.surplus: `SELECT level || '/' || n FROM tiles, (SELECT max(?, ifnull(max(position), 0)) AS size FROM events)
			WHERE level < 0 OR level > 5 OR n < 0 OR n > size OR (n << (8 * (level + 1))) + (1 << (8 * (level + (level = 0)))) > size LIMIT 100`,
		&v.origin:      `SELECT origin, (SELECT count(*) FROM meta) FROM meta`,
		&v.next:        `SELECT position FROM events WHERE position > ? ORDER BY position LIMIT 1`,
		&v.predecessor: `SELECT position, leaf_hash FROM events WHERE stream = ? AND revision = ?`,
		&v.erasures:    `SELECT position, clear FROM events WHERE type = ? AND position <= ? ORDER BY position`,
		&v.tile:        `SELECT data FROM tiles WHERE level = ? AND n = ?`,
		&v.checkpoint:  `SELECT size, time, note FROM checkpoints WHERE size > ? AND size <= ? ORDER BY size LIMIT 1`,
	})
	if err != nil {
		return err
	}
	// Read the largest checkpoint before the head. In the opposite order, a
	// checkpoint signed between the two reads would suggest that the log has
	// lost its end.
	last, err := c.scalar(`SELECT max(size) FROM checkpoints`)
	if err != nil {
		return err
	}
	head, err := c.scalar(fmt.Sprintf(`SELECT max(position) FROM events WHERE position <= %d`, maxPosition))
	if err != nil {
		return err
	}
	v.head, _ = head.(int64)
	v.limit, _ = last.(int64)
	v.streams = make([]seen, min(max(v.head, 1), seenStreams))
	v.report.Events, v.passed = v.head, math.MinInt64
	return v.nextCheckpoint()
}

// maxPosition is larger than any log. A row with a larger position is damaged;
// Verify must not count up to it.
const maxPosition = 1 << 48

// unreadable turns an error about damage into a fault and returns other errors.
func (v *verification) unreadable(at int64, err error) error {
	if !errors.Is(err, ErrCorrupt) {
		return err
	}
	v.report.fault(Unreadable, at, "%v", err)
	return nil
}

func (v *verification) run(step func(done int64) error) error {
	if err := v.misplaced(); err != nil {
		return err
	}
	if err := v.surplusTiles(); err != nil {
		return err
	}
	if err := v.identity(); err != nil {
		return err
	}
	for first := int64(1); first <= v.head; {
		if err := step(first - 1); err != nil {
			return err
		}
		next, err := v.checkBlock(first)
		if err != nil {
			return err
		}
		first = next
	}
	if err := v.end(); err != nil {
		return err
	}
	return step(v.head)
}

// misplaced reports events at positions that are not valid.
func (v *verification) misplaced() error {
	for at := int64(math.MinInt64); len(v.report.Faults) < maxFaults; {
		next, found, err := v.after(at)
		if !found || err != nil {
			return err
		}
		if at = next; 1 <= at && at <= maxPosition {
			at = maxPosition
			continue
		}
		v.report.fault(Altered, at, "this is not a valid position")
	}
	return nil
}

// surplusTiles reports tiles that a log of its size does not have.
func (v *verification) surplusTiles() error {
	rows, err := v.surplus.column(v.head)
	if err != nil {
		return v.unreadable(1, err)
	}
	for _, row := range rows {
		v.report.fault(TileAltered, v.head, "there is a surplus tile, %v", row)
	}
	return nil
}

// identity reports a log that does not say it is that of the given keys.
func (v *verification) identity() error {
	found, err := v.origin.row(v.row[:2])
	if err != nil {
		return v.unreadable(0, err)
	}
	origin, _ := v.row[0].(string)
	if n, _ := v.row[1].(int64); n > 1 {
		v.report.fault(OriginAltered, 0, "the log has %d rows that name its ledger, not one", n)
	}
	if !found || origin != v.trust.Verifiers[0].Name() {
		v.report.fault(OriginAltered, 0, "the log says that its origin is %q, but the key is that of %s", origin, v.trust.Verifiers[0].Name())
	}
	return nil
}

// after returns the position of the first event after a position. In a damaged
// file, SQLite may return one that is not after it; continuing from there could
// loop forever.
func (v *verification) after(at int64) (next int64, found bool, err error) {
	if found, err = v.next.row(v.row[:1], at); !found || err != nil {
		return 0, false, v.unreadable(max(at, 0), err)
	}
	if next, _ = v.row[0].(int64); next <= at {
		v.report.fault(Unreadable, next, "the events are out of order")
		return 0, false, nil
	}
	return next, true, nil
}

// checked is the result of checking one row of a block.
type checked struct {
	exists   bool
	computed tlog.Hash // leaf hash of the row's columns
	stored   tlog.Hash // leaf hash in the row
	time     int64
	sound    bool // whether the two hashes are equal
}

// checkBlock checks the events from first, the start of a tile, to the end of
// the tile, and returns the start of the next block.
func (v *verification) checkBlock(first int64) (int64, error) {
	var events [tlog.TileWidth]checked
	last := min(first+tlog.TileWidth-1, v.head)
	count, readable, err := v.checkRows(first, last, &events)
	if err != nil {
		return 0, err
	}
	n := (first - 1) / tlog.TileWidth
	var tile []byte
	if full := last-first+1 == tlog.TileWidth; full {
		if tile, err = v.readTile(0, n, tlog.TileWidth); err != nil {
			return 0, err
		}
	}
	if count == 0 && tile == nil && readable {
		return v.skip(first)
	}
	if tile != nil {
		if tile, err = v.checkTile(n, tile, &events); err != nil {
			return 0, err
		}
	}
	for i := range events[:last-first+1] {
		e, at := &events[i], first+int64(i)
		if !e.exists && readable {
			v.report.fault(Missing, at, "there is no event at this position")
		}
		hash := e.stored
		if tile != nil {
			hash = tlog.Hash(tile[i*len(hash):][:len(hash)])
		} else if !e.exists {
			v.incomplete = true
		}
		if err := v.push(at, hash, e); err != nil {
			return 0, err
		}
	}
	return last + 1, nil
}

// skip reports the missing events from first, a block without any, and returns
// the start of the next block that has an event.
func (v *verification) skip(first int64) (int64, error) {
	v.incomplete = true
	next := v.head + 1
	at, found, err := v.after(first + tlog.TileWidth - 1)
	if err != nil {
		return 0, err
	}
	if found && at < next {
		next = at - (at-1)%tlog.TileWidth
	}
	v.report.missing(first, next-1)
	return next, nil
}

// readTile returns a stored tile of at least width hashes. If there is none, it
// reports a fault and returns nil.
func (v *verification) readTile(level int, n int64, width int) ([]byte, error) {
	at := n<<(tlog.TileHeight*(level+1)) + 1
	found, err := v.tile.row(v.row[:1], int64(level), n)
	if err != nil {
		return nil, v.unreadable(at, err)
	}
	f := fields{row: v.row[:1]}
	if !found {
		v.report.fault(TileAltered, at, "tile %d/%d is missing", level, n)
		return nil, nil
	}
	tile := f.blob()
	if f.bad || len(tile) < width*len(tlog.Hash{}) || len(tile) > tlog.TileWidth*len(tlog.Hash{}) || len(tile)%len(tlog.Hash{}) != 0 {
		v.report.fault(TileAltered, at, "tile %d/%d has %d bytes", level, n, len(tile))
		return nil, nil
	}
	return tile, nil
}

// checkTile compares the rows of a block with its tile. If a sound row differs
// from the tile, one of the two was rewritten, and the hash in the level above
// tells which. checkTile returns the tile, or nil if the tile is the wrong one.
func (v *verification) checkTile(n int64, tile []byte, events *[tlog.TileWidth]checked) ([]byte, error) {
	rows := make([]byte, 0, len(tile))
	var differ []int64
	for i := range events {
		e := &events[i]
		in := tile[i*len(e.stored):][:len(e.stored)]
		rows = append(rows, e.stored[:]...)
		if e.sound && !bytes.Equal(e.stored[:], in) {
			differ = append(differ, n*tlog.TileWidth+int64(i)+1)
		}
	}
	if len(differ) == 0 {
		return tile, nil
	}
	parent, err := v.parentHash(n)
	if err != nil {
		return nil, err
	}
	ofTile, err := tlog.Subtree(tile)
	if err != nil {
		return nil, err
	}
	ofRows, err := tlog.Subtree(rows)
	if err != nil {
		return nil, err
	}
	if parent != ofTile {
		v.report.fault(TileAltered, n*tlog.TileWidth+1, "tile 0/%d matches neither the events nor the tile above", n)
		if parent == ofRows {
			return nil, nil
		}
	}
	for _, at := range differ {
		v.report.fault(Altered, at, "the event and its leaf hash do not match the tile")
	}
	return tile, nil
}

// parentHash returns the hash that level 1 holds for level-0 tile n, or zero if
// there is none.
func (v *verification) parentHash(n int64) (h tlog.Hash, err error) {
	found, err := v.tile.row(v.row[:1], int64(1), n/tlog.TileWidth)
	if !found || err != nil {
		return h, v.unreadable(n*tlog.TileWidth+1, err)
	}
	tile, _ := v.row[0].([]byte)
	if from := int(n%tlog.TileWidth) * len(h); len(tile) >= from+len(h) {
		copy(h[:], tile[from:])
	}
	return h, nil
}

// push adds the leaf of the event at a position to the tree, and checks the
// tiles and checkpoints of the tree's new size.
func (v *verification) push(at int64, leaf tlog.Hash, e *checked) error {
	for _, tile := range v.tree.Push(leaf) {
		if tile.Level > 0 && len(tile.Data) == tlog.TileWidth*len(leaf) {
			if err := v.compareTile(tile); err != nil {
				return err
			}
		}
	}
	for len(v.anchors) > 0 && v.anchors[0].Size <= at {
		v.compareRoot(v.anchors[0])
		v.anchors = v.anchors[1:]
	}
	for v.stored != nil && v.stored.Size <= at {
		v.compareRoot(v.stored.Checkpoint)
		if v.stored.Size == at && e.sound && e.time != v.stored.time {
			v.report.fault(CheckpointAltered, at, "the stored time is not that of the checkpoint's last event")
		}
		if err := v.nextCheckpoint(); err != nil {
			return err
		}
	}
	return nil
}

// compareTile checks a stored tile above level 0 against the computed one. The
// stored tile may have become wider since the start.
func (v *verification) compareTile(tile tlog.Tile) error {
	if v.incomplete {
		return nil
	}
	stored, err := v.readTile(tile.Level, tile.N, len(tile.Data)/len(tlog.Hash{}))
	if stored == nil || err != nil {
		return err
	}
	for i := range len(tile.Data) / len(tlog.Hash{}) {
		from, to := i*len(tlog.Hash{}), (i+1)*len(tlog.Hash{})
		if !bytes.Equal(stored[from:to], tile.Data[from:to]) {
			at := (tile.N*tlog.TileWidth+int64(i))<<(tlog.TileHeight*tile.Level) + 1
			v.report.fault(TileAltered, at, "tile %d/%d does not match the level below", tile.Level, tile.N)
		}
	}
	return nil
}

// compareRoot checks a checkpoint of the tree's current size. If one does not
// match, no later one can, so only the first mismatch is reported.
func (v *verification) compareRoot(c tlog.Checkpoint) {
	switch {
	case v.incomplete || v.forked:
	case c.Root == v.tree.Root():
		v.report.Checkpoints++
		v.report.Covered = max(v.report.Covered, c.Size)
	default:
		v.forked = true
		v.report.fault(Root, c.Size, "the tree does not have the signed root; the last checkpoint that matches has size %d", v.report.Covered)
	}
}

// nextCheckpoint reads the next stored checkpoint with a valid signature.
func (v *verification) nextCheckpoint() error {
	for v.stored = nil; ; {
		found, err := v.checkpoint.row(v.row[:3], v.passed, max(v.limit, v.head))
		if !found || err != nil {
			return v.unreadable(v.passed+1, err)
		}
		f := fields{row: v.row[:3]}
		size, time, msg := f.int(), f.int(), f.blob()
		if size <= v.passed {
			v.report.fault(Unreadable, size, "the checkpoints are out of order")
			return nil
		}
		v.passed = size
		c, err := v.trust.open(msg)
		switch {
		case err != nil:
			v.report.fault(CheckpointAltered, v.passed, "%v", err)
		case f.bad || c.Size != v.passed || c.Size < 1:
			v.report.fault(CheckpointAltered, v.passed, "the stored note is a checkpoint of size %d", c.Size)
		default:
			v.stored = &storedCheckpoint{c, time}
			return nil
		}
	}
}

// end performs the checks that need the whole log.
func (v *verification) end() error {
	if !v.incomplete {
		v.report.Root = v.tree.Root()
	}
	for _, tile := range v.tree.Edge() {
		if tile.Level > 0 {
			if err := v.compareTile(tile); err != nil {
				return err
			}
		}
	}
	// If the log ends with missing events, some anchors were not compared.
	v.anchors = slices.DeleteFunc(v.anchors, func(c tlog.Checkpoint) bool { return c.Size <= v.head })
	if len(v.anchors) > 0 {
		longest := v.anchors[len(v.anchors)-1].Size
		v.report.fault(Truncated, v.head, "the log ends here, but an anchor covers %d events", longest)
	}
	var longest int64
	for v.stored != nil {
		longest = v.stored.Size
		if err := v.nextCheckpoint(); err != nil {
			return err
		}
	}
	v.report.missing(v.head+1, longest)
	if v.report.Covered < v.head {
		v.report.warn(Uncovered, v.report.Covered+1, "no checkpoint covers the last %d events", v.head-v.report.Covered)
	}
	return nil
}
