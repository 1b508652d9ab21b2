package flyregion

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/flyregion/flyregion/internal/pgcluster"
)

// hostPort returns the address of a server as ReplicaHosts takes it.
func hostPort(t testing.TB, server *pgcluster.Server) string {
	t.Helper()
	u, err := url.Parse(server.ConnString())
	if err != nil {
		t.Fatal(err)
	}
	return u.Host
}

// TestReplicaHosts needs nothing but a connection string, and no region.
func TestReplicaHosts(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	ctx := t.Context()
	hosts := hostPort(t, cluster.Server("ord")) + "," + hostPort(t, cluster.Server("syd"))
	pool, err := NewPool(ctx, cluster.Server("nrt").ConnString()+"&fly_replica_hosts="+hosts+"&fly_max_replica_wait=10s&fly_min_replica_wait=10s")
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	readOn(t, cluster, pool, "ord", "syd")
	if got := answeredBy(t, ctx, cluster, pool.Primary()); got != "nrt" {
		t.Errorf("%s is the primary", got)
	}
	for i := range 20 {
		if err := execs(ctx, pool, insertText(name, i)); err != nil {
			t.Fatal(err)
		}
		if n := counts(t, ctx, pool, name); n != i+1 {
			t.Fatalf("a read after %d writes saw %d", i+1, n)
		}
	}
	if pool.discovery.due.Load() != never {
		t.Error("addresses are looked up")
	}
	unused(t, pool)
}

// TestReplicaHostWithUnderscores reads from a host that is named as in a container network.
func TestReplicaHostWithUnderscores(t *testing.T) {
	cluster := sharedCluster(t)
	_, port, _ := strings.Cut(hostPort(t, cluster.Server("ord")), ":")
	config, err := ParseConfig(cluster.Server("nrt").ConnString() + "&fly_replica_hosts=app_db_replica_1:" + port)
	if err != nil {
		t.Fatal(err)
	}
	config.ConnConfig.LookupFunc = func(context.Context, string) ([]string, error) { return []string{"127.0.0.1"}, nil }
	pool, err := NewPoolWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	readOn(t, cluster, pool, "ord")
}

// TestReadsInThePrimarysRegion reads from the servers in the primary's region: a standby, and the leader, which always shows
// what was written.
func TestReadsInThePrimarysRegion(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	ctx := t.Context()
	names := namesFor(cluster)
	names.lead("nrt.app.internal", cluster, "nrt", "ord") // ord stands for a standby in nrt
	config := configIn(t, cluster, "nrt")
	names.site = cluster.From("nrt")
	names.into(config)
	config.ReplicaRegions, config.MinReplicaWait, config.MaxReplicaWait = []string{"syd", "nrt"}, time.Minute, time.Minute
	pool, err := NewPoolWithConfig(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	readOn(t, cluster, pool, "nrt", "ord")

	thaw := freeze(t, cluster)
	for i := range 20 {
		if err := execs(ctx, pool, insertText(name, i)); err != nil {
			t.Fatal(err)
		}
		if n := counts(t, ctx, pool, name); n != i+1 {
			t.Fatalf("a read after %d writes saw %d", i+1, n)
		}
		if !replicaServes(t, ctx, pool) {
			t.Error("a read has left the session that cannot write")
		}
	}
	thaw()
	readOn(t, cluster, pool, "nrt", "ord")
	unused(t, pool)
}

// TestFreshestReplicaServes has one of two replicas stand still. Reads that must see a write run on the other one, and do not
// wait until the first one goes on.
func TestFreshestReplicaServes(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	ctx := t.Context()
	names := namesFor(cluster, "ord", "syd")
	pool := poolIn(t, cluster, "ord", names.into, waits(time.Minute, time.Minute))
	readOn(t, cluster, pool, "ord", "syd")
	thaw := freeze(t, cluster)
	for i := range 20 {
		if err := execs(ctx, pool, insertText(name, i)); err != nil {
			t.Fatal(err)
		}
		if n := counts(t, ctx, pool, name); n != i+1 {
			t.Fatalf("a read after %d writes saw %d", i+1, n)
		}
		if got := answeredBy(t, ctx, cluster, pool); got != "syd" {
			t.Errorf("%s answers", got)
		}
	}
	// Without a position to see, both serve.
	if by := map[string]bool{}; true {
		for range 40 {
			by[answeredBy(t, WithoutWait(ctx), cluster, pool)] = true
		}
		if len(by) != 2 {
			t.Errorf("WithoutWait: %v answer", by)
		}
	}
	thaw()
	readOn(t, cluster, pool, "ord", "syd")
	for i, r := range found(pool) {
		r.tracker.mu.Lock()
		if n := len(r.tracker.waiters); n != 0 {
			t.Errorf("replica %d has %d waits left", i, n)
		}
		r.tracker.mu.Unlock()
	}
	unused(t, pool)
}

// TestAllReplicasAreWaitedFor has WaitReplayed and AwaitWrites wait for the slowest replica, but not for one out of reach.
func TestAllReplicasAreWaitedFor(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	ctx := t.Context()
	waitsFor := map[string]func(*Pool, int) error{
		"AwaitWrites": func(pool *Pool, id int) error { return execs(ctx, pool, insertText(name, id)) },
		"WaitReplayed": func(pool *Pool, id int) error {
			// Of a pool without AwaitWrites.
			if err := execs(ctx, pool, insertText(name, id)); err != nil {
				return err
			}
			return pool.WaitReplayed(ctx)
		},
	}
	id := 0
	for what, run := range waitsFor {
		t.Run(what, func(t *testing.T) {
			names := namesFor(cluster, "syd", "ord")
			pool := poolIn(t, cluster, "ord", names.into, waits(time.Minute, time.Minute), func(c *Config) {
				c.AwaitWrites = what == "AwaitWrites"
			})
			readOn(t, cluster, pool, "ord", "syd")
			thaw := freeze(t, cluster)
			id++
			done := make(chan error, 1)
			go func() { done <- run(pool, id) }()
			select {
			case err := <-done:
				t.Fatalf("it does not wait for the slower replica: %v", err)
			case <-time.After(200 * time.Millisecond):
			}
			thaw()
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			for _, r := range found(pool) {
				var n int
				if err := r.pool.QueryRow(ctx, "select count(*) from "+name).Scan(&n); err != nil || n != id {
					t.Errorf("%s shows %d rows, want %d: %v", r.endpoint(), n, id, err)
				}
			}

			link := cluster.Link("ord", "syd")
			link.Cut()
			defer link.Restore()
			readOn(t, cluster, pool, "ord")
			id++
			if err := run(pool, id); err != nil {
				t.Errorf("with a replica out of reach: %v", err)
			}
			unused(t, pool)
		})
	}
}

// TestJoinsOnALostBranch has a replica join after a failover. It has replayed what the new primary never had.
func TestJoinsOnALostBranch(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	cluster, err := pgcluster.Start(ctx, pgcluster.Config{Replicas: []string{"ord", "syd"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.Stop(); err != nil {
			t.Error(err)
		}
	})
	name := table(t, cluster, "id int primary key, v text")
	for _, s := range []string{"ord", "syd"} {
		if err := cluster.Server(s).WaitReplayed(ctx); err != nil {
			t.Fatal(err)
		}
	}
	cluster.Replication("ord").Cut()
	for i := range 3 {
		if err := cluster.Leader().Exec(ctx, fmt.Sprintf("insert into %s (id, v) values (%d, 'lost')", name, 1000+i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := cluster.Server("syd").WaitReplayed(ctx); err != nil {
		t.Fatal(err)
	}
	if err := cluster.Server("nrt").Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cluster.Promote(ctx, "ord"); err != nil {
		t.Fatal(err)
	}

	names := namesFor(cluster, "ord")
	pool := poolIn(t, cluster, "ord", names.into, often, func(c *Config) {
		c.MinReplicaWait, c.MaxReplicaWait = time.Millisecond, 100*time.Millisecond
	})
	check := func(i int) {
		t.Helper()
		if err := execs(ctx, pool, insertText(name, i)); err != nil {
			t.Fatal(err)
		}
		if n := counts(t, ctx, pool, name); n != i {
			t.Fatalf("a read sees %d rows, want %d", n, i)
		}
		if got := answeredBy(t, ctx, cluster, pool); got != "ord" {
			t.Fatalf("%s answers", got)
		}
	}
	check(1)
	names.lead(ordName, cluster, "ord", "syd")
	rows := 1
	eventually(t, "the other machine is found", func() bool {
		rows++
		check(rows)
		return len(found(pool)) == 2 && found(pool)[1].connects.succeeded.Load() > 0
	})
	for range 50 {
		rows++
		check(rows)
	}
	err = pool.WaitReplayed(withTimeout(t, 200*time.Millisecond))
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("WaitReplayed with a replica of a lost branch: %v", err)
	}
}

func withTimeout(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
