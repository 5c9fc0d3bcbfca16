package main

import (
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestSealingKilled kills the server at random moments while it seals a log of an
// earlier version. Each later start must continue or begin again, and the last one
// must leave a sealed log with every event.
func TestSealingKilled(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	was := unpack(t, filepath.Join(directories, "2026-11-22-webhooks.tar.gz"), dir)
	data := filepath.Join(dir, "data")
	for range 12 {
		p, _, err := spawn(data)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rand.IntN(250)) * time.Millisecond)
		p.kill()
		if strings.Contains(p.log.String(), "the ledger was not opened") {
			t.Fatalf("a start after a kill is refused:\n%s", p.log)
		}
	}
	p := startServer(t, data)
	is := accountsOf(t, p)
	if len(is.Accounts) != len(was.Accounts) {
		t.Errorf("there are %d accounts, were %d", len(is.Accounts), len(was.Accounts))
	}
	if err := p.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out := mustRun(t, "verify", "--data", data); !strings.Contains(out, "sealed head: "+headChecked+"\n") {
		t.Errorf("verify: %s", out)
	}
	mustRun(t, "check", "--data", data)
}

// TestSealingRefuses changes a log of an earlier version. The server must not seal
// it, and must leave it as it is.
func TestSealingRefuses(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name       string
		says       string
		statements []string
	}{
		{"an altered event", "altered@17", []string{`UPDATE events SET actor = 'api-key:other' WHERE position = 17`}},
		{"an event without a checkpoint", "--accept-uncovered", []string{`DELETE FROM checkpoints`}},
		{"a missing sealed part", "unexplained-erasure", []string{`DELETE FROM sealed WHERE position = (SELECT max(position) FROM sealed)`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			unpack(t, filepath.Join(directories, "2026-11-22-webhooks.tar.gz"), dir)
			data := filepath.Join(dir, "data")
			execute(t, data, logFile, tt.statements...)
			before := rows(t, filepath.Join(data, logFile))
			wantRefused(t, data, nil, "problem:", tt.says)
			if rows(t, filepath.Join(data, logFile)) != before {
				t.Error("the refused log has changed")
			}
			// An earlier version can still use the directory.
			if version := one[int64](t, data, keysFile, `PRAGMA user_version`); version != 1 {
				t.Errorf("keys.db now has version %d", version)
			}
		})
	}
}
