package domain

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"iter"
	"sync"
	"time"

	"github.com/maypok86/otter/v2"

	"accountledger/eventstore"
)

// Ledger is the write side: it loads an account, lets the rules decide, and
// appends what they decided. It may be used by many goroutines at once.
type Ledger struct {
	log   eventstore.Store
	codec Codec
	now   func() time.Time
	cache *otter.Cache[string, Account] // folded accounts; checked against the stream at every append

	// turns gives commands on one account their turn inside this process, so
	// that they do not lose to one another again and again. Between processes
	// the expected revision decides.
	turns [1024]sync.Mutex
	seed  maphash.Seed
}

// LedgerConfig says what a Ledger works with.
type LedgerConfig struct {
	Log   eventstore.Store
	Codec Codec
	Cache int              // accounts kept folded in memory; default 10,000
	Now   func() time.Time // default time.Now
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
		log: c.Log, codec: c.Codec, now: c.Now, seed: maphash.MakeSeed(),
		cache: otter.Must(&otter.Options[string, Account]{MaximumSize: c.Cache}),
	}
}

// Request is how a command is to be carried out.
type Request struct {
	Meta     Metadata
	Expected *eventstore.Revision // refuse with CodeStaleRevision if the account is at another one
	DryRun   bool                 // decide, and append nothing
}

// Result is what came of a command.
type Result struct {
	Account  Account // after the command; at a repetition, as it was then
	Events   []Entry // what it caused; none where it changed nothing or had been executed before
	Repeated bool    // the command id was seen before; nothing was done
}

// tries is how often a command is decided anew after another writer was
// faster. Within one process that does not happen, see Ledger.turns.
const tries = 5

// Execute asks cmd of the account sub. The events are durable when it
// returns. A refusal is an *Error.
func (l *Ledger) Execute(ctx context.Context, r Request, sub string, cmd Command) (Result, error) {
	turn := &l.turns[maphash.String(l.seed, sub)%uint64(len(l.turns))]
	turn.Lock()
	defer turn.Unlock()
	// A creation expects nothing, so it reads nothing, until it is contradicted.
	_, blind := cmd.(CreateAccount)
	blind = blind && !r.DryRun
	for range tries {
		before, err := NewAccount(sub), error(nil)
		if !blind {
			before, err = l.Account(ctx, sub)
		}
		if err != nil {
			return Result{}, err
		}
		result, err := l.try(ctx, r, before, cmd)
		if _, conflict := errors.AsType[*eventstore.ConflictError](err); !conflict {
			return result, err
		}
		l.cache.Invalidate(sub)
		blind = false
	}
	return Result{}, refuse(CodeConcurrentChange, "Others change this account all the time; try again.")
}

func (l *Ledger) try(ctx context.Context, r Request, before Account, cmd Command) (Result, error) {
	if then, seen, err := l.repeated(ctx, before, r.Meta); seen || err != nil {
		return Result{Account: then, Repeated: true}, err
	}
	if r.Expected != nil && *r.Expected != before.Revision {
		return Result{}, refuse(CodeStaleRevision, "The account is at revision %d, not %d.", before.Revision, *r.Expected)
	}
	events, err := Decide(before, cmd)
	if err != nil || len(events) == 0 {
		return Result{Account: before}, err
	}
	after, entries := l.evolve(before, r.Meta, events)
	if r.DryRun {
		return Result{Account: after, Events: entries}, nil
	}
	write, err := l.write(ctx, before, entries)
	if err != nil {
		return Result{}, err
	}
	commit := eventstore.Commit{Writes: []eventstore.Write{write}}
	commit.Claim, commit.Release = claims(before, after, l.codec.Keys.Claim)
	receipt, err := l.log.Append(ctx, commit)
	if err != nil {
		return Result{}, refusal(cmd, err)
	}
	// Fold again: now the events have their places and their time.
	after = before
	for i := range entries {
		entries[i].Position, entries[i].Time = receipt.First+eventstore.Position(i), receipt.Time
		entries[i].keyID = write.Events[i].KeyID
		after = Evolve(after, entries[i])
	}
	l.cache.Set(after.Sub, after)
	return Result{Account: after, Events: entries}, nil
}

// evolve makes entries of events, as they will be if they are appended now.
func (l *Ledger) evolve(a Account, m Metadata, events []Event) (Account, []Entry) {
	now := l.now().UTC().Truncate(time.Microsecond)
	entries := make([]Entry, len(events))
	for i, e := range events {
		entries[i] = Entry{ID: NewID(), Type: e.eventType(), Stream: AccountStream(a.Sub), Revision: a.Revision + 1,
			Position: a.Position, Time: now, Meta: m, Event: e}
		a = Evolve(a, entries[i])
	}
	return a, entries
}

// write seals entries under the account's key; a new account gets its key.
func (l *Ledger) write(ctx context.Context, before Account, entries []Entry) (eventstore.Write, error) {
	key := before.key
	if key == (eventstore.KeyID{}) {
		var err error
		if key, err = l.codec.Keys.NewKey(ctx); err != nil {
			return eventstore.Write{}, fmt.Errorf("domain: a key for a new account: %w", err)
		}
	}
	w := eventstore.Write{Stream: AccountStream(before.Sub), Expected: before.Revision}
	for _, x := range entries {
		e, err := l.codec.encode(x, key)
		if err != nil {
			return w, err
		}
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
		return refuse(CodeIdentityConflict, "Another account has this %s; it may be the same person's, to be merged.", taken.Claim.Kind)
	}
	return refuse(CodeIdentifierTaken, "Another account has this %s.", taken.Claim.Kind)
}

// Account returns the account as its stream says, created or not.
func (l *Ledger) Account(ctx context.Context, sub string) (Account, error) {
	if a, ok := l.cache.GetIfPresent(sub); ok {
		return a, nil
	}
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

// repeated finds the command of m among those the account has seen, and
// returns the account as that command left it.
func (l *Ledger) repeated(ctx context.Context, a Account, m Metadata) (Account, bool, error) {
	if m.CommandID == "" {
		return Account{}, false, nil
	}
	for _, c := range a.commands {
		if c.id != m.CommandID {
			continue
		}
		if c.requestHash != m.requestHash {
			return Account{}, true, refuse(CodeIdempotencyKeyReused, "This Idempotency-Key was used for another request.")
		}
		then, err := l.AccountAt(ctx, a.Sub, c.revision)
		return then, true, err
	}
	return Account{}, false, nil
}

// Webhook returns the endpoint as its stream says, created or not.
func (l *Ledger) Webhook(ctx context.Context, id string) (Webhook, error) {
	w := NewWebhook(id)
	for x, err := range l.entries(ctx, WebhookStream(id), 0) {
		if err != nil {
			return w, err
		}
		w = w.Evolve(x)
	}
	return w, nil
}

// ExecuteWebhook asks cmd of the endpoint id. The position is that of the
// last event it caused, 0 if it changed nothing.
func (l *Ledger) ExecuteWebhook(ctx context.Context, r Request, id string, cmd WebhookCommand) (Webhook, eventstore.Position, error) {
	for range tries {
		w, err := l.Webhook(ctx, id)
		if err != nil {
			return w, 0, err
		}
		if r.Expected != nil && *r.Expected != w.Revision {
			return w, 0, refuse(CodeStaleRevision, "The webhook is at revision %d, not %d.", w.Revision, *r.Expected)
		}
		events, err := cmd.decide(w)
		if err != nil || len(events) == 0 {
			return w, 0, err
		}
		write := eventstore.Write{Stream: WebhookStream(id), Expected: w.Revision}
		now := l.now().UTC().Truncate(time.Microsecond)
		var entries []Entry
		for i, e := range events {
			x := Entry{ID: NewID(), Type: e.eventType(), Stream: write.Stream, Revision: w.Revision + 1 + eventstore.Revision(i), Time: now, Meta: r.Meta, Event: e}
			encoded, err := l.codec.encode(x, eventstore.KeyID{})
			if err != nil {
				return w, 0, err
			}
			write.Events, entries = append(write.Events, encoded), append(entries, x)
		}
		if r.DryRun {
			for _, x := range entries {
				w = w.Evolve(x)
			}
			return w, 0, nil
		}
		receipt, err := l.log.Append(ctx, eventstore.Commit{Writes: []eventstore.Write{write}})
		if _, conflict := errors.AsType[*eventstore.ConflictError](err); conflict {
			continue
		}
		if err != nil {
			return w, 0, err
		}
		for _, x := range entries {
			x.Time = receipt.Time
			w = w.Evolve(x)
		}
		return w, receipt.Last, nil
	}
	return Webhook{}, 0, refuse(CodeConcurrentChange, "Others change this webhook all the time; try again.")
}
