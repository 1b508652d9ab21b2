package flyregion

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/flyregion/flyregion/internal/sqltext"
	"github.com/jackc/pgx/v5/pgxpool"
)

const benchmarkShortQuery = "SELECT id, name, email FROM users WHERE id = $1 AND active"

// BenchmarkRoute is all that a statement's text costs on its way to a server.
func BenchmarkRoute(b *testing.B) {
	r := &router{statements: &statements{catalog: newCatalog(nil)}}
	ctx := context.Background()
	for _, c := range []struct {
		name    string
		prepare func()
	}{
		{"new", func() {}},
		{"with functions", func() {
			r.statements.catalog = newCatalog(functionsOf(map[string]Access{"enqueue": Write}))
		}},
		{"after a refusal", func() { r.refused.addPermanent(sqltext.Shape("select enqueue($1)")) }},
	} {
		c.prepare()
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				r.route(ctx, benchmarkShortQuery, nil)
			}
		})
	}
}

// BenchmarkRoutingShare tells what part of a SELECT 1 on a server nearby the routing takes: share_% by the time that route
// takes alone, and whole_% for all that a Pool adds to the pgxpool underneath, in the median of short slices in turn.
func BenchmarkRoutingShare(b *testing.B) {
	const slice = 200
	cluster := sharedCluster(b)
	pool := poolIn(b, cluster, "ord", unlogged)
	ctx := context.Background()
	sql := "SELECT 1"
	one := func(query func() error) time.Duration {
		start := time.Now()
		for range slice {
			if err := query(); err != nil {
				b.Fatal(err)
			}
		}
		return time.Since(start) / slice
	}
	var raw *pgxpool.Pool = pool.Replica()
	queryRaw := func() (err error) { return raw.QueryRow(ctx, sql).Scan(new(int)) }
	queryPool := func() (err error) { return pool.QueryRow(ctx, sql).Scan(new(int)) }
	route := func() error { pool.router.route(ctx, sql, nil); return nil }
	one(queryRaw)
	one(queryPool)

	var raws, routes []time.Duration
	var ratios []float64
	for b.Loop() {
		with, without := one(queryPool), one(queryRaw)
		raws, ratios = append(raws, without), append(ratios, float64(with)/float64(without))
		routes = append(routes, one(route))
	}
	for _, s := range [][]time.Duration{raws, routes} {
		slices.Sort(s)
	}
	slices.Sort(ratios)
	n := len(ratios) / 2
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(raws[n]), "ns/select")
	b.ReportMetric(float64(routes[n]), "ns/route")
	b.ReportMetric(100*float64(routes[n])/float64(raws[n]), "share_%")
	b.ReportMetric(100*(ratios[n]-1), "whole_%")
}
