package pgcluster

import (
	"context"
	"errors"
	"os"
	"testing"

	"github.com/jackc/pgx/v5"
)

func startBouncer(t *testing.T, c *Cluster, region string, settings map[string]string) *Bouncer {
	t.Helper()
	b, err := c.StartBouncer(testContext(t), region, settings)
	if errors.Is(err, ErrNoBouncer) {
		t.Skip(err)
	}
	must(t, err)
	t.Cleanup(func() { must(t, b.Stop()) })
	return b
}

func connectTo(t *testing.T, connString string) *pgx.Conn {
	t.Helper()
	config, err := pgx.ParseConfig(connString)
	must(t, err)
	config.DefaultQueryExecMode = pgx.QueryExecModeExec
	conn, err := pgx.ConnectConfig(testContext(t), config)
	must(t, err)
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// A client of a bouncer in transaction mode finds itself on the new leader after a promotion, without connecting anew.
func TestBouncerOutlivesPromotion(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	c := startCluster(t, Config{Replicas: []string{"ord"}})
	b := startBouncer(t, c, "", map[string]string{"pool_mode": "transaction"})
	conn := connectTo(t, b.ConnString())
	execute(t, conn, "create table t (n int)")
	started := queryOne[string](t, conn, "select pg_postmaster_start_time()::text")
	must(t, c.Promote(ctx, "ord"))
	eventually(t, "the client can write", func() bool {
		_, err := conn.Exec(ctx, "insert into t values (1)")
		return err == nil
	})
	if queryOne[string](t, conn, "select pg_postmaster_start_time()::text") == started {
		t.Error("it is the same server")
	}

	// Where the old leader lives on, it is for Reconnect to leave it.
	must(t, c.PromoteBeside(ctx, "nrt"))
	started = queryOne[string](t, conn, "select pg_postmaster_start_time()::text")
	b.Reconnect()
	eventually(t, "the client is on the new leader", func() bool {
		var now string
		return conn.QueryRow(ctx, "select pg_postmaster_start_time()::text").Scan(&now) == nil && now != started
	})
}

// A bouncer in session mode keeps a client's session, one in transaction mode does not.
func TestBouncerModes(t *testing.T) {
	t.Parallel()
	c := startCluster(t, Config{Replicas: []string{"ord"}})
	for mode, keeps := range map[string]bool{"session": true, "transaction": false} {
		t.Run(mode, func(t *testing.T) {
			b := startBouncer(t, c, "ord", map[string]string{"pool_mode": mode, "server_reset_query_always": "1"})
			conn := connectTo(t, b.ConnString())
			if !queryOne[bool](t, conn, "select pg_is_in_recovery()") {
				t.Error("it does not lead to ord")
			}
			execute(t, conn, "set work_mem = '7MB'")
			if kept := queryOne[string](t, conn, "show work_mem") == "7MB"; kept != keeps {
				t.Errorf("the setting was kept: %v", kept)
			}
		})
	}
}

// A bouncer whose process has ended is there again, on the same port.
func TestBouncerIsStartedAgain(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	c := startCluster(t, Config{})
	b := startBouncer(t, c, "", map[string]string{"pool_mode": "transaction"})
	conn := connectTo(t, b.ConnString())
	b.Kill()
	eventually(t, "the client has lost its connection", func() bool {
		_, err := conn.Exec(ctx, "select")
		return err != nil
	})
	eventually(t, "it accepts connections again", func() bool {
		again, err := pgx.Connect(ctx, b.ConnString())
		if err != nil {
			return false
		}
		defer again.Close(ctx)
		return again.Ping(ctx) == nil
	})
	if n := b.Failures(); n != 1 {
		t.Errorf("%d failures, want 1", n)
	}
}

func TestBouncerStops(t *testing.T) {
	t.Parallel()
	c := startCluster(t, Config{})
	b := startBouncer(t, c, "", nil)
	b.mu.Lock()
	pid := b.cmd.Process.Pid
	b.mu.Unlock()
	must(t, c.Stop())
	if alive(pid) {
		t.Error("it runs after the cluster's end")
	}
	if _, err := os.Stat(b.folder); !errors.Is(err, os.ErrNotExist) {
		t.Error("its folder is there")
	}
	if _, err := c.StartBouncer(testContext(t), "", nil); err == nil {
		t.Error("a stopped cluster starts one")
	}
	if _, err := c.StartBouncer(testContext(t), "fra", nil); err == nil {
		t.Error("it starts for a region without a server")
	}
}
