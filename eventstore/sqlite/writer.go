package sqlite

import (
	"bytes"
	"cmp"
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
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
	work    chan func()   // other work for run
	closing chan struct{} // closed by close
	ended   chan struct{} // closed when run returns
	once    sync.Once

	ledger   string
	signer   note.Signer
	vouch    vouch
	keys     func() eventstore.KeyState
	watch    []string
	files    *Reader                 // reads what was written, before it is signed
	publish  func(note []byte) error // may be nil
	failed   func(error)             // may be nil
	trouble  func(error)             // may be nil
	interval time.Duration
	now      func() time.Time
	observe  func(Transaction)
	trace    func(context.Context, Appended)

	// Only run uses the fields below.

	db       *conn
	sealed   eventstore.KeyState // in the sealed head that load has read
	server   []byte              // in the same
	state    state               // content of the file
	next     state               // content of the file once the running transaction is durable
	heads    heads               // includes the running transaction; cleared if that fails
	broken   error               // not nil if the content of the file is unknown; forbids all writes
	closeErr error               // of the last checkpoint, signed when the log closes

	sound      *tlog.Tree // over the events whose bytes audits have read; nil if they begin again
	auditing   bool       // an audit is running
	audits     chan audit // outcomes of audits
	lastSign   time.Time  // when the last audit began
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
	selectWaiting             *stmt
	deleteWaiting             *stmt
	updateHead                *stmt
	insertCheckpoint          *stmt
	deleteCheckpoints         *stmt
	selectCheckpoint          *stmt
	selectSealed, eraseSealed *stmt
	row                       [3]driver.Value
}

// state describes the end of the log. load can read all of it from the file.
type state struct {
	tree    tlog.Tree
	time    int64 // of the last event
	streams int64 // number of the last created stream
	signed  int64 // size of the last checkpoint
	claims  digest
	watched digest
	slot    uint64 // highest slot in a key ID
	waiting int64  // number of waiting claims
	rules   int64  // version of the claims
}

func (s *state) head() eventstore.Position { return eventstore.Position(s.tree.Size()) }

// set makes s a copy of t. It copies the tree, so that a transaction that fails
// does not change the tree in state.
func (s *state) set(t *state) {
	s.tree.Set(&t.tree)
	s.time, s.streams, s.signed = t.time, t.streams, t.signed
	s.claims, s.watched, s.slot, s.waiting, s.rules = t.claims, t.watched, t.slot, t.waiting, t.rules
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

func newWriter(db *conn, files *Reader, c Config) (*writer, error) {
	w := &writer{
		queue: make(chan *request, queueLength), work: make(chan func()), closing: make(chan struct{}), ended: make(chan struct{}),
		ledger: c.Ledger, signer: c.Signer, vouch: c.Vouch, keys: c.Keys, watch: c.Watch, files: files, publish: c.Publish, failed: c.Failed, trouble: c.Trouble,
		interval: c.CheckpointInterval, now: c.Now, observe: c.Observe, trace: c.Trace, db: db, audits: make(chan audit, 1),
	}
	err := db.keep(map[**stmt]string{
		&w.begin:        `BEGIN IMMEDIATE`,
		&w.end:          `COMMIT`,
		&w.rollback:     `ROLLBACK`,
		&w.selectNum:    `SELECT num FROM streams WHERE name = ?`,
		&w.selectHead:   `SELECT revision, leaf_hash, position FROM events WHERE stream = +? ORDER BY revision DESC LIMIT 1`,
		&w.selectOwner:  `SELECT (SELECT name FROM streams WHERE num = stream) FROM claims WHERE kind = ? AND key = ?`,
		&w.insertStream: `INSERT INTO streams (num, name) VALUES (?, ?)`,
		&w.insertEvent: `INSERT INTO events (position, stream, revision, time, id, type, actor, clear, prev, kid, sealed_hash, leaf_hash)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		&w.insertSealed:      `INSERT INTO sealed (position, bytes) VALUES (?, ?)`,
		&w.putTile:           `INSERT INTO tiles (level, n, data) VALUES (?, ?, ?) ON CONFLICT (level, n) DO UPDATE SET data = excluded.data`,
		&w.insertClaim:       `INSERT INTO claims (kind, key, stream) VALUES (?, ?, ?) ON CONFLICT (kind, key) DO NOTHING`,
		&w.selectWaiting:     `SELECT stream, (SELECT name FROM streams WHERE num = stream) FROM waiting WHERE kind = ? AND key = ? ORDER BY place LIMIT 1`,
		&w.deleteWaiting:     `DELETE FROM waiting WHERE kind = ? AND key = ? AND stream = ?`,
		&w.updateHead:        `UPDATE head SET size = ?, root = ?, claims = ?, watched = ?, slot = ?, changes = ?, destroyed = ?, mac = ?`,
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
	if err := w.load(); err != nil {
		return nil, err
	}
	return w, w.prepareAudits()
}

// load reads the writer's state from the file, and compares it with the sealed
// head.
func (w *writer) load() error {
	w.heads = heads{}
	var s state
	var size, before int64
	for query, into := range map[string]*int64{
		`SELECT ifnull(max(position), 0) FROM events`:                                &size,
		`SELECT ifnull(min(position), 1) <> 1 FROM events`:                           &before,
		`SELECT ifnull((SELECT time FROM events ORDER BY position DESC LIMIT 1), 0)`: &s.time,
		`SELECT ifnull(max(num), 0) FROM streams`:                                    &s.streams,
		`SELECT ifnull(max(size), 0) FROM checkpoints`:                               &s.signed,
		`SELECT count(*) FROM waiting`:                                               &s.waiting,
	} {
		v, err := w.db.scalar(query)
		if err != nil {
			return err
		}
		n, ok := v.(int64)
		if !ok || n < 0 {
			return tampered("%v instead of a non-negative number", v)
		}
		*into = n
	}
	if before != 0 {
		return tampered("its first event is not at position 1")
	}
	h, err := readHead(w.db, w.ledger, w.vouch)
	if err != nil {
		return err
	}
	// Otherwise the writer would sign a second root for the same size.
	if s.signed > size {
		return tampered("it has %d events, but a signed checkpoint covers %d", size, s.signed)
	}
	tree, err := tlog.Restore(min(size, h.size), w.readTile)
	if err != nil {
		return noTree(err)
	}
	if err := h.compare(size, tree); err != nil {
		return err
	}
	s.tree, s.claims, s.watched, s.slot, s.rules = *tree, h.claims, h.watched, h.slot, h.rules
	w.state, w.sealed, w.server = s, h.keys, h.server
	return nil
}

// prepareAudits sets the tree that the next audit continues, over the events
// under the last checkpoint. It checks the bytes of the last event, whose time the
// next events depend on.
func (w *writer) prepareAudits() error {
	tree, err := tlog.Restore(w.state.signed, w.readTile)
	if err != nil {
		return noTree(err)
	}
	w.sound = tree
	if size := w.state.tree.Size(); size > 0 {
		// Not prove, which would read all events since the last checkpoint.
		p := &prover{tree: &w.state.tree, read: w.files.fullTile(context.Background())}
		return w.files.use(context.Background(), func(c *readConn) error {
			page, sound, err := c.eventRows(c.block, size, size)
			if err == nil && len(page) != 1 {
				err = tampered("event %d is missing", size)
			}
			if err == nil {
				_, err = page[0].check(sound[0], p, nil)
			}
			return err
		})
	}
	return nil
}

// checkWatched compares the last events of the watched streams with the sealed
// head.
func (w *writer) checkWatched() error {
	sum, err := sumWatched(w.db, w.vouch, w.watch)
	if err == nil && sum != w.state.watched {
		err = tampered("events of API keys, of the configuration or of webhooks were removed or hidden")
	}
	return err
}

// sealHead writes the sealed head of next.
func (w *writer) sealHead() error {
	h := sealedHead{size: w.next.tree.Size(), root: w.next.tree.Root(), claims: w.next.claims, watched: w.next.watched, slot: w.next.slot, rules: w.next.rules, server: w.server}
	if w.keys != nil {
		h.keys = w.keys()
	}
	claims, watched, mac := h.claims.bytes(), h.watched.bytes(), w.vouch.seal(w.ledger, h)
	return w.updateHead.exec(h.size, h.root[:], claims[:], watched[:], int64(h.slot), h.keys.Changes, h.keys.Destroyed, mac[:])
}

// fail forbids all further writes because of err, and reports it once.
func (w *writer) fail(err error) error {
	if w.broken == nil {
		w.broken = fmt.Errorf("the log accepts no appends until it is reopened: %w", err)
		if w.failed != nil {
			go w.failed(w.broken)
		}
	}
	return w.broken
}

// suspect fails the writer if err, of a reader, says that the log was changed,
// and returns err.
func (w *writer) suspect(err error) error {
	if errors.Is(err, eventstore.ErrTampered) {
		go w.do(context.Background(), func() { _ = w.fail(err) })
	}
	return err
}

// do runs f in run's goroutine, between transactions.
func (w *writer) do(ctx context.Context, f func()) error {
	done := make(chan struct{})
	select {
	case w.work <- func() { defer close(done); f() }:
		<-done
		return nil
	case <-w.closing:
		return eventstore.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// treeNow returns a copy of the tree over the log's events.
func (w *writer) treeNow(ctx context.Context) (*tlog.Tree, error) {
	tree := &tlog.Tree{}
	err := w.do(ctx, func() { tree.Set(&w.state.tree) })
	return tree, err
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
	var data []byte
	err = s.each(1, func(f *fields) error {
		data = append(data, f.blob()...)
		return nil
	}, args...)
	return data, err
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
	found, err = w.selectHead.row(w.row[:3], h.num)
	if err != nil {
		return h, err
	}
	last := fields{row: w.row[:3]}
	if found { // otherwise the stream has claims but no events
		h.revision, h.leaf = eventstore.Revision(last.int()), last.hash()
		if at := last.int(); at < 1 || at > w.next.tree.Size() {
			return h, tampered("event %d is not one of the %d that were appended", at, w.next.tree.Size())
		}
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
	return cmp.Or(w.closeErr, w.files.Close(), w.db.close())
}

// audit is the outcome of reading the events that no checkpoint covers.
type audit struct {
	sound *tlog.Tree // over all events read so far; nil if one is not as it was appended
	time  int64      // of the last of them
	note  []byte     // the signed checkpoint
	err   error
}

// audit reads the bytes of the events that no checkpoint covers, compares them
// with the tree, and signs a checkpoint, which it sends to w.audits. It runs
// beside the writer. So nothing is signed that is not in the file.
func (w *writer) audit() {
	if w.sound == nil {
		if err := w.prepareAudits(); err != nil {
			w.lastSign = time.Now()
			w.report(err)
			return
		}
	}
	want, sound := &tlog.Tree{}, w.sound
	want.Set(&w.state.tree)
	a := audit{time: w.state.time}
	w.sound, w.auditing, w.lastSign = nil, true, time.Now()
	go func() {
		if a.sound, a.err = w.files.prove(context.Background(), sound, want, want.Size(), nil); a.err == nil {
			a.note, a.err = tlog.Checkpoint{Origin: w.signer.Name(), Size: want.Size(), Root: want.Root()}.Sign(w.signer)
		}
		// First where an operator cannot roll the ledger back with it.
		if a.err == nil && w.publish != nil {
			a.err = w.publish(a.note)
		}
		w.audits <- a
	}()
}

// conclude stores the checkpoint of an audit in a separate transaction.
func (w *writer) conclude(a audit) error {
	w.sound, w.auditing = a.sound, false
	switch {
	case errors.Is(a.err, eventstore.ErrTampered):
		return w.fail(a.err)
	case w.broken != nil:
		return w.broken
	case a.err != nil:
		return fmt.Errorf("sqlite: sign checkpoint: %w", a.err)
	}
	if err := w.transact(func() error { return w.sign(a) }); err != nil {
		return fmt.Errorf("sqlite: sign checkpoint: %w", err)
	}
	return nil
}

// sign adds a checkpoint to the running transaction. It deletes earlier
// checkpoints of the same minute.
func (w *writer) sign(a audit) error {
	size := a.sound.Size()
	if err := w.beforeSign(size, a.sound.Root()); err != nil {
		return err
	}
	minute := a.time - a.time%time.Minute.Microseconds()
	if err := w.deleteCheckpoints.exec(size, minute); err != nil {
		return err
	}
	w.next.signed = size
	return w.insertCheckpoint.exec(size, a.time, a.note)
}

// beforeSign fails with ErrTampered unless the tiles in the file have the root to
// be signed, and, at the size of the last checkpoint, the root that was signed
// then. So the writer does not sign hashes that changed in memory or on disk.
func (w *writer) beforeSign(size int64, root tlog.Hash) error {
	tree, err := tlog.Restore(size, w.readTile)
	if err != nil {
		return noTree(err)
	}
	if tree.Root() != root {
		return tampered("its tree of %d events does not have the root to be signed", size)
	}
	if w.next.signed == 0 {
		return nil
	}
	if tree, err = tlog.Restore(w.next.signed, w.readTile); err != nil {
		return noTree(err)
	}
	found, err := w.selectCheckpoint.row(w.row[:1], w.next.signed)
	if err != nil {
		return err
	}
	// Only the text after the origin, which an earlier incarnation signed.
	signed, _ := w.row[0].([]byte)
	_, signed, _ = bytes.Cut(signed, []byte("\n"))
	_, text, _ := strings.Cut(tlog.Checkpoint{Size: w.next.signed, Root: tree.Root()}.Text(), "\n")
	// In a note, an empty line separates the text from the signatures.
	if !found || !bytes.HasPrefix(signed, []byte(text+"\n")) {
		return tampered("its tree of %d events does not have the root that was signed", w.next.signed)
	}
	return nil
}

// finish signs the log's last state and marks the file as cleanly closed.
func (w *writer) finish() error {
	err := w.signRest()
	// The last connection merges the -wal file into this one and deletes it, even
	// if the log accepts no appends.
	if e := w.db.exec(context.Background(), `UPDATE meta SET open = 0`); err == nil && w.broken == nil {
		err = e
	}
	return err
}

// signRest signs what no checkpoint covers.
func (w *writer) signRest() error {
	if w.auditing {
		if err := w.conclude(<-w.audits); err != nil {
			return err
		}
	}
	if w.broken != nil || w.state.signed == w.state.tree.Size() {
		return nil // each append has returned what broke the log
	}
	if w.audit(); !w.auditing {
		return errors.New("sqlite: sign checkpoint: the events cannot be read again")
	}
	return w.conclude(<-w.audits)
}

// report passes on an error that ends nothing, and of which no caller learns.
func (w *writer) report(err error) {
	if err != nil && w.broken == nil && w.trouble != nil {
		w.trouble(err)
	}
}
