package domain

import (
	"context"
	"fmt"
	"strings"

	"accountledger/eventstore"
)

// inspecting is a ConfigCommand that depends on what each single account is.
// To look at all of them takes long, so that is done while they change; then,
// while none changes, only those that have changed since are looked at.
type inspecting interface {
	ConfigCommand
	// inspect returns what reports whether an account is in the way of the
	// command, nil if none can be.
	inspect(c *Config) func(Account) bool
	// inspected returns the command knowing how many are.
	inspected(n int64) ConfigCommand
}

// inspection is what was seen of the accounts, up to a position of the log,
// with the eyes of one revision of the configuration.
type inspection struct {
	inTheWay func(Account) bool
	count    int64
	at       eventstore.Position
	revision eventstore.Revision
}

// inspect looks at all accounts. If some are in the way the answer is no,
// whatever happens meanwhile; only if none is, it matters what changes next.
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
	// Once already now, so that little is left to do while all wait.
	return l.inspectSince(ctx, seen)
}

// inspectSince looks at the accounts that have changed since.
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

// conclude returns cmd with what is known of the accounts. The caller holds
// l.configuring, so that none changes. A configuration that is no longer the
// one the accounts were seen with is a conflict.
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
