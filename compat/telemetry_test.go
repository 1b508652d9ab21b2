package compat

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/IBM/pgxpoolprometheus"
	"github.com/exaring/otelpgx"
	"github.com/flyregion/flyregion"
	zerologadapter "github.com/jackc/pgx-zerolog"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/multitracer"
	"github.com/jackc/pgx/v5/tracelog"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

// traced returns a pool that carries a tracer, after it did a bit of everything. Each thing has a mark of its own.
func traced(ctx context.Context, t *testing.T, table string, tracer pgx.QueryTracer) *flyregion.Pool {
	t.Helper()
	pool := newPool(t, func(c *flyregion.Config) { c.ConnConfig.Tracer = tracer })
	setUp(t, "create table "+table+" (id int primary key)")
	onPrimary(t, "insert into "+table, func() error {
		_, err := pool.Exec(ctx, "insert into "+table+" values ($1)", 1)
		return err
	})
	onReplica(t, pool, "select id from "+table, func() error {
		var id int
		return pool.QueryRow(ctx, "select id from "+table).Scan(&id)
	})
	onPrimary(t, "update "+table, func() error {
		return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "update "+table+" set id = 2")
			return err
		})
	})
	onReplica(t, pool, "select count(*) from "+table, func() error {
		b := &pgx.Batch{}
		b.Queue("select count(*) from " + table)
		b.Queue("select max(id) from " + table)
		return pool.SendBatch(ctx, b).Close()
	})
	if _, err := pool.CopyFrom(ctx, pgx.Identifier{table}, []string{"id"}, pgx.CopyFromRows([][]any{{7}})); err != nil {
		t.Error(err)
	}
	if _, err := pool.Exec(ctx, "select 1/0 from "+table); err == nil {
		t.Error("no error")
	}
	return pool
}

func TestOtelpgx(t *testing.T) {
	spans := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))
	reader := sdkmetric.NewManualReader()
	meters := sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
	defer func() { _ = meters.Shutdown(context.Background()) }()
	// It makes spans only within one of the app's.
	ctx, span := provider.Tracer("app").Start(t.Context(), "request")
	defer span.End()
	pool := traced(ctx, t, "otelpgx_table", otelpgx.NewTracer(otelpgx.WithFullSQLInSpanName(), otelpgx.WithTracerProvider(provider), otelpgx.WithMeterProvider(meters)))

	var names []string
	for _, span := range spans.Ended() {
		names = append(names, span.Name())
	}
	for _, want := range []string{"insert into otelpgx_table", "select id from otelpgx_table", "update otelpgx_table", "begin", "commit", "select count(*) from otelpgx_table", "otelpgx_table", "connect", "pool.acquire"} {
		if !slices.ContainsFunc(names, func(name string) bool { return strings.Contains(name, want) }) {
			t.Errorf("no span is about %q: %q", want, names)
		}
	}
	// The app's tracer sees what the app does, and nothing of what the pool adds.
	for _, name := range names {
		for _, own := range []string{"pg_current_wal", "pg_last_wal", "txid_current"} {
			if strings.Contains(name, own) {
				t.Errorf("a span is about %q", name)
			}
		}
	}

	// Its statistics take a *pgxpool.Pool, and there is one for each server.
	if err := otelpgx.RecordStats(pool.Primary(), otelpgx.WithStatsMeterProvider(meters)); err != nil {
		t.Error(err)
	}
	if err := otelpgx.RecordStats(pool.Replica(), otelpgx.WithStatsMeterProvider(meters)); err != nil {
		t.Error(err)
	}
	var metrics metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &metrics); err != nil {
		t.Error(err)
	}
	text, err := json.Marshal(metrics)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"pgxpool.acquires", "ord.app.internal:5433", "nrt.app.internal:5432"} {
		if !bytes.Contains(text, []byte(want)) {
			t.Errorf("the metrics do not tell of %s", want)
		}
	}
}

// logged is a log that may be written by several goroutines.
type logged struct {
	mu sync.Mutex
	bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Buffer.Write(p)
}

// checkLog looks whether a log tells of everything that traced does to table, and of nothing else.
func checkLog(t *testing.T, log *logged, table string) {
	t.Helper()
	log.mu.Lock()
	defer log.mu.Unlock()
	text := log.String()
	for _, want := range []string{"insert into " + table, "select id from " + table, "update " + table, "begin", "commit", "select count(*) from " + table, "CopyFrom", "division by zero"} {
		if !strings.Contains(text, want) {
			t.Errorf("the log does not tell of %q", want)
		}
	}
	for _, own := range []string{"pg_current_wal", "pg_last_wal", "txid_current"} {
		if strings.Contains(text, own) {
			t.Errorf("the log tells of %q", own)
		}
	}
}

func TestTracelogSlog(t *testing.T) {
	log := &logged{}
	handler := slog.NewJSONHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})
	traced(t.Context(), t, "slog_table", &tracelog.TraceLog{LogLevel: tracelog.LogLevelTrace, Logger: tracelog.LoggerFunc(
		func(ctx context.Context, level tracelog.LogLevel, msg string, data map[string]any) {
			slog.New(handler).LogAttrs(ctx, slog.LevelInfo, msg, slog.String("level", level.String()), slog.Any("data", data))
		},
	)})
	checkLog(t, log, "slog_table")
}

func TestPgxZerolog(t *testing.T) {
	log := &logged{}
	traced(t.Context(), t, "zerolog_table", &tracelog.TraceLog{LogLevel: tracelog.LogLevelTrace, Logger: zerologadapter.NewLogger(zerolog.New(log))})
	checkLog(t, log, "zerolog_table")
}

func TestSeveralTracers(t *testing.T) {
	one, two := &logged{}, &logged{}
	logTo := func(log *logged) *tracelog.TraceLog {
		return &tracelog.TraceLog{LogLevel: tracelog.LogLevelTrace, Logger: zerologadapter.NewLogger(zerolog.New(log))}
	}
	traced(t.Context(), t, "multi_table", multitracer.New(logTo(one), logTo(two)))
	checkLog(t, one, "multi_table")
	checkLog(t, two, "multi_table")
}

// TestPrometheus registers one collector for each server, as they take what gives a *pgxpool.Stat.
func TestPrometheus(t *testing.T) {
	pool := newPool(t)
	for range 3 {
		if err := pool.QueryRow(t.Context(), "select 1").Scan(new(int)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := pool.Exec(t.Context(), "create table prometheus_table ()"); err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(
		pgxpoolprometheus.NewCollector(pool.Primary(), map[string]string{"server": "primary"}),
		pgxpoolprometheus.NewCollector(pool.Replica(), map[string]string{"server": "replica"}),
	)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]float64{}
	for _, family := range families {
		if family.GetName() != "pgxpool_acquire_count" {
			continue
		}
		for _, m := range family.GetMetric() {
			found[m.GetLabel()[0].GetValue()] = m.GetCounter().GetValue()
		}
	}
	equal(t, "acquires on the replica", found["replica"], 3)
	if found["primary"] < 1 {
		t.Errorf("%v acquires on the primary", found["primary"])
	}
	equal(t, "acquires on both", float64(pool.Stat().AcquireCount()), found["primary"]+found["replica"])
}
