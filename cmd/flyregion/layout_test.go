package main

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
)

// lagging are the spans of a read that went to the primary because its replica lagged.
func lagging() []sdktrace.ReadOnlySpan {
	const client = trace.SpanKindClient
	return []sdktrace.ReadOnlySpan{
		// In the order in which they end, as a recorder has them.
		fixedSpan(3, 2, "INSERT", client, 20, 138_220, attribute.String(attrServer, "nrt:5432")),
		fixedSpan(2, 1, spanForward, client, 10, 138_230, attribute.String("flyregion.reason", "write")),
		fixedSpan(4, 1, spanReplicaWait, trace.SpanKindInternal, 138_300, 276_500, attribute.String("flyregion.outcome", "fell_back")),
		fixedSpan(6, 5, "SELECT", client, 276_520, 414_720, attribute.String(attrServer, "nrt:5432")),
		fixedSpan(5, 1, spanForward, client, 276_510, 414_730, attribute.String("flyregion.reason", "replica_lag")),
		fixedSpan(1, 0, "write, then read", trace.SpanKindInternal, 0, 414_740, attribute.String(attrApp, "app in ord")),
	}
}

// fixedSpan is a span of one trace, with times in microseconds.
func fixedSpan(id, parent byte, name string, kind trace.SpanKind, start, end int, attributes ...attribute.KeyValue) sdktrace.ReadOnlySpan {
	began := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	of := func(id byte) trace.SpanContext {
		config := trace.SpanContextConfig{TraceID: trace.TraceID{1}}
		if id != 0 {
			config.SpanID = trace.SpanID{id}
		}
		return trace.NewSpanContext(config)
	}
	return tracetest.SpanStub{
		Name:        name,
		SpanKind:    kind,
		SpanContext: of(id),
		Parent:      of(parent),
		StartTime:   began.Add(time.Duration(start) * time.Microsecond),
		EndTime:     began.Add(time.Duration(end) * time.Microsecond),
		Attributes:  attributes,
	}.Snapshot()
}

func TestWaterfall(t *testing.T) {
	want := `
  span                                   0                 414.74 ms
  write, then read         app in ord    ███████████████████████████  414.74 ms
    flyregion.forward      write         █████████                    138.22 ms
      INSERT               nrt:5432      █████████                    138.20 ms
    flyregion.replica_wait fell_back              █████████           138.20 ms
    flyregion.forward      replica_lag                     █████████  138.22 ms
      SELECT               nrt:5432                        █████████  138.20 ms
`
	var got bytes.Buffer
	pageOf(&got, defaultWidth).waterfall(bars(lagging()))
	equal(t, got.String(), want[1:])
}

func TestWaterfallClips(t *testing.T) {
	want := `
  span                                   0                1234.56 ms
  a name that is longer t… a note that … ▏                              1.00 ms
  later                                                            ▕    0.00 ms
  last                                                             ▕    1.00 ms
`
	ms := time.Millisecond
	var got bytes.Buffer
	pageOf(&got, defaultWidth).waterfall([]bar{
		{name: "a name that is longer than its column", note: "a note that is, too", end: ms},
		{name: "later", start: 1234560 * time.Microsecond, end: 1234560 * time.Microsecond},
		{name: "last", start: 1233560 * time.Microsecond, end: 1234560 * time.Microsecond},
	})
	equal(t, got.String(), want[1:])
}

// Narrow pages have shorter names, and of the notes only those that name servers. Wide pages have longer bars.
func TestWaterfallFits(t *testing.T) {
	for _, tt := range []struct {
		width int
		want  string
	}{
		{100, `
  span                                   0                                     414.74 ms
  write, then read         app in ord    ███████████████████████████████████████████████  414.74 ms
    flyregion.forward      write         ███████████████▋                                 138.22 ms
      INSERT               nrt:5432      ███████████████▋                                 138.20 ms
    flyregion.replica_wait fell_back                    ▐███████████████▍                 138.20 ms
    flyregion.forward      replica_lag                                  ▐███████████████  138.22 ms
      SELECT               nrt:5432                                     ▐███████████████  138.20 ms
`},
		{60, `
  span                         0        414.74 ms
  write, then read app in ord  ██████████████████ 414.74 ms
   forward         write       ██████             138.22 ms
    INSERT         nrt:5432    ██████             138.20 ms
   replica_wait    fell_back         ██████       138.20 ms
   forward         replica_lag             ██████ 138.22 ms
    SELECT         nrt:5432                ██████ 138.20 ms
`},
		{40, `
  span              414.74 ms
  write, then read  █████████ 414.74 ms
   forward          ███       138.22 ms
    INSERT nrt:5432 ███       138.20 ms
   replica_wait        ███    138.20 ms
   forward                ███ 138.22 ms
    SELECT nrt:5432       ███ 138.20 ms
`},
	} {
		var got bytes.Buffer
		pageOf(&got, tt.width).waterfall(bars(lagging()))
		equalIn(t, tt.width, got.String(), tt.want[1:])
	}
}

func TestWaterfallInColour(t *testing.T) {
	var got bytes.Buffer
	p := &page{w: &got, width: defaultWidth, coloured: true}
	p.waterfall([]bar{{name: spanForward, note: "write", end: time.Millisecond, c: yellow}})
	lines := strings.Split(got.String(), "\n")
	want := "\x1b[33m  flyregion.forward       \x1b[0m \x1b[2mwrite        \x1b[0m \x1b[33m" +
		strings.Repeat("█", 27) + "\x1b[0m    1.00 ms"
	if lines[1] != want {
		t.Errorf("got  %q\nwant %q", lines[1], want)
	}
}

func TestStrip(t *testing.T) {
	for _, tt := range []struct {
		start, end time.Duration
		want       string
	}{
		{0, 80, "██████████"},
		{0, 0, "▏         "},
		{0, 1, "▏         "},
		{0, 12, "█▌        "},
		{8, 16, " █        "},
		{12, 24, " ▐█       "},
		{9, 24, " ██       "},
		{15, 24, " ▕█       "},
		{9, 13, " ▌        "},
		{11, 15, " ▐        "},
		{79, 80, "         ▕"},
		{80, 80, "         ▕"},
	} {
		if got := strip(tt.start, tt.end, 80, 10); got != tt.want {
			t.Errorf("strip(%d, %d) = %q, want %q", tt.start, tt.end, got, tt.want)
		}
	}
}

func TestComparisons(t *testing.T) {
	want := `
  app in   all to the primary   through flyregion    ratio   answered by
  nrt                 1.72 ms             1.72 ms     1.0x   nrt:5432
  ord               138.27 ms             1.70 ms    81.3x   ord:5433
  syd               154.09 ms             1.54 ms   100.1x   14 ord, 1 syd
`
	var got bytes.Buffer
	pageOf(&got, defaultWidth).comparisons([]comparison{
		{"nrt", 1720 * time.Microsecond, 1720 * time.Microsecond, map[string]int{"nrt:5432": 15}},
		{"ord", 138270 * time.Microsecond, 1700 * time.Microsecond, map[string]int{"ord:5433": 15}},
		{"syd", 154090 * time.Microsecond, 1540 * time.Microsecond, map[string]int{"syd:5433": 1, "ord:5433": 14}},
	})
	equal(t, got.String(), want[1:])
}

// What stands before and after the sections fits too.
func TestDemoFits(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "")
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "")
	for _, width := range []int{minWidth, 60, defaultWidth, maxWidth} {
		var got bytes.Buffer
		d := &demonstration{page: pageOf(&got, width), progress: newProgress(io.Discard)}
		for _, region := range replicaRegions {
			d.comparisons = append(d.comparisons, comparison{region: region, central: 154 * time.Millisecond, through: 1540 * time.Microsecond})
		}
		d.introduce()
		d.summary(7 * time.Second)
		fits(t, width, got.String())
		text := strings.Join(strings.Fields(got.String()), " ")
		for _, want := range []string{
			`pool, err := flyregion.NewPool(ctx, os.Getenv("DATABASE_URL"))`,
			"100.0x faster in ord and 100.0x faster in syd",
			"7.0 s",
			"OTEL_EXPORTER_OTLP_ENDPOINT",
		} {
			if !strings.Contains(text, want) {
				t.Errorf("%d columns: %q is not in\n%s", width, want, got.String())
			}
		}
	}
}

// A narrow table has short titles and no more columns than fit.
func TestComparisonsFit(t *testing.T) {
	for _, tt := range []struct {
		width int
		want  string
	}{
		{60, `
  app in    primary  flyregion   ratio  answered by
  nrt       1.72 ms    1.72 ms    1.0x  nrt:5432
  syd     154.09 ms    1.54 ms  100.1x  14 ord, 1 syd
`},
		{40, `
  app in    primary  flyregion   ratio
  nrt       1.72 ms    1.72 ms    1.0x
  syd     154.09 ms    1.54 ms  100.1x
`},
	} {
		var got bytes.Buffer
		pageOf(&got, tt.width).comparisons([]comparison{
			{"nrt", 1720 * time.Microsecond, 1720 * time.Microsecond, map[string]int{"nrt:5432": 15}},
			{"syd", 154090 * time.Microsecond, 1540 * time.Microsecond, map[string]int{"syd:5433": 1, "ord:5433": 14}},
		})
		equalIn(t, tt.width, got.String(), tt.want[1:])
	}
}

func TestHeading(t *testing.T) {
	for _, tt := range []struct {
		width       int
		title, note string
		want        string
	}{
		{80, "1. Title", "note", "\n1. Title" + strings.Repeat(" ", 67) + "note\n\n"},
		{80, "1. Title", "", "\n1. Title\n\n"},
		{40, "1. Title", "a note that has no room there", "\n1. Title  a note that has no room there\n\n"},
		{40, "1. Title", "a note that has no room there at all", "\n1. Title\n  a note that has no room there at all\n\n"},
		{40, "1. A title that is itself too long for the line", "", "\n1. A title that is itself too long for\nthe line\n\n"},
	} {
		var got bytes.Buffer
		pageOf(&got, tt.width).heading(tt.title, tt.note)
		equalIn(t, tt.width, got.String(), tt.want)
	}
}

func TestDefinitions(t *testing.T) {
	for _, tt := range []struct {
		width int
		want  string
	}{
		{60, `
  a     short
  name  a text that takes more than a line, and so goes on
        below itself
`},
		{20, `
  a
      short
  name
      a text that
      takes more
      than a line,
      and so goes on
      below itself
`},
	} {
		var got bytes.Buffer
		pageOf(&got, tt.width).definitions(2,
			definition{"a", "short"}, definition{"name", "a text that takes more than a line, and so goes on below itself"})
		equalIn(t, tt.width, got.String(), tt.want[1:])
	}
}

func TestWrap(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"", ""},
		{"one two three", "one two\nthree"},
		{"onetwothree four", "onetwothree\nfour"},
		{"a\nb c\n\nd", "a\nb c\n\nd"},
		{"zehn äöüß", "zehn äöüß"},
	} {
		if got := wrap(tt.text, 9); got != tt.want {
			t.Errorf("wrap(%q) = %q, want %q", tt.text, got, tt.want)
		}
	}
}

func TestProgress(t *testing.T) {
	var got bytes.Buffer
	p := &progress{w: &got, width: 40, rewrite: true}
	p.step("a long step")
	p.step("a step")
	p.clear()
	p.clear()
	want := "\r  a long step" + "\r  a step     " + "\r          \r"
	if got.String() != want {
		t.Errorf("got  %q\nwant %q", got.String(), want)
	}

	got.Reset()
	p = newProgress(&got)
	p.step("a step")
	p.clear()
	if want := "  a step\n"; got.String() != want {
		t.Errorf("got  %q\nwant %q", got.String(), want)
	}
}

func TestMedian(t *testing.T) {
	if got := median([]time.Duration{5, 1, 9, 3, 4}); got != 4 {
		t.Errorf("got %d, want 4", got)
	}
	if repetitions%2 == 0 {
		t.Error("a median of an even number is not one of them")
	}
}

// A download is shown where the line can be written over, and in a line of its own nowhere.
func TestProgressOfADownload(t *testing.T) {
	var got bytes.Buffer
	p := &progress{w: &got, width: 60, rewrite: true}
	p.step("downloading PostgreSQL")
	p.received(64<<10, 14_200_000)
	p.received(70<<10, 14_200_000)
	p.received(14_200_000, 14_200_000)
	p.received(5_000_000, -1)
	p.step("unpacking")
	want := "\r  downloading PostgreSQL" + "\r  downloading PostgreSQL: 0.1 of 14.2 MB" + "\r  downloading PostgreSQL: 14.2 of 14.2 MB" +
		"\r  downloading PostgreSQL: 5.0 MB         " + "\r  unpacking                     "
	if got.String() != want {
		t.Errorf("got  %q\nwant %q", got.String(), want)
	}

	got.Reset()
	p = newProgress(&got)
	p.step("downloading PostgreSQL")
	p.received(1<<20, 14_200_000)
	if want := "  downloading PostgreSQL\n"; got.String() != want {
		t.Errorf("got  %q\nwant %q", got.String(), want)
	}
}

// pageOf is a page without colours.
func pageOf(w io.Writer, width int) *page { return &page{w: w, width: width} }

// equal compares text that must fit on a page of the default width.
func equal(t *testing.T, got, want string) {
	t.Helper()
	equalIn(t, defaultWidth, got, want)
}

// equalIn compares text that must fit on a page.
func equalIn(t *testing.T, width int, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%d columns: got\n%s\nwant\n%s", width, got, want)
	}
	fits(t, width, got)
}

func fits(t *testing.T, width int, text string) {
	t.Helper()
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if n := utf8.RuneCountInString(line); n > width {
			t.Errorf("%d columns, where there are %d: %s", n, width, line)
		}
		if strings.TrimRight(line, " ") != line {
			t.Errorf("blanks at the end of %q", line)
		}
	}
}
