package wire

import (
	"crypto/ed25519"
	"crypto/hmac"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json"

	"accountledger/eventstore"
)

// Tolerance is how far a delivery's timestamp may differ from the receiver's
// clock, in either direction. Verify rejects any other as a replay attack.
const Tolerance = 5 * time.Minute

// ErrSignature is in the chain of every error of Verify.
var ErrSignature = errors.New("wire: not a valid delivery")

// Verifier verifies signatures with one key: a shared secret or a public key.
type Verifier struct {
	signed func(id, stamp string, body []byte, entry string) bool
}

// ParseVerifier reads a secret as the ledger shows it, whsec_ or whsk_, or a
// public key, whpk_. Its errors never quote it.
func ParseVerifier(text string) (Verifier, error) {
	if encoded, ok := strings.CutPrefix(text, publicPrefix); ok {
		public, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil || len(public) != ed25519.PublicKeySize {
			return Verifier{}, fmt.Errorf("wire: a public key is %d bytes in base64 after %s", ed25519.PublicKeySize, publicPrefix)
		}
		return ed25519Verifier(public), nil
	}
	s, err := ParseSigner(text)
	if err != nil {
		return Verifier{}, err
	}
	if private, ok := s.key.(ed25519Key); ok {
		return ed25519Verifier(ed25519.PrivateKey(private).Public().(ed25519.PublicKey)), nil
	}
	return Verifier{func(id, stamp string, body []byte, entry string) bool {
		return hmac.Equal([]byte(entry), []byte(s.key.sign(id, stamp, body)))
	}}, nil
}

func ed25519Verifier(public ed25519.PublicKey) Verifier {
	return Verifier{func(id, stamp string, body []byte, entry string) bool {
		encoded, ok := strings.CutPrefix(entry, "v1a,")
		signature, err := base64.StdEncoding.DecodeString(encoded)
		return ok && err == nil && ed25519.Verify(public, append([]byte(id+"."+stamp+"."), body...), signature)
	}}
}

// Verify checks a delivery as Standard Webhooks specifies for receivers. It
// returns an error unless one of keys signed it, within Tolerance of now.
func Verify(keys []Verifier, header http.Header, body []byte, now time.Time) error {
	id, stamp := header.Get(HeaderID), header.Get(HeaderTimestamp)
	seconds, err := strconv.ParseInt(stamp, 10, 64)
	if id == "" || err != nil {
		return fmt.Errorf("%w: %s or %s is missing or malformed", ErrSignature, HeaderID, HeaderTimestamp)
	}
	if age := now.Sub(time.Unix(seconds, 0)); age.Abs() > Tolerance {
		return fmt.Errorf("%w: its timestamp is %s away from now", ErrSignature, age.Round(time.Second))
	}
	for _, k := range keys {
		for entry := range strings.FieldsSeq(header.Get(HeaderSignature)) {
			if k.signed(id, stamp, body, entry) {
				return nil
			}
		}
	}
	return fmt.Errorf("%w: no signature matches", ErrSignature)
}

// Received identifies an event in a delivery.
type Received struct {
	ID, Type, Sub, Stream string
	Sequence              eventstore.Revision
}

// ReadDelivery reads a delivery in any format and identifies its event, or the
// events of a batch.
func ReadDelivery(header http.Header, body []byte) ([]Received, error) {
	kind, _, _ := strings.Cut(header.Get("Content-Type"), ";")
	switch {
	case kind == "application/cloudevents-batch+json":
		var batch []cloudEvent
		if err := json.Unmarshal(body, &batch); err != nil {
			return nil, errNoEvent
		}
		all := make([]Received, len(batch))
		for i, e := range batch {
			var err error
			if all[i], err = e.received(); err != nil {
				return nil, err
			}
		}
		return all, nil
	case kind == "application/cloudevents+json":
		var e cloudEvent
		if err := json.Unmarshal(body, &e); err != nil {
			return nil, errNoEvent
		}
		one, err := e.received()
		return []Received{one}, err
	case header.Get("ce-specversion") != "":
		var e cloudEvent
		for name, to := range map[string]*string{"id": &e.ID, "type": &e.Type, "subject": &e.Subject, "stream": &e.Stream, "sequence": &e.Sequence} {
			var err error
			if *to, err = decodeHeader(header.Get("ce-" + name)); err != nil {
				return nil, err
			}
		}
		one, err := e.received()
		return []Received{one}, err
	}
	var e struct {
		ID       string              `json:"id"`
		Type     string              `json:"type"`
		Sub      string              `json:"sub"`
		Stream   string              `json:"stream"`
		Sequence eventstore.Revision `json:"sequence"`
	}
	if err := json.Unmarshal(body, &e); err != nil {
		return nil, errNoEvent
	}
	if e.ID == "" {
		e.ID = header.Get(HeaderID)
	}
	return []Received{{e.ID, e.Type, e.Sub, e.Stream, e.Sequence}}, nil
}

var errNoEvent = errors.New("the body is not an event")

// cloudEvent has the attributes of a CloudEvent that a Received needs.
type cloudEvent struct {
	ID       string `json:"id"`
	Type     string `json:"type"`
	Subject  string `json:"subject"`
	Stream   string `json:"stream"`
	Sequence string `json:"sequence"`
}

func (e cloudEvent) received() (Received, error) {
	n, err := strconv.ParseInt(e.Sequence, 10, 64)
	if err != nil || e.ID == "" {
		return Received{}, errNoEvent
	}
	return Received{e.ID, e.Type, e.Subject, e.Stream, eventstore.Revision(n)}, nil
}

var errHeader = errors.New("wire: a header is not encoded as CloudEvents specifies")

// decodeHeader reverses encodeHeader. It accepts lower-case digits and rejects
// what is not UTF-8, as the HTTP protocol binding, section 3.1.3.2, requires.
func decodeHeader(value string) (string, error) {
	if !strings.Contains(value, "%") {
		return value, nil
	}
	decoded, err := url.PathUnescape(value)
	if err != nil || !utf8.ValidString(decoded) {
		return "", errHeader
	}
	return decoded, nil
}
