package flyregion

import (
	"context"
	"testing"

	"github.com/flyregion/flyregion/internal/pgcluster"
	"github.com/jackc/pgx/v5/pgconn"
)

// serverLog returns what a server has logged.
func serverLog(t testing.TB, s *pgcluster.Server) string {
	t.Helper()
	text, err := s.Log()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestAskReport asks servers about themselves.
func TestAskReport(t *testing.T) {
	t.Parallel()
	cluster := ownCluster(t, nil)
	ctx := t.Context()
	nrt, ord := cluster.Server("nrt"), cluster.Server("ord")
	ask := func(s *pgcluster.Server) report {
		t.Helper()
		conn, err := pgconn.Connect(ctx, s.ConnString())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.Background())
		r, err := askReport(ctx, conn)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	primary, replica := ask(nrt), ask(ord)
	if primary.recovering || primary.readOnly || primary.position == 0 || primary.version < 100000 || primary.server == 0 {
		t.Errorf("the primary says %+v", primary)
	}
	if !replica.recovering || !replica.readOnly || replica.position == 0 || replica.version != primary.version || replica.server == primary.server {
		t.Errorf("the replica says %+v", replica)
	}

	if again := ask(nrt); again.server != primary.server {
		t.Errorf("the primary calls itself %d and then %d", primary.server, again.server)
	}
	if err := ord.Exec(ctx, "checkpoint"); err != nil {
		t.Fatal(err)
	}
	if err := ord.Crash(ctx); err != nil {
		t.Fatal(err)
	}
	if crashed := ask(ord); crashed.server != replica.server {
		t.Errorf("after a crash the replica calls itself %d, before %d", crashed.server, replica.server)
	}
	if err := ord.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	if restarted := ask(ord); restarted.server == replica.server {
		t.Error("after a restart the replica calls itself the same")
	}
	if err := nrt.Exec(ctx, "alter system set default_transaction_read_only = on"); err != nil {
		t.Fatal(err)
	}
	if err := nrt.Exec(ctx, "select pg_reload_conf()"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the primary is read-only", func() bool { return ask(nrt).readOnly })
	pool := poolIn(t, cluster, "ord")
	if err := execs(ctx, pool, "create table t ()"); err == nil {
		t.Error("a primary that was demoted is written to")
	}
}

// TestOneRow asks what does not answer one row.
func TestOneRow(t *testing.T) {
	conn, err := pgconn.Connect(t.Context(), sharedCluster(t).Leader().ConnString())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	for _, sql := range []string{"", "select 1 where false", "select 1 union select 2", "select 1/0", "checkpoint"} {
		if row, err := oneRow(t.Context(), conn, sql); err == nil {
			t.Errorf("%q answers %q", sql, row)
		}
	}
	if row, err := oneRow(t.Context(), conn, "select 1, 'x'"); err != nil || len(row) != 2 || string(row[1]) != "x" {
		t.Errorf("%q, %v", row, err)
	}
}

// TestServerThatIsNotPreferred checks a pool whose servers the app's own ValidateConnect would rather not have, but takes.
func TestServerThatIsNotPreferred(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int")
	ctx := t.Context()
	config := configIn(t, cluster, "nrt")
	config.SimulateReplica = true // so that a server which is no standby is read from
	config.ConnConfig.ValidateConnect = func(ctx context.Context, conn *pgconn.PgConn) error {
		return pgconn.ValidateConnectTargetSessionAttrsPreferStandby(ctx, conn)
	}
	pool, err := NewPoolWithConfig(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()

	if !replicaServes(t, ctx, pool) {
		t.Error("no read runs on the replica's connections")
	}
	if _, err := pool.Exec(ctx, "insert into "+name+" values (1)"); err != nil {
		t.Fatal(err)
	}
	if pool.primary.written(&pool.primary.session).position == 0 {
		t.Error("the write did not tell its position")
	}
}
