package tlog

import (
	"crypto/sha256"
	"fmt"
	"math/bits"

	"golang.org/x/mod/sumdb/tlog"
)

// The size of tiles (C2SP tlog-tiles): a full tile holds 256 hashes.
const (
	TileHeight = 8
	TileWidth  = 1 << TileHeight
)

// Tile holds up to TileWidth consecutive hashes of one level: leaf hashes at
// level 0, and at level L the hashes of complete subtrees of TileWidth^L
// leaves. Its first hash has index N*TileWidth in its level.
type Tile struct {
	Level int
	N     int64
	Data  []byte // the hashes, 32 bytes each
}

// Tree is the right edge of a Merkle tree (RFC 6962, section 2.1): the hashes
// in its incomplete tiles, and the roots of its largest complete subtrees. They
// suffice to extend the tree and to compute its root in a few hashes. It uses at
// most 8 KiB per level, and one level per factor of 256 in size. The zero Tree is
// empty.
type Tree struct {
	size  int64
	edge  [][]Hash // by level; each shorter than TileWidth
	peaks []Hash   // roots of complete subtrees, one for each bit of size, largest first
}

// Size returns the number of leaves.
func (t *Tree) Size() int64 { return t.size }

// Set makes t a copy of u that shares no memory with it. Set reuses t's memory.
func (t *Tree) Set(u *Tree) {
	t.size = u.size
	t.peaks = append(t.peaks[:0], u.peaks...)
	for len(t.edge) < len(u.edge) {
		t.edge = append(t.edge, make([]Hash, 0, TileWidth))
	}
	t.edge = t.edge[:len(u.edge)]
	for l, hashes := range u.edge {
		t.edge[l] = append(t.edge[l][:0], hashes...)
	}
}

// Push appends a leaf. If the leaf completes a level-0 tile, Push returns the
// tiles to store: the completed tile, which never changes again, and each
// higher tile that gained a hash, which replaces the stored, narrower tile of
// the same level and number.
func (t *Tree) Push(leaf Hash) []Tile {
	var changed []Tile
	ends := bits.TrailingZeros64(^uint64(t.size)) // how many complete subtrees the leaf completes
	t.size++
	h := leaf
	for k := 0; ; k++ { // h is the root of the last 2^k leaves
		if k%TileHeight == 0 {
			if tile, store := t.extend(k/TileHeight, h); store {
				changed = append(changed, tile)
			}
		}
		if k == ends {
			break
		}
		left := len(t.peaks) - 1
		h = node(t.peaks[left], h)
		t.peaks = t.peaks[:left]
	}
	t.peaks = append(t.peaks, h)
	return changed
}

// extend appends a hash to the incomplete tile of a level. It returns the tile,
// and whether it must be stored.
func (t *Tree) extend(level int, h Hash) (tile Tile, store bool) {
	if level == len(t.edge) {
		t.edge = append(t.edge, make([]Hash, 0, TileWidth))
	}
	hashes := append(t.edge[level], h)
	full := len(hashes) == TileWidth
	if store = level > 0 || full; store {
		tile = Tile{Level: level, N: (t.size>>(TileHeight*level) - 1) >> TileHeight, Data: flatten(hashes)}
	}
	if full {
		hashes = hashes[:0]
	}
	t.edge[level] = hashes
	return tile, store
}

// Root returns the root hash (RFC 6962, section 2.1). The root of the empty
// tree is the SHA-256 hash of the empty string.
func (t *Tree) Root() Hash {
	if t.size == 0 {
		return sha256.Sum256(nil)
	}
	// From right to left, the root so far is the right child at each step.
	root := t.peaks[len(t.peaks)-1]
	for i := len(t.peaks) - 2; i >= 0; i-- {
		root = node(t.peaks[i], root)
	}
	return root
}

// Hash returns the hash with index n of a level if it is in the level's
// incomplete tile. All others are in full tiles, which Push has returned.
func (t *Tree) Hash(level int, n int64) (h Hash, ok bool) {
	if level >= len(t.edge) {
		return h, false
	}
	i := n - t.size>>(TileHeight*(level+1))<<TileHeight
	if i < 0 || i >= int64(len(t.edge[level])) {
		return h, false
	}
	return t.edge[level][i], true
}

// Edge returns the tiles that are incomplete at t's size, which are those that
// Restore reads.
func (t *Tree) Edge() []Tile {
	var tiles []Tile
	for l, hashes := range t.edge {
		if len(hashes) > 0 {
			tiles = append(tiles, Tile{Level: l, N: t.size >> (TileHeight * (l + 1)), Data: flatten(hashes)})
		}
	}
	return tiles
}

// Restore rebuilds the tree of the given size from the tiles that Push
// returned. It calls read once for each incomplete tile; read must return at
// least the first width hashes of that tile. Incomplete level-0 tiles are not
// stored, so for level 0 read must return the leaf hashes.
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
				return nil, fmt.Errorf("tlog: tile %d/%d has %d bytes, too few for %d hashes", l, n, len(data), width)
			}
			for ; len(hashes) < width; data = data[tlog.HashSize:] {
				hashes = append(hashes, Hash(data[:tlog.HashSize]))
			}
		}
		t.edge = append(t.edge, hashes)
	}
	for l := len(t.edge) - 1; l >= 0; l-- {
		for rest := t.edge[l]; len(rest) > 0; {
			width := 1 << (bits.Len(uint(len(rest))) - 1)
			t.peaks = append(t.peaks, subtree(rest[:width]))
			rest = rest[width:]
		}
	}
	return t, nil
}

// Subtree returns the root of the complete subtree over a full tile's hashes,
// which is the hash that the level above holds for the tile. It fails if data
// is not a full tile.
func Subtree(data []byte) (Hash, error) {
	if len(data) != TileWidth*tlog.HashSize {
		return Hash{}, fmt.Errorf("tlog: a full tile must have %d bytes, not %d", TileWidth*tlog.HashSize, len(data))
	}
	var hashes [TileWidth]Hash
	for i := range hashes {
		hashes[i] = Hash(data[i*tlog.HashSize:][:tlog.HashSize])
	}
	return subtree(hashes[:]), nil
}

// subtree returns the root over hashes, whose number must be a power of two.
func subtree(hashes []Hash) Hash {
	if len(hashes) == 1 {
		return hashes[0]
	}
	half := len(hashes) / 2
	return node(subtree(hashes[:half]), subtree(hashes[half:]))
}

// node computes tlog.NodeHash (RFC 6962, section 2.1) without allocating.
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
