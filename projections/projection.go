package projections

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/eventstore/seal"
)

// projection defines a view: the events it applies and the tables it writes.
// Each generation of a view has its own set of tables; in the SQL here, %[1]d
// stands for the generation's number.
type projection struct {
	name    string
	version int64                    // of the rows; increase it to have the view rebuilt
	follows func(stream string) bool // events of other streams are not even opened
	types   map[string]bool          // current types of the events it applies; nil for all
	tables  string                   // SQL that creates the tables
	clear   []string                 // SQL statements that each delete some rows of a table; run until no row is left
	drop    string                   // SQL that drops the empty tables
	count   string                   // SQL for a number of rows; a rebuild must not lower it

	// source, if not nil, is the view whose rows this one derives its rows
	// from. Events then only tell which accounts changed and are not opened,
	// and this view never gets ahead of its source.
	source *view
	pause  time.Duration // between batches, so that a batch covers several changes; skipped while a caller awaits the view

	// stale reports whether the live generation has to be rebuilt because the
	// configuration changed. The runner calls it when view.outdated is raised.
	// Nil: never.
	stale func(ctx context.Context) (bool, error)

	// writer returns the writer of a generation's tables.
	writer func(ctx context.Context, generation int64) (writer, error)

	// serve prepares to answer queries from a generation. swap switches
	// queries to it and returns when no query uses the previous one any more.
	serve func(ctx context.Context, generation int64) (swap func(), err error)
}

// wants reports whether p applies rec. Records it does not want are not opened.
func (p *projection) wants(rec *eventstore.Recorded) bool {
	return p.follows(rec.Stream) && (p.types == nil || p.types[domain.CurrentType(rec.Type)])
}

// typesOf returns the set of the current types of events.
func typesOf(events ...domain.Event) map[string]bool {
	types := make(map[string]bool, len(events))
	for _, e := range events {
		types[domain.TypeOf(e)] = true
	}
	return types
}

// writer writes the tables of one generation. apply gets the entries of one
// stream in order, but those of different streams in any order, because a
// rebuild reads stream by stream. It folds them in memory; flush then writes
// each changed row once.
type writer struct {
	apply  func(ctx context.Context, b *batch, x domain.Entry) error // parks a stream it cannot apply, or returns an entryError
	flush  func(ctx context.Context, b *batch) error                 // parks streams it cannot write
	finish func(keep bool)                                           // ends the batch; keep: it was committed, and its rows may be cached
	close  func() error

	// bulk fills an empty generation up to head faster than reading the log
	// would. Nil: the log is read.
	bulk func(ctx context.Context, g *generation, head eventstore.Position, progress func(done, total int64)) error
}

// prepare prepares a writer's statements for the tables of a generation. The
// returned function closes them.
func (v *Views) prepare(ctx context.Context, generation int64, statements map[**sql.Stmt]string) (closing func() error, err error) {
	var prepared []*sql.Stmt
	closing = func() error {
		var errs []error
		for _, s := range prepared {
			errs = append(errs, s.Close())
		}
		return errors.Join(errs...)
	}
	for to, text := range statements {
		if *to, err = v.write.PrepareContext(ctx, fmt.Sprintf(text, generation)); err != nil {
			return nil, errors.Join(err, closing())
		}
		prepared = append(prepared, *to)
	}
	return closing, nil
}

// entryError is an error caused by the entry itself, as opposed to the database
// or the key store. The entry's stream is parked.
type entryError struct{ error }

func (e entryError) Unwrap() error { return e.error }

// catch turns a panic into an entryError: one malformed event must not stop
// the others. It shows the panic's value only if that is a plain string or a
// runtime error, because other values may contain personal data.
func catch(err *error) {
	switch p := recover().(type) {
	case nil:
	case string:
		*err = entryError{errors.New("panic: " + p)}
	case runtime.Error:
		*err = entryError{fmt.Errorf("panic: %w", p)}
	default:
		*err = entryError{fmt.Errorf("panic: %T", p)}
	}
}

// decoded is an entry, or the error of decoding it; then the entry has only its
// stream, revision and position.
type decoded struct {
	domain.Entry
	err error
}

// decode opens and decodes rec, unless the view does not need the event's data.
func (w *view) decode(rec eventstore.Recorded) decoded {
	if w.source != nil {
		return decoded{Entry: domain.Entry{ID: rec.ID, Type: domain.CurrentType(rec.Type), Stream: rec.Stream, Revision: rec.Revision, Position: rec.Position, Time: rec.Time}}
	}
	return w.views.decode(rec)
}

// decode opens and decodes rec. It tries twice, in case the key store failed
// temporarily.
func (v *Views) decode(rec eventstore.Recorded) (d decoded) {
	defer catch(&d.err)
	d.Entry = domain.Entry{Stream: rec.Stream, Revision: rec.Revision, Position: rec.Position}
	for range 2 {
		x, err := v.codec.Decode(rec)
		if err == nil {
			return decoded{Entry: x}
		}
		d.err = entryError{err}
	}
	// If the key store itself fails, the stream must not be parked for it.
	if rec.Sealed != nil {
		_, err := v.codec.Keys.Open(rec.KeyID, seal.Context{EventID: rec.ID, Stream: rec.Stream, Revision: rec.Revision, Type: rec.Type}, rec.Sealed)
		if err != nil && !errors.Is(err, seal.ErrErased) && !errors.Is(err, seal.ErrKey) && !errors.Is(err, seal.ErrOpen) {
			d.err = err
		}
	}
	return d
}

// decodeAll decodes recs on all cores.
func (w *view) decodeAll(recs []eventstore.Recorded) []decoded {
	const minShare = 32 // below this, another goroutine costs more than it gains
	cores := runtime.GOMAXPROCS(0)
	share := max(minShare, (len(recs)+cores-1)/cores)
	all := make([]decoded, len(recs))
	var working sync.WaitGroup
	for from := 0; from < len(recs); from += share {
		to := min(from+share, len(recs))
		work := func() {
			for i := from; i < to; i++ {
				all[i] = w.decode(recs[i])
			}
		}
		if to < len(recs) {
			working.Go(work)
		} else {
			work()
		}
	}
	working.Wait()
	return all
}
