package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"accountledger/cmd/accountledger/cli"
	"accountledger/cmd/accountledger/remote"
	"accountledger/domain"
	"accountledger/domain/importer"
	"accountledger/projections/webhooks/wire"
	"accountledger/testdata/imports"
)

func demoCommand() *cobra.Command {
	var keep string
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Demonstrate the ledger with invented people, in seconds",
		Long: `Demonstrate the ledger in a temporary data directory: import 208 invented
people, start a server, register a webhook and receive its deliveries, link an
identity, suspend and restore an account, merge a second account into it and
revert that, record a consent, execute a reminder, show the account's history,
erase the second account, verify the log, and detect a changed byte in a copy of
it. The demo is also a test: it ends with exit code 1 if a step does not have
the expected result. It listens only on this machine.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := cli.Load(cmd)
			if err != nil {
				return err
			}
			ctx, stop := cli.Interruptible(cmd.Context())
			defer stop()
			dir := keep
			if dir == "" {
				if dir, err = os.MkdirTemp("", "accountledger-demo-"); err != nil {
					return err
				}
				defer os.RemoveAll(dir)
			} else if there, err := os.ReadDir(dir); err == nil && len(there) > 0 {
				return cli.Usagef("keep: %s is not empty", dir)
			}
			out := cli.NewConsole(cmd, c)
			out.JSON = false // the demo prints only text
			return demonstrate(ctx, out, dir)
		},
	}
	cmd.Flags().StringVar(&keep, "keep", "", "empty or new directory to use and to keep, instead of a temporary one")
	return cmd
}

// The e-mail addresses of the demo's person, one of the 208.
const (
	demoEmail  = "emily.johnson@x.dummyjson.com"
	demoGoogle = "emily.johnson@gmail.com"
)

// demonstration is the state that the steps of the demo share.
type demonstration struct {
	out       cli.Console
	config    cli.Config
	copy      string // directory for a copy of the ledger
	client    *remote.Client
	delivered chan delivery
	sub       string     // the person's account
	work      string     // the person's second account
	head      int        // events in the log when the server stopped
	expected  int        // number of deliveries
	early     []delivery // received, but not expected yet
	steps     int
}

// demonstrate runs the demo in dir.
func demonstrate(ctx context.Context, out cli.Console, dir string) error {
	begun := time.Now()
	d := &demonstration{out: out, copy: filepath.Join(dir, "copy"), delivered: make(chan delivery, 16), config: cli.Config{
		Data: filepath.Join(dir, "data"), Listen: "127.0.0.1:0", ShutdownGrace: 10 * time.Second,
		WebhookAllow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
	}}
	for _, step := range []func(context.Context) error{d.importPeople, d.live, d.verify, d.tamper} {
		if err := step(ctx); err != nil {
			return fmt.Errorf("demo: step %d: %w", d.steps, err)
		}
	}
	out.Printf("\nAll steps had the expected result. The demo took %.1f s.\n", time.Since(begun).Seconds())
	return nil
}

// say prints the title of the next step.
func (d *demonstration) say(format string, args ...any) {
	d.steps++
	d.out.Printf("\n%d. %s\n", d.steps, fmt.Sprintf(format, args...))
}

func (d *demonstration) show(format string, args ...any) { d.out.Printf("   "+format+"\n", args...) }

// logger returns a logger that prints only errors: warnings, like those about new
// keys, are normal in the demo.
func (d *demonstration) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(d.out.Err, &slog.HandlerOptions{Level: slog.LevelError}))
}

// importPeople imports the people twice, and searches the log's file for their
// data.
func (d *demonstration) importPeople(ctx context.Context) error {
	d.say("Import 208 people from another application, with birth dates and phone numbers as people type them.")
	mapping, err := importer.ParseMapping(imports.PeopleMapping)
	if err != nil {
		return err
	}
	l, err := openLedger(ctx, d.config, d.logger())
	if err != nil {
		return err
	}
	var first, second importer.Summary
	for _, s := range []*importer.Summary{&first, &second} {
		job := importer.Job{Ledger: l.ledger, Mapping: mapping, Results: io.Discard,
			Input: importer.Input{Name: "people-208.json", Reader: bytes.NewReader(imports.People)}}
		if *s, err = job.Run(ctx); err != nil {
			return errors.Join(err, l.close())
		}
	}
	if err := l.close(); err != nil {
		return err
	}
	d.show("imported: %d created, %d failed", first.Created, first.Failed)
	for _, f := range first.Findings {
		d.show("%d rows: %s %s: %s", f.Rows, f.Field, f.Rule, f.Action)
	}
	d.show("imported again: %d unchanged", second.Unchanged)
	if first.Created != 208 || first.Failed != 0 || len(first.Missed) != 0 || second.Unchanged != 208 {
		return fmt.Errorf("the first import returned %+v, the second %+v", first, second)
	}

	d.say("Personal data is encrypted with a key per person.")
	var people []struct{ Email, FirstName, LastName string }
	if err := json.Unmarshal(imports.People, &people, json.MatchCaseInsensitiveNames(true)); err != nil {
		return err
	}
	log, err := os.ReadFile(directory(d.config.Data).path(logFile))
	if err != nil {
		return err
	}
	for _, p := range people {
		if bytes.Contains(log, []byte(p.Email)) || bytes.Contains(log, []byte(p.FirstName+" "+p.LastName)) {
			return errors.New("log.db contains a person's name or e-mail address")
		}
	}
	d.show("log.db has %d bytes and contains none of the %d e-mail addresses", len(log), len(people))
	return nil
}

// live starts the server and a receiver, runs the steps that need them, and stops
// both.
func (d *demonstration) live(ctx context.Context) error {
	d.say("Start the server, and a receiver of webhooks.")
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	running, ctx := errgroup.WithContext(ctx)

	key := make([]byte, 32)
	rand.Read(key) // never fails
	secret := "whsec_" + base64.StdEncoding.EncodeToString(key)
	verifier, err := wire.ParseVerifier(secret)
	if err != nil {
		return err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", d.config.Listen)
	if err != nil {
		return err
	}
	r := &receiver{out: cli.Console{Out: io.Discard, Err: io.Discard}, keys: []wire.Verifier{verifier}, status: http.StatusNoContent, now: time.Now}
	r.accepted = func(x delivery) { d.delivered <- x }
	running.Go(func() error { return receive(ctx, listener, r) })

	stdout, writer := io.Pipe()
	running.Go(func() error {
		defer writer.Close()
		return serve(ctx, d.config, d.logger(), writer, nil)
	})
	err = d.follow(ctx, stdout, "http://"+listener.Addr().String(), secret)
	stop()
	if ended := running.Wait(); ended != nil {
		return ended // the cause, if the steps failed too
	}
	if err != nil {
		return err
	}
	if t := r.total; t.Unverified+t.Duplicates+t.Disorder != 0 || t.Accepted < d.expected {
		return fmt.Errorf("the receiver received %+v", t)
	}
	return nil
}

// follow runs the steps that use the server. It reads the server's address from
// stdout.
func (d *demonstration) follow(ctx context.Context, stdout io.Reader, receiver, secret string) error {
	line, err := bufio.NewReader(stdout).ReadString('\n')
	_, d.config.Server, _ = strings.Cut(strings.TrimSpace(line), " listening on ")
	if err != nil || d.config.Server == "" {
		return fmt.Errorf("the server did not start: %q, %w", line, err)
	}
	d.config.KeyFile = directory(d.config.Data).path(adminKeyFile) // not one from the environment
	if d.client, err = remote.NewClient(d.config); err != nil {
		return err
	}
	defer d.client.Close()
	d.show("%s and %s", d.config.Server, receiver)
	webhook := map[string]any{"url": receiver, "events": demoEvents, "secret": secret}
	if err := d.client.Call(ctx, "POST", "/v1/webhooks", webhook, nil); err != nil {
		return err
	}
	d.show("registered a webhook for %s", strings.Join(demoEvents, ", "))
	for _, step := range []func(context.Context) error{d.change, d.deliveries, d.merge, d.consent, d.schedule, d.history, d.purge} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	var at struct {
		Projections []struct {
			Head int `json:"head"`
		} `json:"projections"`
	}
	err = d.client.Call(ctx, "GET", "/v1/projections", nil, &at)
	if err == nil && len(at.Projections) > 0 {
		d.head = at.Projections[0].Head
	}
	return err
}

// demoEvents are the events that the webhook selects.
var demoEvents = []string{"USER_*", "IDENTITY_*", "CONSENT_ACCEPTED", "SCHEDULE_*"}

// change looks the person up and changes the account three times.
func (d *demonstration) change(ctx context.Context) error {
	d.say("Look Emily up by her e-mail address, and link another identity.")
	account, err := d.lookup(ctx, strings.ToUpper(demoEmail[:1])+demoEmail[1:]) // as people type it
	if err != nil {
		return err
	}
	d.sub = account.Sub
	d.show("%s is %s, %s, with %d identity", demoEmail, account.Sub, account.Status, len(account.Identities))
	path := "/v1/accounts/" + d.sub
	google := map[string]any{"provider": "google", "providerUserId": "1095", "email": demoGoogle, "email_verified": true}
	if err := d.client.Call(ctx, "POST", path+"/identities", google, nil); err != nil {
		return err
	}
	if account, err = d.lookup(ctx, demoGoogle); err != nil {
		return err
	}
	d.show("%s now belongs to the same account, which has %d identities", demoGoogle, len(account.Identities))
	if account.Sub != d.sub || len(account.Identities) != 2 {
		return errors.New("the linked identity does not belong to the account")
	}

	d.say("Suspend her account and restore it.")
	for _, status := range []domain.Status{domain.StatusDeclined, domain.StatusVerified} {
		body := map[string]any{"userStatus": status, "reason": "demonstration"}
		if err := d.client.Call(ctx, "PUT", path+"/status", body, nil); err != nil {
			return err
		}
		// The next lookup includes the change.
		if account, err = d.lookup(ctx, demoEmail); err != nil {
			return err
		}
		d.show("userStatus is %s", account.Status)
		if account.Status != status {
			return fmt.Errorf("the account's status is %s, not %s", account.Status, status)
		}
	}
	return nil
}

func (d *demonstration) lookup(ctx context.Context, identifier string) (domain.Account, error) {
	var account domain.Account
	err := d.client.Call(ctx, "POST", "/v1/lookup", map[string]string{"identifier": identifier}, &account)
	return account, err
}

// deliveries waits for the deliveries of the first changes.
func (d *demonstration) deliveries(ctx context.Context) error {
	d.say("The receiver gets each change, signed and in order.")
	return d.expect(ctx, delivery{Sub: d.sub, Type: "IDENTITY_LINKED"},
		delivery{Sub: d.sub, Type: "USER_STATUS_CHANGED"}, delivery{Sub: d.sub, Type: "USER_STATUS_CHANGED"})
}

// expect waits for deliveries. Those of one account arrive in this order; expect
// keeps others for later calls.
func (d *demonstration) expect(ctx context.Context, all ...delivery) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for _, want := range all {
		is := func(x delivery) bool { return x.Sub == want.Sub && x.Type == want.Type }
		i := slices.IndexFunc(d.early, is)
		for i < 0 {
			select {
			case x := <-d.delivered:
				d.show("%s", x.String())
				if !x.Verified {
					return fmt.Errorf("a delivery is not verified: %s", x.Problem)
				}
				d.early = append(d.early, x)
			case <-ctx.Done():
				return fmt.Errorf("a delivery of %s did not arrive: %w", want.Type, ctx.Err())
			}
			i = slices.IndexFunc(d.early, is)
		}
		d.early = slices.Delete(d.early, i, i+1)
		d.expected++
	}
	return nil
}

// history shows the account's events.
func (d *demonstration) history(ctx context.Context) error {
	d.say("The account's history shows what changed, when and by whom.")
	var history struct {
		Events []struct {
			Position int64        `json:"position"`
			Revision int64        `json:"revision"`
			Type     string       `json:"type"`
			Time     time.Time    `json:"time"`
			Actor    domain.Actor `json:"actor"`
		} `json:"events"`
	}
	if err := d.client.Call(ctx, "GET", "/v1/accounts/"+d.sub+"/events", nil, &history); err != nil {
		return err
	}
	var types []string
	for _, e := range history.Events {
		d.show("%4d  revision %d  %s  %-26s by %s", e.Position, e.Revision, e.Time.Format(cli.TimeFormat), e.Type, e.Actor.Kind)
		types = append(types, e.Type)
	}
	var want []string
	for _, e := range []domain.Event{domain.AccountCreated{}, domain.IdentityLinked{}, domain.StatusChanged{}, domain.StatusChanged{},
		domain.AccountMerged{}, domain.AccountSeparated{}, domain.ConsentDecided{}, domain.SchedulePlanned{}, domain.ScheduleExecuted{}} {
		want = append(want, domain.TypeOf(e))
	}
	if !slices.Equal(types, want) {
		return fmt.Errorf("the history is %v", types)
	}
	return nil
}

func (d *demonstration) verify(ctx context.Context) error {
	d.say("Verify the log: every event, the Merkle tree, the signatures.")
	v, err := verify(ctx, d.config, d.quiet(), trustFiles{})
	if err != nil {
		return err
	}
	d.show("%d events, %d of them covered by %d signed checkpoints, %d faults", v.Events, v.Covered, v.Checkpoints, len(v.Faults))
	if events := int(v.Events); !v.OK || events < d.head || events <= 208 || int(v.Covered) != events {
		return fmt.Errorf("the verification returned %+v", v)
	}
	return nil
}

// tamper changes a byte in a copy of the log and checks that verify finds it.
func (d *demonstration) tamper(ctx context.Context) error {
	d.say("Change one byte in a copy of the log, to hide the suspension, and verify it.")
	if err := os.CopyFS(d.copy, os.DirFS(d.config.Data)); err != nil {
		return err
	}
	path := directory(d.copy).path(logFile)
	log, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, after := []byte(`"to":"DECLINED"`), []byte(`"to":"dECLINED"`)
	if n := bytes.Count(log, before); n != 1 {
		return fmt.Errorf("log.db contains the suspension %d times", n)
	}
	if err := os.WriteFile(path, bytes.Replace(log, before, after, 1), 0o600); err != nil {
		return err
	}
	c := d.config
	c.Data = d.copy
	v, err := verify(ctx, c, d.quiet(), trustFiles{})
	if err != nil {
		return err
	}
	for _, f := range v.Faults {
		d.show("%s: %s", f.Name, f.Detail)
	}
	if v.OK || len(v.Faults) == 0 {
		return errors.New("verify did not find the changed byte")
	}
	return nil
}

// quiet returns a console that prints nothing.
func (d *demonstration) quiet() cli.Console { return cli.Console{Out: io.Discard, Err: io.Discard} }
