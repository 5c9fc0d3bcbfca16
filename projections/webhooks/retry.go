package webhooks

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"accountledger/eventstore"
)

// retry calls f until it succeeds or ctx is done, at least once. It gives up, and
// returns the error, only if the log is tampered with.
func retry(ctx context.Context, logger *slog.Logger, what string, f func() error) error {
	for {
		err := f()
		switch {
		case errors.Is(err, eventstore.ErrTampered):
			return err
		case err == nil || ctx.Err() != nil:
			return nil
		}
		logger.ErrorContext(ctx, "webhooks could not process a change, retrying", "change", what, "err", err)
		sleep(ctx, time.Second)
	}
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
