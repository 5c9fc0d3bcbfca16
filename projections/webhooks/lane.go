package webhooks

import (
	"container/heap"
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/projections/webhooks/transport"
	"accountledger/projections/webhooks/wire"
)

// delivery is one event of the log on its way to one webhook. It waits in the
// window, in the queues of its keys; or in a lane.
type delivery struct {
	*event
	part int // the next of the public events that the webhook selects

	follows      eventstore.Revision // that of the delivery before it, where followsAfter is not 0
	followsAfter eventstore.Position // of the delivery before it, where that is known; or 0

	ordering   []string // the keys of its queues, if they differ from the event's
	lane       *lane    // nil in the window
	generation int      // of the worker's memory, see worker.forget
	inFlight   bool     // a request is in flight
	alone      bool     // sent in no batch, because a batch with it was refused
	requested  bool     // sent because a client asked for it, outside the order
}

// logOrder is the key of all deliveries of a webhook with strict order.
var logOrder = []string{""}

// keysOf returns the keys of the queues that d enters.
func (d *delivery) keysOf() []string {
	if d.ordering != nil {
		return d.ordering
	}
	return d.keys
}

// result is a delivery whose request is over, or was not made.
type result struct {
	*delivery
	message  *wire.Message
	parts    int       // public events that the webhook selects of the event
	batch    int       // events in the request
	time     time.Time // when it began
	duration time.Duration
	traced   func(Attempted) // ends its trace; nil: it has none
	transport.Outcome
	err error // of internal
}

// record returns the row of r, which has a message.
func (r result) record(trigger string) record {
	m := r.message
	id, err := uuid.Parse(m.Event.ID)
	if err != nil {
		panic("webhooks: the id of a public event is not a UUID: " + err.Error())
	}
	return record{position: r.rec.Position, part: m.Part, event: id, kind: m.Event.Type, sub: m.Event.Sub, sequence: m.Event.Sequence,
		time: r.time, duration: r.duration, outcome: r.Outcome, trigger: trigger}
}

// lane is an account with a failing delivery: its events from a revision on are
// still owed, and are read from the log when they are due. The cursor may pass
// the events that a lane owes.
//
// A lane has one stream. An event that joins two accounts waits in its lane
// until the lane of the other account, if there is one, is past it: then all
// events before it are settled in both accounts. The other account has an event
// of the same commit, which waits in the same way. A lane only waits for an
// event with a lower position, so lanes never wait for each other in a circle.
type lane struct {
	stream   string
	revision eventstore.Revision // of the next event, or before it
	position eventstore.Position // likewise
	attempt  int                 // failed attempts of the next event
	due      time.Time
	code     string // of the last error

	owed    eventstore.Position // the lane owes the events of the stream up to here
	next    []*delivery         // read from the log and not sent yet
	trouble int                 // failures of the ledger in a row
	since   time.Time           // the first failure of the next event, if it is known
	index   int                 // in the heap of waiting lanes; -1: in flight, held or blocked
}

// advance moves l behind d, to its next event if that is known.
func (l *lane) advance(d *delivery) {
	l.revision, l.position = d.rec.Revision+1, d.rec.Position+1
	l.attempt, l.trouble, l.code, l.since = 0, 0, "", time.Time{}
	if len(l.next) > 0 {
		l.next = l.next[1:]
	}
	if len(l.next) > 0 {
		l.revision, l.position = l.next[0].rec.Revision, l.next[0].rec.Position
	}
}

// Bounds of one read of a lane: enough to catch up quickly, little enough for a
// thousand lanes.
const (
	laneEvents = 32
	laneBytes  = 256 << 10
)

// laneRead is the result of reading a lane's next events from the log.
type laneRead struct {
	lane  *lane
	owed  eventstore.Position // how far the log was read
	found []*delivery         // none: the lane has caught up
	err   error               // the ledger's fault
}

// lanes are the lanes of a webhook.
type lanes struct {
	byStream map[string]*lane
	waiting  laneHeap // by due time
	held     []*lane  // until another lane advances
}

// holds reports whether d must wait for the lane of another account.
func (s *lanes) holds(d *delivery) bool {
	for _, key := range d.keys[1:] {
		if other := s.byStream[key]; other != nil && other.position <= d.rec.Position {
			return true
		}
	}
	return false
}

// release makes the held lanes due, after a lane has advanced.
func (s *lanes) release(now time.Time) {
	for _, l := range s.held {
		s.schedule(l, now)
	}
	s.held = nil
}

// schedule makes l wait until it is due.
func (s *lanes) schedule(l *lane, due time.Time) {
	l.due = due
	if l.index >= 0 {
		heap.Fix(&s.waiting, l.index)
		return
	}
	heap.Push(&s.waiting, l)
}

// due returns the lane that has been due longest, or nil.
func (s *lanes) due(now time.Time) *lane {
	if len(s.waiting) == 0 || s.waiting[0].due.After(now) {
		return nil
	}
	return s.waiting[0]
}

// unschedule removes a waiting lane from the heap.
func (s *lanes) unschedule(l *lane) { heap.Remove(&s.waiting, l.index) }

// failing counts the lanes whose next event was refused.
func (s *lanes) failing() (n int) {
	for _, l := range s.byStream {
		if l.attempt > 0 {
			n++
		}
	}
	return n
}

type laneHeap []*lane

func (h laneHeap) Len() int           { return len(h) }
func (h laneHeap) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h laneHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *laneHeap) Push(x any) {
	l := x.(*lane)
	l.index = len(*h)
	*h = append(*h, l)
}

func (h *laneHeap) Pop() any {
	last := len(*h) - 1
	l := (*h)[last]
	(*h)[last], *h = nil, (*h)[:last]
	l.index = -1
	return l
}

// lanes reads a webhook's lanes.
func (s *store) lanes(ctx context.Context, no int64) ([]*lane, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT stream, next_revision, next_position, attempt, not_before, error FROM lane WHERE endpoint = ?`, no)
	if err != nil {
		return nil, fmt.Errorf("webhooks: load lanes: %w", err)
	}
	defer rows.Close()
	var all []*lane
	for rows.Next() {
		l := &lane{index: -1}
		var due int64
		if err := rows.Scan(&l.stream, &l.revision, &l.position, &l.attempt, &due, &l.code); err != nil {
			return nil, fmt.Errorf("webhooks: load lanes: %w", err)
		}
		l.due = fromMicro(due)
		all = append(all, l)
	}
	return all, rows.Err()
}

// owes reports whether a stream has a lane that is not past position p.
func (s *store) owes(ctx context.Context, no int64, stream string, p eventstore.Position) (owes bool, err error) {
	err = s.read.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM lane WHERE endpoint = ? AND stream = ? AND next_position <= ?)`, no, stream, p).Scan(&owes)
	if err != nil {
		return false, fmt.Errorf("webhooks: read lane: %w", err)
	}
	return owes, nil
}

// The statuses of lanes.
const (
	LaneRetrying = "retrying" // the next event was refused and is retried
	LaneBlocked  = "blocked"  // the next event is a dead letter and must not be skipped
	LaneWaiting  = "waiting"  // the events are sent one after another
)

// Lane is an account whose events wait, as delivery.db stores it.
type Lane struct {
	Sub             string              `json:"sub,omitzero" doc:"The account. Absent: changes of the configuration."`
	Status          string              `json:"status" doc:"retrying: the next event failed and will be retried; blocked: its delivery was given up and must not be skipped; waiting: earlier events are still being sent."`
	Sequence        eventstore.Revision `json:"sequence" doc:"Sequence of the next event, or a lower bound."`
	Position        eventstore.Position `json:"position" doc:"Log position of the next event, or a lower bound."`
	EventID         string              `json:"eventId,omitzero" doc:"Id of the next event, if its delivery was given up: the event to resend."`
	Attempts        int                 `json:"attempts" doc:"Number of failed attempts for the next event."`
	Error           string              `json:"error,omitzero" doc:"Why the last attempt failed, as a code."`
	NextAttemptTime time.Time           `json:"nextAttemptTime,omitzero" doc:"When the next attempt is due."`
}

// listLanes lists the lanes of a webhook whose streams are after a stream, at most
// limit. next is the last stream, or "" if there are no more.
func (s *store) listLanes(ctx context.Context, conf domain.Webhook, schedule []time.Duration, after string, limit int) (all []Lane, next string, err error) {
	rows, err := s.read.QueryContext(ctx, `SELECT stream, next_revision, next_position, attempt, not_before, error,
			(SELECT event FROM dead_letter d WHERE d.endpoint = l.endpoint AND d.position = next_position ORDER BY part DESC LIMIT 1)
		FROM lane l WHERE endpoint = (SELECT no FROM endpoint WHERE id = ?) AND stream > ? ORDER BY stream LIMIT ?`, conf.WebhookID, after, limit+1)
	if err != nil {
		return nil, "", err
	}
	defer rows.Close()
	all = []Lane{}
	for rows.Next() {
		if len(all) == limit {
			return all, next, nil
		}
		var l Lane
		var due int64
		var event []byte
		if err := rows.Scan(&next, &l.Sequence, &l.Position, &l.Attempts, &due, &l.Error, &event); err != nil {
			return nil, "", err
		}
		l.Sub = domain.Entry{Stream: next}.Sub()
		switch {
		case l.Attempts == 0:
			l.Status = LaneWaiting
		case l.Attempts > len(schedule) && conf.DeadLetter == domain.DeadLetterBlock:
			l.Status = LaneBlocked
			if id, err := uuid.FromBytes(event); err == nil {
				l.EventID = id.String()
			}
		default:
			l.Status, l.NextAttemptTime = LaneRetrying, fromMicro(due)
		}
		all = append(all, l)
	}
	return all, "", rows.Err()
}
