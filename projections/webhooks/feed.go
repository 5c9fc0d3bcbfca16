package webhooks

import (
	"context"
	"fmt"
	"sync"

	"accountledger/eventstore"
)

// Bounds of what is held in memory of the log.
const (
	pageSize    = 512      // events a reader gets at once
	pageBytes   = 4 << 20  // in a page of history, and the last event
	recentSize  = 4096     // events at the log's end that are shared
	recentBytes = 32 << 20 // and their bytes
	historians  = 4        // readers that read history at the same time
)

// feed gives the events of the log to many readers. Those at its end share
// what one subscription brings, opened once; those behind read the file for
// themselves, a few at a time.
type feed struct {
	log     eventstore.Store
	history chan struct{} // tokens to read history

	mu     sync.Mutex
	recent []*slot // (first, last]
	first  eventstore.Position
	last   eventstore.Position
	bytes  int
	more   chan struct{} // closed when last grows
}

func newFeed(log eventstore.Store, after eventstore.Position) *feed {
	return &feed{log: log, history: make(chan struct{}, historians), first: after, last: after, more: make(chan struct{})}
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

// read reads a page of history.
func (f *feed) read(ctx context.Context, after eventstore.Position) ([]*slot, error) {
	select {
	case f.history <- struct{}{}:
		defer func() { <-f.history }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	for page, err := range f.log.Subscribe(ctx, after) {
		if err != nil {
			return nil, fmt.Errorf("webhooks: read the log after %d: %w", after, err)
		}
		var slots []*slot
		bytes := 0
		for _, rec := range page[:min(len(page), pageSize)] {
			slots = append(slots, newSlot(rec))
			if bytes += slots[len(slots)-1].size(); bytes > pageBytes {
				break
			}
		}
		return slots, nil
	}
	return nil, fmt.Errorf("webhooks: read the log after %d: %w", after, ctx.Err())
}
