package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"accountledger/cmd/accountledger/cli"
	"accountledger/eventstore"
	"accountledger/projections"
	"accountledger/projections/export"
)

func reconcileCommand() *cobra.Command {
	var known int64
	cmd := &cobra.Command{
		Use:   "reconcile FILE",
		Short: "Compare the accounts of another system with the ledger",
		Long: `Compare the accounts of another system, listed in FILE, with the ledger. The
server may run meanwhile. FILE is a .ndjson, .csv or .parquet file with the sub
and the revision of each account, like an export. A system that follows events
knows the revision: it is the last sequence of the account.

The command prints a line for each account that differs: missing or behind in
the other system, ahead of the ledger, surplus (unknown to the ledger, or
erased), or listed more than once. With --at, the position up to which the other
system has processed events, it does not compare accounts that changed later.
The exit code is 6 if accounts differ.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := cli.Load(cmd)
			if err != nil {
				return err
			}
			if known < 0 {
				return cli.Usagef("at is %d; it must be 0 or more", known)
			}
			ctx, stop := cli.Interruptible(cmd.Context())
			defer stop()
			return reconcile(ctx, c, cli.NewConsole(cmd, c), args[0], eventstore.Position(known))
		},
	}
	cli.AddSettings(cmd.Flags(), "data")
	cmd.Flags().Int64Var(&known, "at", 0, "position up to which the other system has processed events; default: compare all accounts")
	return cmd
}

// reconciled is the summary of a comparison.
type reconciled struct {
	Position eventstore.Position `json:"position"` // of the ledger's side
	Target   int64               `json:"target"`   // accounts in the file
	Equal    int64               `json:"equal"`
	Later    int64               `json:"later"` // changed after --at
	Differ   map[string]int64    `json:"differ"`
}

func reconcile(ctx context.Context, c cli.Config, out cli.Console, path string, known eventstore.Position) error {
	r, err := openReadOnly(ctx, c, out.Logger())
	if err != nil {
		return err
	}
	defer r.close()
	views, err := projections.OpenReader(ctx, r.dir.path(viewsFile))
	if err != nil {
		return err
	}
	defer views.Close()
	summary := reconciled{Differ: map[string]int64{}}
	var differ int64
	var unprinted error
	compared, err := export.Compare(ctx, views, known, func(each func(export.Held)) error { return export.ReadTarget(path, each) },
		func(d export.Difference) {
			differ++
			summary.Differ[d.What]++
			if out.JSON {
				if err := out.Line(d); err != nil {
					unprinted = err
				}
			}
			out.Printf("%-8s  %s  ledger %3d  target %3d  position %d\n", d.What, d.Sub, d.Ledger, d.Target, d.Position)
		})
	if err == nil {
		err = unprinted
	}
	if err != nil {
		return fmt.Errorf("reconcile: %w", err)
	}
	summary.Position, summary.Target, summary.Equal, summary.Later = compared.Position, compared.Target, compared.Equal, compared.Later
	if out.JSON {
		err = out.Line(struct {
			Summary reconciled `json:"summary"`
		}{summary})
	}
	out.Printf("compared %d accounts of the target with the ledger at position %d: %d equal, %d changed later, %d differ\n",
		summary.Target, summary.Position, summary.Equal, summary.Later, differ)
	if err == nil && differ > 0 {
		err = cli.Exitf(cli.ExitDiffer, "%d accounts differ", differ)
	}
	return err
}
