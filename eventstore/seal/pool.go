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

// How batches grow: from firstBatch, doubling while the last one was made less
// than a lull ago. An import is soon fed a thousand keys at a time, and a
// quiet ledger does not leave a thousand behind at each restart.
const (
	firstBatch = 64
	lull       = time.Second
)

var errClosed = fmt.Errorf("seal: new key: %w", eventstore.ErrClosed)

// pool holds data keys that are durable and nobody's yet.
type pool struct {
	max    int           // size of the largest batch
	wake   chan struct{} // capacity 1: holds a token while a refill is wanted
	stop   chan struct{} // closed by close
	ended  chan struct{} // closed when the refiller has ended
	closer sync.Once

	mu     sync.Mutex // guards what follows
	keys   []dataKey  // in the order of their slots
	low    int        // fewer keys than this want a refill
	round  *round     // the refill under way or to come
	closed bool
}

// round is one refill: err is set before done is closed.
type round struct {
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
		round: &round{done: make(chan struct{})},
	}
}

// NewKey takes a fresh data key, one that is already durable: an event sealed
// under it can be appended at the cost of its own fsync alone. Keys are made
// ahead, many in a transaction, and a caller waits only when none is left.
//
// Keys that were made and not taken before the program ended are abandoned.
// An orphan key is harmless, 91 bytes on disk; an event whose key is missing,
// or one key for two accounts, is not. Handing out a former run's keys would
// need a record of which were taken, and that is the write the pool saves.
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
			// It is about to be sealed under.
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

// take takes the next key, or says which refill to wait for.
func (p *pool) take() (dataKey, *round, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return dataKey{}, nil, errClosed
	}
	var key dataKey
	var wait *round
	if len(p.keys) > 0 {
		key, p.keys = p.keys[0], p.keys[1:]
	} else {
		wait = p.round
	}
	if len(p.keys) < p.low {
		select {
		case p.wake <- struct{}{}:
		default: // wanted already
		}
	}
	return key, wait, nil
}

// refill makes keys when they are wanted, until the pool is closed.
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
		if time.Since(last) > lull {
			size = firstBatch / 2
		}
		size = min(2*size, p.max)
		keys, err := k.makeKeys(size)
		p.add(keys, size/2, err)
		last = time.Now()
	}
}

// add ends the round: the callers waiting for it try again, or return err.
func (p *pool) add(keys []dataKey, low int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keys = append(p.keys, keys...)
	p.low = low
	if len(p.keys) >= low {
		// A caller that found too few while these were being made has asked
		// again; it is answered.
		select {
		case <-p.wake:
		default:
		}
	}
	ended := p.round
	p.round = &round{done: make(chan struct{})}
	ended.err = err
	close(ended.done)
}

// close ends the refiller, then whoever still waits for it.
func (p *pool) close() {
	p.closer.Do(func() {
		close(p.stop)
		<-p.ended
		p.mu.Lock()
		defer p.mu.Unlock()
		p.closed, p.keys = true, nil
		p.round.err = errClosed
		close(p.round.done)
	})
}

// makeKeys makes n keys durable in one transaction, in the slots after the
// last one. It reads the last slot from the file, where a destroyed key's row
// stays, so no slot is given twice.
func (k *Keys) makeKeys(n int) ([]dataKey, error) {
	tx, err := k.write.Begin()
	if err != nil {
		return nil, fmt.Errorf("seal: make keys: %w", err)
	}
	defer tx.Rollback()
	keys, err := k.insertKeys(tx, n)
	if err != nil {
		return nil, fmt.Errorf("seal: make keys: %w", err)
	}
	if err := tx.Commit(); err != nil {
		return nil, fmt.Errorf("seal: make keys: %w", err)
	}
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
	rand.Read(deks) // all at once: a call of the system costs more than the bytes
	keys := make([]dataKey, n)
	for i := range keys {
		slot, dek := last+1+int64(i), deks[32*i:32*i+32]
		if keys[i], err = derive(slot, dek); err != nil {
			return nil, err
		}
		if _, err := insert.Exec(slot, k.wrap.epoch, k.wrap.wrap(keyPlace(slot, k.wrap.epoch), dek)); err != nil {
			return nil, err
		}
	}
	return keys, nil
}
