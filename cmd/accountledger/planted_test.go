package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"accountledger/cmd/accountledger/cli"
)

// TestPlanted puts files into a data directory that are not the ledger's, or takes
// out what would make it create something again.
func TestPlanted(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "data")
	p := startServer(t, data)
	p.create(t, "ada@example.com")
	if err := p.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Run("plan of a roll-back", func(t *testing.T) {
		data := copied(t, data)
		vkey, err := os.ReadFile(filepath.Join(data, logVKeyFile))
		if err != nil {
			t.Fatal(err)
		}
		id, _, _ := strings.Cut(string(vkey), "+")
		plan := `{"ledgerId":"` + id + `","incarnation":1,"previousOrigin":"` + id + `","size":1,"root":"AAAA","signedSize":1,"lost":0,"reason":"planted"}`
		if err := os.WriteFile(filepath.Join(data, forkPlanFile), []byte(plan), 0o600); err != nil {
			t.Fatal(err)
		}
		code, stdout, stderr := accountledger(t, "new-incarnation", "--data", data)
		if code != cli.ExitFaults || !strings.Contains(strings.Join(strings.Fields(stderr), " "), "is not a plan that this ledger made") {
			t.Errorf("new-incarnation: exit code %d\n%s%s", code, stdout, stderr)
		}
		if n := one[int64](t, data, logFile, `SELECT count(*) FROM events WHERE type LIKE 'ledger.forked%'`); n != 0 {
			t.Error("the planted plan was carried out")
		}
	})
	t.Run("no admin key", func(t *testing.T) {
		data := copied(t, data)
		execute(t, data, keysFile, `DELETE FROM secrets WHERE name LIKE 'credential/%'`)
		removeFiles(t, data, adminKeyFile)
		wantRefused(t, data, nil, "the secrets in keys.db")
		if _, err := os.Stat(filepath.Join(data, adminKeyFile)); err == nil {
			t.Error("there is a new admin key")
		}
	})
	t.Run("replaced admin key", func(t *testing.T) {
		data := copied(t, data)
		const row = `SELECT hex(wrapped) FROM secrets WHERE name = 'credential/admin'`
		old := one[string](t, data, keysFile, row)
		mustRun(t, "admin-key", "--data", data)
		if one[string](t, data, keysFile, row) == old {
			t.Fatal("admin-key did not replace the key")
		}
		execute(t, data, keysFile, `UPDATE secrets SET wrapped = unhex('`+old+`') WHERE name = 'credential/admin'`)
		wantRefused(t, data, nil, "the secrets in keys.db")
	})
	for _, file := range []string{keysFile, viewsFile, deliveryFile, logFile} {
		t.Run("trigger in "+file, func(t *testing.T) {
			data := copied(t, data)
			table := map[string]string{keysFile: "keys", viewsFile: "views", deliveryFile: "endpoint", logFile: "claims"}[file]
			execute(t, data, file, `CREATE TRIGGER z BEFORE UPDATE ON `+table+` BEGIN SELECT RAISE(IGNORE); END`)
			wantRefused(t, data, nil, file, "trigger")
		})
	}
	t.Run("log of the first version", func(t *testing.T) {
		data := copied(t, data)
		execute(t, data, logFile, `DROP TABLE head`, `DROP TABLE waiting`, `CREATE TABLE m AS SELECT origin FROM meta`, `DROP TABLE meta`,
			`ALTER TABLE m RENAME TO meta`, `PRAGMA user_version = 1`)
		wantRefused(t, data, nil, "has the format of an", "earlier version")
	})
}

// TestTwoCopies runs two copies of a ledger with one file of the last signed
// checkpoint. The second one must end when it would sign another state.
func TestTwoCopies(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	data, last := filepath.Join(dir, "data"), filepath.Join(dir, "last-signed")
	p := startServer(t, data, "--last-signed", last)
	p.create(t, "ada@example.com")
	if err := p.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	other := copied(t, data)
	p = startServer(t, data, "--last-signed", last)
	q := startServer(t, other, "--last-signed", last)
	for _, name := range []string{"bob", "cy", "dan"} {
		p.create(t, name+"@example.com")
	}
	if err := p.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	q.create(t, "eve@example.com")
	wantEnd(t, q)
}
