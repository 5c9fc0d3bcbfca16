package projections

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"accountledger/domain"
	"accountledger/eventstore"
)

// generation is one set of a view's tables. Writing the live one requires the
// view's mutex; only its builder has access to an unfinished one.
type generation struct {
	view     *view
	number   int64
	version  int64 // of the projection that wrote it
	writer   writer
	position eventstore.Position // of the last event applied and committed
	event    [16]byte            // the id of that event
	parked   map[string]Parked   // by stream
}

// onLive calls query in a read transaction with the number of a view's live
// generation. A rebuild may replace that generation at any time; its tables stay
// readable in the transaction.
func (v *Views) onLive(ctx context.Context, view string, query func(tx *sql.Tx, generation int64) error) error {
	tx, err := v.read.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	generation, _, err := liveGeneration(ctx, tx, view)
	if err != nil {
		return err
	}
	return query(tx, generation)
}

// batch is the changes of one transaction: rows, parked streams and the
// checkpoint.
type batch struct {
	g     *generation
	tx    *sql.Tx           // nil until begin
	fresh map[string]Parked // streams parked in this batch, by stream
	bulk  bool              // the batch belongs to a bulk build, which sees each stream once
}

func (g *generation) newBatch() *batch { return &batch{g: g} }

// begin begins the batch's transaction unless it has begun. Callers do so as
// late as possible, because it blocks all other writers. The transaction
// ignores cancellation: it does not wait for anything, and the driver would
// start a goroutine for each statement to watch ctx.
func (b *batch) begin(ctx context.Context) (*sql.Tx, error) {
	if b.tx == nil {
		tx, err := b.g.view.views.write.BeginTx(context.WithoutCancel(ctx), nil)
		if err != nil {
			return nil, err
		}
		b.tx = tx
	}
	return b.tx, nil
}

// add applies d. If d causes an entryError, add parks its stream and skips the
// rest of it. Any other error ends the batch.
func (b *batch) add(ctx context.Context, d decoded) error {
	if b.hasParked(d.Stream) {
		return nil
	}
	err := d.err
	if err == nil {
		err = b.apply(ctx, d.Entry)
	}
	if unfit, ok := errors.AsType[entryError](err); ok {
		b.park(d.Entry, unfit)
		return nil
	}
	return err
}

func (b *batch) apply(ctx context.Context, x domain.Entry) (err error) {
	defer catch(&err)
	return b.g.writer.apply(ctx, b, x)
}

// park parks x's stream from x on, because of err.
func (b *batch) park(x domain.Entry, err error) {
	now := time.Now().UTC().Truncate(time.Microsecond)
	if b.fresh == nil {
		b.fresh = map[string]Parked{}
	}
	b.fresh[x.Stream] = Parked{
		Stream: x.Stream, Revision: x.Revision, Position: x.Position,
		Error: err.Error(), Since: now, Attempts: 1, next: now.Add(b.g.view.views.retry),
	}
}

// hasParked reports whether the batch has parked the stream; its rows are then
// older than those of other streams.
func (b *batch) hasParked(stream string) bool {
	_, parked := b.fresh[stream]
	return parked
}

// write flushes the rows, calls extra for further changes in the same
// transaction, and commits.
func (b *batch) write(ctx context.Context, extra func(ctx context.Context, tx *sql.Tx) error) error {
	ctx = context.WithoutCancel(ctx)
	if err := b.g.writer.flush(ctx, b); err != nil {
		return err
	}
	tx, err := b.begin(ctx)
	if err != nil {
		return err
	}
	if err := extra(ctx, tx); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	b.tx = nil
	b.g.writer.finish(!b.bulk)
	return nil
}

// commit commits the batch with the checkpoint moved to the event at position.
func (b *batch) commit(ctx context.Context, position eventstore.Position, event [16]byte) error {
	g := b.g
	err := b.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		for _, p := range b.fresh {
			if err := g.saveParked(ctx, tx, p); err != nil {
				return err
			}
		}
		_, err := tx.ExecContext(ctx, `UPDATE views SET position = ?, event = ? WHERE name = ? AND generation = ?`,
			position, event[:], g.view.name, g.number)
		return err
	})
	if err != nil {
		return err
	}
	g.position, g.event = position, event
	for stream, p := range b.fresh {
		g.parked[stream] = p
		g.view.views.logger.ErrorContext(ctx, "stream parked", "view", g.view.name, "stream", stream,
			"revision", p.Revision, "position", p.Position, "err", p.Error)
	}
	return nil
}

// rollback undoes a batch unless it was committed.
func (b *batch) rollback() {
	if b.tx != nil {
		b.tx.Rollback()
	}
	b.tx = nil
	b.g.writer.finish(false)
}

// apply applies recs, consecutive records of the log that begin at or before
// g's next position, as one batch. It calls trace, which may be nil, for each
// applied event with a traceparent.
func (g *generation) apply(ctx context.Context, recs []eventstore.Recorded, trace func(Applied)) error {
	begun := time.Now()
	for len(recs) > 0 && recs[0].Position <= g.position {
		recs = recs[1:] // a rebuilt generation already has them
	}
	if len(recs) == 0 {
		return nil
	}
	mine := make([]eventstore.Recorded, 0, len(recs))
	for i, rec := range recs {
		if want := g.position + 1 + eventstore.Position(i); rec.Position != want {
			return fmt.Errorf("the log skips from position %d to %d", want-1, rec.Position)
		}
		if _, parked := g.parked[rec.Stream]; !parked && g.view.wants(&rec) {
			mine = append(mine, rec)
		}
	}
	if source := g.view.source; source != nil {
		if err := source.await(ctx, recs[len(recs)-1].Position); err != nil {
			return err
		}
	}
	b := g.newBatch()
	defer b.rollback()
	entries := g.view.decodeAll(mine)
	for _, d := range entries {
		if err := b.add(ctx, d); err != nil {
			return err
		}
	}
	last := recs[len(recs)-1]
	if err := b.commit(ctx, last.Position, last.ID); err != nil || trace == nil {
		return err
	}
	for _, d := range entries {
		if d.Meta.Traceparent != "" && !b.hasParked(d.Stream) {
			trace(Applied{View: g.view.name, Entry: d.Entry, Begun: begun, Ended: time.Now()})
		}
	}
	return nil
}

// retryParked replays the parked streams that are due for a retry.
func (g *generation) retryParked(ctx context.Context) error {
	for _, p := range g.parked {
		if time.Now().Before(p.next) {
			continue
		}
		if err := g.replay(ctx, p); err != nil {
			return fmt.Errorf("replay %s: %w", p.Stream, err)
		}
	}
	return nil
}

// nextRetry returns the time of the next retry of a parked stream; zero for
// never.
func (g *generation) nextRetry() (next time.Time) {
	for _, p := range g.parked {
		if next.IsZero() || p.next.Before(next) {
			next = p.next
		}
	}
	return next
}

var errStillParked = errors.New("still parked")

// replay applies a parked stream from its first unapplied event up to g's
// position, not beyond, so that all rows have the same position. If an event
// still cannot be applied, the whole stream stays parked.
func (g *generation) replay(ctx context.Context, p Parked) error {
	b := g.newBatch()
	defer b.rollback()
	applied := 0
	for rec, err := range g.view.views.log.ReadStream(ctx, p.Stream, p.Revision) {
		if err != nil {
			return err
		}
		if rec.Position > g.position {
			break
		}
		applied++
		if err := b.add(ctx, g.view.decode(rec)); err != nil {
			return err
		}
	}
	if applied == 0 {
		b.park(domain.Entry{Stream: p.Stream}, errors.New("projections: the log does not have the event at which the stream is parked"))
	}
	err := b.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		if b.hasParked(p.Stream) {
			return errStillParked
		}
		_, err := tx.ExecContext(ctx, `DELETE FROM parked WHERE view = ? AND generation = ? AND stream = ?`,
			g.view.name, g.number, p.Stream)
		return err
	})
	switch {
	case errors.Is(err, errStillParked):
		b.rollback()
		return g.repark(ctx, p, b.fresh[p.Stream])
	case err != nil:
		return err
	}
	delete(g.parked, p.Stream)
	g.view.views.logger.InfoContext(ctx, "stream no longer parked", "view", g.view.name, "stream", p.Stream, "attempts", p.Attempts+1)
	return nil
}

// repark records a failed attempt to replay p and doubles the delay until the
// next one.
func (g *generation) repark(ctx context.Context, p, failed Parked) error {
	p.Error = failed.Error
	p.next = failed.Since.Add(g.view.views.retry << min(p.Attempts, maxDoublings))
	p.Attempts++
	tx, err := g.view.views.write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if err := g.saveParked(ctx, tx, p); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	g.parked[p.Stream] = p
	return nil
}

func (g *generation) saveParked(ctx context.Context, tx *sql.Tx, p Parked) error {
	_, err := tx.ExecContext(ctx, `INSERT OR REPLACE INTO parked (view, generation, stream, revision, position, error, since, attempts, next)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`, g.view.name, g.number, p.Stream, p.Revision, p.Position, p.Error,
		p.Since.UnixMicro(), p.Attempts, p.next.UnixMicro())
	return err
}
