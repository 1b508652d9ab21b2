package flyregion

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
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

// TestReadYourWrites writes in every way while the replica shows nothing new, and reads.
func TestReadYourWrites(t *testing.T) {
	t.Parallel()
	try := readsYourWrites(t, ownCluster(t, nil))
	for _, path := range append(slices.Clone(writePaths), hiddenPaths...) {
		try(path)
	}
}

// TestReadYourAsynchronousWrites has the log flushed seldom. It then shows a position that was asked for too early, or is the
// wrong one.
func TestReadYourAsynchronousWrites(t *testing.T) {
	t.Parallel()
	try := readsYourWrites(t, ownCluster(t, map[string]string{"wal_writer_delay": "10s"}))
	for _, path := range asyncPaths {
		try(path)
	}
	for _, path := range append(slices.Clone(writePaths), hiddenPaths...) {
		path.name = "url " + path.name
		try(path, func(c *Config) { c.ConnConfig.RuntimeParams["synchronous_commit"] = "off" })
	}
}

// readsYourWrites returns a function that writes in one way while the replica in ord shows nothing new, and reads.
func readsYourWrites(t *testing.T, cluster *pgcluster.Cluster) func(writePath, ...func(*Config)) {
	name := table(t, cluster, "id int primary key, v text")
	hide(t, cluster, name)

	id := 0
	return func(path writePath, change ...func(*Config)) {
		t.Run(path.name, func(t *testing.T) {
			id++
			pool := poolIn(t, cluster, "ord", append(change, func(c *Config) {
				c.ConnConfig.RuntimeParams["app.id"] = fmt.Sprint(id)
				c.MaxReplicaWait = time.Minute
			})...)
			freeze(t, cluster)
			if !replicaServes(t, t.Context(), pool) {
				t.Fatal("before the write the replica does not serve")
			}
			// What was read in the middle of a write may not hide what comes after: the replica shows all of it.
			ctx := t.Context()
			between := context.WithValue(ctx, betweenKey{}, func() error {
				ord := cluster.Server("ord")
				return errors.Join(ord.ResumeReplay(ctx), cluster.Leader().Exec(ctx, "insert into "+name+" values (-1000 - $1::int)", id),
					ord.WaitReplayed(ctx), ord.PauseReplay(ctx))
			})
			if err := path.write(between, pool, name, id); err != nil {
				t.Fatal(err)
			}
			var seen bool
			err := pool.QueryRow(t.Context(), "select exists (select from "+name+" where id = $1)", id).Scan(&seen)
			if err != nil || !seen {
				t.Errorf("the read after the write sees it: %v, %v", seen, err)
			}
		})
	}
}

// TestNoStaleRead writes a thousand times in every way, each time followed at once by a read in any way, while the
// replica halts and goes on at random.
func TestNoStaleRead(t *testing.T) {
	const (
		writes  = 1000
		clients = 24
	)
	t.Parallel()
	cluster := ownCluster(t, nil)
	name := table(t, cluster, "id int primary key, v text")
	hide(t, cluster, name)
	cluster.SetLatency("ord", "nrt", 50*time.Millisecond)
	pool := poolIn(t, cluster, "ord", func(c *Config) {
		c.MaxConns, c.MaxReplicaWait = clients, time.Minute
	})
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	ord := cluster.Server("ord")

	// A view, an operator and a failed batch cannot be told from reads, and only so many two-phase commits go at once.
	var paths []writePath
	for _, path := range append(append(append([]writePath{}, writePaths...), hiddenPaths...), asyncPaths...) {
		if !strings.HasPrefix(path.name, "view") && !strings.Contains(path.name, "two-phase") {
			paths = append(paths, path)
		}
	}
	untold := func(path writePath) bool {
		return strings.Contains(path.name, "raw") || strings.Contains(path.name, "another context")
	}

	var (
		wg      sync.WaitGroup
		next    atomic.Int64
		stale   atomic.Int64
		lagging atomic.Int64
		replica atomic.Int64
		mu      sync.Mutex
		done    []int
		rest    sync.WaitGroup
	)
	stop := make(chan struct{})
	rest.Go(func() {
		r := rand.New(rand.NewPCG(seed, 1<<32))
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(r.IntN(200)) * time.Millisecond):
			}
			if err := ord.PauseReplay(context.Background()); err != nil {
				t.Error(err)
				return
			}
			time.Sleep(time.Duration(r.IntN(150)) * time.Millisecond)
			if err := ord.ResumeReplay(context.Background()); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for client := range clients {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(client)))
			ctx := t.Context()
			for {
				id := int(next.Add(1))
				if id > writes || t.Failed() {
					return
				}
				write, read := paths[r.IntN(len(paths))], readPaths[r.IntN(len(readPaths))]
				ids := []int{id}
				own := ctx
				if r.IntN(2) == 0 && !untold(write) {
					own = WithSession(ctx, new(Session))
				}
				if err := write.write(own, pool, name, id); err != nil {
					t.Errorf("%s of %d: %v", write.name, id, err)
					return
				}
				if own == ctx {
					// What others wrote shows too, however long ago.
					mu.Lock()
					if len(done) > 0 {
						ids = append(ids, done[r.IntN(len(done))], done[len(done)-1])
					}
					mu.Unlock()
				}
				want := map[int]bool{}
				for _, id := range ids {
					want[id] = true
				}
				n, err := read.read(own, pool, name, ids)
				mu.Lock()
				done = append(done, id)
				mu.Unlock()
				if errors.Is(err, ErrReplicaLag) && strings.Contains(read.name, "with replica") {
					lagging.Add(1)
					continue
				}
				if err != nil {
					t.Errorf("%s after %s of %d: %v", read.name, write.name, id, err)
				} else if n != len(want) {
					stale.Add(1)
					t.Errorf("stale: %s after %s of %d sees %d of %v", read.name, write.name, id, n, ids)
				}
				var local bool
				if err := pool.QueryRow(own, readOnlySQL).Scan(&local); err != nil {
					t.Error(err)
				} else if local {
					replica.Add(1)
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	rest.Wait()
	t.Logf("%d writes: %d stale reads, %d refused for lag, %d times the replica served at once", writes, stale.Load(), lagging.Load(), replica.Load())
	if replica.Load() == 0 {
		t.Error("the replica never served")
	}
	eventually(t, "no connection is in use", func() bool { return pool.Stat().AcquiredConns() == 0 })
}

// routed is a statement that a test sends with a mark in it, by which the server that ran it is found in the logs.
type routed struct {
	name string
	run  func(ctx context.Context, p *Pool, mark string) error
	want string // the region
}

func markIn(mark string) func(pgx.Tx) error {
	return func(tx pgx.Tx) error { return execs(context.Background(), tx, "select 1 -- "+mark) }
}

// TestRouting asks the servers' logs who did the work of each method.
func TestRouting(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int, v text")
	pool := poolIn(t, cluster, "ord", func(c *Config) { c.MaxReplicaWait = time.Minute })
	if !replicaServes(t, t.Context(), pool) {
		t.Fatal("the replica does not serve")
	}
	const primary, replica = "nrt", "ord"
	queryRow := func(decorate func(context.Context) context.Context, sql string) func(context.Context, *Pool, string) error {
		return func(ctx context.Context, p *Pool, mark string) error {
			return p.QueryRow(decorate(ctx), strings.ReplaceAll(sql, "T", name)+" -- "+mark).Scan(new(int))
		}
	}
	plain := func(ctx context.Context) context.Context { return ctx }
	both := func(ctx context.Context) context.Context { return WithoutWait(WithReplica(ctx)) }
	inTx := func(decorate func(context.Context) context.Context, options pgx.TxOptions) func(context.Context, *Pool, string) error {
		return func(ctx context.Context, p *Pool, mark string) error {
			return pgx.BeginTxFunc(decorate(ctx), p, options, markIn(mark))
		}
	}
	acquired := func(decorate func(context.Context) context.Context) func(context.Context, *Pool, string) error {
		return func(ctx context.Context, p *Pool, mark string) error {
			return p.AcquireFunc(decorate(ctx), func(c *pgxpool.Conn) error { return execs(ctx, c, "select 1 -- "+mark) })
		}
	}
	idle := func(decorate func(context.Context) context.Context) func(context.Context, *Pool, string) error {
		return func(ctx context.Context, p *Pool, mark string) error {
			conns := p.AcquireAllIdle(decorate(ctx))
			if len(conns) == 0 {
				return errors.New("no idle connection")
			}
			err := execs(ctx, conns[0], "select 1 -- "+mark)
			for _, c := range conns {
				c.Release()
			}
			return err
		}
	}
	batch := func(decorate func(context.Context) context.Context, texts ...string) func(context.Context, *Pool, string) error {
		return func(ctx context.Context, p *Pool, mark string) error {
			b := &pgx.Batch{}
			for _, text := range texts {
				b.Queue(strings.ReplaceAll(text, "T", name) + " -- " + mark)
			}
			return p.SendBatch(decorate(ctx), b).Close()
		}
	}
	cases := []routed{
		{"exec of a read", func(ctx context.Context, p *Pool, mark string) error { return execs(ctx, p, "select 1 -- "+mark) }, replica},
		{"exec of a write", func(ctx context.Context, p *Pool, mark string) error {
			return execs(ctx, p, "update "+name+" set id = 1 -- "+mark)
		}, primary},
		{"exec of a setting", func(ctx context.Context, p *Pool, mark string) error {
			return execs(ctx, p, "set application_name = 'x' -- "+mark)
		}, primary},
		{"query row", queryRow(plain, "select 1"), replica},
		{"query row of a write", queryRow(plain, "with w as (insert into T (id) values (1) returning id) select id from w"), primary},
		{"query row for update", queryRow(plain, "select count(*) from (select id from T for update) l"), primary},
		{"query row of a sequence", queryRow(plain, "select count(txid_current())"), primary},
		{"query row, hint primary", queryRow(plain, "/* flyregion:primary */ select 1"), primary},
		{"query row, hint replica", queryRow(plain, "/* flyregion:replica */ select 1"), replica},
		{"query row with primary", queryRow(WithPrimary, "select 1"), primary},
		{"query row with replica", queryRow(WithReplica, "select 1"), replica},
		{"query row with replica, hint primary", queryRow(WithReplica, "/* flyregion:primary */ select 1"), replica},
		{"query row with primary, hint replica", queryRow(WithPrimary, "/* flyregion:replica */ select 1"), primary},
		{"query row without wait", queryRow(WithoutWait, "select 1"), replica},
		{"query row with replica without wait", queryRow(both, "select 1"), replica},
		{"query", func(ctx context.Context, p *Pool, mark string) error {
			rows, err := p.Query(ctx, "select 1 -- "+mark)
			if err != nil {
				return err
			}
			rows.Close()
			return rows.Err()
		}, replica},
		{"begin", inTx(plain, pgx.TxOptions{}), primary},
		{"begin read write", inTx(plain, pgx.TxOptions{AccessMode: pgx.ReadWrite}), primary},
		{"begin read only", inTx(plain, pgx.TxOptions{AccessMode: pgx.ReadOnly}), replica},
		{"begin repeatable read only", inTx(plain, pgx.TxOptions{AccessMode: pgx.ReadOnly, IsoLevel: pgx.RepeatableRead}), replica},
		{"begin serializable", inTx(plain, pgx.TxOptions{IsoLevel: pgx.Serializable}), primary},
		{"begin serializable read only", inTx(plain, pgx.TxOptions{AccessMode: pgx.ReadOnly, IsoLevel: pgx.Serializable}), primary},
		{"begin query", inTx(plain, pgx.TxOptions{AccessMode: pgx.ReadOnly, BeginQuery: "begin"}), primary},
		{"begin with replica", inTx(WithReplica, pgx.TxOptions{}), replica},
		{"begin read only with primary", inTx(WithPrimary, pgx.TxOptions{AccessMode: pgx.ReadOnly}), primary},
		{"begin method", func(ctx context.Context, p *Pool, mark string) error {
			return pgx.BeginFunc(ctx, p, markIn(mark))
		}, primary},
		{"batch of reads", batch(plain, "select 1", "select 2"), replica},
		{"batch with a write", batch(plain, "select 1", "update T set id = 2"), primary},
		{"batch with a hint", batch(plain, "select 1", "/* flyregion:primary */ select 2"), primary},
		{"batch with primary", batch(WithPrimary, "select 1"), primary},
		{"batch with replica", batch(WithReplica, "select 1"), replica},
		{"acquire", acquired(plain), primary},
		{"acquire with primary", acquired(WithPrimary), primary},
		{"acquire with replica", acquired(WithReplica), replica},
		{"acquire all idle", idle(plain), primary},
		{"acquire all idle with replica", idle(WithReplica), replica},
		{"primary", func(ctx context.Context, p *Pool, mark string) error {
			return execs(ctx, p.Primary(), "select 1 -- "+mark)
		}, primary},
		{"replica", func(ctx context.Context, p *Pool, mark string) error {
			return execs(ctx, p.Replica(), "select 1 -- "+mark)
		}, replica},
		{"replica in", func(ctx context.Context, p *Pool, mark string) error {
			return execs(ctx, p.ReplicaIn("ord"), "select 1 -- "+mark)
		}, replica},
		{"replica in nowhere", func(ctx context.Context, p *Pool, mark string) error {
			return execs(ctx, p.ReplicaIn("syd"), "select 1 -- "+mark)
		}, primary},
	}
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			mark := fmt.Sprintf("mark %s %d end", name, i)
			// Before, so that a replica that lags does not send reads away.
			if err := pool.WaitReplayed(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := c.run(t.Context(), pool, mark); err != nil {
				t.Fatal(err)
			}
			ran := map[string]bool{}
			eventually(t, "the statement is in a log", func() bool {
				for _, s := range cluster.Servers() {
					text, err := s.Log()
					if err != nil {
						t.Fatal(err)
					}
					ran[s.Region()] = strings.Contains(text, mark)
				}
				return ran[primary] || ran[replica]
			})
			for region, ran := range ran {
				if ran != (region == c.want) {
					t.Errorf("ran in %s: %v, want it in %s only", region, ran, c.want)
				}
			}
		})
	}

	// Nothing of this was tried on the replica in vain.
	if text, err := cluster.Server("ord").Log(); err != nil || strings.Contains(text, "serializable mode in a hot standby") {
		t.Errorf("a serializable transaction was tried on the replica, %v", err)
	}
	for name, ping := range map[string]struct {
		ctx context.Context
		to  string
	}{"ping": {t.Context(), primary}, "ping with replica": {WithReplica(t.Context()), replica}} {
		before := map[string]int64{primary: cluster.Link("ord", primary).Turns(), replica: cluster.Link("ord", replica).Turns()}
		if err := pool.Ping(ping.ctx); err != nil {
			t.Fatal(err)
		}
		for to, before := range before {
			if got := cluster.Link("ord", to).Turns() - before; (got > 0) != (to == ping.to) {
				t.Errorf("%s: %d turns to %s", name, got, to)
			}
		}
	}

	// A write stays where WithReplica sends it, and the error is the server's.
	var pgErr *pgconn.PgError
	err := execs(WithReplica(t.Context()), pool, "update "+name+" set id = 1")
	if !errors.As(err, &pgErr) || pgErr.Code != "25006" {
		t.Errorf("a write with WithReplica: %v", err)
	}
	if got := pool.Stat().AcquiredConns(); got != 0 {
		t.Errorf("%d connections are in use", got)
	}
}

// TestReadsLeaveNothing counts what reads leave on the link to the primary.
func TestReadsLeaveNothing(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	pool := poolIn(t, cluster, "ord", func(c *Config) { c.MaxReplicaWait = time.Minute })
	ctx := t.Context()
	link := cluster.Link("ord", "nrt")
	read := func() {
		for _, read := range readPaths {
			if read.name == "serializable transaction" || read.name == "with primary" {
				continue
			}
			if _, err := read.read(ctx, pool, name, []int{1}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, when := range []string{"before any write", "after a write that the replica shows"} {
		if when != "before any write" {
			if err := execs(ctx, pool, insertText(name, 1)); err != nil {
				t.Fatal(err)
			}
			if err := pool.WaitReplayed(ctx); err != nil {
				t.Fatal(err)
			}
		}
		turns, conns := link.Turns(), link.Conns()
		sent, got := link.Bytes()
		for range 50 {
			read()
		}
		sentAfter, gotAfter := link.Bytes()
		if turns != link.Turns() || conns != link.Conns() || sent != sentAfter || got != gotAfter {
			t.Errorf("%s: %d turns, %d connections, %d and %d bytes", when, link.Turns()-turns, link.Conns()-conns, sentAfter-sent, gotAfter-got)
		}
	}
}

// TestRoundTrips counts the turns of each kind of write on a warm connection, beside pgxpool's. A latency makes what is
// sent without waiting leave before the answer to what was sent before.
func TestRoundTrips(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int, v text")
	cluster.SetLatency("ord", "nrt", 40*time.Millisecond)
	t.Cleanup(func() { cluster.SetLatency("ord", "nrt", 0) })
	ctx := t.Context()
	link := cluster.Link("ord", "nrt")
	ours := poolIn(t, cluster, "ord", func(c *Config) { c.MaxConns = 1 })
	theirs := rawPool(t, cluster, "ord", func(c *Config) { c.MaxConns = 1 })

	type pool interface {
		Exec(context.Context, string, ...any) (pgconn.CommandTag, error)
		Query(context.Context, string, ...any) (pgx.Rows, error)
		QueryRow(context.Context, string, ...any) pgx.Row
		SendBatch(context.Context, *pgx.Batch) pgx.BatchResults
		CopyFrom(context.Context, pgx.Identifier, []string, pgx.CopyFromSource) (int64, error)
		Begin(context.Context) (pgx.Tx, error)
		AcquireFunc(context.Context, func(*pgxpool.Conn) error) error
	}
	insert := "insert into " + name + " (id, v) values ($1, $2) returning id"
	cases := []struct {
		name  string
		write func(p pool) error
		most  int64 // 0: as many as pgxpool
	}{
		{"exec", func(p pool) error { _, err := p.Exec(ctx, insert, 1, "x"); return err }, 1},
		{"exec without arguments", func(p pool) error { return execs(ctx, p, insertText(name, 1)) }, 1},
		{"exec of a large value", func(p pool) error { _, err := p.Exec(ctx, insert, 1, strings.Repeat("x", 100_000)); return err }, 1},
		{"exec mode exec", func(p pool) error { _, err := p.Exec(ctx, insert, pgx.QueryExecModeExec, 1, "x"); return err }, 1},
		{"exec mode simple", func(p pool) error { _, err := p.Exec(ctx, insert, pgx.QueryExecModeSimpleProtocol, 1, "x"); return err }, 1},
		{"exec mode cache describe", func(p pool) error { _, err := p.Exec(ctx, insert, pgx.QueryExecModeCacheDescribe, 1, "x"); return err }, 1},
		{"exec mode describe", func(p pool) error { _, err := p.Exec(ctx, insert, pgx.QueryExecModeDescribeExec, 1, "x"); return err }, 0},
		{"query", func(p pool) error {
			rows, err := p.Query(ctx, insert, 1, "x")
			if err != nil {
				return err
			}
			_, err = pgx.CollectRows(rows, pgx.RowTo[int])
			return err
		}, 1},
		{"query row", func(p pool) error { return p.QueryRow(ctx, insert, 1, "x").Scan(new(int)) }, 1},
		{"batch", func(p pool) error {
			b := &pgx.Batch{}
			for i := range 10 {
				b.Queue(insert, i, "x")
			}
			return p.SendBatch(ctx, b).Close()
		}, 1},
		{"copy from", func(p pool) error {
			_, err := p.CopyFrom(ctx, pgx.Identifier{name}, []string{"id", "v"}, pgx.CopyFromRows([][]any{{1, "x"}, {2, "y"}}))
			return err
		}, 0},
		{"transaction", func(p pool) error {
			return pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error { _, err := tx.Exec(ctx, insert, 1, "x"); return err })
		}, 2},
		{"transaction without arguments", func(p pool) error {
			return pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error { return execs(ctx, tx, insertText(name, 1)) })
		}, 2},
		{"acquired", func(p pool) error {
			return p.AcquireFunc(ctx, func(c *pgxpool.Conn) error { _, err := c.Exec(ctx, insert, 1, "x"); return err })
		}, 1},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			count := func(p pool) int64 {
				for range 2 {
					if err := c.write(p); err != nil {
						t.Fatal(err)
					}
				}
				before := link.Turns()
				if err := c.write(p); err != nil {
					t.Fatal(err)
				}
				return link.Turns() - before
			}
			own, other := count(ours), count(theirs)
			t.Logf("flyregion %d, pgxpool %d", own, other)
			if own > other || c.most > 0 && own > c.most {
				t.Errorf("flyregion takes %d turns, pgxpool %d, want %d at most", own, other, c.most)
			}
		})
	}

	t.Run("after idle time", func(t *testing.T) {
		if err := cases[0].write(ours); err != nil {
			t.Fatal(err)
		}
		time.Sleep(1200 * time.Millisecond)
		before := link.Turns()
		if err := cases[0].write(ours); err != nil {
			t.Fatal(err)
		}
		if turns := link.Turns() - before; turns != 1 {
			t.Errorf("flyregion takes %d turns", turns)
		}
	})
}

// TestFirstUse counts the turns of a write whose text a warm connection has never seen, in every mode that pgx has.
func TestFirstUse(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int, v text")
	cluster.SetLatency("ord", "nrt", 40*time.Millisecond)
	t.Cleanup(func() { cluster.SetLatency("ord", "nrt", 0) })
	ctx := t.Context()
	link := cluster.Link("ord", "nrt")
	one := func(c *Config) { c.MaxConns = 1 }
	pools := map[string]interface {
		Exec(context.Context, string, ...any) (pgconn.CommandTag, error)
		SendBatch(context.Context, *pgx.Batch) pgx.BatchResults
	}{"flyregion": poolIn(t, cluster, "ord", one), "pgxpool": rawPool(t, cluster, "ord", one)}

	for _, c := range []struct {
		mode          pgx.QueryExecMode
		first, second int64
	}{
		{pgx.QueryExecModeCacheStatement, 2, 1},
		{pgx.QueryExecModeCacheDescribe, 2, 1},
		{pgx.QueryExecModeDescribeExec, 2, 2},
		{pgx.QueryExecModeExec, 1, 1},
		{pgx.QueryExecModeSimpleProtocol, 1, 1},
	} {
		for of, p := range pools {
			insert := fmt.Sprintf("insert into %s (id, v) values ($1, $2) -- %v, %s", name, c.mode, of)
			if _, err := p.Exec(ctx, "update "+name+" set id = 0"); err != nil {
				t.Fatal(err)
			}
			var took [2]int64
			for i := range took {
				before := link.Turns()
				if _, err := p.Exec(ctx, insert, c.mode, i, "x"); err != nil {
					t.Fatal(err)
				}
				took[i] = link.Turns() - before
			}
			if took != [2]int64{c.first, c.second} {
				t.Errorf("%v with %s takes %d turns, want %d and then %d", c.mode, of, took, c.first, c.second)
			}
		}
	}

	// However many of a batch's texts are new, they cost one more turn in all.
	for of, p := range pools {
		before := link.Turns()
		b := &pgx.Batch{}
		for i := range 5 {
			b.Queue(fmt.Sprintf("insert into %s (id, v) values ($1, $2) -- batch %d", name, i), i, "x")
		}
		if err := p.SendBatch(ctx, b).Close(); err != nil {
			t.Fatal(err)
		}
		if turns := link.Turns() - before; turns != 2 {
			t.Errorf("a batch of new texts with %s takes %d turns", of, turns)
		}
	}
}
