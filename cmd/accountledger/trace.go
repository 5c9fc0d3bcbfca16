package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"accountledger/cmd/accountledger/cli"
	"accountledger/domain"
	"accountledger/httpapi"
	"accountledger/projections"
	"accountledger/projections/webhooks"
)

// tracing makes spans of what the packages tell: a request, the commands and
// appends it leads to, the views that show their events, and the deliveries of
// these, all in one trace. This is the one place that knows of OpenTelemetry;
// a nil *tracing traces nothing and costs nothing.
//
// A span says nothing that is personal, and names no account: the kinds of
// things, positions, and random ids.
type tracing struct {
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
	started  time.Time
}

// Attributes beside those of OpenTelemetry's semantic conventions. Which span
// has which is in docs/operation.md.
const (
	traceRequest   = attribute.Key("accountledger.request")
	traceCommand   = attribute.Key("accountledger.command")
	traceOutcome   = attribute.Key("accountledger.outcome")
	traceView      = attribute.Key("accountledger.view")
	traceWebhook   = attribute.Key("accountledger.webhook")
	traceEventType = attribute.Key("accountledger.event.type")
	tracePosition  = attribute.Key("accountledger.event.position")
	traceEvents    = attribute.Key("accountledger.events")
)

// tracingWanted reports whether the environment says where spans are sent to.
func tracingWanted() bool {
	return (os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != "") &&
		os.Getenv("OTEL_SDK_DISABLED") != "true" && os.Getenv("OTEL_TRACES_EXPORTER") != "none"
}

// newTracing makes spans if and as the environment asks for it, by the
// variables that OpenTelemetry defines, and sends them over OTLP and HTTP.
func newTracing(ctx context.Context, logger *slog.Logger) (*tracing, error) {
	if !tracingWanted() {
		return nil, nil
	}
	for _, name := range []string{"OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"} {
		if protocol := os.Getenv(name); protocol != "" && protocol != "http/protobuf" {
			return nil, cli.Usagef("%s is %q; it can be http/protobuf", name, protocol)
		}
	}
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, fmt.Errorf("traces: %w", err)
	}
	// It is the library's only way to say so, and one for the whole process.
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { logger.Warn("spans are lost", "err", err) }))
	described, err := resource.New(ctx, resource.WithTelemetrySDK(),
		resource.WithAttributes(attribute.String("service.name", "accountledger"), attribute.String("service.version", version())),
		resource.WithFromEnv()) // what the environment says wins
	if err != nil {
		return nil, fmt.Errorf("traces: %w", err)
	}
	return tracingWith(sdktrace.WithBatcher(exporter), sdktrace.WithResource(described)), nil
}

func tracingWith(options ...sdktrace.TracerProviderOption) *tracing {
	provider := sdktrace.NewTracerProvider(options...)
	return &tracing{provider: provider, tracer: provider.Tracer("accountledger"), started: time.Now()}
}

// close sends what is left, if somebody takes it now.
func (t *tracing) close() error {
	if t == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), moment)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("traces: %w", err)
	}
	return nil
}

// hook is f, or nil where nothing is traced, so that nobody is told anything.
func hook[F any](t *tracing, f F) F {
	if t == nil {
		var none F
		return none
	}
	return f
}

// within is ctx in the trace that a traceparent names, or ctx where it names
// none. Of what others may send along, tracestate and baggage, nothing is kept.
func within(ctx context.Context, traceparent string) context.Context {
	return propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{"traceparent": traceparent})
}

// traceparentOf is where ctx stands in its trace, "" unless that is sampled.
func traceparentOf(ctx context.Context) string {
	if !trace.SpanContextFromContext(ctx).IsSampled() {
		return ""
	}
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	return carrier["traceparent"]
}

// over makes a span of what is over, in the trace of ctx if there is one.
func (t *tracing) over(ctx context.Context, name string, begun, ended time.Time, attributes ...attribute.KeyValue) context.Context {
	if !trace.SpanContextFromContext(ctx).IsSampled() {
		return ctx
	}
	ctx, span := t.tracer.Start(ctx, name, trace.WithTimestamp(begun), trace.WithAttributes(attributes...))
	span.End(trace.WithTimestamp(ended))
	return ctx
}

func (t *tracing) admitted(ctx context.Context, a httpapi.Admitted) (context.Context, string, func(httpapi.Answered)) {
	ctx, span := t.tracer.Start(within(ctx, a.Traceparent), a.Method+" "+a.Route, trace.WithSpanKind(trace.SpanKindServer), trace.WithTimestamp(a.Time),
		trace.WithAttributes(attribute.String("http.request.method", a.Method), attribute.String("http.route", a.Route), traceRequest.String(a.Request)))
	return ctx, traceparentOf(ctx), func(a httpapi.Answered) {
		span.SetAttributes(attribute.Int("http.response.status_code", a.Status))
		if a.Status >= 500 {
			span.SetStatus(codes.Error, "")
		}
		span.End()
	}
}

func (t *tracing) executed(ctx context.Context, x domain.Executed) {
	if t == nil {
		return
	}
	now := time.Now()
	t.over(ctx, "command "+x.Command, now.Add(-x.Duration), now, traceCommand.String(x.Command), traceOutcome.String(x.Outcome))
}

// appended makes two spans: what the append took for its caller, and in it the
// transaction, which it shared. Before that it waited in the queue.
func (t *tracing) appended(ctx context.Context, a appended) {
	outcome, events := appendDone, int64(0)
	if a.Err != nil {
		outcome = appendRefused
	} else {
		events = int64(a.Receipt.Last-a.Receipt.First) + 1
	}
	ctx = t.over(ctx, "append", a.Came, a.Ended, traceOutcome.String(outcome), traceEvents.Int64(events), tracePosition.Int64(int64(a.Receipt.First)))
	t.over(ctx, "commit", a.Begun, a.Ended)
}

// applied leaves out what was recorded before the start: views that are made
// anew are not part of the requests of then.
func (t *tracing) applied(a projections.Applied) {
	if a.Entry.Time.Before(t.started) {
		return
	}
	t.over(within(context.Background(), a.Entry.Meta.Traceparent), "view "+a.View, a.Begun, a.Ended,
		traceView.String(a.View), traceEventType.String(a.Entry.Type), tracePosition.Int64(int64(a.Entry.Position)))
}

func (t *tracing) delivering(d webhooks.Tracing) (string, func(webhooks.Attempted)) {
	ctx, span := t.tracer.Start(within(context.Background(), d.Traceparent), "deliver "+d.Type, trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(
		traceWebhook.String(d.WebhookID), traceEventType.String(d.Type), tracePosition.Int64(int64(d.Position))))
	return traceparentOf(ctx), func(a webhooks.Attempted) {
		span.SetAttributes(traceOutcome.String(a.Outcome), attribute.Int("http.response.status_code", a.Status))
		if a.Outcome != webhooks.OutcomeDelivered {
			span.SetStatus(codes.Error, "")
		}
		span.End()
	}
}
