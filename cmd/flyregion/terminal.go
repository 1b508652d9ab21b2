package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"
)

// How wide a page is: as its terminal, within limits. Longer lines are hard to read, and shorter ones hold no table.
const (
	defaultWidth = 80 // where there is no terminal
	minWidth     = 40
	maxWidth     = 100
)

// isTerminal reports whether w is a terminal that understands more than lines of text.
func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	if !ok || os.Getenv("TERM") == "dumb" {
		return false
	}
	_, ok = columns(file)
	return ok
}

// widthOf returns the width of the page on w.
func widthOf(w io.Writer) int {
	file, ok := w.(*os.File)
	if !ok {
		return defaultWidth
	}
	n, ok := columns(file)
	if !ok || n == 0 {
		return defaultWidth
	}
	return min(max(n, minWidth), maxWidth)
}

// colour is an SGR parameter; see https://no-color.org for when it is used.
type colour string

const (
	plain   colour = ""
	bold    colour = "1"
	dim     colour = "2"
	red     colour = "31"
	green   colour = "32"
	yellow  colour = "33"
	magenta colour = "35"
	cyan    colour = "36"
)

// page is where the result is printed.
type page struct {
	w        io.Writer
	width    int // no line is longer, unless a single word is
	coloured bool
}

func newPage(w io.Writer) *page {
	return &page{w: w, width: widthOf(w), coloured: isTerminal(w) && os.Getenv("NO_COLOR") == ""}
}

// paint returns text in a colour, where there are colours. Pad text before: colours have a length but no width.
func (p *page) paint(c colour, text string) string {
	if !p.coloured || c == plain || text == "" {
		return text
	}
	return "\x1b[" + string(c) + "m" + text + "\x1b[0m"
}

// line prints one line, without the blanks at its end.
func (p *page) line(parts ...string) {
	fmt.Fprintln(p.w, strings.TrimRight(strings.Join(parts, ""), " "))
}

// heading prints the title of a section, with a note at the right, or below where there is no room.
func (p *page) heading(title, note string) {
	p.line()
	gap := p.width - 1 - utf8.RuneCountInString(title) - utf8.RuneCountInString(note)
	if note != "" && gap > 0 {
		p.line(p.paint(bold, title), strings.Repeat(" ", gap), p.paint(dim, note))
	} else {
		p.wrapped("", bold, title)
		if note != "" {
			p.wrapped(margin, dim, note)
		}
	}
	p.line()
}

// margin is the blank on both sides of a paragraph.
const margin = "  "

// text prints a paragraph, with a margin.
func (p *page) text(c colour, paragraph string) {
	p.wrapped(margin, c, paragraph)
}

// wrapped prints a paragraph in lines that begin and end with a blank.
func (p *page) wrapped(blank string, c colour, paragraph string) {
	for line := range strings.Lines(wrap(paragraph, p.width-2*len(blank))) {
		p.line(blank, p.paint(c, strings.TrimSuffix(line, "\n")))
	}
}

// definition is a name and what it stands for.
type definition struct{ name, text string }

// definitions prints a list of them in two columns or, where there is no room, each text below its name.
func (p *page) definitions(indent int, list ...definition) {
	const gap, least = 2, 30
	left := 0
	for _, d := range list {
		left = max(left, indent+utf8.RuneCountInString(d.name)+gap)
	}
	below := p.width-left < least
	if below {
		left = indent + 4
	}
	for _, d := range list {
		head := strings.Repeat(" ", indent) + d.name
		if below {
			p.line(head)
			head = ""
		}
		for line := range strings.Lines(wrap(d.text, p.width-left)) {
			p.line(align(head, left, false), strings.TrimSuffix(line, "\n"))
			head = ""
		}
	}
}

// progress tells what is being waited for: in one line that is written over again and again, where that is possible.
type progress struct {
	w       io.Writer
	width   int
	rewrite bool
	what    string // the step that is waited for
	written string // the line that is there now
}

func newProgress(w io.Writer) *progress {
	return &progress{w: w, width: widthOf(w), rewrite: isTerminal(w)}
}

// step replaces the line.
func (p *progress) step(what string) {
	p.what = what
	if !p.rewrite {
		fmt.Fprintln(p.w, p.fit(what))
		return
	}
	p.write(what)
}

// received adds to the line how much of a download has come, where the line is written over.
func (p *progress) received(received, total int64) {
	switch {
	case !p.rewrite:
	case total < 0:
		p.write(fmt.Sprintf("%s: %s MB", p.what, megabytes(received)))
	default:
		p.write(fmt.Sprintf("%s: %s of %s MB", p.what, megabytes(received), megabytes(total)))
	}
}

func megabytes(n int64) string { return fmt.Sprintf("%.1f", float64(n)/1e6) }

// write writes a line over the one that is there.
func (p *progress) write(what string) {
	line := p.fit(what)
	if line == p.written {
		return
	}
	fmt.Fprintf(p.w, "\r%-*s", utf8.RuneCountInString(p.written), line)
	p.written = line
}

// fit returns the line for a step. It leaves room for the ^C that a terminal prints.
func (p *progress) fit(what string) string { return clip("  "+what, p.width-4) }

// clear takes the line away.
func (p *progress) clear() {
	if p.written != "" {
		const echo = len("^C")
		fmt.Fprintf(p.w, "\r%*s\r", utf8.RuneCountInString(p.written)+echo, "")
		p.written = ""
	}
}

// clip shortens text to a width.
func clip(text string, width int) string {
	if utf8.RuneCountInString(text) <= width {
		return text
	}
	return string([]rune(text)[:width-1]) + "…"
}

// wrap breaks lines between words. What is longer than a line by itself, as a path may be, stays in one piece.
func wrap(text string, width int) string {
	var lines []string
	for line := range strings.SplitSeq(text, "\n") {
		var b strings.Builder
		n := 0
		for i, word := range strings.Fields(line) {
			length := utf8.RuneCountInString(word)
			switch {
			case i == 0:
			case n+1+length > width:
				b.WriteByte('\n')
				n = 0
			default:
				b.WriteByte(' ')
				n++
			}
			b.WriteString(word)
			n += length
		}
		lines = append(lines, b.String())
	}
	return strings.Join(lines, "\n")
}
