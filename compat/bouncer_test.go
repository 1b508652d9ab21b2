package compat

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flyregion/flyregion"
	"github.com/flyregion/flyregion/internal/pgcluster"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// dbPool is what a flyregion pool and pgxpool's have in common.
type dbPool interface {
	Exec(context.Context, string, ...any) (pgconn.CommandTag, error)
	Query(context.Context, string, ...any) (pgx.Rows, error)
	QueryRow(context.Context, string, ...any) pgx.Row
	SendBatch(context.Context, *pgx.Batch) pgx.BatchResults
	CopyFrom(context.Context, pgx.Identifier, []string, pgx.CopyFromSource) (int64, error)
	BeginTx(context.Context, pgx.TxOptions) (pgx.Tx, error)
	AcquireFunc(context.Context, func(*pgxpool.Conn) error) error
}

// turnConn counts the turns of a conversation: the times that the client sends after it has received.
type turnConn struct {
	net.Conn
	turns    *atomic.Int64
	received atomic.Bool
}

func (c *turnConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.received.Store(true)
	}
	return n, err
}

func (c *turnConn) Write(p []byte) (int, error) {
	if c.received.Swap(false) {
		c.turns.Add(1)
	}
	return c.Conn.Write(p)
}

// TestPgBouncer has PgBouncer in front of the primary. A flyregion pool does through it what pgxpool does, with the same
// results and errors and in no more round trips, while replay is halted. A read after each write must show it.
func TestPgBouncer(t *testing.T) {
	for _, poolMode := range []string{"session", "transaction"} {
		t.Run(poolMode, func(t *testing.T) {
			bouncer, err := cluster.StartBouncer(t.Context(), "", map[string]string{"pool_mode": poolMode})
			if errors.Is(err, pgcluster.ErrNoBouncer) {
				t.Skip(err)
			}
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := bouncer.Stop(); err != nil {
					t.Error(err)
				}
			})
			for _, execMode := range []pgx.QueryExecMode{
				pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol,
			} {
				// PgBouncer knows prepared statements in transaction mode from 1.21 on.
				if poolMode == "transaction" && execMode == pgx.QueryExecModeCacheStatement {
					continue
				}
				t.Run(strings.ReplaceAll(execMode.String(), " ", "_"), func(t *testing.T) { throughBouncer(t, bouncer, poolMode, execMode) })
			}
		})
	}
}

func throughBouncer(t *testing.T, bouncer *pgcluster.Bouncer, poolMode string, execMode pgx.QueryExecMode) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	table := strings.ReplaceAll(fmt.Sprint("b_", poolMode, "_", execMode), " ", "_")
	ourTable, plainTable := table+"_ours", table+"_plain"
	setUp(t, fmt.Sprintf("create table %s (id int primary key, n int not null); create table %s (id int primary key, n int not null)", ourTable, plainTable))

	// In session mode a name that AfterConnect prepares stands for a read.
	totalSQL := func(table string) string { return "select count(*)::int, coalesce(sum(n), 0)::int from " + table }
	prepareTotal := func(table string) func(context.Context, *pgx.Conn) error {
		return func(ctx context.Context, conn *pgx.Conn) error {
			if poolMode != "session" {
				return nil
			}
			_, err := conn.Prepare(ctx, "total", totalSQL(table))
			return err
		}
	}
	// Both reach the bouncer as it is, so that nothing but the turns is between them.
	var ourTurns, plainTurns atomic.Int64
	reach := func(c *pgx.ConnConfig, turns *atomic.Int64) {
		c.LookupFunc = net.DefaultResolver.LookupHost
		c.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			var d net.Dialer
			conn, err := d.DialContext(ctx, network, addr)
			if err != nil || addr != bouncer.Addr() {
				return conn, err
			}
			return &turnConn{Conn: conn, turns: turns}, nil
		}
	}
	through, err := pgxpool.ParseConfig(bouncer.ConnString())
	if err != nil {
		t.Fatal(err)
	}
	through.MaxConns, through.AfterConnect = 2, prepareTotal(plainTable)
	through.ConnConfig.DefaultQueryExecMode = execMode
	reach(through.ConnConfig, &plainTurns)

	ours := newPool(t, func(c *flyregion.Config) {
		c.ReplicaConnStrings = map[string]string{"ord": cluster.Server("ord").ConnString()}
		c.MaxConns, c.AfterConnect = 2, prepareTotal(ourTable)
		c.ConnConfig.Host, c.ConnConfig.Port, c.ConnConfig.Fallbacks = through.ConnConfig.Host, through.ConnConfig.Port, nil
		c.ConnConfig.DefaultQueryExecMode = execMode
		reach(c.ConnConfig, &ourTurns)
	})
	plain, err := pgxpool.NewWithConfig(ctx, through)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(plain.Close)

	ord := cluster.Server("ord")
	if err := ord.PauseReplay(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ord.ResumeReplay(context.Background()); err != nil {
			t.Error(err)
		}
	})

	// total reads what a pool shows of its table.
	total := func(pool dbPool, sql string) string {
		t.Helper()
		var rows, sum int
		if err := pool.QueryRow(ctx, sql).Scan(&rows, &sum); err != nil {
			t.Errorf("%s: %v", sql, err)
		}
		return fmt.Sprint(rows, " rows, ", sum)
	}
	for _, step := range bouncerSteps {
		if step.session && poolMode != "session" {
			continue
		}
		// What has to be prepared, looked up or checked is so after the first time, or a later one.
		least := func(pool dbPool, table string, turns *atomic.Int64) (result string, took int64, err error) {
			took = 1 << 62
			for range max(1, step.times) {
				before := turns.Load()
				result, err = step.run(ctx, pool, table)
				took = min(took, turns.Load()-before)
			}
			return result, took, err
		}
		got, gotTurns, gotErr := least(ours, ourTable, &ourTurns)
		want, wantTurns, wantErr := least(plain, plainTable, &plainTurns)
		t.Logf("%s: %q, %v, flyregion %d turns, pgxpool %d", step.name, got, gotErr, gotTurns, wantTurns)
		if got != want || kind(gotErr) != kind(wantErr) {
			t.Errorf("%s: flyregion has %q, %v, and pgxpool %q, %v", step.name, got, gotErr, want, wantErr)
		}
		if step.most > 0 && (gotTurns > wantTurns || gotTurns > step.most) {
			t.Errorf("%s: flyregion takes %d turns, pgxpool %d, want %d at most", step.name, gotTurns, wantTurns, step.most)
		}
		wantTotal := total(plain, totalSQL(plainTable))
		for range 4 {
			if gotTotal := total(ours, totalSQL(ourTable)); gotTotal != wantTotal {
				t.Errorf("%s: a read after it shows %s, want %s", step.name, gotTotal, wantTotal)
			}
		}
		if poolMode == "session" {
			if gotTotal := total(ours, "total"); gotTotal != wantTotal {
				t.Errorf("%s: a prepared read after it shows %s, want %s", step.name, gotTotal, wantTotal)
			}
		}
	}

	if err := ord.ResumeReplay(ctx); err != nil {
		t.Fatal(err)
	}
	onReplica(t, ours, totalSQL(ourTable), func() error {
		equal(t, "what the replica shows", total(ours, totalSQL(ourTable)), total(plain, totalSQL(plainTable)))
		return nil
	})
}

// kind tells errors apart as far as two pools with tables of their own have the same.
func kind(err error) string {
	var pgErr *pgconn.PgError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &pgErr):
		return "SQLSTATE " + pgErr.Code
	case errors.Is(err, context.DeadlineExceeded):
		return "deadline"
	case errors.Is(err, pgx.ErrNoRows):
		return "no rows"
	}
	return err.Error()
}

// upsertSQL adds to a row, so that it can be done again.
func upsertSQL(table string) string {
	return "insert into " + table + " as t values ($1, $2) on conflict (id) do update set n = t.n + excluded.n returning n"
}

// bouncerSteps are done one after the other.
var bouncerSteps = []struct {
	name    string
	session bool  // needs a session of its own
	times   int   // that it is done, once if 0
	most    int64 // turns that the best of them takes, if that matters
	run     func(ctx context.Context, pool dbPool, table string) (string, error)
}{
	{name: "exec", times: 4, most: 1, run: func(ctx context.Context, pool dbPool, table string) (string, error) {
		tag, err := pool.Exec(ctx, upsertSQL(table), 1, 10)
		return tag.String(), err
	}},
	{name: "exec without arguments", times: 4, most: 1, run: func(ctx context.Context, pool dbPool, table string) (string, error) {
		tag, err := pool.Exec(ctx, "update "+table+" set n = n + 1")
		return tag.String(), err
	}},
	{name: "query", times: 4, most: 1, run: func(ctx context.Context, pool dbPool, table string) (string, error) {
		rows, err := pool.Query(ctx, upsertSQL(table), 2, 20)
		if err != nil {
			return "", err
		}
		got, err := pgx.CollectRows(rows, pgx.RowTo[int])
		return fmt.Sprint(got), err
	}},
	{name: "query row", times: 4, most: 1, run: func(ctx context.Context, pool dbPool, table string) (string, error) {
		var n int
		err := pool.QueryRow(ctx, upsertSQL(table), 3, 30).Scan(&n)
		return fmt.Sprint(n), err
	}},
	{name: "no row", run: func(ctx context.Context, pool dbPool, table string) (string, error) {
		return "", pool.QueryRow(ctx, "update "+table+" set n = 0 where id = $1 returning n", 999).Scan(new(int))
	}},
	{name: "batch", times: 4, most: 1, run: func(ctx context.Context, pool dbPool, table string) (string, error) {
		b := &pgx.Batch{}
		var got []int
		for id := range 10 {
			b.Queue(upsertSQL(table), id, 1).QueryRow(func(row pgx.Row) error {
				got = append(got, 0)
				return row.Scan(&got[len(got)-1])
			})
		}
		err := pool.SendBatch(ctx, b).Close()
		return fmt.Sprint(got), err
	}},
	{name: "batch that fails", run: func(ctx context.Context, pool dbPool, table string) (string, error) {
		b := &pgx.Batch{}
		b.Queue("update "+table+" set n = n + $1", 1)
		b.Queue("update "+table+" set n = n / $1", 0)
		return "", pool.SendBatch(ctx, b).Close()
	}},
	{name: "copy", run: func(ctx context.Context, pool dbPool, table string) (string, error) {
		n, err := pool.CopyFrom(ctx, pgx.Identifier{table}, []string{"id", "n"}, pgx.CopyFromRows([][]any{{100, 1}, {101, 2}}))
		return fmt.Sprint(n), err
	}},
	{name: "copy of what is there", run: func(ctx context.Context, pool dbPool, table string) (string, error) {
		n, err := pool.CopyFrom(ctx, pgx.Identifier{table}, []string{"id", "n"}, pgx.CopyFromRows([][]any{{102, 1}, {101, 2}}))
		return fmt.Sprint(n), err
	}},
	{name: "copy of many rows", run: func(ctx context.Context, pool dbPool, table string) (string, error) {
		n, err := pool.CopyFrom(ctx, pgx.Identifier{table}, []string{"id", "n"}, pgx.CopyFromSlice(20_000, func(i int) ([]any, error) {
			return []any{1000 + i, 1}, nil
		}))
		return fmt.Sprint(n), err
	}},
	{name: "copy in a transaction", run: func(ctx context.Context, pool dbPool, table string) (got string, err error) {
		err = pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{}, func(tx pgx.Tx) error {
			n, err := tx.CopyFrom(ctx, pgx.Identifier{table}, []string{"id", "n"}, pgx.CopyFromRows([][]any{{103, 3}}))
			got = fmt.Sprint(n)
			return err
		})
		return got, err
	}},
	{name: "transaction", times: 4, most: 2, run: func(ctx context.Context, pool dbPool, table string) (got string, err error) {
		err = pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{}, func(tx pgx.Tx) error {
			var n int
			err := tx.QueryRow(ctx, upsertSQL(table), 4, 40).Scan(&n)
			got = fmt.Sprint(n)
			return err
		})
		return got, err
	}},
	{name: "transaction that is rolled back", run: func(ctx context.Context, pool dbPool, table string) (string, error) {
		return "", pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{}, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, "delete from "+table); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, "insert into "+table+" values (1, null)")
			return err
		})
	}},
	{name: "savepoint", run: func(ctx context.Context, pool dbPool, table string) (string, error) {
		return "", pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{}, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, upsertSQL(table), 5, 50); err != nil {
				return err
			}
			err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
				_, err := tx.Exec(ctx, "insert into "+table+" values ($1, $2)", 5, 50)
				return err
			})
			if kind(err) != "SQLSTATE 23505" {
				return fmt.Errorf("in the savepoint: %w", err)
			}
			return nil
		})
	}},
	{name: "serializable", run: func(ctx context.Context, pool dbPool, table string) (string, error) {
		return "", pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{IsoLevel: pgx.Serializable}, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, upsertSQL(table), 6, 60)
			return err
		})
	}},
	{name: "read-only transaction", run: func(ctx context.Context, pool dbPool, table string) (got string, err error) {
		err = pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
			var n int
			err := tx.QueryRow(ctx, "select n from "+table+" where id = $1", 6).Scan(&n)
			got = fmt.Sprint(n)
			return err
		})
		return got, err
	}},
	{name: "acquired", times: 4, most: 1, run: func(ctx context.Context, pool dbPool, table string) (got string, err error) {
		err = pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
			tag, err := conn.Exec(ctx, upsertSQL(table), 7, 70)
			got = tag.String()
			return err
		})
		return got, err
	}},
	{name: "prepared", session: true, run: func(ctx context.Context, pool dbPool, table string) (got string, err error) {
		err = pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
			if _, err := conn.Conn().Prepare(ctx, "upsert", upsertSQL(table)); err != nil {
				return err
			}
			var n int
			err := conn.QueryRow(ctx, "upsert", 8, 80).Scan(&n)
			got = fmt.Sprint(n)
			return errors.Join(err, conn.Conn().Deallocate(ctx, "upsert"))
		})
		return got, err
	}},
	{name: "prepared in a transaction", run: func(ctx context.Context, pool dbPool, table string) (got string, err error) {
		err = pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{}, func(tx pgx.Tx) error {
			if _, err := tx.Prepare(ctx, "upsert", upsertSQL(table)); err != nil {
				return err
			}
			var n int
			err := tx.QueryRow(ctx, "upsert", 8, 80).Scan(&n)
			got = fmt.Sprint(n)
			return errors.Join(err, tx.Conn().Deallocate(ctx, "upsert"))
		})
		return got, err
	}},
	{name: "listen", run: func(ctx context.Context, pool dbPool, table string) (got string, err error) {
		err = pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
			tag, err := conn.Exec(ctx, "listen "+table)
			got = tag.String()
			if err != nil {
				return err
			}
			_, err = conn.Exec(ctx, "unlisten "+table)
			return err
		})
		return got, err
	}},
	{name: "notification", session: true, run: func(ctx context.Context, pool dbPool, table string) (got string, err error) {
		err = pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
			if _, err := conn.Exec(ctx, "listen "+table); err != nil {
				return err
			}
			if _, err := pool.Exec(ctx, "select pg_notify($1, $2)", table, "hello"); err != nil {
				return err
			}
			note, err := conn.Conn().WaitForNotification(ctx)
			if err != nil {
				return err
			}
			got = note.Payload
			_, err = conn.Exec(ctx, "unlisten "+table)
			return err
		})
		return got, err
	}},
	{name: "a name that does not exist", run: func(ctx context.Context, pool dbPool, table string) (string, error) {
		_, err := pool.Exec(ctx, "insert into "+table+" (nowhere) values ($1)", 1)
		return "", err
	}},
	{name: "deadline", run: func(ctx context.Context, pool dbPool, table string) (string, error) {
		ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		defer cancel()
		_, err := pool.Exec(ctx, "insert into "+table+" select -1, 1 from pg_sleep(30)")
		return "", err
	}},
	{name: "exec after a deadline", times: 4, most: 1, run: func(ctx context.Context, pool dbPool, table string) (string, error) {
		tag, err := pool.Exec(ctx, upsertSQL(table), 9, 90)
		return tag.String(), err
	}},
}
