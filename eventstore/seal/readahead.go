package seal

import (
	"context"
	"sync"
)

// wrappedKey is a row of the table keys.
type wrappedKey struct {
	slot    int64
	epoch   uint32
	wrapped []byte // empty if the key was destroyed
}

// Sizes of readAhead. A page of 64 rows has about 6 KiB.
const (
	pageSlots   = 64
	recentPages = 16
)

// readAhead caches rows of neighbouring slots. A reader of the log needs keys
// in about the order in which they were created, and one query per key was a
// third of that reader's work. So the second request for a key of the same page
// reads the whole page. A single request reads only its own row.
//
// The cached rows are as the file was when they were read; Destroy clears them.
type readAhead struct {
	mu    sync.Mutex // guards the fields below; held while a page is read
	pages [recentPages]page
	next  int // index of the page to replace next
}

// page caches the rows in pageSlots consecutive slots.
type page struct {
	number int64        // slot divided by pageSlots, plus 1; 0 means unused
	read   bool         // whether rows is set
	rows   []wrappedKey // in the order of their slots
}

// take returns the row in a slot if its page has been requested before, reading
// the page if necessary. It reports false if the caller has to read the row.
func (a *readAhead) take(slot int64, read func(first, last int64) ([]wrappedKey, error)) (wrappedKey, bool, error) {
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
		return wrappedKey{}, false, nil // created after the page was read
	}
	a.pages[a.next] = page{number: number}
	a.next = (a.next + 1) % recentPages
	return wrappedKey{}, false, nil
}

func (a *readAhead) clear() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pages = [recentPages]page{}
}

// readRows reads the rows in the slots from first to last.
func (k *Keys) readRows(first, last int64) ([]wrappedKey, error) {
	rows, err := k.findRange.QueryContext(context.Background(), first, last)
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
