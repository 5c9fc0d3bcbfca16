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

	// turn is held while the live generation is written or replaced, and
	// guards what follows.
	turn      sync.Mutex
	live      *generation
	interrupt context.CancelFunc // makes follow look at live afresh; nil before the first time

	position, head atomic.Int64 // what live has applied, and the log's head as far as is known
	moved          signal       // position has

	waiting atomic.Int64 // who awaits a position that is not reached
	awaited signal       // somebody begins to

	outdated signal // live may have become stale
}

func (w *view) saw(head eventstore.Position) {
	for {
		known := w.head.Load()
		if int64(head) <= known || w.head.CompareAndSwap(known, int64(head)) {
			return
		}
	}
}

// publish lets those who wait for the live generation's position know.
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

// open finds the live generation or makes the first one. What another process
// was building when it died will be dropped.
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
			return g.unknown(err)
		}
		if err := g.loadParked(ctx); err != nil {
			return err
		}
	}
	swap, err := w.serve(ctx, g.number)
	if err != nil {
		return g.unknown(err)
	}
	swap()
	w.live = g
	w.position.Store(int64(g.position))
	return nil
}

// unknown is an error of preparing what reads and writes the tables: where
// another version made them they may have another shape.
func (g *generation) unknown(err error) error {
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

// maxDoublings bounds a back-off to 256 times Config.Retry.
const maxDoublings = 8

// run follows the log until ctx is done, whatever happens, except that the
// log was closed or the file is damaged.
func (w *view) run(ctx context.Context) error {
	var dropping sync.WaitGroup
	defer dropping.Wait()
	dropping.Go(func() {
		if w.views.claimBuilder(ctx) != nil {
			return
		}
		defer w.views.releaseBuilder()
		if err := w.dropOld(ctx); err != nil && ctx.Err() == nil {
			w.views.logger.WarnContext(ctx, "old generation not dropped", "view", w.name, "err", err)
		}
	})
	if w.stale != nil {
		outdated := w.outdated.next() // before the first look at the log
		dropping.Go(func() { w.renew(ctx, outdated) })
	}
	failures := 0
	for ctx.Err() == nil {
		before := w.position.Load()
		err := w.follow(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
			continue // interrupted, or it is time to retry what is parked
		case errors.Is(err, eventstore.ErrClosed):
			return err
		case damaged(err):
			return errors.Join(fmt.Errorf("the file is damaged; it is made anew at the next start: %w", err), condemn(w.views.write))
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
	return nil
}

// renew makes the view again, beside the live one, whenever that is stale.
func (w *view) renew(ctx context.Context, outdated <-chan struct{}) {
	for failures := 0; ; {
		var again <-chan time.Time
		if failures > 0 {
			again = time.After(w.views.retry << min(failures-1, maxDoublings))
		}
		select {
		case <-outdated:
		case <-again:
		case <-ctx.Done():
			return
		}
		outdated = w.outdated.next()
		stale, err := w.stale(ctx)
		if err == nil && stale {
			w.views.logger.InfoContext(ctx, "view is made again for another configuration", "view", w.name)
			err = w.rebuild(ctx, func(_, _ int64) {})
		}
		failures++
		if err == nil {
			failures = 0
		} else if ctx.Err() == nil {
			w.views.logger.ErrorContext(ctx, "view not made again", "view", w.name, "err", err)
		}
	}
}

// follow applies the log from the stored checkpoint on until there is an
// error, an interruption, or a parked stream to retry.
func (w *view) follow(ctx context.Context) error {
	head, err := w.views.log.Head(ctx)
	if err != nil {
		return err
	}
	w.saw(head)
	if w.source != nil {
		if err := w.source.await(ctx, head); err != nil {
			return err
		}
	}
	if err := w.examine(ctx, head); err != nil {
		return err
	}
	if w.stale != nil {
		w.outdated.raise() // it may have been while nobody looked
	}
	ctx, position, retry, err := w.begin(ctx)
	if err != nil {
		return err
	}
	return w.gather(ctx, position, head, func(recs []eventstore.Recorded) error {
		if err := w.advance(ctx, recs, retry); err != nil {
			return err
		}
		w.rest(ctx)
		return nil
	})
}

// advance applies what follows in the log to the live generation.
func (w *view) advance(ctx context.Context, recs []eventstore.Recorded, retry time.Time) error {
	w.turn.Lock()
	defer w.turn.Unlock()
	if err := w.live.apply(ctx, recs, w.views.trace); err != nil {
		return err
	}
	if w.live.position > eventstore.Position(w.position.Load()) {
		w.publish()
	}
	if !w.live.nextRetry().Equal(retry) {
		w.interrupt() // a stream has parked: begin again, with a time to retry it
	}
	return nil
}

// rest lets events gather, unless somebody waits for them or comes to.
func (w *view) rest(ctx context.Context) {
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

// begin retries what is parked. It returns from where to follow and when the
// next retry is due, zero for never; ctx ends then.
func (w *view) begin(ctx context.Context) (_ context.Context, from eventstore.Position, retry time.Time, err error) {
	w.turn.Lock()
	defer w.turn.Unlock()
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

// Limits of a batch while catching up: large, so that an account's row is
// written once for many events, and of bounded memory.
const (
	batchEvents = 8 << 10
	batchBytes  = 8 << 20
)

// gather yields the log after a position in runs: as much as is at hand and
// goes into a batch. head is the position that is known to be at hand.
func (w *view) gather(ctx context.Context, after, head eventstore.Position, yield func([]eventstore.Recorded) error) error {
	var run []eventstore.Recorded
	size := 0
	for page, err := range w.views.log.Subscribe(ctx, after) {
		if err != nil {
			return err
		}
		for _, rec := range page {
			size += len(rec.Clear) + len(rec.Sealed)
		}
		last := page[len(page)-1].Position
		w.saw(last)
		run = append(run, page...)
		if last < head && len(run) < batchEvents && size < batchBytes {
			continue
		}
		if err := yield(run); err != nil {
			return err
		}
		clear(run) // let go of what the records refer to
		run, size = run[:0], 0
	}
	return ctx.Err()
}

// examine makes sure that the live generation is worth following: that it is
// of this log and of this program's making, and not so far behind that making
// it again is quicker.
func (w *view) examine(ctx context.Context, head eventstore.Position) error {
	w.turn.Lock()
	position, event, version := w.live.position, w.live.event, w.live.version
	w.turn.Unlock()
	same, err := w.sameLog(ctx, position, event, head)
	switch {
	case err != nil:
		return err
	case !same:
		w.views.logger.WarnContext(ctx, "view is of another log and starts over", "view", w.name, "position", position, "head", head)
		return w.startOver(ctx)
	case version != w.version:
		w.views.logger.InfoContext(ctx, "view is of another version and is made again", "view", w.name, "version", version)
	case head-position <= batchEvents || position > head/2:
		return nil
	}
	return w.rebuild(ctx, func(_, _ int64) {})
}

// sameLog reports whether the event at the checkpoint is the one that was
// applied. It is not after an older copy of the log was put in place.
func (w *view) sameLog(ctx context.Context, position eventstore.Position, event [16]byte, head eventstore.Position) (bool, error) {
	if position == 0 || position > head {
		return position == 0, nil
	}
	found, err := w.eventAt(ctx, position)
	return err == nil && found == event, err
}

// eventAt is the id of the event at a position of the log.
func (w *view) eventAt(ctx context.Context, position eventstore.Position) (id [16]byte, err error) {
	for page, err := range w.views.log.Subscribe(ctx, position-1) {
		if err != nil {
			return id, err
		}
		return page[0].ID, nil
	}
	return id, ctx.Err()
}
