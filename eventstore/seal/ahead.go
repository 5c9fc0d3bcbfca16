package seal

import (
	"context"
	"sync"
)

// wrappedKey is the row of a key.
type wrappedKey struct {
	slot    int64
	epoch   uint32
	wrapped []byte // empty where the key was destroyed
}

// Sizes of ahead: a page is read at once and about 6 KiB, and so many are
// remembered.
const (
	pageSlots   = 64
	pagesRecent = 16
)

// ahead reads keys in advance. Who goes through the log meets keys in about
// the order in which they were made, and a query for each was a third of that
// work. So the second key wanted of a page of neighbours brings in the whole
// page; a key wanted for itself alone costs its own row, as ever.
//
// What it holds is as the file was when it was read. Destroy has it forgotten.
type ahead struct {
	mu    sync.Mutex // guards what follows, and is held while a page is read
	pages [pagesRecent]page
	next  int // which of pages is replaced next
}

// page is what is known of some neighbours.
type page struct {
	number int64 // their slots divided by pageSlots, and one more: 0 is no page
	read   bool
	rows   []wrappedKey // in the order of their slots, if read
}

// take returns the row in a slot if it was read in advance, or is now.
func (a *ahead) take(slot int64, read func(first, last int64) ([]wrappedKey, error)) (wrappedKey, bool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	number := slot/pageSlots + 1
	for i := range a.pages {
		p := &a.pages[i]
		if p.number != number {
			continue
		}
		if !p.read {
			first := slot / pageSlots * pageSlots
			rows, err := read(first, first+pageSlots-1)
			if err != nil {
				return wrappedKey{}, false, err
			}
			p.rows, p.read = rows, true
		}
		for _, row := range p.rows {
			if row.slot == slot {
				return row, true, nil
			}
		}
		return wrappedKey{}, false, nil // made since
	}
	a.pages[a.next] = page{number: number}
	a.next = (a.next + 1) % pagesRecent
	return wrappedKey{}, false, nil
}

func (a *ahead) forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pages = [pagesRecent]page{}
}

// readRows reads the rows of neighbours.
func (k *Keys) readRows(first, last int64) ([]wrappedKey, error) {
	rows, err := k.findAll.QueryContext(context.Background(), first, last)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	all := make([]wrappedKey, 0, pageSlots)
	for rows.Next() {
		var row wrappedKey
		if err := rows.Scan(&row.slot, &row.epoch, &row.wrapped); err != nil {
			return nil, err
		}
		all = append(all, row)
	}
	return all, rows.Err()
}
