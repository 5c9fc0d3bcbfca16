package eventstoretest

import (
	"context"
	"iter"
	"sync"

	"accountledger/eventstore"
)

// Faulty wraps store in one that fails on cue: for tests of what a user of a
// store does when it fails. Closing it closes store.
func Faulty(store eventstore.Store) *FaultyStore { return &FaultyStore{Store: store} }

// FaultyStore does what its Store does, but for the failures it was told of.
// Cues of one kind are used up in the order they were given, one by each call.
type FaultyStore struct {
	eventstore.Store

	mu      sync.Mutex // guards what follows
	appends []appendFault
	drops   []drop
}

type appendFault struct {
	err   error
	after bool
}

type drop struct {
	pages int
	err   error
}

// FailBefore makes an Append to come return err without having appended.
func (f *FaultyStore) FailBefore(err error) { f.cue(appendFault{err: err}) }

// FailAfter makes an Append to come append, and yet return err: what its
// caller sees when the answer is lost. What the Store itself refuses, it
// refuses with its own error.
func (f *FaultyStore) FailAfter(err error) { f.cue(appendFault{err, true}) }

func (f *FaultyStore) cue(a appendFault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.appends = append(f.appends, a)
}

// DropAfter makes a Subscribe to come yield so many pages, and then end with
// err.
func (f *FaultyStore) DropAfter(pages int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.drops = append(f.drops, drop{pages, err})
}

// Append is the Store's, unless it is to fail.
func (f *FaultyStore) Append(ctx context.Context, c eventstore.Commit) (eventstore.Receipt, error) {
	f.mu.Lock()
	var fault appendFault
	if len(f.appends) > 0 {
		fault, f.appends = f.appends[0], f.appends[1:]
	}
	f.mu.Unlock()
	if fault.err != nil && !fault.after {
		return eventstore.Receipt{}, fault.err
	}
	r, err := f.Store.Append(ctx, c)
	if err == nil && fault.err != nil {
		return eventstore.Receipt{}, fault.err
	}
	return r, err
}

// Subscribe is the Store's, unless it is to end early. A cue is taken when the
// pages are first asked for.
func (f *FaultyStore) Subscribe(ctx context.Context, after eventstore.Position) iter.Seq2[[]eventstore.Recorded, error] {
	return func(yield func([]eventstore.Recorded, error) bool) {
		f.mu.Lock()
		var cut drop
		if len(f.drops) > 0 {
			cut, f.drops = f.drops[0], f.drops[1:]
		}
		f.mu.Unlock()
		if cut.err == nil {
			f.Store.Subscribe(ctx, after)(yield)
			return
		}
		left := cut.pages
		if left <= 0 {
			yield(nil, cut.err)
			return
		}
		for page, err := range f.Store.Subscribe(ctx, after) {
			if !yield(page, err) || err != nil {
				return
			}
			if left--; left == 0 {
				yield(nil, cut.err)
				return
			}
		}
	}
}
