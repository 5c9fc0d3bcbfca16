package tlog_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"testing"

	sumdb "golang.org/x/mod/sumdb/tlog"

	"accountledger/eventstore/tlog"
)

func leaf(i int64) tlog.Hash {
	return sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(i)))
}

// reference is the tree as golang.org/x/mod stores it: all hashes.
type reference []sumdb.Hash

func (r *reference) ReadHashes(indexes []int64) ([]sumdb.Hash, error) {
	hashes := make([]sumdb.Hash, len(indexes))
	for i, x := range indexes {
		hashes[i] = (*r)[x]
	}
	return hashes, nil
}

func (r *reference) push(t *testing.T, n int64) {
	hashes, err := sumdb.StoredHashesForRecordHash(n, leaf(n), r)
	if err != nil {
		t.Fatal(err)
	}
	*r = append(*r, hashes...)
}

type coordinates struct {
	level int
	n     int64
}

// store keeps tiles as the log does.
type store map[coordinates][]byte

func (s store) put(t *testing.T, tiles []tlog.Tile) {
	for _, tile := range tiles {
		at := coordinates{tile.Level, tile.N}
		if old := s[at]; tile.Level == 0 && old != nil {
			t.Fatalf("tile 0/%d is stored twice", tile.N)
		} else if len(old) >= len(tile.Data) {
			t.Fatalf("tile %d/%d shrinks from %d to %d bytes", tile.Level, tile.N, len(old), len(tile.Data))
		}
		s[at] = tile.Data
	}
}

// restore is a reopened log: tiles from the store, and the last few leaves
// from the events.
func (s store) restore(size int64) (*tlog.Tree, error) {
	return tlog.Restore(size, func(level int, n int64, width int) ([]byte, error) {
		if level > 0 {
			return s[coordinates{level, n}], nil
		}
		var data []byte
		for i := range int64(width) {
			h := leaf(n*tlog.TileWidth + i)
			data = append(data, h[:]...)
		}
		return data, nil
	})
}

// Row 1 of the proof tests: at every size the root is x/mod's, and the tree
// restored from what was stored is the tree.
func TestTreeEqualsReference(t *testing.T) {
	t.Parallel()
	var tree tlog.Tree
	var ref reference
	tiles := store{}
	for n := range int64(1501) {
		if tree.Size() != n {
			t.Fatalf("Size = %d, want %d", tree.Size(), n)
		}
		want, err := sumdb.TreeHash(n, &ref)
		if err != nil {
			t.Fatal(err)
		}
		if got := tree.Root(); got != want {
			t.Fatalf("root at size %d = %v, want %v", n, got, want)
		}
		restored, err := tiles.restore(n)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(tree.Edge(), restored.Edge()) || restored.Root() != want {
			t.Fatalf("restored at size %d it is another tree", n)
		}
		ref.push(t, n)
		tiles.put(t, tree.Push(leaf(n)))
	}
}

// Every tile that x/mod says belongs to the tree is stored, with its hashes,
// across the sizes where levels two and three begin.
func TestTreeTiles(t *testing.T) {
	t.Parallel()
	const size = 1<<16 + 1<<9 + 3
	var tree tlog.Tree
	var ref reference
	tiles := store{}
	for n := range int64(size) {
		ref.push(t, n)
		tiles.put(t, tree.Push(leaf(n)))
		switch n + 1 {
		case 1<<16 - 1, 1 << 16, 1<<16 + 1, 1<<16 + 256:
			restored, err := tiles.restore(n + 1)
			if err != nil {
				t.Fatal(err)
			}
			if restored.Root() != tree.Root() {
				t.Fatalf("restored at size %d has another root", n+1)
			}
		}
	}
	want, err := sumdb.TreeHash(size, &ref)
	if err != nil {
		t.Fatal(err)
	}
	if tree.Root() != want {
		t.Fatalf("root = %v, want %v", tree.Root(), want)
	}
	// NewTiles lists each level's last tile with its final width.
	for _, tile := range sumdb.NewTiles(tlog.TileHeight, 0, size) {
		if tile.L == 0 && tile.W < tlog.TileWidth {
			continue // the last leaves: they are rows, not a tile
		}
		want, err := sumdb.ReadTileData(tile, &ref)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(tiles[coordinates{tile.L, tile.N}], want) {
			t.Fatalf("tile %s differs", tile.Path())
		}
	}
}

func TestTreeSet(t *testing.T) {
	t.Parallel()
	var tree tlog.Tree
	for n := range int64(300) {
		tree.Push(leaf(n))
	}
	root := tree.Root()
	clone := tree.Clone()
	for n := range int64(600) {
		clone.Push(leaf(n + 7))
	}
	if tree.Root() != root || tree.Size() != 300 {
		t.Fatal("pushing to a clone changed the tree")
	}
	// Back from the longer to the shorter tree, as after a failed commit.
	clone.Set(&tree)
	clone.Push(leaf(300))
	tree.Push(leaf(300))
	if clone.Root() != tree.Root() {
		t.Fatal("a tree set to another does not grow as it does")
	}
}

func TestRestoreRefuses(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	if _, err := tlog.Restore(3, func(int, int64, int) ([]byte, error) { return nil, broken }); !errors.Is(err, broken) {
		t.Errorf("Restore = %v, want the reader's error", err)
	}
	if _, err := tlog.Restore(3, func(int, int64, int) ([]byte, error) { return make([]byte, 95), nil }); err == nil {
		t.Error("Restore took a tile that is too short")
	}
}

func TestSubtree(t *testing.T) {
	t.Parallel()
	var tree tlog.Tree
	var data []byte
	for n := range int64(256) {
		h := leaf(n)
		data = append(data, h[:]...)
		tree.Push(h)
	}
	got, err := tlog.Subtree(data)
	if err != nil || got != tree.Root() {
		t.Errorf("Subtree = %v, %v, want the root %v", got, err, tree.Root())
	}
	if _, err := tlog.Subtree(data[1:]); err == nil {
		t.Error("Subtree took a tile that is not full")
	}
}

func BenchmarkTreePush(b *testing.B) {
	for _, name := range []string{"push", "set"} {
		b.Run(name, func(b *testing.B) {
			tree, spare := new(tlog.Tree), new(tlog.Tree)
			for n := range int64(70001) {
				tree.Push(leaf(n))
			}
			b.ReportAllocs()
			for b.Loop() {
				if name == "set" {
					spare.Set(tree)
				} else {
					tree.Push(tlog.Hash{1})
				}
			}
		})
	}
}

func ExampleTree() {
	var tree tlog.Tree
	for _, record := range []string{"a", "b", "c"} {
		tree.Push(sumdb.RecordHash([]byte(record)))
	}
	fmt.Println(tree.Size(), tree.Root())
	// Output: 3 NmQuc8JUCrEh46a/lUWwokmCzYMOsT080Z3jzmwCHsE=
}
