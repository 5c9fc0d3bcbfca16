package domain

import "time"

// VerifyOptions has an endpoint asked, by the OPTIONS request of the CloudEvents
// webhook specification, whether it wants deliveries; until it has said so it
// gets none.
const VerifyOptions = "options"

// WebhookPending is the state of an endpoint that has not said yet that it
// wants deliveries.
const WebhookPending WebhookState = "pending_verification"

// WebhookVerification is what an endpoint said to that.
type WebhookVerification struct {
	Time        time.Time `json:"time"`
	AllowedRate int       `json:"allowedRate,omitzero"` // requests a minute at most; 0: as many as the settings allow
}

// WebhookVerified says that an endpoint wants deliveries.
type WebhookVerified struct {
	AllowedRate int `json:"allowedRate,omitzero" pii:"clear"` // requests a minute at most; 0: no bound
}

func (WebhookVerified) eventType() string { return "webhook.verified.v1" }

func (WebhookVerified) public(x Entry) []publicEvent {
	return webhookUpdate("WEBHOOK_UPDATED", x, "", "verified")
}

// VerifyWebhook records that an endpoint wants deliveries, and starts them if
// that was all they waited for. An endpoint that was configured to another
// address since it was asked has not said so.
type VerifyWebhook struct {
	URL         string // that was asked
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

// unverified reports whether an endpoint with settings s has yet to be asked,
// after it was w.
func (s WebhookSettings) unverified(w Webhook) bool {
	return s.Verification == VerifyOptions && (w.Verified == nil || w.URL != s.URL)
}
