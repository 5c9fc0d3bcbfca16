package main

import (
	"github.com/spf13/cobra"

	"accountledger/httpapi"
)

func adminKeyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "admin-key",
		Short: "Replace the admin key, which has every right",
		Long: `Make a new admin key and write it to <data>/admin.key, readable for its owner
only. The key before it is no longer valid. The server must not be running.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := loadConfig(cmd)
			if err != nil {
				return err
			}
			out := newConsole(cmd, c)
			l, err := openLedger(cmd.Context(), c, out.logger())
			if err != nil {
				return err
			}
			defer l.close()
			path := l.dir.path(adminKeyFile)
			if err := httpapi.NewAdminKey(cmd.Context(), l.keys, path); err != nil {
				return err
			}
			if out.json {
				return out.document(map[string]string{"file": path})
			}
			out.printf("wrote %s\n", path)
			return nil
		},
	}
	addSettings(cmd.Flags(), "data", "master-key-file")
	return cmd
}
