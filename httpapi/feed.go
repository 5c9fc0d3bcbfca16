package httpapi

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/projections"
)

func (s *server) feedRoutes() {
	handle(s, route{
		method: "GET", path: "/v1/events", name: "getEvents", scope: scopeEventsRead, status: 200, answer: feed{}, paged: true,
		summary: "Read the event feed",
		text:    "Returns public events in log order. next is always a cursor: store it and pass it as after to read the events that follow. A page may be short or empty although more events follow, because a filter skipped many; more is then true. With Accept: text/event-stream the server sends server-sent events instead; limit, wait and min_position are not allowed then. The id of each frame is a cursor; send the last one as Last-Event-ID to resume. After the ledger was rolled back, a cursor of a lost event is answered with 410 and, as next, the cursor to continue with. If there are no events, checkpoint frames advance the cursor at least every 15 seconds.",
		codes:   codes(onQuery, onCursor),
		stream:  s.streamEvents,
	}, s.getEvents)
}

type getEventsInput struct {
	MinPosition int64  `query:"min_position" minimum:"0" doc:"Answer only from a state that includes this log position."`
	Wait        int    `query:"wait" minimum:"0" maximum:"30" default:"0" doc:"Seconds to wait for min_position, and then for the first event if there is none yet (long polling)."`
	After       string `query:"after" default:"0" doc:"The next cursor of an earlier page, or a log position from before the ledger was first rolled back. Default 0: the beginning of the log."`
	Limit       int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"Maximum number of events on a page."`
	Types       string `query:"types" maxLength:"2000" doc:"Only these public events: names or prefixes such as USER_*, separated by commas." example:"USER_*,IDENTITY_LINKED"`
	Sub         string `query:"sub" doc:"Only events of this account; after a merge, also those of the surviving account."`
	Group       string `query:"group" maxLength:"64" doc:"Only events of accounts that are members of this group when the event is read, and events of the group and its memberships."`
	LastEventID string `header:"Last-Event-ID" doc:"For server-sent events: the id of the last frame received. The stream resumes after it. Takes precedence over after."`
}

// feed is a page of public events, in log order.
type feed struct {
	Events []domain.PublicEvent `json:"events" doc:"The events in log order; for each stream, in the order of sequence."`
	Next   string               `json:"next" doc:"Cursor for the events after this page. Always present."`
	More   bool                 `json:"more" doc:"Whether more events can be read immediately."`
}

// maxScan is how many events of the log the server reads for one page, so that
// one request with a narrow filter does not read the whole log.
const maxScan = 10_000

func (s *server) getEvents(ctx context.Context, c *call, in *getEventsInput) (*answer, error) {
	a, err := s.fresh(ctx, Query{in.MinPosition, in.Wait})
	if err != nil {
		return nil, err
	}
	after, err := s.parseCursor(ctx, in.After)
	if err != nil {
		return nil, err
	}
	which, err := selects(in.Types, in.Sub, in.Group)
	if err != nil {
		return nil, err
	}
	which.limit = in.Limit
	if which.hidden, err = s.hidden(ctx, c); err != nil {
		return nil, err
	}
	page, next, err := s.readFeed(ctx, after, which, time.Duration(in.Wait)*time.Second)
	if err != nil {
		return nil, err
	}
	if page.Next, err = s.cursor(ctx, next); err != nil {
		return nil, err
	}
	a.next(c, page.Next)
	return a.rendered(page)
}

// place is a place in the feed: after a log position, and after the first seen
// public events of the next event. One event of the log can become several
// public events, and a page may end between them.
type place struct {
	position eventstore.Position
	seen     int
}

// selection says which public events a page of the feed holds.
type selection struct {
	types  []string // patterns; nil for all
	sub    string   // account; "" for all
	group  string   // group id; "" for all
	limit  int      // maximum number of events
	hidden domain.Hidden
}

// readFeed reads the page of the feed after a place. If there are no events
// yet, it waits for some, at most for wait.
func (s *server) readFeed(ctx context.Context, after place, which selection, wait time.Duration) (feed, place, error) {
	var page feed
	head, err := s.Log.Head(ctx)
	if err != nil || after.position >= head && wait == 0 {
		return page, after, err
	}
	bounded := ctx
	if wait > 0 {
		var cancel context.CancelFunc
		bounded, cancel = context.WithTimeout(ctx, wait)
		defer cancel()
		defer context.AfterFunc(s.Closing, cancel)()
	}
	scanned := 0
	for records, err := range s.Log.Subscribe(bounded, after.position) {
		if err != nil {
			if bounded.Err() != nil && ctx.Err() == nil { // the wait is over
				page.More = after.seen > 0 || after.position < head
				return page, after, nil
			}
			return page, after, err
		}
		for _, rec := range records {
			var full bool
			if page.Events, after, full, err = s.public(ctx, page.Events, after, rec, which); err != nil {
				return page, after, err
			}
			scanned++
			if full || scanned >= maxScan {
				page.More = after.seen > 0 || after.position < head
				return page, after, nil
			}
		}
		if after.position >= head && (wait == 0 || len(page.Events) > 0) {
			break
		}
	}
	return page, after, nil
}

// public appends the selected public events of rec to events until the page is
// full, and returns the place after them and whether the page is full.
func (s *server) public(ctx context.Context, events []domain.PublicEvent, after place, rec eventstore.Recorded, which selection) ([]domain.PublicEvent, place, bool, error) {
	x, err := s.Codec.Decode(rec)
	if err != nil {
		return events, after, false, err
	}
	lineage, err := s.Ledger.Lineage(ctx)
	if err != nil {
		return events, after, false, err
	}
	public, err := domain.Public(x.Without(which.hidden), lineage.At(x.Position).Number)
	if err != nil {
		return events, after, false, err
	}
	selected := len(public) == 0
	if len(public) > 0 {
		if selected, err = s.about(ctx, which, x); err != nil {
			return events, after, false, err
		}
	}
	for i := min(after.seen, len(public)); selected && i < len(public); i++ {
		if which.types != nil && !slices.ContainsFunc(which.types, func(pattern string) bool { return domain.Selects(pattern, public[i].Type) }) {
			continue
		}
		if len(events) == which.limit {
			return events, place{after.position, i}, true, nil
		}
		events = append(events, public[i])
	}
	return events, place{rec.Position, 0}, len(events) == which.limit, nil
}

// about reports whether x is about the selected account and group.
func (s *server) about(ctx context.Context, which selection, x domain.Entry) (bool, error) {
	sub := x.Sub()
	if which.sub != "" && sub != which.sub && !slices.Contains(strings.Fields(x.Meta.CombinedSubs), which.sub) {
		return false, nil
	}
	if which.group == "" || x.GroupID() == which.group {
		return true, nil
	}
	if sub == "" {
		return false, nil
	}
	// The view may be behind the log: without waiting, the feed would skip an
	// account's first events permanently.
	if err := s.Views.Await(ctx, projections.AccountsView, x.Position); err != nil {
		return false, err
	}
	row, err := s.Views.Accounts().Get(ctx, sub)
	if errors.Is(err, projections.ErrNotFound) {
		return false, nil // its stream is parked
	}
	if err != nil {
		return false, err
	}
	a, err := row.Account()
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(a.Groups, func(m domain.Membership) bool { return m.GroupID == which.group }), nil
}

// selects returns the selection for the query parameters types (names of public
// events or prefixes, separated by commas), sub and group.
func selects(types, sub, group string) (which selection, err error) {
	var faults []fault
	if types != "" {
		which.types = strings.Split(types, ",")
		for _, pattern := range which.types {
			if !slices.ContainsFunc(domain.PublicNames, func(name string) bool { return domain.Selects(pattern, name) }) {
				faults = append(faults, fault{Parameter: "types", Detail: "must be names of public events, such as USER_CREATED, or prefixes, such as USER_*"})
				break
			}
		}
	}
	if which.group = group; sub != "" {
		if which.sub, err = canonical(sub); err != nil {
			faults = append(faults, fault{Parameter: "sub", Detail: "must be a UUID"})
		}
	}
	if len(faults) > 0 {
		return which, invalidParameters(faults...)
	}
	return which, nil
}

const cursorVersion = "v1"

// cursor encodes a place as a cursor. The cursor names its log, so that the
// server refuses the cursor of another ledger, and the forks before the place, so
// that the server recognizes a place that a roll-back removed.
func (s *server) cursor(ctx context.Context, p place) (string, error) {
	epoch, err := s.logEpoch(ctx)
	if err != nil {
		return "", err
	}
	lineage, err := s.Ledger.Lineage(ctx)
	if err != nil {
		return "", err
	}
	cursor := fmt.Sprintf("%s.%s.%d", cursorVersion, epoch, p.position)
	if p.seen > 0 {
		cursor += "." + strconv.Itoa(p.seen)
	}
	return withForks(cursor, lineage.Forks(p.position)), nil
}

// withForks appends forks to a cursor: a tilde, the incarnation, a dot and the
// position of each.
func withForks(cursor string, forks []domain.Fork) string {
	for _, f := range forks {
		cursor += fmt.Sprintf("~%d.%d", f.Incarnation, f.Position)
	}
	return cursor
}

// cutForks reverses withForks.
func cutForks(cursor string) (before string, forks []domain.Fork, ok bool) {
	parts := strings.Split(cursor, "~")
	for _, part := range parts[1:] {
		number, position, _ := strings.Cut(part, ".")
		n, err1 := strconv.Atoi(number)
		p, err2 := strconv.ParseInt(position, 10, 64)
		if err1 != nil || err2 != nil || n < 1 || p < 0 {
			return "", nil, false
		}
		forks = append(forks, domain.Fork{Incarnation: n, Position: eventstore.Position(p)})
	}
	return parts[0], forks, true
}

// parseCursor decodes a cursor or a bare log position, which counts as a place in
// the log before its first fork.
func (s *server) parseCursor(ctx context.Context, cursor string) (place, error) {
	invalid := newProblem(domain.CodeInvalidCursor, "The cursor does not belong to this feed.")
	before, forks, ok := cutForks(cursor)
	if !ok {
		return place{}, invalid
	}
	parts := strings.Split(before, ".")
	if len(parts) == 1 && len(forks) == 0 {
		parts = []string{cursorVersion, "", parts[0]}
	}
	if parts[0] != cursorVersion || len(parts) < 3 || len(parts) > 4 {
		return place{}, invalid
	}
	position, err := strconv.ParseInt(parts[2], 10, 64)
	if err != nil || position < 0 {
		return place{}, invalid
	}
	p := place{position: eventstore.Position(position)}
	if len(parts) == 4 {
		if p.seen, err = strconv.Atoi(parts[3]); err != nil || p.seen < 1 {
			return place{}, invalid
		}
	}
	if parts[1] != "" && parts[1] != emptyEpoch {
		epoch, err := s.logEpoch(ctx)
		if err != nil {
			return p, err
		}
		if parts[1] != epoch {
			return p, newProblem(domain.CodeInvalidCursor, "The cursor belongs to another log.")
		}
	}
	if p, err = s.afterForks(ctx, p, forks); err != nil {
		return p, err
	}
	head, err := s.Log.Head(ctx)
	if err != nil {
		return p, err
	}
	if p.position > head {
		return p, newProblem(domain.CodeInvalidCursor, "The cursor is beyond the end of the log, which is at position %d.", head)
	}
	return p, nil
}

// afterForks returns the place in this log of a client that has read another one up
// to p, with these forks before it. It refuses a place after events that a roll-back
// has removed.
func (s *server) afterForks(ctx context.Context, p place, forks []domain.Fork) (place, error) {
	lineage, err := s.Ledger.Lineage(ctx)
	if err != nil {
		return p, err
	}
	shared, forked, known := lineage.Shared(forks)
	switch {
	case !known:
		return p, errUnknownFork()
	case !forked || p.position < shared:
		return p, nil
	case p.position == shared:
		// What the client has seen of the next event is gone.
		return place{position: shared}, nil
	}
	next, err := s.cursor(ctx, place{position: shared})
	if err != nil {
		return p, err
	}
	return p, errForked(shared, next)
}

// errForked is the problem of a cursor behind events that a roll-back has removed.
// fork is the position of the last event before them.
func errForked(fork eventstore.Position, next string) *problem {
	p := newProblem(codeCursorForked, "The ledger was rolled back to position %d, and lost the event that this cursor follows.", fork)
	p.Fork, p.Next = &fork, next
	return p
}

func errUnknownFork() *problem {
	return newProblem(domain.CodeInvalidCursor, "The cursor was made after the ledger was rolled back, and this log is from before.")
}

// emptyEpoch is the epoch of an empty log. Cursors with it fit any log.
const emptyEpoch = "0"

// logEpoch returns an id for this log, taken from the id of its first event.
func (s *server) logEpoch(ctx context.Context) (string, error) {
	if epoch := s.epoch.Load(); epoch != nil {
		return *epoch, nil
	}
	head, err := s.Log.Head(ctx)
	if err != nil || head == 0 {
		return emptyEpoch, err
	}
	for records, err := range s.Log.Subscribe(ctx, 0) {
		if err != nil {
			return "", err
		}
		id := uuid.UUID(records[0].ID).String()
		epoch := id[len(id)-8:]
		s.epoch.Store(&epoch)
		return epoch, nil
	}
	return "", errors.New("httpapi: the log ended before its first event")
}
