package flyregion

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
)

// query runs a statement with rows on a replica. It returns when the first row has arrived. So a read that the replica
// cannot run moves before the app has seen any of it, and its arguments are not encoded after query has returned.
func (rd *reads) query(ctx context.Context, rt *route, sql string, args []any) (*replicaRows, error) {
	var sendErr error
	rows, read, err := onReplica(ctx, rd, rt, plainConns, sql, func(conn *pgxpool.Conn) (*replicaRows, error) {
		rows := &replicaRows{sql: sql}
		sendErr = rows.start(conn.Query(ctx, sql, args...))
		return rows, rows.Rows.Err()
	})
	switch {
	case rt.to == targetPrimary:
		return nil, err
	case rows == nil:
		return &replicaRows{Rows: &failedRows{err: err}, begun: true, ended: true}, err
	}
	// As with pgx, query returns only an error of the sending. A later one is the rows'.
	rows.replicaRead = read
	if rows.ended {
		rows.release()
	}
	return rows, sendErr
}

// queryRow runs a statement with one row on a replica. It returns when the statement has ended: the row is delivered only
// if nothing after it failed.
func (rd *reads) queryRow(ctx context.Context, rt *route, sql string, args []any) pgx.Row {
	row, read, err := onReplica(ctx, rd, rt, plainConns, sql, func(conn *pgxpool.Conn) (*replicaRow, error) {
		row := &replicaRow{}
		rows, err := conn.Query(ctx, sql, args...)
		return row, row.read(conn.Conn(), &replicaConnOf(conn.Conn()).row, rows, err)
	})
	switch {
	case rt.to == targetPrimary:
		return nil
	case row == nil:
		row = &replicaRow{}
	}
	row.replicaRead, row.err = read, err
	return row
}

// replicaRows are the rows of a read on a replica. The first row has arrived, or there is none, so the read no longer moves.
// Until Next or Close is called, Err and CommandTag return what those of pgx's rows return before the first Next.
type replicaRows struct {
	pgx.Rows
	replicaRead[*pgxpool.Conn]
	sql    string
	failed *bool // set by an error behind the first row; nil unless the rows are of a batch
	first  bool  // the first row has arrived
	begun  bool  // Next or Close has been called
	ended  bool
}

// start waits for the first row of what Query returned. It returns the error of the sending.
func (rows *replicaRows) start(sent pgx.Rows, err error) error {
	rows.Rows = sent
	if err != nil {
		rows.begun, rows.ended = true, true
		return err
	}
	rows.first = sent.Next()
	rows.ended = !rows.first
	return nil
}

func (rows *replicaRows) Next() bool {
	if !rows.begun {
		rows.begun = true
		return rows.first
	}
	if rows.Rows.Next() {
		return true
	}
	rows.end()
	return false
}

func (rows *replicaRows) Close() {
	rows.begun = true
	rows.Rows.Close()
	rows.end()
}

func (rows *replicaRows) Err() error {
	if !rows.begun {
		return nil
	}
	return rows.Rows.Err()
}

func (rows *replicaRows) CommandTag() pgconn.CommandTag {
	if !rows.begun {
		return pgconn.CommandTag{}
	}
	return rows.Rows.CommandTag()
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

// end releases the connection when the rows are closed. A write that the replica refused after the first row cannot move,
// but its next run begins on the primary.
func (rows *replicaRows) end() {
	if rows.ended {
		return
	}
	rows.ended = true
	if err := rows.Rows.Err(); err != nil {
		rows.reads.router.rememberRefusal(rows.sql, err)
		if rows.failed != nil {
			*rows.failed = true
		}
	}
	rows.release()
}

// replicaRow is the row of a QueryRow that a replica has answered to the end. The row is a copy: the connection's buffer
// did not last until the end was read, nor do its fields where a tracer runs a statement of its own then.
type replicaRow struct {
	replicaRead[*pgxpool.Conn]
	err    error // of the query, which may have failed after its first row
	types  *pgtype.Map
	fields []pgconn.FieldDescription
	values [][]byte // nil if there is no row
}

// read reads the answer of a query to its end.
func (r *replicaRow) read(conn *pgx.Conn, memory *rowMemory, rows pgx.Rows, err error) error {
	if err != nil {
		return err
	}
	if rows.Next() {
		r.types = conn.TypeMap()
		r.fields, r.values = memory.copy(rows.FieldDescriptions(), rows.RawValues())
	}
	rows.Close()
	if err = rows.Err(); err != nil && r.values != nil {
		// The connection is released before the row is scanned.
		r.types = r.types.Copy()
		*memory = rowMemory{}
	}
	return err
}

// Scan does what the Scan of pgx's own row does.
func (r *replicaRow) Scan(dest ...any) error {
	if r.err != nil && r.values == nil {
		return r.err
	}
	defer r.release()

	if err := checkRowScan(dest); err != nil {
		return err
	}
	if r.values == nil {
		return pgx.ErrNoRows
	}
	if err := (*scannedRow)(r).Scan(dest...); err != nil {
		r.err = err
	}
	r.values = nil // a second Scan finds no row
	return r.err
}

// checkRowScan refuses what the Scan of pgx's own row refuses.
func checkRowScan(dest []any) error {
	for _, d := range dest {
		if _, ok := d.(*pgtype.DriverBytes); ok {
			return fmt.Errorf("cannot scan into *pgtype.DriverBytes from QueryRow")
		}
	}
	return nil
}

// scannedRow is the one row of a replicaRow as a [pgx.RowScanner] gets it.
type scannedRow replicaRow

func (r *scannedRow) Close()                                       {}
func (r *scannedRow) Err() error                                   { return r.err }
func (r *scannedRow) CommandTag() pgconn.CommandTag                { return pgconn.CommandTag{} }
func (r *scannedRow) FieldDescriptions() []pgconn.FieldDescription { return r.fields }
func (r *scannedRow) Next() bool                                   { return false }
func (r *scannedRow) RawValues() [][]byte                          { return r.values }
func (r *scannedRow) TypeMap() *pgtype.Map                         { return r.types }

func (r *scannedRow) Conn() *pgx.Conn {
	if r.conn == nil {
		return nil
	}
	return r.conn.Conn()
}

func (r *scannedRow) Scan(dest ...any) error {
	if len(dest) == 1 && len(r.fields) == len(r.values) {
		if scanner, ok := dest[0].(pgx.RowScanner); ok {
			return scanner.ScanRow(r)
		}
	}
	return pgx.ScanRow(r.types, r.fields, r.values, dest...)
}

func (r *scannedRow) Values() ([]any, error) {
	values := make([]any, 0, len(r.values))
	for i, v := range r.values {
		value, err := decoded(r.types, &r.fields[i], v)
		if err != nil {
			r.err = err
			return nil, err
		}
		values = append(values, value)
	}
	return values, nil
}

// decoded returns the value of a column as the Values of pgx's rows does.
func decoded(types *pgtype.Map, field *pgconn.FieldDescription, value []byte) (any, error) {
	if value == nil {
		return nil, nil
	}
	if t, ok := types.TypeForOID(field.DataTypeOID); ok {
		return t.Codec.DecodeValue(types, field.DataTypeOID, field.Format, value)
	}
	switch field.Format {
	case pgx.TextFormatCode:
		return string(value), nil
	case pgx.BinaryFormatCode:
		return append([]byte{}, value...), nil
	}
	return nil, errors.New("unknown format code")
}

// row is the pgx.Row of rows.
type row struct{ rows pgx.Rows }

// Scan does what the Scan of pgx's own row does.
func (r *row) Scan(dest ...any) error {
	rows := r.rows
	if err := rows.Err(); err != nil {
		return err
	}
	defer rows.Close()

	if err := checkRowScan(dest); err != nil {
		return err
	}
	if !rows.Next() {
		if rows.Err() == nil {
			return pgx.ErrNoRows
		}
		return rows.Err()
	}
	// Its error is that of the rows.
	_ = rows.Scan(dest...)
	rows.Close()
	return rows.Err()
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
