package pgcluster

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func TestServerStopStart(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	c := startCluster(t, Config{Replicas: []string{"ord"}})
	for _, s := range c.Servers() {
		addr := s.Addr()
		must(t, s.Stop(ctx))
		must(t, s.Stop(ctx))
		if s.Running() {
			t.Error("runs after Stop")
		}
		if err := s.Exec(ctx, "select 1"); err == nil {
			t.Error("answers after Stop")
		}
		must(t, s.Start(ctx))
		must(t, s.Start(ctx))
		if !s.Running() || s.Addr() != addr {
			t.Errorf("running %v on %s, want %s", s.Running(), s.Addr(), addr)
		}
	}
	must(t, c.Leader().Restart(ctx))
	must(t, c.Leader().Exec(ctx, "create table t ()"))
	must(t, c.Server("ord").WaitReplayed(ctx))
	must(t, c.Server("ord").Exec(ctx, "select from t"))
}

func TestServerKill(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	c := startCluster(t, Config{Replicas: []string{"ord"}})
	must(t, c.Leader().Exec(ctx, "create table t (n int); insert into t values (1)"))
	must(t, c.Server("ord").WaitReplayed(ctx))
	for _, s := range c.Servers() {
		conn := connect(t, c, "syd", s.Region()+".app.internal", 5433)
		p, ok := readPostmaster(s.data())
		if !ok {
			t.Fatal("no postmaster")
		}
		pids := append(children(p.pid), p.pid)
		if len(pids) < 4 {
			t.Errorf("processes %v", pids)
		}
		must(t, s.Kill())
		must(t, s.Kill())
		for _, pid := range pids {
			if alive(pid) {
				t.Errorf("process %d is alive", pid)
			}
		}
		if s.Running() {
			t.Error("runs after Kill")
		}
		if err := conn.Ping(ctx); err == nil {
			t.Error("a connection survived")
		}
		must(t, s.Start(ctx))
		conn = connect(t, c, "syd", s.Region()+".app.internal", 5433)
		eventually(t, "the row is back", func() bool { return queryOne[int](t, conn, "select count(*) from t") == 1 })
	}
	must(t, c.Leader().Exec(ctx, "insert into t values (2)"))
	must(t, c.Server("ord").WaitReplayed(ctx))
	must(t, c.Server("ord").Kill()) // and Stop copes
}

func TestServerFreeze(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	c := startCluster(t, Config{Replicas: []string{"ord"}})
	conn := connect(t, c, "ord", "ord.app.internal", 5433)
	c.Server("ord").Freeze()
	answer := make(chan error, 1)
	go func() {
		_, err := conn.Exec(ctx, "select 1")
		answer <- err
	}()
	connecting, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	if _, err := tryConnect(connecting, c, "ord", "ord.app.internal", 5433); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("connecting to a server that is frozen: %v", err)
	}
	select {
	case err := <-answer:
		t.Errorf("an answer came: %v", err)
	default:
	}
	c.Server("ord").Thaw()
	must(t, <-answer)
	connect(t, c, "ord", "ord.app.internal", 5433)
	c.Server("ord").Freeze()
	must(t, c.Stop())
}

func TestServerCrash(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	c := startCluster(t, Config{Replicas: []string{"ord"}})
	for _, s := range c.Servers() {
		conn := connect(t, c, "ord", s.Region()+".app.internal", 5433)
		started := queryOne[time.Time](t, conn, "select pg_postmaster_start_time()")
		must(t, s.Crash(ctx))
		if err := conn.Ping(ctx); err == nil {
			t.Error("a connection survived")
		}
		conn = connect(t, c, "ord", s.Region()+".app.internal", 5433)
		if again := queryOne[time.Time](t, conn, "select pg_postmaster_start_time()"); !again.Equal(started) {
			t.Errorf("started at %v, then at %v", started, again)
		}
	}
	must(t, c.Leader().Exec(ctx, "create table t ()"))
	must(t, c.Server("ord").WaitReplayed(ctx))
}

func TestServerPauseReplay(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	c := startCluster(t, Config{Replicas: []string{"ord"}})
	must(t, c.Server("ord").PauseReplay(ctx))
	must(t, c.Leader().Exec(ctx, "create table t ()"))
	replica := connect(t, c, "ord", "ord.app.internal", 5433)
	var flushed string
	must(t, c.Leader().connected(ctx, func(conn *pgx.Conn) error {
		return conn.QueryRow(ctx, "select pg_current_wal_flush_lsn()::text").Scan(&flushed)
	}))
	eventually(t, "the WAL is received", func() bool {
		return queryOne[bool](t, replica, "select pg_last_wal_receive_lsn() >= $1::text::pg_lsn", flushed)
	})
	if queryOne[bool](t, replica, "select to_regclass('t') is not null") {
		t.Error("it was replayed")
	}
	must(t, c.Server("ord").ResumeReplay(ctx))
	must(t, c.Server("ord").WaitReplayed(ctx))
	if !queryOne[bool](t, replica, "select to_regclass('t') is not null") {
		t.Error("it was not replayed")
	}
	if err := c.Leader().PauseReplay(ctx); err == nil {
		t.Error("the leader's replay can be paused")
	}
}

// A stream that is a black hole keeps a primary from shutting down: ctx ends that.
func TestServerStopInTime(t *testing.T) {
	t.Parallel()
	c := startCluster(t, Config{Replicas: []string{"ord"}})
	c.Replication("ord").Stall()
	must(t, c.Leader().Exec(testContext(t), "create table t ()"))
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_ = c.Leader().Stop(ctx)
	if c.Leader().Running() {
		t.Error("runs after Stop")
	}
	must(t, c.Leader().Start(testContext(t)))
}

// What replay cancels on a standby is run again.
func TestExecOutlivesReplay(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	c := startCluster(t, Config{Replicas: []string{"ord"}, Parameters: map[string]string{"max_standby_streaming_delay": "0"}})
	ord := c.Server("ord")
	must(t, c.Leader().Exec(ctx, "create table t as select 1"))
	must(t, ord.WaitReplayed(ctx))
	conn := connectTo(t, ord.ConnString())
	execute(t, conn, "select pg_advisory_lock(1)")
	done := make(chan error, 1)
	go func() { done <- ord.Exec(ctx, "select pg_advisory_xact_lock(1) from t") }()
	eventually(t, "the statement waits", func() bool {
		return queryOne[bool](t, conn, "select exists (select from pg_locks where locktype = 'advisory' and not granted)")
	})
	must(t, c.Leader().Exec(ctx, "begin; lock t; commit"))
	eventually(t, "replay cancels it", func() bool {
		log, err := ord.Log()
		must(t, err)
		return strings.Contains(log, "canceling statement due to conflict with recovery")
	})
	execute(t, conn, "select pg_advisory_unlock(1)")
	must(t, <-done)
}

// A replica is waited for until it shows what was committed asynchronously, too, however seldom the log is flushed.
func TestWaitReplayedAsynchronousCommit(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	c := startCluster(t, Config{Replicas: []string{"ord"}, Parameters: map[string]string{"wal_writer_delay": "10s"}})
	ord := c.Server("ord")
	must(t, c.Leader().Exec(ctx, "create table t (n int)"))
	for i := range 10 {
		must(t, c.Leader().Exec(ctx, "set synchronous_commit = off; insert into t select 1 from generate_series(1, 300)"))
		must(t, ord.WaitReplayed(ctx))
		if n := count(t, ord); n != 300*(i+1) {
			t.Fatalf("%d rows, want %d", n, 300*(i+1))
		}
	}
}
