package flyregion

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// exec runs a statement on the primary.
func (p *primary) exec(ctx context.Context, rt *route, sql string, args []any) (tag pgconn.CommandTag, err error) {
	ctx, f := p.forward(ctx, "exec", rt)
	defer func() { f.end(err) }()

	return p.pool.Exec(ctx, sql, args...)
}

// query runs a statement with rows on the primary.
func (p *primary) query(ctx context.Context, rt *route, sql string, args []any) (pgx.Rows, error) {
	ctx, f := p.forward(ctx, "query", rt)
	rows, err := p.pool.Query(ctx, sql, args...)
	if err != nil {
		f.end(err)
		return rows, err
	}
	if f == (forwarding{}) {
		return rows, nil
	}
	return &forwardedRows{Rows: rows, forwarding: f}, nil
}

// queryRow runs a statement with one row on the primary.
func (p *primary) queryRow(ctx context.Context, rt *route, sql string, args []any) pgx.Row {
	ctx, f := p.forward(ctx, "query", rt)
	row := p.pool.QueryRow(ctx, sql, args...)
	if f == (forwarding{}) {
		return row
	}
	return &forwardedRow{Row: row, forwarding: f}
}

// sendBatch sends a batch to the primary.
func (p *primary) sendBatch(ctx context.Context, rt *route, b *pgx.Batch) pgx.BatchResults {
	ctx, f := p.forward(ctx, "batch", rt)
	results := p.pool.SendBatch(ctx, b)
	if f == (forwarding{}) {
		return results
	}
	return &forwardedBatch{BatchResults: results, forwarding: f}
}

// begin starts a transaction on the primary.
func (p *primary) begin(ctx context.Context, rt *route, options pgx.TxOptions) (tx pgx.Tx, err error) {
	ctx, f := p.forward(ctx, "begin", rt)
	defer func() { f.end(err) }()

	return p.pool.BeginTx(ctx, options)
}

// copyFrom copies rows to the primary.
func (p *primary) copyFrom(ctx context.Context, table pgx.Identifier, columns []string, source pgx.CopyFromSource) (n int64, err error) {
	ctx, f := p.forward(ctx, "copy", &route{to: targetPrimary, why: becauseWrite})
	defer func() { f.end(err) }()

	return p.pool.CopyFrom(ctx, table, columns, source)
}

// forwarding is the span and the slot of a statement that runs on the primary. The zero value needs no end.
type forwarding struct {
	span      span
	fallbacks chan struct{} // in which the statement has a slot, or nil
}

// forward begins the span of a statement, and takes a slot for a read that no replica can serve. When replay stalls such
// reads come many at once. There are slots for half of the primary's connections, so that writes find the other half free.
// But a read waits for a slot no longer than for a replica, and then runs without one: the reads that have the slots may
// be waiting for it.
func (p *primary) forward(ctx context.Context, operation string, rt *route) (context.Context, forwarding) {
	ctx, span := p.telemetry.forward(ctx, operation, rt.why, rt.region, rt.cause)
	f := forwarding{span: span}
	if !rt.affectsAllReads() {
		return ctx, f
	}

	select {
	case p.fallbacks <- struct{}{}:
		f.fallbacks = p.fallbacks
		return ctx, f
	default:
	}
	timer := time.NewTimer(p.waitLimit())
	defer timer.Stop()
	select {
	case p.fallbacks <- struct{}{}:
		f.fallbacks = p.fallbacks
	case <-timer.C:
	case <-ctx.Done():
	}
	return ctx, f
}

// end ends the span and releases the slot. Further calls do nothing.
func (f *forwarding) end(err error) {
	ending := *f
	*f = forwarding{}
	if ending.fallbacks != nil {
		<-ending.fallbacks
	}
	ending.span.end(err)
}

// forwardedRows are the rows of a statement on the primary.
type forwardedRows struct {
	pgx.Rows
	forwarding // ends with the rows
}

func (r *forwardedRows) Next() bool {
	if r.Rows.Next() {
		return true
	}
	r.end(r.Rows.Err())
	return false
}

func (r *forwardedRows) Close() {
	r.Rows.Close()
	r.end(r.Rows.Err())
}

func (r *forwardedRows) Scan(dest ...any) error {
	err := r.Rows.Scan(dest...)
	if err != nil {
		r.Close()
	}
	return err
}

func (r *forwardedRows) Values() ([]any, error) {
	values, err := r.Rows.Values()
	if err != nil {
		r.Close()
	}
	return values, err
}

// forwardedRow is the row of a statement on the primary.
type forwardedRow struct {
	pgx.Row
	forwarding // ends with the row
}

func (r *forwardedRow) Scan(dest ...any) (err error) {
	defer func() {
		failure := err
		if errors.Is(err, pgx.ErrNoRows) {
			failure = nil // the statement has succeeded
		}
		r.end(failure)
	}()
	return r.Row.Scan(dest...)
}

// forwardedBatch are the results of a batch on the primary.
type forwardedBatch struct {
	pgx.BatchResults
	forwarding // ends with the results
}

func (b *forwardedBatch) Close() (err error) {
	defer func() { b.end(err) }() // where a callback panics too
	return b.BatchResults.Close()
}
