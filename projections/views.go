// Package projections follows the log and maintains read models, the views, in
// views.db. The file contains nothing but data derived from the log: delete it,
// and the next start rebuilds it. A file that contradicts the log is refused, and
// never replaced: it may be the last copy of what the log has lost.
//
// Type view in runner.go keeps one view up to date; generation.go has the
// batches it applies, rebuild.go builds a new generation beside the live one.
// Type projection, in projection.go, is what a view has to define. Each view
// has files of its own with its tables, its event handling and its queries:
// accounts*.go, schedules.go, erasures.go and search*.go.
//
// The folders below this one are further subscribers of the log.
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

// Config configures Views.
type Config struct {
	Path     string           // of views.db; created if it is missing
	LedgerID string           // the ledger whose log it is; a file that names none is bound to it. "": not compared
	Log      eventstore.Store // the log to follow
	Codec    domain.Codec     // opens and decodes the log's events
	Logger   *slog.Logger     // default: discards

	// Retry is the delay before the first retry, both of a parked stream and
	// of a view that stopped with an error. It doubles with each failure, up
	// to 256 * Retry. Default 1 s.
	Retry time.Duration

	// Trace is called for each event with a traceparent after a view has
	// committed it. A rebuild does not call it, because no request causes a
	// rebuild. It must not block. Default: does nothing.
	Trace func(Applied)
}

// Applied is an event with a traceparent that a view has applied.
type Applied struct {
	View  string
	Entry domain.Entry
	Begun time.Time // when the view began to apply the event's batch
	Ended time.Time // when the view had committed it
}

// Views are the read models in one file, views.db. Run must be called by one
// goroutine only; all other methods are safe for concurrent use.
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
	builder   chan struct{} // a lock for building or dropping a generation: one at a time bounds the memory
	prover    chan struct{} // a lock for proving the log; guards proven
	proven    bool          // the log was proven since Open
	closed    chan struct{}
	close     sync.Once
}

// ErrClosed is returned by Await when the Views are closed.
var ErrClosed = errors.New("projections: the views are closed")

// Open opens views.db, creating it if it is missing. It refuses a file that is
// ahead of the log or has followed another one, with an *AheadError and before it
// changes anything. It replaces a damaged views file with an empty one, because
// the log has all of its data; if the file cannot be read, it keeps it under
// another name. It refuses a file that is not a views file or was written by a
// newer version.
func Open(ctx context.Context, c Config) (*Views, error) {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Retry == 0 {
		c.Retry = time.Second
	}
	write, made, err := openWriter(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("projections: open %s: %w", c.Path, err)
	}
	if made {
		c.Logger.InfoContext(ctx, "views start from an empty file")
	}
	v, err := open(ctx, c, write)
	if errors.Is(err, errOutdated) && !made {
		c.Logger.InfoContext(ctx, "another version wrote the views; they start from an empty file", "err", err)
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

// OpenReader opens an existing views.db read-only, for status and queries. A
// server may be running on the same file; the reader sees what it has committed.
func OpenReader(ctx context.Context, path string) (*Views, error) {
	// For a missing file SQLite only reports that it cannot open it.
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
		builder: make(chan struct{}, 1), prover: make(chan struct{}, 1), closed: make(chan struct{})}
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

// Run keeps all views up to date until ctx is done, then returns nil. After an
// error it logs and resumes from the stored checkpoint. It returns an error
// only if the log is closed or tampered with, or views.db is damaged.
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

// Await waits until the view has applied the event at p, or has skipped it
// because the event's stream is parked. It returns ctx's error if ctx is done
// first, and ErrClosed if the Views are closed.
func (v *Views) Await(ctx context.Context, view string, p eventstore.Position) error {
	w, err := v.find(view)
	if err != nil {
		return err
	}
	return w.await(ctx, p)
}

// Rebuild builds the view again from the first event of the log, while the
// live one continues to answer queries; then it replaces the live view with
// the new one and drops the old one. It first proves that the log has the events
// that the store appended; otherwise the error is eventstore.ErrTampered. Run may
// be running or not. If Rebuild fails before the switch, the live view is
// unchanged. progress, which may be
// nil, is called with the number of events read and the total.
func (v *Views) Rebuild(ctx context.Context, view string, progress func(done, total int64)) error {
	w, err := v.find(view)
	if err != nil {
		return err
	}
	if v.write == nil {
		return errors.New("projections: views.db is open read-only")
	}
	if progress == nil {
		progress = func(_, _ int64) {}
	}
	if err := w.rebuild(ctx, false, progress); err != nil {
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
	return nil, fmt.Errorf("projections: unknown view %q", name)
}

// Accounts returns the account view.
func (v *Views) Accounts() *Accounts { return v.accounts }

// Schedules returns the view of planned schedules.
func (v *Views) Schedules() *Schedules { return v.schedules }

// Erasures returns the view of erasures that are not completed.
func (v *Views) Erasures() *Erasures { return v.erasures }

// Search returns the search index over the accounts.
func (v *Views) Search() *Search { return v.search }

// The states of a view.
const (
	StateLive       = "live"
	StateRebuilding = "rebuilding" // a new generation is being built; the live one still answers
)

// Status is a view's progress.
type Status struct {
	Name     string
	Position eventstore.Position // of the last event the view has applied
	Head     eventstore.Position // of the log's last event; -1 after OpenReader, which has no log
	Lag      int64               // events of the log the view has not applied; -1 after OpenReader
	State    string              // StateLive or StateRebuilding
	Rebuilt  eventstore.Position // in StateRebuilding: how far the new generation is
	Parked   []Parked            // the parked streams, by position
}

// Parked is a stream with an event that the view could not apply. That event
// and the later ones of its stream wait for a retry; other streams do not.
type Parked struct {
	Stream   string
	Revision eventstore.Revision // of the first event not applied
	Position eventstore.Position // of that event
	Error    string              // why the view could not apply it, without personal data
	Since    time.Time           // UTC
	Attempts int64               // to apply the event
	next     time.Time           // of the next attempt
}

// Status returns the progress of each view.
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
			all = append(all, s) // an older version wrote the file; the next server start adds the view
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

// Check runs SQLite's integrity check on the whole file and returns its
// findings as an error. To repair a damaged file, stop the server, delete the
// file and start the server again.
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

// Backup writes a consistent copy of the file to dest, which must not exist.
// It blocks neither readers nor the writer.
func (v *Views) Backup(ctx context.Context, dest string) error {
	// A connection from the pool cannot do it: query_only forbids writing to
	// any file, dest included.
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
		errs = append(errs, v.write.Close()) // last, because the last connection to close removes the write-ahead log
	}
	return errors.Join(errs...)
}
