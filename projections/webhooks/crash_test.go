package webhooks

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/mod/sumdb/note"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/eventstore/seal"
	"accountledger/eventstore/sqlite"
)

// How TestCrash tells its own binary to be a sender.
const (
	senderDir = "ACCOUNTLEDGER_TEST_SENDER"
	senderURL = "ACCOUNTLEDGER_TEST_SENDER_URL"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(senderDir); dir != "" {
		if err := sender(dir, os.Getenv(senderURL)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// sender is a whole ledger over the files in dir: it appends events and
// delivers them to url, until standard input ends. Killed at any moment, the
// next one goes on. It prints each account it has created or changed.
func sender(dir, url string) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	key, err := os.ReadFile(filepath.Join(dir, "log.key"))
	if err != nil {
		return err
	}
	master, err := os.ReadFile(filepath.Join(dir, "master.key"))
	if err != nil {
		return err
	}
	signer, err := note.NewSigner(string(key))
	if err != nil {
		return err
	}
	wrap, err := seal.LoadMaster(string(master))
	if err != nil {
		return err
	}
	keys, err := seal.Open(ctx, seal.Config{Path: filepath.Join(dir, "keys.db"), Master: wrap})
	if err != nil {
		return err
	}
	log, err := sqlite.Open(ctx, sqlite.Config{Dir: dir, Signer: signer})
	if err != nil {
		return err
	}
	codec := domain.Codec{Keys: keys}
	ledger := domain.NewLedger(domain.LedgerConfig{Log: log, Codec: codec})
	hooks, err := Open(ctx, Config{Path: filepath.Join(dir, "delivery.db"), Log: log, Codec: codec, Ledger: ledger, Keys: keys, Allow: loopback,
		Schedule: []time.Duration{50 * time.Millisecond, 50 * time.Millisecond, 50 * time.Millisecond, 50 * time.Millisecond, time.Second, time.Second, time.Second}})
	if err != nil {
		return err
	}
	if _, _, _, err := hooks.Create(ctx, asAdmin, "crm", creation(url)); err != nil {
		return err
	}
	done := make(chan error)
	go func() { done <- hooks.Run(ctx) }()
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() { // a line is an account to create or to change
		sub, last, _ := strings.Cut(input.Text(), " ")
		a, err := ledger.Account(ctx, sub)
		if err != nil {
			return err
		}
		var cmd domain.Command = domain.CreateAccount{Origin: domain.OriginRegistered, Identities: []domain.NewIdentity{{
			IdentityID: domain.NewID().String(), Provider: domain.ProviderSelf, Profile: domain.Profile{Email: sub + "@example.com"}}}}
		if a.Exists() {
			cmd = domain.SetCustomFields{Values: map[string]jsontext.Value{"tier": jsontext.Value(strconv.Quote(last))}}
		}
		result, err := ledger.Execute(ctx, asAdmin, sub, cmd)
		if err != nil {
			return err
		}
		fmt.Println(result.Account.Position)
	}
	for { // told to end: not before everything is delivered
		e, err := hooks.Get(ctx, "crm")
		if err != nil {
			return err
		}
		if e.Backlog == 0 && e.Lanes == 0 {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	cancel()
	return <-done
}

// Row 47: killed at random moments, the sender loses nothing, keeps the order
// of first deliveries, and repeats no more than was under way or not written.
func TestCrash(t *testing.T) {
	if testing.Short() {
		t.Skip("starts and kills processes")
	}
	t.Parallel()
	const rounds, accounts = 8, 40
	dir := t.TempDir()
	private, _, err := note.GenerateKey(nil, "test.example/log")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"log.key": private, "master.key": seal.NewMaster().Reveal()} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// A killed sender's request may still be answered here while the next
	// sender repeats it, so requests at once are not counted.
	r := &receiver{delay: func() time.Duration { return rand.N(50 * time.Millisecond) }, overlaps: true}
	server := httptest.NewServer(r)
	defer server.Close()
	made := 0 // events the sender said are durable
	for round := range rounds + 1 {
		made += runSender(t, dir, server.URL, round, round < rounds, accounts)
	}
	// The last one ended by itself, with everything delivered.
	ids := r.ids()
	events := map[string]eventstore.Revision{}
	for _, g := range r.got() {
		events[g.Sub] = max(events[g.Sub], g.Sequence)
	}
	seen := map[string]map[eventstore.Revision]bool{}
	for _, g := range r.got() {
		if seen[g.Sub] == nil {
			seen[g.Sub] = map[eventstore.Revision]bool{}
		}
		seen[g.Sub][g.Sequence] = true
	}
	total := 0
	for sub, last := range events {
		total += len(seen[sub])
		if len(seen[sub]) != int(last)+1 {
			t.Errorf("%s: %d of %d events arrived", sub, len(seen[sub]), last+1)
		}
	}
	if total < made || made < accounts {
		t.Errorf("%d events arrived, %d were durable", total, made)
	}
	repeated := r.count() - len(ids)
	if bound := rounds * (64 + 2*flushResults); repeated > bound {
		t.Errorf("%d repeated, want at most %d", repeated, bound)
	}
	t.Logf("%d events, %d deliveries, %d repeated over %d kills", total, r.count(), repeated, rounds)
	r.inOrder(t)
}

// runSender runs a sender for one round and kills it at a random moment, or
// lets it finish. It returns how many changes it said were durable.
func runSender(t *testing.T, dir, url string, round int, kill bool, accounts int) (made int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), senderDir+"="+dir, senderURL+"="+url)
	cmd.Stderr = t.Output()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop := 50 + rand.IntN(200) // after so many changes
	lines := bufio.NewScanner(out)
	for i := 0; i < stop; i++ {
		if _, err := fmt.Fprintf(in, "a%d %d-%d\n", rand.IntN(accounts), round, i); err != nil {
			t.Fatal(err)
		}
		if !lines.Scan() {
			t.Fatalf("the sender of round %d ended: %v", round, cmd.Wait())
		}
		if _, err := strconv.Atoi(lines.Text()); err != nil {
			t.Fatalf("the sender says %q", lines.Text())
		}
		made++
	}
	if kill {
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		cmd.Wait() // says that it was killed
		return made
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatalf("the last sender: %v", err)
	}
	return made
}
