package sqlite

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"accountledger/eventstore"
	"accountledger/eventstore/tlog"
)

// Limits of one transaction. The writer splits larger batches.
const (
	batchEvents = 1024
	batchBytes  = 8 << 20
)

// queueLength is the capacity of the queue; further appends block.
const queueLength = 1024

// request is one append in the writer's queue or batch.
type request struct {
	commit eventstore.Commit
	hashes []tlog.Hash // SHA-256 of the sealed parts, in the order of the events
	bytes  int         // size of the clear and sealed parts
	queued time.Time   // when newRequest made it

	state atomic.Int32 // waiting, taken or withdrawn; the goroutine that changes it decides the outcome

	// The writer sets these before it closes done.
	begun   time.Time     // start of the transaction
	took    time.Duration // of the transaction
	receipt eventstore.Receipt
	err     error
	done    chan struct{}
}

const (
	waiting int32 = iota
	taken
	withdrawn
)

// newRequest does the work that does not need the writer: it hashes the sealed
// parts and copies the events' bytes, because the log's tail keeps them after
// Append has returned.
func newRequest(c eventstore.Commit) *request {
	r := &request{commit: c, queued: time.Now(), done: make(chan struct{})}
	r.commit.Writes = make([]eventstore.Write, len(c.Writes))
	for i, w := range c.Writes {
		events := make([]eventstore.Event, len(w.Events))
		for j, e := range w.Events {
			var sealed tlog.Hash
			if e.KeyID != (eventstore.KeyID{}) {
				sealed = sha256.Sum256(e.Sealed)
			}
			e.Clear, e.Sealed = bytes.Clone(e.Clear), bytes.Clone(e.Sealed)
			events[j] = e
			r.hashes = append(r.hashes, sealed)
			r.bytes += len(e.Clear) + len(e.Sealed)
		}
		w.Events = events
		r.commit.Writes[i] = w
	}
	return r
}

// append passes c to the writer and waits for the outcome. The end of ctx
// withdraws c only while c is in the queue; once the writer has taken c, append
// returns the outcome of its transaction.
func (w *writer) append(ctx context.Context, c eventstore.Commit) (eventstore.Receipt, error) {
	if err := ctx.Err(); err != nil {
		return eventstore.Receipt{}, err
	}
	r := newRequest(c)
	select {
	case w.queue <- r:
	case <-w.closing:
		return eventstore.Receipt{}, eventstore.ErrClosed
	case <-ctx.Done():
		return eventstore.Receipt{}, ctx.Err()
	}
	var cause error
	select {
	case <-r.done:
		return w.outcome(ctx, r)
	case <-ctx.Done():
		cause = ctx.Err()
	case <-w.ended:
		cause = eventstore.ErrClosed
	}
	if r.state.CompareAndSwap(waiting, withdrawn) {
		return eventstore.Receipt{}, cause
	}
	<-r.done
	return w.outcome(ctx, r)
}

// outcome returns the result of a completed request and calls trace.
func (w *writer) outcome(ctx context.Context, r *request) (eventstore.Receipt, error) {
	if w.trace != nil {
		w.trace(ctx, Appended{Came: r.queued, Begun: r.begun, Ended: r.begun.Add(r.took), Receipt: r.receipt, Err: r.err})
	}
	return r.receipt, r.err
}

// run is the only goroutine that writes. It commits the queued appends in
// batches and passes their events to publish once they are durable.
func (w *writer) run(publish func([]eventstore.Recorded)) {
	defer close(w.ended)
	var due <-chan time.Time // fires when a checkpoint is due
	for {
		if due == nil && !w.auditing && w.broken == nil && w.state.signed < w.state.tree.Size() {
			due = time.After(w.interval - time.Since(w.lastSign))
		}
		select {
		case <-w.closing:
			w.closeErr = w.finish()
			return
		case r := <-w.queue:
			w.collect(r)
			w.commit(publish)
			// Let callers that just got their results queue the next append, so
			// that those appends share a transaction.
			runtime.Gosched()
		case f := <-w.work:
			f()
		case <-due:
			due = nil
			if w.broken == nil && time.Since(w.lastSign) >= w.interval {
				w.audit()
			}
		case a := <-w.audits:
			// A failure that does not break the log is retried after the
			// interval, and Close returns the same error.
			w.report(w.conclude(a))
		}
	}
}

// collect fills the batch with first and further queued requests.
func (w *writer) collect(first *request) {
	w.batch = w.batch[:0]
	events, bytes := 0, 0
	for r := first; ; {
		if r.state.CompareAndSwap(waiting, taken) {
			w.batch = append(w.batch, r)
			events += len(r.hashes)
			bytes += r.bytes
		}
		if events >= batchEvents || bytes >= batchBytes {
			return
		}
		select {
		case r = <-w.queue:
		default:
			return
		}
	}
}

// commit writes the batch in one transaction and completes its requests.
func (w *writer) commit(publish func([]eventstore.Recorded)) {
	if len(w.batch) == 0 {
		return
	}
	start := time.Now()
	err := w.transact(func() error {
		for _, r := range w.batch {
			if err := w.apply(r); err != nil {
				return err
			}
		}
		return nil
	})
	took := time.Since(start)
	if err == nil {
		publish(w.events)
	}
	for _, r := range w.batch {
		if err != nil {
			// Replace refusals, too: a commit may have been refused because
			// of an earlier one in the batch, which was rolled back.
			r.receipt, r.err = eventstore.Receipt{}, fmt.Errorf("sqlite: append: %w", err)
		}
		r.begun, r.took = start, took
		close(r.done)
	}
	if w.observe != nil {
		w.observe(w.transaction(start, took, err))
	}
}

// transaction describes the batch's transaction for Observe.
func (w *writer) transaction(start time.Time, took time.Duration, err error) Transaction {
	t := Transaction{Appends: len(w.batch), Waited: start.Sub(w.batch[0].queued), Took: took, Err: err}
	if err != nil {
		return t
	}
	t.Events = len(w.events)
	for _, r := range w.batch {
		if r.err != nil {
			t.Refused++
		}
	}
	return t
}

// transact runs f in a transaction and seals the head that it leaves. f changes
// w.next, a copy of w.state, which becomes w.state once the transaction is
// durable. After a failure, transact reloads the state from the file, which must
// be the one before the transaction, or the one after it if it was durable.
func (w *writer) transact(f func() error) error {
	if w.broken != nil {
		return w.broken
	}
	w.events = w.events[:0]
	w.next.set(&w.state)
	err := w.begin.exec()
	if err == nil {
		err = f()
		if err == nil {
			err = w.sealHead()
		}
		if err == nil {
			err = w.end.exec()
		}
	}
	if err == nil {
		w.state, w.next = w.next, w.state
		return nil
	}
	// On some errors, SQLite has already rolled back.
	if !w.db.db.AutoCommit() {
		if e := w.rollback.exec(); e != nil {
			return w.fail(fmt.Errorf("rollback failed: %w, after %w", e, err))
		}
	}
	before, after := w.state, w.next
	if e := w.load(); e != nil {
		return w.fail(fmt.Errorf("reload failed: %w, after %w", e, err))
	}
	if now := &w.state.tree; !equal(now, &before.tree) && !equal(now, &after.tree) {
		return w.fail(fmt.Errorf("%w, after %w", tampered("it has other events than those that were appended"), err))
	}
	if errors.Is(err, eventstore.ErrTampered) {
		return w.fail(err)
	}
	return err
}

func equal(a, b *tlog.Tree) bool { return a.Size() == b.Size() && a.Root() == b.Root() }

// apply writes one commit within the transaction. If the commit is refused,
// apply stores the refusal in r and has written nothing, so that the batch's
// other commits are unaffected. An error fails the whole transaction.
func (w *writer) apply(r *request) error {
	c := r.commit
	heads, refusal, err := w.check(c)
	if refusal != nil || err != nil {
		r.err = refusal
		return err
	}
	r.receipt = eventstore.Receipt{First: w.next.head() + 1}
	// The clock may go back; the log's time must not.
	w.next.time = max(w.next.time, w.now().UnixMicro())
	r.receipt.Time = time.UnixMicro(w.next.time).UTC()
	hashes := r.hashes
	for i, write := range c.Writes {
		h := heads[i]
		if h.num == 0 {
			if h.num, err = w.createStream(write.Stream); err != nil {
				return err
			}
		}
		before := h
		for j := range write.Events {
			h.revision++
			rec := eventstore.Recorded{
				Event: write.Events[j], Stream: write.Stream, Revision: h.revision,
				Position: w.next.head() + 1, Time: r.receipt.Time,
			}
			if h.leaf, err = w.insert(rec, h, hashes[j]); err != nil {
				return err
			}
		}
		hashes = hashes[len(write.Events):]
		w.heads.put(write.Stream, h)
		if watches(w.watch, write.Stream) {
			if before.revision != eventstore.NoStream {
				w.next.watched = w.next.watched.minus(w.vouch.streamEnd(write.Stream, before))
			}
			w.next.watched = w.next.watched.plus(w.vouch.streamEnd(write.Stream, h))
		}
	}
	r.receipt.Last = w.next.head()
	return w.moveClaims(c)
}

// check decides whether to refuse a commit and returns the heads of the streams
// it writes to. It sees the effects of earlier commits in the batch.
func (w *writer) check(c eventstore.Commit) (heads []head, refusal, failure error) {
	heads = w.writeHeads[:0]
	for _, write := range c.Writes {
		h, err := w.streamHead(write.Stream)
		if err != nil {
			return nil, nil, err
		}
		if write.Expected != eventstore.Any && write.Expected != h.revision {
			return nil, &eventstore.ConflictError{Stream: write.Stream, Expected: write.Expected, Actual: h.revision}, nil
		}
		heads = append(heads, h)
	}
	w.writeHeads = heads
	for i, k := range c.Claim {
		owner, err := w.claimOwner(k)
		if err != nil {
			return nil, nil, err
		}
		if owner != "" && owner != k.Owner {
			// It is free if this commit releases it.
			for _, released := range c.Release {
				if released.Kind == k.Kind && released.Key == k.Key && released.Owner == owner {
					owner = ""
					break
				}
			}
		}
		for _, earlier := range c.Claim[:i] {
			if earlier.Kind == k.Kind && earlier.Key == k.Key {
				owner = earlier.Owner
			}
		}
		if owner != "" && owner != k.Owner {
			return nil, &eventstore.ClaimError{Claim: k, Owner: owner}, nil
		}
	}
	return heads, nil, nil
}

// insert writes an event, its sealed part and the tiles that it changes, adds
// it to the tree and returns its leaf hash. h has the number of the event's
// stream and the leaf hash of the stream's previous event.
func (w *writer) insert(rec eventstore.Recorded, h head, sealed tlog.Hash) (tlog.Hash, error) {
	leaf := &w.leaf // a local variable would be allocated for every event
	*leaf = tlog.NewLeaf(rec, h.leaf, sealed)
	var err error
	if w.hash, w.buf, err = leaf.HashIn(w.buf); err != nil {
		return w.hash, err
	}
	// A nil slice is bound as NULL.
	var prev, kid, sealedHash []byte
	if rec.Revision > 0 {
		prev = leaf.Prev[:]
	}
	if rec.KeyID != (eventstore.KeyID{}) {
		kid, sealedHash = leaf.KeyID[:], leaf.SealedHash[:]
		w.next.slot = max(w.next.slot, rec.KeyID.Slot())
	}
	clear := rec.Clear
	if clear == nil {
		clear = []byte{}
	}
	err = w.insertEvent.exec(int64(rec.Position), h.num, int64(rec.Revision), leaf.Time, leaf.ID[:], rec.Type, rec.Actor,
		clear, prev, kid, sealedHash, w.hash[:])
	if err == nil && kid != nil {
		err = w.insertSealed.exec(int64(rec.Position), rec.Sealed)
	}
	for _, tile := range w.next.tree.Push(w.hash) {
		if err == nil {
			err = w.putTile.exec(int64(tile.Level), tile.N, tile.Data)
		}
	}
	w.events = append(w.events, rec)
	return w.hash, err
}

func (w *writer) createStream(name string) (num int64, err error) {
	w.next.streams++
	return w.next.streams, w.insertStream.exec(w.next.streams, name)
}

// moveClaims releases and takes the claims of a commit that check accepted.
func (w *writer) moveClaims(c eventstore.Commit) error {
	for _, k := range c.Release {
		h, err := w.streamHead(k.Owner)
		if err != nil {
			return err
		}
		if h.num == 0 {
			continue // a stream that does not exist holds no claims
		}
		released, err := w.deleteClaim.changes(k.Kind, []byte(k.Key), h.num)
		if err != nil {
			return err
		}
		if released > 0 {
			w.next.claims = w.next.claims.minus(w.vouch.claim(k.Kind, []byte(k.Key), k.Owner))
		}
		if err := w.endWait(k, h.num); err != nil {
			return err
		}
	}
	for _, k := range c.Claim {
		h, err := w.streamHead(k.Owner)
		if err != nil {
			return err
		}
		if h.num == 0 {
			if h.num, err = w.createStream(k.Owner); err != nil {
				return err
			}
			w.heads.put(k.Owner, h)
		}
		taken, err := w.insertClaim.changes(k.Kind, []byte(k.Key), h.num)
		if err != nil {
			return err
		}
		if taken == 0 { // the owner holds it, as check has found
			if owner, err := w.claimOwner(k); err != nil || owner != k.Owner {
				return cmp.Or(err, tampered("a claim of kind %s is not stored", k.Kind))
			}
			continue
		}
		w.next.claims = w.next.claims.plus(w.vouch.claim(k.Kind, []byte(k.Key), k.Owner))
		if err := w.endWait(k, h.num); err != nil {
			return err
		}
	}
	for _, k := range c.Release {
		if err := w.promote(k); err != nil {
			return err
		}
	}
	return nil
}

// endWait ends the wait of a claim's owner, the stream num.
func (w *writer) endWait(k eventstore.Claim, num int64) error {
	if w.next.waiting == 0 {
		return nil
	}
	ended, err := w.deleteWaiting.changes(k.Kind, []byte(k.Key), num)
	if ended > 0 {
		w.next.waiting -= ended
		w.next.claims = w.next.claims.minus(w.vouch.wait(k.Kind, []byte(k.Key), k.Owner))
	}
	return err
}

// promote gives a released key, if nobody has taken it, to the first owner that
// waits for it.
func (w *writer) promote(k eventstore.Claim) error {
	if w.next.waiting == 0 {
		return nil
	}
	if owner, err := w.claimOwner(k); owner != "" || err != nil {
		return err
	}
	found, err := w.selectWaiting.row(w.row[:2], k.Kind, []byte(k.Key))
	if !found || err != nil {
		return err
	}
	f := fields{row: w.row[:2]}
	first, owner := f.int(), f.text()
	if f.bad {
		return corrupt("a waiting claim cannot be read")
	}
	w.next.claims = w.next.claims.minus(w.vouch.wait(k.Kind, []byte(k.Key), owner)).plus(w.vouch.claim(k.Kind, []byte(k.Key), owner))
	if err := w.insertClaim.exec(k.Kind, []byte(k.Key), first); err != nil {
		return err
	}
	w.next.waiting--
	return w.deleteWaiting.exec(k.Kind, []byte(k.Key), first)
}
