package remote

import (
	"context"
	"fmt"
	"net/url"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"

	"accountledger/cmd/accountledger/cli"
	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/projections/webhooks"
)

type deliveryPage struct {
	Deliveries []webhooks.Delivery `json:"deliveries"`
	Next       *string             `json:"next"`
}

func webhooksDeliveriesCommand() *cobra.Command {
	var p pageFlags
	var attempts bool
	var status, sub string
	cmd := onWebhook("deliveries", "Show the deliveries of a webhook", `Show the deliveries of a webhook that the server still remembers, newest first.
Their status is pending, retrying, delivered, dead (given up), or settled: done,
but the outcome is no longer known. With --attempts show each attempt and the
receiver's response.`)
	p.add(cmd.Flags(), "deliveries")
	cmd.Flags().BoolVar(&attempts, "attempts", false, "show each attempt")
	cmd.Flags().StringVar(&status, "status", "", "only deliveries with this status")
	cmd.Flags().StringVar(&sub, "sub", "", "only deliveries about this account")
	cmd.RegisterFlagCompletionFunc("status", complete(webhooks.Statuses...))
	return onServer(cmd, func(ctx context.Context, s *session, args []string) error {
		query := url.Values{}
		if status != "" {
			if err := cli.OneOf("status", status, webhooks.Statuses...); err != nil {
				return err
			}
			query.Set("status", status)
		}
		if sub != "" {
			query.Set("sub", sub)
		}
		return pages(ctx, s, p, listed(webhookPath(args[0], "/deliveries"), query), func(page deliveryPage) *string {
			if attempts {
				s.out.attempts(page.Deliveries)
			} else {
				s.out.deliveries(page.Deliveries)
			}
			return page.Next
		})
	})
}

func (c printer) deliveries(list []webhooks.Delivery) {
	var rows [][]any
	for _, d := range list {
		var last webhooks.Attempt
		if n := len(d.Attempts); n > 0 {
			last = d.Attempts[n-1]
		}
		rows = append(rows, []any{d.EventID, d.Type, d.Sub, d.Sequence, d.Status, len(d.Attempts), last.Time, answered(last)})
	}
	c.Table([]any{"event", "type", "account", "sequence", "status", "attempts", "last", "answered"}, rows)
}

func (c printer) attempts(list []webhooks.Delivery) {
	var rows [][]any
	for _, d := range list {
		for _, a := range d.Attempts {
			rows = append(rows, []any{d.EventID, d.Type, a.Time, a.Trigger, answered(a), a.Response, fmt.Sprintf("%.0f ms", a.DurationMs)})
		}
	}
	c.Table([]any{"event", "type", "at", "trigger", "answered", "response", "took"}, rows)
}

// answered returns the HTTP status of an attempt, or its error.
func answered(a webhooks.Attempt) string {
	switch {
	case a.Time.IsZero():
		return ""
	case a.Status == 0:
		return a.Error
	}
	return fmt.Sprint(a.Status)
}

func webhooksLanesCommand() *cobra.Command {
	var p pageFlags
	cmd := onWebhook("lanes", "Show the accounts whose deliveries wait", `Show the accounts whose deliveries to a webhook are held up while those of other
accounts continue: retrying, blocked by an event that was given up, or waiting.`)
	p.add(cmd.Flags(), "accounts")
	return onServer(cmd, func(ctx context.Context, s *session, args []string) error {
		return pages(ctx, s, p, listed(webhookPath(args[0], "/lanes"), nil), func(page struct {
			Lanes []webhooks.Lane `json:"lanes"`
			Next  *string         `json:"next"`
		}) *string {
			var rows [][]any
			for _, l := range page.Lanes {
				rows = append(rows, []any{l.Sub, l.Status, l.Sequence, l.Attempts, l.Error, l.NextAttemptTime, l.EventID})
			}
			s.out.Table([]any{"account", "status", "sequence", "attempts", "error", "next attempt", "event"}, rows)
			return page.Next
		})
	})
}

func webhooksResendCommand() *cobra.Command {
	return onServer(onWebhook("resend EVENT", "Send an event again", `Send the event with the id EVENT again, immediately and in any state of the
webhook, and show the receiver's response. 'deliveries' shows the ids.`), func(ctx context.Context, s *session, args []string) error {
		return ask(ctx, s, post(webhookPath(args[0], "/deliveries/"+url.PathEscape(args[1])+"/resend")), func(d webhooks.Delivery) {
			s.out.deliveries([]webhooks.Delivery{d})
		})
	})
}

func (c printer) replays(list ...webhooks.Replay) {
	var rows [][]any
	for _, r := range list {
		rows = append(rows, []any{r.ReplayID, r.State, r.Delivered, r.Failed, int64(r.Position), int64(r.Filter.UpTo), r.CreatedTime, r.EndedTime})
	}
	c.Table([]any{"replay", "state", "delivered", "failed", "position", "up to", "begun", "ended"}, rows)
}

func (c printer) replay(r webhooks.Replay) { c.replays(r) }

func webhooksRecoverCommand() *cobra.Command {
	var w writeFlags
	var since timeValue
	cmd := onWebhook("recover", "Send failed events again", `Send each event again that was never delivered and whose last attempt failed, or
that was given up, at or after a time. 'replays' shows the progress.`)
	w.addKey(cmd.Flags())
	timeFlag(cmd.Flags(), &since, "since", -1, "only events that failed at this time or later")
	cmd.MarkFlagRequired("since")
	return onServer(cmd, func(ctx context.Context, s *session, args []string) error {
		body, err := json.Marshal(map[string]time.Time{"since": since.Time})
		if err != nil {
			return err
		}
		return write(ctx, s, &w, w.unconditional("POST", webhookPath(args[0], "/recover"), body), s.out.replay)
	})
}

func webhooksReplayCommand() *cobra.Command {
	var w writeFlags
	var since, until timeValue
	var body struct {
		After   eventstore.Position `json:"after,omitzero"`
		UpTo    eventstore.Position `json:"upTo,omitzero"`
		Since   time.Time           `json:"since,omitzero"`
		Until   time.Time           `json:"until,omitzero"`
		Events  []string            `json:"events,omitempty"`
		Sub     string              `json:"sub,omitzero"`
		Missing bool                `json:"missing,omitzero"`
	}
	cmd := onWebhook("replay", "Send a part of the log again", `Send the events in a part of the log again, in one attempt each. Only events
that the webhook selects are sent. Without bounds, the part is the whole log.
'replays' shows the progress.`)
	w.addKey(cmd.Flags())
	flags := cmd.Flags()
	flags.Int64Var((*int64)(&body.After), "after", 0, "only events after this position of the log")
	flags.Int64Var((*int64)(&body.UpTo), "up-to", 0, "only events up to this position; default the end of the log")
	timeFlag(flags, &since, "since", -1, "only events recorded at this time or later")
	timeFlag(flags, &until, "until", -1, "only events recorded before this time")
	flags.StringSliceVar(&body.Events, "event", nil, "only events with these names, or prefixes like USER_*")
	cmd.RegisterFlagCompletionFunc("event", complete(domain.PublicNames...))
	flags.StringVar(&body.Sub, "sub", "", "only events of this account")
	flags.BoolVar(&body.Missing, "missing", false, "only events without a successful attempt that the server remembers")
	return onServer(cmd, func(ctx context.Context, s *session, args []string) error {
		body.Since, body.Until = since.Time, until.Time
		text, err := json.Marshal(body)
		if err != nil {
			return err
		}
		return write(ctx, s, &w, w.unconditional("POST", webhookPath(args[0], "/replay"), text), s.out.replay)
	})
}

func webhooksReplaysCommand() *cobra.Command {
	return onServer(onWebhook("replays", "Show the replays of a webhook and their progress",
		`Show the replays of a webhook, newest first, and their progress.`), func(ctx context.Context, s *session, args []string) error {
		return ask(ctx, s, get(webhookPath(args[0], "/replays")), func(list struct {
			Replays []webhooks.Replay `json:"replays"`
		}) {
			s.out.replays(list.Replays...)
		})
	})
}

func webhooksCancelReplayCommand() *cobra.Command {
	return onServer(onWebhook("cancel-replay REPLAY", "Cancel a replay",
		`Cancel a replay. Deliveries that have started still arrive. A replay that has
ended does not change.`), func(ctx context.Context, s *session, args []string) error {
		r := post(webhookPath(args[0], "/replays/"+url.PathEscape(args[1])))
		r.method, r.repeatable = "DELETE", true
		return ask(ctx, s, r, s.out.replay)
	})
}
