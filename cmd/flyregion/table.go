package main

import (
	"strings"
	"unicode/utf8"
)

// column is the head of one column of a table.
type column struct {
	title string
	right bool // its cells stand at the right, as numbers do
	c     colour
}

// table prints rows in columns that are as wide as their widest cell.
func (p *page) table(columns []column, rows [][]string) {
	widths := make([]int, len(columns))
	for i, c := range columns {
		widths[i] = utf8.RuneCountInString(c.title)
		for _, row := range rows {
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i]))
		}
	}

	titles := make([]string, 0, 2*len(columns))
	for i, c := range columns {
		titles = append(titles, gap(i), p.paint(dim, align(c.title, widths[i], c.right)))
	}
	p.line(titles...)
	for _, row := range rows {
		cells := make([]string, 0, 2*len(columns))
		for i, c := range columns {
			cells = append(cells, gap(i), p.paint(c.c, align(row[i], widths[i], c.right)))
		}
		p.line(cells...)
	}
}

// gap is what stands before the i-th column.
func gap(i int) string {
	if i == 0 {
		return "  "
	}
	return "   "
}

func align(text string, width int, right bool) string {
	blank := strings.Repeat(" ", max(0, width-utf8.RuneCountInString(text)))
	if right {
		return blank + text
	}
	return text + blank
}
