package remote

import (
	"context"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"accountledger/domain"
)

func accountsCommand() *cobra.Command {
	return serverCommand("accounts", "Get, find, create and change accounts",
		`Get, find, create, change, merge and delete accounts of a running server.`,
		accountsGetCommand(), accountsSearchCommand(), accountsCreateCommand(), accountsStatusCommand(), accountsHistoryCommand(),
		accountsMergeCommand(), accountsUnmergeCommand(), accountsDeleteCommand(), accountsRestoreCommand(), accountsDeletionCommand())
}

// accountPath returns the path of the account sub, followed by more.
func accountPath(sub string, more string) string { return "/v1/accounts/" + url.PathEscape(sub) + more }

func accountsGetCommand() *cobra.Command {
	var revision int64
	cmd := &cobra.Command{
		Use:   "get SUB",
		Short: "Show an account",
		Long: `Show an account: its status, identities, identifiers, groups, consents, custom
fields and schedules, now or at an earlier revision.`,
		Args: cobra.ExactArgs(1),
	}
	cmd.Flags().Int64Var(&revision, "revision", -1, "show the account at this revision")
	return onServer(cmd, func(ctx context.Context, s *session, args []string) error {
		r := get(accountPath(args[0], ""))
		if revision >= 0 {
			r.query = url.Values{"revision": {fmt.Sprint(revision)}}
		}
		return ask(ctx, s, r, s.out.account)
	})
}

// account prints an account.
func (c printer) account(a domain.Account) {
	c.Properties("sub", a.Sub, "status", a.Status, "reason", a.StatusReason, "combined into", a.CombinedInto, "created", a.CreatedTime,
		"updated", a.UpdatedTime, "last login", a.LastLoggedInTime, "by identity", a.LastUsedIdentity, "revision", int64(a.Revision))
	var identities, identifiers, fields, groups, consents, schedules, combined [][]any
	for _, i := range a.Identities {
		from := i.From
		if i.Secondary {
			from += " (secondary)"
		}
		identities = append(identities, []any{i.IdentityID, i.Provider, i.ProviderUserID, personName(i.Profile), i.CreatedTime, from})
	}
	c.Section([]any{"identity", "provider", "user id", "name", "since", "from"}, identities)
	for _, u := range a.UserIDs {
		identifiers = append(identifiers, []any{u.Type, u.Value, yes(u.Verified), u.Provider + u.FieldKey})
	}
	c.Section([]any{"identifier", "value", "verified", "of"}, identifiers)
	for _, key := range slices.Sorted(maps.Keys(a.CustomFields)) {
		fields = append(fields, []any{key, string(a.CustomFields[key])})
	}
	c.Section([]any{"custom field", "value"}, fields)
	for _, g := range a.Groups {
		groups = append(groups, []any{g.Path, g.GroupType, strings.Join(g.Roles, ", "), g.JoinedTime})
	}
	c.Section([]any{"group", "type", "roles", "since"}, groups)
	for _, d := range a.Consents {
		consents = append(consents, []any{d.ConsentID, d.Version, d.Status, d.Time})
	}
	c.Section([]any{"consent", "version", "decision", "at"}, consents)
	for _, d := range a.Schedules {
		schedules = append(schedules, []any{d.ScheduleID, d.Kind, d.TargetStatus, d.State, d.DueTime})
	}
	c.Section([]any{"schedule", "kind", "to", "state", "due"}, schedules)
	for _, o := range a.CombinedFrom {
		combined = append(combined, []any{o.Sub, o.Status, o.CreatedTime, o.CombinedTime})
	}
	c.Section([]any{"combined from", "was", "created", "combined"}, combined)
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// personName returns the full name in a profile.
func personName(p domain.Profile) string {
	return strings.Join(strings.Fields(p.GivenName+" "+p.MiddleName+" "+p.FamilyName), " ")
}

func accountsCreateCommand() *cobra.Command {
	var w writeFlags
	cmd := &cobra.Command{
		Use:   "create FILE",
		Short: "Create an account",
		Long: `Create an account from the JSON in FILE, or on standard input if FILE is -. It
has the form of the body of POST /v1/accounts:

  {"identities":[{"provider":"self","email":"ada@example.com"}]}`,
		Args: cobra.ExactArgs(1),
	}
	w.add(cmd.Flags())
	return onServer(cmd, func(ctx context.Context, s *session, args []string) error {
		body, err := s.read(args[0])
		if err != nil {
			return err
		}
		return write(ctx, s, &w, w.request("POST", "/v1/accounts", body), s.out.account)
	})
}

func accountsStatusCommand() *cobra.Command {
	var w writeFlags
	var reason, reasonFile string
	settable := []string{string(domain.StatusPending), string(domain.StatusVerified), string(domain.StatusDeclined)}
	cmd := &cobra.Command{
		Use:   "status SUB STATUS",
		Short: "Set the status of an account",
		Long: `Set the status of an account: ` + strings.Join(settable, ", ") + `. VERIFIED restores an
account whose deletion is scheduled.`,
		Args: cobra.ExactArgs(2),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return settable, cobra.ShellCompDirectiveNoFileComp
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
	}
	w.add(cmd.Flags())
	cmd.Flags().StringVar(&reason, "reason", "", "reason of the change; personal data, which the shell's history keeps")
	cmd.Flags().StringVar(&reasonFile, "reason-file", "", "file with the reason, - for standard input")
	cmd.MarkFlagsMutuallyExclusive("reason", "reason-file")
	return onServer(cmd, func(ctx context.Context, s *session, args []string) error {
		if reasonFile != "" {
			text, err := s.read(reasonFile)
			if err != nil {
				return err
			}
			reason = strings.TrimSpace(string(text))
		}
		body, err := json.Marshal(struct {
			UserStatus string `json:"userStatus"`
			Reason     string `json:"reason,omitzero"`
		}{args[1], reason})
		if err != nil {
			return err
		}
		return write(ctx, s, &w, w.request("PUT", accountPath(args[0], "/status"), body), func(a domain.Account) {
			s.out.Properties("sub", a.Sub, "status", a.Status, "reason", a.StatusReason, "updated", a.UpdatedTime, "revision", int64(a.Revision))
		})
	})
}

// historyPage is a page of an account's history.
type historyPage struct {
	Events []struct {
		Revision int64          `json:"revision"`
		Position int64          `json:"position"`
		Time     time.Time      `json:"time"`
		Type     string         `json:"type"`
		Actor    domain.Actor   `json:"actor"`
		Erased   bool           `json:"erased"`
		Data     jsontext.Value `json:"data"`
	} `json:"events"`
	Next *string `json:"next"`
}

func accountsHistoryCommand() *cobra.Command {
	var p pageFlags
	cmd := &cobra.Command{
		Use:   "history SUB",
		Short: "Show the events of an account",
		Long: `Show the events of an account, oldest first: what changed, when, and who changed
it. An erased account keeps its history, without personal data.`,
		Args: cobra.ExactArgs(1),
	}
	p.add(cmd.Flags(), "events")
	return onServer(cmd, func(ctx context.Context, s *session, args []string) error {
		return pages(ctx, s, p, listed(accountPath(args[0], "/events"), nil), func(page historyPage) *string {
			var rows [][]any
			for _, e := range page.Events {
				data := string(e.Data)
				if e.Erased {
					data += " erased"
				}
				rows = append(rows, []any{e.Revision, e.Position, e.Time, e.Type, e.Actor, data})
			}
			s.out.Table([]any{"revision", "position", "time", "event", "actor", "data"}, rows)
			return page.Next
		})
	})
}
