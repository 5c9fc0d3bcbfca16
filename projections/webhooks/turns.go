package webhooks

import (
	"slices"

	"accountledger/eventstore"
)

// delivery is one event of the log on its way to one endpoint.
type delivery struct {
	*slot
	part int // which of the public events the endpoint selects is next

	follows eventstore.Revision // one more than that of the delivery before it, where that is known; or 0

	turn   []string // its keys, where they are others than its slot's
	lane   *lane    // whose it is; nil for one in the window
	era    int      // of the endpoint's memory, see endpoint.forget
	flying bool     // a request is under way
	alone  bool     // not in a batch with others: one of them was refused
	byHand bool     // out of turn, because somebody asked for it
}

// oneTurn is the key of all deliveries where their order is the log's.
var oneTurn = []string{""}

// order is the keys d waits for.
func (d *delivery) order() []string {
	if d.turn != nil {
		return d.turn
	}
	return d.keys
}

// turns lets deliveries go one at a time per key, in the order they were
// added. A key is a stream; an event that concerns several accounts has the
// keys of all. Such a delivery waits until it is first at each of its keys
// and holds them all until it is done. All keys are queued for at once and in
// the order of the log, so two deliveries never wait for one another.
type turns map[string][]*delivery

// add queues d and reports whether it may go.
func (t turns) add(d *delivery) bool {
	ready := true
	for _, key := range d.order() {
		ready = ready && len(t[key]) == 0
		t[key] = append(t[key], d)
	}
	return ready
}

// done ends the turn of d and returns those who may go now.
func (t turns) done(d *delivery) (next []*delivery) {
	for _, key := range d.order() {
		queue := t[key][1:]
		if len(queue) == 0 {
			delete(t, key)
			continue
		}
		t[key] = queue
		if t.first(queue[0]) {
			next = append(next, queue[0])
		}
	}
	return next
}

func (t turns) first(d *delivery) bool {
	return !slices.ContainsFunc(d.order(), func(key string) bool { return t[key][0] != d })
}
