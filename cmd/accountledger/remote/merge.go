package remote

import (
	"context"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"accountledger/cmd/accountledger/cli"
	"accountledger/domain"
)

// mergeOutcome is what a merge does, or would do.
type mergeOutcome struct {
	Account   domain.Account `json:"account"`
	Conflicts []struct {
		Field   string         `json:"field"`
		Kept    jsontext.Value `json:"kept"`
		Dropped jsontext.Value `json:"dropped"`
	} `json:"conflicts"`
	Events   []plannedEvent `json:"events"` // of a preview
	Webhooks []struct {
		WebhookID string   `json:"webhookId"`
		Events    []string `json:"events"`
	} `json:"webhooks"` // likewise
}

func (c printer) merged(m mergeOutcome) {
	c.account(m.Account)
	var conflicts, events, told [][]any
	for _, x := range m.Conflicts {
		conflicts = append(conflicts, []any{x.Field, string(x.Kept), string(x.Dropped)})
	}
	c.Section([]any{"conflict", "kept", "dropped"}, conflicts)
	for _, e := range m.Events {
		events = append(events, []any{e.Type, e.Sub, e.Revision})
	}
	c.Section([]any{"event", "account", "revision"}, events)
	for _, w := range m.Webhooks {
		told = append(told, []any{w.WebhookID, strings.Join(w.Events, ", ")})
	}
	c.Section([]any{"webhook", "is told"}, told)
}

// before is the revision of the account sub that a preview went by; -1 where
// it does not say.
func (m mergeOutcome) before(sub string) int64 {
	for _, e := range m.Events {
		if e.Sub == sub {
			return e.Revision - 1
		}
	}
	return -1
}

func accountsMergeCommand() *cobra.Command {
	var w writeFlags
	var sure bool
	cmd := &cobra.Command{
		Use:   "merge INTO FROM",
		Short: "Merge an account into another",
		Long: `Merge the account FROM into the account INTO, which goes on: the identities,
identifiers, memberships and decisions of FROM lead to it, until that is taken
back with unmerge. What would come of it is shown first, with every conflict and
what each webhook would be told, and then asked for, unless --yes is given. The
account INTO must not change between the two. --dry-run shows it and ends.`,
		Args: cobra.ExactArgs(2),
	}
	w.add(cmd.Flags())
	cmd.Flags().BoolVarP(&sure, "yes", "y", false, "merge without showing and asking first")
	return onServer(cmd, func(ctx context.Context, s *session, args []string) error {
		into := strings.ToLower(args[0])
		body, err := json.Marshal(map[string]string{"from": args[1]})
		if err != nil {
			return err
		}
		preview := request{method: "POST", path: accountPath(into, "/merge/preview"), body: body, revision: -1, repeatable: true}
		if w.dryRun {
			return ask(ctx, s, preview, s.out.merged)
		}
		if !sure {
			answer, err := s.send(ctx, preview)
			if err != nil {
				return err
			}
			var outcome mergeOutcome
			if err := understood(answer, &outcome); err != nil {
				return err
			}
			aside := printer{cli.Console{Out: s.out.Err, Err: s.out.Err}}
			aside.merged(outcome)
			if err := s.confirm(false, "\nSo it would be. Merge %s into %s?", cli.Printable(args[1]), cli.Printable(into)); err != nil {
				return err
			}
			if w.revision < 0 {
				w.revision = outcome.before(into)
			}
		}
		return write(ctx, s, &w, w.request("POST", accountPath(into, "/merge"), body), s.out.merged)
	})
}

func accountsUnmergeCommand() *cobra.Command {
	var w writeFlags
	var sure bool
	cmd := &cobra.Command{
		Use:   "unmerge INTO FROM",
		Short: "Take a merge back",
		Long: `Take the merge of FROM into INTO back: FROM gets its identities, as they have
become, its identifiers and its status again. It is asked for, unless --yes is
given.`,
		Args: cobra.ExactArgs(2),
	}
	w.add(cmd.Flags())
	cmd.Flags().BoolVarP(&sure, "yes", "y", false, "do not ask")
	return onServer(cmd, func(ctx context.Context, s *session, args []string) error {
		body, err := json.Marshal(map[string]string{"sub": args[1]})
		if err != nil {
			return err
		}
		if err := s.confirm(sure || w.dryRun, "Take %s out of %s again?", cli.Printable(args[1]), cli.Printable(args[0])); err != nil {
			return err
		}
		return write(ctx, s, &w, w.request("POST", accountPath(args[0], "/unmerge"), body), func(unmerged struct {
			Account  domain.Account `json:"account"`
			Restored domain.Account `json:"restored"`
		}) {
			s.out.account(unmerged.Account)
			s.out.Printf("\n")
			s.out.account(unmerged.Restored)
		})
	})
}
