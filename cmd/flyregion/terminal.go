package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"
)

// pageWidth is the longest line that is printed.
const pageWidth = 80

// isTerminal reports whether w is a terminal that understands more than lines of text.
func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	if !ok || os.Getenv("TERM") == "dumb" {
		return false
	}
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
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
	coloured bool
}

func newPage(w io.Writer) *page {
	return &page{w: w, coloured: isTerminal(w) && os.Getenv("NO_COLOR") == ""}
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

// heading prints the title of a section, with a note at the right.
func (p *page) heading(title, note string) {
	gap := max(1, pageWidth-1-utf8.RuneCountInString(title)-utf8.RuneCountInString(note))
	p.line()
	p.line(p.paint(bold, title), strings.Repeat(" ", gap), p.paint(dim, note))
	p.line()
}

// text prints a paragraph, with a margin.
func (p *page) text(c colour, paragraph string) {
	const margin = "  "
	for line := range strings.Lines(wrap(paragraph, pageWidth-2*len(margin))) {
		p.line(margin, p.paint(c, strings.TrimSuffix(line, "\n")))
	}
}

// progress tells what is being waited for: in one line that is written over again and again, where that is possible.
type progress struct {
	w       io.Writer
	rewrite bool
	written int // width of the line that is there now
}

func newProgress(w io.Writer) *progress {
	return &progress{w: w, rewrite: isTerminal(w)}
}

// step replaces the line.
func (p *progress) step(what string) {
	line := clip("  "+what, pageWidth-4)
	if !p.rewrite {
		fmt.Fprintln(p.w, line)
		return
	}
	fmt.Fprintf(p.w, "\r%-*s", p.written, line)
	p.written = utf8.RuneCountInString(line)
}

// clear takes the line away.
func (p *progress) clear() {
	if p.written > 0 {
		const echo = len("^C")
		fmt.Fprintf(p.w, "\r%*s\r", p.written+echo, "")
		p.written = 0
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
