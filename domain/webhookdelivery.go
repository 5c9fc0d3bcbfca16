package domain

import (
	"slices"
	"time"

	"accountledger/eventstore"
)

// What delivery finds out about an endpoint is recorded in its stream, once a
// transition and not once an attempt. It is no change of the configuration, so
// the endpoint's revision stays.

// WebhookDeliveryFailing says that deliveries to an endpoint began to fail: of
// an account, or all.
type WebhookDeliveryFailing struct {
	Since  time.Time `json:"since" pii:"clear"`  // the first failure
	Reason string    `json:"reason" pii:"clear"` // the code of an attempt's error
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
	WebhookID string    `json:"webhookId"`
	Since     time.Time `json:"since"`
	Reason    string    `json:"reason,omitzero"`
}

// WebhookDeliveryRecovered says that nothing fails any more.
type WebhookDeliveryRecovered struct {
	Since time.Time `json:"since" pii:"clear"` // it had failed since
}

func (WebhookDeliveryRecovered) eventType() string { return "webhook.delivery-recovered.v1" }

func (e WebhookDeliveryRecovered) public(x Entry) []publicEvent {
	return []publicEvent{{"WEBHOOK_DELIVERY_RECOVERED", deliveryHealth{x.WebhookID(), e.Since, ""}}}
}

func (WebhookDeliveryRecovered) catalogue() []PublicType {
	return []PublicType{{Name: "WEBHOOK_DELIVERY_RECOVERED", When: "a delivery arrives and nothing fails any more", Data: deliveryHealth{}}}
}

// WebhookDeliveryExhausted says that a delivery was given up.
type WebhookDeliveryExhausted struct {
	EventID   string              `json:"eventId" pii:"clear"` // of the public event
	EventType string              `json:"eventType" pii:"clear"`
	Sub       string              `json:"sub,omitzero" pii:"clear"`
	Sequence  eventstore.Revision `json:"sequence" pii:"clear"`
	Position  eventstore.Position `json:"position" pii:"clear"`
	Reason    string              `json:"reason" pii:"clear"` // the code of the last attempt's error
}

func (WebhookDeliveryExhausted) eventType() string { return "webhook.delivery-exhausted.v1" }

func (e WebhookDeliveryExhausted) public(x Entry) []publicEvent {
	return []publicEvent{{"WEBHOOK_DELIVERY_EXHAUSTED", deliveryGivenUp{x.WebhookID(), e}}}
}

func (WebhookDeliveryExhausted) catalogue() []PublicType {
	return []PublicType{{Name: "WEBHOOK_DELIVERY_EXHAUSTED", When: "a delivery is given up", Data: deliveryGivenUp{}}}
}

type deliveryGivenUp struct {
	WebhookID string `json:"webhookId"`
	WebhookDeliveryExhausted
}

// deliveryTypes are the events that say how deliveries to an endpoint go.
var deliveryTypes = []string{WebhookDeliveryFailing{}.eventType(), WebhookDeliveryRecovered{}.eventType(), WebhookDeliveryExhausted{}.eventType()}

// OfDelivery reports whether events of a current type say how deliveries to an
// endpoint go: the endpoint itself is not told of them, and a delivery of them
// that fails causes none.
func OfDelivery(eventType string) bool { return slices.Contains(deliveryTypes, eventType) }

// ReportFailing records that deliveries fail; only the first time counts.
type ReportFailing WebhookDeliveryFailing

func (c ReportFailing) decide(w Webhook) ([]Event, error) {
	if !w.Exists() || !w.FailingSince.IsZero() {
		return nil, nil
	}
	return []Event{WebhookDeliveryFailing(c)}, nil
}

// ReportRecovered records that deliveries do not fail any more.
type ReportRecovered struct{}

func (ReportRecovered) decide(w Webhook) ([]Event, error) {
	if !w.Exists() || w.FailingSince.IsZero() {
		return nil, nil
	}
	return []Event{WebhookDeliveryRecovered{w.FailingSince}}, nil
}

// ReportExhausted records that a delivery was given up. Who reports it takes
// care to do so once.
type ReportExhausted WebhookDeliveryExhausted

func (c ReportExhausted) decide(w Webhook) ([]Event, error) {
	if !w.Exists() {
		return nil, nil
	}
	return []Event{WebhookDeliveryExhausted(c)}, nil
}
