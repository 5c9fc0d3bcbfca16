package httpapi

import (
	"context"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/projections"
)

func (s *server) historyRoutes() {
	handle(s, route{
		method: "GET", path: "/v1/accounts/{sub}/events", name: "getHistory", scope: scopeAuditRead, status: 200, answer: history{}, paged: true,
		summary: "Get the history of an account",
		text:    "Returns every event of the account, oldest first, read from the log. The history of an erased account remains available without its personal data.",
		codes:   codes(onQuery, onCursor, []domain.Code{domain.CodeAccountNotFound}),
	}, s.getHistory)
}

type getHistoryInput struct {
	Sub
	Query
	After string `query:"after" doc:"The next cursor of an earlier page. Default: start with the first event."`
	Limit int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"Maximum number of events on a page."`
}

// history is a page of an account's events, oldest first.
type history struct {
	Events []historyEvent `json:"events" doc:"The events, oldest first."`
	Next   *string        `json:"next" doc:"Cursor of the next page; null on the last page."`
}

// historyEvent is an event of the log with its personal data opened.
type historyEvent struct {
	Position      eventstore.Position `json:"position" doc:"The event's position in the log."`
	Revision      eventstore.Revision `json:"revision" doc:"The event's number within the account, counted from 0."`
	ID            string              `json:"id" doc:"The event's id."`
	Type          string              `json:"type" doc:"The event's type in the log, including its version."`
	Time          time.Time           `json:"time" doc:"When the event was recorded."`
	EffectiveTime time.Time           `json:"effectiveTime,omitzero" doc:"When the event took effect, if not when it was recorded."`
	Actor         domain.Actor        `json:"actor" doc:"Who caused the event."`
	CommandID     string              `json:"commandId,omitzero" doc:"Identifies the command: a digest of the caller and its Idempotency-Key."`
	CorrelationID string              `json:"correlationId,omitzero" doc:"The X-Request-Id of the request that caused the event."`
	CausationID   string              `json:"causationId,omitzero" doc:"The event that caused this one."`
	ReasonCode    string              `json:"reasonCode,omitzero" doc:"Why it happened, as a code."`
	Erased        bool                `json:"erased,omitzero" doc:"Whether the event's personal data has been erased."`
	Data          jsontext.Value      `json:"data" doc:"The event's data."`
}

func (s *server) getHistory(ctx context.Context, c *call, in *getHistoryInput) (*answer, error) {
	a, err := s.fresh(ctx, in.Query)
	if err != nil {
		return nil, err
	}
	sub, err := canonical(in.Sub.Sub)
	if err != nil {
		return nil, err
	}
	from, err := s.afterRevision(ctx, sub, in.After)
	if err != nil {
		return nil, err
	}
	hidden, err := s.hidden(ctx, c)
	if err != nil {
		return nil, err
	}
	page, err := s.readHistory(ctx, sub, from, in.Limit, hidden)
	if err != nil {
		return nil, err
	}
	if page.Next != nil {
		a.next(c, *page.Next)
	}
	return a.rendered(page)
}

// readHistory reads the page of an account's events that begins at revision
// from.
func (s *server) readHistory(ctx context.Context, sub string, from eventstore.Revision, limit int, hidden domain.Hidden) (history, error) {
	var page history
	for x, err := range s.Ledger.History(ctx, sub, from) {
		if err != nil {
			return page, err
		}
		if len(page.Events) == limit {
			last := page.Events[limit-1]
			next, err := s.revisionCursor(ctx, last.Revision, last.Position)
			if err != nil {
				return page, err
			}
			page.Next = &next
			break
		}
		data, err := x.Without(hidden).Data()
		if err != nil {
			return page, err
		}
		m := x.Meta
		page.Events = append(page.Events, historyEvent{x.Position, x.Revision, x.ID.String(), x.Type, x.Time, m.EffectiveTime,
			m.Actor, m.CommandID, m.CorrelationID, m.CausationID, m.ReasonCode, x.Erased, data})
	}
	if len(page.Events) > 0 {
		return page, nil
	}
	// No events after a cursor is a valid answer, unless the account does not exist.
	account, err := s.Ledger.Account(ctx, sub)
	if err == nil && !account.Exists() {
		err = missing(projections.ErrNotFound)
	}
	return page, err
}

// revisionCursor returns the cursor of the page after a revision of an account,
// whose event is at a position. Like a cursor of the feed, it has the forks before.
func (s *server) revisionCursor(ctx context.Context, r eventstore.Revision, at eventstore.Position) (string, error) {
	lineage, err := s.Ledger.Lineage(ctx)
	if err != nil {
		return "", err
	}
	return withForks(strconv.FormatInt(int64(r), 10), lineage.Forks(at)), nil
}

// afterRevision returns the first revision on the page after cursor.
func (s *server) afterRevision(ctx context.Context, sub, cursor string) (eventstore.Revision, error) {
	if cursor == "" {
		return 0, nil
	}
	number, forks, ok := cutForks(cursor)
	after, err := strconv.ParseInt(number, 10, 64)
	if !ok || err != nil || after < 0 || after == 1<<63-1 {
		return 0, newProblem(domain.CodeInvalidCursor, "The cursor does not belong to this resource.")
	}
	lineage, err := s.Ledger.Lineage(ctx)
	if err != nil {
		return 0, err
	}
	shared, forked, known := lineage.Shared(forks)
	if !known {
		return 0, errUnknownFork()
	}
	if !forked {
		return eventstore.Revision(after) + 1, nil
	}
	var last *domain.Entry // before the fork
	for x, err := range s.Ledger.History(ctx, sub, 0) {
		if err != nil {
			return 0, err
		}
		if x.Position > shared || int64(x.Revision) > after {
			break
		}
		last = &x
	}
	switch {
	case last == nil:
		return 0, errForked(shared, "")
	case int64(last.Revision) == after:
		return last.Revision + 1, nil
	}
	next, err := s.revisionCursor(ctx, last.Revision, last.Position)
	if err != nil {
		return 0, err
	}
	return 0, errForked(shared, next)
}
