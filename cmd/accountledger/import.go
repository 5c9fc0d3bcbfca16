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

// importOptions says what to import, and how.
type importOptions struct {
	mapping string
	input   string
	results string
	resume  bool
	workers int
}

func importCommand() *cobra.Command {
	var o importOptions
	cmd := &cobra.Command{
		Use:   "import --mapping FILE INPUT",
		Short: "Create or update accounts from another system's records",
		Long: `Import the records of INPUT: a JSON list, a JSON document with a list in it,
NDJSON or CSV with a header, of any size; - is standard input. A mapping file
says what becomes of each member of a record; testdata/imports has two, and the
commented example in domain/importer/mapping.go has all.

Each record is a row. Its account is created, or brought to what the row says:
what a row does not mention stays, null unsets. Running an import again changes
nothing. The server must not be running.

A mapping may make groups and roles of those of the source, before any row; what
the ledger has is left as it is. For that INPUT is read more than once, so it
must be a file. Rows then become memberships: a row's list of groups is whole.

Every row's outcome is a line of the results file: row, key, sub, CREATED,
UPDATED, UNCHANGED or FAILED, and warnings and faults by field and rule, never
by value. With --json and without --results they go to standard output, and the
summary follows them. Members of the source that the mapping neither takes nor
ignores are counted in the summary, so that nothing is lost in silence.

A journal beside the results remembers how far the import is. After an
interrupt, or a crash, the same command goes on from there; when it is complete
the journal is removed. The exit code is 5 if rows failed; the others are in.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := cli.Load(cmd)
			if err != nil {
				return err
			}
			if o.mapping == "" {
				return cli.Usagef("name the mapping with --mapping")
			}
			if o.workers < 1 {
				return cli.Usagef("workers is %d; there must be one at least", o.workers)
			}
			o.input = args[0]
			ctx, stop := cli.Interruptible(cmd.Context())
			defer stop()
			return importFile(ctx, c, cli.NewConsole(cmd, c), cmd.InOrStdin(), o)
		},
	}
	cli.AddSettings(cmd.Flags(), "data", "master-key-file")
	cmd.Flags().StringVar(&o.mapping, "mapping", "", "YAML file that says what becomes of each member")
	cmd.Flags().StringVar(&o.results, "results", "", "file for the rows' outcomes; default <INPUT>.results.ndjson")
	cmd.Flags().BoolVar(&o.resume, "resume", true, "go on where an import of the same input was interrupted")
	cmd.Flags().IntVar(&o.workers, "workers", 64, "rows at a time; they share commits")
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
		job.Journal = "" // nobody can hand in the same again from the start
	}
	if out.JSON && o.results == "" {
		job.ResultsFile, job.Results = "", out.Out
	}
	p := out.Progress("rows", -1)
	job.Progress = func(s importer.Summary, read int64) {
		total := int64(-1)
		if input.Size > 0 && read > 0 {
			// The rows so far tell how many the rest of the input has.
			total = max(s.Rows, int64(float64(s.Rows)*float64(input.Size)/float64(read)))
		}
		p.Set(s.Rows, total)
	}
	before, begun := int64(0), time.Now()
	job.Resumed = func(s importer.Summary) {
		if before = s.Rows; before > 0 {
			fmt.Fprintf(out.Err, "going on after row %d\n", before)
		}
	}
	summary, err := job.Run(ctx)
	p.Set(summary.Rows, summary.Rows)
	p.End()
	took := time.Since(begun).Seconds()
	if err != nil {
		if job.Journal != "" {
			err = fmt.Errorf("import stopped after row %d; the same command goes on from there: %w", summary.Rows, err)
		}
		return err
	}
	done := imported{summary, job.ResultsFile, took, float64(summary.Rows-before) / took}
	return done.print(out)
}

// open reads the mapping and opens the input, before anything is changed.
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
		out.Table([]any{"made", "id"}, rows)
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
		out.Table([]any{"rows", "field", "rule", "what became of it"}, rows)
	}
	if len(i.Missed) > 0 {
		var rows [][]any
		for _, name := range slices.Sorted(maps.Keys(i.Missed)) {
			rows = append(rows, []any{i.Missed[name], name})
		}
		out.Printf("\nThe source has members that the mapping neither takes nor ignores:\n")
		out.Table([]any{"rows", "member"}, rows)
	}
	out.Printf("\n%d events in %.1f s, %.0f rows/s", i.Events, i.Seconds, i.RowsPerSecond)
	if i.Results != "" {
		out.Printf("; every row's outcome is in %s", i.Results)
	}
	out.Printf("\n")
	return i.err()
}

// err is what an import in which rows failed ends the command with.
func (i imported) err() error {
	if i.Failed == 0 {
		return nil
	}
	return cli.Exitf(cli.ExitRows, "%d of %d rows failed", i.Failed, i.Rows)
}
