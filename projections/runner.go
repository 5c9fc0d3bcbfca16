package projections

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"accountledger/eventstore"
)

// view keeps one projection up to date.
type view struct {
	projection
	views *Views

	// mu is held while the live generation is written or replaced. It guards
	// the fields up to the blank line.
	mu        sync.Mutex
	live      *generation
	interrupt context.CancelFunc // ends follow's subscription, so that it resumes from live; nil before the first resume

	position, head atomic.Int64 // of the last event live has applied, and the highest known head of the log
	moved          signal       // raised when position changes

	waiting atomic.Int64 // the number of callers in await whose position is not reached yet
	awaited signal       // raised when waiting grows

	outdated signal // raised when live may have become stale
}

// noteHead raises w.head to head if head is higher.
func (w *view) noteHead(head eventstore.Position) {
	for {
		known := w.head.Load()
		if int64(head) <= known || w.head.CompareAndSwap(known, int64(head)) {
			return
		}
	}
}

// publish publishes the live generation's position to await.
func (w *view) publish() {
	w.position.Store(int64(w.live.position))
	w.moved.raise()
}

func (w *view) await(ctx context.Context, p eventstore.Position) error {
	for waiting := false; ; {
		if w.position.Load() >= int64(p) {
			return nil
		}
		if !waiting {
			waiting = true
			w.waiting.Add(1)
			defer w.waiting.Add(-1)
			w.awaited.raise()
		}
		moved := w.moved.next()
		if w.position.Load() >= int64(p) {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		case <-w.views.closed:
			return ErrClosed
		}
	}
}

// open loads the live generation, or creates the first one. A generation that
// an earlier process left unfinished is marked to be dropped.
func (w *view) open(ctx context.Context) error {
	db := w.views.write
	if _, err := db.ExecContext(ctx, `UPDATE views SET state = 'dropped' WHERE name = ? AND state = 'rebuilding'`, w.name); err != nil {
		return err
	}
	g := &generation{view: w, parked: map[string]Parked{}}
	var event []byte
	err := db.QueryRowContext(ctx, `SELECT generation, version, position, event FROM views WHERE name = ? AND state = 'live'`, w.name).
		Scan(&g.number, &g.version, &g.position, &event)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		if g, err = w.create(ctx, StateLive); err != nil {
			return err
		}
	case err != nil:
		return err
	default:
		copy(g.event[:], event)
		if g.writer, err = w.writer(ctx, g.number); err != nil {
			return g.asOutdated(err)
		}
		if err := g.loadParked(ctx); err != nil {
			return err
		}
	}
	swap, err := w.serve(ctx, g.number)
	if err != nil {
		return g.asOutdated(err)
	}
	swap()
	w.live = g
	w.position.Store(int64(g.position))
	return nil
}

// asOutdated returns err, an error of preparing statements for g's tables, as
// errOutdated if another version created the tables: they may have other columns.
func (g *generation) asOutdated(err error) error {
	if g.version != g.view.version {
		return fmt.Errorf("%w: %s: %w", errOutdated, g.view.name, err)
	}
	return err
}

func (g *generation) loadParked(ctx context.Context) error {
	tx, err := g.view.views.read.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	all, err := loadParked(ctx, tx, g.view.name, g.number)
	for _, p := range all {
		g.parked[p.Stream] = p
	}
	return err
}

// maxDoublings bounds a backoff to 256 times Config.Retry.
const maxDoublings = 8

// run follows the log until ctx is done, retrying after errors. It returns an
// error only if the log is closed or tampered with, or the file is damaged.
func (w *view) run(ctx context.Context) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	var background sync.WaitGroup
	defer background.Wait()
	background.Go(func() {
		if w.views.claimBuilder(ctx) != nil {
			return
		}
		defer w.views.releaseBuilder()
		if err := w.dropOld(ctx); err != nil && ctx.Err() == nil {
			w.views.logger.WarnContext(ctx, "old generation not dropped", "view", w.name, "err", err)
		}
	})
	if w.stale != nil {
		outdated := w.outdated.next() // before follow raises it for the first time
		background.Go(func() { end(w.rebuildStale(ctx, outdated)) })
	}
	failures := 0
	for ctx.Err() == nil {
		before := w.position.Load()
		err := w.follow(ctx)
		switch {
		case ctx.Err() != nil:
			return tampered(context.Cause(ctx))
		case err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
			continue // interrupted, or a parked stream is due for a retry
		case errors.Is(err, eventstore.ErrClosed), tampered(err) != nil:
			return err
		case damaged(err):
			return errors.Join(fmt.Errorf("the file is damaged; the next start replaces it with an empty one: %w", err), condemn(w.views.write))
		}
		if w.position.Load() > before {
			failures = 0
		}
		wait := w.views.retry << min(failures, maxDoublings)
		failures++
		w.views.logger.ErrorContext(ctx, "view stopped", "view", w.name, "position", w.position.Load(), "retry", wait, "err", err)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
	return tampered(context.Cause(ctx))
}

// tampered returns err if it says that the log was tampered with, or nil.
func tampered(err error) error {
	if errors.Is(err, eventstore.ErrTampered) {
		return err
	}
	return nil
}

// rebuildStale rebuilds the view whenever its live generation is stale, until ctx
// is done or the log is found to be tampered with.
func (w *view) rebuildStale(ctx context.Context, outdated <-chan struct{}) error {
	for failures := 0; ; {
		var retry <-chan time.Time
		if failures > 0 {
			retry = time.After(w.views.retry << min(failures-1, maxDoublings))
		}
		select {
		case <-outdated:
		case <-retry:
		case <-ctx.Done():
			return nil
		}
		outdated = w.outdated.next()
		stale, err := w.stale(ctx)
		if err == nil && stale {
			w.views.logger.InfoContext(ctx, "configuration changed; rebuilding view", "view", w.name)
			err = w.rebuild(ctx, true, func(_, _ int64) {})
		}
		if tampered(err) != nil {
			return err
		}
		failures++
		if err == nil {
			failures = 0
		} else if ctx.Err() == nil {
			w.views.logger.ErrorContext(ctx, "view not rebuilt", "view", w.name, "err", err)
		}
	}
}

// follow applies the log from the stored checkpoint on, until an error, an
// interruption, or the time to retry a parked stream.
func (w *view) follow(ctx context.Context) error {
	head, err := w.views.log.Head(ctx)
	if err != nil {
		return err
	}
	w.noteHead(head)
	if w.source != nil {
		if err := w.source.await(ctx, head); err != nil {
			return err
		}
	}
	if err := w.validate(ctx, head); err != nil {
		return err
	}
	if w.stale != nil {
		w.outdated.raise() // the configuration may have changed while the view was not running
	}
	ctx, position, retry, err := w.resume(ctx)
	if err != nil {
		return err
	}
	return w.readBatches(ctx, position, head, func(recs []eventstore.Recorded) error {
		if err := w.advance(ctx, recs, retry); err != nil {
			return err
		}
		w.throttle(ctx)
		return nil
	})
}

// advance applies recs, the next records of the log, to the live generation.
func (w *view) advance(ctx context.Context, recs []eventstore.Recorded, retry time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.live.apply(ctx, recs, w.views.trace); err != nil {
		return err
	}
	if w.live.position > eventstore.Position(w.position.Load()) {
		w.publish()
	}
	if !w.live.nextRetry().Equal(retry) {
		w.interrupt() // a stream was parked: resume computes the time to retry it
	}
	return nil
}

// throttle waits for w.pause, so that more events go into the next batch. It
// returns early if a caller awaits the view.
func (w *view) throttle(ctx context.Context) {
	if w.pause == 0 {
		return
	}
	awaited := w.awaited.next()
	if w.waiting.Load() > 0 {
		return
	}
	select {
	case <-awaited:
	case <-time.After(w.pause):
	case <-ctx.Done():
	}
}

// resume retries the parked streams that are due. It returns the position to
// follow from and the time of the next retry, zero for never. The returned ctx
// ends at that time, or when w.interrupt is called.
func (w *view) resume(ctx context.Context) (_ context.Context, from eventstore.Position, retry time.Time, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.interrupt != nil {
		w.interrupt()
	}
	err = w.live.retryParked(ctx)
	if retry = w.live.nextRetry(); retry.IsZero() {
		ctx, w.interrupt = context.WithCancel(ctx)
	} else {
		ctx, w.interrupt = context.WithDeadline(ctx, retry)
	}
	return ctx, w.live.position, retry, err
}

// Limits of a batch while catching up: large enough that an account's row is
// written once for many events, small enough to bound the memory.
const (
	batchEvents = 8 << 10
	batchBytes  = 8 << 20
)

// readBatches yields the records after a position in batches. Up to head, which
// the log is known to have, it fills each batch to its limits; beyond head, it
// yields each page of the subscription at once.
func (w *view) readBatches(ctx context.Context, after, head eventstore.Position, yield func([]eventstore.Recorded) error) error {
	var recs []eventstore.Recorded
	size := 0
	for page, err := range w.views.log.Subscribe(ctx, after) {
		if err != nil {
			return err
		}
		for _, rec := range page {
			size += len(rec.Clear) + len(rec.Sealed)
		}
		last := page[len(page)-1].Position
		w.noteHead(last)
		recs = append(recs, page...)
		if last < head && len(recs) < batchEvents && size < batchBytes {
			continue
		}
		if err := yield(recs); err != nil {
			return err
		}
		clear(recs) // so that the records' bytes can be collected
		recs, size = recs[:0], 0
	}
	return ctx.Err()
}

// validate prepares the live generation for following the log. It rebuilds one
// that another version wrote or that is so far behind that a rebuild is faster,
// and proves the log before an empty one follows it.
func (w *view) validate(ctx context.Context, head eventstore.Position) error {
	w.mu.Lock()
	position, version := w.live.position, w.live.version
	w.mu.Unlock()
	switch {
	case version != w.version:
		w.views.logger.InfoContext(ctx, "another version wrote the view; rebuilding it", "view", w.name, "version", version)
	case head-position <= batchEvents || position > head/2:
		if position == 0 && head > 0 {
			return w.prove(ctx, true)
		}
		return nil
	}
	return w.rebuild(ctx, true, func(_, _ int64) {})
}
