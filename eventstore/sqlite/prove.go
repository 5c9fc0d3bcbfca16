package sqlite

import (
	"context"
	"crypto/sha256"
	"database/sql/driver"
	"fmt"
	"io"
	"iter"

	"accountledger/eventstore"
	"accountledger/eventstore/tlog"
)

// This file reads events and proves that they are those under the sealed root.
// The writer's tree has that root; the stored tiles connect events with it.

// prover proves hashes against a tree.
type prover struct {
	tree   *tlog.Tree
	read   func(level int, n int64) ([]byte, error) // a full tile
	proven map[tileID][]byte
}

type tileID struct {
	level int
	n     int64
}

// maxProven is the number of tiles that a prover keeps, of 8 KiB each.
const maxProven = 256

// prove fails with ErrTampered unless h is the hash with index n of a level.
func (p *prover) prove(level int, n int64, h tlog.Hash) error {
	if n < 0 || n >= p.tree.Size()>>(tlog.TileHeight*level) {
		return tampered("there is no event %d", n+1)
	}
	if want, ok := p.tree.Hash(level, n); ok {
		if h != want {
			return tampered("event %d was changed", n<<(tlog.TileHeight*level)+1)
		}
		return nil
	}
	id := tileID{level, n / tlog.TileWidth}
	tile, ok := p.proven[id]
	if !ok {
		data, err := p.read(id.level, id.n)
		if err != nil {
			return err
		}
		root, err := tlog.Subtree(data)
		if err != nil {
			return tampered("tile %d/%d was changed", id.level, id.n)
		}
		if err := p.prove(level+1, id.n, root); err != nil {
			return tampered("tile %d/%d was changed", id.level, id.n)
		}
		if len(p.proven) >= maxProven {
			clear(p.proven)
		}
		if p.proven == nil {
			p.proven = map[tileID][]byte{}
		}
		p.proven[id], tile = data, data
	}
	if from := int(n%tlog.TileWidth) * len(h); tlog.Hash(tile[from:from+len(h)]) != h {
		return tampered("event %d was changed", n<<(tlog.TileHeight*level)+1)
	}
	return nil
}

// fullTile reads a tile for a prover.
func (r *Reader) fullTile(ctx context.Context) func(level int, n int64) ([]byte, error) {
	return func(level int, n int64) (tile []byte, err error) {
		err = r.use(ctx, func(c *readConn) error {
			found, err := c.tile.row(c.row[:1], int64(level), n)
			if err != nil {
				return err
			}
			f := fields{row: c.row[:1]}
			if tile = f.blob(); !found || f.bad {
				return tampered("tile %d/%d is missing", level, n)
			}
			return nil
		})
		return tile, err
	}
}

// check returns an error unless the row is the event that prove accepts.
func (e *eventRow) check(ok bool, p *prover, buf []byte) ([]byte, error) {
	leaf, buf, representable := e.leafHash(buf)
	if !ok || !representable {
		return buf, tampered("event %d was changed", e.Position)
	}
	if e.hasSealed && sha256.Sum256(e.Sealed) != e.sealedHash {
		return buf, tampered("the sealed part of event %d was changed", e.Position)
	}
	return buf, p.prove(0, int64(e.Position)-1, leaf)
}

// ReadProven implements eventstore.Store. It recomputes the leaf hash of each
// event and follows the tiles up to the writer's tree.
func (s *Store) ReadProven(ctx context.Context, stream string, from eventstore.Revision) iter.Seq2[eventstore.Recorded, error] {
	return func(yield func(eventstore.Recorded, error) bool) {
		fail := func(err error) {
			yield(eventstore.Recorded{}, fmt.Errorf("sqlite: read stream %s: %w", stream, s.writer.suspect(err)))
		}
		tree, err := s.writer.treeNow(ctx)
		if err != nil {
			fail(err)
			return
		}
		p := &prover{tree: tree, read: s.files.fullTile(ctx)}
		var buf []byte
		next := max(from, 0)
		for more := true; more; {
			var page []eventRow
			var sound []bool
			if err := ctx.Err(); err != nil {
				fail(err)
				return
			}
			err := s.files.use(ctx, func(c *readConn) (err error) {
				page, sound, err = c.eventRows(c.provenStream, stream, int64(next))
				return err
			})
			if err != nil {
				fail(err)
				return
			}
			for i := range page {
				e := &page[i]
				if int64(e.Position) > tree.Size() {
					return // appended after the call, or not by the writer, which notices
				}
				if e.Revision != next || e.Stream != stream {
					fail(tampered("revision %d is missing", next))
					return
				}
				if buf, err = e.check(sound[i], p, buf); err != nil {
					fail(err)
					return
				}
				next++
				if !yield(e.Recorded, nil) {
					return
				}
			}
			more = len(page) > 0
		}
		// A damaged index may hide the rest.
		if err := s.files.ends(ctx, stream, next, tree.Size()); err != nil {
			fail(err)
		}
	}
}

// ends fails with ErrTampered if the stream has an event at a revision or later,
// and among the first size events of the log.
func (r *Reader) ends(ctx context.Context, stream string, revision eventstore.Revision, size int64) error {
	return r.use(ctx, func(c *readConn) error {
		found, err := c.streamEnd.row(c.row[:2], stream)
		if !found || err != nil {
			return err
		}
		f := fields{row: c.row[:2]}
		if last, at := eventstore.Revision(f.int()), f.int(); f.bad || last >= revision && at <= size {
			return tampered("revision %d is missing", revision)
		}
		return nil
	})
}

// eventRows runs s, and returns the events up to the limits of a page, and which
// of them the store can have written.
func (c *readConn) eventRows(s *stmt, args ...driver.Value) (page []eventRow, sound []bool, err error) {
	rows, err := s.query(args...)
	if err != nil {
		return nil, nil, err
	}
	defer rows.Close()
	bytes := 0
	for row := make([]driver.Value, eventColumns); ; {
		if err := rows.Next(row); err == io.EOF {
			return page, sound, nil
		} else if err != nil {
			return nil, nil, classify(err)
		}
		e, ok := decodeEvent(row)
		page, sound = append(page, e), append(sound, ok)
		if bytes += size(&e.Recorded); bytes >= pageBytes {
			return page, sound, nil
		}
	}
}

// Prove implements eventstore.Store. It reads the events in blocks.
func (s *Store) Prove(ctx context.Context, to eventstore.Position, progress func(done, total int64)) error {
	tree, err := s.writer.treeNow(ctx)
	if err == nil {
		_, err = s.files.prove(ctx, &tlog.Tree{}, tree, min(max(int64(to), 0), tree.Size()), progress)
	}
	if err == nil {
		err = s.files.use(ctx, func(c *readConn) error { return indexed(c.conn, tree.Size()) })
	}
	if err != nil {
		return fmt.Errorf("sqlite: prove: %w", s.writer.suspect(err))
	}
	return nil
}

// indexed fails with ErrTampered unless the index by which streams are read has
// every one of the first size events, and no other before them. An attacker could
// hide events by creating the index again without their rows.
func indexed(c *conn, size int64) error {
	s, err := c.prepare(`SELECT count(*) FROM events INDEXED BY events_stream WHERE +position <= ?`)
	if err != nil {
		return err
	}
	defer s.close()
	row := make([]driver.Value, 1)
	if _, err := s.row(row, size); err != nil {
		return err
	}
	if row[0] != size {
		return tampered("the index of the streams has %v of %d events", row[0], size)
	}
	return nil
}

// prove adds the events after those in tree to it, from their bytes in the file,
// until it has a size, and fails with ErrTampered unless it is then the start of
// want. It returns the tree.
func (r *Reader) prove(ctx context.Context, tree, want *tlog.Tree, size int64, progress func(done, total int64)) (*tlog.Tree, error) {
	known := tree.Size()
	var buf []byte
	var hashes [tlog.TileWidth]tlog.Hash
	for tree.Size() < size {
		if progress != nil {
			progress(tree.Size(), size)
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		first := tree.Size() + 1
		last := min(first+tlog.TileWidth-1, size)
		n := int64(0)
		err := r.use(ctx, func(c *readConn) error {
			return c.block.each(eventColumns, func(f *fields) error {
				e, ok := decodeEvent(f.row)
				if at := first + n; int64(e.Position) != at {
					return tampered("event %d is missing", at)
				}
				hashes[n], buf, _ = e.leafHash(buf)
				if !ok || hashes[n] != e.leaf {
					return tampered("event %d was changed", e.Position)
				}
				if e.hasSealed && sha256.Sum256(e.Sealed) != e.sealedHash {
					return tampered("the sealed part of event %d was changed", e.Position)
				}
				n++
				return nil
			}, first, last)
		})
		if err != nil {
			return nil, err
		}
		if first+n <= last {
			return nil, tampered("event %d is missing", first+n)
		}
		for _, h := range hashes[:n] {
			tree.Push(h)
		}
	}
	if progress != nil {
		progress(tree.Size(), size)
	}
	if err := r.isStart(ctx, tree, want); err != nil {
		if e := r.locate(ctx, known, size, want); e != nil {
			err = e
		}
		return nil, err
	}
	return tree, nil
}

// isStart fails with ErrTampered unless tree is the start of want.
func (r *Reader) isStart(ctx context.Context, tree, want *tlog.Tree) error {
	if tree.Size() == want.Size() {
		if tree.Root() != want.Root() {
			return tampered("the first %d events do not have the sealed root", tree.Size())
		}
		return nil
	}
	// The hashes on a tree's edge determine the tree.
	p := &prover{tree: want, read: r.fullTile(ctx)}
	for _, tile := range tree.Edge() {
		for i := int64(0); len(tile.Data) > 0; i++ {
			if err := p.prove(tile.Level, tile.N*tlog.TileWidth+i, tlog.Hash(tile.Data[:len(tlog.Hash{})])); err != nil {
				return err
			}
			tile.Data = tile.Data[len(tlog.Hash{}):]
		}
	}
	return nil
}

// locate finds the first event after a position that is not the one in tree,
// although its bytes have the leaf hash beside them.
func (r *Reader) locate(ctx context.Context, after, to int64, tree *tlog.Tree) error {
	p := &prover{tree: tree, read: r.fullTile(ctx)}
	for first := after + 1; first <= to; {
		var page []eventRow
		var sound []bool
		err := r.use(ctx, func(c *readConn) (err error) {
			page, sound, err = c.eventRows(c.block, first, min(first+tlog.TileWidth-1, to))
			return err
		})
		if len(page) == 0 || err != nil {
			return err
		}
		for i := range page {
			if _, err := page[i].check(sound[i], p, nil); err != nil {
				return err
			}
		}
		first = int64(page[len(page)-1].Position) + 1
	}
	return nil
}
