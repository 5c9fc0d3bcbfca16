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

// generation is one set of a view's tables. Whoever writes the live one holds
// the view's turn; one that is being built is known to its builder only.
type generation struct {
	view     *view
	number   int64
	version  int64 // of the projection that made it
	writer   writer
	position eventstore.Position // of the last event applied, as committed
	event    [16]byte            // its id
	parked   map[string]Parked   // by stream
}

// batch is what changes in one transaction: rows, parked streams and the
// checkpoint, together or not at all.
type batch struct {
	g      *generation
	tx     *sql.Tx           // nil until the file is needed
	fresh  map[string]Parked // streams that parked in this batch
	replay bool              // it is of a stream that had been parked
	whole  bool              // its streams are read to their ends and not met again soon
}

func (g *generation) begin() *batch { return &batch{g: g} }

// open begins the transaction, as late as possible, because until it ends
// nobody else writes. Nothing in it waits, so it does not look at ctx: the
// driver would start a goroutine for each statement to watch over it.
func (b *batch) open(ctx context.Context) (*sql.Tx, error) {
	if b.tx == nil {
		tx, err := b.g.view.views.write.BeginTx(context.WithoutCancel(ctx), nil)
		if err != nil {
			return nil, err
		}
		b.tx = tx
	}
	return b.tx, nil
}

// add applies d, or parks its stream if d is at fault. What comes after that
// in the stream waits. Any other error ends the batch.
func (b *batch) add(ctx context.Context, d decoded) error {
	if b.cut(d.Stream) {
		return nil
	}
	err := d.err
	if err == nil {
		err = b.apply(ctx, d.Entry)
	}
	if unfit, ok := errors.AsType[unfitError](err); ok {
		b.park(d.Entry, unfit)
		return nil
	}
	return err
}

func (b *batch) apply(ctx context.Context, x domain.Entry) (err error) {
	defer catch(&err)
	return b.g.writer.apply(ctx, b, x)
}

// park makes the stream wait from x on.
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

// cut reports whether the stream has parked, so that what the batch makes of
// it is older than what it makes of the others.
func (b *batch) cut(stream string) bool {
	_, parked := b.fresh[stream]
	return parked
}

// write writes the rows and what more has to change with them, and commits.
func (b *batch) write(ctx context.Context, more func(ctx context.Context, tx *sql.Tx) error) error {
	ctx = context.WithoutCancel(ctx)
	if err := b.g.writer.flush(ctx, b); err != nil {
		return err
	}
	tx, err := b.open(ctx)
	if err != nil {
		return err
	}
	if err := more(ctx, tx); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	b.tx = nil
	b.g.writer.end(!b.whole)
	return nil
}

// commit writes everything and moves the checkpoint to the event at position.
func (b *batch) commit(ctx context.Context, position eventstore.Position, event [16]byte) error {
	g := b.g
	err := b.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		for _, p := range b.fresh {
			if err := g.savePark(ctx, tx, p); err != nil {
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
	b.g.writer.end(false)
}

// apply applies a run of the log that goes on where g is, as one batch. What of
// it is part of a trace is told to trace, if there is somebody.
func (g *generation) apply(ctx context.Context, recs []eventstore.Recorded, trace func(Applied)) error {
	begun := time.Now()
	for len(recs) > 0 && recs[0].Position <= g.position {
		recs = recs[1:] // a switch took the checkpoint past them
	}
	if len(recs) == 0 {
		return nil
	}
	mine := make([]eventstore.Recorded, 0, len(recs))
	for i, rec := range recs {
		if want := g.position + 1 + eventstore.Position(i); rec.Position != want {
			return fmt.Errorf("the log goes from position %d to %d", want-1, rec.Position)
		}
		if _, waits := g.parked[rec.Stream]; !waits && g.view.wants(&rec) {
			mine = append(mine, rec)
		}
	}
	if source := g.view.source; source != nil {
		if err := source.await(ctx, recs[len(recs)-1].Position); err != nil {
			return err
		}
	}
	b := g.begin()
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
		if d.Meta.Traceparent != "" && !b.cut(d.Stream) {
			trace(Applied{View: g.view.name, Entry: d.Entry, Begun: begun, Ended: time.Now()})
		}
	}
	return nil
}

// retryParked tries the streams again whose time has come.
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

// nextRetry is when retryParked has something to do; zero for never.
func (g *generation) nextRetry() (next time.Time) {
	for _, p := range g.parked {
		if next.IsZero() || p.next.Before(next) {
			next = p.next
		}
	}
	return next
}

var errStillParked = errors.New("still parked")

// replay applies a parked stream from the first event that waits up to where
// the view is: further, and it would know more than the others. It is applied
// as a whole or stays parked.
func (g *generation) replay(ctx context.Context, p Parked) error {
	b := g.begin()
	b.replay = true
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
		b.park(domain.Entry{Stream: p.Stream}, errors.New("projections: the stream does not have the event that waits"))
	}
	err := b.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		if b.cut(p.Stream) {
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

// repark records a vain attempt. The next one is twice as far away.
func (g *generation) repark(ctx context.Context, p, again Parked) error {
	p.Error = again.Error
	p.next = again.Since.Add(g.view.views.retry << min(p.Attempts, maxDoublings))
	p.Attempts++
	tx, err := g.view.views.write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if err := g.savePark(ctx, tx, p); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	g.parked[p.Stream] = p
	return nil
}

func (g *generation) savePark(ctx context.Context, tx *sql.Tx, p Parked) error {
	_, err := tx.ExecContext(ctx, `INSERT OR REPLACE INTO parked (view, generation, stream, revision, position, error, since, attempts, next)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`, g.view.name, g.number, p.Stream, p.Revision, p.Position, p.Error,
		p.Since.UnixMicro(), p.Attempts, p.next.UnixMicro())
	return err
}
