package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// waterfallLayout is how wide the columns of a waterfall are: the spans' names, what is worth knowing of each, when it
// ran, and how long. There are blanks between them.
type waterfallLayout struct {
	name, note, bar, time int
	indent                int    // of a span below its parent
	prefix                string // is left out of names
}

// layoutOf returns the layout for a page. Bars take what the rest leaves.
func layoutOf(width int) waterfallLayout {
	wide := waterfallLayout{name: 26, note: 13, time: 10, indent: 2}
	narrow := waterfallLayout{name: 18, note: 11, time: 9, indent: 1, prefix: "flyregion."}
	for _, l := range []waterfallLayout{wide, narrow} {
		const enough = 12
		if l.bar = width - 1 - l.name - l.note - l.time - 3; l.bar >= enough {
			return l
		}
	}
	// The servers, which are the notes worth most, become part of the names.
	narrow.name, narrow.note = 19, 0
	narrow.bar = width - 1 - narrow.name - narrow.time - 2
	return narrow
}

// bar is one line of a waterfall.
type bar struct {
	name       string
	note       string
	server     bool // the note names a server
	depth      int
	start, end time.Duration // since the first span began
	c          colour
}

// bars arranges the spans of one trace: each under its parent, in the order in which they began.
func bars(spans []sdktrace.ReadOnlySpan) []bar {
	spans = slices.Clone(spans)
	slices.SortStableFunc(spans, func(a, b sdktrace.ReadOnlySpan) int {
		return a.StartTime().Compare(b.StartTime())
	})
	inside := map[trace.SpanID]bool{}
	for _, s := range spans {
		inside[s.SpanContext().SpanID()] = true
	}
	children := map[trace.SpanID][]sdktrace.ReadOnlySpan{}
	for _, s := range spans {
		parent := s.Parent().SpanID()
		if !inside[parent] {
			parent = trace.SpanID{}
		}
		children[parent] = append(children[parent], s)
	}

	var all []bar
	var descend func(parent trace.SpanID, depth int)
	descend = func(parent trace.SpanID, depth int) {
		for _, s := range children[parent] {
			all = append(all, bar{
				name:   s.Name(),
				note:   noteOf(s),
				server: attributeOf(s, attrServer) != "",
				depth:  depth,
				start:  s.StartTime().Sub(spans[0].StartTime()),
				end:    s.EndTime().Sub(spans[0].StartTime()),
				c:      colourOf(s),
			})
			descend(s.SpanContext().SpanID(), depth+1)
		}
	}
	descend(trace.SpanID{}, 0)
	return all
}

// noteOf returns the attribute that tells most about a span.
func noteOf(s sdktrace.ReadOnlySpan) string {
	if server := attributeOf(s, attrServer); server != "" {
		return server
	}
	return cmp.Or(attributeOf(s, "flyregion.outcome"), attributeOf(s, "flyregion.reason"), attributeOf(s, attrApp))
}

func colourOf(s sdktrace.ReadOnlySpan) colour {
	switch {
	case s.Name() == spanForward:
		return yellow
	case s.Name() == spanReplicaWait:
		return magenta
	case s.SpanKind() == trace.SpanKindClient:
		return cyan
	default:
		return plain
	}
}

// waterfall prints bars over an axis of time.
func (p *page) waterfall(all []bar) {
	total := time.Duration(1)
	for _, b := range all {
		total = max(total, b.end)
	}

	l := layoutOf(p.width)
	end := millis(total)
	axis := align(end, l.bar, true)
	if from, ok := strings.CutPrefix(axis, "  "); ok {
		axis = "0 " + from
	}
	title := []string{margin, align("span", l.name-len(margin), false), " "}
	if l.note > 0 {
		title = append(title, strings.Repeat(" ", l.note+1))
	}
	p.line(p.paint(dim, strings.Join(append(title, axis), "")))
	for _, b := range all {
		name := strings.Repeat(" ", len(margin)+l.indent*b.depth) + strings.TrimPrefix(b.name, l.prefix)
		note := ""
		switch {
		case l.note > 0:
			note = p.paint(dim, align(clip(b.note, l.note), l.note, false)) + " "
		case b.server:
			name += " " + b.note
		}
		p.line(p.paint(b.c, align(clip(name, l.name), l.name, false)), " ", note,
			p.paint(b.c, strip(b.start, b.end, total, l.bar)), " ", align(millis(b.end-b.start), l.time, true))
	}
}

// strip draws the time from start to end as a part of total, in width cells. It is never empty.
func strip(start, end, total time.Duration, width int) string {
	// Blocks fill a cell from the left in eighths, but from the right only by half or by an eighth.
	const eighths = 8
	cells := int64(width * eighths)
	scale := func(d time.Duration) int64 { return (int64(d)*cells + int64(total)/2) / int64(total) }
	from := min(scale(start), cells-1)
	to := max(scale(end), from+1)

	var b strings.Builder
	for i := range int64(width) {
		lo := min(max(from-i*eighths, 0), eighths)
		hi := min(max(to-i*eighths, 0), eighths)
		b.WriteRune(block(int(lo), int(hi)))
	}
	return b.String()
}

// block returns the character that comes nearest to a cell which is filled from lo to hi eighths.
func block(lo, hi int) rune {
	const left = " ▏▎▍▌▋▊▉█"
	switch {
	case hi <= lo:
		return ' '
	case lo == 0:
		return []rune(left)[hi]
	case hi-lo >= 6:
		return '█'
	case hi-lo <= 2 && lo+hi >= 8:
		return '▕'
	case hi-lo <= 2:
		return '▏'
	case lo+hi >= 8:
		return '▐'
	default:
		return '▌'
	}
}

func millis(d time.Duration) string {
	return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond))
}
