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
	cmd := onWebhook("deliveries", "Show what was delivered to a webhook", `Show what was delivered to a webhook, newest first, as far as it is remembered:
pending, delivered, retrying, dead where it was given up, and settled where it is
over and no more is known. With --attempts each attempt is a line, and what was
answered.`)
	p.add(cmd.Flags(), "deliveries")
	cmd.Flags().BoolVar(&attempts, "attempts", false, "show each attempt")
	cmd.Flags().StringVar(&status, "status", "", "only those of which this has become")
	cmd.Flags().StringVar(&sub, "sub", "", "only those that tell of this account")
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

// answered is what came of an attempt.
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
	cmd := onWebhook("lanes", "Show which accounts wait, and for what", `Show the accounts of which a webhook was not told something yet that others have
been past: retrying, blocked by an event that was given up, or waiting.`)
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
	return onServer(onWebhook("resend EVENT", "Send an event once more", `Send an event once more, at once and whatever the state of the webhook, and show
what the receiver answered. EVENT is its id, as deliveries shows it.`), func(ctx context.Context, s *session, args []string) error {
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
	cmd := onWebhook("recover", "Send what failed once more", `Send every event once more whose attempts all failed, the last of them since a
time, or that was given up since then. replays shows how far it is.`)
	w.addKey(cmd.Flags())
	timeFlag(cmd.Flags(), &since, "since", -1, "from when on it failed")
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
	cmd := onWebhook("replay", "Send a part of the log once more", `Send a part of the log once more: the events in it that the webhook selects, one
attempt each. Without a bound it is the whole log. replays shows how far it is.`)
	w.addKey(cmd.Flags())
	flags := cmd.Flags()
	flags.Int64Var((*int64)(&body.After), "after", 0, "events after this position of the log")
	flags.Int64Var((*int64)(&body.UpTo), "up-to", 0, "events up to this position; default the log's end")
	timeFlag(flags, &since, "since", -1, "events recorded then or later")
	timeFlag(flags, &until, "until", -1, "events recorded before")
	flags.StringSliceVar(&body.Events, "event", nil, "only events of these names, or prefixes like USER_*")
	cmd.RegisterFlagCompletionFunc("event", complete(domain.PublicNames...))
	flags.StringVar(&body.Sub, "sub", "", "only events of this account")
	flags.BoolVar(&body.Missing, "missing", false, "only what has no successful attempt, as far as attempts are remembered")
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
	return onServer(onWebhook("replays", "Show the replays of a webhook, and how far they are",
		`Show the replays of a webhook, newest first, and how far they are.`), func(ctx context.Context, s *session, args []string) error {
		return ask(ctx, s, get(webhookPath(args[0], "/replays")), func(list struct {
			Replays []webhooks.Replay `json:"replays"`
		}) {
			s.out.replays(list.Replays...)
		})
	})
}

func webhooksCancelReplayCommand() *cobra.Command {
	return onServer(onWebhook("cancel-replay REPLAY", "Cancel a replay",
		`Cancel a replay. What is under way arrives; one that has ended stays as it is.`), func(ctx context.Context, s *session, args []string) error {
		r := post(webhookPath(args[0], "/replays/"+url.PathEscape(args[1])))
		r.method, r.repeatable = "DELETE", true
		return ask(ctx, s, r, s.out.replay)
	})
}
