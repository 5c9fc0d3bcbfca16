package seal

import (
	"bytes"
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"accountledger/eventstore"
)

func TestSecrets(t *testing.T) {
	t.Parallel()
	k := newKeys(t)
	ctx := t.Context()
	_, err := k.Secret(ctx, "hook/1")
	wantErr(t, "Secret before PutSecret", err, ErrNoSecret)
	// Long values, so that scanning the files for their wrapped bytes is conclusive.
	values := [][]byte{make([]byte, 500), make([]byte, 500)}
	var old [][]byte
	for _, value := range values {
		rand.Read(value)
		if err := k.PutSecret(ctx, "hook/1", value); err != nil {
			t.Fatal(err)
		}
		if got, err := k.Secret(ctx, "hook/1"); err != nil || !bytes.Equal(got, value) {
			t.Errorf("Secret = %x, %v, want the stored value", got, err)
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
		t.Errorf("DeleteSecret of a missing secret = %v, want success", err)
	}
	_, err = k.Secret(ctx, "hook/1")
	wantErr(t, "Secret after DeleteSecret", err, ErrNoSecret)
	for _, suffix := range []string{"", "-wal"} {
		b, err := os.ReadFile(k.path + suffix)
		if err != nil {
			t.Fatal(err)
		}
		for i := range old {
			if bytes.Contains(b, values[i][:16]) || bytes.Contains(b, old[i][:16]) || bytes.Contains(b, old[i][400:416]) {
				t.Errorf("bytes of deleted value %d are still in keys.db%s", i, suffix)
			}
		}
	}
	for _, name := range []string{"", claimSecret} {
		if k.PutSecret(ctx, name, []byte("v")) == nil || k.DeleteSecret(ctx, name) == nil {
			t.Errorf("PutSecret or DeleteSecret accepted the name %q", name)
		}
	}
	_, err = k.Secret(ctx, claimSecret)
	wantErr(t, "Secret of the claim key", err, ErrNoSecret)
}

func TestClaim(t *testing.T) {
	t.Parallel()
	master := NewMaster()
	path := filepath.Join(t.TempDir(), "keys.db")
	k := openKeys(t, path, master)
	a := k.Claim("email", "ada@example.org", "account-1")
	if a.Kind != "email" || a.Owner != "account-1" || len(a.Key) != 16 {
		t.Errorf("Claim = %+v, want kind email, owner account-1 and a key of 16 bytes", a)
	}
	if strings.Contains(a.Key, "ada") {
		t.Error("the claim's key contains the value")
	}
	if b := k.Claim("email", "ada@example.org", "account-2"); b.Key != a.Key {
		t.Error("the claim's key depends on the owner")
	}
	seen := map[string]bool{a.Key: true}
	for _, c := range []eventstore.Claim{k.Claim("username", "ada@example.org", ""), k.Claim("email", "bob@example.org", ""), k.Claim("emaila", "da@example.org", ""), newKeys(t).Claim("email", "ada@example.org", "")} {
		if seen[c.Key] {
			t.Errorf("the claim of kind %s has the key of a different claim", c.Kind)
		}
		seen[c.Key] = true
	}
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	if again := openKeys(t, path, master).Claim("email", "ada@example.org", "account-1"); again != a {
		t.Error("the claim's key changed after a restart")
	}
}

func BenchmarkClaim(b *testing.B) {
	k := newKeys(b)
	b.ReportAllocs()
	for b.Loop() {
		k.Claim("email", "ada@example.org", "account-1")
	}
}
