// Package tlog makes a log provable: it defines the bytes of an event that are
// hashed (the leaf, format AL1), the Merkle tree over the leaves of a whole
// log, and the signed checkpoints that pin the tree.
//
// Tree and proofs are those of RFC 6962, tiles those of C2SP tlog-tiles
// (height 8), checkpoints those of C2SP tlog-checkpoint in a C2SP signed note.
// The leaf at index i of the tree is the event at position i+1 of the log.
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

// Hash is a SHA-256 hash of a leaf or of a node of the tree.
type Hash = tlog.Hash

// Leaf is what the tree commits to of one event: everything but the bytes of
// its sealed part, which are bound by their hash and can therefore be erased
// without touching the tree. Its encoding, AL1, is big-endian and has exactly
// one form:
//
//	"AL1\0" | flags u8 (bit 0: sealed) | id[16] | u8len stream | revision u64 | prev[32]
//	| time_us u64 | u8len type | u8len actor | u32len clear
//	| if sealed: key id[32] | sealed hash[32]
//
// The position in the log is not in the leaf: its place in the tree is.
type Leaf struct {
	ID       [16]byte
	Stream   string
	Revision eventstore.Revision
	Prev     Hash  // leaf hash of the stream's previous event; zero at revision 0
	Time     int64 // microseconds since 1970, UTC
	Type     string
	Actor    string
	Clear    []byte

	KeyID      eventstore.KeyID // zero where the event has no sealed part
	SealedHash Hash             // SHA-256 of the sealed part; zero where there is none
}

const (
	leafMagic  = "AL1\x00"
	flagSealed = 1
)

// leafPrefix is what RFC 6962 puts before a leaf's bytes, so that no leaf can
// pass for a node.
const leafPrefix = 0

// NewLeaf returns the leaf of an event that follows the event with leaf hash
// prev in its stream. sealed is the SHA-256 of the sealed part, which rec need
// not hold any more; it is ignored for an event without one.
func NewLeaf(rec eventstore.Recorded, prev, sealed Hash) Leaf {
	if rec.KeyID == (eventstore.KeyID{}) {
		sealed = Hash{}
	}
	return Leaf{
		ID: rec.ID, Stream: rec.Stream, Revision: rec.Revision, Prev: prev, Time: rec.Time.UnixMicro(),
		Type: rec.Type, Actor: rec.Actor, Clear: rec.Clear, KeyID: rec.KeyID, SealedHash: sealed,
	}
}

// ErrLeaf is in the chain of every error about bytes that are not an AL1 leaf
// and about values that AL1 cannot hold.
var ErrLeaf = errors.New("tlog: not an AL1 leaf")

func leafError(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrLeaf, fmt.Sprintf(format, args...))
}

// Encode returns the leaf's bytes.
func (l *Leaf) Encode() ([]byte, error) {
	return l.AppendTo(make([]byte, 0, 256+len(l.Clear)))
}

// AppendTo appends the leaf's bytes to b. It fails, without a change to b,
// where AL1 cannot hold the leaf; that is no leaf of an event that passed
// eventstore.Commit.Check.
func (l *Leaf) AppendTo(b []byte) ([]byte, error) {
	switch {
	case len(l.Stream) > math.MaxUint8 || len(l.Type) > math.MaxUint8 || len(l.Actor) > math.MaxUint8:
		return b, leafError("a name has more than 255 bytes")
	case len(l.Clear) > eventstore.MaxClear:
		return b, leafError("the clear part has more than %d bytes", eventstore.MaxClear)
	case l.Revision < 0 || l.Time < 0:
		return b, leafError("a negative revision or time")
	}
	sealed := l.KeyID != eventstore.KeyID{}
	if !sealed && l.SealedHash != (Hash{}) {
		return b, leafError("a hash of a sealed part without a key")
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

// Hash returns the leaf's hash: SHA-256(0x00 | encoding), RFC 6962 2.1.
func (l *Leaf) Hash() (Hash, error) {
	h, _, err := l.HashIn(make([]byte, 0, 256+len(l.Clear)))
	return h, err
}

// HashIn is Hash for whoever hashes many leaves: it encodes into buf, grows it
// where it must, and returns it to be used again.
func (l *Leaf) HashIn(buf []byte) (Hash, []byte, error) {
	buf, err := l.AppendTo(append(buf[:0], leafPrefix))
	if err != nil {
		return Hash{}, buf, err
	}
	return sha256.Sum256(buf), buf, nil
}

// DecodeLeaf is the inverse of Encode. It accepts nothing that Encode does not
// produce, so that a leaf has one encoding and a hash one leaf. The leaf's
// clear part is b's memory.
func DecodeLeaf(b []byte) (Leaf, error) {
	d := decoder{rest: b}
	magic, flags := string(d.take(len(leafMagic))), d.take(1)
	if d.short || magic != leafMagic || flags[0]&^flagSealed != 0 {
		return Leaf{}, leafError("unknown format or flags")
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
			return Leaf{}, leafError("sealed under no key")
		}
	}
	switch {
	case d.short:
		return Leaf{}, leafError("cut short or out of range")
	case len(d.rest) > 0:
		return Leaf{}, leafError("%d bytes after its end", len(d.rest))
	}
	return l, nil
}

// A decoder cuts fields off rest. Once one is missing or out of range it is
// short, and every later field is zero.
type decoder struct {
	rest  []byte
	short bool
}

func (d *decoder) take(n int) []byte {
	if d.short || n > len(d.rest) {
		d.short = true
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
		d.short = true
		return 0
	}
	return int64(v)
}

func (d *decoder) clear() []byte {
	n := binary.BigEndian.Uint32(d.take(4))
	if n > eventstore.MaxClear {
		d.short = true
		return nil
	}
	return d.take(int(n))
}
