package projections

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sync/errgroup"

	"accountledger/eventstore"
)

// create creates a new, empty generation and its tables.
func (w *view) create(ctx context.Context, state string) (*generation, error) {
	tx, err := w.views.write.BeginTx(ctx, nil)
	if err != nil {
		return nil, err
	}
	defer tx.Rollback()
	g := &generation{view: w, version: w.version, parked: map[string]Parked{}}
	if err := tx.QueryRowContext(ctx, `SELECT coalesce(max(generation), 0) + 1 FROM views WHERE name = ?`, w.name).Scan(&g.number); err != nil {
		return nil, err
	}
	if _, err := tx.ExecContext(ctx, fmt.Sprintf(w.tables, g.number)); err != nil {
		return nil, err
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO views (name, generation, version, state, position, event) VALUES (?, ?, ?, ?, 0, x'')`,
		w.name, g.number, w.version, state); err != nil {
		return nil, err
	}
	if err := tx.Commit(); err != nil {
		return nil, err
	}
	if g.writer, err = w.writer(ctx, g.number); err != nil {
		return nil, err
	}
	return g, nil
}

// prove has the log prove that it has the events that the store appended. With
// once, a proof since Open is enough, so that views that start together share one:
// only this process appends to the log meanwhile. A view with a source does not
// get its rows from the log.
func (w *view) prove(ctx context.Context, once bool) error {
	if w.source != nil {
		return nil
	}
	v := w.views
	select {
	case v.prover <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-v.prover }()
	if once && v.proven {
		return nil
	}
	head, err := v.log.Head(ctx)
	if err != nil {
		return err
	}
	if err := v.log.Prove(ctx, head, nil); err != nil {
		return fmt.Errorf("prove the log: %w", err)
	}
	v.proven = true
	return nil
}

// rebuild builds a new generation from the whole log while the live one
// continues to follow the log, then switches to the new one. It first proves the
// log, see prove.
func (w *view) rebuild(ctx context.Context, once bool, progress func(done, total int64)) error {
	if err := w.prove(ctx, once); err != nil {
		return err
	}
	if err := w.views.claimBuilder(ctx); err != nil {
		return err
	}
	defer w.views.releaseBuilder()
	g, err := w.create(ctx, StateRebuilding)
	if err == nil {
		if err = g.build(ctx, progress); err == nil {
			err = w.switchTo(ctx, g)
		}
		if err != nil {
			g.writer.close()
		}
	}
	if err != nil {
		// Not by its number: create may have failed after it had made the
		// generation. The caller holds builder, so there is no other one.
		_, mark := w.views.write.ExecContext(context.WithoutCancel(ctx), `UPDATE views SET state = 'dropped' WHERE name = ? AND state = 'rebuilding'`, w.name)
		err = errors.Join(err, mark)
	}
	if drop := w.dropOld(ctx); drop != nil {
		// A later call of dropOld drops it; the rebuild itself has succeeded.
		w.views.logger.WarnContext(ctx, "old generation not dropped", "view", w.name, "err", drop)
	}
	return err
}

// build fills an empty generation up to within one batch of the log's head.
func (g *generation) build(ctx context.Context, progress func(done, total int64)) error {
	head, err := g.view.target(ctx)
	if err != nil {
		return err
	}
	if err := g.bulk(ctx, head, progress); err != nil {
		return err
	}
	// Apply the events appended meanwhile, in rounds that get shorter.
	for {
		if head, err = g.view.target(ctx); err != nil {
			return err
		}
		if err := g.catchUp(ctx, head); err != nil {
			return err
		}
		progress(int64(g.position), int64(head))
		if head-g.position <= batchEvents {
			return nil
		}
	}
}

// target returns the position up to which the view can be built now: the log's
// head, or the source's position.
func (w *view) target(ctx context.Context) (eventstore.Position, error) {
	head, err := w.views.log.Head(ctx)
	if w.source != nil {
		head = min(head, eventstore.Position(w.source.position.Load()))
	}
	return head, err
}

// chunk is a page of the log. The reader sends it to a worker, which decodes
// it, and to applyChunks.
type chunk struct {
	events  int // in the page, including those the view does not want
	recs    []eventstore.Recorded
	decoded chan []decoded // of recs
}

// bulkStreams is the number of streams written in one transaction, which blocks
// the live generations.
const bulkStreams = 2 << 10

// bulk fills an empty generation with the log up to head, stream by stream, if
// the log is an eventstore.StreamReader. It writes each row once, however the
// accounts' events are interleaved, and its memory does not depend on the
// number of accounts. Reading the log stream by stream costs less than loading,
// parsing and writing a row for each of its events.
func (g *generation) bulk(ctx context.Context, head eventstore.Position, progress func(done, total int64)) error {
	if head > 0 && g.writer.bulk != nil {
		return g.writer.bulk(ctx, g, head, progress)
	}
	log, ok := g.view.views.log.(eventstore.StreamReader)
	if !ok || head == 0 {
		return nil
	}
	group, ctx := errgroup.WithContext(ctx)
	workers := runtime.GOMAXPROCS(0)
	work, order := make(chan *chunk, workers), make(chan *chunk, 2*workers)
	group.Go(func() error {
		defer close(work)
		defer close(order)
		for page, err := range log.ByStream(ctx, head) {
			if err != nil {
				return err
			}
			p := &chunk{events: len(page), decoded: make(chan []decoded, 1)}
			for i := range page {
				if g.view.wants(&page[i]) {
					p.recs = append(p.recs, page[i])
				}
			}
			for _, to := range []chan *chunk{order, work} {
				select {
				case to <- p:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}
		return nil
	})
	for range workers {
		group.Go(func() error {
			for p := range work {
				all := make([]decoded, len(p.recs))
				for i, rec := range p.recs {
					all[i] = g.view.decode(rec)
				}
				p.decoded <- all
			}
			return nil
		})
	}
	group.Go(func() error { return g.applyChunks(ctx, order, head, progress) })
	return group.Wait()
}

// applyChunks applies the decoded chunks in order. Each batch ends at the end of
// a stream.
func (g *generation) applyChunks(ctx context.Context, order <-chan *chunk, head eventstore.Position, progress func(done, total int64)) error {
	begin := func() *batch {
		b := g.newBatch()
		b.bulk = true
		return b
	}
	b, stream, streams, done := begin(), "", 0, 0
	defer func() { b.rollback() }()
	for p := range order {
		var all []decoded
		select {
		case all = <-p.decoded:
		case <-ctx.Done():
			return ctx.Err() // the worker may have stopped
		}
		for _, d := range all {
			if d.Stream != stream {
				stream, streams = d.Stream, streams+1
			}
			if streams > bulkStreams {
				if err := b.commit(ctx, d.Position, d.ID); err != nil { // this position only shows progress in Status
					return err
				}
				b, streams = begin(), 1
			}
			if err := b.add(ctx, d); err != nil {
				return err
			}
		}
		done += p.events
		progress(int64(done), int64(head))
	}
	if ctx.Err() != nil {
		return ctx.Err() // order was closed early
	}
	last, err := eventAt(ctx, g.view.views.log, head)
	if err != nil {
		return err
	}
	return b.commit(ctx, head, last)
}

// catchUp applies the log in order until g's position is at least head.
func (g *generation) catchUp(ctx context.Context, head eventstore.Position) error {
	if g.position >= head {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	err := g.view.readBatches(ctx, g.position, head, func(recs []eventstore.Recorded) error {
		if err := g.apply(ctx, recs, nil); err != nil {
			return err
		}
		if g.position >= head {
			cancel()
		}
		return nil
	})
	if g.position >= head {
		return nil
	}
	return err
}

// switchTo replaces the live generation with g, after bringing g to the live
// one's position or beyond. It holds the mutex, so that the live one does not
// advance meanwhile.
func (w *view) switchTo(ctx context.Context, g *generation) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := g.catchUp(ctx, w.live.position); err != nil {
		return err
	}
	if err := w.compare(ctx, w.live, g); err != nil {
		return err
	}
	return w.replace(ctx, g)
}

// replace makes g the live generation. The caller holds w.mu.
func (w *view) replace(ctx context.Context, g *generation) error {
	swap, err := w.serve(ctx, g.number)
	if err != nil {
		return err
	}
	tx, err := w.views.write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	for _, change := range []struct {
		state      string
		generation int64
	}{{"dropped", w.live.number}, {StateLive, g.number}} {
		if _, err := tx.ExecContext(ctx, `UPDATE views SET state = ? WHERE name = ? AND generation = ?`,
			change.state, w.name, change.generation); err != nil {
			return err
		}
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	old := w.live
	w.live = g
	swap() // before publish, so that a query after await does not use the old generation
	w.publish()
	if w.interrupt != nil {
		w.interrupt()
	}
	return old.writer.close()
}

// compare returns an error if the new generation g has lost rows that the live
// one has. From the same events, only parked streams explain missing rows.
func (w *view) compare(ctx context.Context, old, g *generation) error {
	count := func(g *generation) (n int64, err error) {
		err = w.views.write.QueryRowContext(ctx, fmt.Sprintf(w.count, g.number)).Scan(&n)
		return n, err
	}
	before, err := count(old)
	if err != nil {
		return err
	}
	after, err := count(g)
	if err != nil {
		return err
	}
	if after+int64(len(g.parked)) < before {
		return fmt.Errorf("the new view has %d rows and %d parked streams at position %d, the live one %d rows at %d: not switched",
			after, len(g.parked), g.position, before, old.position)
	}
	return nil
}

// claimBuilder locks v.builder.
func (v *Views) claimBuilder(ctx context.Context) error {
	select {
	case v.builder <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (v *Views) releaseBuilder() { <-v.builder }

// dropOld drops all generations but the live one. The caller holds v.builder,
// so none is being built. It first deletes the rows in many small transactions:
// overwriting all of a large table at once would block the live generations.
func (w *view) dropOld(ctx context.Context) error {
	db := w.views.write
	for {
		var g int64
		err := db.QueryRowContext(ctx, `SELECT generation FROM views WHERE name = ? AND state != 'live' LIMIT 1`, w.name).Scan(&g)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, deletion := range w.clear {
			for more := true; more; {
				result, err := db.ExecContext(ctx, fmt.Sprintf(deletion, g))
				if err != nil {
					return err
				}
				n, err := result.RowsAffected()
				if err != nil {
					return err
				}
				more = n > 0
			}
		}
		if err := w.dropTables(ctx, g); err != nil {
			return err
		}
	}
}

// dropTables drops a generation's tables and its rows in views and parked.
func (w *view) dropTables(ctx context.Context, generation int64) error {
	tx, err := w.views.write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, fmt.Sprintf(w.drop, generation)); err != nil {
		return err
	}
	for _, table := range []string{"DELETE FROM parked WHERE view = ? AND generation = ?", "DELETE FROM views WHERE name = ? AND generation = ?"} {
		if _, err := tx.ExecContext(ctx, table, w.name, generation); err != nil {
			return err
		}
	}
	return tx.Commit()
}
