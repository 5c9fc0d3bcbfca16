package main

import (
	"bytes"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"accountledger/domain"
	"accountledger/httpapi"
)

// scraped are the metrics of a server, by name.
type scraped map[string]*dto.MetricFamily

// scrape requests a server's metrics and parses them.
func scrapeServer(t *testing.T, p *process) (scraped, string) {
	t.Helper()
	response, text, err := p.do(t.Context(), "GET", "/metrics", "")
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("scrape: %v, %v: %s", response, err, text)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		t.Fatalf("scrape: %v\n%s", err, text)
	}
	return families, string(text)
}

// value returns the value of the metric that has all these labels, name=value, or
// -1 if there is none. For a histogram it returns the number of observations.
func (s scraped) value(name string, labels ...string) float64 {
	family := s[name]
	if family == nil {
		return -1
	}
	for _, m := range family.Metric {
		there := 0
		for _, l := range m.Label {
			if slices.Contains(labels, l.GetName()+"="+l.GetValue()) {
				there++
			}
		}
		if there < len(labels) {
			continue
		}
		switch {
		case m.Counter != nil:
			return m.Counter.GetValue()
		case m.Histogram != nil:
			return float64(m.Histogram.GetSampleCount())
		}
		return m.Gauge.GetValue()
	}
	return -1
}

// TestMetrics sends requests and compares the metrics with what happened. The
// metrics must not contain personal data.
func TestMetrics(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "data")
	p := startServer(t, data, "--webhook-allow", "127.0.0.0/8,::1/128")
	ask := func(method, path, body string, want int) []byte {
		t.Helper()
		response, text, err := p.do(t.Context(), method, path, body)
		if err != nil || response.StatusCode != want {
			t.Fatalf("%s %s: %v, %v, want %d: %s", method, path, response, err, want, text)
		}
		return text
	}
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	defer receiver.Close()
	hook := func(path string) string {
		text := ask("POST", "/v1/webhooks", fmt.Sprintf(`{"url":%q,"events":["USER_CREATED"]}`, receiver.URL+path), http.StatusCreated)
		_, rest, _ := strings.Cut(string(text), `"webhookId":"`)
		id, _, _ := strings.Cut(rest, `"`)
		return id
	}
	crm, shop := hook("/canary-crm"), hook("/canary-shop")

	var canaries []string
	for i := range 5 {
		email := fmt.Sprintf("canary.%d@example.com", i)
		sub := p.create(t, email)
		canaries = append(canaries, email, sub)
	}
	ask("POST", "/v1/accounts", `{"origin":"created","identities":[{"provider":"self","email":"canary.0@example.com"}]}`, http.StatusConflict)
	ask("GET", "/v1/accounts/canary-in-path", "", http.StatusNotFound)
	ask("GET", "/canary-nowhere?x=canary-query", "", http.StatusNotFound)
	sub := canaries[1]
	due := time.Now().Add(200 * time.Millisecond).UTC().Format(time.RFC3339Nano)
	ask("POST", "/v1/accounts/"+sub+"/schedules", fmt.Sprintf(`{"kind":"status_change","targetStatus":"DECLINED","dueTime":%q}`, due), http.StatusCreated)
	ask("DELETE", "/v1/webhooks/"+shop, "", http.StatusNoContent)
	key := p.key
	p.key = "alk_canary_" + strings.Repeat("A", 43)
	ask("GET", "/v1/projections", "", http.StatusUnauthorized)
	p.key = key

	want := map[string]float64{
		"accountledger_ready": 1,
		"accountledger_http_requests_total method=POST route=/v1/accounts code=201":     5,
		"accountledger_http_requests_total method=POST route=/v1/accounts code=409":     1,
		"accountledger_http_requests_total method=GET route= code=404":                  1,
		"accountledger_http_request_duration_seconds method=POST route=/v1/accounts":    6,
		"accountledger_http_requests_in_flight":                                         1, // the scrape
		"accountledger_access_refused_total reason=unknown":                             1,
		"accountledger_access_refused_total reason=no-scope":                            0,
		"accountledger_commands_total command=CreateAccount outcome=changed":            5,
		"accountledger_commands_total command=CreateAccount outcome=identifier-taken":   1,
		"accountledger_command_duration_seconds command=CreateAccount":                  6,
		"accountledger_log_appends_total outcome=refused":                               1,
		"accountledger_log_appends_total outcome=failed":                                0,
		"accountledger_schedules_total outcome=executed":                                1,
		"accountledger_schedule_delay_seconds":                                          1,
		"accountledger_schedule_lag_seconds":                                            0,
		"accountledger_view_lag_events view=accounts":                                   0,
		"accountledger_view_lag_seconds view=schedules":                                 0,
		"accountledger_view_parked_streams view=erasures":                               0,
		"accountledger_webhook_state webhook=" + crm + " state=enabled":                 1,
		"accountledger_webhook_state webhook=" + shop:                                   -1,
		"accountledger_delivery_attempts_total webhook=" + shop:                         -1,
		"accountledger_delivery_latency_seconds webhook=" + shop:                        -1,
		"accountledger_delivery_attempts_total webhook=" + crm + " outcome=delivered":   5,
		"accountledger_delivery_attempts_total webhook=" + crm + " outcome=unavailable": 0,
		"accountledger_delivery_latency_seconds webhook=" + crm:                         5,
		"accountledger_delivery_backlog_events webhook=" + crm:                          0,
		"accountledger_delivery_oldest_age_seconds webhook=" + crm:                      0,
		"accountledger_delivery_in_flight_requests webhook=" + crm:                      0,
		"accountledger_delivery_dead_letters webhook=" + crm:                            0,
		"accountledger_delivery_breaker_open webhook=" + crm:                            0,
		"accountledger_delivery_duplicates_bound_events webhook=" + crm:                 0,
	}
	var s scraped
	var text, diff string
	for deadline := time.Now().Add(timeout); ; time.Sleep(50 * time.Millisecond) {
		s, text = scrapeServer(t, p)
		got := map[string]float64{}
		for line := range want {
			labels := strings.Fields(line)
			got[line] = s.value(labels[0], labels[1:]...)
		}
		if diff = cmp.Diff(want, got); diff == "" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("unexpected metrics (-want +got):\n%s", diff)
		}
	}
	position := s.value("accountledger_log_position")
	if s.value("accountledger_view_position", "view=accounts") != position || position < 8 {
		t.Errorf("the log is at position %v, the view of accounts at %v", position, s.value("accountledger_view_position", "view=accounts"))
	}
	for _, name := range []string{"accountledger_disk_free_bytes", "accountledger_file_size_bytes", "accountledger_log_commit_duration_seconds",
		"accountledger_log_commit_events", "accountledger_account_cache_accounts", "go_goroutines", "process_resident_memory_bytes"} {
		if s.value(name) <= 0 {
			t.Errorf("%s = %v", name, s.value(name))
		}
	}
	for _, c := range append(canaries, "canary", "alk_", p.key, "127.0.0.1") {
		if strings.Contains(text, c) {
			t.Errorf("the metrics contain %q", c)
		}
	}
	heldToTable(t, s)
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil {
		t.Error(err)
	}
	for _, problem := range problems {
		t.Errorf("%s: %s", problem.Metric, problem.Text)
	}
}

// heldToTable checks that the ledger's metrics are those in the table, with the
// same types and labels.
func heldToTable(t *testing.T, s scraped) {
	t.Helper()
	left := map[string]metric{}
	for _, m := range metricTable {
		left[m.name] = m
	}
	for name, family := range s {
		row, ok := left[name]
		delete(left, name)
		switch {
		case !strings.HasPrefix(name, "accountledger_"):
			continue
		case !ok:
			t.Errorf("%s is not in the table", name)
		case strings.ToLower(family.GetType().String()) != row.kind || family.GetHelp() != row.meaning:
			t.Errorf("%s is a %s: %s", name, family.GetType(), family.GetHelp())
		}
		for _, m := range family.Metric {
			var labels []string
			for _, l := range m.Label {
				labels = append(labels, l.GetName())
			}
			slices.Sort(labels)
			if want := slices.Sorted(slices.Values(row.labels)); !slices.Equal(labels, want) {
				t.Errorf("%s has the labels %v, want %v", name, labels, want)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(left)) {
		t.Errorf("%s was not scraped", name)
	}
}

// BenchmarkHooks measures the cost of counting a creation: a request, a command
// and a transaction.
func BenchmarkHooks(b *testing.B) {
	m := newMetrics()
	for b.Loop() {
		m.committed(transaction{Appends: 1, Events: 1, Took: time.Millisecond})
		m.executed(domain.Executed{Command: "CreateAccount", Outcome: domain.OutcomeChanged, Duration: time.Millisecond})
		m.answered(httpapi.Answered{Method: "POST", Route: "/v1/accounts", Status: http.StatusCreated, Duration: time.Millisecond})
	}
}
