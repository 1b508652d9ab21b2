package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// repetitions is how many reads each median is of. At the latency of the farthest region they take two seconds.
const repetitions = 15

// comparison is the same read done in two ways by the app in one region.
type comparison struct {
	region           string
	central, through time.Duration
	answered         map[string]int // how many of the second kind each server answered
}

// ratio returns how many times faster the second way is.
func (c comparison) ratio() float64 { return float64(c.central) / float64(c.through) }

// compare measures the plain way and package flyregion's in one region, in turns: what disturbs one disturbs the other.
func (a *app) compare(ctx context.Context) (comparison, error) {
	a.queries.tally()
	var central, through [repetitions]time.Duration
	for i := range repetitions {
		began := time.Now()
		if err := a.read(ctx, a.central); err != nil {
			return comparison{}, err
		}
		turned := time.Now()
		if err := a.read(ctx, a.pool); err != nil {
			return comparison{}, err
		}
		central[i], through[i] = turned.Sub(began), time.Since(turned)
	}
	return comparison{
		region:   a.region,
		central:  median(central[:]),
		through:  median(through[:]),
		answered: a.queries.tally(),
	}, nil
}

// median returns the middle one of an odd number of times.
func median(times []time.Duration) time.Duration {
	slices.Sort(times)
	return times[len(times)/2]
}

// comparisons prints what was measured.
func (p *page) comparisons(all []comparison) {
	columns := []column{
		{title: "app in"},
		{title: "all to the primary", short: "primary", right: true, c: red},
		{title: "through flyregion", short: "flyregion", right: true, c: green},
		{title: "ratio", right: true, c: bold},
		{title: "answered by"},
	}
	var rows [][]string
	for _, c := range all {
		rows = append(rows, []string{c.region, millis(c.central), millis(c.through), times(c.ratio()), servers(c.answered)})
	}
	p.table(columns, rows)
}

func times(ratio float64) string {
	return fmt.Sprintf("%.1fx", ratio)
}

// servers names the one that answered, or the regions of those that did and how many times each.
func servers(answered map[string]int) string {
	names := slices.Sorted(maps.Keys(answered))
	if len(names) == 1 {
		return names[0]
	}
	for i, name := range names {
		region, _, _ := strings.Cut(name, ":")
		names[i] = fmt.Sprintf("%d %s", answered[name], region)
	}
	return strings.Join(names, ", ")
}
