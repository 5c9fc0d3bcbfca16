package webhooks

import (
	"context"
	"strings"

	"accountledger/domain"
)

// ledger is what deliveries need of the ledger. Everywhere else the package
// only follows the log; here it reads the configuration and issues commands.
// Those in the name of a client come from the API. Those in the name of the
// system are the package's own: reports of deliveries that fail, recover or are
// exhausted, the verification of an endpoint, and disabling a webhook.
type ledger struct{ domain *domain.Ledger }

// bySystem issues a command in the name of the system.
var bySystem = domain.Request{Meta: domain.Metadata{Actor: domain.Actor{Kind: "system", ID: "webhooks"}}}

// webhook returns the webhook's current configuration, which does not exist
// before its creation and after its deletion.
func (l ledger) webhook(ctx context.Context, id string) (domain.Webhook, error) {
	return l.domain.Webhook(ctx, id)
}

// existing is webhook, with CodeWebhookNotFound for one that does not exist.
func (l ledger) existing(ctx context.Context, id string) (domain.Webhook, error) {
	conf, err := l.domain.Webhook(ctx, id)
	if err == nil && !conf.Exists() {
		err = errNotFound()
	}
	return conf, err
}

func errNotFound() error {
	return &domain.Error{Code: domain.CodeWebhookNotFound, Detail: "There is no such webhook."}
}

// without returns the entry without internal custom fields. No webhook receives
// them: a client may register webhooks without permission to read those fields.
func (l ledger) without(ctx context.Context, entry domain.Entry) (domain.Entry, error) {
	config, err := l.domain.Config(ctx) // in memory after the first call
	if err != nil {
		return entry, err
	}
	return entry.Without(config.Hidden()), nil
}

// lineage returns the ledger's incarnations.
func (l ledger) lineage(ctx context.Context) (*domain.Lineage, error) {
	return l.domain.Lineage(ctx) // in memory after the first call
}

// try decides on a command and records nothing.
func (l ledger) try(ctx context.Context, r domain.Request, id string, cmd domain.WebhookCommand) (domain.Result[domain.Webhook], error) {
	r.DryRun = true
	return l.domain.ChangeWebhook(ctx, r, id, cmd)
}

// execute decides on a command and records the events. engine.change calls it
// for every command that changes the configuration, and report for the others.
func (l ledger) execute(ctx context.Context, r domain.Request, id string, cmd domain.WebhookCommand) (domain.Result[domain.Webhook], error) {
	return l.domain.ChangeWebhook(ctx, r, id, cmd)
}

// report records how deliveries to a webhook go: domain.ReportFailing,
// ReportRecovered or ReportExhausted. It records even if ctx is done, because
// the reporting worker does not detect the same change again.
func (l ledger) report(ctx context.Context, id string, cmd domain.WebhookCommand) error {
	_, err := l.execute(context.WithoutCancel(ctx), bySystem, id, cmd)
	return err
}

// exhausted is the report of a dead letter.
func exhausted(d record) domain.WebhookCommand {
	return domain.ReportExhausted{EventID: d.event.String(), EventType: d.kind, Sub: d.sub, Sequence: d.sequence, Position: d.position, Reason: d.outcome.Code}
}

// isReport reports whether a public event is itself such a report.
func isReport(kind string) bool { return strings.HasPrefix(kind, "WEBHOOK_DELIVERY_") }

// verified is the command that records the endpoint's consent to deliveries.
func verified(conf domain.Webhook, allowedRate int) domain.WebhookCommand {
	return domain.VerifyWebhook{URL: conf.URL, AllowedRate: allowedRate}
}

// disabling is the command that disables a webhook for the reason that an error
// code gives: the receiver asked for it, or all deliveries failed for days.
func disabling(code string) domain.WebhookCommand {
	return domain.SetWebhookState{State: domain.WebhookDisabled, Reason: strings.ReplaceAll(code, "_", "-")}
}
