package main

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// console is where a command prints: results on standard output, everything
// about them on standard error.
type console struct {
	out, err io.Writer
	json     bool
	tty      bool // standard error is a terminal
}

func newConsole(cmd *cobra.Command, c config) console {
	return console{out: cmd.OutOrStdout(), err: cmd.ErrOrStderr(), json: c.JSON, tty: isTerminal(cmd.ErrOrStderr())}
}

func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// logger tells on standard error what a command's user should know.
func (c console) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(c.err, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// printf prints for people; with --json it prints nothing.
func (c console) printf(format string, args ...any) {
	if !c.json {
		fmt.Fprintf(c.out, format, args...)
	}
}

// note tells people something about what was printed; with --json it is silent.
func (c console) note(format string, args ...any) {
	if !c.json {
		fmt.Fprintf(c.err, format+"\n", args...)
	}
}

// document prints v as one JSON document over several lines.
func (c console) document(v any) error {
	text, err := json.Marshal(v, json.Deterministic(true), jsontext.WithIndent("  "))
	if err == nil {
		_, err = fmt.Fprintf(c.out, "%s\n", text)
	}
	return err
}

// line prints v as JSON on a line of its own.
func (c console) line(v any) error {
	text, err := json.Marshal(v, json.Deterministic(true))
	if err == nil {
		_, err = fmt.Fprintf(c.out, "%s\n", text)
	}
	return err
}

// table prints rows under a header.
func (c console) table(header []any, rows [][]any) {
	t := table.NewWriter()
	style := table.StyleLight
	style.Options = table.OptionsNoBordersAndSeparators
	style.Format.Header = 0 // as it is written
	t.SetStyle(style)
	t.SuppressTrailingSpaces()
	t.AppendHeader(header)
	for _, row := range rows {
		cells := make(table.Row, len(row))
		for i, v := range row {
			cells[i] = cell(v)
		}
		t.AppendRow(cells)
	}
	fmt.Fprintln(c.out, t.Render())
}

// progress shows how far something is: a bar on a terminal, and elsewhere a
// line now and then.
type progress struct {
	console
	what        string
	total, done int64
	bar         *progressbar.ProgressBar // nil elsewhere
	reported    time.Time
}

// reportInterval is how often a line says how far something is.
const reportInterval = 5 * time.Second

// progress begins to show the progress of what, which is done at total; a
// total that is not known is -1.
func (c console) progress(what string, total int64) *progress {
	p := &progress{console: c, what: what, total: total, reported: time.Now()}
	if c.tty {
		p.bar = progressbar.NewOptions64(total, progressbar.OptionSetWriter(c.err), progressbar.OptionSetDescription(what),
			progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionThrottle(50*time.Millisecond),
			progressbar.OptionFullWidth(), progressbar.OptionSetPredictTime(true), progressbar.OptionUseANSICodes(true))
	}
	return p
}

// set says that done are done, of a total that may have grown.
func (p *progress) set(done, total int64) {
	p.done = done
	if p.bar != nil {
		if total != p.total {
			p.bar.ChangeMax64(total)
		}
		p.bar.Set64(done)
	} else if time.Since(p.reported) >= reportInterval {
		p.reported = time.Now()
		p.report(done, total)
	}
	p.total = total
}

// add says that n more are done.
func (p *progress) add(n int64) { p.set(p.done+n, p.total) }

// end leaves the last state on the screen, or in a line.
func (p *progress) end() {
	if p.bar != nil {
		p.bar.Exit()
		fmt.Fprintln(p.err)
		return
	}
	p.report(p.done, p.total)
}

func (p *progress) report(done, total int64) {
	if total < 0 {
		fmt.Fprintf(p.err, "%s: %d\n", p.what, done)
		return
	}
	fmt.Fprintf(p.err, "%s: %d of %d\n", p.what, done, total)
}

// raw prints JSON as it came, on a line.
func (c console) raw(text []byte) error {
	_, err := fmt.Fprintf(c.out, "%s\n", bytes.TrimRight(text, "\n"))
	return err
}

// properties prints names and values, without those that are empty.
func (c console) properties(pairs ...any) {
	for i := 0; i < len(pairs); i += 2 {
		if v := fmt.Sprint(cell(pairs[i+1])); v != "" {
			c.printf("%-14s %s\n", pairs[i], v)
		}
	}
}

// cell is a value as a table shows it.
func cell(v any) any {
	switch v := v.(type) {
	case string:
		return printable(v)
	case time.Time:
		if v.IsZero() {
			return ""
		}
		return v.UTC().Format(time.RFC3339)
	case fmt.Stringer:
		return printable(v.String())
	}
	if reflect.ValueOf(v).Kind() == reflect.String {
		return printable(reflect.ValueOf(v).String())
	}
	return v
}

// printable is text with nothing in it that a terminal would obey: what people
// have put into their accounts is shown to operators. Escaped are control and
// formatting characters, but not those that scripts join letters with.
func printable(text string, but ...rune) string {
	const joiner, nonJoiner = '\u200d', '\u200c'
	var b strings.Builder
	for _, r := range text {
		if unicode.IsPrint(r) || r == joiner || r == nonJoiner || slices.Contains(but, r) {
			b.WriteRune(r)
			continue
		}
		quoted := strconv.QuoteRune(r)
		b.WriteString(quoted[1 : len(quoted)-1])
	}
	return b.String()
}
