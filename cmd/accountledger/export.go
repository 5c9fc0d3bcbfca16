package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"accountledger/eventstore"
	"accountledger/projections"
)

func exportCommand() *cobra.Command {
	var path, format string
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Write all accounts, as they are at one position",
		Long: `Write all accounts to standard output or, with --out, to a file that is there
wholly or not at all. All are as they were at one position of the log, which is
named on standard error; also beside a running server. It is personal data in
clear: the file is readable for its owner only.

With --json the summary is JSON, on standard output if the accounts go to a
file.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := loadConfig(cmd)
			if err != nil {
				return err
			}
			if err := oneOf("format", format, "ndjson"); err != nil {
				return err
			}
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			return export(ctx, c, newConsole(cmd, c), path)
		},
	}
	addSettings(cmd.Flags(), "data")
	cmd.Flags().StringVar(&path, "out", "", "file to write")
	cmd.Flags().StringVar(&format, "format", "ndjson", "one JSON document per line")
	return cmd
}

// exported is the summary of an export.
type exported struct {
	Position eventstore.Position `json:"position"` // all accounts are as they were here
	Head     eventstore.Position `json:"head"`     // of the log, when the export began
	Accounts int64               `json:"accounts"`
	File     string              `json:"file,omitzero"`
}

func export(ctx context.Context, c config, out console, path string) error {
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
	summary := exported{File: path}
	if summary.Head, err = r.log.Head(ctx); err != nil {
		return err
	}
	write := func(w io.Writer) (err error) {
		summary.Position, summary.Accounts, err = writeAccounts(ctx, views, w, out)
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

// writeAccounts writes one account a line.
func writeAccounts(ctx context.Context, views *projections.Views, w io.Writer, out console) (eventstore.Position, int64, error) {
	at, total, rows, err := views.Accounts().All(ctx)
	if err != nil {
		return 0, 0, err
	}
	buffer := bufio.NewWriterSize(w, 64<<10)
	p := out.progress("accounts", total)
	for row, err := range rows {
		if err != nil {
			return 0, 0, err
		}
		buffer.Write(row.JSON) // an error stays until Flush
		if err := buffer.WriteByte('\n'); err != nil {
			return 0, 0, err
		}
		p.add(1)
	}
	p.end()
	return at, p.done, buffer.Flush()
}

func (e exported) print(out console) error {
	if out.json {
		if e.File == "" {
			out.out = out.err
		}
		return out.line(e)
	}
	fmt.Fprintf(out.err, "%d accounts as of position %d", e.Accounts, e.Position)
	if e.Position < e.Head {
		fmt.Fprintf(out.err, "; the log is at %d: run the server, or 'views rebuild', to bring the view there", e.Head)
	}
	fmt.Fprintln(out.err)
	return nil
}
