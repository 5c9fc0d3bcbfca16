package main

import (
	"github.com/spf13/cobra"

	"accountledger/cmd/accountledger/cli"
	"accountledger/httpapi"
)

func adminKeyCommand() *cobra.Command {
	var accept cli.Accept
	cmd := &cobra.Command{
		Use:   "admin-key",
		Short: "Replace the admin key, which has all scopes",
		Long: `Create a new admin key and write it to <data>/admin.key, readable only by its
owner. The previous admin key becomes invalid. The server must not be running.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := cli.Load(cmd)
			if err != nil {
				return err
			}
			c.Accept = accept
			out := cli.NewConsole(cmd, c)
			l, err := openLedger(cmd.Context(), c, out.Logger())
			if err != nil {
				return err
			}
			defer l.close()
			path := l.dir.path(adminKeyFile)
			if err := httpapi.NewAdminKey(cmd.Context(), l.keys, path); err != nil {
				return err
			}
			if out.JSON {
				return out.Document(map[string]string{"file": path})
			}
			out.Printf("wrote %s\n", path)
			return nil
		},
	}
	cli.AddSettings(cmd.Flags(), "data", "master-key-file", "last-signed")
	accept.AddFlags(cmd.Flags())
	return cmd
}
