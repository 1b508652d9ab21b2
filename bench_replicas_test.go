package flyregion

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flyregion/flyregion/internal/pgcluster"
	"github.com/jackc/pgx/v5/pgxpool"
)

// threeReplicas returns a cluster of a primary in nrt and three replicas in ord.
func threeReplicas(t testing.TB) *pgcluster.Cluster {
	t.Helper()
	cluster, err := pgcluster.Start(t.Context(), pgcluster.Config{Replicas: []string{"ord", "ord", "ord"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.Stop(); err != nil {
			t.Error(err)
		}
	})
	return cluster
}

// firstReplicas has a pool in ord find the first n replicas there.
func firstReplicas(n int) func(*Config) {
	return func(c *Config) {
		lookup := c.ConnConfig.LookupFunc
		c.ConnConfig.LookupFunc = func(ctx context.Context, host string) ([]string, error) {
			addresses, err := lookup(ctx, host)
			if err == nil && host == "ord.app.internal" {
				addresses = addresses[:n]
			}
			return addresses, err
		}
	}
}

// awaitAll waits until a pool has read from each of its replicas.
func awaitAll(t testing.TB, ctx context.Context, pool *Pool, n int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d replicas are read from", n), func() bool {
		if _, err := pool.Exec(ctx, "select 1"); err != nil {
			t.Fatal(err)
		}
		reached := 0
		for _, r := range pool.Replicas() {
			if r.Reads > 0 && r.LeftAlone == "" {
				reached++
			}
		}
		return reached == n
	})
}

// BenchmarkFrozenReplica reads from three replicas of a region, and lets one of them stand still every other time: its replay
// pauses, its processes stop, or no packet reaches it. Requests come at a steady rate, whether or not others have ended. One in
// twenty writes to the primary, 20 ms away, and those of the same session that follow read what it has written. The ratio is
// that of the 99th percentiles of the reads: from 2 s after the replica has begun to stand still, and while all is well.
// longest-ms is of all reads, those that were under way when it began among them. An operation is one change to and fro.
func BenchmarkFrozenReplica(b *testing.B) {
	const (
		spacing = 1500 * time.Microsecond // between two requests
		noticed = 2 * time.Second
	)
	cluster := threeReplicas(b)
	cluster.SetLatency("ord", "nrt", 20*time.Millisecond)
	ctx := b.Context()
	name := table(b, cluster, "id int primary key, v int")
	noError(b, cluster.Leader().Exec(ctx, "insert into "+name+" select generate_series(0, 999), 0"))
	victim := cluster.Server("ord-2")
	noError(b, victim.WaitReplayed(ctx))

	for _, how := range []struct {
		name        string
		freeze, end func()
	}{
		{"replay paused", func() { noError(b, victim.PauseReplay(ctx)) }, func() { noError(b, victim.ResumeReplay(ctx)) }},
		{"stopped", victim.Freeze, victim.Thaw},
		{"cut off", cluster.Link("ord", "ord-2").Stall, cluster.Link("ord", "ord-2").Restore},
	} {
		b.Run(how.name, func(b *testing.B) {
			pool := poolIn(b, cluster, "ord", func(c *Config) { c.MaxConns = 16 })
			awaitAll(b, ctx, pool, 3)
			sessions := make([]context.Context, 16)
			for i := range sessions {
				sessions[i] = WithSession(ctx, &Session{})
			}
			var requests sync.WaitGroup
			var mu sync.Mutex
			i := 0
			// load makes requests for some time, and returns what receives how long the reads take.
			load := func(d time.Duration) *[]float64 {
				took := new([]float64)
				began := time.Now()
				for next := began; time.Since(began) < d; i++ {
					requests.Go(func() {
						began := time.Now()
						if err := mixedStatement(sessions[i%len(sessions)], pool, name, i); err != nil {
							b.Error(err)
						}
						if i%20 != 0 {
							mu.Lock()
							defer mu.Unlock()
							*took = append(*took, float64(time.Since(began))/float64(time.Millisecond))
						}
					})
					next = next.Add(spacing)
					time.Sleep(time.Until(next))
				}
				return took
			}
			var well, first, frozen []float64
			local := 0.0
			for range b.N {
				load(200 * time.Millisecond)
				requests.Wait()
				healthy := load(time.Second)
				requests.Wait()
				how.freeze()
				begun := load(noticed)
				before := readsOn(pool)
				standing := load(time.Second)
				requests.Wait()
				local += float64(readsOn(pool)-before) / float64(len(*standing))
				how.end()
				well, first, frozen = append(well, *healthy...), append(first, *begun...), append(frozen, *standing...)
				eventually(b, "the replica is read from again", func() bool {
					load(20 * time.Millisecond)
					return servesAgain(pool, victim)
				})
				requests.Wait()
			}
			p99 := func(took []float64) float64 {
				slices.Sort(took)
				return took[len(took)*99/100]
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(p99(well), "well-p99-ms")
			b.ReportMetric(p99(frozen), "frozen-p99-ms")
			b.ReportMetric(p99(frozen)/p99(well), "ratio")
			b.ReportMetric(max(slices.Max(first), slices.Max(frozen)), "longest-ms")
			b.ReportMetric(100*local/float64(b.N), "local-%")
		})
	}
}

// readsOn returns how many reads the replicas of a pool have served.
func readsOn(pool *Pool) (n int64) {
	for _, r := range pool.Replicas() {
		n += r.Reads
	}
	return n
}

// servesAgain reports whether a pool counts a server as one that shows what the pool has written.
func servesAgain(pool *Pool, s *pgcluster.Server) bool {
	for _, r := range pool.replicas.list() {
		if address := r.address.Load(); address != nil && *address == s.IP() {
			return r.health.good() && r.shows(&route{}, pool.primary.written(&pool.primary.session))
		}
	}
	return false
}

// BenchmarkReplicaThroughput reads from one, two and three replicas that answer no more than some reads a second each, as a pool
// has few connections to them and they are 20 ms away. The ratios are those of the reads a second to as many times those of one
// replica.
func BenchmarkReplicaThroughput(b *testing.B) {
	const (
		begin = 200 * time.Millisecond // until all connections are in use
		slice = 500 * time.Millisecond
		conns = 4
		most  = 3
	)
	cluster := threeReplicas(b)
	cluster.SetLatency("ord", "ord", 20*time.Millisecond)
	ctx := b.Context()
	for _, balance := range balances {
		b.Run(string(balance), func(b *testing.B) {
			var pools []*Pool
			for n := 1; n <= most; n++ {
				pool := poolIn(b, cluster, "ord", firstReplicas(n), func(c *Config) { c.Balance, c.MaxConns = balance, conns })
				awaitAll(b, ctx, pool, n)
				pools = append(pools, pool)
			}
			perSecond := func(pool *Pool) float64 {
				var wg sync.WaitGroup
				var reads atomic.Int64
				var over atomic.Bool
				for range 16 * conns {
					wg.Go(func() {
						for !over.Load() {
							if err := pool.QueryRow(ctx, "select 1").Scan(new(int)); err != nil {
								b.Error(err)
								return
							}
							reads.Add(1)
						}
					})
				}
				time.Sleep(begin)
				before, began := reads.Load(), time.Now()
				time.Sleep(slice)
				n, took := reads.Load()-before, time.Since(began)
				over.Store(true)
				wg.Wait()
				return float64(n) / took.Seconds()
			}
			for _, pool := range pools {
				perSecond(pool) // opens the connections
			}
			var ratios [most][]float64
			var one []float64
			for range b.N {
				for i, pool := range pools {
					got := perSecond(pool)
					if i == 0 {
						one = append(one, got)
					}
					ratios[i] = append(ratios[i], got/one[len(one)-1]/float64(i+1))
				}
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(median(one), "one-reads/s")
			b.ReportMetric(median(ratios[1]), "two-ratio")
			b.ReportMetric(median(ratios[2]), "three-ratio")
		})
	}
}

// BenchmarkReplicasRead is a read that waits for nothing, with one replica and with three, beside the same read on the same
// connections without this package. Both take the replicas in turn.
func BenchmarkReplicasRead(b *testing.B) {
	cluster := threeReplicas(b)
	ctx := b.Context()
	for _, n := range []int{1, 3} {
		for _, goroutines := range []int{1, 8} {
			b.Run(fmt.Sprintf("%d/%d", n, goroutines), func(b *testing.B) {
				config, err := ParseConfig(cluster.Leader().ConnString())
				noError(b, err)
				for _, s := range cluster.Servers()[1 : 1+n] { // the first one is the primary
					config.ReplicaHosts = append(config.ReplicaHosts, s.Addr())
				}
				config.MaxConns = 8
				pool, err := NewPoolWithConfig(b.Context(), config)
				noError(b, err)
				b.Cleanup(pool.Close)
				awaitAll(b, ctx, pool, n)
				var raw []*pgxpool.Pool
				for _, r := range pool.replicas.list() {
					raw = append(raw, r.pool)
				}
				var turn atomic.Uint32
				row := func(db runner) error {
					var id int
					var name string
					return db.QueryRow(ctx, localReadSQL, 1).Scan(&id, &name)
				}
				alternate(b, 400, [2]string{"pgxpool", "flyregion"}, [2]func(int) error{
					func(times int) error {
						return inParallel(goroutines, times, func() error { return row(raw[int(turn.Add(1))%n]) })
					},
					func(times int) error { return inParallel(goroutines, times, func() error { return row(pool) }) },
				})
			})
		}
	}
}

// BenchmarkReplicaSpread reads from three equal replicas, and asks each read where it ran. off-% is how far the replica that is
// the farthest from its part is off. With BalanceWeighted the parts are 3, 2 and 1 sixths, else a third each.
func BenchmarkReplicaSpread(b *testing.B) {
	const goroutines = 8
	cluster := threeReplicas(b)
	ctx := b.Context()
	weights := map[string]int{}
	ports := map[string]int{}
	for i, s := range cluster.Servers()[1:] {
		weights[s.Addr()], ports[s.Addr()] = 3-i, i
	}
	for _, balance := range balances {
		b.Run(string(balance), func(b *testing.B) {
			config, err := ParseConfig(cluster.Leader().ConnString())
			noError(b, err)
			config.ReplicaHosts = slices.Sorted(maps.Keys(weights))
			config.MaxConns, config.Balance = goroutines, balance
			if balance == BalanceWeighted {
				config.ReplicaWeights = weights
			}
			pool, err := NewPoolWithConfig(b.Context(), config)
			noError(b, err)
			b.Cleanup(pool.Close)
			awaitAll(b, ctx, pool, len(ports))
			const least = 3000 // also with -benchtime=1x
			n := max(b.N, least)
			var got [3]atomic.Int64
			noError(b, inParallel(goroutines, n, func() error {
				var port string
				err := pool.QueryRow(ctx, "select current_setting('port')").Scan(&port)
				got[ports["127.0.0.1:"+port]].Add(1)
				return err
			}))
			off := 0.0
			for i := range got {
				part := 1.0 / 3
				if balance == BalanceWeighted {
					part = float64(3-i) / 6
				}
				off = max(off, math.Abs(float64(got[i].Load())/float64(n)/part-1))
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(100*off, "off-%")
		})
	}
}
