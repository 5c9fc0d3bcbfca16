package httpapi

import (
	"context"
	"strconv"

	"accountledger/domain"
	"accountledger/projections"
	"accountledger/projections/webhooks"
)

func (s *server) disclosureRoutes() {
	handle(s, route{
		method: "GET", path: "/v1/accounts/{sub}/disclosures", name: "getDisclosures", scope: scopeAuditRead, status: 200, answer: disclosures{}, paged: true,
		summary: "Get who was told what of an account",
		text: "Which webhooks received which of the account's data, and when: an entry for each public event of the account and each webhook that was told of it, or is to be, in the order of the events. " +
			"What was sent is named, not repeated. It is worked out when it is asked for, from the log, the configurations of the webhooks and how far their deliveries are; the time at which something arrived is known as long as the attempts are remembered. " +
			"Who reads the feed, exports or the API is not in it. For an account that was merged, ask for the survivor, too.",
		codes: codes(onQuery, []domain.Code{domain.CodeAccountNotFound, domain.CodeInvalidCursor}),
	}, s.getDisclosures)
}

type getDisclosuresInput struct {
	Sub
	Query
	After string `query:"after" doc:"Continue after this cursor, the next of an earlier page. Default: from the first event."`
	Limit int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"Events of the account that a page is about, at most."`
}

// disclosures is a page of who was told what, in the order of the events.
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
	from, err := afterRevision(in.After)
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
		cursor := strconv.FormatInt(int64(next)-1, 10)
		page.Next = &cursor
		a.next(c, cursor)
	}
	return a.rendered(page)
}
