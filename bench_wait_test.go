package flyregion

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/flyregion/flyregion/internal/pgcluster"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// consistentReader writes to the primary, and reads on a replica what it has written.
type consistentReader struct {
	name        string
	write, read func(ctx context.Context, id int) error
}

// byPosition is an app that asks the primary for a position after its write, and then the replica whether it has replayed
// that, with pauses in between.
func byPosition(b *testing.B, cluster *pgcluster.Cluster, name, table, position string, pause time.Duration) consistentReader {
	primary, replica := pgxpoolIn(b, cluster, "ord", "nrt"), pgxpoolIn(b, cluster, "ord", "ord")
	return consistentReader{
		name: name,
		write: func(ctx context.Context, id int) error {
			_, err := primary.Exec(ctx, "insert into "+table+" values ($1)", id)
			return err
		},
		read: func(ctx context.Context, id int) error {
			var need string
			if err := primary.QueryRow(ctx, "select "+position+"::text").Scan(&need); err != nil {
				return err
			}
			for shown := false; !shown; {
				if err := replica.QueryRow(ctx, "select pg_last_wal_replay_lsn() >= $1::text::pg_lsn", need).Scan(&shown); err != nil {
					return err
				}
				if !shown && pause > 0 {
					time.Sleep(pause)
				}
			}
			return sees(ctx, replica, table, id)
		},
	}
}

// sees reports with an error that the last row of a table is not the expected one.
func sees(ctx context.Context, db runner, table string, id int) error {
	var last int
	if err := db.QueryRow(ctx, "select max(id) from "+table).Scan(&last); err != nil {
		return err
	}
	if last != id {
		return fmt.Errorf("read %d after %d was written", last, id)
	}
	return nil
}

// BenchmarkConsistentRead is the time from a write's return to the end of a read on the local replica that sees it: with
// flyregion, and beside it an app that asks the replica every millisecond, and one that asks without a pause, which is as
// fast as asking can be. The first half of the names says whether another transaction inserts all the while and does not
// commit; then there is also an app that waits for the insert position, which such a transaction keeps ahead of what the
// replica gets.
func BenchmarkConsistentRead(b *testing.B) {
	cluster := sharedCluster(b)
	ctx := b.Context()
	for _, busy := range []bool{false, true} {
		name := table(b, cluster, "id int primary key")
		const flush = "pg_current_wal_flush_lsn()"
		pool := poolIn(b, cluster, "ord", unlogged, waits(time.Minute, time.Minute))
		readers := []consistentReader{
			{
				name: "flyregion",
				write: func(ctx context.Context, id int) error {
					_, err := pool.Exec(ctx, "insert into "+name+" values ($1)", id)
					return err
				},
				read: func(ctx context.Context, id int) error { return sees(ctx, pool, name, id) },
			},
			byPosition(b, cluster, "poll-1ms", name, flush, time.Millisecond),
			byPosition(b, cluster, "poll-without-pause", name, flush, 0),
		}
		state := "idle"
		if busy {
			state = "uncommitted-writer"
			readers = append(readers, byPosition(b, cluster, "insert-position-1ms", name, "pg_current_wal_insert_lsn()", time.Millisecond))
			defer writeUncommitted(b, cluster)()
		}

		id := 0
		for _, reader := range readers {
			b.Run(state+"/"+reader.name, func(b *testing.B) {
				const least = 50 // also with -benchtime=1x
				var took []float64
				for range max(b.N, least) {
					id++
					if err := reader.write(ctx, id); err != nil {
						b.Fatal(err)
					}
					if busy {
						// What an app does between a write and a read: long enough for others to write.
						time.Sleep(4 * time.Millisecond)
					}
					began := time.Now()
					if err := reader.read(ctx, id); err != nil {
						b.Fatal(err)
					}
					took = append(took, float64(time.Since(began))/float64(time.Millisecond))
				}
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(median(took), "p50-ms")
				b.ReportMetric(took[len(took)*99/100], "p99-ms") // median has sorted them
			})
		}
	}
}

// writeUncommitted begins a transaction on the primary that inserts and does not commit, and returns what ends it.
func writeUncommitted(b *testing.B, cluster *pgcluster.Cluster) (stop func()) {
	conn, err := pgx.Connect(b.Context(), cluster.Leader().ConnString())
	if err != nil {
		b.Fatal(err)
	}
	name := table(b, cluster, "v text")
	ctx, cancel := context.WithCancel(b.Context())
	var done sync.WaitGroup
	done.Go(func() {
		defer conn.Close(context.Background())
		tx, err := conn.Begin(ctx)
		for err == nil {
			_, err = tx.Exec(ctx, "insert into "+name+" values (repeat('x', 100))")
		}
		if ctx.Err() == nil {
			b.Error(err)
		}
	})
	return func() {
		cancel()
		done.Wait()
	}
}

// BenchmarkWaiters has ten thousand reads wait for a replica that does not replay: how many statements a second they send
// to it, how much of a processor this process uses, proxies included, and how much memory each of them holds. It ends with
// the time in which all of them have read, once the replica replays.
func BenchmarkWaiters(b *testing.B) {
	const most = 10_000
	cluster := sharedCluster(b)
	name := table(b, cluster, "id int")
	for _, waiters := range []int{100, most} {
		b.Run(fmt.Sprint(waiters), func(b *testing.B) {
			ctx := b.Context()
			pool := poolIn(b, cluster, "ord", unlogged, waits(time.Hour, time.Hour))
			awaitReplica(b, ctx, pool)
			replica, link := cluster.Server("ord"), cluster.Link("ord", "ord")
			if err := replica.PauseReplay(ctx); err != nil {
				b.Fatal(err)
			}
			defer replica.ResumeReplay(context.Background())
			if err := execs(ctx, pool, "insert into "+name+" values (1)"); err != nil {
				b.Fatal(err)
			}

			before := memoryInUse()
			var all sync.WaitGroup
			for range waiters {
				all.Go(func() {
					if err := pool.QueryRow(ctx, "select from "+name+" limit 1").Scan(); err != nil {
						b.Error(err)
					}
				})
			}
			eventually(b, "all wait", func() bool { return waiting(pool) == waiters })
			perWaiter := float64(memoryInUse()-before) / float64(waiters)

			turns, cpu, began := link.Turns(), processorTime(), time.Now()
			time.Sleep(2 * time.Second)
			b.ReportMetric(float64(link.Turns()-turns)/time.Since(began).Seconds(), "statements/s")
			b.ReportMetric((processorTime()-cpu).Seconds()/time.Since(began).Seconds()*100, "cpu-%")
			b.ReportMetric(perWaiter, "B/waiter")

			began = time.Now()
			if err := replica.ResumeReplay(ctx); err != nil {
				b.Fatal(err)
			}
			all.Wait()
			b.ReportMetric(float64(time.Since(began))/float64(time.Millisecond), "drain-ms")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// memoryInUse returns the bytes of the heap and of the goroutines' stacks that are in use.
func memoryInUse() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

// keepBusy has n goroutines use the processors until the returned function is called.
func keepBusy(n int) (end func()) {
	stop, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	for range n {
		all.Go(func() {
			for stop.Err() == nil {
			}
		})
	}
	return func() {
		cancel()
		all.Wait()
	}
}

// BenchmarkReadWhileBusy is the share of reads that a replica serves, each after a write, while goroutines of this process
// keep its processors busy, so that the watcher's answers come late. It also tells the share of the reads that have waited in
// vain, and of those that were kept from waiting by one that has.
func BenchmarkReadWhileBusy(b *testing.B) {
	cluster := sharedCluster(b)
	ctx := b.Context()
	for _, busy := range []int{0, 4, 12} {
		b.Run(fmt.Sprint(busy), func(b *testing.B) {
			name := table(b, cluster, "id int primary key")
			recording := record(b)
			pool := poolIn(b, cluster, "ord", unlogged, func(c *Config) { c.Telemetry.MeterProvider = recording.meters })
			awaitReplica(b, ctx, pool)
			defer keepBusy(busy)()
			const least = 50 // also with -benchtime=1x
			local, reads := 0, max(b.N, least)
			for id := range reads {
				if _, err := pool.Exec(ctx, "insert into "+name+" values ($1)", id); err != nil {
					b.Fatal(err)
				}
				var here bool
				if err := pool.QueryRow(ctx, readOnlySQL).Scan(&here); err != nil {
					b.Fatal(err)
				}
				if here {
					local++
				}
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(local)/float64(reads)*100, "local-%")
			inVain := int64(recording.waits(b)[string(waitFellBack)])
			kept := recording.statements(b)["primary "+string(becauseLag)] - inVain
			b.ReportMetric(float64(inVain)/float64(reads)*100, "in-vain-%")
			b.ReportMetric(float64(kept)/float64(reads)*100, "kept-away-%")
		})
	}
}

// BenchmarkReturnFromLag is how long reads stay away from a replica that has caught up, after one has waited in vain for it:
// the reads, and the time. Goroutines of this process keep its processors busy meanwhile, so that answers come late.
func BenchmarkReturnFromLag(b *testing.B) {
	cluster := sharedCluster(b)
	ctx := b.Context()
	for _, busy := range []int{0, 4} {
		b.Run(fmt.Sprint(busy), func(b *testing.B) {
			name := table(b, cluster, "id int primary key, v text")
			pool := poolIn(b, cluster, "ord", unlogged)
			awaitReplica(b, ctx, pool)
			defer keepBusy(busy)()
			const least = 10 // also with -benchtime=1x
			var reads, took []float64
			for id := range max(b.N, least) {
				thaw := freeze(b, cluster)
				if err := execs(ctx, pool, insertText(name, id)); err != nil {
					b.Fatal(err)
				}
				for pool.replicas.list()[0].tracker.missed.Load() == nil {
					if replicaServes(b, ctx, pool) {
						b.Fatal("the replica serves while it is halted")
					}
				}
				thaw()
				if err := cluster.Server("ord").WaitReplayed(ctx); err != nil {
					b.Fatal(err)
				}
				began, away := time.Now(), 0
				for !replicaServes(b, ctx, pool) {
					away++
				}
				reads, took = append(reads, float64(away)), append(took, float64(time.Since(began))/float64(time.Millisecond))
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(median(reads), "reads-away")
			b.ReportMetric(median(took), "ms-to-return")
		})
	}
}

// BenchmarkMixedWait is an app of eight goroutines of which one statement in twenty writes, beside a pgxpool on the primary:
// near the primary and far from it, with a MinReplicaWait and without, all in one session and with one for each goroutine.
// The ratio is that of the times. Without latency the connections are direct, as the proxy that adds it takes a part of this
// process's time.
func BenchmarkMixedWait(b *testing.B) {
	const goroutines = 8
	cluster := sharedCluster(b)
	ctx := b.Context()
	mixed := mixedLoad(b, cluster)
	b.Cleanup(func() { cluster.SetLatency("ord", "nrt", 0) })

	direct := func(to *pgxpool.Config) {
		leader, err := pgxpool.ParseConfig(cluster.Leader().ConnString())
		if err != nil {
			b.Fatal(err)
		}
		to.ConnConfig.Host, to.ConnConfig.Port, to.ConnConfig.Fallbacks = leader.ConnConfig.Host, leader.ConnConfig.Port, nil
		to.ConnConfig.LookupFunc, to.ConnConfig.DialFunc = leader.ConnConfig.LookupFunc, leader.ConnConfig.DialFunc
	}
	for _, latency := range []time.Duration{0, time.Millisecond, 20 * time.Millisecond} {
		for _, wait := range []time.Duration{defaultMinReplicaWait, 0} {
			for _, sessions := range []int{1, goroutines} {
				b.Run(fmt.Sprintf("latency=%v/wait=%v/sessions=%d", latency, wait, sessions), func(b *testing.B) {
					cluster.SetLatency("ord", "nrt", latency)
					contexts := make([]context.Context, goroutines)
					for i := range contexts {
						contexts[i] = ctx
						if sessions > 1 {
							contexts[i] = WithSession(ctx, &Session{})
						}
					}
					raw := pgxpoolIn(b, cluster, "ord", "nrt", func(c *pgxpool.Config) {
						c.MaxConns = 2 * goroutines
						if latency == 0 {
							direct(c)
						}
					})
					pool := poolIn(b, cluster, "ord", unlogged, func(c *Config) {
						c.MaxConns, c.MinReplicaWait = 2*goroutines, wait
						if latency == 0 {
							direct(c.Config)
							c.ReplicaConnStrings = map[string]string{"ord": cluster.Server("ord").ConnString()}
						}
					})
					awaitReplica(b, ctx, pool)
					alternate(b, 400, [2]string{"pgxpool", "flyregion"}, [2]func(int) error{mixed(raw, contexts), mixed(pool, contexts)})
				})
			}
		}
	}
}
