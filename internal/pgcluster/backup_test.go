package pgcluster

import "testing"

// A leader that is restored goes on from what it was, on the same timeline, and its replica is ahead of it.
func TestRestoreLeader(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	c := startCluster(t, Config{Replicas: []string{"ord"}})
	nrt, ord := c.Server("nrt"), c.Server("ord")
	must(t, nrt.Exec(ctx, "create table t (n int); insert into t values (1)"))
	backup, err := nrt.Backup(ctx)
	must(t, err)
	for i := range 2 {
		must(t, nrt.Exec(ctx, "insert into t select generate_series(1, 1000)"))
		if n := count(t, nrt); n != 1001 {
			t.Errorf("it has %d rows", n)
		}
		if i == 0 {
			must(t, ord.WaitReplayed(ctx)) // what it has not received by now, it never gets
		}
		must(t, nrt.Restore(ctx, backup))
		if n := count(t, nrt); n != 1 {
			t.Errorf("it has %d rows, restored", n)
		}
	}
	if n := count(t, ord); n != 1001 {
		t.Errorf("the replica has %d rows", n)
	}
	conn := connect(t, c, "syd", "app.internal", 5432)
	if queryOne[bool](t, conn, "select pg_is_in_recovery()") {
		t.Error("it is no leader")
	}
	if name := queryOne[string](t, conn, "select pg_walfile_name(pg_current_wal_lsn())"); name[:8] != "00000001" {
		t.Errorf("it writes %s", name)
	}
}

// A replica that is restored is older and catches up. So is, and does, a former leader that is a replica now.
func TestRestoreReplica(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	c := startWithTable(t, "ord")
	nrt, ord := c.Server("nrt"), c.Server("ord")
	backups := map[*Server]*Backup{}
	for _, s := range c.Servers() {
		var err error
		backups[s], err = s.Backup(ctx)
		must(t, err)
	}
	must(t, nrt.Exec(ctx, "insert into t values (1)"))
	must(t, ord.WaitReplayed(ctx))
	c.Replication("ord").Cut()
	must(t, ord.Restore(ctx, backups[ord]))
	if n := count(t, ord); n > 0 {
		t.Errorf("it has %d rows, restored", n)
	}
	c.Replication("ord").Restore()
	must(t, ord.WaitReplayed(ctx))
	if n := count(t, ord); n != 1 {
		t.Errorf("it has %d rows", n)
	}

	must(t, c.Promote(ctx, "ord"))
	must(t, nrt.Restore(ctx, backups[nrt]))
	must(t, nrt.WaitReplayed(ctx))
	if n := count(t, nrt); n != 1 {
		t.Errorf("it has %d rows", n)
	}
	conn := connect(t, c, "syd", "nrt.app.internal", 5433)
	if !queryOne[bool](t, conn, "select pg_is_in_recovery()") {
		t.Error("a leader that was restored after a promotion leads again")
	}
	if err := nrt.Restore(ctx, backups[ord]); err == nil {
		t.Error("restored another server's backup")
	}
}
