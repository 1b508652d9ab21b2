package flyregion

import (
	"context"
	"errors"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// replicaBatch is a batch of reads on a replica. If the replica cannot run a query, that query and all after it run on the
// primary. The queries before have only read, and each query of a batch has a snapshot of its own anyway.
//
// What is sent is a copy, because pgx changes a batch that it sends, and because the app may change its own before a query
// moves. The callbacks of the copy call those of the app's batch, so that pgx decides which are run.
type replicaBatch struct {
	pgx.BatchResults // of whichever server answers

	replicaRead[*pgxpool.Conn]
	route   route
	ctx     context.Context
	caller  *pgx.Batch
	queries []pgx.QueuedQuery // what the caller's batch was when it was sent
	next    int               // of queries, whose result is next
	rows    *replicaRows      // of the latest query, if the replica answers it
	moved   bool              // another server answers
	failed  bool              // an error was returned to the app, so that no query moves any more
	stop    error             // what the remaining callbacks return instead of being run
	closing bool              // Close runs, which uses the connection until it ends
	closed  bool
	err     error // what Close returns
}

// errNoCallbacks ends the results of a batch without running the callbacks that are left.
var errNoCallbacks = errors.New("flyregion: no more callbacks")

// sendBatch sends a batch to a replica. An error that pgx finds before anything is run is settled here.
func (rd *reads) sendBatch(ctx context.Context, rt *route, b *pgx.Batch) pgx.BatchResults {
	if rt.target == targetReplica {
		return rd.sendPinnedBatch(ctx, rt, b)
	}
	batch := &replicaBatch{ctx: ctx, caller: b}
	if batch.queries = copyQueries(b.QueuedQueries); batch.queries == nil {
		rt.toPrimary(becauseConsumable)
		return nil
	}
	results, read, err := onReplica(ctx, rd, rt, plainConns, "", func(conn *pgxpool.Conn) (pgx.BatchResults, error) {
		// The app's own arguments are encoded first. The copies are encoded only if a query moves.
		sent := batch.from(0)
		for i, q := range b.QueuedQueries {
			sent.QueuedQueries[i].Arguments = q.Arguments
		}
		results := conn.SendBatch(ctx, sent)
		if conn.Conn().IsClosed() {
			return nil, closeUnread(results, len(batch.queries))
		}
		return results, nil
	})
	if rt.to == targetPrimary {
		return nil
	}
	if err != nil {
		return pgx.FailedBatchResults(b, err)
	}
	if conn := read.conn.Conn(); !conn.PgConn().IsBusy() {
		// It was not sent.
		defer read.release()
		err := closeUnread(results, len(batch.queries))
		var preprocessing pgx.ErrPreprocessingBatch
		_ = errors.As(err, &preprocessing)
		if why := rd.router.fallbackReason(ctx, rt, conn, preprocessing.SQL(), err); why != "" {
			rt.toPrimary(why)
			return nil
		}
		if rd.router.triesAnother(ctx, rt, conn, preprocessing.SQL(), err) {
			rt.lost.add(rt, read.replica, err)
			return rd.sendBatch(ctx, rt, b)
		}
		return pgx.FailedBatchResults(b, err)
	}
	batch.BatchResults, batch.replicaRead, batch.route = results, read, *rt
	return batch
}

// closeUnread closes the results of a batch that was not sent, or whose connection is closed, and returns the first error. It runs
// no callback, as Close would if the connection was closed just after the batch had been sent.
func closeUnread(results pgx.BatchResults, queries int) (first error) {
	for range queries {
		if _, err := results.Exec(); first == nil {
			first = err
		}
	}
	if err := results.Close(); first == nil {
		first = err
	}
	return first
}

// copyQueries returns the queries with copies of their arguments, nil if one cannot be copied.
func copyQueries(queries []*pgx.QueuedQuery) []pgx.QueuedQuery {
	n := 0
	for _, q := range queries {
		n += len(q.Arguments)
	}
	copies, args := make([]pgx.QueuedQuery, len(queries)), make([]any, 0, n)
	for i, q := range queries {
		from := len(args)
		for _, arg := range q.Arguments {
			c, ok := copyArgument(arg)
			if !ok {
				return nil
			}
			args = append(args, c)
		}
		copies[i] = pgx.QueuedQuery{SQL: q.SQL, Arguments: args[from:len(args):len(args)]}
	}
	return copies
}

// from returns the queries from one on as a batch that pgx may change.
func (b *replicaBatch) from(first int) *pgx.Batch {
	queries := slices.Clone(b.queries[first:])
	callback := func(pgx.BatchResults) error { return b.callback() }
	batch := &pgx.Batch{QueuedQueries: make([]*pgx.QueuedQuery, len(queries))}
	for i := range queries {
		queries[i].Fn = callback
		batch.QueuedQueries[i] = &queries[i]
	}
	return batch
}

// callback runs the callback of the next query, as pgx would.
func (b *replicaBatch) callback() error {
	if b.stop != nil {
		return b.stop
	}
	if b.next < len(b.caller.QueuedQueries) {
		if f := b.caller.QueuedQueries[b.next].Fn; f != nil {
			b.stop = f(b)
			return b.stop
		}
	}
	// Its error is that of the results, if it ends them.
	_, _ = b.Exec()
	return nil
}

// move sends the query whose result was err, and all after it, to another server if that is allowed.
func (b *replicaBatch) move(err error) (moved bool) {
	if b.moved || b.closed || b.next > len(b.queries) {
		return false
	}
	if b.rows != nil {
		b.rows.Close() // the error may be theirs
	}
	if b.failed {
		return false
	}

	// Close first, as only then it is certain whether the connection is still open. It must not run any callback.
	b.stop = err
	_ = b.BatchResults.Close()
	b.stop = nil
	rt := b.route
	sql := b.queries[b.next-1].SQL
	why := b.reads.router.fallbackReason(b.ctx, &rt, b.conn.Conn(), sql, err)
	another := why == "" && b.reads.router.triesAnother(b.ctx, &rt, b.conn.Conn(), sql, err)
	if why == "" && !another {
		b.failed = true
		return false
	}
	b.moved = true
	if !b.closing {
		b.release()
	}
	rest := b.from(b.next - 1)
	if another {
		rt.lost.add(&rt, b.replica, err)
		if b.BatchResults = b.reads.sendBatch(b.ctx, &rt, rest); rt.to == targetReplica {
			return true
		}
	} else {
		rt.toPrimary(why)
	}
	b.BatchResults = b.reads.primary.sendBatch(b.ctx, &rt, rest)
	return true
}

// served notes that the replica has run the latest query.
func (b *replicaBatch) served() {
	if !b.moved && b.next <= len(b.queries) {
		b.reads.router.served(&b.route, b.queries[b.next-1].SQL)
	}
}

func (b *replicaBatch) Exec() (pgconn.CommandTag, error) {
	b.next++
	tag, err := b.BatchResults.Exec()
	if err == nil {
		b.served()
	} else if b.move(err) {
		return b.BatchResults.Exec()
	}
	return tag, err
}

// Query returns when the first row has arrived, as that of a pool does.
func (b *replicaBatch) Query() (pgx.Rows, error) {
	b.next++
	sent, err := b.BatchResults.Query()
	if b.moved || b.closed || b.next > len(b.queries) {
		return sent, err
	}
	rows := &replicaRows{replicaRead: replicaRead[*pgxpool.Conn]{reads: b.reads}, sql: b.queries[b.next-1].SQL, failed: &b.failed}
	err = rows.start(sent, err)
	if failure := sent.Err(); failure == nil {
		b.served()
	} else if b.move(failure) {
		return b.BatchResults.Query()
	}
	b.rows = rows
	return rows, err
}

func (b *replicaBatch) QueryRow() pgx.Row {
	rows, _ := b.Query()
	return &row{rows}
}

// Close does what the Close of pgx's own results does: it runs the callbacks of the queries whose results were not read,
// up to the first error. No connection is lost where one of them panics.
func (b *replicaBatch) Close() error {
	if b.closed {
		return b.err
	}
	b.closing = true
	moved, returned := b.moved, false
	defer func() {
		if !returned {
			b.stop = errNoCallbacks
			_ = b.BatchResults.Close()
		}
		b.closed = true
		b.release()
	}()

	b.err = b.BatchResults.Close()
	if b.rows != nil {
		b.rows.Close()
	}
	if b.moved && !moved {
		if b.err = b.BatchResults.Close(); b.stop != nil {
			b.err = b.stop
		}
	}
	returned = true
	if b.err == nil && !b.moved {
		for _, q := range b.queries {
			b.reads.router.served(&b.route, q.SQL)
		}
	}
	return b.err
}

// pinnedBatch is a batch on a replica that does not move. If it has begun a transaction, the transaction releases the
// connection.
type pinnedBatch struct {
	pgx.BatchResults
	tx replicaTx // its Tx is nil if there is none
}

func (rd *reads) sendPinnedBatch(ctx context.Context, rt *route, b *pgx.Batch) pgx.BatchResults {
	results, read, err := onReplica(ctx, rd, rt, plainConns, "", func(conn *pgxpool.Conn) (pgx.BatchResults, error) {
		return conn.SendBatch(ctx, b), nil
	})
	if err != nil {
		return pgx.FailedBatchResults(b, err)
	}
	return &pinnedBatch{results, replicaTx{Tx: results.Tx(), replicaRead: read}}
}

func (b *pinnedBatch) Close() error {
	if b.tx.Tx == nil {
		defer b.tx.release() // where a callback panics too
	}
	return b.BatchResults.Close()
}

func (b *pinnedBatch) Tx() pgx.Tx {
	if b.tx.Tx == nil {
		return nil
	}
	return &b.tx
}
