package domain

import (
	"context"
	"fmt"
	"strings"

	"accountledger/eventstore"
)

// inspecting is a ConfigCommand whose decision depends on every single account.
// Reading all accounts takes long, so the ledger first reads them while they
// change. Then, while none changes, it reads only those that changed since.
type inspecting interface {
	ConfigCommand
	// inspect returns a function that reports whether an account conflicts with
	// the command, or nil if none can.
	inspect(c *Config) func(Account) bool
	// inspected returns the command with the number of conflicting accounts
	// filled in.
	inspected(n int64) ConfigCommand
}

// inspection is the result of reading all accounts up to a position of the log,
// by one revision of the configuration.
type inspection struct {
	inTheWay func(Account) bool
	count    int64
	at       eventstore.Position
	revision eventstore.Revision
}

// inspect reads all accounts. If some conflict, the command is refused whatever
// changes next; only if none does, later changes matter.
func (l *Ledger) inspect(ctx context.Context, cmd ConfigCommand) (inspection, error) {
	i, ok := cmd.(inspecting)
	if !ok {
		return inspection{}, nil
	}
	c, err := l.Config(ctx)
	if err != nil {
		return inspection{}, err
	}
	seen := inspection{inTheWay: i.inspect(c), revision: c.Revision}
	if seen.inTheWay == nil {
		return seen, nil
	}
	at, accounts, err := l.census.Accounts(ctx)
	if err != nil {
		return seen, fmt.Errorf("domain: inspect accounts: %w", err)
	}
	seen.at = at
	for a, err := range accounts {
		if err != nil {
			return seen, fmt.Errorf("domain: inspect accounts: %w", err)
		}
		if seen.inTheWay(a) {
			seen.count++
		}
	}
	// Catch up before the lock is taken, so that little is left to do under it.
	return l.inspectSince(ctx, seen)
}

// inspectSince reads the accounts that changed since.
func (l *Ledger) inspectSince(ctx context.Context, seen inspection) (inspection, error) {
	head, err := l.log.Head(ctx)
	if err != nil || seen.inTheWay == nil || seen.count > 0 || seen.at >= head {
		return seen, err
	}
	changed := map[string]bool{}
	for page, err := range l.log.Subscribe(ctx, seen.at) {
		if err != nil {
			return seen, fmt.Errorf("domain: inspect accounts: %w", err)
		}
		for _, rec := range page {
			if sub, ok := strings.CutPrefix(rec.Stream, accountPrefix); ok {
				changed[sub] = true
			}
			seen.at = rec.Position
		}
		if seen.at >= head {
			break
		}
	}
	for sub := range changed {
		a, err := l.Account(ctx, sub)
		if err != nil {
			return seen, err
		}
		if seen.inTheWay(a) {
			seen.count++
		}
	}
	return seen, nil
}

// conclude returns cmd with the result of the inspection filled in. The caller
// holds l.configuring, so no account changes. If the configuration changed since
// the inspection, the error is a conflict.
func (l *Ledger) conclude(ctx context.Context, c *Config, cmd ConfigCommand, seen inspection) (ConfigCommand, error) {
	i, ok := cmd.(inspecting)
	if !ok {
		return cmd, nil
	}
	if c.Revision != seen.revision {
		return nil, &eventstore.ConflictError{Stream: ConfigStream, Expected: seen.revision, Actual: c.Revision}
	}
	seen, err := l.inspectSince(ctx, seen)
	return i.inspected(seen.count), err
}
