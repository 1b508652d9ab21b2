package main

import (
	"strings"
	"unicode/utf8"
)

// column is the head of one column of a table.
type column struct {
	title string
	short string // stands for the title on a narrow page, if it is not empty
	right bool   // its cells stand at the right, as numbers do
	c     colour
}

// table prints rows in columns that are as wide as their widest cell. A narrow page gets short titles, and as many columns
// as fit.
func (p *page) table(columns []column, rows [][]string) {
	gap := 3
	widths := widthsOf(columns, rows)
	if total(widths, gap) > p.width {
		gap = 2
		columns = shortened(columns)
		widths = widthsOf(columns, rows)
	}
	for len(columns) > 1 && total(widths, gap) > p.width {
		columns, widths = columns[:len(columns)-1], widths[:len(widths)-1]
	}

	titles := make([]string, len(columns))
	for i, c := range columns {
		titles[i] = p.paint(dim, align(c.title, widths[i], c.right))
	}
	blank := strings.Repeat(" ", gap)
	p.line(margin, strings.Join(titles, blank))
	for _, row := range rows {
		cells := make([]string, len(columns))
		for i, c := range columns {
			cells[i] = p.paint(c.c, align(row[i], widths[i], c.right))
		}
		p.line(margin, strings.Join(cells, blank))
	}
}

func widthsOf(columns []column, rows [][]string) []int {
	widths := make([]int, len(columns))
	for i, c := range columns {
		widths[i] = utf8.RuneCountInString(c.title)
		for _, row := range rows {
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i]))
		}
	}
	return widths
}

// total is how wide columns are together.
func total(widths []int, gap int) int {
	n := len(margin) + gap*(len(widths)-1)
	for _, width := range widths {
		n += width
	}
	return n
}

func shortened(columns []column) []column {
	short := make([]column, len(columns))
	for i, c := range columns {
		if c.short != "" {
			c.title = c.short
		}
		short[i] = c
	}
	return short
}

func align(text string, width int, right bool) string {
	blank := strings.Repeat(" ", max(0, width-utf8.RuneCountInString(text)))
	if right {
		return blank + text
	}
	return text + blank
}
