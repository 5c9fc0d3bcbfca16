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

// mergeOutcome is the outcome of a merge or of its preview.
type mergeOutcome struct {
	Account   domain.Account `json:"account"`
	Conflicts []struct {
		Field   string         `json:"field"`
		Kept    jsontext.Value `json:"kept"`
		Dropped jsontext.Value `json:"dropped"`
	} `json:"conflicts"`
	Events   []plannedEvent `json:"events"` // only in a preview
	Webhooks []struct {
		WebhookID string   `json:"webhookId"`
		Events    []string `json:"events"`
	} `json:"webhooks"` // only in a preview
}

func (c printer) merged(m mergeOutcome) {
	c.account(m.Account)
	var conflicts, events, notified [][]any
	for _, x := range m.Conflicts {
		conflicts = append(conflicts, []any{x.Field, string(x.Kept), string(x.Dropped)})
	}
	c.Section([]any{"conflict", "kept", "dropped"}, conflicts)
	for _, e := range m.Events {
		events = append(events, []any{e.Type, e.Sub, e.Revision})
	}
	c.Section([]any{"event", "account", "revision"}, events)
	for _, w := range m.Webhooks {
		notified = append(notified, []any{w.WebhookID, strings.Join(w.Events, ", ")})
	}
	c.Section([]any{"webhook", "receives"}, notified)
}

// before returns the revision of the account sub on which a preview is based, or
// -1 if the preview has no event of it.
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
		Long: `Merge the account FROM into the account INTO. INTO gets the identities,
identifiers, memberships and consents of FROM, until 'unmerge' reverts the
merge. The command first shows a preview, with every conflict and the events
that each webhook would receive, and asks for confirmation, unless --yes is set.
It refuses the merge if INTO changes in between. --dry-run only shows the
preview.`,
		Args: cobra.ExactArgs(2),
	}
	w.add(cmd.Flags())
	cmd.Flags().BoolVarP(&sure, "yes", "y", false, "merge without preview and confirmation")
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
			if err := decode(answer, &outcome); err != nil {
				return err
			}
			aside := printer{cli.Console{Out: s.out.Err, Err: s.out.Err}}
			aside.merged(outcome)
			if err := s.confirm(false, "\nThis is a preview. Merge %s into %s?", cli.Printable(args[1]), cli.Printable(into)); err != nil {
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
		Short: "Revert a merge",
		Long: `Revert the merge of FROM into INTO. FROM gets back its identities, with the
changes made to them since, its identifiers and its status. The command asks for
confirmation, unless --yes is set.`,
		Args: cobra.ExactArgs(2),
	}
	w.add(cmd.Flags())
	cmd.Flags().BoolVarP(&sure, "yes", "y", false, "do not ask for confirmation")
	return onServer(cmd, func(ctx context.Context, s *session, args []string) error {
		body, err := json.Marshal(map[string]string{"sub": args[1]})
		if err != nil {
			return err
		}
		if err := s.confirm(sure || w.dryRun, "Separate %s from %s?", cli.Printable(args[1]), cli.Printable(args[0])); err != nil {
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
