package seal

import (
	"bytes"
	"database/sql"
	"errors"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"accountledger/eventstore"
)

func TestDestroy(t *testing.T) {
	t.Parallel()
	k := newKeys(t)
	id, neighbour := newKey(t, k), newKey(t, k)
	sealed, other := mustSeal(t, k, id, testContext, plain), mustSeal(t, k, neighbour, testContext, plain)
	for range 2 { // Destroy is idempotent
		if err := k.Destroy(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		_, err := k.Open(id, testContext, sealed)
		wantErr(t, "Open", err, ErrErased)
		_, err = k.Seal(id, testContext, []byte(plain))
		wantErr(t, "Seal", err, ErrErased)
	}
	if got, err := k.Open(neighbour, testContext, other); err != nil || string(got) != plain {
		t.Errorf("Open with the neighbouring key = %q, %v, want %q", got, err, plain)
	}
	for _, change := range []string{`UPDATE keys SET wrapped = x'01' WHERE slot = ?`, `DELETE FROM keys WHERE slot = ?`} {
		if _, err := k.write.Exec(change, slot(t, id)); err == nil {
			t.Errorf("%s succeeded on the row of a destroyed key", change)
		}
	}
	if err := k.Check(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestDestroyLeavesNoBytes checks that no file contains bytes of destroyed
// keys. As a control, it checks that the scan finds such bytes with secure_delete
// off.
func TestDestroyLeavesNoBytes(t *testing.T) {
	t.Parallel()
	for _, secure := range []bool{true, false} {
		k := newKeys(t)
		if !secure {
			if _, err := k.write.Exec(`PRAGMA secure_delete = off`); err != nil {
				t.Fatal(err)
			}
		}
		ids := make([]eventstore.KeyID, 120)
		wrapped := make([][]byte, len(ids))
		for i := range ids {
			ids[i] = newKey(t, k)
			wrapped[i] = wrappedBytes(t, k, slot(t, ids[i]))
			if len(wrapped[i]) != 60 {
				t.Fatalf("a wrapped key has %d bytes, want 60", len(wrapped[i]))
			}
		}
		dead := mathrand.Perm(len(ids))[:30]
		for _, i := range dead {
			if err := k.Destroy(t.Context(), ids[i]); err != nil {
				t.Fatal(err)
			}
		}
		var all []byte
		for _, suffix := range []string{"", "-wal", "-shm"} {
			b, err := os.ReadFile(k.path + suffix)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, b...)
		}
		left := 0
		for _, i := range dead {
			if bytes.Contains(all, wrapped[i][:12]) || bytes.Contains(all, wrapped[i][48:]) {
				left++
			}
		}
		if secure && left > 0 || !secure && left == 0 {
			t.Errorf("with secure_delete %t, bytes of %d destroyed keys are on disk", secure, left)
		}
	}
}

// TestDestroyWaitsForReaders checks that Destroy returns ErrBusy while a reader
// holds old pages, and completes when called again afterwards.
func TestDestroyWaitsForReaders(t *testing.T) {
	t.Parallel()
	k := newKeys(t)
	id := newKey(t, k)
	if _, err := k.write.Exec(`PRAGMA busy_timeout = 50`); err != nil {
		t.Fatal(err)
	}
	reader, err := k.read.BeginTx(t.Context(), &sql.TxOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if err := reader.QueryRow(`SELECT count(*) FROM keys`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "Destroy beside a reader", k.Destroy(t.Context(), id), ErrBusy)
	_, err = k.Seal(id, testContext, nil)
	wantErr(t, "Seal after ErrBusy", err, ErrErased)
	if err := reader.Rollback(); err != nil {
		t.Fatal(err)
	}
	if err := k.Destroy(t.Context(), id); err != nil {
		t.Error(err)
	}
}

// TestDestroyDropsCipher runs Destroy beside concurrent readers and checks that
// the key does not open after Destroy has returned.
func TestDestroyDropsCipher(t *testing.T) {
	t.Parallel()
	k := newKeys(t)
	for range 8 {
		id := newKey(t, k)
		sealed := mustSeal(t, k, id, testContext, plain)
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						k.Open(id, testContext, sealed)
						k.cache.Invalidate(id) // so that the next Open reads the row
					}
				}
			})
		}
		if err := k.Destroy(t.Context(), id); err != nil {
			t.Error(err)
		}
		_, err := k.Open(id, testContext, sealed)
		wantErr(t, "Open after Destroy", err, ErrErased)
		close(stop)
		wg.Wait()
		_, err = k.Open(id, testContext, sealed)
		wantErr(t, "Open after the readers", err, ErrErased)
	}
}

// TestRestoreOldKeys checks Destroy after restoring an old keys.db, which
// contains the destroyed key again: destroying it a second time works and keeps
// the other keys. For a key created after the backup, Destroy returns ErrKey,
// also once its slot holds a new key.
func TestRestoreOldKeys(t *testing.T) {
	t.Parallel()
	master := NewMaster()
	k := openKeys(t, filepath.Join(t.TempDir(), "keys.db"), master)
	id, live := newKey(t, k), newKey(t, k)
	sealed, other := mustSeal(t, k, id, testContext, plain), mustSeal(t, k, live, testContext, plain)
	backup := filepath.Join(t.TempDir(), "backup.db")
	if err := k.Backup(t.Context(), backup); err != nil {
		t.Fatal(err)
	}
	if err := k.Backup(t.Context(), backup); !errors.Is(err, os.ErrExist) {
		t.Errorf("Backup over a file = %v, want ErrExist", err)
	}
	if info, err := os.Stat(backup); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the backup has mode %v, %v, want 0600", info.Mode(), err)
	}
	if err := k.Destroy(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	var newer eventstore.KeyID
	for range 2 * firstBatch {
		newer = newKey(t, k)
	}

	restored := openKeys(t, backup, master)
	if got, err := restored.Open(id, testContext, sealed); err != nil || string(got) != plain {
		t.Errorf("Open in the restored backup = %q, %v, want %q", got, err, plain)
	}
	if err := restored.Destroy(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	_, err := restored.Open(id, testContext, sealed)
	wantErr(t, "Open after the second Destroy", err, ErrErased)
	if got, err := restored.Open(live, testContext, other); err != nil || string(got) != plain {
		t.Errorf("Open with the live key = %q, %v, want %q", got, err, plain)
	}
	wantErr(t, "Destroy of a key that is not in the backup", restored.Destroy(t.Context(), newer), ErrKey)
	again := newKey(t, restored)
	for slot(t, again) < slot(t, newer) {
		again = newKey(t, restored)
	}
	wantErr(t, "Destroy of a key whose slot holds another key", restored.Destroy(t.Context(), newer), ErrKey)
	mustSeal(t, restored, again, testContext, plain)
}
