package seal

import (
	"path/filepath"
	"testing"

	"accountledger/eventstore"
)

// TestReadAhead checks that keys in neighbouring slots are read together, and
// that each is current when it is used.
func TestReadAhead(t *testing.T) {
	t.Parallel()
	path, master := filepath.Join(t.TempDir(), "keys.db"), NewMaster()
	k := openKeys(t, path, master)
	ids, sealed := make([]eventstore.KeyID, 3*pageSlots), make([][]byte, 3*pageSlots)
	for i := range ids {
		ids[i] = newKey(t, k)
		sealed[i] = mustSeal(t, k, ids[i], testContext, plain)
	}
	clearCache := func() { k.cache.InvalidateAll() }
	opens := func(i int) {
		t.Helper()
		if got, err := k.Open(ids[i], testContext, sealed[i]); err != nil || string(got) != plain {
			t.Errorf("Open with key %d = %q, %v, want %q", i, got, err, plain)
		}
	}
	read := func() (pages, rows int) {
		for _, p := range k.ahead.pages {
			if p.read {
				pages, rows = pages+1, rows+len(p.rows)
			}
		}
		return pages, rows
	}

	clearCache()
	opens(pageSlots + 2)
	opens(2*pageSlots + 2)
	if pages, _ := read(); pages != 0 {
		t.Errorf("%d pages were read for keys in different pages, want none", pages)
	}
	opens(pageSlots + 3)
	if pages, rows := read(); pages != 1 || rows != pageSlots {
		t.Errorf("%d pages with %d rows were read for two neighbouring keys, want 1 with %d", pages, rows, pageSlots)
	}
	// Destroying a key removes it from the page, too.
	if err := k.Destroy(t.Context(), ids[pageSlots+4]); err != nil {
		t.Fatal(err)
	}
	opens(pageSlots + 5)
	opens(pageSlots + 6)
	_, err := k.Open(ids[pageSlots+4], testContext, sealed[pageSlots+4])
	wantErr(t, "Open", err, ErrErased)

	// A page may be read before its last keys are created.
	for range 2 * pageSlots {
		clearCache()
		id := newKey(t, k)
		clearCache()
		wrapped := mustSeal(t, k, id, testContext, plain)
		if _, err := k.Open(id, testContext, wrapped); err != nil {
			t.Fatal(err)
		}
	}
	clearCache()
	for i := range ids {
		if i != pageSlots+4 {
			opens(i)
		}
	}
}
