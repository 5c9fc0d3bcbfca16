package remote

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"accountledger/cmd/accountledger/cli"
	"accountledger/projections/erasure"
)

// deletion is how an account's end stands.
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
	var told [][]any
	for _, s := range x.Subscribers {
		told = append(told, []any{s.WebhookID, s.Status})
	}
	c.Section([]any{"webhook", "USER_DELETED"}, told)
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
