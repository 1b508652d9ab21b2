package flyregion

import (
	"context"
	"errors"
	"slices"

	"github.com/flyregion/flyregion/internal/piggyback"
	"github.com/flyregion/flyregion/internal/sqltext"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/multitracer"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Tracer is the tracer of every connection to the primary, beside the app's own if [pgx.ConnConfig] has one. Through it
// every write counts for its session, whoever makes it: the pool, a connection from [Pool.Acquire], or a library that uses
// [Pool.Primary]. It asks for the position at which a write commits, in the round trip of the write itself.
//
// Tracer implements [pgx.QueryTracer], [pgx.BatchTracer], [pgx.CopyFromTracer], [pgx.PrepareTracer] and
// [pgx.ConnectTracer], and [pgxpool.AcquireTracer] and [pgxpool.ReleaseTracer]. The pool makes it. The zero value does
// nothing.
type Tracer struct {
	primary *primary
}

var (
	_ pgx.QueryTracer    = (*Tracer)(nil)
	_ pgx.BatchTracer    = (*Tracer)(nil)
	_ pgx.CopyFromTracer = (*Tracer)(nil)
	_ pgx.PrepareTracer  = (*Tracer)(nil)
	_ pgx.ConnectTracer  = (*Tracer)(nil)

	_ pgxpool.AcquireTracer = (*Tracer)(nil)
	_ pgxpool.ReleaseTracer = (*Tracer)(nil)
)

// traceWrites adds a Tracer to the connections of a pool to primary.
func traceWrites(config *pgx.ConnConfig, primary *primary) {
	tracer := &Tracer{primary: primary}
	if theirs := config.Tracer; theirs != nil {
		config.Tracer = multitracer.New(theirs, tracer)
	} else {
		config.Tracer = tracer
	}
}

// TraceQueryStart is called by pgx before Exec, Query and QueryRow.
func (t *Tracer) TraceQueryStart(ctx context.Context, conn *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	c := t.connOf(conn)
	if c == nil {
		return ctx
	}
	s := c.inspect(data.SQL)
	if rewritten(data.Args) {
		s.Access = sqltext.Write
	}
	return t.start(ctx, conn, s, piggyback.Question{})
}

// TraceQueryEnd is called by pgx when the statement has ended: for Query and QueryRow when the rows are closed.
func (t *Tracer) TraceQueryEnd(ctx context.Context, conn *pgx.Conn, data pgx.TraceQueryEndData) {
	t.end(ctx, conn, data.Err)
}

// TraceBatchStart is called by pgx before SendBatch.
func (t *Tracer) TraceBatchStart(ctx context.Context, conn *pgx.Conn, data pgx.TraceBatchStartData) context.Context {
	c := t.connOf(conn)
	if c == nil {
		return ctx
	}
	return t.start(ctx, conn, inspectBatch(data.Batch, c.inspect), piggyback.Question{Batch: true})
}

// TraceBatchQuery is called by pgx for each result of a batch.
func (t *Tracer) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}

// TraceBatchEnd is called by pgx when the results of a batch are closed.
func (t *Tracer) TraceBatchEnd(ctx context.Context, conn *pgx.Conn, data pgx.TraceBatchEndData) {
	t.end(ctx, conn, data.Err)
}

// TraceCopyFromStart is called by pgx before CopyFrom.
func (t *Tracer) TraceCopyFromStart(ctx context.Context, conn *pgx.Conn, _ pgx.TraceCopyFromStartData) context.Context {
	return t.start(ctx, conn, sqltext.Statement{Access: sqltext.Write}, piggyback.Question{Copied: true})
}

// TraceCopyFromEnd is called by pgx when CopyFrom has ended.
func (t *Tracer) TraceCopyFromEnd(ctx context.Context, conn *pgx.Conn, data pgx.TraceCopyFromEndData) {
	t.end(ctx, conn, data.Err)
}

// TracePrepareStart is called by pgx before Prepare, also when pgx prepares on its own.
func (t *Tracer) TracePrepareStart(ctx context.Context, conn *pgx.Conn, data pgx.TracePrepareStartData) context.Context {
	if c := t.connOf(conn); c != nil {
		c.preparing = [2]string{data.Name, data.SQL}
	}
	return ctx
}

// TracePrepareEnd is called by pgx after Prepare.
func (t *Tracer) TracePrepareEnd(_ context.Context, conn *pgx.Conn, data pgx.TracePrepareEndData) {
	if c := t.connOf(conn); c != nil && data.Err == nil {
		c.prepare(c.preparing[0], c.preparing[1])
	}
}

// TraceConnectStart is called by pgx before a connection is opened.
func (t *Tracer) TraceConnectStart(ctx context.Context, _ pgx.TraceConnectStartData) context.Context {
	return ctx
}

// TraceConnectEnd is called by pgx when a connection was opened, or could not be.
func (t *Tracer) TraceConnectEnd(_ context.Context, data pgx.TraceConnectEndData) {
	switch {
	case t.primary == nil:
	case data.Err != nil:
		t.primary.connects.failed(data.Err)
	default:
		t.primary.connects.reached()
	}
}

// TraceAcquireStart is called by pgxpool before a connection is acquired.
func (t *Tracer) TraceAcquireStart(ctx context.Context, _ *pgxpool.Pool, _ pgxpool.TraceAcquireStartData) context.Context {
	return ctx
}

// TraceAcquireEnd is called by pgxpool when a connection was acquired.
func (t *Tracer) TraceAcquireEnd(ctx context.Context, _ *pgxpool.Pool, data pgxpool.TraceAcquireEndData) {
	if data.Conn == nil {
		return
	}
	if c := t.connOf(data.Conn); c != nil {
		c.acquired.Store(intentOf(ctx).session)
	}
}

// TraceRelease is called by pgxpool when a connection is about to be released.
func (t *Tracer) TraceRelease(_ *pgxpool.Pool, data pgxpool.TraceReleaseData) {
	if c := t.connOf(data.Conn); c != nil {
		c.abandon()
	}
}

// connOf returns the state of a connection, nil if it is not one of the pool's.
func (t *Tracer) connOf(conn *pgx.Conn) *primaryConn {
	if t.primary == nil {
		return nil
	}
	return primaryConnOf(conn)
}

// start begins a statement with the questions that go with it. It returns the context that end gets.
func (t *Tracer) start(ctx context.Context, conn *pgx.Conn, text sqltext.Statement, question piggyback.Question) context.Context {
	c := t.connOf(conn)
	if c == nil {
		return ctx
	}
	s := &primaryStatement{Context: ctx, Question: question, Statement: text}
	if conn.PgConn().IsBusy() {
		return s // pgx will refuse it
	}
	if c.unannounced.CompareAndSwap(true, false) {
		c.wrote, c.async, c.schema = true, true, true
	}
	s.open = conn.PgConn().TxStatus() != 'I'
	if own := intentOf(ctx).session; own != nil && !slices.Contains(c.sessions, own) {
		c.sessions = append(c.sessions, own)
	}
	s.sessions = c.sessions
	c.ask(s)
	c.begin(s)
	return s
}

// ask chooses what is to be asked along with the statement that begins on c.
func (c *primaryConn) ask(s *primaryStatement) {
	s.mayAsync = c.async || s.Settings
	isWrite := s.Access == sqltext.Write // so that wroteSQL need not be asked
	position := false
	switch {
	case s.CopiesIn:
		return
	case s.Copied && (c.pooled || c.primary.copiesUnanswered.Load()):
		// When the copy has ended, a pooler may give the server's connection to another client, which then gets the answer.
		return
	case s.LeavesOpen:
		// A question would be the first statement of the block that is open afterwards, and take its snapshot. Then the
		// app could not set the block's isolation level.
		return
	case s.open && s.Ends:
		position, isWrite, s.writes = c.wrote || s.Several, false, true
	case s.open:
		// What a transaction block writes does not count before it commits. wroteSQL takes a snapshot, so it must not go
		// with a statement that takes none. asyncSQL takes none.
		if s.HasShow {
			return
		}
	case !s.TxControl && !s.OtherCommand && !s.UnknownCalls && (!isWrite || c.primary.quiet.Load()) && c.primary.stays(c.sessionOf(s)):
		if s.quiet = isWrite; !s.quiet {
			s.timed = uptime()
		}
		return
	default:
		position = true
		s.writes = isWrite || !c.primary.covers(c.primary.written(&c.primary.session)) ||
			slices.ContainsFunc(s.sessions, func(s *Session) bool { return !c.primary.covers(c.primary.written(s)) })
		if !s.writes && !c.pooled && c.primary.awaitReplay == nil {
			// The position tells nothing new unless the statement has written, which the answer to wroteSQL tells. It then
			// counts as a write whose position is not known.
			s.Either = true
			if c.primary.minWait == 0 {
				s.timed = uptime()
			}
		}
	}
	if !s.Copied {
		s.Inside = wroteMessages
		if isWrite {
			s.Inside = asyncMessages
		}
	}
	if position {
		s.Behind = positionMessage
	}
}

// end counts what was written for its sessions before pgx returns to its caller.
func (t *Tracer) end(ctx context.Context, conn *pgx.Conn, err error) {
	s, _ := ctx.Value(primaryStatementKey{}).(*primaryStatement)
	c := t.connOf(conn)
	if s == nil || c == nil || c.current.Load() != s {
		return // it did not run, or has ended
	}
	c.end(s)
	switch {
	case s.Ran && err == nil:
		t.primary.contact.answered()
	case conn.IsClosed():
		t.primary.contact.doubt()
	}
	if s.timed > 0 && s.Ran && err == nil {
		t.primary.readTime.measured(uptime() - s.timed)
	}
	// pgx returns this error, which is safe to retry, for a simple query whose connection was lost before its answer.
	if c.lost = nil; s.Ran && errors.Is(err, pgconn.ErrConnClosed) {
		c.lost = err
	}
	unannounced := c.unannounced.Swap(false)
	if c.schema = c.schema || s.Schema || unannounced; c.schema {
		// In the middle of a transaction too, as the same SQL may have ended another one before.
		defer func() { t.primary.statements.catalog.forget(t.primary.written(&t.primary.session)) }()
	}

	if conn.IsClosed() || conn.PgConn().TxStatus() == 'I' {
		t.note(s, c.wrote || unannounced || !s.open && s.mayHaveWritten(err))
		c.wrote, c.async, c.schema, c.sessions = false, false, false, nil
		return
	}
	// A transaction block goes on, or has begun. The same SQL may have ended another one before.
	if s.Ends || s.OtherCommand {
		t.note(s, c.wrote || s.mayHaveWritten(err))
	}
	if !s.TxControl || s.Several {
		c.wrote = c.wrote || s.mayHaveWritten(err)
	}
	c.wrote = c.wrote || unannounced
	async := s.InRow.Len > 0 && s.InRow.Columns[s.InRow.Len-1] == "off"
	c.async = c.async || s.Settings || s.OtherCommand || async || unannounced
}

// note notes a write whose position was not answered. If it was, and writes wait for the replica, note waits.
func (t *Tracer) note(s *primaryStatement, wrote bool) {
	switch {
	case !wrote:
	case s.answered:
		t.primary.awaitWrite(s)
	default:
		s.noteUnknown()
	}
}
