package main

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
	"strings"
	"time"

	"github.com/go-json-experiment/json"
)

// client asks a running server.
type client struct {
	base string // "http://127.0.0.1:8080"
	key  string // an API key
	http *http.Client
}

// keyEnv holds the API key itself, see masterKeyEnv.
const keyEnv = envPrefix + "KEY"

// Limits of what is waited for, and read.
const (
	answerTimeout = 60 * time.Second // webhooks test and resend wait for a receiver, too
	maxAnswer     = 64 << 20         // bytes; a page of 1000 large accounts
)

// newClient is for c.Server.
func newClient(c config) (*client, error) {
	u, err := url.Parse(c.Server)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, usagef("server can be a URL like https://ledger.example, without a password") // which is not repeated
	}
	if u.Scheme == "http" && !loopback(u.Hostname()) && !c.InsecureServer {
		return nil, usagef("server is %q, another machine without TLS, which the API key would be sent to in clear: give an https URL, or --insecure-server", c.Server)
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
	return &client{base: strings.TrimRight(c.Server, "/"), key: key, http: &http.Client{Timeout: answerTimeout, Transport: transport,
		// The API redirects nobody, and a key is for one server.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// apiKey is the key to ask a server with: in the file that is named, in the
// environment, or in the data directory.
func apiKey(c config) (string, error) {
	key, path := os.Getenv(keyEnv), c.KeyFile
	if path == "" && key == "" {
		path = directory(c.Data).path(adminKeyFile)
	}
	if path != "" {
		var err error
		key, err = readTrimmed(path)
		if errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("API key: %s is not there: name a file with --key-file, or put the key into %s", path, keyEnv)
		} else if err != nil {
			return "", fmt.Errorf("API key: %w", err)
		}
	}
	if strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r > '~' }) || key == "" {
		return "", fmt.Errorf("API key: what is in %s is not one", cmp.Or(path, keyEnv))
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
type refusal struct {
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

func (r *refusal) Error() string {
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
	return printable(b.String(), '\n')
}

// noAnswer is why a server did not answer.
type noAnswer struct {
	base string
	sent bool // something was, so it may have been carried out
	err  error
}

func (e *noAnswer) Error() string {
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
func (e *noAnswer) Unwrap() error { return e.err }

// A repeatable request is sent so often, with a pause between, when its answer
// is lost.
const (
	tries      = 3
	triesPause = time.Second
)

// send asks the server and returns its answer's body. What was refused is a
// *refusal, and what was not answered a *noAnswer, also where whoever asked was
// interrupted.
func (c *client) send(ctx context.Context, r request) ([]byte, error) {
	ctx, stop := interruptible(ctx)
	defer stop()
	lost := false
	for try := 1; ; try++ {
		text, err := c.try(ctx, r)
		silent, ok := errors.AsType[*noAnswer](err)
		if !ok {
			return text, err
		}
		lost = lost || silent.sent
		silent.sent = lost
		if !r.repeatable || !lost || try == tries || ctx.Err() != nil {
			return nil, err
		}
		select {
		case <-time.After(triesPause):
		case <-ctx.Done():
			return nil, err
		}
	}
}

func (c *client) try(ctx context.Context, r request) ([]byte, error) {
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
	refused := &refusal{answer: text}
	if json.Unmarshal(text, refused) != nil || refused.Code == "" {
		// It was no ledger, or something before it.
		return nil, fmt.Errorf("%s %s: %s", r.method, r.path, response.Status)
	}
	return nil, refused
}

// silence is why there is no answer, without the request's address.
func (c *client) silence(err error) error {
	var dial *net.OpError
	var certificate *tls.CertificateVerificationError
	sent := !(errors.As(err, &dial) && dial.Op == "dial") && !errors.As(err, &certificate)
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	return &noAnswer{c.base, sent, err}
}

// call sends body as JSON, if it is not nil, and reads the answer into answer,
// if it is not nil.
func (c *client) call(ctx context.Context, method, path string, body, answer any) error {
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
