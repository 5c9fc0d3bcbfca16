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
		if m.bug == "by stream in the order of the log" {
			yield(slices.Clone(m.log), nil)
			return
		}
		pages, order := map[string][]eventstore.Recorded{}, []string(nil)
		for _, rec := range m.log {
			if rec.Position > to && m.bug != "by stream beyond the position" {
				continue
			}
			if pages[rec.Stream] == nil {
				order = append(order, rec.Stream)
			}
			if pages[rec.Stream] = append(pages[rec.Stream], rec); m.bug == "by stream a page each" && len(pages[rec.Stream]) > 512 {
				pages[rec.Stream] = pages[rec.Stream][:512]
			}
		}
		if m.bug == "by stream in any order" {
			rand.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		}
		for _, stream := range order {
			more := true
			m.mu.Unlock()
			if err := ctx.Err(); err == nil {
				more = yield(pages[stream], nil)
			} else if m.bug != "canceled read ends quietly" {
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
