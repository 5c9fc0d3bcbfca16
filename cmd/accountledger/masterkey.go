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
		Short: "Make a master key, to be kept apart from the data directory",
		Long: `Write a new master key to a file that does not exist, readable for its owner
only. A ledger that is made with it (--master-key-file) has no copy of it in its
data directory. Keep another copy where the backups are not: without the key
all personal data is lost.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := cli.Load(cmd)
			if err != nil {
				return err
			}
			err = cli.CreateFile(args[0], seal.NewMaster().Reveal()+"\n", 0o600)
			if errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("master key: %s is there and may be in use; it stays as it is", args[0])
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
