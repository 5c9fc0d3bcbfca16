package webhooks

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sync/errgroup"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/eventstore/seal"
	"accountledger/eventstore/sqlite"
)

// The environment variables that make the test binary a sender or a receiver.
const (
	senderDir       = "ACCOUNTLEDGER_TEST_SENDER" // its files
	senderURL       = "ACCOUNTLEDGER_TEST_SENDER_URL"
	receiverFile    = "ACCOUNTLEDGER_TEST_RECEIVER" // where it writes each request, one a line
	receiverAddress = "ACCOUNTLEDGER_TEST_RECEIVER_ADDRESS"
)

func TestMain(m *testing.M) {
	var err error
	switch {
	case os.Getenv(senderDir) != "":
		err = sendEvents(os.Getenv(senderDir), os.Getenv(senderURL))
	case os.Getenv(receiverFile) != "":
		err = receive(os.Getenv(receiverFile), os.Getenv(receiverAddress))
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// keepSecrets creates the keys that crashLog opens the files with.
func keepSecrets(t testing.TB, dir string) {
	t.Helper()
	private, _, err := note.GenerateKey(nil, "test.example/log")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"log.key": private, "master.key": seal.NewMaster().Reveal()} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// crashLog opens the files in dir: a log and its keys.
func crashLog(ctx context.Context, dir string) (*sqlite.Store, *seal.Keys, error) {
	key, err := os.ReadFile(filepath.Join(dir, "log.key"))
	if err != nil {
		return nil, nil, err
	}
	master, err := os.ReadFile(filepath.Join(dir, "master.key"))
	if err != nil {
		return nil, nil, err
	}
	signer, err := note.NewSigner(string(key))
	if err != nil {
		return nil, nil, err
	}
	wrap, err := seal.LoadMaster(string(master))
	if err != nil {
		return nil, nil, err
	}
	keys, err := seal.Open(ctx, seal.Config{Path: filepath.Join(dir, "keys.db"), Master: wrap})
	if err != nil {
		return nil, nil, err
	}
	log, err := sqlite.Open(ctx, sqlite.Config{Dir: dir, Signer: signer, Vouch: keys.Vouch})
	return log, keys, err
}

// sendEvents is a whole ledger over the files in dir: it appends events and
// delivers them to url until standard input ends. It may be killed at any moment;
// the next one continues. Each input line names an account to create or change;
// it writes a line when that is durable, in any order.
func sendEvents(dir, url string) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	log, keys, err := crashLog(ctx, dir)
	if err != nil {
		return err
	}
	codec := domain.Codec{Keys: keys}
	ledger := domain.NewLedger(domain.LedgerConfig{Log: log, Codec: codec})
	// No event of a failing account may become a dead letter before it heals.
	schedule := []time.Duration{50 * time.Millisecond, 50 * time.Millisecond, 50 * time.Millisecond}
	for range 3600 {
		schedule = append(schedule, time.Second)
	}
	hooks, err := Open(ctx, Config{Path: filepath.Join(dir, "delivery.db"), Log: log, Codec: codec, Ledger: ledger, Keys: keys, Allow: loopback, Schedule: schedule})
	if err != nil {
		return err
	}
	// Each start repeats the same command.
	first := domain.Request{Meta: asAdmin.Meta.WithRequest("c1", "h")}
	if _, _, _, err := hooks.Create(ctx, first, "crm", creation(url)); err != nil {
		return err
	}
	done := make(chan error)
	go func() { done <- hooks.Run(ctx) }()
	if err := writeEvents(ctx, ledger, os.Stdin); err != nil {
		return err
	}
	for { // the input has ended: deliver everything first
		e, err := hooks.Get(ctx, "crm")
		if err != nil {
			return err
		}
		// e.Lanes counts failing lanes only; a lane whose head arrived still
		// owes the account's later events.
		lanes, _, err := hooks.Lanes(ctx, "crm", "", 1)
		if err != nil {
			return err
		}
		if e.Backlog == 0 && len(lanes) == 0 {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	cancel()
	return <-done
}

// writeEvents makes one change per line, those of one account in order.
func writeEvents(ctx context.Context, ledger *domain.Ledger, input io.Reader) error {
	var workers errgroup.Group
	lines := make([]chan string, 16)
	for i := range lines {
		lines[i] = make(chan string)
		workers.Go(func() error {
			for line := range lines[i] {
				sub, value, _ := strings.Cut(line, " ")
				a, err := ledger.Account(ctx, sub)
				if err != nil {
					return err
				}
				var cmd domain.Command = domain.CreateAccount{Origin: domain.OriginRegistered, Identities: []domain.NewIdentity{{
					IdentityID: domain.NewID().String(), Provider: domain.ProviderSelf, Profile: domain.Profile{Email: sub + "@example.com"}}}}
				if a.Exists() {
					cmd = domain.SetCustomFields{Values: map[string]jsontext.Value{"tier": jsontext.Value(strconv.Quote(value))}}
				}
				if _, err := ledger.Execute(ctx, asAdmin, sub, cmd); err != nil {
					return err
				}
				fmt.Println("durable")
			}
			return nil
		})
	}
	scanner := bufio.NewScanner(input)
	for scanner.Scan() {
		sub, _, _ := strings.Cut(scanner.Text(), " ")
		lines[crc32.ChecksumIEEE([]byte(sub))%uint32(len(lines))] <- scanner.Text()
	}
	for _, l := range lines {
		close(l)
	}
	return workers.Wait()
}

// receive is a receiver that writes each request and its response to a file before
// it responds. Until standard input tells it to heal, it responds with 500 to
// events of accounts whose sub ends with "00".
func receive(file, address string) error {
	f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	fmt.Println(listener.Addr())
	var healed atomic.Bool
	go func() {
		io.ReadAll(io.LimitReader(os.Stdin, 1))
		healed.Store(true)
	}()
	return http.Serve(listener, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // the sender was killed
		}
		var e envelope
		status := http.StatusNoContent
		if err := json.Unmarshal(body, &e, json.RejectUnknownMembers(true)); err != nil {
			status = http.StatusTeapot
		} else if strings.HasSuffix(e.Sub, "00") && !healed.Load() {
			status = http.StatusInternalServerError
		}
		if _, err := f.Write(fmt.Appendf(nil, "%d %s\n", status, body)); err != nil {
			status = http.StatusServiceUnavailable
		}
		rw.WriteHeader(status)
	}))
}

// crashSize returns how often TestCrash kills and how many events it sends.
// ACCOUNTLEDGER_TEST_DELIVERY_KILLS and ACCOUNTLEDGER_TEST_DELIVERIES override
// the defaults.
func crashSize() (rounds, events int) {
	number := func(name string, otherwise int) int {
		if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
			return n
		}
		return otherwise
	}
	return number("ACCOUNTLEDGER_TEST_DELIVERY_KILLS", 8), number("ACCOUNTLEDGER_TEST_DELIVERIES", 2000)
}

// crash is a sender and a receiver that are killed repeatedly.
type crash struct {
	t        *testing.T
	dir      string
	address  string // of the receiver
	accounts int
	durable  int // changes that the sender reported as durable

	mu       sync.Mutex
	receiver *exec.Cmd
	heal     io.Closer // heals the receiver
}

// Row 47: sender and receiver are killed at random moments while one account in a
// hundred fails. No event is lost, first deliveries are in order, and only
// deliveries that were in flight or not yet stored are repeated.
func TestCrash(t *testing.T) {
	if testing.Short() {
		t.Skip("starts and kills processes")
	}
	t.Parallel()
	rounds, events := crashSize()
	c := &crash{t: t, dir: t.TempDir(), address: "127.0.0.1:0", accounts: max(100, events/200)}
	keepSecrets(t, c.dir)
	c.startReceiver()
	t.Cleanup(c.killReceiver)
	for round := range rounds {
		c.round(round, events/(rounds+1))
	}
	c.last(rounds, events-c.durable)
	c.judge(rounds)
}

// start starts the test binary as a sender or receiver.
func start(t testing.TB, env ...string) (cmd *exec.Cmd, in io.WriteCloser, lines *bufio.Scanner) {
	t.Helper()
	cmd = exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = t.Output()
	in, err := cmd.StdinPipe()
	if err != nil {
		panic(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		panic(err)
	}
	if err := cmd.Start(); err != nil {
		panic(err)
	}
	return cmd, in, bufio.NewScanner(out)
}

// startReceiver starts a receiver, always at the address of the first one.
func (c *crash) startReceiver() {
	c.t.Helper()
	cmd, in, lines := start(c.t, receiverFile+"="+filepath.Join(c.dir, "received"), receiverAddress+"="+c.address)
	if !lines.Scan() {
		c.t.Errorf("the receiver does not start: %v", cmd.Wait())
	} else {
		c.address = lines.Text()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.receiver, c.heal = cmd, in
}

func (c *crash) killReceiver() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.receiver.Process.Kill()
	c.receiver.Wait() // returns an error, because it was killed
}

// send requests changes from a sender and reads which of them are durable.
func (c *crash) send(in io.Writer, lines *bufio.Scanner, round, events int) {
	var writing sync.WaitGroup
	defer writing.Wait()
	writing.Go(func() {
		for i := range events {
			if _, err := fmt.Fprintf(in, "a%03d %d-%d\n", rand.IntN(c.accounts), round, i); err != nil {
				return // killed
			}
		}
	})
	for range events {
		if !lines.Scan() {
			return // killed
		}
		c.durable++
	}
}

// round runs a sender and kills it at a random moment. In every other round it
// kills the receiver as well, while the sender runs.
func (c *crash) round(round, events int) {
	c.t.Helper()
	cmd, in, lines := start(c.t, senderDir+"="+c.dir, senderURL+"=http://"+c.address+"/hook")
	var ending sync.WaitGroup
	if round%2 == 1 {
		ending.Go(func() {
			time.Sleep(rand.N(200 * time.Millisecond))
			c.killReceiver()
			time.Sleep(rand.N(50 * time.Millisecond)) // without a receiver
			c.startReceiver()
		})
	}
	most := events
	if round%4 != 0 { // kill it while it appends, and in other rounds while it only delivers
		most = rand.IntN(events)
	}
	c.send(in, lines, round, most)
	time.Sleep(rand.N(300 * time.Millisecond))
	if err := cmd.Process.Kill(); err != nil {
		c.t.Fatal(err)
	}
	cmd.Wait() // returns an error, because it was killed
	ending.Wait()
}

// last heals the failing accounts and lets a sender end after it has delivered
// everything.
func (c *crash) last(round, events int) {
	c.t.Helper()
	c.heal.Close()
	cmd, in, lines := start(c.t, senderDir+"="+c.dir, senderURL+"=http://"+c.address+"/hook")
	c.send(in, lines, round, events)
	in.Close()
	if err := cmd.Wait(); err != nil {
		c.t.Fatalf("the last sender: %v", err)
	}
}

// judge compares the receiver's file with the log.
func (c *crash) judge(rounds int) {
	c.t.Helper()
	log, keys, err := crashLog(c.t.Context(), c.dir)
	if err != nil {
		c.t.Fatal(err)
	}
	defer keys.Close()
	defer log.Close()
	written := c.written(log, keys)
	data, err := os.ReadFile(filepath.Join(c.dir, "received"))
	if err != nil {
		c.t.Fatal(err)
	}
	taken := map[string]bool{}               // by id: accepted by the receiver
	last := map[string]eventstore.Revision{} // by sub, of those
	repeated, refused, missing := 0, 0, len(written)
	for line := range bytes.Lines(data) {
		status, body, _ := bytes.Cut(line, []byte(" "))
		var e envelope
		if err := json.Unmarshal(body, &e); err != nil || string(status) == "418" {
			c.t.Fatalf("a malformed delivery: %v", err)
		}
		if _, known := written[e.ID]; !known {
			c.t.Fatalf("an event arrived that is not in the log: %s", e.ID)
		}
		switch {
		case taken[e.ID]:
			repeated++
			continue
		case string(status) == "500":
			refused++
		default:
			taken[e.ID] = true
			missing--
		}
		if e.Sequence < last[e.Sub] || e.Sequence > last[e.Sub]+1 {
			c.t.Errorf("%s: sequence %d first arrived after %d", e.Sub, e.Sequence, last[e.Sub])
		}
		if taken[e.ID] {
			last[e.Sub] = e.Sequence
		}
	}
	if missing > 0 || c.durable < c.accounts/2 || len(written) < c.durable {
		c.t.Errorf("%d of %d events never arrived; %d changes were durable", missing, len(written), c.durable)
	}
	if bound := rounds*(64+2*flushResults) + rounds/2*64; repeated > bound {
		c.t.Errorf("%d repeated, want at most %d", repeated, bound)
	}
	if refused == 0 {
		c.t.Error("no account failed")
	}
	c.t.Logf("%d events, %d changes acknowledged, %d deliveries repeated and %d refused over %d kills of the sender and %d of the receiver",
		len(written), c.durable, repeated, refused, rounds, rounds/2)
}

// written returns the ids of the log's public events.
func (c *crash) written(log *sqlite.Store, keys *seal.Keys) map[string]bool {
	c.t.Helper()
	written := map[string]bool{}
	codec := domain.Codec{Keys: keys}
	head, err := log.Head(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	for page, err := range log.Subscribe(c.t.Context(), 0) {
		if err != nil {
			c.t.Fatal(err)
		}
		for _, rec := range page {
			x, err := codec.Decode(rec)
			if err != nil {
				c.t.Fatal(err)
			}
			public, err := domain.Public(x, 0)
			if err != nil {
				c.t.Fatal(err)
			}
			for _, e := range public {
				if domain.Selects("USER_*", e.Type) {
					written[e.ID] = true
				}
			}
		}
		if page[len(page)-1].Position == head {
			break
		}
	}
	return written
}
