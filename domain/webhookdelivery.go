package domain

import (
	"slices"
	"time"

	"accountledger/eventstore"
)

// The delivery engine records the health of deliveries in the webhook's stream, at
// each transition and not at each attempt. These events do not change the
// configuration, so the webhook's revision stays.

// WebhookDeliveryFailing says that deliveries to a webhook began to fail, those of
// one account or all.
type WebhookDeliveryFailing struct {
	Since  time.Time `json:"since" pii:"clear"`  // the first failure
	Reason string    `json:"reason" pii:"clear"` // error code of an attempt
}

func (WebhookDeliveryFailing) eventType() string { return "webhook.delivery-failing.v1" }

func (e WebhookDeliveryFailing) public(x Entry) []publicEvent {
	return []publicEvent{{"WEBHOOK_DELIVERY_FAILING", deliveryHealth{x.WebhookID(), e.Since, e.Reason}}}
}

func (WebhookDeliveryFailing) catalogue() []PublicType {
	return []PublicType{{Name: "WEBHOOK_DELIVERY_FAILING",
		When: "a delivery to a webhook, or the webhook as a whole, has failed twice in a row", Data: deliveryHealth{}}}
}

type deliveryHealth struct {
	WebhookID string    `json:"webhookId" doc:"The webhook's id."`
	Since     time.Time `json:"since" doc:"When deliveries began to fail."`
	Reason    string    `json:"reason,omitzero" doc:"Error code of an attempt."`
}

// WebhookDeliveryRecovered says that no delivery to a webhook fails any more.
type WebhookDeliveryRecovered struct {
	Since time.Time `json:"since" pii:"clear"` // since when it had failed
}

func (WebhookDeliveryRecovered) eventType() string { return "webhook.delivery-recovered.v1" }

func (e WebhookDeliveryRecovered) public(x Entry) []publicEvent {
	return []publicEvent{{"WEBHOOK_DELIVERY_RECOVERED", deliveryHealth{x.WebhookID(), e.Since, ""}}}
}

func (WebhookDeliveryRecovered) catalogue() []PublicType {
	return []PublicType{{Name: "WEBHOOK_DELIVERY_RECOVERED", When: "a delivery succeeds and no delivery is failing any more", Data: deliveryHealth{}}}
}

// WebhookDeliveryExhausted says that the ledger gave up a delivery.
type WebhookDeliveryExhausted struct {
	EventID   string              `json:"eventId" pii:"clear" doc:"The event whose delivery was given up."`
	EventType string              `json:"eventType" pii:"clear" doc:"The event's name in the public catalogue."`
	Sub       string              `json:"sub,omitzero" pii:"clear" doc:"The account the event is about."`
	Sequence  eventstore.Revision `json:"sequence" pii:"clear" doc:"The account's revision."`
	Position  eventstore.Position `json:"position" pii:"clear" doc:"The event's position in the log."`
	Reason    string              `json:"reason" pii:"clear" doc:"Error code of the last attempt."`
}

func (WebhookDeliveryExhausted) eventType() string { return "webhook.delivery-exhausted.v1" }

func (e WebhookDeliveryExhausted) public(x Entry) []publicEvent {
	return []publicEvent{{"WEBHOOK_DELIVERY_EXHAUSTED", deliveryGivenUp{x.WebhookID(), e}}}
}

func (WebhookDeliveryExhausted) catalogue() []PublicType {
	return []PublicType{{Name: "WEBHOOK_DELIVERY_EXHAUSTED", When: "the ledger gives up a delivery", Data: deliveryGivenUp{}}}
}

type deliveryGivenUp struct {
	WebhookID string `json:"webhookId" doc:"The webhook's id."`
	WebhookDeliveryExhausted
}

// deliveryTypes are the types of the events about the health of deliveries.
var deliveryTypes = []string{WebhookDeliveryFailing{}.eventType(), WebhookDeliveryRecovered{}.eventType(), WebhookDeliveryExhausted{}.eventType()}

// OfDelivery reports whether events of a current type are about the health of
// deliveries. A webhook does not receive such events about itself, and failed
// deliveries of them cause no further ones.
func OfDelivery(eventType string) bool { return slices.Contains(deliveryTypes, eventType) }

// ReportFailing records that deliveries fail, unless that is recorded already.
type ReportFailing WebhookDeliveryFailing

func (c ReportFailing) decide(w Webhook) ([]Event, error) {
	if !w.Exists() || !w.FailingSince.IsZero() {
		return nil, nil
	}
	return []Event{WebhookDeliveryFailing(c)}, nil
}

// ReportRecovered records that deliveries no longer fail.
type ReportRecovered struct{}

func (ReportRecovered) decide(w Webhook) ([]Event, error) {
	if !w.Exists() || w.FailingSince.IsZero() {
		return nil, nil
	}
	return []Event{WebhookDeliveryRecovered{w.FailingSince}}, nil
}

// ReportExhausted records that a delivery was given up. The caller must report each
// delivery only once.
type ReportExhausted WebhookDeliveryExhausted

func (c ReportExhausted) decide(w Webhook) ([]Event, error) {
	if !w.Exists() {
		return nil, nil
	}
	return []Event{WebhookDeliveryExhausted(c)}, nil
}
