package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"accountledger/cmd/accountledger/cli"
)

// lived returns a data directory with 8 events and a backup of its first 5.
func lived(t *testing.T) (data, backup string) {
	t.Helper()
	dir := t.TempDir()
	data, backup = filepath.Join(dir, "data"), filepath.Join(dir, "backup")
	p := startServer(t, data)
	for i := range 5 {
		p.create(t, fmt.Sprintf("ada%d@example.com", i))
	}
	mustRun(t, "backup", "--data", data, "--to", backup)
	for i := range 3 {
		p.create(t, fmt.Sprintf("eva%d@example.com", i))
	}
	if err := p.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	return data, backup
}

// TestRestore restores a backup in place of a newer directory: only if that is
// wanted, and keeping the newer one.
func TestRestore(t *testing.T) {
	t.Parallel()
	data, backup := lived(t)
	parent := filepath.Dir(data)
	before := list(t, parent)
	code, stdout, stderr := accountledger(t, "restore", "--from", backup, "--data", data)
	if code != cli.ExitFaults || !strings.Contains(stderr, "3 events after 5") || !strings.Contains(stderr, "--lose-newer-events") {
		t.Fatalf("exit code %d, want %d\n%s%s", code, cli.ExitFaults, stdout, stderr)
	}
	if after := list(t, parent); !slices.Equal(before, after) {
		t.Errorf("a refused restore changed %q to %q", before, after)
	}
	// A copy that an interrupted restore left does no harm.
	if err := os.MkdirAll(filepath.Join(data+restoringSuffix, "half"), 0o700); err != nil {
		t.Fatal(err)
	}
	var done restored
	out := mustRun(t, "restore", "--from", backup, "--data", data, "--lose-newer-events", "--json")
	if err := json.Unmarshal([]byte(out), &done); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if done.Position != 5 || done.Lost.Events != 3 || done.Lost.After != 5 || !done.Lost.Exact || time.Since(done.Lost.Since) > time.Hour || len(done.Next) != 2 {
		t.Errorf("the outcome is %+v", done)
	}
	for dir, events := range map[string]string{data: "verified: 5 events", done.Replaced: "verified: 8 events"} {
		if out := mustRun(t, "verify", "--data", dir, "--allow-uncovered"); !strings.Contains(out, events) {
			t.Errorf("%s: %s, want %s", dir, out, events)
		}
		mustRun(t, "check", "--data", dir, "--views")
	}
	if names := list(t, parent); len(names) != 3 {
		t.Errorf("there are %q", names)
	}
	// Restoring the newer directory loses nothing.
	if out := mustRun(t, "restore", "--from", done.Replaced, "--data", data); strings.Contains(out, "lost") {
		t.Errorf("restoring everything says\n%s", out)
	}
	if out := mustRun(t, "verify", "--data", data); !strings.Contains(out, "verified: 8 events") {
		t.Errorf("the newer directory is not back: %s", out)
	}
}

// erasedSince returns a data directory, a backup with two accounts, and the sub of
// the one that was erased after the backup; the other has the address
// eva@example.com.
func erasedSince(t *testing.T) (data, backup, erased string) {
	t.Helper()
	dir := t.TempDir()
	data, backup = filepath.Join(dir, "data"), filepath.Join(dir, "backup")
	p := startServer(t, data)
	erased = p.create(t, "ada@example.com")
	p.create(t, "eva@example.com")
	mustRun(t, "backup", "--data", data, "--to", backup)
	response, text, err := p.do(t.Context(), "DELETE", "/v1/accounts/"+erased+"?immediate=true", "")
	if err != nil || response.StatusCode >= http.StatusMultipleChoices {
		t.Fatalf("delete: %v, %v: %s", response, err, text)
	}
	deadline := time.Now().Add(timeout)
	for {
		gone, err := directory(data).destroyed(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(gone) == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the key is not destroyed")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := p.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	return data, backup, erased
}

// TestRestoreKeepsErased tests that an account that was erased after the backup
// stays erased.
func TestRestoreKeepsErased(t *testing.T) {
	t.Parallel()
	data, backup, erased := erasedSince(t)
	out := mustRun(t, "restore", "--from", backup, "--data", data, "--lose-newer-events")
	if !strings.Contains(out, "the keys of 1 accounts") {
		t.Errorf("the restore says\n%s", out)
	}
	if opened := mustRun(t, "events", "--data", data, "--open"); !strings.Contains(opened, "eva@example.com") {
		t.Errorf("the other account cannot be opened:\n%s", opened)
	}
	if opened := mustRun(t, "events", "--data", data, "--open", "--sub", erased); strings.Contains(opened, "ada@example.com") {
		t.Errorf("the erased account can be opened:\n%s", opened)
	}
}

// TestRestoreMissingKeys tests that a restore names the key that is missing, and
// takes it from the present directory if that has it.
func TestRestoreMissingKeys(t *testing.T) {
	t.Parallel()
	data, backup := lived(t)
	nowhere := filepath.Join(t.TempDir(), "data")
	code, _, stderr := accountledger(t, "restore", "--from", backup, "--data", nowhere)
	if flat := strings.Join(strings.Fields(stderr), " "); code != cli.ExitFaults || !strings.Contains(flat, "There is no master key") || !strings.Contains(flat, filepath.Join(backup, masterKeyFile)) {
		t.Errorf("without a master key: exit code %d\n%s", code, stderr)
	}
	master := filepath.Join(data, masterKeyFile)
	if err := os.Rename(filepath.Join(backup, logKeyFile), filepath.Join(t.TempDir(), logKeyFile)); err != nil {
		t.Fatal(err)
	}
	code, _, stderr = accountledger(t, "restore", "--from", backup, "--data", nowhere, "--master-key-file", master)
	if flat := strings.Join(strings.Fields(stderr), " "); code != cli.ExitFaults || !strings.Contains(flat, "no key to sign the log") || !strings.Contains(flat, filepath.Join(backup, logKeyFile)) {
		t.Errorf("without log.key: exit code %d\n%s", code, stderr)
	}
	if left := list(t, filepath.Dir(nowhere)); len(left) != 0 {
		t.Errorf("refused restores left %q", left)
	}
	mustRun(t, "restore", "--from", backup, "--data", data, "--lose-newer-events")
	for _, name := range []string{masterKeyFile, logKeyFile, logVKeyFile} {
		if there, err := directory(data).has(name); err != nil || !there {
			t.Errorf("the restored directory has no %s: %v", name, err)
		}
	}
	mustRun(t, "admin-key", "--data", data)
}

// TestRestoreRefuses tests what a restore refuses, and that it then changes
// nothing.
func TestRestoreRefuses(t *testing.T) {
	t.Parallel()
	data, backup := lived(t)
	other := filepath.Join(t.TempDir(), "other")
	mustRun(t, "admin-key", "--data", other)
	damaged := filepath.Join(t.TempDir(), "damaged")
	if err := os.CopyFS(damaged, os.DirFS(backup)); err != nil {
		t.Fatal(err)
	}
	alter(t, filepath.Join(damaged, logFile), "DROP TRIGGER events_update; UPDATE events SET actor = 'api-key:eva' WHERE position = 3")
	signed := filepath.Join(t.TempDir(), "last-signed")
	mustRun(t, "admin-key", "--data", data, "--last-signed", signed)
	gone := filepath.Join(t.TempDir(), "data")
	for _, tt := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"damaged", []string{"--from", damaged, "--data", data, "--lose-newer-events"}, cli.ExitFaults, "altered@3"},
		{"of another ledger", []string{"--from", backup, "--data", other, "--master-key-file", filepath.Join(data, masterKeyFile), "--lose-newer-events"}, cli.ExitFaults, "but"},
		{"wrong master key", []string{"--from", backup, "--data", data, "--master-key-file", filepath.Join(other, masterKeyFile)}, cli.ExitFaults, "does not open keys.db"},
		{"no backup", []string{"--from", gone, "--data", data}, cli.ExitFailed, "there is no ledger"},
		{"itself", []string{"--from", data, "--data", data}, cli.ExitUsage, "are the same"},
		{"nothing", []string{"--data", data}, cli.ExitUsage, "--from"},
		{"below the last checkpoint", []string{"--from", backup, "--data", gone, "--master-key-file", filepath.Join(data, masterKeyFile), "--last-signed", signed}, cli.ExitFaults, "3 events after 5"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := append(list(t, filepath.Dir(data)), list(t, data)...)
			code, stdout, stderr := accountledger(t, append([]string{"restore"}, tt.args...)...)
			if said := strings.Join(strings.Fields(stdout+stderr), " "); code != tt.code || !strings.Contains(said, tt.want) {
				t.Errorf("exit code %d, want %d and %q\n%s%s", code, tt.code, tt.want, stdout, stderr)
			}
			for line := range strings.Lines(stderr) {
				if len(line) > helpWidth+1 && strings.HasPrefix(line, " ") && !strings.Contains(line, t.TempDir()[:4]) {
					t.Errorf("a line is too long: %s", line)
				}
			}
			if after := append(list(t, filepath.Dir(data)), list(t, data)...); !slices.Equal(before, after) {
				t.Errorf("the files changed from %q to %q", before, after)
			}
		})
	}
	// In use.
	p := startServer(t, data)
	if code, _, stderr := accountledger(t, "restore", "--from", backup, "--data", data, "--lose-newer-events"); code != cli.ExitLocked {
		t.Errorf("beside a server: exit code %d, want %d\n%s", code, cli.ExitLocked, stderr)
	}
	if err := p.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Where there is nothing, nothing is lost.
	mustRun(t, "restore", "--from", backup, "--data", gone, "--master-key-file", filepath.Join(data, masterKeyFile))
	mustRun(t, "verify", "--data", gone, "--allow-uncovered")
}
