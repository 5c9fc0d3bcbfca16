package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"accountledger/cmd/accountledger/cli"
	"accountledger/domain/importer"
)

// importOptions selects the input and how to import it.
type importOptions struct {
	mapping string
	input   string
	results string
	resume  bool
	workers int
}

func importCommand() *cobra.Command {
	var o importOptions
	var accept cli.Accept
	cmd := &cobra.Command{
		Use:   "import --mapping FILE INPUT",
		Short: "Create or update accounts from another system's records",
		Long: `Import the records in INPUT, or on standard input if INPUT is -: a JSON list, a
JSON document that contains a list, NDJSON, or CSV with a header, of any size. A
mapping file maps the members of a record to those of an account.
testdata/imports has two mappings; docs/import.md describes all of the mapping
language.

Each record is a row. The command creates its account, or updates it: members
that the row does not mention do not change, and null removes a value. Running
the same import again changes nothing. The server must not be running.

A mapping may create groups and roles from those in the source, before it
imports rows. It does not change groups and roles that exist. Such a mapping
reads INPUT more than once, so INPUT must be a file. A row's groups then become
memberships, and replace those that the account has.

The results file has a line for each row: row, key, sub, the outcome (CREATED,
UPDATED, UNCHANGED or FAILED), and warnings and errors by field and rule,
without values. With --json and without --results, the results go to standard
output, followed by the summary. The summary counts the members of the source
that the mapping neither uses nor ignores, so that no data is lost unnoticed.

A journal next to the results file records the progress. After an interrupt or a
crash, the same command continues from there. It removes the journal when the
import is complete. The exit code is 5 if rows failed; the others were imported.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := cli.Load(cmd)
			if err != nil {
				return err
			}
			c.Accept = accept
			if o.mapping == "" {
				return cli.Usagef("no mapping given: use --mapping FILE")
			}
			if o.workers < 1 {
				return cli.Usagef("workers is %d; it must be at least 1", o.workers)
			}
			o.input = args[0]
			ctx, stop := cli.Interruptible(cmd.Context())
			defer stop()
			return importFile(ctx, c, cli.NewConsole(cmd, c), cmd.InOrStdin(), o)
		},
	}
	cli.AddSettings(cmd.Flags(), "data", "master-key-file", "last-signed")
	accept.AddFlags(cmd.Flags())
	cmd.Flags().StringVar(&o.mapping, "mapping", "", "YAML file that maps members of a record to members of an account")
	cmd.Flags().StringVar(&o.results, "results", "", "file for the outcome of each row; default <INPUT>.results.ndjson")
	cmd.Flags().BoolVar(&o.resume, "resume", true, "continue an interrupted import of the same input")
	cmd.Flags().IntVar(&o.workers, "workers", 64, "number of rows imported concurrently")
	return cmd
}

// imported is the summary of an import.
type imported struct {
	importer.Summary
	Results       string  `json:"results,omitzero"` // file
	Seconds       float64 `json:"seconds"`
	RowsPerSecond float64 `json:"rowsPerSecond"` // of this run
}

// importFile imports o.input into the ledger in c.Data.
func importFile(ctx context.Context, c cli.Config, out cli.Console, stdin io.Reader, o importOptions) (err error) {
	mapping, input, err := o.open(stdin)
	if err != nil {
		return err
	}
	if f, ok := input.Reader.(*os.File); ok && o.input != "-" {
		defer f.Close()
	}
	l, err := openLedger(ctx, c, out.Logger())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	head, err := l.log.Head(ctx)
	if err != nil {
		return err
	}
	results := o.results
	if results == "" {
		if results = input.Name + ".results.ndjson"; o.input == "-" {
			results = "stdin.results.ndjson"
		}
	}
	job := importer.Job{
		Ledger: l.ledger, LedgerID: l.vkey, Head: head, Mapping: mapping, Input: input,
		ResultsFile: results, Journal: results + ".journal", Resume: o.resume, Workers: o.workers,
	}
	if o.input == "-" {
		job.Journal = "" // standard input cannot be read again from the start
	}
	if out.JSON && o.results == "" {
		job.ResultsFile, job.Results = "", out.Out
	}
	p := out.Progress("rows", -1)
	job.Progress = func(s importer.Summary, read int64) {
		total := int64(-1)
		if input.Size > 0 && read > 0 {
			// Estimate the total from the size of the rows read so far.
			total = max(s.Rows, int64(float64(s.Rows)*float64(input.Size)/float64(read)))
		}
		p.Set(s.Rows, total)
	}
	before, begun := int64(0), time.Now()
	job.Resumed = func(s importer.Summary) {
		if before = s.Rows; before > 0 {
			fmt.Fprintf(out.Err, "continuing after row %d\n", before)
		}
	}
	summary, err := job.Run(ctx)
	p.Set(summary.Rows, summary.Rows)
	p.End()
	took := time.Since(begun).Seconds()
	if err != nil {
		if job.Journal != "" {
			err = fmt.Errorf("import stopped after row %d; run the same command again to continue: %w", summary.Rows, err)
		}
		return err
	}
	done := imported{summary, job.ResultsFile, took, float64(summary.Rows-before) / took}
	return done.print(out)
}

// open reads the mapping and opens the input.
func (o importOptions) open(stdin io.Reader) (*importer.Mapping, importer.Input, error) {
	input := importer.Input{Name: o.input, Reader: stdin}
	text, err := os.ReadFile(o.mapping)
	if err != nil {
		return nil, input, cli.Usagef("mapping: %w", err)
	}
	mapping, err := importer.ParseMapping(text)
	if err == nil {
		_, err = mapping.Format(o.input)
	}
	if err != nil {
		return nil, input, cli.Usagef("%s: %w", o.mapping, err)
	}
	if o.input == "-" {
		return mapping, input, nil
	}
	f, err := os.Open(o.input)
	if err != nil {
		return nil, input, cli.Usagef("input: %w", err)
	}
	info, err := f.Stat()
	if err == nil && info.IsDir() {
		err = errors.New("is a directory")
	}
	if err != nil {
		f.Close()
		return nil, input, cli.Usagef("input: %s: %w", o.input, err)
	}
	input.Reader, input.Modified = f, info.ModTime()
	if info.Mode().IsRegular() {
		input.Size = info.Size()
	}
	return mapping, input, nil
}

func (i imported) print(out cli.Console) error {
	if out.JSON {
		if err := out.Line(struct {
			Summary imported `json:"summary"`
		}{i}); err != nil {
			return err
		}
		return i.err()
	}
	out.Table([]any{"outcome", "rows"}, [][]any{
		{importer.Created, i.Created}, {importer.Updated, i.Updated}, {importer.Unchanged, i.Unchanged}, {importer.Failed, i.Failed},
		{"all", i.Rows},
	})
	if made := len(i.Groups) + len(i.Roles); made > 0 {
		var rows [][]any
		for _, id := range i.Groups {
			rows = append(rows, []any{"group", id})
		}
		for _, id := range i.Roles {
			rows = append(rows, []any{"role", id})
		}
		out.Printf("\n")
		out.Table([]any{"created", "id"}, rows)
	}
	if len(i.Findings) > 0 {
		var rows [][]any
		for _, f := range i.Findings {
			what := f.Action
			if what == "" {
				what = "row failed"
			}
			rows = append(rows, []any{f.Rows, f.Field, f.Rule, what})
		}
		out.Printf("\n")
		out.Table([]any{"rows", "field", "rule", "effect"}, rows)
	}
	if len(i.Missed) > 0 {
		var rows [][]any
		for _, name := range slices.Sorted(maps.Keys(i.Missed)) {
			rows = append(rows, []any{i.Missed[name], name})
		}
		out.Printf("\nThe source has members that the mapping neither uses nor ignores:\n")
		out.Table([]any{"rows", "member"}, rows)
	}
	out.Printf("\n%d events in %.1f s, %.0f rows/s", i.Events, i.Seconds, i.RowsPerSecond)
	if i.Results != "" {
		out.Printf("; the outcome of each row is in %s", i.Results)
	}
	out.Printf("\n")
	return i.err()
}

// err returns an error if rows failed.
func (i imported) err() error {
	if i.Failed == 0 {
		return nil
	}
	return cli.Exitf(cli.ExitRows, "%d of %d rows failed", i.Failed, i.Rows)
}
