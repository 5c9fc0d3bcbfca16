package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/rogpeppe/go-internal/testscript"

	"accountledger/cmd/accountledger/cli"
)

// TestMain lets the test binary run as accountledger, so that scripts and tests
// start processes of the program under test.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"accountledger": main})
}

// process is a running server process.
type process struct {
	*exec.Cmd
	url, key string
	client   *http.Client
	log      *buffer // standard error
	ended    chan error
}

// buffer collects the output of a process.
type buffer struct {
	mu   sync.Mutex
	text bytes.Buffer
	grew chan struct{} // closed and replaced at each write
}

func newBuffer() *buffer { return &buffer{grew: make(chan struct{})} }

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.grew)
	b.grew = make(chan struct{})
	return b.text.Write(p)
}

func (b *buffer) String() string {
	text, _ := b.now()
	return text
}

func (b *buffer) now() (string, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String(), b.grew
}

// await waits until the output contains text.
func (b *buffer) await(ctx context.Context, text string) error {
	for {
		now, grew := b.now()
		if strings.Contains(now, text) {
			return nil
		}
		select {
		case <-grew:
		case <-ctx.Done():
			return fmt.Errorf("waiting for %q: %w; the output is:\n%s", text, ctx.Err(), now)
		}
	}
}

// spawn starts a server on data without waiting for it.
func spawn(data string, args ...string) (*process, io.Reader, error) {
	return spawnProgram("accountledger", "", data, args...)
}

// spawnProgram is spawn with a program and a working directory.
func spawnProgram(program, dir, data string, args ...string) (*process, io.Reader, error) {
	args = append([]string{"serve", "--data", data, "--listen", "127.0.0.1:0"}, args...)
	p := &process{Cmd: exec.Command(program, args...), log: newBuffer(), ended: make(chan error, 1)}
	p.Dir, p.Stderr = dir, p.log
	p.WaitDelay = 10 * time.Second
	// Not StdoutPipe, because Wait closes that while it is read.
	r, w := io.Pipe()
	p.Stdout = w
	if err := p.Start(); err != nil {
		return nil, nil, err
	}
	go func() {
		err := p.Wait()
		w.CloseWithError(fmt.Errorf("the server ended: %v\n%s", err, p.log))
		p.ended <- err
	}()
	return p, r, nil
}

// ready waits until the server is ready, and then reads its admin key.
func (p *process) ready(stdout io.Reader, data string) error {
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		return err
	}
	const prefix = "accountledger listening on "
	url, ok := strings.CutPrefix(strings.TrimSpace(line), prefix)
	if !ok {
		return fmt.Errorf("the server prints %q, want %q and an address", line, prefix)
	}
	go io.Copy(io.Discard, stdout)
	p.url, p.client = url, &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}, Timeout: 30 * time.Second}
	p.key, err = cli.ReadTrimmed(filepath.Join(data, adminKeyFile))
	return err
}

// startServer starts a server on data and kills it when the test ends.
func startServer(t *testing.T, data string, args ...string) *process {
	t.Helper()
	p, stdout, err := spawn(data, args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	if err := p.ready(stdout, data); err != nil {
		t.Fatal(err)
	}
	return p
}

// kill kills the process and waits for its end.
func (p *process) kill() {
	p.Process.Kill()
	p.wait(context.Background())
	if p.client != nil {
		p.client.CloseIdleConnections()
	}
}

// wait waits for the end of the process. It can be called again.
func (p *process) wait(ctx context.Context) error {
	select {
	case err := <-p.ended:
		p.ended <- err
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// stop terminates the server with SIGTERM and waits for its end.
func (p *process) stop(ctx context.Context) error {
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	return p.wait(ctx)
}

// do sends a request with the admin key; body is JSON or empty.
func (p *process) do(ctx context.Context, method, path, body string) (*http.Response, []byte, error) {
	request, err := http.NewRequestWithContext(ctx, method, p.url+path, strings.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	request.Header.Set("Authorization", "Bearer "+p.key)
	if body != "" {
		request.Header.Set("Content-Type", "application/json")
	}
	response, err := p.client.Do(request)
	if err != nil {
		return nil, nil, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return response, text, err
}

// create creates an account with an e-mail address and returns its sub.
func (p *process) create(t *testing.T, email string) string {
	t.Helper()
	body := fmt.Sprintf(`{"origin":"created","identities":[{"provider":"self","given_name":"Ada","family_name":"Lovelace","email":%q}]}`, email)
	response, text, err := p.do(t.Context(), "POST", "/v1/accounts", body)
	if err != nil || response.StatusCode != http.StatusCreated {
		t.Fatalf("create: %v, %v: %s", response, err, text)
	}
	var account struct {
		Sub string `json:"sub"`
	}
	if err := json.Unmarshal(text, &account); err != nil {
		t.Fatal(err)
	}
	return account.Sub
}

// accountledger runs the program in this process.
func accountledger(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	code = run(t.Context(), args, strings.NewReader(""), &out, &err)
	return code, out.String(), err.String()
}

// mustRun is accountledger, but fails the test unless the program succeeds.
func mustRun(t *testing.T, args ...string) string {
	t.Helper()
	code, stdout, stderr := accountledger(t, args...)
	if code != cli.ExitOK {
		t.Fatalf("accountledger %s: exit code %d\n%s%s", strings.Join(args, " "), code, stdout, stderr)
	}
	return stdout
}

func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir:                "../../testdata/script",
		RequireUniqueNames: true,
		Setup: func(e *testscript.Env) error {
			e.Values[serverKey{}], e.Values[begunKey{}] = new(*process), new(*process)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"serve":     scriptServe,
			"terminate": scriptStop,
			"begin":     scriptBegin,
			"interrupt": scriptInterrupt,
			"http":      scriptHTTP,
			"exits":     scriptExits,
			"mode":      scriptMode,
		},
	})
}

// scriptServe starts a server and sets $URL to its address: serve DATA [flag...].
func scriptServe(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: serve DATA [flag...]")
	}
	data := ts.MkAbs(args[0])
	p, stdout, err := spawnProgram("accountledger", ts.MkAbs("."), data, args[1:]...)
	ts.Check(err)
	ts.Defer(p.kill)
	ts.Check(p.ready(stdout, data))
	ts.Setenv("URL", p.url)
	*ts.Value(serverKey{}).(**process) = p
}

// serverKey is the key of a script's server, a **process.
type serverKey struct{}

func server(ts *testscript.TestScript) *process {
	p := *ts.Value(serverKey{}).(**process)
	if p == nil {
		ts.Fatalf("no server was started")
	}
	return p
}

// scriptStop stops the server and writes its log to server.log: terminate. The
// name stop is taken by testscript.
func scriptStop(ts *testscript.TestScript, neg bool, args []string) {
	p := server(ts)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err := p.stop(ctx)
	ts.Check(os.WriteFile(ts.MkAbs("server.log"), []byte(p.log.String()), 0o600))
	if err != nil {
		ts.Fatalf("the server ended with %v\n%s", err, p.log)
	}
}

// scriptBegin starts the program, which runs until interrupt: begin [arg...].
func scriptBegin(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: begin [arg...]")
	}
	p := &process{Cmd: exec.Command("accountledger", args...), log: newBuffer(), ended: make(chan error, 1)}
	p.Dir, p.Stdout = ts.MkAbs("."), p.log
	ts.Check(p.Start())
	go func() { p.ended <- p.Wait() }()
	ts.Defer(p.kill)
	*ts.Value(begunKey{}).(**process) = p
}

// begunKey is the key of the program that a script has begun, a **process.
type begunKey struct{}

// scriptInterrupt waits until the program that was begun has printed TEXT,
// interrupts it, checks that it succeeds, and prints its output: interrupt TEXT.
func scriptInterrupt(ts *testscript.TestScript, neg bool, args []string) {
	p := *ts.Value(begunKey{}).(**process)
	if neg || len(args) != 1 || p == nil {
		ts.Fatalf("usage: begin ..., then interrupt TEXT")
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	ts.Check(p.log.await(ctx, args[0]))
	ts.Check(p.Process.Signal(os.Interrupt))
	ts.Check(p.wait(ctx))
	fmt.Fprint(ts.Stdout(), p.log)
}

// scriptHTTP sends a request to the server: http METHOD PATH [body]. It prints
// status line, headers and body, and sets $SUB to the sub in the body.
func scriptHTTP(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 || len(args) > 3 {
		ts.Fatalf("usage: http METHOD PATH [body]")
	}
	body := ""
	if len(args) == 3 {
		body = args[2]
	}
	response, text, err := server(ts).do(context.Background(), args[0], args[1], body)
	ts.Check(err)
	fmt.Fprintf(ts.Stdout(), "%s %s\n", response.Proto, response.Status)
	ts.Check(response.Header.Write(ts.Stdout()))
	fmt.Fprintf(ts.Stdout(), "\n%s\n", text)
	var account struct {
		Sub string `json:"sub"`
	}
	if json.Unmarshal(text, &account) == nil && account.Sub != "" {
		ts.Setenv("SUB", account.Sub)
	}
}

// scriptExits runs the program and compares its exit code: exits CODE [arg...].
func scriptExits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: exits CODE [arg...]")
	}
	code := 0
	if err := ts.Exec("accountledger", args[1:]...); err != nil {
		exit, ok := err.(*exec.ExitError)
		if !ok {
			ts.Fatalf("%v", err)
		}
		code = exit.ExitCode()
	}
	if fmt.Sprint(code) != args[0] {
		ts.Fatalf("exit code %d, want %s", code, args[0])
	}
}

// scriptMode compares the permissions of files: mode 600 FILE...
func scriptMode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: mode MODE FILE...")
	}
	for _, file := range args[1:] {
		info, err := os.Stat(ts.MkAbs(file))
		ts.Check(err)
		if got := fmt.Sprintf("%o", info.Mode().Perm()); got != args[0] {
			ts.Fatalf("%s has mode %s, want %s", file, got, args[0])
		}
	}
}
