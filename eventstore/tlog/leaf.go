// Package tlog makes an event log verifiable. It defines the bytes of an event
// that are hashed (the leaf, in the format AL1), the Merkle tree over all
// leaves, and the signed checkpoints that commit to the tree.
//
// The tree is that of RFC 6962, the tiles are those of C2SP tlog-tiles
// (height 8), and the checkpoints are those of C2SP tlog-checkpoint in a C2SP
// signed note. The leaf with index i is the event at position i+1 of the log.
package tlog

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"golang.org/x/mod/sumdb/tlog"

	"accountledger/eventstore"
)

// Hash is the SHA-256 hash of a leaf or of an interior node (RFC 6962, section 2.1).
type Hash = tlog.Hash

// Leaf is the part of an event that the tree commits to: everything except the
// sealed part, of which it holds the hash, so that erasing a sealed part does
// not change the tree. Its encoding, AL1, is big-endian and canonical:
//
//	"AL1\0" | flags u8 (bit 0: sealed) | id[16] | u8len stream | revision u64 | prev[32]
//	| time_us u64 | u8len type | u8len actor | u32len clear
//	| if sealed: key id[32] | sealed hash[32]
//
// A leaf does not contain its position in the log; its index in the tree
// determines it.
type Leaf struct {
	ID       [16]byte
	Stream   string
	Revision eventstore.Revision
	Prev     Hash  // leaf hash of the stream's previous event; zero at revision 0
	Time     int64 // microseconds since 1970 in UTC
	Type     string
	Actor    string
	Clear    []byte

	KeyID      eventstore.KeyID // zero if the event has no sealed part
	SealedHash Hash             // SHA-256 of the sealed part; zero if there is none
}

const (
	leafMagic  = "AL1\x00"
	flagSealed = 1
)

// leafPrefix precedes a leaf's bytes in its hash (RFC 6962, section 2.1), so
// that a leaf cannot have the hash of an interior node.
const leafPrefix = 0

// NewLeaf returns the leaf of rec. prev is the leaf hash of the previous event
// in its stream. sealed is the SHA-256 hash of the sealed part, which rec
// itself may lack after an erasure; NewLeaf ignores sealed if rec has no key ID.
func NewLeaf(rec eventstore.Recorded, prev, sealed Hash) Leaf {
	if rec.KeyID == (eventstore.KeyID{}) {
		sealed = Hash{}
	}
	return Leaf{
		ID: rec.ID, Stream: rec.Stream, Revision: rec.Revision, Prev: prev, Time: rec.Time.UnixMicro(),
		Type: rec.Type, Actor: rec.Actor, Clear: rec.Clear, KeyID: rec.KeyID, SealedHash: sealed,
	}
}

// ErrLeaf is wrapped by every error about bytes that are not an AL1 leaf, or
// about values that AL1 cannot represent.
var ErrLeaf = errors.New("tlog: not an AL1 leaf")

func leafError(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrLeaf, fmt.Sprintf(format, args...))
}

// Encode returns the AL1 encoding of l. It fails with ErrLeaf if AL1 cannot
// represent l, which does not happen for an event that passed
// eventstore.Commit.Check.
func (l *Leaf) Encode() ([]byte, error) {
	return l.appendTo(make([]byte, 0, 256+len(l.Clear)))
}

// appendTo appends the encoding of l to b. If it fails, it leaves b unchanged.
func (l *Leaf) appendTo(b []byte) ([]byte, error) {
	switch {
	case len(l.Stream) > math.MaxUint8 || len(l.Type) > math.MaxUint8 || len(l.Actor) > math.MaxUint8:
		return b, leafError("a name has more than 255 bytes")
	case len(l.Clear) > eventstore.MaxClear:
		return b, leafError("the clear part has more than %d bytes", eventstore.MaxClear)
	case l.Revision < 0 || l.Time < 0:
		return b, leafError("the revision or the time is negative")
	}
	sealed := l.KeyID != eventstore.KeyID{}
	if !sealed && l.SealedHash != (Hash{}) {
		return b, leafError("a sealed hash without a key ID")
	}
	b = append(b, leafMagic...)
	if sealed {
		b = append(b, flagSealed)
	} else {
		b = append(b, 0)
	}
	b = append(b, l.ID[:]...)
	b = append(append(b, byte(len(l.Stream))), l.Stream...)
	b = binary.BigEndian.AppendUint64(b, uint64(l.Revision))
	b = append(b, l.Prev[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(l.Time))
	b = append(append(b, byte(len(l.Type))), l.Type...)
	b = append(append(b, byte(len(l.Actor))), l.Actor...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(l.Clear)))
	b = append(b, l.Clear...)
	if sealed {
		b = append(b, l.KeyID[:]...)
		b = append(b, l.SealedHash[:]...)
	}
	return b, nil
}

// Hash returns the leaf hash, SHA-256(0x00 | encoding) (RFC 6962, section 2.1).
// It fails as Encode does.
func (l *Leaf) Hash() (Hash, error) {
	h, _, err := l.HashIn(make([]byte, 0, 256+len(l.Clear)))
	return h, err
}

// HashIn is like Hash, for a caller that hashes many leaves: it encodes l into
// buf, grows buf if necessary, and returns it for reuse.
func (l *Leaf) HashIn(buf []byte) (Hash, []byte, error) {
	buf, err := l.appendTo(append(buf[:0], leafPrefix))
	if err != nil {
		return Hash{}, buf, err
	}
	return sha256.Sum256(buf), buf, nil
}

// DecodeLeaf is the inverse of Encode. It fails with ErrLeaf for bytes that
// Encode does not produce, so that each leaf has exactly one encoding and each
// hash belongs to exactly one leaf. The returned leaf's Clear aliases b.
func DecodeLeaf(b []byte) (Leaf, error) {
	d := decoder{rest: b}
	magic, flags := string(d.take(len(leafMagic))), d.take(1)
	if d.bad || magic != leafMagic || flags[0]&^flagSealed != 0 {
		return Leaf{}, leafError("the format or a flag is unknown")
	}
	var l Leaf
	copy(l.ID[:], d.take(len(l.ID)))
	l.Stream = d.name()
	l.Revision = eventstore.Revision(d.uint63())
	copy(l.Prev[:], d.take(len(l.Prev)))
	l.Time = d.uint63()
	l.Type = d.name()
	l.Actor = d.name()
	l.Clear = d.clear()
	if flags[0]&flagSealed != 0 {
		copy(l.KeyID[:], d.take(len(l.KeyID)))
		copy(l.SealedHash[:], d.take(len(l.SealedHash)))
		if l.KeyID == (eventstore.KeyID{}) {
			return Leaf{}, leafError("it is sealed, but its key ID is zero")
		}
	}
	switch {
	case d.bad:
		return Leaf{}, leafError("it is truncated, or a field is out of range")
	case len(d.rest) > 0:
		return Leaf{}, leafError("%d bytes follow its end", len(d.rest))
	}
	return l, nil
}

// decoder reads fields from the start of rest. Once a field is missing or out
// of range, it sets bad and returns zero for every later field.
type decoder struct {
	rest []byte
	bad  bool
}

func (d *decoder) take(n int) []byte {
	if d.bad || n > len(d.rest) {
		d.bad = true
		return make([]byte, n)
	}
	field := d.rest[:n:n]
	d.rest = d.rest[n:]
	return field
}

func (d *decoder) name() string {
	n := int(d.take(1)[0])
	return string(d.take(n))
}

func (d *decoder) uint63() int64 {
	v := binary.BigEndian.Uint64(d.take(8))
	if v > math.MaxInt64 {
		d.bad = true
		return 0
	}
	return int64(v)
}

func (d *decoder) clear() []byte {
	n := binary.BigEndian.Uint32(d.take(4))
	if n > eventstore.MaxClear {
		d.bad = true
		return nil
	}
	return d.take(int(n))
}
