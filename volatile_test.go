package flyregion

import (
	"context"
	"database/sql"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
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
		return withDB(p, func(db *sqlDB) error {
			_, err := db.ExecContext(ctx, sql)
			return err
		})
	}},
	{"sql.DB QueryRow", func(ctx context.Context, p *Pool, sql string) error {
		return withDB(p, func(db *sqlDB) error {
			var v any
			return db.QueryRowContext(ctx, sql).Scan(&v)
		})
	}},
	{"sql.DB prepared", func(ctx context.Context, p *Pool, sql string) error {
		return withDB(p, func(db *sqlDB) error {
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
		return withDB(p, func(db *sqlDB) error {
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

type sqlDB = sql.DB

func withDB(p *Pool, f func(*sqlDB) error) error {
	db := OpenDB(p)
	defer db.Close()
	return f(db)
}

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
