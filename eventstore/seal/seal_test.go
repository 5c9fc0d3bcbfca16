package seal

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"accountledger/eventstore"
)

func openKeys(t testing.TB, path string, m Master) *Keys {
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
	return openKeys(t, filepath.Join(t.TempDir(), "keys.db"), NewMaster())
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

var testContext = Context{EventID: [16]byte{7}, Stream: "account-1", Revision: 5, Type: "account.created.v1"}

const plain = `{"email":"ada@example.org"}`

// copyFiles copies keys.db as a crash leaves it: the file and its write-ahead
// log, without closing it.
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

// wrappedBytes returns the wrapped key in a slot of the file.
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

func TestForeignFiles(t *testing.T) {
	t.Parallel()
	for name, script := range map[string]string{
		"foreign tables":           `CREATE TABLE t (x)`,
		"a foreign application ID": `PRAGMA application_id = 7`,
		"a newer version":          schema + fmt.Sprintf(`PRAGMA application_id = %d; PRAGMA user_version = 2`, applicationID),
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
		t.Error("Open of a file that is not a database succeeded")
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
		t.Errorf("OpenReader of a missing file = %v, want ErrNotExist", err)
	}
	k := openKeys(t, path, master)
	id := newKey(t, k)
	sealed := mustSeal(t, k, id, testContext, plain)
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
			t.Fatalf("OpenReader with the server running %t = %v", running, err)
		}
		if got, err := r.Open(id, testContext, sealed); err != nil || string(got) != plain {
			t.Errorf("Open = %q, %v, want %q", got, err, plain)
		}
		if r.Claim("email", "ada@example.org", "o") != k.Claim("email", "ada@example.org", "o") {
			t.Error("Claim differs between the reader and the server")
		}
		if got, err := r.Secret(t.Context(), "hook"); err != nil || string(got) != "s3cret" {
			t.Errorf("Secret = %q, %v, want s3cret", got, err)
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
		"the check value":  `UPDATE epochs SET check_value = randomblob(28)`,
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
			t.Errorf("Check found no damage to %s", name)
		}
	}
}
