package flyregion

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// The paths of TestConsistency come in four lists. Entries are rows that are written once and never changed, by the paths
// that the other tests know too; registers are rows that many change at once.

// entryWrites insert a row. Those of the other tests that cannot be left half done are replaced by the ones below.
var entryWrites = slices.Concat(
	without(slices.Concat(writePaths, hiddenPaths, asyncPaths),
		"view",             // is told from a read by nothing, and needs a setting of its own
		"failure", "fails", // take every error for the one that they want
		"acquired prepare and exec", // leaves its name behind
		"set and reset", "session"), // leave connections behind that commit asynchronously
	moreEntryWrites)

func without(paths []writePath, names ...string) []writePath {
	return slices.DeleteFunc(paths, func(path writePath) bool {
		return slices.ContainsFunc(names, func(name string) bool { return strings.Contains(path.name, name) })
	})
}

// commitsAsync reports whether a path's write is lost if the primary crashes a moment after it has returned.
func commitsAsync(path writePath) bool {
	return slices.ContainsFunc(asyncPaths, func(async writePath) bool { return async.name == path.name }) ||
		strings.HasPrefix(path.name, "asynchronous")
}

// seesAsync reports whether a commit that a path hides in a function can be seen to be asynchronous: not in the simple
// protocol, where nothing can be asked in the statement's own transaction.
func seesAsync(p *Pool, path writePath) bool {
	simple := p.config.ConnConfig.DefaultQueryExecMode == pgx.QueryExecModeSimpleProtocol
	return !simple || !strings.HasPrefix(path.name, "hidden in a")
}

// untold reports whether a path's write does not count for the session of its context, but for the pool alone.
func untold(path writePath) bool {
	return strings.Contains(path.name, "raw") || strings.Contains(path.name, "another context")
}

// needsSession reports whether a path needs the same session in several transactions, which a pooler may not give it.
func needsSession(name string) bool {
	return slices.ContainsFunc([]string{"prepared", "prepare", "two-phase", "connection", "setting of the session", "cache statement", "describe exec", "query described"},
		func(part string) bool { return strings.Contains(name, part) })
}

// pathFunctions are the functions that paths call besides those that hide makes.
const pathFunctions = `
	create function s_entries.swallow(i int) returns int language plpgsql as
		'begin insert into entries (id) values (i); return i; exception when others then return -1; end';
	create function s_entries.own(i int) returns int language plpgsql set synchronous_commit = off as
		'begin insert into entries (id) values (i); return i; end';
	create function s_entries.seen(ids int[]) returns bigint stable language plpgsql as
		'begin return (select count(*) from entries where id = any(ids)); end';
	create function s_entries.looks(ids int[]) returns bigint language sql as
		'select count(*) from entries where id = any(ids)';
`

// divided returns nil if a statement divided by zero, and what went wrong if it did not get as far.
func divided(err error) error {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.Code == "22012" {
		return nil
	}
	return errors.Join(errors.New("want a division by zero"), err)
}

// inDB calls f with a sql.DB on the pool.
func inDB(p *Pool, f func(*sql.DB) error) error {
	db := OpenDB(p)
	return errors.Join(f(db), db.Close())
}

func inSQLTx(ctx context.Context, p *Pool, options *sql.TxOptions, f func(*sql.Tx) error) error {
	return inDB(p, func(db *sql.DB) error {
		tx, err := db.BeginTx(ctx, options)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		if err := f(tx); err != nil {
			return err
		}
		return tx.Commit()
	})
}

var moreEntryWrites = []writePath{
	{"function that swallows errors", func(ctx context.Context, p *Pool, table string, id int) error {
		return swallowed(p.QueryRow(ctx, "select s_"+table+".swallow($1)", id).Scan, id)
	}},
	{"function that swallows errors, in a batch", func(ctx context.Context, p *Pool, table string, id int) error {
		b := batchOf("select 1")
		b.Queue("select s_"+table+".swallow($1)", id).QueryRow(func(row pgx.Row) error { return swallowed(row.Scan, id) })
		return p.SendBatch(ctx, b).Close()
	}},
	{"function with a setting of its own", func(ctx context.Context, p *Pool, table string, id int) error {
		return p.QueryRow(ctx, "select s_"+table+".own($1)", id).Scan(new(int))
	}},
	{"sql function that swallows errors", func(ctx context.Context, p *Pool, table string, id int) error {
		return inDB(p, func(db *sql.DB) error {
			return swallowed(db.QueryRowContext(ctx, "select s_"+table+".swallow($1)", id).Scan, id)
		})
	}},
	{"asynchronous connection by set_config", func(ctx context.Context, p *Pool, table string, id int) error {
		return onConn(p, ctx, func(c *pgxpool.Conn) error {
			err := execs(ctx, c, "select set_config('synchronous_commit', 'off', false)", insertText(table, id), "reset synchronous_commit")
			if err != nil {
				_ = c.Conn().Close(context.Background()) // so that nobody else commits asynchronously without knowing
			}
			return err
		})
	}},
	{"asynchronous sql transaction", func(ctx context.Context, p *Pool, table string, id int) error {
		return inSQLTx(ctx, p, nil, func(tx *sql.Tx) error {
			if _, err := tx.ExecContext(ctx, "set local synchronous_commit = off"); err != nil {
				return err
			}
			_, err := tx.ExecContext(ctx, insertSQL(table), id)
			return err
		})
	}},
	{"asynchronous transaction by set_config and a function", func(ctx context.Context, p *Pool, table string, id int) error {
		return pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error {
			if err := execs(ctx, tx, "select set_config('synchronous_commit', 'off', true)"); err != nil {
				return err
			}
			return swallowed(tx.QueryRow(ctx, "select s_"+table+".swallow($1)", id).Scan, id)
		})
	}},
	{"asynchronous copy", func(ctx context.Context, p *Pool, table string, id int) error {
		return pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error {
			if err := execs(ctx, tx, "set local synchronous_commit = off"); err != nil {
				return err
			}
			_, err := tx.CopyFrom(ctx, pgx.Identifier{table}, []string{"id"}, pgx.CopyFromRows([][]any{{id}}))
			return err
		})
	}},
	{"text that divides by zero after its commit", func(ctx context.Context, p *Pool, table string, id int) error {
		return divided(execs(ctx, p, "begin; "+insertText(table, id)+"; commit; select 1/0"))
	}},
	{"batch that divides by zero after its commit", func(ctx context.Context, p *Pool, table string, id int) error {
		return divided(p.SendBatch(ctx, batchOf("begin", insertText(table, id), "commit", "select 1/0")).Close())
	}},
	{"acquired prepare under a new name and execute", func(ctx context.Context, p *Pool, table string, id int) error {
		return onConn(p, ctx, func(c *pgxpool.Conn) error {
			name := fmt.Sprintf("p_%d", id)
			return execs(ctx, c, "prepare "+name+" as "+insertText(table, id), "execute "+name, "deallocate "+name)
		})
	}},
	{"asynchronous connection", func(ctx context.Context, p *Pool, table string, id int) error {
		return onConn(p, ctx, func(c *pgxpool.Conn) error {
			err := execs(ctx, c, "set synchronous_commit = off", insertText(table, id), "reset synchronous_commit")
			if err != nil {
				_ = c.Conn().Close(context.Background()) // so that nobody else commits asynchronously without knowing
			}
			return err
		})
	}},
	{"sql exec", func(ctx context.Context, p *Pool, table string, id int) error {
		return inDB(p, func(db *sql.DB) error {
			_, err := db.ExecContext(ctx, insertSQL(table), id)
			return err
		})
	}},
	{"sql query returning", func(ctx context.Context, p *Pool, table string, id int) error {
		return inDB(p, func(db *sql.DB) error {
			return db.QueryRowContext(ctx, insertSQL(table)+" returning id", id).Scan(&id)
		})
	}},
	{"sql prepared", func(ctx context.Context, p *Pool, table string, id int) error {
		return inDB(p, func(db *sql.DB) error {
			stmt, err := db.PrepareContext(ctx, insertSQL(table))
			if err != nil {
				return err
			}
			defer stmt.Close()
			_, err = stmt.ExecContext(ctx, id)
			return err
		})
	}},
	{"sql function", func(ctx context.Context, p *Pool, table string, id int) error {
		return inDB(p, func(db *sql.DB) error {
			return db.QueryRowContext(ctx, "select s_"+table+".f($1)", id).Scan(&id)
		})
	}},
	{"sql transaction", func(ctx context.Context, p *Pool, table string, id int) error {
		return inSQLTx(ctx, p, nil, func(tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, insertSQL(table), id)
			return err
		})
	}},
	{"sql serializable transaction", func(ctx context.Context, p *Pool, table string, id int) error {
		return inSQLTx(ctx, p, &sql.TxOptions{Isolation: sql.LevelSerializable}, func(tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, insertSQL(table), id)
			return err
		})
	}},
	{"sql acquired begin and commit texts", func(ctx context.Context, p *Pool, table string, id int) error {
		return inDB(p, func(db *sql.DB) error {
			c, err := db.Conn(ctx)
			if err != nil {
				return err
			}
			defer c.Close()
			for _, text := range []string{"begin", insertText(table, id), "commit"} {
				if _, err := c.ExecContext(ctx, text); err != nil {
					return err
				}
			}
			return nil
		})
	}},
}

// errSwallowed is that a function has kept an error to itself and written nothing.
var errSwallowed = errors.New("swallowed")

// swallowed scans what s_entries.swallow has returned for an id.
func swallowed(scan func(...any) error, id int) error {
	var n int
	if err := scan(&n); err != nil {
		return err
	}
	if n != id {
		return errSwallowed
	}
	return nil
}

// seesAll follows a condition and is true in a session with the setting that paths make.
const seesAll = " and current_setting('app.sees', true) = 'all'"

// entryReads count rows.
var entryReads = slices.Concat(readPaths, []readPath{
	{"stable function", func(ctx context.Context, p *Pool, table string, ids []int) (n int, err error) {
		return n, p.QueryRow(ctx, "select s_"+table+".seen($1)", ids).Scan(&n)
	}},
	{"volatile function", func(ctx context.Context, p *Pool, table string, ids []int) (n int, err error) {
		return n, p.QueryRow(ctx, "select s_"+table+".looks($1)", ids).Scan(&n)
	}},
	{"read-only transaction with a setting", func(ctx context.Context, p *Pool, table string, ids []int) (n int, err error) {
		return n, pgx.BeginTxFunc(ctx, p, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
			if err := execs(ctx, tx, "select set_config('app.sees', 'all', true)"); err != nil {
				return err
			}
			return tx.QueryRow(ctx, countSQL(table)+seesAll, ids).Scan(&n)
		})
	}},
	{"transaction with a setting", func(ctx context.Context, p *Pool, table string, ids []int) (n int, err error) {
		return n, pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error {
			if err := execs(ctx, tx, "set local app.sees = 'all'"); err != nil {
				return err
			}
			return tx.QueryRow(ctx, countSQL(table)+seesAll, ids).Scan(&n)
		})
	}},
	{"acquired with a setting of the session", func(ctx context.Context, p *Pool, table string, ids []int) (n int, err error) {
		return n, onConn(p, ctx, func(c *pgxpool.Conn) error {
			if err := execs(ctx, c, "select set_config('app.sees', 'all', false)"); err != nil {
				return err
			}
			return errors.Join(c.QueryRow(ctx, countSQL(table)+seesAll, ids).Scan(&n), execs(ctx, c, "reset app.sees"))
		})
	}},
	{"sql acquired with a setting of the session", func(ctx context.Context, p *Pool, table string, ids []int) (n int, err error) {
		return n, inDB(p, func(db *sql.DB) error {
			c, err := db.Conn(ctx)
			if err != nil {
				return err
			}
			defer c.Close()
			if _, err := c.ExecContext(ctx, "set app.sees = 'all'"); err != nil {
				return err
			}
			err = c.QueryRowContext(ctx, countSQL(table)+seesAll, ids).Scan(&n)
			_, resetErr := c.ExecContext(ctx, "reset app.sees")
			return errors.Join(err, resetErr)
		})
	}},
	{"slow query row", func(ctx context.Context, p *Pool, table string, ids []int) (n int, err error) {
		return n, p.QueryRow(ctx, "select count(*) from "+table+", (select pg_sleep(0.03)) s where id = any($1)", ids).Scan(&n)
	}},
	{"copy to from the replica", func(ctx context.Context, p *Pool, table string, ids []int) (n int, err error) {
		list := strings.Trim(strings.ReplaceAll(fmt.Sprint(ids), " ", ","), "[]")
		return n, p.AcquireFunc(WithReplica(ctx), func(c *pgxpool.Conn) (err error) {
			var out bytes.Buffer
			copied := "copy (select count(*) from " + table + " where id = any('{" + list + "}')) to stdout"
			if _, err = c.Conn().PgConn().CopyTo(ctx, &out, copied); err == nil {
				n, err = strconv.Atoi(strings.TrimSpace(out.String()))
			}
			return err
		})
	}},
	{"sql query", func(ctx context.Context, p *Pool, table string, ids []int) (n int, err error) {
		return n, inDB(p, func(db *sql.DB) error {
			rows, err := db.QueryContext(ctx, "select id from "+table+" where id = any($1)", ids)
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
				n++
			}
			return rows.Err()
		})
	}},
	{"sql prepared", func(ctx context.Context, p *Pool, table string, ids []int) (n int, err error) {
		return n, inDB(p, func(db *sql.DB) error {
			stmt, err := db.PrepareContext(ctx, countSQL(table))
			if err != nil {
				return err
			}
			defer stmt.Close()
			return stmt.QueryRowContext(ctx, ids).Scan(&n)
		})
	}},
	{"sql read-only transaction", func(ctx context.Context, p *Pool, table string, ids []int) (n int, err error) {
		return n, inSQLTx(ctx, p, &sql.TxOptions{ReadOnly: true}, func(tx *sql.Tx) error {
			return tx.QueryRowContext(ctx, countSQL(table), ids).Scan(&n)
		})
	}},
	{"sql acquired", func(ctx context.Context, p *Pool, table string, ids []int) (n int, err error) {
		return n, inDB(p, func(db *sql.DB) error {
			c, err := db.Conn(ctx)
			if err != nil {
				return err
			}
			defer c.Close()
			return c.QueryRowContext(ctx, countSQL(table), ids).Scan(&n)
		})
	}},
})

// staysOnReplica reports whether a read has its answer from the replica or none: so it was told, or it is a transaction,
// in which nothing runs twice.
func staysOnReplica(name string) bool {
	return strings.Contains(name, "replica") || strings.Contains(name, "wait replayed") ||
		strings.Contains(name, "read-only transaction") || strings.Contains(name, "read-only snapshot")
}

// registerWrite is one of the ways to raise a register, to v or by one. It returns what the register is raised to at least.
type registerWrite struct {
	name  string
	write func(ctx context.Context, p *Pool, key int, v int64) (int64, error)
}

const (
	raiseSQL = "update registers set v = greatest(v, $2) where key = $1"
	countOn  = "update registers set v = v + 1 where key = $1 returning v"
	readSQL  = "select v from registers where key = $1"
)

var registerWrites = []registerWrite{
	{"exec", func(ctx context.Context, p *Pool, key int, v int64) (int64, error) {
		_, err := p.Exec(ctx, raiseSQL, key, v)
		return v, err
	}},
	{"simple exec", func(ctx context.Context, p *Pool, key int, v int64) (int64, error) {
		_, err := p.Exec(ctx, raiseSQL, pgx.QueryExecModeSimpleProtocol, key, v)
		return v, err
	}},
	{"named arguments", func(ctx context.Context, p *Pool, key int, v int64) (int64, error) {
		_, err := p.Exec(ctx, "update registers set v = greatest(v, @v) where key = @key", pgx.NamedArgs{"key": key, "v": v})
		return v, err
	}},
	{"upsert", func(ctx context.Context, p *Pool, key int, v int64) (int64, error) {
		_, err := p.Exec(ctx, "insert into registers as r values ($1, $2) on conflict (key) do update set v = greatest(r.v, excluded.v)", key, v)
		return v, err
	}},
	{"query row returning", func(ctx context.Context, p *Pool, key int, _ int64) (v int64, err error) {
		return v, p.QueryRow(ctx, countOn, key).Scan(&v)
	}},
	{"with", func(ctx context.Context, p *Pool, key int, _ int64) (v int64, err error) {
		return v, p.QueryRow(ctx, "with w as ("+countOn+") select v from w", key).Scan(&v)
	}},
	{"hidden function", func(ctx context.Context, p *Pool, key int, _ int64) (v int64, err error) {
		return v, p.QueryRow(ctx, "select count_on($1)", key).Scan(&v)
	}},
	{"hidden function in a batch", func(ctx context.Context, p *Pool, key int, _ int64) (v int64, err error) {
		b := batchOf("select 1")
		b.Queue("select count_on($1)", key).QueryRow(func(row pgx.Row) error { return row.Scan(&v) })
		return v, p.SendBatch(ctx, b).Close()
	}},
	{"batch", func(ctx context.Context, p *Pool, key int, v int64) (int64, error) {
		b := &pgx.Batch{}
		b.Queue(readSQL, key)
		b.Queue(raiseSQL, key, v)
		b.Queue(readSQL, key)
		return v, p.SendBatch(ctx, b).Close()
	}},
	{"read and written in a transaction", func(ctx context.Context, p *Pool, key int, _ int64) (v int64, err error) {
		return v, pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error {
			if err := tx.QueryRow(ctx, readSQL+" for update", key).Scan(&v); err != nil {
				return err
			}
			v++
			_, err := tx.Exec(ctx, "update registers set v = $2 where key = $1", key, v)
			return err
		})
	}},
	{"serializable transaction", func(ctx context.Context, p *Pool, key int, v int64) (int64, error) {
		return v, pgx.BeginTxFunc(ctx, p, pgx.TxOptions{IsoLevel: pgx.Serializable}, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, raiseSQL, key, v)
			return err
		})
	}},
	{"acquired, in a savepoint", func(ctx context.Context, p *Pool, key int, v int64) (int64, error) {
		return v, onConn(p, ctx, func(c *pgxpool.Conn) error {
			return pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
				return pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
					_, err := tx.Exec(ctx, raiseSQL, key, v)
					return err
				})
			})
		})
	}},
	{"primary", func(ctx context.Context, p *Pool, key int, _ int64) (v int64, err error) {
		return v, p.Primary().QueryRow(ctx, countOn, key).Scan(&v)
	}},
	{"sql", func(ctx context.Context, p *Pool, key int, _ int64) (v int64, err error) {
		return v, inDB(p, func(db *sql.DB) error { return db.QueryRowContext(ctx, countOn, key).Scan(&v) })
	}},
	{"sql transaction", func(ctx context.Context, p *Pool, key int, v int64) (int64, error) {
		return v, inSQLTx(ctx, p, nil, func(tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, raiseSQL, key, v)
			return err
		})
	}},
}

// registerRead is one of the ways to read a register.
type registerRead struct {
	name string
	read func(ctx context.Context, p *Pool, key int) (int64, error)
}

// plainRead is a registerRead with QueryRow.
func plainRead(name, text string, decorate func(context.Context) context.Context, args ...any) registerRead {
	return registerRead{name, func(ctx context.Context, p *Pool, key int) (v int64, err error) {
		return v, p.QueryRow(decorate(ctx), text, append(slices.Clone(args), key)...).Scan(&v)
	}}
}

var registerReads = []registerRead{
	plainRead("query row", readSQL, sameContext),
	plainRead("slow query row", "select v from registers, (select pg_sleep(0.03)) s where key = $1", sameContext),
	plainRead("query row described", readSQL, sameContext, pgx.QueryExecModeCacheDescribe),
	plainRead("query row simple", readSQL, sameContext, pgx.QueryExecModeSimpleProtocol),
	plainRead("query row with primary", readSQL, WithPrimary),
	plainRead("query row with replica", readSQL, WithReplica),
	{"batch", func(ctx context.Context, p *Pool, key int) (v int64, err error) {
		b := batchOf("select 1")
		b.Queue(readSQL, key)
		results := p.SendBatch(ctx, b)
		_, err = results.Exec()
		return v, errors.Join(err, results.QueryRow().Scan(&v), results.Close())
	}},
	{"read-only transaction", func(ctx context.Context, p *Pool, key int) (v int64, err error) {
		return v, pgx.BeginTxFunc(ctx, p, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
			return tx.QueryRow(ctx, readSQL, key).Scan(&v)
		})
	}},
	{"acquired", func(ctx context.Context, p *Pool, key int) (v int64, err error) {
		return v, onConn(p, ctx, func(c *pgxpool.Conn) error { return c.QueryRow(ctx, readSQL, key).Scan(&v) })
	}},
	{"sql", func(ctx context.Context, p *Pool, key int) (v int64, err error) {
		return v, inDB(p, func(db *sql.DB) error { return db.QueryRowContext(ctx, readSQL, key).Scan(&v) })
	}},
}

func sameContext(ctx context.Context) context.Context { return ctx }
