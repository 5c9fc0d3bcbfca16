package remote

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"accountledger/cmd/accountledger/cli"
	"accountledger/projections/erasure"
)

// deletion is the state of an account's deletion.
type deletion struct {
	Deletion *struct {
		Status  string    `json:"status"`
		DueTime time.Time `json:"dueTime"`
	} `json:"deletion"`
	Certificate *erasure.Certificate `json:"certificate"`
}

func (c printer) deletion(d deletion) {
	if x := d.Deletion; x != nil {
		c.Properties("deletion", x.Status, "due", x.DueTime)
	}
	x := d.Certificate
	if x == nil {
		return
	}
	c.Properties("erased", x.Sub, "at", x.ErasedTime, "by", x.Actor, "completed", x.CompletedTime, "position", int64(x.Position), "key", x.KeyID, "events", len(x.Events))
	var subscribers [][]any
	for _, s := range x.Subscribers {
		subscribers = append(subscribers, []any{s.WebhookID, s.Status})
	}
	c.Section([]any{"webhook", "USER_DELETED"}, subscribers)
}

func accountsDeleteCommand() *cobra.Command {
	var w writeFlags
	var grace time.Duration
	var immediate, sure bool
	cmd := &cobra.Command{
		Use:   "delete SUB",
		Short: "Delete an account, after a grace period or immediately",
		Long: `Delete an account. It gets the status DELETED and can be restored until the
grace period ends. The server then erases it permanently: it destroys the
account's data key, and with it all of its personal data, and releases its
identifiers. With --immediate the server erases the account now and returns a
certificate. The command asks for confirmation, unless --yes is set.`,
		Args: cobra.ExactArgs(1),
	}
	w.add(cmd.Flags())
	cmd.Flags().DurationVar(&grace, "grace", 0, "grace period in which the account can be restored, like 48h; default the server's")
	cmd.Flags().BoolVar(&immediate, "immediate", false, "erase the account now")
	cmd.Flags().BoolVarP(&sure, "yes", "y", false, "do not ask for confirmation")
	cmd.MarkFlagsMutuallyExclusive("grace", "immediate")
	return onServer(cmd, func(ctx context.Context, s *session, args []string) error {
		r := w.request("DELETE", accountPath(args[0], ""), nil)
		question := "Delete %s?"
		if immediate {
			r.query.Set("immediate", "true")
			question = "Erase %s now, permanently?"
		}
		if cmd.Flags().Changed("grace") {
			r.query.Set("grace", fmt.Sprint(grace))
		}
		if err := s.confirm(sure || w.dryRun, question, cli.Printable(args[0])); err != nil {
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
		Long:  `Cancel the deletion of an account. It gets the status it had before.`,
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
		Short: "Show when an account will be erased, or its certificate of erasure",
		Long: `Show when a deleted account will be erased. If it has been erased, show the
certificate: what was destroyed, when, by whom, and which webhooks were
notified. With --json the certificate includes the signed checkpoint.`,
		Args: cobra.ExactArgs(1),
	}, func(ctx context.Context, s *session, args []string) error {
		return ask(ctx, s, get(accountPath(args[0], "/deletion")), s.out.deletion)
	})
}
