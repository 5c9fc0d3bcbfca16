package eventstoretest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"accountledger/eventstore"
)

// byStream checks that a StreamReader yields each stream completely, up to the
// position, in the same order on each call, and that the caller can stop or
// cancel it.
func byStream(e *env) {
	s := e.store()
	log, ok := s.(eventstore.StreamReader)
	if !ok {
		return // optional
	}
	want := map[string][]eventstore.Recorded{}
	add := func(stream string, n int) eventstore.Position {
		at := eventstore.Revision(len(want[stream]) - 1)
		c := write(stream, at, n)
		r := e.append(s, c)
		want[stream] = append(want[stream], expect(c, r, map[string]eventstore.Revision{stream: at})...)
		return r.Last
	}
	// Interleave the streams; in total and in one stream, exceed a page.
	for i := range 60 {
		add(fmt.Sprint("account-", i), 2)
	}
	add("account-7", 1000)
	for i := range 60 {
		add(fmt.Sprint("account-", i), 1)
	}
	middle := e.head(s)
	add("account-3", 2)
	last := add("account-late", 1)

	for _, to := range []eventstore.Position{0, 1, middle, last, last + 100} {
		got, order := e.byStream(log, to)
		for stream, all := range want {
			upTo := slices.DeleteFunc(slices.Clone(all), func(rec eventstore.Recorded) bool { return rec.Position > to })
			e.same(fmt.Sprintf("stream %s up to %d", stream, to), got[stream], upTo)
			delete(got, stream)
		}
		if len(got) > 0 {
			e.Errorf("ByStream up to %d yielded unexpected streams: %v", to, slices.Collect(maps.Keys(got)))
		}
		if !slices.IsSortedFunc(order, func(a, b string) int { return cmp.Compare(want[a][0].Position, want[b][0].Position) }) {
			e.Errorf("ByStream up to %d yielded the streams in another order than that of their creation", to)
		}
		if _, again := e.byStream(log, to); !slices.Equal(again, order) {
			e.Errorf("ByStream up to %d yielded the streams in a different order the second time", to)
		}
	}
	for range log.ByStream(e.ctx(), last) {
		break // must leave nothing locked
	}
	add("account-late", 1)

	ctx, cancel := context.WithCancel(e.Context())
	var err error
	for _, err = range log.ByStream(ctx, last) {
		cancel()
	}
	cancel()
	if !errors.Is(err, context.Canceled) {
		e.Errorf("ByStream canceled at its first page ended with %v, want context.Canceled", err)
	}
}

// byStream reads the log with ByStream and checks that each stream is yielded
// once.
func (e *env) byStream(log eventstore.StreamReader, to eventstore.Position) (streams map[string][]eventstore.Recorded, order []string) {
	e.Helper()
	streams = map[string][]eventstore.Recorded{}
	for page, err := range log.ByStream(e.ctx(), to) {
		if err != nil {
			e.Fatalf("ByStream up to %d = %v", to, err)
		}
		if len(page) == 0 {
			e.Fatalf("ByStream up to %d yielded an empty page", to)
		}
		for _, rec := range page {
			if len(order) == 0 || order[len(order)-1] != rec.Stream {
				if streams[rec.Stream] != nil {
					e.Fatalf("ByStream up to %d yielded stream %s twice", to, rec.Stream)
				}
				order = append(order, rec.Stream)
			}
			streams[rec.Stream] = append(streams[rec.Stream], rec)
		}
	}
	return streams, order
}
