// Package projections follows the log and keeps what it adds up to in tables
// that can be thrown away: views.db is made of the log and of nothing else.
// Delete it, and it is made again.
//
// The runner is in projection.go, making a view again beside the live one in
// rebuild.go, and each view in a file of its own: its tables, how events
// change them, and the questions it answers.
package projections

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"accountledger/domain"
	"accountledger/eventstore"
)

// Config says what Views follow and where they keep what they make of it.
type Config struct {
	Path   string           // of views.db; made if it is missing
	Log    eventstore.Store // what is followed
	Codec  domain.Codec     // opens and decodes what the log holds
	Logger *slog.Logger     // default: nothing is logged

	// Retry is how long a stream that could not be applied waits before it
	// is tried again, and the runner after an error; each time twice as long,
	// up to Retry * 256. Default 1 s.
	Retry time.Duration

	// Trace is told of each event with a traceparent once a view shows it, as
	// the log brings it: what is made again is nobody's request. It must not
	// wait for anything. Default: nobody is.
	Trace func(Applied)
}

// Applied is an event that is part of a trace and that a view shows.
type Applied struct {
	View  string
	Entry domain.Entry
	Begun time.Time // with what was applied together
	Ended time.Time // when it was committed
}

// Views are the read models in one file, views.db. All methods may be called
// at once by many goroutines; Run by one.
type Views struct {
	path      string
	log       eventstore.Store
	codec     domain.Codec
	logger    *slog.Logger
	retry     time.Duration
	trace     func(Applied)
	write     *sql.DB // one connection: SQLite has one writer, so queue here; nil for a reader
	read      *sql.DB // many connections that only read
	accounts  *Accounts
	schedules *Schedules
	erasures  *Erasures
	search    *Search
	all       []*view
	builder   chan struct{} // held by who builds or drops a generation: one at a time, for bounded memory
	closed    chan struct{}
	close     sync.Once
}

// ErrClosed is returned by Await when the Views are closed.
var ErrClosed = errors.New("projections: closed")

// Open opens views.db, or makes it. A damaged file of ours is made anew,
// because the log has all of it; a file that is not one of views, or is of a
// newer program, is refused.
func Open(ctx context.Context, c Config) (*Views, error) {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Retry == 0 {
		c.Retry = time.Second
	}
	write, made, err := openWriter(ctx, c.Path)
	if err != nil {
		return nil, fmt.Errorf("projections: open %s: %w", c.Path, err)
	}
	if made {
		c.Logger.InfoContext(ctx, "views start from an empty file")
	}
	v, err := open(ctx, c, write)
	if errors.Is(err, errOutdated) && !made {
		c.Logger.InfoContext(ctx, "views are of another version and start from an empty file", "err", err)
		write.Close()
		if err = remove(c.Path); err == nil {
			return Open(ctx, c)
		}
	}
	if err != nil {
		write.Close()
		return nil, fmt.Errorf("projections: open %s: %w", c.Path, err)
	}
	return v, nil
}

// OpenReader opens an existing views.db for status and queries, beside a live
// server or without one. It sees what the server has committed.
func OpenReader(ctx context.Context, path string) (*Views, error) {
	// SQLite would report a missing file as one it cannot open.
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("projections: %w", err)
	}
	v, err := open(ctx, Config{Path: path, Logger: slog.New(slog.DiscardHandler)}, nil)
	if err == nil {
		_, err = v.Status(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("projections: open %s: %w", path, err)
	}
	return v, nil
}

func open(ctx context.Context, c Config, write *sql.DB) (*Views, error) {
	read, err := openPool(c.Path)
	if err != nil {
		return nil, err
	}
	v := &Views{path: c.Path, log: c.Log, codec: c.Codec, logger: c.Logger, retry: c.Retry, trace: c.Trace, write: write, read: read,
		builder: make(chan struct{}, 1), closed: make(chan struct{})}
	v.accounts = &Accounts{views: v}
	v.schedules = &Schedules{views: v}
	v.erasures = &Erasures{views: v}
	v.search = &Search{views: v, limits: defaultLimits}
	add := func(p projection) *view {
		w := &view{projection: p, views: v}
		v.all = append(v.all, w)
		return w
	}
	v.accounts.view = add(v.accounts.projection())
	add(v.schedules.projection())
	add(v.erasures.projection())
	v.search.view = add(v.search.projection())
	for _, w := range v.all {
		if write == nil {
			continue
		}
		if err := w.open(ctx); err != nil {
			read.Close()
			return nil, err
		}
	}
	return v, nil
}

// Run keeps all views up to date until ctx is done, and then returns nil.
// Whatever fails on the way is logged and tried again from the stored
// checkpoint, except that a closed log or a damaged views.db end it.
func (v *Views) Run(ctx context.Context) error {
	running, ctx := errgroup.WithContext(ctx)
	for _, w := range v.all {
		running.Go(func() error {
			if err := w.run(ctx); err != nil {
				return fmt.Errorf("projections: %s: %w", w.name, err)
			}
			return nil
		})
	}
	return running.Wait()
}

// Await returns when the view has applied the event at p, or passed it
// because its stream is parked. It returns ctx's error, or ErrClosed.
func (v *Views) Await(ctx context.Context, view string, p eventstore.Position) error {
	w, err := v.find(view)
	if err != nil {
		return err
	}
	return w.await(ctx, p)
}

// Rebuild makes the view again from the first event of the log on, beside the
// live one, which goes on answering; then the two change places and the old
// one is dropped. It works while Run runs, and without. Unless it returns
// nil, the live view is as it was. progress may be nil; it is told how many
// events of how many have been read.
func (v *Views) Rebuild(ctx context.Context, view string, progress func(done, total int64)) error {
	w, err := v.find(view)
	if err != nil {
		return err
	}
	if v.write == nil {
		return errors.New("projections: opened for reading only")
	}
	if progress == nil {
		progress = func(_, _ int64) {}
	}
	if err := w.rebuild(ctx, progress); err != nil {
		return fmt.Errorf("projections: rebuild %s: %w", view, err)
	}
	return nil
}

func (v *Views) find(name string) (*view, error) {
	for _, w := range v.all {
		if w.name == name {
			return w, nil
		}
	}
	return nil, fmt.Errorf("projections: there is no view %q", name)
}

// Accounts is the account view.
func (v *Views) Accounts() *Accounts { return v.accounts }

// Schedules is the view of what is planned.
func (v *Views) Schedules() *Schedules { return v.schedules }

// Erasures is the view of erasures that are under way.
func (v *Views) Erasures() *Erasures { return v.erasures }

// Search is the index that accounts are searched in.
func (v *Views) Search() *Search { return v.search }

// The states of a view.
const (
	StateLive       = "live"
	StateRebuilding = "rebuilding" // beside the live one, which answers
)

// Status is where a view stands.
type Status struct {
	Name     string
	Position eventstore.Position // of the last event it has applied
	Head     eventstore.Position // of the last event of the log; -1 from OpenReader, which has no log
	Lag      int64               // events of the log it has not applied; -1 from OpenReader
	State    string              // StateLive or StateRebuilding
	Rebuilt  eventstore.Position // while it is rebuilt, how far that is
	Parked   []Parked            // streams that wait, by the position they wait at
}

// Parked is a stream that waits because one of its events could not be
// applied; its later events wait with it. Other streams go on.
type Parked struct {
	Stream   string
	Revision eventstore.Revision // of the first event that waits
	Position eventstore.Position // of that event
	Error    string              // why, without personal data
	Since    time.Time           // UTC
	Attempts int64               // to apply it
	next     time.Time
}

// Status says where each view stands.
func (v *Views) Status(ctx context.Context) ([]Status, error) {
	tx, err := v.read.BeginTx(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("projections: status: %w", err)
	}
	defer tx.Rollback()
	var all []Status
	for _, w := range v.all {
		s := Status{Name: w.name, Head: -1, Lag: -1, State: StateLive}
		var generation int64
		var rebuilt sql.Null[eventstore.Position]
		err := tx.QueryRowContext(ctx, `SELECT generation, position,
			(SELECT max(position) FROM views WHERE name = v.name AND state = 'rebuilding')
			FROM views v WHERE name = ? AND state = 'live'`, w.name).Scan(&generation, &s.Position, &rebuilt)
		if errors.Is(err, sql.ErrNoRows) && v.write == nil {
			all = append(all, s) // the file is of an older program; the next one that writes makes the view
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("projections: status of %s: %w", w.name, err)
		}
		if rebuilt.Valid {
			s.State, s.Rebuilt = StateRebuilding, rebuilt.V
		}
		if s.Parked, err = loadParked(ctx, tx, w.name, generation); err != nil {
			return nil, fmt.Errorf("projections: status of %s: %w", w.name, err)
		}
		all = append(all, s)
	}
	if v.log == nil {
		return all, nil
	}
	head, err := v.log.Head(ctx)
	if err != nil {
		return nil, fmt.Errorf("projections: status: %w", err)
	}
	for i := range all {
		all[i].Head = head
		all[i].Lag = max(0, int64(head-all[i].Position))
	}
	return all, nil
}

func loadParked(ctx context.Context, tx *sql.Tx, view string, generation int64) ([]Parked, error) {
	rows, err := tx.QueryContext(ctx, `SELECT stream, revision, position, error, since, attempts, next
		FROM parked WHERE view = ? AND generation = ? ORDER BY position`, view, generation)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []Parked
	for rows.Next() {
		var p Parked
		var since, next int64
		if err := rows.Scan(&p.Stream, &p.Revision, &p.Position, &p.Error, &since, &p.Attempts, &next); err != nil {
			return nil, err
		}
		p.Since, p.next = time.UnixMicro(since).UTC(), time.UnixMicro(next).UTC()
		all = append(all, p)
	}
	return all, rows.Err()
}

// Check examines the whole file and returns what is wrong with it. A damaged
// file is no loss: stop the ledger, delete it, start.
func (v *Views) Check(ctx context.Context) error {
	rows, err := v.read.QueryContext(ctx, "PRAGMA integrity_check(10)")
	if err != nil {
		return fmt.Errorf("projections: check: %w", err)
	}
	defer rows.Close()
	var wrong []error
	for rows.Next() {
		var finding string
		if err := rows.Scan(&finding); err != nil {
			return fmt.Errorf("projections: check: %w", err)
		}
		if finding != "ok" {
			wrong = append(wrong, errors.New("projections: check: "+finding))
		}
	}
	return errors.Join(append(wrong, rows.Err())...)
}

// Backup writes a copy of the file, as it is at one moment, to dest, which
// must not exist. Nobody waits for it.
func (v *Views) Backup(ctx context.Context, dest string) error {
	// Not from the pool: query_only forbids writing to any file at all.
	db, err := connect(v.path, "mode=ro", 1)
	if err != nil {
		return fmt.Errorf("projections: back up: %w", err)
	}
	defer db.Close()
	if _, err := db.ExecContext(ctx, "VACUUM INTO ?", dest); err != nil {
		return fmt.Errorf("projections: back up: %w", err)
	}
	return nil
}

// Close closes the file. Run must have returned.
func (v *Views) Close() error {
	v.close.Do(func() { close(v.closed) })
	errs := []error{v.read.Close()}
	if v.write != nil {
		errs = append(errs, v.write.Close()) // last: it clears the write-ahead log away
	}
	return errors.Join(errs...)
}
