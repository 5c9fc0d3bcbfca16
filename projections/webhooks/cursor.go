package webhooks

import "accountledger/eventstore"

// windowSize is how many positions may be read past the first that is not
// settled. It bounds the bitmap to 1 KiB.
const windowSize = 8192

// cursor knows what is settled: every position up to low, and those after it
// whose bit is set. Settled is what was delivered, what the endpoint did not
// ask for, what a lane has taken over, and what was given up.
type cursor struct {
	low  eventstore.Position
	top  eventstore.Position     // the last one settled; low if there is none after it
	bits [windowSize / 64]uint64 // of (low, low+windowSize], each at its position modulo windowSize

	// partial says of an event with several public events how many of them are
	// delivered. It outlives low, for a lane may owe the rest.
	partial map[eventstore.Position]int
}

func (c *cursor) bit(p eventstore.Position) (word *uint64, mask uint64) {
	i := uint64(p) % windowSize
	return &c.bits[i/64], 1 << (i % 64)
}

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
		*word &^= mask // its bit is the next window's now
		c.low++
	}
}

// room is how many positions may be read beyond p.
func (c *cursor) room(p eventstore.Position) int64 { return int64(c.low + windowSize - p) }

// done is the bitmap as it is stored: bit i of it is position low+1+i.
func (c *cursor) done() []byte {
	done := make([]byte, (c.top-c.low+7)/8)
	for i := range int64(c.top - c.low) {
		if c.has(c.low + 1 + eventstore.Position(i)) {
			done[i/8] |= 1 << (i % 8)
		}
	}
	return done
}

// settled counts the positions settled beyond low.
func (c *cursor) settled() (n int64) {
	for p := c.low + 1; p <= c.top; p++ {
		if c.has(p) {
			n++
		}
	}
	return n
}

// newCursor is the cursor that low and done were stored of.
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
