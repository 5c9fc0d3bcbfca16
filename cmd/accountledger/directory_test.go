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

// TestInterruptedFirstStart opens directories in each state that an interrupted
// first start can leave, and in states that it cannot leave.
func TestInterruptedFirstStart(t *testing.T) {
	t.Parallel()
	complete := filepath.Join(t.TempDir(), "whole")
	open := func(data string) error {
		l, err := openLedger(t.Context(), cli.Config{Data: data}, slog.New(slog.DiscardHandler))
		// Parallel tests start servers. Between fork and exec, such a child holds
		// the locks of this process.
		for i := 0; i < 100 && errors.Is(err, errLocked); i++ {
			time.Sleep(10 * time.Millisecond)
			l, err = openLedger(t.Context(), cli.Config{Data: data}, slog.New(slog.DiscardHandler))
		}
		if err != nil {
			return err
		}
		return l.close()
	}
	if err := open(complete); err != nil {
		t.Fatal(err)
	}
	const fresh = "fresh" // a new ledger was created
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
				content, err := os.ReadFile(filepath.Join(complete, name))
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
					t.Errorf("a refused directory changed from %q to %q", before, after)
				}
				return
			}
			same := content(t, filepath.Join(data, logVKeyFile)) == content(t, filepath.Join(complete, logVKeyFile))
			if same != (tt.want == "same") {
				t.Errorf("it has the key of the complete ledger: %t, want %s", same, tt.want)
			}
			if err := open(data); err != nil {
				t.Errorf("the second start: %v", err)
			}
		})
	}
}

// TestSweep tests that a start removes incomplete files that a crash left.
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

// TestCreateFile tests that CreateFile never replaces a file.
func TestCreateFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "key")
	if err := cli.CreateFile(path, "first", 0o600); err != nil {
		t.Fatal(err)
	}
	if err := cli.CreateFile(path, "second", 0o600); err == nil || content(t, path) != "first" {
		t.Errorf("creating it again = %v, and it contains %q", err, content(t, path))
	}
	if left := list(t, filepath.Dir(path)); len(left) != 1 {
		t.Errorf("there is %q", left)
	}
}

// TestLock tests that only one ledger can have the directory open, also within a
// process.
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
