package eventstoretest

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"accountledger/eventstore"
)

func reclaimCases() []testCase {
	return []testCase{
		{"Reclaim/Replaces", reclaimReplaces},
		{"Reclaim/Waits", reclaimWaits},
		{"Reclaim/WaitEnds", reclaimWaitEnds},
		{"Reclaim/Transferred", reclaimTransferred},
		{"Reclaim/AllOrNone", reclaimAllOrNone},
		{"Reclaim/Again", reclaimAgain},
		{"Reclaim/Failed", reclaimFailed},
		{"Reclaim/ReadsMeanwhile", reclaimReadsMeanwhile},
		{"Reclaim/Reopen", reclaimReopen},
		{"ClaimsVersion", claimsVersion},
	}
}

// reclaim replaces all claims.
func (e *env) reclaim(s eventstore.Store, version int, claims ...eventstore.Claim) {
	e.Helper()
	if err := s.Reclaim(e.ctx(), version, sequence(nil, claims...)); err != nil {
		e.Fatalf("Reclaim of %d claims = %v, want success", len(claims), err)
	}
}

// sequence yields claims, and then failure if it is not nil.
func sequence(failure error, claims ...eventstore.Claim) iter.Seq2[eventstore.Claim, error] {
	return func(yield func(eventstore.Claim, error) bool) {
		for _, k := range claims {
			if !yield(k, nil) {
				return
			}
		}
		if failure != nil {
			yield(eventstore.Claim{}, failure)
		}
	}
}

// free checks that nobody has the claims of keys, and takes them for owner.
func (e *env) free(s eventstore.Store, owner string, free ...string) {
	e.Helper()
	if _, err := s.Append(e.ctx(), claimCommit(owner, nil, free)); err != nil {
		e.Fatalf("taking the claims %v for %s = %v, want success", free, owner, err)
	}
}

// waiting gives a key to the first of owners and lets the others wait.
func waiting(key string, owners ...string) (claims []eventstore.Claim) {
	for _, owner := range owners {
		claims = append(claims, email(key, owner))
	}
	return claims
}

// reclaimReplaces checks that Reclaim replaces all claims, and changes no event.
func reclaimReplaces(e *env) {
	s := e.store()
	e.append(s, claimCommit("account-1", nil, keys("a", "b")))
	e.append(s, claimCommit("account-2", nil, keys("c")))
	before := e.audit(s)
	// account-9 has no events.
	e.reclaim(s, 7, email("b", "account-1"), email("c", "account-1"), email("d", "account-9"),
		eventstore.Claim{Kind: "username", Key: "b", Owner: "account-2"})
	e.same("the log", e.audit(s), before)
	e.heldBy(s, "b", "account-1", "account-2")
	e.heldBy(s, "c", "account-1", "account-2")
	e.heldBy(s, "d", "account-9", "account-1")
	c := write("account-3", eventstore.Any, 1)
	c.Claim = []eventstore.Claim{{Kind: "username", Key: "b", Owner: "account-3"}}
	if got := refused[*eventstore.ClaimError](e, s, c); got.Owner != "account-2" {
		e.Errorf("the username is held by %s, want account-2", got.Owner)
	}
	e.free(s, "account-3", "a")
	// From here on claims are as always.
	e.append(s, claimCommit("account-1", keys("b"), keys("b", "e")))
	e.append(s, claimCommit("account-1", keys("b"), nil))
	e.free(s, "account-2", "b")

	// More than a page, and an owner of many.
	var many []eventstore.Claim
	for i := range 3000 {
		many = append(many, email(fmt.Sprint("key ", i), fmt.Sprint("account-", i%700)))
	}
	e.reclaim(s, 8, many...)
	for _, i := range []int{0, 1, 511, 512, 1023, 1024, 2999} {
		e.heldBy(s, many[i].Key, many[i].Owner, "account-x")
	}
	e.free(s, "account-x", "b", "c", "d")
	e.reclaim(s, 9)
	e.free(s, "account-y", "b", "key 0", "key 2999")
}

// reclaimWaits checks that the first of several owners holds a key, that the
// others get it in their order as it is released, and that until then they have
// no more rights than any other owner.
func reclaimWaits(e *env) {
	s := e.store()
	e.append(s, write("account-1", eventstore.NoStream, 1))
	// account-2 waits once, however often it is named; account-1 does not wait for itself.
	e.reclaim(s, 2, waiting("a", "account-3", "account-1", "account-3", "account-2", "account-1")...)
	e.heldBy(s, "a", "account-3", "account-1")
	e.heldBy(s, "a", "account-3", "account-4")
	e.append(s, claimCommit("account-3", keys("a"), nil))
	e.heldBy(s, "a", "account-1", "account-2")
	e.heldBy(s, "a", "account-1", "account-3")
	e.append(s, claimCommit("account-1", keys("a"), nil))
	e.heldBy(s, "a", "account-2", "account-1")
	e.append(s, claimCommit("account-2", nil, keys("a"))) // which it holds
	e.append(s, claimCommit("account-2", keys("a"), nil))
	e.free(s, "account-4", "a")
}

// reclaimWaitEnds checks that a release ends the wait of its owner, and of
// nobody else.
func reclaimWaitEnds(e *env) {
	s := e.store()
	e.reclaim(s, 2, append(waiting("a", "account-1", "account-2", "account-3"), waiting("b", "account-1", "account-2")...)...)
	e.append(s, claimCommit("account-4", keys("a"), nil)) // it neither holds nor waits
	e.append(s, claimCommit("account-2", keys("a"), nil))
	e.heldBy(s, "a", "account-1", "account-2")
	e.append(s, claimCommit("account-1", keys("a"), nil))
	e.heldBy(s, "a", "account-3", "account-2")
	e.append(s, claimCommit("account-3", keys("a"), nil))
	e.free(s, "account-2", "a")
	e.append(s, claimCommit("account-1", keys("b"), nil)) // another key is not affected
	e.heldBy(s, "b", "account-2", "account-1")

	// The holder and the one who waits can release in one commit.
	e.reclaim(s, 3, waiting("a", "account-1", "account-2", "account-3")...)
	c := write("account-1", eventstore.Any, 1)
	c.Release = waiting("a", "account-1", "account-2")
	e.append(s, c)
	e.heldBy(s, "a", "account-3", "account-1")
}

// reclaimTransferred checks that a commit can pass on a claim that others wait
// for: those get it only if the commit leaves it free.
func reclaimTransferred(e *env) {
	s := e.store()
	pass := func(key, from, to string) {
		e.Helper()
		c := write(to, eventstore.Any, 1)
		c.Release, c.Claim = []eventstore.Claim{email(key, from)}, []eventstore.Claim{email(key, to)}
		e.append(s, c)
	}
	e.reclaim(s, 2, append(waiting("a", "account-1", "account-2", "account-3"), waiting("b", "account-1", "account-2", "account-3")...)...)
	e.append(s, claimCommit("account-1", keys("a"), keys("a"))) // it keeps it
	e.heldBy(s, "a", "account-1", "account-2")
	pass("a", "account-1", "account-4")
	e.heldBy(s, "a", "account-4", "account-1")
	e.append(s, claimCommit("account-4", keys("a"), nil))
	e.heldBy(s, "a", "account-2", "account-4")

	// One who waited and takes the claim waits no more.
	pass("b", "account-1", "account-3")
	e.heldBy(s, "b", "account-3", "account-2")
	e.append(s, claimCommit("account-3", keys("b"), nil))
	e.heldBy(s, "b", "account-2", "account-3")
	e.append(s, claimCommit("account-2", keys("b"), nil))
	e.free(s, "account-5", "b")
}

// reclaimAllOrNone checks that a refused commit promotes nobody and ends no wait.
func reclaimAllOrNone(e *env) {
	s := e.store()
	e.reclaim(s, 2, append(waiting("a", "account-1", "account-2", "account-3"), email("b", "account-9"))...)
	// Whoever waits and releases cannot claim what another holds.
	refused[*eventstore.ClaimError](e, s, claimCommit("account-2", keys("a"), keys("a")))
	refused[*eventstore.ClaimError](e, s, claimCommit("account-2", keys("a"), keys("b")))
	refused[*eventstore.ClaimError](e, s, claimCommit("account-1", keys("a"), keys("b")))
	c := claimCommit("account-1", keys("a"), nil)
	c.Writes[0].Expected = 7
	refused[*eventstore.ConflictError](e, s, c)
	e.heldBy(s, "a", "account-1", "account-2")
	e.append(s, claimCommit("account-1", keys("a"), nil))
	e.heldBy(s, "a", "account-2", "account-1")
	e.append(s, claimCommit("account-2", keys("a"), nil))
	e.heldBy(s, "a", "account-3", "account-1")
}

// reclaimAgain checks that Reclaim also replaces the claims that wait.
func reclaimAgain(e *env) {
	s := e.store()
	e.reclaim(s, 2, append(waiting("a", "account-1", "account-2"), waiting("b", "account-1", "account-2")...)...)
	e.reclaim(s, 3, append(waiting("a", "account-3", "account-1"), email("b", "account-1"))...)
	e.heldBy(s, "a", "account-3", "account-2")
	e.append(s, claimCommit("account-3", keys("a"), nil))
	e.heldBy(s, "a", "account-1", "account-2")
	e.append(s, claimCommit("account-1", keys("a", "b"), nil))
	e.free(s, "account-4", "a", "b")
	// The same version again replaces them as well.
	e.reclaim(s, 3, waiting("a", "account-5", "account-4")...)
	e.heldBy(s, "a", "account-5", "account-4")
	e.free(s, "account-1", "b")
}

// reclaimFailed checks that Reclaim returns the error of its claims, and that it
// then changes nothing.
func reclaimFailed(e *env) {
	s := e.store()
	e.append(s, write("account-1", eventstore.NoStream, 1))
	e.reclaim(s, 2, append(waiting("a", "account-1", "account-2", "account-3"), email("b", "account-1"))...)
	unchanged := func(what string) {
		e.Helper()
		if version, err := s.ClaimsVersion(e.ctx()); version != 2 || err != nil {
			e.Errorf("after %s, ClaimsVersion = %d, %v, want 2", what, version, err)
		}
		e.heldBy(s, "a", "account-1", "account-2")
		e.heldBy(s, "b", "account-1", "account-2")
	}
	var others []eventstore.Claim
	for i := range 2000 {
		others = append(others, email(fmt.Sprint("key ", i), "account-4"), email("a", fmt.Sprint("account-", i)))
	}
	failure := errors.New("the events cannot be read")
	for _, n := range []int{0, 1, len(others)} {
		if err := s.Reclaim(e.ctx(), 3, sequence(failure, others[:n]...)); !errors.Is(err, failure) {
			e.Fatalf("Reclaim of claims that fail after %d = %v, want their error", n, err)
		}
		unchanged(fmt.Sprintf("a failure after %d claims", n))
	}
	ctx, cancel := context.WithCancel(e.Context())
	canceled := func(yield func(eventstore.Claim, error) bool) {
		for _, k := range others {
			cancel()
			if !yield(k, nil) {
				return
			}
		}
		yield(eventstore.Claim{}, ctx.Err())
	}
	if err := s.Reclaim(ctx, 3, canceled); !errors.Is(err, context.Canceled) {
		e.Fatalf("Reclaim, canceled at its first claim = %v, want context.Canceled", err)
	}
	unchanged("a cancellation")
	e.append(s, claimCommit("account-1", keys("a"), nil))
	e.heldBy(s, "a", "account-2", "account-1")
	e.append(s, claimCommit("account-2", keys("a"), nil))
	e.heldBy(s, "a", "account-3", "account-1")
	e.free(s, "account-5", others[0].Key)
}

// reclaimReadsMeanwhile checks that whoever makes the claims can read the log.
func reclaimReadsMeanwhile(e *env) {
	s := e.store()
	e.append(s, write("account-1", eventstore.NoStream, 3))
	e.append(s, write("account-2", eventstore.NoStream, 3))
	read := func(yield func(eventstore.Claim, error) bool) {
		for _, stream := range []string{"account-1", "account-2"} {
			if head, err := s.Head(e.ctx()); head != 6 || err != nil {
				e.Errorf("Head during Reclaim = %d, %v, want 6", head, err)
			}
			for rec, err := range s.ReadStream(e.ctx(), stream, 0) {
				if !yield(email(fmt.Sprint(stream, " ", rec.Revision), stream), err) {
					return
				}
			}
		}
	}
	if err := s.Reclaim(e.ctx(), 2, read); err != nil {
		e.Fatalf("Reclaim with claims that read the log = %v", err)
	}
	e.heldBy(s, "account-1 0", "account-1", "account-3")
	e.heldBy(s, "account-2 2", "account-2", "account-3")
}

// reclaimReopen checks that a reopened log has the same holders, and the same
// owners waiting in the same order.
func reclaimReopen(e *env) {
	dir := e.TempDir()
	s, closeIt := e.open(dir)
	e.reclaim(s, 2, waiting("a", "account-3", "account-4", "account-2", "account-1")...)
	closeIt()
	s, closeIt = e.open(dir)
	e.heldBy(s, "a", "account-3", "account-1")
	e.append(s, claimCommit("account-3", keys("a"), nil))
	e.append(s, claimCommit("account-2", keys("a"), nil))
	closeIt()
	s, _ = e.open(dir)
	e.heldBy(s, "a", "account-4", "account-2")
	e.append(s, claimCommit("account-4", keys("a"), nil))
	e.heldBy(s, "a", "account-1", "account-2")
	e.append(s, claimCommit("account-1", keys("a"), nil))
	e.free(s, "account-2", "a")
}

// claimsVersion checks that ClaimsVersion returns the version of the last
// Reclaim, also of a reopened log.
func claimsVersion(e *env) {
	dir := e.TempDir()
	s, closeIt := e.open(dir)
	check := func(want int) {
		e.Helper()
		if got, err := s.ClaimsVersion(e.ctx()); got != want || err != nil {
			e.Errorf("ClaimsVersion = %d, %v, want %d", got, err, want)
		}
	}
	created, err := s.ClaimsVersion(e.ctx())
	if err != nil || created < 0 {
		e.Fatalf("ClaimsVersion of a new store = %d, %v", created, err)
	}
	e.append(s, claimCommit("account-1", nil, keys("a")))
	check(created)
	closeIt()
	s, closeIt = e.open(dir)
	check(created)
	e.reclaim(s, created+3, email("a", "account-1"))
	check(created + 3)
	closeIt()
	s, _ = e.open(dir)
	check(created + 3)
	e.reclaim(s, created+4)
	check(created + 4)
}
