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

// projection folds events into tables that it alone writes. Each generation
// of a view has tables of its own; %[1]d in SQL here is its number.
type projection struct {
	name    string
	version int64                    // of its rows; those of another version are made again
	follows func(stream string) bool // what it does not follow is not even opened
	types   map[string]bool          // current types of the events it applies; nil for all
	tables  string                   // SQL that makes the tables
	clear   []string                 // SQL that deletes some rows of a table each, to be run until none is left
	drop    string                   // SQL that drops the empty tables
	count   string                   // SQL that counts what a new generation must not have less of

	// source is the view whose rows it is made of, where it is not made of
	// events: those are then not opened, only who changed matters, and it never
	// gets ahead of its source.
	source *view
	pause  time.Duration // lets events gather that long, unless somebody awaits them

	// stale reports whether the live generation is to be made again because of
	// something it follows. It is asked when the writer raises view.outdated.
	// Nil: it never is.
	stale func(ctx context.Context) (bool, error)

	// writer makes the writing side of a generation.
	writer func(ctx context.Context, generation int64) (writer, error)

	// serve gets ready to answer from a generation; swap lets it answer, and
	// returns when no reader is left on the one before.
	serve func(ctx context.Context, generation int64) (swap func(), err error)
}

// wants reports whether p applies rec at all: what it does not, is not opened.
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

// writer is the writing side of one generation. Entries of one stream come in
// order; those of different streams in any, for a rebuild reads stream by
// stream. They are folded in memory, then the rows are written, each once.
type writer struct {
	apply func(ctx context.Context, b *batch, x domain.Entry) error // parks what does not fit, or returns an unfitError
	flush func(ctx context.Context, b *batch) error                 // parks what it cannot write
	end   func(keep bool)                                           // of the batch; whether what it made is worth keeping in memory
	close func() error

	// bulk fills an empty generation up to head, where there is a better way
	// than to read the log. Nil: there is none.
	bulk func(ctx context.Context, g *generation, head eventstore.Position, progress func(done, total int64)) error
}

// prepare prepares a writer's statements for the tables of a generation. What
// it returns closes them.
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

// unfitError is of the entry and not of the machinery: its stream parks.
type unfitError struct{ error }

func (e unfitError) Unwrap() error { return e.error }

// catch turns a panic into an unfitError: one malformed event must not stop
// the others. Of what it panicked with, a plain string and the runtime's
// errors are shown, for they are text of the code and not data.
func catch(err *error) {
	switch p := recover().(type) {
	case nil:
	case string:
		*err = unfitError{errors.New("panic: " + p)}
	case runtime.Error:
		*err = unfitError{fmt.Errorf("panic: %w", p)}
	default:
		*err = unfitError{fmt.Errorf("panic: %T", p)}
	}
}

// decoded is an entry, or why there is none; then it has its place only.
type decoded struct {
	domain.Entry
	err error
}

// decode opens and decodes rec, if there is use for what it says.
func (w *view) decode(rec eventstore.Recorded) decoded {
	if w.source != nil {
		return decoded{Entry: domain.Entry{ID: rec.ID, Type: domain.CurrentType(rec.Type), Stream: rec.Stream, Revision: rec.Revision, Position: rec.Position, Time: rec.Time}}
	}
	return w.views.decode(rec)
}

// decode opens and decodes rec; a second time, if the first fails, in case it
// was the key store's bad moment.
func (v *Views) decode(rec eventstore.Recorded) (d decoded) {
	defer catch(&d.err)
	d.Entry = domain.Entry{Stream: rec.Stream, Revision: rec.Revision, Position: rec.Position}
	for range 2 {
		x, err := v.codec.Decode(rec)
		if err == nil {
			return decoded{Entry: x}
		}
		d.err = unfitError{err}
	}
	// If keys cannot be read at all, that is not the entry's fault.
	if rec.Sealed != nil {
		_, err := v.codec.Keys.Open(rec.KeyID, seal.Context{EventID: rec.ID, Stream: rec.Stream, Revision: rec.Revision, Type: rec.Type}, rec.Sealed)
		if err != nil && !errors.Is(err, seal.ErrErased) && !errors.Is(err, seal.ErrKey) && !errors.Is(err, seal.ErrOpen) {
			d.err = err
		}
	}
	return d
}

// decodeAll decodes on all cores what is too much for one.
func (w *view) decodeAll(recs []eventstore.Recorded) []decoded {
	const few = 32 // are not worth waking another core for
	cores := runtime.GOMAXPROCS(0)
	share := max(few, (len(recs)+cores-1)/cores)
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
