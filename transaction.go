package flyregion

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// begin starts a transaction on a replica.
func (rd *reads) begin(ctx context.Context, rt *route, options pgx.TxOptions) (pgx.Tx, error) {
	tx, read, err := onReplica(ctx, rd, rt, plainConns, "", func(conn *pgxpool.Conn) (pgx.Tx, error) {
		return conn.BeginTx(ctx, options)
	})
	if err != nil || rt.to == targetPrimary {
		return nil, err
	}
	return &replicaTx{Tx: tx, replicaRead: read, options: options, route: *rt, unused: true}, nil
}

// replicaTx is a read-only transaction on a replica. If its first statement belongs to the primary, or the replica cannot
// run it, the transaction begins anew there: nothing has happened in it yet.
type replicaTx struct {
	pgx.Tx // on the replica, or on the primary once the transaction has moved
	replicaRead[*pgxpool.Conn]
	options pgx.TxOptions
	route   route
	unused  bool // nothing has run in it, and it has not ended
}

// inTx runs a statement of a transaction.
func inTx[T any](ctx context.Context, tx *replicaTx, sql string, args []any, run func() (T, error)) (T, error) {
	// pgx sends nothing under a context that has ended, and says so in its own words.
	if ctx.Err() != nil || !tx.takeFirst() {
		return run()
	}
	return runFirst(ctx, &tx.replicaRead, &tx.route, sql, args, run, func(why reason) error { return tx.move(ctx, why) })
}

// runFirst runs the first statement of a transaction that was begun on a replica. If the statement belongs to the primary, or
// the replica cannot run it, move begins the transaction anew there, and run runs the statement in that one.
func runFirst[C pooledConn, T any](ctx context.Context, read *replicaRead[C], rt *route, sql string, args []any, run func() (T, error), move func(reason) error) (result T, err error) {
	why := leavesReplica(ctx, read, rt, &pgx.QueuedQuery{SQL: sql, Arguments: args})
	if why == "" {
		conn := read.conn.Conn()
		if result, err = run(); err == nil || consumable(args) {
			return result, err
		}
		if why = read.reads.router.fallbackReason(ctx, rt, conn, sql, err); why == "" {
			return result, err
		}
	}
	if err := move(why); err != nil {
		return result, err
	}
	return run()
}

// leavesReplica returns why a transaction on a replica has to move to the primary before its first statements run, "" if it has
// not. The catalog is asked about functions that are not known: one that writes could act outside of the database before the
// replica refuses it, and then act again on the primary.
func leavesReplica[C pooledConn](ctx context.Context, read *replicaRead[C], rt *route, first ...*pgx.QueuedQuery) reason {
	for _, q := range first {
		if why := read.reads.router.leavesReplica(rt, q.SQL, q.Arguments); why != "" {
			return why
		}
	}
	if rt.undecided != nil && !read.reads.decide(ctx, rt, read.replica, read.conn.Conn()) {
		return rt.why
	}
	return ""
}

// takeFirst reports whether what is about to run is the transaction's first statement and may move.
func (tx *replicaTx) takeFirst() bool {
	first := tx.unused && tx.route.target != targetReplica
	tx.unused = false
	return first
}

// move begins the transaction anew on the primary.
func (tx *replicaTx) move(ctx context.Context, why reason) error {
	// What is lost with it is a transaction in which nothing has happened.
	_ = tx.Tx.Rollback(ctx)
	tx.release()
	moved, err := tx.reads.primary.begin(ctx, tx.route.onPrimary(why), tx.options)
	if err != nil {
		return err
	}
	tx.Tx = moved
	return nil
}

func (tx *replicaTx) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	return inTx(ctx, tx, sql, args, func() (pgconn.CommandTag, error) {
		return tx.Tx.Exec(ctx, sql, args...)
	})
}

func (tx *replicaTx) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	if !tx.unused {
		return tx.Tx.Query(ctx, sql, args...)
	}
	var sendErr error
	rows, err := inTx(ctx, tx, sql, args, func() (*replicaRows, error) {
		rows := &replicaRows{sql: sql, replicaRead: replicaRead[*pgxpool.Conn]{reads: tx.reads}}
		sendErr = rows.start(tx.Tx.Query(ctx, sql, args...))
		return rows, rows.Rows.Err()
	})
	if rows == nil {
		return &failedRows{err: err}, err
	}
	return rows, sendErr
}

func (tx *replicaTx) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	if !tx.unused {
		return tx.Tx.QueryRow(ctx, sql, args...)
	}
	r, err := inTx(ctx, tx, sql, args, func() (*replicaRow, error) {
		r := &replicaRow{}
		rows, err := tx.Tx.Query(ctx, sql, args...)
		return r, r.read(tx.Tx.Conn(), &rowMemory{}, rows, err)
	})
	if r == nil {
		r = &replicaRow{}
	}
	r.err = err
	return r
}

// SendBatch sends a batch. As a transaction's first it moves if one of its statements belongs to the primary, as far as their
// SQL and the catalog tell.
func (tx *replicaTx) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	if ctx.Err() == nil && tx.takeFirst() {
		if why := leavesReplica(ctx, &tx.replicaRead, &tx.route, b.QueuedQueries...); why != "" {
			if err := tx.move(ctx, why); err != nil {
				return pgx.FailedBatchResults(b, err)
			}
		}
	}
	return tx.Tx.SendBatch(ctx, b)
}

func (tx *replicaTx) Prepare(ctx context.Context, name, sql string) (*pgconn.StatementDescription, error) {
	return inTx(ctx, tx, sql, nil, func() (*pgconn.StatementDescription, error) {
		return tx.Tx.Prepare(ctx, name, sql)
	})
}

func (tx *replicaTx) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, source pgx.CopyFromSource) (int64, error) {
	tx.unused = false
	return tx.Tx.CopyFrom(ctx, table, columns, source)
}

func (tx *replicaTx) LargeObjects() pgx.LargeObjects {
	tx.unused = false
	return tx.Tx.LargeObjects()
}

// Begin starts a pseudo nested transaction, as pgx does. What runs in it does not move.
func (tx *replicaTx) Begin(ctx context.Context) (pgx.Tx, error) {
	tx.unused = false
	return tx.Tx.Begin(ctx)
}

// Conn returns the connection. What runs on it does not move.
func (tx *replicaTx) Conn() *pgx.Conn {
	tx.unused = false
	return tx.Tx.Conn()
}

// Commit commits the transaction and releases its connection.
func (tx *replicaTx) Commit(ctx context.Context) error {
	tx.unused = false
	err := tx.Tx.Commit(ctx)
	tx.release()
	return err
}

// Rollback rolls the transaction back and releases its connection.
func (tx *replicaTx) Rollback(ctx context.Context) error {
	tx.unused = false
	err := tx.Tx.Rollback(ctx)
	tx.release()
	return err
}
