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
)

type getEventsInput struct {
	MinPosition int64  `query:"min_position" minimum:"0" doc:"Answer from a state that includes this position of the log."`
	Wait        int    `query:"wait" minimum:"0" maximum:"30" default:"0" doc:"Seconds to wait for min_position, and then for an event where there is none yet (long poll)."`
	After       string `query:"after" default:"0" doc:"The next of an earlier page, or a position of the log; 0, the default, is its beginning."`
	Limit       int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"Events on a page, at most."`
	Types       string `query:"types" maxLength:"2000" doc:"Only these public events: names, or prefixes like USER_*, separated by commas." example:"USER_*,IDENTITY_LINKED"`
}

// feed is a page of public events, in the order of the log.
type feed struct {
	Events []domain.PublicEvent `json:"events"`
	Next   string               `json:"next"`
	More   bool                 `json:"more"`
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
	types, err := selected(in.Types)
	if err != nil {
		return nil, err
	}
	hidden, err := s.hidden(ctx, c)
	if err != nil {
		return nil, err
	}
	page, next, err := s.feed(ctx, after, selection{types, in.Limit, hidden}, time.Duration(in.Wait)*time.Second)
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
	limit  int
	hidden domain.Hidden
}

// feed reads the page after a place. Where there is nothing it waits a while.
func (s *server) feed(ctx context.Context, after place, which selection, wait time.Duration) (feed, place, error) {
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
			if page.Events, after, full, err = s.public(page.Events, after, rec, which); err != nil {
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
func (s *server) public(events []domain.PublicEvent, after place, rec eventstore.Recorded, which selection) ([]domain.PublicEvent, place, bool, error) {
	x, err := s.Codec.Decode(rec)
	if err != nil {
		return events, after, false, err
	}
	public, err := domain.Public(x.Without(which.hidden))
	if err != nil {
		return events, after, false, err
	}
	for i := min(after.seen, len(public)); i < len(public); i++ {
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

// selected cuts the parameter types into patterns; nil selects everything.
func selected(types string) ([]string, error) {
	if types == "" {
		return nil, nil
	}
	patterns := strings.Split(types, ",")
	for _, pattern := range patterns {
		if !slices.ContainsFunc(domain.PublicNames, func(name string) bool { return domain.Selects(pattern, name) }) {
			p := newProblem(domain.CodeInvalidRequest, "A parameter breaks the rules listed.")
			p.Errors = []fault{{Parameter: "types", Detail: "must name public events, like USER_CREATED, or prefixes of some, like USER_*"}}
			return nil, p
		}
	}
	return patterns, nil
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
