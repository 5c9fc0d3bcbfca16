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

// tracing makes spans from the hooks of the packages: a request, its commands and
// appends, the views that apply the events, and their deliveries, all in one
// trace. No other file uses OpenTelemetry. A nil *tracing traces nothing.
//
// Spans hold no personal data and name no account. They hold kinds of things,
// positions and random ids.
type tracing struct {
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
	started  time.Time
}

// Attributes in addition to those of OpenTelemetry's semantic conventions.
// docs/operation.md lists the attributes of each span.
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

// tracingWanted reports whether the environment enables tracing.
func tracingWanted() bool {
	return (os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != "") &&
		os.Getenv("OTEL_SDK_DISABLED") != "true" && os.Getenv("OTEL_TRACES_EXPORTER") != "none"
}

// newTracing returns a tracing configured by OpenTelemetry's environment
// variables, or nil if they do not enable it. It exports spans with OTLP over
// HTTP.
func newTracing(ctx context.Context, logger *slog.Logger) (*tracing, error) {
	if !tracingWanted() {
		return nil, nil
	}
	for _, name := range []string{"OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"} {
		if protocol := os.Getenv(name); protocol != "" && protocol != "http/protobuf" {
			return nil, cli.Usagef("%s is %q; it must be http/protobuf", name, protocol)
		}
	}
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, fmt.Errorf("traces: %w", err)
	}
	// The library reports lost spans only to this handler of the whole process.
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { logger.Warn("spans were lost", "err", err) }))
	described, err := resource.New(ctx, resource.WithTelemetrySDK(),
		resource.WithAttributes(attribute.String("service.name", "accountledger"), attribute.String("service.version", version())),
		resource.WithFromEnv()) // the environment wins
	if err != nil {
		return nil, fmt.Errorf("traces: %w", err)
	}
	return tracingWith(sdktrace.WithBatcher(exporter), sdktrace.WithResource(described)), nil
}

func tracingWith(options ...sdktrace.TracerProviderOption) *tracing {
	provider := sdktrace.NewTracerProvider(options...)
	return &tracing{provider: provider, tracer: provider.Tracer("accountledger"), started: time.Now()}
}

// close sends the remaining spans, unless the collector takes too long.
func (t *tracing) close() error {
	if t == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), minGrace)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("traces: %w", err)
	}
	return nil
}

// hook returns f, or nil if t is nil, so that packages skip the hook.
func hook[F any](t *tracing, f F) F {
	if t == nil {
		var none F
		return none
	}
	return f
}

// within returns ctx in the trace of a traceparent, or ctx if that is empty or
// invalid. It ignores tracestate and baggage, which clients control.
func within(ctx context.Context, traceparent string) context.Context {
	return propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{"traceparent": traceparent})
}

// traceparentOf returns the traceparent of ctx, "" unless its trace is sampled.
func traceparentOf(ctx context.Context) string {
	if !trace.SpanContextFromContext(ctx).IsSampled() {
		return ""
	}
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	return carrier["traceparent"]
}

// record makes a span of something that has ended, if the trace of ctx is sampled.
func (t *tracing) record(ctx context.Context, name string, begun, ended time.Time, attributes ...attribute.KeyValue) context.Context {
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
	t.record(ctx, "command "+x.Command, now.Add(-x.Duration), now, traceCommand.String(x.Command), traceOutcome.String(x.Outcome))
}

// appended makes two spans: the append, which includes the wait in the queue, and
// in it the transaction, which appends may share.
func (t *tracing) appended(ctx context.Context, a appended) {
	outcome, events := appendDone, int64(0)
	if a.Err != nil {
		outcome = appendRefused
	} else {
		events = int64(a.Receipt.Last-a.Receipt.First) + 1
	}
	ctx = t.record(ctx, "append", a.Came, a.Ended, traceOutcome.String(outcome), traceEvents.Int64(events), tracePosition.Int64(int64(a.Receipt.First)))
	t.record(ctx, "commit", a.Begun, a.Ended)
}

// applied makes a span of a view that applied an event. It ignores events that
// were recorded before the start: a rebuild is not part of their requests.
func (t *tracing) applied(a projections.Applied) {
	if a.Entry.Time.Before(t.started) {
		return
	}
	t.record(within(context.Background(), a.Entry.Meta.Traceparent), "view "+a.View, a.Begun, a.Ended,
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
