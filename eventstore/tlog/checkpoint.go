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

// Checkpoint states the root hash of a log at a size. Its text has the three
// lines of a C2SP tlog-checkpoint, without extension lines.
type Checkpoint struct {
	Origin string // name of the log and of its key: "accountledger/" and an ID
	Size   int64  // number of leaves
	Root   Hash
}

// GenerateKey generates an Ed25519 key for the checkpoints of the log named
// origin, in the text format of C2SP signed-note: the secret skey for
// note.NewSigner, and the public vkey for note.NewVerifier. It fails if origin
// cannot be the name of a key.
func GenerateKey(origin string) (skey, vkey string, err error) {
	skey, vkey, err = note.GenerateKey(rand.Reader, origin)
	if err != nil {
		return "", "", fmt.Errorf("tlog: generate key: %w", err)
	}
	// note.GenerateKey accepts any name. Refuse a name that is not valid in a
	// note here, not when the first checkpoint is signed.
	if _, err := note.NewVerifier(vkey); err != nil {
		return "", "", fmt.Errorf("tlog: origin %q is not a valid key name: %w", origin, err)
	}
	return skey, vkey, nil
}

// Text returns the text that Sign signs.
func (c Checkpoint) Text() string {
	return c.Origin + "\n" + strconv.FormatInt(c.Size, 10) + "\n" + base64.StdEncoding.EncodeToString(c.Root[:]) + "\n"
}

// Sign returns the checkpoint as a C2SP signed note with a signature by s. It
// fails if the name of s is not the checkpoint's origin.
func (c Checkpoint) Sign(s note.Signer) ([]byte, error) {
	if s.Name() != c.Origin {
		return nil, fmt.Errorf("tlog: key %s cannot sign a checkpoint of %s", s.Name(), c.Origin)
	}
	msg, err := note.Sign(&note.Note{Text: c.Text()}, s)
	if err != nil {
		return nil, fmt.Errorf("tlog: sign checkpoint: %w", err)
	}
	return msg, nil
}

// ErrCheckpoint is wrapped by the errors of OpenCheckpoint about a note with a
// valid signature whose text is not a checkpoint of the log.
var ErrCheckpoint = errors.New("tlog: not a checkpoint of this log")

// OpenCheckpoint returns the checkpoint in msg, a signed note. It fails unless
// the key of v signed the note, the origin is the name of v, and the text is
// exactly as Sign writes it. It ignores further signatures, such as those of
// witnesses.
func OpenCheckpoint(msg []byte, v note.Verifier) (Checkpoint, error) {
	n, err := note.Open(msg, note.VerifierList(v))
	if err != nil {
		return Checkpoint{}, fmt.Errorf("tlog: open checkpoint: %w", err)
	}
	// note.Open ignores the unused last bits of a signature's base64. Without
	// this check, a flipped bit there would go unnoticed.
	for _, sig := range slices.Concat(n.Sigs, n.UnverifiedSigs) {
		if _, err := base64.StdEncoding.Strict().DecodeString(sig.Base64); err != nil {
			return Checkpoint{}, fmt.Errorf("%w: a signature is not canonical base64", ErrCheckpoint)
		}
	}
	lines := strings.Split(n.Text, "\n")
	if len(lines) != 4 || lines[3] != "" {
		return Checkpoint{}, fmt.Errorf("%w: its text does not have three lines", ErrCheckpoint)
	}
	if lines[0] != v.Name() {
		return Checkpoint{}, fmt.Errorf("%w: its origin is %q", ErrCheckpoint, lines[0])
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil || size < 0 || lines[1] != strconv.FormatInt(size, 10) {
		return Checkpoint{}, fmt.Errorf("%w: its size is %q", ErrCheckpoint, lines[1])
	}
	// Strict decoding also rejects altered padding bits.
	root, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(root) != len(Hash{}) {
		return Checkpoint{}, fmt.Errorf("%w: its root is not a base64 hash", ErrCheckpoint)
	}
	return Checkpoint{Origin: lines[0], Size: size, Root: Hash(root)}, nil
}
