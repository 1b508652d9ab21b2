package flyregion

import (
	"slices"
	"testing"
	"time"
)

// BenchmarkCatalog reads through a function of the app, on a replica beside the app: what the catalog has told, and the
// first use, for which it is asked, of a name or of everything. Each is measured in short slices beside a plain pgxpool.
func BenchmarkCatalog(b *testing.B) {
	cluster := sharedCluster(b)
	makeVolatileSchema(b, cluster)
	pool := poolIn(b, cluster, "ord")
	ctx := b.Context()
	const sql = "select s.stable_($1::int)"
	catalog := pool.router.statements.catalog
	plain := func() error { return pool.Replica().QueryRow(ctx, sql, 1).Scan(new(int)) }
	ours := func() error { return pool.QueryRow(ctx, sql, 1).Scan(new(int)) }
	for _, c := range []struct {
		name   string
		forget func()
	}{
		{"known", func() {}},
		{"first use of a name", func() { catalog.forgetCalls(sql) }},
		{"first use of the pool", catalog.expire},
	} {
		b.Run(c.name, func(b *testing.B) {
			var ratios, extra []float64
			for b.Loop() {
				var took [2]time.Duration
				for i, read := range []func() error{plain, ours} {
					for range 20 {
						c.forget()
						began := time.Now()
						if err := read(); err != nil {
							b.Fatal(err)
						}
						took[i] += time.Since(began)
					}
				}
				ratios = append(ratios, float64(took[1])/float64(took[0]))
				extra = append(extra, float64(took[1]-took[0])/20/1e3)
			}
			slices.Sort(ratios)
			slices.Sort(extra)
			b.ReportMetric(ratios[len(ratios)/2], "times-plain")
			b.ReportMetric(extra[len(extra)/2], "µs-more")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkCatalogRoute decides where a statement goes whose functions are known.
func BenchmarkCatalogRoute(b *testing.B) {
	cluster := sharedCluster(b)
	makeVolatileSchema(b, cluster)
	pool := poolIn(b, cluster, "ord")
	for _, sql := range []string{"select a from t where b = $1", "select s.stable_($1::int)", "select s.log($1::int)"} {
		if err := pool.Replica().Ping(b.Context()); err != nil {
			b.Fatal(err)
		}
		_, _ = pool.Exec(b.Context(), sql, 1)
		b.Run(sql, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				pool.router.route(b.Context(), sql, nil)
			}
		})
	}
}
