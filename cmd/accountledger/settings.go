package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"accountledger/cmd/accountledger/cli"
	"accountledger/cmd/accountledger/remote"
)

func settingsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "settings",
		Short: "List all settings, their values and defaults",
		Long: `List all settings and their current values. A setting is a flag of the commands
that use it, an environment variable, or a member of a YAML file (--config); the
first of these wins. The master key and the API key are not settings: they are
in files, or in ` + masterKeyEnv + ` and ` + remote.KeyEnv + `.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := cli.Load(cmd)
			if err != nil {
				return err
			}
			all, values, out := cli.Settings(), c.Values(), cli.NewConsole(cmd, c)
			var rows [][]any
			for i := range all {
				s := &all[i]
				s.Value = strings.Trim(fmt.Sprint(values[i]), "[]")
				rows = append(rows, []any{"--" + s.Name, s.Env, s.Value, s.Default, s.Usage})
			}
			if c.JSON {
				return out.Document(all)
			}
			out.Table([]any{"flag", "environment", "value", "default", "meaning"}, rows)
			return nil
		},
	}
	for _, s := range cli.Settings() {
		if s.Name != "config" && s.Name != "json" { // every command has these
			cli.AddSettings(cmd.Flags(), s.Name)
		}
	}
	return cmd
}
