package flyregion

import (
	"slices"
	"sync"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
)

// recording is what a pool tells OpenTelemetry.
type recording struct {
	t      testing.TB
	spans  *tracetest.SpanRecorder
	traces trace.TracerProvider // counts how often each span is ended, which the SDK forgives
	reader *sdkmetric.ManualReader
	meters *sdkmetric.MeterProvider

	mu   sync.Mutex
	ends map[*countedSpan]int
}

// record returns a recording. When the test ends every span must have ended once.
func record(t testing.TB) *recording {
	r := &recording{t: t, spans: tracetest.NewSpanRecorder(), reader: sdkmetric.NewManualReader(), ends: map[*countedSpan]int{}}
	r.traces = countingProvider{inner: sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(r.spans)), recording: r}
	r.meters = sdkmetric.NewMeterProvider(sdkmetric.WithReader(r.reader))
	t.Cleanup(func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		for span, n := range r.ends {
			if n != 1 {
				t.Errorf("span %s was ended %d times", span.name, n)
			}
		}
	})
	return r
}

// into makes a pool's telemetry go to the recording.
func (r *recording) into(c *Config) {
	c.Telemetry = Telemetry{TracerProvider: r.traces, MeterProvider: r.meters}
}

// named returns the spans of that name that have ended.
func (r *recording) named(name string) []sdktrace.ReadOnlySpan {
	return slices.DeleteFunc(r.spans.Ended(), func(s sdktrace.ReadOnlySpan) bool { return s.Name() != name })
}

// started returns how many spans of that name were started.
func (r *recording) started(name string) (n int) {
	for _, s := range r.spans.Started() {
		if s.Name() == name {
			n++
		}
	}
	return n
}

// only returns the one span of that name that has ended.
func (r *recording) only(t testing.TB, name string) sdktrace.ReadOnlySpan {
	t.Helper()
	spans := r.named(name)
	if len(spans) != 1 {
		t.Fatalf("there are %d spans %s, want 1", len(spans), name)
	}
	return spans[0]
}

// metric returns what an instrument says now, nil if nothing.
func (r *recording) metric(t testing.TB, name string) metricdata.Aggregation {
	t.Helper()
	return metricFrom(t, r.reader, name)
}

func metricFrom(t testing.TB, reader sdkmetric.Reader, name string) metricdata.Aggregation {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	for _, scoped := range all.ScopeMetrics {
		for _, m := range scoped.Metrics {
			if scoped.Scope.Name == scope && m.Name == name {
				return m.Data
			}
		}
	}
	return nil
}

// statements returns the counter's values by target and reason.
func (r *recording) statements(t testing.TB) map[string]int64 {
	t.Helper()
	counts := map[string]int64{}
	if sum, ok := r.metric(t, metricStatements).(metricdata.Sum[int64]); ok {
		if !sum.IsMonotonic {
			t.Error("the counter may fall")
		}
		for _, point := range sum.DataPoints {
			counts[attrIn(point.Attributes, attrTarget)+" "+attrIn(point.Attributes, attrReason)] += point.Value
		}
	}
	return counts
}

// waits returns how many reads have waited for a replica, by outcome.
func (r *recording) waits(t testing.TB) map[string]int {
	t.Helper()
	counts := map[string]int{}
	if histogram, ok := r.metric(t, metricWait).(metricdata.Histogram[float64]); ok {
		for _, point := range histogram.DataPoints {
			counts[attrIn(point.Attributes, attrOutcome)] += int(point.Count)
		}
	}
	return counts
}

// lagBytes returns the gauge's value for a region.
func (r *recording) lagBytes(t testing.TB, region string) (bytes int64, ok bool) {
	t.Helper()
	gauge, _ := r.metric(t, metricLagBytes).(metricdata.Gauge[int64])
	for _, point := range gauge.DataPoints {
		if attrIn(point.Attributes, attrRegion) == region {
			return point.Value, true
		}
	}
	return 0, false
}

func attrIn(set attribute.Set, key attribute.Key) string {
	value, _ := set.Value(key)
	return value.String()
}

func attrOf(span sdktrace.ReadOnlySpan, key attribute.Key) attribute.Value {
	set := attribute.NewSet(span.Attributes()...)
	value, _ := set.Value(key)
	return value
}

// globalRecording are the providers that tests set as OpenTelemetry's global ones. What was made before any was set follows the
// first that is, for good, so there is only one of each.
var globalRecording = sync.OnceValue(func() *recording {
	r := &recording{spans: tracetest.NewSpanRecorder(), reader: sdkmetric.NewManualReader(), ends: map[*countedSpan]int{}}
	r.traces = countingProvider{inner: sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(r.spans)), recording: r}
	r.meters = sdkmetric.NewMeterProvider(sdkmetric.WithReader(r.reader))
	return r
})
