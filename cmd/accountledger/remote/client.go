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
	base string // like http://127.0.0.1:8080
	key  string // the API key
	http *http.Client
}

// KeyEnv holds the API key itself. It is not a setting, because every process
// can read a flag.
const KeyEnv = cli.EnvPrefix + "KEY"

// Limits of a response.
const (
	answerTimeout = 60 * time.Second // includes the receiver's time in webhooks test and resend
	maxAnswer     = 64 << 20         // bytes; enough for a page of 1000 large accounts
)

// NewClient returns a client of c.Server.
func NewClient(c cli.Config) (*Client, error) {
	u, err := url.Parse(c.Server)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, cli.Usagef("server must be a URL like https://ledger.example, without credentials or query") // the value may hold a password
	}
	if u.Scheme == "http" && !cli.Loopback(u.Hostname()) && !c.InsecureServer {
		return nil, cli.Usagef("server is %q, another machine, and the API key would be sent to it without TLS: use an https URL, or --insecure-server", c.Server)
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
		// The API never redirects, and the key must reach no other server.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// apiKey reads the API key from the configured file, the environment, or the
// data directory.
func apiKey(c cli.Config) (string, error) {
	key, path := os.Getenv(KeyEnv), c.KeyFile
	if path == "" && key == "" {
		path = filepath.Join(c.Data, cli.AdminKeyFile)
	}
	if path != "" {
		var err error
		key, err = cli.ReadTrimmed(path)
		if errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("API key: there is no file %s: name one with --key-file, or set %s", path, KeyEnv)
		} else if err != nil {
			return "", fmt.Errorf("API key: %w", err)
		}
	}
	if strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r > '~' }) || key == "" {
		return "", fmt.Errorf("API key: %s does not contain an API key", cmp.Or(path, KeyEnv))
	}
	return key, nil
}

// trusting returns a TLS configuration that trusts the certificates in a file
// besides the system's.
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
		return nil, fmt.Errorf("ca-file: %s contains no certificate in PEM", path)
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}, nil
}

// request is a request to the server. Its path and query hold no personal data,
// because servers and proxies log them.
type request struct {
	method, path   string // the path is escaped
	query          url.Values
	body           []byte // JSON, or nil
	revision       int64  // for If-Match; -1 for none
	idempotencyKey string
	repeatable     bool // sending it twice has the effect of sending it once
}

// get returns a request for the resource at path.
func get(path string) request {
	return request{method: "GET", path: path, revision: -1, repeatable: true}
}

// Refusal is a problem document that the server answered with.
type Refusal struct {
	answer    []byte // the document, unchanged
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
		fmt.Fprintf(&b, "\n  the identifier belongs to %s, which could be merged", r.Merge.From)
	}
	return cli.Printable(b.String(), '\n')
}

// ExitCode returns the exit code for r.
func (r *Refusal) ExitCode() int { return cli.ExitRefused }

// NoAnswer reports that the server did not answer.
type NoAnswer struct {
	base string
	sent bool // the request was sent, so the server may have executed it
	err  error
}

func (e *NoAnswer) Error() string {
	what := "cannot be reached"
	if e.sent {
		what = "did not answer"
	}
	var unknown x509.UnknownAuthorityError
	if errors.As(e.err, &unknown) {
		return fmt.Sprintf("%s %s: %v; name the CA's certificate with --ca-file", e.base, what, e.err)
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

// send sends r and returns the body of the answer. It returns a *Refusal if the
// server refused r, and a *NoAnswer if no answer arrived, or the user
// interrupted the command first.
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
		return nil, fmt.Errorf("%s %s: the answer is larger than %d bytes; use a smaller --limit", r.method, r.path, maxAnswer)
	case response.StatusCode < 300:
		return text, nil
	}
	refused := &Refusal{answer: text}
	if json.Unmarshal(text, refused) != nil || refused.Code == "" {
		// The answer is from a proxy, or from another kind of server.
		return nil, fmt.Errorf("%s %s: %s", r.method, r.path, response.Status)
	}
	return nil, refused
}

// silence returns the reason why there is no answer, without the request's URL.
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
	return decode(text, answer)
}

// decode decodes an answer of the server.
func decode(text []byte, into any) error {
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("cannot decode the server's answer: %w", err)
	}
	return nil
}
