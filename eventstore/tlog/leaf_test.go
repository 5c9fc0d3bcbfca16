package tlog_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	sumdb "golang.org/x/mod/sumdb/tlog"

	"accountledger/eventstore"
	"accountledger/eventstore/tlog"
)

func sealedLeaf() tlog.Leaf {
	return tlog.Leaf{
		ID: [16]byte{1, 2, 3}, Stream: "account-1", Revision: 7, Prev: tlog.Hash{9}, Time: 1_700_000_000_000_001,
		Type: "account.created.v1", Actor: "user:u1", Clear: []byte(`{"a":1}`),
		KeyID: eventstore.KeyID{4}, SealedHash: tlog.Hash{5},
	}
}

// TestLeafEncode spells out the bytes of AL1. Changing them invalidates every
// existing proof.
func TestLeafEncode(t *testing.T) {
	t.Parallel()
	l := sealedLeaf()
	id, kid, prev, sealed := l.ID, l.KeyID, l.Prev, l.SealedHash
	want := bytes.Join([][]byte{
		[]byte("AL1\x00"), {1}, id[:],
		{9}, []byte("account-1"),
		{0, 0, 0, 0, 0, 0, 0, 7}, prev[:],
		{0x00, 0x06, 0x0a, 0x24, 0x18, 0x1e, 0x40, 0x01},
		{18}, []byte("account.created.v1"),
		{7}, []byte("user:u1"),
		{0, 0, 0, 7}, []byte(`{"a":1}`),
		kid[:], sealed[:],
	}, nil)
	got, err := l.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("Encode = %x, want %x", got, want)
	}
	h, err := l.Hash()
	if err != nil {
		t.Fatal(err)
	}
	if h != sha256.Sum256(append([]byte{0}, want...)) || h != sumdb.RecordHash(want) {
		t.Errorf("Hash = %x is not the RFC 6962 leaf hash of the encoding", h)
	}
}

func TestNewLeaf(t *testing.T) {
	t.Parallel()
	rec := eventstore.Recorded{
		Event: eventstore.Event{
			ID: [16]byte{1, 2, 3}, Type: "account.created.v1", Actor: "user:u1", Clear: []byte(`{"a":1}`),
			KeyID: eventstore.KeyID{4}, Sealed: []byte("s"),
		},
		Stream: "account-1", Revision: 7, Position: 99, Time: time.UnixMicro(1_700_000_000_000_001).UTC(),
	}
	if diff := cmp.Diff(sealedLeaf(), tlog.NewLeaf(rec, tlog.Hash{9}, tlog.Hash{5})); diff != "" {
		t.Error(diff)
	}
	rec.KeyID = eventstore.KeyID{}
	if l := tlog.NewLeaf(rec, tlog.Hash{9}, tlog.Hash{5}); l.SealedHash != (tlog.Hash{}) {
		t.Error("NewLeaf set a sealed hash for an event without a sealed part")
	}
}

func TestDecodeLeafRoundTrip(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("n", 255)
	for name, change := range map[string]func(*tlog.Leaf){
		"sealed": func(*tlog.Leaf) {},
		"clear":  func(l *tlog.Leaf) { l.KeyID, l.SealedHash = eventstore.KeyID{}, tlog.Hash{} },
		"empty":  func(l *tlog.Leaf) { *l = tlog.Leaf{Clear: []byte{}} },
		"largest": func(l *tlog.Leaf) {
			l.Stream, l.Type, l.Actor, l.Clear = long, long, long, make([]byte, eventstore.MaxClear)
			l.Revision, l.Time = math.MaxInt64, math.MaxInt64
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := sealedLeaf()
			change(&l)
			b, err := l.Encode()
			if err != nil {
				t.Fatal(err)
			}
			if len(b) >= 65536 {
				t.Errorf("the encoding has %d bytes, too many for an entry in a tile", len(b))
			}
			got, err := tlog.DecodeLeaf(b)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(l, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestDecodeLeafRefuses(t *testing.T) {
	t.Parallel()
	l := sealedLeaf()
	b, err := l.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for n := range b {
		if _, err := tlog.DecodeLeaf(b[:n]); !errors.Is(err, tlog.ErrLeaf) {
			t.Errorf("DecodeLeaf of the first %d bytes = %v, want ErrLeaf", n, err)
		}
	}
	alter := func(i int, v byte) []byte { c := bytes.Clone(b); c[i] = v; return c }
	kid := len(b) - 64
	for name, b := range map[string][]byte{
		"trailing byte":     append(bytes.Clone(b), 0),
		"magic":             alter(2, '2'),
		"unknown flag":      alter(4, 3),
		"flag removed":      alter(4, 0),
		"revision too high": alter(31, 0x80),
		"time too high":     alter(71, 0x80),
		"clear too long":    alter(107, 0xff),
		"zero key":          alter(kid, 0),
	} {
		if _, err := tlog.DecodeLeaf(b); !errors.Is(err, tlog.ErrLeaf) {
			t.Errorf("%s: DecodeLeaf = %v, want ErrLeaf", name, err)
		}
	}
}

func TestEncodeRefuses(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*tlog.Leaf){
		"long stream":         func(l *tlog.Leaf) { l.Stream = strings.Repeat("s", 256) },
		"long type":           func(l *tlog.Leaf) { l.Type = strings.Repeat("s", 256) },
		"long actor":          func(l *tlog.Leaf) { l.Actor = strings.Repeat("s", 256) },
		"long clear":          func(l *tlog.Leaf) { l.Clear = make([]byte, eventstore.MaxClear+1) },
		"negative revision":   func(l *tlog.Leaf) { l.Revision = -1 },
		"negative time":       func(l *tlog.Leaf) { l.Time = -1 },
		"sealed hash, no key": func(l *tlog.Leaf) { l.KeyID = eventstore.KeyID{} },
	} {
		l := sealedLeaf()
		change(&l)
		if _, err := l.Hash(); !errors.Is(err, tlog.ErrLeaf) {
			t.Errorf("%s: Hash = %v, want ErrLeaf", name, err)
		}
	}
}

func FuzzLeaf(f *testing.F) {
	l := sealedLeaf()
	sealed, err := l.Encode()
	if err != nil {
		f.Fatal(err)
	}
	l.KeyID, l.SealedHash = eventstore.KeyID{}, tlog.Hash{}
	plain, err := l.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sealed)
	f.Add(plain)
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := tlog.DecodeLeaf(b)
		if err != nil {
			return
		}
		got, err := l.Encode()
		if err != nil {
			t.Fatalf("Encode of a decoded leaf = %v", err)
		}
		if !bytes.Equal(got, b) {
			t.Errorf("encode(decode(x)) = %s, want %s", hex.EncodeToString(got), hex.EncodeToString(b))
		}
	})
}

func BenchmarkLeafHash(b *testing.B) {
	l := sealedLeaf()
	l.Clear = bytes.Repeat([]byte{'x'}, 100)
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		_, out, err := l.HashIn(buf)
		if err != nil {
			b.Fatal(err)
		}
		buf = out
	}
}
