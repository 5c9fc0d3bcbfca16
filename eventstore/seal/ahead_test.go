package seal

import (
	"path/filepath"
	"testing"

	"accountledger/eventstore"
)

// Keys that lie side by side are read together, and yet each is what it is at
// the moment it is asked for.
func TestNeighboursReadAhead(t *testing.T) {
	t.Parallel()
	path, master := filepath.Join(t.TempDir(), "keys.db"), NewMaster()
	k := open1(t, path, master)
	ids, sealed := make([]eventstore.KeyID, 3*pageSlots), make([][]byte, 3*pageSlots)
	for i := range ids {
		ids[i] = newKey(t, k)
		sealed[i] = mustSeal(t, k, ids[i], place, plain)
	}
	forget := func() { k.cache.InvalidateAll() }
	opens := func(i int) {
		t.Helper()
		if got, err := k.Open(ids[i], place, sealed[i]); err != nil || string(got) != plain {
			t.Errorf("key %d opens as %q, %v", i, got, err)
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

	forget()
	opens(pageSlots + 2)
	opens(2*pageSlots + 2)
	if pages, _ := read(); pages != 0 {
		t.Errorf("%d pages read for keys that are far apart", pages)
	}
	opens(pageSlots + 3)
	if pages, rows := read(); pages != 1 || rows != pageSlots {
		t.Errorf("%d pages with %d rows read for two neighbours, want 1 with %d", pages, rows, pageSlots)
	}
	// What the page holds must not outlive the key.
	if err := k.Destroy(t.Context(), ids[pageSlots+4]); err != nil {
		t.Fatal(err)
	}
	opens(pageSlots + 5)
	opens(pageSlots + 6)
	_, err := k.Open(ids[pageSlots+4], place, sealed[pageSlots+4])
	wantErr(t, "Open", err, ErrErased)

	// A page may be read before its last keys are made.
	for range 2 * pageSlots {
		forget()
		id := newKey(t, k)
		forget()
		wrapped := mustSeal(t, k, id, place, plain)
		if _, err := k.Open(id, place, wrapped); err != nil {
			t.Fatal(err)
		}
	}
	forget()
	for i := range ids {
		if i != pageSlots+4 {
			opens(i)
		}
	}
}
