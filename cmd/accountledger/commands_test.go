package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"

	"accountledger/cmd/accountledger/cli"
	"accountledger/cmd/accountledger/remote"
)

// reference returns the description of all commands.
func reference() string {
	var b strings.Builder
	var describe func(*cobra.Command)
	describe = func(cmd *cobra.Command) {
		if cmd.HasParent() {
			fmt.Fprintf(&b, "### %s\n\n%s\n\n```\n%s\n", cmd.CommandPath(), markdown(cmd.Long), cmd.UseLine())
			if flags := cmd.NonInheritedFlags(); flags.HasAvailableFlags() {
				b.WriteString("\n" + flags.FlagUsagesWrapped(helpWidth))
			}
			b.WriteString("```\n\n")
		}
		for _, child := range cmd.Commands() {
			if child.IsAvailableCommand() {
				describe(child)
			}
		}
	}
	describe(newRoot())
	return b.String()
}

var referencePlace = regexp.MustCompile(`(?s)<!-- commands -->\n.*<!-- /commands -->`)

// TestReference compares the reference in docs/commands.md with the program. Use
// -update to rewrite it.
func TestReference(t *testing.T) {
	const page = "../../docs/commands.md"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if !referencePlace.Match(text) {
		t.Fatal("the page has no marker for the reference")
	}
	is := referencePlace.ReplaceAllLiteral(text, []byte("<!-- commands -->\n"+reference()+"<!-- /commands -->"))
	if *update {
		if err := os.WriteFile(page, is, 0o644); err != nil {
			t.Fatal(err)
		}
	} else if !bytes.Equal(is, text) {
		t.Errorf("%s differs from the program; run go test -update", page)
	}
	for _, command := range []string{"accounts merge", "webhooks replay", "keys create", "views rebuild"} {
		if !strings.Contains(string(is), "### accountledger "+command+"\n") {
			t.Errorf("the page has no %q", command)
		}
	}
}

// TestEveryCommandIsDescribed tests that each command has a description, and that
// its help fits the width.
func TestEveryCommandIsDescribed(t *testing.T) {
	var look func(*cobra.Command)
	look = func(cmd *cobra.Command) {
		if cmd.Short == "" || cmd.Long == "" {
			t.Errorf("%s lacks its short or long text", cmd.CommandPath())
		}
		if strings.HasSuffix(cmd.Short, ".") {
			t.Errorf("the short text of %s must not end with a period", cmd.CommandPath())
		}
		for _, line := range strings.Split(cmd.Long+"\n"+cmd.UsageString(), "\n") {
			if n := len([]rune(line)); n > helpWidth {
				t.Errorf("%s: a line of the help has %d columns: %q", cmd.CommandPath(), n, line)
			}
		}
		for _, child := range cmd.Commands() {
			look(child)
		}
	}
	look(newRoot())
}

// TestEveryCommandIsShown tests that a transcript shows the output of each command
// that uses a server.
func TestEveryCommandIsShown(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../../testdata/commands/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	var all []byte
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, text...)
	}
	for _, parent := range remote.Commands() {
		for _, cmd := range parent.Commands() {
			if !regexp.MustCompile(`(?m)^\$ accountledger ` + cmd.CommandPath() + `( |$)`).Match(all) {
				t.Errorf("no transcript shows %s", cmd.CommandPath())
			}
		}
	}
}

// TestManual writes the manual pages and checks one of them.
func TestManual(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if out := mustRun(t, "man", "--dir", dir); !strings.HasPrefix(out, "wrote ") {
		t.Errorf("man prints %q", out)
	}
	page, err := os.ReadFile(filepath.Join(dir, "accountledger-accounts-merge.1"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`.TH "ACCOUNTLEDGER-ACCOUNTS-MERGE"`, `\fB--yes\fP`, `\fB--dry-run\fP[=false]`, `<data>/admin.key`, `\fBaccountledger-accounts(1)\fP`} {
		if !strings.Contains(string(page), want) {
			t.Errorf("the page of accounts merge lacks %q:\n%s", want, page)
		}
	}
	var look func(*cobra.Command)
	look = func(cmd *cobra.Command) {
		if _, err := os.Stat(filepath.Join(dir, strings.ReplaceAll(cmd.CommandPath(), " ", "-")+".1")); err != nil {
			t.Errorf("there is no page for %s", cmd.CommandPath())
		}
		for _, child := range cmd.Commands() {
			look(child)
		}
	}
	look(newRoot())
}

// TestCompletion tests shell completions.
func TestCompletion(t *testing.T) {
	t.Parallel()
	p := startServer(t, filepath.Join(t.TempDir(), "data"), "--webhook-allow", "127.0.0.0/8")
	_, text, err := p.do(t.Context(), "POST", "/v1/webhooks", `{"url":"http://127.0.0.1:9/hook?token=secret","events":["USER_*"]}`)
	if err != nil {
		t.Fatal(err)
	}
	var made webhookCreated
	if err := json.Unmarshal(text, &made); err != nil {
		t.Fatal(err)
	}
	keyFile := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(keyFile, []byte(p.key), 0o600); err != nil {
		t.Fatal(err)
	}
	server := []string{"--server", p.url, "--key-file", keyFile}
	for _, tt := range []struct {
		name string
		args []string
		want string // one of the completions
	}{
		{"commands", []string{"acc"}, "accounts\tGet, find, create and change accounts"},
		{"statuses", []string{"accounts", "status", "ada", ""}, "DECLINED"},
		{"statuses to search for", []string{"accounts", "search", "--status", ""}, "COMBINED"},
		{"sort orders", []string{"accounts", "search", "--sort", ""}, "lastLoggedInTime"},
		{"scopes", []string{"keys", "create", "--scope", ""}, "audit:read"},
		{"events", []string{"webhooks", "replay", "--event", ""}, "USER_CREATED"},
		{"webhooks", slices.Concat([]string{"webhooks", "pause"}, server, []string{""}), made.WebhookID + "\t127.0.0.1:9"},
		{"webhooks without a server", []string{"webhooks", "pause", ""}, ":4"},
		{"webhooks of a server that cannot be reached", []string{"webhooks", "pause", "--server", "http://127.0.0.1:1", "--key-file", keyFile, ""}, ":4"},
	} {
		code, stdout, stderr := accountledger(t, append([]string{"__complete"}, tt.args...)...)
		if code != cli.ExitOK || !slices.Contains(strings.Split(stdout, "\n"), tt.want) {
			t.Errorf("%s: exit code %d, completions\n%s%s, want %q", tt.name, code, stdout, stderr, tt.want)
		}
	}
}

// webhookCreated is the part of a new webhook that tests read.
type webhookCreated struct {
	WebhookID string `json:"webhookId"`
}

// lossy is a proxy that drops the answers to the first requests.
type lossy struct {
	*httptest.Server
	asked atomic.Int64
	lost  atomic.Int64 // number of answers still to drop
}

func loseAnswers(t *testing.T, p *process, n int64) *lossy {
	t.Helper()
	target, err := url.Parse(p.url)
	if err != nil {
		t.Fatal(err)
	}
	l := &lossy{}
	l.lost.Store(n)
	l.Server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		l.asked.Add(1)
		r.URL.Scheme, r.URL.Host, r.RequestURI = target.Scheme, target.Host, ""
		response, err := p.client.Do(r)
		if err != nil || l.lost.Add(-1) >= 0 {
			panic(http.ErrAbortHandler)
		}
		defer response.Body.Close()
		rw.WriteHeader(response.StatusCode)
		io.Copy(rw, response.Body)
	}))
	t.Cleanup(l.Close)
	return l
}

// TestLostAnswers tests that the client repeats a write whose answer is lost, that
// the server executes it once, and that the client does not repeat other requests.
func TestLostAnswers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := startServer(t, filepath.Join(dir, "data"))
	body := filepath.Join(dir, "ada.json")
	if err := os.WriteFile(body, []byte(`{"identities":[{"provider":"self","email":"ada@example.com"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	ask := func(l *lossy, args ...string) (int, string, string) {
		return accountledger(t, append(args, "--server", l.URL, "--data", filepath.Join(dir, "data"))...)
	}
	count := func() string {
		t.Helper()
		_, text, err := p.do(t.Context(), "GET", "/v1/accounts", "")
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}

	l := loseAnswers(t, p, 1)
	if code, stdout, stderr := ask(l, "accounts", "create", body); code != cli.ExitOK || l.asked.Load() != 2 {
		t.Fatalf("exit code %d after %d requests\n%s%s", code, l.asked.Load(), stdout, stderr)
	}
	if all := count(); !strings.Contains(all, `"value":1,`) {
		t.Errorf("there is not exactly one account: %s", all)
	}

	// If no answer ever arrives, the error says how to repeat the request.
	l = loseAnswers(t, p, remote.Tries)
	code, stdout, stderr := ask(l, "accounts", "create", body, "--idempotency-key", "import-18")
	if code != cli.ExitNoAnswer || l.asked.Load() != remote.Tries || stdout != "" || !strings.Contains(stderr, "did not answer") || !strings.Contains(stderr, "--idempotency-key import-18") {
		t.Errorf("exit code %d after %d requests\n%s%s", code, l.asked.Load(), stdout, stderr)
	}

	// Repeating a webhook test would send it to the receiver twice.
	l = loseAnswers(t, p, 1)
	if code, _, stderr := ask(l, "webhooks", "test", "00000000-0000-7000-8000-000000000001"); code != cli.ExitNoAnswer || l.asked.Load() != 1 {
		t.Errorf("exit code %d after %d requests\n%s", code, l.asked.Load(), stderr)
	}
}

// TestPrivateCertificate uses a server with a self-signed certificate.
func TestPrivateCertificate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	writeCertificate(t, certFile, keyFile, "ledger")
	data := filepath.Join(dir, "data")
	p, stdout, err := spawn(data, "--tls-cert", certFile, "--tls-key", keyFile)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	if err := p.ready(stdout, data); err != nil {
		t.Fatal(err)
	}
	code, _, stderr := accountledger(t, "accounts", "search", "--server", p.url, "--data", data)
	if code != cli.ExitNoAnswer || !strings.Contains(stderr, "--ca-file") || strings.Contains(stderr, p.key) {
		t.Errorf("an untrusted certificate: exit code %d, %s", code, stderr)
	}
	mustRun(t, "accounts", "search", "--server", p.url, "--data", data, "--ca-file", certFile)
	if code, _, stderr := accountledger(t, "accounts", "search", "--server", p.url, "--data", data, "--ca-file", keyFile); code != cli.ExitFailed {
		t.Errorf("a file without a certificate: exit code %d, %s", code, stderr)
	}
}

// TestNoKeyForOthers tests that the client sends the key only to the configured
// server, and refuses an invalid key.
func TestNoKeyForOthers(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	t.Cleanup(other.Close)
	redirecting := httptest.NewServer(http.RedirectHandler(other.URL, http.StatusTemporaryRedirect))
	t.Cleanup(redirecting.Close)
	keyFile := filepath.Join(t.TempDir(), "key")
	for key, want := range map[string]string{"alk_nobody_nothing": "307", "alk_nobody\nnothing": "does not contain an API key", "": "does not contain an API key"} {
		if err := os.WriteFile(keyFile, []byte(key), 0o600); err != nil {
			t.Fatal(err)
		}
		code, stdout, stderr := accountledger(t, "accounts", "search", "--server", redirecting.URL, "--key-file", keyFile)
		if code != cli.ExitFailed || !strings.Contains(stderr, want) || strings.Contains(stdout+stderr, "nothing") {
			t.Errorf("key %q: exit code %d, %s%s", key, code, stdout, stderr)
		}
	}
	if n := asked.Load(); n > 0 {
		t.Errorf("another server got %d requests", n)
	}
}

// TestMergeGoesByItsPreview tests that merge refuses to change an account that
// changed after the preview.
func TestMergeGoesByItsPreview(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "data")
	p := startServer(t, data)
	ada, work := p.create(t, "ada@example.com"), p.create(t, "ada@work.example")
	answer, changes := io.Pipe()
	t.Cleanup(func() { answer.Close() })
	asking := newBuffer()
	done := make(chan int)
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	go func() {
		done <- run(ctx, []string{"accounts", "merge", ada, work, "--server", p.url, "--data", data}, answer, io.Discard, asking)
	}()
	if err := asking.await(ctx, "Type yes:"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.do(ctx, "PUT", "/v1/accounts/"+ada+"/status", `{"userStatus":"PENDING"}`); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(changes, "yes\n"); err != nil {
		t.Fatal(err)
	}
	if code := <-done; code != cli.ExitRefused || !strings.Contains(asking.String(), "stale-revision") {
		t.Errorf("exit code %d, %s", code, asking)
	}
}

// TestInterrupted tests that the error after an interrupted write says how to
// repeat it.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	asked, end := make(chan struct{}), make(chan struct{})
	silent := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(asked)
		<-end
	}))
	t.Cleanup(silent.Close)
	t.Cleanup(func() { close(end) })
	cmd := exec.CommandContext(t.Context(), "accountledger", "accounts", "status", "ada", "VERIFIED", "--server", silent.URL)
	cmd.Env = append(os.Environ(), remote.KeyEnv+"=alk_somebody_something")
	stderr := newBuffer()
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-asked
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	cmd.Wait() // the exit code is checked below
	if code := cmd.ProcessState.ExitCode(); code != cli.ExitNoAnswer || !strings.Contains(stderr.String(), "--idempotency-key ") || strings.Contains(stderr.String(), "something") {
		t.Errorf("exit code %d, %s", code, stderr)
	}
}
