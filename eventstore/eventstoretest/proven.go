package eventstoretest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"accountledger/eventstore"
)

func provenCases() []testCase {
	return []testCase{
		{"ReadProven", readProven},
		{"Prove", prove},
		{"Streams/Prefix", streamsPrefix},
		{"Streams/Canceled", streamsCanceled},
	}
}

// readProven checks that ReadProven yields what ReadStream yields in a log that
// nobody has changed: of any stream, from any revision, also after an erasure
// and in a reopened log.
func readProven(e *env) {
	dir := e.TempDir()
	s, closeIt := e.open(dir)
	check := func() {
		e.Helper()
		for _, stream := range []string{"account-1", "account-2", "account-missing"} {
			for _, from := range []eventstore.Revision{0, 1, 255, 256, 699, 700, 1 << 40} {
				var got []eventstore.Recorded
				for rec, err := range s.ReadProven(e.ctx(), stream, from) {
					if err != nil {
						e.Fatalf("ReadProven of %s from %d = %v", stream, from, err)
					}
					got = append(got, rec)
				}
				e.same(fmt.Sprintf("the proven stream %s from %d", stream, from), got, e.stream(s, stream, from))
			}
		}
	}
	check()
	e.append(s, write("account-1", eventstore.NoStream, 1))
	check()
	sealed := eventstore.Commit{Writes: []eventstore.Write{{Stream: "account-2", Expected: eventstore.NoStream,
		Events: []eventstore.Event{sealedEvent(), event(), sealedEvent()}}}}
	e.append(s, sealed)
	e.append(s, write("account-1", 0, 699))
	check()
	if err := s.Erase(e.ctx(), sealed.Writes[0].Events[0].KeyID, "account-2"); err != nil {
		e.Fatalf("Erase = %v", err)
	}
	check()
	closeIt()
	s, _ = e.open(dir)
	check()

	for range s.ReadProven(e.ctx(), "account-1", 0) {
		break // must leave nothing locked
	}
	e.append(s, write("account-1", 699, 1))
	ctx, cancel := context.WithCancel(e.Context())
	cancel()
	var err error
	for _, err = range s.ReadProven(ctx, "account-1", 0) {
	}
	if !errors.Is(err, context.Canceled) {
		e.Errorf("a canceled ReadProven ended with %v, want context.Canceled", err)
	}
}

// prove checks that Prove accepts a log that nobody has changed, up to every
// position that Head returned, also after an erasure and in a reopened log. If
// it reports progress, that grows to the number of events.
func prove(e *env) {
	dir := e.TempDir()
	s, closeIt := e.open(dir)
	heads := []eventstore.Position{e.head(s)}
	check := func() {
		e.Helper()
		for _, to := range heads {
			var last int64
			err := s.Prove(e.ctx(), to, func(done, total int64) {
				if done < last || total != int64(to) || done > total {
					e.Errorf("Prove up to %d reports %d of %d after %d", to, done, total, last)
				}
				last = done
			})
			if err != nil || last != int64(to) {
				e.Fatalf("Prove up to %d = %v, after a progress of %d", to, err, last)
			}
		}
		if err := s.Prove(e.ctx(), heads[len(heads)-1], nil); err != nil {
			e.Errorf("Prove without progress = %v", err)
		}
	}
	check()
	sealed := eventstore.Commit{Writes: []eventstore.Write{{Stream: "account-1", Expected: eventstore.NoStream, Events: []eventstore.Event{sealedEvent()}}}}
	e.append(s, sealed)
	for _, n := range []int{1, 253, 2, 700} {
		heads = append(heads, e.head(s))
		e.append(s, write("account-2", eventstore.Any, n))
	}
	heads = append(heads, e.head(s))
	check()
	if err := s.Erase(e.ctx(), sealed.Writes[0].Events[0].KeyID, "account-1"); err != nil {
		e.Fatalf("Erase = %v", err)
	}
	check()
	closeIt()
	s, _ = e.open(dir)
	check()
	ctx, cancel := context.WithCancel(e.Context())
	cancel()
	if err := s.Prove(ctx, e.head(s), nil); !errors.Is(err, context.Canceled) {
		e.Errorf("a canceled Prove = %v, want context.Canceled", err)
	}
}

// streamsPrefix checks that Streams yields the streams that begin with a prefix,
// once each, in the order of their bytes. There are more than fit into a page.
func streamsPrefix(e *env) {
	s := e.store()
	names := []string{"account", "account-", "account-%", "account-_", "Account-1", "account-Z", "account-a", "account-ä", "account.", "accounu", "ledger", "z"}
	for i := range 1100 {
		names = append(names, fmt.Sprint("account-1", i))
	}
	// The order of the appends must not matter, so they begin in the middle.
	for i := range names {
		e.append(s, write(names[(i+500)%len(names)], eventstore.NoStream, 1+i%2))
	}
	slices.Sort(names)
	c := write("ledger", eventstore.Any, 1)
	c.Claim = []eventstore.Claim{email("a", "account-claims-only")}
	e.append(s, c)
	for _, prefix := range []string{"", "a", "account", "account-", "account-1", "account-10", "account-_", "account-%", "account-ä", "A", "z", "zz", "missing"} {
		want := slices.DeleteFunc(slices.Clone(names), func(name string) bool { return !strings.HasPrefix(name, prefix) })
		var got []string
		for name, err := range s.Streams(e.ctx(), prefix) {
			if err != nil {
				e.Fatalf("Streams with prefix %q = %v", prefix, err)
			}
			if name != "account-claims-only" { // which may be there
				got = append(got, name)
			}
		}
		if !slices.Equal(got, want) {
			e.Errorf("Streams with prefix %q yielded %d names, want %d, in order:\n got %.200q\nwant %.200q", prefix, len(got), len(want), got, want)
		}
	}
}

// streamsCanceled checks that a caller can stop or cancel Streams.
func streamsCanceled(e *env) {
	s := e.store()
	for i := range 1100 {
		e.append(s, write(fmt.Sprint("account-", i), eventstore.NoStream, 1))
	}
	for name, err := range s.Streams(e.ctx(), "account-") {
		if name != "account-0" || err != nil {
			e.Errorf("Streams begins with %q, %v, want account-0", name, err)
		}
		break // must leave nothing locked
	}
	e.append(s, write("account-0", 0, 1))
	ctx, cancel := context.WithCancel(e.Context())
	var err error
	n := 0
	for _, err = range s.Streams(ctx, "account-") {
		cancel()
		if err == nil {
			n++
		}
	}
	cancel()
	if !errors.Is(err, context.Canceled) {
		e.Errorf("Streams, canceled at its first name, ended after %d with %v, want context.Canceled", n, err)
	}
}
