package flyregion

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flyregion/flyregion/internal/pgcluster"
	"github.com/jackc/pgx/v5/pgxpool"
)

// pgxpoolIn returns a pgxpool on the server in a region, with the network of an app in another.
func pgxpoolIn(b testing.TB, cluster *pgcluster.Cluster, app, server string, change ...func(*pgxpool.Config)) *pgxpool.Pool {
	b.Helper()
	config, err := pgxpool.ParseConfig(strings.Replace(cluster.URL(), "app.internal:5432", server+".app.internal:5433", 1))
	if err != nil {
		b.Fatal(err)
	}
	config.ConnConfig.RuntimeParams["log_statement"] = "none"
	site := cluster.From(app)
	config.ConnConfig.LookupFunc, config.ConnConfig.DialFunc = site.LookupHost, site.DialContext
	for _, f := range change {
		f(config)
	}
	pool, err := pgxpool.NewWithConfig(b.Context(), config)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(pool.Close)
	return pool
}

// unlogged keeps the servers from writing every statement to their log, as they do for the tests.
func unlogged(c *Config) { c.ConnConfig.RuntimeParams["log_statement"] = "none" }

// median returns the middle one of some values.
func median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}

// benchSlice is one run of a benchmark's two contestants after each other.
type benchSlice struct {
	took   [2]time.Duration
	cpu    [2]time.Duration
	allocs [2]uint64
}

// alternate runs two contestants in short slices that alternate, size operations each. Two pools that are equal differ by
// some percent over a whole run, by luck; neighbouring slices do not. It reports both, and the median of their ratios: in
// time, and in what this process used of a processor.
func alternate(b *testing.B, size int, names [2]string, run [2]func(n int) error) {
	var done []benchSlice
	var memory runtime.MemStats
	mallocs := func() uint64 {
		runtime.ReadMemStats(&memory)
		return memory.Mallocs
	}
	for _, f := range run {
		if err := f(size); err != nil { // warm up
			b.Fatal(err)
		}
	}
	const least = 20 // slices, also with -benchtime=1x
	for n := 0; n < b.N || len(done) < least; n += size {
		var s benchSlice
		for i := range run {
			i := (i + len(done)) % 2 // neither is always the first
			before := mallocs()
			cpu, began := processorTime(), time.Now()
			if err := run[i](size); err != nil {
				b.Fatal(err)
			}
			s.took[i], s.cpu[i] = time.Since(began), processorTime()-cpu
			s.allocs[i] = mallocs() - before
		}
		done = append(done, s)
	}

	operations := float64(len(done) * size)
	ratios, cpuRatios := make([]float64, len(done)), make([]float64, len(done))
	var took [2]time.Duration
	var allocs [2]uint64
	for i, s := range done {
		ratios[i] = float64(s.took[1]) / float64(s.took[0])
		cpuRatios[i] = float64(s.cpu[1]) / float64(max(s.cpu[0], 1))
		for j := range run {
			took[j] += s.took[j]
			allocs[j] += s.allocs[j]
		}
	}
	b.ReportMetric(0, "ns/op")
	for i, name := range names {
		b.ReportMetric(float64(took[i])/operations, name+"-ns/op")
		b.ReportMetric(float64(allocs[i])/operations, name+"-allocs/op")
	}
	b.ReportMetric(median(ratios), "ratio")
	b.ReportMetric(median(cpuRatios), "cpu-ratio")
}

// BenchmarkRead is a read on the local replica, through flyregion and through a pgxpool that is connected to it.
func BenchmarkRead(b *testing.B) {
	cluster := sharedCluster(b)
	raw := pgxpoolIn(b, cluster, "ord", "ord")
	pool := poolIn(b, cluster, "ord", unlogged)
	ctx := b.Context()

	for _, test := range []struct {
		name string
		read func(runner) error
	}{
		{"QueryRow", func(db runner) error {
			var one int
			return db.QueryRow(ctx, "select 1").Scan(&one)
		}},
		{"Query", func(db runner) error {
			rows, err := db.Query(ctx, "select 1")
			if err != nil {
				return err
			}
			for rows.Next() {
				var one int
				if err := rows.Scan(&one); err != nil {
					return err
				}
			}
			return rows.Err()
		}},
		{"Exec", func(db runner) error {
			_, err := db.Exec(ctx, "select 1")
			return err
		}},
	} {
		b.Run(test.name, func(b *testing.B) {
			times := func(db runner) func(int) error {
				return func(n int) error {
					for range n {
						if err := test.read(db); err != nil {
							return err
						}
					}
					return nil
				}
			}
			alternate(b, 100, [2]string{"pgxpool", "flyregion"}, [2]func(int) error{times(raw), times(pool)})
		})
	}
}

// BenchmarkWrite is a write to a primary without latency, through flyregion, which learns its position, and through a
// pgxpool, which does not: what the question for it costs the client and the server.
func BenchmarkWrite(b *testing.B) {
	cluster := sharedCluster(b)
	name := table(b, cluster, "id int primary key, v int")
	ctx := b.Context()
	if err := cluster.Leader().Exec(ctx, "insert into "+name+" values (1, 0)"); err != nil {
		b.Fatal(err)
	}
	times := func(db runner) func(int) error {
		return func(n int) error {
			for range n {
				if _, err := db.Exec(ctx, "update "+name+" set v = v + 1 where id = $1", 1); err != nil {
					return err
				}
			}
			return nil
		}
	}
	raw, pool := pgxpoolIn(b, cluster, "ord", "nrt"), poolIn(b, cluster, "ord", unlogged)
	alternate(b, 50, [2]string{"pgxpool", "flyregion"}, [2]func(int) error{times(raw), times(pool)})
}

// BenchmarkForward is a write whose position is known when it returns, over a link to the primary with latency. It tells
// how many round trips that takes, beside a pgxpool whose user asks for the position.
func BenchmarkForward(b *testing.B) {
	const roundTrip = 20 * time.Millisecond
	cluster := sharedCluster(b)
	name := table(b, cluster, "id int")
	cluster.SetLatency("ord", "nrt", roundTrip)
	b.Cleanup(func() { cluster.SetLatency("ord", "nrt", 0) })
	ctx := b.Context()
	insert := "insert into " + name + " values (1)"

	pool := poolIn(b, cluster, "ord", unlogged)
	raw := pgxpoolIn(b, cluster, "ord", "nrt")
	for _, test := range []struct {
		name  string
		write func() error
	}{
		{"flyregion", func() error {
			_, err := pool.Exec(ctx, insert)
			return err
		}},
		{"pgxpool-then-position", func() error {
			if _, err := raw.Exec(ctx, insert); err != nil {
				return err
			}
			var position string
			return raw.QueryRow(ctx, "select pg_current_wal_flush_lsn()::text").Scan(&position)
		}},
		{"pgxpool", func() error {
			_, err := raw.Exec(ctx, insert)
			return err
		}},
	} {
		b.Run(test.name, func(b *testing.B) {
			if err := test.write(); err != nil { // connects, and prepares the statement
				b.Fatal(err)
			}
			var took []float64
			for b.Loop() {
				began := time.Now()
				if err := test.write(); err != nil {
					b.Fatal(err)
				}
				took = append(took, float64(time.Since(began))/float64(roundTrip))
			}
			b.ReportMetric(median(took), "trips/op")
		})
	}
}

// BenchmarkMixed is an app of which one statement in twenty writes, beside a pgxpool on the primary.
func BenchmarkMixed(b *testing.B) {
	cluster := sharedCluster(b)
	mixed := mixedLoad(b, cluster)
	const conns = 16
	raw := pgxpoolIn(b, cluster, "ord", "nrt", func(c *pgxpool.Config) { c.MaxConns = conns })
	pool := poolIn(b, cluster, "ord", unlogged, func(c *Config) { c.MaxConns = conns })

	for _, goroutines := range []int{8, 64, 256} {
		b.Run(fmt.Sprint(goroutines), func(b *testing.B) {
			contexts := slices.Repeat([]context.Context{b.Context()}, goroutines)
			alternate(b, 400, [2]string{"pgxpool", "flyregion"}, [2]func(int) error{mixed(raw, contexts), mixed(pool, contexts)})
		})
	}
}

// mixedLoad makes a table and returns a load on it. The load runs n statements, from one goroutine for each context. One in
// twenty statements writes.
func mixedLoad(b *testing.B, cluster *pgcluster.Cluster) func(db runner, contexts []context.Context) func(n int) error {
	b.Helper()
	name := table(b, cluster, "id int primary key, v int")
	if err := cluster.Leader().Exec(b.Context(), "insert into "+name+" select generate_series(0, 999), 0"); err != nil {
		b.Fatal(err)
	}
	if err := cluster.Server("ord").WaitReplayed(b.Context()); err != nil {
		b.Fatal(err)
	}
	return func(db runner, contexts []context.Context) func(int) error {
		return func(n int) error {
			var all sync.WaitGroup
			var turn atomic.Int64
			errs := make(chan error, len(contexts))
			for _, ctx := range contexts {
				all.Go(func() {
					for i := turn.Add(1); i <= int64(n); i = turn.Add(1) {
						if err := mixedStatement(ctx, db, name, int(i)); err != nil {
							errs <- err
							return
						}
					}
				})
			}
			all.Wait()
			close(errs)
			return <-errs
		}
	}
}

// mixedStatement runs statement i of a mixed load.
func mixedStatement(ctx context.Context, db runner, table string, i int) error {
	if i%20 == 0 {
		_, err := db.Exec(ctx, "update "+table+" set v = v + 1 where id = $1", i%1000)
		return err
	}
	var v int
	return db.QueryRow(ctx, "select v from "+table+" where id = $1", i%1000).Scan(&v)
}
