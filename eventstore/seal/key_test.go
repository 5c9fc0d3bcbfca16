package seal

import (
	"bytes"
	"errors"
	"math"
	"path/filepath"
	"strings"
	"testing"

	"accountledger/eventstore"
)

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	k := newKeys(t)
	id := newKey(t, k)
	for _, plain := range []string{"", "x", plain, strings.Repeat("long ", 10_000)} {
		sealed := mustSeal(t, k, id, testContext, plain)
		if len(sealed) != len(plain)+28 {
			t.Errorf("Seal of %d bytes returned %d bytes, want 28 more", len(plain), len(sealed))
		}
		if len(plain) > 8 && bytes.Contains(sealed, []byte(plain[:8])) {
			t.Error("the sealed bytes contain plaintext")
		}
		k.cache.InvalidateAll() // as after a restart, so that Open reads the file
		got, err := k.Open(id, testContext, sealed)
		if err != nil || string(got) != plain {
			t.Errorf("Open = %q, %v, want %q", got, err, plain)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	k := newKeys(t)
	id, other := newKey(t, k), newKey(t, k)
	sealed := mustSeal(t, k, id, testContext, plain)
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
		c, id := testContext, id
		b := change(&c, &id, bytes.Clone(sealed))
		got, err := k.Open(id, c, b)
		if !errors.Is(err, ErrOpen) || got != nil {
			t.Errorf("Open of %s = %q, %v, want ErrOpen", name, got, err)
		}
	}
}

// FuzzContext checks that different contexts have different encodings.
func FuzzContext(f *testing.F) {
	f.Add("a", int64(1), "bc", "ab", int64(1), "c")
	f.Add("account-1", int64(0), "t", "account-1", int64(1), "t")
	f.Fuzz(func(t *testing.T, s1 string, r1 int64, t1, s2 string, r2 int64, t2 string) {
		a := Context{Stream: s1, Revision: eventstore.Revision(r1), Type: t1}
		b := Context{Stream: s2, Revision: eventstore.Revision(r2), Type: t2}
		if (a == b) != bytes.Equal(a.aad(), b.aad()) {
			t.Errorf("%+v and %+v: equal is %t, but equal AAD is %t", a, b, a == b, bytes.Equal(a.aad(), b.aad()))
		}
	})
}

// TestKeyIDCommits checks that an ID with the slot of a key but another
// commitment is refused, whether or not that key is cached.
func TestKeyIDCommits(t *testing.T) {
	t.Parallel()
	k := newKeys(t)
	id := newKey(t, k)
	sealed := mustSeal(t, k, id, testContext, plain)
	for i := range id {
		for _, cold := range []bool{false, true} {
			if cold {
				k.cache.InvalidateAll()
			}
			forged := id
			forged[i] ^= 1
			if _, err := k.Open(forged, testContext, sealed); !errors.Is(err, ErrKey) {
				t.Errorf("Open with a bit of byte %d of the ID flipped, cold cache %t = %v, want ErrKey", i, cold, err)
			}
			if _, err := k.Seal(forged, testContext, nil); !errors.Is(err, ErrKey) {
				t.Errorf("Seal with a bit of byte %d of the ID flipped, cold cache %t = %v, want ErrKey", i, cold, err)
			}
			if err := k.Destroy(t.Context(), forged); !errors.Is(err, ErrKey) {
				t.Errorf("Destroy with a bit of byte %d of the ID flipped = %v, want ErrKey", i, err)
			}
		}
	}
	_, err := k.Open(eventstore.KeyID{}, testContext, sealed)
	wantErr(t, "Open with the zero ID", err, ErrKey)
	if got, err := k.Open(id, testContext, sealed); err != nil || string(got) != plain {
		t.Errorf("Open with the right ID afterwards = %q, %v, want %q", got, err, plain)
	}
}

// TestRowOfAnotherAccount checks that a wrapped key copied into another row
// does not open there.
func TestRowOfAnotherAccount(t *testing.T) {
	t.Parallel()
	k := newKeys(t)
	victim, thief := newKey(t, k), newKey(t, k)
	sealed := mustSeal(t, k, victim, testContext, plain)
	if _, err := k.write.Exec(`UPDATE keys SET wrapped = (SELECT wrapped FROM keys WHERE slot = ?) WHERE slot = ?`, slot(t, victim), slot(t, thief)); err != nil {
		t.Fatal(err)
	}
	k.cache.InvalidateAll()
	// Not even with an ID of the thief's slot and the victim's commitment.
	forged := victim
	copy(forged[:8], thief[:8])
	for _, id := range []eventstore.KeyID{thief, forged} {
		_, err := k.Open(id, testContext, sealed)
		wantErr(t, "Open through the copied row", err, ErrKey)
	}
	if err := k.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "1 keys do not open") {
		t.Errorf("Check = %v, want one key that does not open", err)
	}
	// Destroy accepts a row that does not unwrap.
	if err := k.Destroy(t.Context(), thief); err != nil {
		t.Error(err)
	}
	if err := k.Check(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestNoncesDiffer(t *testing.T) {
	t.Parallel()
	master := NewMaster()
	path := filepath.Join(t.TempDir(), "keys.db")
	k := openKeys(t, path, master)
	id := newKey(t, k)
	// Restore the same backup many times and use each copy independently.
	seen := map[[12]byte]bool{}
	for range 10 {
		restored := openKeys(t, copyFiles(t, path), master)
		for range 1000 {
			nonce := [12]byte(mustSeal(t, restored, id, testContext, plain)[:12])
			if seen[nonce] {
				t.Fatal("a nonce was used twice")
			}
			seen[nonce] = true
		}
	}
}

func TestSlotOf(t *testing.T) {
	t.Parallel()
	id := eventstore.KeyID{0: 0x80}
	_, err := slotOf(id)
	wantErr(t, "slotOf a slot beyond int64", err, ErrKey)
	id = eventstore.KeyID{}
	copy(id[:8], []byte{0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	if n, err := slotOf(id); err != nil || n != math.MaxInt64 {
		t.Errorf("slotOf = %d, %v, want MaxInt64", n, err)
	}
}

func BenchmarkSeal(b *testing.B) {
	k := newKeys(b)
	id := newKey(b, k)
	plain := bytes.Repeat([]byte("x"), 300)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := k.Seal(id, testContext, plain); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	k := newKeys(b)
	id := newKey(b, k)
	sealed := mustSeal(b, k, id, testContext, strings.Repeat("x", 300))
	b.Run("cached", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := k.Open(id, testContext, sealed); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("from file", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			k.cache.Invalidate(id)
			if _, err := k.Open(id, testContext, sealed); err != nil {
				b.Fatal(err)
			}
		}
	})
}
