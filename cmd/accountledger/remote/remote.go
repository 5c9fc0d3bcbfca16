// Package remote has the commands that use a running server, and their client.
package remote

import (
	"github.com/spf13/cobra"

	"accountledger/cmd/accountledger/cli"
)

// Commands returns the commands.
func Commands() []*cobra.Command {
	return []*cobra.Command{accountsCommand(), webhooksCommand(), keysCommand(), healthCommand()}
}

// printer prints objects of the API as text.
type printer struct{ cli.Console }
