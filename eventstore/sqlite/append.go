package sqlite

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"accountledger/eventstore"
	"accountledger/eventstore/tlog"
)

// Bounds of one transaction: what came in is split into several beyond them.
const (
	batchEvents = 1024
	batchBytes  = 8 << 20
)

// queueLength is how many appends can wait before more callers wait to wait.
const queueLength = 1024

// request is one append on its way through the writer.
type request struct {
	commit eventstore.Commit
	hashes []tlog.Hash // SHA-256 of the sealed parts, in the order of the events
	bytes  int
	came   time.Time // into the queue
	begun  time.Time // its transaction, with receipt
	took   time.Duration

	state   atomic.Int32 // of the three below; whoever moves it off queued owns the outcome
	receipt eventstore.Receipt
	err     error
	done    chan struct{} // closed when receipt and err are set
}

const (
	queued int32 = iota
	taken
	withdrawn
)

// newRequest does what can be done outside the writer: it hashes the sealed
// parts, and copies the bytes, which the log's tail keeps after the caller has
// them back.
func newRequest(c eventstore.Commit) *request {
	r := &request{commit: c, came: time.Now(), done: make(chan struct{})}
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

// append hands c to the writer and waits for what becomes of it. While c waits
// in the queue the end of ctx withdraws it; from then on only the outcome is
// the truth.
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
	if r.state.CompareAndSwap(queued, withdrawn) {
		return eventstore.Receipt{}, cause
	}
	<-r.done
	return w.outcome(ctx, r)
}

// outcome is what became of a request that is done.
func (w *writer) outcome(ctx context.Context, r *request) (eventstore.Receipt, error) {
	if w.trace != nil {
		w.trace(ctx, Appended{Came: r.came, Begun: r.begun, Ended: r.begun.Add(r.took), Receipt: r.receipt, Err: r.err})
	}
	return r.receipt, r.err
}

// run is the one goroutine that writes. It commits what is queued, as much as
// there is at once, and hands the events to publish when they are durable.
func (w *writer) run(publish func([]eventstore.Recorded)) {
	defer close(w.ended)
	var due <-chan time.Time // when a checkpoint is to be signed with no commit to carry it
	for {
		if due == nil && w.state.signed < w.state.tree.Size() {
			due = time.After(w.interval - time.Since(w.lastSign))
		}
		select {
		case <-w.closing:
			if w.broken == nil {
				w.failed = w.signNow()
			}
			return
		case r := <-w.queue:
			w.collect(r)
			w.commit(publish)
			// Those just answered may come again at once: let them, and share.
			runtime.Gosched()
		case e := <-w.erasing:
			e.done <- w.erase(e)
		case <-due:
			due = nil
			// An error shows at the next append, which meets it too, or at
			// Close; this is tried again after the interval.
			_ = w.signNow()
		}
	}
}

// collect takes first and what else is queued into the batch.
func (w *writer) collect(first *request) {
	w.batch = w.batch[:0]
	events, bytes := 0, 0
	for r := first; ; {
		if r.state.CompareAndSwap(queued, taken) {
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

// commit writes the batch in one transaction and answers its callers.
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
		if time.Since(w.lastSign) >= w.interval {
			return w.sign()
		}
		return nil
	})
	took := time.Since(start)
	if err == nil {
		publish(w.fresh)
	}
	for _, r := range w.batch {
		if err != nil {
			// Also where a commit was refused: perhaps for what a neighbour
			// did that has not happened now.
			r.receipt, r.err = eventstore.Receipt{}, fmt.Errorf("sqlite: append: %w", err)
		}
		r.begun, r.took = start, took
		close(r.done)
	}
	if w.observe != nil {
		w.observe(w.transaction(start, took, err))
	}
}

// transaction is what the batch came to.
func (w *writer) transaction(start time.Time, took time.Duration, err error) Transaction {
	t := Transaction{Appends: len(w.batch), Waited: start.Sub(w.batch[0].came), Took: took, Err: err}
	if err != nil {
		return t
	}
	t.Events = len(w.fresh)
	for _, r := range w.batch {
		if r.err != nil {
			t.Refused++
		}
	}
	return t
}

// transact runs f in a transaction that extends w.next, a copy of w.state,
// and makes it w.state if and when the transaction is durable. After a failure
// the writer begins anew with what the file says.
func (w *writer) transact(f func() error) error {
	if w.broken != nil {
		return w.broken
	}
	w.fresh = w.fresh[:0]
	w.next.set(&w.state)
	err := w.begin.exec()
	if err == nil {
		if err = f(); err == nil {
			err = w.end.exec()
		}
	}
	if err == nil {
		w.state, w.next = w.next, w.state
		return nil
	}
	// SQLite may have rolled back by itself.
	if !w.db.db.AutoCommit() {
		if e := w.rollback.exec(); e != nil {
			w.broken = fmt.Errorf("no appends until the log is opened again: roll back: %w after %w", e, err)
			return w.broken
		}
	}
	if e := w.load(); e != nil {
		w.broken = fmt.Errorf("no appends until the log is opened again: reload: %w after %w", e, err)
		return w.broken
	}
	return err
}

// apply writes one commit within the transaction. A refusal is the commit's
// own affair and left in r; it is decided before anything is written, so that
// it leaves no trace among its neighbours. An error fails the transaction.
func (w *writer) apply(r *request) error {
	c := r.commit
	heads, refusal, err := w.check(c)
	if refusal != nil || err != nil {
		r.err = refusal
		return err
	}
	r.receipt = eventstore.Receipt{First: w.next.head() + 1}
	// The clock may go back, the log's time does not.
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
	}
	r.receipt.Last = w.next.head()
	return w.moveClaims(c)
}

// check decides whether a commit is refused and returns the heads of the
// streams it writes to. It sees what earlier commits of the batch did.
func (w *writer) check(c eventstore.Commit) (heads []head, refusal, failure error) {
	heads = w.checked[:0]
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
	w.checked = heads
	for i, k := range c.Claim {
		owner, err := w.claimOwner(k)
		if err != nil {
			return nil, nil, err
		}
		if owner != "" && owner != k.Owner {
			// Given up by this very commit, it is free.
			for _, g := range c.Release {
				if g.Kind == k.Kind && g.Key == k.Key && g.Owner == owner {
					owner = ""
					break
				}
			}
		}
		for _, e := range c.Claim[:i] {
			if e.Kind == k.Kind && e.Key == k.Key {
				owner = e.Owner
			}
		}
		if owner != "" && owner != k.Owner {
			return nil, &eventstore.ClaimError{Claim: k, Owner: owner}, nil
		}
	}
	return heads, nil, nil
}

// insert writes an event, its sealed part and the tiles it completes, adds it
// to the tree and returns its leaf hash. h is the stream's head before it but
// for the revision, which is the event's own.
func (w *writer) insert(rec eventstore.Recorded, h head, sealed tlog.Hash) (tlog.Hash, error) {
	leaf := &w.leaf // not a variable of each call, which would be garbage
	*leaf = tlog.NewLeaf(rec, h.leaf, sealed)
	var err error
	if w.hash, w.buf, err = leaf.HashIn(w.buf); err != nil {
		return w.hash, err
	}
	// A nil slice would be bound as NULL.
	var prev, kid, sealedHash []byte
	if rec.Revision > 0 {
		prev = leaf.Prev[:]
	}
	if rec.KeyID != (eventstore.KeyID{}) {
		kid, sealedHash = leaf.KeyID[:], leaf.SealedHash[:]
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
	w.fresh = append(w.fresh, rec)
	return w.hash, err
}

func (w *writer) createStream(name string) (num int64, err error) {
	w.next.streams++
	return w.next.streams, w.insertStream.exec(w.next.streams, name)
}

// moveClaims releases and takes what check has found to be free.
func (w *writer) moveClaims(c eventstore.Commit) error {
	for _, k := range c.Release {
		h, err := w.streamHead(k.Owner)
		if err != nil {
			return err
		}
		if h.num == 0 {
			continue // a stream nobody has heard of holds nothing
		}
		if err := w.deleteClaim.exec(k.Kind, []byte(k.Key), h.num); err != nil {
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
		if err := w.insertClaim.exec(k.Kind, []byte(k.Key), h.num); err != nil {
			return err
		}
	}
	return nil
}
