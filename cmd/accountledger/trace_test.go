package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/go-json-experiment/json"
	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"

	"accountledger/cmd/accountledger/cli"
	"accountledger/domain"
	"accountledger/httpapi"
)

// spans is an exporter that keeps the spans that have ended.
type spans struct {
	mu   sync.Mutex
	all  tracetest.SpanStubs
	more chan struct{} // closed and replaced when there are more
}

func newSpans() *spans { return &spans{more: make(chan struct{})} }

func (s *spans) ExportSpans(_ context.Context, ended []sdktrace.ReadOnlySpan) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, tracetest.SpanStubsFromReadOnlySpans(ended)...)
	close(s.more)
	s.more = make(chan struct{})
	return nil
}

func (s *spans) Shutdown(context.Context) error { return nil }

// of returns the spans of a trace by name. It waits until there is one of each of
// names.
func (s *spans) of(t *testing.T, trace string, names ...string) map[string]tracetest.SpanStubs {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	for {
		found := map[string]tracetest.SpanStubs{}
		s.mu.Lock()
		for _, x := range s.all {
			if x.SpanContext.TraceID().String() == trace {
				found[x.Name] = append(found[x.Name], x)
			}
		}
		more := s.more
		s.mu.Unlock()
		if !slices.ContainsFunc(names, func(name string) bool { return len(found[name]) == 0 }) {
			return found
		}
		select {
		case <-more:
		case <-ctx.Done():
			t.Fatalf("there are not spans of all names %q, but %v", names, found)
		}
	}
}

// traced is a server in this process with tracing.
type traced struct {
	*ledger
	url, key string
	spans    *spans
	stop     func()
}

func startTraced(t *testing.T, data string) *traced {
	t.Helper()
	c := cli.Config{Data: data, WebhookAllow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}}
	logger := slog.New(slog.DiscardHandler)
	s := &traced{spans: newSpans()}
	var err error
	if s.ledger, err = openTraced(t.Context(), c, logger, tracingWith(sdktrace.WithSyncer(s.spans))); err != nil {
		t.Fatal(err)
	}
	if err := httpapi.Bootstrap(t.Context(), s.keys, s.dir.path(adminKeyFile)); err != nil {
		t.Fatal(err)
	}
	if s.key, err = cli.ReadTrimmed(s.dir.path(adminKeyFile)); err != nil {
		t.Fatal(err)
	}
	serving := httptest.NewServer(newServer(c, s.ledger, logger).Handler)
	s.url = serving.URL
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.run(ctx) }()
	s.stop = sync.OnceFunc(func() {
		serving.Close()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err := s.close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(s.stop)
	return s
}

// ask sends a request with a traceparent and returns the answer.
func (s *traced) ask(t *testing.T, traceparent, key, method, path, body string, want int) []byte {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, s.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+key)
	if body != "" {
		request.Header.Set("Content-Type", "application/json")
	}
	if traceparent != "" {
		request.Header.Set("traceparent", traceparent)
		request.Header.Set("tracestate", "vendor=canary-tracestate")
		request.Header.Set("baggage", "user=canary-baggage")
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != want {
		t.Fatalf("%s %s: %s, %v, want %d: %s", method, path, response.Status, err, want, text)
	}
	return text
}

// traceparents returns the traceparent of each event of an account.
func (s *traced) traceparents(t *testing.T, sub string) (all []string) {
	t.Helper()
	for rec, err := range s.log.ReadStream(t.Context(), domain.AccountStream(sub), 0) {
		if err != nil {
			t.Fatal(err)
		}
		entry, err := s.codec.Decode(rec)
		if err != nil {
			t.Fatal(err)
		}
		if there := bytes.Contains(rec.Clear, []byte(`"traceparent"`)); there != (entry.Meta.Traceparent != "") {
			t.Errorf("the clear part contains a traceparent: %t; the traceparent is %q", there, entry.Meta.Traceparent)
		}
		all = append(all, entry.Meta.Traceparent)
	}
	return all
}

type spanRow struct {
	name, meaning string
	attributes    []attribute.Key
}

// spanTable lists all spans and their attributes.
var spanTable = []spanRow{
	{"<method> <route>", "A request, from its arrival to its answer, named by the pattern of its path.", []attribute.Key{"http.request.method", "http.route", "http.response.status_code", traceRequest}},
	{"command <type>", "A command: the decision, the append, and all waits.", []attribute.Key{traceCommand, traceOutcome}},
	{"append", "An append, from entering the log's queue until it is durable.", []attribute.Key{traceOutcome, traceEvents, tracePosition}},
	{"commit", "The transaction of the append, which other appends may share. The time before it is the wait in the queue.", nil},
	{"view <view>", "A view applies the event, until queries include it.", []attribute.Key{traceView, traceEventType, tracePosition}},
	{"deliver <event>", "A delivery attempt; a batch has one for each of its events.", []attribute.Key{traceWebhook, traceEventType, tracePosition, traceOutcome, "http.response.status_code"}},
}

const (
	callersTrace = "4bf92f3577b34da6a3ce929d0e0e4736"
	callersSpan  = "00f067aa0ba902b7"
)

// TestTrace checks the trace of a request: command, append, views and deliveries,
// up to the receivers. A request that is not sampled, or whose caller is not
// admitted, has no spans. Spans contain no personal data.
func TestTrace(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "data")
	s := startTraced(t, data)
	type request struct {
		header http.Header
		body   string
	}
	received := make(chan request, 64)
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		received <- request{r.Header, string(body)}
	}))
	defer receiver.Close()
	for _, format := range []string{"standard", "cloudevents", "cloudevents-batch"} {
		s.ask(t, "", s.key, "POST", "/v1/webhooks", fmt.Sprintf(`{"url":%q,"events":["USER_CREATED"],"format":%q}`, receiver.URL+"/canary-path", format), http.StatusCreated)
	}
	account := func(email string) string {
		return fmt.Sprintf(`{"origin":"created","customFields":{"tier":"canary-gold"},"identities":[{"provider":"self","given_name":"Canaria","email":%q,"nickname":"Canarina"}]}`, email)
	}
	created := func(traceparent, email string) string {
		var a struct {
			Sub string `json:"sub"`
		}
		if err := json.Unmarshal(s.ask(t, traceparent, s.key, "POST", "/v1/accounts", account(email), http.StatusCreated), &a); err != nil {
			t.Fatal(err)
		}
		return a.Sub
	}
	sub := created("00-"+callersTrace+"-"+callersSpan+"-01", "canary.1@example.com")

	found := s.spans.of(t, callersTrace, "POST /v1/accounts", "command CreateAccount", "append", "commit", "view accounts", "deliver USER_CREATED")
	root := found["POST /v1/accounts"][0]
	if root.Parent.SpanID().String() != callersSpan {
		t.Errorf("the parent of the request's span is %s, not the caller's", root.Parent.SpanID())
	}
	for _, name := range []string{"command CreateAccount", "append", "view accounts", "deliver USER_CREATED"} {
		if parent := found[name][0].Parent.SpanID(); parent != root.SpanContext.SpanID() {
			t.Errorf("the parent of %s is %s, not the request", name, parent)
		}
	}
	commit, queued := found["commit"][0], found["append"][0]
	if commit.Parent.SpanID() != queued.SpanContext.SpanID() || commit.StartTime.Before(queued.StartTime) || commit.EndTime.After(queued.EndTime) {
		t.Errorf("the commit, %v to %v, is not within the append, %v to %v", commit.StartTime, commit.EndTime, queued.StartTime, queued.EndTime)
	}
	event := "00-" + callersTrace + "-" + root.SpanContext.SpanID().String() + "-01"
	if is := s.traceparents(t, sub); !slices.Equal(is, []string{event}) {
		t.Errorf("the event's traceparent is %v, want %s", is, event)
	}
	var sent []string
	for range 3 {
		r := <-received
		sent = append(sent, r.header.Get("traceparent"))
		if is := strings.Contains(r.body, fmt.Sprintf(`"traceparent":%q`, event)); is != strings.Contains(r.body, `"specversion"`) {
			t.Errorf("the body contains the event's traceparent: %t: %s", is, r.body)
		}
		if r.header.Get("tracestate")+r.header.Get("baggage") != "" {
			t.Errorf("headers of the client are forwarded: %v", r.header)
		}
	}
	s.stop() // every span has ended
	for _, x := range s.spans.of(t, callersTrace)["deliver USER_CREATED"] {
		want := "00-" + callersTrace + "-" + x.SpanContext.SpanID().String() + "-01"
		if !slices.Contains(sent, want) {
			t.Errorf("the receivers got %v, not %s", sent, want)
		}
	}

	// Rebuilds of views, requests that are not sampled, and requests whose caller
	// is not admitted have no spans.
	if err := os.Remove(filepath.Join(data, viewsFile)); err != nil {
		t.Fatal(err)
	}
	s2 := startTraced(t, data)
	unsampled, stranger := strings.Repeat("ab", 16), strings.Repeat("cd", 16)
	s.url, s.key, s.ledger = s2.url, s2.key, s2.ledger
	quiet := created("00-"+unsampled+"-"+callersSpan+"-00", "canary.2@example.com")
	s2.ask(t, "00-"+stranger+"-"+callersSpan+"-01", "alk_canary_"+strings.Repeat("A", 43), "GET", "/v1/accounts/"+sub, "", http.StatusUnauthorized)
	s2.ask(t, "00-"+stranger+"-"+callersSpan+"-01", s2.key, "GET", "/readyz", "", http.StatusOK)
	for range 3 {
		if r := <-received; r.header.Get("traceparent") != "" || strings.Contains(r.body, "traceparent") {
			t.Errorf("a delivery without sampling has a traceparent: %v %s", r.header, r.body)
		}
	}
	if is := s2.traceparents(t, quiet); !slices.Equal(is, []string{""}) {
		t.Errorf("an event that is not sampled has the traceparent %v", is)
	}
	// An invalid traceparent starts a new trace.
	s2.ask(t, "canary-traceparent", s2.key, "GET", "/v1/accounts/canary-in-path", "", http.StatusNotFound)
	s2.ask(t, "", s2.key, "PATCH", "/v1/accounts/"+sub, `{"identity":{"nickname":"canary-nick"}}`, http.StatusOK)
	s2.stop()
	patched := s2.spans.named("PATCH /v1/accounts/:sub")
	if len(patched) != 1 || len(s2.spans.of(t, patched[0].SpanContext.TraceID().String(), "view accounts")["view accounts"]) != 1 {
		t.Errorf("a request without a traceparent is not traced: %v", patched)
	}
	for _, trace := range []string{callersTrace, unsampled, stranger} {
		if none := s2.spans.of(t, trace); len(none) > 0 {
			t.Errorf("trace %s has spans: %v", trace, none)
		}
	}
	if lost := s2.spans.named("GET /v1/accounts/:sub"); len(lost) != 1 || lost[0].Parent.IsValid() {
		t.Errorf("an invalid traceparent is used: %v", lost)
	}
	mustRun(t, "verify", "--data", data)

	canaries := []string{"canary", "Canar", sub, quiet, s2.key, strings.TrimPrefix(receiver.URL, "http://")}
	for _, x := range append(s.spans.all, s2.spans.all...) {
		kind, _, _ := strings.Cut(x.Name, " ")
		i := slices.IndexFunc(spanTable, func(row spanRow) bool {
			first, _, _ := strings.Cut(row.name, " ")
			return first == kind || first == "<method>" && kind == strings.ToUpper(kind)
		})
		if i < 0 {
			t.Errorf("the table has no span %s", x.Name)
			continue
		}
		for _, a := range x.Attributes {
			if !slices.Contains(spanTable[i].attributes, a.Key) {
				t.Errorf("%s has the attribute %s, which is not in the table", x.Name, a.Key)
			}
		}
		text := fmt.Sprintf("%+v", x)
		for _, c := range canaries {
			if strings.Contains(text, c) {
				t.Errorf("a span contains %q: %s", c, text)
			}
		}
	}
}

func (s *spans) named(name string) (all tracetest.SpanStubs) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.all {
		if x.Name == name {
			all = append(all, x)
		}
	}
	return all
}

// TestTraceExport tests that a server sends its spans to the collector in the
// environment, the last ones when it stops.
func TestTraceExport(t *testing.T) {
	var mu sync.Mutex
	names, services := map[string]int{}, map[string]int{}
	collects := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := io.Reader(r.Body)
		if r.Header.Get("Content-Encoding") == "gzip" {
			var err error
			if body, err = gzip.NewReader(r.Body); err != nil {
				t.Error(err)
			}
		}
		text, err := io.ReadAll(body)
		var spans collector.ExportTraceServiceRequest
		if err == nil {
			err = proto.Unmarshal(text, &spans)
		}
		if err != nil || r.URL.Path != "/v1/traces" || r.Header.Get("Content-Type") != "application/x-protobuf" {
			t.Errorf("%s %v: %v", r.URL.Path, r.Header, err)
		}
		mu.Lock()
		defer mu.Unlock()
		for _, of := range spans.ResourceSpans {
			for _, a := range of.Resource.Attributes {
				services[a.Key+"="+a.Value.GetStringValue()]++
			}
			for _, scope := range of.ScopeSpans {
				for _, span := range scope.Spans {
					names[span.Name]++
				}
			}
		}
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	defer collects.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collects.URL)
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
	p := startServer(t, filepath.Join(t.TempDir(), "data"))
	p.create(t, "ada@example.com")
	if err := p.stop(t.Context()); err != nil {
		t.Fatalf("the server ended with %v\n%s", err, p.log)
	}
	mu.Lock()
	defer mu.Unlock()
	for _, name := range []string{"POST /v1/accounts", "command CreateAccount", "append", "commit", "view accounts"} {
		if names[name] != 1 {
			t.Errorf("the collector has %d spans %q: %v", names[name], name, names)
		}
	}
	if services["service.name=accountledger"] == 0 || services["deployment.environment.name=test"] == 0 {
		t.Errorf("the spans do not name the service: %v", services)
	}

	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
	if code, _, stderr := accountledger(t, "serve", "--data", t.TempDir(), "--listen", "127.0.0.1:0"); code != cli.ExitUsage || !strings.Contains(stderr, "http/protobuf") {
		t.Errorf("an unsupported protocol: exit code %d: %s", code, stderr)
	}
}
