package flyregion

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/flyregion/flyregion/internal/pgcluster"
	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.uber.org/goleak"
)

// A read on the replica has no span of ours, and is counted.
func TestReplicaReadsAreCountedOnly(t *testing.T) {
	cluster := sharedCluster(t)
	telemetry := record(t)
	pool := poolIn(t, cluster, "ord", telemetry.into)
	ctx := t.Context()

	var one int
	if err := pool.QueryRow(ctx, "select 1").Scan(&one); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(WithReplica(ctx), "select 1"); err != nil {
		t.Fatal(err)
	}
	b := &pgx.Batch{}
	b.Queue("select 1")
	b.Queue("select 2")
	if err := pool.SendBatch(ctx, b).Close(); err != nil {
		t.Fatal(err)
	}
	tx, err := pool.BeginTx(ctx, pgx.TxOptions{AccessMode: pgx.ReadOnly})
	if err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(ctx); err != nil {
		t.Fatal(err)
	}

	if spans := telemetry.spans.Started(); len(spans) > 0 {
		t.Errorf("there is a span %s", spans[0].Name())
	}
	got := telemetry.statements(t)
	if len(got) != 2 || got["replica read"] != 3 || got["replica asked"] != 1 {
		t.Errorf("the counts are %v", got)
	}
	if telemetry.metric(t, metricWait) != nil {
		t.Error("a wait is counted")
	}
}

// The lag is measured when somebody scrapes the gauges, and only then.
func TestLagGauges(t *testing.T) {
	cluster := sharedCluster(t)
	ord := cluster.Server("ord")
	name := table(t, cluster, "id int")
	telemetry := record(t)
	pool := poolIn(t, cluster, "ord", telemetry.into, func(c *Config) {
		c.ReplicaRegions = []string{"ord", "syd"}
	})
	asked := lagQuestions(t, ord)

	ctx := t.Context()
	for range 3 {
		if _, err := pool.Exec(ctx, "insert into "+name+" values (1)"); err != nil {
			t.Fatal(err)
		}
		if _, err := pool.Exec(ctx, "select 'before' from "+name); err != nil {
			t.Fatal(err)
		}
	}
	if n := lagQuestions(t, ord) - asked; n != 0 {
		t.Fatalf("the lag was measured %d times before anybody scraped", n)
	}

	resume := pauseReplay(t, ord)
	if _, err := pool.Primary().Exec(ctx, "insert into "+name+" select generate_series(1, 1000)"); err != nil {
		t.Fatal(err)
	}
	if bytes, ok := telemetry.lagBytes(t, "ord"); !ok || bytes <= 0 {
		t.Errorf("a replica that stands still is %d bytes behind, %t", bytes, ok)
	}
	if n := lagQuestions(t, ord) - asked; n != 1 {
		t.Errorf("a scrape asked %d times", n)
	}
	eventually(t, "the replica that does not stand still catches up", func() bool {
		bytes, ok := telemetry.lagBytes(t, "syd")
		return ok && bytes == 0
	})
	// The primary's last transaction is older than nothing.
	eventually(t, "the replica that stands still is late", func() bool {
		gauge, _ := telemetry.metric(t, metricLagSeconds).(metricdata.Gauge[float64])
		for _, point := range gauge.DataPoints {
			if attrIn(point.Attributes, attrRegion) == "ord" && point.Value > 0 {
				return true
			}
		}
		return false
	})

	resume()
	eventually(t, "the replica has caught up", func() bool {
		bytes, ok := telemetry.lagBytes(t, "ord")
		return ok && bytes == 0
	})

	// A replica that does not answer is left out, and keeps nobody waiting for ever.
	link := cluster.Link("ord", "syd")
	link.Cut()
	t.Cleanup(link.Restore)
	if _, ok := telemetry.lagBytes(t, "syd"); ok {
		// The watcher's connection may lead elsewhere: what counts is that the scrape works.
		t.Log("a fallback host answered for syd")
	}
	if _, ok := telemetry.lagBytes(t, "ord"); !ok {
		t.Error("a replica that cannot be reached hides the others")
	}
	link.Restore()

	pool.Close()
	if _, ok := telemetry.lagBytes(t, "ord"); ok {
		t.Error("a closed pool still measures")
	}
}

// lagQuestions returns how often a replica was asked how far behind it is, by any pool so far.
func lagQuestions(t testing.TB, server *pgcluster.Server) int {
	t.Helper()
	return strings.Count(fullLog(t, server), lagSQL)
}

func TestGlobalProvidersThatAreSetLater(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int")
	pool := poolIn(t, cluster, "ord")
	ctx := t.Context()
	run := func() {
		t.Helper()
		if _, err := pool.Exec(ctx, "insert into "+name+" values (1)"); err != nil {
			t.Fatal(err)
		}
		if _, err := pool.Exec(ctx, "select 1"); err != nil {
			t.Fatal(err)
		}
	}
	run()

	telemetry := globalRecording()
	telemetry.spans.Reset()
	otel.SetTracerProvider(telemetry.traces)
	otel.SetMeterProvider(telemetry.meters)
	t.Cleanup(func() {
		otel.SetTracerProvider(unsetTracerProvider)
		otel.SetMeterProvider(unsetMeterProvider)
	})
	before := telemetry.statements(t)
	run()

	telemetry.only(t, spanForward)
	after := telemetry.statements(t)
	if n := after["primary write"] - before["primary write"]; n != 1 {
		t.Errorf("%d writes are counted", n)
	}
	if _, ok := telemetry.lagBytes(t, "ord"); !ok {
		t.Error("the lag is not measured")
	}
}

// The providers of the config go before the global ones.
func TestConfiguredProvidersGoFirst(t *testing.T) {
	cluster := sharedCluster(t)
	general := globalRecording()
	general.spans.Reset()
	otel.SetTracerProvider(general.traces)
	t.Cleanup(func() { otel.SetTracerProvider(unsetTracerProvider) })
	telemetry := record(t)
	pool := poolIn(t, cluster, "ord", telemetry.into)
	if _, err := pool.Exec(WithPrimary(t.Context()), "select 1"); err != nil {
		t.Fatal(err)
	}
	telemetry.only(t, spanForward)
	if n := general.started(spanForward); n != 0 {
		t.Errorf("%d spans went to the global provider", n)
	}
}

// watchedMeters are meters of which one instrument fails, and which count the callbacks that are registered.
type watchedMeters struct {
	metric.MeterProvider
	fails     string
	callbacks *atomic.Int64
}

type watchedMeter struct {
	metric.Meter
	watchedMeters
}

type watchedRegistration struct {
	metric.Registration
	watchedMeters
}

var errNoInstrument = errors.New("no such instrument")

func (m watchedMeters) Meter(name string, options ...metric.MeterOption) metric.Meter {
	return watchedMeter{m.MeterProvider.Meter(name, options...), m}
}

func (m watchedMeter) Float64Histogram(name string, options ...metric.Float64HistogramOption) (metric.Float64Histogram, error) {
	if m.fails == "histogram" {
		return nil, errNoInstrument
	}
	return m.Meter.Float64Histogram(name, options...)
}

func (m watchedMeter) RegisterCallback(f metric.Callback, instruments ...metric.Observable) (metric.Registration, error) {
	if m.fails == "callback" {
		return nil, errNoInstrument
	}
	m.callbacks.Add(1)
	registration, err := m.Meter.RegisterCallback(f, instruments...)
	return watchedRegistration{registration, m.watchedMeters}, err
}

func (r watchedRegistration) Unregister() error {
	r.callbacks.Add(-1)
	return r.Registration.Unregister()
}

// A provider outlives the pools that it is told of.
func TestCloseEndsTheGauges(t *testing.T) {
	var callbacks atomic.Int64
	pool := poolIn(t, sharedCluster(t), "ord", func(c *Config) {
		c.Telemetry.MeterProvider = watchedMeters{record(t).meters, "", &callbacks}
	})
	if n := callbacks.Load(); n != 1 {
		t.Errorf("the pool has %d callbacks", n)
	}
	pool.Close()
	if n := callbacks.Load(); n != 0 {
		t.Errorf("the closed pool has %d callbacks", n)
	}
}

func TestMeterProviderThatFails(t *testing.T) {
	defer func() {
		if problem := recover(); problem != nil {
			t.Fatalf("it panicked: %v", problem)
		}
	}()
	cluster := sharedCluster(t)
	running := goleak.IgnoreCurrent()
	for _, fails := range []string{"histogram", "callback"} {
		config := configIn(t, cluster, "ord")
		config.Telemetry.MeterProvider = watchedMeters{record(t).meters, fails, new(atomic.Int64)}
		if pool, err := NewPoolWithConfig(t.Context(), config); !errors.Is(err, errNoInstrument) || pool != nil {
			t.Errorf("without its %s the pool is %v, the error %v", fails, pool, err)
		}
	}
	if err := goleak.Find(running); err != nil {
		t.Error(err)
	}
}

// A provider may be of any type, also one whose values cannot be compared.
func TestProviderThatCannotBeCompared(t *testing.T) {
	defer func() {
		if problem := recover(); problem != nil {
			t.Fatalf("it panicked: %v", problem)
		}
	}()
	telemetry := record(t)
	pool := poolIn(t, sharedCluster(t), "ord", func(c *Config) {
		c.Telemetry.TracerProvider = struct {
			countingProvider
			_ []int
		}{countingProvider: telemetry.traces.(countingProvider)}
	})
	for range 2 {
		if _, err := pool.Exec(WithPrimary(t.Context()), "select 1"); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(telemetry.named(spanForward)); n != 2 {
		t.Errorf("%d spans are recorded", n)
	}
}

func TestNoProviderCostsNothing(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int")
	asked := lagQuestions(t, cluster.Server("ord"))
	pool := poolIn(t, cluster, "ord")
	ctx := t.Context()

	for what, f := range map[string]func(){
		"sent": func() { pool.telemetry.sent(ctx, targetReplica, becauseRead, 7) },
		"forward": func() {
			forwarded, span := pool.telemetry.forward(ctx, "exec", becauseWrite, "", errFailed)
			if forwarded != ctx {
				t.Fatal("something is recorded")
			}
			span.end(errFailed)
		},
		"startWait": func() {
			pool.telemetry.startWait(ctx, "ord", 7).end(ctx, 5, waitFellBack)
		},
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s allocates %v times", what, n)
		}
	}

	for range 3 {
		if _, err := pool.Exec(ctx, "insert into "+name+" values (1)"); err != nil {
			t.Fatal(err)
		}
		if _, err := pool.Exec(ctx, "select count(*) from "+name); err != nil {
			t.Fatal(err)
		}
	}
	if err := pool.WaitReplayed(ctx); err != nil {
		t.Fatal(err)
	}
	if n := lagQuestions(t, cluster.Server("ord")) - asked; n != 0 {
		t.Errorf("the lag was asked for %d times", n)
	}
}

// TestLagOfEachReplica reads the gauges of two replicas in a region. One of them stands still.
func TestLagOfEachReplica(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	telemetry := record(t)
	pool := poolIn(t, cluster, "ord", namesFor(cluster, "ord", "syd").into, telemetry.into)
	readOn(t, cluster, pool, "ord", "syd")
	freeze(t, cluster)
	noError(t, cluster.Leader().Exec(t.Context(), insertText(name, 1)))
	noError(t, cluster.Server("syd").WaitReplayed(t.Context()))

	gauge, _ := telemetry.metric(t, metricLagBytes).(metricdata.Gauge[int64])
	behind := map[string]bool{}
	for _, point := range gauge.DataPoints {
		if region, port := attrIn(point.Attributes, attrRegion), attrIn(point.Attributes, "server.port"); region != "ord" || port != "5433" {
			t.Errorf("a replica in %s at port %s", region, port)
		}
		behind[attrIn(point.Attributes, "server.address")] = point.Value > 0
	}
	ord, syd := cluster.Server("ord").IP(), cluster.Server("syd").IP()
	if len(behind) != 2 || !behind[ord] || behind[syd] {
		t.Errorf("behind are %v, want only %s of %s", behind, ord, syd)
	}
}
