package flyregion

import (
	"context"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// replicaRead is the connection of one read on a replica.
type replicaRead[C pooledConn] struct {
	reads   *reads
	replica *replica
	from    connSource[C]
	conn    C // nil once it was released
}

// release releases the connection. Further calls do nothing.
func (r *replicaRead[C]) release() {
	if conn := r.conn; conn != nil {
		r.conn = nil
		r.from.release(r.replica, conn)
	}
}

// onReplica runs a read on a replica that has replayed what the route's session has written. run sends the read, and
// returns when it has failed, or can no longer fail in a way that lets it move to the primary. When onReplica returns and
// the route leads to the primary, the caller must run the read there: the caller has seen nothing of it yet. Otherwise the
// error is the read's. A read that has not failed keeps its connection until it is released.
func onReplica[C pooledConn, T any](ctx context.Context, rd *reads, rt *route, from connSource[C], sql string, run func(C) (T, error)) (result T, read replicaRead[C], err error) {
	for {
		var another bool
		if result, read, another, err = tryReplica(ctx, rd, rt, from, sql, run); !another {
			return result, read, err
		}
	}
}

// tryReplica runs a read on one replica for onReplica. It reports whether to try another one, as this one has lost the read or
// could not run it, and it may not run on the primary.
func tryReplica[C pooledConn, T any](ctx context.Context, rd *reads, rt *route, from connSource[C], sql string, run func(C) (T, error)) (result T, read replicaRead[C], another bool, err error) {
	rep, conn, err := acquireReplica(ctx, rd, rt, from)
	if conn == nil {
		return result, read, false, err
	}
	read = replicaRead[C]{reads: rd, replica: rep, from: from, conn: conn}
	ran := false
	defer func() {
		if err != nil || !ran {
			read.release()
		}
	}()

	result, err = run(conn)
	ran = true
	if err == nil {
		rd.router.served(rt, sql)
		return result, read, false, nil
	}
	why := rd.router.fallbackReason(ctx, rt, conn.Conn(), sql, err)
	switch {
	case why != "":
		rt.toPrimary(why)
	case rd.router.triesAnother(ctx, rt, conn.Conn(), sql, err):
		rt.lost.add(rt, rep, err)
		another = true
	}
	return result, read, another, err
}

// exec runs a statement on a replica.
func (rd *reads) exec(ctx context.Context, rt *route, sql string, args []any) (pgconn.CommandTag, error) {
	tag, read, err := onReplica(ctx, rd, rt, plainConns, sql, func(conn *pgxpool.Conn) (pgconn.CommandTag, error) {
		return conn.Exec(ctx, sql, args...)
	})
	read.release()
	return tag, err
}
