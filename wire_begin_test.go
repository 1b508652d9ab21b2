package flyregion

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// TestWireBegin compares transactions, whose BEGIN leaves with the first statement, with pgxpool's.
func TestWireBegin(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	ctx := t.Context()
	level := func(ctx context.Context, tx pgx.Tx) (level string, err error) {
		err = tx.QueryRow(ctx, "select current_setting('transaction_isolation') || current_setting('transaction_read_only') || "+
			"current_setting('transaction_deferrable') || $1::text", "").Scan(&level)
		return level, err
	}
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
		inMode := func(c *Config) { c.ConnConfig.DefaultQueryExecMode = mode }
		size := 1
		if mode == pgx.QueryExecModeExec {
			size = 1 << 20
		}
		theirs := rawPool(t, cluster, "ord", inPieces(size), inMode)
		ours := poolIn(t, cluster, "ord", inPieces(size), inMode).Primary()
		for _, options := range []pgx.TxOptions{
			{},
			{IsoLevel: pgx.Serializable, AccessMode: pgx.ReadOnly, DeferrableMode: pgx.Deferrable},
			{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadWrite},
			{IsoLevel: pgx.ReadUncommitted, DeferrableMode: pgx.NotDeferrable},
			{BeginQuery: "start transaction isolation level serializable"},
		} {
			do := func(p *pgxpool.Pool, f func(tx pgx.Tx) (string, error)) string {
				tx, err := p.BeginTx(ctx, options)
				if err != nil {
					return err.Error()
				}
				defer tx.Rollback(ctx)
				got, err := f(tx)
				return fmt.Sprintf("%s %v %c", got, err, tx.Conn().PgConn().TxStatus())
			}
			for what, f := range map[string]func(tx pgx.Tx) (string, error){
				"level": func(tx pgx.Tx) (string, error) { return level(ctx, tx) },
				"level, simple": func(tx pgx.Tx) (s string, err error) {
					return s, tx.QueryRow(ctx, "show transaction_isolation", pgx.QueryExecModeSimpleProtocol).Scan(&s)
				},
				"set transaction": func(tx pgx.Tx) (string, error) {
					for _, text := range []string{
						"set local lock_timeout = '9s'", "show lock_timeout", "lock table " + name + " in access share mode",
						"set transaction isolation level repeatable read",
					} {
						rows, err := tx.Query(ctx, text) // Exec would use the simple protocol
						if err != nil {
							return text, err
						}
						rows.Close()
						if rows.Err() != nil {
							return text, rows.Err()
						}
					}
					return level(ctx, tx)
				},
				"set transaction by batch": func(tx pgx.Tx) (string, error) {
					for _, text := range []string{"set local lock_timeout = '9s'", "set transaction isolation level repeatable read"} {
						if err := tx.SendBatch(ctx, batchOf(text)).Close(); err != nil {
							return text, err
						}
					}
					return level(ctx, tx)
				},
				"commit": func(tx pgx.Tx) (string, error) { return "", tx.Commit(ctx) },
				"rollback": func(tx pgx.Tx) (string, error) {
					return "", errors.Join(tx.Rollback(ctx), tx.Rollback(ctx))
				},
				"nested": func(tx pgx.Tx) (string, error) {
					return "", pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return execs(ctx, tx, "select 1") })
				},
				"error first": func(tx pgx.Tx) (string, error) {
					_, err := tx.Exec(ctx, "select 1/$1::int", 0)
					var pgErr *pgconn.PgError
					errors.As(err, &pgErr)
					_, next := tx.Exec(ctx, "select $1::int", 1)
					return pgErr.Code, next
				},
				"syntax error first": func(tx pgx.Tx) (string, error) {
					_, err := tx.Exec(ctx, "selectt $1", 0)
					return "", err
				},
				"batch": func(tx pgx.Tx) (string, error) {
					return "", tx.SendBatch(ctx, batchOf("select 1", "select 2")).Close()
				},
				"copy": func(tx pgx.Tx) (string, error) {
					n, err := tx.CopyFrom(ctx, pgx.Identifier{name}, []string{"id"}, pgx.CopyFromRows([][]any{{-1}, {-2}}))
					return fmt.Sprint(n), err
				},
				"raw": func(tx pgx.Tx) (string, error) {
					results, err := tx.Conn().PgConn().Exec(ctx, "select 1; show transaction_isolation").ReadAll()
					if err != nil {
						return "", err
					}
					return string(results[1].Rows[0][0]), nil
				},
				"raw batch": func(tx pgx.Tx) (string, error) {
					b := &pgconn.Batch{}
					b.ExecParams("insert into "+name+" values (-4)", nil, nil, nil, nil)
					b.ExecParams("show transaction_isolation", nil, nil, nil, nil)
					results, err := tx.Conn().PgConn().ExecBatch(ctx, b).ReadAll()
					if err != nil {
						return "", err
					}
					return string(results[1].Rows[0][0]), nil
				},
				"raw params": func(tx pgx.Tx) (string, error) {
					result := tx.Conn().PgConn().ExecParams(ctx, "show transaction_isolation", nil, nil, nil, nil).Read()
					if result.Err != nil {
						return "", result.Err
					}
					return string(result.Rows[0][0]), nil
				},
				"raw copy": func(tx pgx.Tx) (string, error) {
					tag, err := tx.Conn().PgConn().CopyFrom(ctx, strings.NewReader("-3\n"), "copy "+name+" (id) from stdin")
					return tag.String(), err
				},
				"prepare": func(tx pgx.Tx) (string, error) {
					if _, err := tx.Prepare(ctx, "", "select $1::int"); err != nil {
						return "", err
					}
					return level(ctx, tx)
				},
				"ping": func(tx pgx.Tx) (string, error) { return "", tx.Conn().Ping(ctx) },
				"large object": func(tx pgx.Tx) (string, error) {
					los := tx.LargeObjects()
					oid, err := los.Create(ctx, 0)
					if err != nil {
						return "", err
					}
					return "", los.Unlink(ctx, oid)
				},
			} {
				if want, got := do(theirs, f), do(ours, f); want != got {
					t.Errorf("%s in %+v, %v: flyregion %q, pgxpool %q", what, options, mode, got, want)
				}
			}
		}
		for _, pool := range []*pgxpool.Pool{theirs, ours} {
			var n int
			if err := pool.QueryRow(ctx, "select count(*) from "+name).Scan(&n); err != nil || n != 0 {
				t.Errorf("%d rows of transactions that were rolled back, %v", n, err)
			}
			eventually(t, "no connection is in use", func() bool { return pool.Stat().AcquiredConns() == 0 })
		}
	}
}

// spoilConn makes the server refuse the next BEGIN.
type spoilConn struct {
	net.Conn
	spoil *atomic.Bool
}

func (c *spoilConn) Write(p []byte) (int, error) {
	if i := bytes.Index(p, []byte("begin")); i >= 0 && c.spoil.Swap(false) {
		p = bytes.Clone(p)
		copy(p[i:], "spoil")
	}
	return c.Conn.Write(p)
}

// TestWireBeginRefused has the server refuse a BEGIN. Nothing of the transaction may be done, whoever ignores the
// error of its first statement.
func TestWireBeginRefused(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	ctx := t.Context()
	var spoil atomic.Bool
	pool := poolIn(t, cluster, "ord", wrapConns(func(conn net.Conn) net.Conn { return &spoilConn{conn, &spoil} }))
	firsts := map[string]func(tx pgx.Tx) error{
		"exec": func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, insertSQL(name), 1)
			return err
		},
		"exec text":  func(tx pgx.Tx) error { return execs(ctx, tx, insertText(name, 1)) },
		"exec texts": func(tx pgx.Tx) error { return execs(ctx, tx, "select 1; "+insertText(name, 1)+"; select 2") },
		"query row":  func(tx pgx.Tx) error { return tx.QueryRow(ctx, insertSQL(name)+" returning id", 1).Scan(new(int)) },
		"batch":      func(tx pgx.Tx) error { return tx.SendBatch(ctx, batchOf(insertText(name, 1), "select 1")).Close() },
		"copy": func(tx pgx.Tx) error {
			_, err := tx.CopyFrom(ctx, pgx.Identifier{name}, []string{"id"}, pgx.CopyFromRows([][]any{{1}}))
			return err
		},
		"raw copy": func(tx pgx.Tx) error {
			_, err := tx.Conn().PgConn().CopyFrom(ctx, strings.NewReader("1\n"), "copy "+name+" (id) from stdin")
			return err
		},
		"raw batch": func(tx pgx.Tx) error {
			b := &pgconn.Batch{}
			b.ExecParams(insertText(name, 1), nil, nil, nil, nil)
			_, err := tx.Conn().PgConn().ExecBatch(ctx, b).ReadAll()
			return err
		},
		"raw pipeline": func(tx pgx.Tx) error {
			pipeline := tx.Conn().PgConn().StartPipeline(ctx)
			pipeline.SendQueryParams(insertText(name, 1), nil, nil, nil, nil)
			if err := pipeline.Sync(); err != nil {
				return err
			}
			return pipeline.Close()
		},
		"raw pipeline of several syncs": func(tx pgx.Tx) error {
			pipeline := tx.Conn().PgConn().StartPipeline(ctx)
			for range 3 {
				pipeline.SendQueryParams(insertText(name, 1), nil, nil, nil, nil)
				if err := pipeline.Sync(); err != nil {
					return errors.Join(err, pipeline.Close())
				}
			}
			return pipeline.Close()
		},
		"raw pipeline of several syncs in one write": func(tx pgx.Tx) error {
			pipeline := tx.Conn().PgConn().StartPipeline(ctx)
			for range 3 {
				pipeline.SendQueryParams(insertText(name, 1), nil, nil, nil, nil)
				pipeline.SendPipelineSync()
			}
			return errors.Join(pipeline.Flush(), pipeline.Close())
		},
		"raw batch behind a pipeline": func(tx pgx.Tx) error {
			pipeline := tx.Conn().PgConn().StartPipeline(ctx)
			pipeline.SendQueryParams(insertText(name, 1), nil, nil, nil, nil)
			err := errors.Join(pipeline.Sync(), pipeline.Close())
			b := &pgconn.Batch{}
			b.ExecParams(insertText(name, 1), nil, nil, nil, nil)
			_, second := tx.Conn().PgConn().ExecBatch(ctx, b).ReadAll()
			return errors.Join(err, second)
		},
		"savepoint": func(tx pgx.Tx) error {
			return pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return execs(ctx, tx, insertText(name, 1)) })
		},
		"prepare": func(tx pgx.Tx) error {
			_, err := tx.Prepare(ctx, "", insertSQL(name))
			return err
		},
	}
	for what, first := range firsts {
		for range 2 { // prepared the second time
			spoil.Store(true)
			tx, err := pool.Begin(ctx)
			if err == nil {
				err = first(tx)
				_, second := tx.Exec(ctx, insertSQL(name), 2)
				third := execs(ctx, tx, insertText(name, 3))
				if commit := tx.Commit(ctx); commit == nil {
					t.Errorf("%s: the commit of what was never begun succeeds (%v, %v, %v)", what, err, second, third)
				}
			}
			if spoil.Swap(false) {
				t.Fatalf("%s: no BEGIN came by", what)
			}
			if err == nil {
				t.Errorf("%s: no error", what)
			}
			var n int
			if err := pool.QueryRow(WithPrimary(ctx), "select count(*) from "+name).Scan(&n); err != nil || n != 0 {
				t.Errorf("%s: %d rows were written outside of the transaction, %v", what, n, err)
			}
			if err := cluster.Leader().Exec(ctx, "delete from "+name); err != nil {
				t.Fatal(err)
			}
			eventually(t, "no connection is in use after "+what, func() bool { return pool.Stat().AcquiredConns() == 0 })
		}
	}
}
