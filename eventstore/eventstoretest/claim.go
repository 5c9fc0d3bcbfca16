package eventstoretest

import (
	"errors"
	"fmt"
	"sync"

	"accountledger/eventstore"
)

func claimCases() []promise {
	return []promise{
		{"Claims/Held", claimHeld},
		{"Claims/Released", claimReleased},
		{"Claims/ReleasedByAnother", claimReleasedByAnother},
		{"Claims/SameOwner", claimSameOwner},
		{"Claims/HandedOver", claimHandedOver},
		{"Claims/AllOrNone", claimAllOrNone},
		{"Claims/TwiceInOneCommit", claimTwice},
		{"Claims/OneWinner", claimOneWinner},
		{"Claims/OpaqueKeys", claimOpaqueKeys},
	}
}

func email(key, owner string) eventstore.Claim {
	return eventstore.Claim{Kind: "email", Key: key, Owner: owner}
}

// claiming is a commit of one event to owner that releases and takes keys for
// it.
func claiming(owner string, release, take []string) eventstore.Commit {
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

// heldBy checks that a key is another's by trying to take it.
func (e *env) heldBy(s eventstore.Store, key, holder, loser string) {
	e.Helper()
	got := refused[*eventstore.ClaimError](e, s, claiming(loser, nil, keys(key)))
	if want := (eventstore.ClaimError{Claim: email(key, loser), Owner: holder}); *got != want {
		e.Errorf("the claim error is %+v, want %+v", *got, want)
	}
}

// A claim has one owner, and whoever else asks is told which.
func claimHeld(e *env) {
	s := e.store()
	e.append(s, claiming("account-1", nil, keys("a", "b")))
	e.append(s, claiming("account-2", nil, keys("c")))
	e.heldBy(s, "a", "account-1", "account-2")
	e.heldBy(s, "b", "account-1", "account-3")
	e.heldBy(s, "c", "account-2", "account-1")
	// An owner need not be written to.
	c := write("account-1", eventstore.Any, 1)
	c.Claim = []eventstore.Claim{email("d", "account-4")}
	e.append(s, c)
	e.heldBy(s, "d", "account-4", "account-1")
}

// A claim given up is free: for another, and for who gave it up.
func claimReleased(e *env) {
	s := e.store()
	e.append(s, claiming("account-1", nil, keys("a")))
	e.append(s, claiming("account-1", keys("a"), nil))
	e.append(s, claiming("account-2", nil, keys("a")))
	e.heldBy(s, "a", "account-2", "account-1")
	e.append(s, claiming("account-2", keys("a"), nil))
	e.append(s, claiming("account-1", nil, keys("a")))
	e.heldBy(s, "a", "account-1", "account-2")
	// Given up twice is given up, and what nobody holds may be given up.
	e.append(s, claiming("account-1", keys("a", "a", "never"), nil))
	e.append(s, claiming("account-2", nil, keys("a")))
}

// What Owner does not hold, it cannot release.
func claimReleasedByAnother(e *env) {
	s := e.store()
	e.append(s, claiming("account-1", nil, keys("a")))
	e.append(s, claiming("account-2", keys("a"), nil))
	e.heldBy(s, "a", "account-1", "account-2")
	refused[*eventstore.ClaimError](e, s, claiming("account-2", keys("a"), keys("a")))
	e.heldBy(s, "a", "account-1", "account-2")
}

// A claim that Owner holds already may be taken again, and is one claim then.
func claimSameOwner(e *env) {
	s := e.store()
	e.append(s, claiming("account-1", nil, keys("a")))
	e.append(s, claiming("account-1", nil, keys("a", "a")))
	e.heldBy(s, "a", "account-1", "account-2")
	e.append(s, claiming("account-1", keys("a"), nil))
	e.append(s, claiming("account-2", nil, keys("a")))
}

// Claims are given up before others are taken, so that one commit can do both.
func claimHandedOver(e *env) {
	s := e.store()
	e.append(s, claiming("account-1", nil, keys("a", "b")))
	c := write("account-2", eventstore.Any, 1)
	c.Release = []eventstore.Claim{email("a", "account-1")}
	c.Claim = []eventstore.Claim{email("a", "account-2")}
	e.append(s, c)
	e.heldBy(s, "a", "account-2", "account-1")
	// Released and taken by the same owner is kept.
	e.append(s, claiming("account-1", keys("b"), keys("b")))
	e.heldBy(s, "b", "account-1", "account-2")
}

// Claims and events are taken together or not at all.
func claimAllOrNone(e *env) {
	s := e.store()
	e.append(s, claiming("account-1", nil, keys("a")))

	// One claim is held: no event, no other claim, no release.
	c := claiming("account-2", nil, keys("free", "a"))
	c.Release = []eventstore.Claim{email("a", "account-3")}
	refused[*eventstore.ClaimError](e, s, c)
	e.append(s, claiming("account-3", nil, keys("free")))

	// A revision is wrong: claims stay as they were.
	c = claiming("account-1", keys("a"), keys("new"))
	c.Writes[0].Expected = 7
	refused[*eventstore.ConflictError](e, s, c)
	e.heldBy(s, "a", "account-1", "account-2")
	e.append(s, claiming("account-2", nil, keys("new")))

	// A claim is held: what the same commit releases stays held.
	refused[*eventstore.ClaimError](e, s, claiming("account-1", keys("a"), keys("new")))
	e.heldBy(s, "a", "account-1", "account-3")
	if n := len(e.audit(s)); n != 3 {
		e.Errorf("the log has %d events, want 3", n)
	}
}

// One key cannot go to two owners in one commit.
func claimTwice(e *env) {
	s := e.store()
	c := write("account-1", eventstore.Any, 1)
	c.Claim = []eventstore.Claim{email("a", "account-1"), email("a", "account-2")}
	refused[*eventstore.ClaimError](e, s, c)
	e.append(s, claiming("account-3", nil, keys("a")))
}

// Of many who claim a key at the same time, each for its own stream, one wins.
func claimOneWinner(e *env) {
	s := e.store()
	const claimers = 16
	for round := range 5 {
		key := fmt.Sprintf("key %d", round)
		var winners []string
		told := map[string]bool{}
		var mu sync.Mutex
		together(claimers, func(i int) {
			owner := fmt.Sprintf("account-%d-%d", round, i)
			c := claiming(owner, nil, keys(key))
			c.Writes[0].Expected = eventstore.NoStream
			_, err := s.Append(e.ctx(), c)
			mu.Lock()
			defer mu.Unlock()
			var lost *eventstore.ClaimError
			switch {
			case err == nil:
				winners = append(winners, owner)
			case errors.As(err, &lost):
				told[lost.Owner] = true
			default:
				e.Errorf("Append = %v, want success or *ClaimError", err)
			}
		})
		if len(winners) != 1 || len(told) != 1 || !told[winners[0]] {
			e.Fatalf("%v won, the losers were told %v", winners, told)
		}
	}
	if n := len(e.audit(s)); n != 5 {
		e.Errorf("the log has %d events, want 5", n)
	}
}

// A key is bytes, not text: those that differ in anything are two.
func claimOpaqueKeys(e *env) {
	s := e.store()
	for i, key := range []string{"a", "A", "a ", "a\x00", "a\x00b", "\xff\xfe", "\xff\xff", "\xef\xbf\xbd", "ä", "a\u0308", "7", "7.0", "x'41'"} {
		owner := fmt.Sprintf("account-%d", i)
		e.append(s, claiming(owner, nil, keys(key)))
		e.heldBy(s, key, owner, "account-x")
	}
}
