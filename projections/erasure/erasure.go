// Package erasure removes what an account's end leaves to be removed: the
// key, what was sealed under it, and every copy of what was in it. The log
// says first that an account has ended and last that nothing of it is left;
// whatever happens between the two, the next Run goes on.
package erasure

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/eventstore/seal"
	"accountledger/projections"
	"accountledger/projections/webhooks"
)

// Config says what an Eraser works with.
type Config struct {
	Ledger   *domain.Ledger
	Log      eventstore.Store
	Keys     *seal.Keys
	Views    *projections.Views // somebody runs them
	Webhooks *webhooks.Webhooks // may be nil: then nothing was delivered
	Logger   *slog.Logger       // default: discards

	After func(time.Duration) <-chan time.Time // default time.After
}

// Eraser completes erasures. Make it with New. Its methods may be called at
// once by many goroutines, Run by one.
type Eraser struct {
	Config
	done func(step string) error // asked after each step; tests end there
}

// New returns an Eraser for Run.
func New(c Config) *Eraser {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.After == nil {
		c.After = time.After
	}
	return &Eraser{Config: c, done: func(string) error { return nil }}
}

const (
	page       = 256 // erasures read at once
	minBackoff = 100 * time.Millisecond
	maxBackoff = time.Minute
)

// actor is who completes erasures.
var actor = domain.Actor{Kind: "system", ID: "erasure"}

// Run completes every erasure there is and is to come, until ctx is done, and
// then returns nil. What fails is logged and tried again; it holds up no other.
func (e *Eraser) Run(ctx context.Context) error {
	backoff := minBackoff
	current := false
	for ctx.Err() == nil {
		changed := e.Views.Erasures().Changed()
		var err error
		if !current {
			// A view that is made again says of old erasures that they are
			// open. To do them once more would harm nothing and help nobody.
			current, err = e.catchUp(ctx)
		}
		if err == nil {
			err = e.sweep(ctx)
		}
		var again <-chan time.Time
		switch {
		case ctx.Err() != nil || errors.Is(err, eventstore.ErrClosed) || errors.Is(err, projections.ErrClosed):
			return nil
		case err != nil:
			e.Logger.ErrorContext(ctx, "erasure not completed", "retry", backoff, "err", err)
			again, backoff = e.After(backoff), min(2*backoff, maxBackoff)
		default:
			backoff = minBackoff
		}
		select {
		case <-changed:
		case <-again:
		case <-ctx.Done():
		}
	}
	return nil
}

// catchUp waits until the view has what the log has now.
func (e *Eraser) catchUp(ctx context.Context) (bool, error) {
	head, err := e.Log.Head(ctx)
	if err == nil {
		err = e.Views.Await(ctx, projections.ErasuresView, head)
	}
	return err == nil, err
}

// sweep completes what is open, the oldest first.
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
			if ctx.Err() != nil || errors.Is(err, eventstore.ErrClosed) {
				return err
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

// The steps of an erasure, in their order. Each may be done again.
const (
	stepKey      = "key"      // destroyed: from here on nothing can be read
	stepLog      = "log"      // holds nothing sealed under it
	stepViews    = "views"    // have no row and no page of the account
	stepDelivery = "delivery" // neither
	stepDone     = "done"     // and the log says so
)

func (e *Eraser) complete(ctx context.Context, x projections.Erasure) error {
	key, err := keyID(x.KeyID)
	if err != nil {
		return err
	}
	subs, err := e.lives(ctx, x.Sub)
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

func (e *Eraser) destroy(ctx context.Context, key eventstore.KeyID) error {
	if key == (eventstore.KeyID{}) {
		return nil // the account never had anything to seal
	}
	err := e.Keys.Destroy(ctx, key)
	if errors.Is(err, seal.ErrKey) {
		return nil // of an older keys.db: the key is not in it
	}
	return err
}

// lives are the accounts whose streams may hold what is sealed under the key
// of sub: itself and, wherever it was merged, those it was merged into.
func (e *Eraser) lives(ctx context.Context, sub string) ([]string, error) {
	subs := []string{sub}
	for i := 0; i < len(subs); i++ {
		for x, err := range e.Ledger.History(ctx, subs[i], 0) {
			if err != nil {
				return nil, err
			}
			if c, ok := x.Event.(domain.AccountCombined); ok && !slices.Contains(subs, c.Into) {
				subs = append(subs, c.Into)
			}
		}
	}
	return subs, nil
}

func keyID(text string) (key eventstore.KeyID, err error) {
	id, err := hex.DecodeString(text)
	if err != nil || copy(key[:], id) != len(key) || len(id) != len(key) {
		return key, errors.New("the erased key has no id")
	}
	return key, nil
}

// Await returns when everything the end of the account removes is gone, and
// the log says so. Somebody runs the Eraser.
func (e *Eraser) Await(ctx context.Context, sub string) error {
	a, err := e.Ledger.Account(ctx, sub)
	if err != nil {
		return err
	}
	if !a.Erased() {
		return fmt.Errorf("erasure: account %s has not ended", sub)
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
