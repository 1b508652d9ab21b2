package flyregion

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/flyregion/flyregion/internal/sqltext"
	"time"

	"github.com/flyregion/flyregion/internal/pgcluster"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/embedded"
)

type countingProvider struct {
	embedded.TracerProvider
	inner     trace.TracerProvider
	recording *recording
}

func (p countingProvider) Tracer(name string, options ...trace.TracerOption) trace.Tracer {
	return countingTracer{inner: p.inner.Tracer(name, options...), recording: p.recording}
}

type countingTracer struct {
	embedded.Tracer
	inner     trace.Tracer
	recording *recording
}

func (t countingTracer) Start(ctx context.Context, name string, options ...trace.SpanStartOption) (context.Context, trace.Span) {
	ctx, inner := t.inner.Start(ctx, name, options...)
	span := &countedSpan{Span: inner, name: name, recording: t.recording}
	t.recording.mu.Lock()
	defer t.recording.mu.Unlock()
	t.recording.ends[span] = 0
	return trace.ContextWithSpan(ctx, span), span
}

type countedSpan struct {
	trace.Span
	name      string
	recording *recording
}

func (s *countedSpan) End(options ...trace.SpanEndOption) {
	s.recording.mu.Lock()
	s.recording.ends[s]++
	s.recording.mu.Unlock()
	s.Span.End(options...)
}

// appTracer is an app's own tracer, which makes a span of each query out of the query's context, as otelpgx does.
type appTracer struct{ tracer trace.Tracer }

func (a appTracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	ctx, _ = a.tracer.Start(ctx, "app query", trace.WithAttributes(attribute.String("sql", data.SQL)))
	return ctx
}

func (a appTracer) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryEndData) {
	trace.SpanFromContext(ctx).End()
}

func (a appTracer) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	ctx, _ = a.tracer.Start(ctx, "app batch")
	return ctx
}

func (a appTracer) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}

func (a appTracer) TraceBatchEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchEndData) {
	trace.SpanFromContext(ctx).End()
}

func (a appTracer) TraceCopyFromStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceCopyFromStartData) context.Context {
	ctx, _ = a.tracer.Start(ctx, "app copy")
	return ctx
}

func (a appTracer) TraceCopyFromEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceCopyFromEndData) {
	trace.SpanFromContext(ctx).End()
}

// pauseReplay makes a replica stand still until the test ends or the returned function is called.
func pauseReplay(t testing.TB, server *pgcluster.Server) (resume func()) {
	t.Helper()
	if err := server.PauseReplay(t.Context()); err != nil {
		t.Fatal(err)
	}
	resume = sync.OnceFunc(func() {
		if err := server.ResumeReplay(context.Background()); err != nil {
			t.Error(err)
		}
		if err := server.WaitReplayed(context.Background()); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(resume)
	return resume
}

func TestReplicaWaitSpan(t *testing.T) {
	cluster := sharedCluster(t)
	ord := cluster.Server("ord")
	name := table(t, cluster, "id int")
	insert, count := "insert into "+name+" values (1)", "select count(*) from "+name
	if err := ord.WaitReplayed(t.Context()); err != nil {
		t.Fatal(err)
	}

	for _, test := range []struct {
		outcome waitOutcome
		waits   func(*Config)
		ctx     func(context.Context) context.Context
		// during is called when the read waits.
		during func(resume, cancel func())
		check  func(t *testing.T, err error)
		behind bool
	}{
		{
			outcome: waitReplayed,
			waits:   waits(15*time.Second, 15*time.Second),
			during:  func(resume, _ func()) { resume() },
		},
		{
			outcome: waitFellBack,
			waits:   waits(time.Second, time.Second),
			behind:  true,
		},
		{
			outcome: waitCanceled,
			waits:   waits(15*time.Second, 15*time.Second),
			during:  func(_, cancel func()) { cancel() },
			check: func(t *testing.T, err error) {
				if !errors.Is(err, context.Canceled) {
					t.Errorf("the error is %v", err)
				}
			},
			behind: true,
		},
		{
			outcome: waitRefused,
			waits:   waits(time.Second, time.Second),
			ctx:     WithReplica,
			check: func(t *testing.T, err error) {
				if !errors.Is(err, ErrReplicaLag) {
					t.Errorf("the error is %v", err)
				}
			},
			behind: true,
		},
	} {
		t.Run(string(test.outcome), func(t *testing.T) {
			telemetry := record(t)
			pool := poolIn(t, cluster, "ord", telemetry.into, test.waits)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ctx, parent := telemetry.traces.Tracer("app").Start(ctx, "request")
			defer parent.End()
			if test.ctx != nil {
				ctx = test.ctx(ctx)
			}

			// Nothing was written: there is nothing to wait for.
			var n int
			if err := pool.QueryRow(ctx, count).Scan(&n); err != nil {
				t.Fatal(err)
			}
			resume := pauseReplay(t, ord)
			if err := pool.QueryRow(ctx, count).Scan(&n); err != nil {
				t.Fatal(err)
			}
			if started := telemetry.started(spanReplicaWait); started != 0 {
				t.Fatalf("%d reads waited before anything was written", started)
			}

			if _, err := pool.Exec(WithPrimary(ctx), insert); err != nil {
				t.Fatal(err)
			}
			required := pool.primary.written(&pool.primary.session).position
			// Who wants no wait has none, and neither has a session of its own.
			for _, ctx := range []context.Context{WithoutWait(ctx), WithSession(ctx, &Session{})} {
				if err := pool.QueryRow(ctx, count).Scan(&n); err != nil {
					t.Fatal(err)
				}
			}
			if started := telemetry.started(spanReplicaWait); started != 0 {
				t.Fatalf("%d reads waited that did not have to", started)
			}

			read := make(chan error, 1)
			go func() { read <- pool.QueryRow(ctx, count).Scan(&n) }()
			if test.during != nil {
				eventually(t, "the read waits", func() bool { return telemetry.started(spanReplicaWait) > 0 })
				if ended := telemetry.named(spanReplicaWait); len(ended) > 0 {
					t.Fatal("the wait ended before its time")
				}
				test.during(resume, cancel)
			}
			err := <-read
			if test.check != nil {
				test.check(t, err)
			} else if err != nil {
				t.Fatal(err)
			}

			span := telemetry.only(t, spanReplicaWait)
			if got := attrOf(span, attrOutcome).AsString(); got != string(test.outcome) {
				t.Errorf("the outcome is %q", got)
			}
			if got := attrOf(span, attrRegion).AsString(); got != "ord" {
				t.Errorf("the region is %q", got)
			}
			if got := attrOf(span, attrRequired).AsString(); got != required.String() {
				t.Errorf("the position required is %s, want %s", got, required)
			}
			found, err := ParseLSN(attrOf(span, attrFound).AsString())
			if err != nil {
				t.Error(err)
			}
			if lag := attrOf(span, attrLag).AsInt64(); lag != max(0, int64(required)-int64(found)) || test.behind != (lag > 0) {
				t.Errorf("the replica was found at %s, %d bytes behind %s", found, lag, required)
			}
			// A context may end before the replica has answered.
			if found == 0 && test.outcome != waitCanceled {
				t.Error("the replica was not asked")
			}
			if span.Parent().SpanID() != parent.SpanContext().SpanID() {
				t.Error("the span is not a child of its caller's")
			}
			if !span.EndTime().After(span.StartTime()) {
				t.Error("the span took no time")
			}
			histogram, _ := telemetry.metric(t, metricWait).(metricdata.Histogram[float64])
			if len(histogram.DataPoints) != 1 {
				t.Fatalf("the histogram has %d points", len(histogram.DataPoints))
			}
			point := histogram.DataPoints[0]
			if point.Count != 1 || point.Sum <= 0 ||
				attrIn(point.Attributes, attrRegion) != "ord" || attrIn(point.Attributes, attrOutcome) != string(test.outcome) {
				t.Errorf("the histogram has %d waits of %g s, %v", point.Count, point.Sum, point.Attributes.ToSlice())
			}

			// What was seen once needs no wait again.
			if test.outcome == waitReplayed {
				for range 20 {
					if err := pool.QueryRow(ctx, count).Scan(&n); err != nil {
						t.Fatal(err)
					}
				}
				telemetry.only(t, spanReplicaWait)
			}
		})
	}
}

// Where the replica is simulated there is nothing to replay, and nothing to wait for.
func TestSimulatedReplicaIsNotWaitedFor(t *testing.T) {
	name := table(t, sharedCluster(t), "id int")
	telemetry := record(t)
	pool := simulatedPool(t, uniqueName("simulated"), telemetry.into)
	for range 10 {
		if _, err := pool.Exec(t.Context(), "insert into "+name+" values (1)"); err != nil {
			t.Fatal(err)
		}
		if _, err := pool.Exec(t.Context(), "select count(*) from "+name); err != nil {
			t.Fatal(err)
		}
	}
	if n := telemetry.started(spanReplicaWait); n != 0 {
		t.Errorf("%d reads have waited", n)
	}
	if counts := telemetry.statements(t); counts["replica read"] != 10 {
		t.Errorf("the counts are %v", counts)
	}
}

// valuer is an argument that need not give the same value twice.
type valuer func() (driver.Value, error)

func (v valuer) Value() (driver.Value, error) { return v() }

func TestForwardSpanReasons(t *testing.T) {
	cluster := sharedCluster(t)
	ord := cluster.Server("ord")
	leader := cluster.Leader()
	name := table(t, cluster, "id int")
	define := func(body string) string {
		t.Helper()
		function := uniqueName("f")
		if err := leader.Exec(t.Context(), fmt.Sprintf("create function %s() returns int %s", function, body)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := leader.Exec(context.Background(), "drop function "+function); err != nil {
				t.Error(err)
			}
		})
		return function
	}
	volatile := define("language sql as 'insert into " + name + " values (1) returning id'")
	// The replica is asked for what pretends to read only.
	writes := define("stable language sql as 'select " + volatile + "()'")
	dies := define("stable language sql as 'select (pg_is_in_recovery() and pg_terminate_backend(pg_backend_pid()))::int'")
	lingers := define("stable language plpgsql as 'begin if pg_is_in_recovery() then perform pg_sleep(60); end if; return 0; end'")
	if err := ord.WaitReplayed(t.Context()); err != nil {
		t.Fatal(err)
	}

	exec := func(sql string) func(*testing.T, *Pool) error {
		return func(t *testing.T, p *Pool) error {
			_, err := p.Exec(t.Context(), sql)
			return err
		}
	}
	read := exec("select 1")

	for _, test := range []struct {
		reason    reason
		operation string
		before    func(*testing.T, *Pool) // is not recorded
		run       func(*testing.T, *Pool) error
		replica   string // the reason of a read that was sent to the replica first
		cause     string // is in the message of the replica's error; there is none if it is empty
		code      string // its SQLSTATE
	}{
		{reason: becauseWrite, operation: "exec", run: exec("insert into " + name + " values (1)")},
		{reason: becauseWrite, operation: "query", run: func(t *testing.T, p *Pool) error {
			var id int
			return p.QueryRow(t.Context(), "insert into "+name+" values (1) returning id").Scan(&id)
		}},
		{reason: becauseWrite, operation: "batch", run: func(t *testing.T, p *Pool) error {
			b := &pgx.Batch{}
			b.Queue("select 1")
			b.Queue("insert into " + name + " values (1)")
			return p.SendBatch(t.Context(), b).Close()
		}},
		{reason: becauseWrite, operation: "copy", run: func(t *testing.T, p *Pool) error {
			_, err := p.CopyFrom(t.Context(), pgx.Identifier{name}, []string{"id"}, pgx.CopyFromRows([][]any{{1}}))
			return err
		}},
		{reason: becauseTransaction, operation: "begin", run: func(t *testing.T, p *Pool) error {
			tx, err := p.Begin(t.Context())
			if err != nil {
				return err
			}
			return tx.Commit(t.Context())
		}},
		{reason: becauseAsked, operation: "exec", run: func(t *testing.T, p *Pool) error {
			_, err := p.Exec(WithPrimary(t.Context()), "select 1")
			return err
		}},
		{reason: becauseAsked, operation: "query", run: func(t *testing.T, p *Pool) error {
			var one int
			return p.QueryRow(t.Context(), "/* flyregion:primary */ select 1").Scan(&one)
		}},
		{reason: becauseAsked, operation: "begin", run: func(t *testing.T, p *Pool) error {
			tx, err := p.BeginTx(WithPrimary(t.Context()), pgx.TxOptions{AccessMode: pgx.ReadOnly})
			if err != nil {
				return err
			}
			return tx.Rollback(t.Context())
		}},
		{reason: becauseUnknown, operation: "exec", run: read, cause: "the position of the session's last write is not known", before: func(t *testing.T, p *Pool) {
			conn, err := p.Acquire(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Release()
			if _, err := conn.Conn().PgConn().Exec(t.Context(), "insert into "+name+" values (1)").ReadAll(); err != nil {
				t.Fatal(err)
			}
		}},
		{reason: becauseLag, operation: "exec", run: read, cause: "replica in ord has replayed ", before: func(t *testing.T, p *Pool) {
			pauseReplay(t, ord)
			if _, err := p.Primary().Exec(t.Context(), "insert into "+name+" values (1)"); err != nil {
				t.Fatal(err)
			}
		}},
		{reason: becauseSooner, operation: "exec", run: read, before: func(t *testing.T, p *Pool) {
			pauseReplay(t, ord)
			noError(t, execs(t.Context(), p.Primary(), "insert into "+name+" values (1)"))
			p.primary.minWait = 0
			p.replicas.list()[0].tracker.delay.estimate.Store(int64(time.Hour))
		}},
		{reason: becauseUnreachable, operation: "exec", run: read, cause: "failed to connect to `user=", before: func(t *testing.T, p *Pool) {
			link := cluster.Link("ord", "ord")
			link.Cut()
			t.Cleanup(link.Restore)
		}},
		{reason: becauseWrite, operation: "exec", run: exec("select " + volatile + "()")},
		{reason: becauseRefused, operation: "exec", run: exec("select " + writes + "()"), replica: "read",
			cause: "cannot execute INSERT in a read-only transaction", code: "25006"},
		{reason: becauseRefused, operation: "exec", run: exec("select " + writes + "()"), cause: "a replica has refused a statement of this shape before", before: func(t *testing.T, p *Pool) {
			// From the second time on the replica is not asked.
			p.router.refused.addPermanent(sqltext.Shape("select " + writes + "()"))
		}},
		{reason: becauseConsumable, operation: "exec", run: func(t *testing.T, p *Pool) error {
			_, err := p.Exec(t.Context(), "select $1::text", valuer(func() (driver.Value, error) { return "once", nil }))
			return err
		}},
		{reason: becauseLost, operation: "exec", run: exec("select " + dies + "()"), replica: "read",
			cause: "terminating connection due to administrator command", code: "57P01"},
		{reason: becauseConflict, operation: "query", replica: "read", cause: "conflict with recovery", code: "40001", run: func(t *testing.T, p *Pool) error {
			set := func(sql string) {
				if err := ord.Exec(context.Background(), sql); err != nil {
					t.Error(err)
				}
				if err := ord.Exec(context.Background(), "select pg_reload_conf()"); err != nil {
					t.Error(err)
				}
			}
			set("alter system set max_standby_streaming_delay = 0")
			t.Cleanup(func() { set("alter system reset max_standby_streaming_delay") })

			done := make(chan error, 1)
			go func() {
				var n int
				done <- p.QueryRow(t.Context(), "select count("+lingers+"()) from (select 1 from "+name+" limit 1) as one").Scan(&n)
			}()
			// Replay of the lock does not wait for the query, once it runs.
			for {
				select {
				case err := <-done:
					return err
				default:
				}
				if err := leader.Exec(t.Context(), "begin; lock table "+name+" in access exclusive mode; insert into "+name+" values (1); commit"); err != nil {
					return err
				}
				if err := ord.WaitReplayed(t.Context()); err != nil {
					return err
				}
			}
		}},
		{reason: becauseMissing, operation: "query", replica: "read", cause: "does not exist", code: "42P01", run: func(t *testing.T, p *Pool) error {
			resume := pauseReplay(t, ord)
			missing := uniqueName("t")
			if err := leader.Exec(t.Context(), "create table "+missing+" (id int)"); err != nil {
				return err
			}
			t.Cleanup(func() {
				resume()
				if err := leader.Exec(context.Background(), "drop table "+missing); err != nil {
					t.Error(err)
				}
			})
			var n int
			return p.QueryRow(WithoutWait(t.Context()), "select count(*) from "+missing).Scan(&n)
		}},
	} {
		t.Run(string(test.reason)+"/"+test.operation, func(t *testing.T) {
			telemetry := record(t)
			pool := poolIn(t, cluster, "ord", telemetry.into, waits(time.Millisecond, 500*time.Millisecond))
			if test.reason == becauseConflict {
				if _, err := pool.Exec(t.Context(), "insert into "+name+" values (1)"); err != nil {
					t.Fatal(err)
				}
				if err := pool.WaitReplayed(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if test.before != nil {
				test.before(t, pool)
			}
			telemetry.spans.Reset()
			earlier := telemetry.statements(t)

			if err := test.run(t, pool); err != nil {
				t.Fatal(err)
			}

			span := telemetry.only(t, spanForward)
			for key, want := range map[attribute.Key]string{
				attrReason: string(test.reason), attrOperation: test.operation, attrTarget: "primary", "db.system.name": "postgresql",
			} {
				if got := attrOf(span, key).AsString(); got != want {
					t.Errorf("%s is %q, want %q", key, got, want)
				}
			}
			if span.SpanKind() != trace.SpanKindClient || span.Status().Code != codes.Unset {
				t.Errorf("the span is of kind %v and has status %v", span.SpanKind(), span.Status())
			}
			checkCause(t, span, test.cause, test.code)
			region := ""
			if test.replica != "" || test.reason == becauseLag || test.reason == becauseUnreachable {
				region = "ord"
			}
			if got := attrOf(span, attrRegion).AsString(); got != region {
				t.Errorf("the region is %q, want %q", got, region)
			}

			want := map[string]int64{"primary " + string(test.reason): 1}
			if test.replica != "" {
				want["replica "+test.replica] = 1
			}
			for key, n := range telemetry.statements(t) {
				if n-earlier[key] != want[key] {
					t.Errorf("%d statements are counted for %q, want %d", n-earlier[key], key, want[key])
				}
				delete(want, key)
			}
			if len(want) > 0 {
				t.Errorf("no statement is counted for %v", want)
			}
		})
	}
}

// The app's own query spans are children of ours where there is one, and of the caller's where there is none.
func TestAppSpansNest(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int")
	telemetry := record(t)
	pool := poolIn(t, cluster, "ord", telemetry.into, func(c *Config) {
		c.ConnConfig.Tracer = appTracer{telemetry.traces.Tracer("app")}
	})
	insert := "insert into " + name + " values (1)"

	for _, test := range []struct {
		name, app string
		forwarded bool
		run       func(context.Context) error
	}{
		{"exec", "app query", true, func(ctx context.Context) error {
			_, err := pool.Exec(ctx, insert)
			return err
		}},
		{"query", "app query", true, func(ctx context.Context) error {
			var id int
			return pool.QueryRow(ctx, insert+" returning id").Scan(&id)
		}},
		{"batch", "app batch", true, func(ctx context.Context) error {
			b := &pgx.Batch{}
			b.Queue(insert)
			return pool.SendBatch(ctx, b).Close()
		}},
		{"copy", "app copy", true, func(ctx context.Context) error {
			_, err := pool.CopyFrom(ctx, pgx.Identifier{name}, []string{"id"}, pgx.CopyFromRows([][]any{{1}}))
			return err
		}},
		{"begin", "app query", true, func(ctx context.Context) error {
			tx, err := pool.Begin(ctx)
			if err != nil {
				return err
			}
			return tx.Rollback(t.Context())
		}},
		{"read", "app query", false, func(ctx context.Context) error {
			var one int
			return pool.QueryRow(WithoutWait(ctx), "select 1").Scan(&one)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			telemetry.spans.Reset()
			ctx, request := telemetry.traces.Tracer("app").Start(t.Context(), "request")
			if err := test.run(ctx); err != nil {
				t.Fatal(err)
			}
			request.End()

			parent := request.SpanContext()
			if test.forwarded {
				forward := telemetry.only(t, spanForward)
				if forward.Parent().SpanID() != parent.SpanID() {
					t.Error("our span is not a child of its caller's")
				}
				parent = forward.SpanContext()
			} else if n := telemetry.started(spanForward); n > 0 {
				t.Errorf("%d statements were forwarded", n)
			}
			children := 0
			for _, span := range telemetry.named(test.app) {
				if span.Parent().SpanID() == parent.SpanID() {
					children++
				}
				if sql := attrOf(span, "sql").AsString(); strings.Contains(sql, "pg_current_wal") {
					t.Errorf("the app's tracer sees what is not the app's: %s", sql)
				}
			}
			if children != 1 {
				t.Errorf("%d spans %q are children of theirs, want 1", children, test.app)
			}
		})
	}
}

// Whatever an app does with its results, the span ends, once, and tells the error. That no span ends twice is checked by
// record.
func TestForwardSpanEnds(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key")
	if err := cluster.Leader().Exec(t.Context(), "insert into "+name+" select generate_series(1, 1000)"); err != nil {
		t.Fatal(err)
	}
	all := "select id from " + name + " order by id"
	fails := "select 1/(id-2) from " + name + " order by id" // in the second row
	batch := func(queries ...string) *pgx.Batch {
		b := &pgx.Batch{}
		for _, q := range queries {
			b.Queue(q)
		}
		return b
	}
	query := func(ctx context.Context, p *Pool, sql string) pgx.Rows {
		rows, err := p.Query(ctx, sql)
		if err != nil {
			t.Fatal(err)
		}
		return rows
	}

	for _, test := range []struct {
		name   string
		failed bool
		run    func(ctx context.Context, p *Pool)
	}{
		{"rows read to the end", false, func(ctx context.Context, p *Pool) {
			rows := query(ctx, p, all)
			for rows.Next() {
			}
		}},
		{"rows read to the end and closed twice", false, func(ctx context.Context, p *Pool) {
			rows := query(ctx, p, all)
			for rows.Next() {
			}
			rows.Close()
			rows.Close()
		}},
		{"rows closed before the first", false, func(ctx context.Context, p *Pool) {
			query(ctx, p, all).Close()
		}},
		{"rows closed early", false, func(ctx context.Context, p *Pool) {
			rows := query(ctx, p, all)
			rows.Next()
			rows.Close()
			rows.Next()
		}},
		{"rows collected", false, func(ctx context.Context, p *Pool) {
			got, err := pgx.CollectRows(query(ctx, p, all), pgx.RowTo[int])
			if err != nil || len(got) != 1000 {
				t.Errorf("%d rows, %v", len(got), err)
			}
		}},
		{"values", false, func(ctx context.Context, p *Pool) {
			rows := query(ctx, p, all)
			rows.Next()
			if _, err := rows.Values(); err != nil {
				t.Error(err)
			}
			rows.Close()
		}},
		{"error of Scan", true, func(ctx context.Context, p *Pool) {
			rows := query(ctx, p, all)
			rows.Next()
			var b bool
			if rows.Scan(&b) == nil || rows.Err() == nil {
				t.Error("a number was scanned into a bool")
			}
		}},
		{"error of Scan, then closed", true, func(ctx context.Context, p *Pool) {
			rows := query(ctx, p, all)
			rows.Next()
			var b bool
			if rows.Scan(&b) == nil {
				t.Error("a number was scanned into a bool")
			}
			rows.Close()
		}},
		{"error in a row", true, func(ctx context.Context, p *Pool) {
			rows := query(ctx, p, fails)
			for rows.Next() {
			}
			if rows.Err() == nil {
				t.Error("there is no error")
			}
			rows.Close()
		}},
		{"error of Query", true, func(ctx context.Context, p *Pool) {
			rows, err := p.Query(ctx, "selec")
			if err == nil {
				t.Error("there is no error")
			}
			rows.Close()
		}},
		{"error of Query in the simple protocol", true, func(ctx context.Context, p *Pool) {
			rows, _ := p.Query(ctx, "selec", pgx.QueryExecModeSimpleProtocol)
			rows.Next()
			rows.Close()
		}},
		{"QueryRow", false, func(ctx context.Context, p *Pool) {
			var id int
			if err := p.QueryRow(ctx, all).Scan(&id); err != nil || id != 1 {
				t.Errorf("%d, %v", id, err)
			}
		}},
		{"QueryRow without a row", false, func(ctx context.Context, p *Pool) {
			var id int
			if err := p.QueryRow(ctx, all+" offset 1000").Scan(&id); !errors.Is(err, pgx.ErrNoRows) {
				t.Error(err)
			}
		}},
		{"QueryRow with an error of Scan", true, func(ctx context.Context, p *Pool) {
			var b bool
			if p.QueryRow(ctx, all).Scan(&b) == nil {
				t.Error("there is no error")
			}
		}},
		{"QueryRow with an error", true, func(ctx context.Context, p *Pool) {
			var id int
			if p.QueryRow(ctx, "select 1/0").Scan(&id) == nil {
				t.Error("there is no error")
			}
		}},
		{"QueryRow with a scanner that panics", false, func(ctx context.Context, p *Pool) {
			defer func() { _ = recover() }()
			_ = p.QueryRow(ctx, all).Scan(panicScanner{})
		}},
		{"Exec", false, func(ctx context.Context, p *Pool) {
			if _, err := p.Exec(ctx, all); err != nil {
				t.Error(err)
			}
		}},
		{"Exec with an error", true, func(ctx context.Context, p *Pool) {
			if _, err := p.Exec(ctx, "select 1/0"); err == nil {
				t.Error("there is no error")
			}
		}},
		{"Exec with a context that has ended", true, func(ctx context.Context, p *Pool) {
			ctx, cancel := context.WithCancel(ctx)
			cancel()
			if _, err := p.Exec(ctx, "select 1"); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}},
		{"batch closed at once", false, func(ctx context.Context, p *Pool) {
			if err := p.SendBatch(ctx, batch(all, all)).Close(); err != nil {
				t.Error(err)
			}
		}},
		{"batch closed twice", false, func(ctx context.Context, p *Pool) {
			results := p.SendBatch(ctx, batch(all, all))
			if _, err := results.Exec(); err != nil {
				t.Error(err)
			}
			for range 2 {
				if err := results.Close(); err != nil {
					t.Error(err)
				}
			}
		}},
		{"batch with an error", true, func(ctx context.Context, p *Pool) {
			results := p.SendBatch(ctx, batch("select 1", "select 1/0", all))
			for range 2 {
				if results.Close() == nil {
					t.Error("there is no error")
				}
			}
		}},
		{"batch with a context that has ended", true, func(ctx context.Context, p *Pool) {
			ctx, cancel := context.WithCancel(ctx)
			cancel()
			if p.SendBatch(ctx, batch(all)).Close() == nil {
				t.Error("there is no error")
			}
		}},
		{"transaction", false, func(ctx context.Context, p *Pool) {
			tx, err := p.Begin(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec(ctx, all); err != nil {
				t.Error(err)
			}
			if err := tx.Commit(ctx); err != nil {
				t.Error(err)
			}
			if err := tx.Rollback(ctx); !errors.Is(err, pgx.ErrTxClosed) {
				t.Error(err)
			}
		}},
		{"transaction that cannot begin", true, func(ctx context.Context, p *Pool) {
			if _, err := p.BeginTx(ctx, pgx.TxOptions{BeginQuery: "begin wrongly"}); err == nil {
				t.Error("there is no error")
			}
		}},
		{"copy", false, func(ctx context.Context, p *Pool) {
			if _, err := p.CopyFrom(ctx, pgx.Identifier{name}, []string{"id"}, pgx.CopyFromRows([][]any{{-1}})); err != nil {
				t.Error(err)
			}
			if _, err := p.Primary().Exec(ctx, "delete from "+name+" where id < 0"); err != nil {
				t.Error(err)
			}
		}},
		{"copy with an error", true, func(ctx context.Context, p *Pool) {
			if _, err := p.CopyFrom(ctx, pgx.Identifier{name}, []string{"id"}, pgx.CopyFromRows([][]any{{1}})); err == nil {
				t.Error("there is no error")
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			telemetry := record(t)
			pool := poolIn(t, cluster, "ord", telemetry.into)
			test.run(WithPrimary(t.Context()), pool)

			span := telemetry.only(t, spanForward)
			if failed := span.Status().Code == codes.Error; failed != test.failed {
				t.Errorf("the span's status is %v", span.Status())
			}
			if events := len(span.Events()); test.failed != (events == 1) || events > 1 {
				t.Errorf("the span has %d events", events)
			}
			// The connection went back, too.
			eventually(t, "no connection is in use", func() bool { return pool.Primary().Stat().AcquiredConns() == 0 })
		})
	}
}

type panicScanner struct{}

func (panicScanner) ScanInt64(int64) error { panic("this scanner panics") }
func (panicScanner) Scan(any) error        { panic("this scanner panics") }

var errFailed = &pgconn.PgError{Message: "it failed"}
