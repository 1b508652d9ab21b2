package flyregion

import (
	"bytes"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// openDBIn opens a sql.DB on a pool in ord that has its tables in the schema dropin.
func openDBIn(t *testing.T, change ...func(*Config)) (*Pool, *sql.DB) {
	t.Helper()
	pool := poolIn(t, sharedCluster(t), "ord", append(change, func(c *Config) { c.ConnConfig.RuntimeParams["search_path"] = "dropin" })...)
	db := OpenDB(pool)
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return pool, db
}

func onStandby(t *testing.T, ctx context.Context, q querier) (yes bool) {
	t.Helper()
	if err := q.QueryRowContext(ctx, "select current_setting('in_hot' || '_standby') = 'on'").Scan(&yes); err != nil {
		t.Error(err)
	}
	return yes
}

// TestSQLConnKeepsItsSession does to a sql.Conn what may change its session, in ways that a text shows and does not show.
// What it reads afterwards comes from that session.
func TestSQLConnKeepsItsSession(t *testing.T) {
	cluster := batchCluster(t)
	err := cluster.Leader().Exec(t.Context(), `
		set search_path = dropin;
		create procedure set_it(v text) language plpgsql as 'begin perform set_config(''app.it'', v, false); end';
		create function sets_it(v text) returns text language plpgsql as 'begin perform set_config(''app.it'', v, false); return v; end';
		create function writes_and_sets_it(v text) returns text language plpgsql as
			'begin delete from w; perform set_config(''app.it'', v, false); return v; end';
		create operator ?!? (function = writes_and_sets_it, rightarg = text)`)
	if err != nil {
		t.Fatal(err)
	}
	if err := cluster.Server("ord").WaitReplayed(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, db := openDBIn(t, waits(time.Minute, time.Minute)) // a read that falls back because of lag shows nothing of its session
	ctx := t.Context()
	for name, test := range map[string]struct {
		texts []string
		read  string // "a" in the session
	}{
		"call":                      {[]string{"call set_it('a')"}, "select current_setting('app.it', true)"},
		"execute":                   {[]string{"prepare p as select set_config('app.it', 'a', false)", "execute p"}, "select current_setting('app.it', true)"},
		"function":                  {[]string{"select sets_it('a')"}, "select current_setting('app.it', true)"},
		"refused read":              {[]string{"select ?!? 'a'"}, "select current_setting('app.it', true)"},
		"refused read, known":       {[]string{"select ?!? 'b'", "select ?!? 'a'"}, "select current_setting('app.it', true)"},
		"quoted pg_temp":            {[]string{`create table "pg_temp".own as select 'a' as a`}, "select a from own"},
		"select into quoted":        {[]string{`select 'a' as a into "pg_temp".own`}, "select a from own"},
		"quoted pg_temp and a view": {[]string{`create view "pg_temp".own as select 'a' as a`}, "select a from own"},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := db.Conn(ctx)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			for _, text := range test.texts {
				if _, err := c.ExecContext(ctx, text); err != nil {
					t.Fatal(err)
				}
			}
			var got sql.NullString
			if err := c.QueryRowContext(ctx, test.read).Scan(&got); err != nil || got.String != "a" {
				t.Errorf("%q, %v", got.String, err)
			}
			if onStandby(t, ctx, c) {
				t.Error("a read left the session")
			}
			for _, undo := range []string{"discard temp", "reset all"} {
				if _, err := c.ExecContext(ctx, undo); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestSQLConnReadsAfterItsWrites has a sql.Conn, and one that database/sql keeps, write in ways that leave a session as
// it was: reads still go to the replica.
func TestSQLConnReadsAfterItsWrites(t *testing.T) {
	dropInCluster(t)
	pool, db := openDBIn(t, func(c *Config) { c.MaxReplicaWait, c.MinReplicaWait = time.Minute, time.Minute })
	ctx := t.Context()
	c, err := db.Conn(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, text := range []string{"insert into w values (1)", "update w set v = 'y'", "delete from w"} {
		if _, err := c.ExecContext(ctx, text); err != nil {
			t.Error(err)
		}
		if !onStandby(t, ctx, c) {
			t.Errorf("after %q reads do not go to the replica", text)
		}
	}
	db.SetMaxIdleConns(1)
	for _, text := range []string{"insert into w values (1)", "select id from w for update", "select nextval('s')", "delete from w"} {
		if text == "select nextval('s')" {
			if _, err := db.ExecContext(ctx, "create sequence s"); err != nil {
				t.Error(err)
			}
		}
		if _, err := db.ExecContext(ctx, text); err != nil {
			t.Error(err)
		}
		if err := pool.WaitReplayed(ctx); err != nil {
			t.Error(err)
		}
		if !onStandby(t, ctx, db) {
			t.Errorf("after %q on the database reads do not go to the replica", text)
		}
	}
	db.SetMaxIdleConns(0)
}

// TestSQLFallbacksLeaveRoom has reads through database/sql fall back, more than half of the primary's connections can
// serve, and hold them. A write still gets one.
func TestSQLFallbacksLeaveRoom(t *testing.T) {
	cluster := batchCluster(t)
	for _, idle := range []string{"rows", "conns"} {
		t.Run(idle, func(t *testing.T) {
			const conns = 4
			pool, db := openDBIn(t, func(c *Config) {
				c.MaxConns, c.MaxReplicaWait, c.MinReplicaWait = conns, 5*time.Millisecond, time.Millisecond
			})
			ctx := t.Context()
			if err := pool.Ping(ctx); err != nil {
				t.Fatal(err)
			}
			thaw := freeze(t, cluster)
			defer thaw()
			if _, err := db.ExecContext(ctx, "insert into w select coalesce(max(id), 0) + 1 from w"); err != nil {
				t.Fatal(err)
			}
			// As many reads as there are places hold their rows, or their sql.Conn, open.
			for range conns / 2 {
				if idle == "rows" {
					rows, err := db.QueryContext(ctx, "select i, repeat('x', 1000) from generate_series(1, 100000) i")
					if err != nil {
						t.Fatal(err)
					}
					defer rows.Close()
					rows.Next()
				} else {
					c, err := db.Conn(ctx)
					if err != nil {
						t.Fatal(err)
					}
					defer c.Close()
					if onStandby(t, ctx, c) {
						t.Fatal("the replica serves")
					}
				}
			}
			if idle == "rows" {
				if n := len(pool.primary.fallbacks); n != conns/2 {
					t.Errorf("%d reads have a place among the fallbacks", n)
				}
			} else if n := pool.Primary().Stat().AcquiredConns(); n != 0 {
				t.Errorf("reads that have ended hold %d connections to the primary", n)
			}
		})
	}
}

// TestSQLSpans looks at the spans of statements that run on the primary: one each, which ends with the rows.
func TestSQLSpans(t *testing.T) {
	cluster := batchCluster(t)
	if err := cluster.Server("ord").WaitReplayed(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		run  func(ctx context.Context, db *sql.DB, ended func() bool) error
		want int
	}{
		"rows": {func(ctx context.Context, db *sql.DB, ended func() bool) error {
			rows, err := db.QueryContext(ctx, "insert into w select generate_series(1, 3) returning id")
			if err != nil {
				return err
			}
			for range 3 {
				if !rows.Next() || ended() {
					return fmt.Errorf("the span has ended before its rows: %w", rows.Err())
				}
			}
			return rows.Close()
		}, 1},
		"fallback": {func(ctx context.Context, db *sql.DB, ended func() bool) error {
			rows, err := db.QueryContext(ctx, "select id from unlogged")
			if err != nil {
				return err
			}
			if !rows.Next() || ended() {
				return fmt.Errorf("the span has ended before its rows: %w", rows.Err())
			}
			return rows.Close()
		}, 1},
		"prepared": {func(ctx context.Context, db *sql.DB, ended func() bool) error {
			c, err := db.Conn(ctx)
			if err != nil {
				return err
			}
			defer c.Close()
			stmt, err := c.PrepareContext(ctx, "delete from w where id = $1")
			if err != nil {
				return err
			}
			defer stmt.Close()
			_, err = stmt.ExecContext(ctx, 5)
			return err
		}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			if err := cluster.Leader().Exec(t.Context(), "delete from dropin.w"); err != nil {
				t.Fatal(err)
			}
			telemetry := record(t)
			_, db := openDBIn(t, telemetry.into)
			ended := func() bool { return len(telemetry.named(spanForward)) > 0 }
			if err := test.run(t.Context(), db, ended); err != nil {
				t.Error(err)
			}
			if n := len(telemetry.named(spanForward)); n != test.want {
				t.Errorf("%d spans", n)
			}
		})
	}
}

// TestSQLRemembersRefusals reads through database/sql what writes behind its first row: the second try works.
func TestSQLRemembersRefusals(t *testing.T) {
	cluster := batchCluster(t)
	pool, db := openDBIn(t)
	ctx := t.Context()
	for i, read := range []func(*sql.Rows) error{
		func(rows *sql.Rows) error {
			for rows.Next() {
			}
			return rows.Err()
		},
		func(rows *sql.Rows) error { return rows.Close() },
	} {
		// Many rows, so that the first of them is there long before the refusal.
		text := fmt.Sprintf("select case when i > 20000 then !!!i else i end as s%d from generate_series(1, 20001) i", i)
		var err error
		for range 2 {
			if err := cluster.Leader().Exec(ctx, "delete from dropin.w"); err != nil {
				t.Fatal(err)
			}
			if err := pool.WaitReplayed(ctx); err != nil {
				t.Fatal(err)
			}
			var rows *sql.Rows
			if rows, err = db.QueryContext(ctx, text); err == nil {
				err = read(rows)
				_ = rows.Close()
			}
		}
		if err != nil {
			t.Errorf("reader %d: the second try: %v", i, err)
		}
	}
}

// TestSQLPanics has the encoding of arguments panic under database/sql. No connection of the pool is lost. A panic of a
// Scanner is not among them: database/sql holds a lock then that its own Close waits for.
func TestSQLPanics(t *testing.T) {
	batchCluster(t)
	for _, query := range []string{fiveSQL, "select id from unlogged", "insert into w values (1) on conflict do nothing returning id"} {
		for name, run := range map[string]func(ctx context.Context, db *sql.DB){
			"argument of exec": func(ctx context.Context, db *sql.DB) {
				_, _ = db.ExecContext(ctx, query+" -- $1", panickingArgument{})
			},
			"argument of a read": func(ctx context.Context, db *sql.DB) {
				_, _ = db.QueryContext(ctx, "select $1::text", panickingArgument{})
			},
			"argument of a write": func(ctx context.Context, db *sql.DB) {
				_, _ = db.QueryContext(ctx, "insert into w values ($1) returning id", panickingArgument{})
			},
			"argument in a transaction": func(ctx context.Context, db *sql.DB) {
				tx, err := db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
				if err != nil {
					t.Error(err)
				}
				defer tx.Rollback()
				_, _ = tx.ExecContext(ctx, "select $1::text", panickingArgument{})
			},
		} {
			t.Run(name+" "+query, func(t *testing.T) {
				pool, db := openDBIn(t)
				func() {
					defer func() { _ = recover() }()
					run(t.Context(), db)
				}()
				eventually(t, "no connection is in use", func() bool { return pool.Stat().AcquiredConns() == 0 })
				if n := len(pool.primary.fallbacks); n != 0 {
					t.Errorf("%d places among the fallbacks are taken", n)
				}
			})
		}
	}
}

// TestSQLTxStatements prepares statements in read-only transactions, which database/sql closes behind the commit, while
// another reader waits for the only connection to the replica.
func TestSQLTxStatements(t *testing.T) {
	dropInCluster(t)
	pool, db := openDBIn(t, func(c *Config) { c.MaxConns, c.MaxReplicaWait = 1, time.Minute })
	ctx := t.Context()
	stop := make(chan struct{})
	var reader sync.WaitGroup
	reader.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if n := 0; pool.QueryRow(ctx, fiveSQL).Scan(&n) != nil || n != 1 {
				t.Errorf("a read gives %d", n)
			}
		}
	})
	for i := range 200 {
		tx, err := db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		stmt, err := tx.PrepareContext(ctx, fmt.Sprintf("select $1::int + %d", i))
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		if err := stmt.QueryRowContext(ctx, 1).Scan(&n); err != nil || n != i+1 {
			t.Errorf("%d, %v", n, err)
		}
		end := tx.Commit
		if i%2 == 1 {
			end = tx.Rollback
		}
		if err := end(); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	reader.Wait()
	left := 0
	if err := pool.Replica().QueryRow(ctx, "select count(*) from pg_prepared_statements where statement like 'select $1::int + %'").Scan(&left); err != nil || left != 0 {
		t.Errorf("%d statements are left on the replica's connection, %v", left, err)
	}
}

// TestSQLTxOfAnotherStatement uses statements of the database in read-only transactions, and afterwards, on a connection
// that database/sql keeps.
func TestSQLTxOfAnotherStatement(t *testing.T) {
	cluster := dropInCluster(t)
	pool, db := openDBIn(t)
	db.SetMaxIdleConns(1)
	db.SetMaxOpenConns(1)
	ctx := t.Context()
	read, err := db.PrepareContext(ctx, "select count(*) from w where id > $1")
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	write, err := db.PrepareContext(ctx, "insert into w values ($1)")
	if err != nil {
		t.Fatal(err)
	}
	defer write.Close()

	tx, err := db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	n := -1
	if err := tx.StmtContext(ctx, read).QueryRowContext(ctx, 0).Scan(&n); err != nil || n != 0 {
		t.Errorf("%d, %v", n, err)
	}
	if _, err := tx.StmtContext(ctx, write).ExecContext(ctx, 1); err == nil || sqlState(err) != "25006" {
		t.Errorf("a write in a read-only transaction: %v", err)
	}
	if err := tx.Rollback(); err != nil {
		t.Error(err)
	}
	if err := pool.QueryRow(ctx, "select count(*) from w").Scan(&n); err != nil || n != 0 {
		t.Errorf("the transaction wrote %d rows, %v", n, err)
	}

	// The statement of the transaction was not the database's.
	thaw := freeze(t, cluster)
	defer thaw()
	if _, err := write.ExecContext(ctx, 2); err != nil {
		t.Error(err)
	}
	if err := read.QueryRowContext(ctx, 0).Scan(&n); err != nil || n != 1 {
		t.Errorf("the read behind the write sees %d rows, %v", n, err)
	}
}

// TestSQLReadOnlyTxBeginsWhereItBelongs has read-only transactions of database/sql begin with what only the primary can
// answer. What follows runs in the same place.
func TestSQLReadOnlyTxBeginsWhereItBelongs(t *testing.T) {
	cluster := batchCluster(t)
	if err := cluster.Server("ord").WaitReplayed(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	scan := func(row *sql.Row) error { return row.Scan(new(any)) }
	for how, run := range map[string]func(tx *sql.Tx, text string) error{
		"exec": func(tx *sql.Tx, text string) error {
			_, err := tx.ExecContext(ctx, text)
			return err
		},
		"query row": func(tx *sql.Tx, text string) error { return scan(tx.QueryRowContext(ctx, text)) },
		"prepared": func(tx *sql.Tx, text string) error {
			stmt, err := tx.PrepareContext(ctx, text)
			if err != nil {
				return err
			}
			return scan(stmt.QueryRowContext(ctx))
		},
	} {
		for text, want := range map[string]bool{ // on the standby
			"select pg_try_advisory_xact_lock(4714)":          false,
			"select pg_notify('c', 'x')":                      false,
			"select txid_current()":                           false,
			"select id from unlogged":                         false,
			"select 1":                                        true,
			"select set_config('app.tenant', 'x', true)":      true,
			"select current_setting('transaction_read_only')": true,
		} {
			t.Run(how+" "+text, func(t *testing.T) {
				pool, db := openDBIn(t)
				for _, options := range []*sql.TxOptions{{ReadOnly: true}, {ReadOnly: true, Isolation: sql.LevelRepeatableRead}} {
					tx, err := db.BeginTx(ctx, options)
					if err != nil {
						t.Fatal(err)
					}
					if err := run(tx, text); err != nil {
						t.Error(err)
					}
					if text != "select current_setting('transaction_read_only')" && onStandby(t, ctx, tx) != want {
						t.Errorf("on the standby: %t", !want)
					}
					var readOnly bool
					if err := tx.QueryRowContext(ctx, "select current_setting('transaction_' || 'read_only') = 'on'").Scan(&readOnly); err != nil || !readOnly {
						t.Errorf("read-only: %t, %v", readOnly, err)
					}
					if err := tx.Commit(); err != nil {
						t.Error(err)
					}
				}
				eventually(t, "no connection is in use", func() bool { return pool.Stat().AcquiredConns() == 0 })
			})
		}
	}
}

// TestSQLTxLeftOpen ends transactions with rows open, by their context, or with their sql.Conn. Nothing is left.
func TestSQLTxLeftOpen(t *testing.T) {
	dropInCluster(t)
	for _, readOnly := range []bool{true, false} {
		for name, run := range map[string]func(ctx context.Context, cancel func(), db *sql.DB, tx *sql.Tx){
			"rows at the commit": func(ctx context.Context, _ func(), _ *sql.DB, tx *sql.Tx) {
				rows, err := tx.QueryContext(ctx, "select i, repeat('x', 1000) from generate_series(1, 100000) i")
				if err != nil {
					t.Error(err)
				}
				rows.Next()
				if err := tx.Commit(); err != nil {
					t.Error(err)
				}
			},
			"context": func(ctx context.Context, cancel func(), _ *sql.DB, tx *sql.Tx) {
				stmt, err := tx.PrepareContext(ctx, "select 1")
				if err != nil {
					t.Error(err)
				}
				rows, err := stmt.QueryContext(ctx)
				if err != nil {
					t.Error(err)
				}
				rows.Next()
				cancel()
			},
			"context before the first statement": func(_ context.Context, cancel func(), _ *sql.DB, _ *sql.Tx) { cancel() },
		} {
			t.Run(fmt.Sprintf("%s, read-only %t", name, readOnly), func(t *testing.T) {
				pool, db := openDBIn(t)
				for _, begin := range []string{"database", "conn"} {
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					options := &sql.TxOptions{ReadOnly: readOnly}
					var tx *sql.Tx
					var err error
					closeConn := func() error { return nil }
					if begin == "conn" {
						c, err := db.Conn(t.Context())
						if err != nil {
							t.Fatal(err)
						}
						closeConn = c.Close
						if tx, err = c.BeginTx(ctx, options); err != nil {
							t.Fatal(err)
						}
					} else if tx, err = db.BeginTx(ctx, options); err != nil {
						t.Fatal(err)
					}
					run(ctx, cancel, db, tx)
					_ = closeConn()
					eventually(t, "no connection is in use", func() bool { return pool.Stat().AcquiredConns() == 0 && db.Stats().InUse == 0 })
				}
			})
		}
	}
}

// answerless is a network connection that breaks with the answer to an insert, once.
type answerless struct {
	net.Conn
	armed  *atomic.Bool
	breaks bool
}

func (c *answerless) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte("insert into")) && c.armed.CompareAndSwap(true, false) {
		c.breaks = true
	}
	return c.Conn.Write(p)
}

func (c *answerless) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.breaks {
		return 0, io.EOF
	}
	return n, err
}

// TestSQLLostAnswer has the connection break when the primary has run a write. database/sql must not send the write again,
// although pgx says of a simple query that it is safe to.
func TestSQLLostAnswer(t *testing.T) {
	t.Parallel()
	cluster := sharedCluster(t)
	var armed atomic.Bool
	pool := poolIn(t, cluster, "ord", wrapConns(func(conn net.Conn) net.Conn { return &answerless{Conn: conn, armed: &armed} }))
	name := table(t, cluster, "id int, v text")
	db := OpenDB(pool)
	defer db.Close()
	for i, write := range []func(sql string) error{
		func(sql string) error {
			_, err := db.Exec(sql)
			return err
		},
		func(sql string) error {
			rows, err := db.Query(sql+" returning id", pgx.QueryExecModeSimpleProtocol)
			if err == nil {
				err = errors.Join(rows.Err(), rows.Close())
			}
			return err
		},
	} {
		armed.Store(true)
		if err := write(insertText(name, i)); err == nil || errors.Is(err, driver.ErrBadConn) {
			t.Errorf("the error is %v", err)
		}
		var n int
		if err := queryOne(t.Context(), cluster.Leader(), fmt.Sprintf("select count(*) from %s where id = %d", name, i), &n); err != nil || n != 1 {
			t.Errorf("it was written %d times: %v", n, err)
		}
	}
}
