package eventstoretest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"accountledger/eventstore"
)

// cancelAtRandom checks that an append whose context ends at a random moment is
// atomic: if it returned no error, the log contains all of it; if it returned
// the context's error, the log contains none of it, also after reopening.
func cancelAtRandom(e *env) {
	dir := e.TempDir()
	s, closeIt := e.open(dir)
	two := canWriteTwo(e, s)
	began := time.Now()
	const probes = 4
	for i := range probes {
		e.append(s, write("account-probe", eventstore.Revision(i-1), 1))
	}
	once := time.Since(began) / probes

	const writers, each = 8, 20
	outcomes := make([][each]error, writers)
	name := func(i, j int, side string) string { return fmt.Sprintf("account-%d-%d-%s", i, j, side) }
	concurrently(writers, func(i int) {
		for j := range each {
			c := claimCommit(name(i, j, "a"), nil, keys(name(i, j, "key")))
			c.Writes[0].Expected, c.Writes[0].Events = eventstore.NoStream, events(3)
			if two {
				c.Writes = append(c.Writes, write(name(i, j, "b"), eventstore.NoStream, 2).Writes[0])
			}
			// A random time, from before the append starts to after its usual end.
			ctx, cancel := context.WithTimeout(e.Context(), rand.N(3*once+time.Microsecond))
			_, err := s.Append(ctx, c)
			cancel()
			if err != nil && !errors.Is(err, ctx.Err()) {
				e.Errorf("Append = %v, want success or %v", err, ctx.Err())
			}
			outcomes[i][j] = err
		}
	})
	closeIt()
	s, _ = e.open(dir)
	e.audit(s)
	free := write("account-claims", eventstore.NoStream, 1)
	for i := range writers {
		for j, err := range outcomes[i] {
			a, b := len(e.stream(s, name(i, j, "a"), 0)), len(e.stream(s, name(i, j, "b"), 0))
			whole := a == 3 && (b == 2 || !two)
			switch {
			case err == nil && !whole:
				e.Errorf("an append that succeeded left %d and %d events", a, b)
			case err != nil && a+b > 0:
				e.Errorf("an append that returned %v left %d and %d events", err, a, b)
			case err == nil && j == 0:
				e.heldBy(s, name(i, j, "key"), name(i, j, "a"), "account-claims")
			case err != nil:
				free.Claim = append(free.Claim, email(name(i, j, "key"), "account-claims"))
			}
		}
	}
	e.append(s, free)
}

// canWriteTwo reports whether the backend can commit two writes atomically.
func canWriteTwo(e *env, s eventstore.Store) bool {
	_, err := s.Append(e.ctx(), twoWrites(write("account-two-a", eventstore.NoStream, 1).Writes[0], write("account-two-b", eventstore.NoStream, 1).Writes[0]))
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		e.Fatalf("Append to two streams = %v", err)
	}
	return err == nil
}
