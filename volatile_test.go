package flyregion

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/flyregion/flyregion/internal/pgcluster"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// logged returns how many rows the functions of volatileSchema have written.
func logged(t testing.TB, pool *Pool) (n int) {
	t.Helper()
	if err := pool.Primary().QueryRow(t.Context(), "select count(*) from s.log").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// callPaths are ways to run a text without arguments on a pool.
var callPaths = []struct {
	name string
	call func(ctx context.Context, p *Pool, sql string) error
}{
	{"Exec", func(ctx context.Context, p *Pool, sql string) error {
		_, err := p.Exec(ctx, sql)
		return err
	}},
	{"Query", func(ctx context.Context, p *Pool, sql string) error {
		rows, err := p.Query(ctx, sql)
		if err != nil {
			return err
		}
		rows.Close()
		return rows.Err()
	}},
	{"QueryRow", func(ctx context.Context, p *Pool, sql string) error {
		var v any
		return p.QueryRow(ctx, sql).Scan(&v)
	}},
	{"simple protocol", func(ctx context.Context, p *Pool, sql string) error {
		_, err := p.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol)
		return err
	}},
	{"SendBatch", func(ctx context.Context, p *Pool, sql string) error {
		return p.SendBatch(ctx, batchOf("select 1", sql)).Close()
	}},
	{"WithSession", func(ctx context.Context, p *Pool, sql string) error {
		_, err := p.Exec(WithSession(ctx, &Session{}), sql)
		return err
	}},
	{"WithoutWait", func(ctx context.Context, p *Pool, sql string) error {
		_, err := p.Exec(WithoutWait(ctx), sql)
		return err
	}},
	{"sql.DB Exec", func(ctx context.Context, p *Pool, sql string) error {
		return inDB(p, func(db *sqlDB) error {
			_, err := db.ExecContext(ctx, sql)
			return err
		})
	}},
	{"sql.DB QueryRow", func(ctx context.Context, p *Pool, sql string) error {
		return inDB(p, func(db *sqlDB) error {
			var v any
			return db.QueryRowContext(ctx, sql).Scan(&v)
		})
	}},
	{"sql.DB prepared", func(ctx context.Context, p *Pool, sql string) error {
		return inDB(p, func(db *sqlDB) error {
			stmt, err := db.PrepareContext(ctx, sql)
			if err != nil {
				return err
			}
			defer stmt.Close()
			var v any
			return stmt.QueryRowContext(ctx).Scan(&v)
		})
	}},
	{"sql.Conn", func(ctx context.Context, p *Pool, sql string) error {
		return inDB(p, func(db *sqlDB) error {
			conn, err := db.Conn(ctx)
			if err != nil {
				return err
			}
			defer conn.Close()
			_, err = conn.ExecContext(ctx, sql)
			return err
		})
	}},
}

// sqlDB is sql.DB for functions whose parameter sql hides the package.
type sqlDB = sql.DB

// TestVolatileFunctionsWrite calls functions that catch the refusal of a standby, on every path: what they write is there.
func TestVolatileFunctionsWrite(t *testing.T) {
	cluster := sharedCluster(t)
	makeVolatileSchema(t, cluster)
	for _, simulated := range []bool{false, true} {
		newPool := func(t *testing.T) *Pool {
			if !simulated {
				return poolIn(t, cluster, "ord")
			}
			config, err := ParseConfig(cluster.Leader().ConnString())
			if err != nil {
				t.Fatal(err)
			}
			config.SimulateReplica = true
			pool, err := NewPoolWithConfig(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(pool.Close)
			return pool
		}
		for _, path := range callPaths {
			t.Run(fmt.Sprintf("%s/simulated %v", path.name, simulated), func(t *testing.T) {
				pool := newPool(t)
				for range 2 {
					for _, call := range []string{
						"select s.log(1)",
						"select s.LOG (2) as x",
						`select s."log"(3)`,
						"select s.over_(4, 4)",
						`select s."Quo""ted"(5)`,
						"select s.agg(x) from generate_series(6, 6) x",
						"select s.defaulted()",
						"select count(*) from (select s.log(7)) x",
						"with x as materialized (select s.log(8)) select 1 from x",
						"select x from s.v",
						`select x from s."V 2"`,
						"select x from s.v union all select x from s.v where false",
						"table s.op_v",
						"explain analyze select s.log(9)",
						"select p.full_name from s.person p",
					} {
						before := logged(t, pool)
						if err := path.call(t.Context(), pool, call); err != nil {
							t.Fatalf("%v: %s", err, call)
						}
						if n := logged(t, pool) - before; n != 1 {
							t.Errorf("%d rows were written by %s", n, call)
						}
					}
				}
			})
		}
	}
}

// TestSchemaChangesAreSeen makes and changes functions in each way in which a process may, and calls them at once.
func TestSchemaChangesAreSeen(t *testing.T) {
	cluster := sharedCluster(t)
	makeVolatileSchema(t, cluster)
	const body = " returns int language plpgsql %s as $$ begin insert into s.log values (1); return 1; exception when others then return 0; end $$"
	for name, change := range map[string]func(ctx context.Context, p *Pool, sql string) error{
		"Exec": func(ctx context.Context, p *Pool, sql string) error { return execs(ctx, p, sql) },
		"several in one text": func(ctx context.Context, p *Pool, sql string) error {
			return execs(ctx, p, "select 1; "+sql+"; select 2")
		},
		"do": func(ctx context.Context, p *Pool, sql string) error {
			return execs(ctx, p, "do $do$ begin execute $e$"+sql+"$e$; end $do$")
		},
		"SendBatch": func(ctx context.Context, p *Pool, sql string) error {
			return p.SendBatch(ctx, batchOf("select 1", sql)).Close()
		},
		"transaction": func(ctx context.Context, p *Pool, sql string) error {
			return pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error {
				// What others ask meanwhile shows the schema as it was.
				return errors.Join(execs(ctx, tx, sql), execs(ctx, p, "select s.stable_(1)"), execs(ctx, tx, "select 1"))
			})
		},
		"transaction by texts": func(ctx context.Context, p *Pool, sql string) error {
			return onConn(p, ctx, func(c *pgxpool.Conn) error { return execs(ctx, c, "begin", sql, "select 1", "commit") })
		},
		"Primary": func(ctx context.Context, p *Pool, sql string) error { return execs(ctx, p.Primary(), sql) },
		"raw": func(ctx context.Context, p *Pool, sql string) error {
			return onConn(p, ctx, func(c *pgxpool.Conn) error { return raw(ctx, c, sql) })
		},
		"sql.DB": func(ctx context.Context, p *Pool, sql string) error {
			return inDB(p, func(db *sqlDB) error {
				_, err := db.ExecContext(ctx, sql)
				return err
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			pool := poolIn(t, cluster, "ord")
			ctx := t.Context()
			run := func(sql string) {
				t.Helper()
				if err := change(ctx, pool, sql); err != nil {
					t.Fatalf("%v: %s", err, sql)
				}
			}
			call := func(want int) {
				t.Helper()
				before := logged(t, pool)
				if err := pool.QueryRow(ctx, "select s.changing()").Scan(new(int)); err != nil {
					t.Fatal(err)
				}
				if n := logged(t, pool) - before; n != want {
					t.Errorf("the call wrote %d rows, want %d", n, want)
				}
			}
			_ = pool.QueryRow(ctx, "select s.changing()").Scan(new(int)) // is not there
			for range 2 {
				run("create function s.changing()" + fmt.Sprintf(body, ""))
				call(1)
				run("create or replace function s.changing() returns int stable language sql as 'select 1'")
				call(0)
				call(0)
				run("create or replace function s.changing()" + fmt.Sprintf(body, "volatile"))
				call(1)
				run("alter function s.changing() stable")
				call(0)
				run("alter function s.changing() volatile")
				call(1)
				run("drop function s.changing()")
			}
			run("create view s.made as select s.log(1) as x")
			before := logged(t, pool)
			if err := pool.QueryRow(ctx, "select x from s.made").Scan(new(int)); err != nil || logged(t, pool) != before+1 {
				t.Errorf("reading the new view wrote %d rows: %v", logged(t, pool)-before, err)
			}
			run("drop view s.made")
		})
	}
}

// TestSchemaChangesOfOthersAreSeen has somebody else change a function. A while later, or as soon as a call of it has failed,
// that is seen.
func TestSchemaChangesOfOthersAreSeen(t *testing.T) {
	cluster := sharedCluster(t)
	makeVolatileSchema(t, cluster)
	ctx := t.Context()
	pool := poolIn(t, cluster, "ord")
	other := func(sql string) {
		t.Helper()
		if err := cluster.Leader().Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
		if err := cluster.Server("ord").WaitReplayed(ctx); err != nil {
			t.Fatal(err)
		}
	}
	call := func(sql string) int {
		t.Helper()
		before := logged(t, pool)
		_ = pool.QueryRow(ctx, sql).Scan(new(int))
		return logged(t, pool) - before
	}

	if n := call("select s.stable_(1)"); n != 0 {
		t.Errorf("%d rows", n)
	}
	other("create or replace function s.stable_(int) returns int volatile language sql as 'select s.log($1)'")
	pool.router.statements.catalog.expire()
	if n := call("select s.stable_(1)"); n != 1 {
		t.Errorf("%d rows were written by a function that has changed", n)
	}

	if n := call("select s.missing(1)"); n != 0 {
		t.Errorf("%d rows", n)
	}
	other("create function s.missing(int) returns int volatile language sql as 'select s.log($1)'")
	if n := call("select s.missing(1)"); n != 1 {
		t.Errorf("%d rows were written by a function that was missing before", n)
	}
}

// TestOwnAnswersGoFirst says what functions do in the config and in comments.
func TestOwnAnswersGoFirst(t *testing.T) {
	cluster := sharedCluster(t)
	makeVolatileSchema(t, cluster)
	ctx := t.Context()
	pool := poolIn(t, cluster, "ord", func(c *Config) {
		c.Functions = map[string]Access{"only_reads": Read, "stable_": Write, "log": Read, "op": Read}
	})
	for sql, want := range map[string]target{
		"select s.only_reads(1)":                         targetReplica,
		"select * from s.of_declared":                    targetReplica,
		"select s.stable_(1)":                            targetPrimary,
		"select s.log(1)":                                targetReplica,
		"select x from s.v":                              targetReplica,
		"select s.trans(1, 1)":                           targetPrimary,
		"/* flyregion:replica */ select s.trans(1, 1)":   targetReplica,
		"/* flyregion:primary */ select s.only_reads(1)": targetPrimary,
		"select (gen_random_uuid(), clock_timestamp())":  targetReplica,
		"select random()":                                targetPrimary, // there is a function of the app's by that name
	} {
		if pool.router.route(ctx, sql, nil).undecided != nil {
			if err := pool.QueryRow(ctx, sql).Scan(nil); err != nil {
				t.Fatalf("%v: %s", err, sql)
			}
		}
		if rt := pool.router.route(ctx, sql, nil); rt.to != want {
			t.Errorf("it goes to the %s: %s", rt.to, sql)
		}
	}
}

// TestUnreadableCatalog has an app whose role must not read the catalog.
func TestUnreadableCatalog(t *testing.T) {
	cluster := ownCluster(t, nil)
	ctx := t.Context()
	password := configIn(t, cluster, "ord").ConnConfig.Password
	for _, sql := range []string{
		volatileSchema,
		"create role app login password '" + password + "'",
		"grant all on schema s to app",
		"grant all on all tables in schema s to app",
		"revoke select on pg_catalog.pg_proc from public",
	} {
		if err := cluster.Leader().Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	if err := cluster.Server("ord").WaitReplayed(ctx); err != nil {
		t.Fatal(err)
	}
	telemetry := record(t)
	pool := poolIn(t, cluster, "ord", telemetry.into, func(c *Config) { c.ConnConfig.User = "app" })
	for range 3 {
		var n int
		if err := pool.QueryRow(ctx, "select s.log(1)").Scan(&n); err != nil || n != 1 {
			t.Errorf("%d, %v", n, err)
		}
	}
	if counts := telemetry.statements(t); counts["primary "+string(becauseCatalog)] == 0 || counts["replica read"] > 0 {
		t.Errorf("the counts are %v", counts)
	}
}

// makeOutside makes s.outside, which writes to s.audit through a connection of its own and then to s.log. It skips the test if
// the server has no dblink.
func makeOutside(t testing.TB, cluster *pgcluster.Cluster) {
	t.Helper()
	ctx := t.Context()
	makeVolatileSchema(t, cluster)
	if err := cluster.Leader().Exec(ctx, "create extension dblink schema s"); err != nil {
		t.Skip("LOUDLY: there is no dblink here:", err)
	}
	noError(t, cluster.Leader().Exec(ctx, fmt.Sprintf(`create table s.audit (id int);
		create function s.outside(int) returns int language plpgsql as $$ begin
			perform s.dblink_exec('%s', 'insert into s.audit values (1)');
			insert into s.log values ($1);
			return 1;
		end $$`, cluster.Leader().ConnString())))
	noError(t, cluster.Server("ord").WaitReplayed(ctx))
}

// TestActsOutsideOnce calls a function that writes through a connection of its own before it is refused.
func TestActsOutsideOnce(t *testing.T) {
	cluster := sharedCluster(t)
	ctx := t.Context()
	makeOutside(t, cluster)
	for _, path := range callPaths {
		t.Run(path.name, func(t *testing.T) {
			pool := poolIn(t, cluster, "ord")
			count := func() (audited, written int) {
				t.Helper()
				if err := pool.Primary().QueryRow(ctx, "select (select count(*) from s.audit), (select count(*) from s.log)").Scan(&audited, &written); err != nil {
					t.Fatal(err)
				}
				return audited, written
			}
			audited, written := count()
			if err := path.call(ctx, pool, "select s.outside(1)"); err != nil {
				t.Fatal(err)
			}
			if a, w := count(); a != audited+1 || w != written+1 {
				t.Errorf("%d rows were written outside, and %d inside", a-audited, w-written)
			}
		})
	}
}

// In a read-only transaction such a function acts outside once, too, and is then refused as on any server.
func TestActsOutsideOnceInReadOnlyTx(t *testing.T) {
	cluster := sharedCluster(t)
	ctx := t.Context()
	makeOutside(t, cluster)

	const text = "select s.outside(1)"
	inTx := func(run func(pgx.Tx) error) func(*Pool) error {
		return func(p *Pool) error {
			tx, err := p.BeginTx(ctx, pgx.TxOptions{AccessMode: pgx.ReadOnly})
			if err != nil {
				return err
			}
			defer tx.Rollback(ctx)
			return run(tx)
		}
	}
	for name, call := range map[string]func(*Pool) error{
		"Exec":     inTx(func(tx pgx.Tx) error { _, err := tx.Exec(ctx, text); return err }),
		"QueryRow": inTx(func(tx pgx.Tx) error { return tx.QueryRow(ctx, text).Scan(new(int)) }),
		"Query": inTx(func(tx pgx.Tx) error {
			rows, err := tx.Query(ctx, text)
			if err != nil {
				return err
			}
			rows.Close()
			return rows.Err()
		}),
		"SendBatch": inTx(func(tx pgx.Tx) error {
			return tx.SendBatch(ctx, batchOf("select 1", text)).Close()
		}),
		"database/sql": func(p *Pool) error {
			return inDB(p, func(db *sqlDB) error {
				tx, err := db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
				if err != nil {
					return err
				}
				defer tx.Rollback()
				return tx.QueryRowContext(ctx, text).Scan(new(int))
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			pool := poolIn(t, cluster, "ord")
			awaitReplica(t, ctx, pool)
			pool.router.statements.catalog.expire()
			audited := func() (n int) {
				noError(t, pool.Primary().QueryRow(ctx, "select count(*) from s.audit").Scan(&n))
				return n
			}
			before := audited()
			var pgErr *pgconn.PgError
			if err := call(pool); !errors.As(err, &pgErr) || pgErr.Code != "25006" {
				t.Errorf("%v, want 25006", err)
			}
			if n := audited() - before; n != 1 {
				t.Errorf("%d rows were written outside, want 1", n)
			}
			unused(t, pool)
		})
	}
}

// TestCatalogDoesNotHang silences the replica while it is asked for functions.
func TestCatalogDoesNotHang(t *testing.T) {
	cluster := sharedCluster(t)
	makeVolatileSchema(t, cluster)
	pool := poolIn(t, cluster, "ord", func(c *Config) { c.MaxReplicaWait = 200 * time.Millisecond })
	ctx := t.Context()
	if err := pool.Replica().Ping(ctx); err != nil {
		t.Fatal(err)
	}
	if err := pool.Primary().Ping(ctx); err != nil {
		t.Fatal(err)
	}
	link := cluster.Link("ord", "ord")
	link.Stall()
	defer link.Restore()
	var readers sync.WaitGroup
	for range 8 {
		readers.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
			defer cancel()
			var n int
			if err := pool.QueryRow(ctx, "select s.log(1)").Scan(&n); err != nil || n != 1 {
				t.Errorf("%d, %v", n, err)
			}
		})
	}
	readers.Wait()
}
