package webhooks

import "accountledger/eventstore"

// windowSize is how many positions may be read beyond the first that is not
// settled. It limits the bitmap to 1 KiB.
const windowSize = 8192

// cursor records which positions are settled: all up to low, and those after it
// whose bit is set. A position is settled if its event was delivered, is not
// selected, is owed by a lane, or became a dead letter.
type cursor struct {
	low  eventstore.Position
	top  eventstore.Position     // the last settled position; low if there is none after it
	bits [windowSize / 64]uint64 // of (low, low+windowSize], each at the position modulo windowSize

	// partial counts the delivered public events of an event that has several. An
	// entry may be at or below low, because a lane may owe the rest.
	partial map[eventstore.Position]int
}

func (c *cursor) bit(p eventstore.Position) (word *uint64, mask uint64) {
	i := uint64(p) % windowSize
	return &c.bits[i/64], 1 << (i % 64)
}

// has reports whether p is settled.
func (c *cursor) has(p eventstore.Position) bool {
	if p <= c.low || p > c.top {
		return p <= c.low
	}
	word, mask := c.bit(p)
	return *word&mask != 0
}

// set settles p, which must not be beyond the window.
func (c *cursor) set(p eventstore.Position) {
	if p <= c.low {
		return
	}
	word, mask := c.bit(p)
	*word |= mask
	c.top = max(c.top, p)
	for c.low < c.top {
		word, mask := c.bit(c.low + 1)
		if *word&mask == 0 {
			return
		}
		*word &^= mask // the bit now belongs to the next window
		c.low++
	}
}

// room returns how many positions may be read beyond p.
func (c *cursor) room(p eventstore.Position) int64 { return int64(c.low + windowSize - p) }

// done returns the bitmap in its stored form: bit i is position low+1+i.
func (c *cursor) done() []byte {
	done := make([]byte, (c.top-c.low+7)/8)
	for i := range int64(c.top - c.low) {
		if c.has(c.low + 1 + eventstore.Position(i)) {
			done[i/8] |= 1 << (i % 8)
		}
	}
	return done
}

// settled counts the settled positions beyond low.
func (c *cursor) settled() (n int64) {
	for p := c.low + 1; p <= c.top; p++ {
		if c.has(p) {
			n++
		}
	}
	return n
}

// newCursor restores a cursor from its stored form.
func newCursor(low eventstore.Position, done []byte, partial map[eventstore.Position]int) cursor {
	c := cursor{low: low, top: low, partial: partial}
	if c.partial == nil {
		c.partial = map[eventstore.Position]int{}
	}
	for i := range min(8*len(done), windowSize) {
		if done[i/8]&(1<<(i%8)) != 0 {
			c.set(low + 1 + eventstore.Position(i))
		}
	}
	return c
}

// backlog counts the positions up to head that are not settled.
func (c *cursor) backlog(head eventstore.Position) int64 {
	return max(0, int64(head-c.low)-c.settled())
}
