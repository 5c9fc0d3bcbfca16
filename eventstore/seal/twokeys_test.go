package seal

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"testing"

	"accountledger/eventstore"
)

// TestTwoKeyCiphertext checks that the key ID commits to the key. AES-GCM does
// not: a ciphertext can be constructed that opens under two keys. Without the
// commitment in the event, an operator could show two auditors different
// plaintexts of the same event.
func TestTwoKeyCiphertext(t *testing.T) {
	t.Parallel()
	const slot = 1
	a, err := derive(slot, randomKey())
	if err != nil {
		t.Fatal(err)
	}
	b, err := derive(slot, randomKey())
	if err != nil {
		t.Fatal(err)
	}
	sealed := twoKeyCiphertext(t, a.enc, b.enc, testContext.aad())
	var contents [][]byte
	for _, key := range []dataKey{a, b} {
		aead, err := newAEAD(key.enc)
		if err != nil {
			t.Fatal(err)
		}
		content, err := aead.Open(nil, nil, sealed, testContext.aad())
		if err != nil {
			t.Fatalf("the constructed ciphertext does not open under one of the keys: %v", err)
		}
		contents = append(contents, content)
	}
	if bytes.Equal(contents[0], contents[1]) {
		t.Error("both keys decrypt to the same plaintext")
	}
	if a.id == b.id {
		t.Fatal("two keys have the same ID")
	}

	// The event commits to key a, but the file's row holds key b.
	k := newKeys(t)
	dek := randomKey()
	if b, err = derive(slot, dek); err != nil {
		t.Fatal(err)
	}
	sealed = twoKeyCiphertext(t, a.enc, b.enc, testContext.aad())
	if _, err := k.write.Exec(`INSERT INTO keys (slot, epoch, wrapped) VALUES (?, 1, ?)`, slot, k.wrap.wrap(keyAAD(slot, 1), dek)); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Open(b.id, testContext, sealed); err != nil {
		t.Fatalf("Open with the ID of the key in the row = %v", err)
	}
	_, err = k.Open(a.id, testContext, sealed)
	wantErr(t, "Open with the ID of the other key", err, ErrKey)
	_, err = k.Open(eventstore.KeyID{7: slot}, testContext, sealed)
	wantErr(t, "Open with an ID that contains only the slot", err, ErrKey)
}

// twoKeyCiphertext returns nonce || ciphertext || tag that opens under both
// keys. The tag is GHASH(aad, ciphertext) + E(counter block), and GHASH is a
// polynomial in the hash key H (NIST SP 800-38D, section 6.4). For two hash
// keys, the tags are equal for exactly one value of the last ciphertext block,
// the solution of a linear equation in GF(2^128).
func twoKeyCiphertext(t *testing.T, one, two, aad []byte) []byte {
	t.Helper()
	nonce := make([]byte, 12)
	const size = 48 // of the ciphertext: two arbitrary blocks and the solved one
	text := append(bytes.Repeat([]byte{0xa5}, 32), make([]byte, 16)...)

	var tags, squares [2]block
	for i, key := range [][]byte{one, two} {
		c, err := aes.NewCipher(key)
		if err != nil {
			t.Fatal(err)
		}
		h, mask := encrypt(c, make([]byte, 16)), encrypt(c, append(bytes.Clone(nonce), 0, 0, 0, 1))
		var y block
		for _, part := range [][]byte{aad, text} {
			for len(part) > 0 {
				var in [16]byte
				part = part[copy(in[:], part):]
				y = y.plus(load(in[:])).times(h)
			}
		}
		y = y.plus(block{uint64(len(aad)) * 8, size * 8}).times(h)
		tags[i], squares[i] = y.plus(mask), h.times(h)
	}
	last := tags[0].plus(tags[1]).times(squares[0].plus(squares[1]).inverse())
	last.store(text[32:])
	// Compared with a last block of zeros, it adds last * H^2 to the tag.
	tag := tags[0].plus(last.times(squares[0]))
	sealed := append(nonce, text...)
	return append(sealed, tag.bytes()...)
}

// block is an element of GF(2^128) in GCM's bit order: the first bit is the
// coefficient of x^0.
type block struct{ hi, lo uint64 }

func load(b []byte) block {
	return block{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])}
}

func (b block) store(to []byte) {
	binary.BigEndian.PutUint64(to, b.hi)
	binary.BigEndian.PutUint64(to[8:], b.lo)
}

func (b block) bytes() []byte {
	to := make([]byte, 16)
	b.store(to)
	return to
}

func encrypt(c cipher.Block, in []byte) block {
	out := make([]byte, 16)
	c.Encrypt(out, in)
	return load(out)
}

func (b block) plus(o block) block { return block{b.hi ^ o.hi, b.lo ^ o.lo} }

// times multiplies in GF(2^128) (NIST SP 800-38D, section 6.3).
func (b block) times(o block) (product block) {
	for i := range 128 {
		bit := b.hi >> (63 - i%64) & 1
		if i >= 64 {
			bit = b.lo >> (63 - i%64) & 1
		}
		if bit == 1 {
			product = product.plus(o)
		}
		carry := o.lo & 1
		o.lo = o.lo>>1 | o.hi<<63
		o.hi >>= 1
		if carry == 1 {
			o.hi ^= 0xe1 << 56
		}
	}
	return product
}

// inverse returns b^(2^128-2), by Fermat's little theorem.
func (b block) inverse() block {
	result := block{hi: 1 << 63} // one
	for range 127 {
		b = b.times(b)
		result = result.times(b)
	}
	return result
}
