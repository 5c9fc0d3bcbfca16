package eventstoretest

import (
	"context"
	"flag"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"accountledger/eventstore"
)

// The Model case fails here on purpose. So rapid writes no failure files and
// shrinks only briefly, but makes enough checks, also with -short, to find each
// bug.
func TestMain(m *testing.M) {
	for name, value := range map[string]string{"rapid.nofailfile": "true", "rapid.shrinktime": "100ms", "rapid.checks": "500"} {
		if err := flag.Set(name, value); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}

// bugs lists bugs of the memory store, each with a case that must find it.
var bugs = []struct{ testCase, bug string }{
	{"Append/NoStream", "actor lost"},
	{"Append/NoStream", "sealed part lost"},
	{"Append/NoStream", "revisions from 1"},
	{"Append/NoStream", "receipt from 0"},
	{"Append/Conflict", "wrong actual revision"},
	{"Append/Conflict", "empty stream has revision 0"},
	{"Append/Conflict", "expected revision ignored"},
	{"Append/OneWinner", "check, then act"},
	{"Append/AllOrNone", "writes committed one by one"},
	{"Append/AllOrNone", "second write lost"},
	{"Append/AllOrNone", "unsupported commit changes the log"},
	{"Append/Any", "Any means NoStream"},
	{"Append/Invalid", "invalid commits accepted"},
	{"Append/Limits", "large events refused"},
	{"Append/Limits", "large commits refused"},
	{"Append/OwnsItsBytes", "shares the caller's bytes"},
	{"Append/Canceled", "append ignores context"},
	{"Append/Positions", "refusals use positions"},
	{"Append/Positions", "receipt from 0"},
	{"Append/Times", "local time"},
	{"Append/Times", "nanoseconds"},
	{"Append/Times", "time goes back"},
	{"Append/Times", "time is an hour off"},
	{"Append/Times", "receipt has a different time"},
	{"Erase", "erase ignored"},
	{"Erase", "erase affects every stream"},
	{"Erase", "erase affects every key"},
	{"Erase", "erase removes the key ID"},
	{"Claims/Held", "claims ignored"},
	{"Claims/Held", "claim error names the loser"},
	{"Claims/Released", "release ignored"},
	{"Claims/ReleasedByAnother", "any owner releases"},
	{"Claims/SameOwner", "same owner refused"},
	{"Claims/Transferred", "claims before releases"},
	{"Claims/AllOrNone", "refused commit takes claims"},
	{"Claims/AllOrNone", "refused commit releases claims"},
	{"Claims/TwiceInOneCommit", "last claim of a commit wins"},
	{"Claims/OneWinner", "check, then act"},
	{"Claims/OpaqueKeys", "keys are UTF-8 text"},
	{"Claims/OpaqueKeys", "keys end at a zero byte"},
	{"Claims/OpaqueKeys", "keys ignore case"},
	{"Reclaim/Replaces", "old claims stay"},
	{"Reclaim/Replaces", "one page of claims"},
	{"Reclaim/Replaces", "reclaim appends an event"},
	{"Reclaim/Waits", "nobody waits"},
	{"Reclaim/Waits", "holder waits"},
	{"Reclaim/Waits", "an owner waits twice"},
	{"Reclaim/Waits", "last owner holds"},
	{"Reclaim/Waits", "nobody is promoted"},
	{"Reclaim/Waits", "last owner is promoted"},
	{"Reclaim/WaitEnds", "release of a waiting claim ignored"},
	{"Reclaim/WaitEnds", "any release ends all waiting"},
	{"Reclaim/Transferred", "an owner waits for the claim it takes"},
	{"Reclaim/Transferred", "nobody is promoted"},
	{"Reclaim/AllOrNone", "refused commit ends waiting"},
	{"Reclaim/Again", "old waiting claims stay"},
	{"Reclaim/Failed", "failed reclaim takes effect"},
	{"Reclaim/Failed", "failed reclaim removes the claims"},
	{"Reclaim/Failed", "version first"},
	{"Reclaim/ReadsMeanwhile", "reclaim locks the log"},
	{"Reclaim/Reopen", "claims forgotten"},
	{"Reclaim/Reopen", "waiting claims forgotten"},
	{"Reclaim/Reopen", "waiting claims sorted at opening"},
	{"ClaimsVersion", "claims version stays"},
	{"ClaimsVersion", "claims version forgotten"},
	{"ReadProven", "from ignored by proven reads"},
	{"ReadProven", "proven read fails after an erasure"},
	{"ReadProven", "proven read ends at 256 events"},
	{"ReadProven", "proven read ignores context"},
	{"ReadProven", "stopped read keeps its lock"},
	{"Prove", "proof fails after an erasure"},
	{"Prove", "proof only of the head"},
	{"Prove", "proof without progress"},
	{"Prove", "proof requires progress"},
	{"Prove", "proof ignores context"},
	{"Streams/Prefix", "prefixes ignore case"},
	{"Streams/Prefix", "prefixes are patterns"},
	{"Streams/Prefix", "prefix itself is no stream"},
	{"Streams/Prefix", "streams are yielded per event"},
	{"Streams/Prefix", "streams in the order of creation"},
	{"Streams/Prefix", "one page of streams"},
	{"Streams/Canceled", "stopped read keeps its lock"},
	{"Streams/Canceled", "canceled read ends without error"},
	{"ReadStream/From", "from ignored"},
	{"ReadStream/From", "from excluded"},
	{"ReadStream/From", "read by prefix"},
	{"ReadStream/From", "first page only"},
	{"ReadStream/Missing", "missing stream is an error"},
	{"ReadStream/Snapshot", "read includes later events"},
	{"ReadStream/Stopped", "stopped read keeps its lock"},
	{"ReadStream/Stopped", "stopped read continues"},
	{"ReadStream/Canceled", "read ignores context"},
	{"ReadStream/Canceled", "canceled read ends without error"},
	{"ByStream", "by stream yields the order of the log"},
	{"ByStream", "by stream ignores the position"},
	{"ByStream", "by stream yields one page per stream"},
	{"ByStream", "by stream yields a random order"},
	{"ByStream", "stopped read keeps its lock"},
	{"ByStream", "canceled read ends without error"},
	{"Subscribe/CatchesUpThenFollows", "subscription ends when it has caught up"},
	{"Subscribe/CatchesUpThenFollows", "last event repeated after waiting"},
	{"Subscribe/CatchesUpThenFollows", "subscription never yields new events"},
	{"Subscribe/CatchesUpThenFollows", "subscription wakes at the second append"},
	{"Subscribe/CatchesUpThenFollows", "empty pages"},
	{"Subscribe/CatchesUpThenFollows", "pages out of order"},
	{"Subscribe/FromPosition", "subscription includes its position"},
	{"Subscribe/Order", "subscription skips when many events are new"},
	{"Subscribe/Order", "last event repeated after waiting"},
	{"Subscribe/Canceled", "subscription ignores context"},
	{"Subscribe/Canceled", "canceled subscription ends without error"},
	{"Subscribe/Closed", "closed subscription ends without error"},
	{"Subscribe/Closed", "close leaves subscriptions running"},
	{"Subscribe/SlowReader", "subscription yields while locked"},
	{"Subscribe/SlowReader", "slow subscriber misses events"},
	{"Subscribe/SlowReader", "bytes of earlier pages overwritten"},
	{"Head", "head is one event behind"},
	{"Closed", "methods work after Close"},
	{"Reopen", "claims forgotten"},
	{"Reopen", "last event forgotten"},
	{"Cancel", "canceled although committed"},
	{"Cancel", "part of a canceled append stays"},
	{"Cancel", "claims of a canceled append stay"},
	{"Model", "any owner releases"},
	{"Model", "wrong actual revision"},
	{"Model", "claims before releases"},
	{"Model", "claims forgotten"},
	{"Linearizable", "stale read"},
	{"Linearizable", "acknowledged append lost"},
	{"Linearizable", "check, then act"},
}

// TestCasesCanFail checks that each case fails for a store with a bug that it
// must find.
func TestCasesCanFail(t *testing.T) {
	t.Parallel()
	byName := map[string]testCase{}
	for _, c := range cases() {
		byName[c.name] = c
	}
	proved := map[string]bool{}
	for _, b := range bugs {
		c, ok := byName[b.testCase]
		if !ok {
			t.Fatalf("there is no case %s", b.testCase)
		}
		proved[b.testCase] = true
		t.Run(b.testCase+"/"+b.bug, func(t *testing.T) {
			t.Parallel()
			r := record(t, c, b.bug, time.Second)
			if !r.failed {
				t.Errorf("%s passes for a store with the bug %q", b.testCase, b.bug)
			}
			t.Log(strings.Join(r.messages, "\n"))
		})
	}
	for name := range byName {
		if !proved[name] {
			t.Errorf("there is no bug for the case %s", name)
		}
	}
}

// TestCasesPassRecorded checks that each case passes with a recorder if the
// store has no bug, so that the failures above come from the bugs.
func TestCasesPassRecorded(t *testing.T) {
	t.Parallel()
	for _, c := range cases() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if r := record(t, c, "", 30*time.Second); r.failed {
				t.Errorf("%s fails for a store without a bug:\n%s", c.name, strings.Join(r.messages, "\n"))
			}
		})
	}
}

// recorder is a testing.TB that records failures of a case instead of failing
// the test.
type recorder struct {
	testing.TB
	ctx context.Context

	mu       sync.Mutex // guards the fields below
	failed   bool
	messages []string
	cleanups []func()
}

// record runs a case against a store with a bug. A case that does not return in
// time has failed.
func record(t *testing.T, c testCase, bug string, timeout time.Duration) *recorder {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r := &recorder{TB: t, ctx: ctx}
	disks := newDisks(bug)
	deadline := time.After(4 * timeout)
	wait := func(what string, f func()) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer func() {
				if p := recover(); p != nil {
					r.Errorf("panic: %v", p)
				}
			}()
			f()
		}()
		select {
		case <-done:
		case <-deadline:
			r.Errorf("%s did not return in time", what)
		}
	}
	wait("the case", func() {
		c.run(&env{TB: r, timeout: timeout, dial: func(dir string) eventstore.Store { return disks.open(dir) }})
	})
	cancel()
	for {
		r.mu.Lock()
		n := len(r.cleanups)
		if n == 0 {
			// Return a copy, because goroutines of the case may still use r.
			defer r.mu.Unlock()
			return &recorder{failed: r.failed, messages: r.messages}
		}
		f := r.cleanups[n-1]
		r.cleanups = r.cleanups[:n-1]
		r.mu.Unlock()
		wait("a cleanup", f)
	}
}

func (r *recorder) Context() context.Context { return r.ctx }

func (r *recorder) Cleanup(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cleanups = append(r.cleanups, f)
}

func (r *recorder) add(failed bool, text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed = r.failed || failed
	r.messages = append(r.messages, text)
}

func (r *recorder) Failed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failed
}

func (r *recorder) Fail()                             { r.add(true, "failed") }
func (r *recorder) FailNow()                          { r.Fail(); runtime.Goexit() }
func (r *recorder) Log(args ...any)                   { r.add(false, fmt.Sprint(args...)) }
func (r *recorder) Logf(format string, args ...any)   { r.add(false, fmt.Sprintf(format, args...)) }
func (r *recorder) Error(args ...any)                 { r.add(true, fmt.Sprint(args...)) }
func (r *recorder) Errorf(format string, args ...any) { r.add(true, fmt.Sprintf(format, args...)) }
func (r *recorder) Fatal(args ...any)                 { r.Error(args...); runtime.Goexit() }
func (r *recorder) Fatalf(format string, args ...any) { r.Errorf(format, args...); runtime.Goexit() }
