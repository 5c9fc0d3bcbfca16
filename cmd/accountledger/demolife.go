package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"accountledger/cmd/accountledger/cli"
	"accountledger/cmd/accountledger/remote"
	"accountledger/domain"
)

// The same person's other account, which she made at work.
const demoWork = "emily@work.example"

// created is what the demo wants of an answer to a creation.
type created struct {
	Sub string `json:"sub"`
}

// merge merges a second account into the first and takes that back.
func (d *demonstration) merge(ctx context.Context) error {
	d.say("Emily had made a second account at work. What would come of merging it?")
	second := map[string]any{"identities": []map[string]any{{"provider": "self", "given_name": "Emily", "email": demoWork}},
		"customFields": map[string]any{"desk": "4b"}}
	var work created
	if err := d.client.Call(ctx, "POST", "/v1/accounts", second, &work); err != nil {
		return err
	}
	d.work = work.Sub
	path, from := "/v1/accounts/"+d.sub, map[string]string{"from": d.work}
	var preview struct {
		Account domain.Account `json:"account"`
		Events  []struct {
			Type string `json:"type"`
			Sub  string `json:"sub"`
		} `json:"events"`
		Webhooks []struct {
			Events []string `json:"events"`
		} `json:"webhooks"`
	}
	if err := d.client.Call(ctx, "POST", path+"/merge/preview", from, &preview); err != nil {
		return err
	}
	for _, e := range preview.Events {
		d.show("%s in %s", e.Type, e.Sub)
	}
	if len(preview.Webhooks) != 1 || len(preview.Account.Identities) != 3 {
		return fmt.Errorf("the preview shows %d identities, and events for %d webhooks", len(preview.Account.Identities), len(preview.Webhooks))
	}
	d.show("the webhook would be told %s", strings.Join(preview.Webhooks[0].Events, " and "))

	d.say("They are merged, and that is taken back.")
	if err := d.client.Call(ctx, "POST", path+"/merge", from, nil); err != nil {
		return err
	}
	account, err := d.lookup(ctx, demoWork)
	if err != nil {
		return err
	}
	d.show("%s leads to %s, which has %d identities", demoWork, account.Sub, len(account.Identities))
	if account.Sub != d.sub || len(account.Identities) != 3 {
		return errors.New("the merged account's address does not lead to the survivor")
	}
	if err := d.client.Call(ctx, "POST", path+"/unmerge", map[string]string{"sub": d.work}, nil); err != nil {
		return err
	}
	if account, err = d.lookup(ctx, demoWork); err != nil {
		return err
	}
	d.show("%s leads to %s again, which is %s", demoWork, account.Sub, account.Status)
	if account.Sub != d.work || account.Status != domain.StatusVerified {
		return fmt.Errorf("the separated account is %s, %s", account.Sub, account.Status)
	}
	return d.expect(ctx, delivery{Sub: d.work, Type: "USER_CREATED"}, delivery{Sub: d.sub, Type: "USER_COMBINED"}, delivery{Sub: d.work, Type: "USER_STATUS_CHANGED"},
		delivery{Sub: d.sub, Type: "USER_SEPARATED"}, delivery{Sub: d.work, Type: "USER_STATUS_CHANGED"})
}

// consent defines a consent and records a decision.
func (d *demonstration) consent(ctx context.Context) error {
	d.say("She accepts the newsletter; what she was asked is kept with the answer.")
	definition := map[string]any{"name": "Newsletter", "purpose": "marketing",
		"versions": []map[string]any{{"version": 1, "text": map[string]string{"en": "Send me news."}}}}
	if err := d.client.Call(ctx, "PUT", "/v1/consents/newsletter", definition, nil); err != nil {
		return err
	}
	decision := map[string]any{"consentId": "newsletter", "version": 1, "status": "accepted", "channel": "web", "evidence": "checkbox on the sign-up form"}
	var account domain.Account
	if err := d.client.Call(ctx, "POST", "/v1/accounts/"+d.sub+"/consents", decision, &account); err != nil {
		return err
	}
	if len(account.Consents) != 1 {
		return fmt.Errorf("the account has %d consents", len(account.Consents))
	}
	d.show("newsletter, version 1: %s", account.Consents[0].Status)
	return d.expect(ctx, delivery{Sub: d.sub, Type: "CONSENT_ACCEPTED"})
}

// schedule plans a reminder and waits for it.
func (d *demonstration) schedule(ctx context.Context) error {
	d.say("A reminder is planned for the next second, and fires.")
	due := time.Now().Add(500 * time.Millisecond).UTC().Truncate(time.Microsecond)
	path := "/v1/accounts/" + d.sub + "/schedules"
	var planned domain.Schedule
	if err := d.client.Call(ctx, "POST", path, map[string]any{"kind": "reminder", "dueTime": due}, &planned); err != nil {
		return err
	}
	if err := d.expect(ctx, delivery{Sub: d.sub, Type: "SCHEDULE_PLANNED"}, delivery{Sub: d.sub, Type: "SCHEDULE_EXECUTED"}); err != nil {
		return err
	}
	// The receiver may know before the view does: a read asks for a state that
	// includes what it was told of.
	var history struct {
		Events []struct {
			Position int64 `json:"position"`
		} `json:"events"`
	}
	if err := d.client.Call(ctx, "GET", "/v1/accounts/"+d.sub+"/events", nil, &history); err != nil {
		return err
	}
	last := history.Events[len(history.Events)-1].Position
	var done domain.Schedule
	if err := d.client.Call(ctx, "GET", fmt.Sprintf("%s/%s?min_position=%d", path, planned.ScheduleID, last), nil, &done); err != nil {
		return err
	}
	d.show("due %s, %s %d ms later", due.Format(cli.TimeFormat), done.State, done.ExecutedTime.Sub(due).Milliseconds())
	if done.State != domain.ScheduleDone || done.ExecutedTime.Before(due) {
		return fmt.Errorf("the schedule is %+v", done)
	}
	return nil
}

// purge erases the second account and looks for it.
func (d *demonstration) purge(ctx context.Context) error {
	d.say("She asks for the account she had at work to be forgotten.")
	var answer struct {
		Certificate struct {
			Sub    string `json:"sub"`
			Events []struct {
				Type string `json:"type"`
			} `json:"events"`
		} `json:"certificate"`
	}
	path := "/v1/accounts/" + d.work
	if err := d.client.Call(ctx, "DELETE", path+"?immediate=true", nil, &answer); err != nil {
		return err
	}
	c := answer.Certificate
	d.show("certificate: %d events were sealed under the key that is destroyed", len(c.Events))
	if c.Sub != d.work || len(c.Events) == 0 {
		return fmt.Errorf("the certificate is %+v", c)
	}
	for what, err := range map[string]error{
		"the account":     d.client.Call(ctx, "GET", path, nil, nil),
		"its identifiers": func() error { _, err := d.lookup(ctx, demoWork); return err }(),
	} {
		if refused, ok := errors.AsType[*remote.Refusal](err); !ok || !slices.Contains([]int{http.StatusGone, http.StatusNotFound}, refused.Status) {
			return fmt.Errorf("%s should be gone: %v", what, err)
		}
	}
	d.show("its sub answers 410, and %s leads nowhere", demoWork)
	return d.expect(ctx, delivery{Sub: d.work, Type: "USER_DELETED"})
}
