package webhooks

import (
	"context"
	"log/slog"
	"time"
)

// retry calls f until it succeeds or ctx is done, at least once.
func retry(ctx context.Context, logger *slog.Logger, what string, f func() error) {
	for {
		err := f()
		if err == nil || ctx.Err() != nil {
			return
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
