package flyregion

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// transactor is what a Pool and a pgxpool.Pool have in common, as far as it matters here.
type transactor interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
	BeginTx(ctx context.Context, options pgx.TxOptions) (pgx.Tx, error)
	Acquire(ctx context.Context) (*pgxpool.Conn, error)
}

// transactionCase is what an app does with transactions that it writes as SQL. A step is a text for the pool, or begins
// with a word that says what else it is:
//
//	batch:    texts for SendBatch, separated by semicolons
//	acquire, release
//	conn:     a text for the connection that was acquired
//	begin, begin read only, tx commit, tx rollback
//	tx:       a text for the transaction that was begun
//
// "insert 1" in a text stands for an insert of that number.
type transactionCase struct {
	name  string
	steps []string
	rows  []int // what is there in the end
	lost  int   // connections that came back within a transaction, and were closed
}

var transactionCases = []transactionCase{
	{"begin on the pool", []string{"begin", "insert 1", "rollback"}, []int{1}, 1},
	{"commit on the pool", []string{"begin", "insert 1", "commit"}, []int{1}, 1},
	{"begin read only on the pool", []string{"begin read only", "insert 1"}, []int{1}, 1},
	{"savepoints on the pool", []string{"savepoint a", "insert 1", "rollback to a", "release a"}, []int{1}, 0},
	{"set transaction on the pool", []string{"set transaction read only", "insert 1", "set transaction read write", "insert 2"}, []int{1, 2}, 0},
	{"setting on the pool", []string{"set session characteristics as transaction read only", "insert 1",
		"set session characteristics as transaction read write", "insert 2"}, []int{2}, 0},
	{"prepared transaction on the pool", []string{"begin; insert 1; prepare transaction 'transaction_test'", "commit prepared 'transaction_test'"}, []int{1}, 0},

	{"whole transaction in a text", []string{"begin; insert 1; insert 2; commit"}, []int{1, 2}, 0},
	{"rolled back in a text", []string{"begin; insert 1; rollback; insert 2"}, []int{2}, 0},
	{"open transaction in a text", []string{"begin; insert 1", "insert 2"}, []int{2}, 1},
	{"opened behind a write", []string{"insert 1; begin; insert 2"}, nil, 1},
	{"opened behind a read", []string{"select 1; begin", "insert 1"}, []int{1}, 1},
	{"chained", []string{"begin; insert 1; commit and chain; insert 2"}, []int{1}, 1},
	{"savepoints in a text", []string{"begin; insert 1; savepoint a; insert 2; rollback to a; insert 3; release a; commit"}, []int{1, 3}, 0},
	{"several writes that fail together", []string{"insert 1; select 1/0; insert 2"}, nil, 0},
	{"commit within several writes", []string{"insert 1; commit; insert 2; select 1/0"}, []int{1}, 0},
	{"failure behind a commit", []string{"begin; insert 1; commit; select 1/0"}, []int{1}, 0},
	{"failure in a transaction", []string{"begin; insert 1; select 1/0; commit", "insert 2"}, []int{2}, 1},
	{"read only in a text", []string{"set transaction read only; insert 1", "insert 2"}, []int{2}, 0},
	{"commit in code", []string{"do $$ begin insert 1; commit; insert 2; rollback; insert 3; end $$"}, []int{1, 3}, 0},
	{"failure in code behind a commit", []string{"do $$ begin insert 1; commit; raise 'x'; end $$"}, []int{1}, 0},
	{"several reads", []string{"select 1; select 2; values (3), (4)"}, nil, 0},
	{"read within a transaction in a text", []string{"begin read only; select 1; commit"}, nil, 0},

	{"batch with a transaction", []string{"batch: begin; insert 1; commit; insert 2"}, []int{1, 2}, 0},
	{"batch with an open transaction", []string{"batch: begin; insert 1", "insert 2"}, []int{2}, 1},
	{"batch with savepoints", []string{"batch: begin; insert 1; savepoint a; insert 2; rollback to a; commit"}, []int{1}, 0},

	{"acquired", []string{"acquire", "conn: begin", "conn: insert 1", "conn: commit", "conn: insert 2", "release"}, []int{1, 2}, 0},
	{"acquired and rolled back", []string{"acquire", "conn: begin; insert 1", "conn: abort", "release"}, nil, 0},
	{"acquired and left open", []string{"acquire", "conn: begin", "conn: insert 1", "release", "insert 2"}, []int{2}, 1},
	{"acquired and left failed", []string{"acquire", "conn: begin", "conn: insert 1", "conn: select 1/0", "release"}, nil, 1},
	{"acquired, savepoints", []string{"acquire", "conn: begin", "conn: insert 1", "conn: savepoint a", "conn: insert 2", "conn: rollback to a",
		"conn: insert 3", "conn: release a", "conn: end", "release"}, []int{1, 3}, 0},
	{"acquired, a failure undone", []string{"acquire", "conn: begin", "conn: insert 1", "conn: savepoint a", "conn: select 1/0",
		"conn: insert 2", "conn: rollback to a", "conn: commit", "release"}, []int{1}, 0},
	{"acquired, a failure committed", []string{"acquire", "conn: begin", "conn: insert 1", "conn: select 1/0", "conn: commit", "release"}, nil, 0},
	{"acquired, read only", []string{"acquire", "conn: begin read only", "conn: select 1", "conn: insert 1", "conn: rollback", "release"}, nil, 0},
	{"acquired, made writable", []string{"acquire", "conn: begin read only", "conn: set transaction read write", "conn: insert 1",
		"conn: commit", "release"}, []int{1}, 0},
	{"acquired, made writable too late", []string{"acquire", "conn: begin read only", "conn: select 1", "conn: set transaction read write",
		"conn: insert 1", "conn: commit", "release"}, nil, 0},
	{"acquired, made read only", []string{"acquire", "conn: begin", "conn: insert 1", "conn: set transaction read only", "conn: insert 2",
		"conn: commit", "release"}, nil, 0},
	{"acquired, isolation level", []string{"acquire", "conn: begin", "conn: set transaction isolation level serializable", "conn: insert 1",
		"conn: set transaction isolation level read committed", "conn: rollback", "release"}, nil, 0},
	{"acquired, chained", []string{"acquire", "conn: begin", "conn: insert 1", "conn: commit and chain", "conn: insert 2",
		"conn: rollback and chain", "conn: insert 3", "conn: commit", "release"}, []int{1, 3}, 0},
	{"acquired, the next begun at once", []string{"acquire", "conn: begin; insert 1; commit; begin", "conn: insert 2", "conn: commit; insert 3",
		"release"}, []int{1, 2, 3}, 0},
	{"acquired, the pool in between", []string{"acquire", "conn: begin", "conn: insert 1", "insert 2", "conn: rollback", "release"}, []int{2}, 0},
	{"acquired, no transaction to end", []string{"acquire", "conn: commit", "conn: insert 1", "conn: rollback", "conn: savepoint a", "release"}, []int{1}, 0},

	{"begun", []string{"begin tx", "tx: insert 1", "tx: savepoint a", "tx: insert 2", "tx: rollback to a", "tx commit"}, []int{1}, 0},
	{"begun, committed as text", []string{"begin tx", "tx: insert 1", "tx: commit", "tx commit"}, []int{1}, 0},
	{"begun, rolled back as text", []string{"begin tx", "tx: insert 1", "tx: rollback", "tx: insert 2", "tx commit"}, []int{2}, 0},
	{"begun, begun again as text", []string{"begin tx", "tx: insert 1", "tx: begin", "tx: commit", "tx rollback"}, []int{1}, 0},
	{"begun, failed", []string{"begin tx", "tx: insert 1", "tx: select 1/0", "tx commit"}, nil, 0},
	{"begun read only", []string{"begin tx read only", "tx: select 1", "tx: insert 1", "tx rollback"}, nil, 0},
	{"begun read only and committed", []string{"begin tx read only", "tx: select 1", "tx commit"}, nil, 0},
}

// play takes the steps of a case and returns what each came to.
func (c transactionCase) play(t *testing.T, db transactor, table string) (script []string) {
	t.Helper()
	ctx := t.Context()
	var (
		conn *pgxpool.Conn
		tx   pgx.Tx
	)
	say := func(step string, tag pgconn.CommandTag, err error, wire *pgx.Conn) {
		line := fmt.Sprintf("%s -> %s", step, tag)
		if err != nil {
			line = fmt.Sprintf("%s -> %s", step, sqlState(err))
		}
		if wire != nil {
			line += fmt.Sprintf(" (%c)", wire.PgConn().TxStatus())
		}
		script = append(script, line)
	}
	for _, step := range c.steps {
		kind, text, hasText := strings.Cut(step, ": ")
		if !hasText {
			kind, text = "", step
		}
		sql := strings.ReplaceAll(text, "insert ", "insert into "+table+" select ")
		var (
			tag pgconn.CommandTag
			err error
		)
		switch {
		case kind == "batch":
			err = db.SendBatch(ctx, batchOf(strings.Split(sql, "; ")...)).Close()
			say(step, tag, err, nil)
		case kind == "conn":
			tag, err = conn.Exec(ctx, sql)
			say(step, tag, err, conn.Conn())
		case kind == "tx":
			tag, err = tx.Exec(ctx, sql)
			say(step, tag, err, tx.Conn())
		case step == "acquire":
			if conn, err = db.Acquire(ctx); err != nil {
				t.Fatal(err)
			}
		case step == "release":
			conn.Release()
		case step == "begin tx", step == "begin tx read only":
			options := pgx.TxOptions{}
			if strings.HasSuffix(step, "only") {
				options.AccessMode = pgx.ReadOnly
			}
			if tx, err = db.BeginTx(ctx, options); err != nil {
				t.Fatal(err)
			}
		case step == "tx commit":
			say(step, tag, tx.Commit(ctx), nil)
		case step == "tx rollback":
			say(step, tag, tx.Rollback(ctx), nil)
		default:
			tag, err = db.Exec(ctx, sql)
			say(step, tag, err, nil)
		}
	}
	return script
}

// sqlState returns the SQLSTATE of an error, its text if it is not PostgreSQL's, and "" for none.
func sqlState(err error) string {
	var pgErr *pgconn.PgError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &pgErr):
		return pgErr.Code
	}
	return err.Error()
}

// TestTransactionsInSQL plays each case on pgxpool, on a pool with one server and on one across regions, which must come
// to the same.
func TestTransactionsInSQL(t *testing.T) {
	t.Parallel()
	cluster := ownCluster(t, nil)
	raw, err := pgxpool.New(t.Context(), cluster.Leader().ConnString())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(raw.Close)

	for _, c := range transactionCases {
		t.Run(c.name, func(t *testing.T) {
			var want []string
			one, across := poolIn(t, cluster, "nrt"), poolIn(t, cluster, "ord")
			for _, on := range []struct {
				name    string
				db      transactor
				primary *pgxpool.Pool
			}{
				{"pgxpool", raw, raw},
				{"one server", one, one.Primary()},
				{"across regions", across, across.Primary()},
			} {
				name := table(t, cluster, "id int")
				if on.db == across {
					freeze(t, cluster) // what was not counted as a write is not seen afterwards
				}
				before := closedConns(t, on.primary)
				script := c.play(t, on.db, name)
				if n := closedConns(t, on.primary) - before; n != c.lost {
					t.Errorf("%s: %d connections were closed, want %d", on.name, n, c.lost)
				}
				if want == nil {
					want = script
				} else if !slices.Equal(script, want) {
					t.Errorf("%s:\n%s\npgxpool:\n%s", on.name, strings.Join(script, "\n"), strings.Join(want, "\n"))
				}
				var rows []int
				err := on.db.QueryRow(t.Context(), "select array_agg(id order by id) from "+name).Scan(&rows)
				if err != nil || !slices.Equal(rows, c.rows) {
					t.Errorf("%s: %v, %v are there, want %v:\n%s", on.name, rows, err, c.rows, strings.Join(script, "\n"))
				}
			}
		})
	}
}

// closedConns returns how many connections a pool has closed, of which none may be in use.
func closedConns(t *testing.T, p *pgxpool.Pool) int {
	t.Helper()
	eventually(t, "every connection has come back", func() bool { return p.Stat().AcquiredConns() == 0 })
	stat := p.Stat()
	return int(stat.NewConnsCount()) - int(stat.TotalConns())
}

// TestTransactionsOnReplica holds what differs across regions to what is documented: a transaction on the replica cannot
// be made writable once something has run in it, and what it leaves open is closed there.
func TestTransactionsOnReplica(t *testing.T) {
	cluster := sharedCluster(t)
	pool := poolIn(t, cluster, "ord")
	name := table(t, cluster, "id int")
	ctx := t.Context()
	if err := pool.WaitReplayed(ctx); err != nil {
		t.Fatal(err)
	}

	tx, err := pool.BeginTx(ctx, pgx.TxOptions{AccessMode: pgx.ReadOnly})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(ctx, "set local statement_timeout = '1min'"); err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(ctx, "set transaction read write"); sqlState(err) != "0A000" {
		t.Errorf("making a replica's transaction writable: %v", err)
	}
	if _, err := tx.Exec(ctx, "insert into "+name+" values (1)"); sqlState(err) != "25P02" {
		t.Errorf("writing in it: %v", err)
	}
	if err := tx.Rollback(ctx); err != nil {
		t.Error(err)
	}

	// As a transaction's first statement it moves.
	if tx, err = pool.BeginTx(ctx, pgx.TxOptions{AccessMode: pgx.ReadOnly}); err != nil {
		t.Fatal(err)
	}
	if err := execs(ctx, tx, "set transaction read write", "insert into "+name+" values (1)"); err != nil {
		t.Error(err)
	}
	if err := tx.Rollback(ctx); err != nil {
		t.Error(err)
	}

	replica := WithReplica(ctx)
	conn, err := pool.Acquire(replica)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		sql    string
		code   string
		status byte
	}{
		{"begin", "", 'T'},
		{"savepoint a", "", 'T'},
		{"insert into " + name + " values (1)", "25006", 'E'},
		{"rollback to a", "", 'T'},
		{"commit", "", 'I'},
		{"begin read write", "0A000", 'I'},
		{"begin; select 1", "", 'T'},
	} {
		_, err := conn.Exec(ctx, c.sql)
		if sqlState(err) != c.code || conn.Conn().PgConn().TxStatus() != c.status {
			t.Errorf("%s: %v, %c", c.sql, err, conn.Conn().PgConn().TxStatus())
		}
	}
	conn.Release()
	if n := closedConns(t, pool.Replica()); n != 1 {
		t.Errorf("%d connections were closed that came back within a transaction", n)
	}

	before := closedConns(t, pool.Replica())
	if _, err := pool.Exec(replica, "begin"); err != nil {
		t.Error(err)
	}
	if _, err := pool.Exec(ctx, "/* flyregion:replica */ begin"); err != nil {
		t.Error(err)
	}
	if n := closedConns(t, pool.Replica()) - before; n != 2 {
		t.Errorf("%d connections were closed that came back within a transaction", n)
	}
	if _, err := pool.Exec(replica, "insert into "+name+" values (1)"); sqlState(err) != "25006" {
		t.Errorf("writing to the replica: %v", err)
	}
	if _, err := pool.Exec(ctx, "insert into "+name+" values (2)"); err != nil {
		t.Error(err)
	}
	var rows []int
	if err := pool.QueryRow(ctx, "select array_agg(id) from "+name).Scan(&rows); err != nil || !slices.Equal(rows, []int{2}) {
		t.Errorf("%v, %v", rows, err)
	}
}
