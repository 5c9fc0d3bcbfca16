package eventstoretest

import (
	"context"
	"iter"
	"math/rand/v2"
	"slices"

	"accountledger/eventstore"
)

func (m *memory) ByStream(ctx context.Context, to eventstore.Position) iter.Seq2[[]eventstore.Recorded, error] {
	return func(yield func([]eventstore.Recorded, error) bool) {
		if err := m.closed(); err != nil {
			yield(nil, err)
			return
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.bug == "by stream yields the order of the log" {
			yield(slices.Clone(m.log), nil)
			return
		}
		pages, order := map[string][]eventstore.Recorded{}, []string(nil)
		for _, rec := range m.log {
			if rec.Position > to && m.bug != "by stream ignores the position" {
				continue
			}
			if pages[rec.Stream] == nil {
				order = append(order, rec.Stream)
			}
			if pages[rec.Stream] = append(pages[rec.Stream], rec); m.bug == "by stream yields one page per stream" && len(pages[rec.Stream]) > 512 {
				pages[rec.Stream] = pages[rec.Stream][:512]
			}
		}
		if m.bug == "by stream yields a random order" {
			rand.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		}
		for _, stream := range order {
			more := true
			m.mu.Unlock()
			if err := ctx.Err(); err == nil {
				more = yield(pages[stream], nil)
			} else if m.bug != "canceled read ends without error" {
				yield(nil, err)
				more = false
			}
			if m.bug == "stopped read keeps its lock" && !more {
				m.mu.Lock()
			}
			m.mu.Lock()
			if !more {
				return
			}
		}
	}
}
