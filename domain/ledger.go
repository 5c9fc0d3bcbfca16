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

// Ledger is the write side: it loads an account, has the rules decide, and
// appends the events. It is safe for concurrent use.
type Ledger struct {
	log    eventstore.Store
	codec  Codec
	now    func() time.Time
	census Census
	cache  *otter.Cache[string, Account] // folded accounts; checked against the stream at every append

	hits, misses atomic.Int64                    // of cache
	observe      func(context.Context, Executed) // may be nil

	// locks serialise the commands on one stream inside this process, so that
	// they do not lose to one another again and again. Between processes the
	// expected revision decides.
	locks [1024]sync.Mutex
	seed  maphash.Seed

	// configuring is held for reading by commands on accounts, from decision to
	// append, and for writing by changes of the configuration. So no account
	// changes by rules that no longer apply. Other processes do not take part.
	configuring sync.RWMutex
	config      atomic.Pointer[Config] // nil until first used; written under configuring, read without

	keying  sync.Mutex              // held while a command changes the API keys
	apiKeys atomic.Pointer[APIKeys] // nil until first used; written under keying, read without

	forking sync.Mutex              // held while the lineage is read or changed
	lineage atomic.Pointer[Lineage] // nil until first used; written under forking, read without
}

// LedgerConfig configures a Ledger.
type LedgerConfig struct {
	Log    eventstore.Store
	Codec  Codec
	Census Census           // of the accounts in Log; required by commands on groups, roles, fields and consents
	Cache  int              // accounts kept folded in memory; default 10,000
	Now    func() time.Time // default time.Now

	// Observe is called after each command, in the caller's goroutine and with
	// its context, so it must not block. Default: none.
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

// joint is a command that decides over several accounts at once: the addressed
// account, and others.
type joint interface {
	Command
	// others returns the subs of the others, given the addressed account.
	others(a Account) []string
	// decideJoint returns the events that the command causes in a, and in each of
	// the others.
	decideJoint(s Setting, a Account, others []Account) ([]Event, [][]Event, error)
}

// proven is a command that destroys or executes something. The ledger decides it
// over events that it has proven to be in the log, and never over its cache: a
// forged event in the file must not erase an account.
type proven interface {
	Command
	proven()
}

// Execute carries out cmd on the account sub. The events are durable when it
// returns. A refusal is an *Error. The result shows what the caller may see.
func (l *Ledger) Execute(ctx context.Context, r Request, sub string, cmd Command) (Result[Account], error) {
	result, err := observed(ctx, l, cmd, r, func() (Result[Account], error) {
		if cmd, ok := cmd.(joint); ok {
			return l.executeJoint(ctx, r, sub, cmd)
		}
		return l.execute(ctx, r, sub, cmd)
	})
	if err != nil || r.Admin {
		return result, err
	}
	c, err := l.Config(ctx)
	if err != nil {
		return Result[Account]{}, err
	}
	return c.Hidden().from(result), nil
}

func (l *Ledger) execute(ctx context.Context, r Request, sub string, cmd Command) (Result[Account], error) {
	defer l.lock(sub)()
	// A creation expects an empty stream, so it reads the stream only after a
	// conflict.
	_, blind := cmd.(CreateAccount)
	blind = blind && !r.DryRun
	return retry(func() (Result[Account], error) {
		before, err := NewAccount(sub), error(nil)
		if !blind {
			before, err = l.accountFor(ctx, cmd, sub)
		}
		blind = false
		if err != nil {
			return Result[Account]{}, err
		}
		return l.decide(ctx, r, cmd, []Account{before}, func(s Setting) ([][]Event, error) {
			events, err := Decide(s, before, cmd)
			return [][]Event{events}, err
		})
	})
}

func (l *Ledger) executeJoint(ctx context.Context, r Request, sub string, cmd joint) (Result[Account], error) {
	a, err := l.Account(ctx, sub)
	if err != nil {
		return Result[Account]{}, err
	}
	subs := append([]string{sub}, cmd.others(a)...)
	defer l.lock(subs...)()
	return retry(func() (Result[Account], error) {
		before := make([]Account, len(subs))
		for i, s := range subs {
			if before[i], err = l.accountFor(ctx, cmd, s); err != nil {
				return Result[Account]{}, err
			}
		}
		if now := cmd.others(before[0]); !slices.Equal(now, subs[1:]) {
			// The set changed before the locks were taken. It is rare enough to leave
			// the retry to the caller.
			return Result[Account]{}, refuse(CodeConcurrentChange, "The account was merged or separated at the same time; retry the request.")
		}
		return l.decide(ctx, r, cmd, before, func(s Setting) ([][]Event, error) {
			if err := admit(before[0], cmd); err != nil {
				return nil, err
			}
			own, others, err := cmd.decideJoint(s, before[0], before[1:])
			return append([][]Event{own}, others...), err
		})
	})
}

// decide carries out cmd on accounts, of which the first is the addressed one.
func (l *Ledger) decide(ctx context.Context, r Request, cmd Command, before []Account, decide func(Setting) ([][]Event, error)) (Result[Account], error) {
	if _, err := l.Config(ctx); err != nil { // once read it stays in memory
		return Result[Account]{}, err
	}
	l.configuring.RLock()
	defer l.configuring.RUnlock()
	keys := map[string]eventstore.KeyID{}
	for _, a := range before {
		keys[a.Sub] = a.key
		for _, c := range a.CombinedFrom {
			keys[c.Sub] = c.key
		}
	}
	result, err := carryOut(ctx, l, order[Account]{
		Request: r,
		noun:    "account",
		revision: func(a Account) eventstore.Revision {
			if a.Erased() {
				return eventstore.NoStream
			}
			return a.Revision
		},
		decide: func(now time.Time, _ []Account) ([][]Event, error) {
			return decide(Setting{Config: l.config.Load(), Now: now, Admin: r.Admin})
		},
		encode: func(ctx context.Context, a Account, entries []Entry) (eventstore.Write, error) {
			return l.seal(ctx, keys, a, entries)
		},
		claims: func(before, after []Account) (claim, release []eventstore.Claim) {
			return claims(before, after, l.codec.Keys.Claim)
		},
		keep: func(a Account) { l.cache.Set(a.Sub, a) },
	}, before)
	if _, conflict := errors.AsType[*eventstore.ConflictError](err); conflict {
		for _, a := range before {
			l.cache.Invalidate(a.Sub)
		}
	}
	return result, refusal(cmd, err)
}

// lock waits until no other command of this process works on the streams of
// ids. unlock lets the next one continue.
func (l *Ledger) lock(ids ...string) (unlock func()) {
	if len(ids) == 1 {
		mu := &l.locks[l.lockOf(ids[0])]
		mu.Lock()
		return mu.Unlock
	}
	// All callers lock in the same order, or two could wait for each other.
	locks := make([]uint64, len(ids))
	for i, id := range ids {
		locks[i] = l.lockOf(id)
	}
	slices.Sort(locks)
	locks = slices.Compact(locks)
	for _, i := range locks {
		l.locks[i].Lock()
	}
	return func() {
		for _, i := range locks {
			l.locks[i].Unlock()
		}
	}
}

func (l *Ledger) lockOf(id string) uint64 {
	return maphash.String(l.seed, id) % uint64(len(l.locks))
}

// seal encodes entries, each sealed under the key of the account whose data it
// holds. A new account gets its key.
func (l *Ledger) seal(ctx context.Context, keys map[string]eventstore.KeyID, before Account, entries []Entry) (eventstore.Write, error) {
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

// refusal translates a claim that the log refused into a refusal for the caller.
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

// Account returns the account as its stream defines it. It may not exist.
func (l *Ledger) Account(ctx context.Context, sub string) (Account, error) {
	if a, ok := l.cache.GetIfPresent(sub); ok {
		l.hits.Add(1)
		return a, nil
	}
	l.misses.Add(1)
	return l.fold(sub, l.History(ctx, sub, 0))
}

// accountFor returns the account over which cmd is decided.
func (l *Ledger) accountFor(ctx context.Context, cmd Command, sub string) (Account, error) {
	if _, ok := cmd.(proven); !ok {
		return l.Account(ctx, sub)
	}
	stream := AccountStream(sub)
	return l.fold(sub, l.decoded(stream, l.log.ReadProven(ctx, stream, 0)))
}

// fold folds all events of an account and puts the result into the cache.
func (l *Ledger) fold(sub string, history iter.Seq2[Entry, error]) (Account, error) {
	a := NewAccount(sub)
	for x, err := range history {
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

// Forget drops accounts from memory, so that nothing folded while their key was
// being destroyed stays there.
func (l *Ledger) Forget(subs ...string) {
	for _, sub := range subs {
		l.cache.Invalidate(sub)
	}
}

// History yields the account's events, starting at a revision.
func (l *Ledger) History(ctx context.Context, sub string, from eventstore.Revision) iter.Seq2[Entry, error] {
	return l.entries(ctx, AccountStream(sub), from)
}

// DecidingStreams are the streams that decide who may do what, by which rules, and
// who is notified; a name that ends in a hyphen stands for all streams whose names
// begin with it. They are read with proof, because a forged event there would act.
// A store seals their last events, because a hidden one would too.
var DecidingStreams = []string{APIKeyStream, ConfigStream, LineageStream, webhookPrefix}

func decides(stream string) bool {
	return slices.ContainsFunc(DecidingStreams, func(name string) bool {
		return stream == name || strings.HasSuffix(name, "-") && strings.HasPrefix(stream, name)
	})
}

// entries yields the events of a stream.
func (l *Ledger) entries(ctx context.Context, stream string, from eventstore.Revision) iter.Seq2[Entry, error] {
	if decides(stream) {
		return l.decoded(stream, l.log.ReadProven(ctx, stream, from))
	}
	return l.decoded(stream, l.log.ReadStream(ctx, stream, from))
}

// decoded decodes records of a stream.
func (l *Ledger) decoded(stream string, records iter.Seq2[eventstore.Recorded, error]) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		for rec, err := range records {
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
