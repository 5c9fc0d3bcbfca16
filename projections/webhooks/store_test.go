package webhooks

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/projections"
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
		ALTER TABLE attempt DROP COLUMN trigger; ` + version4 + `; PRAGMA user_version = 1`); err != nil {
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
	if list, err := older.List(t.Context()); err != nil || len(list) != 1 || list[0].URL != "https://crm.example/hook" {
		t.Errorf("a file of version 1 has %+v, %v, want the URL in the log", list, err)
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

// version4 changes a file of version 5 to version 4. Its settings are not those
// in the log.
const version4 = `ALTER TABLE follow DROP COLUMN event; ALTER TABLE follow DROP COLUMN ledger; ALTER TABLE endpoint DROP COLUMN state;
	ALTER TABLE endpoint ADD COLUMN config TEXT NOT NULL DEFAULT '{"webhookId":"crm","url":"https://thief.example/","state":"paused"}'; PRAGMA user_version = 4`

// alter executes statements on delivery.db.
func (w *world) alter(statements string) {
	w.t.Helper()
	db, err := connect(w.config.Path, "")
	if err != nil {
		w.t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(statements); err != nil {
		w.t.Fatal(err)
	}
}

// The settings of webhooks come from the log, whatever delivery.db says, and a
// webhook that the log does not have gets nothing.
func TestSettingsFromLog(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{}
		w := newWorld(t, Config{LedgerID: "accountledger/one"})
		w.transport = r
		w.hook("crm", "https://crm.example/hook")
		w.hook("old", "https://old.example/hook")
		if _, err := w.hooks.Delete(t.Context(), asAdmin, "old"); err != nil {
			t.Fatal(err)
		}
		w.stop()
		w.alter(version4 + `; INSERT INTO endpoint (id, config) VALUES ('thief', '{"webhookId":"thief","url":"https://thief.example/","state":"enabled"}'),
			('old', '{"webhookId":"old","url":"https://thief.example/","state":"enabled"}');
			INSERT INTO cursor (endpoint, low) SELECT no, 0 FROM endpoint WHERE id IN ('thief', 'old')`)
		w.open()
		list, err := w.hooks.List(t.Context())
		if err != nil || len(list) != 1 || list[0].URL != "https://crm.example/hook" || list[0].State != domain.WebhookEnabled {
			t.Errorf("List = %+v, %v, want what is in the log", list, err)
		}
		w.run()
		w.account("ada")
		w.settled("crm")
		for _, g := range r.got() {
			if host := g.header.Get("Test-Host"); host != "crm.example" {
				t.Errorf("a delivery went to %s", host)
			}
		}
		if r.count() != 1 {
			t.Errorf("%d deliveries, want 1", r.count())
		}
		w.stop()
	})
}

// A log that cannot prove a webhook's settings is refused at the start, and ends
// Run.
func TestTampered(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{})
		w.transport = &receiver{}
		w.hook("crm", "https://crm.example/hook")
		w.run()
		w.settled("crm")
		if _, err := w.ledger.ChangeWebhook(t.Context(), asAdmin, "crm", domain.SetWebhookState{State: domain.WebhookPaused}); err != nil {
			t.Fatal(err)
		}
		w.until(func() bool { return w.hooks.worker("crm") == nil })
		w.log.tamper(domain.WebhookStream("crm"))
		if _, err := w.log.Append(t.Context(), eventstore.Commit{Writes: []eventstore.Write{{Stream: domain.WebhookStream("crm"), Expected: eventstore.Any,
			Events: []eventstore.Event{{ID: domain.NewID(), Type: "webhook.state-changed.v1", Actor: "system:test", Clear: []byte(`{"meta":{},"data":{"from":"paused","to":"enabled"}}`)}}}}}); err != nil {
			t.Fatal(err)
		}
		if err := <-w.done; !errors.Is(err, eventstore.ErrTampered) {
			t.Errorf("Run = %v, want ErrTampered", err)
		}
		w.cancel = nil
		w.stop()
		if _, err := Open(t.Context(), w.config); !errors.Is(err, eventstore.ErrTampered) {
			t.Errorf("Open = %v, want ErrTampered", err)
		}
	})
}

// A file that is ahead of the log, has followed another one or belongs to another
// ledger is refused and not changed.
func TestAhead(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		alter string
		spoil func(w *world)
		why   string
	}{
		{name: "the log is shorter", spoil: func(w *world) { w.log.rollBack(2) }, why: projections.AheadOfLog},
		{name: "the log is shorter, version 4", alter: version4, spoil: func(w *world) { w.log.rollBack(2) }, why: projections.AheadOfLog},
		{name: "a cursor is ahead", alter: `UPDATE cursor SET low = 99`, spoil: func(*world) {}, why: projections.AheadOfLog},
		{name: "the log has grown anew", spoil: func(w *world) {
			w.log.rollBack(2)
			w.ledger = domain.NewLedger(domain.LedgerConfig{Log: w.log, Codec: w.config.Codec})
			for i := range 10 {
				w.account(fmt.Sprint("other", i))
			}
		}, why: projections.OtherEvent},
		{name: "another ledger", spoil: func(w *world) { w.config.LedgerID = "accountledger/two" }, why: projections.OtherLedger},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, Config{LedgerID: "accountledger/one"})
				w.transport = &receiver{}
				w.run()
				w.hook("crm", "https://crm.example/hook")
				for i := range 5 {
					w.account(fmt.Sprint("lost", i))
				}
				w.settled("crm")
				w.stop()
				if tt.alter != "" {
					w.alter(tt.alter)
				}
				tt.spoil(w)
				before, err := os.ReadFile(w.config.Path)
				if err != nil {
					t.Fatal(err)
				}
				_, err = Open(t.Context(), w.config)
				ahead, ok := errors.AsType[*projections.AheadError](err)
				if !ok || ahead.Why != tt.why {
					t.Errorf("Open = %v, want an AheadError because of %s", err, tt.why)
				}
				if after, err := os.ReadFile(w.config.Path); err != nil || !bytes.Equal(before, after) {
					t.Errorf("the file has changed: %v", err)
				}
			})
		})
	}
}

// A file of version 4 is bound to the ledger that opens it first, and to the event
// that it has followed the log to.
func TestBound(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{LedgerID: "accountledger/one"})
		w.transport = &receiver{}
		w.run()
		w.hook("crm", "https://crm.example/hook")
		w.account("ada")
		w.settled("crm")
		w.stop()
		w.alter(version4)
		w.open()
		w.stop()
		c := w.config
		c.LedgerID = "accountledger/two"
		_, err := Open(t.Context(), c)
		if ahead, ok := errors.AsType[*projections.AheadError](err); !ok || ahead.Why != projections.OtherLedger {
			t.Errorf("Open by another ledger = %v", err)
		}
		w.log.mu.Lock()
		w.log.records = slices.Clone(w.log.records)
		w.log.records[w.log.streams[domain.AccountStream("ada")][0]].ID = domain.NewID()
		w.log.mu.Unlock()
		_, err = Open(t.Context(), w.config)
		if ahead, ok := errors.AsType[*projections.AheadError](err); !ok || ahead.Why != projections.OtherEvent {
			t.Errorf("Open with another event = %v", err)
		}
	})
}

// After a roll-back that the operator wants, the events that the log gets at the
// positions of the lost ones are delivered, and no earlier one is lost or sent
// again.
func TestRewind(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{answer: func(g got, _ int) (int, http.Header) {
			if strings.HasPrefix(g.Sub, "bad") {
				return http.StatusInternalServerError, nil
			}
			return http.StatusNoContent, nil
		}}
		w := newWorld(t, Config{Schedule: []time.Duration{time.Hour, time.Hour}})
		w.transport = r
		w.run()
		w.hook("crm", "https://crm.example/hook")
		w.account("ada")
		w.account("bad")
		fork := w.head()
		w.touch("bad", 2) // in the lane that began before the fork
		w.account("badly")
		w.account("lost")
		w.until(func() bool { e := w.get("crm"); return e.Lanes == 2 && e.Backlog == 0 })
		w.stop()
		if err := Rewind(t.Context(), filepath.Join(t.TempDir(), "none.db"), fork, [16]byte{}); err != nil {
			t.Errorf("Rewind of no file = %v", err)
		}
		w.log.rollBack(fork)
		if err := Rewind(t.Context(), w.config.Path, fork, w.log.records[fork-1].ID); err != nil {
			t.Fatal(err)
		}
		r.set(func(r *receiver) { r.all, r.answer = nil, nil })
		w.ledger = domain.NewLedger(domain.LedgerConfig{Log: w.log, Codec: w.config.Codec})
		w.config.Ledger = w.ledger
		w.open()
		if e := w.get("crm"); e.Position != fork || e.Lanes != 1 || e.Backlog != 0 {
			t.Errorf("after Rewind: position %d, %d lanes, backlog %d; want %d, 1, 0", e.Position, e.Lanes, e.Backlog, fork)
		}
		if all := w.deliveries("crm"); len(all) != 2 || all[0].Sub != "bad" || all[0].Position != fork {
			t.Errorf("after Rewind: deliveries %+v, want those of ada and bad", all)
		}
		w.touch("bad", 1)
		for _, sub := range []string{"badly", "new"} {
			w.account(sub)
		}
		w.run()
		time.Sleep(2 * time.Hour) // the lane is due
		w.settled("crm")
		var subs []string
		for _, g := range r.got() {
			subs = append(subs, fmt.Sprint(g.Sub, g.Sequence))
		}
		slices.Sort(subs)
		if want := []string{"bad0", "bad1", "badly0", "new0"}; !slices.Equal(subs, want) {
			t.Errorf("delivered after the roll-back: %v, want %v", subs, want)
		}
		w.stop()
	})
}
