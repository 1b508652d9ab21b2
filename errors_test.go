package flyregion

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// usesOfReplica are ways to need the replica and no other server.
func usesOfReplica(pool *Pool) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"exec":      func(ctx context.Context) error { return execs(ctx, pool, "select 1") },
		"query row": func(ctx context.Context) error { return pool.QueryRow(ctx, "select 1").Scan(new(int)) },
		"batch":     func(ctx context.Context) error { return pool.SendBatch(ctx, batchOf("select 1")).Close() },
		"begin": func(ctx context.Context) error {
			return pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(pgx.Tx) error { return nil })
		},
		"acquire": func(ctx context.Context) error {
			return pool.AcquireFunc(ctx, func(*pgxpool.Conn) error { return nil })
		},
		"ping": func(ctx context.Context) error { return pool.Ping(ctx) },
		"database/sql": func(ctx context.Context) error {
			db := OpenDB(pool)
			defer db.Close()
			return db.QueryRowContext(ctx, "select 1").Scan(new(int))
		},
	}
}

// TestReplicaDoesNotAnswer stalls the path to the replica. Errors name the replica and the time, and wrap the cause.
func TestReplicaDoesNotAnswer(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	ctx := t.Context()
	pool := poolIn(t, cluster, "ord", func(c *Config) { c.MaxReplicaWait = 200 * time.Millisecond })
	if err := execs(ctx, pool, insertText(name, 1)); err != nil {
		t.Fatal(err)
	}
	link := cluster.Link("ord", "ord")
	link.Stall()
	t.Cleanup(link.Restore)

	for what, use := range usesOfReplica(pool) {
		patiently(t, what, func() {
			err := use(WithReplica(ctx))
			if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "flyregion: replica in ord did not answer within 200ms: ") {
				t.Errorf("%s: %v", what, err)
			}
			// The app's own deadline stays as it is.
			limited, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
			defer cancel()
			err = use(WithReplica(limited))
			if !errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), "did not answer") {
				t.Errorf("%s with a deadline: %v", what, err)
			}
		})
	}
	patiently(t, "WaitReplayed", func() {
		err := pool.WaitReplayed(ctx)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "flyregion: replica in ord did not answer within 2s: ") {
			t.Errorf("WaitReplayed: %v", err)
		}
	})
	link.Restore()
	comesHome(t, ctx, pool)
}

// TestReplicaHasNoConnection has all connections to the replica in use.
func TestReplicaHasNoConnection(t *testing.T) {
	pool := poolIn(t, sharedCluster(t), "ord", func(c *Config) { c.MaxReplicaWait, c.MaxConns = 300*time.Millisecond, 2 })
	ctx := WithReplica(t.Context())
	for range 2 {
		conn, err := pool.Acquire(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Release()
	}
	_, err := pool.Acquire(ctx)
	want := "flyregion: replica in ord had no connection free within 300ms, all 2 (pool_max_conns) are in use: "
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), want) {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

// TestReplicaIsThePrimary has a replica's connection string lead to the primary.
func TestReplicaIsThePrimary(t *testing.T) {
	cluster := sharedCluster(t)
	ctx := t.Context()
	config, err := ParseConfig(cluster.Server("nrt").ConnString() + "&fly_region=ord&fly_primary_region=nrt")
	if err != nil {
		t.Fatal(err)
	}
	config.ReplicaConnStrings = map[string]string{"ord": cluster.Server("nrt").ConnString()}
	pool, err := NewPoolWithConfig(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()

	addr := cluster.Server("nrt").Addr()
	expect := func(what string) {
		t.Helper()
		if got, want := pool.Describe(), "reads on "+addr+" (replica in ord"+what+"), writes on "+addr; got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	expect("")
	if err := execs(ctx, pool, "select 1"); err != nil {
		t.Fatal(err)
	}
	expect(", but it is not in recovery")
	if err := pool.Ping(ctx); err != nil {
		t.Fatal(err)
	}
	expect(", but it is the primary itself, which is not in recovery")
}
