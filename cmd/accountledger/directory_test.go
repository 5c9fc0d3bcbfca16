package main

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"accountledger/cmd/accountledger/cli"
)

// TestInterruptedFirstStart puts a directory into each state that a first
// start can leave behind, and others it cannot, and opens it.
func TestInterruptedFirstStart(t *testing.T) {
	t.Parallel()
	whole := filepath.Join(t.TempDir(), "whole")
	open := func(data string) error {
		l, err := openLedger(t.Context(), cli.Config{Data: data}, slog.New(slog.DiscardHandler))
		// Tests beside this one start servers: until such a child has become
		// another program it holds what this process had locked.
		for i := 0; i < 100 && errors.Is(err, errLocked); i++ {
			time.Sleep(10 * time.Millisecond)
			l, err = openLedger(t.Context(), cli.Config{Data: data}, slog.New(slog.DiscardHandler))
		}
		if err != nil {
			return err
		}
		return l.close()
	}
	if err := open(whole); err != nil {
		t.Fatal(err)
	}
	const fresh = "fresh" // the ledger is another one
	for _, tt := range []struct {
		name  string
		files []string
		want  string // error, same or fresh
	}{
		{"nothing", nil, fresh},
		{"master key", []string{masterKeyFile}, fresh},
		{"log key", []string{masterKeyFile, logKeyFile}, "same"},
		{"keys", []string{masterKeyFile, logKeyFile, keysFile}, "same"},
		{"log", []string{masterKeyFile, logKeyFile, keysFile, logFile}, "same"},
		{"done", []string{masterKeyFile, logKeyFile, keysFile, logFile, logVKeyFile}, "same"},
		{"views lost", []string{masterKeyFile, logKeyFile, keysFile, logFile, logVKeyFile, deliveryFile}, "same"},

		{"no master key", []string{logKeyFile, keysFile, logFile, logVKeyFile}, "error"},
		{"no log key", []string{masterKeyFile, keysFile, logFile, logVKeyFile}, "error"},
		{"no keys", []string{masterKeyFile, logKeyFile, logFile}, "error"},
		{"no log", []string{masterKeyFile, logKeyFile, keysFile, logVKeyFile}, "error"},
		{"views alone", []string{viewsFile}, "error"},
		{"views without a log", []string{masterKeyFile, logKeyFile, keysFile, viewsFile}, "error"},
		{"public key alone", []string{logVKeyFile}, "error"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			data := t.TempDir()
			for _, name := range tt.files {
				content, err := os.ReadFile(filepath.Join(whole, name))
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(data, name), content, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			before := list(t, data)
			if err := open(data); (err != nil) != (tt.want == "error") {
				t.Fatalf("open: %v, want %s", err, tt.want)
			}
			if tt.want == "error" {
				if after := list(t, data); !slices.Equal(before, after) {
					t.Errorf("a refused directory has changed from %q to %q", before, after)
				}
				return
			}
			same := content(t, filepath.Join(data, logVKeyFile)) == content(t, filepath.Join(whole, logVKeyFile))
			if same != (tt.want == "same") {
				t.Errorf("its key is the whole ledger's: %t, want %s", same, tt.want)
			}
			if err := open(data); err != nil {
				t.Errorf("the second start: %v", err)
			}
		})
	}
}

// TestSweep: what a crash left of files being made goes at the next start.
func TestSweep(t *testing.T) {
	t.Parallel()
	d := directory(t.TempDir())
	half := d.path(cli.NewFilePrefix + "half")
	if err := os.MkdirAll(filepath.Join(half, "made"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := d.sweep(); err != nil {
		t.Fatal(err)
	}
	if left := list(t, string(d)); len(left) > 0 {
		t.Errorf("%q is left", left)
	}
}

// TestCreateFile: a file that is there is never replaced.
func TestCreateFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "key")
	if err := cli.CreateFile(path, "first", 0o600); err != nil {
		t.Fatal(err)
	}
	if err := cli.CreateFile(path, "second", 0o600); err == nil || content(t, path) != "first" {
		t.Errorf("creating it again = %v, and it holds %q", err, content(t, path))
	}
	if left := list(t, filepath.Dir(path)); len(left) != 1 {
		t.Errorf("there is %q", left)
	}
}

// TestLock: one at a time, in one process as in two.
func TestLock(t *testing.T) {
	t.Parallel()
	c := cli.Config{Data: filepath.Join(t.TempDir(), "data")}
	logger := slog.New(slog.DiscardHandler)
	l, err := openLedger(t.Context(), c, logger)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openLedger(t.Context(), c, logger); exitCode(err) != cli.ExitLocked {
		t.Errorf("the second = %v, want %v", err, errLocked)
	}
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
	l, err = openLedger(t.Context(), c, logger)
	if err != nil {
		t.Fatalf("after the first has ended: %v", err)
	}
	l.close()
}

func list(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func content(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
