package main

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"accountledger/cmd/accountledger/cli"
)

// TestDebugListen tests that the debug server serves metrics and profiles without
// a key, only to this machine, and nothing else.
func TestDebugListen(t *testing.T) {
	t.Parallel()
	p := startServer(t, filepath.Join(t.TempDir(), "data"), "--debug-listen", "127.0.0.1:0")
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	const prefix = `msg="debug server listening" address=`
	if err := p.log.await(ctx, prefix); err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(p.log.String(), prefix)
	url, _, _ := strings.Cut(rest, "\n")
	ask := func(path, host string, want int) []byte {
		t.Helper()
		r, err := http.NewRequestWithContext(ctx, "GET", url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if host != "" {
			r.Host = host
		}
		response, err := p.client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil || response.StatusCode != want {
			t.Errorf("%s = %s, %v, want %d", path, response.Status, err, want)
		}
		return body
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(ask("/metrics", "", http.StatusOK)))
	if err != nil || families["accountledger_ready"] == nil {
		t.Errorf("the metrics: %d, %v", len(families), err)
	}
	if body := ask("/debug/pprof/goroutine?debug=1", "", http.StatusOK); !bytes.Contains(body, []byte("goroutine profile")) {
		t.Errorf("a profile: %.200s", body)
	}
	ask("/debug/pprof/heap", "", http.StatusOK)
	ask("/healthz", "", http.StatusOK)
	ask("/healthz", "localhost:1", http.StatusOK)
	ask("/metrics", "rebound.example", http.StatusForbidden)
	ask("/v1/accounts", "", http.StatusNotFound)
	if response, _, err := p.do(ctx, "GET", "/debug/pprof/heap", ""); err != nil || response.StatusCode != http.StatusNotFound {
		t.Errorf("the API server serves profiles: %v, %v", response, err)
	}
	for address, ok := range map[string]bool{"": true, "127.0.0.1:0": true, "[::1]:9090": true, "localhost:9090": true,
		":9090": false, "0.0.0.0:9090": false, "192.0.2.1:9090": false, "ledger.example:9090": false, "9090": false} {
		if err := checkDebugListen(cli.Config{DebugListen: address}); (err == nil) != ok || err != nil && exitCode(err) != cli.ExitUsage {
			t.Errorf("debug-listen %q: %v", address, err)
		}
	}
}
