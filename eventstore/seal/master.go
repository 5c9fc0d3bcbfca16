package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
)

// masterPrefix starts the text of a master key, so that a scanner for leaked
// secrets, and a person, know it when they see it.
const masterPrefix = "al1-master"

// Master is the key that wraps all others: 256 bits and the number of its
// epoch, which a rotation counts up. Printing it, by any verb and in any log,
// shows the epoch alone. The zero Master is no key.
type Master struct {
	epoch uint32
	key   func() []byte // not the bytes: fmt calls no methods on a field that is not exported, but cannot look into a func
}

// NewMaster makes a random master key of epoch 1. Whoever loses it has lost
// all personal data.
func NewMaster() Master {
	return masterOf(1, randomKey())
}

// LoadMaster reads what Reveal wrote, with or without white space around it.
// Its errors never quote the text.
func LoadMaster(text string) (Master, error) {
	parts := strings.Split(strings.TrimSpace(text), ":")
	if len(parts) != 3 || parts[0] != masterPrefix {
		return Master{}, fmt.Errorf("seal: a master key is written %s:<epoch>:<key>", masterPrefix)
	}
	epoch, err := strconv.ParseUint(parts[1], 10, 32)
	if err != nil || epoch == 0 {
		return Master{}, errors.New("seal: the epoch of the master key is not a number from 1 on")
	}
	key, err := base64.RawURLEncoding.Strict().DecodeString(parts[2])
	if err != nil || len(key) != 32 {
		return Master{}, errors.New("seal: the master key is not 32 bytes in unpadded base64url")
	}
	return masterOf(uint32(epoch), key), nil
}

func masterOf(epoch uint32, key []byte) Master {
	return Master{epoch, func() []byte { return key }}
}

// Reveal is the master key as LoadMaster reads it: for the file it is kept
// in, and nothing else.
func (m Master) Reveal() string {
	return fmt.Sprintf("%s:%d:%s", masterPrefix, m.epoch, base64.RawURLEncoding.EncodeToString(m.key()))
}

// String names the key by its epoch.
func (m Master) String() string { return fmt.Sprintf("master key of epoch %d", m.epoch) }

// Format writes String whatever the verb: %+v and %#v would show the bytes.
func (m Master) Format(f fmt.State, _ rune) { io.WriteString(f, m.String()) }

// LogValue is String.
func (m Master) LogValue() slog.Value { return slog.StringValue(m.String()) }

// wrapper wraps small things under one master key.
type wrapper struct {
	epoch uint32
	aead  cipher.AEAD
}

// newWrapper gives each wrapping a random nonce. A nonce made of the slot
// would save 12 bytes and be fatal: after a backup is restored a slot can be
// given again, to another key. NIST SP 800-38D, 8.3, allows 2^32 random
// nonces under one key; that many accounts are a reason to rotate.
func newWrapper(m Master) (wrapper, error) {
	if m.key == nil {
		return wrapper{}, errors.New("seal: no master key")
	}
	aead, err := newAEAD(m.key())
	return wrapper{m.epoch, aead}, err
}

// wrap seals plain for one place. The place is authenticated, so that a
// wrapped key copied into another account's row does not open.
func (w wrapper) wrap(place, plain []byte) []byte { return w.aead.Seal(nil, nil, plain, place) }

func (w wrapper) unwrap(place, wrapped []byte) ([]byte, error) {
	return w.aead.Open(nil, nil, wrapped, place)
}

// The places: "AL1/wrap" | slot | epoch for keys, "AL1/secret" | epoch | name
// for secrets, "AL1/check" | epoch for the check value; integers big-endian.
func keyPlace(slot int64, epoch uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64([]byte("AL1/wrap"), uint64(slot)), epoch)
}

func secretPlace(name string, epoch uint32) []byte {
	return append(binary.BigEndian.AppendUint32([]byte("AL1/secret"), epoch), name...)
}

func checkPlace(epoch uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte("AL1/check"), epoch)
}

// newAEAD is AES-256-GCM that writes nonce[12] || ciphertext || tag[16], with
// a random nonce.
func newAEAD(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return aead, nil
}
