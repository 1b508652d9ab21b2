package flyregion

import (
	"context"
	"errors"
	"time"

	"github.com/flyregion/flyregion/internal/sqltext"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// reads runs reads on replicas.
type reads struct {
	router    *router
	replicas  *replicas
	primary   *primary
	telemetry *telemetry
}

// replicaRead is one read on a replica: its connection, and whether it may still move to the primary.
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

// onReplica runs a read on a replica that shows what the route's session has written: run sends it, and returns when it
// can no longer fail in a way that the primary could mend, or has failed. If the route leads to the primary when onReplica
// returns, the primary is to run the read, and nothing of it has happened. If not, the error is to be returned. A read
// that has not failed keeps its connection until it is released.
func onReplica[C pooledConn, T any](ctx context.Context, rd *reads, rt *route, from connSource[C], sql string, run func(C) (T, error)) (result T, read replicaRead[C], err error) {
	rep, conn, err := acquireReplica(ctx, rd, rt, from)
	if conn == nil {
		return result, read, err
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
	if err != nil {
		if why := rd.router.fallbackReason(ctx, rt, conn.Conn(), sql, err); why != "" {
			rt.toPrimary(why)
		}
		return result, read, err
	}
	rd.router.served(rt, sql)
	return result, read, nil
}

// acquireReplica returns a connection to a replica that shows what the route's session has written. If no replica can
// serve, the connection is nil, and either the error is to be returned or the route leads to the primary.
func acquireReplica[C pooledConn](ctx context.Context, rd *reads, rt *route, from connSource[C]) (*replica, C, error) {
	state, err := rd.required(ctx, rt)
	if err != nil || rt.to == targetPrimary {
		return nil, nil, err
	}

	rep := rd.replicas.choose()
	if rep == nil {
		if rt.target != targetReplica {
			rt.toPrimary(becauseUnreachable)
			return nil, nil, nil
		}
		rep = rd.replicas.list[0]
	}
	conn, err := acquireFresh(ctx, rd, rt, rep, from, state)
	if errors.Is(err, errOutdated) {
		rd.sessionOf(rt).outdate(state)
		if state, err = rd.required(ctx, rt); err != nil || rt.to == targetPrimary {
			return nil, nil, err
		}
		conn, err = acquireFresh(ctx, rd, rt, rep, from, state)
	}
	switch {
	case err == nil && rt.undecided != nil && !rd.decide(ctx, rt, rep, conn.Conn()):
		from.release(rep, conn)
		return nil, nil, ctx.Err()
	case err == nil:
		rd.telemetry.sent(ctx, targetReplica, rt.why)
		return rep, conn, nil
	case hookFailed(err) != nil:
		return nil, nil, hookFailed(err)
	case errors.Is(err, errOutdated):
		err = &ReplicaLagError{Region: rep.region, Required: state.position}
	}
	switch {
	case ctx.Err() != nil || errors.Is(err, errClosedPool) || rt.target == targetReplica:
		return nil, nil, err
	case errors.Is(err, ErrReplicaLag):
		rt.toPrimary(becauseLag)
	default:
		rt.toPrimary(becauseUnreachable)
	}
	return nil, nil, nil
}

// required returns what a read on the route has to see. If nobody knows the position of the session's last write, a read
// that runs on the primary costs no more than asking, sees everything, and brings the position along: it goes there,
// unless the caller wants the replica.
func (rd *reads) required(ctx context.Context, rt *route) (sessionState, error) {
	if rt.noWait {
		return sessionState{}, nil
	}
	session := rd.sessionOf(rt)
	if state := session.load(); rt.target == targetReplica || rd.primary.covers(state) {
		return rd.primary.positionOf(ctx, session)
	}
	rt.toPrimary(becauseUnknown)
	return sessionState{}, nil
}

func (rd *reads) sessionOf(rt *route) *Session {
	if rt.session != nil {
		return rt.session
	}
	return &rd.primary.session
}

// acquireFresh returns a connection to a replica that shows what state covers, and waits for that as long as it is worth
// it. The error is errOutdated if another position has to be asked for first.
func acquireFresh[C pooledConn](ctx context.Context, rd *reads, rt *route, rep *replica, from connSource[C], state sessionState) (C, error) {
	conn, err := acquireConn(ctx, rep, from)
	if err != nil {
		return nil, err
	}
	verdict := rep.verdict(conn.Conn(), state)
	if verdict == behind && pooled(conn.Conn()) {
		if verdict, err = rep.ask(ctx, conn.Conn(), state); err != nil {
			from.release(rep, conn)
			return nil, err
		}
	}
	if verdict == caughtUp {
		return conn, nil
	}
	opened := openedAt(conn.Conn())
	from.release(rep, conn)
	switch {
	case verdict == outdated:
		return nil, errOutdated
	case rt.target != targetReplica && rep.tracker.lagging():
		return nil, rep.lagError(rep.tracker.latest.Load(), state)
	}
	return await(ctx, rd, rt, rep, from, state, opened)
}

// await waits until a replica shows what state covers, and returns a connection to it.
func await[C pooledConn](ctx context.Context, rd *reads, rt *route, rep *replica, from connSource[C], state sessionState, opened uint64) (C, error) {
	limit := rd.primary.waitLimit()
	if rt.target == targetReplica {
		limit = rd.primary.maxWait
	}
	wait := rd.telemetry.startWait(ctx, rep.region, state.position)
	conn, err := awaitReplay(ctx, rep, from, state, opened, limit)
	found := rep.tracker.replayed()
	switch {
	case err == nil:
		wait.end(ctx, max(found, state.position), waitReplayed)
	case ctx.Err() != nil:
		wait.end(ctx, found, waitCanceled)
	case rt.target == targetReplica:
		wait.end(ctx, found, waitRefused)
	default:
		wait.end(ctx, found, waitFellBack)
	}
	return conn, err
}

// awaitReplay is await without telling anybody. Nobody who waits for the watcher has a connection, so that however many
// they are, they keep no other from reading.
func awaitReplay[C pooledConn](ctx context.Context, rep *replica, from connSource[C], state sessionState, opened uint64, limit time.Duration) (C, error) {
	began := time.Now()
	err := rep.tracker.wait(ctx, state, opened, limit)
	late := errors.Is(err, errNotReplayed)
	if err != nil && !late {
		return nil, err
	}
	if late && !rep.hasIdle() {
		rep.tracker.miss(state)
		return nil, rep.noReportError(state, opened)
	}
	conn, err := acquireConn(ctx, rep, from)
	if err != nil {
		return nil, err
	}
	if !late && rep.verdict(conn.Conn(), state) == caughtUp {
		return conn, nil
	}

	// The connection is younger than what the watcher knows, or leads to another server of the region. Or the watcher
	// was late, as this process has much else to do. Asking here costs less than crossing the sea.
	for {
		verdict, err := rep.ask(ctx, conn.Conn(), state)
		if err == nil && verdict == caughtUp {
			return conn, nil
		}
		waited := time.Since(began)
		if err == nil && verdict == behind && waited < limit {
			if err = sleep(ctx, min(max(waited/pausePart, pollTime), maxPollPause)); err == nil {
				continue
			}
		}
		said := replicaConnOf(conn.Conn()).report
		from.release(rep, conn)
		switch {
		case err != nil:
			return nil, err
		case verdict == outdated:
			return nil, errOutdated
		}
		rep.tracker.miss(state)
		return nil, rep.lagError(said, state)
	}
}

// exec runs a statement on a replica.
func (rd *reads) exec(ctx context.Context, rt *route, sql string, args []any) (pgconn.CommandTag, error) {
	tag, read, err := onReplica(ctx, rd, rt, plainConns, sql, func(conn *pgxpool.Conn) (pgconn.CommandTag, error) {
		return conn.Exec(ctx, sql, args...)
	})
	read.release()
	return tag, err
}

// decide asks the catalog about texts of which the router could not tell whether they read. It reports whether they do;
// if not, the route leads to the primary.
func (rd *reads) decide(ctx context.Context, rt *route, rep *replica, conn *pgx.Conn) bool {
	limited, cancel := context.WithTimeout(ctx, rd.primary.maxWait)
	defer cancel()

	answers, err := rd.router.statements.catalog.ask(limited, conn.PgConn(), func(required sessionState) bool {
		if !rd.primary.covers(required) {
			required = rd.primary.session.load()
		}
		return rd.primary.covers(required) && rep.verdict(conn, required) == caughtUp
	}, func(known *catalogAnswers) (names []string) {
		for _, sql := range rt.undecided {
			names = append(names, sqltext.UnknownCalls(sql, rd.router.statements.facts(known))...)
		}
		return names
	})
	if err != nil {
		if limited.Err() != nil && ctx.Err() == nil && conn.IsClosed() {
			rep.health.fail() // so that others do not wait for it as long
		}
		rt.toPrimary(becauseCatalog)
		return false
	}
	facts := rd.router.statements.facts(answers)
	for _, sql := range rt.undecided {
		s := sqltext.Inspect(sql, facts)
		switch {
		case s.Access == sqltext.Write:
			rt.toPrimary(becauseWrite)
			return false
		case s.UnknownCalls:
			rt.toPrimary(becauseCatalog)
			return false
		}
	}
	return true
}
