package flyregion

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

func BenchmarkClassify(b *testing.B) {
	for _, sql := range []string{
		benchmarkShortQuery,
		benchmarkQuery(300),
		benchmarkQuery(3000),
		benchmarkInsert(1 << 20),
	} {
		b.Run(fmt.Sprintf("%d_bytes", len(sql)), func(b *testing.B) {
			b.SetBytes(int64(len(sql)))
			b.ReportAllocs()
			for b.Loop() {
				Classify(sql)
			}
		})
	}
}

const benchmarkShortQuery = "SELECT id, name, email FROM users WHERE id = $1 AND active"

// benchmarkQuery returns a query of about so many bytes, as an ORM writes them.
func benchmarkQuery(size int) string {
	const tail = ` FROM "orders" AS o LEFT JOIN customers c ON (c.id = o.customer_id) WHERE o.status IN ('open', 'paid') AND ` +
		`o.created_at > now() - interval '7 days' ORDER BY o.id DESC LIMIT $1`
	var b strings.Builder
	b.WriteString("SELECT o.id")
	for i := 0; b.Len()+len(tail) < size-20; i++ {
		fmt.Fprintf(&b, `, o."column_%d", coalesce(c.name_%d, '')`, i, i)
	}
	b.WriteString(tail)
	return b.String()
}

// benchmarkInsert returns an insert of many rows, with short and long values.
func benchmarkInsert(size int) string {
	var b strings.Builder
	b.WriteString("INSERT INTO events (id, kind, at, payload, score) VALUES ")
	for i := 0; b.Len() < size; i++ {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, `(%d, 'page_view', now(), '{"url": "https://example.com/a/%d", "referrer": "it''s unknown"}', %d.5)`, i, i, i%7)
	}
	return b.String()
}

// BenchmarkRoute is all that a statement's text costs on its way to a server.
func BenchmarkRoute(b *testing.B) {
	pool := &Pool{config: &Config{}}
	ctx := context.Background()
	for _, c := range []struct {
		name    string
		prepare func(*Pool)
	}{
		{"new", func(*Pool) {}},
		{"with functions", func(p *Pool) { p.config.Functions = map[string]Access{"enqueue": Write} }},
		{"after a refusal", func(p *Pool) { p.refused.add("select enqueue($1)") }},
	} {
		c.prepare(pool)
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				pool.route(ctx, benchmarkShortQuery, nil)
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
	route := func() error { pool.route(ctx, sql, nil); return nil }
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
