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

// reads runs reads on replicas. None of its fields changes once the Pool is open.
type reads struct {
	router    *router
	replicas  *replicas
	primary   *primary
	telemetry *telemetry
}

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

// acquireReplica acquires a connection to a replica that has replayed what the route's session has written. If no replica
// can serve, the connection is nil, and either the error is not nil or the route leads to the primary.
func acquireReplica[C pooledConn](ctx context.Context, rd *reads, rt *route, from connSource[C]) (*replica, C, error) {
	state, err := rd.required(ctx, rt)
	if err != nil || rt.to == targetPrimary {
		return nil, nil, err
	}

	rep := rd.replicas.choose()
	if rep == nil {
		if rt.target != targetReplica {
			first := rd.replicas.list[0]
			rt.region = first.region
			rt.fallBack(becauseUnreachable, first.connects.lastError())
			return nil, nil, nil
		}
		rep = rd.replicas.list[0]
	}
	rt.region = rep.region
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
		rd.telemetry.sent(ctx, targetReplica, rt.why, conn.Conn().PgConn().PID())
		return rep, conn, nil
	case hookFailed(err) != nil:
		return nil, nil, hookFailed(err)
	case errors.Is(err, errOutdated):
		err = &ReplicaLagError{Region: rep.region, Required: state.position}
	}
	switch {
	case ctx.Err() != nil || errors.Is(err, errClosedPool) || rt.target == targetReplica:
		return nil, nil, err
	case errors.Is(err, errSooner):
		rt.toPrimary(becauseSooner)
	case errors.Is(err, ErrReplicaLag):
		rt.fallBack(becauseLag, err)
	default:
		rt.fallBack(becauseUnreachable, err)
	}
	return nil, nil, nil
}

// required returns what a read on the route has to see. If the position of the session's last write is not known, the read
// goes to the primary, unless the context wants the replica: it takes one round trip as the question would, sees
// everything, and tells the position too.
func (rd *reads) required(ctx context.Context, rt *route) (sessionState, error) {
	if rt.noWait {
		return sessionState{}, nil
	}
	session := rd.sessionOf(rt)
	state := session.load()
	if rt.target == targetReplica || rd.primary.covers(state) {
		return rd.primary.positionOf(ctx, session)
	}
	if rd.primary.stays(session) {
		rt.toPrimary(becauseSooner)
	} else {
		rt.fallBack(becauseUnknown, notCoveredError(state))
	}
	return sessionState{}, nil
}

// sessionOf returns the session that a route reads in: the context's, or else the pool's.
func (rd *reads) sessionOf(rt *route) *Session {
	if rt.session != nil {
		return rt.session
	}
	return &rd.primary.session
}

// acquireFresh acquires a connection to a replica that has replayed what state covers, and waits for that within the limits
// of await. The error is errOutdated if the primary has to be asked for another position first.
func acquireFresh[C pooledConn](ctx context.Context, rd *reads, rt *route, rep *replica, from connSource[C], state sessionState) (C, error) {
	conn, err := acquireConn(ctx, rep, from)
	if err != nil {
		return nil, err
	}
	verdict := rep.verdict(conn.Conn(), state)
	if verdict == behind {
		checks := rt.target != targetReplica && rep.tracker.beginCheck()
		if checks || pooled(conn.Conn()) {
			verdict, err = rep.ask(ctx, conn.Conn(), state)
		}
		if checks {
			rep.tracker.endCheck()
		}
		if err != nil {
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
		if rd.primary.minWait == 0 {
			rd.primary.stay()
		}
		return nil, rep.lagError(rep.tracker.latest.Load(), state)
	case rt.target != targetReplica && rd.primarySooner(rep, state):
		rep.tracker.lookInBackground(state)
		rd.primary.stay()
		return nil, errSooner
	}
	return await(ctx, rd, rt, rep, from, state, opened)
}

// primarySooner reports whether the primary is expected to answer a read before the replica shows what the read's session has
// written. With a MinReplicaWait such a read waits all the same.
func (rd *reads) primarySooner(rep *replica, state sessionState) bool {
	return rd.primary.minWait == 0 && rep.tracker.delay.remaining(state) > rd.primary.waitLimit()
}

// await waits until a replica has replayed what state covers, and acquires a connection to it. It waits no longer than a
// round trip to the primary takes, or than MaxReplicaWait if the context wants the replica. opened is when the
// connection was opened that the wait began on, by this process's clock: reports from before do not count.
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

// awaitReplay is await without telemetry. It holds no connection while it waits for the watcher, so that other reads find
// one however many wait.
func awaitReplay[C pooledConn](ctx context.Context, rep *replica, from connSource[C], state sessionState, opened uint64, limit time.Duration) (C, error) {
	began := time.Now()
	err := rep.tracker.wait(ctx, state, opened, limit)
	late := errors.Is(err, errNotReplayed)
	if err != nil && !late {
		return nil, err
	}
	if late && !rep.hasIdle() {
		rep.tracker.miss(state)
		return nil, rep.noReportError(state, opened, limit)
	}
	conn, err := acquireConn(ctx, rep, from)
	if err != nil {
		return nil, err
	}
	if !late && rep.verdict(conn.Conn(), state) == caughtUp {
		return conn, nil
	}

	// The connection was opened after the watcher's report, or leads to another server of the region. Or the watcher was
	// late, as this process is busy. To ask on this connection costs less than a round trip to the primary.
	for {
		verdict, err := rep.ask(ctx, conn.Conn(), state)
		if err == nil && verdict == caughtUp {
			return conn, nil
		}
		waited := time.Since(began)
		if err == nil && verdict == behind && waited < limit {
			if err = sleep(ctx, pollPause(waited)); err == nil {
				continue
			}
		}
		last := replicaConnOf(conn.Conn()).report
		from.release(rep, conn)
		switch {
		case err != nil:
			return nil, err
		case verdict == outdated:
			return nil, errOutdated
		}
		rep.tracker.miss(state)
		return nil, rep.lagError(last, state)
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

// decide asks the catalog about the statements of which the router could not tell whether they read. It reports whether all
// do. If not, the route leads to the primary.
func (rd *reads) decide(ctx context.Context, rt *route, rep *replica, conn *pgx.Conn) bool {
	limited, cancel := context.WithTimeout(ctx, rd.primary.maxWait)
	defer cancel()

	answers, err := rd.router.statements.catalog.ask(limited, conn.PgConn(), func(required sessionState) bool {
		if !rd.primary.covers(required) {
			required = rd.primary.session.load()
		}
		return rd.primary.covers(required) && rep.verdict(conn, required) == caughtUp
	}, func(answers *catalogAnswers) (names []string) {
		for _, sql := range rt.undecided {
			names = append(names, sqltext.UnknownCalls(sql, rd.router.statements.facts(answers))...)
		}
		return names
	})
	if err != nil {
		if limited.Err() != nil && ctx.Err() == nil && conn.IsClosed() {
			rep.fail(noAnswerError(rep.region, rd.primary.maxWait, err)) // so that other reads do not wait for it too
		}
		rt.fallBack(becauseCatalog, err)
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
