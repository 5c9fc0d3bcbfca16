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

// demoWork is the e-mail address of the person's second account.
const demoWork = "emily@work.example"

// created is the part of a new account that the demo reads.
type created struct {
	Sub string `json:"sub"`
}

// merge merges a second account into the first and reverts the merge.
func (d *demonstration) merge(ctx context.Context) error {
	d.say("Emily has a second account. Preview what merging it would do.")
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
		return fmt.Errorf("the preview has %d identities, and events for %d webhooks", len(preview.Account.Identities), len(preview.Webhooks))
	}
	d.show("the webhook would receive %s", strings.Join(preview.Webhooks[0].Events, " and "))

	d.say("Merge the accounts, and revert the merge.")
	if err := d.client.Call(ctx, "POST", path+"/merge", from, nil); err != nil {
		return err
	}
	account, err := d.lookup(ctx, demoWork)
	if err != nil {
		return err
	}
	d.show("%s belongs to %s, which has %d identities", demoWork, account.Sub, len(account.Identities))
	if account.Sub != d.sub || len(account.Identities) != 3 {
		return errors.New("the merged account's address does not belong to the surviving account")
	}
	if err := d.client.Call(ctx, "POST", path+"/unmerge", map[string]string{"sub": d.work}, nil); err != nil {
		return err
	}
	if account, err = d.lookup(ctx, demoWork); err != nil {
		return err
	}
	d.show("%s belongs to %s again, which is %s", demoWork, account.Sub, account.Status)
	if account.Sub != d.work || account.Status != domain.StatusVerified {
		return fmt.Errorf("the separated account is %s, %s", account.Sub, account.Status)
	}
	return d.expect(ctx, delivery{Sub: d.work, Type: "USER_CREATED"}, delivery{Sub: d.sub, Type: "USER_COMBINED"}, delivery{Sub: d.work, Type: "USER_STATUS_CHANGED"},
		delivery{Sub: d.sub, Type: "USER_SEPARATED"}, delivery{Sub: d.work, Type: "USER_STATUS_CHANGED"})
}

// consent defines a consent and records a decision.
func (d *demonstration) consent(ctx context.Context) error {
	d.say("Record that she accepts the newsletter, with the version of its text.")
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

// schedule schedules a reminder and waits until it is executed.
func (d *demonstration) schedule(ctx context.Context) error {
	d.say("Schedule a reminder for the next second.")
	due := time.Now().Add(500 * time.Millisecond).UTC().Truncate(time.Microsecond)
	path := "/v1/accounts/" + d.sub + "/schedules"
	var planned domain.Schedule
	if err := d.client.Call(ctx, "POST", path, map[string]any{"kind": "reminder", "dueTime": due}, &planned); err != nil {
		return err
	}
	if err := d.expect(ctx, delivery{Sub: d.sub, Type: "SCHEDULE_PLANNED"}, delivery{Sub: d.sub, Type: "SCHEDULE_EXECUTED"}); err != nil {
		return err
	}
	// The receiver may get an event before the view applies it, so the read below
	// waits for the event's position.
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
	d.show("due at %s, %s %d ms later", due.Format(cli.TimeFormat), done.State, done.ExecutedTime.Sub(due).Milliseconds())
	if done.State != domain.ScheduleDone || done.ExecutedTime.Before(due) {
		return fmt.Errorf("the schedule is %+v", done)
	}
	return nil
}

// purge erases the second account and checks that it is gone.
func (d *demonstration) purge(ctx context.Context) error {
	d.say("Erase her second account.")
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
	d.show("certificate: %d events were encrypted with the destroyed key", len(c.Events))
	if c.Sub != d.work || len(c.Events) == 0 {
		return fmt.Errorf("the certificate is %+v", c)
	}
	for what, err := range map[string]error{
		"the account":     d.client.Call(ctx, "GET", path, nil, nil),
		"its identifiers": func() error { _, err := d.lookup(ctx, demoWork); return err }(),
	} {
		if refused, ok := errors.AsType[*remote.Refusal](err); !ok || !slices.Contains([]int{http.StatusGone, http.StatusNotFound}, refused.Status) {
			return fmt.Errorf("%s is still there: %v", what, err)
		}
	}
	d.show("its sub returns 410, and %s belongs to no account", demoWork)
	return d.expect(ctx, delivery{Sub: d.work, Type: "USER_DELETED"})
}
