package flyregion

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

type pgxConfig = pgxpool.Config

// sortLines brings what was seen in no particular order into one.
func sortLines(s *subject) { slices.Sort(s.saw) }

// batchScenarios are about SendBatch.
var batchScenarios = []scenario{
	{name: "batch of reads", place: onReplicaOnly, run: func(ctx context.Context, s *subject) {
		readBatch(ctx, s, batchOf("select 1", fiveSQL, "select 2"))
	}},
	{name: "batch of writes", place: onPrimaryOnly, run: func(ctx context.Context, s *subject) {
		readBatch(ctx, s, batchOf("insert into w values (1) returning id", "insert into w values (2), (3) returning id", "select 2"))
	}},
	{name: "batch with callbacks", place: onBoth, run: func(ctx context.Context, s *subject) {
		for _, last := range []string{"select 9", "insert into w values (9) returning id"} {
			b := &pgx.Batch{}
			b.Queue(fiveSQL).Query(func(rows pgx.Rows) error { s.rows("query", rows, nil); return rows.Err() })
			b.Queue("select $1::int", 7).QueryRow(func(row pgx.Row) error {
				var n int
				s.note("row", row.Scan(&n), n)
				return nil
			})
			b.Queue(fiveSQL).Exec(func(tag pgconn.CommandTag) error { s.note("exec", tag); return nil })
			b.Queue(fiveSQL)
			b.Queue(last).QueryRow(func(row pgx.Row) error {
				var n int
				s.note("row", row.Scan(&n), n)
				return nil
			})
			results := s.SendBatch(ctx, b)
			s.note("close", results.Close(), results.Close())
		}
	}},
	{name: "batch with a failure", place: onBoth, run: func(ctx context.Context, s *subject) {
		for _, sql := range []string{"select 1/0", "select nowhere", "selec", "select hidden(0)", "insert into w values (0)", failsSQL} {
			for _, at := range []int{0, 1, 2} {
				texts := []string{"select 1", "select 2"}
				b := batchOf(slices.Insert(texts, at, sql)...)
				for i, q := range b.QueuedQueries {
					q.Query(func(rows pgx.Rows) error { s.rows(fmt.Sprint(sql, at, i), rows, nil); return nil })
				}
				results := s.SendBatch(ctx, b)
				err := results.Close()
				s.note("close", err, results.Close())
				_, err = results.Exec()
				s.note("after", err)

				results = s.SendBatch(ctx, batchOf(slices.Insert([]string{"select 1", "select 2"}, at, sql)...))
				for range 4 {
					tag, err := results.Exec()
					s.note("exec", tag, err)
				}
				s.note("close", results.Close())

				results = s.SendBatch(ctx, batchOf(slices.Insert([]string{"select 1", "select 2"}, at, sql)...))
				for range 4 {
					rows, err := results.Query()
					s.rows("rows", rows, err)
				}
				s.note("row", results.QueryRow().Scan(new(int)))
				s.note("close", results.Close())
			}
		}
	}},
	{name: "batch with a failing callback", place: onBoth, run: func(ctx context.Context, s *subject) {
		fail := errors.New("callback")
		for _, last := range []string{"select 9", "insert into w values (9)"} {
			b := &pgx.Batch{}
			b.Queue("select 1").QueryRow(func(pgx.Row) error { return fail })
			b.Queue("select 2").Exec(func(pgconn.CommandTag) error { s.note("must not be called"); return nil })
			b.Queue(last)
			results := s.SendBatch(ctx, b)
			s.note("close", results.Close(), results.Close())
			_, err := results.Exec()
			s.note("exec", err)
			rows, err := results.Query()
			s.note("query", err, rows.Err(), rows.Next())
			s.note("row", results.QueryRow().Scan(new(int)))
		}
	}},
	{name: "batch with a panicking callback", place: onBoth, run: func(ctx context.Context, s *subject) {
		for _, last := range []string{"select 9", "insert into w values (9)"} {
			b := &pgx.Batch{}
			b.Queue("select 1").QueryRow(func(pgx.Row) error { panic("callback") })
			b.Queue(last)
			results := s.SendBatch(ctx, b)
			s.panics("close", func() { _ = results.Close() })
			s.note("close", results.Close())
		}
	}},
	{name: "batch with a failing scan", place: onBoth, run: func(ctx context.Context, s *subject) {
		for _, last := range []string{"select 9", "insert into w values (9)"} {
			results := s.SendBatch(ctx, batchOf("select 'a'", last))
			var n int
			s.note("row", results.QueryRow().Scan(&n))
			tag, err := results.Exec()
			s.note("exec", tag, err)
			s.note("close", results.Close())
			results = s.SendBatch(ctx, batchOf("select 'a'", last))
			s.panics("scan", func() { _ = results.QueryRow().Scan(panickyScanner{}) })
			s.note("close", results.Close())
		}
	}},
	{name: "batch closed early", place: onBoth, run: func(ctx context.Context, s *subject) {
		for _, last := range []string{"select 9", "insert into w values (9)"} {
			results := s.SendBatch(ctx, batchOf(fiveSQL, fiveSQL, last))
			rows, err := results.Query()
			s.note("query", err, rows.Next())
			s.note("close", results.Close())
			s.ended("rows", rows)
			results = s.SendBatch(ctx, batchOf(fiveSQL, "select 1/0"))
			s.note("unread", results.Close(), results.Close())
		}
		var n int
		s.note("count", s.QueryRow(ctx, "select count(*) from w").Scan(&n), n)
	}},
	{name: "batch read past its end", place: onBoth, run: func(ctx context.Context, s *subject) {
		for _, last := range []string{"select 9", "insert into w values (9)"} {
			results := s.SendBatch(ctx, batchOf("select 1", last))
			for range 3 {
				tag, err := results.Exec()
				s.note("exec", tag, err)
			}
			rows, err := results.Query()
			s.note("query", err, rows.Err())
			s.note("row", results.QueryRow().Scan(new(int)))
			s.note("close", results.Close())
			_, err = results.Exec()
			s.note("exec", err)
			rows, err = results.Query()
			s.note("query", err, rows.Err(), rows.Next())
		}
	}},
	{name: "empty batch", place: anywhere, run: func(ctx context.Context, s *subject) {
		results := s.SendBatch(ctx, &pgx.Batch{})
		_, err := results.Exec()
		s.note("exec", err)
		s.note("close", results.Close(), results.Close())
		_, err = results.Exec()
		s.note("exec", err)
	}},
	{name: "batch with a wrong argument", place: onBoth, run: func(ctx context.Context, s *subject) {
		for _, sql := range []string{"select $1::int", "insert into w values ($1)"} {
			b := &pgx.Batch{}
			b.Queue("select 1")
			b.Queue(sql, "no number")
			results := s.SendBatch(ctx, b)
			_, err := results.Exec()
			s.note("exec", err)
			var preprocessing pgx.ErrPreprocessingBatch
			s.note("close", results.Close(), errors.As(err, &preprocessing))
		}
	}},
	{name: "batch under a context that ended", place: anywhere, run: func(ctx context.Context, s *subject) {
		for _, sql := range []string{"select 1", "insert into w values (1)"} {
			results := s.SendBatch(canceled(ctx), batchOf(sql))
			_, err := results.Exec()
			s.note("exec", err)
			rows, err := results.Query()
			s.note("query", err, rows.Err(), rows.Next())
			s.note("row", results.QueryRow().Scan(new(int)))
			s.note("close", results.Close(), results.Tx())
		}
	}},
	{name: "batch that begins a transaction", place: onPrimaryOnly, run: func(ctx context.Context, s *subject) {
		for _, options := range []pgx.TxOptions{{}, {AccessMode: pgx.ReadOnly}, {IsoLevel: "nonsense"}} {
			for _, end := range []func(pgx.Tx) error{
				func(tx pgx.Tx) error { return tx.Commit(ctx) },
				func(tx pgx.Tx) error { return tx.Rollback(ctx) },
			} {
				b := &pgx.Batch{}
				b.BeginTx(options)
				b.Queue("select 1")
				b.Queue("insert into w values (1)")
				results := s.SendBatch(ctx, b)
				tx := results.Tx()
				s.note("close", results.Close(), results.Close())
				s.note("end", end(tx), tx.Rollback(ctx))
				if _, err := s.Exec(ctx, "delete from w"); err != nil {
					s.t.Error(err)
				}
			}
		}
	}},
	{name: "batch told to use the replica", place: onReplicaOnly, run: func(ctx context.Context, s *subject) {
		ctx = WithReplica(ctx)
		readBatch(ctx, s, batchOf("select 1", fiveSQL))
		b := &pgx.Batch{}
		b.BeginTx(pgx.TxOptions{AccessMode: pgx.ReadOnly})
		b.Queue("select 1")
		results := s.SendBatch(ctx, b)
		tx := results.Tx()
		s.note("close", results.Close())
		s.note("tx", tx != nil)
		if tx == nil {
			return
		}
		var n int
		s.note("in the transaction", tx.QueryRow(ctx, "select 5").Scan(&n), n)
		s.note("commit", tx.Commit(ctx), tx.Commit(ctx))
	}},
	{name: "large batch", place: onReplicaOnly, run: func(ctx context.Context, s *subject) {
		b := &pgx.Batch{}
		sum := 0
		for i := range 1000 {
			b.Queue("select $1::int", i).QueryRow(func(row pgx.Row) error {
				var n int
				err := row.Scan(&n)
				sum += n
				return err
			})
		}
		s.note("close", s.SendBatch(ctx, b).Close(), sum)
	}},
}

// readBatch reads a batch in all ways.
func readBatch(ctx context.Context, s *subject, b *pgx.Batch) {
	s.note("len", b.Len())
	results := s.SendBatch(ctx, b)
	s.note("tx", results.Tx() == nil)
	var n int
	s.note("row", results.QueryRow().Scan(&n), n)
	rows, err := results.Query()
	s.note("in detail", len(rows.FieldDescriptions()), rows.Conn() != nil, rows.TypeMap() != nil)
	s.rows("rows", rows, err)
	tag, err := results.Exec()
	s.note("exec", tag, err)
	s.note("close", results.Close(), results.Close())
}

// copyScenarios are about CopyFrom.
var copyScenarios = []scenario{
	{name: "copy", place: onBoth, run: func(ctx context.Context, s *subject) {
		rows := make([][]any, 2000)
		for i := range rows {
			rows[i] = []any{i + 1, fmt.Sprint("v", i)}
		}
		n, err := s.CopyFrom(ctx, pgx.Identifier{"dropin", "w"}, []string{"id", "v"}, pgx.CopyFromRows(rows))
		s.note("copy", n, err)
		n, err = s.CopyFrom(ctx, pgx.Identifier{"w"}, []string{"id"}, pgx.CopyFromSlice(2, func(i int) ([]any, error) { return []any{5000 + i}, nil }))
		s.note("slice", n, err)
		var count int
		s.note("count", s.QueryRow(ctx, "select count(*) from w").Scan(&count), count)
	}},
	{name: "copy that fails", place: onPrimaryOnly, run: func(ctx context.Context, s *subject) {
		fail := errors.New("source")
		for _, source := range []pgx.CopyFromSource{
			pgx.CopyFromRows([][]any{{1}, {1}}), pgx.CopyFromRows([][]any{{0}}), pgx.CopyFromRows([][]any{{"x"}}), pgx.CopyFromRows([][]any{{1, 2}}),
			pgx.CopyFromSlice(3, func(i int) ([]any, error) {
				if i == 1 {
					return nil, fail
				}
				return []any{i + 1}, nil
			}),
			pgx.CopyFromRows(nil),
		} {
			n, err := s.CopyFrom(ctx, pgx.Identifier{"w"}, []string{"id"}, source)
			s.note("copy", n, err)
		}
		n, err := s.CopyFrom(ctx, pgx.Identifier{"nowhere"}, []string{"id"}, pgx.CopyFromRows(nil))
		s.note("no table", n, err)
		n, err = s.CopyFrom(ctx, pgx.Identifier{"w"}, []string{"nothing"}, pgx.CopyFromRows(nil))
		s.note("no column", n, err)
		n, err = s.CopyFrom(canceled(ctx), pgx.Identifier{"w"}, []string{"id"}, pgx.CopyFromRows(nil))
		s.note("canceled", n, err)
	}},
	{name: "copy of nothing", place: onPrimaryOnly, run: func(ctx context.Context, s *subject) {
		n, err := s.CopyFrom(ctx, pgx.Identifier{"w"}, []string{"id"}, pgx.CopyFromFunc(func() ([]any, error) { return nil, nil }))
		s.note("empty", n, err)
	}},
}

// poolScenarios are about the pool itself.
var poolScenarios = []scenario{
	{name: "closed pool", place: anywhere, run: func(ctx context.Context, s *subject) {
		s.Close()
		s.Close()
		for _, sql := range []string{"select 1", "insert into w values (1)"} {
			_, err := s.Exec(ctx, sql)
			s.note("exec", err)
			rows, err := s.Query(ctx, sql)
			s.note("query", err, rows.Err(), rows.Next(), rows.Scan(new(int)))
			s.note("row", s.QueryRow(ctx, sql).Scan(new(int)))
			results := s.SendBatch(ctx, batchOf(sql))
			_, err = results.Exec()
			s.note("batch", err, results.Close())
		}
		for _, options := range []pgx.TxOptions{{}, {AccessMode: pgx.ReadOnly}} {
			_, err := s.BeginTx(ctx, options)
			s.note("begin", err)
		}
		_, err := s.Begin(ctx)
		s.note("begin", err)
		c, err := s.Acquire(ctx)
		s.note("acquire", c, err)
		s.note("acquire func", s.AcquireFunc(ctx, func(*pgxpool.Conn) error { panic("not reached") }))
		s.note("idle", len(s.AcquireAllIdle(ctx)))
		n, err := s.CopyFrom(ctx, pgx.Identifier{"w"}, []string{"id"}, pgx.CopyFromRows(nil))
		s.note("copy", n, err)
		s.note("ping", s.Ping(ctx))
		s.Reset()
		s.note("stat", s.stat().TotalConns())
		// How many were closed depends on the number of servers.
		s.stat = gone
	}},
	{name: "close waits for connections", place: anywhere, run: func(ctx context.Context, s *subject) {
		for _, sql := range []string{fiveSQL, "insert into w values (1), (2) returning id"} {
			rows, err := s.Query(ctx, sql)
			s.note("query", err, rows.Next())
			defer rows.Close()
		}
		tx, err := s.Begin(ctx)
		s.note("begin", err)
		closed := make(chan struct{})
		go func() {
			s.Close()
			close(closed)
		}()
		eventually(s.t, "the pool refuses", func() bool { return s.Ping(ctx) != nil })
		_, err = tx.Exec(ctx, "insert into w values (3)")
		s.note("what runs goes on", err)
		select {
		case <-closed:
			s.note("closed too early")
		default:
		}
		s.note("commit", tx.Commit(ctx))
		// How many connections the pings made is chance.
		s.stat = gone
	}},
	{name: "acquire", place: onPrimaryOnly, run: func(ctx context.Context, s *subject) {
		c, err := s.Acquire(ctx)
		s.note("acquire", err, s.stat().AcquiredConns())
		rows, err := c.Query(ctx, fiveSQL)
		s.rows("read", rows, err)
		tag, err := c.Exec(ctx, "insert into w values (1)")
		s.note("write", tag, err)
		s.note("ping", c.Ping(ctx), c.Conn().IsClosed())
		c.Release()
		c.Release()
		_, err = s.Acquire(canceled(ctx))
		s.note("canceled", err)
	}},
	{name: "acquire func", place: onPrimaryOnly, run: func(ctx context.Context, s *subject) {
		fail := errors.New("func")
		s.note("ok", s.AcquireFunc(ctx, func(c *pgxpool.Conn) error { return c.Ping(ctx) }))
		s.note("fails", s.AcquireFunc(ctx, func(*pgxpool.Conn) error { return fail }))
		s.note("canceled", s.AcquireFunc(canceled(ctx), func(*pgxpool.Conn) error { return fail }))
		s.panics("func", func() { _ = s.AcquireFunc(ctx, func(*pgxpool.Conn) error { panic("in func") }) })
	}},
	{name: "released in a bad state", place: onPrimaryOnly, run: func(ctx context.Context, s *subject) {
		s.note("in a transaction", s.AcquireFunc(ctx, func(c *pgxpool.Conn) error {
			_, err := c.Exec(ctx, "begin")
			return err
		}))
		s.settled()
		s.note("busy", s.AcquireFunc(ctx, func(c *pgxpool.Conn) error {
			rows, err := c.Query(ctx, fiveSQL)
			rows.Next()
			return err
		}))
		s.settled()
		s.note("closed", s.AcquireFunc(ctx, func(c *pgxpool.Conn) error { return c.Conn().Close(ctx) }))
		s.settled()
		s.note("alive", s.Ping(ctx))
	}},
	{name: "acquire all idle", place: anywhere, run: func(ctx context.Context, s *subject) {
		idle := s.AcquireAllIdle(ctx)
		s.note("idle", len(idle))
		s.note("none left", len(s.AcquireAllIdle(ctx)))
		for _, c := range idle {
			s.note("ping", c.Ping(ctx))
			c.Release()
		}
	}},
	{name: "hijack", place: onPrimaryOnly, run: func(ctx context.Context, s *subject) {
		c, err := s.Acquire(ctx)
		s.note("acquire", err)
		conn := c.Hijack()
		s.note("own", conn.Ping(ctx), s.stat().AcquiredConns())
		c.Release()
		s.panics("hijack again", func() { c.Hijack() })
		s.note("close", conn.Close(ctx))
	}},
	{name: "reset", place: anywhere, run: func(ctx context.Context, s *subject) {
		c, err := s.Acquire(ctx)
		s.note("acquire", err)
		rows, err := s.Query(ctx, fiveSQL)
		s.note("query", err, rows.Next())
		s.Reset()
		s.note("still there", c.Ping(ctx), rows.Next())
		c.Release()
		rows.Close()
		eventually(s.t, "all connections are gone", func() bool { return s.stat().TotalConns() == 0 })
		// How many there were depends on the number of servers.
		s.note("again", s.Ping(ctx), s.QueryRow(ctx, fiveSQL).Scan(new(int)))
		s.stat = gone
	}},
	{name: "exhausted", place: anywhere, change: func(_ *subject, c *pgxConfig) { c.MaxConns = 1 }, run: func(ctx context.Context, s *subject) {
		for _, sql := range []string{fiveSQL, "insert into w values (1), (2) returning id"} {
			rows, err := s.Query(ctx, sql)
			s.note("query", err, rows.Next())
			short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
			_, err = s.Exec(short, sql)
			s.note("exec", err, errors.Is(err, context.DeadlineExceeded))
			_, err = s.Query(short, sql)
			s.note("query", err)
			s.note("row", s.QueryRow(short, sql).Scan(new(int)))
			s.note("batch", s.SendBatch(short, batchOf(sql)).Close())
			cancel()

			// Who waits gets the connection.
			waited := s.stat().EmptyAcquireCount()
			done := make(chan error, 1)
			go func() {
				_, err := s.Exec(ctx, "delete from w; select 1")
				if sql == fiveSQL {
					_, err = s.Exec(ctx, sql)
				}
				done <- err
			}()
			rows.Close()
			s.note("next", <-done, s.stat().EmptyAcquireCount() >= waited)
		}
	}},
	{name: "min conns", place: anywhere, cold: true, change: func(_ *subject, c *pgxConfig) { c.MinConns = 2 }, run: func(ctx context.Context, s *subject) {
		want := int32(2)
		if s.regions != nil {
			want = 4
		}
		eventually(s.t, "there are idle connections", func() bool { return s.stat().IdleConns() == want })
	}},
	{name: "lifetime", place: anywhere, change: func(_ *subject, c *pgxConfig) { c.MaxConnLifetime = 100 * time.Millisecond }, run: func(ctx context.Context, s *subject) {
		for _, sql := range []string{fiveSQL, "insert into w values (1) on conflict (id) do update set v = 'y' returning id"} {
			before := s.stat().MaxLifetimeDestroyCount()
			eventually(s.t, "an old connection is closed", func() bool {
				if err := s.QueryRow(ctx, sql).Scan(new(int)); err != nil {
					s.t.Error(err)
				}
				return s.stat().MaxLifetimeDestroyCount() > before
			})
		}
		s.settled()
		s.stat = gone
	}},
	{name: "idle time", place: anywhere, change: func(_ *subject, c *pgxConfig) {
		c.MaxConnIdleTime, c.HealthCheckPeriod = time.Millisecond, 5*time.Millisecond
	}, run: func(ctx context.Context, s *subject) {
		eventually(s.t, "idle connections are closed", func() bool { return s.stat().MaxIdleDestroyCount() > 0 && s.stat().TotalConns() == 0 })
		s.note("read", s.QueryRow(ctx, fiveSQL).Scan(new(int)))
		// How many were closed depends on the number of servers and on chance.
		s.stat = gone
	}},
	{name: "ping", place: onPrimaryOnly, run: func(ctx context.Context, s *subject) {
		s.note("ping", s.Ping(ctx), s.Ping(canceled(ctx)))
	}},
	{name: "no such database", place: anywhere, cold: true, change: func(_ *subject, c *pgxConfig) { c.ConnConfig.Database = "nowhere" }, run: func(ctx context.Context, s *subject) {
		for _, sql := range []string{"select 1", "insert into w values (1)"} {
			err := s.QueryRow(ctx, sql).Scan(new(int))
			var connectErr *pgconn.ConnectError
			var pgErr *pgconn.PgError
			s.note("row", errors.As(err, &connectErr), errors.As(err, &pgErr) && pgErr.Code == "3D000")
		}
		s.stat = gone
	}},
}

// gone are statistics of a pool whose connections do not matter any more.
func gone() anyStat { return noStat{} }

type noStat struct{ anyStat }

func (noStat) NewConnsCount() int64     { return 0 }
func (noStat) TotalConns() int32        { return 0 }
func (noStat) AcquiredConns() int32     { return 0 }
func (noStat) ConstructingConns() int32 { return 0 }

type tenantKey struct{}

// hookScenarios are about the functions in the config, which hold for every server alike.
var hookScenarios = []scenario{
	{name: "hooks are called", place: anywhere, cold: true, change: func(s *subject, c *pgxConfig) {
		c.BeforeConnect = func(_ context.Context, c *pgx.ConnConfig) error {
			c.RuntimeParams["app.who"] = "hook"
			return nil
		}
		c.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, "set app.after = 'connect'")
			return err
		}
		c.PrepareConn = func(ctx context.Context, conn *pgx.Conn) (bool, error) {
			_, err := conn.Exec(ctx, "select set_config('app.prepared', $1, false)", fmt.Sprint(ctx.Value(tenantKey{})))
			return err == nil, err
		}
	}, run: func(ctx context.Context, s *subject) {
		const sql = "select current_setting('app.who'), current_setting('app.after'), current_setting('app.prepared')"
		for i := range 2 {
			ctx := context.WithValue(ctx, tenantKey{}, i)
			var a, b, c string
			s.note("read", s.QueryRow(ctx, sql).Scan(&a, &b, &c), a, b, c)
			s.note("write", s.QueryRow(ctx, sql+" for update").Scan(&a, &b, &c))
			s.note("write", s.QueryRow(ctx, "with i as (insert into w values ($1)) "+sql, i+1).Scan(&a, &b, &c), a, b, c)
			s.note("tx", pgx.BeginTxFunc(ctx, s, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
				return tx.QueryRow(ctx, sql).Scan(&a, &b, &c)
			}), a, b, c)
			s.note("acquired", s.AcquireFunc(ctx, func(conn *pgxpool.Conn) error { return conn.QueryRow(ctx, sql).Scan(&a, &b, &c) }), a, b, c)
		}
	}},
	{name: "prepare conn refuses", place: anywhere, change: func(s *subject, c *pgxConfig) {
		c.PrepareConn = func(ctx context.Context, conn *pgx.Conn) (bool, error) {
			answer, _ := ctx.Value(tenantKey{}).([2]any)
			keep, known := answer[0].(bool)
			err, _ := answer[1].(error)
			return keep || !known, err
		}
	}, run: func(ctx context.Context, s *subject) {
		refuse := errors.New("refused")
		for _, sql := range []string{fiveSQL, "insert into w values (1) on conflict (id) do update set v = 'y' returning id"} {
			for _, keep := range []bool{true, false} {
				ctx := context.WithValue(ctx, tenantKey{}, [2]any{keep, refuse})
				s.note("row", s.QueryRow(ctx, sql).Scan(new(int)))
				_, err := s.Exec(ctx, sql)
				s.note("exec", err)
				_, err = s.Query(ctx, sql)
				s.note("query", err)
				s.note("batch", s.SendBatch(ctx, batchOf(sql)).Close())
			}
			s.note("without", s.QueryRow(ctx, sql).Scan(new(int)))
		}
		for _, options := range []pgx.TxOptions{{}, {AccessMode: pgx.ReadOnly}} {
			_, err := s.BeginTx(context.WithValue(ctx, tenantKey{}, [2]any{true, refuse}), options)
			s.note("begin", err)
		}
		if s.regions == nil {
			return
		}
		// What the app refuses says nothing about the replica's health.
		if !replicaServes(s.t, WithoutWait(ctx), s.regions) {
			s.t.Error("after the app refused a connection the replica does not serve")
		}
	}},
	{name: "prepare conn destroys", place: onBoth, change: func(s *subject, c *pgxConfig) {
		c.PrepareConn = func(ctx context.Context, conn *pgx.Conn) (bool, error) {
			n, _ := ctx.Value(tenantKey{}).(*atomic.Int32)
			return n == nil || n.Add(1) > 1, nil
		}
	}, run: func(ctx context.Context, s *subject) {
		for _, sql := range []string{fiveSQL, "insert into w values (1) returning id"} {
			s.note("row", s.QueryRow(context.WithValue(ctx, tenantKey{}, new(atomic.Int32)), sql).Scan(new(int)))
		}
	}},
	{name: "after release destroys", place: onBoth, change: func(_ *subject, c *pgxConfig) {
		c.AfterRelease = func(*pgx.Conn) bool { return false }
	}, run: func(ctx context.Context, s *subject) {
		s.settled()
		for _, sql := range []string{fiveSQL, "insert into w values (1) returning id"} {
			s.note("row", s.QueryRow(ctx, sql).Scan(new(int)))
			s.settled()
		}
		s.note("left", s.stat().TotalConns())
		s.stat = gone
	}},
	{name: "before close and should ping", place: anywhere, change: func(s *subject, c *pgxConfig) {
		c.BeforeClose = func(conn *pgx.Conn) { s.note("before close", conn.IsClosed()) }
		c.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return true }
	}, run: func(ctx context.Context, s *subject) {
		s.note("row", s.QueryRow(ctx, fiveSQL).Scan(new(int)))
		s.note("row", s.QueryRow(ctx, "insert into w values (1) returning id").Scan(new(int)))
		s.Close()
		// One for each server.
		s.saw = slices.Compact(s.saw)
		s.stat = gone
	}},
	{name: "connect fails", place: anywhere, cold: true, change: func(_ *subject, c *pgxConfig) {
		c.AfterConnect = func(context.Context, *pgx.Conn) error { return errors.New("after connect") }
	}, run: func(ctx context.Context, s *subject) {
		for _, sql := range []string{"select 1", "insert into w values (1)"} {
			s.note("row", s.QueryRow(ctx, sql).Scan(new(int)))
			_, err := s.Exec(ctx, sql)
			s.note("exec", err)
		}
		s.stat = gone
	}},
	{name: "before connect fails", place: anywhere, cold: true, change: func(_ *subject, c *pgxConfig) {
		c.BeforeConnect = func(context.Context, *pgx.ConnConfig) error { return errors.New("before connect") }
	}, run: func(ctx context.Context, s *subject) {
		for _, sql := range []string{"select 1", "insert into w values (1)"} {
			s.note("row", s.QueryRow(ctx, sql).Scan(new(int)))
		}
		s.stat = gone
	}},
	{name: "a hook that writes", place: anywhere, cold: true, change: func(_ *subject, c *pgxConfig) {
		c.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, "create temp table mine as select 42 as n")
			return err
		}
	}, run: func(ctx context.Context, s *subject) {
		for range 3 {
			var n int
			s.note("read", s.QueryRow(ctx, "select n from mine").Scan(&n), n)
			_, err := s.Exec(ctx, "insert into w values (1) on conflict do nothing")
			s.note("write", err)
		}
		s.stat = gone
	}},
	{name: "own types", place: onBoth, change: func(_ *subject, c *pgxConfig) {
		c.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
			types, err := conn.LoadTypes(ctx, []string{"dropin.mood", "dropin.point3", "dropin._point3"})
			if err != nil {
				return err
			}
			conn.TypeMap().RegisterTypes(types)
			return nil
		}
	}, run: func(ctx context.Context, s *subject) {
		type point struct{ X, Y, Z int }
		var feels string
		var at point
		var all []point
		s.note("read", s.QueryRow(ctx, "select feels, at, array[at] from r where at = $1 and feels = $2", point{2, 2, 2}, "ok").Scan(&feels, &at, &all), feels, at, all)
		s.note("write", s.QueryRow(ctx, "with i as (insert into w values (1)) select $1::point3", point{1, 2, 3}).Scan(&at), at)
		s.note("in a read-only transaction", pgx.BeginTxFunc(ctx, s, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
			return tx.QueryRow(ctx, "select at from r where id = 4").Scan(&at)
		}), at)
		s.note("not a mood", s.QueryRow(ctx, "select $1::mood", "angry").Scan(&feels))
	}},
	{name: "statements prepared on every connection", place: anywhere, change: func(_ *subject, c *pgxConfig) {
		c.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
			for name, sql := range map[string]string{"get": "select name from r where id = $1", "put": "insert into w values ($1) returning id", "hid": "select hidden($1)"} {
				if _, err := conn.Prepare(ctx, name, sql); err != nil {
					return err
				}
			}
			return nil
		}
	}, run: func(ctx context.Context, s *subject) {
		var name string
		var id int
		s.note("get", s.QueryRow(ctx, "get", 3).Scan(&name), name)
		s.note("put", s.QueryRow(ctx, "put", 3).Scan(&id), id)
		s.note("hid", s.QueryRow(ctx, "hid", 4).Scan(&id), id)
		tag, err := s.Exec(ctx, "put", 5)
		s.note("exec", tag, err)
		_, err = s.Exec(ctx, "none", 5)
		s.note("unknown", err)
		rows, err := s.Query(ctx, "get", "x")
		s.rows("argument", rows, err)
		b := &pgx.Batch{}
		b.Queue("get", 1).QueryRow(func(row pgx.Row) error { return row.Scan(&name) })
		b.Queue("put", 6)
		s.note("batch", s.SendBatch(ctx, b).Close(), name)
		s.note("tx", pgx.BeginTxFunc(ctx, s, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
			return tx.QueryRow(ctx, "get", 2).Scan(&name)
		}), name)
		s.note("by text", s.QueryRow(ctx, "select name from r where id = $1", 5).Scan(&name), name)
	}},
	{name: "reads prepared on every connection", place: onReplicaOnly, change: func(_ *subject, c *pgxConfig) {
		c.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.Prepare(ctx, "get", "select name from r where id = $1")
			return err
		}
	}, run: func(ctx context.Context, s *subject) {
		var name string
		s.note("get", s.QueryRow(ctx, "get", 3).Scan(&name), name)
		tag, err := s.Exec(ctx, "get", 2)
		s.note("exec", tag, err)
		b := &pgx.Batch{}
		b.Queue("get", 1).QueryRow(func(row pgx.Row) error { return row.Scan(&name) })
		b.Queue("get", 6).Exec(func(pgconn.CommandTag) error { return nil })
		s.note("batch", s.SendBatch(ctx, b).Close(), name)
		rows, err := s.Query(ctx, "get", "x")
		s.rows("argument", rows, err)
	}},
	{name: "prepared where the app chose to", place: anywhere, change: func(_ *subject, c *pgxConfig) {
		c.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
			if strings.HasPrefix(conn.Config().Host, "ord.") {
				return nil
			}
			_, err := conn.Prepare(ctx, "get", "select name from r where id = $1")
			return err
		}
	}, run: func(ctx context.Context, s *subject) {
		var name string
		for range 2 {
			s.note("get", s.QueryRow(ctx, "get", 3).Scan(&name), name)
			tag, err := s.Exec(ctx, "get", 2)
			s.note("exec", tag, err)
			b := &pgx.Batch{}
			b.Queue("get", 1).QueryRow(func(row pgx.Row) error { return row.Scan(&name) })
			s.note("batch", s.SendBatch(ctx, b).Close(), name)
		}
	}},
	{name: "before acquire", place: anywhere, change: func(_ *subject, c *pgxConfig) {
		//lint:ignore SA1019 apps that set it still get what it promises
		c.BeforeAcquire = func(ctx context.Context, conn *pgx.Conn) bool {
			n, _ := ctx.Value(tenantKey{}).(*atomic.Int32)
			return n == nil || n.Add(1) > 1
		}
	}, run: func(ctx context.Context, s *subject) {
		for _, sql := range []string{fiveSQL, "insert into w values (1) returning id"} {
			s.note("row", s.QueryRow(context.WithValue(ctx, tenantKey{}, new(atomic.Int32)), sql).Scan(new(int)))
			var always atomic.Int32
			always.Store(-1000)
			s.note("never", s.QueryRow(context.WithValue(ctx, tenantKey{}, &always), sql).Scan(new(int)))
		}
		s.stat = gone
	}},
	{name: "as with a connection pooler", place: onBoth, change: func(_ *subject, c *pgxConfig) {
		// PgBouncer in transaction mode has no prepared statements.
		c.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
		c.ConnConfig.StatementCacheCapacity, c.ConnConfig.DescriptionCacheCapacity = 0, 0
	}, run: func(ctx context.Context, s *subject) {
		var n int
		s.note("read", s.QueryRow(ctx, "select id from r where id = $1", 3).Scan(&n), n)
		s.note("write", s.QueryRow(ctx, "insert into w values ($1) returning id", 3).Scan(&n), n)
		s.note("tx", pgx.BeginFunc(ctx, s, func(tx pgx.Tx) error { return tx.QueryRow(ctx, "select count(*) from w where id > $1", 0).Scan(&n) }), n)
		s.note("batch", s.SendBatch(ctx, batchOf("select 1", "insert into w values (4)")).Close())
	}},
}
