package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// The exit codes of the program. Scripts rely on them, so they never change.
const (
	ExitOK        = 0
	ExitFailed    = 1
	ExitUsage     = 2
	ExitFaults    = 3
	ExitLocked    = 4
	ExitRows      = 5
	ExitDiffer    = 6
	ExitRefused   = 7
	ExitNoAnswer  = 8
	ExitUncovered = 9
)

// ExitCodes has the meaning of each exit code, in the order in which help shows
// them.
var ExitCodes = []struct {
	Code    int
	Meaning string
}{
	{ExitOK, "done"},
	{ExitFailed, "failed; standard error has the reason"},
	{ExitUsage, "wrong usage: a flag, an argument or a setting"},
	{ExitFaults, "files of the ledger are altered or missing, or do not fit together"},
	{ExitLocked, "another process uses the data directory"},
	{ExitRows, "import: some rows failed, the others were imported"},
	{ExitDiffer, "reconcile: accounts differ"},
	{ExitRefused, "the server refused the request; standard error has the code"},
	{ExitNoAnswer, "the server cannot be reached, or did not answer"},
	{ExitUncovered, "verify: no faults, but no signed checkpoint covers the last events"},
}

// exitError ends the program with its code.
type exitError struct {
	code int
	error
}

func (e *exitError) Unwrap() error { return e.error }

// ExitCode returns e's code.
func (e *exitError) ExitCode() int { return e.code }

// Exitf returns an error that ends the program with code.
func Exitf(code int, format string, args ...any) error {
	return &exitError{code, fmt.Errorf(format, args...)}
}

// Usagef returns an error that reports wrong usage.
func Usagef(format string, args ...any) error { return Exitf(ExitUsage, format, args...) }

// ExitCode returns the exit code for err: that of the first error in its chain
// that has one, or else ExitFailed.
func ExitCode(err error) int {
	if err == nil {
		return ExitOK
	}
	var coded interface {
		error
		ExitCode() int
	}
	if errors.As(err, &coded) {
		return coded.ExitCode()
	}
	return ExitFailed
}

// OneOf refuses a value that is not among those allowed.
func OneOf(setting, value string, allowed ...string) error {
	if !slices.Contains(allowed, value) {
		return Usagef("%s is %q; allowed: %s", setting, value, strings.Join(allowed, ", "))
	}
	return nil
}

// Choose runs a command that only has subcommands: it prints help, and refuses
// the name of a subcommand that does not exist.
func Choose(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	message := fmt.Sprintf("unknown command %q", args[0])
	cmd.SuggestionsMinimumDistance = 2
	if similar := cmd.SuggestionsFor(args[0]); len(similar) > 0 {
		message += "; did you mean " + strings.Join(similar, ", ") + "?"
	}
	return Usagef("%s", message)
}

// WrapArgs makes cobra's errors about the arguments and flags of cmd and its
// subcommands errors of wrong usage.
func WrapArgs(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(c *cobra.Command, args []string) error {
			if err := cmp.Or(check(c, args), c.ValidateRequiredFlags(), c.ValidateFlagGroups()); err != nil {
				return Usagef("%w", err)
			}
			return nil
		}
	}
	for _, child := range cmd.Commands() {
		WrapArgs(child)
	}
}

// Interruptible returns a copy of ctx that SIGINT or SIGTERM cancels. A second
// signal ends the process immediately.
func Interruptible(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}
