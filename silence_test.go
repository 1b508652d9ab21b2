package flyregion

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/flyregion/flyregion/internal/pgcluster"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// patiently runs f, which must return, however long it takes within reason.
func patiently(t testing.TB, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(time.Minute):
		buf := make([]byte, 1<<20)
		t.Fatalf("%s: it does not return:\n%s", what, buf[:runtime.Stack(buf, true)])
	}
}

// countReads are ways to read the number of rows of a table.
func countReads(pool *Pool, table string) map[string]func(context.Context) (int, error) {
	sql := "select count(*) from " + table
	return map[string]func(context.Context) (int, error){
		"query row": func(ctx context.Context) (n int, err error) { return n, pool.QueryRow(ctx, sql).Scan(&n) },
		"query": func(ctx context.Context) (int, error) {
			rows, err := pool.Query(ctx, sql)
			if err != nil {
				return 0, err
			}
			return pgx.CollectExactlyOneRow(rows, pgx.RowTo[int])
		},
		"batch": func(ctx context.Context) (n int, err error) {
			b := &pgx.Batch{}
			b.Queue("select 1")
			b.Queue(sql)
			results := pool.SendBatch(ctx, b)
			defer results.Close()
			if _, err := results.Exec(); err != nil {
				return 0, err
			}
			return n, results.QueryRow().Scan(&n)
		},
		"database/sql": func(ctx context.Context) (n int, err error) {
			db := OpenDB(pool)
			defer db.Close()
			return n, db.QueryRowContext(ctx, sql).Scan(&n)
		},
	}
}

// lockedOnReplica has another process lock a table on the primary and commit when the replica in ord has replayed the lock
// and not its end.
func lockedOnReplica(t *testing.T, cluster *pgcluster.Cluster, name string) (thaw func()) {
	t.Helper()
	ctx := t.Context()
	conn, err := pgx.Connect(ctx, cluster.Leader().ConnString())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(ctx, "begin; alter table "+name+" add column more int"); err != nil {
		t.Fatal(err)
	}
	if err := cluster.Leader().Exec(ctx, "select pg_logical_emit_message(true, '', 'flushes')"); err != nil {
		t.Fatal(err)
	}
	thaw = freeze(t, cluster)
	if _, err := conn.Exec(ctx, "commit"); err != nil {
		t.Fatal(err)
	}
	return thaw
}

// TestReplayedLock reads a table that another process has locked, on a replica that has replayed the lock and stands still.
func TestReplayedLock(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key")
	ctx := t.Context()
	quick := func(c *Config) { c.MaxReplicaWait = 200 * time.Millisecond }
	pool := poolIn(t, cluster, "ord", quick)
	if err := execs(ctx, pool, "insert into "+name+" values (1), (2), (3)"); err != nil {
		t.Fatal(err)
	}
	awaitReplica(t, ctx, pool)
	thaw := lockedOnReplica(t, cluster, name)
	if !replicaServes(t, ctx, pool) {
		t.Fatal("the replica does not serve")
	}
	for what, read := range countReads(pool, name) {
		patiently(t, what, func() {
			if n, err := read(ctx); n != 3 || err != nil {
				t.Errorf("%s: %d rows, %v", what, n, err)
			}
		})
	}

	// Where a read cannot move, it fails.
	locked := func(what string, read func(context.Context) error) {
		t.Helper()
		patiently(t, what, func() {
			var pgErr *pgconn.PgError
			if err := read(ctx); !errors.As(err, &pgErr) || pgErr.Code != "55P03" {
				t.Errorf("%s: %v", what, err)
			}
		})
	}
	sql := "select count(*) from " + name
	locked("WithReplica", func(ctx context.Context) error { return pool.QueryRow(WithReplica(ctx), sql).Scan(new(int)) })
	locked("transaction", func(ctx context.Context) error {
		return pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
			if err := tx.QueryRow(ctx, "select 1").Scan(new(int)); err != nil {
				return err
			}
			return tx.QueryRow(ctx, sql).Scan(new(int))
		})
	})
	thaw()
	unused(t, pool)

	// An app that says how long its sessions wait for locks is heard.
	for what, set := range map[string]func(*Config){
		"parameter": func(c *Config) { c.ConnConfig.RuntimeParams["lock_timeout"] = "1234ms" },
		"options":   func(c *Config) { c.ConnConfig.RuntimeParams["options"] = "-c lock_timeout=1234" },
		"replica's": func(c *Config) {
			c.ReplicaConnStrings = map[string]string{"ord": "postgres://postgres:postgres@ord.app.internal:5433/postgres?sslmode=disable&lock_timeout=1234"}
		},
	} {
		var limit string
		own := poolIn(t, cluster, "ord", quick, set)
		if err := own.Replica().QueryRow(ctx, "show lock_timeout").Scan(&limit); err != nil || limit != "1234ms" {
			t.Errorf("%s: %q, %v", what, limit, err)
		}
	}
	var limit string
	if err := pool.Primary().QueryRow(ctx, "show lock_timeout").Scan(&limit); err == nil && limit != "0" {
		t.Errorf("on the primary: %q", limit)
	}
}

// TestReplicaFallsSilent drops all packets to the replica when reads are under way. They move; one that cannot fails.
func TestReplicaFallsSilent(t *testing.T) {
	t.Parallel()
	cluster := ownCluster(t, nil)
	name := table(t, cluster, "id int primary key")
	if err := cluster.Leader().Exec(t.Context(), "insert into "+name+" values (1), (2), (3)"); err != nil {
		t.Fatal(err)
	}
	if err := cluster.Server("ord").WaitReplayed(t.Context()); err != nil {
		t.Fatal(err)
	}
	silence(t, cluster, name)
}

// TestSilentReplicaIsAvoided drops all packets to one of two replicas. As soon as it is asked whether it still answers, reads go to
// the other one.
func TestSilentReplicaIsAvoided(t *testing.T) {
	cluster := sharedCluster(t)
	link := cluster.Link("ord", "ord")
	t.Cleanup(link.Restore)
	ctx := t.Context()
	pool := poolIn(t, cluster, "ord", inBoth, func(c *Config) { c.Balance, c.MaxConns = BalanceRoundRobin, 50 })
	read := func() error { return pool.QueryRow(ctx, "select 1").Scan(new(int)) }
	ord := pool.replicas.in("ord")
	eventually(t, "ord has an idle connection", func() bool {
		noError(t, read())
		return ord.hasIdle()
	})

	link.Stall()
	var stuck sync.WaitGroup
	for range 2 { // in turn
		stuck.Go(func() {
			if err := read(); err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, "ord is asked", ord.guard.asking.Load)
	for ord.health.good() {
		if r := pool.replicas.choose(&route{}, sessionState{}, nil); r == ord {
			t.Error("a read goes to a replica that does not answer")
			break
		}
		time.Sleep(time.Millisecond)
	}
	stuck.Wait()
	link.Restore()
	unused(t, pool)
}

// TestReplicaFallsSilentWithTLS does it with encrypted connections.
func TestReplicaFallsSilentWithTLS(t *testing.T) {
	t.Parallel()
	cluster := ownCluster(t, nil)
	file := certify(t, cluster)
	name := table(t, cluster, "id int primary key")
	if err := cluster.Leader().Exec(t.Context(), "insert into "+name+" values (1), (2), (3)"); err != nil {
		t.Fatal(err)
	}
	if err := cluster.Server("ord").WaitReplayed(t.Context()); err != nil {
		t.Fatal(err)
	}
	silence(t, cluster, name, func(c *Config) {
		secured, err := pgx.ParseConfig("postgres://app.internal/?sslmode=verify-full&sslrootcert=" + file)
		if err != nil {
			t.Fatal(err)
		}
		c.ConnConfig.TLSConfig, c.ConnConfig.Fallbacks = secured.TLSConfig, nil
		c.ConnConfig.TLSConfig.InsecureSkipVerify = true // the names are pgcluster's
	})
}

func silence(t *testing.T, cluster *pgcluster.Cluster, name string, change ...func(*Config)) {
	link := cluster.Link("ord", "ord")
	t.Cleanup(link.Restore)
	ctx := t.Context()
	ways := countReads(nil, name)
	for what := range ways {
		pool := poolIn(t, cluster, "ord", change...)
		read := countReads(pool, name)[what]
		awaitReplica(t, ctx, pool)
		link.Stall()
		patiently(t, what, func() {
			if n, err := read(ctx); n != 3 || err != nil {
				t.Errorf("%s: %d rows, %v", what, n, err)
			}
		})
		link.Restore()
		awaitReplica(t, ctx, pool)
		unused(t, pool)
	}

	// The read was sent, and the replica's answer is lost.
	pool := poolIn(t, cluster, "ord", change...)
	awaitReplica(t, ctx, pool)
	patiently(t, "sent", func() {
		time.AfterFunc(300*time.Millisecond, link.Stall)
		if err := pool.QueryRow(ctx, "select pg_sleep(1)").Scan(nil); err != nil {
			t.Errorf("sent: %v", err)
		}
	})
	link.Restore()
	awaitReplica(t, ctx, pool)

	tx, err := pool.BeginTx(ctx, pgx.TxOptions{AccessMode: pgx.ReadOnly})
	if err != nil {
		t.Fatal(err)
	}
	if err := tx.QueryRow(ctx, "select 1").Scan(new(int)); err != nil {
		t.Fatal(err)
	}
	link.Stall()
	patiently(t, "transaction", func() {
		if err := tx.QueryRow(ctx, "select 1").Scan(new(int)); err == nil {
			t.Error("a transaction on a silent replica goes on")
		}
		_ = tx.Rollback(ctx)
	})
	link.Restore()
	awaitReplica(t, ctx, pool)
	unused(t, pool)
}

// TestCloseWithSilentReplica closes a pool while a read is under way on a replica that falls silent.
func TestCloseWithSilentReplica(t *testing.T) {
	t.Parallel()
	cluster := ownCluster(t, nil)
	link := cluster.Link("ord", "ord")
	t.Cleanup(link.Restore)
	ctx := t.Context()

	pool := poolIn(t, cluster, "ord")
	awaitReplica(t, ctx, pool)
	read := make(chan error, 1)
	go func() { read <- pool.QueryRow(WithReplica(ctx), "select pg_sleep(1)").Scan(nil) }()
	eventually(t, "the read runs", func() bool { return pool.Replica().Stat().AcquiredConns() == 1 })
	time.AfterFunc(300*time.Millisecond, link.Stall)
	patiently(t, "close during a read", func() {
		pool.Close()
		if err := <-read; err == nil {
			t.Error("the replica has answered")
		}
	})
}

// TestLongReadIsLeftAlone reads for longer than it takes to find out that a replica is silent.
func TestLongReadIsLeftAlone(t *testing.T) {
	t.Parallel()
	cluster := sharedCluster(t)
	ctx := t.Context()
	pool := poolIn(t, cluster, "ord")
	awaitReplica(t, ctx, pool)
	var replica bool
	err := pool.QueryRow(ctx, readOnlySQL+" from pg_sleep(6)").Scan(&replica)
	if err != nil || !replica {
		t.Errorf("replica %v, %v", replica, err)
	}
	// The watcher's connection is dead, and the replica is not.
	tracker := pool.replicas.list()[0].tracker
	long := make(chan error)
	go func() {
		err := pool.QueryRow(ctx, readOnlySQL+" from pg_sleep(6)").Scan(&replica)
		long <- err
	}()
	_ = tracker.use(ctx, func(conn *pgconn.PgConn) error { return conn.Conn().Close() })
	if err := <-long; err != nil || !replica {
		t.Errorf("without a watcher: replica %v, %v", replica, err)
	}

	// While nobody reads, nobody looks.
	eventually(t, "the guard rests", func() bool { return !pool.replicas.list()[0].guard.armed.Load() })
	unused(t, pool)
}

// TestConnectionsOutside has the app keep connections to the replica in every way. Reads that get none go to the primary.
func TestConnectionsOutside(t *testing.T) {
	cluster := sharedCluster(t)
	ctx := t.Context()
	const conns = 2
	taken := func(t *testing.T, pool *Pool) {
		t.Helper()
		patiently(t, "a read", func() {
			if replicaServes(t, ctx, pool) {
				t.Error("the replica has a connection left")
			}
		})
	}
	open := func(t *testing.T) *Pool {
		pool := poolIn(t, cluster, "ord", func(c *Config) { c.MaxConns, c.MaxReplicaWait = conns, 200*time.Millisecond })
		awaitReplica(t, ctx, pool)
		return pool
	}
	type holder interface{ Release() }
	hold := func(t *testing.T, pool *Pool, ctx context.Context) (all []holder) {
		t.Helper()
		for range conns {
			// A busy machine may take longer than MaxReplicaWait to open a connection.
			eventually(t, "a connection is acquired", func() bool {
				conn, err := pool.Acquire(ctx)
				if err == nil {
					all = append(all, conn)
				}
				return err == nil
			})
		}
		return all
	}
	home := func(t *testing.T, pool *Pool, all []holder) {
		t.Helper()
		for _, c := range all {
			c.Release()
		}
		awaitReplica(t, ctx, pool)
	}

	t.Run("with replica", func(t *testing.T) {
		pool := open(t)
		for range 2 {
			all := hold(t, pool, WithReplica(ctx))
			taken(t, pool)
			home(t, pool, all)
		}
		unused(t, pool)
	})
	t.Run("replica's pool", func(t *testing.T) {
		pool := open(t)
		var all []holder
		for range conns {
			conn, err := pool.Replica().Acquire(ctx)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, conn)
		}
		taken(t, pool)
		home(t, pool, all)
		unused(t, pool)
	})
	t.Run("hijacked", func(t *testing.T) {
		pool := open(t)
		for range 3 {
			var conn *pgxpool.Conn
			eventually(t, "a connection is acquired", func() bool {
				var err error
				conn, err = pool.Acquire(WithReplica(ctx))
				return err == nil
			})
			hijacked := conn.Hijack()
			if err := hijacked.Close(ctx); err != nil {
				t.Fatal(err)
			}
		}
		all := hold(t, pool, WithReplica(ctx))
		taken(t, pool)
		home(t, pool, all)
		unused(t, pool)
	})
	t.Run("database/sql", func(t *testing.T) {
		pool := open(t)
		db := OpenDB(pool)
		defer db.Close()
		for range conns {
			conn, err := db.Conn(WithReplica(ctx))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			eventually(t, "it has a connection to the replica", func() bool { return conn.PingContext(WithReplica(ctx)) == nil })
		}
		taken(t, pool)
	})
}

// TestGuardHearsWhileThereAreCalls checks that a replica no longer counts as heard from when nobody has used it for a while,
// so that a read which finds it silent then waits no longer than MaxReplicaWait.
func TestGuardHearsWhileThereAreCalls(t *testing.T) {
	pool := poolIn(t, sharedCluster(t), "ord")
	heard := &pool.replicas.list()[0].guard.heard
	eventually(t, "the replica is heard", func() bool {
		if err := pool.QueryRow(t.Context(), "select 1").Scan(new(int)); err != nil {
			t.Fatal(err)
		}
		return heard.Load()
	})
	eventually(t, "the replica is no longer heard", func() bool { return !heard.Load() })
}
