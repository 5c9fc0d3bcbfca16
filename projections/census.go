package projections

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"iter"
	"maps"
	"slices"

	"accountledger/domain"
	"accountledger/eventstore"
)

const (
	countMembers   = `INSERT INTO members_%[1]d (group_id, role, count) VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET count = count + excluded.count`
	uncountMembers = `DELETE FROM members_%[1]d WHERE group_id = ? AND role = ? AND count = 0`
	sumMembers     = `SELECT coalesce(sum(count), 0) FROM members_%[1]d WHERE `
)

// membership is the key of a row of the members table.
type membership struct{ group, role string }

// writeMembers adds the batch's changes to the numbers of members, with one
// statement for each group and role.
func (w *accountWriter) writeMembers(ctx context.Context, tx *sql.Tx) error {
	counts := map[membership]int{}
	for _, t := range w.order {
		// Most batches change no groups.
		if !t.written || slices.EqualFunc(t.groups, t.Groups, sameRoles) {
			continue
		}
		countAll(counts, t.groups, -1)
		countAll(counts, t.Groups, +1)
	}
	for _, m := range slices.SortedFunc(maps.Keys(counts), func(a, b membership) int {
		return cmp.Or(cmp.Compare(a.group, b.group), cmp.Compare(a.role, b.role))
	}) {
		n := counts[m]
		if n == 0 {
			continue
		}
		if _, err := tx.StmtContext(ctx, w.count).ExecContext(ctx, m.group, m.role, n); err != nil {
			return err
		}
		if n > 0 {
			continue
		}
		if _, err := tx.StmtContext(ctx, w.uncount).ExecContext(ctx, m.group, m.role); err != nil {
			return err
		}
	}
	return nil
}

func sameRoles(a, b domain.Membership) bool {
	return a.GroupID == b.GroupID && slices.Equal(a.Roles, b.Roles)
}

// countAll adds sign to the counts of all memberships in groups.
func countAll(counts map[membership]int, groups []domain.Membership, sign int) {
	for _, m := range groups {
		counts[membership{m.GroupID, ""}] += sign
		if len(m.Roles) == 0 {
			counts[membership{m.GroupID, domain.NoRole}] += sign
		}
		for _, role := range m.Roles {
			counts[membership{m.GroupID, role}] += sign
		}
	}
}

// Census returns a domain.Census that answers from the account view. Members
// waits until the view has applied the log's current head.
func (v *Views) Census() domain.Census { return census{v} }

type census struct{ views *Views }

// Members implements domain.Census.
func (c census) Members(ctx context.Context, groupID, role string) (n int64, err error) {
	where, args := `role = ?`, []any{role}
	if groupID != "" {
		where, args = `group_id = ? AND role = ?`, []any{groupID, role}
	}
	err = c.current(ctx, func(tx *sql.Tx, generation int64) error {
		return tx.QueryRowContext(ctx, fmt.Sprintf(sumMembers+where, generation), args...).Scan(&n)
	})
	if err != nil {
		return 0, fmt.Errorf("projections: count members: %w", err)
	}
	return n, nil
}

// current waits until the account view has applied the log's head, then calls
// query with a transaction and the live generation.
func (c census) current(ctx context.Context, query func(tx *sql.Tx, generation int64) error) error {
	head, err := c.views.log.Head(ctx)
	if err != nil {
		return err
	}
	if err := c.views.accounts.view.await(ctx, head); err != nil {
		return err
	}
	tx, generation, _, err := c.views.accounts.snapshot(ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	// A parked account's memberships may have changed since.
	parked, err := loadParked(ctx, tx, AccountsView, generation)
	if err != nil {
		return err
	}
	if len(parked) > 0 {
		return errParkedAccounts(len(parked))
	}
	return query(tx, generation)
}

func errParkedAccounts(n int) error {
	return fmt.Errorf("the account view could not apply an event of %d accounts", n)
}

// Accounts implements domain.Census.
func (c census) Accounts(ctx context.Context) (eventstore.Position, iter.Seq2[domain.Account, error], error) {
	status, err := c.views.Status(ctx)
	if err != nil {
		return 0, nil, err
	}
	for _, s := range status {
		if s.Name == AccountsView && len(s.Parked) > 0 {
			return 0, nil, fmt.Errorf("projections: read all accounts: %w", errParkedAccounts(len(s.Parked)))
		}
	}
	at, _, rows, err := c.views.accounts.All(ctx)
	if err != nil {
		return 0, nil, err
	}
	return at, func(yield func(domain.Account, error) bool) {
		for row, err := range rows {
			var a domain.Account
			if err == nil {
				a, err = row.Account()
			}
			if !yield(a, err) || err != nil {
				return
			}
		}
	}, nil
}
