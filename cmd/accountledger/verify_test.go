package main

import (
	"bytes"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"accountledger/cmd/accountledger/cli"
	"accountledger/eventstore"
)

// TestVerifyNamesAlteredEvent flips a bit of an event in the log's file, and checks
// that verify names the event.
func TestVerifyNamesAlteredEvent(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "data")
	p := startServer(t, data)
	for i := range 5 {
		p.create(t, fmt.Sprintf("ada%d@example.com", i))
	}
	if err := p.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustRun(t, "verify", "--data", data)
	log, err := openStoreReader(t.Context(), cli.Config{Data: data})
	if err != nil {
		t.Fatal(err)
	}
	var recs []eventstore.Recorded
	for page := range until(log.Subscribe(t.Context(), 0), 5) {
		recs = append(recs, page...)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}

	path := filepath.Join(data, logFile)
	original, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, rec := range recs {
		for _, part := range []struct {
			name  string
			bytes []byte
			kind  string
		}{
			{"id", rec.ID[:], "altered"},
			{"clear part", rec.Clear, "altered"},
			{"key id", rec.KeyID[:], "altered"},
			{"sealed part", rec.Sealed, "sealed-altered"},
		} {
			at := bytes.Index(original, part.bytes)
			if at < 0 {
				t.Fatalf("the %s of event %d is not in the file", part.name, rec.Position)
			}
			damaged := bytes.Clone(original)
			damaged[at+rand.IntN(len(part.bytes))] ^= 1 << rand.IntN(8)
			if err := os.WriteFile(path, damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			name := fmt.Sprintf("%s@%d", part.kind, rec.Position)
			code, stdout, stderr := accountledger(t, "verify", "--data", data)
			if code != cli.ExitFaults || !strings.Contains(stdout, name+": ") {
				t.Errorf("verify after a flipped bit in the %s of event %d: exit code %d, want %d and %s\n%s%s", part.name, rec.Position, code, cli.ExitFaults, name, stdout, stderr)
			}
			if code, stdout, _ := accountledger(t, "verify", "--data", data, "--json"); code != cli.ExitFaults || !strings.Contains(stdout, fmt.Sprintf("%q", name)) {
				t.Errorf("verify --json: exit code %d, want %d and %s\n%s", code, cli.ExitFaults, name, stdout)
			}
		}
	}
}

// TestCheckFindsDamage tests that check finds damage in each file and names it.
func TestCheckFindsDamage(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "data")
	p := startServer(t, data)
	for i := range 50 {
		p.create(t, fmt.Sprintf("ada%d@example.com", i))
	}
	if err := p.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustRun(t, "check", "--views", "--data", data)
	for _, tt := range []struct {
		name, file, sql string
		named, detail   string // the file in the finding, and its detail
	}{
		{"a key is missing", keysFile, "DROP TRIGGER keys_fence; UPDATE keys SET wrapped = x''", keysFile, "no erasure explains it"},
		{"a key is wrong", keysFile, "UPDATE keys SET wrapped = (SELECT wrapped FROM keys ORDER BY slot LIMIT 1)", keysFile, "keys do not open"},
		{"the log is shorter", logFile, "DROP TRIGGER events_delete; DELETE FROM sealed WHERE position > 10; DELETE FROM events WHERE position > 10", viewsFile, "log.db ends at event 10"},
		{"an account differs", viewsFile, "UPDATE accounts_1 SET json = CAST(replace(CAST(json AS TEXT), 'Ada', 'Eva') AS BLOB) WHERE position = 7", viewsFile, "differs between the view, at revision 0, and a rebuild, at revision 0"},
		{"an account is missing", viewsFile, "DELETE FROM accounts_1 WHERE position = 7", viewsFile, "is in a rebuild but not in the view"},
		{"webhooks are ahead", deliveryFile, "UPDATE follow SET position = 99", deliveryFile, "delivery.db has seen event 99"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(data, tt.file)
			original, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			alter(t, path, tt.sql)
			code, stdout, stderr := accountledger(t, "check", "--views", "--data", data)
			if code != cli.ExitFaults || !strings.Contains(stdout, tt.named+": ") || !strings.Contains(stdout, tt.detail) {
				t.Errorf("exit code %d, want %d, %s and %q\n%s%s", code, cli.ExitFaults, tt.named, tt.detail, stdout, stderr)
			}
			if err := os.WriteFile(path, original, 0o600); err != nil {
				t.Fatal(err)
			}
		})
	}
	mustRun(t, "check", "--views", "--data", data)
}

// alter runs SQL statements on a file.
func alter(t *testing.T, path, statements string) {
	t.Helper()
	db, err := sql.Open("sqlite3", "file:"+path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(t.Context(), statements); err != nil {
		t.Fatal(err)
	}
	if _, err := db.ExecContext(t.Context(), "PRAGMA wal_checkpoint(TRUNCATE)"); err != nil {
		t.Fatal(err)
	}
}

// TestVerifyUncovered removes checkpoints from a log: verify then ends with 9,
// which no other command does, unless it is told to allow it.
func TestVerifyUncovered(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "data")
	p := startServer(t, data)
	for i := range 3 {
		p.create(t, fmt.Sprintf("ada%d@example.com", i))
	}
	// Beside the server, events without a checkpoint are newer.
	deadline := time.Now().Add(timeout)
	for {
		code, stdout, stderr := accountledger(t, "verify", "--data", data, "--json")
		var v verified
		if err := json.Unmarshal([]byte(stdout), &v); err != nil {
			t.Fatalf("%v\n%s%s", err, stdout, stderr)
		}
		if v.Covered > 0 { // the server has signed its first checkpoint
			if code != cli.ExitOK || v.Newer != v.Events-v.Covered || v.SealedHead != headChecked {
				t.Errorf("beside a server: exit code %d, %+v", code, v)
			}
			break
		}
		if code != cli.ExitUncovered || time.Now().After(deadline) {
			t.Fatalf("without a checkpoint: exit code %d, want %d\n%s", code, cli.ExitUncovered, stdout)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := p.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out := mustRun(t, "verify", "--data", data); !strings.Contains(out, "sealed head: checked\n") {
		t.Errorf("with the master key: %s", out)
	}
	alter(t, filepath.Join(data, logFile), "DELETE FROM checkpoints")
	code, stdout, stderr := accountledger(t, "verify", "--data", data)
	if code != cli.ExitUncovered || !strings.Contains(stderr, "covers the last events: 3\n") || !strings.Contains(stdout, "0 of them covered by 0") {
		t.Errorf("without checkpoints: exit code %d, want %d\n%s%s", code, cli.ExitUncovered, stdout, stderr)
	}
	for line := range strings.Lines(stderr) {
		if len(line) > helpWidth+1 {
			t.Errorf("a line is too long: %s", line)
		}
	}
	mustRun(t, "verify", "--data", data, "--allow-uncovered")
	mustRun(t, "check", "--data", data)
	mustRun(t, "backup", "--data", data, "--to", filepath.Join(t.TempDir(), "copy"))
	if err := remove(directory(data), masterKeyFile); err != nil {
		t.Fatal(err)
	}
	if out := mustRun(t, "verify", "--data", data, "--allow-uncovered"); !strings.Contains(out, "sealed head: not checked (no master key)\n") {
		t.Errorf("without the master key: %s", out)
	}
}
