package flyregion

import (
	"context"
	"errors"
	"slices"
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

	var (
		tried  []*replica
		failed error // of the first one that was tried
	)
	for {
		rep := rd.replicas.choose(rt, state, tried)
		if rep == nil && rd.outage(ctx, rt) {
			rt.farBehind = true
			tried, failed = nil, nil
			rep = rd.replicas.choose(rt, state, nil)
		}
		switch {
		case rep != nil:
		case !rt.mayFallBack() && !slices.ContainsFunc(tried, func(r *replica) bool { return !r.host.reserve }):
			rep = rd.replicas.preferred() // its error says more than that of a reserve
		case len(tried) > 0:
			if rt.mayFallBack() {
				rt.region = tried[0].region
				if region, cause := rd.replicas.whyNone(); tried[0].host.reserve && cause != nil {
					rt.region, failed = region, cause
				}
				rt.fallBack(causeReason(failed), failed)
				failed = nil
			}
			return nil, nil, failed
		default:
			rt.region, err = rd.replicas.whyNone()
			rt.fallBack(causeReason(err), err)
			return nil, nil, nil
		}
		rt.region = rep.region
		rep, conn, err := acquireFresh(ctx, rd, rt, rep, from, state)
		if errors.Is(err, errOutdated) {
			rd.outdate(rt, state)
			if state, err = rd.required(ctx, rt); err != nil || rt.to == targetPrimary {
				return nil, nil, err
			}
			rep, conn, err = acquireFresh(ctx, rd, rt, rep, from, state)
		}
		rt.region = rep.region
		switch {
		case err == nil && rep.notPreferred() && rd.replicas.hasPreferred(rep, tried):
			// The connection has told that it is no standby.
			from.release(rep, conn)
		case err == nil && rt.undecided != nil && !rd.decide(ctx, rt, rep, conn.Conn()):
			from.release(rep, conn)
			return nil, nil, ctx.Err()
		case err == nil:
			pid := conn.Conn().PgConn().PID()
			rep.reads.add(pid)
			rd.telemetry.sent(ctx, targetReplica, rt.why, pid)
			return rep, conn, nil
		case hookFailed(err) != nil:
			return nil, nil, hookFailed(err)
		case errors.Is(err, errOutdated):
			err = &ReplicaLagError{Region: rep.region, Required: state.position}
		}
		if rt.wants == wantsRecent && errors.Is(err, ErrReplicaLag) {
			err = rd.tooFarError(rt, rep)
		}
		switch {
		case err == nil: // the next one, which is a standby
		case ctx.Err() != nil:
			return nil, nil, err
		case errors.Is(err, errClosedPool):
			if !rep.left.Load() {
				return nil, nil, err
			}
		case errors.Is(err, errSooner):
			rt.toPrimary(becauseSooner)
			return nil, nil, nil
		case causeReason(err) == becauseBehind: // another one may be less behind
		case errors.Is(err, ErrReplicaLag):
			if !rt.mayFallBack() {
				return nil, nil, err
			}
			rt.fallBack(becauseLag, err)
			return nil, nil, nil
		case errors.Is(err, context.DeadlineExceeded):
			// The read has waited long enough.
			if !rt.mayFallBack() {
				return nil, nil, err
			}
			rt.fallBack(becauseUnreachable, err)
			return nil, nil, nil
		}
		tried = append(tried, rep)
		if failed == nil && (rt.mayFallBack() || !rep.host.reserve) {
			failed = err
		}
	}
}

// outage reports whether replicas that are left alone must serve a read, as the primary cannot be reached. Under WithMaxLag and
// WithFresh they must not: those reads are promised more.
func (rd *reads) outage(ctx context.Context, rt *route) bool {
	return !rt.farBehind && (rt.wants == wantsSession || rt.wants == wantsAny) && rd.replicas.farBehind() && !rd.primary.reachable(ctx)
}

// causeReason returns why no replica serves a read because of an error.
func causeReason(err error) reason {
	var lag *ReplicaLagError
	switch {
	case errors.As(err, &lag) && lag.Limit > 0:
		return becauseBehind
	case lag != nil:
		return becauseLag
	}
	return becauseUnreachable
}

// required returns what a read on the route has to see.
func (rd *reads) required(ctx context.Context, rt *route) (sessionState, error) {
	switch rt.wants {
	case wantsAny:
		return sessionState{}, nil
	case wantsSession:
		return rd.requiredOfSession(ctx, rt)
	}
	return rd.requiredOfAll(ctx, rt)
}

// requiredOfSession is required for a read that has to see what its session has written. If the position of the session's last
// write is not known, the read goes to the primary, unless the context wants the replica: it takes one round trip as the
// question would, sees everything, and tells the position too.
func (rd *reads) requiredOfSession(ctx context.Context, rt *route) (sessionState, error) {
	session := rd.sessionOf(rt)
	state := rd.primary.written(session)
	if !rt.mayFallBack() || rd.primary.covers(state) {
		return rd.primary.positionOf(ctx, session)
	}
	if rd.primary.stays(session) {
		rt.toPrimary(becauseSooner)
	} else {
		rt.fallBack(becauseUnknown, notCoveredError(state))
	}
	return sessionState{}, nil
}

// requiredOfAll is required for a read that has to see what everybody has written. If the primary does not tell its position
// the read goes there, unless the context wants the replica.
func (rd *reads) requiredOfAll(ctx context.Context, rt *route) (state sessionState, err error) {
	var own sessionState
	if rt.wants == wantsRecent {
		state, err = rd.primary.recentFlush(ctx, rt.maxLag)
	} else {
		if own, err = rd.requiredOfSession(ctx, rt); err != nil || rt.to == targetPrimary {
			return own, err
		}
		state, err = rd.primary.currentFlush(ctx)
	}
	switch {
	case err != nil && (ctx.Err() != nil || !rt.mayFallBack()):
		return sessionState{}, err
	case err != nil:
		rt.fallBack(becauseUnknown, err)
		return sessionState{}, nil
	case own.position > 0 && (own.position > state.position || own.origin != state.origin):
		return own, nil // the session has written asynchronously, or the primary has changed just now
	}
	return state, nil
}

// tooFarError returns the error of a read under WithMaxLag that a replica is too far behind for.
func (rd *reads) tooFarError(rt *route, rep *replica) error {
	e := &ReplicaLagError{Region: rep.region, Limit: rt.maxLag, Lag: unknownLag}
	o, now := rep.tracker.latest.Load(), time.Now()
	if o == nil {
		return e
	}
	if k := rd.primary.flushes.known.Load(); k != nil {
		if m := k.marks.before(o.position); m != nil {
			e.Lag = elapsed(m.at, now)
		}
	}
	if c := rd.primary.wallClock.Load(); c != nil && o.committed > 0 {
		e.Lag = min(e.Lag, c.when(now).since(o.committed))
	}
	if e.Lag <= e.Limit {
		e.Lag = unknownLag // it does not show that it follows the primary
	}
	return e
}

// outdate notes that what a read has to see was found to be outdated, in the sense of verdict.
func (rd *reads) outdate(rt *route, state sessionState) {
	if rt.wants == wantsRecent {
		rd.primary.flushes.forget()
	}
	rd.sessionOf(rt).outdate(state)
}

// sessionOf returns the session that a route reads in: the context's, or else the pool's.
func (rd *reads) sessionOf(rt *route) *Session {
	if rt.session != nil {
		return rt.session
	}
	return &rd.primary.session
}

// acquireFresh acquires a connection to a replica that has replayed what state covers, and waits for that within the limits
// of await. If the replica was chosen in vain, one that is as good may serve in its place. acquireFresh returns the one that
// the connection is to, or that the error comes from. The error is errOutdated if the primary has to be asked for another
// position first.
func acquireFresh[C pooledConn](ctx context.Context, rd *reads, rt *route, rep *replica, from connSource[C], state sessionState) (*replica, C, error) {
	conn, err := acquireConn(ctx, rep, from)
	if err != nil {
		return rep, nil, err
	}
	if rt.wants != wantsRecent {
		if err := rep.checkLag(ctx, rt, conn.Conn(), rep.now.Load()); err != nil {
			from.release(rep, conn)
			return rep, nil, err
		}
	}
	verdict := rep.verdict(conn.Conn(), state)
	if verdict == behind {
		checks := rt.mayFallBack() && rep.tracker.beginCheck()
		if checks || pooled(conn.Conn()) || rt.wants == wantsRecent {
			verdict, err = rep.ask(ctx, conn.Conn(), state)
		}
		if checks {
			rep.tracker.endCheck()
		}
		if err != nil {
			from.release(rep, conn)
			return rep, nil, err
		}
		if verdict == behind && rt.wants == wantsRecent && rep.tracker.showsUntil(replicaConnOf(conn.Conn()).report, rt.maxLag, time.Now()) {
			verdict = caughtUp
		}
	}
	if verdict == caughtUp {
		return rep, conn, nil
	}
	opened := openedAt(conn.Conn())
	from.release(rep, conn)
	switch {
	case verdict == outdated:
		return rep, nil, errOutdated
	case rt.mayFallBack() && rt.wants == wantsRecent:
		return rep, nil, ErrReplicaLag
	}
	candidates := rd.replicas.alike(rt, rep)
	if rt.mayFallBack() {
		candidates = slices.DeleteFunc(candidates, func(r *replica) bool { return r.tracker.lagging() })
		switch {
		case len(candidates) == 0:
			if rd.primary.minWait == 0 {
				rd.primary.stay()
			}
			return rep, nil, rep.lagError(rep.tracker.latest.Load(), state)
		case !slices.ContainsFunc(candidates, func(r *replica) bool { return !rd.primarySooner(r, state) }):
			for _, r := range candidates {
				r.tracker.lookInBackground(state)
			}
			rd.primary.stay()
			return rep, nil, errSooner
		}
	}
	if candidates[0] != rep {
		opened = 0
	}
	return await(ctx, rd, rt, candidates, from, state, opened)
}

// primarySooner reports whether the primary is expected to answer a read before the replica shows what the read's session has
// written. With a MinReplicaWait such a read waits all the same.
func (rd *reads) primarySooner(rep *replica, state sessionState) bool {
	return rd.primary.minWait == 0 && rep.tracker.delay.remaining(state) > rd.primary.waitLimit()
}

// await waits until one of the candidates has replayed what state covers, and acquires a connection to it. It waits no longer
// than a round trip to the primary takes, or than MaxReplicaWait if the context is of WithReplica or WithFresh. opened is when
// the connection to the first one was opened that the wait began on, by this process's clock: its reports from before do not
// count.
func await[C pooledConn](ctx context.Context, rd *reads, rt *route, candidates []*replica, from connSource[C], state sessionState, opened uint64) (*replica, C, error) {
	limit := rd.primary.waitLimit()
	if !rt.mayFallBack() || rt.wants == wantsAll {
		limit = rd.primary.maxWait
	}
	wait := rd.telemetry.startWait(ctx, candidates[0].region, state.position)
	rep, conn, err := awaitReplay(ctx, candidates, from, state, opened, limit)
	wait.region = rep.region
	found := rep.tracker.replayed()
	switch {
	case err == nil:
		wait.end(ctx, max(found, state.position), waitReplayed)
	case ctx.Err() != nil:
		wait.end(ctx, found, waitCanceled)
	case !rt.mayFallBack():
		wait.end(ctx, found, waitRefused)
	default:
		wait.end(ctx, found, waitFellBack)
	}
	return rep, conn, err
}

// awaitReplay is await without telemetry. It holds no connection while it waits for the watcher, so that other reads find
// one however many wait.
func awaitReplay[C pooledConn](ctx context.Context, candidates []*replica, from connSource[C], state sessionState, opened uint64, limit time.Duration) (*replica, C, error) {
	began := time.Now()
	rep, err := waitAny(ctx, candidates, state, opened, limit)
	late := errors.Is(err, errNotReplayed)
	if err != nil && !late {
		return rep, nil, err
	}
	missed := func() {
		for _, r := range candidates {
			r.tracker.miss(state)
		}
	}
	if late && !rep.hasIdle() {
		missed()
		return rep, nil, rep.noReportError(state, opened, limit)
	}
	conn, err := acquireConn(ctx, rep, from)
	if err != nil {
		return rep, nil, err
	}
	if !late && rep.verdict(conn.Conn(), state) == caughtUp {
		return rep, conn, nil
	}

	// The connection was opened after the watcher's report, or leads to another server of the region. Or the watcher was
	// late, as this process is busy. To ask on this connection costs less than a round trip to the primary.
	for {
		verdict, err := rep.ask(ctx, conn.Conn(), state)
		if err == nil && verdict == caughtUp {
			return rep, conn, nil
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
			return rep, nil, err
		case verdict == outdated:
			return rep, nil, errOutdated
		}
		missed()
		return rep, nil, rep.lagError(last, state)
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
			required = rd.primary.written(&rd.primary.session)
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
