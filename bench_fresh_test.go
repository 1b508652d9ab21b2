package flyregion

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/flyregion/flyregion/internal/pgcluster"
)

// BenchmarkFreshness is a read that has to see what other processes have written, beside the same read on the primary, which
// another process writes to all the while: a small one, and one that keeps a server busy. The ratio is that of the times. It
// also tells the share of the reads that a replica has served, and how many messages went to the primary for each.
func BenchmarkFreshness(b *testing.B) {
	cluster := sharedCluster(b)
	ctx := b.Context()
	defer commitAllTheWhile(b, cluster)()
	b.Cleanup(func() { cluster.SetLatency("ord", "nrt", 0) })
	for _, latency := range []time.Duration{20 * time.Millisecond} {
		for _, query := range []struct {
			name, sql string
			size      int
		}{
			{"small", "select 1", 20},
			{"heavy", "select count(*) from generate_series(1, 50000) g where g % 7 = 1", 5},
		} {
			for _, fresh := range []struct {
				name string
				ctx  context.Context
			}{
				{"WithFresh", WithFresh(ctx)},
				{"WithMaxLag=1s", WithMaxLag(ctx, time.Second)},
				{"WithMaxLag=10s", WithMaxLag(ctx, 10*time.Second)},
				{"WithoutWait", WithoutWait(ctx)},
			} {
				b.Run(fmt.Sprintf("latency=%v/%s/%s", latency, query.name, fresh.name), func(b *testing.B) {
					cluster.SetLatency("ord", "nrt", latency)
					pool := poolIn(b, cluster, "ord", unlogged)
					link := cluster.Link("ord", "nrt")
					awaitReplica(b, fresh.ctx, pool)
					var asked int64
					before := pool.Stat().Statements()
					read := func(ctx context.Context, count *int64) func(int) error {
						return func(n int) error {
							turns := link.Turns()
							for range n {
								var one int
								if err := pool.QueryRow(ctx, query.sql).Scan(&one); err != nil {
									return err
								}
							}
							*count += link.Turns() - turns
							return nil
						}
					}
					alternate(b, query.size, [2]string{"primary", "read"}, [2]func(int) error{read(WithPrimary(ctx), new(int64)), read(fresh.ctx, &asked)})
					local, other := int64(0), int64(0)
					for _, c := range pool.Stat().Statements() {
						for _, old := range before {
							if old.Target == c.Target && old.Reason == c.Reason {
								c.Count -= old.Count
							}
						}
						switch {
						case c.Target == "replica":
							local += c.Count
						case c.Reason != string(becauseAsked):
							other += c.Count
						}
					}
					b.ReportMetric(float64(local)/float64(local+other)*100, "local-%")
					b.ReportMetric(float64(asked)/float64(local+other), "turns/read")
				})
			}
		}
	}
}

// commitAllTheWhile has another process commit every few milliseconds, and returns what ends that.
func commitAllTheWhile(b *testing.B, cluster *pgcluster.Cluster) (stop func()) {
	name := table(b, cluster, "id int")
	other := otherProcess(b, cluster)
	ctx, cancel := context.WithCancel(b.Context())
	var done sync.WaitGroup
	done.Go(func() {
		for sleep(ctx, 5*time.Millisecond) == nil {
			if _, err := other.Exec(ctx, "insert into "+name+" values (1)"); err != nil && ctx.Err() == nil {
				b.Error(err)
				return
			}
		}
	})
	return func() {
		cancel()
		done.Wait()
	}
}
