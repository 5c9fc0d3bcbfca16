package seal

import (
	"context"
	"crypto/rand"
	"database/sql"
	"fmt"
	"sync"
	"time"

	"accountledger/eventstore"
)

// Batch sizes start at firstBatch and double with each batch, until idleReset
// passes without one. So a bulk import soon gets keys a thousand at a time,
// while a quiet ledger does not abandon a thousand keys at each restart.
const (
	firstBatch = 64
	idleReset  = time.Second
)

var errClosed = fmt.Errorf("seal: new key: %w", eventstore.ErrClosed)

// pool holds data keys that are durable and not yet in use.
type pool struct {
	max    int           // size of the largest batch
	wake   chan struct{} // capacity 1: holds a token while a refill is requested
	stop   chan struct{} // closed by close
	ended  chan struct{} // closed when refill has returned
	closer sync.Once

	mu     sync.Mutex // guards the fields below
	keys   []dataKey  // in the order of their slots
	low    int        // with fewer keys than this, take requests a refill
	batch  *batch     // the current or next batch
	closed bool
}

// batch is the result of one refill: err is set before done is closed.
type batch struct {
	done chan struct{}
	err  error
}

func newPool(max int) *pool {
	return &pool{
		max:   max,
		wake:  make(chan struct{}, 1),
		stop:  make(chan struct{}),
		ended: make(chan struct{}),
		low:   1,
		batch: &batch{done: make(chan struct{})},
	}
}

// NewKey returns the ID of a new data key that is already durable, so that
// appending an event sealed under it costs only the event's own fsync. The
// pool creates keys in advance, many per transaction; NewKey waits only if the
// pool is empty. It fails with ErrReadOnly in a reader, with
// eventstore.ErrClosed after Close, with ctx's error, or with the error of a
// failed refill.
//
// A key that is not taken before the process ends is abandoned. That is
// harmless: it uses 91 bytes on disk. An event without its key, or two accounts
// with the same key, would not be harmless. Reusing abandoned keys after a
// restart would require recording which keys were taken, and that is the write
// that the pool saves.
func (k *Keys) NewKey(ctx context.Context) (eventstore.KeyID, error) {
	if k.pool == nil {
		return eventstore.KeyID{}, ErrReadOnly
	}
	for {
		key, wait, err := k.pool.take()
		if err != nil {
			return eventstore.KeyID{}, err
		}
		if wait == nil {
			// The caller is about to seal with it.
			aead, err := newAEAD(key.enc)
			if err != nil {
				return eventstore.KeyID{}, err
			}
			k.cache.Set(key.id, aead)
			return key.id, nil
		}
		select {
		case <-wait.done:
			if wait.err != nil {
				return eventstore.KeyID{}, wait.err
			}
		case <-ctx.Done():
			return eventstore.KeyID{}, fmt.Errorf("seal: new key: %w", ctx.Err())
		}
	}
}

// take removes the next key, or returns the batch to wait for.
func (p *pool) take() (dataKey, *batch, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return dataKey{}, nil, errClosed
	}
	var key dataKey
	var wait *batch
	if len(p.keys) > 0 {
		key, p.keys = p.keys[0], p.keys[1:]
	} else {
		wait = p.batch
	}
	if len(p.keys) < p.low {
		select {
		case p.wake <- struct{}{}:
		default: // already requested
		}
	}
	return key, wait, nil
}

// refill creates keys on request until the pool is closed.
func (k *Keys) refill() {
	p := k.pool
	defer close(p.ended)
	size, last := 0, time.Time{}
	for {
		select {
		case <-p.stop:
			return
		case <-p.wake:
		}
		if time.Since(last) > idleReset {
			size = firstBatch / 2
		}
		size = min(2*size, p.max)
		keys, err := k.createKeys(size)
		p.add(keys, size/2, err)
		last = time.Now()
	}
}

// add completes the batch: the callers waiting for it retry or return err.
func (p *pool) add(keys []dataKey, low int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keys = append(p.keys, keys...)
	p.low = low
	if len(p.keys) >= low {
		// Drop a request that a caller made while this batch was being
		// created: the batch satisfies it.
		select {
		case <-p.wake:
		default:
		}
	}
	completed := p.batch
	p.batch = &batch{done: make(chan struct{})}
	completed.err = err
	close(completed.done)
}

// close stops refill and then fails the callers that still wait for keys.
func (p *pool) close() {
	p.closer.Do(func() {
		close(p.stop)
		<-p.ended
		p.mu.Lock()
		defer p.mu.Unlock()
		p.closed, p.keys = true, nil
		p.batch.err = errClosed
		close(p.batch.done)
	})
}

// createKeys creates n keys in one transaction, in the slots after the last one.
// It reads the last slot from the file, which keeps the rows of destroyed
// keys, so it never assigns a slot twice.
func (k *Keys) createKeys(n int) ([]dataKey, error) {
	tx, err := k.write.Begin()
	if err != nil {
		return nil, fmt.Errorf("seal: create keys: %w", err)
	}
	defer tx.Rollback()
	keys, err := k.insertKeys(tx, n)
	if err != nil {
		return nil, fmt.Errorf("seal: create keys: %w", err)
	}
	if err := tx.Commit(); err != nil {
		return nil, fmt.Errorf("seal: create keys: %w", err)
	}
	k.slots.Add(int64(n)) // refill is the only caller
	return keys, nil
}

func (k *Keys) insertKeys(tx *sql.Tx, n int) ([]dataKey, error) {
	var last int64
	if err := tx.QueryRow(`SELECT coalesce(max(slot), 0) FROM keys`).Scan(&last); err != nil {
		return nil, err
	}
	insert, err := tx.Prepare(`INSERT INTO keys (slot, epoch, wrapped) VALUES (?, ?, ?)`)
	if err != nil {
		return nil, err
	}
	defer insert.Close()
	deks := make([]byte, 32*n)
	rand.Read(deks) // in one call: the system call costs more than the bytes
	keys := make([]dataKey, n)
	for i := range keys {
		slot, dek := last+1+int64(i), deks[32*i:32*i+32]
		if keys[i], err = derive(slot, dek); err != nil {
			return nil, err
		}
		if _, err := insert.Exec(slot, k.wrap.epoch, k.wrap.wrap(keyAAD(slot, k.wrap.epoch), dek)); err != nil {
			return nil, err
		}
	}
	return keys, nil
}
