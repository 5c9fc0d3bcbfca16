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

// reference holds all hashes of a tree in the layout of golang.org/x/mod.
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

// store keeps tiles in memory.
type store map[coordinates][]byte

func (s store) put(t *testing.T, tiles []tlog.Tile) {
	for _, tile := range tiles {
		at := coordinates{tile.Level, tile.N}
		if old := s[at]; tile.Level == 0 && old != nil {
			t.Fatalf("tile 0/%d was stored twice", tile.N)
		} else if len(old) >= len(tile.Data) {
			t.Fatalf("tile %d/%d did not grow: it had %d bytes and now has %d", tile.Level, tile.N, len(old), len(tile.Data))
		}
		s[at] = tile.Data
	}
}

// restore restores a tree as a reopened log does: from the stored tiles and
// the leaf hashes of the last events.
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

// TestTreeEqualsReference compares the root with that of golang.org/x/mod at
// every size, and the tree with the one restored from its stored tiles.
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
			t.Fatalf("Root at size %d = %v, want %v", n, got, want)
		}
		restored, err := tiles.restore(n)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(tree.Edge(), restored.Edge()) || restored.Root() != want {
			t.Fatalf("the tree restored at size %d differs from the original", n)
		}
		ref.push(t, n)
		tiles.put(t, tree.Push(leaf(n)))
	}
}

// TestTreeTiles checks that Push returned every tile that golang.org/x/mod
// lists for the tree, with the right hashes, at a size that reaches level 2.
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
				t.Fatalf("the tree restored at size %d has a different root", n+1)
			}
		}
	}
	want, err := sumdb.TreeHash(size, &ref)
	if err != nil {
		t.Fatal(err)
	}
	if tree.Root() != want {
		t.Fatalf("Root = %v, want %v", tree.Root(), want)
	}
	// NewTiles lists the last tile of each level with its final width.
	for _, tile := range sumdb.NewTiles(tlog.TileHeight, 0, size) {
		if tile.L == 0 && tile.W < tlog.TileWidth {
			continue // incomplete level-0 tiles are not stored
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
	clone := new(tlog.Tree)
	clone.Set(&tree)
	for n := range int64(600) {
		clone.Push(leaf(n + 7))
	}
	if tree.Root() != root || tree.Size() != 300 {
		t.Fatal("Push to the copy changed the original tree")
	}
	// Set a longer tree back to a shorter one, as after a failed commit.
	clone.Set(&tree)
	clone.Push(leaf(300))
	tree.Push(leaf(300))
	if clone.Root() != tree.Root() {
		t.Fatal("after Set and Push on both, the trees differ")
	}
}

func TestRestoreRefuses(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	if _, err := tlog.Restore(3, func(int, int64, int) ([]byte, error) { return nil, broken }); !errors.Is(err, broken) {
		t.Errorf("Restore = %v, want the error of read", err)
	}
	if _, err := tlog.Restore(3, func(int, int64, int) ([]byte, error) { return make([]byte, 95), nil }); err == nil {
		t.Error("Restore accepted a tile that is too short")
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
		t.Error("Subtree accepted a tile that is not full")
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
