package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
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

// newClient is for c.Server, with the key in c.AdminKeyFile or in the data
// directory.
func newClient(c config) (*client, error) {
	path := c.AdminKeyFile
	if path == "" {
		path = directory(c.Data).path(adminKeyFile)
	}
	key, err := readTrimmed(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("admin key: %s is not there: name it with --admin-key-file", path)
	} else if err != nil {
		return nil, fmt.Errorf("admin key: %w", err)
	}
	return &client{base: strings.TrimRight(c.Server, "/"), key: key, http: &http.Client{Timeout: 30 * time.Second}}, nil
}

// refusal is a problem that the server answered with.
type refusal struct {
	method, path string
	status       int
	Code, Detail string
}

func (r *refusal) Error() string {
	return fmt.Sprintf("%s %s: %s: %s", r.method, r.path, r.Code, r.Detail)
}

// maxAnswer bounds what is read of an answer.
const maxAnswer = 16 << 20

// call sends body as JSON, if it is not nil, and reads the answer into answer,
// if it is not nil. A refusal is an error with the problem's code and detail.
func (c *client) call(ctx context.Context, method, path string, body, answer any) error {
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return err
		}
		content = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, method, c.base+path, content)
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+c.key)
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	response, err := c.http.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	if response.StatusCode >= 300 {
		refused := &refusal{method: method, path: path, status: response.StatusCode}
		if json.Unmarshal(text, refused, json.MatchCaseInsensitiveNames(true)) != nil || refused.Code == "" {
			return fmt.Errorf("%s %s: %s", method, path, response.Status)
		}
		return refused
	}
	if answer == nil {
		return nil
	}
	if err := json.Unmarshal(text, answer); err != nil {
		return fmt.Errorf("%s %s: the answer is not understood: %w", method, path, err)
	}
	return nil
}
