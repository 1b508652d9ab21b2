package flyregion

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// frozenPool returns a pool whose replica shows nothing that is written, so that a write which does not count is missed
// by the next read, and a table (id int, v text).
func frozenPool(t *testing.T, change ...func(*Config)) (pool *Pool, name string) {
	t.Helper()
	cluster := sharedCluster(t)
	name = table(t, cluster, "id int, v text")
	change = append(change, func(c *Config) { c.MaxReplicaWait = time.Minute })
	pool = poolIn(t, cluster, "ord", change...)
	awaitReplica(t, t.Context(), pool)
	freeze(t, cluster)
	return pool, name
}

// shows fails the test if a read in ctx misses a row.
func shows(t *testing.T, ctx context.Context, pool *Pool, table string, id int) {
	t.Helper()
	var seen bool
	if err := pool.QueryRow(ctx, "select exists (select from "+table+" where id = $1)", id).Scan(&seen); err != nil || !seen {
		t.Errorf("the read after the write sees it: %v, %v", seen, err)
	}
}

// holdLock takes an advisory lock, and returns a statement that waits until the lock is given up.
func holdLock(t *testing.T) (waits string, giveUp func()) {
	t.Helper()
	key := clock.Add(1)
	conn, err := pgx.Connect(t.Context(), sharedCluster(t).Leader().ConnString())
	if err != nil {
		t.Fatal(err)
	}
	giveUp = sync.OnceFunc(func() { _ = conn.Close(context.Background()) })
	t.Cleanup(giveUp)
	if _, err := conn.Exec(t.Context(), "select pg_advisory_lock($1)", key); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("select pg_advisory_xact_lock(%d)", key), giveUp
}

// TestStatementRefusedAsBusy has pgx refuse a statement because another one's rows are open. That one counts all the same.
func TestStatementRefusedAsBusy(t *testing.T) {
	ctx := t.Context()
	for what, refused := range map[string]func(tx pgx.Tx) error{
		"savepoint": func(tx pgx.Tx) error { _, err := tx.Begin(ctx); return err },
		"exec":      func(tx pgx.Tx) error { return execs(ctx, tx, "select 1") },
		"batch":     func(tx pgx.Tx) error { return tx.SendBatch(ctx, batchOf("select 1", "select 2")).Close() },
		"copy": func(tx pgx.Tx) error {
			_, err := tx.CopyFrom(ctx, pgx.Identifier{"nowhere"}, []string{"id"}, pgx.CopyFromRows([][]any{{1}}))
			return err
		},
	} {
		t.Run(what, func(t *testing.T) {
			pool, name := frozenPool(t)
			tx, err := pool.Begin(ctx)
			if err != nil {
				t.Fatal(err)
			}
			rows, err := tx.Query(ctx, insertSQL(name)+" returning id", 1)
			if err != nil {
				t.Fatal(err)
			}
			if err := refused(tx); err == nil || !strings.Contains(err.Error(), "busy") {
				t.Fatalf("the connection is not busy: %v", err)
			}
			rows.Close()
			if err := tx.Commit(ctx); err != nil {
				t.Fatal(err)
			}
			shows(t, ctx, pool, name, 1)
		})
	}
	t.Run("commit of a savepoint", func(t *testing.T) {
		pool, name := frozenPool(t)
		tx, err := pool.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		nested, err := tx.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		rows, err := nested.Query(ctx, insertSQL(name)+" returning id", 1)
		if err != nil {
			t.Fatal(err)
		}
		if err := nested.Commit(ctx); err == nil {
			t.Fatal("the connection is not busy")
		}
		rows.Close()
		if err := tx.Commit(ctx); err != nil {
			t.Fatal(err)
		}
		shows(t, ctx, pool, name, 1)
	})
	t.Run("batch that ends twice", func(t *testing.T) {
		pool, name := frozenPool(t)
		err := pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
			// pgx tells of the end of a batch that it could not send, and again when that is closed.
			b := &pgx.Batch{}
			b.Queue("select $1::int", struct{}{})
			results := conn.SendBatch(ctx, b)
			rows, err := conn.Query(ctx, insertSQL(name)+" returning id", 1)
			if err != nil {
				return err
			}
			if err := results.Close(); err == nil {
				return errors.New("the batch has no error")
			}
			rows.Close()
			return rows.Err()
		})
		if err != nil {
			t.Fatal(err)
		}
		shows(t, ctx, pool, name, 1)
	})
}

// TestPipelineCounts reads between the results of a pipeline of several transactions, of which a later one is under way.
func TestPipelineCounts(t *testing.T) {
	ctx := t.Context()
	pool, name := frozenPool(t)
	waits, giveUp := holdLock(t)
	err := pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
		p := conn.Conn().PgConn().StartPipeline(ctx)
		for _, sql := range []string{insertText(name, 1), waits} {
			p.SendQueryParams(sql, nil, nil, nil, nil)
			if err := p.Sync(); err != nil {
				return err
			}
		}
		for {
			results, err := p.GetResults()
			if err != nil {
				return err
			}
			if _, ok := results.(*pgconn.PipelineSync); ok {
				break
			}
			if err := results.(*pgconn.ResultReader).Read().Err; err != nil {
				return err
			}
		}
		shows(t, ctx, pool, name, 1)
		giveUp()
		return p.Close()
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestCommitInBatchCounts reads between the results of a batch or a text in which a transaction has ended.
func TestCommitInBatchCounts(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	texts := func(name, waits string) []string {
		// The server sends what it has when that is enough, or all of it is there.
		return []string{"begin", insertText(name, 1), "commit", "select repeat('x', 50000)", waits}
	}
	readsFirst := func(t *testing.T, results pgx.BatchResults) {
		t.Helper()
		for range 3 {
			if _, err := results.Exec(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
		t.Run(mode.String(), func(t *testing.T) {
			pool, name := frozenPool(t, func(c *Config) { c.ConnConfig.DefaultQueryExecMode = mode })
			waits, giveUp := holdLock(t)
			session := &Session{}
			ctx := WithSession(ctx, session)
			results := pool.SendBatch(ctx, batchOf(texts(name, waits)...))
			readsFirst(t, results)
			shows(t, t.Context(), pool, name, 1)
			shows(t, ctx, pool, name, 1)
			giveUp()
			if err := results.Close(); err != nil {
				t.Fatal(err)
			}
			for of, s := range map[string]*Session{"the pool's": &pool.primary.session, "the context's": session} {
				if !pool.primary.covers(pool.primary.written(s)) {
					t.Errorf("%s position is not known when the batch has ended", of)
				}
			}
			shows(t, ctx, pool, name, 1)
		})
	}
	t.Run("raw", func(t *testing.T) {
		pool, name := frozenPool(t)
		waits, giveUp := holdLock(t)
		err := pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
			results := conn.Conn().PgConn().Exec(ctx, strings.Join(texts(name, waits), ";"))
			for range 3 {
				if !results.NextResult() {
					return errors.Join(errors.New("no result"), results.Close())
				}
				if _, err := results.ResultReader().Close(); err != nil {
					return err
				}
			}
			shows(t, ctx, pool, name, 1)
			giveUp()
			return results.Close()
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

// TestAbandonedResultsCount gives a connection back before the results of a write were read.
func TestAbandonedResultsCount(t *testing.T) {
	ctx := t.Context()
	for what, write := range map[string]func(pool *Pool, name string) error{
		"row whose scan panics": func(pool *Pool, name string) (err error) {
			defer func() {
				if recover() == nil {
					err = errors.New("no panic")
				}
			}()
			return pool.QueryRow(ctx, insertSQL(name)+" returning id", 1).Scan(panicScanner{})
		},
		"rows": func(pool *Pool, name string) error {
			return pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
				rows, err := conn.Query(ctx, insertSQL(name)+" returning id", 1)
				if err == nil && !rows.Next() {
					err = errors.New("no row")
				}
				return err
			})
		},
		"batch": func(pool *Pool, name string) error {
			return pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
				_, err := conn.SendBatch(ctx, batchOf(insertText(name, 1), "select 1")).Exec()
				return err
			})
		},
		"batch with its transaction": func(pool *Pool, name string) error {
			return pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
				results := conn.SendBatch(ctx, batchOf("begin", insertText(name, 1), "commit", "select 1"))
				_, err := results.Exec()
				return err
			})
		},
		"raw": func(pool *Pool, name string) error {
			return pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
				if !conn.Conn().PgConn().Exec(ctx, insertText(name, 1)).NextResult() {
					return errors.New("no result")
				}
				return nil
			})
		},
		"hijacked": func(pool *Pool, name string) error {
			pooled, err := pool.Acquire(ctx)
			if err != nil {
				return err
			}
			conn := pooled.Hijack()
			rows, err := conn.Query(ctx, insertSQL(name)+" returning id", 1)
			if err == nil && !rows.Next() {
				err = errors.New("no row")
			}
			return errors.Join(err, conn.Close(ctx))
		},
	} {
		t.Run(what, func(t *testing.T) {
			pool, name := frozenPool(t)
			if err := write(pool, name); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the write is there", func() bool {
				var n int
				err := queryOne(ctx, sharedCluster(t).Leader(), "select count(*) from "+name, &n)
				return err == nil && n == 1
			})
			shows(t, ctx, pool, name, 1)
		})
	}
}

// TestConfigOfConn makes connections from an acquired one's config. They have nothing in common, and what is written on
// them counts.
func TestConfigOfConn(t *testing.T) {
	ctx := t.Context()
	pool, name := frozenPool(t)
	pooled, err := pool.Acquire(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer pooled.Release()
	config := pooled.Conn().Config()
	var own sync.WaitGroup
	for client := range 4 {
		own.Go(func() {
			conn, err := pgx.ConnectConfig(ctx, config)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close(context.Background())
			for i := range 50 {
				id := 1000*client + i
				var got int
				if err := conn.QueryRow(ctx, insertSQL(name)+" returning id", id).Scan(&got); err != nil || got != id {
					t.Errorf("%d, %v, want %d", got, err, id)
				}
			}
		})
	}
	own.Wait()
	shows(t, ctx, pool, name, 3049)
}

// TestIdleInTransaction lets a transaction idle before its first statement: the server knows, and ends the session as it
// was told to.
func TestIdleInTransaction(t *testing.T) {
	cluster := sharedCluster(t)
	ctx := t.Context()
	name := table(t, cluster, "id int, v text")
	firsts := map[string]func(tx pgx.Tx) error{
		"exec":   func(tx pgx.Tx) error { _, err := tx.Exec(ctx, insertSQL(name), 1); return err },
		"text":   func(tx pgx.Tx) error { return execs(ctx, tx, insertText(name, 1)) },
		"batch":  func(tx pgx.Tx) error { return tx.SendBatch(ctx, batchOf(insertText(name, 1), "select 1")).Close() },
		"commit": func(tx pgx.Tx) error { return tx.Commit(ctx) },
	}
	idle := "select count(*) from pg_stat_activity where pid = %d and state = 'idle in transaction'"
	for what, first := range firsts {
		var errs [2]error
		for i, pool := range []*pgxpool.Pool{rawPool(t, cluster, "ord"), poolIn(t, cluster, "ord").Primary()} {
			conn, err := pool.Acquire(ctx)
			if err != nil {
				t.Fatal(err)
			}
			tx, err := conn.Begin(ctx)
			if err != nil {
				t.Fatal(err)
			}
			pid := conn.Conn().PgConn().PID()
			eventually(t, "the server shows the transaction as idle", func() bool {
				var n int
				return queryOne(ctx, cluster.Leader(), fmt.Sprintf(idle, pid), &n) == nil && n == 1
			})
			_ = tx.Rollback(ctx)
			if err := execs(ctx, conn, "set idle_in_transaction_session_timeout = '50ms'"); err != nil {
				t.Fatal(err)
			}
			if tx, err = conn.Begin(ctx); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the server ends the session", func() bool {
				var n int
				err := queryOne(ctx, cluster.Leader(), fmt.Sprintf("select count(*) from pg_stat_activity where pid = %d", pid), &n)
				return err == nil && n == 0
			})
			errs[i] = first(tx)
			_ = tx.Rollback(ctx)
			conn.Release()
		}
		if sqlState(errs[0]) != "25P03" || !sameError(errs[0], errs[1]) {
			t.Errorf("%s: pgxpool %v, flyregion %v", what, errs[0], errs[1])
		}
	}
}

// TestBeginKeepsItsTime compares what a transaction says of itself with pgxpool's. It began when it was begun, and the
// barrier in front of its first statement leaves nothing behind.
func TestBeginKeepsItsTime(t *testing.T) {
	cluster := sharedCluster(t)
	ctx := t.Context()
	var notices int
	pool := poolIn(t, cluster, "ord", func(c *Config) {
		c.ConnConfig.OnNotice = func(*pgconn.PgConn, *pgconn.Notice) { notices++ }
	})
	tx, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(ctx)
	var began, sent time.Time
	eventually(t, "time passes on the server", func() bool {
		var between bool
		err := queryOne(ctx, cluster.Leader(), "select xact_start < clock_timestamp() - interval '50 ms' from pg_stat_activity "+
			fmt.Sprintf("where pid = %d and xact_start is not null", tx.Conn().PgConn().PID()), &between)
		return err == nil && between
	})
	if err := tx.QueryRow(ctx, "select now(), statement_timestamp()").Scan(&began, &sent); err != nil {
		t.Fatal(err)
	}
	if sent.Sub(began) < 50*time.Millisecond {
		t.Errorf("the transaction began at %v, and its first statement at %v", began, sent)
	}
	if err := execs(ctx, tx, "rollback to flyregion"); sqlState(err) != "3B001" {
		t.Errorf("the barrier leaves a savepoint: %v", err)
	}
	if notices > 0 {
		t.Errorf("%d notices", notices)
	}
}

// TestPreparedBegin begins a transaction by the name of a statement that was prepared on the connection.
func TestPreparedBegin(t *testing.T) {
	ctx := t.Context()
	pool, name := frozenPool(t)
	err := pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
		for name, sql := range map[string]string{"b": "begin", "i": insertSQL(name), "c": "commit"} {
			if _, err := conn.Conn().Prepare(ctx, name, sql); err != nil {
				return err
			}
		}
		if err := execs(ctx, conn, "b", "set transaction isolation level serializable"); err != nil {
			return err
		}
		if _, err := conn.Exec(ctx, "i", 1); err != nil {
			return err
		}
		return execs(ctx, conn, "c")
	})
	if err != nil {
		t.Fatal(err)
	}
	shows(t, ctx, pool, name, 1)
}

// TestRawCountsForSession writes past pgx's tracers on a connection that was acquired for a session.
func TestRawCountsForSession(t *testing.T) {
	pool, name := frozenPool(t)
	session := &Session{}
	ctx := WithSession(t.Context(), session)
	err := pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error { return raw(t.Context(), conn, insertText(name, 1)) })
	if err != nil {
		t.Fatal(err)
	}
	shows(t, ctx, pool, name, 1)

	// The next one who acquires the connection has no part in it.
	other := &Session{}
	if err := pool.AcquireFunc(WithSession(t.Context(), other), func(conn *pgxpool.Conn) error { return nil }); err != nil {
		t.Fatal(err)
	}
	before := pool.primary.written(session)
	err = pool.AcquireFunc(t.Context(), func(conn *pgxpool.Conn) error { return raw(t.Context(), conn, insertText(name, 2)) })
	if err != nil {
		t.Fatal(err)
	}
	if pool.primary.written(session) != before || pool.primary.written(other) != (sessionState{}) {
		t.Error("a write past the tracers counts for a session that the connection was acquired for earlier")
	}
}

// TestBatchTellsPosition sends batches in each mode: the position at which they commit is known when they end.
func TestBatchTellsPosition(t *testing.T) {
	ctx := t.Context()
	for _, mode := range []pgx.QueryExecMode{
		pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec,
		pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol,
	} {
		t.Run(mode.String(), func(t *testing.T) {
			pool, name := frozenPool(t, func(c *Config) { c.ConnConfig.DefaultQueryExecMode = mode })
			if err := pool.SendBatch(ctx, batchOf(insertText(name, 1), "select 1")).Close(); err != nil {
				t.Fatal(err)
			}
			if state := pool.primary.written(&pool.primary.session); state.position == 0 || !pool.primary.covers(state) {
				t.Errorf("%+v", state)
			}
			shows(t, ctx, pool, name, 1)
		})
	}
}

// TestTransactionThroughBouncer begins transactions through a PgBouncer in transaction mode, in front of whatever comes
// first in them.
func TestTransactionThroughBouncer(t *testing.T) {
	cluster := ownCluster(t, nil)
	bouncer := startBouncer(t, cluster, "", map[string]string{"pool_mode": "transaction"})
	pool := poolIn(t, cluster, "ord", primaryBehind(bouncer), func(c *Config) {
		c.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	})
	name := table(t, cluster, "id int, v text")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	want := 0
	for what, first := range map[string]func(tx pgx.Tx, id int) error{
		"extended": func(tx pgx.Tx, id int) error { _, err := tx.Exec(ctx, insertSQL(name), id); return err },
		"simple":   func(tx pgx.Tx, id int) error { return execs(ctx, tx, insertText(name, id)) },
		"several":  func(tx pgx.Tx, id int) error { return execs(ctx, tx, "select 1; "+insertText(name, id)) },
		"batch": func(tx pgx.Tx, id int) error {
			return tx.SendBatch(ctx, batchOf(insertText(name, id), "select 1")).Close()
		},
	} {
		for range 3 {
			want++
			if err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return first(tx, want) }); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			shows(t, ctx, pool, name, want)
		}
	}
	if tx, err := pool.Begin(ctx); err != nil || tx.Commit(ctx) != nil {
		t.Errorf("an empty transaction: %v", err)
	}
	if tx, err := pool.Begin(ctx); err != nil || tx.Rollback(ctx) != nil {
		t.Errorf("an empty transaction that is rolled back: %v", err)
	}
}

// TestRawBehindARefusedCopy checks that a write past pgx's tracers counts behind a COPY that pgx has not sent, while the
// connection is still held.
func TestRawBehindARefusedCopy(t *testing.T) {
	cluster := sharedCluster(t)
	ctx := t.Context()
	for way, write := range map[string]func(conn *pgxpool.Conn, sql string) error{
		"text": func(conn *pgxpool.Conn, sql string) error { return raw(ctx, conn, sql) },
		"parameters": func(conn *pgxpool.Conn, sql string) error {
			return conn.Conn().PgConn().ExecParams(ctx, sql, nil, nil, nil, nil).Read().Err
		},
		"copy": func(conn *pgxpool.Conn, sql string) error {
			table := strings.Fields(sql)[2]
			_, err := conn.Conn().PgConn().CopyFrom(ctx, strings.NewReader("2\n"), "copy "+table+" from stdin")
			return err
		},
	} {
		t.Run(way, func(t *testing.T) {
			name := table(t, cluster, "id int")
			pool := poolIn(t, cluster, "ord")
			freeze(t, cluster)
			ended, cancel := context.WithCancel(ctx)
			cancel()
			err := pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
				if _, err := conn.CopyFrom(ended, pgx.Identifier{name}, []string{"id"}, pgx.CopyFromRows([][]any{{1}})); err == nil {
					t.Error("no error")
				}
				if err := write(conn, "insert into "+name+" values (2)"); err != nil {
					return err
				}
				var n int
				if err := pool.QueryRow(ctx, "select count(*) from "+name).Scan(&n); n != 1 || err != nil {
					t.Errorf("%d rows, %v", n, err)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}
