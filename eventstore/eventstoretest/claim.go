package eventstoretest

import (
	"errors"
	"fmt"
	"sync"

	"accountledger/eventstore"
)

func claimCases() []testCase {
	return []testCase{
		{"Claims/Held", claimHeld},
		{"Claims/Released", claimReleased},
		{"Claims/ReleasedByAnother", claimReleasedByAnother},
		{"Claims/SameOwner", claimSameOwner},
		{"Claims/Transferred", claimTransferred},
		{"Claims/AllOrNone", claimAllOrNone},
		{"Claims/TwiceInOneCommit", claimTwice},
		{"Claims/OneWinner", claimOneWinner},
		{"Claims/OpaqueKeys", claimOpaqueKeys},
	}
}

func email(key, owner string) eventstore.Claim {
	return eventstore.Claim{Kind: "email", Key: key, Owner: owner}
}

// claimCommit returns a commit of one event to the stream owner, which releases
// and takes claims of that owner.
func claimCommit(owner string, release, take []string) eventstore.Commit {
	c := write(owner, eventstore.Any, 1)
	for _, key := range release {
		c.Release = append(c.Release, email(key, owner))
	}
	for _, key := range take {
		c.Claim = append(c.Claim, email(key, owner))
	}
	return c
}

func keys(k ...string) []string { return k }

// heldBy checks that holder has the claim of a key, by claiming it for loser.
func (e *env) heldBy(s eventstore.Store, key, holder, loser string) {
	e.Helper()
	got := refused[*eventstore.ClaimError](e, s, claimCommit(loser, nil, keys(key)))
	if want := (eventstore.ClaimError{Claim: email(key, loser), Owner: holder}); *got != want {
		e.Errorf("the claim error is %+v, want %+v", *got, want)
	}
}

// claimHeld checks that a claim has one owner, and that the error for any other
// claimant names it.
func claimHeld(e *env) {
	s := e.store()
	e.append(s, claimCommit("account-1", nil, keys("a", "b")))
	e.append(s, claimCommit("account-2", nil, keys("c")))
	e.heldBy(s, "a", "account-1", "account-2")
	e.heldBy(s, "b", "account-1", "account-3")
	e.heldBy(s, "c", "account-2", "account-1")
	// The commit need not write to the owner's stream.
	c := write("account-1", eventstore.Any, 1)
	c.Claim = []eventstore.Claim{email("d", "account-4")}
	e.append(s, c)
	e.heldBy(s, "d", "account-4", "account-1")
}

// claimReleased checks that a released claim is free for every owner, including
// the previous one.
func claimReleased(e *env) {
	s := e.store()
	e.append(s, claimCommit("account-1", nil, keys("a")))
	e.append(s, claimCommit("account-1", keys("a"), nil))
	e.append(s, claimCommit("account-2", nil, keys("a")))
	e.heldBy(s, "a", "account-2", "account-1")
	e.append(s, claimCommit("account-2", keys("a"), nil))
	e.append(s, claimCommit("account-1", nil, keys("a")))
	e.heldBy(s, "a", "account-1", "account-2")
	// Releasing a claim twice, or a claim that has no owner, succeeds.
	e.append(s, claimCommit("account-1", keys("a", "a", "never"), nil))
	e.append(s, claimCommit("account-2", nil, keys("a")))
}

// claimReleasedByAnother checks that an owner cannot release another's claim.
func claimReleasedByAnother(e *env) {
	s := e.store()
	e.append(s, claimCommit("account-1", nil, keys("a")))
	e.append(s, claimCommit("account-2", keys("a"), nil))
	e.heldBy(s, "a", "account-1", "account-2")
	refused[*eventstore.ClaimError](e, s, claimCommit("account-2", keys("a"), keys("a")))
	e.heldBy(s, "a", "account-1", "account-2")
}

// claimSameOwner checks that an owner can take its own claim again, and that one
// release is then enough.
func claimSameOwner(e *env) {
	s := e.store()
	e.append(s, claimCommit("account-1", nil, keys("a")))
	e.append(s, claimCommit("account-1", nil, keys("a", "a")))
	e.heldBy(s, "a", "account-1", "account-2")
	e.append(s, claimCommit("account-1", keys("a"), nil))
	e.append(s, claimCommit("account-2", nil, keys("a")))
}

// claimTransferred checks that a commit releases claims before it takes others,
// so that one commit can transfer a claim.
func claimTransferred(e *env) {
	s := e.store()
	e.append(s, claimCommit("account-1", nil, keys("a", "b")))
	c := write("account-2", eventstore.Any, 1)
	c.Release = []eventstore.Claim{email("a", "account-1")}
	c.Claim = []eventstore.Claim{email("a", "account-2")}
	e.append(s, c)
	e.heldBy(s, "a", "account-2", "account-1")
	// An owner that releases and takes a claim in one commit keeps it.
	e.append(s, claimCommit("account-1", keys("b"), keys("b")))
	e.heldBy(s, "b", "account-1", "account-2")
}

// claimAllOrNone checks that claims and events are committed atomically.
func claimAllOrNone(e *env) {
	s := e.store()
	e.append(s, claimCommit("account-1", nil, keys("a")))

	// With one claim held by another owner, the commit appends no event, takes
	// no other claim and releases none.
	c := claimCommit("account-2", nil, keys("free", "a"))
	c.Release = []eventstore.Claim{email("a", "account-3")}
	refused[*eventstore.ClaimError](e, s, c)
	e.append(s, claimCommit("account-3", nil, keys("free")))

	// With a wrong revision, claims do not change.
	c = claimCommit("account-1", keys("a"), keys("new"))
	c.Writes[0].Expected = 7
	refused[*eventstore.ConflictError](e, s, c)
	e.heldBy(s, "a", "account-1", "account-2")
	e.append(s, claimCommit("account-2", nil, keys("new")))

	// With one claim held by another owner, the commit releases nothing.
	refused[*eventstore.ClaimError](e, s, claimCommit("account-1", keys("a"), keys("new")))
	e.heldBy(s, "a", "account-1", "account-3")
	if n := len(e.audit(s)); n != 3 {
		e.Errorf("the log has %d events, want 3", n)
	}
}

// claimTwice checks that one commit cannot give a key to two owners.
func claimTwice(e *env) {
	s := e.store()
	c := write("account-1", eventstore.Any, 1)
	c.Claim = []eventstore.Claim{email("a", "account-1"), email("a", "account-2")}
	refused[*eventstore.ClaimError](e, s, c)
	e.append(s, claimCommit("account-3", nil, keys("a")))
}

// claimOneWinner checks that of many concurrent claims of a key, each for a
// different stream, exactly one succeeds.
func claimOneWinner(e *env) {
	s := e.store()
	const claimers = 16
	for round := range 5 {
		key := fmt.Sprintf("key %d", round)
		var winners []string
		reported := map[string]bool{} // owners in claim errors
		var mu sync.Mutex
		concurrently(claimers, func(i int) {
			owner := fmt.Sprintf("account-%d-%d", round, i)
			c := claimCommit(owner, nil, keys(key))
			c.Writes[0].Expected = eventstore.NoStream
			_, err := s.Append(e.ctx(), c)
			mu.Lock()
			defer mu.Unlock()
			var lost *eventstore.ClaimError
			switch {
			case err == nil:
				winners = append(winners, owner)
			case errors.As(err, &lost):
				reported[lost.Owner] = true
			default:
				e.Errorf("Append = %v, want success or *ClaimError", err)
			}
		})
		if len(winners) != 1 || len(reported) != 1 || !reported[winners[0]] {
			e.Fatalf("%v succeeded, and the other claims were refused with the owners %v", winners, reported)
		}
	}
	if n := len(e.audit(s)); n != 5 {
		e.Errorf("the log has %d events, want 5", n)
	}
}

// claimOpaqueKeys checks that keys are opaque bytes: keys that differ in any
// byte are different.
func claimOpaqueKeys(e *env) {
	s := e.store()
	for i, key := range []string{"a", "A", "a ", "a\x00", "a\x00b", "\xff\xfe", "\xff\xff", "\xef\xbf\xbd", "ä", "a\u0308", "7", "7.0", "x'41'"} {
		owner := fmt.Sprintf("account-%d", i)
		e.append(s, claimCommit(owner, nil, keys(key)))
		e.heldBy(s, key, owner, "account-x")
	}
}
