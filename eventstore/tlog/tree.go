package tlog

import (
	"crypto/sha256"
	"fmt"
	"math/bits"

	"golang.org/x/mod/sumdb/tlog"
)

// The shape of tiles, C2SP tlog-tiles: a full tile holds 256 hashes.
const (
	TileHeight = 8
	TileWidth  = 1 << TileHeight
)

// Tile is a run of up to TileWidth hashes of one level: at level 0 of leaves,
// at level L of the complete subtrees of TileWidth^L leaves. Its first hash is
// number N*TileWidth of its level.
type Tile struct {
	Level int
	N     int64
	Data  []byte // the hashes, 32 bytes each
}

// Tree is the right edge of a Merkle tree (RFC 6962 2.1): the hashes of its
// incomplete tiles, which is all that is needed to extend it and to know its
// root. It holds at most 8 KiB a level, and one level for every factor 256 in
// size. The zero Tree is empty.
type Tree struct {
	size int64
	edge [][]Hash // by level; each shorter than TileWidth
}

// Size is the number of leaves.
func (t *Tree) Size() int64 { return t.size }

// Set makes t equal to u and shares no memory with it. It reuses t's.
func (t *Tree) Set(u *Tree) {
	t.size = u.size
	for len(t.edge) < len(u.edge) {
		t.edge = append(t.edge, make([]Hash, 0, TileWidth))
	}
	t.edge = t.edge[:len(u.edge)]
	for l, hashes := range u.edge {
		t.edge[l] = append(t.edge[l][:0], hashes...)
	}
}

// Clone returns a tree equal to t that shares no memory with it.
func (t *Tree) Clone() *Tree {
	c := new(Tree)
	c.Set(t)
	return c
}

// Push adds a leaf. Where it completes a tile of level 0, which is every
// TileWidth leaves, it returns the tiles to store: that one, never to change
// again, and the tile of each level above that grew by it, which replaces the
// narrower one stored before under the same level and number.
func (t *Tree) Push(leaf Hash) []Tile {
	t.size++
	var changed []Tile
	for l, h := 0, leaf; ; l++ {
		if l == len(t.edge) {
			t.edge = append(t.edge, make([]Hash, 0, TileWidth))
		}
		t.edge[l] = append(t.edge[l], h)
		full := len(t.edge[l]) == TileWidth
		if l > 0 || full {
			n := (t.size>>(TileHeight*l) - 1) >> TileHeight
			changed = append(changed, Tile{Level: l, N: n, Data: flatten(t.edge[l])})
		}
		if !full {
			return changed
		}
		h = subtree(t.edge[l])
		t.edge[l] = t.edge[l][:0]
	}
}

// Root returns the tree's root hash; that of the empty tree is SHA-256 of
// nothing.
func (t *Tree) Root() Hash {
	if t.size == 0 {
		return sha256.Sum256(nil)
	}
	// From right to left, small subtrees to large: each is the right
	// neighbour of all that is still to come.
	var root Hash
	empty := true
	for _, hashes := range t.edge {
		for rest := hashes; len(rest) > 0; {
			w := 1 << bits.TrailingZeros(uint(len(rest)))
			left := subtree(rest[len(rest)-w:])
			if rest = rest[:len(rest)-w]; empty {
				root, empty = left, false
			} else {
				root = node(left, root)
			}
		}
	}
	return root
}

// Edge returns the tiles Restore asks for: those incomplete at t's size.
func (t *Tree) Edge() []Tile {
	var tiles []Tile
	for l, hashes := range t.edge {
		if len(hashes) > 0 {
			tiles = append(tiles, Tile{Level: l, N: t.size >> (TileHeight * (l + 1)), Data: flatten(hashes)})
		}
	}
	return tiles
}

// Restore returns the tree of the given size out of what Push gave to store.
// For each incomplete tile it asks read for at least the width hashes it
// needs; the tile of level 0 is not stored and must be made of leaf hashes.
func Restore(size int64, read func(level int, n int64, width int) ([]byte, error)) (*Tree, error) {
	t := &Tree{size: size}
	for l := 0; size>>(TileHeight*l) > 0; l++ {
		count := size >> (TileHeight * l)
		hashes := make([]Hash, 0, TileWidth)
		if width := int(count % TileWidth); width > 0 {
			n := count / TileWidth
			data, err := read(l, n, width)
			if err != nil {
				return nil, fmt.Errorf("tlog: read tile %d/%d: %w", l, n, err)
			}
			if len(data) < width*tlog.HashSize {
				return nil, fmt.Errorf("tlog: tile %d/%d has %d bytes, fewer than %d hashes", l, n, len(data), width)
			}
			for ; len(hashes) < width; data = data[tlog.HashSize:] {
				hashes = append(hashes, Hash(data[:tlog.HashSize]))
			}
		}
		t.edge = append(t.edge, hashes)
	}
	return t, nil
}

// Subtree returns the hash of the complete subtree over the hashes in a full
// tile's data: the hash the level above holds for it.
func Subtree(data []byte) (Hash, error) {
	if len(data) != TileWidth*tlog.HashSize {
		return Hash{}, fmt.Errorf("tlog: a full tile has %d bytes, not %d", TileWidth*tlog.HashSize, len(data))
	}
	var hashes [TileWidth]Hash
	for i := range hashes {
		hashes[i] = Hash(data[i*tlog.HashSize:][:tlog.HashSize])
	}
	return subtree(hashes[:]), nil
}

// subtree is the hash over a number of hashes that is a power of two.
func subtree(hashes []Hash) Hash {
	if len(hashes) == 1 {
		return hashes[0]
	}
	half := len(hashes) / 2
	return node(subtree(hashes[:half]), subtree(hashes[half:]))
}

// node is tlog.NodeHash (RFC 6962 2.1) without its allocations.
func node(left, right Hash) Hash {
	var b [1 + 2*tlog.HashSize]byte
	b[0] = 1
	copy(b[1:], left[:])
	copy(b[1+tlog.HashSize:], right[:])
	return sha256.Sum256(b[:])
}

func flatten(hashes []Hash) []byte {
	data := make([]byte, 0, len(hashes)*tlog.HashSize)
	for i := range hashes {
		data = append(data, hashes[i][:]...)
	}
	return data
}
