package flyregion

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flyregion/flyregion/internal/pgcluster"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// threeServers returns a primary in nrt and replicas in ord and syd, for a test that changes which is which.
func threeServers(t testing.TB) *pgcluster.Cluster {
	t.Helper()
	cluster, err := pgcluster.Start(t.Context(), pgcluster.Config{Replicas: []string{"ord", "syd"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.Stop(); err != nil {
			t.Error(err)
		}
	})
	return cluster
}

func noError(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// trustTable makes a table (id int) that every role may use, and two roles besides the superuser: app, and watcher, which
// may read what the server's processes do.
func trustTable(t testing.TB, cluster *pgcluster.Cluster) (name string) {
	t.Helper()
	name = fmt.Sprintf("t_%d", clock.Add(1))
	noError(t, cluster.Leader().Exec(t.Context(), strings.ReplaceAll(`
		create role app login password 'app';
		create role watcher login password 'watcher' in role pg_read_all_stats;
		create table T (id int);
		grant all on T to app, watcher;
	`, "T", name)))
	for _, s := range cluster.Servers() {
		noError(t, s.WaitReplayed(t.Context()))
	}
	return name
}

// as makes a pool connect as a role.
func as(role string) func(*Config) {
	return func(c *Config) { c.ConnConfig.User, c.ConnConfig.Password = role, role }
}

// impatient makes a pool's reads wait for the replica only for a moment.
func impatient(c *Config) { c.MaxReplicaWait = 300 * time.Millisecond }

// stale writes and reads n times and returns how many reads missed the write before them. between is called after each
// write.
func stale(t testing.TB, pool *Pool, table string, n int, between func()) (missed int) {
	t.Helper()
	ctx := t.Context()
	for range n {
		id := int(clock.Add(1))
		eventually(t, "a write succeeds", func() bool { return execs(ctx, pool, fmt.Sprintf("insert into %s values (%d)", table, id)) == nil })
		if between != nil {
			between()
		}
		var there bool
		if err := pool.QueryRow(ctx, "select exists (select from "+table+" where id = $1)", id).Scan(&there); err != nil {
			t.Fatal(err)
		}
		if !there {
			missed++
		}
	}
	return missed
}

// neverStale fails the test if stale finds any.
func neverStale(t testing.TB, what string, pool *Pool, table string, between func()) {
	t.Helper()
	const n = 15
	if missed := stale(t, pool, table, n, between); missed > 0 {
		t.Errorf("%s: %d of %d reads are stale", what, missed, n)
	}
}

// fill lets a server's log grow by some 100 kB without changing a table.
func fill(t testing.TB, s *pgcluster.Server) {
	t.Helper()
	noError(t, s.Exec(t.Context(), "select pg_logical_emit_message(false, '', repeat('x', 100000))"))
}

// positionOf asks a server for a position in its log, by one of its functions.
func positionOf(t testing.TB, s *pgcluster.Server, function string) (position int64) {
	t.Helper()
	noError(t, queryOne(t.Context(), s, "select coalesce("+function+"() - '0/0', 0)::bigint", &position))
	return position
}

// waitCaughtUp waits until a standby has replayed all that another server has.
func waitCaughtUp(t testing.TB, standby, source *pgcluster.Server) {
	t.Helper()
	flushed := positionOf(t, source, "pg_current_wal_flush_lsn")
	eventually(t, "the standby catches up", func() bool { return positionOf(t, standby, "pg_last_wal_replay_lsn") >= flushed })
}

// demote makes a primary read-only and ends its connections, as Fly does when it is replaced.
func demote(t testing.TB, s *pgcluster.Server) {
	t.Helper()
	for _, sql := range []string{"alter system set default_transaction_read_only = on", "select pg_reload_conf()", endConnections} {
		noError(t, s.Exec(t.Context(), sql))
	}
}

// rebuild puts a standby back to a backup from before a failover, from where it follows the leader.
func rebuild(t testing.TB, s *pgcluster.Server, backup *pgcluster.Backup) {
	t.Helper()
	noError(t, s.Follow(""))
	noError(t, s.Restore(t.Context(), backup))
	noError(t, s.WaitReplayed(t.Context()))
}

// restartpoint brings the control file of a standby up to date.
func restartpoint(t testing.TB, leader, standby *pgcluster.Server) {
	t.Helper()
	noError(t, leader.Exec(t.Context(), "checkpoint"))
	noError(t, standby.WaitReplayed(t.Context()))
	noError(t, standby.Exec(t.Context(), "checkpoint"))
}

func backupOf(t testing.TB, s *pgcluster.Server) *pgcluster.Backup {
	t.Helper()
	backup, err := s.Backup(t.Context())
	noError(t, err)
	return backup
}

// TestStandbyOfDemotedPrimary reads from a standby that streams from the primary which was replaced, and lives on.
func TestStandbyOfDemotedPrimary(t *testing.T) {
	t.Parallel()
	cluster := threeServers(t)
	nrt, ord, syd := cluster.Server("nrt"), cluster.Server("ord"), cluster.Server("syd")
	name := trustTable(t, cluster)
	backup := backupOf(t, syd)
	noError(t, syd.WaitReplayed(t.Context()))
	pools := map[string]*Pool{}
	for _, role := range []string{"app", "watcher"} {
		pools[role+", old pool"] = poolIn(t, cluster, "syd", impatient, as(role))
		neverStale(t, role+", before", pools[role+", old pool"], name, nil)
		awaitReplica(t, t.Context(), pools[role+", old pool"])
	}
	noError(t, ord.WaitReplayed(t.Context()))
	noError(t, cluster.PromoteBeside(t.Context(), "ord"))
	demote(t, nrt)
	for range 10 {
		fill(t, nrt)
	}
	waitCaughtUp(t, syd, nrt)
	for _, role := range []string{"app", "watcher"} {
		pools[role+", new pool"] = poolIn(t, cluster, "syd", impatient, as(role))
	}
	for what, pool := range pools {
		neverStale(t, what, pool, name, func() { fill(t, nrt); waitCaughtUp(t, syd, nrt) })
	}
	for what, pool := range pools {
		neverStale(t, what+", on a new connection", pool, name, func() { fill(t, nrt); waitCaughtUp(t, syd, nrt); pool.Replica().Reset() })
	}

	// It follows the new primary. Who may read what it receives sees that, the others when its control file says so.
	rebuild(t, syd, backup)
	for what, pool := range pools {
		neverStale(t, what+", after it was rebuilt", pool, name, nil)
		if strings.HasPrefix(what, "watcher") {
			awaitReplica(t, t.Context(), pool)
		}
	}
	restartpoint(t, ord, syd)
	for what, pool := range pools {
		awaitReplica(t, t.Context(), pool)
		neverStale(t, what+", at home", pool, name, nil)
	}
}

// TestStandbyRestartsOnLostBranch reads from a standby that holds what the new primary never had, and that was killed in
// the midst of replaying it: what it has received is not known then, and it goes on to make headway.
func TestStandbyRestartsOnLostBranch(t *testing.T) {
	t.Parallel()
	cluster := threeServers(t)
	nrt, ord, syd := cluster.Server("nrt"), cluster.Server("ord"), cluster.Server("syd")
	ctx := t.Context()
	name := trustTable(t, cluster)
	backup := backupOf(t, syd)
	noError(t, syd.WaitReplayed(ctx))
	noError(t, ord.WaitReplayed(ctx))

	// syd has a restartpoint on the lost branch, and more of it that it has not replayed.
	cluster.Replication("ord").Cut()
	noError(t, nrt.Exec(ctx, "insert into "+name+" values (-1)"))
	noError(t, syd.WaitReplayed(ctx))
	restartpoint(t, nrt, syd)
	noError(t, syd.DelayReplay(ctx, time.Hour))
	for range 20 {
		fill(t, nrt)
		// The commit flushes the log up to the end of a record, as nothing is replayed of a record that is cut off.
		noError(t, nrt.Exec(ctx, "insert into "+name+" values (-1)"))
	}
	flushed := positionOf(t, nrt, "pg_current_wal_flush_lsn")
	eventually(t, "syd has received it", func() bool { return positionOf(t, syd, "pg_last_wal_receive_lsn") >= flushed })
	noError(t, nrt.Kill())
	cluster.Replication("ord").Restore()
	noError(t, cluster.Promote(ctx, "ord"))
	noError(t, syd.Kill())
	noError(t, syd.Start(ctx))

	pools := map[string]*Pool{}
	for _, role := range []string{"app", "watcher"} {
		pools[role] = poolIn(t, cluster, "syd", impatient, as(role))
		neverStale(t, role+", in the midst of it", pools[role], name, nil)
	}
	if replayed := positionOf(t, syd, "pg_last_wal_replay_lsn"); replayed >= flushed {
		t.Fatal("syd has replayed everything")
	}
	noError(t, syd.DelayReplay(ctx, 0))
	eventually(t, "syd replays the rest", func() bool { return positionOf(t, syd, "pg_last_wal_replay_lsn") >= flushed })
	for role, pool := range pools {
		neverStale(t, role, pool, name, nil)
		neverStale(t, role+", new pool", poolIn(t, cluster, "syd", impatient, as(role)), name, nil)
	}
	rebuild(t, syd, backup)
	restartpoint(t, ord, syd)
	for role, pool := range pools {
		awaitReplica(t, ctx, pool)
		neverStale(t, role+", at home", pool, name, nil)
	}
}

// TestStandbyOnNewerTimeline writes to a primary that was replaced without being told, and reads from a standby that
// follows the new one.
func TestStandbyOnNewerTimeline(t *testing.T) {
	t.Parallel()
	cluster := threeServers(t)
	ord, syd := cluster.Server("ord"), cluster.Server("syd")
	ctx := t.Context()
	name := trustTable(t, cluster)
	pool := poolIn(t, cluster, "syd", impatient)
	neverStale(t, "before", pool, name, nil)
	awaitReplica(t, ctx, pool)
	noError(t, ord.WaitReplayed(ctx))
	noError(t, syd.WaitReplayed(ctx))
	noError(t, cluster.PromoteBeside(ctx, "ord"))
	noError(t, syd.Follow(""))
	for range 20 {
		fill(t, ord)
	}
	noError(t, syd.WaitReplayed(ctx))

	// What was written to the old primary is lost when the pool finds the new one: no read can show it from then on.
	regions := map[string]string{}
	for _, s := range cluster.Servers() {
		_, port, _ := net.SplitHostPort(s.Addr())
		regions[port] = s.Region()
	}
	// A question whose answer tells the server, and that counts as a read, because its text does not show the name of the setting.
	const portSQL = "current_setting('po' || 'rt')"
	for n := range 30 {
		id := int(clock.Add(1))
		var on, by, now string
		if err := pool.QueryRow(ctx, "insert into "+name+" values ($1) returning "+portSQL, id).Scan(&on); err != nil {
			t.Fatal(err)
		}
		var there bool
		if err := pool.QueryRow(ctx, "select exists (select from "+name+" where id = $1), "+portSQL, id).Scan(&there, &by); err != nil {
			t.Fatal(err)
		}
		if err := pool.QueryRow(WithPrimary(ctx), "select "+portSQL).Scan(&now); err != nil {
			t.Fatal(err)
		}
		if !there && on == now {
			t.Errorf("read %d is stale: written in %s, answered in %s, and the next statement ran in %s", n, regions[on], regions[by], regions[now])
		}
	}
	var leader int64
	noError(t, queryOne(ctx, ord, "select "+startedSQL, &leader))
	eventually(t, "the pool finds the new primary", func() bool {
		var now int64
		return pool.QueryRow(ctx, "select exists (select from "+name+")").Scan(new(bool)) == nil &&
			pool.QueryRow(WithPrimary(ctx), "select "+startedSQL).Scan(&now) == nil && now == leader
	})
	neverStale(t, "with the new primary", pool, name, nil)
	awaitReplica(t, ctx, pool)
	neverStale(t, "at home", pool, name, nil)
}

// TestStandbyWithoutReceiver writes to a primary that was replaced without being told, and reads from a standby that has gone
// over to the new one and then lost it. Its control file still has the old timeline.
func TestStandbyWithoutReceiver(t *testing.T) {
	t.Parallel()
	cluster := threeServers(t)
	nrt, ord, syd := cluster.Server("nrt"), cluster.Server("ord"), cluster.Server("syd")
	ctx := t.Context()
	name := trustTable(t, cluster)
	pools := map[string]*Pool{}
	for what, role := range map[string]string{"superuser": "postgres", "watcher": "watcher"} {
		pools[what] = poolIn(t, cluster, "syd", impatient, func(c *Config) {
			c.ConnConfig.User, c.ConnConfig.Password = role, role
			c.MaxConns = 1 // a second connection would lead to the new primary
		})
		neverStale(t, what+", before", pools[what], name, nil)
		awaitReplica(t, ctx, pools[what])
	}
	noError(t, ord.WaitReplayed(ctx))
	noError(t, syd.WaitReplayed(ctx))
	noError(t, cluster.PromoteBeside(ctx, "ord"))
	noError(t, syd.Follow(""))
	for range 20 {
		fill(t, ord)
	}
	noError(t, syd.WaitReplayed(ctx))
	loseReceiver(t, cluster, syd)
	ahead := positionOf(t, syd, "pg_last_wal_replay_lsn")
	for what, pool := range pools {
		neverStale(t, what+", by reports of the pool", pool, name, nil)
		neverStale(t, what+", by reports of new connections", pool, name, pool.Replica().Reset)
	}
	if written := positionOf(t, nrt, "pg_current_wal_flush_lsn"); written >= ahead {
		t.Errorf("the old primary's log has grown to %s, past %s of the standby", LSN(written), LSN(ahead))
	}
	var timeline int
	noError(t, queryOne(ctx, syd, "select greatest(timeline_id, min_recovery_end_timeline) from pg_control_checkpoint(), pg_control_recovery()", &timeline))
	if timeline > 1 {
		t.Log("the standby's control file has gone over to the new timeline, so this test has shown less than it can")
	}

	cluster.Replication("syd").Restore()
	for what, pool := range pools {
		eventually(t, "the pool finds the new primary", func() bool {
			return pool.QueryRow(ctx, "select exists (select from "+name+")").Scan(new(bool)) == nil && pool.primary.identity.Load().timeline == 2
		})
		awaitReplica(t, ctx, pool)
		neverStale(t, what+", at home", pool, name, nil)
	}
}

// What a standby has shown that it has replayed counts for reads after it has lost its primary too, and nothing else does.
func TestReadsStayLocalWithoutReceiver(t *testing.T) {
	t.Parallel()
	cluster := ownCluster(t, nil)
	nrt, ord := cluster.Server("nrt"), cluster.Server("ord")
	ctx := t.Context()
	name := trustTable(t, cluster)
	pools := map[string]*Pool{}
	sessions := map[string]context.Context{}
	for _, role := range []string{"app", "watcher"} {
		pool := poolIn(t, cluster, "ord", impatient, as(role), func(c *Config) { c.MaxConns = 1 })
		pools[role], sessions[role] = pool, WithSession(ctx, new(Session))
		write := "insert into " + name + " values (1)"
		if role == "app" { // the connection is older than the write, and the watcher gets the proof
			awaitReplica(t, ctx, pool)
			noError(t, execs(sessions[role], pool, write))
			noError(t, pool.WaitReplayed(sessions[role]))
			continue
		}
		noError(t, execs(sessions[role], pool, write))
		awaitReplica(t, sessions[role], pool)
	}

	// The log goes on, so that the standby has replayed more than it has shown.
	fill(t, nrt)
	noError(t, ord.WaitReplayed(ctx))
	loseReceiver(t, cluster, ord)
	for role, pool := range pools {
		for range 5 {
			var there, local bool
			noError(t, pool.QueryRow(sessions[role], "select count(*) > 0, current_setting('transaction_' || 'read_only') = 'on' from "+name).Scan(&there, &local))
			if !there || !local {
				t.Errorf("%s: a read of an older write: it sees the write: %t, it ran on the replica: %t", role, there, local)
			}
			// The reports that this read asks for prove nothing.
			if stale(t, pool, name, 1, nil) > 0 {
				t.Errorf("%s: a read of a new write is stale", role)
			}
		}
		noError(t, execs(ctx, pool, "insert into "+name+" values (1)"))
		err := pool.QueryRow(WithReplica(ctx), "select 1").Scan(new(int))
		if !errors.Is(err, ErrReplicaLag) {
			t.Errorf("%s: WithReplica: %v", role, err)
		}
		pool.Replica().Reset() // a server that crashes closes its connections, so a new one may lead to one that has
		if replicaServes(t, sessions[role], pool) {
			t.Errorf("%s: a read runs on a connection that was opened after the last proof", role)
		}
	}
	cluster.Replication("ord").Restore()
	for role, pool := range pools {
		awaitReplica(t, ctx, pool)
		neverStale(t, role+", at home", pool, name, nil)
	}
}

// loseReceiver ends the WAL receiver of a standby until its link is restored.
func loseReceiver(t testing.TB, cluster *pgcluster.Cluster, standby *pgcluster.Server) {
	t.Helper()
	cluster.Replication(standby.Region()).Cut()
	eventually(t, "the standby has no WAL receiver", func() bool {
		var receivers int
		noError(t, queryOne(t.Context(), standby, "select count(*) from pg_stat_wal_receiver", &receivers))
		return receivers == 0
	})
}

// startedSQL is what tells one server from another.
const startedSQL = "(extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint"

// TestRestoredPrimary reads from a standby that is ahead of its primary, as that was restored from a copy, on the same
// timeline. The primary's log grows beyond the standby's position and says something else there.
func TestRestoredPrimary(t *testing.T) {
	t.Parallel()
	cluster := ownCluster(t, nil)
	nrt, ord := cluster.Server("nrt"), cluster.Server("ord")
	ctx := t.Context()
	name := trustTable(t, cluster)
	older, backup := backupOf(t, ord), backupOf(t, nrt)
	pools := map[string]*Pool{}
	for _, role := range []string{"app", "watcher"} {
		pools[role+", old pool"] = poolIn(t, cluster, "ord", impatient, as(role))
		neverStale(t, role+", before", pools[role+", old pool"], name, nil)
		awaitReplica(t, ctx, pools[role+", old pool"])
	}
	for range 20 {
		fill(t, nrt)
	}
	noError(t, ord.WaitReplayed(ctx))
	noError(t, nrt.Restore(ctx, backup))
	for _, role := range []string{"app", "watcher"} {
		pools[role+", new pool"] = poolIn(t, cluster, "ord", impatient, as(role))
	}
	for what, pool := range pools {
		neverStale(t, what, pool, name, nil)
	}
	ahead := positionOf(t, ord, "pg_last_wal_replay_lsn")
	for positionOf(t, nrt, "pg_current_wal_flush_lsn") < ahead {
		fill(t, nrt)
	}
	fill(t, nrt)
	for what, pool := range pools {
		neverStale(t, what+", the primary ahead again", pool, name, nil)
	}

	rebuild(t, ord, older)
	for what, pool := range pools {
		awaitReplica(t, ctx, pool)
		neverStale(t, what+", at home", pool, name, nil)
	}
}

// TestStandbyOfAnotherCluster leads a replica's name to a standby that belongs to another database, whose log is longer.
func TestStandbyOfAnotherCluster(t *testing.T) {
	t.Parallel()
	cluster, other := ownCluster(t, nil), ownCluster(t, nil)
	ctx := t.Context()
	name := trustTable(t, cluster)
	noError(t, other.Leader().Exec(ctx, "create role app login password 'app'; create table "+name+" (id int); grant all on "+name+" to app"))
	for range 10 {
		fill(t, other.Leader())
	}
	noError(t, other.Server("ord").WaitReplayed(ctx))
	here, there := cluster.From("ord"), other.From("ord")
	pool := poolIn(t, cluster, "ord", impatient, as("app"), func(c *Config) {
		c.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if _, port, _ := net.SplitHostPort(addr); port == "5433" {
				return there.DialContext(ctx, network, addr)
			}
			return here.DialContext(ctx, network, addr)
		}
	})
	neverStale(t, "astray", pool, name, nil)
	err := pool.QueryRow(WithReplica(ctx), "select 1").Scan(new(int))
	if err == nil || !strings.Contains(err.Error(), "flyregion: replica in ord is no standby of the primary") || !strings.Contains(err.Error(), "system identifier") {
		t.Errorf("WithReplica: %v", err)
	}
	if got := pool.Describe(); !strings.Contains(got, "(replica in ord, but it belongs to another cluster, as its system identifier is ") {
		t.Error(got)
	}
	pool.Close()
	pool = poolIn(t, cluster, "ord", impatient, as("app"))
	neverStale(t, "at home", pool, name, nil)
	awaitReplica(t, ctx, pool)
}

// startBouncer starts a PgBouncer, or skips the test.
func startBouncer(t testing.TB, cluster *pgcluster.Cluster, region string, settings map[string]string) *pgcluster.Bouncer {
	t.Helper()
	bouncer, err := cluster.StartBouncer(t.Context(), region, settings)
	if errors.Is(err, pgcluster.ErrNoBouncer) {
		t.Skip(err)
	}
	noError(t, err)
	return bouncer
}

// Batches through a pooler tell their position in every mode, so that the next reads stay on the replica.
func TestReadsStayLocalBehindBouncer(t *testing.T) {
	t.Parallel()
	cluster := ownCluster(t, nil)
	name := trustTable(t, cluster)
	ctx := t.Context()
	bouncer := startBouncer(t, cluster, "", map[string]string{"pool_mode": "transaction"})
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeExec, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeSimpleProtocol} {
		pool := poolIn(t, cluster, "ord", primaryBehind(bouncer), func(c *Config) {
			c.ConnConfig.DefaultQueryExecMode = mode
			c.MinReplicaWait, c.MaxReplicaWait = 10*time.Second, 10*time.Second
		})
		awaitReplica(t, ctx, pool)
		for range 10 {
			noError(t, pool.SendBatch(ctx, batchOf("insert into "+name+" values (1)", "insert into "+name+" values (2)")).Close())
			if !replicaServes(t, ctx, pool) {
				t.Errorf("%v: the primary serves the read behind a batch", mode)
			}
		}
	}
}

// leadTo makes a pool dial an address of the machine's own without the cluster's network.
func leadTo(c *Config, addr string) {
	dial := c.ConnConfig.DialFunc
	c.ConnConfig.DialFunc = func(ctx context.Context, network, to string) (net.Conn, error) {
		if to == addr {
			var d net.Dialer
			return d.DialContext(ctx, network, to)
		}
		return dial(ctx, network, to)
	}
}

// primaryBehind makes a pool reach the primary through a bouncer.
func primaryBehind(b *pgcluster.Bouncer) func(*Config) {
	return func(c *Config) {
		through, err := pgx.ParseConfig(b.ConnString())
		if err != nil {
			panic(err)
		}
		leadTo(c, b.Addr())
		c.ConnConfig.Host, c.ConnConfig.Port, c.ConnConfig.Fallbacks = through.Host, through.Port, nil
		c.ReplicaConnStrings = map[string]string{}
		for _, region := range append(c.ReplicaRegions, c.Region) {
			c.ReplicaConnStrings[region] = "postgres://postgres:postgres@" + region + ".app.internal:5433/postgres?sslmode=disable"
		}
		c.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec // which needs no prepared statements
	}
}

// replicaBehind makes a pool reach its region's replica through a bouncer.
func replicaBehind(b *pgcluster.Bouncer) func(*Config) {
	return func(c *Config) {
		leadTo(c, b.Addr())
		c.ReplicaConnStrings = map[string]string{c.Region: b.ConnString()}
		c.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	}
}

// TestCopyThroughBouncer copies through a PgBouncer, which drops what is asked behind the data in transaction mode.
func TestCopyThroughBouncer(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"transaction", "session"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			cluster := ownCluster(t, nil)
			name := trustTable(t, cluster)
			bouncer := startBouncer(t, cluster, "", map[string]string{"pool_mode": mode})
			pool := poolIn(t, cluster, "ord", impatient, primaryBehind(bouncer), func(c *Config) { c.MaxConns = 4 })
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			thaw := freeze(t, cluster)
			want := 0
			rows := func(n int) pgx.CopyFromSource {
				want += n
				return pgx.CopyFromSlice(n, func(i int) ([]any, error) { return []any{i}, nil })
			}
			for what, copies := range map[string]func() error{
				"pool": func() error {
					_, err := pool.CopyFrom(ctx, pgx.Identifier{name}, []string{"id"}, rows(1))
					return err
				},
				"large": func() error {
					_, err := pool.CopyFrom(ctx, pgx.Identifier{name}, []string{"id"}, rows(50_000))
					return err
				},
				"transaction": func() error {
					return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
						_, err := tx.CopyFrom(ctx, pgx.Identifier{name}, []string{"id"}, rows(1))
						return err
					})
				},
				"acquired": func() error {
					return onConn(pool, ctx, func(c *pgxpool.Conn) error {
						_, err := c.CopyFrom(ctx, pgx.Identifier{name}, []string{"id"}, rows(1))
						return err
					})
				},
				"raw": func() error {
					want++
					return onConn(pool, ctx, func(c *pgxpool.Conn) error {
						_, err := c.Conn().PgConn().CopyFrom(ctx, strings.NewReader("1\n"), "copy "+name+" from stdin")
						return err
					})
				},
			} {
				if err := copies(); err != nil {
					t.Errorf("%s: %v", what, err)
				}
				if n := counts(t, ctx, pool, name); n != want {
					t.Errorf("%s: a read sees %d rows of %d", what, n, want)
				}
				// The connection is in step, or gone.
				neverStaleIn(t, ctx, what, pool, name, &want)
			}
			thaw()
			awaitReplica(t, ctx, pool)
			if n := counts(t, ctx, pool, name); n != want {
				t.Errorf("at home: a read sees %d rows of %d", n, want)
			}
			unused(t, pool)
		})
	}
}

// neverStaleIn uses every connection to the primary, for writes that a read must see.
func neverStaleIn(t testing.TB, ctx context.Context, what string, pool *Pool, name string, rows *int) {
	t.Helper()
	for range 8 {
		if err := execs(ctx, pool, "insert into "+name+" values (1)"); err != nil {
			t.Fatalf("%s: a write after it: %v", what, err)
		}
		*rows++
		if n := counts(t, ctx, pool, name); n != *rows {
			t.Errorf("%s: a read after it sees %d rows of %d", what, n, *rows)
		}
	}
}

// TestFailoverBehindBouncer promotes a standby behind a PgBouncer, so that the pool's connections live on, and reads from
// one that has what the new primary never had.
func TestFailoverBehindBouncer(t *testing.T) {
	t.Parallel()
	cluster := threeServers(t)
	nrt, ord, syd := cluster.Server("nrt"), cluster.Server("ord"), cluster.Server("syd")
	ctx := t.Context()
	name := trustTable(t, cluster)
	backup := backupOf(t, syd)
	noError(t, syd.WaitReplayed(ctx))
	bouncer := startBouncer(t, cluster, "", map[string]string{"pool_mode": "transaction"})
	pool := poolIn(t, cluster, "syd", impatient, primaryBehind(bouncer), func(c *Config) { c.MaxConns = 1 })
	neverStale(t, "before", pool, name, nil)
	awaitReplica(t, ctx, pool)
	noError(t, ord.WaitReplayed(ctx))
	cluster.Replication("ord").Cut()
	for range 20 {
		fill(t, nrt)
	}
	waitCaughtUp(t, syd, nrt)
	connections := pool.Primary().Stat().NewConnsCount()
	noError(t, nrt.Kill())
	cluster.Replication("ord").Restore()
	noError(t, cluster.Promote(ctx, "ord"))
	// The bouncer tells its client of the server's end when that was in use, and not when it was idle.
	neverStale(t, "after", pool, name, nil)
	t.Logf("%d new connections to the primary", pool.Primary().Stat().NewConnsCount()-connections)
	rebuild(t, syd, backup)
	neverStale(t, "after it was rebuilt", pool, name, nil)
	awaitReplica(t, ctx, pool)
	restartpoint(t, ord, syd)
	neverStale(t, "at home", pool, name, nil)
	awaitReplica(t, ctx, pool)
}

// TestWritableReplicaSession reaches the replica through a PgBouncer that drops what makes its sessions read-only. They
// would write as soon as the replica is promoted.
func TestWritableReplicaSession(t *testing.T) {
	t.Parallel()
	cluster := ownCluster(t, nil)
	ctx := t.Context()
	name := trustTable(t, cluster)
	dropping := map[string]string{"pool_mode": "transaction", "ignore_startup_parameters": "default_transaction_read_only,statement_timeout,lock_timeout"}
	drops := poolIn(t, cluster, "ord", impatient, replicaBehind(startBouncer(t, cluster, "ord", dropping)))
	neverStale(t, "dropped", drops, name, nil)
	err := drops.QueryRow(WithReplica(ctx), "select 1").Scan(new(int))
	if err == nil || !strings.Contains(err.Error(), "default_transaction_read_only") {
		t.Errorf("WithReplica: %v", err)
	}
	if f := failureOf(drops, "replica", "ord"); f == nil || !strings.Contains(f.Err.Error(), "default_transaction_read_only") {
		t.Errorf("the failure in Stat is %v", f)
	}
	noError(t, cluster.Promote(ctx, "ord"))
	if err := execs(ctx, drops.Replica(), "insert into "+name+" values (-1)"); err == nil {
		t.Error("a replica's session has written")
	}
	noError(t, cluster.Promote(ctx, "nrt"))
	neverStale(t, "dropped, after two promotions", drops, name, nil)
	drops.Close()

	// Where the server makes its sessions read-only itself, that does.
	ord := cluster.Server("ord")
	for _, sql := range []string{"alter system set default_transaction_read_only = on", "select pg_reload_conf()"} {
		noError(t, ord.Exec(ctx, sql))
	}
	keeps := poolIn(t, cluster, "ord", impatient, replicaBehind(startBouncer(t, cluster, "ord", dropping)))
	awaitReplica(t, ctx, keeps)
	neverStale(t, "read-only by the server's settings", keeps, name, nil)
}

// TestReplicaComesBackOlderBehindBouncer has the replica lose what it had replayed while the pool's connections to a
// PgBouncer in front of it live on: what they were told before says nothing any more.
func TestReplicaComesBackOlderBehindBouncer(t *testing.T) {
	t.Parallel()
	cluster := ownCluster(t, nil)
	nrt, ord := cluster.Server("nrt"), cluster.Server("ord")
	ctx := t.Context()
	name := trustTable(t, cluster)
	for _, sql := range []string{"alter system set default_transaction_read_only = on", "select pg_reload_conf()"} {
		noError(t, ord.Exec(ctx, sql))
	}
	bouncer := startBouncer(t, cluster, "ord", map[string]string{
		"pool_mode": "transaction", "ignore_startup_parameters": "default_transaction_read_only,statement_timeout,lock_timeout",
	})
	pool := poolIn(t, cluster, "ord", impatient, replicaBehind(bouncer))
	restartpoint(t, nrt, ord)
	neverStale(t, "before", pool, name, nil)
	awaitReplica(t, ctx, pool)
	noError(t, ord.DelayReplay(ctx, time.Hour))
	cluster.Replication("ord").Cut()
	noError(t, ord.Crash(ctx))
	var there, want int
	noError(t, queryOne(ctx, nrt, "select count(*) from "+name, &want))
	noError(t, queryOne(ctx, ord, "select count(*) from "+name, &there))
	if there >= want {
		t.Fatalf("the replica has lost nothing: it has %d rows of %d", there, want)
	}
	missed := 0
	for range 30 {
		if counts(t, ctx, pool, name) < want {
			missed++
		}
	}
	if missed > 0 {
		t.Errorf("%d of 30 reads are stale", missed)
	}
	cluster.Replication("ord").Restore()
	noError(t, ord.DelayReplay(ctx, 0))
	neverStale(t, "after", pool, name, nil)
	awaitReplica(t, ctx, pool)
}

// TestCopyDisturbsNobody copies through a PgBouncer in transaction mode, which gives the server's connection to somebody
// else as soon as the copy has ended: what is asked behind it must not be answered to them.
func TestCopyDisturbsNobody(t *testing.T) {
	t.Parallel()
	cluster := ownCluster(t, nil)
	name := trustTable(t, cluster)
	bouncer := startBouncer(t, cluster, "", map[string]string{"pool_mode": "transaction", "default_pool_size": "1"})
	ctx := t.Context()
	config, err := pgx.ParseConfig(bouncer.ConnString())
	noError(t, err)
	config.DefaultQueryExecMode = pgx.QueryExecModeExec
	stop := make(chan struct{})
	var others sync.WaitGroup
	for i := range 3 {
		others.Go(func() {
			conn, err := pgx.ConnectConfig(ctx, config)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close(ctx)
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				var got string
				want := fmt.Sprintf("%d of %d", n, i)
				if err := conn.QueryRow(ctx, "select $1::text", want).Scan(&got); err != nil || got != want {
					t.Errorf("another client of the bouncer reads %q for %q, %v", got, want, err)
					return
				}
			}
		})
	}
	end := time.Now().Add(10 * time.Second)
	for n := 0; n < 20 && time.Now().Before(end); n++ {
		// A pool of its own has not learned what the bouncer does.
		pool := poolIn(t, cluster, "ord", impatient, primaryBehind(bouncer))
		for range 3 {
			if _, err := pool.CopyFrom(ctx, pgx.Identifier{name}, []string{"id"}, pgx.CopyFromRows([][]any{{n}})); err != nil {
				t.Errorf("copy %d: %v", n, err)
			}
		}
		pool.Close()
	}
	close(stop)
	others.Wait()
}
