package main

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/spf13/cobra"

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
			c, err := loadConfig(cmd)
			if err != nil {
				return err
			}
			err = createFile(args[0], seal.NewMaster().Reveal()+"\n", 0o600)
			if errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("master key: %s is there and may be in use; it stays as it is", args[0])
			}
			if err != nil {
				return fmt.Errorf("master key: %w", err)
			}
			out := newConsole(cmd, c)
			if out.json {
				return out.document(map[string]string{"file": args[0]})
			}
			out.printf("wrote %s\n", args[0])
			return nil
		},
	}
}
