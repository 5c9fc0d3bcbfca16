package tlog_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"accountledger/eventstore/tlog"
)

const origin = "accountledger/3f9c0a7e"

func newKey(t *testing.T, origin string) (note.Signer, note.Verifier) {
	t.Helper()
	skey, vkey, err := tlog.GenerateKey(origin)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := note.NewVerifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	return signer, verifier
}

func TestCheckpoint(t *testing.T) {
	t.Parallel()
	signer, verifier := newKey(t, origin)
	want := tlog.Checkpoint{Origin: origin, Size: 70001, Root: tlog.Hash{1, 2}}
	msg, err := want.Sign(signer)
	if err != nil {
		t.Fatal(err)
	}
	wantText := origin + "\n70001\nAQIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n\n— " + origin + " "
	if !strings.HasPrefix(string(msg), wantText) {
		t.Errorf("Sign = %q, want the prefix %q", msg, wantText)
	}
	got, err := tlog.OpenCheckpoint(msg, verifier)
	if err != nil || got != want {
		t.Errorf("OpenCheckpoint = %+v, %v, want %+v", got, err, want)
	}

	// OpenCheckpoint ignores the additional signature of a witness.
	witness, _ := newKey(t, "witness.example/w1")
	n, err := note.Open(msg, note.VerifierList(verifier))
	if err != nil {
		t.Fatal(err)
	}
	cosigned, err := note.Sign(n, witness)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := tlog.OpenCheckpoint(cosigned, verifier); err != nil || got != want {
		t.Errorf("OpenCheckpoint of a cosigned note = %+v, %v, want %+v", got, err, want)
	}

	if _, err := (tlog.Checkpoint{Origin: "accountledger/other"}).Sign(signer); err == nil {
		t.Error("Sign accepted a key with a different name than the origin")
	}
	if _, other := newKey(t, origin); true {
		if _, err := tlog.OpenCheckpoint(msg, other); err == nil {
			t.Error("OpenCheckpoint accepted a checkpoint signed by a different key")
		}
	}
}

// TestCheckpointFlips checks that OpenCheckpoint rejects every single flipped
// bit, including those in base64 padding.
func TestCheckpointFlips(t *testing.T) {
	t.Parallel()
	signer, verifier := newKey(t, origin)
	msg, err := tlog.Checkpoint{Origin: origin, Size: 12, Root: tlog.Hash{0xff}}.Sign(signer)
	if err != nil {
		t.Fatal(err)
	}
	for i := range len(msg) * 8 {
		flipped := bytes.Clone(msg)
		flipped[i/8] ^= 1 << (i % 8)
		if c, err := tlog.OpenCheckpoint(flipped, verifier); err == nil {
			t.Errorf("with bit %d of byte %d flipped (%q), OpenCheckpoint = %+v, want an error", i%8, i/8, flipped[i/8], c)
		}
	}
}

// TestOpenCheckpointStrict checks that OpenCheckpoint rejects text that is not
// a canonical checkpoint although the log's own key signed it.
func TestOpenCheckpointStrict(t *testing.T) {
	t.Parallel()
	signer, verifier := newKey(t, origin)
	const root = "AQIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
	for name, text := range map[string]string{
		"extension line":  fmt.Sprintf("%s\n10\n%s\nextension\n", origin, root),
		"empty line":      fmt.Sprintf("%s\n10\n%s\n\n", origin, root),
		"two lines":       fmt.Sprintf("%s\n10\n", origin),
		"size 010":        fmt.Sprintf("%s\n010\n%s\n", origin, root),
		"size +10":        fmt.Sprintf("%s\n+10\n%s\n", origin, root),
		"size -1":         fmt.Sprintf("%s\n-1\n%s\n", origin, root),
		"size too large":  fmt.Sprintf("%s\n9223372036854775808\n%s\n", origin, root),
		"size not number": fmt.Sprintf("%s\n1e3\n%s\n", origin, root),
		"another origin":  fmt.Sprintf("accountledger/other\n10\n%s\n", root),
		"short root":      fmt.Sprintf("%s\n10\nAQIA\n", origin),
		"padding bits":    fmt.Sprintf("%s\n10\n%s\n", origin, strings.Replace(root, "A=", "B=", 1)),
		"url-safe base64": fmt.Sprintf("%s\n10\n%s\n", origin, strings.Replace(root, "AQ", "-_", 1)),
	} {
		msg, err := note.Sign(&note.Note{Text: text}, signer)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := tlog.OpenCheckpoint(msg, verifier); !errors.Is(err, tlog.ErrCheckpoint) {
			t.Errorf("%s: OpenCheckpoint = %v, want ErrCheckpoint", name, err)
		}
	}
	good, err := tlog.Checkpoint{Origin: origin, Size: 10}.Sign(signer)
	if err != nil {
		t.Fatal(err)
	}
	for name, msg := range map[string][]byte{
		"empty":        nil,
		"unsigned":     fmt.Appendf(nil, "%s\n10\n%s\n", origin, root),
		"CRLF":         bytes.ReplaceAll(good, []byte("\n"), []byte("\r\n")),
		"one CR":       bytes.Replace(good, []byte("10\n"), []byte("10\r\n"), 1),
		"CR in base64": bytes.Replace(good, []byte("AAAA"), []byte("AAAA\r"), 1),
	} {
		if _, err := tlog.OpenCheckpoint(msg, verifier); err == nil {
			t.Errorf("%s: OpenCheckpoint succeeded, want an error", name)
		}
	}
}

func TestGenerateKeyRefuses(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", "two words", "a+b"} {
		if _, _, err := tlog.GenerateKey(name); err == nil {
			t.Errorf("GenerateKey accepted the name %q", name)
		}
	}
}

func FuzzOpenCheckpoint(f *testing.F) {
	skey, vkey, err := tlog.GenerateKey(origin)
	if err != nil {
		f.Fatal(err)
	}
	signer, err := note.NewSigner(skey)
	if err != nil {
		f.Fatal(err)
	}
	verifier, err := note.NewVerifier(vkey)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(origin + "\n10\nAQIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n")
	f.Fuzz(func(t *testing.T, text string) {
		msg, err := note.Sign(&note.Note{Text: text}, signer)
		if err != nil {
			return
		}
		c, err := tlog.OpenCheckpoint(msg, verifier)
		if err != nil {
			return
		}
		again, err := c.Sign(signer)
		if err != nil || !bytes.Equal(again, msg) {
			t.Errorf("OpenCheckpoint of %q = %+v, but signing that gives %q, %v", msg, c, again, err)
		}
	})
}
