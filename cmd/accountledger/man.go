package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
	"github.com/spf13/pflag"

	"accountledger/cmd/accountledger/cli"
)

func manCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "man",
		Short: "Write the manual pages",
		Long: `Write a manual page for each command. Read one with man -l, or write them to a
directory that man searches, like /usr/local/share/man/man1.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := cli.Load(cmd)
			if err != nil {
				return err
			}
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
			n, err := writeManual(cmd.Root(), dir)
			if err != nil {
				return fmt.Errorf("man: %w", err)
			}
			out := cli.NewConsole(cmd, c)
			if c.JSON {
				return out.Document(map[string]any{"dir": dir, "pages": n})
			}
			out.Printf("wrote %d pages to %s\n", n, dir)
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "man", "directory for the pages")
	return cmd
}

// writeManual writes the pages of all commands. Their date is that of the commit
// the program was built from, so the same program writes the same pages.
func writeManual(root *cobra.Command, dir string) (pages int, err error) {
	root.InitDefaultCompletionCmd()
	markDown(root)
	root.DisableAutoGenTag = true // it contains the current date
	built := builtFrom()
	header := doc.GenManHeader{Section: "1", Manual: "accountledger", Source: "accountledger " + built.Version}
	if t, err := time.Parse(time.RFC3339, built.Time); err == nil {
		header.Date = &t
	}
	if err := doc.GenManTreeFromOpts(root, doc.GenManTreeOptions{Header: &header, Path: dir, CommandSeparator: "-"}); err != nil {
		return 0, err
	}
	files, err := os.ReadDir(dir)
	return len(files), err
}

// markDown converts the descriptions of the commands to Markdown, which the
// library expects.
func markDown(cmd *cobra.Command) {
	cmd.Long = markdown(cmd.Long)
	flags := func(f *pflag.Flag) { f.Usage = markdown(f.Usage) }
	cmd.LocalNonPersistentFlags().VisitAll(flags)
	cmd.PersistentFlags().VisitAll(flags)
	for _, child := range cmd.Commands() {
		markDown(child)
	}
}

// markdown converts text to Markdown. Indented lines become code.
func markdown(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "  ") {
			b.WriteString("  " + line)
		} else {
			b.WriteString(markdownText.Replace(line))
		}
	}
	return b.String()
}

var markdownText = strings.NewReplacer("<", `\<`, "*", `\*`, "_", `\_`)
