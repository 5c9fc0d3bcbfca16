package wire

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"strings"
	"sync"
	"time"

	"accountledger/domain"
)

// Prefixes of keys as Standard Webhooks writes them.
const (
	secretPrefix  = "whsec_" // a shared secret, for v1 (HMAC-SHA256)
	privatePrefix = "whsk_"  // an Ed25519 private key, for v1a
	publicPrefix  = "whpk_"  // its public key, which receivers hold
)

// The bounds Standard Webhooks sets for the length of a shared secret, in
// bytes.
const (
	minKey = 24
	maxKey = 64
)

// NewSecret returns a new random secret for a key of a type.
func NewSecret(kind domain.WebhookKeyType) string {
	if kind == domain.KeyEd25519 {
		_, private, err := ed25519.GenerateKey(nil)
		if err != nil { // crypto/rand never fails
			panic("wire: " + err.Error())
		}
		return privatePrefix + base64.StdEncoding.EncodeToString(private)
	}
	key := make([]byte, 32)
	rand.Read(key)
	return secretPrefix + base64.StdEncoding.EncodeToString(key)
}

// KeyType returns the type of the key that a secret holds.
func KeyType(secret string) domain.WebhookKeyType {
	if strings.HasPrefix(secret, privatePrefix) {
		return domain.KeyEd25519
	}
	return domain.KeyHMAC
}

// SecretFault returns what is wrong with a secret that a client supplies for a
// key of a type ("" for any), or "". It never quotes the secret.
func SecretFault(secret string, kind domain.WebhookKeyType) string {
	if strings.ContainsAny(secret, " \t\r\n") {
		return "must not contain white space"
	}
	if _, err := ParseSigner(secret); err != nil {
		return "must be " + secretPrefix + " or " + privatePrefix + " and a key in base64"
	}
	if kind != "" && KeyType(secret) != kind {
		return "must be a key of the requested type"
	}
	if key, err := parseSecret(secret); err == nil && (len(key) < minKey || len(key) > maxKey) {
		return fmt.Sprintf("the key must have %d to %d bytes", minKey, maxKey)
	}
	return ""
}

// parseSecret returns the key of a secret in the form whsec_<base64>. Its
// errors never quote the secret.
func parseSecret(secret string) ([]byte, error) {
	text, ok := strings.CutPrefix(secret, secretPrefix)
	if !ok {
		return nil, fmt.Errorf("wire: a secret starts with %s", secretPrefix)
	}
	key, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, errors.New("wire: a secret is base64 after its prefix")
	}
	return key, nil
}

// Fingerprint returns the first 64 bits of the key's SHA-256: enough for two
// sides to compare what they hold, useless for guessing a key of 192 bits.
func Fingerprint(key []byte) string {
	sum := sha256.Sum256(key)
	return fmt.Sprintf("sha256:%x", sum[:8])
}

// Signers are the keys that sign a webhook's requests, newest first.
type Signers []Signer

// Signer signs with one key.
type Signer struct {
	NotAfter time.Time // when a replaced key stops signing; zero: never
	key      key
}

// key makes the entries of one kind in the signature header.
type key interface {
	sign(id, seconds string, body []byte) string
	// fingerprint identifies the key without disclosing it.
	fingerprint() string
}

// ParseSigner reads a secret, whsec_ for HMAC-SHA256 or whsk_ for Ed25519. It
// accepts a shared secret of any length; SecretFault has the rules of the API.
// Its errors never quote the secret.
func ParseSigner(secret string) (Signer, error) {
	text, private := strings.CutPrefix(secret, privatePrefix)
	if !private {
		k, err := parseSecret(secret)
		if err != nil {
			return Signer{}, err
		}
		return Signer{key: newHMACKey(k)}, nil
	}
	k, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(k) != ed25519.PrivateKeySize {
		return Signer{}, fmt.Errorf("wire: a private key is %d bytes in base64 after %s", ed25519.PrivateKeySize, privatePrefix)
	}
	return Signer{key: ed25519Key(k)}, nil
}

// Fingerprint identifies the key without disclosing it: a fingerprint of a
// shared secret, or the public key of a key pair in the form whpk_<base64>.
func (s Signer) Fingerprint() string { return s.key.fingerprint() }

// header returns the value of the signature header: one entry for each key
// that signs at now, so that a receiver can verify before, during and after a
// rotation. The first key always signs.
func (all Signers) header(id string, now time.Time, seconds string, body []byte) string {
	value := all[0].key.sign(id, seconds, body)
	for _, s := range all[1:] {
		if s.NotAfter.IsZero() || s.NotAfter.After(now) {
			value += " " + s.key.sign(id, seconds, body)
		}
	}
	return value
}

// hub returns the value of HeaderHub under the newest shared secret, or "" if
// there is none.
func (all Signers) hub(body []byte) string {
	for _, s := range all {
		if k, ok := s.key.(*hmacKey); ok {
			h := hmac.New(sha256.New, k.secret)
			h.Write(body)
			return fmt.Sprintf("sha256=%x", h.Sum(nil))
		}
	}
	return ""
}

// hmacKey reuses keyed hashes: keying one costs as much as signing a kilobyte.
type hmacKey struct {
	secret []byte
	hashes sync.Pool
}

func newHMACKey(secret []byte) *hmacKey {
	return &hmacKey{secret: secret, hashes: sync.Pool{New: func() any { return hmac.New(sha256.New, secret) }}}
}

func (k *hmacKey) sign(id, seconds string, body []byte) string {
	h := k.hashes.Get().(hash.Hash)
	defer k.hashes.Put(h)
	h.Reset()
	var room [256]byte
	h.Write(append(append(append(append(room[:0], id...), '.'), seconds...), '.'))
	h.Write(body)
	return "v1," + base64.StdEncoding.EncodeToString(h.Sum(room[:0]))
}

func (k *hmacKey) fingerprint() string { return Fingerprint(k.secret) }

type ed25519Key ed25519.PrivateKey

func (k ed25519Key) sign(id, seconds string, body []byte) string {
	message := append([]byte(id+"."+seconds+"."), body...)
	return "v1a," + base64.StdEncoding.EncodeToString(ed25519.Sign(ed25519.PrivateKey(k), message))
}

func (k ed25519Key) fingerprint() string {
	return publicPrefix + base64.StdEncoding.EncodeToString(ed25519.PrivateKey(k).Public().(ed25519.PublicKey))
}
