package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"accountledger/cmd/accountledger/cli"
)

const listenSecret = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="

// deliver sends a body signed with the reference library of Standard Webhooks.
func deliver(t *testing.T, r http.Handler, secret, id string, at time.Time, body string) int {
	t.Helper()
	wh, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		t.Fatal(err)
	}
	signature, err := wh.Sign(id, at, []byte(body))
	if err != nil {
		t.Fatal(err)
	}
	request := httptest.NewRequest("POST", "/", strings.NewReader(body))
	request.Header.Set("webhook-id", id)
	request.Header.Set("webhook-timestamp", strconv.FormatInt(at.Unix(), 10))
	request.Header.Set("webhook-signature", signature)
	answer := httptest.NewRecorder()
	r.ServeHTTP(answer, request)
	return answer.Code
}

func deliveredEvent(kind, sub string, sequence int) string {
	return fmt.Sprintf(`{"type":%q,"sub":%q,"sequence":%d,"timestamp":"2026-11-22T12:00:00Z","data":{"email":"ada@example.com"}}`, kind, sub, sequence)
}

func TestListen(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	const other = "whsec_YWJjZGVmZ2hpamFiY2RlZmdoaWphYmNkZWZnaGlq"
	var out bytes.Buffer
	r, err := listenOptions{secret: listenSecret, status: 204, failFirst: 1}.receiver(cli.Console{Out: &out, Err: &out})
	if err != nil {
		t.Fatal(err)
	}
	r.now = func() time.Time { return now }
	for _, tt := range []struct {
		name, secret, id string
		at               time.Time
		body             string
		status           int
		line             string
	}{
		{"fails first", listenSecret, "e1", now, deliveredEvent("USER_CREATED", "a", 0), 503, "USER_CREATED         a                                        0  verified -> 503"},
		{"retry", listenSecret, "e1", now, deliveredEvent("USER_CREATED", "a", 0), 204, "verified -> 204"},
		{"another event of one change", listenSecret, "e1b", now, deliveredEvent("USER_REGISTERED", "a", 0), 204, "verified -> 204"},
		{"next", listenSecret, "e2", now, deliveredEvent("USER_UPDATED", "a", 1), 204, "verified -> 204"},
		{"duplicate", listenSecret, "e2", now, deliveredEvent("USER_UPDATED", "a", 1), 204, "verified, duplicate -> 204"},
		{"gap", listenSecret, "e4", now, deliveredEvent("USER_UPDATED", "a", 3), 204, "verified, gap: follows sequence 1 -> 204"},
		{"late", listenSecret, "e3", now, deliveredEvent("USER_UPDATED", "a", 2), 204, "verified, out of order: after sequence 3 -> 204"},
		{"first event of another account", listenSecret, "f7", now, deliveredEvent("USER_UPDATED", "b", 7), 204, "verified -> 204"},
		{"not about an account", listenSecret, "w1", now, deliveredEvent("WEBHOOK_CREATED", "", 0), 204, "WEBHOOK_CREATED      -"},
		{"another secret", other, "x1", now, deliveredEvent("USER_UPDATED", "a", 4), 401, "no signature matches -> 401"},
		{"too old", listenSecret, "x2", now.Add(-6 * time.Minute), deliveredEvent("USER_UPDATED", "a", 4), 401, "its timestamp is 6m0s away from now -> 401"},
		{"no event", listenSecret, "x3", now, "hello \x1b[2J", 204, "the body is not an event -> 204"},
		{"escape sequences", listenSecret, "x4", now, deliveredEvent("X\u009b2J", "c", 0), 204, "X?2J"},
	} {
		out.Reset()
		if got := deliver(t, r, tt.secret, tt.id, tt.at, tt.body); got != tt.status {
			t.Errorf("%s: answered with %d, want %d", tt.name, got, tt.status)
		}
		if line := out.String(); !strings.Contains(line, tt.line) || strings.Count(line, "\n") != 1 || strings.Contains(line, "ada@") {
			t.Errorf("%s: printed %q, want %q and no personal data", tt.name, line, tt.line)
		}
	}
	want := tally{Received: 13, Accepted: 10, Unverified: 2, Failed: 1, Duplicates: 1, Disorder: 1, Gaps: 1, Accounts: 3}
	if diff := cmp.Diff(want, r.total); diff != "" {
		t.Errorf("the summary (-want +got):\n%s", diff)
	}
	out.Reset()
	if err := r.close(); err != nil || !strings.Contains(out.String(), "received 13: 10 accepted of 3 accounts, 2 not verified") {
		t.Errorf("close = %v: %s", err, out.String())
	}
}

// TestListenBatch tests that a batch of CloudEvents gets one response and a line
// for each event, and that --fail-every fails every second request.
func TestListenBatch(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	r, err := listenOptions{secret: listenSecret, status: 204, failEvery: 2}.receiver(cli.Console{Out: &out, Err: &out})
	if err != nil {
		t.Fatal(err)
	}
	signer, err := standardwebhooks.NewWebhook(listenSecret)
	if err != nil {
		t.Fatal(err)
	}
	const body = `[{"id":"e1","type":"USER_CREATED","subject":"a","sequence":"00000000000000000000"},{"id":"e2","type":"USER_UPDATED","subject":"b","sequence":"00000000000000000007"}]`
	for i, want := range []int{204, 503, 204} {
		now := time.Now()
		signature, err := signer.Sign("batch", now, []byte(body))
		if err != nil {
			t.Fatal(err)
		}
		request := httptest.NewRequest("POST", "/", strings.NewReader(body))
		request.Header.Set("Content-Type", "application/cloudevents-batch+json; charset=UTF-8")
		request.Header.Set("webhook-id", "batch")
		request.Header.Set("webhook-timestamp", strconv.FormatInt(now.Unix(), 10))
		request.Header.Set("webhook-signature", signature)
		answer := httptest.NewRecorder()
		r.ServeHTTP(answer, request)
		if answer.Code != want {
			t.Errorf("request %d is answered with %d, want %d", i, answer.Code, want)
		}
	}
	if text := out.String(); strings.Count(text, "\n") != 6 || !strings.Contains(text, "USER_UPDATED         b                                        7  verified -> 204") {
		t.Errorf("printed\n%s", text)
	}
	if want := (tally{Received: 6, Accepted: 4, Failed: 2, Duplicates: 2, Accounts: 2}); r.total != want {
		t.Errorf("the summary is %+v, want %+v", r.total, want)
	}
}

func TestListenWithoutSecret(t *testing.T) {
	t.Setenv(secretEnv, "")
	var out bytes.Buffer
	r, err := listenOptions{status: 204, showBody: true}.receiver(cli.Console{Out: &out, Err: &out, JSON: true})
	if err != nil {
		t.Fatal(err)
	}
	if got := deliver(t, r, listenSecret, "e1", time.Now(), deliveredEvent("USER_CREATED", "a", 0)); got != 204 {
		t.Errorf("answered with %d, want 204", got)
	}
	var d delivery
	if err := json.Unmarshal(out.Bytes(), &d); err != nil || d.Verified || d.Problem != notChecked || !strings.Contains(string(d.Body), "ada@example.com") {
		t.Errorf("printed %+v, %v, want the problem %q and the body", d, err, notChecked)
	}
	answer := httptest.NewRecorder()
	r.ServeHTTP(answer, httptest.NewRequest("GET", "/", nil))
	if answer.Code != http.StatusMethodNotAllowed || r.total.Received != 1 {
		t.Errorf("GET is answered with %d and counted %d", answer.Code, r.total.Received)
	}
	answer = httptest.NewRecorder()
	r.ServeHTTP(answer, httptest.NewRequest("POST", "/", bytes.NewReader(make([]byte, maxDelivery+1))))
	if answer.Code != http.StatusBadRequest {
		t.Errorf("a body that is too long is answered with %d", answer.Code)
	}
}

func TestListenRefusals(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte(listenSecret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"--secret", "hunter2hunter2"}, {"--secret", listenSecret, "--secret-file", file}, {"--secret-file", file + "x"},
		{"--status", "100"}, {"--fail-first", "-1"}, {"--fail-every", "-1"}, {"--delay", "-1s"},
	} {
		if code, stdout, stderr := accountledger(t, append([]string{"listen"}, args...)...); code != cli.ExitUsage || strings.Contains(stderr, "hunter2hunter2") {
			t.Errorf("listen %v = %d, want %d and no secret\n%s%s", args, code, cli.ExitUsage, stdout, stderr)
		}
	}
}

// TestListenServes tests that listen receives, waits before it responds, and ends
// with its context.
func TestListenServes(t *testing.T) {
	t.Parallel()
	r, err := listenOptions{secret: listenSecret, status: 500, delay: time.Millisecond}.receiver(cli.Console{Out: newBuffer(), Err: newBuffer()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- listen(ctx, "127.0.0.1:0", r) }()
	errs := r.out.Err.(*buffer)
	if err := errs.await(t.Context(), "\n"); err != nil {
		t.Fatal(err)
	}
	url := strings.TrimSpace(strings.TrimPrefix(errs.String(), "receiving on "))
	response, err := http.Post(url, "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusUnauthorized {
		t.Errorf("an unsigned request is answered with %d, want 401", response.StatusCode)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("listen = %v", err)
	}
	if text := r.out.Out.(*buffer).String(); !strings.Contains(text, "received 1: 0 accepted") {
		t.Errorf("it printed:\n%s", text)
	}
}
