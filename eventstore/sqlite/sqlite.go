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
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"

	"accountledger/eventstore"
)

const (
	fileName      = "log.db"
	applicationID = 0x414c4f47 // "ALOG", in the file header
	schemaVersion = 1
)

//go:embed schema.sql
var schema string

// Config configures Open.
type Config struct {
	// Dir is the data directory, which must exist. The log is stored in its
	// file log.db; the file lock prevents other processes from opening it.
	Dir string
	// Signer signs the checkpoints. Its name is their origin; a log must be
	// opened with the same key name it was created with.
	Signer note.Signer
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
	lock   *os.File
	close  sync.Once
}

var _ eventstore.Store = (*Store)(nil)

// Open opens the log in c.Dir and creates it if there is none. It fails with
// ErrLocked, ErrForeign, ErrNewer, ErrCorrupt or ErrReadOnly if the log is not
// usable.
func Open(ctx context.Context, c Config) (*Store, error) {
	if c.Signer == nil {
		return nil, errors.New("sqlite: open: a key to sign checkpoints is required")
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
	db, err := openFile(ctx, path, c.Signer.Name())
	if err != nil {
		lock.Close()
		return nil, fmt.Errorf("sqlite: open %s: %w", path, err)
	}
	w, err := newWriter(db, c)
	if err != nil {
		db.close()
		lock.Close()
		return nil, fmt.Errorf("sqlite: open %s: %w", path, err)
	}
	s := &Store{files: newReader(path), tail: newTail(w.state.head()), writer: w, lock: lock}
	go w.run(s.tail.publish)
	return s, nil
}

// openFile opens the file for writing, after checking that it is a log or new.
func openFile(ctx context.Context, path, origin string) (*conn, error) {
	info, err := os.Stat(path)
	fresh := errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() == 0
	if !fresh {
		// If a crash interrupted the creation, the database is empty.
		if err := identify(path); errors.Is(err, ErrForeign) && isEmpty(path) {
			fresh = true
		} else if err != nil {
			return nil, err
		}
	}
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
	if err := prepareFile(ctx, db, fresh, origin); err != nil {
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

func prepareFile(ctx context.Context, db *conn, fresh bool, origin string) error {
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
		insert, err := db.prepare(`INSERT INTO meta (origin) VALUES (?)`)
		if err != nil {
			return err
		}
		defer insert.close()
		if err := insert.exec(origin); err != nil {
			return err
		}
		if err := db.exec(ctx, "COMMIT"); err != nil {
			return err
		}
	}
	stored, err := db.scalar(`SELECT origin FROM meta`)
	if err != nil {
		return err
	}
	if stored != origin {
		return fmt.Errorf("%w: its key is named %v, not %s", ErrForeign, stored, origin)
	}
	return nil
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

// ReadProven implements eventstore.Store.
func (s *Store) ReadProven(ctx context.Context, stream string, from eventstore.Revision) iter.Seq2[eventstore.Recorded, error] {
	return s.files.readStream(ctx, stream, from, s.Head)
}

// Streams implements eventstore.Store.
func (s *Store) Streams(ctx context.Context, prefix string) iter.Seq2[string, error] {
	return s.files.Streams(ctx, prefix)
}

// Prove implements eventstore.Store.
func (s *Store) Prove(ctx context.Context, to eventstore.Position, progress func(done, total int64)) error {
	return nil
}

// Reclaim implements eventstore.Store.
func (s *Store) Reclaim(ctx context.Context, version int, claims iter.Seq2[eventstore.Claim, error]) error {
	return errors.ErrUnsupported
}

// ClaimsVersion implements eventstore.Store.
func (s *Store) ClaimsVersion(ctx context.Context) (int, error) { return 1, nil }

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
