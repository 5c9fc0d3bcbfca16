// Package erasure completes the erasure of accounts: it destroys the account's
// key, and removes the data sealed under the key and every copy of it from all
// files. An event that erases the account begins an erasure, and another one
// records its completion; after a crash between the two, the next Run continues.
package erasure

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/eventstore/seal"
	"accountledger/projections"
	"accountledger/projections/webhooks"
)

// Config configures an Eraser.
type Config struct {
	Ledger   *domain.Ledger
	Log      eventstore.Store
	Keys     *seal.Keys
	Views    *projections.Views // the caller runs them
	Webhooks *webhooks.Webhooks // nil: there is no delivery.db
	Logger   *slog.Logger       // default: discards

	After func(time.Duration) <-chan time.Time // default time.After
}

// Eraser completes erasures. Create it with New. Run must be called by one
// goroutine only; all other methods are safe for concurrent use.
type Eraser struct {
	Config
	done    func(step string) error // called after each step; a test's error ends the erasure there
	refused map[projections.Erasure]bool
}

// New returns an Eraser. Call Run to complete erasures.
func New(c Config) *Eraser {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.After == nil {
		c.After = time.After
	}
	return &Eraser{Config: c, done: func(string) error { return nil }, refused: map[projections.Erasure]bool{}}
}

const (
	page       = 256 // erasures per query
	minBackoff = 100 * time.Millisecond
	maxBackoff = time.Minute
)

// actor is the actor of the events that complete erasures.
var actor = domain.Actor{Kind: "system", ID: "erasure"}

// Run completes all open erasures, and new ones as they begin, until ctx is done;
// then it returns nil. It logs and retries an erasure that fails, and continues
// with the others. If the log is tampered with, it returns the error.
func (e *Eraser) Run(ctx context.Context) error {
	backoff := minBackoff
	caughtUp := false
	for ctx.Err() == nil {
		changed := e.Views.Erasures().Changed()
		var err error
		if !caughtUp {
			// Until a view that starts from an empty file has applied the
			// whole log, it has completed erasures as open. Repeating them
			// would be harmless, but a waste.
			caughtUp, err = e.catchUp(ctx)
		}
		if err == nil {
			err = e.sweep(ctx)
		}
		var retry <-chan time.Time
		switch {
		case ctx.Err() != nil || errors.Is(err, eventstore.ErrClosed) || errors.Is(err, projections.ErrClosed):
			return nil
		case errors.Is(err, eventstore.ErrTampered):
			return fmt.Errorf("erasure: %w", err)
		case err != nil:
			e.Logger.ErrorContext(ctx, "erasure not completed", "retry", backoff, "err", err)
			retry, backoff = e.After(backoff), min(2*backoff, maxBackoff)
		default:
			backoff = minBackoff
		}
		select {
		case <-changed:
		case <-retry:
		case <-ctx.Done():
		}
	}
	return nil
}

// catchUp waits until the view has applied the log's current head.
func (e *Eraser) catchUp(ctx context.Context) (bool, error) {
	head, err := e.Log.Head(ctx)
	if err == nil {
		err = e.Views.Await(ctx, projections.ErasuresView, head)
	}
	return err == nil, err
}

// sweep completes all open erasures, oldest first.
func (e *Eraser) sweep(ctx context.Context) error {
	var errs []error
	for after := eventstore.Position(0); ; {
		open, err := e.Views.Erasures().Next(ctx, after, page)
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		for _, x := range open {
			after = x.Position
			err := e.complete(ctx, x)
			if ctx.Err() != nil || errors.Is(err, eventstore.ErrClosed) || errors.Is(err, eventstore.ErrTampered) {
				return err
			}
			if errors.Is(err, errNotInLog) {
				if !e.refused[x] { // only Run calls sweep
					e.refused[x] = true
					e.Logger.ErrorContext(ctx, "views.db was changed: it has an erasure that log.db does not have. Nothing is erased; move views.db away to have it rebuilt",
						"sub", x.Sub, "position", x.Position, "err", err)
				}
				continue
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("erasure of %s: %w", x.Sub, err))
			}
		}
		if len(open) < page {
			return errors.Join(errs...)
		}
	}
}

// The steps of an erasure, in this order. Each can be repeated.
const (
	stepKey      = "key"      // destroy the key; from here on the data cannot be read
	stepLog      = "log"      // remove the data sealed under the key from the log
	stepViews    = "views"    // remove the account's data from views.db
	stepDelivery = "delivery" // remove it from delivery.db
	stepDone     = "done"     // record the completion in the log
)

// errNotInLog says that the log does not have the event of an erasure.
var errNotInLog = errors.New("the log does not have the event of the erasure")

// proven returns the key that an erasure destroys, according to the log: the view
// alone, a file that anybody may have changed, erases nothing. The error is
// errNotInLog if the log has no such erasure, and eventstore.ErrTampered if it
// cannot prove it.
func (e *Eraser) proven(ctx context.Context, x projections.Erasure) (key eventstore.KeyID, err error) {
	for rec, err := range e.Log.ReadProven(ctx, domain.AccountStream(x.Sub), 0) {
		if err != nil {
			return key, err
		}
		if rec.Position != x.Position {
			continue
		}
		key, ok := domain.ErasedKey(rec.Type, rec.Clear)
		if !ok || hex.EncodeToString(key[:]) != x.KeyID {
			return key, errNotInLog
		}
		return key, nil
	}
	return key, errNotInLog
}

// complete performs all steps of an erasure.
func (e *Eraser) complete(ctx context.Context, x projections.Erasure) error {
	key, err := e.proven(ctx, x)
	if err != nil {
		return err
	}
	subs, err := e.mergedInto(ctx, x.Sub)
	if err != nil {
		return err
	}
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{stepKey, func() error { return e.destroy(ctx, key) }},
		{stepLog, func() error {
			streams := make([]string, len(subs))
			for i, sub := range subs {
				streams[i] = domain.AccountStream(sub)
			}
			err := e.Log.Erase(ctx, key, streams...)
			e.Ledger.Forget(subs...)
			return err
		}},
		{stepViews, func() error { return e.Views.Purge(ctx, domain.AccountStream(x.Sub), x.Position) }},
		{stepDelivery, func() error {
			if e.Webhooks == nil {
				return nil
			}
			return e.Webhooks.Purge(ctx, subs...)
		}},
		{stepDone, func() error {
			request := domain.Request{Meta: domain.Metadata{Actor: actor}}
			result, err := e.Ledger.Execute(ctx, request, x.Sub, domain.CompleteErasure{KeyID: x.KeyID})
			if err != nil {
				return err
			}
			return e.Views.Await(ctx, projections.ErasuresView, result.State.Position)
		}},
	} {
		if err := step.do(); err != nil {
			return err
		}
		if err := e.done(step.name); err != nil {
			return err
		}
	}
	return nil
}

// destroy destroys a key, if it still exists.
func (e *Eraser) destroy(ctx context.Context, key eventstore.KeyID) error {
	if key == (eventstore.KeyID{}) {
		return nil // the account never had personal data
	}
	err := e.Keys.Destroy(ctx, key)
	if errors.Is(err, seal.ErrKey) {
		return nil // keys.db is an older copy without this key
	}
	return err
}

// Repeat destroys again the keys of all erasures in the log that still exist, and
// returns their number. It is for a keys.db that was restored from before those
// erasures. Run need not run.
func (e *Eraser) Repeat(ctx context.Context) (n int64, err error) {
	head, err := e.Log.Head(ctx)
	if err != nil || head == 0 {
		return 0, err
	}
	before := e.Keys.State().Destroyed
	for page, err := range e.Log.Subscribe(ctx, 0) {
		if err != nil {
			return 0, fmt.Errorf("erasure: repeat: %w", err)
		}
		for _, rec := range page {
			if !domain.Is[domain.AccountErased](&rec) {
				continue
			}
			if key, ok := domain.ErasedKey(rec.Type, rec.Clear); ok {
				sub := strings.TrimPrefix(rec.Stream, domain.AccountStream(""))
				proven, err := e.proven(ctx, projections.Erasure{Sub: sub, KeyID: hex.EncodeToString(key[:]), Position: rec.Position})
				if err == nil {
					err = e.destroy(ctx, proven)
				}
				if err != nil {
					return 0, fmt.Errorf("erasure: repeat that at position %d: %w", rec.Position, err)
				}
			}
		}
		if page[len(page)-1].Position >= head {
			break
		}
	}
	return e.Keys.State().Destroyed - before, nil
}

// mergedInto returns the accounts whose streams may contain data sealed under
// sub's key: sub itself and all accounts it was merged into, directly or not.
func (e *Eraser) mergedInto(ctx context.Context, sub string) ([]string, error) {
	subs := []string{sub}
	for i := 0; i < len(subs); i++ {
		for rec, err := range e.Log.ReadProven(ctx, domain.AccountStream(subs[i]), 0) {
			if err != nil {
				return nil, err
			}
			if !domain.Is[domain.AccountCombined](&rec) {
				continue
			}
			event, _, err := domain.DecodeEvent(rec.Type, rec.Clear, nil)
			if err != nil {
				return nil, err
			}
			if c, ok := event.(domain.AccountCombined); ok && !slices.Contains(subs, c.Into) {
				subs = append(subs, c.Into)
			}
		}
	}
	return subs, nil
}

// Await waits until the erasure of the account is completed and the log records
// it. The caller runs the Eraser and its Views.
func (e *Eraser) Await(ctx context.Context, sub string) error {
	a, err := e.Ledger.Account(ctx, sub)
	if err != nil {
		return err
	}
	if !a.Erased() {
		return fmt.Errorf("erasure: account %s is not erased", sub)
	}
	if err := e.Views.Await(ctx, projections.ErasuresView, a.Position); err != nil {
		return err
	}
	for {
		changed := e.Views.Erasures().Changed()
		open, err := e.Views.Erasures().Open(ctx, sub)
		if err != nil || !open {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
