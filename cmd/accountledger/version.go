package main

import (
	"runtime"
	"runtime/debug"

	"github.com/mattn/go-sqlite3"
	"github.com/spf13/cobra"

	"accountledger/cmd/accountledger/cli"
)

// linkedVersion is set by the linker, see the Makefile.
var linkedVersion string

// version returns the version of the program: the one the linker set, or that of
// the module.
func version() string {
	if linkedVersion != "" {
		return linkedVersion
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "dev"
}

// build identifies a build of the program, for bug reports.
type build struct {
	Version string `json:"version"`
	Commit  string `json:"commit"`
	Time    string `json:"time"`
	Changed bool   `json:"changed"` // the working tree had uncommitted changes
	Go      string `json:"go"`
	SQLite  string `json:"sqlite"`
}

func builtFrom() build {
	sqlite, _, _ := sqlite3.Version()
	b := build{Version: version(), Commit: "unknown", Time: "unknown", Go: runtime.Version(), SQLite: sqlite}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Commit = s.Value
		case "vcs.time":
			b.Time = s.Value
		case "vcs.modified":
			b.Changed = s.Value == "true"
		}
	}
	return b
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version and the build",
		Long: `Print the version, the commit and the versions of Go and SQLite. Include them in
bug reports.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := cli.Load(cmd)
			if err != nil {
				return err
			}
			out, b := cli.NewConsole(cmd, c), builtFrom()
			if c.JSON {
				return out.Document(b)
			}
			changed := ""
			if b.Changed {
				changed = ", changed"
			}
			out.Printf("accountledger %s\ncommit %s of %s%s\n%s, SQLite %s\n", b.Version, b.Commit, b.Time, changed, b.Go, b.SQLite)
			return nil
		},
	}
}
