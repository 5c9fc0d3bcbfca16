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
		Short: "List all settings: flag, environment variable, value in effect, default, meaning",
		Long: `List all settings and the values in effect. Each can be given as a flag of the
commands that use it, as an environment variable, or as a member of a YAML file
(--config); the first of these that has it wins. The master key itself is never
a setting but in ` + masterKeyEnv + ` or in a file, and so is an API key, in
` + remote.KeyEnv + ` or in a file.`,
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
