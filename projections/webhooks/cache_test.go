package webhooks

import (
	"context"
	"iter"
	"sync"
	"sync/atomic"
	"testing"

	"accountledger/eventstore"
)

// countedLog counts reads.
type countedLog struct {
	*memoryLog
	reads atomic.Int64
}

func (l *countedLog) Subscribe(ctx context.Context, after eventstore.Position) iter.Seq2[[]eventstore.Recorded, error] {
	l.reads.Add(1)
	return l.memoryLog.Subscribe(ctx, after)
}

// Readers at the same place of history share its pages, whichever reads first, and
// the cache keeps a bounded number of bytes of them.
func TestHistoryIsShared(t *testing.T) {
	t.Parallel()
	const pages, readers = 40, 10
	log := &countedLog{memoryLog: newMemoryLog()}
	for range pages * pageSize / 4 {
		c := eventstore.Commit{Writes: []eventstore.Write{{Stream: "account-a", Expected: eventstore.Any}}}
		for range 4 {
			c.Writes[0].Events = append(c.Writes[0].Events, eventstore.Event{ID: [16]byte{1}, Type: "test", Clear: make([]byte, 1<<10)})
		}
		if _, err := log.Append(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	f := newCache(log, pages*pageSize)
	starts := make([]sync.WaitGroup, pages+1) // keeps the readers at about the same place
	for i := range starts {
		starts[i].Add(readers)
	}
	var reading sync.WaitGroup
	for range readers {
		reading.Go(func() {
			for at := eventstore.Position(0); at < pages*pageSize; {
				starts[at/pageSize].Done()
				starts[at/pageSize].Wait()
				page, err := f.next(t.Context(), at)
				if err != nil || len(page) == 0 {
					t.Errorf("after %d: %d events, %v", at, len(page), err)
					return
				}
				for _, s := range page {
					if at++; s.rec.Position != at {
						t.Errorf("position %d, want %d", s.rec.Position, at)
						return
					}
				}
			}
		})
	}
	reading.Wait()
	if n := log.reads.Load(); n != pages {
		t.Errorf("the log was read %d times for %d pages", n, pages)
	}
	kept := 0
	for _, p := range f.past {
		kept += p.bytes
	}
	if kept == 0 || kept > pastBytes {
		t.Errorf("%d bytes of history are kept, want some and at most %d", kept, pastBytes)
	}
}
