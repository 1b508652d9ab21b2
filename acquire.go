package flyregion

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/flyregion/flyregion/internal/sqltext"
	"github.com/jackc/pgx/v5"
)

// reads runs reads on replicas. None of its fields changes once the Pool is open.
type reads struct {
	router    *router
	replicas  *replicas
	primary   *primary
	telemetry *telemetry
}

// acquireReplica acquires a connection to a replica that shows what a read on the route has to see. If no replica can serve,
// the connection is nil, and either the error is not nil or the route leads to the primary.
func acquireReplica[C pooledConn](ctx context.Context, rd *reads, rt *route, from connSource[C]) (*replica, C, error) {
	state, err := rd.primary.required(ctx, rt)
	if err != nil || rt.to == targetPrimary {
		return nil, nil, err
	}
	tried := rt.lost
	for {
		rep := rd.choose(ctx, rt, state, &tried)
		if rep == nil {
			return nil, nil, rd.noReplica(rt, &tried)
		}
		rt.region = rep.region
		rep, conn, err := acquireFresh(ctx, rd, rt, rep, from, state)
		if errors.Is(err, errOutdated) {
			rd.primary.outdate(rt, state)
			if state, err = rd.primary.required(ctx, rt); err != nil || rt.to == targetPrimary {
				return nil, nil, err
			}
			rep, conn, err = acquireFresh(ctx, rd, rt, rep, from, state)
		}
		rt.region = rep.region
		switch {
		case err != nil:
			err = rd.explain(rt, rep, state, err)
			if another, result := rd.afterError(ctx, rt, rep, err); !another {
				return nil, nil, result
			}
			tried.add(rt, rep, err)
			if causeReason(err) == becauseLag {
				// No reserve serves in place of a replica that can be reached.
				tried.replicas = append(tried.replicas, rd.replicas.reserves()...)
			}
		case rep.notPreferred() && rd.replicas.hasPreferred(rt, tried.replicas):
			// The connection has told that it is no standby. A standby is tried first.
			from.release(rep, conn)
		case rt.undecided != nil && !rd.decide(ctx, rt, rep, conn.Conn()):
			from.release(rep, conn)
			return nil, nil, ctx.Err()
		default:
			pid := conn.Conn().PgConn().PID()
			rep.reads.add(pid)
			rd.telemetry.sent(ctx, targetReplica, rt.why, pid)
			return rep, conn, nil
		}
	}
}

// choose returns the replica that a read tries next, nil if there is none.
func (rd *reads) choose(ctx context.Context, rt *route, state sessionState, tried *attempts) *replica {
	rep := rd.replicas.choose(rt, state, tried.replicas)
	if rep == nil && rd.outage(ctx, rt) {
		rt.farBehind, *tried = true, attempts{}
		rep = rd.replicas.choose(rt, state, nil)
	}
	if rep == nil && !rt.mayFallBack() && !slices.ContainsFunc(tried.replicas, func(r *replica) bool { return !r.host.reserve }) {
		return rd.replicas.preferred() // its error says more than that of a reserve
	}
	return rep
}

// outage reports whether replicas that are left alone must serve a read, as the primary cannot be reached. Under WithMaxLag and
// WithFresh they must not: those reads are promised more.
func (rd *reads) outage(ctx context.Context, rt *route) bool {
	return !rt.farBehind && (rt.wants == wantsSession || rt.wants == wantsAny) && rd.replicas.farBehind() && !rd.primary.reachable(ctx)
}

// noReplica ends a read that no replica serves. The error is nil if the route leads to the primary now.
func (rd *reads) noReplica(rt *route, tried *attempts) error {
	if !rt.mayFallBack() {
		return tried.err
	}
	region, cause := rd.replicas.whyNone()
	if len(tried.replicas) > 0 && (cause == nil || !tried.replicas[0].host.reserve) {
		region, cause = tried.replicas[0].region, tried.err
	}
	rt.region = region
	rt.fallBack(causeReason(cause), cause)
	return nil
}

// explain returns the error of a read that a replica does not serve because of err.
func (rd *reads) explain(rt *route, rep *replica, state sessionState, err error) error {
	if errors.Is(err, errOutdated) {
		err = &ReplicaLagError{Region: rep.region, Required: state.position}
	}
	if rt.wants == wantsRecent && errors.Is(err, ErrReplicaLag) {
		return rd.tooFarError(rt, rep)
	}
	return err
}

// afterError reports whether a read tries another replica after the error of one. If not, result is the read's error, or nil
// if the route leads to the primary now.
func (rd *reads) afterError(ctx context.Context, rt *route, rep *replica, err error) (another bool, result error) {
	if hook := hookFailed(err); hook != nil {
		return false, hook
	}
	why := causeReason(err)
	switch {
	case ctx.Err() != nil:
		return false, err
	case errors.Is(err, errSooner):
		rt.toPrimary(becauseSooner)
		return false, nil
	case errors.Is(err, errClosedPool):
		return rep.left.Load(), err
	case why == becauseBehind: // another one may be less behind
		return true, nil
	case rt.mayFallBack() && (why == becauseLag || errors.Is(err, context.DeadlineExceeded)): // the read has waited long enough
		rt.fallBack(why, err)
		return false, nil
	}
	return true, nil
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

// acquireFresh acquires a connection to a replica that shows what state covers, and waits for that within the limits of await.
// If the replica was chosen in vain, one that is as good may serve in its place. acquireFresh returns the one that the
// connection is to, or that the error comes from. The error is errOutdated if the primary has to be asked for another position
// first.
func acquireFresh[C pooledConn](ctx context.Context, rd *reads, rt *route, rep *replica, from connSource[C], state sessionState) (*replica, C, error) {
	conn, err := acquireConn(ctx, rep, from)
	if err != nil {
		return rep, nil, err
	}
	verdict, err := rd.judge(ctx, rt, rep, conn.Conn(), state)
	if err == nil && verdict == caughtUp {
		return rep, conn, nil
	}

	opened := openedAt(conn.Conn())
	from.release(rep, conn)
	switch {
	case err != nil:
		return rep, nil, err
	case verdict == outdated:
		return rep, nil, errOutdated
	case rt.wants == wantsRecent && rt.mayFallBack():
		return rep, nil, ErrReplicaLag
	case rt.waited:
		return rep, nil, rep.lagError(rep.tracker.latest.Load(), state)
	}
	candidates, err := rd.candidates(rt, rep, state)
	if err != nil {
		return rep, nil, err
	}
	if candidates[0] != rep {
		opened = 0
	}
	return await(ctx, rd, rt, candidates, from, state, opened)
}

// judge gives the verdict on a read on conn. The replica is asked where the reports so far do not decide, if the read is to do so.
func (rd *reads) judge(ctx context.Context, rt *route, rep *replica, conn *pgx.Conn, state sessionState) (verdict, error) {
	if rt.wants != wantsRecent {
		if err := rep.checkLag(ctx, rt, conn, rep.now.Load()); err != nil {
			return behind, err
		}
	}
	v := rep.verdict(conn, state)
	if v != behind {
		return v, nil
	}
	checks := rt.mayFallBack() && rep.tracker.beginCheck()
	if checks {
		defer rep.tracker.checking.end()
	}
	if !checks && !rt.waited && !pooled(conn) && rt.wants != wantsRecent {
		return behind, nil
	}
	v, err := rep.ask(ctx, conn, state)
	if err == nil && v == behind && rt.wants == wantsRecent && rep.tracker.showsUntil(replicaConnOf(conn).report, rt.maxLag, time.Now()) {
		return caughtUp, nil
	}
	return v, err
}

// candidates returns the replicas that a read waits for, rep or those that are as good, at least one. The error says that the
// read does not wait, as another one has just waited in vain, or as the primary is expected to answer sooner.
func (rd *reads) candidates(rt *route, rep *replica, state sessionState) ([]*replica, error) {
	alike := rd.replicas.alike(rt, rep)
	if !rt.mayFallBack() {
		return alike, nil
	}
	alike = slices.DeleteFunc(alike, func(r *replica) bool { return r.tracker.lagging() })
	if len(alike) == 0 {
		if rd.primary.minWait == 0 {
			rd.primary.stay(rep.tracker.delay.expected())
		}
		return nil, rep.lagError(rep.tracker.latest.Load(), state)
	}
	if slices.ContainsFunc(alike, func(r *replica) bool { return !rd.primarySooner(r, state) }) {
		return alike, nil
	}
	delay := rep.tracker.delay.expected()
	for _, r := range alike {
		r.tracker.lookInBackground(state)
		delay = min(delay, r.tracker.delay.expected())
	}
	rd.primary.stay(delay)
	return nil, errSooner
}

// primarySooner reports whether the primary is expected to answer a read before the replica does, which has to be asked first
// whether it shows what the read's session has written. With a MinReplicaWait such a read waits all the same.
func (rd *reads) primarySooner(rep *replica, state sessionState) bool {
	if rd.primary.minWait > 0 {
		return false
	}
	answer := rep.tracker.fastest.shortest()
	return max(rep.tracker.delay.remaining(state), answer)+answer > rd.primary.waitLimit()
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
	began := uptime()
	rep, conn, err := awaitReplay(ctx, candidates, from, state, opened, limit)
	rt.waited = uptime()-began >= limit
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

	// The connection was opened after the watcher's report, or leads to another server. Or the watcher was
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
