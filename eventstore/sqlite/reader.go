package sqlite

import (
	"bytes"
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"accountledger/eventstore"
)

// Limits of a page. A reader reads a page, ends the read transaction, and then
// yields the page, so that a slow caller does not delay WAL checkpoints.
const (
	pageEvents = 512
	pageBytes  = 4 << 20
)

// readers is the maximum number of concurrent reads.
const readers = 4

// pollInterval is how often a Reader checks for events that another process
// has appended.
const pollInterval = 100 * time.Millisecond

// Reader reads a log. It takes no lock and never blocks a process that appends.
// Its methods are safe for concurrent use.
type Reader struct {
	path  string
	conns chan *readConn // the idle connections; nil stands for one not opened yet

	close   sync.Once
	closing chan struct{} // closed by Close
}

// readConn is a read-only connection with prepared statements.
type readConn struct {
	*conn
	head, page, stream  *stmt
	streams, names      *stmt
	block, provenStream *stmt
	streamEnd           *stmt
	tile                *stmt
	row                 [recordedColumns]driver.Value
}

// OpenReader opens the log in a data directory for reading, for tools that run
// beside a ledger. Subscriptions poll for new events every 100 ms. OpenReader
// fails with fs.ErrNotExist, ErrForeign or ErrNewer if there is no log that this
// version can read.
func OpenReader(ctx context.Context, dir string) (*Reader, error) {
	path := filepath.Join(dir, fileName)
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("sqlite: open %s: %w", path, err)
	}
	if err := checkWAL(path); err != nil {
		return nil, fmt.Errorf("sqlite: open %s: %w", path, err)
	}
	if _, err := identify(path); err != nil {
		return nil, fmt.Errorf("sqlite: open %s: %w", path, err)
	}
	r := newReader(path)
	if _, err := r.Head(ctx); err != nil {
		return nil, fmt.Errorf("sqlite: open %s: %w", path, err)
	}
	return r, nil
}

func newReader(path string) *Reader {
	r := &Reader{path: path, conns: make(chan *readConn, readers), closing: make(chan struct{})}
	for range readers {
		r.conns <- nil
	}
	return r
}

// identify returns the version of the file's format, and an error unless it is a
// log that this program can read. It does not change the file.
func identify(path string) (version int64, err error) {
	c, err := dial(path, readOnly)
	if err != nil {
		return 0, err
	}
	defer c.close()
	app, err := c.scalar("PRAGMA application_id")
	if err != nil {
		return 0, err
	}
	found, err := c.scalar("PRAGMA user_version")
	if err != nil {
		return 0, err
	}
	version, _ = found.(int64)
	switch {
	case app != int64(applicationID):
		return 0, ErrForeign
	case version > schemaVersion:
		return 0, fmt.Errorf("%w: it has version %d, but this program reads version %d", ErrNewer, version, schemaVersion)
	}
	return version, nil
}

// checkWAL returns ErrNoWAL if the log was not closed and its -wal file, which
// then holds its last events, is missing. It looks before SQLite opens the file,
// because SQLite creates a missing -wal file.
func checkWAL(path string) error {
	if _, err := os.Stat(path + "-wal"); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	c, err := dial(path, "mode=ro&immutable=1&_query_only=1")
	if err != nil {
		return err
	}
	defer c.close()
	// Files of other kinds and versions have no such mark.
	if open, err := c.scalar(`SELECT open FROM meta`); err == nil && open == int64(1) {
		return ErrNoWAL
	}
	return nil
}

// use waits for an idle connection, opens it if necessary, and runs f with it.
func (r *Reader) use(ctx context.Context, f func(*readConn) error) error {
	select {
	case <-r.closing: // checked first: the select below might choose an idle connection
		return eventstore.ErrClosed
	default:
	}
	var c *readConn
	select {
	case c = <-r.conns:
	case <-r.closing:
		return eventstore.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { r.conns <- c }()
	if c == nil {
		opened, err := r.dial()
		if err != nil {
			return err
		}
		c = opened
	}
	return f(c)
}

func (r *Reader) dial() (*readConn, error) {
	raw, err := dial(r.path, readOnly)
	if err != nil {
		return nil, err
	}
	c := &readConn{conn: raw}
	err = raw.keep(map[**stmt]string{
		&c.head:         `SELECT position FROM events ORDER BY position DESC LIMIT 1`,
		&c.page:         selectRecorded + ` WHERE e.position > ? AND e.position <= ? ORDER BY e.position LIMIT ` + fmt.Sprint(pageEvents),
		&c.stream:       selectRecorded + ` WHERE e.stream = (SELECT num FROM streams WHERE name = ?) AND e.revision >= ? ORDER BY e.revision LIMIT ` + fmt.Sprint(pageEvents),
		&c.block:        selectEvents + ` WHERE e.position BETWEEN ? AND ? ORDER BY e.position`,
		&c.provenStream: selectEvents + ` WHERE e.stream = (SELECT num FROM streams WHERE name = ?) AND e.revision >= ? ORDER BY e.revision LIMIT ` + fmt.Sprint(pageEvents),
		&c.streamEnd:    `SELECT revision, position FROM events WHERE stream = (SELECT num FROM streams WHERE name = ?) ORDER BY revision DESC LIMIT 1`,
		&c.tile:         `SELECT data FROM tiles WHERE level = ? AND n = ?`,
		&c.names:        `SELECT name FROM streams WHERE name >= ?1 AND (name > ?1 OR ?2) ORDER BY name LIMIT ` + fmt.Sprint(pageEvents),
		&c.streams:      selectRecorded + ` WHERE (e.stream, e.revision) > (ifnull((SELECT num FROM streams WHERE name = ?), 0), ?) AND e.position <= ? ORDER BY e.stream, e.revision LIMIT ` + fmt.Sprint(pageEvents),
	})
	if err != nil {
		raw.close()
		return nil, err
	}
	return c, nil
}

// With outer joins, an event whose stream is missing from a damaged file is
// reported as damaged, not skipped.
const (
	selectRecorded = `SELECT e.position, s.name, e.revision, e.time, e.id, e.type, e.actor, e.clear, e.kid, p.bytes
		FROM events e LEFT JOIN streams s ON s.num = e.stream LEFT JOIN sealed p ON p.position = e.position`
	recordedColumns = 10
)

// recorded returns the event in a row of selectRecorded.
func recorded(row []driver.Value) (eventstore.Recorded, error) {
	f := fields{row: row}
	rec := eventstore.Recorded{
		Position: eventstore.Position(f.int()), Stream: f.text(), Revision: eventstore.Revision(f.int()),
		Time:  time.UnixMicro(f.int()).UTC(),
		Event: eventstore.Event{ID: f.id(), Type: f.text(), Actor: f.text(), Clear: f.blob()},
	}
	if f.maybe() {
		rec.KeyID = f.hash()
	}
	if f.maybe() {
		rec.Sealed = f.blob()
	}
	switch {
	case f.bad:
		return rec, corrupt("event %d cannot be read", rec.Position)
	case rec.Position < 1:
		return rec, tampered("there is an event at position %d", rec.Position)
	}
	return rec, nil
}

// events runs s, appends up to a page of events to page, and reports whether
// there may be more.
func (c *readConn) events(page []eventstore.Recorded, s *stmt, args ...driver.Value) (_ []eventstore.Recorded, more bool, err error) {
	rows, err := s.query(args...)
	if err != nil {
		return page, false, err
	}
	defer rows.Close()
	for n, bytes := 0, 0; n < pageEvents && bytes < pageBytes; n++ {
		if err := rows.Next(c.row[:]); err == io.EOF {
			return page, false, nil
		} else if err != nil {
			return page, false, classify(err)
		}
		rec, err := recorded(c.row[:])
		if err != nil {
			return page, false, err
		}
		page, bytes = append(page, rec), bytes+size(&rec)
	}
	return page, true, nil
}

// page reads a page of the events after a position, up to head. The log must
// contain an event at head.
func (r *Reader) page(ctx context.Context, page []eventstore.Recorded, after, head eventstore.Position) ([]eventstore.Recorded, error) {
	err := r.use(ctx, func(c *readConn) (err error) {
		page, _, err = c.events(page, c.page, int64(after), int64(head))
		return err
	})
	if err != nil {
		return nil, err
	}
	// A subscription must not skip missing events.
	for i := range page {
		if after++; page[i].Position != after {
			return nil, corrupt("event %d is missing", after)
		}
	}
	if len(page) == 0 {
		return nil, corrupt("event %d is missing", after+1)
	}
	return page, nil
}

// Head returns the position of the last event, 0 in an empty log.
func (r *Reader) Head(ctx context.Context) (eventstore.Position, error) {
	var head int64
	err := r.use(ctx, func(c *readConn) error {
		found, err := c.head.row(c.row[:1])
		if found {
			f := fields{row: c.row[:1]}
			head = f.int()
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("sqlite: head: %w", err)
	}
	return eventstore.Position(head), nil
}

// Checkpoint returns the smallest stored checkpoint that covers position p, as
// a C2SP signed note, or nil if there is none yet.
func (r *Reader) Checkpoint(ctx context.Context, p eventstore.Position) (note []byte, err error) {
	err = r.use(ctx, func(c *readConn) error {
		s, err := c.prepare(`SELECT note FROM checkpoints WHERE size >= ? ORDER BY size LIMIT 1`)
		if err != nil {
			return err
		}
		defer s.close()
		found, err := s.row(c.row[:1], int64(p))
		if found {
			f := fields{row: c.row[:1]}
			note = f.blob()
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("sqlite: checkpoint: %w", err)
	}
	return bytes.Clone(note), nil
}

// ReadStream reads like Store.ReadStream.
func (r *Reader) ReadStream(ctx context.Context, stream string, from eventstore.Revision) iter.Seq2[eventstore.Recorded, error] {
	return r.readStream(ctx, stream, from, r.Head)
}

func (r *Reader) readStream(ctx context.Context, stream string, from eventstore.Revision,
	headOf func(context.Context) (eventstore.Position, error)) iter.Seq2[eventstore.Recorded, error] {
	return func(yield func(eventstore.Recorded, error) bool) {
		head, err := headOf(ctx)
		if err != nil {
			yield(eventstore.Recorded{}, err)
			return
		}
		var page []eventstore.Recorded
		more := true
		for next := max(from, 0); more; next = page[len(page)-1].Revision + 1 {
			if err = ctx.Err(); err == nil {
				err = r.use(ctx, func(c *readConn) (err error) {
					page, more, err = c.events(page[:0], c.stream, stream, int64(next))
					return err
				})
			}
			if err != nil {
				yield(eventstore.Recorded{}, fmt.Errorf("sqlite: read stream %s: %w", stream, err))
				return
			}
			for i := range page {
				if page[i].Position > head {
					return
				}
				if page[i].Revision != next+eventstore.Revision(i) {
					yield(eventstore.Recorded{}, fmt.Errorf("sqlite: read stream %s: %w", stream, corrupt("revision %d is missing", next+eventstore.Revision(i))))
					return
				}
				if !yield(page[i], nil) {
					return
				}
			}
			if len(page) == 0 {
				return
			}
		}
	}
}

// Streams yields the names of the streams that begin with prefix, in the order
// of their bytes, and in pages like ReadStream.
func (r *Reader) Streams(ctx context.Context, prefix string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for last, more, first := prefix, true, true; more; first = false {
			var page []string
			err := ctx.Err()
			if err == nil {
				err = r.use(ctx, func(c *readConn) (err error) {
					page, err = c.streamNames(last, prefix, first)
					return err
				})
			}
			if err != nil {
				yield("", fmt.Errorf("sqlite: streams: %w", err))
				return
			}
			for _, name := range page {
				if !yield(name, nil) {
					return
				}
				last = name
			}
			more = len(page) == pageEvents
		}
	}
}

// streamNames returns a page of the names that begin with prefix: those after
// last, and last itself if the page is the first.
func (c *readConn) streamNames(last, prefix string, first bool) ([]string, error) {
	at := int64(0)
	if first {
		at = 1
	}
	rows, err := c.names.query(last, at)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var page []string
	for {
		if err := rows.Next(c.row[:1]); err == io.EOF {
			return page, nil
		} else if err != nil {
			return nil, classify(err)
		}
		f := fields{row: c.row[:1]}
		name := f.text()
		if f.bad {
			return nil, corrupt("the name of a stream cannot be read")
		}
		if !strings.HasPrefix(name, prefix) {
			return page, nil
		}
		page = append(page, name)
	}
}

// ByStream implements eventstore.StreamReader. It yields the streams in the
// order of their numbers, which is the order of the index on events.
func (r *Reader) ByStream(ctx context.Context, to eventstore.Position) iter.Seq2[[]eventstore.Recorded, error] {
	return r.byStream(ctx, to, r.Head)
}

func (r *Reader) byStream(ctx context.Context, to eventstore.Position,
	headOf func(context.Context) (eventstore.Position, error)) iter.Seq2[[]eventstore.Recorded, error] {
	return func(yield func([]eventstore.Recorded, error) bool) {
		read := func() error {
			head, err := headOf(ctx)
			if err != nil {
				return err
			}
			to = min(to, head)
			last, left := eventstore.Recorded{Revision: eventstore.NoStream}, to
			for page, more := []eventstore.Recorded(nil), true; more; {
				if err := ctx.Err(); err != nil {
					return err
				}
				err := r.use(ctx, func(c *readConn) (err error) {
					page, more, err = c.events(page[:0], c.streams, last.Stream, int64(last.Revision), int64(to))
					return err
				})
				if err != nil {
					return err
				}
				for _, rec := range page {
					next := eventstore.Revision(0)
					if rec.Stream == last.Stream {
						next = last.Revision + 1
					}
					if rec.Revision != next {
						return corrupt("revision %d of %s is missing", next, rec.Stream)
					}
					last = rec
				}
				left -= eventstore.Position(len(page))
				if len(page) > 0 && !yield(page, nil) {
					return nil
				}
			}
			if left != 0 {
				return corrupt("%d of the events up to position %d are missing", left, to)
			}
			return nil
		}
		if err := read(); err != nil {
			yield(nil, fmt.Errorf("sqlite: read by stream: %w", err))
		}
	}
}

// Subscribe yields events like Store.Subscribe.
func (r *Reader) Subscribe(ctx context.Context, after eventstore.Position) iter.Seq2[[]eventstore.Recorded, error] {
	return func(yield func([]eventstore.Recorded, error) bool) {
		poll := time.NewTicker(pollInterval)
		defer poll.Stop()
		page := make([]eventstore.Recorded, 0, pageEvents)
		for after = max(after, 0); ; {
			head, err := r.Head(ctx)
			if err == nil && head > after {
				page, err = r.page(ctx, page[:0], after, head)
			}
			switch {
			case err != nil:
				yield(nil, err)
				return
			case head > after:
				after = page[len(page)-1].Position
				if !yield(page, nil) {
					return
				}
				continue
			}
			select {
			case <-poll.C:
			case <-ctx.Done():
				yield(nil, ctx.Err())
				return
			case <-r.closing:
				yield(nil, eventstore.ErrClosed)
				return
			}
		}
	}
}

// Close ends running subscriptions with eventstore.ErrClosed, waits for running
// reads, and closes the file. Further calls do nothing.
func (r *Reader) Close() error {
	var err error
	r.close.Do(func() {
		close(r.closing)
		for range readers {
			if c := <-r.conns; c != nil {
				if e := c.close(); e != nil && err == nil {
					err = fmt.Errorf("sqlite: close: %w", e)
				}
			}
		}
	})
	return err
}
