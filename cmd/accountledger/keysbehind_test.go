package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestErasedAgain restores the keys.db of before an erasure. The start must destroy
// the key again before anybody can read with it.
func TestErasedAgain(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "data")
	p := startServer(t, data)
	ada, bob := p.create(t, "ada@example.com"), p.create(t, "bob@example.com")
	stop := func() {
		t.Helper()
		if err := p.stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	keys := filepath.Join(data, keysFile)
	before, err := os.ReadFile(keys)
	if err != nil {
		t.Fatal(err)
	}
	p = startServer(t, data)
	mustDo(t, p, "DELETE", "/v1/accounts/"+ada+"?immediate=true", "")
	stop()
	if err := os.WriteFile(keys, before, 0o600); err != nil {
		t.Fatal(err)
	}
	p = startServer(t, data)
	if !strings.Contains(p.log.String(), "destroyed keys again") {
		t.Errorf("the log does not say that a key was destroyed again:\n%s", p.log)
	}
	mustDo(t, p, "GET", "/v1/accounts/"+bob, "")
	stop()
	if again, err := os.ReadFile(keys); err != nil || strings.EqualFold(string(again), string(before)) {
		t.Errorf("keys.db is the restored one (%v)", err)
	}
	out := mustRun(t, "check", "--data", data)
	if !strings.Contains(out, "checked: all files are undamaged") {
		t.Errorf("check: %s", out)
	}
	if out := mustRun(t, "verify", "--data", data); !strings.Contains(out, "sealed head: checked") {
		t.Errorf("verify: %s", out)
	}
}
