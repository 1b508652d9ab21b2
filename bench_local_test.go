package flyregion

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// localPool returns a pool whose servers are reached without a proxy in between, so that its reads cost what they cost an
// app. It has connected to the primary and the replica.
func localPool(b *testing.B, change ...func(*Config)) *Pool {
	b.Helper()
	cluster := sharedCluster(b)
	config, err := ParseConfig(cluster.Leader().ConnString())
	if err != nil {
		b.Fatal(err)
	}
	config.Region, config.PrimaryRegion = "ord", "nrt"
	config.ReplicaConnStrings = map[string]string{"ord": cluster.Server("ord").ConnString()}
	unlogged(config)
	for _, f := range change {
		f(config)
	}
	pool, err := NewPoolWithConfig(b.Context(), config)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(pool.Close)
	if err := pool.WaitReplayed(b.Context()); err != nil {
		b.Fatal(err)
	}
	return pool
}

// localReads are the ways to read one row.
var localReads = []struct {
	name string
	read func(context.Context, runner) error
}{
	{"QueryRow", func(ctx context.Context, db runner) error {
		var id int
		var name string
		return db.QueryRow(ctx, localReadSQL, 1).Scan(&id, &name)
	}},
	{"Query", func(ctx context.Context, db runner) error {
		rows, err := db.Query(ctx, localReadSQL, 1)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var id int
			var name string
			if err := rows.Scan(&id, &name); err != nil {
				return err
			}
		}
		return rows.Err()
	}},
	{"Exec", func(ctx context.Context, db runner) error {
		_, err := db.Exec(ctx, localReadSQL, 1)
		return err
	}},
}

// localReadSQL has the length of an everyday statement.
const localReadSQL = "select id, name from (values (1, 'one')) as t (id, name) where id = $1"

// BenchmarkLocalRead is what a read that waits for nothing costs, beside the same read on the same connections without this
// package. With work an app computes for that long with each row.
func BenchmarkLocalRead(b *testing.B) {
	pool := localPool(b)
	for _, test := range localReads {
		for _, c := range []struct {
			goroutines int
			work       time.Duration
		}{{1, 0}, {8, 0}, {8, 5 * time.Microsecond}, {64, 0}} {
			name := fmt.Sprintf("%s/%d", test.name, c.goroutines)
			if c.work > 0 {
				name += "/work=" + c.work.String()
			}
			b.Run(name, func(b *testing.B) {
				ctx, cancel := context.WithCancel(b.Context()) // as an HTTP request has it
				defer cancel()
				work := busyFor(c.work)
				times := func(db runner) func(int) error {
					return func(n int) error {
						return inParallel(c.goroutines, n, func() error {
							err := test.read(ctx, db)
							work()
							return err
						})
					}
				}
				alternate(b, 400, [2]string{"pgxpool", "flyregion"}, [2]func(int) error{times(pool.Replica()), times(pool)})
			})
		}
	}
}

// inParallel calls f n times, from some goroutines.
func inParallel(goroutines, n int, f func() error) error {
	var wg sync.WaitGroup
	var failed atomic.Pointer[error]
	for i := range goroutines {
		wg.Go(func() {
			for range (n + i) / goroutines {
				if err := f(); err != nil {
					failed.Store(&err)
					return
				}
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	return nil
}

// busyFor returns a function that keeps a processor busy for about d, without looking at a clock.
func busyFor(d time.Duration) func() {
	spin := func(n int) {
		x := uint64(n)
		for range n {
			x = x*6364136223846793005 + 1442695040888963407
		}
		spun.Store(x)
	}
	const n = 10_000
	fastest := time.Hour
	for range 100 {
		began := time.Now()
		spin(n)
		fastest = min(fastest, time.Since(began))
	}
	times := int(n * d / fastest)
	return func() {
		if times > 0 {
			spin(times)
		}
	}
}

// spun keeps the compiler from leaving out what busyFor computes.
var spun atomic.Uint64
