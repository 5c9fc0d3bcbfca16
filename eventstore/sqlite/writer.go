package sqlite

import (
	"bytes"
	"context"
	"database/sql/driver"
	"fmt"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"

	"accountledger/eventstore"
	"accountledger/eventstore/tlog"
)

// writer owns the only connection that writes. Appends wait in its queue, not
// in SQLite's busy timeout: all that are queued while a transaction runs share
// the next one and its fsync (group commit). So an append usually waits for the
// running transaction and its own.
type writer struct {
	queue   chan *request
	erasing chan erasure
	closing chan struct{} // closed by close
	ended   chan struct{} // closed when run returns
	once    sync.Once

	signer   note.Signer
	interval time.Duration
	now      func() time.Time
	observe  func(Transaction)
	trace    func(context.Context, Appended)

	// Only run uses the fields below.

	db       *conn
	state    state // content of the file
	next     state // content of the file once the running transaction is durable
	heads    heads // includes the running transaction; cleared if that fails
	broken   error // not nil if the content of the file is unknown; forbids all writes
	closeErr error // of the last checkpoint, signed when the log closes

	lastSign   time.Time // of the last attempt to sign
	batch      []*request
	events     []eventstore.Recorded // of the running transaction
	writeHeads []head                // of the streams that the current commit writes to
	leaf       tlog.Leaf             // of the current event
	hash       tlog.Hash             // of leaf
	buf        []byte                // encoding of leaf

	begin, end, rollback      *stmt
	selectNum, selectHead     *stmt
	selectOwner               *stmt
	insertStream, insertEvent *stmt
	insertSealed, putTile     *stmt
	insertClaim, deleteClaim  *stmt
	insertCheckpoint          *stmt
	deleteCheckpoints         *stmt
	selectCheckpoint          *stmt
	selectSealed, eraseSealed *stmt
	row                       [2]driver.Value
}

// state describes the end of the log. load can read all of it from the file.
type state struct {
	tree    tlog.Tree
	time    int64 // of the last event
	streams int64 // number of the last created stream
	signed  int64 // size of the last checkpoint
}

func (s *state) head() eventstore.Position { return eventstore.Position(s.tree.Size()) }

// set makes s a copy of t. It copies the tree, so that a transaction that fails
// does not change the tree in state.
func (s *state) set(t *state) {
	s.tree.Set(&t.tree)
	s.time, s.streams, s.signed = t.time, t.streams, t.signed
}

// head describes the end of a stream.
type head struct {
	num      int64 // of the stream; 0 if it has no events and no claims yet
	revision eventstore.Revision
	leaf     tlog.Hash // of its last event
}

// heads caches the heads of recently used streams. When young is full, it
// replaces old. So the cache holds at most twice headsKept, without the
// overhead of an LRU list.
type heads struct{ young, old map[string]head }

const headsKept = 1 << 15

func (h *heads) get(stream string) (head, bool) {
	if at, ok := h.young[stream]; ok {
		return at, true
	}
	at, ok := h.old[stream]
	if ok {
		h.put(stream, at)
	}
	return at, ok
}

func (h *heads) put(stream string, at head) {
	if h.young == nil || len(h.young) >= headsKept {
		h.young, h.old = make(map[string]head), h.young
	}
	h.young[stream] = at
}

func newWriter(db *conn, c Config) (*writer, error) {
	w := &writer{
		queue: make(chan *request, queueLength), erasing: make(chan erasure), closing: make(chan struct{}), ended: make(chan struct{}),
		signer: c.Signer, interval: c.CheckpointInterval, now: c.Now, observe: c.Observe, trace: c.Trace, db: db,
	}
	err := db.keep(map[**stmt]string{
		&w.begin:        `BEGIN IMMEDIATE`,
		&w.end:          `COMMIT`,
		&w.rollback:     `ROLLBACK`,
		&w.selectNum:    `SELECT num FROM streams WHERE name = ?`,
		&w.selectHead:   `SELECT revision, leaf_hash FROM events WHERE stream = +? ORDER BY revision DESC LIMIT 1`,
		&w.selectOwner:  `SELECT (SELECT name FROM streams WHERE num = stream) FROM claims WHERE kind = ? AND key = ?`,
		&w.insertStream: `INSERT INTO streams (num, name) VALUES (?, ?)`,
		&w.insertEvent: `INSERT INTO events (position, stream, revision, time, id, type, actor, clear, prev, kid, sealed_hash, leaf_hash)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		&w.insertSealed:      `INSERT INTO sealed (position, bytes) VALUES (?, ?)`,
		&w.putTile:           `INSERT INTO tiles (level, n, data) VALUES (?, ?, ?) ON CONFLICT (level, n) DO UPDATE SET data = excluded.data`,
		&w.insertClaim:       `INSERT INTO claims (kind, key, stream) VALUES (?, ?, ?) ON CONFLICT (kind, key) DO NOTHING`,
		&w.deleteClaim:       `DELETE FROM claims WHERE kind = ? AND key = ? AND stream = ?`,
		&w.insertCheckpoint:  `INSERT INTO checkpoints (size, time, note) VALUES (?, ?, ?)`,
		&w.selectCheckpoint:  `SELECT note FROM checkpoints WHERE size = ?`,
		&w.selectSealed:      `SELECT e.position FROM events e JOIN sealed p ON p.position = e.position WHERE e.stream = +? AND e.kid = ?`,
		&w.eraseSealed:       `DELETE FROM sealed WHERE position = ?`,
		&w.deleteCheckpoints: `DELETE FROM checkpoints WHERE size < ? AND time >= ?`,
	})
	if err != nil {
		return nil, err
	}
	return w, w.load()
}

// load reads the writer's state from the file.
func (w *writer) load() error {
	w.heads = heads{}
	var s state
	var size int64
	for query, into := range map[string]*int64{
		`SELECT ifnull(max(position), 0) FROM events`:                                &size,
		`SELECT ifnull((SELECT time FROM events ORDER BY position DESC LIMIT 1), 0)`: &s.time,
		`SELECT ifnull(max(num), 0) FROM streams`:                                    &s.streams,
		`SELECT ifnull(max(size), 0) FROM checkpoints`:                               &s.signed,
	} {
		v, err := w.db.scalar(query)
		if err != nil {
			return err
		}
		n, ok := v.(int64)
		if !ok || n < 0 {
			return corrupt("%v instead of a non-negative number", v)
		}
		*into = n
	}
	// Otherwise the writer would sign a second root for the same size.
	if s.signed > size {
		return corrupt("it has %d events, but a signed checkpoint covers %d", size, s.signed)
	}
	tree, err := tlog.Restore(size, w.readTile)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	s.tree = *tree
	w.state = s
	return nil
}

// readTile reads the tree's edge for tlog.Restore: the last leaf hashes from
// the events, and the higher levels from tiles.
func (w *writer) readTile(level int, n int64, width int) ([]byte, error) {
	query := `SELECT data FROM tiles WHERE level = ? AND n = ?`
	args := []driver.Value{int64(level), n}
	if level == 0 {
		query = fmt.Sprintf(`SELECT leaf_hash FROM events WHERE position > ? ORDER BY position LIMIT %d`, tlog.TileWidth)
		args = []driver.Value{n * tlog.TileWidth}
	}
	s, err := w.db.prepare(query)
	if err != nil {
		return nil, err
	}
	defer s.close()
	rows, err := s.query(args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var data []byte
	for row := make([]driver.Value, 1); rows.Next(row) == nil; {
		f := fields{row: row}
		data = append(data, f.blob()...)
	}
	return data, nil
}

// streamHead returns the head of a stream, as the running transaction sees it.
func (w *writer) streamHead(stream string) (head, error) {
	if h, ok := w.heads.get(stream); ok {
		return h, nil
	}
	h := head{revision: eventstore.NoStream}
	found, err := w.selectNum.row(w.row[:1], stream)
	if !found || err != nil {
		return h, err
	}
	num := fields{row: w.row[:1]}
	h.num = num.int()
	found, err = w.selectHead.row(w.row[:2], h.num)
	if err != nil {
		return h, err
	}
	last := fields{row: w.row[:2]}
	if found { // otherwise the stream has claims but no events
		h.revision, h.leaf = eventstore.Revision(last.int()), last.hash()
	}
	if num.bad || last.bad {
		return h, corrupt("the last event of stream %d cannot be read", h.num)
	}
	w.heads.put(stream, h)
	return h, nil
}

// claimOwner returns the stream that holds a claim, or "".
func (w *writer) claimOwner(k eventstore.Claim) (string, error) {
	found, err := w.selectOwner.row(w.row[:1], k.Kind, []byte(k.Key))
	if !found || err != nil {
		return "", err
	}
	f := fields{row: w.row[:1]}
	owner := f.text()
	if f.bad {
		return "", corrupt("the owner of a claim cannot be read")
	}
	return owner, nil
}

// close waits until run has completed the requests it has taken, and closes
// the file.
func (w *writer) close() error {
	w.once.Do(func() { close(w.closing) })
	<-w.ended
	err := w.closeErr
	if e := w.db.close(); err == nil && e != nil {
		err = fmt.Errorf("sqlite: close: %w", e)
	}
	return err
}

// sign adds a checkpoint of w.next to the running transaction. It deletes
// earlier checkpoints of the same minute.
func (w *writer) sign() error {
	w.lastSign = time.Now()
	if w.next.signed == w.next.tree.Size() {
		return nil
	}
	c := tlog.Checkpoint{Origin: w.signer.Name(), Size: w.next.tree.Size(), Root: w.next.tree.Root()}
	if err := w.beforeSign(c); err != nil {
		return err
	}
	msg, err := c.Sign(w.signer)
	if err != nil {
		return err
	}
	minute := w.next.time - w.next.time%time.Minute.Microseconds()
	if err := w.deleteCheckpoints.exec(c.Size, minute); err != nil {
		return err
	}
	w.next.signed = c.Size
	return w.insertCheckpoint.exec(c.Size, w.next.time, msg)
}

// beforeSign fails with ErrCorrupt unless the tree in the file has the root that
// c states, and, at the size of the last checkpoint, the root that was signed
// then. So the writer does not sign hashes that changed in memory or on disk.
// beforeSign reads a few tiles, not the events; Verify checks that the events
// have their hashes.
func (w *writer) beforeSign(c tlog.Checkpoint) error {
	tree, err := tlog.Restore(c.Size, w.readTile)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if tree.Root() != c.Root {
		return corrupt("its tree of %d events does not have the root to be signed", c.Size)
	}
	if w.next.signed == 0 {
		return nil
	}
	if tree, err = tlog.Restore(w.next.signed, w.readTile); err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	last := tlog.Checkpoint{Origin: c.Origin, Size: w.next.signed, Root: tree.Root()}
	found, err := w.selectCheckpoint.row(w.row[:1], last.Size)
	if err != nil {
		return err
	}
	signed, ok := w.row[0].([]byte)
	// In a note, an empty line separates the text from the signatures.
	if !found || !ok || !bytes.HasPrefix(signed, []byte(last.Text()+"\n")) {
		return corrupt("its tree of %d events does not have the root that was signed", last.Size)
	}
	return nil
}

// signNow signs a checkpoint in a separate transaction if the log has grown
// since the last one.
func (w *writer) signNow() error {
	w.lastSign = time.Now()
	if w.state.signed == w.state.tree.Size() {
		return nil
	}
	if err := w.transact(w.sign); err != nil {
		return fmt.Errorf("sqlite: sign checkpoint: %w", err)
	}
	return nil
}
