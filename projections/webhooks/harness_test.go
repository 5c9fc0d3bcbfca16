package webhooks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/eventstore/seal"
	"accountledger/projections/webhooks/transport"
	"accountledger/projections/webhooks/wire"
)

// Published test vectors of Standard Webhooks: a shared secret and a key pair.
const (
	v1Secret  = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	v1ID      = "msg_p5jXN8AQM9LWM0D4loKWxJek"
	v1Body    = `{"test": 2432232314}`
	v1Want    = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
	v3Private = "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg=="
	v3Public  = "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4="
)

// verify checks a delivery as a receiver with this secret does.
func verify(secret string, header http.Header, body []byte, now time.Time) error {
	key, err := wire.ParseVerifier(secret)
	if err != nil {
		return err
	}
	return wire.Verify([]wire.Verifier{key}, header, body, now)
}

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

// world is a ledger and its webhooks.
type world struct {
	t      testing.TB
	log    *memoryLog
	keys   *seal.Keys
	ledger *domain.Ledger
	config Config
	hooks  *Webhooks
	cancel context.CancelFunc // of Run
	done   chan error

	// transport replaces the network if it is set: under synctest, time advances
	// only while no goroutine waits for the network.
	transport http.RoundTripper
}

func newWorld(t testing.TB, config Config) *world {
	t.Helper()
	w := &world{t: t, log: newMemoryLog()}
	dir := t.TempDir()
	keys, err := seal.Open(t.Context(), seal.Config{Path: filepath.Join(dir, "keys.db"), Master: seal.NewMaster(), PoolSize: 16})
	if err != nil {
		t.Fatal(err)
	}
	w.keys = keys
	t.Cleanup(func() { keys.Close() })
	codec := domain.Codec{Keys: keys}
	w.ledger = domain.NewLedger(domain.LedgerConfig{Log: w.log, Codec: codec})
	config.Path, config.Log, config.Codec, config.Ledger, config.Keys = filepath.Join(dir, "delivery.db"), w.log, codec, w.ledger, keys
	if config.Allow == nil {
		config.Allow = loopback
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	w.config = config
	w.open()
	return w
}

// open opens delivery.db, again after a stop.
func (w *world) open() {
	w.t.Helper()
	hooks, err := Open(w.t.Context(), w.config)
	if err != nil {
		w.t.Fatal(err)
	}
	hooks.senders.network = func(c *transport.Config) { c.RoundTripper = w.transport }
	w.hooks = hooks
	w.t.Cleanup(w.stop)
}

// run delivers until stop.
func (w *world) run() {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	hooks := w.hooks
	go func() { done <- hooks.Run(ctx) }()
	w.cancel, w.done = cancel, done
}

// stopDelivery ends Run and leaves delivery.db open.
func (w *world) stopDelivery() {
	w.t.Helper()
	if w.cancel != nil {
		w.cancel()
		if err := <-w.done; err != nil {
			w.t.Errorf("Run = %v, want nil at the end", err)
		}
		w.cancel = nil
	}
}

// stop ends everything. Under synctest, call it inside the bubble.
func (w *world) stop() {
	w.t.Helper()
	w.stopDelivery()
	if w.hooks != nil {
		if err := w.hooks.Close(); err != nil {
			w.t.Error(err)
		}
		w.hooks = nil
	}
}

// restart stops everything and starts it again.
func (w *world) restart() {
	w.t.Helper()
	w.stop()
	w.open()
	w.run()
}

var asAdmin = domain.Request{Meta: domain.Metadata{Actor: domain.Actor{Kind: "api-key", ID: "test"}}}

// hook creates a webhook that selects the events of accounts, from the start of
// the log.
func (w *world) hook(id, url string, events ...string) (Endpoint, string) {
	w.t.Helper()
	if len(events) == 0 {
		events = []string{"USER_*"}
	}
	c := creation(url)
	c.Events = events
	return w.create(id, c)
}

// create creates a webhook.
func (w *world) create(id string, c Creation) (Endpoint, string) {
	w.t.Helper()
	e, secret, _, err := w.hooks.Create(w.t.Context(), asAdmin, id, c)
	if err != nil {
		w.t.Fatalf("Create = %v", err)
	}
	return e, secret
}

// account creates an account with one event in the log.
func (w *world) account(sub string) {
	w.t.Helper()
	w.execute(sub, domain.CreateAccount{Origin: domain.OriginCreated, Identities: []domain.NewIdentity{{
		IdentityID: "00000000-0000-4000-8000-000000000001", Provider: domain.ProviderSelf,
		Profile: domain.Profile{GivenName: "Ada", FamilyName: "Lovelace", Email: sub + "@example.com"}}}})
}

// touch appends n more events to an account.
func (w *world) touch(sub string, n int) {
	w.t.Helper()
	for range n {
		w.execute(sub, domain.SetCustomFields{Values: map[string]jsontext.Value{"tier": jsontext.Value(fmt.Sprintf("%q", time.Now().String()+domain.NewID().String()))}})
	}
}

func (w *world) execute(sub string, cmd domain.Command) {
	w.t.Helper()
	if _, err := w.ledger.Execute(w.t.Context(), asAdmin, sub, cmd); err != nil {
		w.t.Fatalf("Execute %T = %v", cmd, err)
	}
}

func (w *world) head() eventstore.Position {
	head, _ := w.log.Head(w.t.Context())
	return head
}

// get returns a webhook.
func (w *world) get(id string) Endpoint {
	w.t.Helper()
	e, err := w.hooks.Get(w.t.Context(), id)
	if err != nil {
		w.t.Fatal(err)
	}
	return e
}

func (w *world) deliveries(id string) []Delivery {
	w.t.Helper()
	all, _, err := w.hooks.Deliveries(w.t.Context(), id, DeliveryQuery{}, "", 1000)
	if err != nil {
		w.t.Fatal(err)
	}
	return all
}

// settled waits until everything is delivered to a webhook.
func (w *world) settled(id string) {
	w.t.Helper()
	w.until(func() bool { e := w.get(id); return e.Backlog == 0 && e.Position == w.head() && e.Lanes == 0 })
}

// until polls for a condition. Under synctest it sleeps by the fake clock.
func (w *world) until(ok func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatal("the condition did not become true within 20 s")
		}
	}
}

// envelope is the body of a delivery.
type envelope struct {
	Type             string               `json:"type"`
	Timestamp        time.Time            `json:"timestamp"`
	ID               string               `json:"id"`
	Sub              string               `json:"sub"`
	Stream           string               `json:"stream"`
	Sequence         eventstore.Revision  `json:"sequence"`
	PreviousSequence *eventstore.Revision `json:"previous_sequence"`
	Data             jsontext.Value       `json:"data"`
}

// got is a request that a receiver got.
type got struct {
	time   time.Time
	header http.Header
	body   []byte
	envelope
}

// receiver records requests and responds with answer. It is an http.Handler and,
// for tests without a network, an http.RoundTripper.
type receiver struct {
	mu     sync.Mutex
	all    []got
	flying map[string]int // requests in flight, by sub
	answer func(g got, n int) (status int, header http.Header)
	delay  func() time.Duration
	fail   func() error // of the round trip
	faults []string     // rules that were broken

	overlaps bool // concurrent requests for one account are no fault
}

// take records a request and returns the response to it.
func (r *receiver) take(header http.Header, body []byte) (int, http.Header) {
	g := got{time: time.Now(), header: header, body: body}
	err := json.Unmarshal(body, &g.envelope, json.RejectUnknownMembers(true))
	r.mu.Lock()
	if err != nil {
		r.faults = append(r.faults, "body: "+err.Error())
	}
	if r.flying == nil {
		r.flying = map[string]int{}
	}
	if r.flying[g.Sub]++; r.flying[g.Sub] > 1 && !r.overlaps {
		r.faults = append(r.faults, "two in flight for "+g.Sub)
	}
	r.all = append(r.all, g)
	n := len(r.all)
	answer, delay := r.answer, r.delay
	r.mu.Unlock()
	if delay != nil {
		time.Sleep(delay())
	}
	status, more := http.StatusNoContent, http.Header(nil)
	if answer != nil {
		status, more = answer(g, n)
	}
	r.mu.Lock()
	r.flying[g.Sub]--
	r.mu.Unlock()
	return status, more
}

func (r *receiver) ServeHTTP(rw http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		panic(err)
	}
	header := req.Header.Clone()
	header.Set("Test-Host", req.Host)
	status, more := r.take(header, body)
	for name, values := range more {
		rw.Header()[name] = values
	}
	rw.WriteHeader(status)
}

func (r *receiver) RoundTrip(req *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	header := req.Header.Clone()
	header.Set("Test-Host", req.URL.Host)
	r.mu.Lock()
	fail := r.fail
	r.mu.Unlock()
	if fail != nil {
		if err := fail(); err != nil {
			r.take(header, body)
			return nil, err
		}
	}
	status, more := r.take(header, body)
	if err := req.Context().Err(); err != nil {
		return nil, err
	}
	if more == nil {
		more = http.Header{}
	}
	return &http.Response{StatusCode: status, Header: more, Body: io.NopCloser(bytes.NewReader(nil)), Request: req}, nil
}

func (r *receiver) set(f func(r *receiver)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(r)
}

func (r *receiver) got() []got {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]got(nil), r.all...)
}

func (r *receiver) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.all)
}

// inOrder fails the test if a rule was broken or if the first deliveries of an
// account are not in the order of its events.
func (r *receiver) inOrder(t testing.TB) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, fault := range r.faults {
		t.Error(fault)
	}
	seen, last := map[string]bool{}, map[string]eventstore.Revision{}
	for _, g := range r.all {
		if seen[g.ID] {
			continue
		}
		seen[g.ID] = true
		if previous, ok := last[g.Sub]; ok && g.Sequence < previous {
			t.Errorf("%s: sequence %d first arrived after %d", g.Sub, g.Sequence, previous)
		}
		last[g.Sub] = g.Sequence
	}
}

// ids counts the requests for each event.
func (r *receiver) ids() map[string]int {
	ids := map[string]int{}
	for _, g := range r.got() {
		ids[g.ID]++
	}
	return ids
}

var errNetwork = errors.New("connection reset by a test")
