package pgcluster

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// startWithTable starts a cluster with an empty table t that its replicas have replayed.
func startWithTable(t *testing.T, replicas ...string) *Cluster {
	t.Helper()
	c := startCluster(t, Config{Replicas: replicas})
	must(t, c.Leader().Exec(testContext(t), "create table t (n int)"))
	for _, region := range replicas {
		must(t, c.Server(region).WaitReplayed(testContext(t)))
	}
	return c
}

// count asks a server itself how many rows the table t has, -1 if it cannot tell.
func count(t *testing.T, s *Server) (n int) {
	t.Helper()
	err := s.connected(testContext(t), func(conn *pgx.Conn) error {
		return conn.QueryRow(testContext(t), "select count(*) from t").Scan(&n)
	})
	if err != nil {
		return -1
	}
	return n
}

// timeline returns the timeline that a replica receives.
func timeline(t *testing.T, s *Server) (tli int) {
	t.Helper()
	err := s.connected(testContext(t), func(conn *pgx.Conn) error {
		return conn.QueryRow(testContext(t), "select coalesce(max(received_tli), 0) from pg_stat_wal_receiver").Scan(&tli)
	})
	must(t, err)
	return tli
}

// A replica of a replica receives what the leader has written while both links are up.
func TestFollowReplica(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	c := startCluster(t, Config{Replicas: []string{"ord", "syd"}})
	ord, syd := c.Server("ord"), c.Server("syd")
	must(t, syd.Follow("ord"))
	must(t, c.Leader().Exec(ctx, "create table t (n int); insert into t values (1)"))
	must(t, syd.WaitReplayed(ctx))
	c.Replication("ord").Cut()
	must(t, c.Leader().Exec(ctx, "insert into t values (2)"))
	time.Sleep(50 * time.Millisecond)
	if ord, syd := count(t, ord), count(t, syd); ord != 1 || syd != 1 {
		t.Errorf("ord has %d rows and syd %d, although ord receives nothing", ord, syd)
	}
	must(t, syd.Follow(""))
	must(t, syd.WaitReplayed(ctx))
	if n := count(t, syd); n != 2 {
		t.Errorf("syd has %d rows", n)
	}
	for _, region := range []string{"syd", "fra"} {
		if err := syd.Follow(region); err == nil {
			t.Errorf("syd follows %s", region)
		}
	}
}

// After PromoteBeside there are two leaders with logs of their own, and a replica follows the old one until it is told to change.
func TestPromoteBeside(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	c := startWithTable(t, "ord", "syd")
	nrt, ord, syd := c.Server("nrt"), c.Server("ord"), c.Server("syd")
	conn := connect(t, c, "syd", "app.internal", 5432)
	must(t, c.PromoteBeside(ctx, "ord"))
	if c.Leader() != ord {
		t.Fatal("ord is not the leader")
	}
	execute(t, conn, "insert into t values (1), (2)") // the old leader's connections stay
	must(t, ord.Exec(ctx, "insert into t values (3)"))
	eventually(t, "syd has what the old leader wrote", func() bool { return count(t, syd) == 2 })
	if tli := timeline(t, syd); tli != 1 {
		t.Errorf("syd receives timeline %d", tli)
	}
	if n := count(t, ord); n != 1 {
		t.Errorf("ord has %d rows", n)
	}
	must(t, nrt.Exec(ctx, "alter system set default_transaction_read_only = on"))
	must(t, nrt.Exec(ctx, "select pg_reload_conf()"))
	if err := nrt.Exec(ctx, "insert into t values (4)"); err == nil {
		t.Error("the old leader can be written to")
	}

	// It becomes a replica with its next start.
	must(t, nrt.Restart(ctx))
	other := connect(t, c, "syd", "nrt.app.internal", 5433)
	if !queryOne[bool](t, other, "select pg_is_in_recovery()") {
		t.Error("the old leader came back as a leader")
	}
	if err := c.PromoteBeside(ctx, "fra"); err == nil {
		t.Error("promoted a region without a server")
	}
	must(t, c.PromoteBeside(ctx, "ord")) // it is the leader
}

// Follow makes a replica without writes of its own follow the new leader on its timeline.
func TestFollowNewTimeline(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	c := startWithTable(t, "ord", "syd")
	ord, syd := c.Server("ord"), c.Server("syd")
	must(t, c.PromoteBeside(ctx, "ord"))
	must(t, syd.Follow(""))
	must(t, ord.Exec(ctx, "insert into t values (1)"))
	must(t, syd.WaitReplayed(ctx))
	if tli := timeline(t, syd); tli != 2 {
		t.Errorf("syd receives timeline %d", tli)
	}
	if n := count(t, syd); n != 1 {
		t.Errorf("syd has %d rows", n)
	}
}

// A replica that is killed while DelayReplay holds a commit back starts without that commit, and replays it after the delay.
func TestDelayReplay(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	c := startWithTable(t, "ord")
	ord := c.Server("ord")
	must(t, c.Leader().Exec(ctx, "checkpoint"))
	must(t, ord.WaitReplayed(ctx))
	must(t, ord.Exec(ctx, "checkpoint"))
	must(t, c.Leader().Exec(ctx, "insert into t values (1)"))
	must(t, ord.WaitReplayed(ctx))
	must(t, ord.DelayReplay(ctx, time.Hour))
	must(t, ord.Kill())
	must(t, ord.Start(ctx))
	if n := count(t, ord); n != 0 {
		t.Errorf("it came back with %d rows", n)
	}
	must(t, ord.DelayReplay(ctx, 0))
	must(t, ord.WaitReplayed(ctx))
	if n := count(t, ord); n != 1 {
		t.Errorf("it has %d rows", n)
	}
}

// A replica that has seceded takes writes of its own until it is restored.
func TestSecede(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	c := startWithTable(t, "ord")
	nrt, ord := c.Server("nrt"), c.Server("ord")
	backup, err := ord.Backup(ctx)
	must(t, err)
	must(t, ord.Secede(ctx))
	if err := nrt.Secede(ctx); err == nil || c.Leader() != nrt {
		t.Error("the leader has seceded, or is the leader no more")
	}
	must(t, ord.Exec(ctx, "insert into t values (1), (2)"))
	must(t, connect(t, c, "ord", "app.internal", 5432).Ping(ctx))
	must(t, nrt.Exec(ctx, "insert into t values (3)"))
	if nrt, ord := count(t, nrt), count(t, ord); nrt != 1 || ord != 2 {
		t.Errorf("nrt has %d rows, ord %d", nrt, ord)
	}
	must(t, ord.Restore(ctx, backup))
	must(t, ord.WaitReplayed(ctx))
	if n := count(t, ord); n != 1 {
		t.Errorf("ord has %d rows, restored", n)
	}
}
