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
	"accountledger/projections/webhooks/wire"
)

// secretEnv holds the webhook's secret.
const secretEnv = cli.EnvPrefix + "WEBHOOK_SECRET"

// listenOptions say where to listen and how to respond.
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
		Long: `Receive webhooks on this machine in any format, verify their signatures
(Standard Webhooks, v1 and v1a), and print one line for each event: the time,
type, account and sequence, and whether it is verified, or why not. The line
marks duplicates, and events of an account that are out of order or follow a
gap. The command prints personal data only with --show-body.

It answers a verified delivery with 204 and any other with 401. Without a secret
it verifies nothing and answers every delivery with 204.

The secret was shown when the webhook was created. Pass it in a file or in
` + secretEnv + `, because every process can read flags. The ledger
delivers to this receiver only with --webhook-allow 127.0.0.0/8.`,
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
	cmd.Flags().StringVar(&o.address, "listen", "127.0.0.1:9900", "address to listen on; port 0 selects a free port")
	cmd.Flags().StringVar(&o.secret, "secret", "", "secret of the webhook (whsec_... or whsk_...) or its public key (whpk_...)")
	cmd.Flags().StringVar(&o.secretFile, "secret-file", "", "file with the secret of the webhook")
	cmd.Flags().IntVar(&o.status, "status", http.StatusNoContent, "HTTP status that answers verified deliveries")
	cmd.Flags().DurationVar(&o.delay, "delay", 0, "how long to wait before each response")
	cmd.Flags().IntVar(&o.failFirst, "fail-first", 0, "answer this number of deliveries with 503 first")
	cmd.Flags().IntVar(&o.failEvery, "fail-every", 0, "answer every n-th delivery with 503: 3 fails the third, the sixth, ...")
	cmd.Flags().BoolVar(&o.showBody, "show-body", false, "print the body of each delivery, which contains personal data")
	return cmd
}

func (o listenOptions) receiver(out cli.Console) (*receiver, error) {
	switch {
	case o.status < 200 || o.status > 599:
		return nil, cli.Usagef("status is %d; it must be 200 to 599", o.status)
	case o.delay < 0 || o.failFirst < 0 || o.failEvery < 0:
		return nil, cli.Usagef("delay, fail-first and fail-every cannot be negative")
	case o.secret != "" && o.secretFile != "":
		return nil, cli.Usagef("use only one of --secret and --secret-file")
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
		key, err := wire.ParseVerifier(secret)
		if err != nil {
			return nil, cli.Usagef("secret: %w", err)
		}
		r.keys = []wire.Verifier{key}
	}
	return r, nil
}

// listen receives deliveries until ctx is done, and then prints a summary.
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

// receiver receives the deliveries of a webhook.
type receiver struct {
	out       cli.Console
	keys      []wire.Verifier // if empty, deliveries are not verified
	failEvery int             // every failEvery-th request is answered with 503; 0 for none
	status    int             // answers a verified delivery
	delay     time.Duration
	showBody  bool
	now       func() time.Time
	accepted  func(delivery) // called for each delivery answered with success; may be nil

	mu       sync.Mutex // guards what follows, and keeps lines in the order of arrival
	failing  int        // number of requests still to be answered with 503
	requests int        // verified, or not checked
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
	Duplicates int `json:"duplicates"` // accepted before with the same id
	Disorder   int `json:"disorder"`   // older than the last event of the account
	Gaps       int `json:"gaps"`       // events before it were missing
	Accounts   int `json:"accounts"`
}

// delivery is an event as listen prints it. Only the body holds personal data.
type delivery struct {
	Time      time.Time           `json:"time"`
	ID        string              `json:"id"`
	Type      string              `json:"type"`
	Sub       string              `json:"sub,omitzero"`
	Sequence  eventstore.Revision `json:"sequence"`
	Verified  bool                `json:"verified"`
	Problem   string              `json:"problem,omitzero"` // why it is not verified, or not an event
	Status    int                 `json:"status"`           // of the response
	Duplicate bool                `json:"duplicate,omitzero"`
	Disorder  string              `json:"disorder,omitzero"` // what is wrong with its sequence
	Body      jsontext.Value      `json:"body,omitzero"`
}

// notChecked is the problem of a delivery if there is no secret.
const notChecked = "not checked"

// maxDelivery limits the body of a request: an event has at most 1 MiB, a batch
// 8 MiB.
const maxDelivery = 9 << 20

// remembered limits the ids and accounts that a receiver keeps in memory. When
// one list is full, it clears both.
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
	d := delivery{Time: r.now().UTC(), ID: request.Header.Get(wire.HeaderID)}
	if len(r.keys) == 0 {
		d.Problem = notChecked
	} else if err := wire.Verify(r.keys, request.Header, body, d.Time); err != nil {
		d.Problem = err.Error()
	} else {
		d.Verified = true
	}
	all := []delivery{d}
	if d.Verified || len(r.keys) == 0 { // do not print what the ledger did not send
		all = d.read(request.Header, body)
	}
	if r.showBody && jsontext.Value(body).IsValid() {
		all[0].Body = body
	}
	if r.delay > 0 {
		select {
		case <-time.After(r.delay):
		case <-request.Context().Done(): // the sender has given up
			return
		}
	}
	w.WriteHeader(r.take(all))
}

// read returns a delivery for each event in a request.
func (d delivery) read(header http.Header, body []byte) []delivery {
	events, err := wire.ReadDelivery(header, body)
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

// take chooses the response to a request, counts its events and prints them.
func (r *receiver) take(all []delivery) (status int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	status = r.answer(all[0])
	for i := range all {
		r.takeOne(&all[i], status)
	}
	return status
}

// answer returns the status of the response to a request.
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
		r.out.Line(*d) // ignore errors: the receiver continues without a reader
	} else {
		r.out.Printf("%s\n", d)
	}
	if r.accepted != nil && d.Status < 300 {
		r.accepted(*d)
	}
}

// note compares d with the deliveries accepted before. Several public events may
// have the same sequence, if one change caused them.
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
		d.Disorder = fmt.Sprintf("gap: follows sequence %d", last)
		r.total.Gaps++
	}
	r.last[d.Sub] = d.Sequence
}

// String returns d as a line of text.
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
	// A sender could otherwise control the terminal with escape sequences.
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

// close prints a summary.
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
