package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/flyregion/flyregion/internal/pgcluster"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

const primaryRegion = "nrt"

var replicaRegions = []string{"ord", "syd"}

// laggingRegion is where replay is paused.
const laggingRegion = "ord"

// The round trips between the regions. Those to nrt make queries take what a public benchmark measured from Tokyo: 1.72,
// 138.27 and 154.09 ms to nrt, ord and syd. Within each region a query takes what it took in nrt, of which the server
// and this machine need a part themselves.
const (
	withinRegion = 1500 * time.Microsecond
	nrtToOrd     = 138 * time.Millisecond
	nrtToSyd     = 154 * time.Millisecond
	ordToSyd     = 195 * time.Millisecond
)

// demo runs the demonstration.
func demo(ctx context.Context, stdout, stderr io.Writer) (err error) {
	began := time.Now()
	tracing, err := startTracing(ctx)
	if err != nil {
		return err
	}
	d := &demonstration{page: newPage(stdout), progress: newProgress(stderr), recorder: &tracing.recorder}

	err = d.run(ctx)
	d.progress.clear()
	if stopErr := d.stop(); stopErr != nil {
		err = errors.Join(err, &cleanupError{stopErr})
	}
	if err == nil {
		d.summary(time.Since(began))
	}

	exported, exportErr := tracing.stop()
	switch {
	case exportErr != nil:
		fmt.Fprintln(stderr, wrap(fmt.Sprintf("flyregion: could not export the spans to %s: %v", exportEndpoint(), exportErr), widthOf(stderr)))
	case exported > 0:
		d.page.text(plain, fmt.Sprintf("%d spans were exported to %s, as those of service %s.", exported, exportEndpoint(), serviceName))
	}
	return err
}

// cleanupError says that something was left behind.
type cleanupError struct{ error }

func (e *cleanupError) Unwrap() error { return e.error }

func isCleanupError(err error) bool {
	var cleanup *cleanupError
	return errors.As(err, &cleanup)
}

// demonstration is what runs and what it has found.
type demonstration struct {
	page     *page
	progress *progress
	recorder *recorder

	cluster     *pgcluster.Cluster
	apps        []*app
	comparisons []comparison
}

func (d *demonstration) run(ctx context.Context) error {
	if err := d.start(ctx); err != nil {
		return err
	}
	d.introduce()
	for _, section := range []func(context.Context) error{d.compareReads, d.readOwnWrites, d.pauseReplay} {
		if err := section(ctx); err != nil {
			return err
		}
	}
	return nil
}

// start starts the servers and the apps.
func (d *demonstration) start(ctx context.Context) (err error) {
	d.cluster, err = pgcluster.Start(ctx, pgcluster.Config{
		Primary:  primaryRegion,
		Replicas: replicaRegions,
		Progress: d.progress.step,
		Received: d.progress.received,
	})
	if err != nil {
		return err
	}
	if err := d.cluster.Leader().Exec(ctx, createSQL); err != nil {
		return err
	}
	for _, s := range d.cluster.Servers() {
		// The apps are not to find a replica that has not heard of the table.
		if err := s.WaitReplayed(ctx); err != nil {
			return err
		}
	}

	regions := append([]string{primaryRegion}, replicaRegions...)
	for _, region := range regions {
		d.cluster.SetLatency(region, region, withinRegion)
	}
	d.cluster.SetLatency("nrt", "ord", nrtToOrd)
	d.cluster.SetLatency("nrt", "syd", nrtToSyd)
	d.cluster.SetLatency("ord", "syd", ordToSyd)

	for _, region := range regions {
		a, err := openApp(ctx, d.cluster, region)
		if err != nil {
			return err
		}
		d.apps = append(d.apps, a)
	}
	d.progress.step("warming up the apps: connections, prepared statements")
	return each(d.apps, func(_ int, a *app) error { return a.warmUp(ctx) })
}

// stop ends what start has started. The servers go first: whatever becomes of the apps, no server stays.
func (d *demonstration) stop() (err error) {
	if d.cluster != nil {
		err = d.cluster.Stop()
	}
	for _, a := range d.apps {
		a.close()
	}
	return err
}

func (d *demonstration) introduce() {
	d.progress.clear()
	d.page.wrapped("", bold, "flyregion demo: a primary in nrt, replicas in ord and syd, an app in each")
	d.page.line()
	d.page.text(plain, `The servers are real PostgreSQL, on this machine. The network between them has the latencies that a public `+
		`benchmark measured from Tokyo: 1.72 ms per query to nrt, 138.27 ms to ord, 154.09 ms to syd. Each app opens its `+
		`database as an app on Fly would,`)
	d.page.line()
	for _, line := range d.page.code() {
		d.page.line(d.page.paint(green, line))
	}
	d.page.line()
	d.page.text(plain, `and knows nothing of regions: FLY_REGION and PRIMARY_REGION say where it runs and where the primary is.`)
}

// code returns the code that opens an app's pool.
func (p *page) code() []string {
	line := `      pool, err := flyregion.NewPool(ctx, os.Getenv("DATABASE_URL"))`
	if utf8.RuneCountInString(line) < p.width {
		return []string{line}
	}
	return []string{`  pool, err := flyregion.NewPool(ctx,`, `      os.Getenv("DATABASE_URL"))`}
}

// compareReads is the first section.
func (d *demonstration) compareReads(ctx context.Context) error {
	d.progress.step("measuring reads in three regions")
	d.comparisons = make([]comparison, len(d.apps))
	err := each(d.apps, func(i int, a *app) (err error) {
		d.comparisons[i], err = a.compare(ctx)
		return err
	})
	if err != nil {
		return err
	}

	d.progress.clear()
	d.page.heading("1. The same read in each region", fmt.Sprintf("median of %d, connections warm", repetitions))
	d.page.comparisons(d.comparisons)
	d.page.line()
	d.page.text(dim, `Port 5432 leads to the primary, 5433 to the region's own server. In the primary's region a flyregion pool `+
		`is one plain pgxpool, and costs the same.`)
	return nil
}

// readOwnWrites is the second section.
func (d *demonstration) readOwnWrites(ctx context.Context) error {
	d.page.heading("2. A write, and at once a read of it", "after one that is not shown")
	for i, a := range d.apps {
		if i > 0 {
			d.page.line()
		}
		// A connection that was idle for a second is tried out before it is used, which a busy app does not see.
		if _, err := a.writeThenRead(ctx); err != nil {
			return err
		}
		id, _, err := d.traced(ctx, a)
		if err != nil {
			return err
		}
		d.page.text(green, fmt.Sprintf("The read returned message %d: the app in %s saw its own write.", id, a.region))
	}
	d.page.line()
	d.page.text(dim, `The log travels to the replica while the answer travels to the app: when the app reads there is little left `+
		`to wait for.`)
	return nil
}

// traced writes and reads in an app and draws what happened.
func (d *demonstration) traced(ctx context.Context, a *app) (id int64, spans []sdktrace.ReadOnlySpan, err error) {
	ctx, span := a.span(ctx, "write, then read")
	id, err = a.writeThenRead(ctx)
	span.End()
	if err != nil {
		return 0, nil, err
	}
	spans = d.recorder.spans(span.SpanContext().TraceID())
	d.page.waterfall(bars(spans))
	return id, spans, nil
}

// pauseReplay is the third section.
func (d *demonstration) pauseReplay(ctx context.Context) error {
	a, server := d.appIn(laggingRegion), d.cluster.Server(laggingRegion)
	if _, err := a.writeThenRead(ctx); err != nil {
		return err
	}
	if err := server.PauseReplay(ctx); err != nil {
		return err
	}
	d.page.heading("3. The same while replay is paused in "+laggingRegion, "")
	id, spans, err := d.traced(ctx, a)
	if err != nil {
		return err
	}
	d.explainWait(spans)
	d.page.text(green, fmt.Sprintf("The read returned message %d: the app in %s saw its own write.", id, a.region))

	if err := server.ResumeReplay(ctx); err != nil {
		return err
	}
	if err := a.pool.WaitReplayed(ctx); err != nil {
		return err
	}
	d.page.line()
	d.page.text(plain, "Replay is resumed, and the next read of the message is local again:")
	d.page.line()
	ctx, span := a.span(ctx, "read")
	err = a.find(ctx, id, "written in "+a.region)
	span.End()
	if err != nil {
		return err
	}
	d.page.waterfall(bars(d.recorder.spans(span.SpanContext().TraceID())))
	return nil
}

// explainWait says in words what the replica lacked.
func (d *demonstration) explainWait(spans []sdktrace.ReadOnlySpan) {
	for _, s := range spans {
		if s.Name() != spanReplicaWait {
			continue
		}
		d.page.text(plain, fmt.Sprintf("The replica had replayed the log up to %s and the read needed %s, %s bytes more. "+
			"The read waited for it no longer than a round trip to the primary takes, and then went there.",
			attributeOf(s, "flyregion.lsn.found"), attributeOf(s, "flyregion.lsn.required"), attributeOf(s, "flyregion.lag.bytes")))
	}
}

func (d *demonstration) appIn(region string) *app {
	for _, a := range d.apps {
		if a.region == region {
			return a
		}
	}
	return nil
}

// summary ends the demonstration.
func (d *demonstration) summary(took time.Duration) {
	var faster []string
	for _, c := range d.comparisons {
		if c.region != primaryRegion {
			faster = append(faster, times(c.ratio())+" faster in "+c.region)
		}
	}
	d.page.line()
	d.page.wrapped("", bold, "Reads were "+strings.Join(faster, " and ")+". None missed a write.")
	d.page.line()
	facts := []definition{
		{"took", fmt.Sprintf("%.1f s", took.Seconds())},
		{"the package", "go doc github.com/flyregion/flyregion"},
	}
	if exportEndpoint() == "" {
		export := definition{"these spans", "OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318 flyregion demo"}
		if utf8.RuneCountInString(export.text) > d.page.width-16 {
			export.text = "OTEL_EXPORTER_OTLP_ENDPOINT exports them: see flyregion help demo"
		}
		facts = append(facts, export)
	}
	d.page.definitions(2, facts...)
}
