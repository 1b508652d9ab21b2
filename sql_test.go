package flyregion

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
)

// sqlSubject is a sql.DB on one of three pools.
type sqlSubject struct {
	*subject
	db *sql.DB
}

// sqlScenario is something that an app does with its sql.DB.
type sqlScenario struct {
	name   string
	place  servers
	change func(*subject, *pgxpool.Config)
	run    func(ctx context.Context, s *sqlSubject)
}

// TestSQLDropIn runs every scenario on what stdlib makes of a pgxpool.Pool and on what OpenDB makes of a Pool, and
// compares what they saw.
func TestSQLDropIn(t *testing.T) {
	t.Parallel()
	cluster := withDropIn(t, ownCluster(t, nil))
	for _, sc := range slices.Concat(sqlStatements, sqlSessions, sqlFaults) {
		t.Run(sc.name, func(t *testing.T) {
			seen := map[string][]string{}
			for _, kind := range kinds {
				s, done := newSubject(t, cluster, kind, sc.change)
				defer done()
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				s.warm(ctx)
				db := &sqlSubject{subject: s}
				if s.ours != nil {
					db.db = OpenDB(s.ours)
				} else {
					db.db = stdlib.OpenDBFromPool(s.anyPool.(*pgxpool.Pool))
				}
				check := s.watch(sc.place)
				s.panics("scenario", func() { sc.run(ctx, db) })
				s.note("destroyed", s.settled())
				s.note("open", db.db.Stats().OpenConnections, db.db.Stats().InUse, db.db.Stats().Idle)
				check()
				s.note("close", db.db.Close(), s.Ping(ctx))
				seen[kind] = s.saw
			}
			for _, kind := range kinds[1:] {
				if !slices.Equal(seen[kind], seen["pgxpool"]) {
					t.Errorf("%s differs from stdlib:\n%s", kind, difference(seen["pgxpool"], seen[kind]))
				}
			}
		})
	}
}

// querier is what sql.DB, sql.Conn and sql.Tx have in common.
type querier interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	PrepareContext(ctx context.Context, query string) (*sql.Stmt, error)
}

// exec notes what a statement does.
func (s *sqlSubject) exec(ctx context.Context, q querier, query string, args ...any) {
	result, err := q.ExecContext(ctx, query, args...)
	if err != nil {
		s.note(query, err)
		return
	}
	n, err := result.RowsAffected()
	_, idErr := result.LastInsertId()
	s.note(query, n, err, idErr)
}

// ints notes the integers that a query finds.
func (s *sqlSubject) ints(ctx context.Context, q querier, query string, args ...any) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		s.note(query, err)
		return
	}
	for rows.Next() {
		var n int
		s.note(query, rows.Scan(&n), n)
	}
	s.note(query, rows.Err(), rows.NextResultSet(), rows.Close(), rows.Close())
}

// conn calls f with a sql.Conn.
func (s *sqlSubject) conn(ctx context.Context, f func(*sql.Conn)) {
	c, err := s.db.Conn(ctx)
	s.note("conn", err)
	if err != nil {
		return
	}
	f(c)
	s.note("conn closed", c.Close())
}

// backend returns the process that a connection's statements run in on the primary.
func (s *sqlSubject) backend(ctx context.Context, q querier) (pid int) {
	if err := q.QueryRowContext(ctx, "select pg_backend_pid() from r where id = 1 for share").Scan(&pid); err != nil {
		s.t.Error(err)
	}
	return pid
}

// kill ends a process of the primary and waits until it is gone.
func (s *sqlSubject) kill(pid int) {
	if err := s.cluster.Leader().Exec(context.Background(), fmt.Sprintf("select pg_terminate_backend(%d, 10000)", pid)); err != nil {
		s.t.Error(err)
	}
}

var sqlStatements = []sqlScenario{
	{name: "exec", place: onBoth, run: func(ctx context.Context, s *sqlSubject) {
		for _, query := range []string{
			"select 1", fiveSQL, "select 1/0", failsSQL, "select nowhere", "selec", "", "select 1; select 2", "insert into w values (1), (2)", "insert into w values (1)",
			"update w set v = 'y'", "delete from w where id = 1", "select hidden(5)", "select hidden(5)", "create table dropin.x (i int)", "drop table x",
		} {
			s.exec(ctx, s.db, query)
		}
	}},
	{name: "query", place: onBoth, run: func(ctx context.Context, s *sqlSubject) {
		for _, query := range []string{
			fiveSQL, "select 1 where false", "select 1/0", failsSQL, "select nowhere", "selec", "", "insert into w values (1), (2) returning id", "insert into w values (1) returning id",
			"select hidden(i) from generate_series(5, 7) i", "select hidden(5)", "select id from w order by id", "select name from r", "select 1, 2", "delete from w returning id",
		} {
			s.ints(ctx, s.db, query)
			var n int
			s.note("row", s.db.QueryRowContext(ctx, query).Scan(&n), n)
		}
		s.note("no rows", errors.Is(s.db.QueryRowContext(ctx, "select 1 where false").Scan(new(int)), sql.ErrNoRows))
	}},
	{name: "arguments", place: onBoth, run: func(ctx context.Context, s *sqlSubject) {
		now := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
		var text sql.NullString
		for _, args := range [][]any{
			{"a"}, {[]byte("a")}, {nil}, {1}, {1.5}, {true}, {now}, {sql.NullString{}}, {sql.NullInt64{Int64: 3, Valid: true}}, {[]string{"a"}}, {uint64(1) << 63},
			{sql.Named("x", "y")}, {}, {"a", "b"}, {failingValuer{}}, {struct{}{}}, {pgx.NamedArgs{"a": 1}},
		} {
			s.note(fmt.Sprintf("read %T", args), s.db.QueryRowContext(ctx, "select $1::text", args...).Scan(&text), text)
			s.exec(ctx, s.db, "insert into w (id, v) values (1, $1::text) on conflict (id) do update set v = excluded.v", args...)
			s.ints(ctx, s.db, "select length($1::text)", args...)
		}
		s.exec(ctx, s.db, "insert into w (id, v) values (@id, @v)", pgx.NamedArgs{"id": 2, "v": "named"})
		s.ints(ctx, s.db, "select @n::int", pgx.NamedArgs{"n": 3})
	}},
	{name: "values", place: onBoth, run: func(ctx context.Context, s *sqlSubject) {
		const columns = `1::int2, 1::int4, 1::int8, 1.5::float4, 1.5::float8, 1.25::numeric(10,2), true, 'a'::text, 'a'::varchar(10), 'a'::char(3), 'a'::bytea, '{"a": 1}'::json, '[1]'::jsonb,
			'2026-01-02'::date, '2026-01-02 03:04:05'::timestamp, '2026-01-02 03:04:05+00'::timestamptz, '1 day'::interval, '{1,2}'::int[], '00000000-0000-0000-0000-000000000001'::uuid, null, 'ok'::mood`
		for _, query := range []string{"select " + columns, "with i as (insert into w values (1)) select " + columns} {
			rows, err := s.db.QueryContext(ctx, query)
			if err != nil {
				s.note("query", err)
				return
			}
			names, err := rows.Columns()
			s.note("names", names, err)
			types, err := rows.ColumnTypes()
			s.note("types", len(types), err)
			for _, c := range types {
				length, hasLength := c.Length()
				precision, scale, decimal := c.DecimalSize()
				nullable, known := c.Nullable()
				name := c.DatabaseTypeName()
				if c.Name() == "mood" {
					// It has no name but the number that CREATE TYPE gave it.
					name = ""
				}
				s.note("type", c.Name(), name, length, hasLength, precision, scale, decimal, nullable, known, c.ScanType())
			}
			values := make([]any, len(names))
			into := make([]any, len(names))
			for i := range values {
				into[i] = &values[i]
			}
			s.note("next", rows.Next(), rows.Scan(into...))
			for i, v := range values {
				s.note(names[i], fmt.Sprintf("%T %v", v, v))
			}
			s.note("end", rows.Next(), rows.Err(), rows.Close())
		}
	}},
	{name: "rows closed early", place: onBoth, run: func(ctx context.Context, s *sqlSubject) {
		for _, query := range []string{fiveSQL, "insert into w values (1), (2) returning id", "select i from generate_series(1, 100000) i"} {
			rows, err := s.db.QueryContext(ctx, query)
			if err != nil {
				s.note("query", err)
				continue
			}
			s.note("next", rows.Next(), rows.Close(), rows.Next(), rows.Err(), rows.Scan(new(int)))
			unread, err := s.db.QueryContext(ctx, "select 1")
			s.note("unread", err, unread.Close())
		}
		rows, err := s.db.QueryContext(ctx, failsSQL)
		s.note("failing", err, rows.Next(), rows.Close(), rows.Err())
	}},
	{name: "scan", place: onBoth, run: func(ctx context.Context, s *sqlSubject) {
		for _, query := range []string{"select id, name from r order by id", "insert into w values (1), (2) returning id, v"} {
			rows, err := s.db.QueryContext(ctx, query)
			s.note("query", err, rows.Next(), rows.Scan(new(int)), rows.Scan(new(int), new(int)), rows.Next(), rows.Scan(new(int), new(string)), rows.Close())
			s.note("row", s.db.QueryRowContext(ctx, "select 1").Scan(failingScanner{}))
		}
	}},
	{name: "prepare on the database", place: onBoth, run: func(ctx context.Context, s *sqlSubject) { s.prepared(ctx, s.db, s.db) }},
	{name: "ping and driver", place: onPrimaryOnly, run: func(ctx context.Context, s *sqlSubject) {
		s.note("ping", s.db.PingContext(ctx), s.db.PingContext(canceled(ctx)))
		s.note("driver", fmt.Sprintf("%T", s.db.Driver()))
	}},
	{name: "closed database", place: anywhere, run: func(ctx context.Context, s *sqlSubject) {
		s.note("close", s.db.Close(), s.db.Close())
		s.exec(ctx, s.db, "select 1")
		s.ints(ctx, s.db, "select 1")
		s.note("ping", s.db.PingContext(ctx))
		_, err := s.db.BeginTx(ctx, nil)
		s.note("begin", err)
		// The pool is the app's.
		s.note("pool", s.QueryRow(ctx, "select 1").Scan(new(int)))
	}},
	{name: "contexts", place: anywhere, run: func(ctx context.Context, s *sqlSubject) {
		for _, query := range []string{"select 1", "insert into w values (1) returning id"} {
			s.exec(canceled(ctx), s.db, query)
			s.ints(canceled(ctx), s.db, query)
			s.note("row", s.db.QueryRowContext(canceled(ctx), query).Scan(new(int)))
			_, err := s.db.PrepareContext(canceled(ctx), query)
			s.note("prepare", err)
		}
		for _, options := range []*sql.TxOptions{nil, {ReadOnly: true}} {
			_, err := s.db.BeginTx(canceled(ctx), options)
			s.note("begin", err)
		}
	}},
	{name: "context ends during a statement", place: anywhere, run: func(ctx context.Context, s *sqlSubject) {
		for _, query := range []string{"select pg_sleep(100) as during_sql_read", "with i as (insert into w values (1)) select pg_sleep(100) as during_sql_write"} {
			for what, run := range map[string]func(context.Context) error{
				"exec": func(ctx context.Context) error { _, err := s.db.ExecContext(ctx, query); return err },
				"row":  func(ctx context.Context) error { return s.db.QueryRowContext(ctx, query).Scan(new(any)) },
			} {
				ctx, cancel := context.WithCancel(ctx)
				ended := make(chan error, 1)
				go func() { ended <- run(ctx) }()
				s.running("during_sql")
				cancel()
				err := <-ended
				s.note(what, err, errors.Is(err, context.Canceled))
				s.settled()
			}
		}
		sortLines(s.subject)
	}},
	{name: "context ends between rows", place: onReplicaOnly, run: func(ctx context.Context, s *sqlSubject) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		rows, err := s.db.QueryContext(ctx, "select i, repeat('x', 1000) from generate_series(1, 1000000) i")
		s.note("query", err, rows.Next())
		cancel()
		for rows.Next() {
		}
		s.note("end", rows.Err())
		_ = rows.Close()
	}},
	{name: "exhausted", place: anywhere, change: func(_ *subject, c *pgxpool.Config) { c.MaxConns = 1 }, run: func(ctx context.Context, s *sqlSubject) {
		for _, query := range []string{fiveSQL, "insert into w values (1), (2) returning id"} {
			rows, err := s.db.QueryContext(ctx, query)
			s.note("query", err, rows.Next())
			short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
			s.exec(short, s.db, query)
			s.ints(short, s.db, query)
			cancel()
			s.note("close", rows.Close())
			s.exec(ctx, s.db, query+" -- again")
		}
	}},
	{name: "transactions", place: onPrimaryOnly, run: func(ctx context.Context, s *sqlSubject) {
		for _, options := range []*sql.TxOptions{nil, {Isolation: sql.LevelSerializable}, {Isolation: sql.LevelSerializable, ReadOnly: true}, {Isolation: sql.LevelLinearizable}} {
			tx, err := s.db.BeginTx(ctx, options)
			s.note("begin", err)
			if err != nil {
				continue
			}
			s.exec(ctx, tx, "insert into w values (1)")
			s.ints(ctx, tx, "select count(*) from w")
			s.prepared(ctx, tx, tx)
			s.note("end", tx.Rollback(), tx.Commit(), tx.Rollback())
			s.ints(ctx, tx, "select 1")
		}
		tx, err := s.db.BeginTx(ctx, nil)
		s.note("begin", err)
		s.exec(ctx, tx, "insert into w values (1)")
		s.exec(ctx, tx, "select 1/0")
		s.exec(ctx, tx, "select 1")
		s.note("commit", tx.Commit())
		tx, err = s.db.BeginTx(ctx, nil)
		s.note("begin", err)
		s.exec(ctx, tx, "insert into w values (2)")
		s.note("commit", tx.Commit(), tx.Rollback())
	}},
	{name: "read-only transactions", place: onBoth, run: func(ctx context.Context, s *sqlSubject) {
		for _, options := range []*sql.TxOptions{{ReadOnly: true}, {ReadOnly: true, Isolation: sql.LevelRepeatableRead}, {ReadOnly: true, Isolation: sql.LevelReadCommitted}} {
			tx, err := s.db.BeginTx(ctx, options)
			s.note("begin", err)
			s.ints(ctx, tx, fiveSQL)
			s.ints(ctx, tx, "select count(*) from r where id > $1", 2)
			stmt, err := tx.PrepareContext(ctx, "select id from r where id = $1")
			s.note("prepare", err)
			var n int
			s.note("prepared", stmt.QueryRowContext(ctx, 3).Scan(&n), n, stmt.Close())
			s.exec(ctx, tx, "select 1/0")
			s.exec(ctx, tx, "select 1")
			s.note("end", tx.Rollback(), tx.Commit())
			tx, err = s.db.BeginTx(ctx, options)
			s.note("begin", err)
			rows, err := tx.QueryContext(ctx, fiveSQL)
			s.note("open rows", err, rows.Next(), rows.Close())
			s.note("commit", tx.Commit(), tx.Rollback())
			tx, err = s.db.BeginTx(ctx, options)
			s.note("begin", err)
			s.exec(ctx, tx, "insert into w values (1)")
			s.note("rollback", tx.Rollback())
		}
	}},
	{name: "transaction whose context ends", place: anywhere, run: func(ctx context.Context, s *sqlSubject) {
		for _, options := range []*sql.TxOptions{nil, {ReadOnly: true}} {
			ctx, cancel := context.WithCancel(ctx)
			tx, err := s.db.BeginTx(ctx, options)
			s.note("begin", err)
			s.ints(ctx, tx, fiveSQL)
			cancel()
			s.settled()
			s.ints(context.Background(), tx, "select 1")
			s.note("commit", tx.Commit() != nil)
		}
		s.stat = gone
	}},
}

// prepared notes what statements do that are prepared on prepare and run there.
func (s *sqlSubject) prepared(ctx context.Context, q, after querier) {
	for _, query := range []string{"select $1::int * 2", "insert into w (id) values ($1) on conflict (id) do update set v = 'z' returning id"} {
		stmt, err := q.PrepareContext(ctx, query)
		s.note("prepare", err)
		if err != nil {
			continue
		}
		for i := range 3 {
			var n int
			s.note("row", stmt.QueryRowContext(ctx, i+20).Scan(&n), n)
		}
		result, err := stmt.ExecContext(ctx, 30)
		s.note("exec", err)
		if err == nil {
			n, err := result.RowsAffected()
			s.note("affected", n, err)
		}
		_, tooFew := stmt.ExecContext(ctx)
		_, tooMany := stmt.QueryContext(ctx, 1, 2)
		s.note("arguments", tooFew, tooMany)
		rows, err := stmt.QueryContext(ctx, 31)
		s.note("rows", err, rows.Next(), rows.Close())
		s.note("close", stmt.Close(), stmt.Close())
		_, err = stmt.ExecContext(ctx, 1)
		s.note("closed", err)
	}
	if _, ok := q.(*sql.Tx); ok {
		return
	}
	for _, query := range []string{"select nowhere", "insert into nowhere values (1)", "selec"} {
		_, err := q.PrepareContext(ctx, query)
		s.note(query, err)
	}
	s.ints(ctx, after, "select 7")
}

// sqlSessions are about what belongs to one session, and stays in it.
var sqlSessions = []sqlScenario{
	{name: "conn", place: onBoth, run: func(ctx context.Context, s *sqlSubject) {
		s.conn(ctx, func(c *sql.Conn) {
			s.ints(ctx, c, fiveSQL)
			s.exec(ctx, c, "insert into w values (1)")
			s.ints(ctx, c, "select id from w")
			s.prepared(ctx, c, c)
			backend := s.backend(ctx, c)
			s.note("one session", s.backend(ctx, c) == backend)
			s.note("ping", c.PingContext(ctx))
			tx, err := c.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
			s.note("begin", err)
			s.ints(ctx, c, fiveSQL)
			s.note("commit", tx.Commit())
			tx, err = c.BeginTx(ctx, nil)
			s.note("begin", err)
			s.exec(ctx, tx, "insert into w values (2)")
			// What is in the transaction shows on its connection, and is not lost on another.
			s.ints(ctx, c, "select id from w order by id")
			s.note("rollback", tx.Rollback())
			s.ints(ctx, c, "select id from w order by id")
		})
		s.conn(ctx, func(c *sql.Conn) {
			s.note("close", c.Close())
			s.ints(ctx, c, "select 1")
		})
	}},
	{name: "search path", place: anywhere, run: func(ctx context.Context, s *sqlSubject) {
		// Each text is new to all connections: an error tells whether it was prepared before.
		s.conn(ctx, func(c *sql.Conn) {
			s.ints(ctx, c, fiveSQL)
			s.exec(ctx, c, "set search_path = pg_catalog")
			s.ints(ctx, c, fiveSQL+" -- after set")
			s.exec(ctx, c, "set search_path = dropin")
			s.ints(ctx, c, fiveSQL+" -- after set again")
		})
		s.conn(ctx, func(c *sql.Conn) {
			s.exec(ctx, c, "select set_config('search_path', 'pg_catalog', false)")
			s.ints(ctx, c, fiveSQL+" -- after set_config")
			s.exec(ctx, c, "reset search_path")
		})
		s.conn(ctx, func(c *sql.Conn) {
			// Its text does not show what it changes.
			s.exec(ctx, c, "do $$ begin execute 'set search_path' || ' = pg_catalog'; end $$")
			s.ints(ctx, c, fiveSQL+" -- after do")
			s.exec(ctx, c, "set search_path = dropin")
		})
	}},
	{name: "temporary tables", place: anywhere, run: func(ctx context.Context, s *sqlSubject) {
		s.conn(ctx, func(c *sql.Conn) {
			s.exec(ctx, c, "create temporary table mine as select generate_series(1, 3) as id")
			s.ints(ctx, c, "select id from mine order by id")
			s.exec(ctx, c, "drop table mine")
		})
		s.conn(ctx, func(c *sql.Conn) {
			// It hides a table of the same name, which the replica has.
			s.exec(ctx, c, "create temp table r as select 77 as id")
			s.ints(ctx, c, fiveSQL)
			s.exec(ctx, c, "drop table r")
		})
		s.conn(ctx, func(c *sql.Conn) {
			s.exec(ctx, c, "select 78 as id into temp r")
			s.ints(ctx, c, fiveSQL)
			s.exec(ctx, c, "drop table pg_temp.r")
			s.exec(ctx, c, "create temp view r as select 79 as id")
			s.ints(ctx, c, fiveSQL)
			s.exec(ctx, c, "drop view pg_temp.r")
		})
	}},
	{name: "transaction by text", place: anywhere, run: func(ctx context.Context, s *sqlSubject) {
		s.conn(ctx, func(c *sql.Conn) {
			s.exec(ctx, c, "begin")
			s.exec(ctx, c, "insert into w values (1)")
			s.ints(ctx, c, "select id from w")
			s.exec(ctx, c, "rollback")
			s.ints(ctx, c, "select id from w")
			s.exec(ctx, c, "begin isolation level repeatable read")
			s.ints(ctx, c, "select current_setting('transaction_isolation') = 'repeatable read' and 1 = 1 from r where false")
			var level string
			s.note("level", c.QueryRowContext(ctx, "select current_setting('transaction_isolation')").Scan(&level), level)
			stmt, err := c.PrepareContext(ctx, "select current_setting('transaction_isolation')")
			s.note("prepare", err, stmt.QueryRowContext(ctx).Scan(&level), level, stmt.Close())
			s.exec(ctx, c, "commit")
		})
	}},
	{name: "statements and cursors by text", place: anywhere, run: func(ctx context.Context, s *sqlSubject) {
		s.conn(ctx, func(c *sql.Conn) {
			s.exec(ctx, c, "prepare p as select id from r where id = $1")
			s.ints(ctx, c, "execute p(3)")
			s.exec(ctx, c, "deallocate p")
			s.exec(ctx, c, "declare c cursor with hold for select id from r order by id")
			s.ints(ctx, c, "fetch 2 from c")
			s.ints(ctx, c, "fetch 2 from c")
			s.exec(ctx, c, "close c")
			s.exec(ctx, c, "listen l")
			s.exec(ctx, c, "unlisten *")
		})
	}},
	{name: "advisory locks", place: anywhere, run: func(ctx context.Context, s *sqlSubject) {
		s.conn(ctx, func(one *sql.Conn) {
			s.exec(ctx, one, "select pg_advisory_lock(4711)")
			s.conn(ctx, func(two *sql.Conn) {
				var got bool
				s.note("taken", two.QueryRowContext(ctx, "select pg_try_advisory_lock(4711)").Scan(&got), got)
				s.note("unlock", one.QueryRowContext(ctx, "select pg_advisory_unlock(4711)").Scan(&got), got)
				s.note("free", two.QueryRowContext(ctx, "select pg_try_advisory_lock(4711)").Scan(&got), got)
				s.note("unlock", two.QueryRowContext(ctx, "select pg_advisory_unlock(4711)").Scan(&got), got)
			})
		})
	}},
	{name: "raw", place: anywhere, run: func(ctx context.Context, s *sqlSubject) {
		type conner interface{ Conn() *pgx.Conn }
		s.conn(ctx, func(c *sql.Conn) {
			s.note("raw", c.Raw(func(raw any) error {
				conn := raw.(conner).Conn()
				n, err := conn.CopyFrom(ctx, pgx.Identifier{"w"}, []string{"id"}, pgx.CopyFromRows([][]any{{1}, {2}}))
				s.note("copy", n, err)
				s.note("batch", conn.SendBatch(ctx, batchOf("insert into w values (3)", "select 1")).Close())
				return nil
			}))
			s.ints(ctx, c, "select id from w order by id")
			fail := errors.New("raw")
			s.note("fails", c.Raw(func(any) error { return fail }))
		})
		s.conn(ctx, func(c *sql.Conn) {
			// What is done to the connection counts for what is done with it afterwards.
			s.note("raw", c.Raw(func(raw any) error {
				_, err := raw.(conner).Conn().Exec(ctx, "set search_path = pg_catalog")
				return err
			}))
			s.ints(ctx, c, fiveSQL+" -- after raw")
			s.exec(ctx, c, "set search_path = dropin")
		})
		s.conn(ctx, func(c *sql.Conn) {
			tx, err := c.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
			s.note("begin", err)
			s.note("raw", c.Raw(func(raw any) error {
				s.note("in the transaction", string(raw.(conner).Conn().PgConn().TxStatus()))
				return nil
			}))
			s.note("rollback", tx.Rollback())
		})
		s.conn(ctx, func(c *sql.Conn) {
			s.note("bad", c.Raw(func(any) error { return driver.ErrBadConn }))
			s.ints(ctx, c, "select 1")
		})
		c, err := s.db.Conn(ctx)
		s.note("conn", err)
		s.panics("raw", func() { _ = c.Raw(func(any) error { panic("raw") }) })
		s.note("close", c.Close())
	}},
	{name: "raw of a server", place: onBoth, run: func(ctx context.Context, s *sqlSubject) {
		for _, idle := range []int{0, 2} {
			s.db.SetMaxIdleConns(idle)
			for _, ctx := range []context.Context{WithPrimary(ctx), WithReplica(ctx), WithPrimary(ctx)} {
				// Something that no server was named for may be lying around.
				s.exec(context.WithoutCancel(s.t.Context()), s.db, "update w set v = 'x'")
				s.conn(ctx, func(c *sql.Conn) {
					s.note("raw", c.Raw(func(raw any) error {
						conn, ok := raw.(*stdlib.Conn)
						s.note("stdlib's", ok)
						n := 0
						s.note("row", conn.Conn().QueryRow(ctx, "select count(*) from w").Scan(&n), n)
						return nil
					}))
					s.ints(ctx, c, fiveSQL)
				})
			}
		}
		s.db.SetMaxIdleConns(0)
	}},
	{name: "idle connections of its own", place: anywhere, run: func(ctx context.Context, s *sqlSubject) {
		s.db.SetMaxIdleConns(2)
		for range 3 {
			s.exec(ctx, s.db, "insert into w values (1) on conflict do nothing")
			s.ints(ctx, s.db, fiveSQL)
		}
		tx, err := s.db.BeginTx(ctx, nil)
		s.note("begin", err)
		s.exec(ctx, tx, "update w set v = 'y'")
		s.note("commit", tx.Commit())
		s.note("close", s.db.Close())
	}},
}

// sqlFaults are about connections that break, and what database/sql is told of it.
var sqlFaults = []sqlScenario{
	{name: "idle connection dies", place: anywhere, run: func(ctx context.Context, s *sqlSubject) {
		s.db.SetMaxIdleConns(1)
		for _, run := range []func(){
			func() { s.ints(ctx, s.db, fiveSQL) },
			func() { s.exec(ctx, s.db, "insert into w values (1) on conflict do nothing") },
			func() {
				tx, err := s.db.BeginTx(ctx, nil)
				s.note("begin", err, tx.Rollback())
			},
			func() { s.note("ping", s.db.PingContext(ctx)) },
		} {
			s.kill(s.backend(ctx, s.db))
			// The kernel has the news by now, and the pool finds out when it looks.
			eventually(s.t, "it works again", func() bool {
				_, err := s.db.ExecContext(ctx, "update w set v = 'x'")
				return err == nil
			})
			run()
		}
		s.note("close", s.db.Close())
		s.stat = gone
	}},
	{name: "session dies", place: anywhere, run: func(ctx context.Context, s *sqlSubject) {
		c, err := s.db.Conn(ctx)
		s.note("conn", err)
		s.kill(s.backend(ctx, c))
		_, err = c.ExecContext(ctx, "insert into w values (1)")
		s.note("first", err)
		_, err = c.ExecContext(ctx, "insert into w values (1)")
		s.note("then", err, errors.Is(err, driver.ErrBadConn))
		_, err = c.BeginTx(ctx, nil)
		s.note("begin", err)
		s.note("close", c.Close() == nil)
		s.ints(ctx, s.db, "select id from w")
	}},
	{name: "transaction dies", place: anywhere, run: func(ctx context.Context, s *sqlSubject) {
		tx, err := s.db.BeginTx(ctx, nil)
		s.note("begin", err)
		s.exec(ctx, tx, "insert into w values (1)")
		s.kill(s.backend(ctx, tx))
		s.exec(ctx, tx, "insert into w values (2)")
		s.note("commit", tx.Commit() != nil)
		s.ints(ctx, s.db, "select id from w")
	}},
	{name: "statement whose session dies", place: anywhere, run: func(ctx context.Context, s *sqlSubject) {
		stmt, err := s.db.PrepareContext(ctx, "insert into w values ($1)")
		s.note("prepare", err)
		s.kill(s.backend(ctx, s.db))
		eventually(s.t, "it works again", func() bool {
			_, err := s.db.ExecContext(ctx, "update w set v = 'x'")
			return err == nil
		})
		_, err = stmt.ExecContext(ctx, 5)
		s.note("exec", err, stmt.Close())
		s.ints(ctx, s.db, "select id from w")
		s.stat = gone
	}},
}

// TestSQLRouting looks which server answers.
func TestSQLRouting(t *testing.T) {
	cluster := dropInCluster(t)
	s, done := newSubject(t, cluster, "two regions", nil)
	defer done()
	s.warm(t.Context())
	db := OpenDB(s.ours)
	defer db.Close()
	ctx := t.Context()
	conn, err := db.Conn(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()

	onReplica := func(ctx context.Context, q querier) (yes bool) {
		t.Helper()
		// A standby has a default of its own making; a read-only transaction on the primary has not.
		if err := q.QueryRowContext(ctx, "select current_setting('in_hot_' || 'standby') = 'on'").Scan(&yes); err != nil {
			t.Error(err)
		}
		return yes
	}
	inTx := func(begin func(context.Context, *sql.TxOptions) (*sql.Tx, error), ctx context.Context, options *sql.TxOptions) bool {
		t.Helper()
		tx, err := begin(ctx, options)
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback()
		return onReplica(ctx, tx)
	}
	stmt, err := db.PrepareContext(ctx, "select current_setting('in_hot_' || 'standby') = 'on'")
	if err != nil {
		t.Fatal(err)
	}
	defer stmt.Close()
	var prepared bool
	if err := stmt.QueryRowContext(ctx).Scan(&prepared); err != nil {
		t.Fatal(err)
	}

	for _, test := range []struct {
		name      string
		got, want bool
	}{
		{"database", onReplica(ctx, db), true},
		{"conn", onReplica(ctx, conn), true},
		{"prepared", prepared, true},
		{"with primary", onReplica(WithPrimary(ctx), db), false},
		{"conn with primary", onReplica(WithPrimary(ctx), conn), false},
		{"conn with replica", onReplica(WithReplica(ctx), conn), true},
		{"transaction", inTx(db.BeginTx, ctx, nil), false},
		{"read-only transaction", inTx(db.BeginTx, ctx, &sql.TxOptions{ReadOnly: true}), true},
		{"read-only snapshot", inTx(db.BeginTx, ctx, &sql.TxOptions{ReadOnly: true, Isolation: sql.LevelRepeatableRead}), true},
		{"read-only serializable", inTx(db.BeginTx, ctx, &sql.TxOptions{ReadOnly: true, Isolation: sql.LevelSerializable}), false},
		{"read-only with primary", inTx(db.BeginTx, WithPrimary(ctx), &sql.TxOptions{ReadOnly: true}), false},
		{"transaction with replica", inTx(db.BeginTx, WithReplica(ctx), nil), true},
		{"read-only transaction of a conn", inTx(conn.BeginTx, ctx, &sql.TxOptions{ReadOnly: true}), true},
	} {
		if test.got != test.want {
			t.Errorf("%s: on the replica: %v, want %v", test.name, test.got, test.want)
		}
	}

	// A session that has something of its own reads there too.
	for _, own := range []string{"set work_mem = '1MB'", "create temp table own (i int)", "begin", "listen own"} {
		c, err := db.Conn(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.ExecContext(ctx, own); err != nil {
			t.Error(err)
		}
		want := own == "listen own"
		if err := s.ours.WaitReplayed(ctx); err != nil {
			t.Error(err)
		}
		if onReplica(ctx, c) != want {
			t.Errorf("after %s a read of the session is on the replica: %v, want %v", own, !want, want)
		}
		for _, undo := range []string{"rollback", "reset all", "unlisten *", "discard temp"} {
			if _, err := c.ExecContext(ctx, undo); err != nil {
				t.Error(err)
			}
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestSQLFrozenReplica reads through database/sql what was written, while the replica does not show it.
func TestSQLFrozenReplica(t *testing.T) {
	cluster := dropInCluster(t)
	for _, read := range []struct {
		name string
		read func(ctx context.Context, db *sql.DB) (n int, err error)
	}{
		{"query", func(ctx context.Context, db *sql.DB) (n int, err error) {
			return n, db.QueryRowContext(ctx, "select count(*) from w").Scan(&n)
		}},
		{"read-only transaction", func(ctx context.Context, db *sql.DB) (n int, err error) {
			tx, err := db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
			if err != nil {
				return 0, err
			}
			defer tx.Rollback()
			return n, tx.QueryRowContext(ctx, "select count(*) from w").Scan(&n)
		}},
		{"conn that holds a lock", func(ctx context.Context, db *sql.DB) (n int, err error) {
			c, err := db.Conn(ctx)
			if err != nil {
				return 0, err
			}
			defer c.Close()
			if _, err := c.ExecContext(ctx, "select pg_advisory_lock(4713)"); err != nil {
				return 0, err
			}
			defer c.ExecContext(ctx, "select pg_advisory_unlock(4713)")
			return n, c.QueryRowContext(ctx, "select count(*) from w").Scan(&n)
		}},
	} {
		t.Run(read.name, func(t *testing.T) {
			s, done := newSubject(t, cluster, "two regions", nil)
			defer done()
			s.warm(t.Context())
			db := OpenDB(s.ours)
			defer db.Close()
			freeze(t, cluster)
			if read.name == "conn that holds a lock" {
				// Another process writes, and lets go of the lock that orders the two.
				if err := cluster.Leader().Exec(t.Context(), "insert into dropin.w values (1)"); err != nil {
					t.Fatal(err)
				}
			} else if _, err := db.ExecContext(t.Context(), "insert into w values (1)"); err != nil {
				t.Fatal(err)
			}
			if n, err := read.read(t.Context(), db); err != nil || n != 1 {
				t.Errorf("it sees %d rows, %v", n, err)
			}
		})
	}
}

// TestSQLReadYourWrites writes and reads a thousand times over database/sql while the replica halts and goes on at random.
func TestSQLReadYourWrites(t *testing.T) {
	const writes, clients = 1000, 8
	cluster := dropInCluster(t)
	s, done := newSubject(t, cluster, "two regions", func(_ *subject, c *pgxpool.Config) { c.MaxConns = 2 * clients })
	defer done()
	s.warm(t.Context())
	db := OpenDB(s.ours)
	defer db.Close()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)

	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		r := rand.New(rand.NewPCG(seed, 0))
		ord := cluster.Server("ord")
		for {
			if err := ord.PauseReplay(context.Background()); err != nil {
				t.Error(err)
			}
			time.Sleep(time.Duration(r.IntN(20)) * time.Millisecond)
			if err := ord.ResumeReplay(context.Background()); err != nil {
				t.Error(err)
			}
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(r.IntN(40)) * time.Millisecond):
			}
		}
	}()

	write := []func(ctx context.Context, id int) error{
		func(ctx context.Context, id int) error {
			_, err := db.ExecContext(ctx, "insert into w values ($1)", id)
			return err
		},
		func(ctx context.Context, id int) error {
			return db.QueryRowContext(ctx, "select hidden($1)", id).Scan(&id)
		},
		func(ctx context.Context, id int) error {
			tx, err := db.BeginTx(ctx, nil)
			if err != nil {
				return err
			}
			defer tx.Rollback()
			if _, err := tx.ExecContext(ctx, "insert into w values ($1)", id); err != nil {
				return err
			}
			return tx.Commit()
		},
		func(ctx context.Context, id int) error {
			c, err := db.Conn(ctx)
			if err != nil {
				return err
			}
			defer c.Close()
			stmt, err := c.PrepareContext(ctx, "insert into w values ($1)")
			if err != nil {
				return err
			}
			defer stmt.Close()
			_, err = stmt.ExecContext(ctx, id)
			return err
		},
	}
	read := []func(ctx context.Context, id int) (bool, error){
		func(ctx context.Context, id int) (found bool, err error) {
			return found, db.QueryRowContext(ctx, "select exists (select from w where id = $1)", id).Scan(&found)
		},
		func(ctx context.Context, id int) (found bool, err error) {
			tx, err := db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
			if err != nil {
				return false, err
			}
			defer tx.Rollback()
			return found, tx.QueryRowContext(ctx, "select exists (select from w where id = $1)", id).Scan(&found)
		},
		func(ctx context.Context, id int) (found bool, err error) {
			stmt, err := db.PrepareContext(ctx, "select exists (select from w where id = $1)")
			if err != nil {
				return false, err
			}
			defer stmt.Close()
			return found, stmt.QueryRowContext(ctx, id).Scan(&found)
		},
	}
	before := s.regions.Stat().Replica("ord").AcquireCount()
	errs := make(chan error, clients)
	for client := range clients {
		go func() {
			r := rand.New(rand.NewPCG(seed, uint64(client)+1))
			for i := range writes / clients {
				id := 1 + client*writes + i
				if err := write[r.IntN(len(write))](t.Context(), id); err != nil {
					errs <- err
					return
				}
				kind := r.IntN(len(read))
				if found, err := read[kind](t.Context(), id); err != nil || !found {
					errs <- fmt.Errorf("read %d of %d: found %v, %v", kind, id, found, err)
					return
				}
			}
			errs <- nil
		}()
	}
	for range clients {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	close(stop)
	<-stopped
	if s.regions.Stat().Replica("ord").AcquireCount() == before {
		t.Error("the replica never served")
	}
	if s.settled() < 0 || db.Stats().InUse != 0 {
		t.Errorf("%d connections of the sql.DB are in use", db.Stats().InUse)
	}
}
