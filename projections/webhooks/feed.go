package webhooks

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"accountledger/eventstore"
)

// Bounds of what is held in memory of the log.
const (
	pageSize    = 256      // events a reader gets at once
	pageBytes   = 4 << 20  // in a page of history, and the last event
	recentSize  = 2048     // events at the log's end that are shared
	recentBytes = 32 << 20 // and their bytes
	historians  = 4        // readers that read history at the same time
	pastBytes   = 1 << 20  // of pages of history that are shared; opened they are several times that
)

// feed gives the events of the log to many readers. Those at its end share
// what one subscription brings, opened once. Those behind read the file, a few
// at a time, and share the pages last read: endpoints that were down together,
// or were added together, are about at the same place.
type feed struct {
	log     eventstore.Store
	history chan struct{} // tokens to read history

	mu     sync.Mutex
	recent []*slot // (first, last]
	first  eventstore.Position
	last   eventstore.Position
	bytes  int
	more   chan struct{} // closed when last grows

	past    []past // pages of history, the one used last first
	reading map[eventstore.Position]chan struct{}
}

// past is the page of history right after a position.
type past struct {
	after eventstore.Position
	slots []*slot
	bytes int
}

func newFeed(log eventstore.Store, after eventstore.Position) *feed {
	return &feed{log: log, history: make(chan struct{}, historians), first: after, last: after, more: make(chan struct{}),
		reading: map[eventstore.Position]chan struct{}{}}
}

// push brings the next page of the log.
func (f *feed) push(page []eventstore.Recorded) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, rec := range page {
		s := newSlot(rec)
		f.recent = append(f.recent, s)
		f.bytes += s.size()
		f.last = rec.Position
	}
	drop := 0
	for len(f.recent)-drop > recentSize || f.bytes > recentBytes {
		f.bytes -= f.recent[drop].size()
		drop++
	}
	clear(f.recent[:drop])
	f.recent = f.recent[drop:]
	f.first = f.last - eventstore.Position(len(f.recent))
	close(f.more)
	f.more = make(chan struct{})
}

// next returns the events right after a position, at least one; it waits for
// it. The error is ctx's or the log's.
func (f *feed) next(ctx context.Context, after eventstore.Position) ([]*slot, error) {
	for {
		f.mu.Lock()
		first, last, more := f.first, f.last, f.more
		if after >= first && after < last {
			page := f.recent[after-first:]
			page = append([]*slot(nil), page[:min(len(page), pageSize)]...)
			f.mu.Unlock()
			return page, nil
		}
		f.mu.Unlock()
		if after < first {
			return f.read(ctx, after)
		}
		select {
		case <-more:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// read returns a page of history, read now or lately.
func (f *feed) read(ctx context.Context, after eventstore.Position) ([]*slot, error) {
	for {
		f.mu.Lock()
		if slots := f.known(after); slots != nil {
			f.mu.Unlock()
			return slots, nil
		}
		other := f.reading[after]
		mine := make(chan struct{})
		if other == nil {
			f.reading[after] = mine
		}
		f.mu.Unlock()
		if other == nil {
			p, err := f.load(ctx, after)
			f.mu.Lock()
			delete(f.reading, after)
			close(mine)
			if err == nil {
				f.keep(p)
			}
			f.mu.Unlock()
			return p.slots, err
		}
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// known is the page after a position, if it is kept.
func (f *feed) known(after eventstore.Position) []*slot {
	for i, p := range f.past {
		if p.after == after {
			copy(f.past[1:], f.past[:i])
			f.past[0] = p
			return p.slots
		}
	}
	return nil
}

func (f *feed) keep(p past) {
	f.past = slices.Insert(f.past, 0, p)
	bytes := 0
	for i, p := range f.past {
		if bytes += p.bytes; bytes > pastBytes && i > 0 {
			clear(f.past[i:])
			f.past = f.past[:i]
			return
		}
	}
}

// load reads a page of history from the file.
func (f *feed) load(ctx context.Context, after eventstore.Position) (past, error) {
	select {
	case f.history <- struct{}{}:
		defer func() { <-f.history }()
	case <-ctx.Done():
		return past{}, ctx.Err()
	}
	for page, err := range f.log.Subscribe(ctx, after) {
		if err != nil {
			return past{}, fmt.Errorf("webhooks: read the log after %d: %w", after, err)
		}
		p := past{after: after}
		for _, rec := range page[:min(len(page), pageSize)] {
			s := newSlot(rec)
			p.slots = append(p.slots, s)
			if p.bytes += s.size(); p.bytes > pageBytes {
				break
			}
		}
		return p, nil
	}
	return past{}, fmt.Errorf("webhooks: read the log after %d: %w", after, ctx.Err())
}
