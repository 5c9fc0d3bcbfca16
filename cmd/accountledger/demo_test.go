package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"accountledger/cmd/accountledger/cli"
)

func TestDemo(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "demo")
	code, stdout, stderr := accountledger(t, "demo", "--keep", dir)
	if code != cli.ExitOK {
		t.Fatalf("demo = %d\n%s%s", code, stdout, stderr)
	}
	for _, want := range []string{
		"imported: 208 created, 0 failed", "imported again: 208 unchanged", "contains none of the 208 e-mail addresses",
		"kept as customFields.phone_as_exported", "emily.johnson@gmail.com now belongs to the same account",
		"userStatus is DECLINED", "userStatus is VERIFIED", "IDENTITY_LINKED", "USER_SEPARATED", "CONSENT_ACCEPTED",
		"SCHEDULE_EXECUTED", "USER_DELETED", "its sub returns 410", "verified -> 204", "account.created.v1",
		"223 events, 223 of them covered by", ", 0 faults", "altered@", "All steps had the expected result.",
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("the demo does not print %q:\n%s", want, stdout)
		}
	}
	if strings.Contains(stdout, "NOT VERIFIED") || strings.Contains(stderr, "level=ERROR") {
		t.Errorf("the demo prints:\n%s%s", stdout, stderr)
	}
	if _, err := os.Stat(filepath.Join(dir, "data", logFile)); err != nil {
		t.Errorf("--keep did not keep the log: %v", err)
	}
	if code, _, _ := accountledger(t, "demo", "--keep", dir); code != cli.ExitUsage {
		t.Errorf("demo in a directory that is not empty = %d, want %d", code, cli.ExitUsage)
	}
}
