package main

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// The names of package flyregion's spans.
const (
	spanForward     = "flyregion.forward"
	spanReplicaWait = "flyregion.replica_wait"
)

// Attributes of the demo's own spans.
const (
	attrApp    = "demo.app"
	attrServer = "demo.server"
)

// serviceName is what the demo's spans are found under in a collector.
const serviceName = "flyregion-demo"

// recorder keeps the spans that have ended, for the waterfalls.
type recorder struct {
	mu    sync.Mutex
	ended map[trace.TraceID][]sdktrace.ReadOnlySpan
}

var _ sdktrace.SpanProcessor = (*recorder)(nil)

func (r *recorder) OnStart(context.Context, sdktrace.ReadWriteSpan) {}

func (r *recorder) OnEnd(s sdktrace.ReadOnlySpan) {
	r.mu.Lock()
	defer r.mu.Unlock()

	if r.ended == nil {
		r.ended = map[trace.TraceID][]sdktrace.ReadOnlySpan{}
	}
	id := s.SpanContext().TraceID()
	r.ended[id] = append(r.ended[id], s)
}

func (r *recorder) Shutdown(context.Context) error   { return nil }
func (r *recorder) ForceFlush(context.Context) error { return nil }

// spans returns those of one trace.
func (r *recorder) spans(id trace.TraceID) []sdktrace.ReadOnlySpan {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ended[id]
}

// tracing is what an app sets up before it opens its pools: a provider of tracers, which package flyregion finds by
// itself.
type tracing struct {
	recorder recorder
	provider *sdktrace.TracerProvider
	exporter *countingExporter // nil where spans are not exported
}

// startTracing makes the provider and sets it as OpenTelemetry's global one. Spans are exported where the environment
// names an endpoint to export them to.
func startTracing(ctx context.Context) (*tracing, error) {
	t := &tracing{}
	named, err := resource.New(ctx,
		resource.WithAttributes(attribute.String("service.name", serviceName)),
		resource.WithTelemetrySDK(),
		resource.WithFromEnv())
	if err != nil {
		return nil, err
	}
	options := []sdktrace.TracerProviderOption{
		sdktrace.WithResource(named),
		// Not what the environment says: the waterfalls need every span.
		sdktrace.WithSampler(sdktrace.AlwaysSample()),
		sdktrace.WithSpanProcessor(&t.recorder),
	}
	if exportEndpoint() != "" {
		client, err := otlptracehttp.New(ctx)
		if err != nil {
			return nil, fmt.Errorf("exporting spans to %s: %w", exportEndpoint(), err)
		}
		t.exporter = &countingExporter{SpanExporter: client}
		options = append(options, sdktrace.WithBatcher(t.exporter))
	}
	t.provider = sdktrace.NewTracerProvider(options...)
	otel.SetTracerProvider(t.provider)
	return t, nil
}

// exportEndpoint returns where the environment wants spans to be exported to, "" for nowhere.
func exportEndpoint() string {
	if endpoint := os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"); endpoint != "" {
		return endpoint
	}
	return os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT")
}

// stopTimeout bounds how long a collector that does not answer can hold up the end of the demo.
const stopTimeout = 3 * time.Second

// stop exports what has not been exported yet. It returns how many spans were exported in all, and an error if some were
// not.
func (t *tracing) stop() (exported int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()

	flushErr := t.provider.ForceFlush(ctx)
	shutdownErr := t.provider.Shutdown(ctx)
	if t.exporter != nil {
		exported, err = t.exporter.result()
	}
	// What comes first is the cause of what comes later.
	return exported, cmp.Or(err, flushErr, shutdownErr)
}

// countingExporter counts what it exports. It keeps its errors until the end of the demo, where they do not stand in the
// middle of a table.
type countingExporter struct {
	sdktrace.SpanExporter
	mu       sync.Mutex
	exported int
	err      error
}

func (e *countingExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := e.SpanExporter.ExportSpans(ctx, spans)
	e.mu.Lock()
	defer e.mu.Unlock()

	if err != nil {
		e.err = err
		return nil
	}
	e.exported += len(spans)
	return nil
}

func (e *countingExporter) result() (exported int, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.exported, e.err
}

// tracer returns the tracer of the apps' own spans.
func tracer() trace.Tracer { return otel.Tracer(serviceName) }

// queryTracer is an app's own tracer, where an app would have otelpgx: it makes a span of each query that runs within
// another span. It also counts which server answered.
type queryTracer struct {
	regions map[netip.Addr]string // of the servers, by address

	mu       sync.Mutex
	answered map[string]int
}

var _ pgx.QueryTracer = (*queryTracer)(nil)

type querySpanKey struct{}

func (t *queryTracer) TraceQueryStart(ctx context.Context, conn *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	server := t.server(conn.PgConn().Conn().RemoteAddr())
	t.count(server)
	if !trace.SpanFromContext(ctx).IsRecording() {
		return ctx
	}
	verb, _, _ := strings.Cut(data.SQL, " ")
	ctx, span := tracer().Start(ctx, strings.ToUpper(verb), trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(
		attribute.String("db.system.name", "postgresql"),
		attribute.String("db.query.text", data.SQL),
		attribute.String(attrServer, server)))
	return context.WithValue(ctx, querySpanKey{}, span)
}

func (t *queryTracer) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryEndData) {
	span, ok := ctx.Value(querySpanKey{}).(trace.Span)
	if !ok {
		return
	}
	if data.Err != nil {
		span.RecordError(data.Err)
		span.SetStatus(codes.Error, data.Err.Error())
	}
	span.End()
}

// server returns the region of the server at an address, and the port.
func (t *queryTracer) server(addr net.Addr) string {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return addr.String()
	}
	if region, ok := t.regions[tcp.AddrPort().Addr().Unmap()]; ok {
		return fmt.Sprintf("%s:%d", region, tcp.Port)
	}
	return addr.String()
}

func (t *queryTracer) count(server string) {
	t.mu.Lock()
	defer t.mu.Unlock()

	if t.answered == nil {
		t.answered = map[string]int{}
	}
	t.answered[server]++
}

// tally returns how many queries each server answered since it was called last.
func (t *queryTracer) tally() map[string]int {
	t.mu.Lock()
	defer t.mu.Unlock()

	answered := t.answered
	t.answered = nil
	return answered
}

// attributeOf returns an attribute of a span as text, "" if there is none.
func attributeOf(s sdktrace.ReadOnlySpan, key attribute.Key) string {
	for _, kv := range s.Attributes() {
		if kv.Key == key {
			return kv.Value.String()
		}
	}
	return ""
}
