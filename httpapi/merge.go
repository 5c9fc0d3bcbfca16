package httpapi

import (
	"bytes"
	"context"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"accountledger/domain"
	"accountledger/projections"
)

func (s *server) mergeRoutes() {
	onMerge := codes(onChange, []domain.Code{domain.CodeMergeRefused, domain.CodeAdminRequired})
	handle(s, route{
		method: "POST", path: "/v1/accounts/{sub}/merge", name: "mergeAccount", scope: scopeAccountsWrite, status: 200, answer: merged{},
		summary: "Merge another account into this one",
		text:    "Merges both accounts in one atomic commit: every identifier of the other account resolves to exactly one account at any time. The other account becomes COMBINED, and its sub then resolves to this account.",
		example: `{"from":"0190b0c2-5f3e-7c1a-9d5e-3f6a1b2c4d5e"}`,
		codes:   onMerge,
	}, s.mergeAccount)
	handle(s, route{
		method: "POST", path: "/v1/accounts/{sub}/merge/preview", name: "previewMerge", scope: scopeAccountsRead, status: 200, answer: mergePreview{},
		summary: "Preview a merge",
		text:    "Applies the rules of a merge without storing anything. Returns the account after the merge, every conflict, the events, and what each webhook would be sent.",
		example: `{"from":"0190b0c2-5f3e-7c1a-9d5e-3f6a1b2c4d5e"}`,
		codes:   onMerge,
	}, s.previewMerge)
	handle(s, route{
		method: "POST", path: "/v1/accounts/{sub}/unmerge", name: "unmergeAccount", scope: scopeAccountsWrite, status: 200, answer: unmerged{},
		summary: "Undo a merge",
		text:    "Returns to the other account its identities in their current state, its identifiers and its status. Values that came from it and have not changed since are unset.",
		example: `{"sub":"0190b0c2-5f3e-7c1a-9d5e-3f6a1b2c4d5e"}`,
		codes:   codes(onMerge, []domain.Code{domain.CodeIdentifierTaken, domain.CodeIdentifierRequired}),
	}, s.unmergeAccount)
}

type mergeAccountInput struct {
	Sub
	Command
	JSON[mergeFrom]
}

// mergeFrom is the body of a merge and of its preview.
type mergeFrom struct {
	From string `json:"from" minLength:"36" maxLength:"36" doc:"The sub of the account to merge into this one."`
}

// merged is the result of a merge.
type merged struct {
	Account   domain.Account `json:"account" doc:"The surviving account after the merge."`
	Conflicts []conflict     `json:"conflicts" doc:"The members in which the accounts differed."`
}

// conflict is a member in which the accounts differed.
type conflict struct {
	Field   string         `json:"field" doc:"The member in which the accounts differ."`
	Kept    jsontext.Value `json:"kept" doc:"The value of the surviving account, which is kept."`
	Dropped jsontext.Value `json:"dropped" doc:"The value of the merged account, which is kept in the history only."`
}

// conflicts lists the members in which the merged account's value was not kept.
func conflicts(r domain.Result[domain.Account]) ([]conflict, error) {
	list := []conflict{}
	for _, x := range r.Events {
		e, ok := x.Event.(domain.AccountMerged)
		if !ok {
			continue
		}
		for _, key := range e.Conflicts {
			list = append(list, conflict{"customFields." + key, r.State.CustomFields[key], e.CustomFields[key]})
		}
		for _, brought := range e.Consents {
			kept, dropped := r.State.Consent(brought.ConsentID), brought
			if kept.From == e.From {
				if kept.Own == nil {
					continue // only one of them had decided
				}
				dropped = *kept.Own
			}
			if kept.Status == dropped.Status && kept.Version == dropped.Version {
				continue
			}
			kept.Own = nil
			k, err := json.Marshal(kept, json.Deterministic(true))
			if err != nil {
				return nil, err
			}
			d, err := json.Marshal(dropped, json.Deterministic(true))
			if err != nil {
				return nil, err
			}
			list = append(list, conflict{"consents." + brought.ConsentID, k, d})
		}
	}
	return list, nil
}

// otherSub returns the canonical form of the sub that a command on the account sub
// names in its body, at pointer.
func otherSub(sub, other, pointer string) (string, error) {
	if _, err := canonical(sub); err != nil {
		return "", err
	}
	other, err := canonical(other)
	if err != nil {
		return "", invalid([]domain.Fault{{Pointer: pointer, Detail: "must be the sub of an account, a UUID"}})
	}
	return other, nil
}

func (s *server) mergeAccount(ctx context.Context, c *call, in *mergeAccountInput) (*answer, error) {
	from, err := otherSub(in.Sub.Sub, in.value.From, "/from")
	if err != nil {
		return nil, err
	}
	return s.executeAnd(ctx, c, in.Command, in.Sub.Sub, domain.MergeAccount{From: from}, func(a *answer, result domain.Result[domain.Account]) (*answer, error) {
		found, err := conflicts(result)
		if err != nil {
			return nil, err
		}
		return a.rendered(merged{result.State, found})
	})
}

type previewMergeInput struct {
	Sub
	JSON[mergeFrom]
}

// mergePreview is the result that a merge would have.
type mergePreview struct {
	Account   domain.Account   `json:"account" doc:"The surviving account after the merge."`
	Conflicts []conflict       `json:"conflicts" doc:"The members in which the accounts differ."`
	Events    []plannedEvent   `json:"events" doc:"The events the merge would append to both accounts."`
	Webhooks  []plannedWebhook `json:"webhooks" doc:"The webhooks that would be notified, and of which events."`
}

// plannedWebhook lists the events a webhook would be sent.
type plannedWebhook struct {
	WebhookID string   `json:"webhookId" doc:"The webhook's id."`
	Events    []string `json:"events" doc:"The names of the events it would be sent, in order."`
}

func (s *server) previewMerge(ctx context.Context, c *call, in *previewMergeInput) (*answer, error) {
	from, err := otherSub(in.Sub.Sub, in.value.From, "/from")
	if err != nil {
		return nil, err
	}
	result, err := s.ask(ctx, c, Command{DryRun: true}, in.Sub.Sub, domain.MergeAccount{From: from})
	if err != nil {
		return nil, err
	}
	preview := mergePreview{Account: result.State}
	if preview.Conflicts, err = conflicts(result); err != nil {
		return nil, err
	}
	if preview.Events, err = planned(result.Events); err != nil {
		return nil, err
	}
	if preview.Webhooks, err = s.plannedWebhooks(ctx, result.Events); err != nil {
		return nil, err
	}
	return s.settled(ctx, s.Views.Accounts().Position()).rendered(preview)
}

// plannedWebhooks returns the webhooks that would be sent these entries.
func (s *server) plannedWebhooks(ctx context.Context, entries []domain.Entry) ([]plannedWebhook, error) {
	endpoints, err := s.Webhooks.List(ctx)
	if err != nil {
		return nil, err
	}
	list := []plannedWebhook{}
	for _, e := range endpoints {
		if e.State != domain.WebhookEnabled {
			continue
		}
		w := plannedWebhook{WebhookID: e.WebhookID}
		for _, x := range entries {
			public, err := domain.Public(x, 0) // only its names are used
			if err != nil {
				return nil, err
			}
			for _, p := range public {
				if name := p.EventName(e.Events); name != "" {
					w.Events = append(w.Events, name)
				}
			}
		}
		if len(w.Events) > 0 {
			list = append(list, w)
		}
	}
	return list, nil
}

type unmergeAccountInput struct {
	Sub
	Command
	JSON[unmergeSub]
}

// unmergeSub is the body of POST /v1/accounts/{sub}/unmerge.
type unmergeSub struct {
	Sub string `json:"sub" minLength:"36" maxLength:"36" doc:"The sub of the account to restore."`
}

// unmerged is the result of undoing a merge.
type unmerged struct {
	Account  domain.Account `json:"account" doc:"The surviving account."`
	Restored domain.Account `json:"restored" doc:"The account that was separated from it."`
}

func (s *server) unmergeAccount(ctx context.Context, c *call, in *unmergeAccountInput) (*answer, error) {
	sub, err := otherSub(in.Sub.Sub, in.value.Sub, "/sub")
	if err != nil {
		return nil, err
	}
	return s.executeAnd(ctx, c, in.Command, in.Sub.Sub, domain.UnmergeAccount{Sub: sub}, func(a *answer, result domain.Result[domain.Account]) (*answer, error) {
		return a.rendered(unmerged{result.State, result.Others[0]})
	})
}

// survivor returns the account with this sub, or the one it was merged into.
func (s *server) survivor(ctx context.Context, sub string) (projections.AccountRow, error) {
	row, err := s.Views.Accounts().Get(ctx, sub)
	if err != nil {
		return row, missing(err)
	}
	return s.survivorOf(ctx, row)
}

// survivorOf returns row, or the account that row's account was merged into.
func (s *server) survivorOf(ctx context.Context, row projections.AccountRow) (projections.AccountRow, error) {
	// Few accounts are merged; the others need no decoding.
	for bytes.Contains(row.JSON, []byte(`"combinedInto":`)) {
		account, err := row.Account()
		if err != nil || account.CombinedInto == "" { // a custom field may have the name
			return row, err
		}
		if row, err = s.Views.Accounts().Get(ctx, account.CombinedInto); err != nil {
			return row, missing(err)
		}
	}
	return row, nil
}
