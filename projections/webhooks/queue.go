package webhooks

import "slices"

// queues are FIFO queues of deliveries, one per key: deliveries with the same
// key are made one at a time, in the order they were added. A key is a stream;
// an event of several accounts has the keys of all. Such a delivery waits until
// it is first in each of its queues and holds them all until it is done. It
// enters all queues together and in the order of the log, so two deliveries never
// wait for each other.
type queues map[string][]*delivery

// add queues d and reports whether it is ready.
func (q queues) add(d *delivery) bool {
	ready := true
	for _, key := range d.keysOf() {
		ready = ready && len(q[key]) == 0
		q[key] = append(q[key], d)
	}
	return ready
}

// done removes d, which is first in its queues, and returns the deliveries that
// are ready because of it.
func (q queues) done(d *delivery) (ready []*delivery) {
	for _, key := range d.keysOf() {
		rest := q[key][1:]
		if len(rest) == 0 {
			delete(q, key)
			continue
		}
		q[key] = rest
		if q.first(rest[0]) {
			ready = append(ready, rest[0])
		}
	}
	return ready
}

// first reports whether d is first in each of its queues.
func (q queues) first(d *delivery) bool {
	return !slices.ContainsFunc(d.keysOf(), func(key string) bool { return q[key][0] != d })
}
