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

// masterPrefix starts the text of a master key, so that people and scanners
// for leaked secrets recognize it.
const masterPrefix = "al1-master"

// Master is the master key, which wraps all keys in a key file: 256 bits, and
// the number of its epoch. Formatting or logging a Master prints only the
// epoch. The zero Master is not a key.
type Master struct {
	epoch uint32
	key   func() []byte // a func, because fmt prints unexported fields without calling their methods
}

// NewMaster generates a random master key with epoch 1. If the key is lost, so
// is all personal data.
func NewMaster() Master {
	return masterOf(1, randomKey())
}

// LoadMaster parses the text that Reveal returns, ignoring surrounding white
// space. Its errors never quote the text.
func LoadMaster(text string) (Master, error) {
	parts := strings.Split(strings.TrimSpace(text), ":")
	if len(parts) != 3 || parts[0] != masterPrefix {
		return Master{}, fmt.Errorf("seal: a master key must have the form %s:<epoch>:<key>", masterPrefix)
	}
	epoch, err := strconv.ParseUint(parts[1], 10, 32)
	if err != nil || epoch == 0 {
		return Master{}, errors.New("seal: the epoch of the master key must be a positive 32-bit integer")
	}
	key, err := base64.RawURLEncoding.Strict().DecodeString(parts[2])
	if err != nil || len(key) != 32 {
		return Master{}, errors.New("seal: the master key must be 32 bytes in unpadded base64url")
	}
	return masterOf(uint32(epoch), key), nil
}

func masterOf(epoch uint32, key []byte) Master {
	return Master{epoch, func() []byte { return key }}
}

// Reveal returns the master key as text for LoadMaster. Use it only to write
// the key's file.
func (m Master) Reveal() string {
	return fmt.Sprintf("%s:%d:%s", masterPrefix, m.epoch, base64.RawURLEncoding.EncodeToString(m.key()))
}

// String returns a description that contains only the epoch.
func (m Master) String() string { return fmt.Sprintf("master key of epoch %d", m.epoch) }

// Format writes String for every verb.
func (m Master) Format(f fmt.State, _ rune) { io.WriteString(f, m.String()) }

// LogValue returns String for log/slog.
func (m Master) LogValue() slog.Value { return slog.StringValue(m.String()) }

// wrapper encrypts keys and secrets under a master key.
type wrapper struct {
	epoch uint32
	aead  cipher.AEAD
}

// newWrapper returns a wrapper with random nonces. A nonce derived from the
// slot would save 12 bytes but would be unsafe: after a backup is restored, the
// same slot can be assigned to another key. NIST SP 800-38D, section 8.3, allows
// 2^32 random nonces per key, and so that many wrapped keys and secrets per
// master key.
func newWrapper(m Master) (wrapper, error) {
	if m.key == nil {
		return wrapper{}, errors.New("seal: no master key")
	}
	aead, err := newAEAD(m.key())
	return wrapper{m.epoch, aead}, err
}

// wrap encrypts plain and authenticates aad, which names the row that holds the
// result. So a wrapped key copied into another account's row does not unwrap.
func (w wrapper) wrap(aad, plain []byte) []byte { return w.aead.Seal(nil, nil, plain, aad) }

func (w wrapper) unwrap(aad, wrapped []byte) ([]byte, error) {
	return w.aead.Open(nil, nil, wrapped, aad)
}

// The additional authenticated data is "AL1/wrap" | slot | epoch for keys,
// "AL1/secret" | epoch | name for secrets, and "AL1/check" | epoch for the
// check value, with big-endian integers.
func keyAAD(slot int64, epoch uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64([]byte("AL1/wrap"), uint64(slot)), epoch)
}

func secretAAD(name string, epoch uint32) []byte {
	return append(binary.BigEndian.AppendUint32([]byte("AL1/secret"), epoch), name...)
}

func checkAAD(epoch uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte("AL1/check"), epoch)
}

// newAEAD returns AES-256-GCM (NIST SP 800-38D) with random nonces. Its output
// is nonce[12] || ciphertext || tag[16].
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
