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
		text:    "Public events in the order of the log. next is always a cursor: keep it, and ask with it again for what came since. A page may be short or empty although more follows, where a filter skipped much; more says so. Who accepts text/event-stream gets server-sent events instead, without limit, wait and min_position: each frame's id is a cursor, to be sent as Last-Event-ID by who comes back; frames named checkpoint tell the place where no event does, at least every 15 seconds.",
		codes:   codes(onQuery, []domain.Code{domain.CodeInvalidCursor}),
		stream:  s.streamEvents,
	}, s.getEvents)
}

type getEventsInput struct {
	MinPosition int64  `query:"min_position" minimum:"0" doc:"Answer from a state that includes this position of the log."`
	Wait        int    `query:"wait" minimum:"0" maximum:"30" default:"0" doc:"Seconds to wait for min_position, and then for an event where there is none yet (long poll)."`
	After       string `query:"after" default:"0" doc:"The next of an earlier page, or a position of the log; 0, the default, is its beginning."`
	Limit       int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"Events on a page, at most."`
	Types       string `query:"types" maxLength:"2000" doc:"Only these public events: names, or prefixes like USER_*, separated by commas." example:"USER_*,IDENTITY_LINKED"`
	Sub         string `query:"sub" doc:"Only events of this account; after a merge, also the survivor's."`
	Group       string `query:"group" maxLength:"64" doc:"Only events of accounts that are members of this group when the event is read, and of the group itself and its memberships."`
	LastEventID string `header:"Last-Event-ID" doc:"Of a stream: the id of the last frame received, to go on after it. It comes before the parameter after."`
}

// feed is a page of public events, in the order of the log.
type feed struct {
	Events []domain.PublicEvent `json:"events" doc:"The events in log order; for each account, in the order of sequence."`
	Next   string               `json:"next" doc:"Cursor for the events after this page. Always present."`
	More   bool                 `json:"more" doc:"Whether more events can be read immediately."`
}

// maxScan is how many events of the log one page looks at: a filter that
// selects little must not make one request read the whole log.
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

// place is a place in the feed: after the log's position, and after the first
// seen public events of the one event behind it. One event of the log can be
// several in public, and a page may end between them.
type place struct {
	position eventstore.Position
	seen     int
}

// selection is what of the log a page of the feed is to hold.
type selection struct {
	types  []string // patterns; nil for all
	sub    string   // of an account; "" for all
	group  string   // of accounts' memberships; "" for all
	limit  int      // events at most
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

// public appends what rec is in public, as far as it is asked for and has room,
// and moves the place. It reports whether the page is full.
func (s *server) public(ctx context.Context, events []domain.PublicEvent, after place, rec eventstore.Recorded, which selection) ([]domain.PublicEvent, place, bool, error) {
	x, err := s.Codec.Decode(rec)
	if err != nil {
		return events, after, false, err
	}
	public, err := domain.Public(x.Without(which.hidden))
	if err != nil {
		return events, after, false, err
	}
	ours := len(public) == 0
	if len(public) > 0 {
		if ours, err = s.about(ctx, which, x); err != nil {
			return events, after, false, err
		}
	}
	for i := min(after.seen, len(public)); ours && i < len(public); i++ {
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

// about reports whether x is about the account and the group asked for.
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
	// The log is ahead of the view: without waiting, an account's first events
	// would be missed for good.
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

// selects makes a selection of parameters: names of public events or prefixes,
// separated by commas, the sub of an account, the id of a group.
func selects(types, sub, group string) (which selection, err error) {
	var faults []fault
	if types != "" {
		which.types = strings.Split(types, ",")
		for _, pattern := range which.types {
			if !slices.ContainsFunc(domain.PublicNames, func(name string) bool { return domain.Selects(pattern, name) }) {
				faults = append(faults, fault{Parameter: "types", Detail: "must name public events, like USER_CREATED, or prefixes of some, like USER_*"})
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
		p := newProblem(domain.CodeInvalidRequest, "A parameter breaks the rules listed.")
		p.Errors = faults
		return which, p
	}
	return which, nil
}

const cursorVersion = "v1"

// cursor renders a place for a caller to keep. It says which log it is a
// place in, so that a cursor of another ledger is refused and not believed.
func (s *server) cursor(ctx context.Context, p place) (string, error) {
	epoch, err := s.logEpoch(ctx)
	if err != nil {
		return "", err
	}
	cursor := fmt.Sprintf("%s.%s.%d", cursorVersion, epoch, p.position)
	if p.seen > 0 {
		cursor += "." + strconv.Itoa(p.seen)
	}
	return cursor, nil
}

// parseCursor takes a cursor, or a bare position.
func (s *server) parseCursor(ctx context.Context, cursor string) (place, error) {
	invalid := newProblem(domain.CodeInvalidCursor, "The cursor was not made by this feed.")
	parts := strings.Split(cursor, ".")
	if len(parts) == 1 {
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
	head, err := s.Log.Head(ctx)
	if err != nil {
		return p, err
	}
	if p.position > head {
		return p, newProblem(domain.CodeInvalidCursor, "The cursor lies after the end of the log, which is at position %d.", head)
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
	return p, nil
}

// emptyEpoch is the epoch of a log without events: any log may start so.
const emptyEpoch = "0"

// logEpoch tells this log from others: by the id of its first event.
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
