package tlog

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// Checkpoint says what a log was at a size: C2SP tlog-checkpoint, three lines
// without extensions.
type Checkpoint struct {
	Origin string // names the log: "accountledger/" and the id of its incarnation; also its key's name
	Size   int64  // leaves
	Root   Hash
}

// GenerateKey makes an Ed25519 key for the checkpoints of the log called
// origin, as text: skey for note.NewSigner, to be kept secret, and vkey for
// note.NewVerifier, to be given to whoever verifies.
func GenerateKey(origin string) (skey, vkey string, err error) {
	skey, vkey, err = note.GenerateKey(rand.Reader, origin)
	if err != nil {
		return "", "", fmt.Errorf("tlog: generate key: %w", err)
	}
	// GenerateKey takes any name, but a key whose name no note can carry is
	// refused here and not by the first signature.
	if _, err := note.NewVerifier(vkey); err != nil {
		return "", "", fmt.Errorf("tlog: origin %q cannot name a key: %w", origin, err)
	}
	return skey, vkey, nil
}

// Text is what is signed.
func (c Checkpoint) Text() string {
	return c.Origin + "\n" + strconv.FormatInt(c.Size, 10) + "\n" + base64.StdEncoding.EncodeToString(c.Root[:]) + "\n"
}

// Sign returns the checkpoint as a note signed by s, whose name must be the
// checkpoint's origin.
func (c Checkpoint) Sign(s note.Signer) ([]byte, error) {
	if s.Name() != c.Origin {
		return nil, fmt.Errorf("tlog: a key named %s cannot sign for %s", s.Name(), c.Origin)
	}
	msg, err := note.Sign(&note.Note{Text: c.Text()}, s)
	if err != nil {
		return nil, fmt.Errorf("tlog: sign checkpoint: %w", err)
	}
	return msg, nil
}

// ErrCheckpoint is in the chain of OpenCheckpoint's errors about text that is
// signed but is not a checkpoint of the log.
var ErrCheckpoint = errors.New("tlog: not a checkpoint of this log")

// OpenCheckpoint returns the checkpoint in msg if v's key signed it and it is
// exactly of the form Sign writes, its origin v's name. Further signatures,
// those of witnesses, are no concern of it.
func OpenCheckpoint(msg []byte, v note.Verifier) (Checkpoint, error) {
	n, err := note.Open(msg, note.VerifierList(v))
	if err != nil {
		return Checkpoint{}, fmt.Errorf("tlog: open checkpoint: %w", err)
	}
	// note.Open ignores the last bits of a signature's base64; a stored note
	// with a flipped bit there would count as untouched.
	for _, sig := range slices.Concat(n.Sigs, n.UnverifiedSigs) {
		if _, err := base64.StdEncoding.Strict().DecodeString(sig.Base64); err != nil {
			return Checkpoint{}, fmt.Errorf("%w: a signature with stray bits", ErrCheckpoint)
		}
	}
	lines := strings.Split(n.Text, "\n")
	if len(lines) != 4 || lines[3] != "" {
		return Checkpoint{}, fmt.Errorf("%w: not three lines", ErrCheckpoint)
	}
	if lines[0] != v.Name() {
		return Checkpoint{}, fmt.Errorf("%w: its origin is %q", ErrCheckpoint, lines[0])
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil || size < 0 || lines[1] != strconv.FormatInt(size, 10) {
		return Checkpoint{}, fmt.Errorf("%w: size %q", ErrCheckpoint, lines[1])
	}
	// Not strict, base64 would hide altered bits in its padding.
	root, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(root) != len(Hash{}) {
		return Checkpoint{}, fmt.Errorf("%w: its root is not a hash", ErrCheckpoint)
	}
	return Checkpoint{Origin: lines[0], Size: size, Root: Hash(root)}, nil
}
