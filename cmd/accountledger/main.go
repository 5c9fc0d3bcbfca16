// Accountledger is an event-sourced ledger of user accounts in one binary: the
// server, and the tools an operator and an auditor use on its data directory.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"accountledger/eventstore/sqlite"
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// What the program ends with. Scripts rely on these, so they never change.
const (
	exitOK       = 0
	exitFailed   = 1
	exitUsage    = 2
	exitFaults   = 3
	exitLocked   = 4
	exitRows     = 5
	exitDiffer   = 6
	exitRefused  = 7
	exitNoAnswer = 8
)

// exitCodes says what each exit code means, in the order help shows them.
var exitCodes = []struct {
	code    int
	meaning string
}{
	{exitOK, "done"},
	{exitFailed, "failed; the reason is on standard error"},
	{exitUsage, "called wrongly: a flag, an argument or a setting"},
	{exitFaults, "verify, check and backup: the ledger has faults"},
	{exitLocked, "another process has the data directory"},
	{exitRows, "import: some rows were refused, the others are in"},
	{exitDiffer, "reconcile: accounts differ"},
	{exitRefused, "a server refused; the code of the refusal is on standard error"},
	{exitNoAnswer, "a server cannot be reached, or did not answer"},
}

// exitError ends the program with a code of its own.
type exitError struct {
	code int
	err  error // nil where the command has said all there is to say
}

func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}
func (e *exitError) Unwrap() error { return e.err }

// usagef reports that the program was called wrongly.
func usagef(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, args...)}
}

// exitCode is the code err ends the program with.
func exitCode(err error) int {
	if err == nil {
		return exitOK
	}
	if e, ok := errors.AsType[*exitError](err); ok {
		return e.code
	}
	if _, ok := errors.AsType[*refusal](err); ok {
		return exitRefused
	}
	if _, ok := errors.AsType[*noAnswer](err); ok {
		return exitNoAnswer
	}
	if errors.Is(err, sqlite.ErrLocked) {
		return exitLocked
	}
	return exitFailed
}

// run is the program: it carries out args and returns the exit code. Commands
// that only print end with ctx or at a first interrupt; serve, which has
// something to finish, sees to signals itself.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	command, err := root.ExecuteContextC(ctx)
	if err != nil {
		if message := err.Error(); message != "" {
			fmt.Fprintf(stderr, "accountledger: %s\n", message)
		}
		if exitCode(err) == exitUsage {
			fmt.Fprintf(stderr, "See '%s --help'.\n", command.CommandPath())
		}
	}
	return exitCode(err)
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "accountledger",
		Short:         "An event-sourced ledger of user accounts",
		Long:          rootHelp(),
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.ArbitraryArgs,
		RunE:          choose,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &exitError{exitUsage, err} })
	addSettings(root.PersistentFlags(), "config", "json")
	for _, group := range []struct {
		title    string
		commands []*cobra.Command
	}{
		{"Run a ledger, and look after its data directory:", []*cobra.Command{serveCommand(), importCommand(), exportCommand(), reconcileCommand(),
			eventsCommand(), viewsCommand(), verifyCommand(), checkCommand(), backupCommand(), adminKeyCommand(), masterKeyCommand()}},
		{"Ask a running server:", []*cobra.Command{accountsCommand(), webhooksCommand(), keysCommand(), healthCommand()}},
		{"Other commands:", []*cobra.Command{listenCommand(), demoCommand(), settingsCommand(), manCommand(), versionCommand()}},
	} {
		root.AddGroup(&cobra.Group{ID: group.title, Title: group.title})
		for _, command := range group.commands {
			command.GroupID = group.title
			root.AddCommand(command)
		}
	}
	wrapArgs(root)
	return root
}

// choose is what a command does that only has commands under it: it shows them,
// and refuses what is none of them.
func choose(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	message := fmt.Sprintf("there is no command %q", args[0])
	cmd.SuggestionsMinimumDistance = 2
	if similar := cmd.SuggestionsFor(args[0]); len(similar) > 0 {
		message += "; did you mean " + strings.Join(similar, ", ") + "?"
	}
	return usagef("%s", message)
}

// wrapArgs gives what cobra says about a command's arguments and flags the exit
// code of a wrong call.
func wrapArgs(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(c *cobra.Command, args []string) error {
			if err := cmp.Or(check(c, args), c.ValidateRequiredFlags(), c.ValidateFlagGroups()); err != nil {
				return &exitError{exitUsage, err}
			}
			return nil
		}
	}
	for _, child := range cmd.Commands() {
		wrapArgs(child)
	}
}

func rootHelp() string {
	var b strings.Builder
	b.WriteString(`An event-sourced ledger of user accounts: every change is an appended event,
personal data is sealed under a key per account, and the whole log is one tree
that an auditor can verify.

Settings come from flags, then from the environment, then from a YAML file; see
'accountledger settings'.

Exit codes:
`)
	for _, e := range exitCodes {
		fmt.Fprintf(&b, "  %d  %s\n", e.code, e.meaning)
	}
	return strings.TrimRight(b.String(), "\n")
}

// interruptible is ctx until the first interrupt or termination; a second one
// ends the process at once.
func interruptible(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}

// oneOf refuses a value that is none of those allowed.
func oneOf(setting, value string, allowed ...string) error {
	if !slices.Contains(allowed, value) {
		return usagef("%s is %q; it can be %s", setting, value, strings.Join(allowed, ", "))
	}
	return nil
}
