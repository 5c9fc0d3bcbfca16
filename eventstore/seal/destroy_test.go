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
	sealed, other := mustSeal(t, k, id, place, plain), mustSeal(t, k, neighbour, place, plain)
	for range 2 { // destroying again is fine
		if err := k.Destroy(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		_, err := k.Open(id, place, sealed)
		wantErr(t, "Open", err, ErrErased)
		_, err = k.Seal(id, place, []byte(plain))
		wantErr(t, "Seal", err, ErrErased)
	}
	if got, err := k.Open(neighbour, place, other); err != nil || string(got) != plain {
		t.Errorf("the neighbour opens as %q, %v", got, err)
	}
	for _, change := range []string{`UPDATE keys SET wrapped = x'01' WHERE slot = ?`, `DELETE FROM keys WHERE slot = ?`} {
		if _, err := k.write.Exec(change, slot(t, id)); err == nil {
			t.Errorf("%s passed the fence", change)
		}
	}
	if err := k.Check(t.Context()); err != nil {
		t.Error(err)
	}
}

// The raw bytes of destroyed keys are in no file, whatever the order; with
// SQLite's default settings this scan finds them, so it can.
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
			t.Errorf("secure_delete %v: bytes of %d destroyed keys are on disk", secure, left)
		}
	}
}

// A reader that keeps old pages alive makes Destroy say so; asked again later
// it finishes.
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
	_, err = k.Seal(id, place, nil)
	wantErr(t, "Seal meanwhile", err, ErrErased)
	if err := reader.Rollback(); err != nil {
		t.Fatal(err)
	}
	if err := k.Destroy(t.Context(), id); err != nil {
		t.Error(err)
	}
}

// Readers race a destruction; once it has returned, nobody gets the key.
func TestDestroyDropsCipher(t *testing.T) {
	t.Parallel()
	k := newKeys(t)
	for range 8 {
		id := newKey(t, k)
		sealed := mustSeal(t, k, id, place, plain)
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						k.Open(id, place, sealed)
						k.cache.Invalidate(id) // so that the next one reads the row
					}
				}
			})
		}
		if err := k.Destroy(t.Context(), id); err != nil {
			t.Error(err)
		}
		_, err := k.Open(id, place, sealed)
		wantErr(t, "Open after Destroy", err, ErrErased)
		close(stop)
		wg.Wait()
		_, err = k.Open(id, place, sealed)
		wantErr(t, "Open at the end", err, ErrErased)
	}
}

// An old keys.db brings a destroyed key back; destroying it again, which the
// log says to do, leaves the others alone. A key younger than the backup is
// unknown then, and its slot's new key is not taken for it.
func TestRestoreOldKeys(t *testing.T) {
	t.Parallel()
	master := NewMaster()
	k := open1(t, filepath.Join(t.TempDir(), "keys.db"), master)
	id, live := newKey(t, k), newKey(t, k)
	sealed, other := mustSeal(t, k, id, place, plain), mustSeal(t, k, live, place, plain)
	backup := filepath.Join(t.TempDir(), "backup.db")
	if err := k.Backup(t.Context(), backup); err != nil {
		t.Fatal(err)
	}
	if err := k.Backup(t.Context(), backup); !errors.Is(err, os.ErrExist) {
		t.Errorf("Backup over a file = %v, want ErrExist", err)
	}
	if info, err := os.Stat(backup); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the backup's mode is %v, %v", info.Mode(), err)
	}
	if err := k.Destroy(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	var young eventstore.KeyID
	for range 2 * firstBatch {
		young = newKey(t, k)
	}

	restored := open1(t, backup, master)
	if got, err := restored.Open(id, place, sealed); err != nil || string(got) != plain {
		t.Errorf("the backup opens as %q, %v: it should hold the key", got, err)
	}
	if err := restored.Destroy(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	_, err := restored.Open(id, place, sealed)
	wantErr(t, "Open, destroyed again", err, ErrErased)
	if got, err := restored.Open(live, place, other); err != nil || string(got) != plain {
		t.Errorf("the live key opens as %q, %v", got, err)
	}
	wantErr(t, "Destroy of a key the backup never had", restored.Destroy(t.Context(), young), ErrKey)
	again := newKey(t, restored)
	for slot(t, again) < slot(t, young) {
		again = newKey(t, restored)
	}
	wantErr(t, "Destroy of it when its slot has another", restored.Destroy(t.Context(), young), ErrKey)
	mustSeal(t, restored, again, place, plain)
}
