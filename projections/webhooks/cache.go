package webhooks

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"accountledger/eventstore"
)

// Bounds of the part of the log that is held in memory.
const (
	pageSize    = 256      // events that a reader gets at once
	pageBytes   = 4 << 20  // in a page of history, plus its last event
	recentSize  = 2048     // events at the end of the log that readers share
	recentBytes = 32 << 20 // their bytes
	pastReaders = 4        // concurrent reads of history
	pastBytes   = 1 << 20  // in the pages of history that readers share; opened events take several times that
)

// cache holds pages of the log for many readers. Readers at the end of the log
// share the events that one subscription pushes, opened once. Readers behind it
// read from the log, a few at a time, and share the pages read last: webhooks
// that were down together, or were created together, are at about the same
// place.
type cache struct {
	log     eventstore.Store
	reading chan struct{} // semaphore for reads of history

	mu     sync.Mutex
	recent []*event // (first, last]
	first  eventstore.Position
	last   eventstore.Position
	bytes  int
	more   chan struct{} // closed when last grows

	past    []past // pages of history, most recently used first
	loading map[eventstore.Position]chan struct{}
}

// past is the page of history right after a position.
type past struct {
	after  eventstore.Position
	events []*event
	bytes  int
}

func newCache(log eventstore.Store, after eventstore.Position) *cache {
	return &cache{log: log, reading: make(chan struct{}, pastReaders), first: after, last: after, more: make(chan struct{}),
		loading: map[eventstore.Position]chan struct{}{}}
}

// push adds the next page of the log.
func (c *cache) push(page []eventstore.Recorded) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, rec := range page {
		e := newEvent(rec)
		c.recent = append(c.recent, e)
		c.bytes += e.size()
		c.last = rec.Position
	}
	drop := 0
	for len(c.recent)-drop > recentSize || c.bytes > recentBytes {
		c.bytes -= c.recent[drop].size()
		drop++
	}
	clear(c.recent[:drop])
	c.recent = c.recent[drop:]
	c.first = c.last - eventstore.Position(len(c.recent))
	close(c.more)
	c.more = make(chan struct{})
}

// next returns the events right after a position, at least one; it waits until
// there is one. The error is ctx's or the log's.
func (c *cache) next(ctx context.Context, after eventstore.Position) ([]*event, error) {
	for {
		c.mu.Lock()
		first, last, more := c.first, c.last, c.more
		if after >= first && after < last {
			page := c.recent[after-first:]
			page = append([]*event(nil), page[:min(len(page), pageSize)]...)
			c.mu.Unlock()
			return page, nil
		}
		c.mu.Unlock()
		if after < first {
			return c.read(ctx, after)
		}
		select {
		case <-more:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// read returns a page of history, from memory or from the log.
func (c *cache) read(ctx context.Context, after eventstore.Position) ([]*event, error) {
	for {
		c.mu.Lock()
		if events := c.known(after); events != nil {
			c.mu.Unlock()
			return events, nil
		}
		other := c.loading[after]
		mine := make(chan struct{})
		if other == nil {
			c.loading[after] = mine
		}
		c.mu.Unlock()
		if other == nil {
			p, err := c.load(ctx, after)
			c.mu.Lock()
			delete(c.loading, after)
			close(mine)
			if err == nil {
				c.keep(p)
			}
			c.mu.Unlock()
			return p.events, err
		}
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// known returns the page after a position if it is in memory, or nil.
func (c *cache) known(after eventstore.Position) []*event {
	for i, p := range c.past {
		if p.after == after {
			copy(c.past[1:], c.past[:i])
			c.past[0] = p
			return p.events
		}
	}
	return nil
}

func (c *cache) keep(p past) {
	c.past = slices.Insert(c.past, 0, p)
	bytes := 0
	for i, p := range c.past {
		if bytes += p.bytes; bytes > pastBytes && i > 0 {
			clear(c.past[i:])
			c.past = c.past[:i]
			return
		}
	}
}

// load reads a page of history from the log.
func (c *cache) load(ctx context.Context, after eventstore.Position) (past, error) {
	select {
	case c.reading <- struct{}{}:
		defer func() { <-c.reading }()
	case <-ctx.Done():
		return past{}, ctx.Err()
	}
	for page, err := range c.log.Subscribe(ctx, after) {
		if err != nil {
			return past{}, fmt.Errorf("webhooks: read the log after %d: %w", after, err)
		}
		p := past{after: after}
		for _, rec := range page[:min(len(page), pageSize)] {
			e := newEvent(rec)
			p.events = append(p.events, e)
			if p.bytes += e.size(); p.bytes > pageBytes {
				break
			}
		}
		return p, nil
	}
	return past{}, fmt.Errorf("webhooks: read the log after %d: %w", after, ctx.Err())
}
