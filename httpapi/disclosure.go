package httpapi

import (
	"context"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/projections"
	"accountledger/projections/webhooks"
)

func (s *server) disclosureRoutes() {
	handle(s, route{
		method: "GET", path: "/v1/accounts/{sub}/disclosures", name: "getDisclosures", scope: scopeAuditRead, status: 200, answer: disclosures{}, paged: true,
		summary: "List the disclosures of an account's data",
		text: "Lists which webhooks received which of the account's data, and when: one entry for each public event of the account and each webhook that was or will be sent it, in the order of the events. " +
			"Entries name the members that were sent, not their values. The ledger computes them on request from the log, the webhooks' configurations and the state of their deliveries; the time of arrival is known only while the attempts are stored. " +
			"Readers of the feed, of exports and of the API are not included. For a merged account, also query the surviving account.",
		codes: codes(onQuery, onCursor, []domain.Code{domain.CodeAccountNotFound}),
	}, s.getDisclosures)
}

type getDisclosuresInput struct {
	Sub
	Query
	After string `query:"after" doc:"The next cursor of an earlier page. Default: start with the first event."`
	Limit int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"Maximum number of the account's events that a page covers."`
}

// disclosures is a page of disclosures, in the order of the account's events.
type disclosures struct {
	Disclosures []webhooks.Disclosure `json:"disclosures" doc:"The disclosures, in the order of the account's events."`
	Next        *string               `json:"next" doc:"Cursor of the next page; null on the last page."`
}

func (s *server) getDisclosures(ctx context.Context, c *call, in *getDisclosuresInput) (*answer, error) {
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
	account, err := s.Ledger.Account(ctx, sub)
	if err == nil && !account.Exists() {
		err = missing(projections.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	page := disclosures{Disclosures: []webhooks.Disclosure{}}
	all, next, err := s.Webhooks.Disclosures(ctx, sub, from, in.Limit)
	if err != nil {
		return nil, err
	}
	page.Disclosures = append(page.Disclosures, all...)
	if next > 0 {
		cursor, err := s.cursorBefore(ctx, sub, next)
		if err != nil {
			return nil, err
		}
		page.Next = &cursor
		a.next(c, cursor)
	}
	return a.rendered(page)
}

// cursorBefore returns the cursor of the page that begins with a revision of an
// account.
func (s *server) cursorBefore(ctx context.Context, sub string, next eventstore.Revision) (string, error) {
	for x, err := range s.Ledger.History(ctx, sub, next-1) {
		if err != nil {
			return "", err
		}
		return s.revisionCursor(ctx, x.Revision, x.Position)
	}
	return "", missing(projections.ErrNotFound)
}
