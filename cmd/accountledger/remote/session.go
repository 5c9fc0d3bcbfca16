package remote

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"accountledger/cmd/accountledger/cli"
)

// Settings are the names of the settings that select a server and its API key.
var Settings = []string{"server", "key-file", "ca-file", "insecure-server"}

// session is a running command that uses a server.
type session struct {
	*Client
	out   printer
	in    *bufio.Reader
	typed bool // standard input is a terminal
}

// serverCommand returns the parent of commands that use a server.
func serverCommand(use, short, long string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: cobra.ArbitraryArgs, RunE: cli.Choose, Long: long + `

Name the server with --server or ` + cli.EnvName("server") + `. The API key is
read from the file in --key-file or ` + cli.EnvName("key-file") + `, or from
` + KeyEnv + `, or else from <data>/admin.key if the data directory is
on this machine. It is never an argument, because every process can read
arguments. With --json the command prints the server's answer unchanged, also a
refusal, and each page of a list on a line.`}
	cli.AddSettings(cmd.PersistentFlags(), append([]string{"data"}, Settings...)...)
	cmd.AddCommand(commands...)
	return cmd
}

// onServer makes cmd run do with a session, and returns cmd.
func onServer(cmd *cobra.Command, do func(ctx context.Context, s *session, args []string) error) *cobra.Command {
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := cli.Load(cmd)
		if err != nil {
			return err
		}
		if c.Server == "" {
			return cli.Usagef("no server given: use --server URL, or set %s", cli.EnvName("server"))
		}
		server, err := NewClient(c)
		if err != nil {
			return err
		}
		defer server.Close()
		s := &session{server, printer{cli.NewConsole(cmd, c)}, bufio.NewReader(cmd.InOrStdin()), cli.IsTerminal(cmd.InOrStdin())}
		err = do(cmd.Context(), s, args)
		if refused, ok := errors.AsType[*Refusal](err); ok && s.out.JSON {
			s.out.Raw(refused.answer)
		}
		return err
	}
	return cmd
}

// show prints an answer: unchanged with --json, and otherwise with print.
func show[T any](s *session, answer []byte, print func(T)) error {
	if s.out.JSON {
		return s.out.Raw(answer)
	}
	var v T
	if err := decode(answer, &v); err != nil {
		return err
	}
	print(v)
	return nil
}

// ask sends r and prints the answer.
func ask[T any](ctx context.Context, s *session, r request, print func(T)) error {
	answer, err := s.send(ctx, r)
	if err != nil {
		return err
	}
	return show(s, answer, print)
}

// writeFlags are the flags of commands that change something.
type writeFlags struct {
	dryRun   bool
	revision int64
	key      string
}

// add adds all flags. Commands that change no object of the ledger use addKey.
func (w *writeFlags) add(flags *pflag.FlagSet) {
	flags.BoolVar(&w.dryRun, "dry-run", false, "print the events that the command would append, and store nothing")
	flags.Int64Var(&w.revision, "if-match", -1, "refuse the change unless the object is at this revision")
	w.addKey(flags)
}

func (w *writeFlags) addKey(flags *pflag.FlagSet) {
	flags.StringVar(&w.key, "idempotency-key", "", "text that identifies this request: repeating it returns the first outcome; default a random UUID")
}

// request returns a write. The client may send it again if its answer is lost.
func (w *writeFlags) request(method, path string, body []byte) request {
	if w.key == "" {
		w.key = uuid.NewString()
	}
	r := request{method: method, path: path, body: body, query: url.Values{}, revision: w.revision, idempotencyKey: w.key, repeatable: true}
	if w.dryRun {
		r.query.Set("dry_run", "true")
	}
	return r
}

// unconditional returns a write of something that has no revision.
func (w *writeFlags) unconditional(method, path string, body []byte) request {
	w.revision = -1
	return w.request(method, path, body)
}

// write sends r and prints the answer. If the answer is lost, the error tells
// the user how to repeat r safely.
func write[T any](ctx context.Context, s *session, w *writeFlags, r request, print func(T)) error {
	answer, err := s.send(ctx, r)
	if lost, ok := errors.AsType[*NoAnswer](err); ok && lost.sent {
		return fmt.Errorf("%w\n  the server may have executed it; to repeat it safely, add --idempotency-key %s", err, cli.Printable(w.key))
	}
	if err != nil {
		return err
	}
	if w.dryRun {
		return show(s, answer, func(tried planned) { tried.print(s.out) })
	}
	if len(answer) == 0 { // 204
		if !s.out.JSON {
			var none T
			print(none)
		}
		return nil
	}
	return show(s, answer, print)
}

// planned is the outcome of a dry run.
type planned struct {
	Events []plannedEvent `json:"events"`
}

type plannedEvent struct {
	Sub      string `json:"sub"`
	Revision int64  `json:"revision"`
	Type     string `json:"type"`
}

func (p planned) print(out printer) {
	if len(p.Events) == 0 {
		out.Printf("the command would change nothing\n")
		return
	}
	var rows [][]any
	for _, e := range p.Events {
		rows = append(rows, []any{e.Type, e.Sub, e.Revision})
	}
	out.Printf("nothing was stored; the command would append these events:\n")
	out.Table([]any{"event", "account", "revision"}, rows)
}

// pageFlags are the flags of lists.
type pageFlags struct {
	limit int
	after string
	all   bool
}

func (p *pageFlags) add(flags *pflag.FlagSet, what string) {
	flags.IntVar(&p.limit, "limit", 0, what+" per page, 1 to 1000; default 100")
	flags.StringVar(&p.after, "after", "", "continue after this cursor")
	flags.BoolVar(&p.all, "all", false, "print all pages")
}

// maxPage is the default limit with --all.
const maxPage = 1000

// pages requests a page, and with --all the pages that follow. print prints a
// page and returns the cursor of the next one.
func pages[T any](ctx context.Context, s *session, p pageFlags, ask func(after string, limit int) request, print func(T) (next *string)) error {
	if p.all && p.limit == 0 {
		p.limit = maxPage
	}
	for {
		answer, err := s.send(ctx, ask(p.after, p.limit))
		if err != nil {
			return err
		}
		var next *string
		if s.out.JSON {
			var page struct {
				Next *string `json:"next"`
			}
			if err := decode(answer, &page); err != nil {
				return err
			}
			next = page.Next
		}
		if err := show(s, answer, func(page T) { next = print(page) }); err != nil {
			return err
		}
		switch {
		case next == nil:
			return nil
		case !p.all:
			s.out.Note("there are more: use --all, or continue with --after %s", cli.Printable(*next))
			return nil
		}
		p.after = *next
	}
}

// listed returns a function that makes the request for a page of the list at
// path.
func listed(path string, query url.Values) func(after string, limit int) request {
	return func(after string, limit int) request {
		r := get(path)
		r.query = url.Values{}
		for name, values := range query {
			r.query[name] = values
		}
		if after != "" {
			r.query.Set("after", after)
		}
		if limit != 0 {
			r.query.Set("limit", strconv.Itoa(limit))
		}
		return r
	}
}

// confirm asks the user to confirm the command, unless yes is true. It returns
// an error unless the answer is yes.
func (s *session) confirm(yes bool, question string, args ...any) error {
	if yes {
		return nil
	}
	fmt.Fprintf(s.out.Err, question+" Type yes: ", args...)
	line, _ := s.in.ReadString('\n')
	if !s.typed { // no Enter was typed, so the line is still open
		fmt.Fprintln(s.out.Err)
	}
	if strings.TrimSpace(line) != "yes" {
		return errors.New("not confirmed, nothing was changed; use --yes to skip the question")
	}
	return nil
}

// read returns the contents of a file, or of standard input for "-".
func (s *session) read(path string) (text []byte, err error) {
	if path == "-" {
		text, err = io.ReadAll(s.in)
	} else {
		text, err = os.ReadFile(path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, cli.Usagef("%w", err)
	}
	return text, err
}

// secretFile is the file for a secret that the server shows only once.
type secretFile struct{ path string }

func (f *secretFile) add(flags *pflag.FlagSet, what string) {
	flags.StringVar(&f.path, "out", "", "write the "+what+" to this new file, readable only by its owner, instead of printing it")
}

// check refuses a file that keep could not create. It runs before the server
// makes the secret, which would otherwise be lost.
func (f secretFile) check(s *session) error {
	if f.path == "" {
		return nil
	}
	if s.out.JSON {
		return cli.Usagef("out cannot be combined with json, which prints the whole answer")
	}
	if _, err := os.Lstat(f.path); !errors.Is(err, fs.ErrNotExist) {
		return cli.Usagef("out: %s exists already", f.path)
	}
	return nil
}

// keep writes the secret to the file, and returns the text to print.
func (f secretFile) keep(secret string) (string, error) {
	if f.path == "" {
		return cli.Printable(secret) + "  (shown only once)", nil
	}
	err := cli.WriteFile(f.path, 0o600, os.Link, func(file *os.File) error {
		_, err := io.WriteString(file, secret+"\n")
		return err
	})
	return "in " + f.path, err
}

// timeValue is a flag that takes a time in RFC 3339, a day, or a duration from
// now.
type timeValue struct {
	time.Time
	sign time.Duration // of durations: -1 for the past, 1 for the future
}

func timeFlag(flags *pflag.FlagSet, t *timeValue, name string, sign time.Duration, usage string) {
	t.sign = sign
	from := "a duration before now, like 24h"
	if sign > 0 {
		from = "a duration from now, like 720h"
	}
	flags.Var(t, name, usage+"; a time in RFC 3339, a day like 2026-11-22 (UTC), or "+from)
}

// Set implements pflag.Value.
func (t *timeValue) Set(text string) (err error) {
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t.Time, err = time.Parse(layout, text); err == nil {
			return nil
		}
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return errors.New("not a time in RFC 3339, a day, or a duration")
	}
	t.Time = time.Now().Add(t.sign * d).UTC().Truncate(time.Second)
	return nil
}

// Type implements pflag.Value.
func (*timeValue) Type() string { return "time" }

// String implements pflag.Value.
func (t *timeValue) String() string {
	if t.IsZero() {
		return ""
	}
	return t.Format(time.RFC3339)
}

// complete completes a flag with these values, and not with file names.
func complete(values ...string) cobra.CompletionFunc {
	return cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)
}
