package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"accountledger/cmd/accountledger/cli"
	"accountledger/eventstore"
	"accountledger/projections"
	"accountledger/projections/export"
)

func exportCommand() *cobra.Command {
	var (
		path   string
		format string
		since  int64
		fields []string
	)
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Write all accounts, as they are at one position",
		Long: `Write all accounts to standard output or, with --out, to a file that is there
wholly or not at all. All are as they were at one position of the log, which is
named on standard error; also beside a running server. It is personal data in
clear: the file is readable for its owner only.

With --since only the accounts that have changed after that position: the one an
earlier export named, so that the two together are all accounts as they are now.
An account that was erased since is among them, without personal data and with
its erasedTime. Whoever follows the feed or a webhook from the position that an
export names gets every later change, and none twice.

As csv (RFC 4180) it has a header and one column for each member of an account:
lists and maps are JSON, and what is known of the primary identity has columns
of its own besides. Values are as they are: a spreadsheet may take one that
begins with = or + for a formula. As parquet it has the same columns with types,
and the position in the file's metadata. --fields names the columns wanted, and
a line of ndjson then has them as its members.

With --json the summary is JSON, on standard output if the accounts go to a
file.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := cli.Load(cmd)
			if err != nil {
				return err
			}
			if err := cli.OneOf("format", format, formatNames()...); err != nil {
				return err
			}
			if since < 0 {
				return cli.Usagef("since is %d; a position is 0 or more", since)
			}
			o := export.Options{Format: export.Format(format), Since: eventstore.Position(since), Fields: fields}
			if err := o.Check(); err != nil {
				return cli.Usagef("%w", err)
			}
			ctx, stop := cli.Interruptible(cmd.Context())
			defer stop()
			return exportAccounts(ctx, c, cli.NewConsole(cmd, c), path, o)
		},
	}
	cli.AddSettings(cmd.Flags(), "data")
	cmd.Flags().StringVar(&path, "out", "", "file to write")
	cmd.Flags().StringVar(&format, "format", "ndjson", "ndjson, a JSON document a line, csv or parquet")
	cmd.Flags().StringSliceVar(&fields, "fields", nil, "only these columns, and the sub; default all")
	cmd.Flags().Int64Var(&since, "since", 0, "only accounts that changed after this position")
	return cmd
}

func formatNames() (names []string) {
	for _, f := range export.Formats {
		names = append(names, string(f))
	}
	return names
}

// exported is the summary of an export.
type exported struct {
	Position eventstore.Position `json:"position"` // all accounts are as they were here
	Since    eventstore.Position `json:"since"`    // only those that changed after it
	Head     eventstore.Position `json:"head"`     // of the log, when the export began
	Accounts int64               `json:"accounts"`
	File     string              `json:"file,omitzero"`
}

func exportAccounts(ctx context.Context, c cli.Config, out cli.Console, path string, o export.Options) error {
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
	summary := exported{File: path, Since: o.Since}
	if summary.Head, err = r.log.Head(ctx); err != nil {
		return err
	}
	if o.Since > summary.Head {
		return cli.Usagef("since is %d, and the log ends at %d", o.Since, summary.Head)
	}
	var p *cli.Progress
	o.Begun = func(_ eventstore.Position, total int64) error { p = out.Progress("accounts", total); return nil }
	o.Each = func() { p.Add(1) }
	write := func(w io.Writer) error {
		written, err := export.Accounts(ctx, views, w, o)
		summary.Position, summary.Accounts = written.Position, written.Accounts
		if err == nil {
			p.End()
		}
		return err
	}
	if path == "" {
		err = write(out.Out)
	} else {
		err = cli.WriteFile(path, 0o600, os.Rename, func(f *os.File) error { return write(f) })
	}
	if err != nil {
		return fmt.Errorf("export: %w", err)
	}
	return summary.print(out)
}

func (e exported) print(out cli.Console) error {
	if out.JSON {
		if e.File == "" {
			out.Out = out.Err
		}
		return out.Line(e)
	}
	fmt.Fprintf(out.Err, "%d accounts as of position %d", e.Accounts, e.Position)
	if e.Since > 0 {
		fmt.Fprintf(out.Err, ", those that changed after %d", e.Since)
	}
	if e.Position < e.Head {
		fmt.Fprintf(out.Err, "; the log is at %d: run the server, or 'views rebuild', to bring the view there", e.Head)
	}
	fmt.Fprintln(out.Err)
	return nil
}
