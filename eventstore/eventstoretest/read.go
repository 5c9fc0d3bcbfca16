package eventstoretest

import (
	"context"
	"errors"
	"fmt"

	"accountledger/eventstore"
)

func readCases() []testCase {
	return []testCase{
		{"ReadStream/From", readFrom},
		{"ReadStream/Missing", readMissing},
		{"ReadStream/Snapshot", readSnapshot},
		{"ReadStream/Stopped", readStopped},
		{"ReadStream/Canceled", readCanceled},
	}
}

// readFrom checks that a stream is read in order from any revision, without
// events of other streams. The stream is longer than a backend's page.
func readFrom(e *env) {
	s := e.store()
	const n = 1500
	want := map[string][]eventstore.Recorded{}
	add := func(stream string, n int) {
		at := eventstore.Revision(len(want[stream]) - 1)
		c := write(stream, at, n)
		want[stream] = append(want[stream], expect(c, e.append(s, c), map[string]eventstore.Revision{stream: at})...)
	}
	// Names that a backend might confuse.
	others := []string{"account-1", "Account-10", "account-10 ", "account-1_", "account-1%", "account-100"}
	add("account-10", n/2)
	for _, other := range others {
		add(other, 2)
	}
	add("account-10", n/2)
	for _, from := range []eventstore.Revision{0, 1, 2, n/2 - 1, n / 2, n - 2, n - 1, n, n + 1, 1 << 40} {
		e.same(fmt.Sprintf("the stream from %d", from), e.stream(s, "account-10", from), want["account-10"][min(from, n):])
	}
	for _, other := range others {
		e.same("stream "+other, e.stream(s, other, 0), want[other])
	}
}

// readMissing checks that a stream without events yields nothing, not even an
// error.
func readMissing(e *env) {
	s := e.store()
	for range 2 {
		for _, from := range []eventstore.Revision{0, 3} {
			if got := e.stream(s, "account-2", from); len(got) != 0 {
				e.Errorf("a stream without events yielded %d", len(got))
			}
		}
		// The same holds for a stream that only owns a claim.
		c := write("account-1", eventstore.Any, 1)
		c.Claim = []eventstore.Claim{email("a", "account-2")}
		e.append(s, c)
	}
	e.append(s, write("account-2", eventstore.NoStream, 1))
}

// readSnapshot checks that a read ends with the last event at the time of the
// call, although events are appended meanwhile.
func readSnapshot(e *env) {
	s := e.store()
	e.append(s, write("account-1", eventstore.NoStream, 1000))
	n := 0
	for _, err := range s.ReadStream(e.ctx(), "account-1", 0) {
		if err != nil {
			e.Fatalf("ReadStream = %v", err)
		}
		if n++; n == 1 || n == 900 {
			e.append(s, write("account-1", eventstore.Any, 5))
		}
	}
	if n != 1000 {
		e.Errorf("the read yielded %d events, want the 1000 at the time of the call", n)
	}
	if n := len(e.stream(s, "account-1", 0)); n != 1010 {
		e.Errorf("the next read yielded %d events, want 1010", n)
	}
}

// readStopped checks that a caller that stops iterating leaves nothing locked.
func readStopped(e *env) {
	s := e.store()
	e.append(s, write("account-1", eventstore.NoStream, 5))
	for range 50 {
		for rec, err := range s.ReadStream(e.ctx(), "account-1", 1) {
			if err != nil || rec.Revision != 1 {
				e.Fatalf("ReadStream = revision %d, %v, want 1", rec.Revision, err)
			}
			break
		}
		for page, err := range s.Subscribe(e.ctx(), 2) {
			if err != nil || page[0].Position != 3 {
				e.Fatalf("Subscribe = %v, want position 3", err)
			}
			break
		}
	}
	e.append(s, write("account-1", 4, 1))
	e.audit(s)
}

// readCanceled checks that a read ends with its context's error.
func readCanceled(e *env) {
	s := e.store()
	const n = 3000
	for range 3 {
		e.append(s, write("account-1", eventstore.Any, n/3))
	}
	for _, after := range []int{0, 1, 700} {
		ctx, cancel := context.WithCancel(e.Context())
		if after == 0 {
			cancel()
		}
		var last error
		read := 0
		for _, err := range s.ReadStream(ctx, "account-1", 0) {
			if last != nil {
				e.Fatalf("ReadStream continued after the error %v", last)
			}
			if last = err; err == nil {
				if read++; read == after {
					cancel()
				}
			}
		}
		cancel()
		if !errors.Is(last, context.Canceled) {
			e.Errorf("ReadStream, canceled after %d events, ended after %d with %v, want context.Canceled", after, read, last)
		}
	}
}

// head checks that Head returns the position of the last event immediately after
// its append.
func head(e *env) {
	s := e.store()
	if got := e.head(s); got != 0 {
		e.Errorf("the head of an empty log is %d, want 0", got)
	}
	for i := range 10 {
		r := e.append(s, write(fmt.Sprintf("account-%d", i%3), eventstore.Any, 1+i%4))
		if got := e.head(s); got != r.Last {
			e.Errorf("after an append up to position %d, the head is %d", r.Last, got)
		}
	}
	ctx, cancel := context.WithCancel(e.Context())
	cancel()
	if _, err := s.Head(ctx); err != nil && !errors.Is(err, context.Canceled) {
		e.Errorf("Head with a canceled context = %v", err)
	}
}

// closed checks that the methods of a closed store return ErrClosed.
func closed(e *env) {
	s, closeIt := e.open(e.TempDir())
	e.append(s, write("account-1", eventstore.NoStream, 1))
	closeIt()
	want := func(what string, err error) {
		if !errors.Is(err, eventstore.ErrClosed) {
			e.Errorf("%s of a closed store = %v, want ErrClosed", what, err)
		}
	}
	_, err := s.Append(e.ctx(), write("account-1", eventstore.Any, 1))
	want("Append", err)
	_, err = s.Head(e.ctx())
	want("Head", err)
	err = nil
	for _, err = range s.ReadStream(e.ctx(), "account-1", 0) {
		break
	}
	want("ReadStream", err)
	err = nil
	for _, err = range s.Subscribe(e.ctx(), 0) {
		break
	}
	want("Subscribe", err)
	err = nil
	for _, err = range s.ReadProven(e.ctx(), "account-1", 0) {
		break
	}
	want("ReadProven", err)
	err = nil
	for _, err = range s.Streams(e.ctx(), "") {
		break
	}
	want("Streams", err)
	want("Prove", s.Prove(e.ctx(), 1, nil))
	want("Reclaim", s.Reclaim(e.ctx(), 2, sequence(nil)))
	_, err = s.ClaimsVersion(e.ctx())
	want("ClaimsVersion", err)
}

// reopen checks that a reopened log has the same events, claims, revisions,
// positions and times.
func reopen(e *env) {
	dir := e.TempDir()
	var want []eventstore.Recorded
	at := map[string]eventstore.Revision{"account-1": eventstore.NoStream, "account-2": eventstore.NoStream}
	for round := range 4 {
		s, closeIt := e.open(dir)
		e.same("the reopened log", e.audit(s), want)
		if got := e.head(s); got != eventstore.Position(len(want)) {
			e.Errorf("the head is %d, want %d", got, len(want))
		}
		if round > 0 {
			e.heldBy(s, "kept", "account-1", "account-2")
			e.heldBy(s, fmt.Sprint("round ", round-1), "account-2", "account-1")
		}
		for stream := range at {
			c := eventstore.Commit{Writes: []eventstore.Write{{Stream: stream, Expected: at[stream], Events: []eventstore.Event{sealedEvent(), event()}}}}
			if stream == "account-1" {
				c.Claim = []eventstore.Claim{email("kept", stream)}
			} else {
				c.Claim = []eventstore.Claim{email(fmt.Sprint("round ", round), stream)}
				c.Release = []eventstore.Claim{email(fmt.Sprint("round ", round-1), stream)}
			}
			want = append(want, expect(c, e.append(s, c), at)...)
			at[stream] += 2
		}
		closeIt()
	}
}
