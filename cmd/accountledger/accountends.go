package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"accountledger/domain"
	"accountledger/projections/erasure"
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

func (c console) merged(m mergeOutcome) {
	c.account(m.Account)
	var conflicts, events, told [][]any
	for _, x := range m.Conflicts {
		conflicts = append(conflicts, []any{x.Field, string(x.Kept), string(x.Dropped)})
	}
	c.section([]any{"conflict", "kept", "dropped"}, conflicts)
	for _, e := range m.Events {
		events = append(events, []any{e.Type, e.Sub, e.Revision})
	}
	c.section([]any{"event", "account", "revision"}, events)
	for _, w := range m.Webhooks {
		told = append(told, []any{w.WebhookID, strings.Join(w.Events, ", ")})
	}
	c.section([]any{"webhook", "is told"}, told)
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
			aside := console{out: s.out.err, err: s.out.err}
			aside.merged(outcome)
			if err := s.confirm(false, "\nSo it would be. Merge %s into %s?", printable(args[1]), printable(into)); err != nil {
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
		if err := s.confirm(sure || w.dryRun, "Take %s out of %s again?", printable(args[1]), printable(args[0])); err != nil {
			return err
		}
		return write(ctx, s, &w, w.request("POST", accountPath(args[0], "/unmerge"), body), func(unmerged struct {
			Account  domain.Account `json:"account"`
			Restored domain.Account `json:"restored"`
		}) {
			s.out.account(unmerged.Account)
			s.out.printf("\n")
			s.out.account(unmerged.Restored)
		})
	})
}

// deletion is how an account's end stands.
type deletion struct {
	Deletion *struct {
		Status  string    `json:"status"`
		DueTime time.Time `json:"dueTime"`
	} `json:"deletion"`
	Certificate *erasure.Certificate `json:"certificate"`
}

func (c console) deletion(d deletion) {
	if x := d.Deletion; x != nil {
		c.properties("deletion", x.Status, "due", x.DueTime)
	}
	x := d.Certificate
	if x == nil {
		return
	}
	c.properties("erased", x.Sub, "at", x.ErasedTime, "by", x.Actor, "completed", x.CompletedTime, "position", int64(x.Position), "key", x.KeyID, "events", len(x.Events))
	var told [][]any
	for _, s := range x.Subscribers {
		told = append(told, []any{s.WebhookID, s.Status})
	}
	c.section([]any{"webhook", "USER_DELETED"}, told)
}

func accountsDeleteCommand() *cobra.Command {
	var w writeFlags
	var grace time.Duration
	var immediate, sure bool
	cmd := &cobra.Command{
		Use:   "delete SUB",
		Short: "Delete an account, after a grace or at once",
		Long: `Delete an account. It is DELETED at once, and until the grace is over it can be
restored; then it is erased: its data key is destroyed, and with it all personal
data of it, its identifiers are free again, and nothing brings it back. With
--immediate that happens now and is answered with a certificate. It is asked for,
unless --yes is given.`,
		Args: cobra.ExactArgs(1),
	}
	w.add(cmd.Flags())
	cmd.Flags().DurationVar(&grace, "grace", 0, "how long it can be restored, like 48h; default the server's")
	cmd.Flags().BoolVar(&immediate, "immediate", false, "erase it now")
	cmd.Flags().BoolVarP(&sure, "yes", "y", false, "do not ask")
	cmd.MarkFlagsMutuallyExclusive("grace", "immediate")
	return onServer(cmd, func(ctx context.Context, s *session, args []string) error {
		r := w.request("DELETE", accountPath(args[0], ""), nil)
		question := "Delete %s?"
		if immediate {
			r.query.Set("immediate", "true")
			question = "Erase %s now, for good?"
		}
		if cmd.Flags().Changed("grace") {
			r.query.Set("grace", fmt.Sprint(grace))
		}
		if err := s.confirm(sure || w.dryRun, question, printable(args[0])); err != nil {
			return err
		}
		return write(ctx, s, &w, r, s.out.deletion)
	})
}

func accountsRestoreCommand() *cobra.Command {
	var w writeFlags
	cmd := &cobra.Command{
		Use:   "restore SUB",
		Short: "Cancel the deletion of an account",
		Long:  `Cancel the deletion of an account, which gets back the status it had.`,
		Args:  cobra.ExactArgs(1),
	}
	w.add(cmd.Flags())
	return onServer(cmd, func(ctx context.Context, s *session, args []string) error {
		return write(ctx, s, &w, w.request("DELETE", accountPath(args[0], "/deletion"), nil), s.out.account)
	})
}

func accountsDeletionCommand() *cobra.Command {
	return onServer(&cobra.Command{
		Use:   "deletion SUB",
		Short: "Show when an account is erased, or the certificate that it was",
		Long: `Show when a deleted account is to be erased. Of one that was, show the
certificate: what was destroyed, when, by whom, and who was told. With --json the
signed checkpoint is in it, too.`,
		Args: cobra.ExactArgs(1),
	}, func(ctx context.Context, s *session, args []string) error {
		return ask(ctx, s, get(accountPath(args[0], "/deletion")), s.out.deletion)
	})
}
