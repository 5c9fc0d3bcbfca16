package domain

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"iter"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"

	"accountledger/eventstore"
)

// Ledger is the write side: it loads an account, lets the rules decide, and
// appends what they decided. It may be used by many goroutines at once.
type Ledger struct {
	log    eventstore.Store
	codec  Codec
	now    func() time.Time
	census Census
	cache  *otter.Cache[string, Account] // folded accounts; checked against the stream at every append

	hits, misses atomic.Int64                    // of cache
	observe      func(context.Context, Executed) // nil: nobody asks

	// turns gives commands on one account their turn inside this process, so
	// that they do not lose to one another again and again. Between processes
	// the expected revision decides.
	turns [1024]sync.Mutex
	seed  maphash.Seed

	// configuring is held for reading from a command's decision to its append,
	// and for writing by a change of the configuration: no account changes by
	// rules that no longer hold. Between processes that is not so.
	configuring sync.RWMutex
	config      atomic.Pointer[Config] // nil until it was asked for; changes under configuring, and is read without

	keying  sync.Mutex              // held by a change of the API keys
	apiKeys atomic.Pointer[APIKeys] // nil until they were asked for; changes under keying, and is read without
}

// LedgerConfig says what a Ledger works with.
type LedgerConfig struct {
	Log    eventstore.Store
	Codec  Codec
	Census Census           // of the accounts in Log; without one, what depends on it is not to be asked
	Cache  int              // accounts kept folded in memory; default 10,000
	Now    func() time.Time // default time.Now

	// Observe is told of each command when it is over, by whoever asked it and
	// with their context: it must not wait for anything. Default: nobody is.
	Observe func(context.Context, Executed)
}

// NewLedger returns a Ledger.
func NewLedger(c LedgerConfig) *Ledger {
	if c.Cache == 0 {
		c.Cache = 10_000
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return &Ledger{
		log: c.Log, codec: c.Codec, census: c.Census, now: c.Now, observe: c.Observe, seed: maphash.MakeSeed(),
		cache: otter.Must(&otter.Options[string, Account]{MaximumSize: c.Cache}),
	}
}

// Request is how a command is to be carried out.
type Request struct {
	Meta     Metadata
	Expected *eventstore.Revision // refuse with CodeStaleRevision if the account is at another one
	DryRun   bool                 // decide, and append nothing
	Admin    bool                 // the caller may write what is read-only to users, and see and write what is internal
}

// Result is what came of a command.
type Result struct {
	Account  Account   // after the command; at a repetition, as it was then
	Others   []Account // the other accounts it concerned, likewise
	Events   []Entry   // what it caused, of all accounts; none where it changed nothing or had been executed before
	Repeated bool      // the command id was seen before; nothing was done
}

// joint is a command that decides over several accounts at once: the one it
// is asked of, and others.
type joint interface {
	Command
	// others names them, given the account it is asked of.
	others(a Account) []string
	// decideJoint returns the events it causes in a, and in each of the others.
	decideJoint(s Setting, a Account, others []Account) ([]Event, [][]Event, error)
}

// tries is how often a command is decided anew after another writer was
// faster. Within one process that does not happen, see Ledger.turns.
const tries = 5

// Execute asks cmd of the account sub. The events are durable when it
// returns. A refusal is an *Error. The result is as the caller may see it.
func (l *Ledger) Execute(ctx context.Context, r Request, sub string, cmd Command) (Result, error) {
	start := time.Now()
	result, err := l.execute(ctx, r, sub, cmd)
	l.executed(ctx, cmd, start, len(result.Events) > 0 && !result.Repeated && !r.DryRun, err)
	if err != nil || r.Admin {
		return result, err
	}
	c, err := l.Config(ctx)
	if err != nil {
		return Result{}, err
	}
	return result.Without(c.Hidden()), nil
}

func (l *Ledger) execute(ctx context.Context, r Request, sub string, cmd Command) (Result, error) {
	if cmd, ok := cmd.(joint); ok {
		return l.executeJoint(ctx, r, sub, cmd)
	}
	defer l.turn(sub)()
	// A creation expects nothing, so it reads nothing, until it is contradicted.
	_, blind := cmd.(CreateAccount)
	blind = blind && !r.DryRun
	return l.again(func() (Result, error) {
		before, err := NewAccount(sub), error(nil)
		if !blind {
			before, err = l.Account(ctx, sub)
		}
		blind = false
		if err != nil {
			return Result{}, err
		}
		return l.try(ctx, r, cmd, []Account{before}, func(s Setting) ([][]Event, error) {
			events, err := Decide(s, before, cmd)
			return [][]Event{events}, err
		})
	}, sub)
}

func (l *Ledger) executeJoint(ctx context.Context, r Request, sub string, cmd joint) (Result, error) {
	a, err := l.Account(ctx, sub)
	if err != nil {
		return Result{}, err
	}
	subs := append([]string{sub}, cmd.others(a)...)
	defer l.turn(subs...)()
	return l.again(func() (Result, error) {
		before := make([]Account, len(subs))
		for i, s := range subs {
			if before[i], err = l.Account(ctx, s); err != nil {
				return Result{}, err
			}
		}
		if now := cmd.others(before[0]); !slices.Equal(now, subs[1:]) {
			// Since we took our turns. Not worth a loop that takes others.
			return Result{}, refuse(CodeConcurrentChange, "The account was merged or separated meanwhile; try again.")
		}
		return l.try(ctx, r, cmd, before, func(s Setting) ([][]Event, error) {
			if err := admit(before[0], cmd); err != nil {
				return nil, err
			}
			own, others, err := cmd.decideJoint(s, before[0], before[1:])
			return append([][]Event{own}, others...), err
		})
	}, subs...)
}

// turn waits for the turns of all subs and returns what ends them.
func (l *Ledger) turn(subs ...string) (end func()) {
	if len(subs) == 1 {
		turn := &l.turns[l.turnOf(subs[0])]
		turn.Lock()
		return turn.Unlock
	}
	// In one order for all, or two could wait for one another.
	turns := make([]uint64, len(subs))
	for i, sub := range subs {
		turns[i] = l.turnOf(sub)
	}
	slices.Sort(turns)
	turns = slices.Compact(turns)
	for _, i := range turns {
		l.turns[i].Lock()
	}
	return func() {
		for _, i := range turns {
			l.turns[i].Unlock()
		}
	}
}

func (l *Ledger) turnOf(sub string) uint64 {
	return maphash.String(l.seed, sub) % uint64(len(l.turns))
}

// again calls try until another writer is not faster, a few times.
func (l *Ledger) again(try func() (Result, error), subs ...string) (Result, error) {
	for range tries {
		result, err := try()
		if _, conflict := errors.AsType[*eventstore.ConflictError](err); !conflict {
			return result, err
		}
		for _, sub := range subs {
			l.cache.Invalidate(sub)
		}
	}
	return Result{}, refuse(CodeConcurrentChange, "Others change this account all the time; try again.")
}

// try decides over the accounts and appends what was decided. The first of
// them is the one the command was asked of.
func (l *Ledger) try(ctx context.Context, r Request, cmd Command, before []Account, decide func(Setting) ([][]Event, error)) (Result, error) {
	// What an erased account was asked can no longer be told from another
	// request under the same id: it is refused like any other.
	if a := before[0]; a.Exists() && !a.Erased() {
		seen, repeated, err := l.recall(ctx, a.commands, r.Meta)
		if err != nil {
			return Result{}, err
		}
		if repeated {
			return l.repeated(ctx, before, seen)
		}
	}
	if r.Expected != nil && *r.Expected != before[0].Revision {
		// A precondition is of something that is there (RFC 9110, section 13.2.1).
		if err := admit(before[0], cmd); CodeOf(err) == CodeAccountNotFound || CodeOf(err) == CodeAccountErased {
			return Result{}, err
		}
		return Result{}, refuse(CodeStaleRevision, "The account is at revision %d, not %d.", before[0].Revision, *r.Expected)
	}
	if _, err := l.Config(ctx); err != nil { // once read it is there
		return Result{}, err
	}
	l.configuring.RLock()
	defer l.configuring.RUnlock()
	setting := Setting{Config: l.config.Load(), Now: l.now().UTC().Truncate(time.Microsecond), Admin: r.Admin}
	decided, err := decide(setting)
	if err != nil {
		return Result{}, err
	}
	entries := make([][]Entry, len(before))
	after := make([]Account, len(before))
	caused := 0
	for i := range before {
		after[i], entries[i] = l.evolve(before[i], r.Meta, decided[i], setting.Now)
		caused += len(entries[i])
	}
	switch {
	case caused > 0 && !r.DryRun:
		err = l.append(ctx, cmd, before, after, entries)
	case caused == 0 && !before[0].Erased():
		err = l.rememberUnchanged(ctx, r, AccountStream(before[0].Sub), before[0].key, before[0].Revision)
	}
	if err != nil {
		return Result{}, err
	}
	return Result{Account: after[0], Others: after[1:], Events: slices.Concat(entries...)}, nil
}

// evolve makes entries of events, as they will be if they are appended now.
func (l *Ledger) evolve(a Account, m Metadata, events []Event, now time.Time) (Account, []Entry) {
	entries := make([]Entry, len(events))
	for i, e := range events {
		m.CombinedSubs = ""
		if len(a.CombinedFrom) > 0 {
			m.CombinedSubs = strings.Join(a.subs()[1:], " ")
		}
		entries[i] = Entry{ID: NewID(), Type: e.eventType(), Stream: AccountStream(a.Sub), Revision: a.Revision + 1,
			Position: a.Position, Time: now, Meta: m, Event: e}
		a = Evolve(a, entries[i])
	}
	return a, entries
}

// append appends entries as one commit, and gives them and the accounts after
// them their places and their time.
func (l *Ledger) append(ctx context.Context, cmd Command, before, after []Account, entries [][]Entry) error {
	var commit eventstore.Commit
	keys := map[string]eventstore.KeyID{}
	for _, a := range before {
		keys[a.Sub] = a.key
		for _, c := range a.CombinedFrom {
			keys[c.Sub] = c.key
		}
	}
	for i := range entries {
		if len(entries[i]) == 0 {
			continue
		}
		write, err := l.write(ctx, keys, before[i], entries[i])
		if err != nil {
			return err
		}
		commit.Writes = append(commit.Writes, write)
	}
	for i := range entries { // after all events of the accounts, whose places are counted on
		if len(entries[i]) > 0 && !before[i].Erased() {
			more, err := l.rememberForgotten(before[i].commands, entries[i][0].Meta, AccountStream(before[i].Sub), before[i].key)
			if err != nil {
				return err
			}
			commit.Writes = append(commit.Writes, more...)
		}
	}
	commit.Claim, commit.Release = claims(before, after, l.codec.Keys.Claim)
	receipt, err := l.log.Append(ctx, commit)
	if err != nil {
		return refusal(cmd, err)
	}
	// Fold again: now the events have their places and their time.
	next := receipt.First
	for i := range entries {
		if len(entries[i]) == 0 {
			continue
		}
		after[i] = before[i]
		for j := range entries[i] {
			x := &entries[i][j]
			x.Position, x.Time = next, receipt.Time
			next++
			after[i] = Evolve(after[i], *x)
		}
		l.cache.Set(after[i].Sub, after[i])
	}
	return nil
}

// write seals entries, each under the key of the account whose data it holds.
// A new account gets its key.
func (l *Ledger) write(ctx context.Context, keys map[string]eventstore.KeyID, before Account, entries []Entry) (eventstore.Write, error) {
	if keys[before.Sub] == (eventstore.KeyID{}) && !before.Erased() {
		key, err := l.codec.Keys.NewKey(ctx)
		if err != nil {
			return eventstore.Write{}, fmt.Errorf("domain: a key for a new account: %w", err)
		}
		keys[before.Sub] = key
	}
	w := eventstore.Write{Stream: AccountStream(before.Sub), Expected: before.Revision}
	for i := range entries {
		e, err := l.codec.encode(entries[i], keys[owner(before, entries[i].Event)])
		if err != nil {
			return w, err
		}
		entries[i].keyID = e.KeyID
		w.Events = append(w.Events, e)
	}
	return w, nil
}

// refusal turns what the log refused into what the caller did wrong.
func refusal(cmd Command, err error) error {
	taken, ok := errors.AsType[*eventstore.ClaimError](err)
	if !ok {
		return err
	}
	if _, link := cmd.(LinkIdentity); link {
		e := refuse(CodeIdentityConflict, "Another account has this %s; it may be the same person's, to be merged.", taken.Claim.Kind)
		e.Holder, _ = strings.CutPrefix(taken.Owner, accountPrefix)
		return e
	}
	return refuse(CodeIdentifierTaken, "Another account has this %s.", taken.Claim.Kind)
}

// Account returns the account as its stream says, created or not.
func (l *Ledger) Account(ctx context.Context, sub string) (Account, error) {
	if a, ok := l.cache.GetIfPresent(sub); ok {
		l.hits.Add(1)
		return a, nil
	}
	l.misses.Add(1)
	a := NewAccount(sub)
	for x, err := range l.History(ctx, sub, 0) {
		if err != nil {
			return a, err
		}
		a = Evolve(a, x)
	}
	if a.Exists() {
		l.cache.Set(sub, a)
	}
	return a, nil
}

// AccountAt returns the account as it was at a revision.
func (l *Ledger) AccountAt(ctx context.Context, sub string, revision eventstore.Revision) (Account, error) {
	a := NewAccount(sub)
	for x, err := range l.History(ctx, sub, 0) {
		if err != nil {
			return a, err
		}
		if x.Revision > revision {
			break
		}
		a = Evolve(a, x)
	}
	return a, nil
}

// Forget drops accounts from memory: what was folded while a key was being
// destroyed is not to stay there.
func (l *Ledger) Forget(subs ...string) {
	for _, sub := range subs {
		l.cache.Invalidate(sub)
	}
}

// History yields the account's events from a revision on.
func (l *Ledger) History(ctx context.Context, sub string, from eventstore.Revision) iter.Seq2[Entry, error] {
	return l.entries(ctx, AccountStream(sub), from)
}

func (l *Ledger) entries(ctx context.Context, stream string, from eventstore.Revision) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		for rec, err := range l.log.ReadStream(ctx, stream, from) {
			if err != nil {
				yield(Entry{}, fmt.Errorf("domain: read %s: %w", stream, err))
				return
			}
			x, err := l.codec.Decode(rec)
			if !yield(x, err) || err != nil {
				return
			}
		}
	}
}

// appendClear makes entries of events that hold nothing personal, which follow
// a revision of a stream, and appends them unless r is a dry run. The position
// is what they have then. What is to be remembered goes with them.
func (l *Ledger) appendClear(ctx context.Context, r Request, stream string, at eventstore.Revision, position eventstore.Position, now time.Time, events []Event,
	remembered ...eventstore.Write) ([]Entry, error) {
	write := eventstore.Write{Stream: stream, Expected: at}
	entries := make([]Entry, len(events))
	for i, e := range events {
		entries[i] = Entry{ID: NewID(), Type: e.eventType(), Stream: stream, Revision: at + 1 + eventstore.Revision(i),
			Position: position, Time: now, Meta: r.Meta, Event: e}
		encoded, err := l.codec.encode(entries[i], eventstore.KeyID{})
		if err != nil {
			return nil, err
		}
		write.Events = append(write.Events, encoded)
	}
	if r.DryRun {
		return entries, nil
	}
	receipt, err := l.log.Append(ctx, eventstore.Commit{Writes: append([]eventstore.Write{write}, remembered...)})
	if err != nil {
		return nil, err
	}
	for i := range entries {
		entries[i].Position, entries[i].Time = receipt.First+eventstore.Position(i), receipt.Time
	}
	return entries, nil
}

// repeated answers a command that was executed before with what it led to.
func (l *Ledger) repeated(ctx context.Context, accounts []Account, seen command) (Result, error) {
	r := Result{Repeated: true}
	if seen.unchanged {
		var err error
		r.Account, err = l.AccountAt(ctx, accounts[0].Sub, seen.revision)
		r.Others = accounts[1:]
		return r, err
	}
	for i, a := range accounts {
		then := NewAccount(a.Sub)
		ended := false
		for x, err := range l.History(ctx, a.Sub, 0) {
			if err != nil {
				return r, err
			}
			// Of another account its own events under the id say how far.
			of := x.Meta.CommandID == seen.id
			if ended = ended || of; ended && !of {
				break
			}
			then = Evolve(then, x)
			if of {
				r.Events = append(r.Events, x)
			}
		}
		if i == 0 {
			r.Account = then
		} else {
			r.Others = append(r.Others, then)
		}
	}
	return r, nil
}
