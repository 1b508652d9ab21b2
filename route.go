package flyregion

import (
	"context"
	"errors"
	"strings"

	"github.com/flyregion/flyregion/internal/sqltext"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

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
	becauseBroken      reason = "replica_broken"      // the replica lacks a file, space or memory, or its copy is corrupt
	becauseCatalog     reason = "catalog_unknown"     // the catalog could not be asked which functions are volatile
	becauseConsumable  reason = "argument_used_once"  // an argument could not be sent to a second server
)

// route is where a statement goes, before the replica is asked whether it can serve.
type route struct {
	intent
	to  target
	why reason
	// undecided are texts of which only the database's catalog can tell whether they read.
	undecided []string
	// tries says that a replica has refused such a text before, and is tried again.
	retry bool
}

// router decides where statements go. It asks nobody.
type router struct {
	statements *statements
	refused    refusals
}

// toPrimary sends the route to the primary.
func (r *route) toPrimary(why reason) {
	r.to, r.why = targetPrimary, why
}

// route decides where a statement goes, by what its context and its text say.
func (r *router) route(ctx context.Context, sql string, args []any) route {
	rt := route{intent: intentOf(ctx)}
	if rt.target != targetAny {
		rt.to, rt.why = rt.target, becauseAsked
		return rt
	}

	answers := r.statements.catalog.answers.Load()
	text := r.statements.resolve(sql)
	s := sqltext.Inspect(text, r.statements.facts(answers))
	switch {
	case s.Hint == sqltext.HintPrimary:
		rt.toPrimary(becauseAsked)
	case s.Hint == sqltext.HintReplica && !consumable(args):
		// Unlike WithReplica a comment may be older than the statement that it stands in: what the replica cannot run
		// the primary runs.
		rt.to, rt.why = targetReplica, becauseAsked
	case s.Access == sqltext.Write || rewritten(args):
		rt.toPrimary(becauseWrite)
	case r.refuses(&rt, sql):
		rt.toPrimary(becauseRefused)
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
	rt := route{intent: intentOf(ctx)}
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
				rt.toPrimary(becauseRefused)
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
	rt := route{intent: intentOf(ctx), to: targetPrimary, why: becauseTransaction}
	switch {
	case rt.target != targetAny:
		rt.to, rt.why = rt.target, becauseAsked
	case options.AccessMode == pgx.ReadOnly && options.IsoLevel != pgx.Serializable && options.BeginQuery == "":
		rt.to, rt.why = targetReplica, becauseRead
	}
	return rt
}

// leavesReplica says why a statement does not run in a transaction on a replica, "" if it does. Settings, savepoints,
// cursors and the like are a transaction's own wherever it runs.
func (r *router) leavesReplica(sql string, args []any) reason {
	s := r.statements.inspect(sql)
	switch {
	case s.Hint == sqltext.HintReplica:
		return ""
	case s.Hint == sqltext.HintPrimary:
		return becauseAsked
	case s.Access == sqltext.Write && !s.SessionOnly, rewritten(args):
		return becauseWrite
	case r.refuses(&route{}, sql):
		return becauseRefused
	}
	return ""
}

// fallbackReason says why a read that failed on a replica is to run on the primary, "" if it is not. It may run again because the
// first run did nothing: a standby cannot write, nor can any session of a replica's pool. The caller has seen nothing of
// the first run.
func (r *router) fallbackReason(ctx context.Context, rt *route, conn *pgx.Conn, sql string, err error) reason {
	why, refused := r.errorReason(sql, err)
	if refused {
		r.refused.add(r.statements.shape(sql), rt.retry)
	}
	switch {
	case ctx.Err() != nil || rt.target == targetReplica:
		return ""
	case why == "" && conn.IsClosed():
		return becauseLost
	}
	return why
}

// refuses reports whether a replica is expected to refuse a text.
func (r *router) refuses(rt *route, sql string) bool {
	if !r.refused.any.Load() {
		return false
	}
	refused, try := r.refused.refuses(r.statements.shape(sql))
	rt.retry = rt.retry || try
	return refused
}

// served notes that a replica has run a text on a route.
func (r *router) served(rt *route, sql string) {
	if rt.retry && sql != "" {
		r.refused.remove(r.statements.shape(sql))
	}
}

// rememberRefusal has the next run of a text begin on the primary if a replica refused it behind its first row. The replica is
// not tried again, as the caller got the error.
func (r *router) rememberRefusal(sql string, err error) {
	if _, refused := r.errorReason(sql, err); refused {
		r.refused.addPermanent(r.statements.shape(sql))
	}
}

// errorReason says why the primary would run what failed on a replica with err, "" if it would not, and whether that is
// because the text is a write after all.
func (r *router) errorReason(sql string, err error) (why reason, refused bool) {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return "", false
	}

	switch pgErr.Code {
	case "25006": // read_only_sql_transaction
		return becauseRefused, sql != ""
	case "55000", "0A000", "XX000":
		// Other things have these codes too, and are no reason to keep a text from the replica.
		return becauseRefused, sql != "" && isRecoveryRefusal(pgErr)
	case "57P01", "57P02", "57P03", "57P05": // the server shuts down, has crashed, starts
		return becauseLost, false
	case "40001", "40P01": // replay would not wait for the snapshot or the lock of the statement
		return becauseConflict, false
	case "55P03": // a lock that replay holds was not released within lock_timeout
		return becauseConflict, false
	case "42883": // a function that is not there yet
		r.statements.catalog.forgetCalls(r.statements.resolve(sql))
		return becauseMissing, false
	case "42P01", "42703", "42704", "3F000": // a table, column, type, schema that is not there yet
		return becauseMissing, false
	case "22P02": // invalid_text_representation
		if pgErr.Routine == "enum_in" || pgErr.Routine == "enum_recv" { // a value of an enum that is not there yet
			return becauseMissing, false
		}
	case "42601": // a name that AfterConnect prepared, but not on this server, is no SQL
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
