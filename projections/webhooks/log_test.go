package webhooks

import (
	"context"
	"errors"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"accountledger/domain"
	"accountledger/eventstore"
)

// memoryLog is a log in memory. It does no I/O, so it works inside a synctest
// bubble.
type memoryLog struct {
	mu      sync.Mutex
	records []eventstore.Recorded
	streams map[string][]int
	more    chan struct{}
	fail    error // returned by every read while set

	tampered map[string]bool // streams that cannot be proven
}

func newMemoryLog() *memoryLog {
	return &memoryLog{streams: map[string][]int{}, more: make(chan struct{})}
}

func (l *memoryLog) Append(ctx context.Context, c eventstore.Commit) (eventstore.Receipt, error) {
	if err := c.Check(); err != nil {
		return eventstore.Receipt{}, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, w := range c.Writes {
		if actual := eventstore.Revision(len(l.streams[w.Stream]) - 1); w.Expected != eventstore.Any && w.Expected != actual {
			return eventstore.Receipt{}, &eventstore.ConflictError{Stream: w.Stream, Expected: w.Expected, Actual: actual}
		}
	}
	r := eventstore.Receipt{First: eventstore.Position(len(l.records) + 1), Time: time.Now().UTC().Truncate(time.Microsecond)}
	for _, w := range c.Writes {
		for _, e := range w.Events {
			l.streams[w.Stream] = append(l.streams[w.Stream], len(l.records))
			l.records = append(l.records, eventstore.Recorded{Event: e, Stream: w.Stream, Time: r.Time,
				Revision: eventstore.Revision(len(l.streams[w.Stream]) - 1), Position: eventstore.Position(len(l.records) + 1)})
		}
	}
	r.Last = eventstore.Position(len(l.records))
	close(l.more)
	l.more = make(chan struct{})
	return r, nil
}

// reseal replaces the sealed part of the event at a position and returns the
// previous one. Readers keep the records that they have.
func (l *memoryLog) reseal(p eventstore.Position, sealed []byte) (before []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.records = slices.Clone(l.records)
	before, l.records[p-1].Sealed = l.records[p-1].Sealed, sealed
	return before
}

func (l *memoryLog) ReadStream(ctx context.Context, stream string, from eventstore.Revision) iter.Seq2[eventstore.Recorded, error] {
	l.mu.Lock()
	defer l.mu.Unlock()
	all, err := l.streams[stream], l.fail
	records := l.records
	return func(yield func(eventstore.Recorded, error) bool) {
		if err != nil {
			yield(eventstore.Recorded{}, err)
			return
		}
		for _, i := range all[min(int(from), len(all)):] {
			if !yield(records[i], nil) {
				return
			}
		}
	}
}

func (l *memoryLog) ReadProven(ctx context.Context, stream string, from eventstore.Revision) iter.Seq2[eventstore.Recorded, error] {
	l.mu.Lock()
	tampered := l.tampered[stream]
	l.mu.Unlock()
	if tampered {
		return func(yield func(eventstore.Recorded, error) bool) {
			yield(eventstore.Recorded{}, eventstore.ErrTampered)
		}
	}
	return l.ReadStream(ctx, stream, from)
}

// tamper makes a stream one that cannot be proven.
func (l *memoryLog) tamper(stream string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tampered = map[string]bool{stream: true}
}

// rollBack removes the events after a position.
func (l *memoryLog) rollBack(to eventstore.Position) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.records = slices.Clone(l.records[:to])
	l.streams = map[string][]int{}
	for i, rec := range l.records {
		l.streams[rec.Stream] = append(l.streams[rec.Stream], i)
	}
}

func (l *memoryLog) Streams(_ context.Context, prefix string) iter.Seq2[string, error] {
	l.mu.Lock()
	names := slices.Sorted(maps.Keys(l.streams))
	l.mu.Unlock()
	return func(yield func(string, error) bool) {
		for _, name := range names {
			if strings.HasPrefix(name, prefix) && !yield(name, nil) {
				return
			}
		}
	}
}

func (l *memoryLog) Prove(context.Context, eventstore.Position, func(done, total int64)) error {
	return nil
}

func (l *memoryLog) Reclaim(context.Context, int, iter.Seq2[eventstore.Claim, error]) error {
	return errors.ErrUnsupported
}

func (l *memoryLog) ClaimsVersion(context.Context) (int, error) { return domain.ClaimsVersion, nil }

func (l *memoryLog) Subscribe(ctx context.Context, after eventstore.Position) iter.Seq2[[]eventstore.Recorded, error] {
	return func(yield func([]eventstore.Recorded, error) bool) {
		for {
			l.mu.Lock()
			page, more, err := l.records[min(int(after), len(l.records)):], l.more, l.fail
			l.mu.Unlock()
			if err != nil {
				yield(nil, err)
				return
			}
			if len(page) > 0 {
				page = append([]eventstore.Recorded(nil), page[:min(len(page), 700)]...)
				after = page[len(page)-1].Position
				if !yield(page, nil) {
					return
				}
				clear(page) // the caller may use it only during the iteration
				continue
			}
			select {
			case <-more:
			case <-ctx.Done():
				yield(nil, ctx.Err())
				return
			}
		}
	}
}

func (l *memoryLog) Head(context.Context) (eventstore.Position, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return eventstore.Position(len(l.records)), nil
}

func (l *memoryLog) Erase(_ context.Context, key eventstore.KeyID, streams ...string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.records {
		if rec := &l.records[i]; rec.KeyID == key && slices.Contains(streams, rec.Stream) {
			rec.Sealed = nil
		}
	}
	return nil
}

func (l *memoryLog) Close() error { return nil }
