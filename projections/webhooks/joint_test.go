package webhooks

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"

	"accountledger/domain"
	"accountledger/projections/webhooks/wire"
)

// order checks I2 and I9 at the receiver: when an event is tried, all earlier
// events of its accounts have arrived.
type order struct {
	w        *world
	arrived  map[string]bool
	patterns []string // the patterns of the webhook
}

// check returns what is wrong with trying an event now, and with its previous
// sequence.
func (o *order) check(g got) (wrong []string) {
	opener := opener{o.w.config.Codec, ledger{o.w.config.Ledger}}
	o.w.log.mu.Lock()
	records := o.w.log.records
	o.w.log.mu.Unlock()
	var before []*event
	previous := wire.NoSequence
	for _, rec := range records {
		s := newEvent(rec)
		messages, err := s.open(opener, time.Now())
		if err != nil {
			return []string{err.Error()}
		}
		if !slices.ContainsFunc(messages, func(m *wire.Message) bool { return m.Event.ID == g.ID }) {
			before = append(before, s)
			continue
		}
		first := slices.IndexFunc(messages, func(m *wire.Message) bool { return m.Select(o.patterns) != nil })
		if messages[first].Event.ID != g.ID {
			previous = rec.Revision // another public event of the same log event
		}
		for _, b := range before {
			if !slices.ContainsFunc(touched(b), func(key string) bool { return slices.Contains(touched(s), key) }) {
				continue
			}
			for _, m := range b.messages {
				switch {
				case m.Select(o.patterns) == nil:
				case !o.arrived[m.Event.ID]:
					wrong = append(wrong, fmt.Sprintf("%s of %v at %d is tried before %s of %v at %d has arrived",
						rec.Type, s.keys, rec.Position, b.rec.Type, b.keys, b.rec.Position))
				case b.rec.Stream == rec.Stream:
					previous = max(previous, b.rec.Revision)
				}
			}
		}
		if said := g.PreviousSequence; said == nil && previous != wire.NoSequence || said != nil && *said != previous {
			wrong = append(wrong, fmt.Sprintf("%s of %v at %d does not have the previous sequence %d", rec.Type, s.keys, rec.Position, previous))
		}
		return wrong
	}
	return []string{"an event that is not in the log: " + g.ID}
}

// touched returns the streams in whose order a receiver sees an event: the event
// that a merged account's status is now COMBINED belongs to that account alone.
func touched(s *event) []string {
	if s.rec.Type == "account.merged.v1" || s.rec.Type == "account.separated.v1" {
		return s.keys
	}
	return s.keys[:1]
}

// person creates an account that can be merged.
func (w *world) person(sub string) {
	w.t.Helper()
	w.execute(sub, domain.CreateAccount{Origin: domain.OriginCreated, Status: domain.StatusVerified, Identities: []domain.NewIdentity{{
		IdentityID: domain.NewID().String(), Provider: domain.ProviderSelf, Profile: domain.Profile{Email: sub + "@example.com"}}}})
}

// Row 58a: two accounts are merged while one of them is failing. The merge and later
// events of both wait, in lanes or in the window; unrelated accounts do not.
func TestRow58aCombinedInALane(t *testing.T) {
	t.Parallel()
	for _, failing := range []string{"survivor", "merged"} {
		for _, patterns := range [][]string{{"USER_*"}, {"USER_CREATED", "USER_UPDATED", "USER_COMBINED", "USER_SEPARATED"}} {
			t.Run(fmt.Sprintf("%s fails, selects %s", failing, patterns), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, Config{Schedule: []time.Duration{time.Minute, time.Minute, time.Minute}})
					o := &order{w: w, arrived: map[string]bool{}, patterns: patterns}
					bad := true
					r := &receiver{}
					r.answer = func(g got, n int) (int, http.Header) {
						r.mu.Lock()
						defer r.mu.Unlock()
						r.faults = append(r.faults, o.check(g)...)
						if g.Sub == failing && bad {
							return 500, nil
						}
						o.arrived[g.ID] = true
						return 200, nil
					}
					w.transport = r
					w.hook("crm", "https://crm.example/hook", patterns...)
					w.person("survivor")
					w.person("merged")
					w.person("unrelated")
					w.run()
					time.Sleep(time.Second) // now one of the two has a lane
					w.execute("survivor", domain.MergeAccount{From: "merged"})
					w.touch("survivor", 2)
					w.execute("survivor", domain.UnmergeAccount{Sub: "merged"})
					w.touch("merged", 2)
					w.touch("unrelated", 1)
					time.Sleep(10 * time.Second)
					var came []string
					for _, g := range r.got()[3:] {
						came = append(came, g.Sub+" "+g.Type)
					}
					if diff := cmp.Diff([]string{"unrelated USER_UPDATED"}, came); diff != "" {
						t.Error(diff)
					}
					w.restart()
					time.Sleep(10 * time.Second)
					r.set(func(*receiver) { bad = false })
					time.Sleep(5 * time.Minute)
					w.settled("crm")
					r.inOrder(t)
					combined := 0
					for _, g := range r.got() {
						if g.Type == "USER_COMBINED" || g.Type == "USER_SEPARATED" {
							combined++
						}
					}
					if combined != 2 {
						t.Errorf("%d joint events arrived, want 2", combined)
					}
					w.stop()
				})
			})
		}
	}
}

// A merge waits for requests about the merged account that are in flight, even if
// only the survivor has a lane.
func TestI9WaitsForTheWindow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{Timeout: time.Hour})
		o := &order{w: w, arrived: map[string]bool{}, patterns: []string{"USER_*"}}
		bad := true
		r := &receiver{}
		r.answer = func(g got, n int) (int, http.Header) {
			r.mu.Lock()
			r.faults = append(r.faults, o.check(g)...)
			refused := g.Sub == "survivor" && bad
			r.mu.Unlock()
			if g.Sub == "merged" && g.Type == "USER_UPDATED" {
				time.Sleep(time.Minute)
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			o.arrived[g.ID] = !refused
			if refused {
				return 500, nil
			}
			return 200, nil
		}
		w.transport = r
		w.hook("crm", "https://crm.example/hook")
		w.person("merged")
		w.person("survivor")
		w.run()
		time.Sleep(time.Second)
		r.set(func(*receiver) { bad = false })
		w.touch("merged", 1)
		time.Sleep(time.Second)
		w.execute("survivor", domain.MergeAccount{From: "merged"})
		w.touch("survivor", 1)
		time.Sleep(50 * time.Second) // the survivor's lane continues up to the merge
		if n := r.count(); n != 4 {
			t.Errorf("%d requests, want 4: each account's creation, the survivor's again, and one that hangs", n)
		}
		time.Sleep(time.Minute)
		w.settled("crm")
		r.inOrder(t)
		w.stop()
	})
}

// I9 with random merges, also overlapping ones, random refusals, outages and
// restarts: every event arrives, in the order of all its accounts.
func TestI9JoinedLanes(t *testing.T) {
	t.Parallel()
	for seed := range uint64(5) {
		for _, pattern := range []string{"USER_*", "USER_UPDATED", "USER_COMBINED"} {
			t.Run(fmt.Sprint(pattern, " ", seed), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) { joinedLanes(t, rand.New(rand.NewPCG(seed, 1)), pattern) })
			})
		}
	}
}

func joinedLanes(t *testing.T, random *rand.Rand, pattern string) {
	schedule := slices.Repeat([]time.Duration{time.Second}, 40)
	w := newWorld(t, Config{InFlight: 8, Schedule: schedule})
	o := &order{w: w, arrived: map[string]bool{}, patterns: []string{pattern}}
	r := &receiver{delay: func() time.Duration { return rand.N(50 * time.Millisecond) }}
	down := false
	r.answer = func(g got, n int) (int, http.Header) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.faults = append(r.faults, o.check(g)...)
		switch {
		case down:
			return 503, nil
		case rand.IntN(4) == 0:
			return 500, nil
		}
		o.arrived[g.ID] = true
		return 200, nil
	}
	w.transport = r
	w.hook("crm", "https://crm.example/hook", pattern)
	const people = 6
	for i := range people {
		w.person(fmt.Sprint("p", i))
	}
	w.run()
	any := func() string { return fmt.Sprint("p", random.IntN(people)) }
	merges := 0
	for range 150 {
		switch random.IntN(12) {
		case 0, 1:
			if _, err := w.ledger.Execute(t.Context(), asAdmin, any(), domain.MergeAccount{From: any()}); err == nil {
				merges++
			}
		case 2, 3:
			w.ledger.Execute(t.Context(), asAdmin, any(), domain.UnmergeAccount{Sub: any()})
		case 4:
			time.Sleep(time.Duration(random.IntN(3000)) * time.Millisecond)
		case 5:
			if random.IntN(3) == 0 {
				w.restart()
			}
		case 6:
			r.set(func(*receiver) { down = !down && random.IntN(3) == 0 })
		default:
			// The ledger refuses to change a merged account.
			w.ledger.Execute(t.Context(), asAdmin, any(), domain.SetCustomFields{Values: field(random)})
		}
	}
	r.set(func(*receiver) { down = false })
	time.Sleep(3 * time.Hour)
	w.settled("crm")
	for _, fault := range r.faults {
		t.Error(fault)
	}
	if merges == 0 {
		t.Error("nothing was merged")
	}
	if d := w.get("crm").DeadLetters; d != 0 {
		t.Errorf("%d events became dead letters", d)
	}
	want := 0
	for _, rec := range w.log.records {
		messages, err := newEvent(rec).open(opener{w.config.Codec, ledger{w.config.Ledger}}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range messages {
			if m.Select(o.patterns) != nil {
				want++
			}
		}
	}
	if len(o.arrived) != want {
		t.Errorf("%d events arrived, want %d", len(o.arrived), want)
	}
	w.stop()
}

func field(random *rand.Rand) map[string]jsontext.Value {
	return map[string]jsontext.Value{"tier": jsontext.Value(fmt.Sprintf(`"%d"`, random.Uint64()))}
}
