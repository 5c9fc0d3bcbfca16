// Package sqlite implements eventstore.Store in one SQLite file. Events, the
// Merkle tree over them, its signed checkpoints and the claims change in the
// same transaction.
//
// A single goroutine writes (see writer), so events become visible in the order
// of their positions. Readers use separate connections and never block it.
package sqlite

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"

	"accountledger/eventstore"
	"accountledger/eventstore/tlog"
)

const (
	fileName      = "log.db"
	applicationID = 0x414c4f47 // "ALOG", in the file header
	schemaVersion = 2
)

//go:embed schema.sql
var schema string

// Config configures Open.
type Config struct {
	// Dir is the data directory, which must exist. The log is stored in its
	// file log.db; the file lock prevents other processes from opening it.
	Dir string
	// Ledger is the ledger's id. A log must be opened with the id it was created
	// with.
	Ledger string
	// Signer signs the checkpoints. Its name is their origin; a log must be
	// opened with the key name it was last opened with, unless NewOrigin is set.
	Signer    note.Signer
	NewOrigin bool
	// Vouch computes MACs under a key of the ledger. With it, the log seals its
	// head in every transaction, and recognises it when it is opened.
	Vouch func(message []byte) [32]byte
	// Keys returns the state of the key file, which the sealed head records.
	// Open refuses a key file that is behind it. Nil: there is none.
	Keys func() eventstore.KeyState
	// Watch names the streams whose last events the sealed head vouches for, so
	// that Open notices if one was removed or hidden: by their names, or, with a
	// final hyphen, by how their names begin. Use it for streams that decide what
	// the ledger does. A log must always be opened with the same names.
	Watch []string
	// Existing makes Open refuse a missing or empty log, instead of creating one.
	Existing bool
	// ClaimsVersion is the version of the claims in a new log.
	ClaimsVersion int

	// LastSigned is a signed checkpoint of the log that was kept elsewhere. Open
	// refuses a log that ends before it or has another root there. Nil: none.
	LastSigned []byte
	// Publish, if not nil, makes a signed checkpoint durable elsewhere, before
	// the log stores it.
	Publish func(note []byte) error
	// Failed, if not nil, is called once if the log accepts no more appends,
	// because others changed it or because the content of its file is unknown.
	Failed func(error)
	// Trouble, if not nil, is called with each failure to sign a checkpoint. It
	// is retried.
	Trouble func(error)

	// Adopt decides about a log without a sealed head, which version 1 wrote.
	Adopt Adoption
	// AcceptMissingWAL opens a log that was not closed and whose -wal file is
	// missing, without the events that were only in that file.
	AcceptMissingWAL bool

	// CheckpointInterval is the maximum time between an append and the next
	// checkpoint; 0 means one second.
	CheckpointInterval time.Duration
	// Now returns the time to record for events; nil means time.Now.
	Now func() time.Time
	// Observe, if not nil, is called for each transaction that appends, after
	// its callers have their results. It blocks the next transaction.
	Observe func(Transaction)
	// Trace, if not nil, is called for each completed append, in the caller's
	// goroutine and with the caller's context.
	Trace func(context.Context, Appended)
}

// Appended describes a completed append, for tracing.
type Appended struct {
	Came  time.Time // when it entered the queue
	Begun time.Time // when its transaction began
	Ended time.Time // when the transaction was durable or failed

	Receipt eventstore.Receipt // zero if nothing was appended
	Err     error              // the result of Append
}

// Transaction describes one transaction of the log, for monitoring.
type Transaction struct {
	Appends int           // number of appends in it
	Refused int           // those refused with a conflict or a claim error
	Events  int           // number of events appended
	Waited  time.Duration // how long its first append waited in the queue
	Took    time.Duration // from its start until it was durable or failed
	Err     error         // if not nil, nothing was stored
}

// Store is a log that is open for appending. It implements eventstore.Store
// and eventstore.StreamReader.
type Store struct {
	files  *Reader
	tail   *tail
	writer *writer
	sealed eventstore.KeyState
	lock   *os.File
	close  sync.Once
}

var _ eventstore.Store = (*Store)(nil)

// Open opens the log in c.Dir and creates it if there is none. It fails with
// ErrLocked, ErrForeign, ErrNewer, ErrCorrupt or ErrReadOnly if the log is not
// usable.
func Open(ctx context.Context, c Config) (*Store, error) {
	if c.Signer == nil || c.Vouch == nil {
		return nil, errors.New("sqlite: open: a key to sign checkpoints and one to seal the head are required")
	}
	if c.Ledger == "" {
		c.Ledger = c.Signer.Name()
	}
	if c.CheckpointInterval == 0 {
		c.CheckpointInterval = time.Second
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	lock, err := lockDir(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("sqlite: open: %w", err)
	}
	path := filepath.Join(c.Dir, fileName)
	s, err := openStore(ctx, path, c)
	if err != nil {
		lock.Close()
		return nil, fmt.Errorf("sqlite: open %s: %w", path, err)
	}
	s.lock = lock
	go s.writer.run(s.tail.publish)
	return s, nil
}

func openStore(ctx context.Context, path string, c Config) (_ *Store, err error) {
	fresh, err := examine(ctx, path, c)
	if err != nil {
		return nil, err
	}
	db, err := openFile(ctx, path, fresh, c)
	if err != nil {
		return nil, err
	}
	own := newReader(path) // the writer's, which is open longer than the Store's
	w, err := newWriter(db, own, c)
	if err == nil {
		err = w.begins(ctx, c)
	}
	if err != nil {
		return nil, errors.Join(err, own.Close(), db.close())
	}
	return &Store{files: newReader(path), tail: newTail(w.state.head()), writer: w, sealed: w.sealed}, nil
}

// examine checks that the file is the log that c describes, or that it may be
// created. It writes only to a log of version 1, which it seals. A connection that
// may write would merge the -wal file into a log that is then refused, so examine
// only reads.
func examine(ctx context.Context, path string, c Config) (fresh bool, err error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() == 0 {
		return missing(c)
	}
	if err := checkWAL(path); err != nil && !(c.AcceptMissingWAL && errors.Is(err, ErrNoWAL)) {
		return false, err
	}
	version, err := identify(path)
	if errors.Is(err, ErrForeign) && isEmpty(path) { // a crash interrupted the creation
		return missing(c)
	}
	if err == nil && version == 1 {
		err = adopt(ctx, path, c)
	}
	if err != nil {
		return false, err
	}
	db, err := dial(path, readOnly)
	if err != nil {
		return false, err
	}
	files := newReader(path)
	w := &writer{db: db, files: files, ledger: c.Ledger, vouch: c.Vouch, watch: c.Watch}
	err = checkSchema(db)
	if err == nil {
		err = belongs(db, c)
	}
	if err == nil {
		err = w.load()
	}
	if err == nil {
		err = w.fits(c)
	}
	if err == nil {
		err = w.prepareAudits()
	}
	if err == nil {
		err = w.checkWatched()
	}
	return false, errors.Join(err, files.Close(), db.close())
}

func missing(c Config) (fresh bool, err error) {
	if c.Existing {
		return false, ErrEmpty
	}
	if c.LastSigned != nil {
		last, err := parseCheckpoint(c.LastSigned)
		if err == nil && last.Size > 0 {
			err = &RolledBack{Signed: last.Size}
		}
		return true, err
	}
	return true, nil
}

// checkSchema fails with ErrTampered if the file has other tables, indexes or
// triggers than this version creates: a foreign trigger would run in the writer's
// transactions. A trigger may be missing; those of this version only guard against
// mistakes.
func checkSchema(db *conn) error {
	const query = `SELECT type || ' ' || name || ': ' || ifnull(sql, ''), type FROM sqlite_schema WHERE name NOT LIKE 'sqlite_stat%'`
	fresh, err := dial(":memory:", "mode=memory")
	if err != nil {
		return err
	}
	defer fresh.close()
	if err := fresh.exec(context.Background(), schema); err != nil {
		return err
	}
	unseen := map[string]string{}
	list := func(c *conn, f func(object, kind string) error) error {
		s, err := c.prepare(query)
		if err != nil {
			return err
		}
		defer s.close()
		return s.each(2, func(f2 *fields) error { return f(f2.text(), f2.text()) })
	}
	err = list(fresh, func(object, kind string) error {
		unseen[object] = kind
		return nil
	})
	if err == nil {
		err = list(db, func(object, _ string) error {
			if _, ours := unseen[object]; !ours {
				return tampered("log.db has a table, an index or a trigger that this program did not create")
			}
			delete(unseen, object)
			return nil
		})
	}
	if err != nil {
		return err
	}
	for object, kind := range unseen {
		if kind != "trigger" {
			return tampered("log.db lacks the %s", strings.SplitN(object, ":", 2)[0])
		}
	}
	return nil
}

// belongs checks that the log is that of the ledger, and signed by its key.
func belongs(db *conn, c Config) error {
	ledger, err := db.scalar(`SELECT ledger FROM meta`)
	if err != nil {
		return err
	}
	if ledger != c.Ledger {
		return fmt.Errorf("%w: it is that of %v, not of %s", ErrForeign, ledger, c.Ledger)
	}
	origin, err := db.scalar(`SELECT origin FROM meta`)
	if err != nil {
		return err
	}
	if origin != c.Signer.Name() && !c.NewOrigin {
		return fmt.Errorf("%w: its key is named %v, not %s", ErrForeign, origin, c.Signer.Name())
	}
	return nil
}

// fits compares the log with what the key file and the last signed checkpoint
// have seen of it.
func (w *writer) fits(c Config) error {
	if c.Keys != nil {
		if now := c.Keys(); now.Slot < w.state.slot || now.Changes < w.sealed.Changes {
			return &KeysBehind{Sealed: w.sealed, Found: now}
		}
	}
	if c.LastSigned == nil {
		return nil
	}
	last, err := parseCheckpoint(c.LastSigned)
	if err != nil {
		return err
	}
	if last.Size > w.state.tree.Size() {
		return &RolledBack{Signed: last.Size, Size: w.state.tree.Size()}
	}
	tree, err := tlog.Restore(last.Size, w.readTile)
	if err != nil {
		return noTree(err)
	}
	if tree.Root() != last.Root {
		return &RolledBack{Signed: last.Size, Size: w.state.tree.Size(), Beside: true}
	}
	return nil
}

// begins marks the file as open, and makes that durable in the file itself: a
// copy without the -wal file then shows that it is incomplete.
func (w *writer) begins(ctx context.Context, c Config) error {
	if err := w.db.exec(ctx, `UPDATE meta SET open = 1`); err != nil {
		return err
	}
	if c.NewOrigin {
		s, err := w.db.prepare(`UPDATE meta SET origin = ?`)
		if err != nil {
			return err
		}
		defer s.close()
		if err := s.exec(c.Signer.Name()); err != nil {
			return err
		}
	}
	_, err := w.db.scalar(`PRAGMA wal_checkpoint(TRUNCATE)`) // at the latest the next one moves the mark
	return err
}

// openFile opens the file for writing, and creates a fresh one.
func openFile(ctx context.Context, path string, fresh bool, c Config) (*conn, error) {
	if fresh {
		// SQLite would create the file readable by all users. Its -wal and -shm
		// files take the mode of this file.
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		f.Close()
	}
	db, err := dial(path, readWrite)
	if err != nil {
		return nil, err
	}
	if err := prepareFile(ctx, db, fresh, c); err != nil {
		db.close()
		return nil, err
	}
	return db, nil
}

// isEmpty reports whether the file is an empty SQLite database.
func isEmpty(path string) bool {
	c, err := dial(path, readOnly)
	if err != nil {
		return false
	}
	defer c.close()
	empty, err := c.scalar(`SELECT count(*) = 0 AND (SELECT application_id = 0 FROM pragma_application_id) FROM sqlite_schema`)
	return err == nil && empty == int64(1)
}

func prepareFile(ctx context.Context, db *conn, fresh bool, c Config) error {
	// With more than 1,000 pages per WAL checkpoint, the commits that run one
	// would take noticeably longer.
	if err := db.exec(ctx, `PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 1000`); err != nil {
		return err
	}
	if fresh {
		// In one transaction, so that the file is either complete or empty.
		create := fmt.Sprintf("BEGIN IMMEDIATE; %s; PRAGMA application_id = %d; PRAGMA user_version = %d;", schema, applicationID, schemaVersion)
		if err := db.exec(ctx, create); err != nil {
			return err
		}
		first := sealedHead{root: new(tlog.Tree).Root(), rules: int64(c.ClaimsVersion), keys: c.keyState()}
		if err := createHead(db, c, first); err != nil {
			return err
		}
		if err := db.exec(ctx, "COMMIT"); err != nil {
			return err
		}
	}
	return nil
}

func (c Config) keyState() eventstore.KeyState {
	if c.Keys == nil {
		return eventstore.KeyState{}
	}
	return c.Keys()
}

// Sealed returns the state of the key file that the log had seen when it was
// opened. If the key file has destroyed fewer keys, it is an older copy, and the
// caller destroys again those that the log says are destroyed.
func (s *Store) Sealed() eventstore.KeyState { return s.sealed }

// createHead fills the tables meta and head.
func createHead(db *conn, c Config, h sealedHead) error {
	meta, err := db.prepare(`INSERT INTO meta (ledger, origin, claims_version, open) VALUES (?, ?, ?, 0)`)
	if err != nil {
		return err
	}
	defer meta.close()
	if err := meta.exec(c.Ledger, c.Signer.Name(), h.rules); err != nil {
		return err
	}
	head, err := db.prepare(`INSERT INTO head (id, size, root, claims, watched, slot, changes, destroyed, server, mac) VALUES (1, ?, ?, ?, ?, ?, ?, ?, x'', ?)`)
	if err != nil {
		return err
	}
	defer head.close()
	sum, watched, mac := h.claims.bytes(), h.watched.bytes(), vouch(c.Vouch).seal(c.Ledger, h)
	return head.exec(h.size, h.root[:], sum[:], watched[:], int64(h.slot), h.keys.Changes, h.keys.Destroyed, mac[:])
}

// Append implements eventstore.Store. Appends that arrive while a transaction
// is running share the next one. Besides the port's errors, Append fails with
// ErrDiskFull, ErrReadOnly or ErrCorrupt.
func (s *Store) Append(ctx context.Context, c eventstore.Commit) (eventstore.Receipt, error) {
	if err := c.Check(); err != nil {
		return eventstore.Receipt{}, err
	}
	return s.writer.append(ctx, c)
}

// Head implements eventstore.Store.
func (s *Store) Head(ctx context.Context) (eventstore.Position, error) {
	select {
	case <-s.files.closing:
		return 0, eventstore.ErrClosed
	default:
		return s.tail.head(), ctx.Err()
	}
}

// Checkpoint returns the same as Reader.Checkpoint.
func (s *Store) Checkpoint(ctx context.Context, p eventstore.Position) ([]byte, error) {
	return s.files.Checkpoint(ctx, p)
}

// ReadStream implements eventstore.Store.
func (s *Store) ReadStream(ctx context.Context, stream string, from eventstore.Revision) iter.Seq2[eventstore.Recorded, error] {
	return s.files.readStream(ctx, stream, from, s.Head)
}

// Streams implements eventstore.Store.
func (s *Store) Streams(ctx context.Context, prefix string) iter.Seq2[string, error] {
	return s.files.Streams(ctx, prefix)
}

// ByStream implements eventstore.StreamReader.
func (s *Store) ByStream(ctx context.Context, to eventstore.Position) iter.Seq2[[]eventstore.Recorded, error] {
	return s.files.byStream(ctx, to, s.Head)
}

// Subscribe implements eventstore.Store. Subscribers share the byte slices of
// events and must not modify them.
func (s *Store) Subscribe(ctx context.Context, after eventstore.Position) iter.Seq2[[]eventstore.Recorded, error] {
	return func(yield func([]eventstore.Recorded, error) bool) {
		page := make([]eventstore.Recorded, 0, pageEvents)
		for after = max(after, 0); ; {
			if _, err := s.Head(ctx); err != nil {
				yield(nil, err)
				return
			}
			var head eventstore.Position
			var grown <-chan struct{}
			page, head, grown = s.tail.after(after, page[:0])
			if len(page) == 0 && after < head {
				var err error
				if page, err = s.files.page(ctx, page, after, head); err != nil {
					yield(nil, fmt.Errorf("sqlite: subscribe: %w", err))
					return
				}
			}
			if len(page) > 0 {
				after = page[len(page)-1].Position
				if !yield(page, nil) {
					return
				}
				continue
			}
			select {
			case <-grown:
			case <-ctx.Done():
			case <-s.files.closing:
			}
		}
	}
}

// Close ends running subscriptions with eventstore.ErrClosed, refuses appends
// that the writer has not started with the same error, signs a checkpoint of
// the log's final state, and releases the directory's lock. Further calls do
// nothing.
func (s *Store) Close() error {
	var err error
	s.close.Do(func() {
		// Close the writer after the readers: SQLite merges the WAL into the
		// file when the last connection closes, and only the writer may write.
		err = errors.Join(s.files.Close(), s.writer.close(), s.lock.Close())
	})
	return err
}
