package flyregion

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// TestTwoServersInARegion has the watcher and the pool's connections reach different servers under one name. Reads wait for
// the server that they run on, and an error tells its position.
func TestTwoServersInARegion(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	ctx := t.Context()
	ord, syd := cluster.From("ord"), cluster.From("syd")
	var dials atomic.Int64
	pool := poolIn(t, cluster, "ord", waits(0, 300*time.Millisecond), func(c *Config) {
		c.MaxConns = 1
		c.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if _, port, _ := net.SplitHostPort(addr); port == "5433" && dials.Add(1) > 1 {
				// The watcher's.
				ips, err := syd.LookupHost(ctx, "syd.app.internal")
				if err != nil {
					return nil, err
				}
				return syd.DialContext(ctx, network, net.JoinHostPort(ips[0], port))
			}
			return ord.DialContext(ctx, network, addr)
		}
	})
	awaitReplica(t, ctx, pool)
	thaw := freeze(t, cluster)
	for i := range 5 {
		if err := execs(ctx, pool, insertText(name, i)); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		err := pool.QueryRow(WithReplica(ctx), "select 1").Scan(new(int))
		var lag *ReplicaLagError
		if !errors.As(err, &lag) || lag.Replayed == 0 || lag.Replayed >= lag.Required {
			t.Errorf("%v, %+v", err, lag)
		}
		if waited := time.Since(began); waited < 300*time.Millisecond {
			t.Errorf("it gave up after %v", waited)
		}
	}
	// What is replayed within the limit is waited for.
	done := make(chan error)
	go func() { done <- pool.QueryRow(WithReplica(ctx), "select 1").Scan(new(int)) }()
	time.Sleep(50 * time.Millisecond)
	thaw()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n := dials.Load(); n < 2 {
		t.Errorf("%d connections", n)
	}
}

// TestReplicaNotAsked wants a replica and nothing else that cannot be asked: the error says so, and nothing of lag.
func TestReplicaNotAsked(t *testing.T) {
	t.Parallel()
	cluster := ownCluster(t, nil)
	name := table(t, cluster, "id int primary key, v text")
	ctx := t.Context()
	link := cluster.Link("ord", "ord")
	t.Cleanup(link.Restore)
	pool := poolIn(t, cluster, "ord", waits(0, 300*time.Millisecond))
	awaitReplica(t, ctx, pool)
	freeze(t, cluster)
	if err := execs(ctx, pool, insertText(name, 1)); err != nil {
		t.Fatal(err)
	}
	link.Stall()
	patiently(t, "a read", func() {
		err := pool.QueryRow(WithReplica(ctx), "select 1").Scan(new(int))
		if err == nil || errors.Is(err, ErrReplicaLag) {
			t.Error(err)
		}
	})
}

// TestAnswerWithTheTimer has the answer to a wait arrive as the wait ends.
func TestAnswerWithTheTimer(t *testing.T) {
	var primary primary
	primary.identity.Store(&identity{server: 7, system: 1, timeline: 1, since: clock.Add(1)})
	tracker := newTracker("ord", &primary, func() {}, func(context.Context) (*pgconn.PgConn, error) { return nil, errors.New("nobody to ask") })
	defer tracker.close()
	tracker.watching = true
	defer func() {
		tracker.mu.Lock()
		tracker.watching = false
		tracker.mu.Unlock()
	}()
	see := func(position LSN) {
		tracker.note(&report{asked: clock.Add(1), server: 1, system: 1, timeline: 1, recovering: true, streams: true, position: position, received: position})
	}
	see(50)
	state := sessionState{position: 100, origin: 7}
	waited := make(chan error)
	go func() { waited <- tracker.wait(t.Context(), state, 0, 100*time.Millisecond) }()
	eventually(t, "somebody waits", func() bool {
		tracker.mu.Lock()
		defer tracker.mu.Unlock()
		return len(tracker.waiters) == 1
	})
	see(100) // and nobody wakes it
	if err := <-waited; err != nil {
		t.Errorf("shown, and the wait ends with: %v", err)
	}
	tracker.miss(state)
	if tracker.missed.Load() != nil {
		t.Error("what is shown counts as missed")
	}
	higher := sessionState{position: 200, origin: 7}
	tracker.miss(higher)
	if tracker.missed.Load() == nil {
		t.Error("what is not shown does not count as missed")
	}
	see(200)
	if tracker.missed.Load() != nil {
		t.Error("what is shown now counts as missed")
	}
}

// TestWaitReplayedOverFailover waits for a position that a failover loses.
func TestWaitReplayedOverFailover(t *testing.T) {
	t.Parallel()
	cluster := threeServers(t)
	nrt := cluster.Server("nrt")
	ctx := t.Context()
	name := trustTable(t, cluster)
	pool := poolIn(t, cluster, "syd", impatient)
	if err := execs(ctx, pool, "insert into "+name+" values (1)"); err != nil {
		t.Fatal(err)
	}
	awaitReplica(t, ctx, pool)
	for _, region := range []string{"ord", "syd"} {
		noError(t, cluster.Server(region).WaitReplayed(ctx))
		cluster.Replication(region).Cut()
	}
	for range 20 {
		fill(t, nrt)
	}
	if err := execs(ctx, pool, "insert into "+name+" values (2)"); err != nil {
		t.Fatal(err)
	}
	waited := make(chan error, 1)
	go func() { waited <- pool.WaitReplayed(ctx) }()
	eventually(t, "somebody waits", func() bool { return waiting(pool) == 1 })
	noError(t, nrt.Kill())
	for _, region := range []string{"ord", "syd"} {
		cluster.Replication(region).Restore()
	}
	noError(t, cluster.Promote(ctx, "ord"))
	eventually(t, "a write succeeds", func() bool { return execs(ctx, pool, "insert into "+name+" values (3)") == nil })
	select {
	case err := <-waited:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Error("it waits for what is lost")
	}
}

// A read whose limit runs out before the watcher has answered looks itself, as the watcher may be late because this process
// is busy. Here the watcher does not get its connection at all.
func TestReadLooksWhereTheWatcherIsLate(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	ctx := t.Context()
	pool := poolIn(t, cluster, "ord", waits(50*time.Millisecond, 10*time.Second))
	awaitReplica(t, ctx, pool)
	tracker := pool.replicas.list()[0].tracker
	watchers, err := tracker.conns.Acquire(ctx)
	noError(t, err)
	defer watchers.Release()
	for id := range 3 {
		noError(t, execs(ctx, pool, insertText(name, id)))
		noError(t, cluster.Server("ord").WaitReplayed(ctx))
		if !replicaServes(t, ctx, pool) {
			t.Error("the primary serves although the replica has replayed everything")
		}
	}
}

// TestMissEndsWithTheLag has a read wait in vain while the watcher cannot connect. The wait keeps other reads away no longer
// than the replica is behind: one of them asks the replica.
func TestMissEndsWithTheLag(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	ctx := t.Context()
	var dials atomic.Int64
	pool := poolIn(t, cluster, "ord", func(c *Config) {
		c.MaxConns = 1
		dial := c.ConnConfig.DialFunc
		c.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if _, port, _ := net.SplitHostPort(addr); port == "5433" && dials.Add(1) > 1 {
				<-ctx.Done() // the watcher
				return nil, ctx.Err()
			}
			return dial(ctx, network, addr)
		}
	})
	awaitReplica(t, ctx, pool)
	thaw := freeze(t, cluster)
	noError(t, execs(ctx, pool, insertText(name, 1)))
	if n := counts(t, ctx, pool, name); n != 1 {
		t.Errorf("%d rows", n)
	}
	tracker := pool.replicas.list()[0].tracker
	m := tracker.missed.Load()
	if m == nil {
		t.Fatal("nobody has waited in vain")
	}
	tracker.missed.Store(&miss{state: m.state, at: m.at.Add(time.Hour)}) // it does not end because the test is slow
	thaw()
	noError(t, cluster.Server("ord").WaitReplayed(ctx))

	soon := func() { tracker.checking.takenAt.Store(0) }
	soon()
	if !tracker.beginCheck() {
		t.Fatal("nobody has to check")
	}
	soon()
	if replicaServes(t, ctx, pool) {
		t.Error("two reads check at the same time")
	}
	tracker.checking.end()
	soon()
	if !replicaServes(t, ctx, pool) {
		t.Error("a read is kept from a replica that has caught up")
	}
	if tracker.missed.Load() != nil {
		t.Error("the wait in vain is not forgotten")
	}
}

// TestPrivileges has a role that may not call the functions that tell a server's cluster and timeline. Its reads go to the
// primary once it has written, and no statement fails.
func TestPrivileges(t *testing.T) {
	t.Parallel()
	cluster := ownCluster(t, nil)
	ctx := t.Context()
	name := trustTable(t, cluster)
	functions := []string{"pg_control_system()", "pg_control_checkpoint()", "pg_control_recovery()", "pg_stat_get_wal_receiver()"}
	revoke := func(on bool) {
		t.Helper()
		sql := "grant execute on function %s to public"
		if on {
			sql = "revoke execute on function %s from public"
		}
		for _, f := range functions {
			noError(t, cluster.Leader().Exec(ctx, fmt.Sprintf(sql, f)))
		}
		noError(t, cluster.Server("ord").WaitReplayed(ctx))
	}
	revoke(true)
	telemetry := record(t)
	pool := poolIn(t, cluster, "ord", impatient, as("app"), telemetry.into)
	if !replicaServes(t, ctx, pool) {
		t.Error("who has written nothing does not read from the replica")
	}
	neverStale(t, "without privileges", pool, name, nil)
	// A replica that is slow to answer is left for that.
	eventually(t, "the cause is that nothing is known of the replica", func() bool {
		telemetry.spans.Reset()
		if replicaServes(t, ctx, pool) {
			t.Fatal("a replica of which nothing is known is trusted")
		}
		span := telemetry.only(t, spanForward)
		if !hasCause(span, "does not show that it follows the primary") {
			return false
		}
		checkCause(t, span, "the role may not call pg_control_system", "")
		return true
	})
	eventually(t, "WithReplica fails because nothing is known of the replica", func() bool {
		err := pool.QueryRow(WithReplica(ctx), "select 1").Scan(new(int))
		if err == nil {
			t.Fatal("under WithReplica a replica of which nothing is known is trusted")
		}
		return errors.Is(err, ErrReplicaLag) && strings.Contains(err.Error(), "follows")
	})
	if err := pool.WaitReplayed(canceled(ctx)); !errors.Is(err, context.Canceled) {
		t.Errorf("WaitReplayed: %v", err)
	}
	pool.Close()
	revoke(false)
	pool = poolIn(t, cluster, "ord", impatient, as("app"))
	neverStale(t, "with privileges", pool, name, nil)
	awaitReplica(t, ctx, pool)
}

// TestWaitForALeavingReplica waits for two replicas. One is let go, and the other one cannot be asked: the read gets the error of
// that one, and not that the pool is closed.
func TestWaitForALeavingReplica(t *testing.T) {
	cluster := sharedCluster(t)
	pool := poolIn(t, cluster, "ord", namesFor(cluster, "ord", "syd").into)
	readOn(t, cluster, pool, "ord", "syd")
	stays, leaves := found(pool)[0].tracker, found(pool)[1].tracker
	leaves.endWaits()
	unreachable := errors.New("cannot be asked")
	go func() {
		for waits := false; !waits; {
			stays.mu.Lock()
			waits = len(stays.waiters) > 0
			stays.mu.Unlock()
		}
		stays.wakeAll(unreachable)
	}()
	_, err := waitTrackers(t.Context(), []*tracker{stays, leaves}, sessionState{position: 1 << 60}, 0, time.Minute)
	if err != unreachable {
		t.Errorf("%v, want %v", err, unreachable)
	}
}
