package eventstoretest

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"pgregory.net/rapid"

	"accountledger/eventstore"
)

// agreesWithModel compares a store with a model, a slice and a map, over random
// commits with conflicts and claims, and over reopening.
func agreesWithModel(e *env) {
	dir := e.TempDir()
	s, closeIt := e.open(dir)
	two := canWriteTwo(e, s)
	runs := 0
	rapid.Check(e.TB, func(t *rapid.T) {
		steps := rapid.SliceOfN(stepGen(two), 1, 12).Draw(t, "steps")
		// All runs share a store, because opening one takes longer than a run.
		// Each run uses different names, and positions relative to its start.
		runs++
		m := &model{prefix: fmt.Sprintf("run-%d-", runs), base: e.head(s), heads: map[string]eventstore.Revision{}, owners: map[string]string{}}
		for i, st := range steps {
			if st.Reopen {
				closeIt()
				s, closeIt = e.open(dir)
				continue
			}
			if err := m.step(e, s, st); err != nil {
				t.Fatalf("step %d, %+v: %v", i, st, err)
			}
		}
		if err := m.compare(e, s); err != nil {
			t.Fatal(err)
		}
	})
}

// step is a random append. Its terms do not depend on earlier steps, so that
// rapid can remove steps when it shrinks a failure.
type step struct {
	Reopen        bool
	Writes        []stepWrite
	Release, Take []stepClaim
}

type stepWrite struct {
	Stream  int // 0, 1 or 2
	Expect  string
	Events  int
	Expects eventstore.Revision // if Expect is "other"
}

type stepClaim struct{ Key, Owner int }

func stepGen(two bool) *rapid.Generator[step] {
	claims := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) stepClaim {
		return stepClaim{Key: rapid.IntRange(0, 2).Draw(t, "key"), Owner: rapid.IntRange(0, 2).Draw(t, "owner")}
	}), 0, 2)
	writes := 1
	if two {
		writes = 2
	}
	kinds := slices.Repeat([]string{"append"}, 24)
	kinds[len(kinds)-1] = "reopen"
	return rapid.Custom(func(t *rapid.T) step {
		if rapid.SampledFrom(kinds).Draw(t, "kind") == "reopen" {
			return step{Reopen: true}
		}
		st := step{Release: claims.Draw(t, "release"), Take: claims.Draw(t, "take")}
		first := rapid.IntRange(0, 2).Draw(t, "stream")
		for i := range rapid.IntRange(1, writes).Draw(t, "writes") {
			w := stepWrite{
				Stream: (first + i) % 3,
				// Mostly right, because otherwise the model would seldom grow.
				Expect: rapid.SampledFrom([]string{"right", "right", "right", "any", "none", "other"}).Draw(t, "expect"),
				Events: rapid.IntRange(1, 3).Draw(t, "events"),
			}
			if w.Expect == "other" {
				w.Expects = eventstore.Revision(rapid.IntRange(0, 6).Draw(t, "revision"))
			}
			st.Writes = append(st.Writes, w)
		}
		return st
	})
}

// model holds what the log must contain.
type model struct {
	prefix string              // of the names in this run
	base   eventstore.Position // head of the log at the start of this run
	log    []eventstore.Recorded
	heads  map[string]eventstore.Revision
	owners map[string]string // of claims, by key
}

func (m *model) stream(n int) string { return fmt.Sprintf("%saccount-%d", m.prefix, n) }

func (m *model) head(stream string) eventstore.Revision {
	if at, ok := m.heads[stream]; ok {
		return at
	}
	return eventstore.NoStream
}

func (m *model) claim(c stepClaim) eventstore.Claim {
	return email(fmt.Sprintf("%s%d", m.prefix, c.Key), m.stream(c.Owner))
}

// step appends to the store and the model, and returns an error if they differ.
func (m *model) step(e *env, s eventstore.Store, st step) error {
	var c eventstore.Commit
	for _, w := range st.Writes {
		expected := w.Expects
		switch w.Expect {
		case "right":
			expected = m.head(m.stream(w.Stream))
		case "any":
			expected = eventstore.Any
		case "none":
			expected = eventstore.NoStream
		}
		c.Writes = append(c.Writes, write(m.stream(w.Stream), expected, w.Events).Writes...)
	}
	for _, k := range st.Release {
		c.Release = append(c.Release, m.claim(k))
	}
	for _, k := range st.Take {
		c.Claim = append(c.Claim, m.claim(k))
	}

	refusals, owners := m.predict(c)
	r, err := s.Append(e.ctx(), c)
	if len(refusals) > 0 {
		return oneOf(err, refusals)
	}
	if err != nil {
		return fmt.Errorf("the append failed, but must succeed: %w", err)
	}
	if want := m.base + eventstore.Position(len(m.log)) + 1; r.First != want {
		return fmt.Errorf("the commit starts at position %d, want %d", r.First, want)
	}
	m.log = append(m.log, expect(c, r, m.heads)...)
	if last := m.log[len(m.log)-1].Position; r.Last != last {
		return fmt.Errorf("the commit ends at position %d, want %d", r.Last, last)
	}
	for _, w := range c.Writes {
		m.heads[w.Stream] = m.head(w.Stream) + eventstore.Revision(len(w.Events))
	}
	m.owners = owners
	return nil
}

// predict returns the errors with which a store may refuse c, and the owners of
// claims after c if there are none.
func (m *model) predict(c eventstore.Commit) (refusals []error, owners map[string]string) {
	for _, w := range c.Writes {
		if at := m.head(w.Stream); w.Expected != eventstore.Any && w.Expected != at {
			refusals = append(refusals, &eventstore.ConflictError{Stream: w.Stream, Expected: w.Expected, Actual: at})
		}
	}
	owners = maps.Clone(m.owners)
	for _, k := range c.Release {
		if owners[k.Key] == k.Owner {
			delete(owners, k.Key)
		}
	}
	for _, k := range c.Claim {
		if owner, held := owners[k.Key]; held && owner != k.Owner {
			refusals = append(refusals, &eventstore.ClaimError{Claim: k, Owner: owner})
			continue
		}
		owners[k.Key] = k.Owner
	}
	return refusals, owners
}

// oneOf returns an error unless got is one of the refusals.
func oneOf(got error, refusals []error) error {
	var conflict *eventstore.ConflictError
	var claim *eventstore.ClaimError
	for _, want := range refusals {
		switch want := want.(type) {
		case *eventstore.ConflictError:
			if errors.As(got, &conflict) && *conflict == *want {
				return nil
			}
		case *eventstore.ClaimError:
			if errors.As(got, &claim) && *claim == *want {
				return nil
			}
		}
	}
	return fmt.Errorf("the append returned %v, want one of: %v", got, errors.Join(refusals...))
}

// compare returns an error if the log, a stream or the owner of a claim differs
// from the model. It finds owners by claiming each key for another stream.
func (m *model) compare(e *env, s eventstore.Store) error {
	if err := compare(e.log(s, m.base), m.log); err != nil {
		return fmt.Errorf("the log: %w", err)
	}
	for n := range 3 {
		name := m.stream(n)
		want := slices.DeleteFunc(slices.Clone(m.log), func(r eventstore.Recorded) bool { return r.Stream != name })
		if err := compare(e.stream(s, name, 0), want); err != nil {
			return fmt.Errorf("stream %s: %w", name, err)
		}
	}
	var free []string
	for n := range 3 {
		k := m.claim(stepClaim{Key: n})
		if _, held := m.owners[k.Key]; !held {
			free = append(free, k.Key)
			continue
		}
		probe := claimCommit(m.prefix+"probe", nil, keys(k.Key))
		_, err := s.Append(e.ctx(), probe)
		if err := oneOf(err, []error{&eventstore.ClaimError{Claim: probe.Claim[0], Owner: m.owners[k.Key]}}); err != nil {
			return err
		}
	}
	if _, err := s.Append(e.ctx(), claimCommit(m.prefix+"probe", nil, free)); err != nil {
		return fmt.Errorf("the claims %s are not free: %w", strings.Join(free, ", "), err)
	}
	return nil
}
