package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"accountledger/cmd/accountledger/cli"
	"accountledger/eventstore"
	"accountledger/projections/webhooks"
)

// secretEnv holds the secret of the webhook that listen receives for.
const secretEnv = cli.EnvPrefix + "WEBHOOK_SECRET"

// listenOptions says where to listen and how to answer.
type listenOptions struct {
	address    string
	secret     string
	secretFile string
	status     int
	delay      time.Duration
	failFirst  int
	failEvery  int
	showBody   bool
}

func listenCommand() *cobra.Command {
	var o listenOptions
	cmd := &cobra.Command{
		Use:   "listen",
		Short: "Receive webhooks, verify and print them",
		Long: `Receive webhooks on this machine in any of their formats, verify their
signatures as Standard Webhooks says, v1 and v1a, and print one line for each
event: when it came, its type, account and sequence, and whether it is verified,
or why not. Deliveries that come twice, and events of one account that come out
of order or with a gap, are pointed out. Personal data is not printed, unless
--show-body asks for it.

A verified delivery is answered with 204, another one with 401. Without a secret
nothing is verified and everything answered with 204.

The secret is the one shown when the webhook was created. Give it in a file or
in ` + secretEnv + `: a flag can be read by every process. The ledger reaches
this receiver if it runs with --webhook-allow 127.0.0.0/8.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := cli.Load(cmd)
			if err != nil {
				return err
			}
			r, err := o.receiver(cli.NewConsole(cmd, c))
			if err != nil {
				return err
			}
			ctx, stop := cli.Interruptible(cmd.Context())
			defer stop()
			return listen(ctx, o.address, r)
		},
	}
	cmd.Flags().StringVar(&o.address, "listen", "127.0.0.1:9900", "address to listen on; port 0 takes a free one")
	cmd.Flags().StringVar(&o.secret, "secret", "", "secret of the webhook, whsec_... or whsk_..., or its public key, whpk_...")
	cmd.Flags().StringVar(&o.secretFile, "secret-file", "", "file with the secret of the webhook")
	cmd.Flags().IntVar(&o.status, "status", http.StatusNoContent, "status to answer verified deliveries with")
	cmd.Flags().DurationVar(&o.delay, "delay", 0, "how long to wait before each answer")
	cmd.Flags().IntVar(&o.failFirst, "fail-first", 0, "answer so many deliveries with 503 first")
	cmd.Flags().IntVar(&o.failEvery, "fail-every", 0, "answer each delivery of this number with 503: 3 fails the third, the sixth, ...")
	cmd.Flags().BoolVar(&o.showBody, "show-body", false, "print what was delivered, with personal data")
	return cmd
}

func (o listenOptions) receiver(out cli.Console) (*receiver, error) {
	switch {
	case o.status < 200 || o.status > 599:
		return nil, cli.Usagef("status is %d; it can be 200 to 599", o.status)
	case o.delay < 0 || o.failFirst < 0 || o.failEvery < 0:
		return nil, cli.Usagef("delay, fail-first and fail-every cannot be negative")
	case o.secret != "" && o.secretFile != "":
		return nil, cli.Usagef("give one of --secret and --secret-file")
	}
	secret := o.secret
	if o.secretFile != "" {
		var err error
		if secret, err = cli.ReadTrimmed(o.secretFile); err != nil {
			return nil, cli.Usagef("secret: %w", err)
		}
	} else if secret == "" {
		secret = os.Getenv(secretEnv)
	}
	r := &receiver{out: out, status: o.status, delay: o.delay, failing: o.failFirst, failEvery: o.failEvery, showBody: o.showBody, now: time.Now}
	if secret != "" {
		key, err := webhooks.ParseVerifier(secret)
		if err != nil {
			return nil, cli.Usagef("secret: %w", err)
		}
		r.keys = []webhooks.Verifier{key}
	}
	return r, nil
}

// listen receives until ctx is done, and then says what came.
func listen(ctx context.Context, address string, r *receiver) error {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	fmt.Fprintf(r.out.Err, "receiving on http://%s\n", listener.Addr())
	if len(r.keys) == 0 {
		fmt.Fprintln(r.out.Err, "no secret: signatures are not verified")
	}
	if err := receive(ctx, listener, r); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	return r.close()
}

// receive serves r on listener until ctx is done.
func receive(ctx context.Context, listener net.Listener, r *receiver) error {
	server := &http.Server{Handler: r, ReadHeaderTimeout: readHeaderTimeout, ReadTimeout: readTimeout, IdleTimeout: idleTimeout}
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if server.Shutdown(grace) != nil {
			server.Close()
		}
	})
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// receiver is the other end of a webhook.
type receiver struct {
	out       cli.Console
	keys      []webhooks.Verifier // none: nothing is verified
	failEvery int                 // each request of this number is answered with 503; 0: none
	status    int                 // of the answer to a verified delivery
	delay     time.Duration
	showBody  bool
	now       func() time.Time
	accepted  func(delivery) // called for each that was answered with success; may be nil

	// What was received, and printing it, in the order of arrival.
	mu       sync.Mutex
	failing  int // so many more are answered with 503
	requests int // that are verified
	seen     map[string]bool
	last     map[string]eventstore.Revision // highest sequence accepted, by account
	total    tally
}

// tally is the summary of what was received.
type tally struct {
	Received   int `json:"received"`
	Accepted   int `json:"accepted"`
	Unverified int `json:"unverified"` // answered with 401
	Failed     int `json:"failed"`     // answered with another error, on purpose
	Duplicates int `json:"duplicates"` // accepted before under the same id
	Disorder   int `json:"disorder"`   // older than what the account had told
	Gaps       int `json:"gaps"`       // with sequences between it and the one before that did not come
	Accounts   int `json:"accounts"`
}

// delivery is a request as listen prints it. It holds no personal data but
// the body.
type delivery struct {
	Time      time.Time           `json:"time"`
	ID        string              `json:"id"`
	Type      string              `json:"type"`
	Sub       string              `json:"sub,omitzero"`
	Sequence  eventstore.Revision `json:"sequence"`
	Verified  bool                `json:"verified"`
	Problem   string              `json:"problem,omitzero"` // why it is not verified, or is no event
	Status    int                 `json:"status"`           // of the answer
	Duplicate bool                `json:"duplicate,omitzero"`
	Disorder  string              `json:"disorder,omitzero"` // what is wrong with its sequence
	Body      jsontext.Value      `json:"body,omitzero"`
}

// notChecked is why a delivery is not verified when there is no secret.
const notChecked = "not checked"

// maxDelivery bounds what is read of a request: an event is at most a megabyte,
// a batch eight.
const maxDelivery = 9 << 20

// remembered bounds how many ids and accounts a receiver remembers; beyond, it
// starts to forget, so that it may run for days.
const remembered = 1 << 20

func (r *receiver) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	if request.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, request.Body, maxDelivery))
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	d := delivery{Time: r.now().UTC(), ID: request.Header.Get(webhooks.HeaderID)}
	if len(r.keys) == 0 {
		d.Problem = notChecked
	} else if err := webhooks.VerifyWith(r.keys, request.Header, body, d.Time); err != nil {
		d.Problem = err.Error()
	} else {
		d.Verified = true
	}
	all := []delivery{d}
	if d.Verified || len(r.keys) == 0 { // what is not from the ledger is not to be printed
		all = d.read(request.Header, body)
	}
	if r.showBody && jsontext.Value(body).IsValid() {
		all[0].Body = body
	}
	if r.delay > 0 {
		select {
		case <-time.After(r.delay):
		case <-request.Context().Done(): // it has given up
			return
		}
	}
	w.WriteHeader(r.take(all))
}

// read is the events a request tells of, as lines.
func (d delivery) read(header http.Header, body []byte) []delivery {
	events, err := webhooks.ReadDelivery(header, body)
	if err != nil || len(events) == 0 {
		d.Problem = "the body is not an event"
		return []delivery{d}
	}
	all := make([]delivery, len(events))
	for i, e := range events {
		all[i] = d
		all[i].ID, all[i].Type, all[i].Sub, all[i].Sequence = e.ID, e.Type, e.Sub, e.Sequence
	}
	return all
}

// take decides the answer to a request, notes what its events say, and prints
// them.
func (r *receiver) take(all []delivery) (status int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	status = r.answer(all[0])
	for i := range all {
		r.takeOne(&all[i], status)
	}
	return status
}

// answer is the status of a request.
func (r *receiver) answer(d delivery) int {
	if !d.Verified && len(r.keys) > 0 {
		return http.StatusUnauthorized
	}
	r.requests++
	switch {
	case r.failing > 0:
		r.failing--
		return http.StatusServiceUnavailable
	case r.failEvery > 0 && r.requests%r.failEvery == 0:
		return http.StatusServiceUnavailable
	}
	return r.status
}

func (r *receiver) takeOne(d *delivery, status int) {
	d.Status = status
	r.total.Received++
	switch {
	case !d.Verified && len(r.keys) > 0:
		r.total.Unverified++
	case status >= 300:
		r.total.Failed++
	default:
		r.total.Accepted++
		r.note(d)
	}
	if r.out.JSON {
		r.out.Line(*d) // a reader that has gone away does not stop the receiver
	} else {
		r.out.Printf("%s\n", d)
	}
	if r.accepted != nil && d.Status < 300 {
		r.accepted(*d)
	}
}

// note compares d with what was accepted before. Several public events may
// come of one change; they have its sequence.
func (r *receiver) note(d *delivery) {
	if r.seen == nil || len(r.seen) >= remembered || len(r.last) >= remembered {
		r.seen, r.last = map[string]bool{}, map[string]eventstore.Revision{}
	}
	if d.Duplicate = r.seen[d.ID]; d.Duplicate {
		r.total.Duplicates++
		return
	}
	r.seen[d.ID] = true
	if d.Sub == "" {
		return
	}
	last, known := r.last[d.Sub]
	switch {
	case !known:
		r.total.Accounts++
	case d.Sequence < last:
		d.Disorder = fmt.Sprintf("out of order: after sequence %d", last)
		r.total.Disorder++
		return
	case d.Sequence > last+1:
		d.Disorder = fmt.Sprintf("gap: the one before was sequence %d", last)
		r.total.Gaps++
	}
	r.last[d.Sub] = d.Sequence
}

// String is d as a line for people.
func (d *delivery) String() string {
	line := fmt.Sprintf("%s  %-20s %-36s %5d  ", d.Time.Format(cli.TimeFormat), orDash(d.Type), orDash(d.Sub), d.Sequence)
	switch {
	case d.Problem == "":
		line += "verified"
	case d.Verified || d.Problem == notChecked:
		line += d.Problem
	default:
		line += "NOT VERIFIED: " + d.Problem
	}
	if d.Duplicate {
		line += ", duplicate"
	}
	if d.Disorder != "" {
		line += ", " + d.Disorder
	}
	line += fmt.Sprintf(" -> %d", d.Status)
	if d.Body != nil {
		line += "  " + string(d.Body)
	}
	// Whoever can send may send what a terminal would obey.
	return strings.Map(func(c rune) rune {
		if !unicode.IsPrint(c) {
			return '?'
		}
		return c
	}, line)
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// close says what was received.
func (r *receiver) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.out.JSON {
		return r.out.Line(struct {
			Summary tally `json:"summary"`
		}{r.total})
	}
	t := r.total
	r.out.Printf("received %d: %d accepted of %d accounts, %d not verified, %d failed on purpose; %d duplicates, %d out of order, %d gaps\n",
		t.Received, t.Accepted, t.Accounts, t.Unverified, t.Failed, t.Duplicates, t.Disorder, t.Gaps)
	return nil
}
