package sqlite

import (
	"context"
	"crypto/sha256"
	"database/sql/driver"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"strconv"
	"strings"

	"accountledger/eventstore"
	"accountledger/eventstore/tlog"
)

// This file is about the sealed head: the row that each transaction writes, by
// which the next start recognises its log.

// sealedHead is the row of table head.
type sealedHead struct {
	size    int64
	root    tlog.Hash
	claims  digest
	watched digest
	slot    uint64 // highest slot in a key ID
	rules   int64  // version of the claims, in table meta
	keys    eventstore.KeyState
	server  []byte // position on the server that the log replicates
	mac     [sha256.Size]byte
}

// vouch computes MACs under a key that the store never sees.
type vouch func(message []byte) [32]byte

// seal returns the MAC of h for a ledger.
func (v vouch) seal(ledger string, h sealedHead) [32]byte {
	m := make([]byte, 0, 256)
	m = append(m, "AL1/head\x00"...)
	m = binary.BigEndian.AppendUint16(m, uint16(len(ledger)))
	m = append(m, ledger...)
	m = binary.BigEndian.AppendUint64(m, uint64(h.size))
	m = append(m, h.root[:]...)
	for _, d := range []digest{h.claims, h.watched} {
		sum := d.bytes()
		m = append(m, sum[:]...)
	}
	for _, n := range []uint64{h.slot, uint64(h.rules), uint64(h.keys.Changes), uint64(h.keys.Destroyed)} {
		m = binary.BigEndian.AppendUint64(m, n)
	}
	return v(append(m, h.server...))
}

// claim returns the summand of a claim that is held in the digest of all claims,
// and wait that of a claim that waits.
func (v vouch) claim(kind string, key []byte, owner string) digest {
	return v.claimed("AL1/claim\x00", kind, key, owner)
}

func (v vouch) wait(kind string, key []byte, owner string) digest {
	return v.claimed("AL1/waiting\x00", kind, key, owner)
}

func (v vouch) claimed(label, kind string, key []byte, owner string) digest {
	m := make([]byte, 0, 256)
	m = append(m, label...)
	for _, part := range []string{kind, string(key), owner} {
		m = binary.BigEndian.AppendUint16(m, uint16(len(part)))
		m = append(m, part...)
	}
	return digestOf(v(m))
}

// streamEnd returns the summand of a watched stream in the digest of all of them.
func (v vouch) streamEnd(name string, h head) digest {
	m := make([]byte, 0, 256)
	m = append(m, "AL1/stream\x00"...)
	m = binary.BigEndian.AppendUint16(m, uint16(len(name)))
	m = append(m, name...)
	m = binary.BigEndian.AppendUint64(m, uint64(h.revision))
	m = append(m, h.leaf[:]...)
	return digestOf(v(m))
}

// digest is a sum modulo 2^256, with the least significant word first. A sum of
// keyed hashes commits to a set and can be updated when a member comes or goes.
type digest [4]uint64

func digestOf(b [32]byte) (d digest) {
	for i := range d {
		d[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
	return d
}

func (d digest) bytes() (b [32]byte) {
	for i, word := range d {
		binary.LittleEndian.PutUint64(b[8*i:], word)
	}
	return b
}

func (d digest) plus(e digest) digest {
	var carry uint64
	for i := range d {
		d[i], carry = bits.Add64(d[i], e[i], carry)
	}
	return d
}

func (d digest) minus(e digest) digest {
	var borrow uint64
	for i := range d {
		d[i], borrow = bits.Sub64(d[i], e[i], borrow)
	}
	return d
}

const selectHead = `SELECT size, root, claims, watched, (SELECT claims_version FROM meta), slot, changes, destroyed, server, mac FROM head`

// readHead reads the sealed head. It returns an error if there is none or if
// its MAC is not that of this ledger.
func readHead(c *conn, ledger string, v vouch) (h sealedHead, err error) {
	s, err := c.prepare(selectHead)
	if err != nil {
		return h, err
	}
	defer s.close()
	row := make([]driver.Value, 10)
	found, err := s.row(row)
	if err != nil {
		return h, err
	}
	f := fields{row: row}
	if found {
		h.size, h.root = f.int(), f.hash()
		h.claims, h.watched = digestOf(f.hash()), digestOf(f.hash())
		h.rules, h.slot = f.int(), uint64(f.int())
		h.keys = eventstore.KeyState{Slot: h.slot, Changes: f.int(), Destroyed: f.int()}
		h.server, h.mac = f.blob(), f.hash()
	}
	if !found || f.bad || h.mac != v.seal(ledger, h) {
		return h, tampered("its sealed head is not one that this ledger wrote")
	}
	return h, nil
}

func tampered(format string, args ...any) error {
	return fmt.Errorf("%w: %s", eventstore.ErrTampered, fmt.Sprintf(format, args...))
}

// compare returns an error unless the file has the events that h seals. It reads
// a few tiles, not the events: Prove and Verify read those.
func (h sealedHead) compare(size int64, tree *tlog.Tree) error {
	switch {
	case size > h.size:
		return tampered("it has %d events, but its sealed head says %d: events were added after %d", size, h.size, h.size)
	case size < h.size:
		return tampered("it has %d events, but its sealed head says %d: events were removed", size, h.size)
	case tree.Root() != h.root:
		return tampered("its %d events do not have the root that its sealed head says", size)
	}
	return nil
}

// sumClaims returns the digest of the claims in tables of the file.
func sumClaims(c *conn, v vouch, tables ...string) (sum digest, err error) {
	for _, table := range tables {
		s, err := c.prepare(`SELECT c.kind, c.key, s.name FROM ` + table + ` c LEFT JOIN streams s ON s.num = c.stream`)
		if err != nil {
			return sum, err
		}
		err = s.each(3, func(f *fields) error {
			kind, key, owner := f.text(), f.blob(), f.text()
			if f.bad {
				return corrupt("a claim cannot be read")
			}
			if table == "waiting" {
				sum = sum.plus(v.wait(kind, key, owner))
			} else {
				sum = sum.plus(v.claim(kind, key, owner))
			}
			return nil
		})
		s.close()
		if err != nil {
			return sum, err
		}
	}
	return sum, nil
}

// sumWatched returns the digest of the last events of the watched streams in the
// file: those with one of the names, or whose names begin with one that ends in
// a hyphen.
func sumWatched(c *conn, v vouch, names []string) (sum digest, err error) {
	s, err := c.prepare(`SELECT s.name, e.revision, e.leaf_hash FROM streams s JOIN events e ON e.stream = s.num
		WHERE s.name >= ?1 AND s.name < ?2 AND e.revision = (SELECT max(revision) FROM events WHERE stream = s.num)`)
	if err != nil {
		return sum, err
	}
	defer s.close()
	for _, name := range names {
		end := name + "\x00"
		if prefix, ok := strings.CutSuffix(name, "-"); ok {
			end = prefix + "." // the character after the hyphen
		}
		err := s.each(3, func(f *fields) error {
			stream := f.text()
			h := head{revision: eventstore.Revision(f.int()), leaf: f.hash()}
			if f.bad {
				return corrupt("the last event of a stream cannot be read")
			}
			sum = sum.plus(v.streamEnd(stream, h))
			return nil
		}, name, end)
		if err != nil {
			return sum, err
		}
	}
	return sum, nil
}

// watches reports whether a stream is one of those that names stand for.
func watches(names []string, stream string) bool {
	for _, name := range names {
		if stream == name || strings.HasSuffix(name, "-") && strings.HasPrefix(stream, name) {
			return true
		}
	}
	return false
}

// parseCheckpoint reads the size and root of a signed checkpoint. The caller has
// checked its signature.
func parseCheckpoint(note []byte) (tlog.Checkpoint, error) {
	lines := strings.SplitN(string(note), "\n", 4)
	bad := errors.New("the last signed checkpoint cannot be read")
	if len(lines) < 4 {
		return tlog.Checkpoint{}, bad
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	root, rootErr := base64.StdEncoding.DecodeString(lines[2])
	if err != nil || rootErr != nil || size < 0 || len(root) != len(tlog.Hash{}) {
		return tlog.Checkpoint{}, bad
	}
	return tlog.Checkpoint{Origin: lines[0], Size: size, Root: tlog.Hash(root)}, nil
}

// CheckSealed compares the file with its sealed head, at one moment: the number of
// events, the root, and the claims. It fails with ErrTampered if they differ. It
// does not read the events; Verify and Prove do. If keys is not nil, CheckSealed
// also fails with *KeysBehind if the key file is behind the log. A log of version 1
// has no sealed head: CheckSealed then fails with errors.ErrUnsupported.
func (r *Reader) CheckSealed(ctx context.Context, v func(message []byte) [32]byte, keys func() (eventstore.KeyState, error)) error {
	if version, err := identify(r.path); err != nil || version == 1 {
		return errors.Join(err, errors.ErrUnsupported)
	}
	err := r.use(ctx, func(*readConn) error { // occupies one of the concurrent reads
		c, err := dial(r.path, readOnly)
		if err != nil {
			return err
		}
		defer c.close()
		if err := c.exec(ctx, "BEGIN"); err != nil {
			return err
		}
		ledger, err := c.scalar(`SELECT ledger FROM meta`)
		if err != nil {
			return err
		}
		w := &writer{db: c, vouch: v}
		if w.ledger, _ = ledger.(string); w.ledger == "" {
			return tampered("it names no ledger")
		}
		if err := w.load(); err != nil {
			return err
		}
		sum, err := sumClaims(c, v, "claims", "waiting")
		if err == nil && sum != w.state.claims {
			err = ErrClaims
		}
		if err != nil || keys == nil {
			return err
		}
		now, err := keys() // after the head, which it must not be behind
		if err == nil {
			err = w.fits(Config{Keys: func() eventstore.KeyState { return now }})
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("sqlite: check sealed head: %w", err)
	}
	return nil
}

// ErrClaims is the ErrTampered of claims that are not those that the log sealed.
var ErrClaims = tampered("the claims on identifiers are not those that its sealed head says")

// CheckClaims compares the claims with the sealed head, and forbids further
// appends if they differ.
func (s *Store) CheckClaims(ctx context.Context) error {
	return s.writer.suspect(s.files.CheckSealed(ctx, s.writer.vouch, nil))
}
