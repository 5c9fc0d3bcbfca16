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

// Settings say which server is asked, and with what key. The data
// directory has the key where none is named.
var Settings = []string{"server", "key-file", "ca-file", "insecure-server"}

// session is a command while it asks a server.
type session struct {
	*Client
	out   printer
	in    *bufio.Reader
	typed bool // in is a terminal
}

// serverCommand is the parent of commands that ask a server.
func serverCommand(use, short, long string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: cobra.ArbitraryArgs, RunE: cli.Choose, Long: long + `

The server is named with --server or ` + cli.EnvName("server") + `. The API key is never
an argument, which every process could read, but in a file, --key-file or
` + cli.EnvName("key-file") + `, or in ` + KeyEnv + `; on the server's own machine
that of <data>/admin.key is taken. With --json the server's answer is printed as
it is, of several pages each on a line, and so is a refusal.`}
	cli.AddSettings(cmd.PersistentFlags(), append([]string{"data"}, Settings...)...)
	cmd.AddCommand(commands...)
	return cmd
}

// onServer gives cmd what it does: it asks a server.
func onServer(cmd *cobra.Command, do func(ctx context.Context, s *session, args []string) error) *cobra.Command {
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := cli.Load(cmd)
		if err != nil {
			return err
		}
		if c.Server == "" {
			return cli.Usagef("there is no server named: give --server URL, or set %s", cli.EnvName("server"))
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

// show prints an answer: as it is with --json, and otherwise as print does.
func show[T any](s *session, answer []byte, print func(T)) error {
	if s.out.JSON {
		return s.out.Raw(answer)
	}
	var v T
	if err := understood(answer, &v); err != nil {
		return err
	}
	print(v)
	return nil
}

// ask sends r and shows the answer.
func ask[T any](ctx context.Context, s *session, r request, print func(T)) error {
	answer, err := s.send(ctx, r)
	if err != nil {
		return err
	}
	return show(s, answer, print)
}

// writeFlags are those of commands that change something.
type writeFlags struct {
	dryRun   bool
	revision int64
	key      string
}

// add makes the flags. What only sends something has no dry run, and nothing
// that could have changed.
func (w *writeFlags) add(flags *pflag.FlagSet) {
	flags.BoolVar(&w.dryRun, "dry-run", false, "show the events it would append, and store nothing")
	flags.Int64Var(&w.revision, "if-match", -1, "refuse unless the object is at this revision")
	w.addKey(flags)
}

func (w *writeFlags) addKey(flags *pflag.FlagSet) {
	flags.StringVar(&w.key, "idempotency-key", "", "text of your own under which a repetition is answered with the first outcome; default a random one")
}

// request is a write, which may be sent again when its answer is lost.
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

// unconditional is a write of what has no revision.
func (w *writeFlags) unconditional(method, path string, body []byte) request {
	w.revision = -1
	return w.request(method, path, body)
}

// write sends r and shows the answer. Where that was lost it says how to find
// out what became of r.
func write[T any](ctx context.Context, s *session, w *writeFlags, r request, print func(T)) error {
	answer, err := s.send(ctx, r)
	if lost, ok := errors.AsType[*NoAnswer](err); ok && lost.sent {
		return fmt.Errorf("%w\n  it may have been carried out: the same command with --idempotency-key %s does it once", err, cli.Printable(w.key))
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

// planned is what a dry run shows.
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
		out.Printf("nothing would change\n")
		return
	}
	var rows [][]any
	for _, e := range p.Events {
		rows = append(rows, []any{e.Type, e.Sub, e.Revision})
	}
	out.Printf("nothing is stored; these events would be:\n")
	out.Table([]any{"event", "account", "revision"}, rows)
}

// pageFlags are those of lists.
type pageFlags struct {
	limit int
	after string
	all   bool
}

func (p *pageFlags) add(flags *pflag.FlagSet, what string) {
	flags.IntVar(&p.limit, "limit", 0, what+" on a page, 1 to 1000; default 100")
	flags.StringVar(&p.after, "after", "", "continue after this cursor")
	flags.BoolVar(&p.all, "all", false, "go on to the last page")
}

// maxPage is how much is asked for at once where all is wanted.
const maxPage = 1000

// pages asks for a page, or for all that follow, too. print shows one and
// returns the cursor of the next.
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
			if err := understood(answer, &page); err != nil {
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
			s.out.Note("there are more: --all shows them, or go on with --after %s", cli.Printable(*next))
			return nil
		}
		p.after = *next
	}
}

// listed asks for a page of the list at path.
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

// confirm asks whoever is at the terminal. Where nobody answers, nothing is
// done.
func (s *session) confirm(yes bool, question string, args ...any) error {
	if yes {
		return nil
	}
	fmt.Fprintf(s.out.Err, question+" Type yes: ", args...)
	line, _ := s.in.ReadString('\n')
	if !s.typed { // nobody has ended the line with Enter
		fmt.Fprintln(s.out.Err)
	}
	if strings.TrimSpace(line) != "yes" {
		return errors.New("not confirmed, so nothing was changed; --yes does it without asking")
	}
	return nil
}

// read is what is in a file, or for - on standard input.
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

// secretFile is where a secret goes that the server shows once.
type secretFile struct{ path string }

func (f *secretFile) add(flags *pflag.FlagSet, what string) {
	flags.StringVar(&f.path, "out", "", "new file, readable for its owner only, for the "+what+", which is not printed then")
}

// check is done before there is a secret, which would be lost without a place.
func (f secretFile) check(s *session) error {
	if f.path == "" {
		return nil
	}
	if s.out.JSON {
		return cli.Usagef("out does not go with json, which prints the whole answer")
	}
	if _, err := os.Lstat(f.path); !errors.Is(err, fs.ErrNotExist) {
		return cli.Usagef("out: %s is there already", f.path)
	}
	return nil
}

// keep writes the secret, or returns what to print of it.
func (f secretFile) keep(secret string) (string, error) {
	if f.path == "" {
		return cli.Printable(secret) + "  (shown this once)", nil
	}
	err := cli.WriteFile(f.path, 0o600, os.Link, func(file *os.File) error {
		_, err := io.WriteString(file, secret+"\n")
		return err
	})
	return "in " + f.path, err
}

// timeValue is a flag that takes a time: as RFC 3339 has it, a day, or how far
// it is from now.
type timeValue struct {
	time.Time
	sign time.Duration // which way from now: -1 or 1
}

func timeFlag(flags *pflag.FlagSet, t *timeValue, name string, sign time.Duration, usage string) {
	t.sign = sign
	from := "how long ago, like 24h"
	if sign > 0 {
		from = "how long from now, like 720h"
	}
	flags.Var(t, name, usage+": a time as RFC 3339 has it, a day like 2026-11-22 (UTC), or "+from)
}

// Set is pflag's.
func (t *timeValue) Set(text string) (err error) {
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t.Time, err = time.Parse(layout, text); err == nil {
			return nil
		}
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return errors.New("it is neither a time, nor a day, nor a duration")
	}
	t.Time = time.Now().Add(t.sign * d).UTC().Truncate(time.Second)
	return nil
}

// Type is pflag's.
func (*timeValue) Type() string { return "time" }

// String is pflag's, of the default.
func (t *timeValue) String() string {
	if t.IsZero() {
		return ""
	}
	return t.Format(time.RFC3339)
}

// complete completes a flag with these values, and with no file.
func complete(values ...string) cobra.CompletionFunc {
	return cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)
}
