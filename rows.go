package flyregion

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
)

// replicaRows are the rows of a read on a replica. Until the first of them is delivered the read may still move to the
// primary, unseen.
type replicaRows struct {
	pgx.Rows // of whichever server answers

	pool    *Pool
	replica *replica
	conn    *pgxpool.Conn // nil once it was released
	settled bool          // a row was delivered, or the read has moved

	route route
	ctx   context.Context
	sql   string
	args  []any
}

// start sends the statement.
func (rows *replicaRows) start() error {
	var err error
	rows.Rows, err = rows.conn.Query(rows.ctx, rows.sql, rows.args...)
	if err == nil {
		return nil
	}
	if moved, err := rows.move(err); moved {
		return err
	}
	return err
}

// move runs the statement on the primary if err allows it. It gives the replica's connection back in either case.
func (rows *replicaRows) move(err error) (moved bool, _ error) {
	rows.settled = true
	why := rows.pool.rerun(rows.ctx, &rows.route, rows.conn.Conn(), rows.sql, err)
	rows.release()
	if why == "" {
		return false, err
	}
	rows.Rows, err = rows.pool.forwardQuery(rows.ctx, why, rows.sql, rows.args)
	return true, err
}

func (rows *replicaRows) release() {
	if rows.conn != nil {
		rows.replica.release(rows.conn)
		rows.conn = nil
	}
}

// ended is called when the replica's rows are closed. It reports whether the primary has begun to answer instead.
func (rows *replicaRows) ended() (moved bool) {
	if err := rows.Rows.Err(); err != nil && !rows.settled {
		moved, _ = rows.move(err)
		return moved
	}
	rows.settled = true
	rows.release()
	return false
}

func (rows *replicaRows) Next() bool {
	if rows.Rows.Next() {
		rows.settled = true
		return true
	}
	return rows.ended() && rows.Rows.Next()
}

func (rows *replicaRows) Close() {
	rows.Rows.Close()
	if rows.ended() {
		rows.Rows.Close()
	}
}

func (rows *replicaRows) Scan(dest ...any) error {
	err := rows.Rows.Scan(dest...)
	if err != nil {
		rows.Close()
	}
	return err
}

func (rows *replicaRows) Values() ([]any, error) {
	values, err := rows.Rows.Values()
	if err != nil {
		rows.Close()
	}
	return values, err
}

// row is the pgx.Row of a pool with replicas.
type row struct{ rows pgx.Rows }

// Scan does what the Scan of pgx's own row does.
func (r *row) Scan(dest ...any) error {
	rows := r.rows
	if err := rows.Err(); err != nil {
		return err
	}
	panicked := true
	defer func() {
		if replica, ok := rows.(*replicaRows); ok && panicked {
			// As pgxpool does: the pool closes a connection that has rows left to read.
			replica.release()
			return
		}
		rows.Close()
	}()

	err := scanRow(rows, dest)
	panicked = false
	return err
}

func scanRow(rows pgx.Rows, dest []any) error {
	for _, d := range dest {
		if _, ok := d.(*pgtype.DriverBytes); ok {
			return fmt.Errorf("cannot scan into *pgtype.DriverBytes from QueryRow")
		}
	}
	if !rows.Next() {
		if rows.Err() == nil {
			return pgx.ErrNoRows
		}
		return rows.Err()
	}
	// Its error is that of the rows.
	_ = rows.Scan(dest...)
	if replica, ok := rows.(*replicaRows); ok && replica.again() {
		return scanRow(replica.Rows, dest)
	}
	rows.Close()
	return rows.Err()
}

// again reads what is left behind a row that was scanned without an error. If the replica fails there, the caller of
// QueryRow has not been given the row yet, and the read may still move: it reports whether it has.
func (rows *replicaRows) again() (moved bool) {
	if rows.conn == nil {
		return false
	}
	rows.Rows.Close()
	if err := rows.Rows.Err(); err != nil {
		moved, _ = rows.move(err)
	}
	return moved
}

// failedRows are the rows of a query that was not sent.
type failedRows struct{ err error }

func (*failedRows) Close()                                       {}
func (r *failedRows) Err() error                                 { return r.err }
func (*failedRows) CommandTag() pgconn.CommandTag                { return pgconn.CommandTag{} }
func (*failedRows) FieldDescriptions() []pgconn.FieldDescription { return nil }
func (*failedRows) Next() bool                                   { return false }
func (r *failedRows) Scan(...any) error                          { return r.err }
func (r *failedRows) Values() ([]any, error)                     { return nil, r.err }
func (*failedRows) RawValues() [][]byte                          { return nil }
func (*failedRows) Conn() *pgx.Conn                              { return nil }
func (*failedRows) TypeMap() *pgtype.Map                         { return nil }

// replicaTx is a read-only transaction on a replica.
type replicaTx struct {
	pgx.Tx
	replica *replica
	conn    *pgxpool.Conn // nil once it was released
}

// Commit commits the transaction and gives its connection back.
func (tx *replicaTx) Commit(ctx context.Context) error {
	err := tx.Tx.Commit(ctx)
	tx.release()
	return err
}

// Rollback rolls the transaction back and gives its connection back.
func (tx *replicaTx) Rollback(ctx context.Context) error {
	err := tx.Tx.Rollback(ctx)
	tx.release()
	return err
}

func (tx *replicaTx) release() {
	if tx.conn != nil {
		tx.replica.release(tx.conn)
		tx.conn = nil
	}
}
