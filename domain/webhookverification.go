package domain

import "time"

// VerifyOptions makes the ledger ask the receiver for consent, with the OPTIONS
// request of the CloudEvents webhook specification. It delivers nothing before the
// receiver has agreed.
const VerifyOptions = "options"

// WebhookPending is the state of a webhook whose receiver has not agreed to
// deliveries yet.
const WebhookPending WebhookState = "pending_verification"

// WebhookVerification is a receiver's agreement to deliveries.
type WebhookVerification struct {
	Time        time.Time `json:"time" doc:"When the receiver answered."`
	AllowedRate int       `json:"allowedRate,omitzero" doc:"Maximum requests per minute that the receiver allows. Absent: no limit beyond the settings of the webhook."`
}

// WebhookVerified says that the receiver has agreed to deliveries.
type WebhookVerified struct {
	AllowedRate int `json:"allowedRate,omitzero" pii:"clear"` // maximum requests per minute; 0: no limit
}

func (WebhookVerified) eventType() string { return "webhook.verified.v1" }

func (WebhookVerified) public(x Entry) []publicEvent {
	return webhookUpdate("WEBHOOK_UPDATED", x, "", "verified")
}

// VerifyWebhook records that the receiver has agreed to deliveries, and starts them
// if they waited for that. If the webhook's URL has changed since the ledger asked,
// the command changes nothing.
type VerifyWebhook struct {
	URL         string // of the receiver that agreed
	AllowedRate int
}

func (c VerifyWebhook) decide(w Webhook) ([]Event, error) {
	if !w.Exists() {
		return nil, refuse(CodeWebhookNotFound, "There is no such webhook.")
	}
	if w.Verification != VerifyOptions || w.URL != c.URL {
		return nil, nil
	}
	var events []Event
	if w.Verified == nil || w.Verified.AllowedRate != c.AllowedRate {
		events = append(events, WebhookVerified{c.AllowedRate})
	}
	if w.State == WebhookPending {
		events = append(events, WebhookStateChanged{From: w.State, To: WebhookEnabled, Reason: "verified"})
	}
	return events, nil
}

// unverified reports whether a change of w to settings s needs the receiver's
// agreement.
func (s WebhookSettings) unverified(w Webhook) bool {
	return s.Verification == VerifyOptions && (w.Verified == nil || w.URL != s.URL)
}
