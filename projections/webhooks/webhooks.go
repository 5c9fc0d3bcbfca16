// Package webhooks tells external systems what happened: it follows the log
// and sends public events to the endpoints that asked for them, signed as
// Standard Webhooks, at least once, in order per account.
//
// Per endpoint and account, first deliveries are in log order and never
// overlap. Duplicates can occur; the webhook-id tells them. Each event has a
// sequence: a receiver ignores what is not above the last one it applied.
// Across accounts there is no order.
package webhooks

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"time"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/eventstore/seal"
)

// Config says what deliveries work with.
type Config struct {
	Path   string           // of delivery.db; made if it is not there
	Log    eventstore.Store // what is delivered
	Codec  domain.Codec     // opens it
	Ledger *domain.Ledger   // decides on endpoints
	Keys   *seal.Keys       // keeps the endpoints' secrets

	Allow     []netip.Prefix // addresses inside that may be connected to, on any port and over http
	UserAgent string         // default "accountledger"
	Logger    *slog.Logger   // default: discards
	Now       func() time.Time
	Timeout   time.Duration   // of one attempt, from name look-up to the response's last byte; default 15 s
	Schedule  []time.Duration // waits between the attempts of one event; default DefaultSchedule
	InFlight  int             // requests at once per endpoint; default 64
}

// Webhooks delivers.
type Webhooks struct{}

// Endpoint is a webhook as it is configured and how delivery to it goes.
type Endpoint struct {
	domain.Webhook
	Position          eventstore.Position `json:"position"` // everything up to here is settled
	Backlog           int64               `json:"backlog"`  // events of the log behind it that are not settled, wanted by the endpoint or not
	Lanes             int                 `json:"lanes"`    // accounts that wait because of a failed delivery
	DeadLetters       int64               `json:"deadLetters"`
	Breaker           Breaker             `json:"breaker"`
	LastSuccessTime   time.Time           `json:"lastSuccessTime,omitzero"`
	SecretFingerprint string              `json:"secretFingerprint"`
}

// Breaker says whether an endpoint as a whole is left alone for a while.
type Breaker struct {
	State  string    `json:"state"` // closed or open
	Reason string    `json:"reason,omitzero"`
	Step   int       `json:"step"`           // failures in a row
	Until  time.Time `json:"until,omitzero"` // when it is tried again
}

// What became of a delivery.
const (
	StatusDelivered = "delivered"
	StatusRetrying  = "retrying"
	StatusDead      = "dead"
	StatusPending   = "pending"
)

// Delivery is one public event on its way to one endpoint.
type Delivery struct {
	EventID  string              `json:"eventId"`
	Type     string              `json:"type"`
	Sub      string              `json:"sub,omitzero"`
	Sequence eventstore.Revision `json:"sequence"`
	Position eventstore.Position `json:"position"`
	Status   string              `json:"status"`
	Attempts []Attempt           `json:"attempts"` // oldest first
}

// Attempt is one request and what came of it.
type Attempt struct {
	Time       time.Time `json:"time"`
	Status     int       `json:"status"` // HTTP's; 0 where there was no response
	Error      string    `json:"error,omitzero"`
	DurationMs float64   `json:"durationMs"`
	Response   string    `json:"response,omitzero"`
}

var errSkeleton = errors.New("webhooks: being written")

// Open opens delivery.db, or makes it.
func Open(ctx context.Context, c Config) (*Webhooks, error) { return nil, errSkeleton }

// Run delivers until ctx is done.
func (w *Webhooks) Run(ctx context.Context) error { return errSkeleton }

// Create registers an endpoint under id and returns it with its secret, which
// is shown this once, and the position of the event that says so. Without a
// secret it makes one. A negative After of cmd means the head of the log.
func (w *Webhooks) Create(ctx context.Context, r domain.Request, id string, cmd domain.CreateWebhook, secret string) (Endpoint, string, eventstore.Position, error) {
	return Endpoint{}, "", 0, errSkeleton
}

// Get returns one endpoint.
func (w *Webhooks) Get(ctx context.Context, id string) (Endpoint, error) {
	return Endpoint{}, errSkeleton
}

// List returns all endpoints, oldest first.
func (w *Webhooks) List(ctx context.Context) ([]Endpoint, error) { return nil, errSkeleton }

// SetState pauses, resumes or disables an endpoint.
func (w *Webhooks) SetState(ctx context.Context, r domain.Request, id string, cmd domain.SetWebhookState) (Endpoint, eventstore.Position, error) {
	return Endpoint{}, 0, errSkeleton
}

// Delete removes an endpoint and its secret.
func (w *Webhooks) Delete(ctx context.Context, r domain.Request, id string) (eventstore.Position, error) {
	return 0, errSkeleton
}

// Deliveries lists deliveries, newest first.
func (w *Webhooks) Deliveries(ctx context.Context, id string, after string, limit int) ([]Delivery, string, error) {
	return nil, "", errSkeleton
}

// Check looks for damage in the file.
func (w *Webhooks) Check(ctx context.Context) error { return errSkeleton }

// Backup writes a consistent copy of the file to dest.
func (w *Webhooks) Backup(ctx context.Context, dest string) error { return errSkeleton }

// Close closes the file.
func (w *Webhooks) Close() error { return errSkeleton }
