package flyregion

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flyregion/flyregion/internal/pgcluster"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// whereFrom reads whether the replica answers, and the number of rows that it sees.
func whereFrom(table string) string {
	return "select current_setting('transaction_' || 'read_only') = 'on', (select count(*) from " + table + ")"
}

// TestWait lets reads wait for the replica, and observes which server answers.
func TestWait(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	ctx := t.Context()
	rows := 0
	written := func(t *testing.T, min, max time.Duration) *Pool {
		pool := poolIn(t, cluster, "ord", func(c *Config) { c.MinReplicaWait, c.MaxReplicaWait = min, max })
		freeze(t, cluster)
		rows++
		if err := execs(ctx, pool, insertText(name, rows)); err != nil {
			t.Fatal(err)
		}
		return pool
	}
	ask := func(ctx context.Context, pool *Pool) (local bool, n int, err error) {
		return local, n, pool.QueryRow(ctx, whereFrom(name)).Scan(&local, &n)
	}

	t.Run("shown already", func(t *testing.T) {
		pool := poolIn(t, cluster, "ord", func(c *Config) { c.MaxReplicaWait = time.Minute })
		rows++
		if err := execs(ctx, pool, insertText(name, rows)); err != nil {
			t.Fatal(err)
		}
		if err := pool.WaitReplayed(ctx); err != nil {
			t.Fatal(err)
		}
		polls := reports(t, cluster)
		for range 100 {
			if local, n, err := ask(ctx, pool); !local || n != rows || err != nil {
				t.Fatalf("replica %v, %d rows, %v", local, n, err)
			}
		}
		if again := reports(t, cluster); again > polls+10 { // a connection that is made asks once
			t.Errorf("the replica was asked %d times", again-polls)
		}
	})
	t.Run("shown in time", func(t *testing.T) {
		pool := written(t, time.Minute, time.Minute)
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if local, n, err := ask(ctx, pool); !local || n != rows || err != nil {
					t.Errorf("replica %v, %d rows, %v", local, n, err)
				}
			})
		}
		eventually(t, "the reads wait", func() bool { return waiting(pool) == 10 })
		if err := cluster.Server("ord").ResumeReplay(ctx); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		silent(t, cluster, pool)
	})
	t.Run("shown too late", func(t *testing.T) {
		pool := written(t, 20*time.Millisecond, time.Minute)
		for range 3 {
			if local, n, err := ask(ctx, pool); local || n != rows || err != nil {
				t.Errorf("replica %v, %d rows, %v", local, n, err)
			}
		}
		var n int
		err := pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
			return tx.QueryRow(ctx, "select count(*) from "+name).Scan(&n)
		})
		if err != nil || n != rows {
			t.Errorf("%d rows, %v", n, err)
		}
		if err := cluster.Server("ord").ResumeReplay(ctx); err != nil {
			t.Fatal(err)
		}
		awaitReplica(t, ctx, pool)
		silent(t, cluster, pool)
	})
	t.Run("with replica", func(t *testing.T) {
		pool := written(t, 0, 50*time.Millisecond)
		replica := WithReplica(ctx)
		for what, read := range map[string]func() error{
			"query row": func() error { _, _, err := ask(replica, pool); return err },
			"query":     func() error { _, err := pool.Query(replica, "select 1"); return err },
			"exec":      func() error { return execs(replica, pool, "select 1") },
			"batch":     func() error { return pool.SendBatch(replica, batchOf("select 1")).Close() },
			"begin":     func() error { _, err := pool.Begin(replica); return err },
			"acquire":   func() error { _, err := pool.Acquire(replica); return err },
			"acquire func": func() error {
				return pool.AcquireFunc(replica, func(*pgxpool.Conn) error { return nil })
			},
		} {
			// A busy machine may take longer than MaxReplicaWait to connect.
			var err error
			eventually(t, what+" is answered by the replica", func() bool {
				err = read()
				return err == nil || errors.Is(err, ErrReplicaLag)
			})
			var lag *ReplicaLagError
			if !errors.Is(err, ErrReplicaLag) || !errors.As(err, &lag) || lag.Region != "ord" || lag.Required == 0 || lag.Replayed == 0 || lag.Replayed >= lag.Required {
				t.Errorf("%s: %v, %+v", what, err, lag)
			}
		}
		if err := cluster.Server("ord").ResumeReplay(ctx); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the replica shows the write", func() bool {
			local, n, err := ask(replica, pool)
			if err == nil && (!local || n != rows) {
				t.Errorf("replica %v, %d rows", local, n)
			}
			return err == nil
		})
		silent(t, cluster, pool)
	})
	t.Run("context ends", func(t *testing.T) {
		pool := written(t, time.Minute, time.Minute)
		for what, read := range map[string]func(context.Context) error{
			"query row": func(ctx context.Context) error { _, _, err := ask(ctx, pool); return err },
			"query":     func(ctx context.Context) error { _, err := pool.Query(ctx, "select 1"); return err },
			"exec":      func(ctx context.Context) error { return execs(ctx, pool, "select 1") },
			"batch":     func(ctx context.Context) error { return pool.SendBatch(ctx, batchOf("select 1")).Close() },
			"begin": func(ctx context.Context) error {
				_, err := pool.BeginTx(ctx, pgx.TxOptions{AccessMode: pgx.ReadOnly})
				return err
			},
			"acquire": func(ctx context.Context) error { _, err := pool.Acquire(WithReplica(ctx)); return err },
		} {
			limited, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
			if err := read(limited); !errors.Is(err, context.DeadlineExceeded) || errors.As(err, new(*pgconn.PgError)) {
				t.Errorf("%s, deadline: %v", what, err)
			}
			cancel()
			canceled, cancel := context.WithCancel(ctx)
			time.AfterFunc(20*time.Millisecond, cancel)
			if err := read(canceled); !errors.Is(err, context.Canceled) {
				t.Errorf("%s, canceled: %v", what, err)
			}
		}
		silent(t, cluster, pool)
	})
	t.Run("without wait", func(t *testing.T) {
		pool := written(t, time.Minute, time.Minute)
		if local, n, err := ask(WithoutWait(ctx), pool); !local || n != rows-1 || err != nil {
			t.Errorf("replica %v, %d rows of %d, %v", local, n, rows, err)
		}
		if n := waiting(pool); n != 0 {
			t.Errorf("%d wait", n)
		}
	})
	t.Run("pool closes", func(t *testing.T) {
		pool := written(t, time.Minute, time.Minute)
		ended := make(chan error)
		go func() { _, _, err := ask(ctx, pool); ended <- err }()
		eventually(t, "the read waits", func() bool { return waiting(pool) == 1 })
		pool.Close()
		if err := <-ended; err == nil {
			t.Error("a read on a closed pool succeeds")
		}
	})
}

// TestTrackerWakes wakes those, and only those, whom an observation concerns.
func TestTrackerWakes(t *testing.T) {
	var primary primary
	primary.identity.Store(&identity{server: 7, system: 1, timeline: 1, since: 1})
	tracker := newTracker("ord", &primary, func() {}, func(context.Context) (*pgconn.PgConn, error) { return nil, errors.New("nobody to ask") })
	defer tracker.close()
	tracker.watching = true // so that nobody asks but this test
	defer func() {
		tracker.mu.Lock()
		tracker.watching = false
		tracker.mu.Unlock()
	}()
	enter := func(need LSN, after uint64) *waiter {
		w := &waiter{state: sessionState{position: need, origin: 7}, after: after, woken: make(chan ending, 1)}
		if err := tracker.add(w); err != nil {
			t.Fatal(err)
		}
		return w
	}
	woken := func(w *waiter) bool {
		select {
		case end := <-w.woken:
			return end.err == nil
		default:
			return false
		}
	}
	low, high, late := enter(100, 0), enter(200, 0), enter(50, 10)
	left := enter(60, 0)
	tracker.remove(left)
	see := func(replayed LSN, asked uint64) {
		r := &report{server: 1, system: 1, timeline: 1, recovering: true, streams: true, position: replayed, received: replayed, asked: asked}
		tracker.note(r)
		tracker.wake(r)
	}
	see(99, 5)
	if woken(low) || woken(high) || woken(late) {
		t.Error("woken too early")
	}
	see(100, 10)
	if !woken(low) || woken(high) || woken(late) {
		t.Error("at 100, asked at 10: want the one at 100 alone, as the one at 50 came after the question")
	}
	see(100, 11)
	if woken(high) || !woken(late) {
		t.Error("at 100, asked at 11: want the one at 50")
	}
	see(1000, 12)
	if !woken(high) || woken(left) || len(tracker.waiters) != 0 {
		t.Error("at 1000: want the one at 200, and nobody else")
	}
}

// waiting returns how many wait for the pool's replica.
func waiting(pool *Pool) int {
	t := pool.replicas.list()[0].tracker
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.waiters)
}

// reports returns how often the replica in ord was asked about itself so far.
func reports(t testing.TB, cluster *pgcluster.Cluster) int {
	t.Helper()
	return strings.Count(fullLog(t, cluster.Server("ord")), "pg_postmaster_start_time")
}

// silent checks that nobody waits any more and that the replica is asked nothing.
func silent(t *testing.T, cluster *pgcluster.Cluster, pool *Pool) {
	t.Helper()
	if n := waiting(pool); n != 0 {
		t.Errorf("%d still wait", n)
	}
	tracker := pool.replicas.list()[0].tracker
	eventually(t, "the watcher stops", func() bool {
		tracker.mu.Lock()
		defer tracker.mu.Unlock()
		return !tracker.watching
	})
	asked, goroutines := reports(t, cluster), runtime.NumGoroutine()
	time.Sleep(100 * time.Millisecond)
	if again := reports(t, cluster); again != asked {
		t.Errorf("while nobody waits the replica is asked %d times", again-asked)
	}
	if again := runtime.NumGoroutine(); again > goroutines {
		t.Errorf("while nobody waits %d goroutines become %d", goroutines, again)
	}
	if n := pool.Stat().AcquiredConns(); n != 0 {
		t.Errorf("%d connections are in use", n)
	}
}

// TestManyWait has far more reads wait than the pool has connections. One asks for all of them.
func TestManyWait(t *testing.T) {
	const waits = 1000
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	ctx := t.Context()
	pool := poolIn(t, cluster, "ord", func(c *Config) {
		c.MaxConns, c.MinReplicaWait, c.MaxReplicaWait = 4, time.Minute, time.Minute
	})
	awaitReplica(t, ctx, pool)
	freeze(t, cluster)
	if err := execs(ctx, pool, insertText(name, 1)); err != nil {
		t.Fatal(err)
	}
	turns := cluster.Link("ord", "nrt").Turns()
	goroutines := runtime.NumGoroutine()
	var wg sync.WaitGroup
	for range waits {
		wg.Go(func() {
			var local bool
			var n int
			if err := pool.QueryRow(ctx, whereFrom(name)).Scan(&local, &n); err != nil || !local || n != 1 {
				t.Errorf("replica %v, %d rows, %v", local, n, err)
			}
		})
	}
	eventually(t, "all wait", func() bool { return waiting(pool) == waits })
	if n := runtime.NumGoroutine() - goroutines; n > waits+waits/10 {
		t.Errorf("%d goroutines for %d waits", n, waits)
	}
	// Others need not wait for those who wait.
	if !replicaServes(t, WithoutWait(ctx), pool) {
		t.Error("a read that does not wait is not served")
	}
	if err := cluster.Server("ord").ResumeReplay(ctx); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if n := cluster.Link("ord", "nrt").Turns() - turns; n != 0 {
		t.Errorf("%d turns to the primary", n)
	}
	silent(t, cluster, pool)
}
