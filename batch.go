package flyregion

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// replicaBatch is a batch of reads on a replica. What the replica cannot run the primary runs, with all that comes after
// it, unseen: the queries before have done nothing but read, and each query of a batch has a snapshot of its own anyway.
// What is sent is a copy, as pgx changes a batch that it sends, and runs its callbacks without asking.
type replicaBatch struct {
	pgx.BatchResults // of whichever server answers

	replicaRead[*pgxpool.Conn]
	route   route
	ctx     context.Context
	queries []*pgx.QueuedQuery // the caller's, never sent
	next    int                // of queries, whose result is next
	moved   bool               // the primary answers
	peeked  pgx.Rows           // of the first query, if Close has looked at them
	closed  bool
	err     error // what Close returns
}

// sendBatch sends a batch to a replica.
func (rd *reads) sendBatch(ctx context.Context, rt *route, b *pgx.Batch) pgx.BatchResults {
	results, read, err := onReplica(ctx, rd, rt, plainConns, "", func(conn *pgxpool.Conn) (pgx.BatchResults, error) {
		if rt.target == targetReplica {
			// It stays there, and may begin a transaction.
			return conn.SendBatch(ctx, b), nil
		}
		return conn.SendBatch(ctx, newBatch(b.QueuedQueries)), nil
	})
	switch {
	case rt.to == targetPrimary:
		return nil
	case err != nil:
		return pgx.FailedBatchResults(b, err)
	case rt.target == targetReplica:
		return &pinnedBatch{results, replicaTx{Tx: results.Tx(), replicaRead: read}}
	}
	return &replicaBatch{BatchResults: results, replicaRead: read, route: *rt, ctx: ctx, queries: b.QueuedQueries}
}

// newBatch returns a batch of queries without their callbacks.
func newBatch(queries []*pgx.QueuedQuery) *pgx.Batch {
	b := &pgx.Batch{QueuedQueries: make([]*pgx.QueuedQuery, 0, len(queries))}
	for _, q := range queries {
		b.Queue(q.SQL, q.Arguments...)
	}
	return b
}

// move sends the query whose result was err, and all after it, to the primary if that is allowed.
func (b *replicaBatch) move(err error) (moved bool) {
	if b.moved || b.closed || err == nil || b.next > len(b.queries) {
		return false
	}
	// Closing first tells whether the connection has survived.
	_ = b.BatchResults.Close()
	failed := b.queries[b.next-1]
	why := b.reads.router.moves(b.ctx, &b.route, b.conn.Conn(), failed.SQL, err)
	if why == "" {
		return false
	}
	b.moved = true
	b.release()
	b.BatchResults = b.reads.primary.sendBatch(b.ctx, why, newBatch(b.queries[b.next-1:]))
	return true
}

func (b *replicaBatch) Exec() (pgconn.CommandTag, error) {
	if b.err != nil {
		return pgconn.CommandTag{}, b.err
	}
	if rows := b.takePeeked(); rows != nil {
		rows.Close()
		return rows.CommandTag(), rows.Err()
	}
	b.next++
	tag, err := b.BatchResults.Exec()
	if b.move(err) {
		return b.BatchResults.Exec()
	}
	return tag, err
}

func (b *replicaBatch) Query() (pgx.Rows, error) {
	if b.err != nil {
		return &failedRows{err: b.err}, b.err
	}
	if rows := b.takePeeked(); rows != nil {
		return rows, rows.Err()
	}
	b.next++
	rows, err := b.BatchResults.Query()
	if err != nil {
		if b.move(err) {
			return b.BatchResults.Query()
		}
		return rows, err
	}
	if b.moved {
		return rows, nil
	}
	return &batchRows{Rows: rows, batch: b}, nil
}

func (b *replicaBatch) QueryRow() pgx.Row {
	rows, _ := b.Query()
	return &row{rows}
}

// Close does what the Close of pgx's own results does: it runs the callbacks of the queries whose results were not read,
// up to the first error.
func (b *replicaBatch) Close() error {
	if b.closed {
		return b.err
	}
	b.peek()
	for b.err == nil && b.next < len(b.queries) {
		if q := b.queries[b.next]; q.Fn != nil {
			b.err = q.Fn(b)
		} else {
			_, b.err = b.Exec()
		}
	}
	b.closed = true
	if err := b.BatchResults.Close(); b.err == nil {
		b.err = err
	}
	b.release()
	return b.err
}

// peek finds out whether the batch failed before any of it was run, as one does that has a mistake in a text. pgx runs no
// callback then.
func (b *replicaBatch) peek() {
	if b.next > 0 || b.next == len(b.queries) || b.queries[0].Fn == nil {
		return
	}
	rows, err := b.Query()
	var early pgx.ErrPreprocessingBatch
	if errors.As(err, &early) {
		b.err = err
		return
	}
	b.peeked = rows
	b.next = 0
}

func (b *replicaBatch) takePeeked() pgx.Rows {
	rows := b.peeked
	if rows != nil {
		b.peeked = nil
		b.next++
	}
	return rows
}

// batchRows are the rows of one query of a batch. Until the first of them is delivered the query may still move.
type batchRows struct {
	pgx.Rows // of whichever server answers
	batch    *replicaBatch
	settled  bool // a row was delivered, or the rows have ended
}

// ended is called when the rows are closed. It reports whether the primary has begun to answer instead.
func (r *batchRows) ended() (moved bool) {
	if r.settled {
		return false
	}
	r.settled = true
	if !r.batch.move(r.Rows.Err()) {
		return false
	}
	r.Rows, _ = r.batch.BatchResults.Query()
	return true
}

func (r *batchRows) Next() bool {
	if r.Rows.Next() {
		r.settled = true
		return true
	}
	return r.ended() && r.Rows.Next()
}

func (r *batchRows) Close() {
	r.Rows.Close()
	if r.ended() {
		r.Rows.Close()
	}
}

// pinnedBatch is a batch on a replica that does not move. If it began a transaction, that gives the connection back.
type pinnedBatch struct {
	pgx.BatchResults
	tx replicaTx // its Tx is nil if there is none
}

func (b *pinnedBatch) Close() error {
	err := b.BatchResults.Close()
	if b.tx.Tx == nil {
		b.tx.release()
	}
	return err
}

func (b *pinnedBatch) Tx() pgx.Tx {
	if b.tx.Tx == nil {
		return nil
	}
	return &b.tx
}
