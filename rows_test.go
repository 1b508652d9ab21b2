package flyregion

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/flyregion/flyregion/internal/pgcluster"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// unloggedTable makes a table that no standby can read.
func unloggedTable(t *testing.T, cluster *pgcluster.Cluster, name, rows string) {
	t.Helper()
	if err := cluster.Leader().Exec(t.Context(), "create unlogged table "+name+" (id int); insert into "+name+" "+rows); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.Leader().Exec(context.Background(), "drop table "+name); err != nil {
			t.Error(err)
		}
	})
	if err := cluster.Server("ord").WaitReplayed(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestReadMoves has reads fail on the replica in ways that are the replica's, and checks that the primary answers in its
// place, and remembers what to remember.
func TestReadMoves(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	hide(t, cluster, name)
	ctx := t.Context()
	unloggedTable(t, cluster, "u_"+name, "values (7)")
	pool := poolIn(t, cluster, "ord", func(c *Config) { c.MaxReplicaWait = time.Minute })
	read := func(sql string, args ...any) (n int, err error) { return n, pool.QueryRow(ctx, sql, args...).Scan(&n) }

	t.Run("unlogged table", func(t *testing.T) {
		for range 3 {
			if n, err := read("select id from u_" + name); n != 7 || err != nil {
				t.Errorf("%d, %v", n, err)
			}
		}
	})
	t.Run("function that writes", func(t *testing.T) {
		refusedBefore := strings.Count(serverLog(t, cluster.Server("ord")), "read-only transaction")
		for i := range 5 {
			if n, err := read("select s_"+name+".f($1)", 100+i); n != 100+i || err != nil {
				t.Errorf("%d, %v", n, err)
			}
		}
		if n := strings.Count(serverLog(t, cluster.Server("ord")), "read-only transaction") - refusedBefore; n > 1 {
			t.Errorf("the replica refused the same text %d times", n)
		}
		if n, err := read("select count(*) from " + name + " where id between 100 and 104"); n != 5 || err != nil {
			t.Errorf("%d rows, %v", n, err)
		}
		if err := pool.WaitReplayed(ctx); err != nil {
			t.Fatal(err)
		}
		if !replicaServes(t, ctx, pool) {
			t.Error("other reads do not go to the replica any more")
		}
	})
	t.Run("object that the replica does not know yet", func(t *testing.T) {
		thaw := freeze(t, cluster)
		defer thaw()
		// Made by somebody else: the pool does not know that it has to wait.
		if err := cluster.Leader().Exec(ctx, "create table new_"+name+" as select 9 as id; alter table "+name+" add w int default 5"); err != nil {
			t.Fatal(err)
		}
		defer cluster.Leader().Exec(context.Background(), "drop table new_"+name)
		if n, err := read("select id from new_" + name); n != 9 || err != nil {
			t.Errorf("new table: %d, %v", n, err)
		}
		if n, err := read("select max(w) from " + name); n != 5 || err != nil {
			t.Errorf("new column: %d, %v", n, err)
		}
		thaw()
		if err := cluster.Server("ord").WaitReplayed(ctx); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("end of a row's query", func(t *testing.T) {
		// The row arrives, and then the replica ends the session.
		sql := `select i, repeat('w', 20000), case when i = 2 and current_setting('transaction_' || 'read_only') = 'on'
			then pg_sleep(600)::text end from generate_series(1, 2) i /* end of a row's query */`
		awaitReplica(t, ctx, pool) // it was frozen
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			eventually(t, "the read runs on the replica", func() bool {
				// The division fails as long as it ends nobody.
				return cluster.Server("ord").Exec(ctx, `select 1 / count(*) from pg_stat_activity where wait_event = 'PgSleep' and
					query like '%end of a row''s query%' and pg_terminate_backend(pid)`) == nil
			})
		}()
		var n int
		if err := pool.QueryRow(ctx, sql).Scan(&n, nil, nil); err != nil || n != 1 {
			t.Errorf("%d, %v", n, err)
		}
		<-stopped
	})
	t.Run("object that nobody knows", func(t *testing.T) {
		_, err := read("select id from nowhere_" + name)
		var pgErr *pgconn.PgError
		if !errors.As(err, &pgErr) || pgErr.Code != "42P01" {
			t.Errorf("%v", err)
		}
	})
	t.Run("errors that are the statement's", func(t *testing.T) {
		raw := rawPool(t, cluster, "ord")
		before := cluster.Link("ord", "nrt").Turns()
		for _, sql := range []string{"select 1/0", "selekt", "select 'x'::text::int", "select 1 from generate_series(1, 5) i where 1/(3-i) > -9", "select id from " + name + " where id = $1"} {
			_, err := read(sql)
			var theirs int
			turns := cluster.Link("ord", "nrt").Turns()
			want := raw.QueryRow(ctx, sql).Scan(&theirs)
			before += cluster.Link("ord", "nrt").Turns() - turns
			if !sameError(err, want) {
				t.Errorf("%q: flyregion %v, pgxpool %v", sql, err, want)
			}
		}
		if n := cluster.Link("ord", "nrt").Turns() - before; n > 1 { // selekt is nothing that reads
			t.Errorf("%d turns to the primary", n)
		}
	})
	t.Run("batch", func(t *testing.T) {
		b := &pgx.Batch{}
		var got []int
		for _, sql := range []string{"select 1", "select id from u_" + name, "select 3", "select s_" + name + ".f(300)", "select 5"} {
			b.Queue(sql).QueryRow(func(row pgx.Row) error {
				var n int
				err := row.Scan(&n)
				got = append(got, n)
				return err
			})
		}
		if err := pool.SendBatch(ctx, b).Close(); err != nil || fmt.Sprint(got) != "[1 7 3 300 5]" {
			t.Errorf("%v, %v", got, err)
		}
		if n, err := read("select count(*) from " + name + " where id = 300"); n != 1 || err != nil {
			t.Errorf("the function ran %d times, %v", n, err)
		}
	})
	t.Run("with replica", func(t *testing.T) {
		for _, sql := range []string{"select id from u_" + name, "select s_" + name + ".f(400)", "select id from nowhere_" + name} {
			_, err := pool.Exec(WithReplica(ctx), sql)
			var pgErr *pgconn.PgError
			if !errors.As(err, &pgErr) {
				t.Errorf("%q: %v", sql, err)
			}
		}
	})
	if n := pool.Stat().AcquiredConns(); n != 0 {
		t.Errorf("%d connections are in use", n)
	}
}

// TestRows uses rows of a replica, and of the primary in its place, as pgx's.
func TestRows(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	ctx := t.Context()
	unloggedTable(t, cluster, "u_"+name, "select generate_series(1, 10)")
	pool := poolIn(t, cluster, "ord", func(c *Config) { c.MaxReplicaWait = time.Minute })
	for _, from := range []string{"generate_series(1, 10) id", "u_" + name} {
		sql := "select id, 'x' || id as text from " + from + " order by id"
		t.Run(from, func(t *testing.T) {
			rows, err := pool.Query(ctx, sql)
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for rows.Next() {
				n++
				var id int
				var text string
				if err := rows.Scan(&id, &text); err != nil || id != n || text != fmt.Sprint("x", n) {
					t.Errorf("row %d: %d, %q, %v", n, id, text, err)
				}
				if values, err := rows.Values(); err != nil || len(values) != 2 || len(rows.RawValues()) != 2 || len(rows.FieldDescriptions()) != 2 || rows.Conn() == nil {
					t.Errorf("row %d: %v, %v", n, values, err)
				}
			}
			if n != 10 || rows.Err() != nil || rows.CommandTag().RowsAffected() != 10 || rows.Next() {
				t.Errorf("%d rows, %v, %v", n, rows.CommandTag(), rows.Err())
			}
			rows.Close()

			// Ended early.
			for _, close := range []func(pgx.Rows){pgx.Rows.Close, func(r pgx.Rows) { r.Next(); r.Close(); r.Close() }} {
				rows, err := pool.Query(ctx, sql)
				if err != nil {
					t.Fatal(err)
				}
				close(rows)
				if rows.Err() != nil || rows.Next() {
					t.Errorf("after Close: %v", rows.Err())
				}
			}
			// A failed Scan ends them.
			rows, err = pool.Query(ctx, sql)
			if err != nil {
				t.Fatal(err)
			}
			rows.Next()
			if err := rows.Scan(new(int)); err == nil || rows.Err() == nil || rows.Next() {
				t.Errorf("after a failed Scan: %v, %v", err, rows.Err())
			}
			var id int
			if err := pool.QueryRow(ctx, "select id from "+from+" where id = 11").Scan(&id); !errors.Is(err, pgx.ErrNoRows) {
				t.Errorf("no row: %v", err)
			}
			if err := pool.QueryRow(ctx, sql).Scan(&id); err == nil {
				t.Error("two columns in one destination")
			}
			if err := pool.QueryRow(ctx, "select id from "+from).Scan(new(pgtype.DriverBytes)); err == nil {
				t.Error("DriverBytes")
			}
			collected, err := pgx.CollectRows(must(t)(pool.Query(ctx, sql)), pgx.RowToMap)
			if err != nil || len(collected) != 10 || collected[4]["text"] != "x5" {
				t.Errorf("%v, %v", collected, err)
			}
			// A context that ends between rows is an error, and leaves nothing behind.
			limited, cancel := context.WithCancel(ctx)
			rows, err = pool.Query(limited, "select id, pg_sleep(case when id > 2 then 10 else 0 end), repeat('x', 10000) from "+from+" order by id")
			if err != nil {
				t.Fatal(err)
			}
			time.AfterFunc(50*time.Millisecond, cancel)
			for rows.Next() {
			}
			if err := rows.Err(); !errors.Is(err, context.Canceled) {
				t.Errorf("canceled: %v", err)
			}
			cancel()
			eventually(t, "no connection is in use", func() bool { return pool.Stat().AcquiredConns() == 0 })
		})
	}
}

func must(t *testing.T) func(pgx.Rows, error) pgx.Rows {
	return func(rows pgx.Rows, err error) pgx.Rows {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return rows
	}
}

// TestReplicaBatchBegins begins a transaction in a batch on the replica.
func TestReplicaBatchBegins(t *testing.T) {
	cluster := sharedCluster(t)
	pool := poolIn(t, cluster, "ord", func(c *Config) { c.MaxReplicaWait = time.Minute })
	ctx := WithReplica(t.Context())
	b := &pgx.Batch{}
	b.BeginTx(pgx.TxOptions{AccessMode: pgx.ReadOnly})
	b.Queue("select 1")
	results := pool.SendBatch(ctx, b)
	if err := results.Close(); err != nil {
		t.Fatal(err)
	}
	tx := results.Tx()
	if tx == nil {
		t.Fatal("the batch began no transaction")
	}
	var replica bool
	if err := tx.QueryRow(ctx, readOnlySQL).Scan(&replica); err != nil || !replica {
		t.Errorf("on the replica: %v, %v", replica, err)
	}
	if err := tx.Commit(ctx); err != nil {
		t.Error(err)
	}
	eventually(t, "no connection is in use", func() bool { return pool.Stat().AcquiredConns() == 0 })
}

// endTracer runs a statement of its own on the connection when another has ended.
type endTracer struct{ sql string }

func (*endTracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}

func (t *endTracer) TraceQueryEnd(ctx context.Context, conn *pgx.Conn, _ pgx.TraceQueryEndData) {
	// Past the tracers.
	_, _ = conn.PgConn().Exec(ctx, t.sql).ReadAll()
}

// TestRowOutlivesItsQuery reads rows, of more and fewer columns than have a place, whose connection has run something
// else before they are scanned.
func TestRowOutlivesItsQuery(t *testing.T) {
	cluster := sharedCluster(t)
	pool := poolIn(t, cluster, "ord", func(c *Config) {
		c.MaxReplicaWait = time.Minute
		c.ConnConfig.Tracer = &endTracer{"select 'a', 'b', 'c', 'd', 'e', 'f'"}
	})
	for _, ctx := range []context.Context{WithReplica(t.Context()), WithPrimary(t.Context())} {
		for range 2 {
			var one, two int64
			if err := pool.QueryRow(ctx, "select 1::bigint, 2::bigint").Scan(&one, &two); err != nil || one != 1 || two != 2 {
				t.Errorf("%d, %d, %v", one, two, err)
			}
			var five [5]int64
			err := pool.QueryRow(ctx, "select 1::bigint, 2::bigint, 3::bigint, 4::bigint, 5::bigint").Scan(&five[0], &five[1], &five[2], &five[3], &five[4])
			if err != nil || five != [5]int64{1, 2, 3, 4, 5} {
				t.Errorf("%v, %v", five, err)
			}
		}
	}
}

// TestRowsUseTheSameMemory reads rows of all kinds on one connection, which copies them to the same memory one after the
// other.
func TestRowsUseTheSameMemory(t *testing.T) {
	pool := poolIn(t, sharedCluster(t), "ord", func(c *Config) { c.MaxConns = 1 })
	ctx := t.Context()

	columns := strings.Repeat("7, ", 99) + "7"
	for range 2 {
		var failed int
		row := pool.QueryRow(ctx, "select 10 / (2 - i) from generate_series(1, 2) i") // a row, then an error
		var empty, long string
		var null *string
		if err := pool.QueryRow(ctx, "select '', null::text, repeat('x', 100000)").Scan(&empty, &null, &long); err != nil {
			t.Fatal(err)
		}
		if empty != "" || null != nil || long != strings.Repeat("x", 100000) {
			t.Errorf("%q, %v, and %d bytes", empty, null, len(long))
		}
		many := make([]int, 100)
		dest := make([]any, len(many))
		for i := range many {
			dest[i] = &many[i]
		}
		if err := pool.QueryRow(ctx, "select "+columns).Scan(dest...); err != nil || many[0] != 7 || many[99] != 7 {
			t.Errorf("100 columns: %v, %v", many, err)
		}
		if err := pool.QueryRow(ctx, "select from (values (1)) one").Scan(); err != nil {
			t.Errorf("no column: %v", err)
		}
		if err := pool.QueryRow(ctx, "select ''").Scan(&empty); err != nil {
			t.Errorf("an empty column: %v", err)
		}
		// The row that failed no longer has the connection.
		var pgErr *pgconn.PgError
		if err := row.Scan(&failed); !errors.As(err, &pgErr) || failed != 10 {
			t.Errorf("the row before the error is %d, %v", failed, err)
		}
	}
	unused(t, pool)
}
