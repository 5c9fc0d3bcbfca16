package main

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/spf13/cobra"

	"accountledger/cmd/accountledger/cli"
	"accountledger/eventstore/seal"
)

func masterKeyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "master-key FILE",
		Short: "Create a master key outside of the data directory",
		Long: `Create a master key in a new file, readable only by its owner. Use it to create
a ledger with --master-key-file; its data directory then does not contain the
key. Keep another copy apart from the backups: without the key all personal data
is lost.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := cli.Load(cmd)
			if err != nil {
				return err
			}
			err = cli.CreateFile(args[0], seal.NewMaster().Reveal()+"\n", 0o600)
			if errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("master key: %s exists and may be in use; it was not changed", args[0])
			}
			if err != nil {
				return fmt.Errorf("master key: %w", err)
			}
			out := cli.NewConsole(cmd, c)
			if out.JSON {
				return out.Document(map[string]string{"file": args[0]})
			}
			out.Printf("wrote %s\n", args[0])
			return nil
		},
	}
}
