package flyregion

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flyregion/flyregion/internal/pgcluster"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// unused checks that a pool has all its connections back and can be closed.
func unused(t testing.TB, pool *Pool) {
	t.Helper()
	eventually(t, "no connection is in use", func() bool { return pool.Stat().AcquiredConns() == 0 })
	closed := make(chan struct{})
	go func() { pool.Close(); close(closed) }()
	select {
	case <-closed:
	case <-time.After(30 * time.Second):
		buf := make([]byte, 1<<20)
		t.Fatalf("Close does not return:\n%s", buf[:runtime.Stack(buf, true)])
	}
}

// awaitReplica waits until the replica serves a read.
func awaitReplica(t testing.TB, ctx context.Context, pool *Pool) {
	t.Helper()
	eventually(t, "the replica serves", func() bool { return replicaServes(t, ctx, pool) })
}

// counts returns how many rows of a table a read sees. No error is expected.
func counts(t testing.TB, ctx context.Context, pool *Pool, table string) (n int) {
	t.Helper()
	if err := pool.QueryRow(ctx, "select count(*) from "+table).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestReplicaUnreachable breaks the path to the replica in both ways. Reads go to the primary meanwhile, and to the replica
// again afterwards.
func TestReplicaUnreachable(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	link := cluster.Link("ord", "ord")
	t.Cleanup(link.Restore)
	ctx := t.Context()
	for what, breaks := range map[string]func(){"cut": link.Cut, "stalled": link.Stall} {
		t.Run(what, func(t *testing.T) {
			pool := poolIn(t, cluster, "ord", func(c *Config) { c.MaxReplicaWait = 300 * time.Millisecond })
			awaitReplica(t, ctx, pool)
			before := counts(t, ctx, pool, name)
			// A connection that answered a moment ago is taken for alive, by pgxpool too.
			time.Sleep(1100 * time.Millisecond)
			breaks()
			for i := range 5 {
				if err := execs(ctx, pool, insertText(name, 1000+before+i)); err != nil {
					t.Fatal(err)
				}
				if n := counts(t, ctx, pool, name); n != before+i+1 {
					t.Errorf("%d rows, want %d", n, before+i+1)
				}
				if replicaServes(t, ctx, pool) {
					t.Error("a replica out of reach serves")
				}
			}
			if tx, err := pool.BeginTx(ctx, pgx.TxOptions{AccessMode: pgx.ReadOnly}); err != nil {
				t.Error(err)
			} else {
				_ = tx.Rollback(ctx)
			}
			limited, cancel := context.WithTimeout(ctx, 20*time.Second)
			defer cancel()
			if err := pool.QueryRow(WithReplica(limited), "select 1").Scan(new(int)); err == nil || limited.Err() != nil {
				t.Errorf("WithReplica without a replica: %v", err)
			}
			link.Restore()
			awaitReplica(t, ctx, pool)
			if n := counts(t, ctx, pool, name); n != before+5 {
				t.Errorf("%d rows, want %d", n, before+5)
			}
			unused(t, pool)
		})
	}
}

// TestReplicaNeverReached has no replica from the start, and none later.
func TestReplicaNeverReached(t *testing.T) {
	cluster := sharedCluster(t)
	link := cluster.Link("ord", "ord")
	link.Cut()
	t.Cleanup(link.Restore)
	pool := poolIn(t, cluster, "ord")
	for range 20 {
		if replicaServes(t, t.Context(), pool) {
			t.Fatal("a replica out of reach serves")
		}
	}
	unused(t, pool)
}

// TestReplicaForgets loses connections without a word: the network drops their bytes for ever, and lets new ones pass.
// Whoever waited on one of them, the watcher too, does not keep reads from the replica afterwards.
func TestReplicaForgets(t *testing.T) {
	t.Parallel()
	cluster := ownCluster(t, nil)
	name := table(t, cluster, "id int primary key, v text")
	ctx := t.Context()
	var generation atomic.Int64
	pool := poolIn(t, cluster, "ord", func(c *Config) {
		c.MaxReplicaWait = 300 * time.Millisecond
		wrapConns(func(conn net.Conn) net.Conn { return newForgetful(conn, &generation) })(c)
	})
	awaitReplica(t, ctx, pool)
	thaw := freeze(t, cluster)
	if err := execs(ctx, pool, insertText(name, 1)); err != nil {
		t.Fatal(err)
	}
	// The watcher asks while somebody waits.
	waiting, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { _ = pool.WaitReplayed(waiting) })
	eventually(t, "the watcher asks", func() bool {
		o := pool.replicas.list()[0].tracker.latest.Load()
		return o != nil
	})
	pool.Primary().Reset()
	generation.Add(1)
	thaw()
	time.Sleep(1100 * time.Millisecond) // so that connections are proved before they are used
	cancel()
	wg.Wait()
	if n := counts(t, ctx, pool, name); n != 1 {
		t.Errorf("%d rows, want 1", n)
	}
	if err := execs(ctx, pool, insertText(name, 2)); err != nil {
		t.Fatal(err)
	}
	awaitReplica(t, ctx, pool)
	if n := counts(t, ctx, pool, name); n != 2 {
		t.Errorf("%d rows, want 2", n)
	}
	unused(t, pool)
}

// forgetful is a connection that drops everything once the generation has changed.
type forgetful struct {
	net.Conn
	born       int64
	generation *atomic.Int64
	closed     chan struct{}
	once       sync.Once

	mu       sync.Mutex
	deadline time.Time
	changed  chan struct{}
}

func newForgetful(conn net.Conn, generation *atomic.Int64) *forgetful {
	return &forgetful{Conn: conn, born: generation.Load(), generation: generation, closed: make(chan struct{}), changed: make(chan struct{})}
}

func (c *forgetful) lost() bool { return c.generation.Load() != c.born }

func (c *forgetful) Read(p []byte) (int, error) {
	for {
		c.mu.Lock()
		deadline, changed := c.deadline, c.changed
		c.mu.Unlock()
		if !c.lost() {
			// In short turns, so that the loss is noticed.
			until := time.Now().Add(20 * time.Millisecond)
			late := !deadline.IsZero() && deadline.Before(until)
			if late {
				until = deadline
			}
			_ = c.Conn.SetReadDeadline(until)
			n, err := c.Conn.Read(p)
			if n == 0 && errors.Is(err, os.ErrDeadlineExceeded) && !late {
				continue
			}
			if !c.lost() {
				return n, err
			}
		}
		var timer <-chan time.Time
		if !deadline.IsZero() {
			timer = time.After(time.Until(deadline))
		}
		select {
		case <-c.closed:
			return 0, net.ErrClosed
		case <-changed:
		case <-timer:
			return 0, &net.OpError{Op: "read", Err: timeoutError{}}
		}
	}
}

type timeoutError struct{}

func (timeoutError) Error() string   { return "i/o timeout" }
func (timeoutError) Timeout() bool   { return true }
func (timeoutError) Temporary() bool { return true }

func (c *forgetful) Write(p []byte) (int, error) {
	if c.lost() {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

func (c *forgetful) SetDeadline(at time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = at
	close(c.changed)
	c.changed = make(chan struct{})
	return nil
}

func (c *forgetful) SetReadDeadline(at time.Time) error { return c.SetDeadline(at) }

func (c *forgetful) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// TestPrimaryUnreachable breaks the path to the primary. The replica serves, and writes fail at once with pgx's own error.
func TestPrimaryUnreachable(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	pool := poolIn(t, cluster, "ord")
	ctx := t.Context()
	link := cluster.Link("ord", "nrt")
	t.Cleanup(link.Restore)

	for _, warm := range []bool{false, true} {
		if warm {
			if err := execs(ctx, pool, insertText(name, 1)); err != nil {
				t.Fatal(err)
			}
			awaitReplica(t, ctx, pool)
		}
		link.Cut()
		for range 10 {
			if !replicaServes(t, ctx, pool) {
				t.Error("the replica does not serve")
			}
		}
		var rows int
		if err := pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
			return tx.QueryRow(ctx, "select count(*) from "+name).Scan(&rows)
		}); err != nil {
			t.Error(err)
		}
		raw := rawPool(t, cluster, "ord")
		_, theirs := raw.Exec(ctx, insertText(name, 9))
		raw.Close()
		for what, write := range map[string]func() error{
			"exec":      func() error { return execs(ctx, pool, insertText(name, 9)) },
			"query row": func() error { return pool.QueryRow(ctx, insertSQL(name)+" returning id", 9).Scan(new(int)) },
			"begin": func() error {
				return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return execs(ctx, tx, insertText(name, 9)) })
			},
			"batch": func() error { return pool.SendBatch(ctx, batchOf(insertText(name, 9))).Close() },
			"copy": func() error {
				_, err := pool.CopyFrom(ctx, pgx.Identifier{name}, []string{"id"}, pgx.CopyFromRows([][]any{{9}}))
				return err
			},
			"acquire":   func() error { return pool.AcquireFunc(ctx, func(*pgxpool.Conn) error { return nil }) },
			"ping":      func() error { return pool.Ping(ctx) },
			"with hint": func() error { return execs(ctx, pool, "/* flyregion:primary */ select 1") },
		} {
			pool.Primary().Reset() // pgxpool, too, finds a dead connection out by using it
			err := write()
			var connectError *pgconn.ConnectError
			if !errors.As(err, &connectError) || fmt.Sprintf("%T", err) != fmt.Sprintf("%T", theirs) {
				t.Errorf("%s: %v (%T), with pgxpool %v (%T)", what, err, err, theirs, theirs)
			}
		}
		link.Restore()
		if err := execs(ctx, pool, insertText(name, 100+rows)); err != nil {
			t.Errorf("after the restoration: %v", err)
		}
		if n := counts(t, ctx, pool, name); n != rows+1 {
			t.Errorf("%d rows, want %d", n, rows+1)
		}
	}
	unused(t, pool)
}

// TestServersKilled kills and restarts each server in turn.
func TestServersKilled(t *testing.T) {
	t.Parallel()
	cluster := ownCluster(t, nil)
	name := table(t, cluster, "id int primary key, v text")
	pool := poolIn(t, cluster, "ord", func(c *Config) { c.MaxReplicaWait = 2 * time.Second })
	ctx := t.Context()
	nrt, ord := cluster.Server("nrt"), cluster.Server("ord")
	rows := 0
	write := func() {
		t.Helper()
		eventually(t, "a write succeeds", func() bool {
			rows++
			return execs(ctx, pool, insertText(name, rows)) == nil
		})
	}
	check := func() {
		t.Helper()
		var want int
		if err := queryOne(ctx, nrt, "select count(*) from "+name, &want); err != nil {
			t.Fatal(err)
		}
		if n := counts(t, ctx, pool, name); n != want {
			t.Errorf("stale: %d rows, want %d", n, want)
		}
	}
	write()
	awaitReplica(t, ctx, pool)

	// The replica dies: reads go to the primary, unseen.
	if err := ord.Kill(); err != nil {
		t.Fatal(err)
	}
	check()
	write()
	check()
	if replicaServes(t, ctx, pool) {
		t.Error("a dead replica serves")
	}
	if err := ord.Start(ctx); err != nil {
		t.Fatal(err)
	}
	check()
	awaitReplica(t, ctx, pool)
	check()

	// It shuts down in the middle of a read: the read is run on the primary.
	started := make(chan error, 1)
	go func() {
		var n int
		err := pool.QueryRow(ctx, "select count(*) from (select pg_sleep(2)) s").Scan(&n)
		if err == nil && n != 1 {
			err = fmt.Errorf("%d rows", n)
		}
		started <- err
	}()
	eventually(t, "the read runs on the replica", func() bool {
		var n int
		return queryOne(ctx, ord, "select count(*) from pg_stat_activity where query like '%pg_sleep(2)%' and pid <> pg_backend_pid()", &n) == nil && n == 1
	})
	if err := ord.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-started; err != nil {
		t.Errorf("a read whose server was shut down: %v", err)
	}
	check()
	awaitReplica(t, ctx, pool)

	// The primary restarts, then dies. Reads stay where they are.
	if err := nrt.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	write()
	check()
	awaitReplica(t, ctx, pool)
	if err := nrt.Kill(); err != nil {
		t.Fatal(err)
	}
	if n := counts(t, ctx, pool, name); n == 0 {
		t.Error("no rows")
	}
	if err := execs(ctx, pool, insertText(name, 1_000_000)); err == nil {
		t.Error("a dead primary was written to")
	}
	if err := nrt.Start(ctx); err != nil {
		t.Fatal(err)
	}
	write()
	check()
	awaitReplica(t, ctx, pool)
	check()
	unused(t, pool)
}

// TestPrimaryKilledWhileWriting kills the primary under writes of every kind. What has returned is there, and nothing is
// there twice.
func TestPrimaryKilledWhileWriting(t *testing.T) {
	t.Parallel()
	cluster := ownCluster(t, nil)
	name := table(t, cluster, "id int, v text")
	pool := poolIn(t, cluster, "ord", func(c *Config) { c.MaxConns, c.MaxReplicaWait = 8, 2*time.Second })
	ctx := t.Context()
	nrt := cluster.Server("nrt")

	var (
		wg     sync.WaitGroup
		next   atomic.Int64
		mu     sync.Mutex
		done   []int
		failed int
	)
	stop := make(chan struct{})
	for range 8 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				id := int(next.Add(1))
				path := writePaths[id%len(writePaths)]
				if strings.Contains(path.name, "acquired") || strings.Contains(path.name, "failure") || strings.Contains(path.name, "fails") {
					continue
				}
				err := path.write(ctx, pool, name, id)
				mu.Lock()
				if err == nil {
					done = append(done, id)
				} else {
					failed++
				}
				mu.Unlock()
				if err != nil {
					time.Sleep(5 * time.Millisecond)
				}
			}
		})
	}
	for range 3 {
		mu.Lock()
		before := len(done)
		mu.Unlock()
		eventually(t, "writes go on", func() bool { mu.Lock(); defer mu.Unlock(); return len(done) > before+50 })
		if err := nrt.Kill(); err != nil {
			t.Error(err)
		}
		if err := nrt.Start(ctx); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	wg.Wait()
	t.Logf("%d writes, %d failures", len(done), failed)
	var lost, twice int
	lostSQL := fmt.Sprintf("select count(*) from unnest('{%s}'::int[]) d (id) where d.id not in (select id from %s)",
		strings.Trim(strings.ReplaceAll(fmt.Sprint(done), " ", ","), "[]"), name)
	if err := queryOne(ctx, nrt, lostSQL, &lost); err != nil || lost > 0 {
		t.Errorf("%d writes that had returned are lost, %v", lost, err)
	}
	if err := queryOne(ctx, nrt, "select count(*) from (select id from "+name+" group by id having count(*) > 1) d", &twice); err != nil || twice > 0 {
		t.Errorf("%d writes were done twice, %v", twice, err)
	}
	var n int
	if err := pool.QueryRow(ctx, "select count(distinct id) from "+name+" where id = any($1)", done).Scan(&n); err != nil || n != len(done) {
		t.Errorf("stale: %d rows of %d, %v", n, len(done), err)
	}
	unused(t, pool)
}

// TestPrimaryRestartsQuietly restarts the primary while nobody writes. Reads that notice go to the replica again, without a write in between.
func TestPrimaryRestartsQuietly(t *testing.T) {
	t.Parallel()
	cluster := ownCluster(t, nil)
	name := table(t, cluster, "id int primary key, v text")
	pool := poolIn(t, cluster, "ord", func(c *Config) { c.MaxReplicaWait = 2 * time.Second })
	ctx := t.Context()
	if err := execs(ctx, pool, insertText(name, 1)); err != nil {
		t.Fatal(err)
	}
	awaitReplica(t, ctx, pool)
	if err := cluster.Server("nrt").Restart(ctx); err != nil {
		t.Fatal(err)
	}
	// A new connection tells that the primary is another.
	eventually(t, "the primary can be reached", func() bool { return pool.Primary().QueryRow(ctx, "select 1").Scan(new(int)) == nil })
	awaitReplica(t, ctx, pool)

	// The same for a session of its own.
	own := WithSession(ctx, new(Session))
	if err := execs(own, pool, insertText(name, 2)); err != nil {
		t.Fatal(err)
	}
	if err := cluster.Server("nrt").Restart(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the primary can be reached", func() bool { return pool.Primary().QueryRow(ctx, "select 1").Scan(new(int)) == nil })
	awaitReplica(t, own, pool)
	unused(t, pool)
}

// TestReplicaCrashes has the replica lose what it had replayed: it comes back as it was at its last restartpoint. What
// was known of it before says nothing any more.
func TestReplicaCrashes(t *testing.T) {
	t.Parallel()
	cluster := ownCluster(t, map[string]string{"max_wal_size": "1GB", "checkpoint_timeout": "1h"})
	name := table(t, cluster, "id int primary key, v text")
	pool := poolIn(t, cluster, "ord", func(c *Config) { c.MaxReplicaWait = 500 * time.Millisecond })
	ctx := t.Context()
	nrt, ord := cluster.Server("nrt"), cluster.Server("ord")
	// A restartpoint, before which nothing can be lost.
	for _, s := range []*pgcluster.Server{nrt, ord} {
		if s == ord {
			if err := ord.WaitReplayed(ctx); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Exec(ctx, "checkpoint"); err != nil {
			t.Fatal(err)
		}
	}
	stale := func(when string, want int) {
		t.Helper()
		for _, read := range readPaths {
			ids := make([]int, want)
			for i := range ids {
				ids[i] = i + 1
			}
			limited, cancel := context.WithTimeout(ctx, 10*time.Second)
			if read.name == "wait replayed" {
				limited, cancel = context.WithTimeout(ctx, 100*time.Millisecond)
			}
			n, err := read.read(limited, pool, name, ids)
			if err != nil && when == "in the crash" && (strings.Contains(read.name, "transaction") || read.name == "read-only snapshot") {
				// A transaction that was open ends with its server, as with pgxpool. The next one does not.
				n, err = read.read(limited, pool, name, ids)
			}
			cancel()
			switch {
			case err == nil && n != want:
				t.Errorf("stale %s: %s sees %d rows of %d", when, read.name, n, want)
			case err != nil && read.name != "with replica" && read.name != "acquired with replica" && read.name != "wait replayed":
				t.Errorf("%s: %s: %v", when, read.name, err)
			}
		}
	}
	rows := 0
	for round := range 3 {
		for range 5 {
			rows++
			if err := execs(ctx, pool, insertText(name, rows)); err != nil {
				t.Fatal(err)
			}
			if n := counts(t, ctx, pool, name); n != rows {
				t.Fatalf("stale: %d rows of %d", n, rows)
			}
		}
		awaitReplica(t, ctx, pool) // so that the tracker has seen the last position
		if err := pool.WaitReplayed(ctx); err != nil {
			t.Fatal(err)
		}
		// The replica receives nothing any more, and replays what it has as slowly as we like.
		if err := ord.Exec(ctx, "alter system set recovery_min_apply_delay = '1h'"); err != nil {
			t.Fatal(err)
		}
		if err := ord.Exec(ctx, "select pg_reload_conf()"); err != nil {
			t.Fatal(err)
		}
		cluster.Replication("ord").Cut()
		switch round {
		case 0:
			if err := ord.Crash(ctx); err != nil {
				t.Fatal(err)
			}
		case 1:
			if err := ord.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := ord.Start(ctx); err != nil {
				t.Fatal(err)
			}
		case 2:
			var wg sync.WaitGroup
			wg.Go(func() { stale("in the crash", rows) })
			if err := ord.Crash(ctx); err != nil {
				t.Error(err)
			}
			wg.Wait()
		}
		var there int
		if err := queryOne(ctx, ord, "select count(*) from "+name, &there); err != nil {
			t.Fatal(err)
		}
		if there >= rows {
			t.Errorf("the replica has lost nothing: it shows %d rows of %d", there, rows)
		}
		stale("after the crash", rows)
		for _, change := range []string{"alter system reset recovery_min_apply_delay", "select pg_reload_conf()"} {
			if err := ord.Exec(ctx, change); err != nil {
				t.Fatal(err)
			}
		}
		cluster.Replication("ord").Restore()
		awaitReplica(t, ctx, pool)
		if n := counts(t, ctx, pool, name); n != rows {
			t.Errorf("stale: %d rows of %d", n, rows)
		}
	}
	unused(t, pool)
}

// TestPromotion makes the replica the primary while the app reads and writes, and makes it the replica again.
func TestPromotion(t *testing.T) {
	t.Parallel()
	cluster := ownCluster(t, nil)
	name := table(t, cluster, "id int primary key, v text")
	pool := poolIn(t, cluster, "ord", func(c *Config) { c.MaxReplicaWait = 2 * time.Second })
	ctx := t.Context()

	var wg sync.WaitGroup
	stop := make(chan struct{})
	var mu sync.Mutex
	var done []int
	var next, failed atomic.Int64
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				id := int(next.Add(1))
				if err := execs(ctx, pool, insertText(name, id)); err != nil {
					failed.Add(1)
					time.Sleep(5 * time.Millisecond)
					continue
				}
				mu.Lock()
				done = append(done, id)
				ids := append([]int{}, done[max(0, len(done)-20):]...)
				mu.Unlock()
				var n int
				if err := pool.QueryRow(ctx, countSQL(name), ids).Scan(&n); err != nil {
					failed.Add(1)
				} else if n != len(ids) {
					t.Errorf("stale: %d rows of %v", n, ids)
				}
			}
		})
	}
	for _, region := range []string{"ord", "nrt"} {
		before := len(done)
		eventually(t, "writes go on", func() bool { mu.Lock(); defer mu.Unlock(); return len(done) > before+20 })
		if err := cluster.Promote(ctx, region); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		before = len(done)
		mu.Unlock()
		eventually(t, "writes go on after "+region+" was promoted", func() bool { mu.Lock(); defer mu.Unlock(); return len(done) > before+20 })
	}
	close(stop)
	wg.Wait()
	t.Logf("%d writes, %d failures", len(done), failed.Load())

	var n int
	if err := pool.QueryRow(ctx, countSQL(name), done).Scan(&n); err != nil || n != len(done) {
		t.Errorf("%d rows of %d, %v", n, len(done), err)
	}
	awaitReplica(t, ctx, pool)
	if err := pool.QueryRow(ctx, countSQL(name), done).Scan(&n); err != nil || n != len(done) {
		t.Errorf("%d rows of %d, %v", n, len(done), err)
	}
	unused(t, pool)
}

// TestReplicaOfALostBranch fails over to a server that had less than another replica. The latter goes on with positions
// that mean nothing in the new primary's log.
func TestReplicaOfALostBranch(t *testing.T) {
	t.Parallel()
	cluster, err := pgcluster.Start(t.Context(), pgcluster.Config{Replicas: []string{"ord", "syd"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.Stop(); err != nil {
			t.Error(err)
		}
	})
	ctx := t.Context()
	name := table(t, cluster, "id int primary key, v text")
	pool := poolIn(t, cluster, "syd", func(c *Config) { c.MaxReplicaWait = time.Second })
	if err := cluster.Server("ord").WaitReplayed(ctx); err != nil {
		t.Fatal(err)
	}
	cluster.Replication("ord").Cut()
	for i := range 50 { // lost, but for syd
		if err := execs(ctx, pool, insertText(name, -1-i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := cluster.Server("syd").WaitReplayed(ctx); err != nil {
		t.Fatal(err)
	}
	if err := cluster.Server("nrt").Kill(); err != nil {
		t.Fatal(err)
	}
	cluster.Replication("ord").Restore()
	if err := cluster.Promote(ctx, "ord"); err != nil {
		t.Fatal(err)
	}
	id := 0
	check := func(t *testing.T, pool *Pool) {
		id++
		eventually(t, "a write succeeds", func() bool {
			return execs(ctx, pool, fmt.Sprintf("insert into %s values (%d) on conflict do nothing", name, id)) == nil
		})
		var n int
		if err := pool.QueryRow(ctx, "select count(*) from "+name+" where id > 0").Scan(&n); err != nil || n != id {
			t.Errorf("stale: %d rows of %d, %v", n, id, err)
		}
	}
	t.Run("new pool", func(t *testing.T) {
		check(t, poolIn(t, cluster, "syd", func(c *Config) { c.MaxReplicaWait = time.Second }))
	})
	t.Run("old pool", func(t *testing.T) {
		for range 3 {
			check(t, pool)
		}
	})
	unused(t, pool)
}

// TestReplicaConflict has replay end a read, as it would not wait for its snapshot.
func TestReplicaConflict(t *testing.T) {
	t.Parallel()
	cluster := ownCluster(t, map[string]string{"max_standby_streaming_delay": "0"})
	name := table(t, cluster, "id int primary key, v text")
	ctx := t.Context()
	pool := poolIn(t, cluster, "ord", func(c *Config) { c.MaxReplicaWait = 30 * time.Second })
	ord := cluster.Server("ord")
	if err := cluster.Leader().Exec(ctx, "insert into "+name+" select i, 'x' from generate_series(1, 2000) i"); err != nil {
		t.Fatal(err)
	}
	conflict := func() error {
		return errors.Join(
			cluster.Leader().Exec(ctx, "update "+name+" set v = v || 'y'"),
			cluster.Leader().Exec(ctx, "vacuum "+name),
		)
	}
	running := func() bool {
		var n int
		return queryOne(ctx, ord, "select count(*) from pg_stat_activity where query like '%pg_sleep(1.5)%' and pid <> pg_backend_pid()", &n) == nil && n > 0
	}
	const slow = "select count(*) from %s, (select pg_sleep(1.5)) s"

	t.Run("before the first row", func(t *testing.T) {
		if err := ord.WaitReplayed(ctx); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for what, read := range map[string]func(sql string) (int, error){
			"query row": func(sql string) (n int, err error) { return n, pool.QueryRow(ctx, sql).Scan(&n) },
			"query": func(sql string) (int, error) {
				rows, err := pool.Query(ctx, sql)
				if err != nil {
					return 0, err
				}
				return pgx.CollectExactlyOneRow(rows, pgx.RowTo[int])
			},
			"query, closed": func(sql string) (int, error) {
				rows, err := pool.Query(ctx, sql)
				if err != nil {
					return 0, err
				}
				rows.Close()
				return 2000, rows.Err()
			},
			"exec": func(sql string) (int, error) {
				tag, err := pool.Exec(ctx, sql)
				return 2000 * int(tag.RowsAffected()), err
			},
			"batch": func(sql string) (n int, err error) {
				b := &pgx.Batch{}
				b.Queue(sql).QueryRow(func(row pgx.Row) error { return row.Scan(&n) })
				b.Queue("select 1")
				return n, pool.SendBatch(ctx, b).Close()
			},
		} {
			wg.Go(func() {
				if n, err := read(fmt.Sprintf(slow, name)); err != nil || n != 2000 {
					t.Errorf("%s: %d, %v", what, n, err)
				}
			})
		}
		eventually(t, "the reads run on the replica", running)
		if err := conflict(); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		text, err := ord.Log()
		if err != nil || !strings.Contains(text, "canceling statement due to conflict with recovery") {
			t.Errorf("there was no conflict: %v", err)
		}
	})
	t.Run("after the first row", func(t *testing.T) {
		if err := ord.WaitReplayed(ctx); err != nil {
			t.Fatal(err)
		}
		var rows pgx.Rows
		eventually(t, "the read runs on the replica", func() bool {
			var err error
			rows, err = pool.Query(ctx, "select id, case id when 1 then null else pg_sleep(0.01) end, repeat('w', 20000) from "+name+" order by id", pgx.QueryExecModeExec)
			if err != nil {
				t.Fatal(err)
			}
			// A busy replica may have been passed over.
			if rows.Conn().PgConn().ParameterStatus("in_hot_standby") != "on" {
				_ = rows.Conn().Close(ctx)
				rows.Close()
				// Whether a read that lost its connection has written is not known, so that the next would follow it.
				awaitReplica(t, ctx, pool)
				return false
			}
			return true
		})
		defer rows.Close()
		if !rows.Next() {
			t.Fatalf("no row: %v", rows.Err())
		}
		if err := conflict(); err != nil {
			t.Fatal(err)
		}
		for rows.Next() {
		}
		var pgErr *pgconn.PgError
		if !errors.As(rows.Err(), &pgErr) || pgErr.Code != "40001" {
			t.Errorf("the conflict after the first row: %v", rows.Err())
		}
	})
	unused(t, pool)
}

// TestSlowPrepareConn has the app's hook still run on the replica when the time for a connection to it is over. That the
// hook ends then is no error of the app's.
func TestSlowPrepareConn(t *testing.T) {
	t.Parallel()
	pool := poolIn(t, sharedCluster(t), "ord", func(c *Config) {
		c.MinReplicaWait, c.MaxReplicaWait = 0, 200*time.Millisecond
		c.PrepareConn = func(ctx context.Context, conn *pgx.Conn) (bool, error) {
			if conn.Config().Port != replicaPort {
				return true, nil
			}
			<-ctx.Done()
			return false, ctx.Err()
		}
	})
	// The first connections are made without a limit where the replica has just answered.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := pool.QueryRow(ctx, "select 1").Scan(new(int)); err != nil {
		t.Error(err)
	}
	unused(t, pool)
}
