package flyregion

import (
	"context"
	"errors"
	"slices"

	"github.com/flyregion/flyregion/internal/sqltext"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// customDataKey is where a connection keeps what this package knows of it: a *primaryConn or a *replicaConn.
const customDataKey = "github.com/flyregion/flyregion"

// primaryConn is what is known of one connection to the primary. But for the forwarder only the connection's user
// touches it.
type primaryConn struct {
	forwarder *forwarder
	greeting  bool // AfterConnect runs

	// What runs now, between a tracer's start and end.
	current  sqltext.Statement
	question *question // that went with it, or nil
	open     bool      // it began in a transaction block

	// Of the transaction block that is open: it has written, may commit asynchronously, and may have changed the schema.
	wrote, async, schema bool
	// Of the contexts of the statement, and of the block that it is in.
	sessions []*Session
}

func primaryConnOf(conn *pgx.Conn) *primaryConn {
	c, _ := conn.PgConn().CustomData()[customDataKey].(*primaryConn)
	return c
}

// Tracer is the tracer that every connection to the primary carries, beside the app's own if [pgx.ConnConfig] has one.
// Through it a write counts for its session whoever makes it: the pool, a connection taken with Acquire, or a library
// that was given [Pool.Primary]. It asks for the position at which a write commits, in the round trip of the write
// itself.
//
// Tracer implements [pgx.QueryTracer], [pgx.BatchTracer], [pgx.CopyFromTracer] and [pgx.PrepareTracer]. It is made by
// the pool; the zero value does nothing.
type Tracer struct {
	primary *primary
}

var (
	_ pgx.QueryTracer    = (*Tracer)(nil)
	_ pgx.BatchTracer    = (*Tracer)(nil)
	_ pgx.CopyFromTracer = (*Tracer)(nil)
	_ pgx.PrepareTracer  = (*Tracer)(nil)
)

// TraceQueryStart is called by pgx before Exec, Query and QueryRow.
func (t *Tracer) TraceQueryStart(ctx context.Context, conn *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if t.primary == nil {
		return ctx
	}
	s := t.primary.texts.inspect(data.SQL)
	if rewritten(data.Args) {
		s.Access = sqltext.Write
	}
	t.start(ctx, conn, s, false)
	return ctx
}

// TraceQueryEnd is called by pgx when the statement has ended: for Query and QueryRow when the rows are closed.
func (t *Tracer) TraceQueryEnd(ctx context.Context, conn *pgx.Conn, data pgx.TraceQueryEndData) {
	t.end(ctx, conn, data.Err)
}

// TraceBatchStart is called by pgx before SendBatch.
func (t *Tracer) TraceBatchStart(ctx context.Context, conn *pgx.Conn, data pgx.TraceBatchStartData) context.Context {
	if t.primary != nil {
		t.start(ctx, conn, t.primary.texts.inspectBatch(data.Batch, t.primary.texts.catalog.answers.Load()), false)
	}
	return ctx
}

// TraceBatchQuery is called by pgx for each result of a batch.
func (t *Tracer) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}

// TraceBatchEnd is called by pgx when the results of a batch are closed.
func (t *Tracer) TraceBatchEnd(ctx context.Context, conn *pgx.Conn, data pgx.TraceBatchEndData) {
	t.end(ctx, conn, data.Err)
}

// TraceCopyFromStart is called by pgx before CopyFrom.
func (t *Tracer) TraceCopyFromStart(ctx context.Context, conn *pgx.Conn, _ pgx.TraceCopyFromStartData) context.Context {
	t.start(ctx, conn, sqltext.Statement{Access: sqltext.Write}, true)
	return ctx
}

// TraceCopyFromEnd is called by pgx when CopyFrom has ended.
func (t *Tracer) TraceCopyFromEnd(ctx context.Context, conn *pgx.Conn, data pgx.TraceCopyFromEndData) {
	t.end(ctx, conn, data.Err)
}

// TracePrepareStart is called by pgx before Prepare, also when pgx prepares on its own.
func (t *Tracer) TracePrepareStart(ctx context.Context, conn *pgx.Conn, data pgx.TracePrepareStartData) context.Context {
	if c := primaryConnOf(conn); c != nil && c.greeting && t.primary != nil && data.Name != data.SQL {
		t.primary.texts.prepared.add(data.Name, data.SQL)
	}
	return ctx
}

// TracePrepareEnd is called by pgx after Prepare.
func (t *Tracer) TracePrepareEnd(context.Context, *pgx.Conn, pgx.TracePrepareEndData) {}

// start has the questions asked that tell what is about to be written.
func (t *Tracer) start(ctx context.Context, conn *pgx.Conn, s sqltext.Statement, copied bool) {
	c := primaryConnOf(conn)
	if c == nil || t.primary == nil {
		return
	}
	if c.forwarder.takeRaw() {
		c.wrote, c.async = true, true
	}
	c.current, c.open = s, conn.PgConn().TxStatus() != 'I'
	if own := intentOf(ctx).session; own != nil && !slices.Contains(c.sessions, own) {
		c.sessions = append(c.sessions, own)
	}
	c.question = t.ask(c, copied)
	c.forwarder.announce(c.question, s.Begins && !c.open)
}

// ask returns what is to be asked along with the statement that begins on c, nil for nothing.
func (t *Tracer) ask(c *primaryConn, copied bool) *question {
	s := c.current
	q := &question{
		pool:     &t.primary.session,
		sessions: c.sessions,
		ends:     s.Ends,
		async:    c.async || s.Settings,
		copied:   copied,
	}
	switch {
	case s.CopiesIn:
		return nil
	case s.LeavesOpen:
		// A question would be the first statement of the block that is open afterwards, and take its snapshot, after
		// which its isolation level cannot be set.
		return nil
	case c.open && s.Ends:
		q.position, q.writes = c.wrote || s.Several, true
	case c.open:
		// Nothing of a transaction block counts before it commits. The probe takes a snapshot, so it must not go with
		// what takes none. What writes by its text is asked only whether it commits asynchronously, which takes none
		// either.
		if s.HasShow {
			return nil
		}
		q.known = s.Access == sqltext.Write
	default:
		q.position = true
		q.known = s.Access == sqltext.Write
		q.writes = s.Access == sqltext.Write || !t.primary.covers(t.primary.session.load()) ||
			slices.ContainsFunc(c.sessions, func(s *Session) bool { return !t.primary.covers(s.load()) })
	}
	return q
}

// end sees to it that what was written counts for its sessions before pgx returns to its caller.
func (t *Tracer) end(ctx context.Context, conn *pgx.Conn, err error) {
	c := primaryConnOf(conn)
	if c == nil || t.primary == nil {
		return
	}
	c.forwarder.conclude()
	raw := c.forwarder.takeRaw()
	s, q := c.current, c.question
	c.question = nil
	if q == nil {
		q = &question{}
	}
	if c.schema = c.schema || s.Schema || raw; c.schema {
		// Also in the middle of a transaction, as the text may have ended another before.
		defer func() { t.primary.texts.catalog.forget(t.primary.session.load()) }()
	}

	if conn.IsClosed() || conn.PgConn().TxStatus() == 'I' {
		wrote := c.wrote || raw || !c.open && mayHaveWritten(s, q, err)
		t.note(ctx, c, wrote, q)
		c.wrote, c.async, c.schema, c.sessions = false, false, false, nil
		return
	}
	// A transaction block goes on, or has begun. The text may have ended another before it.
	if s.Ends || s.OtherCommand {
		t.note(ctx, c, c.wrote || mayHaveWritten(s, q, err), q)
	}
	if !s.TxControl || s.Several {
		c.wrote = c.wrote || mayHaveWritten(s, q, err)
	}
	c.wrote = c.wrote || raw
	c.async = c.async || s.Settings || s.OtherCommand || q.async || raw
}

// mayHaveWritten reports whether a statement may have written something: by its text, or by what the probe says of the
// transaction that it ran in, if it could be asked.
func mayHaveWritten(s sqltext.Statement, q *question, err error) bool {
	if s.Access == sqltext.Write {
		// What was to be asked behind the statement, and was not, has not even been sent.
		return err == nil || q.asked > 0
	}
	if q.probed {
		return q.wrote
	}
	// A read that failed has been rolled back, if the server says so.
	var pgErr *pgconn.PgError
	return !errors.As(err, &pgErr)
}

// note makes a write count whose position was not told.
func (t *Tracer) note(ctx context.Context, c *primaryConn, wrote bool, q *question) {
	switch {
	case !wrote:
	case q.answered:
		t.primary.awaitWrite(ctx)
	default:
		t.primary.session.wroteUnknown()
		for _, s := range c.sessions {
			s.wroteUnknown()
		}
	}
}
