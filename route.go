package flyregion

import (
	"context"
	"errors"
	"strings"

	"github.com/flyregion/flyregion/internal/sqltext"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// route is where a statement goes, before the replica is asked whether it can serve.
type route struct {
	intent
	to  target
	why reason
	// region is that of the replica that was chosen, "" if none was.
	region string
	// cause is the error because of which the statement left that replica, nil if there was none.
	cause error
	// undecided are the statements of which only the database's catalog can tell whether they read.
	undecided []string
	// retry says that a replica has refused such a statement before, and is now tried anew.
	retry bool
	// noFallback says that a read goes to the primary only if a replica refuses it as a write: Config.NoFallback.
	noFallback bool
	// farBehind says that replicas serve however far they are behind, as the primary cannot be reached.
	farBehind bool
	// waited says that the read has waited for a position for as long as it may. Other replicas serve it only without a wait.
	waited bool
	// lost are the replicas that have lost the read or could not run it, if it may not run on the primary.
	lost attempts
}

// mayFallBack reports whether a read may run on the primary because no replica can serve it.
func (r *route) mayFallBack() bool { return r.target != targetReplica && !r.noFallback }

// errRefusedBefore is the cause of a statement that is not tried on a replica.
var errRefusedBefore = errors.New("flyregion: a replica has refused a statement of this shape before")

// router decides where statements go, and why. It does no I/O.
type router struct {
	statements *statements
	noFallback bool
	refused    refusals
}

// toPrimary sends the route to the primary.
func (r *route) toPrimary(why reason) {
	r.to, r.why = targetPrimary, why
}

// onPrimary returns a copy of the route that leads to the primary.
func (r *route) onPrimary(why reason) *route {
	moved := *r
	moved.toPrimary(why)
	return &moved
}

// fallBack sends the route to the primary because of an error.
func (r *route) fallBack(why reason, cause error) {
	r.toPrimary(why)
	r.cause = cause
}

// affectsAllReads reports whether the route leads to the primary for a reason that sends many other reads there at the same
// time.
func (r *route) affectsAllReads() bool {
	return r.why == becauseLag || r.why == becauseBehind || r.why == becauseUnreachable
}

// isTemporary reports whether the route leads a read to the primary that would else run on a replica, and will soon again.
func (r *route) isTemporary() bool {
	return r.affectsAllReads() || r.why == becauseSooner || r.why == becauseUnknown
}

// route decides where a statement goes, by its context and its SQL.
func (r *router) route(ctx context.Context, sql string, args []any) route {
	rt := route{intent: intentOf(ctx), noFallback: r.noFallback}
	if rt.target != targetAny {
		rt.to, rt.why = rt.target, becauseAsked
		return rt
	}

	answers := r.statements.catalog.answers.Load()
	text := r.statements.resolve(sql)
	s := r.statements.inspectSQL(text, answers)
	switch {
	case s.Hint == sqltext.HintPrimary:
		rt.toPrimary(becauseAsked)
	case s.Hint == sqltext.HintReplica && !consumable(args):
		// Unlike under WithReplica, what the replica cannot run runs on the primary: the comment may be older than the
		// statement around it.
		rt.to, rt.why = targetReplica, becauseAsked
	case s.Access == sqltext.Write || rewritten(args):
		rt.toPrimary(becauseWrite)
	case r.refuses(&rt, sql):
		rt.fallBack(becauseRefused, errRefusedBefore)
	case consumable(args):
		rt.toPrimary(becauseConsumable)
	default:
		rt.to, rt.why = targetReplica, becauseRead
		if !answers.decides(s) {
			rt.undecided = []string{text}
		}
	}
	return rt
}

// routeBatch is route for a batch.
func (r *router) routeBatch(ctx context.Context, b *pgx.Batch) route {
	rt := route{intent: intentOf(ctx), noFallback: r.noFallback}
	answers := r.statements.catalog.answers.Load()
	s := r.statements.inspectBatch(b, answers)
	switch {
	case rt.target != targetAny:
		rt.to, rt.why = rt.target, becauseAsked
	case s.Access == sqltext.Write || b.Len() == 0:
		rt.toPrimary(becauseWrite)
	case s.Hint == sqltext.HintPrimary:
		rt.toPrimary(becauseAsked)
	default:
		rt.to, rt.why = targetReplica, becauseRead
		for _, q := range b.QueuedQueries {
			switch {
			case s.Hint != sqltext.HintReplica && r.refuses(&rt, q.SQL):
				rt.fallBack(becauseRefused, errRefusedBefore)
			case consumable(q.Arguments):
				rt.toPrimary(becauseConsumable)
			}
		}
		if rt.to == targetReplica && s.Hint != sqltext.HintReplica && !answers.decides(s) {
			for _, q := range b.QueuedQueries {
				rt.undecided = append(rt.undecided, r.statements.resolve(q.SQL))
			}
		}
	}
	return rt
}

// routeTx is route for a transaction.
func (r *router) routeTx(ctx context.Context, options pgx.TxOptions) route {
	rt := route{intent: intentOf(ctx), noFallback: r.noFallback, to: targetPrimary, why: becauseTransaction}
	switch {
	case rt.target != targetAny:
		rt.to, rt.why = rt.target, becauseAsked
	case options.AccessMode == pgx.ReadOnly && options.IsoLevel != pgx.Serializable && options.BeginQuery == "":
		rt.to, rt.why = targetReplica, becauseRead
	}
	return rt
}

// leavesReplica returns why a transaction on a replica has to move to the primary for its first statement, "" if it has
// not. Settings, savepoints, cursors and the like are no reason, as they end with the transaction. If only the catalog can
// tell, the route gets the statement as undecided.
func (r *router) leavesReplica(rt *route, sql string, args []any) reason {
	answers := r.statements.catalog.answers.Load()
	text := r.statements.resolve(sql)
	s := r.statements.inspectSQL(text, answers)
	switch {
	case s.Hint == sqltext.HintReplica:
		return ""
	case s.Hint == sqltext.HintPrimary:
		return becauseAsked
	case s.Access == sqltext.Write && !s.SessionOnly, rewritten(args):
		return becauseWrite
	case r.refuses(&route{}, sql):
		return becauseRefused
	case !answers.decides(s):
		rt.undecided = append(rt.undecided, text)
	}
	return ""
}

// fallbackReason returns why a read that failed on a replica is to run on the primary, "" if it is not. It may run a second
// time because the first run wrote nothing: no session of a replica's pool can write. It must be called only while the
// app has seen nothing of the first run. A refusal is remembered, and err becomes the route's cause.
func (r *router) fallbackReason(ctx context.Context, rt *route, conn *pgx.Conn, sql string, err error) reason {
	why, refused := r.errorReason(sql, err)
	if refused {
		r.refused.add(r.statements.shape(sql), rt.retry)
	}
	switch {
	case ctx.Err() != nil || rt.target == targetReplica:
		return ""
	case why == "" && conn.IsClosed():
		why = becauseLost
	}
	if rt.noFallback && why != becauseRefused {
		return ""
	}
	if why != "" {
		rt.cause = err
	}
	return why
}

// triesAnother reports whether a read that failed on a replica, and does not run on the primary, is to run on another replica:
// because of Config.NoFallback, and if this one has lost it or could not run it.
func (r *router) triesAnother(ctx context.Context, rt *route, conn *pgx.Conn, sql string, err error) bool {
	if !rt.noFallback || rt.target != targetAny || ctx.Err() != nil {
		return false
	}
	why, _ := r.errorReason(sql, err)
	return why != "" || conn.IsClosed()
}

// refuses reports whether a replica is expected to refuse a statement.
func (r *router) refuses(rt *route, sql string) bool {
	if !r.refused.any.Load() {
		return false
	}
	refused, try := r.refused.refuses(r.statements.shape(sql))
	rt.retry = rt.retry || try
	return refused
}

// served notes that a replica has run a statement, so that a remembered refusal of it is forgotten.
func (r *router) served(rt *route, sql string) {
	if rt.retry && sql != "" {
		r.refused.remove(r.statements.shape(sql))
	}
}

// rememberRefusal notes an error after a read's first row. If it is a refusal, such statements run on the primary from then
// on. The replica is never tried with them, as each try could give the app such an error.
func (r *router) rememberRefusal(sql string, err error) {
	if _, refused := r.errorReason(sql, err); refused {
		r.refused.addPermanent(r.statements.shape(sql))
	}
}

// errorReason returns why the primary may run what failed on a replica with err, "" if that would not help, and whether the
// replica refused the statement because it writes.
func (r *router) errorReason(sql string, err error) (why reason, refused bool) {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return "", false
	}

	switch pgErr.Code {
	case "25006": // read_only_sql_transaction
		return becauseRefused, sql != ""
	case "55000", "0A000", "XX000":
		// Other errors have these codes too. They move the read, but they are not remembered.
		return becauseRefused, sql != "" && isRecoveryRefusal(pgErr)
	case "57P01", "57P02", "57P03", "57P05": // the server shuts down, has crashed, starts
		return becauseLost, false
	case "40001", "40P01": // replay canceled the statement, because of its snapshot or a lock
		return becauseConflict, false
	case "55P03": // a lock that replay holds was not released within lock_timeout
		return becauseConflict, false
	case "42883": // a function that is not on the replica yet
		r.statements.catalog.forgetCalls(r.statements.resolve(sql))
		return becauseMissing, false
	case "42P01", "42703", "42704", "3F000": // likewise a table, column, type or schema
		return becauseMissing, false
	case "22P02": // invalid_text_representation
		if pgErr.Routine == "enum_in" || pgErr.Routine == "enum_recv" { // likewise a value of an enum
			return becauseMissing, false
		}
	case "42601": // the name of a prepared statement that AfterConnect has not prepared on this server
		if _, prepared := r.statements.prepared.lookup(sql); prepared {
			return becauseMissing, false
		}
	case "58P01", "58030", // a file or a library is missing, or cannot be read
		"XX001", "XX002": // a page or an index is corrupt
		return becauseBroken, false
	}
	if strings.HasPrefix(pgErr.Code, "53") { // disk, memory, connections, or a limit such as temp_file_limit
		return becauseBroken, false
	}
	return "", false
}

// attempts are what a read has tried in vain.
type attempts struct {
	replicas []*replica
	err      error // of the first one, but for reserves if the read may not run on the primary
}

func (a *attempts) add(rt *route, rep *replica, err error) {
	a.replicas = append(a.replicas, rep)
	if a.err == nil && (rt.mayFallBack() || !rep.host.reserve) {
		a.err = err
	}
}
