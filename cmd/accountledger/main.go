// Accountledger is an event-sourced ledger of user accounts in one binary: the
// server, tools for operators and auditors that use its data directory, and a
// client of a running server.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"accountledger/cmd/accountledger/cli"
	"accountledger/cmd/accountledger/remote"
	"accountledger/eventstore"
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// exitCode returns the exit code for err.
func exitCode(err error) int {
	switch code := cli.ExitCode(err); {
	case errors.Is(err, errLocked):
		return cli.ExitLocked
	case code == cli.ExitFailed && errors.Is(err, eventstore.ErrTampered): // found while it ran
		return cli.ExitFaults
	default:
		return code
	}
}

// run executes the command in args and returns the exit code. Most commands end
// with ctx or at the first interrupt; serve handles signals itself, because it
// has to shut down.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	command, err := root.ExecuteContextC(ctx)
	if err != nil {
		fmt.Fprintf(stderr, "accountledger: %s\n", err)
		if exitCode(err) == cli.ExitUsage {
			fmt.Fprintf(stderr, "See '%s --help'.\n", command.CommandPath())
		}
	}
	return exitCode(err)
}

// helpWidth is the width of help, in columns.
const helpWidth = 80

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "accountledger",
		Short:         "An event-sourced ledger of user accounts",
		Long:          rootHelp(),
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.ArbitraryArgs,
		RunE:          cli.Choose,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return cli.Usagef("%w", err) })
	cli.AddSettings(root.PersistentFlags(), "config", "json")
	for _, group := range []struct {
		title    string
		commands []*cobra.Command
	}{
		{"Run a ledger and manage its data directory:", []*cobra.Command{serveCommand(), importCommand(), exportCommand(), reconcileCommand(),
			eventsCommand(), viewsCommand(), verifyCommand(), checkCommand(), backupCommand(), restoreCommand(), newIncarnationCommand(), adminKeyCommand(), masterKeyCommand()}},
		{"Use a running server:", remote.Commands()},
		{"Other commands:", []*cobra.Command{listenCommand(), demoCommand(), settingsCommand(), manCommand(), versionCommand()}},
	} {
		root.AddGroup(&cobra.Group{ID: group.title, Title: group.title})
		for _, command := range group.commands {
			command.GroupID = group.title
			root.AddCommand(command)
		}
	}
	cli.WrapArgs(root)
	root.SetUsageTemplate(strings.NewReplacer(
		".FlagUsages", fmt.Sprintf(".FlagUsagesWrapped %d", helpWidth),
		`Use "{{.CommandPath}} [command] --help" for more information about a command.`, `See "{{.CommandPath}} COMMAND --help" for details.`,
	).Replace(root.UsageTemplate()))
	return root
}

func rootHelp() string {
	var b strings.Builder
	b.WriteString(`An event-sourced ledger of user accounts: every change is an appended event,
personal data is encrypted with a key per account, and an auditor can verify the
log with its Merkle tree.

Settings are flags, environment variables, or members of a YAML file; see
'accountledger settings'.

Exit codes:
`)
	for _, e := range cli.ExitCodes {
		fmt.Fprintf(&b, "  %d  %s\n", e.Code, e.Meaning)
	}
	return strings.TrimRight(b.String(), "\n")
}
