package seal

import (
	"bytes"
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"accountledger/eventstore"
)

func open1(t testing.TB, path string, m Master) *Keys {
	t.Helper()
	k, err := Open(t.Context(), Config{Path: path, Master: m})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	return k
}

func newKeys(t testing.TB) *Keys {
	t.Helper()
	return open1(t, filepath.Join(t.TempDir(), "keys.db"), NewMaster())
}

func newKey(t testing.TB, k *Keys) eventstore.KeyID {
	t.Helper()
	id, err := k.NewKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func mustSeal(t testing.TB, k *Keys, id eventstore.KeyID, c Context, plain string) []byte {
	t.Helper()
	sealed, err := k.Seal(id, c, []byte(plain))
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

func wantErr(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s = %v, want %v", what, err, want)
	}
}

var place = Context{EventID: [16]byte{7}, Stream: "account-1", Revision: 5, Type: "account.created.v1"}

const plain = `{"email":"ada@example.org"}`

// copyFiles copies keys.db as a crash leaves it: the file and its log, without
// closing.
func copyFiles(t testing.TB, path string) string {
	t.Helper()
	dest := filepath.Join(t.TempDir(), "keys.db")
	for _, suffix := range []string{"", "-wal"} {
		b, err := os.ReadFile(path + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dest+suffix, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dest
}

// wrappedBytes is what the file holds for a slot.
func wrappedBytes(t testing.TB, k *Keys, slot int64) (wrapped []byte) {
	t.Helper()
	if err := k.read.QueryRow(`SELECT wrapped FROM keys WHERE slot = ?`, slot).Scan(&wrapped); err != nil {
		t.Fatal(err)
	}
	return wrapped
}

func slot(t testing.TB, id eventstore.KeyID) int64 {
	t.Helper()
	n, err := slotOf(id)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	k := newKeys(t)
	id := newKey(t, k)
	for _, plain := range []string{"", "x", plain, strings.Repeat("long ", 10_000)} {
		sealed := mustSeal(t, k, id, place, plain)
		if len(sealed) != len(plain)+28 {
			t.Errorf("%d bytes sealed are %d, want 28 more", len(plain), len(sealed))
		}
		if len(plain) > 8 && bytes.Contains(sealed, []byte(plain[:8])) {
			t.Error("the plaintext shows")
		}
		k.cache.InvalidateAll() // as after a restart: the key comes from the file
		got, err := k.Open(id, place, sealed)
		if err != nil || string(got) != plain {
			t.Errorf("Open = %q, %v, want %q", got, err, plain)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	k := newKeys(t)
	id, other := newKey(t, k), newKey(t, k)
	sealed := mustSeal(t, k, id, place, plain)
	tests := map[string]func(c *Context, id *eventstore.KeyID, sealed []byte) []byte{
		"another event":     func(c *Context, _ *eventstore.KeyID, b []byte) []byte { c.EventID[15] = 1; return b },
		"another stream":    func(c *Context, _ *eventstore.KeyID, b []byte) []byte { c.Stream = "account-2"; return b },
		"another revision":  func(c *Context, _ *eventstore.KeyID, b []byte) []byte { c.Revision = 15; return b },
		"another type":      func(c *Context, _ *eventstore.KeyID, b []byte) []byte { c.Type = "account.created.v2"; return b },
		"another's key":     func(_ *Context, id *eventstore.KeyID, b []byte) []byte { *id = other; return b },
		"a flipped nonce":   func(_ *Context, _ *eventstore.KeyID, b []byte) []byte { b[0] ^= 1; return b },
		"a flipped byte":    func(_ *Context, _ *eventstore.KeyID, b []byte) []byte { b[13] ^= 1; return b },
		"a flipped tag":     func(_ *Context, _ *eventstore.KeyID, b []byte) []byte { b[len(b)-1] ^= 1; return b },
		"a byte less":       func(_ *Context, _ *eventstore.KeyID, b []byte) []byte { return b[:len(b)-1] },
		"less than a nonce": func(_ *Context, _ *eventstore.KeyID, b []byte) []byte { return b[:5] },
		"nothing":           func(*Context, *eventstore.KeyID, []byte) []byte { return nil },
		"the boundary moved": func(c *Context, _ *eventstore.KeyID, b []byte) []byte {
			c.Stream, c.Type = c.Stream+c.Type[:1], c.Type[1:]
			return b
		},
	}
	for name, change := range tests {
		c, id := place, id
		b := change(&c, &id, bytes.Clone(sealed))
		got, err := k.Open(id, c, b)
		if !errors.Is(err, ErrOpen) || got != nil {
			t.Errorf("Open of %s = %q, %v, want ErrOpen", name, got, err)
		}
	}
}

// FuzzPlace holds that two places never have the same bytes.
func FuzzPlace(f *testing.F) {
	f.Add("a", int64(1), "bc", "ab", int64(1), "c")
	f.Add("account-1", int64(0), "t", "account-1", int64(1), "t")
	f.Fuzz(func(t *testing.T, s1 string, r1 int64, t1, s2 string, r2 int64, t2 string) {
		a := Context{Stream: s1, Revision: eventstore.Revision(r1), Type: t1}
		b := Context{Stream: s2, Revision: eventstore.Revision(r2), Type: t2}
		if (a == b) != bytes.Equal(a.aad(), b.aad()) {
			t.Errorf("places %+v and %+v", a, b)
		}
	})
}

// An id names one key: its slot with another commitment is refused before
// anything is decrypted, whether the slot's key is in memory or not.
func TestKeyIDCommits(t *testing.T) {
	t.Parallel()
	k := newKeys(t)
	id := newKey(t, k)
	sealed := mustSeal(t, k, id, place, plain)
	for i := range id {
		for _, cold := range []bool{false, true} {
			if cold {
				k.cache.InvalidateAll()
			}
			forged := id
			forged[i] ^= 1
			if _, err := k.Open(forged, place, sealed); !errors.Is(err, ErrKey) {
				t.Errorf("Open with byte %d of the id flipped, cold %v = %v, want ErrKey", i, cold, err)
			}
			if _, err := k.Seal(forged, place, nil); !errors.Is(err, ErrKey) {
				t.Errorf("Seal with byte %d of the id flipped, cold %v = %v, want ErrKey", i, cold, err)
			}
			if err := k.Destroy(t.Context(), forged); !errors.Is(err, ErrKey) {
				t.Errorf("Destroy with byte %d of the id flipped = %v, want ErrKey", i, err)
			}
		}
	}
	_, err := k.Open(eventstore.KeyID{}, place, sealed)
	wantErr(t, "Open with the zero id", err, ErrKey)
	if got, err := k.Open(id, place, sealed); err != nil || string(got) != plain {
		t.Errorf("Open after all that = %q, %v", got, err)
	}
}

// A key's row copied over another account's does not open there.
func TestRowOfAnotherAccount(t *testing.T) {
	t.Parallel()
	k := newKeys(t)
	victim, thief := newKey(t, k), newKey(t, k)
	sealed := mustSeal(t, k, victim, place, plain)
	if _, err := k.write.Exec(`UPDATE keys SET wrapped = (SELECT wrapped FROM keys WHERE slot = ?) WHERE slot = ?`, slot(t, victim), slot(t, thief)); err != nil {
		t.Fatal(err)
	}
	k.cache.InvalidateAll()
	// Even an id made to fit the stolen key in the thief's slot.
	fit := victim
	copy(fit[:8], thief[:8])
	for _, id := range []eventstore.KeyID{thief, fit} {
		_, err := k.Open(id, place, sealed)
		wantErr(t, "Open through the copied row", err, ErrKey)
	}
	if err := k.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "1 keys do not open") {
		t.Errorf("Check = %v, want one bad key", err)
	}
	// Damaged is not destroyed: a row that does not unwrap can be fenced off.
	if err := k.Destroy(t.Context(), thief); err != nil {
		t.Error(err)
	}
	if err := k.Check(t.Context()); err != nil {
		t.Error(err)
	}
}

// No key is used before it survives a crash, and none that was used is missing.
func TestDurableBeforeUse(t *testing.T) {
	t.Parallel()
	master := NewMaster()
	path := filepath.Join(t.TempDir(), "keys.db")
	k := open1(t, path, master)
	sealed := map[eventstore.KeyID][]byte{}
	for i := range 300 { // over several batches
		id := newKey(t, k)
		sealed[id] = mustSeal(t, k, id, place, plain)
		if i%50 != 0 {
			continue
		}
		crashed := open1(t, copyFiles(t, path), master)
		for id, sealed := range sealed {
			if got, err := crashed.Open(id, place, sealed); err != nil || string(got) != plain {
				t.Fatalf("after a crash, Open = %q, %v", got, err)
			}
		}
		if err := crashed.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestNewKeyIsNobodysElse(t *testing.T) {
	t.Parallel()
	master := NewMaster()
	path := filepath.Join(t.TempDir(), "keys.db")
	seen := map[int64]bool{}
	for range 2 { // the second run must not give out what the first left
		k := open1(t, path, master)
		ids := make(chan eventstore.KeyID, 64*50)
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() {
				for range 50 {
					id, err := k.NewKey(t.Context())
					if err != nil {
						t.Error(err)
						return
					}
					ids <- id
				}
			})
		}
		wg.Wait()
		close(ids)
		for id := range ids {
			if seen[slot(t, id)] {
				t.Fatalf("slot %d was given twice", slot(t, id))
			}
			seen[slot(t, id)] = true
		}
		if err := k.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(seen) != 2*64*50 {
		t.Errorf("%d keys, want %d", len(seen), 2*64*50)
	}
}

func TestNewKeyEnds(t *testing.T) {
	t.Parallel()
	k := newKeys(t)
	newKey(t, k)
	// Hold the writer, drain the pool: the next caller has to wait.
	tx, err := k.write.Begin()
	if err != nil {
		t.Fatal(err)
	}
	k.pool.mu.Lock()
	k.pool.keys = nil
	k.pool.mu.Unlock()
	ctx, cancel := context.WithCancel(t.Context())
	waiting := make(chan error, 1)
	go func() {
		_, err := k.NewKey(ctx)
		waiting <- err
	}()
	cancel()
	wantErr(t, "NewKey, canceled", <-waiting, context.Canceled)
	tx.Rollback()
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = k.NewKey(t.Context())
	wantErr(t, "NewKey after Close", err, eventstore.ErrClosed)
}

// A refill that fails is reported to those who wait for it, and the next call
// tries again.
func TestNewKeyReportsFailure(t *testing.T) {
	t.Parallel()
	k := newKeys(t)
	if _, err := k.write.Exec(`CREATE TRIGGER full BEFORE INSERT ON keys BEGIN SELECT RAISE(ABORT, 'disk full'); END`); err != nil {
		t.Fatal(err)
	}
	if _, err := k.NewKey(t.Context()); err == nil || !strings.Contains(err.Error(), "disk full") {
		t.Errorf("NewKey = %v, want the failure", err)
	}
	if _, err := k.write.Exec(`DROP TRIGGER full`); err != nil {
		t.Fatal(err)
	}
	newKey(t, k)
}

func TestNoncesDiffer(t *testing.T) {
	t.Parallel()
	master := NewMaster()
	path := filepath.Join(t.TempDir(), "keys.db")
	k := open1(t, path, master)
	id := newKey(t, k)
	// The same backup restored many times, each copy going its own way.
	seen := map[[12]byte]bool{}
	for range 10 {
		restored := open1(t, copyFiles(t, path), master)
		for range 1000 {
			nonce := [12]byte(mustSeal(t, restored, id, place, plain)[:12])
			if seen[nonce] {
				t.Fatal("a nonce was used twice")
			}
			seen[nonce] = true
		}
	}
}

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
		dead := mathrand.Perm(len(ids))[:80]
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

func TestWrongMaster(t *testing.T) {
	t.Parallel()
	right := NewMaster()
	path := filepath.Join(t.TempDir(), "keys.db")
	k := open1(t, path, right)
	newKey(t, k)
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	next := Master{epoch: 2, key: right.key}
	for _, wrong := range []Master{NewMaster(), next} {
		for _, open := range []func(context.Context, Config) (*Keys, error){Open, OpenReader} {
			_, err := open(t.Context(), Config{Path: path, Master: wrong})
			wantErr(t, "opening with the wrong master key", err, ErrMaster)
			if err == nil {
				continue
			}
			if text := err.Error(); !strings.Contains(text, path) || strings.Contains(text, keyText(wrong)) || strings.Contains(text, keyText(right)) {
				t.Errorf("the error is %q: it should name the file and no key", text)
			}
		}
	}
	if _, err := Open(t.Context(), Config{Path: path}); err == nil {
		t.Error("Open without a master key passed")
	}
	open1(t, path, right)
}

func keyText(m Master) string { return m.Reveal()[len(masterPrefix)+3:] }

func TestForeignFiles(t *testing.T) {
	t.Parallel()
	for name, script := range map[string]string{
		"somebody's tables": `CREATE TABLE t (x)`,
		"somebody's id":     `PRAGMA application_id = 7`,
		"a newer version":   schema + fmt.Sprintf(`PRAGMA application_id = %d; PRAGMA user_version = 2`, applicationID),
	} {
		path := filepath.Join(t.TempDir(), "keys.db")
		db, err := sql.Open("sqlite3", "file:"+path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := db.Exec(script); err != nil {
			t.Fatal(err)
		}
		db.Close()
		before, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Open(t.Context(), Config{Path: path, Master: NewMaster()}); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("Open of a file with %s = %v, want an error that names it", name, err)
		}
		after, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if len(before) != len(after) {
			t.Errorf("Open changed a file with %s", name)
		}
	}
	path := filepath.Join(t.TempDir(), "keys.db")
	if err := os.WriteFile(path, bytes.Repeat([]byte("not a database "), 500), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Config{Path: path, Master: NewMaster()}); err == nil {
		t.Error("Open of a file that is no database passed")
	}
}

func TestFileIsPrivate(t *testing.T) {
	t.Parallel()
	k := newKeys(t)
	newKey(t, k)
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if info, err := os.Stat(k.path + suffix); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("keys.db%s has mode %v, %v, want 0600", suffix, info.Mode(), err)
		}
	}
}

func TestReader(t *testing.T) {
	t.Parallel()
	master := NewMaster()
	path := filepath.Join(t.TempDir(), "odd % name?.db")
	if _, err := OpenReader(t.Context(), Config{Path: path, Master: master}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("OpenReader of nothing = %v, want ErrNotExist", err)
	}
	k := open1(t, path, master)
	id := newKey(t, k)
	sealed := mustSeal(t, k, id, place, plain)
	if err := k.PutSecret(t.Context(), "hook", []byte("s3cret")); err != nil {
		t.Fatal(err)
	}
	for _, running := range []bool{true, false} {
		if !running {
			if err := k.Close(); err != nil {
				t.Fatal(err)
			}
		}
		r, err := OpenReader(t.Context(), Config{Path: path, Master: master})
		if err != nil {
			t.Fatalf("OpenReader, server running %v: %v", running, err)
		}
		if got, err := r.Open(id, place, sealed); err != nil || string(got) != plain {
			t.Errorf("Open = %q, %v", got, err)
		}
		if r.Claim("email", "ada@example.org", "o") != k.Claim("email", "ada@example.org", "o") {
			t.Error("the reader's claims differ")
		}
		if got, err := r.Secret(t.Context(), "hook"); err != nil || string(got) != "s3cret" {
			t.Errorf("Secret = %q, %v", got, err)
		}
		if err := r.Check(t.Context()); err != nil {
			t.Error(err)
		}
		if err := r.Backup(t.Context(), filepath.Join(t.TempDir(), "backup.db")); err != nil {
			t.Error(err)
		}
		_, err = r.NewKey(t.Context())
		wantErr(t, "NewKey", err, ErrReadOnly)
		wantErr(t, "Destroy", r.Destroy(t.Context(), id), ErrReadOnly)
		wantErr(t, "PutSecret", r.PutSecret(t.Context(), "n", nil), ErrReadOnly)
		wantErr(t, "DeleteSecret", r.DeleteSecret(t.Context(), "n"), ErrReadOnly)
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestCheckFindsDamage(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]string{
		"a key":            `UPDATE keys SET wrapped = randomblob(60) WHERE slot = 3`,
		"a secret":         `UPDATE secrets SET wrapped = randomblob(60) WHERE name = 'hook'`,
		"a renamed secret": `UPDATE secrets SET name = 'hook2' WHERE name = 'hook'`,
		"the check value":  `UPDATE meta SET check_value = randomblob(28)`,
	} {
		k := newKeys(t)
		newKey(t, k)
		if err := k.PutSecret(t.Context(), "hook", []byte("v")); err != nil {
			t.Fatal(err)
		}
		if err := k.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := k.write.Exec(damage); err != nil {
			t.Fatal(err)
		}
		if err := k.Check(t.Context()); err == nil {
			t.Errorf("Check does not see damage to %s", name)
		}
	}
}

func TestSecrets(t *testing.T) {
	t.Parallel()
	k := newKeys(t)
	ctx := t.Context()
	_, err := k.Secret(ctx, "hook/1")
	wantErr(t, "Secret before", err, ErrNoSecret)
	// Two long values, so that a scan for their wrapped bytes says something.
	values := [][]byte{make([]byte, 500), make([]byte, 500)}
	var old [][]byte
	for _, value := range values {
		rand.Read(value)
		if err := k.PutSecret(ctx, "hook/1", value); err != nil {
			t.Fatal(err)
		}
		if got, err := k.Secret(ctx, "hook/1"); err != nil || !bytes.Equal(got, value) {
			t.Errorf("Secret = %x, %v, want what was put", got, err)
		}
		var wrapped []byte
		if err := k.read.QueryRow(`SELECT wrapped FROM secrets WHERE name = 'hook/1'`).Scan(&wrapped); err != nil {
			t.Fatal(err)
		}
		old = append(old, wrapped)
	}
	if err := k.DeleteSecret(ctx, "hook/1"); err != nil {
		t.Fatal(err)
	}
	if err := k.DeleteSecret(ctx, "hook/1"); err != nil {
		t.Errorf("DeleteSecret of nothing = %v", err)
	}
	_, err = k.Secret(ctx, "hook/1")
	wantErr(t, "Secret after", err, ErrNoSecret)
	for _, suffix := range []string{"", "-wal"} {
		b, err := os.ReadFile(k.path + suffix)
		if err != nil {
			t.Fatal(err)
		}
		for i := range old {
			if bytes.Contains(b, values[i][:16]) || bytes.Contains(b, old[i][:16]) || bytes.Contains(b, old[i][400:416]) {
				t.Errorf("value %d is in keys.db%s", i, suffix)
			}
		}
	}
	for _, name := range []string{"", claimSecret} {
		if k.PutSecret(ctx, name, []byte("v")) == nil || k.DeleteSecret(ctx, name) == nil {
			t.Errorf("the secret %q was changed", name)
		}
	}
	_, err = k.Secret(ctx, claimSecret)
	wantErr(t, "Secret of the claim key", err, ErrNoSecret)
}

func TestClaim(t *testing.T) {
	t.Parallel()
	master := NewMaster()
	path := filepath.Join(t.TempDir(), "keys.db")
	k := open1(t, path, master)
	a := k.Claim("email", "ada@example.org", "account-1")
	if a.Kind != "email" || a.Owner != "account-1" || len(a.Key) != 16 {
		t.Errorf("Claim = %+v", a)
	}
	if strings.Contains(a.Key, "ada") {
		t.Error("the key shows the value")
	}
	if b := k.Claim("email", "ada@example.org", "account-2"); b.Key != a.Key {
		t.Error("the key depends on the owner")
	}
	seen := map[string]bool{a.Key: true}
	for _, c := range []eventstore.Claim{k.Claim("username", "ada@example.org", ""), k.Claim("email", "bob@example.org", ""), k.Claim("emaila", "da@example.org", ""), newKeys(t).Claim("email", "ada@example.org", "")} {
		if seen[c.Key] {
			t.Errorf("%s has a key that was seen", c.Kind)
		}
		seen[c.Key] = true
	}
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	if again := open1(t, path, master).Claim("email", "ada@example.org", "account-1"); again != a {
		t.Error("the key changed over a restart")
	}
}

func TestMaster(t *testing.T) {
	t.Parallel()
	m := NewMaster()
	loaded, err := LoadMaster("\n " + m.Reveal() + "\r\n")
	if err != nil || !bytes.Equal(loaded.key(), m.key()) || loaded.epoch != 1 {
		t.Fatalf("LoadMaster of Reveal = %v, %v", loaded, err)
	}
	secret := keyText(m)
	for name, text := range map[string]string{
		"nothing": "", "the key alone": secret, "epoch 0": masterPrefix + ":0:" + secret, "no epoch": masterPrefix + "::" + secret,
		"a byte less": m.Reveal()[:len(m.Reveal())-2], "a byte more": m.Reveal() + "AA", "more": m.Reveal() + ":x", "not base64": masterPrefix + ":1:" + strings.Repeat("!", 43),
	} {
		if _, err := LoadMaster(text); err == nil {
			t.Errorf("LoadMaster of %s passed", name)
		} else if strings.Contains(err.Error(), secret[:8]) {
			t.Errorf("LoadMaster of %s quotes the key: %v", name, err)
		}
	}

	var b bytes.Buffer
	cfg := Config{Path: "keys.db", Master: m}
	type hidden struct{ m Master } // fmt calls no methods on unexported fields
	for _, v := range []any{m, &m, cfg, hidden{m}, &hidden{m}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			fmt.Fprintf(&b, verb+"\n", v)
		}
		slog.New(slog.NewTextHandler(&b, nil)).Info("m", "v", v)
		slog.New(slog.NewJSONHandler(&b, nil)).Info("m", "v", v)
		if err := json.NewEncoder(&b).Encode(v); err != nil {
			t.Fatal(err)
		}
	}
	for _, shown := range []string{secret, fmt.Sprintf("%x", m.key()[:4]), fmt.Sprint(m.key()[:4])[1:], fmt.Sprintf("%#v", m.key()[:4])[7:]} {
		if strings.Contains(b.String(), strings.TrimRight(shown, "]}")) {
			t.Errorf("printing shows the key: %s", shown)
		}
	}
}

func TestSlotOf(t *testing.T) {
	t.Parallel()
	id := eventstore.KeyID{0: 0x80}
	_, err := slotOf(id)
	wantErr(t, "a slot beyond SQLite's integers", err, ErrKey)
	id = eventstore.KeyID{}
	copy(id[:8], []byte{0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	if n, err := slotOf(id); err != nil || n != math.MaxInt64 {
		t.Errorf("slotOf = %d, %v", n, err)
	}
}

func BenchmarkSeal(b *testing.B) {
	k := newKeys(b)
	id := newKey(b, k)
	plain := bytes.Repeat([]byte("x"), 300)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := k.Seal(id, place, plain); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	k := newKeys(b)
	id := newKey(b, k)
	sealed := mustSeal(b, k, id, place, strings.Repeat("x", 300))
	b.Run("cached", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := k.Open(id, place, sealed); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("from file", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			k.cache.Invalidate(id)
			if _, err := k.Open(id, place, sealed); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkClaim(b *testing.B) {
	k := newKeys(b)
	b.ReportAllocs()
	for b.Loop() {
		k.Claim("email", "ada@example.org", "account-1")
	}
}

// BenchmarkNewKey has its own yardstick: "limit" writes rows of the same size
// in the same batches with the same durability, and does nothing else.
func BenchmarkNewKey(b *testing.B) {
	b.Run("limit", func(b *testing.B) {
		k := newKeys(b)
		wrapped := make([]byte, 60)
		b.ResetTimer()
		for done := 0; done < b.N; done += 1024 {
			tx, err := k.write.Begin()
			if err != nil {
				b.Fatal(err)
			}
			insert, err := tx.Prepare(`INSERT INTO keys (slot, epoch, wrapped) VALUES (?, ?, ?)`)
			if err != nil {
				b.Fatal(err)
			}
			for i := range min(1024, b.N-done) {
				if _, err := insert.Exec(done+i+1, 1, wrapped); err != nil {
					b.Fatal(err)
				}
			}
			if err := tx.Commit(); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "keys/s")
	})
	for _, callers := range []int{1, 64} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			k := newKeys(b)
			var wg sync.WaitGroup
			work := make(chan struct{}, b.N)
			for range b.N {
				work <- struct{}{}
			}
			close(work)
			b.ResetTimer()
			for range callers {
				wg.Go(func() {
					for range work {
						if _, err := k.NewKey(b.Context()); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "keys/s")
		})
	}
}
