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
	"github.com/jackc/pgx/v5/pgxpool"
)

// writePath is one of the ways in which an app may write a row with an id to a table (id int, v text).
type writePath struct {
	name  string
	write func(ctx context.Context, p *Pool, table string, id int) error
}

func execMode(mode pgx.QueryExecMode) writePath {
	return writePath{"exec mode " + mode.String(), func(ctx context.Context, p *Pool, table string, id int) error {
		_, err := p.Exec(ctx, insertSQL(table), mode, id)
		return err
	}}
}

type betweenKey struct{}

// readBetween reads through the pool, as another goroutine may at any time. In a context with a function under
// betweenKey it calls that afterwards.
func readBetween(ctx context.Context, p *Pool, table string) error {
	var n int
	if err := p.QueryRow(ctx, "select count(*) from "+table).Scan(&n); err != nil {
		return err
	}
	if f, ok := ctx.Value(betweenKey{}).(func() error); ok {
		return f()
	}
	return nil
}

// leftOpen is onConn for an f that leaves a transaction open, which is open while the pool is read.
func leftOpen(p *Pool, ctx context.Context, f func(*pgxpool.Conn) error) error {
	c, err := p.Acquire(ctx)
	if err != nil {
		return err
	}
	err = f(c)
	time.AfterFunc(200*time.Millisecond, func() {
		_, _ = c.Exec(context.Background(), "rollback")
		c.Release()
	})
	return err
}

// writePaths are those that need nothing in the database but the table.
var writePaths = []writePath{
	{"exec", func(ctx context.Context, p *Pool, table string, id int) error {
		_, err := p.Exec(ctx, insertSQL(table), id)
		return err
	}},
	execMode(pgx.QueryExecModeCacheStatement),
	execMode(pgx.QueryExecModeCacheDescribe),
	execMode(pgx.QueryExecModeDescribeExec),
	execMode(pgx.QueryExecModeExec),
	execMode(pgx.QueryExecModeSimpleProtocol),
	{"exec of several statements", func(ctx context.Context, p *Pool, table string, id int) error {
		return execs(ctx, p, "select 1; "+insertText(table, id)+"; select 2")
	}},
	{"exec of a transaction in one text", func(ctx context.Context, p *Pool, table string, id int) error {
		return execs(ctx, p, "begin; "+insertText(table, id)+"; commit")
	}},
	{"exec with a failure after a commit", func(ctx context.Context, p *Pool, table string, id int) error {
		if err := execs(ctx, p, "begin; "+insertText(table, id)+"; commit; select 1/0"); err == nil {
			return errors.New("no error")
		}
		return nil
	}},
	{"exec of do", func(ctx context.Context, p *Pool, table string, id int) error {
		return execs(ctx, p, "do $$ begin "+insertText(table, id)+"; end $$")
	}},
	{"exec of with", func(ctx context.Context, p *Pool, table string, id int) error {
		return execs(ctx, p, "with i as ("+insertText(table, id)+" returning id) select * from i")
	}},
	{"query returning", func(ctx context.Context, p *Pool, table string, id int) error {
		rows, err := p.Query(ctx, insertSQL(table)+" returning id", id)
		if err != nil {
			return err
		}
		_, err = pgx.CollectExactlyOneRow(rows, pgx.RowTo[int])
		return err
	}},
	{"query closed unread", func(ctx context.Context, p *Pool, table string, id int) error {
		rows, err := p.Query(ctx, insertSQL(table)+" returning id", id)
		if err != nil {
			return err
		}
		rows.Close()
		return rows.Err()
	}},
	{"query row returning", func(ctx context.Context, p *Pool, table string, id int) error {
		return p.QueryRow(ctx, insertSQL(table)+" returning id", id).Scan(&id)
	}},
	{"begin and commit", func(ctx context.Context, p *Pool, table string, id int) error {
		tx, err := p.Begin(ctx)
		if err != nil {
			return err
		}
		defer tx.Rollback(ctx)
		if _, err := tx.Exec(ctx, insertSQL(table), id); err != nil {
			return err
		}
		return tx.Commit(ctx)
	}},
	{"serializable", func(ctx context.Context, p *Pool, table string, id int) error {
		return pgx.BeginTxFunc(ctx, p, pgx.TxOptions{IsoLevel: pgx.Serializable}, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, insertSQL(table), id)
			return err
		})
	}},
	{"begin func", func(ctx context.Context, p *Pool, table string, id int) error {
		return pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error {
			return tx.QueryRow(ctx, insertSQL(table)+" returning id", id).Scan(&id)
		})
	}},
	{"nested transactions", func(ctx context.Context, p *Pool, table string, id int) error {
		return pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error {
			undone := errors.New("undone")
			err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
				return errors.Join(undone, execs(ctx, tx, insertText(table, -id)))
			})
			if !errors.Is(err, undone) {
				return err
			}
			return pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return execs(ctx, tx, insertText(table, id)) })
		})
	}},
	{"transaction with a copy", func(ctx context.Context, p *Pool, table string, id int) error {
		return pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error {
			_, err := tx.CopyFrom(ctx, pgx.Identifier{table}, []string{"id"}, pgx.CopyFromRows([][]any{{id}}))
			return err
		})
	}},
	{"transaction with a batch", func(ctx context.Context, p *Pool, table string, id int) error {
		return pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error {
			return tx.SendBatch(ctx, batchOf("select 1", insertText(table, id))).Close()
		})
	}},
	{"transaction read in between", func(ctx context.Context, p *Pool, table string, id int) error {
		return pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error {
			return errors.Join(execs(ctx, tx, insertText(table, id), "select 1"), readBetween(ctx, p, table))
		})
	}},
	{"begin query", func(ctx context.Context, p *Pool, table string, id int) error {
		return pgx.BeginTxFunc(ctx, p, pgx.TxOptions{BeginQuery: "begin; " + insertText(table, id), CommitQuery: "commit"},
			func(pgx.Tx) error { return nil })
	}},
	{"batch", func(ctx context.Context, p *Pool, table string, id int) error {
		b := batchOf("select 1")
		b.Queue(insertSQL(table), id)
		return p.SendBatch(ctx, b).Close()
	}},
	{"batch read one by one", func(ctx context.Context, p *Pool, table string, id int) error {
		b := &pgx.Batch{}
		b.Queue(insertSQL(table)+" returning id", id)
		b.Queue("select 7")
		results := p.SendBatch(ctx, b)
		var got, seven int
		return errors.Join(results.QueryRow().Scan(&got), results.QueryRow().Scan(&seven), results.Close())
	}},
	{"batch with begin and commit", func(ctx context.Context, p *Pool, table string, id int) error {
		return p.SendBatch(ctx, batchOf("begin", insertText(table, id), "commit")).Close()
	}},
	{"batch that fails after its commit", func(ctx context.Context, p *Pool, table string, id int) error {
		if err := p.SendBatch(ctx, batchOf("begin", insertText(table, id), "commit", "select 1/0")).Close(); err == nil {
			return errors.New("no error")
		}
		return nil
	}},
	{"batch with begin tx", func(ctx context.Context, p *Pool, table string, id int) error {
		b := &pgx.Batch{}
		b.BeginTx(pgx.TxOptions{})
		b.Queue(insertSQL(table), id)
		results := p.SendBatch(ctx, b)
		defer results.Tx().Rollback(ctx)
		if err := results.Close(); err != nil {
			return err
		}
		return results.Tx().Commit(ctx)
	}},
	{"batch with begin tx and a commit in it", func(ctx context.Context, p *Pool, table string, id int) error {
		b := &pgx.Batch{}
		b.BeginTx(pgx.TxOptions{})
		b.Queue(insertText(table, id))
		b.Queue("commit")
		results := p.SendBatch(ctx, b)
		err := results.Close()
		_ = results.Tx().Rollback(ctx)
		return err
	}},
	{"batch of a thousand", func(ctx context.Context, p *Pool, table string, id int) error {
		b := &pgx.Batch{}
		for range 1000 {
			b.Queue("select $1::text", strings.Repeat("y", 100))
		}
		b.Queue(insertSQL(table), id)
		return p.SendBatch(ctx, b).Close()
	}},
	{"copy from", func(ctx context.Context, p *Pool, table string, id int) error {
		_, err := p.CopyFrom(ctx, pgx.Identifier{table}, []string{"id", "v"}, pgx.CopyFromRows([][]any{{id, "x"}}))
		return err
	}},
	{"large copy from", func(ctx context.Context, p *Pool, table string, id int) error {
		rows := make([][]any, 20)
		for i := range rows {
			rows[i] = []any{id*100 + i + 1_000_000, strings.Repeat("z", 10_000)}
		}
		rows[10][0] = id
		_, err := p.CopyFrom(ctx, pgx.Identifier{table}, []string{"id", "v"}, pgx.CopyFromRows(rows))
		return err
	}},
	{"acquired exec", func(ctx context.Context, p *Pool, table string, id int) error {
		return onConn(p, ctx, func(c *pgxpool.Conn) error {
			_, err := c.Exec(ctx, insertSQL(table), id)
			return err
		})
	}},
	{"acquired begin", func(ctx context.Context, p *Pool, table string, id int) error {
		return onConn(p, ctx, func(c *pgxpool.Conn) error {
			return pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error { return execs(ctx, tx, insertText(table, id)) })
		})
	}},
	{"acquired batch", func(ctx context.Context, p *Pool, table string, id int) error {
		return onConn(p, ctx, func(c *pgxpool.Conn) error {
			return c.SendBatch(ctx, batchOf(insertText(table, id))).Close()
		})
	}},
	{"acquired copy from", func(ctx context.Context, p *Pool, table string, id int) error {
		return onConn(p, ctx, func(c *pgxpool.Conn) error {
			_, err := c.CopyFrom(ctx, pgx.Identifier{table}, []string{"id"}, pgx.CopyFromRows([][]any{{id}}))
			return err
		})
	}},
	{"acquired and read before the release", func(ctx context.Context, p *Pool, table string, id int) error {
		c, err := p.Acquire(ctx)
		if err != nil {
			return err
		}
		err = execs(ctx, c, insertText(table, id))
		time.AfterFunc(20*time.Millisecond, c.Release)
		return err
	}},
	{"hijacked", func(ctx context.Context, p *Pool, table string, id int) error {
		c, err := p.Acquire(ctx)
		if err != nil {
			return err
		}
		own := c.Hijack()
		return errors.Join(execs(ctx, own, insertText(table, id)), own.Close(ctx))
	}},
	{"acquired prepared by name", func(ctx context.Context, p *Pool, table string, id int) error {
		return onConn(p, ctx, func(c *pgxpool.Conn) error {
			if _, err := c.Conn().Prepare(ctx, "ins_"+table, insertSQL(table)); err != nil {
				return err
			}
			_, err := c.Exec(ctx, "ins_"+table, id)
			return err
		})
	}},
	{"acquired commit prepared by name", func(ctx context.Context, p *Pool, table string, id int) error {
		return onConn(p, ctx, func(c *pgxpool.Conn) error {
			if _, err := c.Conn().Prepare(ctx, "finish", "commit"); err != nil {
				return err
			}
			return execs(ctx, c, "begin", insertText(table, id), "finish")
		})
	}},
	{"acquired prepare and execute", func(ctx context.Context, p *Pool, table string, id int) error {
		return onConn(p, ctx, func(c *pgxpool.Conn) error {
			return execs(ctx, c, "prepare p_"+table+" as "+insertText(table, id), "execute p_"+table, "deallocate p_"+table)
		})
	}},
	{"acquired begin and commit texts", func(ctx context.Context, p *Pool, table string, id int) error {
		return onConn(p, ctx, func(c *pgxpool.Conn) error {
			return execs(ctx, c, "begin", insertText(table, id), "commit")
		})
	}},
	{"acquired start transaction and end", func(ctx context.Context, p *Pool, table string, id int) error {
		return onConn(p, ctx, func(c *pgxpool.Conn) error {
			return execs(ctx, c, "start transaction; "+insertText(table, id), "select 1", "/* done */ end")
		})
	}},
	{"acquired commit and chain", func(ctx context.Context, p *Pool, table string, id int) error {
		return leftOpen(p, ctx, func(c *pgxpool.Conn) error {
			return execs(ctx, c, "begin", insertText(table, id), "commit and chain")
		})
	}},
	{"acquired commit and chain prepared by name", func(ctx context.Context, p *Pool, table string, id int) error {
		return leftOpen(p, ctx, func(c *pgxpool.Conn) error {
			if _, err := c.Conn().Prepare(ctx, "go_on", "commit and chain"); err != nil {
				return err
			}
			return execs(ctx, c, "begin", insertText(table, id), "go_on")
		})
	}},
	{"acquired commit and begin in one text", func(ctx context.Context, p *Pool, table string, id int) error {
		return leftOpen(p, ctx, func(c *pgxpool.Conn) error {
			return execs(ctx, c, "begin", insertText(table, id), "commit; begin")
		})
	}},
	{"acquired statement and begin in one text", func(ctx context.Context, p *Pool, table string, id int) error {
		return leftOpen(p, ctx, func(c *pgxpool.Conn) error {
			return execs(ctx, c, "begin; "+insertText(table, id)+"; commit; begin")
		})
	}},
	{"acquired commit and begin in one batch", func(ctx context.Context, p *Pool, table string, id int) error {
		return leftOpen(p, ctx, func(c *pgxpool.Conn) error {
			return c.SendBatch(ctx, batchOf("begin", insertText(table, id), "commit", "begin")).Close()
		})
	}},
	{"acquired two-phase commit", func(ctx context.Context, p *Pool, table string, id int) error {
		return onConn(p, ctx, func(c *pgxpool.Conn) error {
			gid := fmt.Sprintf("'%s %d'", table, id)
			err := execs(ctx, c, "begin", insertText(table, id), "prepare transaction "+gid)
			return errors.Join(err, readBetween(ctx, p, table), execs(ctx, c, "commit prepared "+gid))
		})
	}},
	{"acquired raw exec", func(ctx context.Context, p *Pool, table string, id int) error {
		return onConn(p, ctx, func(c *pgxpool.Conn) error { return raw(ctx, c, insertText(table, id)) })
	}},
	{"acquired raw exec params", func(ctx context.Context, p *Pool, table string, id int) error {
		return onConn(p, ctx, func(c *pgxpool.Conn) error {
			return c.Conn().PgConn().ExecParams(ctx, insertSQL(table), [][]byte{fmt.Append(nil, id)}, nil, nil, nil).Read().Err
		})
	}},
	{"acquired raw prepared", func(ctx context.Context, p *Pool, table string, id int) error {
		return onConn(p, ctx, func(c *pgxpool.Conn) error {
			raw := c.Conn().PgConn()
			if _, err := raw.Prepare(ctx, "", insertSQL(table), nil); err != nil {
				return err
			}
			return raw.ExecPrepared(ctx, "", [][]byte{fmt.Append(nil, id)}, nil, nil).Read().Err
		})
	}},
	{"acquired raw pipeline", func(ctx context.Context, p *Pool, table string, id int) error {
		return onConn(p, ctx, func(c *pgxpool.Conn) error {
			pipeline := c.Conn().PgConn().StartPipeline(ctx)
			pipeline.SendQueryParams(insertText(table, id), nil, nil, nil, nil)
			if err := pipeline.Sync(); err != nil {
				return err
			}
			pipeline.SendQueryParams("select 1", nil, nil, nil, nil)
			if err := pipeline.Sync(); err != nil {
				return err
			}
			return pipeline.Close()
		})
	}},
	{"acquired raw copy from", func(ctx context.Context, p *Pool, table string, id int) error {
		return onConn(p, ctx, func(c *pgxpool.Conn) error {
			_, err := c.Conn().PgConn().CopyFrom(ctx, strings.NewReader(fmt.Sprintln(id)), "copy "+table+" (id) from stdin")
			return err
		})
	}},
	{"acquired raw transaction", func(ctx context.Context, p *Pool, table string, id int) error {
		return onConn(p, ctx, func(c *pgxpool.Conn) error {
			return errors.Join(raw(ctx, c, "begin", insertText(table, id)), readBetween(ctx, p, table), raw(ctx, c, "commit"))
		})
	}},
	{"acquired raw begin, traced commit", func(ctx context.Context, p *Pool, table string, id int) error {
		return onConn(p, ctx, func(c *pgxpool.Conn) error {
			err := raw(ctx, c, "begin", insertText(table, id))
			return errors.Join(err, readBetween(ctx, p, table), execs(ctx, c, "commit"))
		})
	}},
	{"raw in a transaction", func(ctx context.Context, p *Pool, table string, id int) error {
		return onConn(p, ctx, func(c *pgxpool.Conn) error {
			return pgx.BeginFunc(ctx, c, func(pgx.Tx) error {
				return errors.Join(raw(ctx, c, insertText(table, id)), readBetween(ctx, p, table))
			})
		})
	}},
	{"raw copy in a transaction", func(ctx context.Context, p *Pool, table string, id int) error {
		return pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error {
			_, err := tx.Conn().PgConn().CopyFrom(ctx, strings.NewReader(fmt.Sprintln(id)), "copy "+table+" (id) from stdin")
			return errors.Join(err, readBetween(ctx, p, table))
		})
	}},
	{"transaction committed raw", func(ctx context.Context, p *Pool, table string, id int) error {
		return onConn(p, ctx, func(c *pgxpool.Conn) error {
			err := execs(ctx, c, "begin", insertText(table, id))
			return errors.Join(err, readBetween(ctx, p, table), raw(ctx, c, "commit"))
		})
	}},
	{"primary exec", func(ctx context.Context, p *Pool, table string, id int) error {
		_, err := p.Primary().Exec(ctx, insertSQL(table), id)
		return err
	}},
	{"primary query row", func(ctx context.Context, p *Pool, table string, id int) error {
		return p.Primary().QueryRow(ctx, insertSQL(table)+" returning id", id).Scan(&id)
	}},
	{"primary begin", func(ctx context.Context, p *Pool, table string, id int) error {
		return pgx.BeginFunc(ctx, p.Primary(), func(tx pgx.Tx) error { return execs(ctx, tx, insertText(table, id)) })
	}},
	{"primary batch", func(ctx context.Context, p *Pool, table string, id int) error {
		return p.Primary().SendBatch(ctx, batchOf(insertText(table, id))).Close()
	}},
	{"primary copy", func(ctx context.Context, p *Pool, table string, id int) error {
		_, err := p.Primary().CopyFrom(ctx, pgx.Identifier{table}, []string{"id"}, pgx.CopyFromRows([][]any{{id}}))
		return err
	}},
	{"with primary", func(ctx context.Context, p *Pool, table string, id int) error {
		return execs(WithPrimary(ctx), p, insertText(table, id))
	}},
	{"committed under another context", func(ctx context.Context, p *Pool, table string, id int) error {
		tx, err := p.Begin(ctx)
		if err != nil {
			return err
		}
		defer tx.Rollback(ctx)
		if err := execs(ctx, tx, insertText(table, id)); err != nil {
			return err
		}
		return tx.Commit(context.Background())
	}},
}

// hiddenPaths write through a function, a procedure, a view or a rule, so that their text does not tell. They need what
// hide makes.
var hiddenPaths = []writePath{
	{"function by exec", func(ctx context.Context, p *Pool, table string, id int) error {
		return execs(ctx, p, fmt.Sprintf("select s_%s.f(%d)", table, id))
	}},
	{"function by query row", func(ctx context.Context, p *Pool, table string, id int) error {
		return p.QueryRow(ctx, "select s_"+table+".f($1)", id).Scan(&id)
	}},
	{"function by query row, seen before", func(ctx context.Context, p *Pool, table string, id int) error {
		if err := p.QueryRow(ctx, "select s_"+table+".f($1)", -id).Scan(new(int)); err != nil {
			return err
		}
		return p.QueryRow(ctx, "select s_"+table+".f($1)", id).Scan(&id)
	}},
	{"function by batch", func(ctx context.Context, p *Pool, table string, id int) error {
		return p.SendBatch(ctx, batchOf("select 1", fmt.Sprintf("select s_%s.f(%d)", table, id))).Close()
	}},
	{"function with primary", func(ctx context.Context, p *Pool, table string, id int) error {
		return p.QueryRow(WithPrimary(ctx), "select s_"+table+".f($1)", id).Scan(&id)
	}},
	{"function through primary", func(ctx context.Context, p *Pool, table string, id int) error {
		return p.Primary().QueryRow(ctx, "select s_"+table+".f($1)", id).Scan(&id)
	}},
	{"function with the hint", func(ctx context.Context, p *Pool, table string, id int) error {
		return p.QueryRow(ctx, "/* flyregion:primary */ select s_"+table+".f($1)", id).Scan(&id)
	}},
	{"function acquired", func(ctx context.Context, p *Pool, table string, id int) error {
		return onConn(p, ctx, func(c *pgxpool.Conn) error { return c.QueryRow(ctx, "select s_"+table+".f($1)", id).Scan(&id) })
	}},
	{"function acquired batch", func(ctx context.Context, p *Pool, table string, id int) error {
		return onConn(p, ctx, func(c *pgxpool.Conn) error {
			return c.SendBatch(ctx, batchOf(fmt.Sprintf("select s_%s.f(%d)", table, id))).Close()
		})
	}},
	{"function in a transaction", func(ctx context.Context, p *Pool, table string, id int) error {
		return pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error {
			return tx.QueryRow(ctx, "select s_"+table+".f($1)", id).Scan(&id)
		})
	}},
	{"view in a transaction", func(ctx context.Context, p *Pool, table string, id int) error {
		return pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error {
			return tx.QueryRow(ctx, "select id from s_"+table+".v").Scan(&id)
		})
	}},
	{"view through primary", func(ctx context.Context, p *Pool, table string, id int) error {
		return p.Primary().QueryRow(ctx, "select id from s_"+table+".v").Scan(&id)
	}},
	{"operator in a transaction", func(ctx context.Context, p *Pool, table string, id int) error {
		return pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error {
			return tx.QueryRow(ctx, fmt.Sprintf("select '%d' operator(s_%s.<<<) 0", id, table)).Scan(&id)
		})
	}},
	{"procedure that commits", func(ctx context.Context, p *Pool, table string, id int) error {
		_, err := p.Exec(ctx, "call s_"+table+".p($1)", id)
		return err
	}},
}

// hide makes what the hiddenPaths call.
func hide(t testing.TB, cluster *pgcluster.Cluster, table string) {
	t.Helper()
	err := cluster.Leader().Exec(t.Context(), strings.ReplaceAll(`
		create schema s_T;
		create function s_T.f(i int) returns int language plpgsql as 'begin insert into T (id) values (i); return i; end';
		create function s_T.f(i text, j int) returns int language sql as 'select s_T.f(i::int + j)';
		create operator s_T.<<< (function = s_T.f, leftarg = text, rightarg = int);
		create view s_T.v as select s_T.f(i::int) as id from current_setting('app.id') i;
		create function s_T.hurry() returns text language plpgsql as 'begin set local synchronous_commit = off; return ''x''; end';
		create procedure s_T.p(i int) language plpgsql as 'begin insert into T (id) values (i); commit; perform 1; end';
	`, "T", table))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.Leader().Exec(context.Background(), "drop schema s_"+table+" cascade"); err != nil {
			t.Error(err)
		}
	})
}

// asyncPaths commit without waiting for the flush of the log.
var asyncPaths = []writePath{
	{"set local", func(ctx context.Context, p *Pool, table string, id int) error {
		return pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error {
			return execs(ctx, tx, "set local synchronous_commit = off", insertText(table, id))
		})
	}},
	{"set config", func(ctx context.Context, p *Pool, table string, id int) error {
		return pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error {
			return execs(ctx, tx, "select set_config('synchronous_commit', 'off', true)", insertText(table, id))
		})
	}},
	{"set local in a savepoint", func(ctx context.Context, p *Pool, table string, id int) error {
		return pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error {
			return pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
				return execs(ctx, tx, `set local "synchronous_commit" to 'off'`, insertText(table, id))
			})
		})
	}},
	{"set local in a do", func(ctx context.Context, p *Pool, table string, id int) error {
		return pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error {
			return execs(ctx, tx, insertText(table, id), "do $$ begin set local synchronous_commit = off; end $$")
		})
	}},
	{"set local in a batch", func(ctx context.Context, p *Pool, table string, id int) error {
		return p.SendBatch(ctx, batchOf("begin", "set local synchronous_commit = off", insertText(table, id), "commit")).Close()
	}},
	{"set local in a batch with begin tx", func(ctx context.Context, p *Pool, table string, id int) error {
		b := &pgx.Batch{}
		b.BeginTx(pgx.TxOptions{})
		b.Queue("set local synchronous_commit = off")
		b.Queue(insertText(table, id))
		results := p.SendBatch(ctx, b)
		defer results.Tx().Rollback(ctx)
		if err := results.Close(); err != nil {
			return err
		}
		return results.Tx().Commit(ctx)
	}},
	{"set local in the begin query", func(ctx context.Context, p *Pool, table string, id int) error {
		options := pgx.TxOptions{BeginQuery: "begin; set local synchronous_commit = off", CommitQuery: "commit"}
		return pgx.BeginTxFunc(ctx, p, options, func(tx pgx.Tx) error { return execs(ctx, tx, insertText(table, id)) })
	}},
	{"set local with the begin", func(ctx context.Context, p *Pool, table string, id int) error {
		return onConn(p, ctx, func(c *pgxpool.Conn) error {
			return execs(ctx, c, "begin; set local synchronous_commit = off; "+insertText(table, id), "commit")
		})
	}},
	{"set local in one text", func(ctx context.Context, p *Pool, table string, id int) error {
		return execs(ctx, p, "begin; set local synchronous_commit = off; "+insertText(table, id)+"; commit")
	}},
	{"set and reset in one text", func(ctx context.Context, p *Pool, table string, id int) error {
		return execs(ctx, p, "set synchronous_commit = off", insertText(table, id)+"; reset synchronous_commit")
	}},
	{"set local raw", func(ctx context.Context, p *Pool, table string, id int) error {
		return pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error {
			if _, err := tx.Conn().PgConn().Exec(ctx, "set local synchronous_commit = off").ReadAll(); err != nil {
				return err
			}
			return errors.Join(readBetween(ctx, p, table), execs(ctx, tx, insertText(table, id)))
		})
	}},
	{"set local by a prepared name", func(ctx context.Context, p *Pool, table string, id int) error {
		return pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error {
			if _, err := tx.Prepare(ctx, "hurry", "select set_config('synchronous_commit', 'off', true)"); err != nil {
				return err
			}
			return execs(ctx, tx, "hurry", insertText(table, id))
		})
	}},
	{"hidden in a write", func(ctx context.Context, p *Pool, table string, id int) error {
		_, err := p.Exec(ctx, "insert into "+table+" (id, v) values ($1, s_"+table+".hurry())", id)
		return err
	}},
	{"hidden in a write of a batch", func(ctx context.Context, p *Pool, table string, id int) error {
		b := &pgx.Batch{}
		b.Queue("insert into "+table+" (id, v) values ($1, s_"+table+".hurry())", id)
		b.Queue("select 1")
		return p.SendBatch(ctx, b).Close()
	}},
	{"hidden in a write of a transaction", func(ctx context.Context, p *Pool, table string, id int) error {
		return pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "insert into "+table+" (id, v) values ($1, s_"+table+".hurry())", id)
			return err
		})
	}},
	{"hidden in a read", func(ctx context.Context, p *Pool, table string, id int) error {
		_, err := p.Exec(ctx, "select s_"+table+".f($1), s_"+table+".hurry()", id)
		return err
	}},
	{"session", func(ctx context.Context, p *Pool, table string, id int) error {
		return onConn(p, ctx, func(c *pgxpool.Conn) error {
			return execs(ctx, c, "set synchronous_commit = off", insertText(table, id), "reset synchronous_commit")
		})
	}},
}

// readPath is one of the ways in which an app may read: it counts the rows of a table that have one of the ids.
type readPath struct {
	name string
	read func(ctx context.Context, p *Pool, table string, ids []int) (int, error)
}

func countSQL(table string) string { return "select count(*) from " + table + " where id = any($1)" }

func countInTx(ctx context.Context, p *Pool, options pgx.TxOptions, table string, ids []int) (n int, err error) {
	err = pgx.BeginTxFunc(ctx, p, options, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, countSQL(table), ids).Scan(&n)
	})
	return n, err
}

var readPaths = []readPath{
	{"query row", func(ctx context.Context, p *Pool, table string, ids []int) (n int, err error) {
		return n, p.QueryRow(ctx, countSQL(table), ids).Scan(&n)
	}},
	{"query", func(ctx context.Context, p *Pool, table string, ids []int) (int, error) {
		rows, err := p.Query(ctx, "select id from "+table+" where id = any($1)", ids)
		if err != nil {
			return 0, err
		}
		found, err := pgx.CollectRows(rows, pgx.RowTo[int])
		return len(found), err
	}},
	{"query described", func(ctx context.Context, p *Pool, table string, ids []int) (n int, err error) {
		return n, p.QueryRow(ctx, countSQL(table), pgx.QueryExecModeDescribeExec, ids).Scan(&n)
	}},
	{"query simple", func(ctx context.Context, p *Pool, table string, ids []int) (n int, err error) {
		return n, p.QueryRow(ctx, countSQL(table), pgx.QueryExecModeSimpleProtocol, ids).Scan(&n)
	}},
	{"exec", func(ctx context.Context, p *Pool, table string, ids []int) (int, error) {
		tag, err := p.Exec(ctx, "select id from "+table+" where id = any($1)", ids)
		return int(tag.RowsAffected()), err
	}},
	{"batch", func(ctx context.Context, p *Pool, table string, ids []int) (n int, err error) {
		b := batchOf("select 1")
		b.Queue(countSQL(table), ids).QueryRow(func(row pgx.Row) error { return row.Scan(&n) })
		return n, p.SendBatch(ctx, b).Close()
	}},
	{"read-only transaction", func(ctx context.Context, p *Pool, table string, ids []int) (int, error) {
		return countInTx(ctx, p, pgx.TxOptions{AccessMode: pgx.ReadOnly}, table, ids)
	}},
	{"read-only snapshot", func(ctx context.Context, p *Pool, table string, ids []int) (int, error) {
		return countInTx(ctx, p, pgx.TxOptions{AccessMode: pgx.ReadOnly, IsoLevel: pgx.RepeatableRead}, table, ids)
	}},
	{"serializable transaction", func(ctx context.Context, p *Pool, table string, ids []int) (int, error) {
		return countInTx(ctx, p, pgx.TxOptions{AccessMode: pgx.ReadOnly, IsoLevel: pgx.Serializable}, table, ids)
	}},
	{"with primary", func(ctx context.Context, p *Pool, table string, ids []int) (n int, err error) {
		return n, p.QueryRow(WithPrimary(ctx), countSQL(table), ids).Scan(&n)
	}},
	{"with replica", func(ctx context.Context, p *Pool, table string, ids []int) (n int, err error) {
		return n, p.QueryRow(WithReplica(ctx), countSQL(table), ids).Scan(&n)
	}},
	{"acquired with replica", func(ctx context.Context, p *Pool, table string, ids []int) (n int, err error) {
		return n, p.AcquireFunc(WithReplica(ctx), func(c *pgxpool.Conn) error {
			return c.QueryRow(ctx, countSQL(table), ids).Scan(&n)
		})
	}},
	{"hint", func(ctx context.Context, p *Pool, table string, ids []int) (n int, err error) {
		return n, p.QueryRow(ctx, "/* flyregion:replica */ "+countSQL(table), ids).Scan(&n)
	}},
	{"wait replayed", func(ctx context.Context, p *Pool, table string, ids []int) (n int, err error) {
		if err := p.WaitReplayed(ctx); err != nil {
			return 0, err
		}
		return n, p.Replica().QueryRow(ctx, countSQL(table), ids).Scan(&n)
	}},
}
