package flyregion

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

const (
	fiveSQL  = "select id from r order by id"
	failsSQL = "select 6 / (3 - i) from generate_series(1, 5) i" // two rows, then an error
)

// canceled is a context that has ended.
func canceled(ctx context.Context) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	return ctx
}

type panickyScanner struct{}

func (panickyScanner) Scan(any) error { panic("scanned") }

type failingScanner struct{}

var errScanner = errors.New("scanner failed")

func (failingScanner) Scan(any) error { return errScanner }

type failingValuer struct{}

var errValuer = errors.New("valuer failed")

func (failingValuer) Value() (driver.Value, error) { return nil, errValuer }

type panickyValuer struct{}

func (panickyValuer) Value() (driver.Value, error) { panic("valued") }

// wholeRow scans a row at a time.
type wholeRow struct {
	id   int
	name string
}

func (w *wholeRow) ScanRow(rows pgx.Rows) error { return rows.Scan(&w.id, &w.name) }

// rowScenarios are about what comes back from Query and QueryRow.
var rowScenarios = []scenario{
	{name: "rows read to the end", place: onReplicaOnly, run: func(ctx context.Context, s *subject) {
		rows, err := s.Query(ctx, fiveSQL)
		s.rows("read", rows, err)
	}},
	{name: "rows of a write", place: onPrimaryOnly, run: func(ctx context.Context, s *subject) {
		rows, err := s.Query(ctx, "insert into w values (1), (2) returning id")
		s.rows("write", rows, err)
	}},
	{name: "rows of nothing", place: onReplicaOnly, run: func(ctx context.Context, s *subject) {
		rows, err := s.Query(ctx, "select id from r where false")
		s.note("fields", len(rows.FieldDescriptions()))
		s.rows("none", rows, err)
	}},
	{name: "rows unread", place: onBoth, run: func(ctx context.Context, s *subject) {
		for _, sql := range []string{fiveSQL, "insert into w values (1), (2) returning id"} {
			rows, err := s.Query(ctx, sql)
			s.note("query", err)
			s.ended(sql, rows)
		}
	}},
	{name: "rows half read", place: onBoth, run: func(ctx context.Context, s *subject) {
		for _, sql := range []string{fiveSQL, "insert into w values (1), (2) returning id"} {
			rows, err := s.Query(ctx, sql)
			s.note("query", err, rows.Next(), rows.Err())
			s.ended(sql, rows)
		}
	}},
	{name: "rows unread of a failure", place: onBoth, run: func(ctx context.Context, s *subject) {
		for _, sql := range []string{"select 1/0", failsSQL, "select x from nowhere", "insert into w values (0) returning id"} {
			rows, err := s.Query(ctx, sql)
			s.note("query", err)
			s.ended(sql, rows)
		}
	}},
	{name: "rows that fail at once", place: onBoth, run: func(ctx context.Context, s *subject) {
		for _, sql := range []string{"select 1/0", "select x from nowhere", "selec 1", "insert into w values (0) returning id", ""} {
			rows, err := s.Query(ctx, sql)
			s.rows(sql, rows, err)
		}
	}},
	{name: "rows that fail at the end", place: onBoth, run: func(ctx context.Context, s *subject) {
		rows, err := s.Query(ctx, failsSQL)
		s.rows("read", rows, err)
		rows, err = s.Query(ctx, "with i as (insert into w values (1) returning id) "+failsSQL)
		s.rows("write", rows, err)
		rows, err = s.Query(ctx, "select id from w")
		s.rows("what was written", rows, err)
	}},
	{name: "rows without their query", place: anywhere, run: func(ctx context.Context, s *subject) {
		// What Query returns beside an error can be used as any rows.
		for _, query := range []func() (pgx.Rows, error){
			func() (pgx.Rows, error) { return s.Query(ctx, "select $1::int", "no number") },
			func() (pgx.Rows, error) { return s.Query(ctx, "insert into w values ($1)", "no number") },
			func() (pgx.Rows, error) { return s.Query(ctx, "select nowhere") },
			func() (pgx.Rows, error) { return s.Query(canceled(ctx), "select 1") },
			func() (pgx.Rows, error) { return s.Query(canceled(ctx), "insert into w values (1)") },
		} {
			rows, err := query()
			s.note("query", err, rows.Err(), rows.Next(), len(rows.FieldDescriptions()), rows.RawValues() == nil, rows.CommandTag(), rows.Conn() == nil, rows.TypeMap() == nil)
			s.note("scan", rows.Scan(new(int)))
			values, err := rows.Values()
			s.note("values", values, err)
			s.ended("closed", rows)
		}
	}},
	{name: "rows in detail", place: onReplicaOnly, run: func(ctx context.Context, s *subject) {
		rows, err := s.Query(ctx, "select id, name, 1.5::numeric, null, '{1,2}'::int[] from r where id = 2")
		s.note("query", err)
		for _, f := range rows.FieldDescriptions() {
			f.TableOID = min(f.TableOID, 1)
			s.note("field", fmt.Sprintf("%+v", f))
		}
		s.note("next", rows.Next())
		s.note("raw", rows.RawValues())
		values, err := rows.Values()
		s.note("values", fmt.Sprintf("%#v", values), err)
		s.note("conn", rows.Conn().IsClosed(), rows.Conn().TypeMap() == rows.TypeMap(), rows.Conn().PgConn().IsBusy())
		s.note("tag too early", rows.CommandTag())
		s.ended("end", rows)
	}},
	{name: "rows scanned wrongly", place: onReplicaOnly, run: func(ctx context.Context, s *subject) {
		for what, scan := range map[string]func(pgx.Rows) error{
			"too few":  func(rows pgx.Rows) error { return rows.Scan() },
			"too many": func(rows pgx.Rows) error { return rows.Scan(new(int), new(int), new(int)) },
			"type":     func(rows pgx.Rows) error { return rows.Scan(new(time.Time), new(string)) },
			"no pointer": func(rows pgx.Rows) error {
				return rows.Scan(1, "x")
			},
			"scanner": func(rows pgx.Rows) error { return rows.Scan(nil, failingScanner{}) },
			"nil":     func(rows pgx.Rows) error { return rows.Scan(nil, nil) },
		} {
			rows, err := s.Query(ctx, "select id, name from r order by id")
			rows.Next()
			sub := &subject{t: s.t}
			sub.note(what, err, scan(rows))
			sub.note(what, rows.Next(), rows.Err())
			sub.ended(what, rows)
			// The map has no order.
			s.note(strings.Join(sub.saw, "\n"))
		}
		sortLines(s)
	}},
	{name: "row scanner", place: onReplicaOnly, run: func(ctx context.Context, s *subject) {
		var one, two wholeRow
		s.note("row", s.QueryRow(ctx, "select id, name from r where id = 3").Scan(&one), one)
		s.note("row of another shape", s.QueryRow(ctx, "select id from r").Scan(&two), two)
		rows, err := s.Query(ctx, "select id, name from r order by id")
		s.note("rows", err, rows.Next(), rows.Scan(&two), two)
		rows.Close()
	}},
	{name: "driver bytes", place: onReplicaOnly, run: func(ctx context.Context, s *subject) {
		var b pgtype.DriverBytes
		s.note("row", s.QueryRow(ctx, "select 'abc'::bytea").Scan(&b), len(b))
		rows, err := s.Query(ctx, "select 'abc'::bytea")
		s.note("rows", err, rows.Next(), rows.Scan(&b), string(b))
		rows.Close()
	}},
	{name: "query row", place: onBoth, run: func(ctx context.Context, s *subject) {
		var n int
		var text string
		for _, sql := range []string{
			fiveSQL, "select 1 where false", "select 1/0", "select id, name from r", "select name from r", "select nowhere", "",
			"insert into w values (7) returning id", "insert into w values (7) returning id", "insert into w values (8)", "delete from w where false returning id",
			failsSQL,
		} {
			s.note(sql, s.QueryRow(ctx, sql).Scan(&n), n)
		}
		s.note("no destination", s.QueryRow(ctx, fiveSQL).Scan())
		s.note("argument", s.QueryRow(ctx, "select $1::text", "a").Scan(&text), text)
		s.note("wrong argument", s.QueryRow(ctx, "select $1::int", "a").Scan(&n))
		s.note("missing argument", s.QueryRow(ctx, "select $1::int").Scan(&n))
		s.note("too many arguments", s.QueryRow(ctx, "select 1", 2).Scan(&n))
		s.note("no rows is ErrNoRows", errors.Is(s.QueryRow(ctx, "select 1 where false").Scan(&n), pgx.ErrNoRows))
	}},
	{name: "query row scanned twice", place: onBoth, run: func(ctx context.Context, s *subject) {
		for _, sql := range []string{fiveSQL, "insert into w values (1) returning id"} {
			row := s.QueryRow(ctx, sql)
			var n int
			s.note("once", row.Scan(&n), n)
			s.note("no connection", s.stat().AcquiredConns())
		}
	}},
	{name: "panic of a scanner in a row", place: onReplicaOnly, run: func(ctx context.Context, s *subject) {
		s.panics("row", func() { _ = s.QueryRow(ctx, fiveSQL).Scan(panickyScanner{}) })
		if s.regions != nil {
			s.kept++ // the row's end was read before
		}
		var n int
		s.note("the pool lives", s.QueryRow(ctx, fiveSQL).Scan(&n), n)
	}},
	{name: "panic of a scanner in a written row", place: onPrimaryOnly, run: func(ctx context.Context, s *subject) {
		s.panics("row", func() {
			_ = s.QueryRow(ctx, "insert into w values (1), (2) returning id").Scan(panickyScanner{})
		})
		s.note("the pool lives", s.Ping(ctx))
	}},
	{name: "panic of a scanner in rows", place: onBoth, run: func(ctx context.Context, s *subject) {
		for _, sql := range []string{fiveSQL, "insert into w values (1) returning id"} {
			s.panics(sql, func() {
				rows, _ := s.Query(ctx, sql)
				defer rows.Close()
				rows.Next()
				_ = rows.Scan(panickyScanner{})
			})
		}
	}},
	{name: "collecting", place: onBoth, run: func(ctx context.Context, s *subject) {
		type person struct {
			ID   int
			Name string
		}
		const sql = "select id, name from r order by id"
		query := func(sql string, args ...any) pgx.Rows {
			rows, _ := s.Query(ctx, sql, args...)
			return rows
		}
		people, err := pgx.CollectRows(query(sql), pgx.RowToStructByName[person])
		s.note("struct by name", people, err)
		people, err = pgx.CollectRows(query("select id as x, name from r"), pgx.RowToStructByName[person])
		s.note("struct by wrong name", people, err)
		pointers, err := pgx.CollectRows(query(sql), pgx.RowToAddrOfStructByPos[person])
		s.note("pointers", len(pointers), err)
		one, err := pgx.CollectOneRow(query(sql+" limit 1"), pgx.RowToStructByNameLax[person])
		s.note("one", one, err)
		_, err = pgx.CollectOneRow(query("select 1 where false"), pgx.RowTo[int])
		s.note("none", err)
		_, err = pgx.CollectExactlyOneRow(query(sql), pgx.RowToStructByPos[person])
		s.note("exactly one of five", err)
		maps, err := pgx.CollectRows(query(sql), pgx.RowToMap)
		s.note("maps", maps, err)
		_, err = pgx.CollectRows(query(failsSQL), pgx.RowTo[int])
		s.note("fails", err)
		_, err = pgx.CollectRows(query("select nowhere"), pgx.RowTo[int])
		s.note("missing", err)
		_, err = pgx.CollectRows(query("select $1::int", "a"), pgx.RowTo[int])
		s.note("argument", err)
		var n, sum int
		tag, err := pgx.ForEachRow(query(fiveSQL), []any{&n}, func() error { sum += n; return nil })
		s.note("for each", tag, err, sum)
		stop := errors.New("stop")
		tag, err = pgx.ForEachRow(query(fiveSQL), []any{&n}, func() error { return stop })
		s.note("for each until", tag, err)
		s.panics("for each", func() { _, _ = pgx.ForEachRow(query(fiveSQL), []any{&n}, func() error { panic("each") }) })
	}},
	{name: "query in a query", place: onReplicaOnly, run: func(ctx context.Context, s *subject) {
		outer, err := s.Query(ctx, fiveSQL)
		s.note("outer", err)
		for outer.Next() {
			var n, m int
			s.note("inner", outer.Scan(&n), s.QueryRow(ctx, "select $1 * 2", n).Scan(&m), m)
		}
		s.ended("outer", outer)
	}},
	{name: "context ends before a query", place: anywhere, run: func(ctx context.Context, s *subject) {
		for _, sql := range []string{"select 1", "insert into w values (1) returning id"} {
			s.note("row", s.QueryRow(canceled(ctx), sql).Scan(new(int)))
			_, err := s.Query(canceled(ctx), sql)
			s.note("rows", err, errors.Is(err, context.Canceled))
			_, err = s.Exec(canceled(ctx), sql)
			s.note("exec", err)
			late, cancel := context.WithDeadline(ctx, time.Unix(0, 0))
			_, err = s.Exec(late, sql)
			s.note("deadline", err, errors.Is(err, context.DeadlineExceeded))
			cancel()
		}
	}},
	{name: "context ends during a query", place: onReplicaOnly, run: func(ctx context.Context, s *subject) {
		endDuring(ctx, s, "select pg_sleep(100) as during_read")
	}},
	{name: "context ends during a write", place: onPrimaryOnly, run: func(ctx context.Context, s *subject) {
		endDuring(ctx, s, "with i as (insert into w values (1)) select pg_sleep(100) as during_write")
	}},
	{name: "context ends between rows", place: onReplicaOnly, run: func(ctx context.Context, s *subject) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		rows, err := s.Query(ctx, "select i, repeat('x', 1000) from generate_series(1, 1000000) i")
		s.note("query", err, rows.Next())
		cancel()
		for rows.Next() {
		}
		s.note("end", rows.Err(), errors.Is(rows.Err(), context.Canceled))
	}},
	{name: "backend killed during a query", place: onPrimaryOnly, run: func(ctx context.Context, s *subject) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.running("killed_write")
			if err := s.cluster.Leader().Exec(ctx, "select pg_terminate_backend(pid) from pg_stat_activity where query like '%killed_write%' and pid <> pg_backend_pid()"); err != nil {
				s.t.Error(err)
			}
		}()
		_, err := s.Exec(ctx, "with i as (insert into w values (1)) select pg_sleep(100) as killed_write")
		s.note("exec", err)
		<-done
	}},
}

// endDuring ends the context of statements that run.
func endDuring(ctx context.Context, s *subject, sql string) {
	marker := sql[strings.Index(sql, "during_"):]
	for what, run := range map[string]func(ctx context.Context) error{
		"exec": func(ctx context.Context) error { _, err := s.Exec(ctx, sql); return err },
		"row":  func(ctx context.Context) error { return s.QueryRow(ctx, sql).Scan(nil) },
		"rows": func(ctx context.Context) error {
			rows, err := s.Query(ctx, sql)
			if err != nil {
				return err
			}
			for rows.Next() {
			}
			return rows.Err()
		},
		"batch": func(ctx context.Context) error {
			b := &pgx.Batch{}
			b.Queue("select 1")
			b.Queue(sql)
			return s.SendBatch(ctx, b).Close()
		},
	} {
		ctx, cancel := context.WithCancel(ctx)
		ended := make(chan error, 1)
		go func() { ended <- run(ctx) }()
		s.running(marker)
		cancel()
		err := <-ended
		s.note(what, err, errors.Is(err, context.Canceled))
		// The server is told to end the statement, and the next one must not be taken for it.
		s.settled()
	}
	sortLines(s)
}

// statementScenarios are about Exec, and about what a statement and its arguments may be.
var statementScenarios = []scenario{
	{name: "exec", place: onBoth, run: func(ctx context.Context, s *subject) {
		for _, sql := range []string{
			"select 1", fiveSQL, "select 1/0", failsSQL, "select nowhere", "selec", "", ";", "-- nothing", "select 1; select 2",
			"insert into w values (1), (2)", "insert into w values (1)", "insert into w values (0)", "update w set v = 'y'", "update w set v = 'y' where false",
			"delete from w where id = 1", "insert into w values (3); select 1/0", "select count(*) from w", "truncate w", "create table dropin.x (i int)", "drop table x",
			"set work_mem = '1MB'", "explain (costs off) select 1", "values (1), (2)", "table r", "notify n", "vacuum r", "do $$ begin raise exception 'no' using hint = 'h', detail = 'd', errcode = 'ZZ123'; end $$",
			"copy r to stdout", "insert into w (id, parent) values (9, 99)", "begin", "commit",
		} {
			tag, err := s.Exec(ctx, sql)
			s.note(sql, tag, err)
		}
	}},
	{name: "exec of what only looks like a read", place: onBoth, run: func(ctx context.Context, s *subject) {
		for id := range 3 {
			tag, err := s.Exec(ctx, "select hidden($1)", id+1)
			s.note("exec", tag, err)
		}
		var n int
		s.note("row", s.QueryRow(ctx, "select hidden(4)").Scan(&n), n)
		rows, err := s.Query(ctx, "select hidden(i) from generate_series(5, 7) i")
		s.rows("rows", rows, err)
		s.note("failing", s.QueryRow(ctx, "select hidden(0)").Scan(&n))
		s.note("count", s.QueryRow(ctx, "select count(*) from w").Scan(&n), n)
	}},
	{name: "arguments", place: onBoth, run: func(ctx context.Context, s *subject) {
		now := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
		five := 5
		for _, args := range [][]any{
			{1, "a"}, {int64(1) << 40, "a"}, {nil, "a"}, {&five, "a"}, {(*int)(nil), "a"}, {1, 1}, {1, []byte("b")}, {1, now}, {"1", "a"}, {"x", "a"}, {1.5, "a"},
			{1}, {1, 2, 3}, {failingValuer{}, "a"}, {pgtype.Int4{Int32: 5, Valid: true}, pgtype.Text{}}, {[]int{1}, "a"}, {struct{}{}, "a"}, {complex(1, 2), "a"},
		} {
			var text *string
			s.note(fmt.Sprintf("read %T", args), s.QueryRow(ctx, "select $2::text from r where id = coalesce($1::int, 1)", args...).Scan(&text), text != nil)
			tag, err := s.Exec(ctx, "insert into w (id, v) values (coalesce($1::int, 77), $2::text) on conflict do nothing", args...)
			s.note("write", tag, err)
		}
		s.panics("read", func() { _, _ = s.Exec(ctx, "select $1::text", panickyValuer{}) })
		s.panics("write", func() { _, _ = s.Exec(ctx, "insert into w (v) values ($1)", panickyValuer{}) })
	}},
	{name: "named arguments", place: onBoth, run: func(ctx context.Context, s *subject) {
		var n int
		for _, args := range []pgx.QueryRewriter{
			pgx.NamedArgs{"a": 1, "b": 2}, pgx.NamedArgs{"a": 1}, pgx.NamedArgs{"a": 1, "b": 2, "c": 3}, pgx.NamedArgs{"a": "x", "b": 2},
			pgx.StrictNamedArgs{"a": 1, "b": 2}, pgx.StrictNamedArgs{"a": 1}, pgx.StrictNamedArgs{"a": 1, "b": 2, "c": 3},
		} {
			s.note("read", s.QueryRow(ctx, "select @a::int + @b::int", args).Scan(&n), n)
			tag, err := s.Exec(ctx, "insert into w values (@a::int * 10 + @b::int) on conflict do nothing", args)
			s.note("write", tag, err)
		}
		s.note("beside another", s.QueryRow(ctx, "select @a::int", pgx.NamedArgs{"a": 1}, 2).Scan(&n))
	}},
	{name: "query rewriter", place: onPrimaryOnly, run: func(ctx context.Context, s *subject) {
		var n int
		s.note("read", s.QueryRow(ctx, "select 1", rewriteTo{"select $1::int", []any{5}, nil}).Scan(&n), n)
		s.note("write", s.QueryRow(ctx, "select 1", rewriteTo{"insert into w values ($1) returning id", []any{6}, nil}).Scan(&n), n)
		_, err := s.Exec(ctx, "select 1", rewriteTo{err: errValuer})
		s.note("fails", err)
		rows, err := s.Query(ctx, "select 1", rewriteTo{err: errValuer})
		s.note("fails", err, rows.Err())
		tag, err := s.Exec(ctx, "select 1", pgx.QueryExecModeSimpleProtocol, rewriteTo{"insert into w values (7)", nil, nil})
		s.note("simple", tag, err)
		b := &pgx.Batch{}
		b.Queue("select 1", rewriteTo{"insert into w values ($1) returning id", []any{8}, nil}).QueryRow(func(row pgx.Row) error { return row.Scan(&n) })
		s.note("batch", s.SendBatch(ctx, b).Close(), n)
	}},
	{name: "result formats", place: onBoth, run: func(ctx context.Context, s *subject) {
		for _, sql := range []string{"select 1::int4, 'a'::text, 2::int8", "insert into w (id) values (1) returning id, v, 2::int8"} {
			for _, args := range [][]any{
				{pgx.QueryResultFormats{pgx.TextFormatCode}},
				{pgx.QueryResultFormats{pgx.TextFormatCode, pgx.BinaryFormatCode, pgx.BinaryFormatCode}},
				{pgx.QueryResultFormatsByOID{pgtype.Int4OID: pgx.TextFormatCode}},
				{pgx.QueryExecModeExec, pgx.QueryResultFormats{pgx.TextFormatCode}},
				{pgx.QueryResultFormats{pgx.TextFormatCode, pgx.BinaryFormatCode}},
			} {
				rows, err := s.Query(ctx, sql, args...)
				s.note("query", err)
				for rows.Next() {
					var a, c int
					var b string
					s.note("raw", rows.RawValues())
					s.note("scan", rows.Scan(&a, &b, &c), a, b, c)
				}
				s.ended("end", rows)
				if _, err := s.Exec(ctx, "delete from w"); err != nil {
					s.t.Error(err)
				}
			}
		}
	}},
	{name: "temporary table on an acquired connection", place: onPrimaryOnly, run: func(ctx context.Context, s *subject) {
		c, err := s.Acquire(ctx)
		if err != nil {
			s.t.Error(err)
			return
		}
		defer c.Release()
		tag, err := c.Exec(ctx, "create temp table tmp as select generate_series(1, 3) i")
		s.note("create", tag, err)
		rows, err := c.Query(ctx, "select i from tmp order by i")
		s.rows("read", rows, err)
		tag, err = c.Exec(ctx, "drop table tmp")
		s.note("drop", tag, err)
	}},
}

// rewriteTo is a QueryRewriter that this package cannot know.
type rewriteTo struct {
	sql  string
	args []any
	err  error
}

func (r rewriteTo) RewriteQuery(context.Context, *pgx.Conn, string, []any) (string, []any, error) {
	return r.sql, r.args, r.err
}

var execModes = []pgx.QueryExecMode{
	pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol,
}

// modeScenarios run the same statements in every mode and with every cache.
var modeScenarios = func() (all []scenario) {
	for _, mode := range execModes {
		all = append(all,
			scenario{name: "mode in the statement " + mode.String(), place: onBoth, run: func(ctx context.Context, s *subject) {
				inMode(ctx, s, mode)
			}},
			scenario{name: "mode in the config " + mode.String(), place: onBoth, change: func(_ *subject, c *pgxConfig) {
				c.ConnConfig.DefaultQueryExecMode = mode
			}, run: func(ctx context.Context, s *subject) {
				inMode(ctx, s)
				batchInMode(ctx, s)
			}},
		)
	}
	for _, caches := range []struct {
		mode                     pgx.QueryExecMode
		statements, descriptions int
	}{
		{pgx.QueryExecModeDescribeExec, 0, 0}, {pgx.QueryExecModeCacheDescribe, 0, 10}, {pgx.QueryExecModeCacheStatement, 1, 0}, {pgx.QueryExecModeCacheDescribe, 0, 1},
	} {
		all = append(all, scenario{name: fmt.Sprint("caches ", caches), place: onBoth, change: func(_ *subject, c *pgxConfig) {
			c.ConnConfig.DefaultQueryExecMode = caches.mode
			c.ConnConfig.StatementCacheCapacity, c.ConnConfig.DescriptionCacheCapacity = caches.statements, caches.descriptions
		}, run: func(ctx context.Context, s *subject) {
			inMode(ctx, s)
			batchInMode(ctx, s)
		}})
	}
	return all
}()

// inMode runs statements with options in front of their arguments.
func inMode(ctx context.Context, s *subject, options ...any) {
	with := func(args ...any) []any { return append(append([]any{}, options...), args...) }
	var n int
	var text string
	for range 2 {
		s.note("read", s.QueryRow(ctx, "select id, name from r where id = $1", with(2)...).Scan(&n, &text), n, text)
		s.note("text", s.QueryRow(ctx, "select $1", with("it's")...).Scan(&text), text)
		s.note("write", s.QueryRow(ctx, "insert into w (id, v) values ($1, $2) on conflict (id) do update set v = 'again' returning v", with(2, "a'b")...).Scan(&text), text)
		s.note("hidden", s.QueryRow(ctx, "select hidden($1)", with(3)...).Scan(&n), n)
		s.note("fails", s.QueryRow(ctx, "select 1/$1::int", with(0)...).Scan(&n))
		s.note("missing", s.QueryRow(ctx, "select * from nowhere where id = $1", with(0)...).Scan(&n))
		s.note("no row", s.QueryRow(ctx, "select 1 where $1", with(false)...).Scan(&n))
	}
	rows, err := s.Query(ctx, failsSQL, with()...)
	s.rows("late", rows, err)
	tag, err := s.Exec(ctx, "update w set v = $1", with("z")...)
	s.note("exec", tag, err)
	tag, err = s.Exec(ctx, fiveSQL, with()...)
	s.note("exec", tag, err)
}

func batchInMode(ctx context.Context, s *subject) {
	var n int
	b := &pgx.Batch{}
	b.Queue("select $1::int", 5).QueryRow(func(row pgx.Row) error { return row.Scan(&n) })
	b.Queue(fiveSQL)
	s.note("batch", s.SendBatch(ctx, b).Close(), n)
	b = &pgx.Batch{}
	b.Queue("select 1/$1::int", 0)
	s.note("failing batch", s.SendBatch(ctx, b).Close())
	b = &pgx.Batch{}
	b.Queue("select $1::int", 5)
	b.Queue("insert into w values ($1)", 5)
	s.note("writing batch", s.SendBatch(ctx, b).Close())
}

// transactionScenarios are about Begin and BeginTx.
var transactionScenarios = []scenario{
	{name: "commit", place: onPrimaryOnly, run: func(ctx context.Context, s *subject) {
		tx, err := s.Begin(ctx)
		s.note("begin", err)
		tag, err := tx.Exec(ctx, "insert into w values (1)")
		s.note("exec", tag, err)
		rows, err := tx.Query(ctx, "select id from w")
		s.rows("own write", rows, err)
		s.note("status", string(tx.Conn().PgConn().TxStatus()))
		s.note("commit", tx.Commit(ctx))
		s.note("again", tx.Commit(ctx), tx.Rollback(ctx))
		_, err = tx.Exec(ctx, "select 1")
		s.note("exec", err)
		_, err = tx.Query(ctx, "select 1")
		s.note("query", err)
		_, err = tx.Begin(ctx)
		s.note("begin", err)
		s.note("row", tx.QueryRow(ctx, "select 1").Scan(new(int)))
	}},
	{name: "rollback", place: onBoth, run: func(ctx context.Context, s *subject) {
		tx, err := s.Begin(ctx)
		s.note("begin", err)
		_, err = tx.Exec(ctx, "insert into w values (1)")
		s.note("exec", err)
		s.note("rollback", tx.Rollback(ctx), tx.Rollback(ctx), tx.Commit(ctx))
		var n int
		s.note("count", s.QueryRow(ctx, "select count(*) from w").Scan(&n), n)
	}},
	{name: "failed transaction", place: onPrimaryOnly, run: func(ctx context.Context, s *subject) {
		tx, err := s.Begin(ctx)
		s.note("begin", err)
		_, err = tx.Exec(ctx, "select 1/0")
		s.note("fails", err)
		_, err = tx.Exec(ctx, "select 1")
		s.note("aborted", err, string(tx.Conn().PgConn().TxStatus()))
		s.note("commit", tx.Commit(ctx))
		s.note("deferred", pgx.BeginFunc(ctx, s, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "insert into w (id, parent) values (9, 99)")
			s.note("exec", err)
			return nil
		}))
	}},
	{name: "read-only transaction", place: onReplicaOnly, run: func(ctx context.Context, s *subject) {
		for _, options := range []pgx.TxOptions{
			{AccessMode: pgx.ReadOnly},
			{AccessMode: pgx.ReadOnly, IsoLevel: pgx.RepeatableRead},
			{AccessMode: pgx.ReadOnly, IsoLevel: pgx.ReadCommitted},
			{AccessMode: pgx.ReadOnly, CommitQuery: "commit and no chain"},
		} {
			tx, err := s.BeginTx(ctx, options)
			s.note("begin", err)
			rows, err := tx.Query(ctx, fiveSQL)
			s.rows("rows", rows, err)
			_, err = tx.Prepare(ctx, "by_name", "select $1::int")
			s.note("prepare", err)
			var n int
			s.note("by name", tx.QueryRow(ctx, "by_name", 5).Scan(&n), n)
			b := batchOf("select 1", fiveSQL)
			s.note("batch", tx.SendBatch(ctx, b).Close())
			s.note("nested", pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
				_, err := tx.Exec(ctx, "select 1/0")
				return err
			}))
			s.note("isolation", tx.QueryRow(ctx, "select current_setting('transaction_isolation') = 'repeatable read'").Scan(new(bool)))
			s.note("status", string(tx.Conn().PgConn().TxStatus()), tx.Conn().PgConn().IsBusy())
			s.note("commit", tx.Commit(ctx), tx.Commit(ctx), tx.Rollback(ctx))
		}
	}},
	{name: "options", place: anywhere, run: func(ctx context.Context, s *subject) {
		for _, options := range []pgx.TxOptions{
			{IsoLevel: pgx.Serializable}, {IsoLevel: pgx.Serializable, AccessMode: pgx.ReadOnly, DeferrableMode: pgx.Deferrable},
			{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadWrite}, {BeginQuery: "begin isolation level repeatable read read only"},
			{IsoLevel: "nonsense"}, {AccessMode: "nonsense"}, {BeginQuery: "nonsense"}, {AccessMode: pgx.ReadOnly, IsoLevel: "nonsense"},
			{CommitQuery: "nonsense"},
		} {
			var level, mode string
			err := pgx.BeginTxFunc(ctx, s, options, func(tx pgx.Tx) error {
				return tx.QueryRow(ctx, "select current_setting('transaction_isolation'), current_setting('transaction_read_only')").Scan(&level, &mode)
			})
			s.note(fmt.Sprint(options), err, level, mode)
		}
	}},
	{name: "nested transactions", place: onBoth, run: func(ctx context.Context, s *subject) {
		undo := errors.New("undo")
		s.note("outer", pgx.BeginFunc(ctx, s, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "insert into w values (1)")
			s.note("exec", err)
			s.note("inner", pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
				_, err := tx.Exec(ctx, "insert into w values (2)")
				s.note("exec", err)
				return undo
			}))
			s.note("inner", pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
				_, err := tx.Exec(ctx, "insert into w values (3)")
				return err
			}))
			s.note("inner", pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
				_, err := tx.Exec(ctx, "insert into w values (1)")
				return err
			}))
			return nil
		}))
		rows, err := s.Query(ctx, "select id from w order by id")
		s.rows("left", rows, err)
	}},
	{name: "functions", place: onBoth, run: func(ctx context.Context, s *subject) {
		fail := errors.New("fail")
		for _, options := range []pgx.TxOptions{{}, {AccessMode: pgx.ReadOnly}} {
			s.note("fails", pgx.BeginTxFunc(ctx, s, options, func(pgx.Tx) error { return fail }))
			s.panics("func", func() {
				_ = pgx.BeginTxFunc(ctx, s, options, func(pgx.Tx) error { panic("in func") })
			})
			s.note("rolled back in it", pgx.BeginTxFunc(ctx, s, options, func(tx pgx.Tx) error { return tx.Rollback(ctx) }))
			s.note("committed in it", pgx.BeginTxFunc(ctx, s, options, func(tx pgx.Tx) error { return tx.Commit(ctx) }))
			s.note("fails in it", pgx.BeginTxFunc(ctx, s, options, func(tx pgx.Tx) error {
				_, err := tx.Exec(ctx, "select 1/0")
				return err
			}))
			s.note("fails unseen", pgx.BeginTxFunc(ctx, s, options, func(tx pgx.Tx) error {
				_, _ = tx.Exec(ctx, "select 1/0")
				return nil
			}))
		}
	}},
	{name: "write in a read-only transaction", place: anywhere, run: func(ctx context.Context, s *subject) {
		for _, sql := range []string{"insert into w values (1)", "select hidden(1)", "create table y (i int)", "select nextval('nowhere')"} {
			err := pgx.BeginTxFunc(ctx, s, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
				_, err := tx.Exec(ctx, sql)
				return err
			})
			s.note(sql, err)
		}
	}},
	{name: "rows left open in a transaction", place: anywhere, run: func(ctx context.Context, s *subject) {
		for _, options := range []pgx.TxOptions{{}, {AccessMode: pgx.ReadOnly}} {
			tx, err := s.BeginTx(ctx, options)
			s.note("begin", err)
			rows, err := tx.Query(ctx, fiveSQL)
			s.note("query", err, rows.Next())
			_, err = tx.Exec(ctx, "select 2")
			s.note("busy", err)
			s.note("rollback", tx.Rollback(ctx))
			s.settled()
		}
	}},
	{name: "context ends around a transaction", place: anywhere, run: func(ctx context.Context, s *subject) {
		for _, options := range []pgx.TxOptions{{}, {AccessMode: pgx.ReadOnly}} {
			_, err := s.BeginTx(canceled(ctx), options)
			s.note("before", err)
			tx, err := s.BeginTx(ctx, options)
			s.note("begin", err)
			_, err = tx.Exec(canceled(ctx), "select 1")
			s.note("exec", err)
			s.note("commit", tx.Commit(ctx))
			tx, err = s.BeginTx(ctx, options)
			s.note("begin", err)
			s.note("commit", tx.Commit(canceled(ctx)))
			s.settled()
		}
	}},
	{name: "prepare", place: onPrimaryOnly, run: func(ctx context.Context, s *subject) {
		s.note("tx", pgx.BeginFunc(ctx, s, func(tx pgx.Tx) error {
			d, err := tx.Prepare(ctx, "ins", "insert into w values ($1) returning id, v")
			if err != nil {
				return err
			}
			s.note("description", d.Name, d.SQL, d.ParamOIDs, len(d.Fields))
			var n int
			s.note("row", tx.QueryRow(ctx, "ins", 4).Scan(&n, nil), n)
			_, err = tx.Prepare(ctx, "wrong", "selec")
			return err
		}))
	}},
	{name: "large objects", place: onPrimaryOnly, run: func(ctx context.Context, s *subject) {
		s.note("tx", pgx.BeginFunc(ctx, s, func(tx pgx.Tx) error {
			objects := tx.LargeObjects()
			oid, err := objects.Create(ctx, 0)
			if err != nil {
				return err
			}
			object, err := objects.Open(ctx, oid, pgx.LargeObjectModeRead|pgx.LargeObjectModeWrite)
			if err != nil {
				return err
			}
			n, err := object.Write([]byte("hello"))
			s.note("write", n, err)
			at, err := object.Seek(1, 0)
			s.note("seek", at, err)
			b := make([]byte, 3)
			n, err = object.Read(b)
			s.note("read", n, err, string(b))
			s.note("close", object.Close())
			_, err = objects.Open(ctx, oid+1, pgx.LargeObjectModeRead)
			s.note("missing", err != nil)
			return errors.New("rolled back")
		}))
	}},
	{name: "large object that is read", place: onBoth, run: func(ctx context.Context, s *subject) {
		var oid uint32
		s.note("tx", pgx.BeginFunc(ctx, s, func(tx pgx.Tx) (err error) {
			objects := tx.LargeObjects()
			if oid, err = objects.Create(ctx, 0); err != nil {
				return err
			}
			object, err := objects.Open(ctx, oid, pgx.LargeObjectModeWrite)
			if err != nil {
				return err
			}
			_, err = object.Write([]byte("hello"))
			return err
		}))
		s.note("read", pgx.BeginTxFunc(ctx, s, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
			objects := tx.LargeObjects()
			object, err := objects.Open(ctx, oid, pgx.LargeObjectModeRead)
			if err != nil {
				return err
			}
			at, err := object.Seek(-3, 2)
			s.note("seek", at, err)
			b := make([]byte, 5)
			n, err := object.Read(b)
			s.note("read", n, err, string(b[:n]))
			_, err = object.Write(b)
			s.note("write", err)
			return nil
		}) != nil)
		s.note("unlink", pgx.BeginFunc(ctx, s, func(tx pgx.Tx) error {
			objects := tx.LargeObjects()
			return objects.Unlink(ctx, oid)
		}))
	}},
	{name: "copy, batch and hidden write in a transaction", place: onBoth, run: func(ctx context.Context, s *subject) {
		s.note("tx", pgx.BeginFunc(ctx, s, func(tx pgx.Tx) error {
			n, err := tx.CopyFrom(ctx, pgx.Identifier{"w"}, []string{"id"}, pgx.CopyFromRows([][]any{{1}, {2}}))
			s.note("copy", n, err)
			s.note("batch", tx.SendBatch(ctx, batchOf("insert into w values (3)", "select 1")).Close())
			var id int
			s.note("hidden", tx.QueryRow(ctx, "select hidden(4)").Scan(&id), id)
			return nil
		}))
		var n int
		s.note("count", s.QueryRow(ctx, "select count(*) from w").Scan(&n), n)
	}},
	{name: "transaction lost", place: onPrimaryOnly, run: func(ctx context.Context, s *subject) {
		for _, first := range []bool{true, false} {
			tx, err := s.Begin(ctx)
			s.note("begin", err)
			if !first {
				_, err = tx.Exec(ctx, "insert into w values (1)")
				s.note("exec", err)
			}
			kill := fmt.Sprintf("select pg_terminate_backend(%d, 10000)", tx.Conn().PgConn().PID())
			if err := s.cluster.Leader().Exec(ctx, kill); err != nil {
				s.t.Error(err)
			}
			_, err = tx.Exec(ctx, "insert into w values (2)")
			s.note("lost", err)
			s.note("closed", tx.Conn().IsClosed())
			s.note("rollback", tx.Rollback(ctx))
		}
		var n int
		s.note("count", s.QueryRow(WithPrimary(ctx), "select count(*) from w").Scan(&n), n)
	}},
}
