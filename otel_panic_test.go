package flyregion

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	metricembedded "go.opentelemetry.io/otel/metric/embedded"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/embedded"
	"go.opentelemetry.io/otel/trace/noop"
)

// panicking is a provider that panics in the call that where names, and records nothing.
type panicking struct {
	embedded.TracerProvider
	where string
}

func (p panicking) at(where string) {
	if p.where == where {
		panic("this provider panics in " + where)
	}
}

func (p panicking) Tracer(string, ...trace.TracerOption) trace.Tracer {
	p.at("Tracer")
	return panickingTracer{panicking: p}
}

type panickingTracer struct {
	embedded.Tracer
	panicking
}

func (t panickingTracer) Start(ctx context.Context, _ string, _ ...trace.SpanStartOption) (context.Context, trace.Span) {
	t.at("Start")
	return ctx, panickingSpan{noop.Span{}, t.panicking}
}

type panickingSpan struct {
	noop.Span
	panicking
}

func (s panickingSpan) IsRecording() bool                     { return true }
func (s panickingSpan) AddEvent(string, ...trace.EventOption) { s.at("AddEvent") }
func (s panickingSpan) SetAttributes(...attribute.KeyValue)   { s.at("SetAttributes") }
func (s panickingSpan) End(...trace.SpanEndOption)            { s.at("End") }
func (s panickingSpan) TracerProvider() trace.TracerProvider  { return s.panicking }

// panickingMeters are meters whose counters and histograms panic.
type panickingMeters struct{ metric.MeterProvider }

type panickingMeter struct{ metric.Meter }

type panickingCounter struct{ metricembedded.Int64Counter }

type panickingHistogram struct {
	metricembedded.Float64Histogram
}

func (m panickingMeters) Meter(name string, options ...metric.MeterOption) metric.Meter {
	return panickingMeter{m.MeterProvider.Meter(name, options...)}
}

func (panickingMeter) Int64Counter(string, ...metric.Int64CounterOption) (metric.Int64Counter, error) {
	return panickingCounter{}, nil
}

func (panickingMeter) Float64Histogram(string, ...metric.Float64HistogramOption) (metric.Float64Histogram, error) {
	return panickingHistogram{}, nil
}

func (panickingCounter) Add(context.Context, int64, ...metric.AddOption) {
	panic("this counter panics")
}
func (panickingCounter) Enabled(context.Context) bool { return true }

func (panickingHistogram) Record(context.Context, float64, ...metric.RecordOption) {
	panic("this histogram panics")
}
func (panickingHistogram) Enabled(context.Context) bool { return true }

// A provider that panics costs no statement, no connection and no slot among the fallback reads. OpenTelemetry is told.
func TestProviderThatPanics(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int")
	var mu sync.Mutex
	var handled []string
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		mu.Lock()
		defer mu.Unlock()
		handled = append(handled, err.Error())
	}))
	t.Cleanup(func() { otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { t.Log(err) })) })
	thaw := freeze(t, cluster)
	for _, where := range []string{"Tracer", "Start", "AddEvent", "SetAttributes", "End"} {
		t.Run(where, func(t *testing.T) {
			handled = nil
			pool := poolIn(t, cluster, "ord", waits(time.Millisecond, 10*time.Second), func(c *Config) {
				c.MaxConns = 2
				c.Telemetry = Telemetry{TracerProvider: panicking{where: where}, MeterProvider: panickingMeters{record(t).meters}}
			})
			ctx := t.Context()
			for range 5 {
				var n int
				if err := pool.QueryRow(ctx, "insert into "+name+" values (1) returning id").Scan(&n); err != nil {
					t.Fatal(err)
				}
				rows, err := pool.Query(ctx, "select count(*) from "+name) // falls back
				if err != nil {
					t.Fatal(err)
				}
				if _, err := pgx.CollectRows(rows, pgx.RowTo[int]); err != nil {
					t.Fatal(err)
				}
				if err := pool.SendBatch(ctx, batchOf("select 1")).Close(); err != nil {
					t.Fatal(err)
				}
				if err := pgx.BeginFunc(ctx, pool, func(pgx.Tx) error { return nil }); err != nil {
					t.Fatal(err)
				}
				if err := pool.QueryRow(WithoutWait(ctx), "select 1").Scan(&n); err != nil {
					t.Fatal(err)
				}
			}
			eventually(t, "no connection is in use", func() bool { return pool.Stat().AcquiredConns() == 0 })
			if n := len(pool.primary.fallbacks); n != 0 {
				t.Errorf("%d slots are taken", n)
			}
			if counts := pool.Stat().Statements(); len(counts) == 0 {
				t.Error("nothing is counted")
			}
			mu.Lock()
			defer mu.Unlock()
			for _, want := range []string{"panics in " + where, "this counter panics", "this histogram panics"} {
				if !strings.Contains(strings.Join(handled, "\n"), want) {
					t.Errorf("OpenTelemetry was not told that %s", want)
				}
			}
		})
	}
	thaw()
}
