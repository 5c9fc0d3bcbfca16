package webhooks

import (
	"context"
	"errors"
	"fmt"
)

// ErrBusy is returned by Purge when old pages cannot be removed, because
// someone reads the file for long. Ask again.
var ErrBusy = errors.New("webhooks: old pages are still on disk, another reader holds them")

// Purge removes what receivers answered about these accounts, which may quote
// what they were sent, from the file and its write-ahead log. What was sent is
// not in the file. Nor is the answer to a request written that is under way.
// Purge works while Run runs, and without.
func (w *Webhooks) Purge(ctx context.Context, subs ...string) error {
	for _, sub := range subs {
		if err := w.forget(ctx, sub); err != nil {
			return fmt.Errorf("webhooks: purge: %w", err)
		}
	}
	if err := w.store.scrub(ctx); err != nil {
		return fmt.Errorf("webhooks: purge: %w", err)
	}
	return nil
}

// forget removes what receivers answered about an account, and what they are
// still to answer: what was opened before is sent for a while yet.
func (w *Webhooks) forget(ctx context.Context, sub string) error {
	return w.store.forget(ctx, sub, w.c.Now().Add(reopenAfter))
}
