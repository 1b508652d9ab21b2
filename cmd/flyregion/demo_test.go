package main

import (
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"

	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

func TestDemo(t *testing.T) {
	// What the demo runs in is not the region of whoever runs it.
	for _, name := range []string{"FLY_REGION", "MY_REGION", "PRIMARY_REGION"} {
		t.Setenv(name, "not a region")
	}
	t.Setenv("OTEL_TRACES_SAMPLER", "always_off")
	var posts, bytes atomic.Int64
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/traces" {
			posts.Add(1)
			bytes.Add(r.ContentLength)
		}
	}))
	defer collector.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.URL)

	code, stdout, stderr := runHere(t, "demo")
	if code != exitOK {
		t.Fatalf("exit code %d\n%s\n%s", code, stdout, stderr)
	}
	t.Logf("\n%s", stdout)
	fits(t, defaultWidth, stdout)
	fits(t, defaultWidth, stderr)

	// What must be there, in this order.
	rest := stdout
	for _, pattern := range []string{
		`flyregion\.NewPool\(ctx, os\.Getenv\("DATABASE_URL"\)\)`,
		`(?m)^1\. `,
		`(?m)^  nrt +[0-9.]+ ms +[0-9.]+ ms +[0-9.]+x   nrt:5432$`,
		`(?m)^  ord +[0-9.]+ ms +[0-9.]+ ms +[0-9.]+x   .*ord`,
		`(?m)^  syd +[0-9.]+ ms +[0-9.]+ ms +[0-9.]+x   .*syd`,
		`(?m)^2\. `,
		`write, then read +app in nrt`, `INSERT +nrt:5432`, `SELECT +nrt:5432`, `the app in nrt saw its own write`,
		`write, then read +app in ord`, `flyregion\.forward +write`, `INSERT +nrt:5432`, `SELECT`, `the app in ord saw its own write`,
		`write, then read +app in syd`, `flyregion\.forward +write`, `INSERT +nrt:5432`, `SELECT`, `the app in syd saw its own write`,
		`(?m)^3\. `,
		`flyregion\.forward +write`, `INSERT +nrt:5432`,
		`flyregion\.replica_wait +fell_back`,
		`flyregion\.forward +replica_lag`, `SELECT +nrt:5432`,
		`(?s)had\s+replayed.*bytes\s+more`,
		`the app in ord saw its own write`,
		`resumed`, `read +app in ord`, `SELECT`,
		`[0-9]x faster in ord and [0-9.]+x faster in syd\. None missed a write\.`,
		`[0-9]+ spans\s+were\s+exported`,
	} {
		at := regexp.MustCompile(pattern).FindStringIndex(rest)
		if at == nil {
			t.Fatalf("%s is not in\n%s", pattern, rest)
		}
		rest = rest[at[1]:]
	}
	if strings.Contains(stdout, "\x1b") || strings.Contains(stderr, "\x1b") || strings.Contains(stderr, "\r") {
		t.Error("there are control characters and no terminal")
	}
	if strings.Count(stderr, "\n") < 4 {
		t.Errorf("hardly any progress: %q", stderr)
	}
	if posts.Load() == 0 || bytes.Load() == 0 {
		t.Error("no spans were exported")
	}
}

func TestTracingStopsWithoutCollector(t *testing.T) {
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody.Close()
	client, err := otlptracehttp.New(t.Context(), otlptracehttp.WithEndpointURL("http://"+nobody.Addr().String()))
	if err != nil {
		t.Fatal(err)
	}
	exporter := &countingExporter{SpanExporter: client}
	tr := &tracing{provider: sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter)), exporter: exporter}
	_, span := tr.provider.Tracer("test").Start(t.Context(), "lost")
	span.End()

	exported, err := tr.stop()
	if exported != 0 || err == nil {
		t.Errorf("%d spans exported, error %v", exported, err)
	}
}
