package flyregion

import (
	"bytes"
	"context"
	"errors"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flyregion/flyregion/internal/pgcluster"
	"github.com/jackc/pgx/v5"
)

// otherProcess returns a connection to the primary that a Pool knows nothing of.
func otherProcess(t testing.TB, cluster *pgcluster.Cluster) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), cluster.Leader().ConnString())
	noError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// pathsOfReads are the ways to read that a context widens or narrows.
func pathsOfReads() (paths []readPath) {
	for _, path := range entryReads {
		inSchema := strings.Contains(path.name, "function")
		if path.name != "wait replayed" && !inSchema && !strings.Contains(path.name, "setting") && path.name != "copy to from the replica" {
			paths = append(paths, path)
		}
	}
	return paths
}

// TestFreshReads has another process write, and reads in all ways: on a replica that follows, and on one that does not replay.
func TestFreshReads(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	other := otherProcess(t, cluster)
	ctx := t.Context()
	pool := poolIn(t, cluster, "ord", waits(time.Second, 2*time.Second))
	awaitReplica(t, WithFresh(ctx), pool)
	id := 0
	for _, frozen := range []bool{false, true} {
		if frozen {
			freeze(t, cluster)
			pool = poolIn(t, cluster, "ord", waits(time.Millisecond, 500*time.Millisecond))
		}
		for _, path := range pathsOfReads() {
			id++
			_, err := other.Exec(ctx, insertSQL(name), id)
			noError(t, err)
			n, err := path.read(WithFresh(ctx), pool, name, []int{id})
			switch {
			case frozen && strings.HasSuffix(path.name, "with replica"):
				if !errors.Is(err, ErrReplicaLag) {
					t.Errorf("%s under WithReplica sees %d rows, %v", path.name, n, err)
				}
			case err != nil || n != 1:
				t.Errorf("%s (frozen: %v) misses what another process has written: %v", path.name, frozen, err)
			}
		}
		if replicaServes(t, WithFresh(ctx), pool) == frozen {
			t.Errorf("with a frozen replica (%v) a read is on the other server", frozen)
		}
	}
}

// TestMaxLagReads has another process write, and reads a while later in all ways.
func TestMaxLagReads(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	other := otherProcess(t, cluster)
	ctx := t.Context()
	pool := poolIn(t, cluster, "ord", waits(time.Millisecond, 500*time.Millisecond), maxLag(100*time.Millisecond))
	const d = 200 * time.Millisecond
	awaitReplica(t, WithMaxLag(ctx, d), pool)
	freeze(t, cluster)
	_, err := other.Exec(ctx, insertSQL(name), 1)
	noError(t, err)
	time.Sleep(d)
	for _, path := range pathsOfReads() {
		n, err := path.read(WithMaxLag(ctx, d), pool, name, []int{1})
		switch {
		case strings.HasSuffix(path.name, "with replica"):
			var lag *ReplicaLagError
			if !errors.Is(err, ErrReplicaLag) || !errors.As(err, &lag) || lag.Limit != d || lag.Lag <= d || lag.Lag == unknownLag {
				t.Errorf("%s: %v", path.name, err)
			}
		case err != nil || n != 1:
			t.Errorf("%s misses what another process has written %v before: %v", path.name, d, err)
		}
		if path.name == "serializable transaction" || path.name == "with primary" {
			continue
		}
		// One that allows more stays, also on a new pool, and although MaxReplicaLag is less.
		for _, pool := range []*Pool{pool, poolIn(t, cluster, "ord", maxLag(100*time.Millisecond))} {
			if n, err := path.read(WithMaxLag(ctx, time.Hour), pool, name, []int{1}); err != nil || n != 0 {
				t.Errorf("%s of at most an hour ago sees %d rows, %v", path.name, n, err)
			}
		}
	}
	if sentFor(pool, becauseBehind) == 0 {
		t.Errorf("the reads left for another reason: %v", pool.Stat().Statements())
	}
}

// TestMaxLagOfIdlePrimary reads from a replica that has nothing to replay.
func TestMaxLagOfIdlePrimary(t *testing.T) {
	cluster := sharedCluster(t)
	table(t, cluster, "id int")
	noError(t, cluster.Server("ord").WaitReplayed(t.Context()))
	lastReplayed(t, cluster, time.Second)
	for range 3 {
		pool := poolIn(t, cluster, "ord")
		for _, d := range []time.Duration{time.Nanosecond, time.Millisecond, time.Second} {
			if !replicaServes(t, WithMaxLag(t.Context(), d), pool) {
				t.Errorf("a read of at most %v ago is on the primary", d)
			}
		}
	}
}

// TestSilentReplication drops what the primary sends to the replica, which goes on to look as if it followed.
func TestSilentReplication(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	other := otherProcess(t, cluster)
	ctx := t.Context()
	const d = 100 * time.Millisecond
	pool := poolIn(t, cluster, "ord")
	awaitReplica(t, WithMaxLag(ctx, d), pool)
	noError(t, cluster.Server("ord").WaitReplayed(ctx))
	cluster.Replication("ord").Stall()
	t.Cleanup(cluster.Replication("ord").Restore)
	_, err := other.Exec(ctx, insertSQL(name), 1)
	noError(t, err)
	if n := counts(t, WithFresh(ctx), pool, name); n != 1 {
		t.Error("a fresh read misses a write")
	}
	time.Sleep(d)
	if n := counts(t, WithMaxLag(ctx, d), pool, name); n != 1 {
		t.Errorf("a read of at most %v ago misses a write", d)
	}
	cluster.Replication("ord").Restore()
	awaitReplica(t, WithMaxLag(ctx, d), pool)
}

// TestBoundedStaleness has another process count, and reads all the while, as replay halts and goes on.
func TestBoundedStaleness(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	other := otherProcess(t, cluster)
	ctx, cancel := context.WithCancel(t.Context())
	const d = 60 * time.Millisecond
	pool := poolIn(t, cluster, "ord", func(c *Config) { c.MaxConns = 8 })

	var mu sync.Mutex // guards the following field
	var written []time.Time
	// writtenBy returns how many writes had returned by a time.
	writtenBy := func(at time.Time) int {
		mu.Lock()
		defer mu.Unlock()
		n, _ := slices.BinarySearchFunc(written, at, time.Time.Compare)
		return n
	}
	var all sync.WaitGroup
	defer func() {
		cancel()
		all.Wait()
	}()
	all.Go(func() {
		for ctx.Err() == nil {
			if _, err := other.Exec(ctx, insertSQL(name), len(written)+1); err == nil {
				mu.Lock()
				written = append(written, time.Now())
				mu.Unlock()
			}
			_ = sleep(ctx, time.Millisecond)
		}
	})
	all.Go(func() {
		ord := cluster.Server("ord")
		for ctx.Err() == nil {
			_ = sleep(ctx, 150*time.Millisecond)
			if err := ord.PauseReplay(context.Background()); err != nil {
				t.Error(err)
			}
			_ = sleep(ctx, 150*time.Millisecond)
			if err := ord.ResumeReplay(context.Background()); err != nil {
				t.Error(err)
			}
		}
	})

	var readers sync.WaitGroup
	for i := range 4 {
		readers.Go(func() {
			local, lagged := 0, 0
			defer func() {
				if local == 0 && !t.Failed() {
					t.Error("no read was served by the replica")
				}
				t.Logf("%d reads were served by the replica, %d showed less than all", local, lagged)
			}()
			for began := time.Now(); time.Since(began) < 2*time.Second || local == 0 && time.Since(began) < 20*time.Second; {
				in, bound := WithFresh(ctx), time.Duration(0)
				if i%2 == 0 {
					in, bound = WithMaxLag(ctx, d), d
				}
				now := time.Now()
				want, latest := writtenBy(now.Add(-bound)), writtenBy(now)
				var got int
				var here bool
				err := pool.QueryRow(in, "select (select count(*) from "+name+"), current_setting('transaction_' || 'read_only') = 'on'").Scan(&got, &here)
				if err != nil || got < want {
					t.Errorf("%d rows are read, and %v ago there were %d: %v", got, bound, want, err)
					return
				}
				if here {
					local++
				}
				if got < latest {
					lagged++
				}
			}
		})
	}
	readers.Wait()
}

// TestFreshReadsShareQuestions begins many reads while the primary does not answer.
func TestFreshReadsShareQuestions(t *testing.T) {
	cluster := sharedCluster(t)
	ctx := WithFresh(t.Context())
	pool := poolIn(t, cluster, "ord", waits(time.Second, time.Minute))
	awaitReplica(t, ctx, pool)
	link := cluster.Link("ord", "nrt")
	t.Cleanup(link.Restore)
	link.Stall()
	turns := link.Turns()
	const reads = 50
	var all sync.WaitGroup
	for range reads {
		all.Go(func() {
			if _, err := pool.Exec(ctx, "select 1"); err != nil {
				t.Error(err)
			}
		})
	}
	stacks := make([]byte, 4<<20)
	eventually(t, "all wait for an answer", func() bool {
		return bytes.Count(stacks[:runtime.Stack(stacks, true)], []byte("(*primary).currentFlush(")) == reads
	})
	link.Restore()
	all.Wait()
	if n := link.Turns() - turns; n > reads/2 {
		t.Errorf("%d reads have sent %d questions", reads, n)
	}
}

// TestFreshReadsEnd ends the context of a read that waits for the primary's answer, and closes the pool of another.
func TestFreshReadsEnd(t *testing.T) {
	cluster := sharedCluster(t)
	link := cluster.Link("ord", "nrt")
	t.Cleanup(link.Restore)
	pool := poolIn(t, cluster, "ord")
	awaitReplica(t, WithFresh(t.Context()), pool)
	link.Stall()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := pool.Exec(WithFresh(ctx), "select 1"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("after the deadline: %v", err)
	}
	failed := make(chan error)
	go func() {
		_, err := pool.Exec(WithFresh(t.Context()), "select 1")
		failed <- err
	}()
	asking := func() bool {
		f := &pool.primary.flushes
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.asking > 0
	}
	eventually(t, "the primary is asked", asking)
	closed := make(chan struct{})
	go func() { pool.Close(); close(closed) }()
	if err := <-failed; err == nil {
		t.Error("a read on a closed pool succeeds")
	}
	link.Restore() // pgx takes its time to close a connection that does not answer
	patiently(t, "Close", func() { <-closed })
	if asking() {
		t.Error("the primary is still asked")
	}
	if _, err := pool.Exec(WithMaxLag(t.Context(), time.Second), "select 1"); err == nil {
		t.Error("a read on a closed pool succeeds")
	}
}

// TestPrimaryUnreachableForFreshReads cuts off the primary. What does not need it is still read.
func TestPrimaryUnreachableForFreshReads(t *testing.T) {
	cluster := sharedCluster(t)
	ctx := t.Context()
	link := cluster.Link("ord", "nrt")
	t.Cleanup(link.Restore)
	pool := poolIn(t, cluster, "ord")
	awaitReplica(t, WithMaxLag(ctx, time.Second), pool)
	link.Cut()
	for what, in := range map[string]context.Context{"WithMaxLag": WithMaxLag(ctx, time.Hour), "WithoutWait": WithoutWait(ctx)} {
		if !replicaServes(t, in, pool) {
			t.Errorf("%s: the read is not on the replica", what)
		}
	}
	for _, in := range []context.Context{WithFresh(ctx), WithFresh(WithReplica(ctx))} {
		if _, err := pool.Exec(in, "select 1"); err == nil || errors.Is(err, ErrReplicaLag) {
			t.Errorf("a fresh read without a primary: %v", err)
		}
	}
	link.Restore()
	awaitReplica(t, WithFresh(ctx), pool)
}

// TestInnermostFreshness nests what contexts say of what a read has to see.
func TestInnermostFreshness(t *testing.T) {
	ctx := t.Context()
	for _, test := range []struct {
		ctx  context.Context
		want intent
	}{
		{WithMaxLag(ctx, time.Second), intent{wants: wantsRecent, maxLag: time.Second}},
		{WithMaxLag(ctx, 0), intent{wants: wantsAll}},
		{WithMaxLag(ctx, -time.Second), intent{wants: wantsAll}},
		{WithFresh(WithoutWait(ctx)), intent{wants: wantsAll}},
		{WithoutWait(WithFresh(ctx)), intent{wants: wantsAny}},
		{WithMaxLag(WithFresh(WithReplica(ctx)), time.Minute), intent{target: targetReplica, wants: wantsRecent, maxLag: time.Minute}},
		{WithPrimary(WithFresh(ctx)), intent{target: targetPrimary, wants: wantsAll}},
	} {
		if got := intentOf(test.ctx); got != test.want {
			t.Errorf("the intent is %+v, want %+v", got, test.want)
		}
	}
}
