package webhooks

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// The headers of Standard Webhooks 1.0.0.
const (
	HeaderID        = "webhook-id"
	HeaderTimestamp = "webhook-timestamp"
	HeaderSignature = "webhook-signature"
)

// Prefixes of secrets as Standard Webhooks writes them.
const (
	secretPrefix  = "whsec_" // a symmetric key, for v1
	privatePrefix = "whsk_"  // an Ed25519 private key, for v1a
	publicPrefix  = "whpk_"  // its public half, which receivers get
)

// Tolerance is how far a delivery's timestamp may be from the receiver's
// clock, either way, before Verify takes it for a replay.
const Tolerance = 5 * time.Minute

// Sign returns the v1 signature of Standard Webhooks: "v1," and the base64 of
// HMAC-SHA256 over "id.seconds.body". It takes a key of any length; how long
// an endpoint's secret must be is a rule of the API.
func Sign(key []byte, id string, t time.Time, body []byte) string {
	return newHMACSigner(key).sign(id, strconv.FormatInt(t.Unix(), 10), body)
}

// ParseSecret returns the key of a secret in the form whsec_<base64>. Its
// errors never quote the secret.
func ParseSecret(secret string) ([]byte, error) {
	text, ok := strings.CutPrefix(secret, secretPrefix)
	if !ok {
		return nil, fmt.Errorf("webhooks: a secret starts with %s", secretPrefix)
	}
	key, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, errors.New("webhooks: a secret is base64 after its prefix")
	}
	return key, nil
}

// ErrSignature is in the chain of every error of Verify.
var ErrSignature = errors.New("webhooks: not a valid delivery")

// Verify reports with an error whether a delivery was not signed with one of
// keys, or not within Tolerance of now: what a receiver does first.
func Verify(keys [][]byte, header http.Header, body []byte, now time.Time) error {
	verifiers := make([]Verifier, len(keys))
	for i, key := range keys {
		verifiers[i] = hmacVerifier(key)
	}
	return VerifyWith(verifiers, header, body, now)
}

// Verifier is what a receiver checks signatures with: a shared secret, or the
// public half of a key pair.
type Verifier struct {
	signed func(id, stamp string, body []byte, entry string) bool
}

// ParseVerifier reads a secret as it was shown, whsec_ or whsk_, or a public
// key, whpk_. Its errors never quote it.
func ParseVerifier(text string) (Verifier, error) {
	if encoded, ok := strings.CutPrefix(text, publicPrefix); ok {
		key, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil || len(key) != ed25519.PublicKeySize {
			return Verifier{}, fmt.Errorf("webhooks: a public key is %d bytes in base64 after %s", ed25519.PublicKeySize, publicPrefix)
		}
		return ed25519Verifier(key), nil
	}
	s, err := parseSigner(text)
	if err != nil {
		return Verifier{}, err
	}
	if pair, ok := s.(ed25519Signer); ok {
		return ed25519Verifier(ed25519.PrivateKey(pair).Public().(ed25519.PublicKey)), nil
	}
	return hmacVerifier(s.(*hmacSigner).key), nil
}

func hmacVerifier(key []byte) Verifier {
	s := newHMACSigner(key)
	return Verifier{func(id, stamp string, body []byte, entry string) bool {
		return hmac.Equal([]byte(entry), []byte(s.sign(id, stamp, body)))
	}}
}

func ed25519Verifier(key ed25519.PublicKey) Verifier {
	return Verifier{func(id, stamp string, body []byte, entry string) bool {
		encoded, ok := strings.CutPrefix(entry, "v1a,")
		signature, err := base64.StdEncoding.DecodeString(encoded)
		return ok && err == nil && ed25519.Verify(key, append([]byte(id+"."+stamp+"."), body...), signature)
	}}
}

// VerifyWith is Verify for keys of both kinds.
func VerifyWith(keys []Verifier, header http.Header, body []byte, now time.Time) error {
	id, stamp := header.Get(HeaderID), header.Get(HeaderTimestamp)
	seconds, err := strconv.ParseInt(stamp, 10, 64)
	if id == "" || err != nil {
		return fmt.Errorf("%w: %s or %s is missing or malformed", ErrSignature, HeaderID, HeaderTimestamp)
	}
	if age := now.Sub(time.Unix(seconds, 0)); age.Abs() > Tolerance {
		return fmt.Errorf("%w: its timestamp is %s away from now", ErrSignature, age.Round(time.Second))
	}
	for _, key := range keys {
		for entry := range strings.FieldsSeq(header.Get(HeaderSignature)) {
			if key.signed(id, stamp, body, entry) {
				return nil
			}
		}
	}
	return fmt.Errorf("%w: no signature matches", ErrSignature)
}

// signer makes one entry of the signature header.
type signer interface {
	sign(id, seconds string, body []byte) string
	// fingerprint names the key without giving it away.
	fingerprint() string
}

// hmacSigner keeps keyed hashes for reuse: keying one costs as much as
// signing a kilobyte.
type hmacSigner struct {
	key    []byte
	hashes sync.Pool
}

func newHMACSigner(key []byte) *hmacSigner {
	return &hmacSigner{key: key, hashes: sync.Pool{New: func() any { return hmac.New(sha256.New, key) }}}
}

func (s *hmacSigner) sign(id, seconds string, body []byte) string {
	h := s.hashes.Get().(hash.Hash)
	defer s.hashes.Put(h)
	h.Reset()
	var room [256]byte
	h.Write(append(append(append(append(room[:0], id...), '.'), seconds...), '.'))
	h.Write(body)
	return "v1," + base64.StdEncoding.EncodeToString(h.Sum(room[:0]))
}

func (s *hmacSigner) fingerprint() string { return fingerprint(s.key) }

type ed25519Signer ed25519.PrivateKey

func (s ed25519Signer) sign(id, seconds string, body []byte) string {
	message := append([]byte(id+"."+seconds+"."), body...)
	return "v1a," + base64.StdEncoding.EncodeToString(ed25519.Sign(ed25519.PrivateKey(s), message))
}

func (s ed25519Signer) fingerprint() string {
	return publicPrefix + base64.StdEncoding.EncodeToString(ed25519.PrivateKey(s).Public().(ed25519.PublicKey))
}

// fingerprint is the first 64 bits of the key's SHA-256: enough to compare
// what two sides hold, useless to guess a key of 192 bits.
func fingerprint(key []byte) string {
	sum := sha256.Sum256(key)
	return fmt.Sprintf("sha256:%x", sum[:8])
}

func parseSigner(secret string) (signer, error) {
	text, private := strings.CutPrefix(secret, privatePrefix)
	if !private {
		key, err := ParseSecret(secret)
		if err != nil {
			return nil, err
		}
		return newHMACSigner(key), nil
	}
	key, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(key) != ed25519.PrivateKeySize {
		return nil, fmt.Errorf("webhooks: a private key is %d bytes in base64 after %s", ed25519.PrivateKeySize, privatePrefix)
	}
	return ed25519Signer(key), nil
}

// signingKey is a key that signs, maybe only until it was replaced for good.
type signingKey struct {
	signer
	notAfter time.Time // zero: for good
}

// signers are an endpoint's keys, newest first.
type signers []signingKey

// header is the signature header's value: one entry per key that signs now, so
// that a receiver verifies before, during and after a rotation. The first key
// always signs.
func (all signers) header(id string, now time.Time, seconds string, body []byte) string {
	value := all[0].sign(id, seconds, body)
	for _, k := range all[1:] {
		if k.notAfter.IsZero() || k.notAfter.After(now) {
			value += " " + k.sign(id, seconds, body)
		}
	}
	return value
}

// HeaderHub is the header that GitHub has made known: the HMAC of the body
// alone.
const HeaderHub = "X-Hub-Signature-256"

// hub is that header's value by the newest shared secret, or "" without one.
func (all signers) hub(body []byte) string {
	for _, k := range all {
		if s, ok := k.signer.(*hmacSigner); ok {
			h := hmac.New(sha256.New, s.key)
			h.Write(body)
			return fmt.Sprintf("sha256=%x", h.Sum(nil))
		}
	}
	return ""
}
