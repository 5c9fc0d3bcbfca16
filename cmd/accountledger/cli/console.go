package cli

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

// Console is where a command prints: results on standard output, messages about
// them on standard error.
type Console struct {
	Out, Err io.Writer
	JSON     bool
	tty      bool // Err is a terminal
}

// NewConsole returns the console of cmd.
func NewConsole(cmd *cobra.Command, c Config) Console {
	return Console{Out: cmd.OutOrStdout(), Err: cmd.ErrOrStderr(), JSON: c.JSON, tty: IsTerminal(cmd.ErrOrStderr())}
}

// IsTerminal reports whether stream is a terminal.
func IsTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// Logger returns a logger that prints warnings on standard error.
func (c Console) Logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(c.Err, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// Printf prints text on standard output; with --json it prints nothing.
func (c Console) Printf(format string, args ...any) {
	if !c.JSON {
		fmt.Fprintf(c.Out, format, args...)
	}
}

// Note prints a line about the result on standard error; with --json it prints
// nothing.
func (c Console) Note(format string, args ...any) {
	if !c.JSON {
		fmt.Fprintf(c.Err, format+"\n", args...)
	}
}

// Document prints v as an indented JSON document.
func (c Console) Document(v any) error {
	text, err := json.Marshal(v, json.Deterministic(true), jsontext.WithIndent("  "))
	if err == nil {
		_, err = fmt.Fprintf(c.Out, "%s\n", text)
	}
	return err
}

// Line prints v as JSON on one line.
func (c Console) Line(v any) error {
	text, err := json.Marshal(v, json.Deterministic(true))
	if err == nil {
		_, err = fmt.Fprintf(c.Out, "%s\n", text)
	}
	return err
}

// Table prints rows under a header.
func (c Console) Table(header []any, rows [][]any) {
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
	fmt.Fprintln(c.Out, t.Render())
}

// Section prints an empty line and a table, or nothing if there are no rows.
func (c Console) Section(header []any, rows [][]any) {
	if len(rows) > 0 {
		c.Printf("\n")
		c.Table(header, rows)
	}
}

// Progress shows the progress of a command: on a terminal as a bar, and
// otherwise as a line every few seconds.
type Progress struct {
	console     Console
	what        string
	total, done int64
	bar         *progressbar.ProgressBar // nil unless on a terminal
	reported    time.Time
}

// reportInterval is how often Progress prints a line.
const reportInterval = 5 * time.Second

// Progress starts to show how many of what are done. total is -1 if it is not
// known.
func (c Console) Progress(what string, total int64) *Progress {
	p := &Progress{console: c, what: what, total: total, reported: time.Now()}
	if c.tty {
		p.bar = progressbar.NewOptions64(total, progressbar.OptionSetWriter(c.Err), progressbar.OptionSetDescription(what),
			progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionThrottle(50*time.Millisecond),
			progressbar.OptionFullWidth(), progressbar.OptionSetPredictTime(true), progressbar.OptionUseANSICodes(true))
	}
	return p
}

// Bar starts a bar on standard error, for work that has no console. It returns nil
// if standard error is not a terminal.
func Bar(what string) *Progress {
	if !IsTerminal(os.Stderr) {
		return nil
	}
	return Console{Err: os.Stderr, tty: true}.Progress(what, -1)
}

// Set sets how many are done, and of how many.
func (p *Progress) Set(done, total int64) {
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

// Add adds n to those that are done.
func (p *Progress) Add(n int64) { p.Set(p.done+n, p.total) }

// Done returns how many are done.
func (p *Progress) Done() int64 { return p.done }

// End stops the bar, or prints a last line.
func (p *Progress) End() {
	if p.bar != nil {
		p.bar.Exit()
		fmt.Fprintln(p.console.Err)
		return
	}
	p.report(p.done, p.total)
}

func (p *Progress) report(done, total int64) {
	if total < 0 {
		fmt.Fprintf(p.console.Err, "%s: %d\n", p.what, done)
		return
	}
	fmt.Fprintf(p.console.Err, "%s: %d of %d\n", p.what, done, total)
}

// Raw prints JSON unchanged, on one line.
func (c Console) Raw(text []byte) error {
	_, err := fmt.Fprintf(c.Out, "%s\n", bytes.TrimRight(text, "\n"))
	return err
}

// Properties prints pairs of a name and a value, and omits those without a
// value.
func (c Console) Properties(pairs ...any) {
	for i := 0; i < len(pairs); i += 2 {
		if v := fmt.Sprint(cell(pairs[i+1])); v != "" {
			c.Printf("%-14s %s\n", pairs[i], v)
		}
	}
}

// cell returns v as a table shows it.
func cell(v any) any {
	switch v := v.(type) {
	case string:
		return Printable(v)
	case time.Time:
		if v.IsZero() {
			return ""
		}
		return v.UTC().Format(time.RFC3339)
	case fmt.Stringer:
		return Printable(v.String())
	}
	if reflect.ValueOf(v).Kind() == reflect.String {
		return Printable(reflect.ValueOf(v).String())
	}
	return v
}

// Printable escapes control and formatting characters, so that personal data,
// which the account's owner may have entered, cannot control an operator's
// terminal. It keeps the characters in but, and those that join letters in some
// scripts.
func Printable(text string, but ...rune) string {
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

// TimeFormat prints times as RFC 3339 with microseconds, always as wide.
const TimeFormat = "2006-01-02T15:04:05.000000Z"
