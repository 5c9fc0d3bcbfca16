package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"accountledger/cmd/accountledger/cli"
)

// timeout is how long a test waits for something that should happen immediately.
const timeout = time.Minute

// unfinished sends a request without its last byte.
func unfinished(t *testing.T, p *process) (finish func() *http.Response) {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	body := `{"origin":"created","identities":[{"provider":"self","email":"slow@example.com"}]}`
	fmt.Fprintf(conn, "POST /v1/accounts HTTP/1.1\r\nHost: ledger\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n", p.key, len(body))
	// The server requests the body after it has read the headers.
	reader := bufio.NewReader(conn)
	if line, err := reader.ReadString('\n'); err != nil || !strings.Contains(line, "100") {
		t.Fatalf("the server answers %q, %v", line, err)
	}
	reader.ReadString('\n')
	io.WriteString(conn, body[:len(body)-1])
	return func() *http.Response {
		io.WriteString(conn, body[len(body)-1:])
		response, err := http.ReadResponse(reader, nil)
		if err != nil {
			t.Fatal(err)
		}
		return response
	}
}

// TestStopFinishesRequests tests that a server that stops executes and answers a
// request that has started.
func TestStopFinishesRequests(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	data := filepath.Join(t.TempDir(), "data")
	p := startServer(t, data, "--shutdown-grace", timeout.String())
	finish := unfinished(t, p)
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.log.await(ctx, "msg=stopping"); err != nil {
		t.Fatal(err)
	}
	if response := finish(); response.StatusCode != http.StatusCreated {
		t.Errorf("a request in flight at shutdown is answered with %s", response.Status)
	}
	if err := p.wait(ctx); err != nil {
		t.Fatalf("the server ended with %v\n%s", err, p.log)
	}
	// The last checkpoint covers everything.
	if stdout := mustRun(t, "verify", "--data", data, "--json"); !strings.Contains(stdout, `"covered": 1`) {
		t.Errorf("verify after shutdown prints\n%s", stdout)
	}
}

// TestStopEndsStreams tests that a server that stops ends a stream of the feed
// normally and stores the progress of webhooks, so that the next start repeats no
// delivery.
func TestStopEndsStreams(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	data := filepath.Join(t.TempDir(), "data")
	delivered := make(chan string, 16)
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { delivered <- r.Header.Get("Ledger-Position") }))
	defer receiver.Close()
	await := func(want string) {
		t.Helper()
		select {
		case is := <-delivered:
			if is != want {
				t.Errorf("the event at position %s is delivered, want %s", is, want)
			}
		case <-ctx.Done():
			t.Fatalf("the event at position %s is not delivered", want)
		}
	}
	p := startServer(t, data, "--webhook-allow", "127.0.0.0/8,::1/128", "--shutdown-grace", timeout.String())
	hook := fmt.Sprintf(`{"url":%q,"events":["USER_CREATED"]}`, receiver.URL)
	if response, text, err := p.do(ctx, "POST", "/v1/webhooks", hook); err != nil || response.StatusCode != http.StatusCreated {
		t.Fatalf("%v, %v: %s", response, err, text)
	}
	p.create(t, "first@example.com")
	await("2")

	request, err := http.NewRequestWithContext(ctx, "GET", p.url+"/v1/events?after=0", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+p.key)
	request.Header.Set("Accept", "text/event-stream")
	response, err := new(http.Client).Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	stream := bufio.NewReader(response.Body)
	for line := ""; !strings.Contains(line, "USER_CREATED"); {
		if line, err = stream.ReadString('\n'); err != nil {
			t.Fatalf("the stream ended before the event: %v", err)
		}
	}
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, stream); err != nil {
		t.Errorf("the stream was aborted: %v", err)
	}
	if err := p.wait(ctx); err != nil {
		t.Fatalf("the server ended with %v\n%s", err, p.log)
	}
	if strings.Contains(p.log.String(), "cut off") {
		t.Errorf("the server aborted something:\n%s", p.log)
	}
	if at, err := deliveryPosition(ctx, filepath.Join(data, deliveryFile)); err != nil || at != 2 {
		t.Errorf("the webhook is at position %d, %v, want 2", at, err)
	}
	p = startServer(t, data, "--webhook-allow", "127.0.0.0/8,::1/128")
	p.create(t, "second@example.com")
	await("3")
}

// TestSecondSignal tests that a second signal ends the wait for a client that does
// not finish its request.
func TestSecondSignal(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	p := startServer(t, filepath.Join(t.TempDir(), "data"), "--shutdown-grace", "1h")
	unfinished(t, p)
	for _, message := range []string{"msg=stopping", `msg="stopping immediately"`} {
		if err := p.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if err := p.log.await(ctx, message); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.wait(ctx); err != nil {
		t.Fatalf("the server ended with %v\n%s", err, p.log)
	}
}

// TestServeLeavesNothing runs a server in this process, and checks that it leaves
// no goroutines.
func TestServeLeavesNothing(t *testing.T) {
	before := goleak.IgnoreCurrent()
	ctx, cancel := context.WithCancel(t.Context())
	listening := newBuffer()
	ended := make(chan error, 1)
	c := cli.Config{Data: filepath.Join(t.TempDir(), "data"), Listen: "127.0.0.1:0", ShutdownGrace: timeout}
	go func() { ended <- serve(ctx, c, slog.New(slog.DiscardHandler), listening, nil) }()
	wait, done := context.WithTimeout(t.Context(), timeout)
	defer done()
	if err := listening.await(wait, "\n"); err != nil {
		t.Fatal(err)
	}
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-wait.Done():
		t.Fatal("serve did not end with its context")
	}
	goleak.VerifyNone(t, before, goleak.IgnoreAnyFunction("os/signal.loop"))
}

// TestSecrecy sends personal data to a server with log level debug, and checks
// that it writes none to the log and to files that must not contain any.
func TestSecrecy(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "data")
	p := startServer(t, data, "--log-level", "debug", "--log-format", "json", "--webhook-allow", "127.0.0.0/8,::1/128")
	ask := func(method, path, body string, want int) {
		t.Helper()
		response, text, err := p.do(t.Context(), method, path, body)
		if err != nil || response.StatusCode != want {
			t.Fatalf("%s %s: %v, %v, want %d: %s", method, path, response, err, want, text)
		}
	}
	// The receiver refuses each delivery and echoes it as the reason.
	refused := make(chan struct{}, 1<<10)
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusBadRequest)
		io.Copy(w, r.Body)
		refused <- struct{}{}
	}))
	defer receiver.Close()
	ask("POST", "/v1/webhooks", fmt.Sprintf(`{"url":%q,"events":["USER_*"],"format":"standard","payload":"full"}`, receiver.URL), http.StatusCreated)

	var stored, sent []string // canaries: those in accounts, and those refused
	for i := range 40 {
		keep := func(format string) string {
			stored = append(stored, fmt.Sprintf(format, i))
			return stored[len(stored)-1]
		}
		send := func(format string) string {
			sent = append(sent, fmt.Sprintf(format, i))
			return sent[len(sent)-1]
		}
		body := fmt.Sprintf(`{"origin":"created","customFields":{"employee":%q},"identities":[{"provider":"saml","providerUserId":%q,"given_name":%q,"family_name":%q,
			"nickname":%q,"email":%q,"mobile_number":%q,"username":%q,"birthdate":%q,"address":{"street_address":%q,"locality":%q}}]}`,
			keep("E-canary-%d"), keep("saml-canary-%d"), keep("Givencanary%d"), keep("Familycanary%d"), keep("Nickcanary%d"), keep("canary.%d@example.com"),
			keep("+4915112345%03d"), keep("usercanary%d"), keep("18%02d-03-01"), keep("Canary Street %d"), keep("Canarytown %d"))
		ask("POST", "/v1/accounts", body, http.StatusCreated)
		// Refused data must not be written either.
		ask("POST", "/v1/accounts", body, http.StatusConflict)
		ask("POST", "/v1/accounts", fmt.Sprintf(`{"origin":"created","identities":[{"provider":"self","email":%q}]}`, send("not-canary-%d-an-address")), http.StatusUnprocessableEntity)
		ask("POST", "/v1/lookup", fmt.Sprintf(`{"identifier":%q,"type":"email"}`, send("nobody.canary%d@example.com")), http.StatusNotFound)
		ask("GET", "/v1/accounts/"+send("canary-in-path-%d"), "", http.StatusNotFound)
		ask("GET", "/v1/events?canary="+send("canary-in-query-%d"), "", http.StatusBadRequest)
	}
	ask("PUT", "/v1/nowhere/canary-nowhere", "", http.StatusNotFound)
	sent = append(sent, "canary-nowhere")
	select {
	case <-refused:
	case <-time.After(timeout):
		t.Fatal("the receiver got no delivery")
	}

	// While the server runs, the write-ahead logs exist, too.
	search := func(name string, canaries []string) (found []string) {
		text, err := os.ReadFile(filepath.Join(data, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		for _, c := range canaries {
			if bytes.Contains(text, []byte(c)) {
				found = append(found, c)
			}
		}
		return found
	}
	everything := slices.Concat(stored, sent)
	sealed := func() {
		for _, name := range []string{logFile, logFile + "-wal", keysFile, keysFile + "-wal", deliveryFile, deliveryFile + "-wal"} {
			if found := search(name, everything); len(found) > 0 {
				t.Errorf("%s contains %d of %d canaries, for example %q", name, len(found), len(everything), found[0])
			}
		}
	}
	sealed()
	if info, err := os.Stat(filepath.Join(data, logFile+"-wal")); err != nil || info.Size() == 0 {
		t.Errorf("there is no write-ahead log: %v", err)
	}
	if err := p.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	sealed()
	if found := search(viewsFile, stored); len(found) < len(stored) {
		t.Errorf("views.db contains %d of the %d canaries in accounts: this test does not find them", len(found), len(stored))
	}
	text := p.log.String()
	if !strings.Contains(text, `"level":"DEBUG"`) {
		t.Errorf("the server logged nothing at level debug")
	}
	for _, c := range everything {
		if strings.Contains(text, c) {
			t.Errorf("the server logged %q", c)
		}
	}
}

// TestSlowLoris tests that the server closes connections of clients that send
// headers or a body very slowly, and meanwhile answers other clients.
func TestSlowLoris(t *testing.T) {
	t.Parallel()
	p := startServer(t, filepath.Join(t.TempDir(), "data"))
	heads := []string{
		"GET /v1/projections HTTP/1.1\r\nHost: ledger\r\nX-Slow: ",
		"POST /v1/accounts HTTP/1.1\r\nHost: ledger\r\nContent-Type: application/json\r\nContent-Length: 100000\r\nAuthorization: Bearer " + p.key + "\r\n\r\n{",
	}
	stop := make(chan struct{})
	var trickling, ended sync.WaitGroup
	if testing.Short() {
		heads = heads[:1] // the timeout of a body is longer
	}
	for i := range 40 {
		conn, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, heads[i%len(heads)]); err != nil {
			t.Fatal(err)
		}
		trickling.Go(func() {
			every := time.NewTicker(time.Second)
			defer every.Stop()
			for {
				select {
				case <-every.C:
					if _, err := conn.Write([]byte(" ")); err != nil {
						return
					}
				case <-stop:
					return
				}
			}
		})
		ended.Go(func() {
			conn.SetReadDeadline(time.Now().Add(readTimeout + timeout))
			if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("connection %d is still open", i)
			}
		})
	}
	p.create(t, "ada@example.com") // answered meanwhile
	ended.Wait()
	close(stop)
	trickling.Wait()
}
