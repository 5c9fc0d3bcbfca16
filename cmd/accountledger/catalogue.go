package main

import (
	"strings"

	"github.com/spf13/cobra"

	"accountledger/cmd/accountledger/cli"
	"accountledger/httpapi"
)

func catalogueCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "catalogue",
		Short: "List the public events, which webhooks and the feed send",
		Long: `List the public events: their names, when they are sent, and the aliases that
select them. With --json the list includes the JSON Schema of each event in the
feed, which is self-contained. The command needs no ledger.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := cli.Load(cmd)
			if err != nil {
				return err
			}
			all, err := httpapi.Catalogue()
			if err != nil {
				return err
			}
			out := cli.NewConsole(cmd, c)
			if c.JSON {
				return out.Document(all)
			}
			var rows [][]any
			for _, e := range all {
				names := make([]string, len(e.Aliases))
				for i, a := range e.Aliases {
					names[i] = a.Name
				}
				rows = append(rows, []any{e.Name, e.About, e.When, strings.Join(names, ", ")})
			}
			out.Table([]any{"event", "about", "sent when", "aliases"}, rows)
			return nil
		},
	}
}
