package remote

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"accountledger/cmd/accountledger/cli"
)

// Client sends requests to a running server.
type Client struct {
	base string // "http://127.0.0.1:8080"
	key  string // an API key
	http *http.Client
}

// KeyEnv holds the API key itself. It is not a setting, because every process
// can read a flag.
const KeyEnv = cli.EnvPrefix + "KEY"

// Limits of what is waited for, and read.
const (
	answerTimeout = 60 * time.Second // webhooks test and resend wait for a receiver, too
	maxAnswer     = 64 << 20         // bytes; a page of 1000 large accounts
)

// NewClient returns a client of c.Server.
func NewClient(c cli.Config) (*Client, error) {
	u, err := url.Parse(c.Server)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, cli.Usagef("server can be a URL like https://ledger.example, without a password") // which is not repeated
	}
	if u.Scheme == "http" && !cli.Loopback(u.Hostname()) && !c.InsecureServer {
		return nil, cli.Usagef("server is %q, another machine without TLS, which the API key would be sent to in clear: give an https URL, or --insecure-server", c.Server)
	}
	key, err := apiKey(c)
	if err != nil {
		return nil, err
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	if c.CAFile != "" {
		if transport.TLSClientConfig, err = trusting(c.CAFile); err != nil {
			return nil, err
		}
	}
	return &Client{base: strings.TrimRight(c.Server, "/"), key: key, http: &http.Client{Timeout: answerTimeout, Transport: transport,
		// The API redirects nobody, and a key is for one server.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// apiKey is the key to ask a server with: in the file that is named, in the
// environment, or in the data directory.
func apiKey(c cli.Config) (string, error) {
	key, path := os.Getenv(KeyEnv), c.KeyFile
	if path == "" && key == "" {
		path = filepath.Join(c.Data, cli.AdminKeyFile)
	}
	if path != "" {
		var err error
		key, err = cli.ReadTrimmed(path)
		if errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("API key: %s is not there: name a file with --key-file, or put the key into %s", path, KeyEnv)
		} else if err != nil {
			return "", fmt.Errorf("API key: %w", err)
		}
	}
	if strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r > '~' }) || key == "" {
		return "", fmt.Errorf("API key: what is in %s is not one", cmp.Or(path, KeyEnv))
	}
	return key, nil
}

// trusting trusts the certificates in a file besides the system's.
func trusting(path string) (*tls.Config, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("ca-file: %w", err)
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	if !roots.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("ca-file: %s has no certificate in PEM", path)
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}, nil
}

// request is what a server is asked. There is no personal data in path and
// query, which are kept in logs.
type request struct {
	method, path   string // the path is escaped already
	query          url.Values
	body           []byte // JSON; nil for none
	revision       int64  // the object must be at; -1 for any
	idempotencyKey string
	repeatable     bool // asked twice, it is carried out once
}

// get asks for what is at path.
func get(path string) request {
	return request{method: "GET", path: path, revision: -1, repeatable: true}
}

// refusal is a problem that the server answered with.
type Refusal struct {
	answer    []byte // as it came
	Status    int    `json:"status"`
	Code      string `json:"code"`
	Detail    string `json:"detail"`
	RequestID string `json:"requestId"`
	Errors    []struct {
		Pointer   *string `json:"pointer"`
		Parameter string  `json:"parameter"`
		Detail    string  `json:"detail"`
	} `json:"errors"`
	Merge struct {
		From string `json:"from"`
	} `json:"merge"`
}

func (r *Refusal) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s", r.Code, r.Detail)
	if r.Code == "internal" {
		fmt.Fprintf(&b, " (%s)", r.RequestID)
	}
	for _, e := range r.Errors {
		place := e.Parameter
		if e.Pointer != nil {
			place = cmp.Or(*e.Pointer, "/")
		}
		fmt.Fprintf(&b, "\n  %s (%s)", e.Detail, place)
	}
	if r.Merge.From != "" {
		fmt.Fprintf(&b, "\n  it belongs to %s, which could be merged", r.Merge.From)
	}
	return cli.Printable(b.String(), '\n')
}

// ExitCode returns the exit code for r.
func (r *Refusal) ExitCode() int { return cli.ExitRefused }

// noAnswer is why a server did not answer.
type NoAnswer struct {
	base string
	sent bool // something was, so it may have been carried out
	err  error
}

func (e *NoAnswer) Error() string {
	what := "cannot be reached"
	if e.sent {
		what = "did not answer"
	}
	var unknown x509.UnknownAuthorityError
	if errors.As(e.err, &unknown) {
		return fmt.Sprintf("%s %s: %v; name the certificate of its authority with --ca-file", e.base, what, e.err)
	}
	return fmt.Sprintf("%s %s: %v", e.base, what, e.err)
}
func (e *NoAnswer) Unwrap() error { return e.err }

// ExitCode returns the exit code for e.
func (e *NoAnswer) ExitCode() int { return cli.ExitNoAnswer }

// Tries is how many times the client sends a repeatable request whose answer is
// lost. It pauses in between.
const (
	Tries      = 3
	triesPause = time.Second
)

// send asks the server and returns its answer's body. What was refused is a
// *refusal, and what was not answered a *noAnswer, also where whoever asked was
// interrupted.
func (c *Client) send(ctx context.Context, r request) ([]byte, error) {
	ctx, stop := cli.Interruptible(ctx)
	defer stop()
	lost := false
	for try := 1; ; try++ {
		text, err := c.try(ctx, r)
		silent, ok := errors.AsType[*NoAnswer](err)
		if !ok {
			return text, err
		}
		lost = lost || silent.sent
		silent.sent = lost
		if !r.repeatable || !lost || try == Tries || ctx.Err() != nil {
			return nil, err
		}
		select {
		case <-time.After(triesPause):
		case <-ctx.Done():
			return nil, err
		}
	}
}

func (c *Client) try(ctx context.Context, r request) ([]byte, error) {
	var content io.Reader
	if r.body != nil {
		content = bytes.NewReader(r.body)
	}
	target := c.base + r.path
	if len(r.query) > 0 {
		target += "?" + r.query.Encode()
	}
	asked, err := http.NewRequestWithContext(ctx, r.method, target, content)
	if err != nil {
		return nil, err
	}
	asked.Header.Set("Authorization", "Bearer "+c.key)
	if r.body != nil {
		asked.Header.Set("Content-Type", "application/json")
	}
	if r.revision >= 0 {
		asked.Header.Set("If-Match", fmt.Sprintf("%q", fmt.Sprint(r.revision)))
	}
	if r.idempotencyKey != "" {
		asked.Header.Set("Idempotency-Key", r.idempotencyKey)
	}
	response, err := c.http.Do(asked)
	if err != nil {
		return nil, c.silence(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer+1))
	switch {
	case err != nil:
		return nil, c.silence(err)
	case len(text) > maxAnswer:
		return nil, fmt.Errorf("%s %s: the answer is larger than %d bytes; ask for less with --limit", r.method, r.path, maxAnswer)
	case response.StatusCode < 300:
		return text, nil
	}
	refused := &Refusal{answer: text}
	if json.Unmarshal(text, refused) != nil || refused.Code == "" {
		// It was no ledger, or something before it.
		return nil, fmt.Errorf("%s %s: %s", r.method, r.path, response.Status)
	}
	return nil, refused
}

// silence is why there is no answer, without the request's address.
func (c *Client) silence(err error) error {
	var dial *net.OpError
	var certificate *tls.CertificateVerificationError
	sent := !(errors.As(err, &dial) && dial.Op == "dial") && !errors.As(err, &certificate)
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	return &NoAnswer{c.base, sent, err}
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Call sends a request. body, unless it is nil, is sent as JSON, and the JSON
// answer is stored in answer, unless that is nil.
func (c *Client) Call(ctx context.Context, method, path string, body, answer any) error {
	r := request{method: method, path: path, revision: -1}
	if body != nil {
		var err error
		if r.body, err = json.Marshal(body); err != nil {
			return err
		}
	}
	text, err := c.send(ctx, r)
	if err != nil || answer == nil {
		return err
	}
	return understood(text, answer)
}

// understood reads an answer.
func understood(text []byte, into any) error {
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("the server's answer is not understood: %w", err)
	}
	return nil
}
