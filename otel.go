package flyregion

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
)

// scope is the name that this package's spans and metrics are recorded under.
const scope = "github.com/flyregion/flyregion"

// Names of the spans and instruments. Attributes of our own begin with "flyregion."; the others are OpenTelemetry's
// semantic conventions for databases (https://opentelemetry.io/docs/specs/semconv/database/).
const (
	spanReplicaWait = "flyregion.replica_wait"
	spanForward     = "flyregion.forward"

	metricWait       = "flyregion.replica_wait.duration"
	metricStatements = "flyregion.statements"
	metricLagBytes   = "flyregion.replica.lag.bytes"
	metricLagSeconds = "flyregion.replica.lag.seconds"

	attrRegion    = attribute.Key("flyregion.region")
	attrTarget    = attribute.Key("flyregion.target")
	attrReason    = attribute.Key("flyregion.reason")
	attrOperation = attribute.Key("flyregion.operation")
	attrRequired  = attribute.Key("flyregion.lsn.required")
	attrFound     = attribute.Key("flyregion.lsn.found")
	attrLag       = attribute.Key("flyregion.lag.bytes")
	attrOutcome   = attribute.Key("flyregion.outcome")
)

// Telemetry says where spans and metrics go. A nil provider, which is the default, means OpenTelemetry's global one, even if
// that is set after the pool was made. While no provider is set, nothing is recorded or allocated. A provider that panics
// fails no statement: the panic goes to OpenTelemetry's error handler.
type Telemetry struct {
	TracerProvider trace.TracerProvider
	MeterProvider  metric.MeterProvider
}

// The providers that the otel package hands out before any is set, which record nothing.
var (
	unsetTracerProvider = otel.GetTracerProvider()
	unsetMeterProvider  = otel.GetMeterProvider()
)

// telemetry records what a pool does.
type telemetry struct {
	config       Telemetry
	tracer       atomic.Pointer[boundTracer]
	wait         metric.Float64Histogram
	statements   metric.Int64Counter
	registration metric.Registration
	counts       statementCounts
	// options holds the attributes of each count, which would be allocated anew every time otherwise.
	options sync.Map // of countKey to metric.MeasurementOption
}

type boundTracer struct {
	provider trace.TracerProvider
	tracer   trace.Tracer
}

// safely calls a provider while a statement runs. OpenTelemetry's rule is that instruments do not panic. Where one does, it
// handles that as an error of its own, and the statement goes on.
func safely(call func()) {
	defer func() {
		if problem := recover(); problem != nil {
			otel.Handle(fmt.Errorf("flyregion: a telemetry provider has panicked: %v", problem))
		}
	}()
	call()
}

// newTelemetry makes the instruments, except the lag gauges.
func newTelemetry(config Telemetry) (t *telemetry, err error) {
	t = &telemetry{config: config}
	meter := t.meter()
	t.wait, err = meter.Float64Histogram(metricWait, metric.WithUnit("s"),
		metric.WithDescription("Time that reads waited for a replica to replay their session's writes."),
		metric.WithExplicitBucketBoundaries(.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1))
	if err != nil {
		return nil, err
	}
	t.statements, err = meter.Int64Counter(metricStatements, metric.WithUnit("{statement}"),
		metric.WithDescription("Statements, batches and transactions by the server that they were sent to and why."))
	if err != nil {
		return nil, err
	}
	return t, nil
}

func (t *telemetry) meter() metric.Meter {
	provider := t.config.MeterProvider
	if provider == nil {
		provider = otel.GetMeterProvider()
	}
	return provider.Meter(scope)
}

// lag is how far one replica is behind the primary.
type lag struct {
	region   string
	endpoint string // host and port, or the path of a socket; "" if it is not known
	bytes    int64
	seconds  float64
}

// attributes tell the replica from others in its region, as OpenTelemetry's semantic conventions do.
func (l lag) attributes() metric.MeasurementOption {
	attributes := []attribute.KeyValue{attrRegion.String(l.region)}
	if host, port, err := net.SplitHostPort(l.endpoint); err == nil {
		number, _ := strconv.Atoi(port)
		attributes = append(attributes, attribute.String("server.address", host), attribute.Int("server.port", number))
	} else if l.endpoint != "" {
		attributes = append(attributes, attribute.String("server.address", l.endpoint))
	}
	return metric.WithAttributes(attributes...)
}

// observeLag makes the lag gauges. measure is called when they are read, which may be at once, and only then.
func (t *telemetry) observeLag(measure func(context.Context) []lag) error {
	meter := t.meter()
	lagBytes, err := meter.Int64ObservableGauge(metricLagBytes, metric.WithUnit("By"),
		metric.WithDescription("Write-ahead log that the primary has flushed and the replica has not replayed."))
	if err != nil {
		return err
	}
	lagSeconds, err := meter.Float64ObservableGauge(metricLagSeconds, metric.WithUnit("s"),
		metric.WithDescription("Age of the last transaction that the replica has replayed, 0 if it has replayed all."))
	if err != nil {
		return err
	}
	t.registration, err = meter.RegisterCallback(func(ctx context.Context, o metric.Observer) error {
		for _, l := range measure(ctx) {
			attributes := l.attributes()
			o.ObserveInt64(lagBytes, l.bytes, attributes)
			o.ObserveFloat64(lagSeconds, l.seconds, attributes)
		}
		return nil
	}, lagBytes, lagSeconds)
	return err
}

// close ends the lag gauges.
func (t *telemetry) close() {
	if t.registration == nil {
		return
	}
	// OpenTelemetry's own providers return no error here, and there is nothing to do about another's.
	_ = t.registration.Unregister()
}

// tracing returns the tracer to record with, nil if no provider is set.
func (t *telemetry) tracing() trace.Tracer {
	provider := t.config.TracerProvider
	if provider == nil {
		if provider = otel.GetTracerProvider(); provider == unsetTracerProvider {
			return nil
		}
	}
	b := t.tracer.Load()
	if b == nil || !sameProvider(b.provider, provider) {
		b = &boundTracer{provider: provider}
		safely(func() { b.tracer = provider.Tracer(scope) })
		t.tracer.Store(b)
	}
	return b.tracer
}

// sameProvider is a == b for providers of any type, also of one whose values cannot be compared.
func sameProvider(a, b trace.TracerProvider) bool {
	return reflect.ValueOf(a).Comparable() && reflect.ValueOf(b).Comparable() && a == b
}

func (t *telemetry) metering() bool {
	return t.config.MeterProvider != nil || otel.GetMeterProvider() != unsetMeterProvider
}

// sent counts a statement, for Stat and for the metric. conn is a number of its connection, 0 for the primary's.
func (t *telemetry) sent(ctx context.Context, to target, why reason, conn uint32) {
	t.counts.sent(to, why, conn)
	if !t.metering() {
		return
	}
	key := countKey{to, why}
	option, ok := t.options.Load(key)
	if !ok {
		set := attribute.NewSet(attrTarget.String(to.String()), attrReason.String(string(why)))
		option, _ = t.options.LoadOrStore(key, metric.WithAttributeSet(set))
	}
	safely(func() { t.statements.Add(ctx, 1, option.(metric.MeasurementOption)) })
}

// span is an OpenTelemetry span, or none if nothing is recorded.
type span struct{ recorded trace.Span }

// end ends the span, with an error if there was one.
func (s span) end(err error) {
	if s.recorded == nil {
		return
	}
	safely(func() {
		if err != nil {
			s.recorded.RecordError(err)
			s.recorded.SetStatus(codes.Error, err.Error())
		}
		s.recorded.End()
	})
}

// forward begins the span of a statement that the primary runs. The spans of the app's own tracer become its children
// through the context. If an error has brought the statement to the primary, the span has it as an event, and the region of
// the replica that it came from.
func (t *telemetry) forward(ctx context.Context, operation string, why reason, region string, cause error) (context.Context, span) {
	t.sent(ctx, targetPrimary, why, 0)
	tracer := t.tracing()
	if tracer == nil {
		return ctx, span{}
	}
	started := span{}
	safely(func() {
		child, s := tracer.Start(ctx, spanForward, trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(
			attribute.String("db.system.name", "postgresql"),
			attrOperation.String(operation), attrReason.String(string(why)), attrTarget.String(targetPrimary.String())))
		ctx, started.recorded = child, s
		if cause == nil || !s.IsRecording() {
			return
		}
		if region != "" {
			s.SetAttributes(attrRegion.String(region))
		}
		s.AddEvent("exception", trace.WithAttributes(causeAttributes(why, cause)...))
	})
	return ctx, started
}

// causeAttributes describes why a statement has left a replica, as OpenTelemetry's semantic conventions do for exceptions
// and for databases. They hold no arguments of the statement.
func causeAttributes(why reason, cause error) []attribute.KeyValue {
	var pgErr *pgconn.PgError
	if !errors.As(cause, &pgErr) {
		of := []attribute.KeyValue{attribute.String("exception.type", fmt.Sprintf("%T", cause))}
		if why != becauseLost || isOfConnection(cause) {
			of = append(of, attribute.String("exception.message", cause.Error()))
		}
		return of
	}
	of := []attribute.KeyValue{
		attribute.String("exception.type", fmt.Sprintf("%T", pgErr)), attribute.String("db.response.status_code", pgErr.Code),
	}
	if !strings.HasPrefix(pgErr.Code, "22") { // a data exception, whose message has the value
		of = append(of, attribute.String("exception.message", cause.Error()))
	}
	return of
}

// isOfConnection reports whether an error is one of the connection, so that its message has nothing of the statement. pgx's
// errors about an argument have its value.
func isOfConnection(err error) bool {
	var netErr net.Error
	var silent *silentError
	return errors.As(err, &netErr) || errors.As(err, &silent) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, pgconn.ErrConnClosed)
}

// replicaWait is the wait of a read for its session's writes.
type replicaWait struct {
	telemetry *telemetry
	began     time.Time
	span      trace.Span
	region    string
	required  LSN
}

// startWait begins the span of a wait.
func (t *telemetry) startWait(ctx context.Context, region string, required LSN) replicaWait {
	w := replicaWait{telemetry: t, region: region, required: required}
	metering := t.metering()
	tracer := t.tracing()
	if metering || tracer != nil {
		w.began = time.Now()
	}
	if tracer != nil {
		safely(func() { _, w.span = tracer.Start(ctx, spanReplicaWait, trace.WithTimestamp(w.began)) })
	}
	return w
}

// waitOutcome is how a wait ended.
type waitOutcome string

const (
	waitReplayed waitOutcome = "replayed"
	waitFellBack waitOutcome = "fell_back"
	waitRefused  waitOutcome = "refused" // the caller wanted the replica and nothing else
	waitCanceled waitOutcome = "context_ended"
)

// end records how the wait ended, and the position that the replica was found at.
func (w replicaWait) end(ctx context.Context, found LSN, how waitOutcome) {
	if w.began.IsZero() {
		return
	}
	if w.telemetry.metering() {
		safely(func() {
			w.telemetry.wait.Record(ctx, time.Since(w.began).Seconds(),
				metric.WithAttributes(attrRegion.String(w.region), attrOutcome.String(string(how))))
		})
	}
	if w.span == nil {
		return
	}
	behind := int64(0)
	if w.required > found {
		behind = int64(w.required - found)
	}
	safely(func() {
		w.span.SetAttributes(attrRegion.String(w.region), attrRequired.String(w.required.String()),
			attrFound.String(found.String()), attrLag.Int64(behind), attrOutcome.String(string(how)))
		w.span.End()
	})
}
