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

// The model case fails here on purpose: no files to remember that by, and no
// long search for the smallest failure; but enough tries, also with -short, to
// meet what a bug needs to show.
func TestMain(m *testing.M) {
	for name, value := range map[string]string{"rapid.nofailfile": "true", "rapid.shrinktime": "100ms", "rapid.checks": "500"} {
		if err := flag.Set(name, value); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}

// bugs are what a store can do wrong, and the case that has to see it.
var bugs = []struct{ promise, bug string }{
	{"Append/NoStream", "actor lost"},
	{"Append/NoStream", "sealed part lost"},
	{"Append/NoStream", "revisions from 1"},
	{"Append/NoStream", "receipt from 0"},
	{"Append/Conflict", "wrong actual"},
	{"Append/Conflict", "empty streams are at 0"},
	{"Append/Conflict", "revisions ignored"},
	{"Append/OneWinner", "check, then act"},
	{"Append/AllOrNone", "partial commit"},
	{"Append/AllOrNone", "success loses the second write"},
	{"Append/AllOrNone", "unsupported leaves a trace"},
	{"Append/Any", "any is none"},
	{"Append/Invalid", "anything goes"},
	{"Append/Limits", "small events only"},
	{"Append/Limits", "small commits only"},
	{"Append/OwnsItsBytes", "shares the caller's bytes"},
	{"Append/Canceled", "append ignores context"},
	{"Append/Positions", "refusals take positions"},
	{"Append/Positions", "receipt from 0"},
	{"Append/Times", "local time"},
	{"Append/Times", "nanoseconds"},
	{"Append/Times", "time goes back"},
	{"Append/Times", "time is another's"},
	{"Append/Times", "receipt has a time of its own"},
	{"Erase", "erase ignored"},
	{"Erase", "erase takes every stream"},
	{"Erase", "erase takes every key"},
	{"Erase", "erase takes the key id"},
	{"Claims/Held", "claims ignored"},
	{"Claims/Held", "loser is told its own name"},
	{"Claims/Released", "release ignored"},
	{"Claims/ReleasedByAnother", "anyone releases"},
	{"Claims/SameOwner", "same owner refused"},
	{"Claims/HandedOver", "claims before releases"},
	{"Claims/AllOrNone", "claims despite refusal"},
	{"Claims/AllOrNone", "releases despite refusal"},
	{"Claims/TwiceInOneCommit", "last claim of a commit wins"},
	{"Claims/OneWinner", "check, then act"},
	{"Claims/OpaqueKeys", "keys are text"},
	{"Claims/OpaqueKeys", "keys end at a zero byte"},
	{"Claims/OpaqueKeys", "keys have no case"},
	{"ReadStream/From", "from ignored"},
	{"ReadStream/From", "from excluded"},
	{"ReadStream/From", "read by prefix"},
	{"ReadStream/From", "first page only"},
	{"ReadStream/Missing", "missing is an error"},
	{"ReadStream/AtTheCall", "read goes on"},
	{"ReadStream/Stopped", "stopped read keeps its lock"},
	{"ReadStream/Stopped", "stopped read goes on"},
	{"ReadStream/Canceled", "read ignores context"},
	{"ReadStream/Canceled", "canceled read ends quietly"},
	{"ByStream", "by stream in the order of the log"},
	{"ByStream", "by stream beyond the position"},
	{"ByStream", "by stream a page each"},
	{"ByStream", "by stream in any order"},
	{"ByStream", "stopped read keeps its lock"},
	{"ByStream", "canceled read ends quietly"},
	{"Subscribe/CatchesUpThenFollows", "ends when it has caught up"},
	{"Subscribe/CatchesUpThenFollows", "last event again after waiting"},
	{"Subscribe/CatchesUpThenFollows", "never follows"},
	{"Subscribe/CatchesUpThenFollows", "wakes at the second append"},
	{"Subscribe/CatchesUpThenFollows", "empty pages"},
	{"Subscribe/CatchesUpThenFollows", "pages out of order"},
	{"Subscribe/FromPosition", "position included"},
	{"Subscribe/Order", "skips when many are new"},
	{"Subscribe/Order", "last event again after waiting"},
	{"Subscribe/Canceled", "subscription ignores context"},
	{"Subscribe/Canceled", "canceled subscription ends quietly"},
	{"Subscribe/Closed", "closed subscription ends quietly"},
	{"Subscribe/Closed", "close forgets subscriptions"},
	{"Subscribe/SlowReader", "yields under the lock"},
	{"Subscribe/SlowReader", "slow readers skip"},
	{"Subscribe/SlowReader", "reuses the bytes of pages"},
	{"Head", "head lags"},
	{"Closed", "closed answers"},
	{"Reopen", "claims forgotten"},
	{"Reopen", "last event forgotten"},
	{"Cancel", "canceled after the commit"},
	{"Cancel", "half of a canceled append"},
	{"Cancel", "canceled claims stay"},
	{"Model", "anyone releases"},
	{"Model", "wrong actual"},
	{"Model", "claims before releases"},
	{"Model", "claims forgotten"},
	{"Linearizable", "stale read"},
	{"Linearizable", "append lost"},
	{"Linearizable", "check, then act"},
}

// A case that cannot fail proves nothing. Each fails for a store with a bug
// that it is there to find.
func TestCasesCanFail(t *testing.T) {
	t.Parallel()
	byName := map[string]promise{}
	for _, c := range cases() {
		byName[c.name] = c
	}
	proved := map[string]bool{}
	for _, b := range bugs {
		c, ok := byName[b.promise]
		if !ok {
			t.Fatalf("there is no case %s", b.promise)
		}
		proved[b.promise] = true
		t.Run(b.promise+"/"+b.bug, func(t *testing.T) {
			t.Parallel()
			r := record(t, c, b.bug, time.Second)
			if !r.failed {
				t.Errorf("%s passes a store whose bug is: %s", b.promise, b.bug)
			}
			t.Log(strings.Join(r.said, "\n"))
		})
	}
	for name := range byName {
		if !proved[name] {
			t.Errorf("no bug shows that %s can fail", name)
		}
	}
}

// The recorder sees a case pass, too: a failure above is the bug's.
func TestCasesPassRecorded(t *testing.T) {
	t.Parallel()
	for _, c := range cases() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if r := record(t, c, "", 30*time.Second); r.failed {
				t.Errorf("%s fails a store without a bug:\n%s", c.name, strings.Join(r.said, "\n"))
			}
		})
	}
}

// recorder is the TB of a case that is watched: what fails it, fails nothing
// else.
type recorder struct {
	testing.TB
	ctx context.Context

	mu       sync.Mutex // guards what follows
	failed   bool
	said     []string
	cleanups []func()
}

// record runs a case against a store with a bug. A case that hangs has failed.
func record(t *testing.T, c promise, bug string, patience time.Duration) *recorder {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r := &recorder{TB: t, ctx: ctx}
	disks := newDisks(bug)
	hangs := time.After(4 * patience)
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
		case <-hangs:
			r.Errorf("%s hangs", what)
		}
	}
	wait("the case", func() {
		c.run(&env{TB: r, patience: patience, dial: func(dir string) eventstore.Store { return disks.open(dir) }})
	})
	cancel()
	for {
		r.mu.Lock()
		n := len(r.cleanups)
		if n == 0 {
			// Its goroutines may say more when this test is over.
			defer r.mu.Unlock()
			return &recorder{failed: r.failed, said: r.said}
		}
		f := r.cleanups[n-1]
		r.cleanups = r.cleanups[:n-1]
		r.mu.Unlock()
		wait("the end", f)
	}
}

func (r *recorder) Context() context.Context { return r.ctx }

func (r *recorder) Cleanup(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cleanups = append(r.cleanups, f)
}

func (r *recorder) say(failed bool, text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed = r.failed || failed
	r.said = append(r.said, text)
}

func (r *recorder) Failed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failed
}

func (r *recorder) Fail()                             { r.say(true, "failed") }
func (r *recorder) FailNow()                          { r.Fail(); runtime.Goexit() }
func (r *recorder) Log(args ...any)                   { r.say(false, fmt.Sprint(args...)) }
func (r *recorder) Logf(format string, args ...any)   { r.say(false, fmt.Sprintf(format, args...)) }
func (r *recorder) Error(args ...any)                 { r.say(true, fmt.Sprint(args...)) }
func (r *recorder) Errorf(format string, args ...any) { r.say(true, fmt.Sprintf(format, args...)) }
func (r *recorder) Fatal(args ...any)                 { r.Error(args...); runtime.Goexit() }
func (r *recorder) Fatalf(format string, args ...any) { r.Errorf(format, args...); runtime.Goexit() }
