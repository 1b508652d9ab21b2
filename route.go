package flyregion

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/flyregion/flyregion/internal/sqltext"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// target is a server as routing sees it.
type target uint8

const (
	targetAny target = iota
	targetPrimary
	targetReplica
)

// String returns "primary" or "replica".
func (t target) String() string {
	if t == targetReplica {
		return "replica"
	}
	return "primary"
}

// reason says why a statement runs where it does.
type reason string

const (
	becauseRead        reason = "read"
	becauseWrite       reason = "write"
	becauseTransaction reason = "transaction"
	becauseAsked       reason = "asked"               // by the context or a comment in the statement
	becauseUnknown     reason = "position_unknown"    // nobody asked yet at which position the session's last write is
	becauseLag         reason = "replica_lag"         // the replica did not replay the session's writes in time
	becauseUnreachable reason = "replica_unreachable" // no connection to a replica
	becauseRefused     reason = "replica_refused"     // the replica took the statement for a write
	becauseLost        reason = "replica_lost"        // the connection broke, or the replica ended it
	becauseConflict    reason = "replica_conflict"    // replay would not wait for the statement
	becauseMissing     reason = "replica_missing"     // the replica does not know an object yet
	becauseOnce        reason = "argument_used_once"  // an argument could not be sent to a second server
)

// route is where a statement goes, before the replica is asked whether it can serve.
type route struct {
	intent
	to  target
	why reason
}

// inspect is inspect with the functions that the config knows, and for the name of a prepared statement too.
func (p *Pool) inspect(sql string) sqltext.Statement {
	s := sqltext.Inspect(sql, p.facts)
	if s.Access == sqltext.Write {
		if text := p.prepared.text(sql); text != "" {
			return sqltext.Inspect(text, p.facts)
		}
	}
	return s
}

// route decides where a statement goes, by what its context and its text say.
func (p *Pool) route(ctx context.Context, sql string, args []any) route {
	r := route{intent: intentOf(ctx)}
	if r.target != targetAny {
		r.to, r.why = r.target, becauseAsked
		return r
	}

	s := p.inspect(sql)
	switch {
	case s.Hint == sqltext.HintPrimary:
		r.to, r.why = targetPrimary, becauseAsked
	case s.Hint == sqltext.HintReplica && !usedOnce(args):
		// Unlike WithReplica a comment may be older than the statement that it stands in: what the replica cannot run
		// the primary runs.
		r.to, r.why = targetReplica, becauseAsked
	case s.Access == sqltext.Write || rewritten(args):
		r.to, r.why = targetPrimary, becauseWrite
	case p.refused.contains(sql):
		r.to, r.why = targetPrimary, becauseRefused
	case usedOnce(args):
		r.to, r.why = targetPrimary, becauseOnce
	default:
		r.to, r.why = targetReplica, becauseRead
	}
	return r
}

// routeBatch is route for a batch.
func (p *Pool) routeBatch(ctx context.Context, b *pgx.Batch) route {
	r := route{intent: intentOf(ctx)}
	s := p.inspectBatch(b)
	switch {
	case r.target != targetAny:
		r.to, r.why = r.target, becauseAsked
	case s.Access == sqltext.Write || b.Len() == 0:
		r.to, r.why = targetPrimary, becauseWrite
	case s.Hint == sqltext.HintPrimary:
		r.to, r.why = targetPrimary, becauseAsked
	default:
		r.to, r.why = targetReplica, becauseRead
		for _, q := range b.QueuedQueries {
			switch {
			case s.Hint != sqltext.HintReplica && p.refused.contains(q.SQL):
				r.to, r.why = targetPrimary, becauseRefused
			case usedOnce(q.Arguments):
				r.to, r.why = targetPrimary, becauseOnce
			}
		}
	}
	return r
}

// acquireReplica returns a connection to a replica that shows what the route's session has written. If no replica can
// serve, the connection is nil, and either the error is to be returned or the primary is to serve for the reason that
// the route then has.
func (p *Pool) acquireReplica(ctx context.Context, r *route) (*replica, *pgxpool.Conn, error) {
	return lendReplica(ctx, p, r, plainConns)
}

// lendReplica is acquireReplica for either kind of connection.
func lendReplica[C pooledConn](ctx context.Context, p *Pool, r *route, from lender[C]) (*replica, C, error) {
	state, err := p.written(ctx, r)
	if err != nil || r.to == targetPrimary {
		return nil, nil, err
	}

	rep := p.replicas.choose()
	if rep == nil {
		if r.target != targetReplica {
			r.turn(becauseUnreachable)
			return nil, nil, nil
		}
		rep = p.replicas.list[0]
	}
	conn, err := lend(ctx, rep, from)
	if err == nil && !rep.shows(conn.Conn(), state) {
		opened := openedAt(conn.Conn())
		from.release(rep, conn)
		if r.target != targetReplica && rep.tracker.lagging() {
			r.turn(becauseLag)
			return nil, nil, nil
		}
		conn, err = await(ctx, p, r, rep, from, state, opened)
	}
	switch {
	case err == nil:
		p.telemetry.sent(ctx, targetReplica, r.why)
		return rep, conn, nil
	case hookFailed(err) != nil:
		return nil, nil, hookFailed(err)
	case ctx.Err() != nil || errors.Is(err, errClosedPool) || r.target == targetReplica:
		return nil, nil, err
	case errors.Is(err, ErrReplicaLag):
		r.turn(becauseLag)
	default:
		r.turn(becauseUnreachable)
	}
	return nil, nil, nil
}

// turn sends the route to the primary.
func (r *route) turn(why reason) {
	r.to, r.why = targetPrimary, why
}

// written returns what a read on the route has to see. If nobody knows the position of the session's last write, a read
// that runs on the primary costs no more than asking, sees everything, and brings the position along: the route is
// turned around, unless the caller wants the replica.
func (p *Pool) written(ctx context.Context, r *route) (sessionState, error) {
	if r.noWait {
		return sessionState{}, nil
	}
	session := &p.session
	if r.session != nil {
		session = r.session
	}
	state := session.load()
	if !p.unsure(state) {
		return state, nil
	}
	if r.target != targetReplica {
		r.turn(becauseUnknown)
		return state, nil
	}
	return p.learn(ctx, session)
}

// unsure reports whether a session's position says too little: it wrote something at a position that is not known, or
// on a primary that is not the one of today.
func (p *Pool) unsure(state sessionState) bool {
	return state.unknown > 0 || state.position > 0 && int64(state.origin) != p.origin.Load()
}

// await waits until a replica shows what state covers, and returns a connection to it. Nobody who waits has a connection,
// so that however many they are, they keep no other from reading.
func await[C pooledConn](ctx context.Context, p *Pool, r *route, rep *replica, from lender[C], state sessionState, opened uint64) (C, error) {
	limit := p.patience()
	if r.target == targetReplica {
		limit = p.config.MaxReplicaWait
	}
	wait := p.telemetry.startWait(ctx, rep.region, state.position)
	conn, err := awaitReplay(ctx, rep, from, state, opened, limit)
	found := rep.replayed()
	switch {
	case err == nil:
		wait.end(ctx, max(found, state.position), waitReplayed)
	case ctx.Err() != nil:
		wait.end(ctx, found, waitCanceled)
	case r.target == targetReplica:
		wait.end(ctx, found, waitRefused)
	default:
		wait.end(ctx, found, waitFellBack)
	}
	return conn, err
}

// awaitReplay is await without telling anybody.
func awaitReplay[C pooledConn](ctx context.Context, rep *replica, from lender[C], state sessionState, opened uint64, limit time.Duration) (C, error) {
	err := rep.tracker.wait(ctx, state.position, opened, limit)
	if errors.Is(err, errNotReplayed) {
		return nil, &ReplicaLagError{Region: rep.region, Required: state.position, Replayed: rep.replayed()}
	}
	if err != nil {
		return nil, err
	}

	conn, err := lend(ctx, rep, from)
	if err != nil {
		return nil, err
	}
	if rep.shows(conn.Conn(), state) {
		return conn, nil
	}
	// This connection is younger than what the watcher knows, or leads to another server of the region. It is the only
	// one that can tell.
	err = rep.ask(ctx, conn.Conn())
	if err == nil && rep.shows(conn.Conn(), state) {
		return conn, nil
	}
	from.release(rep, conn)
	if err == nil {
		err = &ReplicaLagError{Region: rep.region, Required: state.position, Replayed: rep.replayed()}
	}
	return nil, err
}

// patience is how long a read waits for its replica: what it would take to ask the primary instead.
func (p *Pool) patience() time.Duration {
	return min(max(time.Duration(p.roundTrip.Load()), p.config.MinReplicaWait), p.config.MaxReplicaWait)
}

// rerun says why a statement that failed on a replica is to be run on the primary, "" if it is not. It may be run again
// because the first run did nothing: a standby cannot write, nor can any session of a replica's pool.
func (p *Pool) rerun(ctx context.Context, r *route, conn *pgx.Conn, sql string, err error) reason {
	if ctx.Err() != nil || r.target == targetReplica {
		return ""
	}
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		if conn.IsClosed() {
			return becauseLost
		}
		return ""
	}

	switch pgErr.Code {
	case "25006": // read_only_sql_transaction: it was a write after all
		p.refused.add(sql)
		return becauseRefused
	// recovery is in progress; cannot access temporary or unlogged relations, or assign OIDs, during recovery
	case "55000", "0A000", "XX000":
		// Other things have these codes too, and are no reason to keep a text from the replica. A message in another
		// language is not remembered, which costs a refusal each time.
		if strings.Contains(pgErr.Message, "recovery") {
			p.refused.add(sql)
		}
		return becauseRefused
	case "57P01", "57P02", "57P03", "57P05": // the server shuts down, has crashed, starts
		return becauseLost
	case "40001", "40P01": // replay would not wait for the snapshot or the lock of the statement
		return becauseConflict
	case "42P01", "42703", "42883", "42704", "3F000": // a table, column, function, type, schema that is not there yet
		return becauseMissing
	case "42601": // a name that AfterConnect prepared, but not on this server, is no SQL
		if p.prepared.text(sql) != "" {
			return becauseMissing
		}
	}
	if conn.IsClosed() {
		return becauseLost
	}
	return ""
}
