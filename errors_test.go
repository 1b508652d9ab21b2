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

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
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
	pool := poolIn(t, cluster, "ord", func(c *Config) { c.MaxReplicaWait, c.MaxConns = 200*time.Millisecond, 20 })
	if err := execs(ctx, pool, insertText(name, 1)); err != nil {
		t.Fatal(err)
	}
	link := cluster.Link("ord", "ord")
	link.Stall()
	t.Cleanup(link.Restore)

	var all sync.WaitGroup
	for what, use := range usesOfReplica(pool) {
		all.Go(func() {
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
	all.Go(func() {
		err := pool.WaitReplayed(ctx)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "flyregion: replica in ord did not answer within 2s: ") {
			t.Errorf("WaitReplayed: %v", err)
		}
	})
	patiently(t, "a use of the replica", all.Wait)
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

// TestMadeHostIsNotFound looks up hosts that were made from a region, and do not exist.
func TestMadeHostIsNotFound(t *testing.T) {
	withoutPGEnvironment(t)
	for _, test := range []struct {
		name       string
		env        map[string]string
		connString string
		replica    bool
		host, from string
	}{
		{"PRIMARY_REGION", map[string]string{"FLY_REGION": "ord", "PRIMARY_REGION": "xyz"}, "app.internal/db", false,
			"xyz.app.internal", "PRIMARY_REGION=xyz"},
		{"fly_primary_region", map[string]string{"FLY_REGION": "ord", "PRIMARY_REGION": "nrt"}, "nrt.app.internal/db?fly_primary_region=xyz", false,
			"xyz.app.internal", `PrimaryRegion (fly_primary_region) "xyz"`},
		{"FLY_REGION", map[string]string{"FLY_REGION": "xyz", "PRIMARY_REGION": "nrt"}, "app.flycast/db", true,
			"xyz.app.internal", "FLY_REGION=xyz"},
		{"MY_REGION", map[string]string{"MY_REGION": "XYZ", "PRIMARY_REGION": "nrt"}, "app.internal/db", true,
			"xyz.app.internal", "MY_REGION=xyz"},
		{"fly_region", map[string]string{"FLY_REGION": "ord", "PRIMARY_REGION": "nrt"}, "app.internal/db?fly_region=xyz", true,
			"xyz.app.internal", `Region (fly_region) "xyz"`},
		{"fly_replica_regions", map[string]string{"FLY_REGION": "ord", "PRIMARY_REGION": "nrt"}, "app.internal/db?fly_replica_regions=xyz,ord", true,
			"xyz.app.internal", `ReplicaRegions (fly_replica_regions) ["xyz" "ord"]`},
		{"a host as given", map[string]string{"FLY_REGION": "ord", "PRIMARY_REGION": "xyz"}, "xyz.app.internal/db", false,
			"xyz.app.internal", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			for name, value := range test.env {
				t.Setenv(name, value)
			}
			config, err := ParseConfig("postgres://u:hunter2@" + test.connString)
			if err != nil {
				t.Fatal(err)
			}
			cause := &net.DNSError{Err: "no such host", Name: test.host, IsNotFound: true}
			lookup := func(_ context.Context, host string) ([]string, error) {
				if host != test.host {
					return nil, errors.New("another host")
				}
				return nil, cause
			}
			config.ConnConfig.LookupFunc = lookup
			pool, err := NewPoolWithConfig(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			defer pool.Close()
			plain := pool.Primary().Config()
			own := pool.Primary()
			if test.replica {
				own = pool.ReplicaIn("xyz")
				plain = own.Config()
				plain.ConnConfig.ValidateConnect = nil
			}
			err = own.Ping(t.Context())

			plain.ConnConfig.LookupFunc = lookup
			plain.BeforeConnect = nil
			raw, theirErr := pgxpool.NewWithConfig(t.Context(), plain)
			if theirErr != nil {
				t.Fatal(theirErr)
			}
			defer raw.Close()
			theirErr = raw.Ping(t.Context())

			var dnsError *net.DNSError
			var connectError *pgconn.ConnectError
			if !errors.As(err, &dnsError) || dnsError != cause || !errors.As(err, &connectError) || fmt.Sprintf("%T", err) != fmt.Sprintf("%T", theirErr) {
				t.Errorf("%T: %v", err, err)
			}
			want := theirErr.Error()
			if test.from != "" {
				want = strings.ReplaceAll(want, cause.Error(), cause.Error()+" (the host was made from "+test.from+": want a region where app.internal has a Machine)")
			}
			if err.Error() != want {
				t.Errorf("got  %v\nwant %s", err, want)
			}
		})
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
