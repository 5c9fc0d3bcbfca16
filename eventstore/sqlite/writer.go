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

// writer owns the only connection that writes. Its queue is where appends wait
// for each other, not SQLite's busy timeout: what is queued while one
// transaction runs shares the next one and its fsync (group commit), so that
// nobody waits longer than for the running transaction and their own.
type writer struct {
	queue   chan *request
	erasing chan erasure
	closing chan struct{} // closed by close
	ended   chan struct{} // closed when run has returned
	once    sync.Once

	signer   note.Signer
	interval time.Duration
	now      func() time.Time
	observe  func(Transaction)
	trace    func(context.Context, Appended)

	// The rest is run's alone.

	db     *conn
	state  state // what the file holds
	next   state // what it will hold once the running transaction is durable
	heads  heads // may run ahead of state; forgotten when a transaction fails
	broken error // why the writer does not know what the file holds; forbids all writing
	failed error // what the last signature, at close, met

	lastSign time.Time // of the last attempt, by the monotonic clock
	batch    []*request
	fresh    []eventstore.Recorded // events of the running transaction
	checked  []head                // heads of the commit in hand
	leaf     tlog.Leaf             // of the event in hand
	hash     tlog.Hash             // its hash
	buf      []byte                // to encode leaves in

	begin, end, rollback      *stmt
	selectNum, selectHead     *stmt
	selectOwner               *stmt
	insertStream, insertEvent *stmt
	insertSealed, putTile     *stmt
	insertClaim, deleteClaim  *stmt
	insertCheckpoint, replace *stmt
	selectCheckpoint          *stmt
	selectSealed, eraseSealed *stmt
	row                       [2]driver.Value
}

// state is what the log is at its end. Everything in it can be read from the
// file.
type state struct {
	tree    tlog.Tree
	time    int64 // of the last event
	streams int64 // number of the newest stream
	signed  int64 // size of the last checkpoint
}

func (s *state) head() eventstore.Position { return eventstore.Position(s.tree.Size()) }

// set makes s a copy of t. Trees are copied, not shared, so that a transaction
// that fails leaves no tree that is ahead of the file.
func (s *state) set(t *state) {
	s.tree.Set(&t.tree)
	s.time, s.streams, s.signed = t.time, t.streams, t.signed
}

// head is where a stream ends.
type head struct {
	num      int64 // 0: nobody has written to or claimed for the stream yet
	revision eventstore.Revision
	leaf     tlog.Hash // of its last event
}

// heads remembers the heads of the streams used last. When young is full it
// becomes old and what was old is forgotten: twice headsKept at most, and no
// list to keep in order.
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
		&w.insertSealed:     `INSERT INTO sealed (position, bytes) VALUES (?, ?)`,
		&w.putTile:          `INSERT INTO tiles (level, n, data) VALUES (?, ?, ?) ON CONFLICT (level, n) DO UPDATE SET data = excluded.data`,
		&w.insertClaim:      `INSERT INTO claims (kind, key, stream) VALUES (?, ?, ?) ON CONFLICT (kind, key) DO NOTHING`,
		&w.deleteClaim:      `DELETE FROM claims WHERE kind = ? AND key = ? AND stream = ?`,
		&w.insertCheckpoint: `INSERT INTO checkpoints (size, time, note) VALUES (?, ?, ?)`,
		&w.selectCheckpoint: `SELECT note FROM checkpoints WHERE size = ?`,
		&w.selectSealed:     `SELECT e.position FROM events e JOIN sealed p ON p.position = e.position WHERE e.stream = +? AND e.kid = ?`,
		&w.eraseSealed:      `DELETE FROM sealed WHERE position = ?`,
		&w.replace:          `DELETE FROM checkpoints WHERE size < ? AND time >= ?`,
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
			return corrupt("%v where a number belongs", v)
		}
		*into = n
	}
	// The signature of a size that is not there must never be given again.
	if s.signed > size {
		return corrupt("it ends at event %d, but a checkpoint says that it had %d", size, s.signed)
	}
	tree, err := tlog.Restore(size, w.readTile)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	s.tree = *tree
	w.state = s
	return nil
}

// readTile is where tlog.Restore finds the tree's edge: the last leaf hashes
// among the events, what is above them in tiles.
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

// streamHead returns where a stream ends, as the running transaction sees it.
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
	if found { // else it holds claims, and no events
		h.revision, h.leaf = eventstore.Revision(last.int()), last.hash()
	}
	if num.bad || last.bad {
		return h, corrupt("the end of stream %d cannot be read", h.num)
	}
	w.heads.put(stream, h)
	return h, nil
}

// claimOwner returns the stream that holds a claim, "" if none does.
func (w *writer) claimOwner(k eventstore.Claim) (string, error) {
	found, err := w.selectOwner.row(w.row[:1], k.Kind, []byte(k.Key))
	if !found || err != nil {
		return "", err
	}
	f := fields{row: w.row[:1]}
	owner := f.text()
	if f.bad {
		return "", corrupt("the holder of a claim cannot be read")
	}
	return owner, nil
}

// close ends run, once what it has taken is answered, and closes the file.
func (w *writer) close() error {
	w.once.Do(func() { close(w.closing) })
	<-w.ended
	err := w.failed
	if e := w.db.close(); err == nil && e != nil {
		err = fmt.Errorf("sqlite: close: %w", e)
	}
	return err
}

// sign adds a checkpoint of w.next to the running transaction. Of each minute
// only the last checkpoint is kept.
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
	if err := w.replace.exec(c.Size, minute); err != nil {
		return err
	}
	w.next.signed = c.Size
	return w.insertCheckpoint.exec(c.Size, w.next.time, msg)
}

// beforeSign refuses to sign what the file does not hold: its tree must have
// the root to be signed, and had, at the size of the last checkpoint, the root
// that was signed then. Hashes that memory or disk have changed meanwhile are so
// never made authentic by a signature. It reads a few tiles, not the events:
// that their bytes are what was hashed is for Verify to find.
func (w *writer) beforeSign(c tlog.Checkpoint) error {
	tree, err := tlog.Restore(c.Size, w.readTile)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if tree.Root() != c.Root {
		return corrupt("its tree of %d events is not the one that was to be signed", c.Size)
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
	// The signatures follow the text after an empty line.
	if !found || !ok || !bytes.HasPrefix(signed, []byte(last.Text()+"\n")) {
		return corrupt("its tree of %d events is not the one that was signed", last.Size)
	}
	return nil
}

// signNow signs a checkpoint in a transaction of its own, if the log has grown
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
