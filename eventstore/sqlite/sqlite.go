// Package sqlite is the log in one file: an eventstore.Store whose events, the
// Merkle tree over them, its signed checkpoints and the claims change in the
// same transaction.
//
// One goroutine writes, see writer; that is what gives positions the order in
// which they become visible. Readers have connections of their own and never
// block it.
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
	applicationID = 0x414c4f47 // "ALOG", in the file's header
	schemaVersion = 1
)

//go:embed schema.sql
var schema string

// Config is how a log is kept.
type Config struct {
	// Dir is the data directory, which must exist. The log is its file log.db,
	// and its file lock keeps every other process out.
	Dir string
	// Signer signs the checkpoints. Its name is their origin, which belongs to
	// the log: a log is opened with the key name it was created with.
	Signer note.Signer
	// CheckpointInterval is how long a log that grew may be without a new
	// checkpoint; 0 means a second.
	CheckpointInterval time.Duration
	// Now is the clock that stamps events; nil means time.Now.
	Now func() time.Time
	// Observe is told of each transaction that appends, once its callers have
	// been answered. The next transaction waits for it. nil: nobody is.
	Observe func(Transaction)
	// Trace is told of each append that was decided, by its caller and with the
	// caller's context. nil: nobody is.
	Trace func(context.Context, Appended)
}

// Appended is an append that was decided, for whoever follows what caused it.
type Appended struct {
	Came  time.Time // into the queue
	Begun time.Time // its transaction
	Ended time.Time // when that was durable, or failed

	Receipt eventstore.Receipt // zero where nothing was appended
	Err     error              // why
}

// Transaction is what one transaction of the log did, for whoever watches over
// it.
type Transaction struct {
	Appends int           // that shared it
	Refused int           // of these, for a conflict or a claim
	Events  int           // appended
	Waited  time.Duration // what the first of the appends waited in the queue
	Took    time.Duration // from its beginning until it was durable
	Err     error         // why nothing of it was stored
}

// Store is the log, open for appending. It is an eventstore.Store.
type Store struct {
	files  *Reader
	tail   *tail
	writer *writer
	lock   *os.File
	close  sync.Once
}

var _ eventstore.Store = (*Store)(nil)

// Open opens the log in c.Dir and creates it where there is none.
func Open(ctx context.Context, c Config) (*Store, error) {
	if c.Signer == nil {
		return nil, errors.New("sqlite: open: no key to sign checkpoints")
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

// openFile opens the file for writing once it is known to be ours, or new.
func openFile(ctx context.Context, path, origin string) (*conn, error) {
	info, err := os.Stat(path)
	fresh := errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() == 0
	if !fresh {
		// A creation that a crash cut short left an empty database.
		if err := identify(path); errors.Is(err, ErrForeign) && isEmpty(path) {
			fresh = true
		} else if err != nil {
			return nil, err
		}
	}
	if fresh {
		// SQLite would let others read it; its side files take this file's mode.
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

// isEmpty reports whether the file is a database that nothing is in.
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
	// 1,000 pages a WAL checkpoint: more would make the few commits that run
	// one wait noticeably longer.
	if err := db.exec(ctx, `PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 1000`); err != nil {
		return err
	}
	if fresh {
		// One transaction: the file is ours and complete, or still empty.
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
		return fmt.Errorf("%w: its key is %v, not %s", ErrForeign, stored, origin)
	}
	return nil
}

// Append is eventstore.Store's. Appends that come in while the log is busy
// share the next transaction.
func (s *Store) Append(ctx context.Context, c eventstore.Commit) (eventstore.Receipt, error) {
	if err := c.Check(); err != nil {
		return eventstore.Receipt{}, err
	}
	return s.writer.append(ctx, c)
}

// Head is eventstore.Store's.
func (s *Store) Head(ctx context.Context) (eventstore.Position, error) {
	select {
	case <-s.files.closing:
		return 0, eventstore.ErrClosed
	default:
		return s.tail.head(), ctx.Err()
	}
}

// Checkpoint is Reader.Checkpoint of the open log.
func (s *Store) Checkpoint(ctx context.Context, p eventstore.Position) ([]byte, error) {
	return s.files.Checkpoint(ctx, p)
}

// ReadStream is eventstore.Store's.
func (s *Store) ReadStream(ctx context.Context, stream string, from eventstore.Revision) iter.Seq2[eventstore.Recorded, error] {
	return s.files.readStream(ctx, stream, from, s.Head)
}

// ByStream is eventstore.StreamReader's.
func (s *Store) ByStream(ctx context.Context, to eventstore.Position) iter.Seq2[[]eventstore.Recorded, error] {
	return s.files.byStream(ctx, to, s.Head)
}

// Subscribe is eventstore.Store's. The events of a page are shared with other
// subscribers: their bytes are to be read and not to be changed.
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

// Close signs the log's last state, ends running subscriptions with
// eventstore.ErrClosed and gives the directory free. Appends not yet begun are
// refused. The second call does nothing.
func (s *Store) Close() error {
	var err error
	s.close.Do(func() {
		// The writer after the readers: whoever closes the file's last
		// connection folds the WAL into it, and only the writer may.
		err = errors.Join(s.files.Close(), s.writer.close(), s.lock.Close())
	})
	return err
}
