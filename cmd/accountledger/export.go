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
		Short: "Write all accounts as of one position",
		Long: `Write all accounts to standard output or, with --out, to a file, which appears
only when it is complete. The export shows all accounts as of one position of
the log, which the command prints on standard error. The server may run
meanwhile. The export contains personal data that is not encrypted; the file is
readable only by its owner.

With --since, export only the accounts that changed after a position. If that is
the position of an earlier export, both exports together contain all accounts as
they are now. An account erased since then is included with its erasedTime and
without personal data. A consumer that follows the feed or a webhook from the
position of an export receives every later change exactly once.

A csv export (RFC 4180) has a header and one column for each member of an
account. Lists and maps are JSON, and the members of the primary identity have
additional columns. Values are not escaped for spreadsheets, which may interpret
one that begins with = or + as a formula. A parquet export has the same columns,
typed, and the position in the file's metadata. --fields selects columns; in
ndjson, members.

With --json the summary is JSON, on standard output if the accounts are written
to a file.`,
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
				return cli.Usagef("since is %d; it must be 0 or more", since)
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
	cmd.Flags().StringVar(&path, "out", "", "file to write to instead of standard output")
	cmd.Flags().StringVar(&format, "format", "ndjson", "ndjson (one JSON document per line), csv or parquet")
	cmd.Flags().StringSliceVar(&fields, "fields", nil, "export only these columns and the sub; default all")
	cmd.Flags().Int64Var(&since, "since", 0, "export only accounts that changed after this position")
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
	Position eventstore.Position `json:"position"` // of the accounts' state
	Since    eventstore.Position `json:"since"`    // the accounts changed after it
	Head     eventstore.Position `json:"head"`     // of the log when the export started
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
		return cli.Usagef("since is %d, but the log ends at %d", o.Since, summary.Head)
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
		fmt.Fprintf(out.Err, ", only those changed after %d", e.Since)
	}
	if e.Position < e.Head {
		fmt.Fprintf(out.Err, "; the log is at %d: run the server or 'views rebuild' to update the view", e.Head)
	}
	fmt.Fprintln(out.Err)
	return nil
}
