package webhooks

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
)

func TestFile(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	w.hook("crm", "https://crm.example/hook")
	if err := w.hooks.Check(t.Context()); err != nil {
		t.Error(err)
	}
	dest := filepath.Join(t.TempDir(), "copy.db")
	if err := w.hooks.Backup(t.Context(), dest); err != nil {
		t.Fatal(err)
	}
	if err := w.hooks.Backup(t.Context(), dest); !errors.Is(err, os.ErrExist) {
		t.Errorf("a second backup to the same place: %v, want ErrExist", err)
	}
	c := w.config
	c.Path = dest
	restored, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if list, err := restored.List(t.Context()); err != nil || len(list) != 1 || list[0].WebhookID != "crm" {
		t.Errorf("the copy has %+v, %v", list, err)
	}
	if err := restored.Close(); err != nil {
		t.Error(err)
	}
	db, err := connect(dest, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(`DROP TABLE erased; DROP TABLE replay; DROP TABLE former; ALTER TABLE cursor DROP COLUMN attempts; ALTER TABLE dead_letter DROP COLUMN reported;
		ALTER TABLE lane DROP COLUMN error; ALTER TABLE lane ADD COLUMN gap INTEGER NOT NULL DEFAULT -1;
		ALTER TABLE attempt DROP COLUMN trigger; PRAGMA user_version = 1`); err != nil {
		t.Fatal(err)
	}
	db.Close()
	older, err := Open(t.Context(), c)
	if err != nil {
		t.Fatalf("a file of version 1: %v", err)
	}
	if err := older.Purge(t.Context(), "ada"); err != nil {
		t.Error(err)
	}
	if err := older.Close(); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]string{
		"not ours": `PRAGMA application_id = 1`, "newer": `PRAGMA user_version = 99`,
	} {
		db, err := connect(dest, "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := db.Exec(spoil); err != nil {
			t.Fatal(err)
		}
		db.Close()
		if _, err := Open(t.Context(), c); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
	c.Path = w.config.Path + "/nowhere"
	if _, err := Open(t.Context(), c); err == nil {
		t.Error("opened in a directory that does not exist")
	}
}

// No event is skipped if the log was restored from an older copy.
func TestLogRestored(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{}
		w := newWorld(t, Config{})
		w.transport = r
		w.run()
		w.hook("crm", "https://crm.example/hook")
		w.account("ada")
		for i := range 10 {
			w.account(fmt.Sprint("lost", i))
		}
		w.settled("crm")
		w.stop()
		w.log.mu.Lock()
		w.log.records = w.log.records[:2]
		w.log.mu.Unlock()
		w.open()
		w.run()
		w.account("bob")
		w.until(func() bool { return slices.ContainsFunc(r.got(), func(g got) bool { return g.Sub == "bob" }) })
		w.stop()
	})
}
