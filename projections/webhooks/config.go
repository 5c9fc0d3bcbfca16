package webhooks

import (
	"cmp"
	"log/slog"
	"net/netip"
	"time"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/eventstore/seal"
)

// Config configures deliveries.
type Config struct {
	Path     string           // of delivery.db, which Open creates if it does not exist
	LedgerID string           // the ledger whose log it is; a file that names none is bound to it. "": not compared
	Log      eventstore.Store // the events to deliver
	Codec    domain.Codec     // decrypts them
	Ledger   *domain.Ledger   // decides on the configuration of webhooks
	Keys     *seal.Keys       // stores the webhooks' secrets

	Allow        []netip.Prefix   // private addresses that may be connected to, on any port and over http; metadata services stay blocked
	PublicURL    string           // where clients reach the ledger's API, without a final slash; "": deliveries do not refer to it
	UserAgent    string           // default "accountledger"
	Logger       *slog.Logger     // default: discards
	Now          func() time.Time // default time.Now
	Timeout      time.Duration    // of one attempt, from the name lookup to the last byte of the response; default 15 s
	Schedule     []time.Duration  // waits between the attempts to deliver one event; default DefaultSchedule
	InFlight     int              // concurrent requests per webhook; default 64
	KeepAttempts int              // attempts stored per webhook, for at most 30 days; default 10,000

	// Observe is called after each attempt, from many goroutines concurrently;
	// the delivery waits for it. Default: nothing is observed.
	Observe func(Attempted)

	// Trace is called before each attempt to deliver an event that has a
	// traceparent. It returns the traceparent header of the request, "" for
	// none, and a function that is called with the completed attempt. Default:
	// nothing is traced.
	Trace func(Tracing) (traceparent string, end func(Attempted))
}

const attemptAge = 30 * 24 * time.Hour

func (c Config) withDefaults() Config {
	c.UserAgent = cmp.Or(c.UserAgent, "accountledger")
	c.Timeout = cmp.Or(c.Timeout, 15*time.Second)
	c.InFlight = cmp.Or(c.InFlight, 64)
	c.KeepAttempts = cmp.Or(c.KeepAttempts, 10_000)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Schedule == nil {
		c.Schedule = DefaultSchedule
	}
	if c.Observe == nil {
		c.Observe = func(Attempted) {}
	}
	return c
}
