package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"accountledger/eventstore"
	"accountledger/projections"
)

func exportCommand() *cobra.Command {
	var (
		path   string
		format string
		since  int64
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
begins with = or + for a formula.

With --json the summary is JSON, on standard output if the accounts go to a
file.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := loadConfig(cmd)
			if err != nil {
				return err
			}
			if err := oneOf("format", format, "ndjson", "csv"); err != nil {
				return err
			}
			if since < 0 {
				return usagef("since is %d; a position is 0 or more", since)
			}
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			return export(ctx, c, newConsole(cmd, c), path, format, eventstore.Position(since))
		},
	}
	addSettings(cmd.Flags(), "data")
	cmd.Flags().StringVar(&path, "out", "", "file to write")
	cmd.Flags().StringVar(&format, "format", "ndjson", "ndjson, a JSON document a line, or csv")
	cmd.Flags().Int64Var(&since, "since", 0, "only accounts that changed after this position")
	return cmd
}

// exported is the summary of an export.
type exported struct {
	Position eventstore.Position `json:"position"` // all accounts are as they were here
	Since    eventstore.Position `json:"since"`    // only those that changed after it
	Head     eventstore.Position `json:"head"`     // of the log, when the export began
	Accounts int64               `json:"accounts"`
	File     string              `json:"file,omitzero"`
}

func export(ctx context.Context, c config, out console, path, format string, since eventstore.Position) error {
	r, err := openReadOnly(ctx, c, out.logger())
	if err != nil {
		return err
	}
	defer r.close()
	views, err := projections.OpenReader(ctx, r.dir.path(viewsFile))
	if err != nil {
		return err
	}
	defer views.Close()
	summary := exported{File: path, Since: since}
	if summary.Head, err = r.log.Head(ctx); err != nil {
		return err
	}
	if since > summary.Head {
		return usagef("since is %d, and the log ends at %d", since, summary.Head)
	}
	write := func(w io.Writer) (err error) {
		summary.Position, summary.Accounts, err = writeAccounts(ctx, views, since, accountFormats[format](w), out)
		return err
	}
	if path == "" {
		err = write(out.out)
	} else {
		err = writeFile(path, 0o600, os.Rename, func(f *os.File) error { return write(f) })
	}
	if err != nil {
		return fmt.Errorf("export: %w", err)
	}
	return summary.print(out)
}

// writeAccounts writes the accounts that changed since a position.
func writeAccounts(ctx context.Context, views *projections.Views, since eventstore.Position, w accountWriter, out console) (eventstore.Position, int64, error) {
	at, total, rows, err := views.Accounts().Changed(ctx, since)
	if err != nil {
		return 0, 0, err
	}
	p := out.progress("accounts", total)
	for row, err := range rows {
		if err == nil {
			err = w.write(row)
		}
		if err != nil {
			return 0, 0, err
		}
		p.add(1)
	}
	p.end()
	return at, p.done, w.flush()
}

func (e exported) print(out console) error {
	if out.json {
		if e.File == "" {
			out.out = out.err
		}
		return out.line(e)
	}
	fmt.Fprintf(out.err, "%d accounts as of position %d", e.Accounts, e.Position)
	if e.Since > 0 {
		fmt.Fprintf(out.err, ", those that changed after %d", e.Since)
	}
	if e.Position < e.Head {
		fmt.Fprintf(out.err, "; the log is at %d: run the server, or 'views rebuild', to bring the view there", e.Head)
	}
	fmt.Fprintln(out.err)
	return nil
}
