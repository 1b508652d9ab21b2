package flyregion

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flyregion/flyregion/internal/pgcluster"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/tracelog"
)

// runner is what a pgxpool.Pool and a Pool have in common.
type runner interface {
	Acquire(context.Context) (*pgxpool.Conn, error)
	AcquireFunc(context.Context, func(*pgxpool.Conn) error) error
	Begin(context.Context) (pgx.Tx, error)
	BeginTx(context.Context, pgx.TxOptions) (pgx.Tx, error)
	CopyFrom(context.Context, pgx.Identifier, []string, pgx.CopyFromSource) (int64, error)
	Exec(context.Context, string, ...any) (pgconn.CommandTag, error)
	Ping(context.Context) error
	Query(context.Context, string, ...any) (pgx.Rows, error)
	QueryRow(context.Context, string, ...any) pgx.Row
	Reset()
	SendBatch(context.Context, *pgx.Batch) pgx.BatchResults
	Close()
}

var _, _ runner = (*pgxpool.Pool)(nil), (*Pool)(nil)

// everyCall makes each of a pool's calls at least once.
func everyCall(t *testing.T, db runner, name string) {
	t.Helper()
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}

	must(db.Ping(ctx))
	_, err := db.Exec(ctx, "insert into "+name+" values ($1, 'one')", 1)
	must(err)
	_, err = db.Exec(ctx, "select 'simple'", pgx.QueryExecModeSimpleProtocol)
	must(err)
	rows, err := db.Query(ctx, "select id, v from "+name+" where id = $1", 1)
	must(err)
	got, err := pgx.CollectRows(rows, pgx.RowToMap)
	must(err)
	if len(got) != 1 {
		t.Fatalf("a read saw %d rows", len(got))
	}
	var n int
	must(db.QueryRow(ctx, "select count(*) from "+name).Scan(&n))
	for _, ctx := range []context.Context{WithReplica(ctx), WithoutWait(ctx), WithMaxLag(ctx, time.Second), WithFresh(ctx)} {
		must(db.QueryRow(ctx, "select count(*) from "+name).Scan(&n))
	}
	must(db.QueryRow(WithPrimary(WithSession(ctx, &Session{})), "insert into "+name+" values (2, 'two') returning id").Scan(&n))

	reads, writes := &pgx.Batch{}, &pgx.Batch{}
	reads.Queue("select 1")
	reads.Queue("select count(*) from " + name)
	must(db.SendBatch(ctx, reads).Close())
	writes.Queue("insert into "+name+" values ($1, 'three')", 3)
	writes.Queue("select count(*) from " + name)
	must(db.SendBatch(ctx, writes).Close())

	copied, err := db.CopyFrom(ctx, pgx.Identifier{name}, []string{"id", "v"}, pgx.CopyFromRows([][]any{{4, "four"}, {5, "five"}}))
	must(err)
	if copied != 2 {
		t.Fatalf("%d rows were copied", copied)
	}

	tx, err := db.Begin(ctx)
	must(err)
	_, err = tx.Exec(ctx, "update "+name+" set v = 'new' where id = 1")
	must(err)
	must(tx.Commit(ctx))
	for _, options := range []pgx.TxOptions{{AccessMode: pgx.ReadOnly}, {IsoLevel: pgx.Serializable}} {
		tx, err = db.BeginTx(ctx, options)
		must(err)
		must(tx.QueryRow(ctx, "select count(*) from "+name).Scan(&n))
		must(tx.Rollback(ctx))
	}

	conn, err := db.Acquire(ctx)
	must(err)
	_, err = conn.Exec(ctx, "set search_path = public")
	must(err)
	conn.Release()
	must(db.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
		_, err := conn.Conn().PgConn().Exec(ctx, "delete from "+name).ReadAll()
		return err
	}))
	if _, err := db.Exec(ctx, "select 1/0"); err == nil {
		t.Fatal("a division by zero succeeded")
	}

	db.Reset()
	_, err = db.Exec(ctx, "select 'after the reset'")
	must(err)
}

// sentTo is what a server and the network saw of a pool.
type sentTo struct {
	log   []string
	bytes int64
}

// onTheWire makes a pool's calls and returns what came of it. The name of the application must be the pool's own, and as
// long as that of any pool that it is compared with.
func onTheWire(t *testing.T, cluster *pgcluster.Cluster, application, name string, open func() runner) sentTo {
	t.Helper()
	link := cluster.Link("nrt", "nrt")
	bytes, _ := link.Bytes()
	db := open()
	everyCall(t, db, name)
	db.Close()
	eventually(t, "the pool's connections are closed", func() bool { return link.Conns() == 0 })

	var seen sentTo
	now, _ := link.Bytes()
	seen.bytes = now - bytes
	seen.log = logOf(t, cluster.Server("nrt"), application)
	return seen
}

// An app that has no other region to read from gets pgxpool as it is: one pool, and not a statement or a byte more.
func TestOneRegionIsPlainPgxpool(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	connString := func(application string) string {
		return cluster.URL() + "&pool_max_conns=1&application_name=" + application
	}
	// Names of one length, as the names are sent.
	application := func() string { return fmt.Sprintf("zero_%09d", clock.Add(1)) }

	rawName := application()
	raw := onTheWire(t, cluster, rawName, name, func() runner {
		config, err := pgxpool.ParseConfig(connString(rawName))
		if err != nil {
			t.Fatal(err)
		}
		site := cluster.From("nrt")
		config.ConnConfig.LookupFunc, config.ConnConfig.DialFunc = site.LookupHost, site.DialContext
		pool, err := pgxpool.NewWithConfig(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		return pool
	})
	if len(raw.log) < 20 || raw.bytes == 0 {
		t.Fatalf("of raw pgxpool %d lines and %d bytes were seen", len(raw.log), raw.bytes)
	}
	open := func(own string, check func(*Pool)) func() runner {
		return func() runner {
			config, err := ParseConfig(connString(own))
			if err != nil {
				t.Fatal(err)
			}
			site := cluster.From("nrt")
			config.ConnConfig.LookupFunc, config.ConnConfig.DialFunc = site.LookupHost, site.DialContext
			pool, err := NewPoolWithConfig(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			check(pool)
			return pool
		}
	}

	for _, test := range []struct {
		name string
		env  map[string]string
	}{
		{"no region", nil},
		{"no region of this process", map[string]string{"PRIMARY_REGION": "nrt"}},
		{"no primary region", map[string]string{"FLY_REGION": "ord"}},
		{"the primary region", map[string]string{"FLY_REGION": "nrt", "PRIMARY_REGION": "nrt"}},
		{"the primary region in other letters", map[string]string{"FLY_REGION": "NRT", "PRIMARY_REGION": "nrt"}},
		{"the primary region off Fly", map[string]string{"MY_REGION": "nrt", "PRIMARY_REGION": "nrt"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			for name, value := range test.env {
				t.Setenv(name, value)
			}
			own := application()
			seen := onTheWire(t, cluster, own, name, open(own, func(pool *Pool) {
				for _, other := range []*pgxpool.Pool{pool.Replica(), pool.ReplicaIn("ord"), pool.ReplicaIn("nrt"), pool.ReplicaIn("")} {
					if other != pool.Primary() {
						t.Error("there is a second pool")
					}
				}
				if tracer := pool.Primary().Config().ConnConfig.Tracer; tracer != nil {
					t.Errorf("its connections carry a %T", tracer)
				}
				if err := pool.WaitReplayed(t.Context()); err != nil {
					t.Error(err)
				}
			}))
			if !slices.Equal(seen.log, raw.log) {
				t.Errorf("the server saw\n\t%s\nand of raw pgxpool\n\t%s", strings.Join(seen.log, "\n\t"), strings.Join(raw.log, "\n\t"))
			}
			if seen.bytes != raw.bytes {
				t.Errorf("%d bytes were sent, by raw pgxpool %d", seen.bytes, raw.bytes)
			}
			for _, replica := range []string{"ord", "syd"} {
				if lines := logOf(t, cluster.Server(replica), own); len(lines) > 0 {
					t.Errorf("%s saw %q", replica, lines)
				}
			}
		})
	}

	// The comparison does see what a pool of several regions adds.
	t.Run("two regions", func(t *testing.T) {
		t.Setenv("FLY_REGION", "ord")
		t.Setenv("PRIMARY_REGION", "nrt")
		own := application()
		seen := onTheWire(t, cluster, own, name, open(own, func(pool *Pool) {
			if pool.Replica() == pool.Primary() || pool.ReplicaIn("ord") != pool.Replica() {
				t.Error("there is no second pool")
			}
		}))
		if slices.Equal(seen.log, raw.log) || seen.bytes == raw.bytes {
			t.Error("it looks like raw pgxpool")
		}
		for _, part := range []string{"pg_postmaster_start_time", "pg_current_wal_flush_lsn"} {
			if !slices.ContainsFunc(seen.log, func(line string) bool { return strings.Contains(line, part) }) {
				t.Errorf("the log has no %s", part)
			}
		}
	})
}

func TestOneRegionKeepsTheAppsTracer(t *testing.T) {
	cluster := sharedCluster(t)
	tracer := &tracelog.TraceLog{}
	for _, region := range []string{"", "nrt"} {
		pool := poolIn(t, cluster, region, func(c *Config) { c.ConnConfig.Tracer = tracer })
		if got := pool.Primary().Config().ConnConfig.Tracer; got != tracer {
			t.Errorf("in region %q connections carry a %T", region, got)
		}
	}
	pool := poolIn(t, cluster, "ord", func(c *Config) { c.ConnConfig.Tracer = tracer })
	if got := pool.Primary().Config().ConnConfig.Tracer; got == tracer {
		t.Error("with two regions connections carry the app's tracer alone")
	}
	if got := pool.Replica().Config().ConnConfig.Tracer; got != tracer {
		t.Errorf("connections to a replica carry a %T", got)
	}
}
