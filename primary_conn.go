package flyregion

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/flyregion/flyregion/internal/piggyback"
	"github.com/flyregion/flyregion/internal/sqltext"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// open makes the primary's pool from its configuration.
func (p *primary) open(ctx context.Context, config *pgxpool.Config) (err error) {
	// pgxpool would ping a connection that was idle for a second, so that a write after a pause took two round trips. An
	// app's own ShouldPing or PingTimeout is kept.
	if config.ShouldPing == nil && config.PingTimeout == 0 {
		config.ShouldPing = func(_ context.Context, params pgxpool.ShouldPingParams) bool {
			return params.IdleDuration > time.Second && !piggyback.Alive(params.Conn.PgConn().Conn())
		}
	}

	beforeConnect := config.BeforeConnect
	config.BeforeConnect = func(ctx context.Context, config *pgx.ConnConfig) error {
		if beforeConnect != nil {
			if err := beforeConnect(ctx, config); err != nil {
				p.connects.failed(err)
				return err
			}
		}
		p.attach(config)
		return nil
	}
	if afterConnect := config.AfterConnect; afterConnect != nil {
		config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
			c := primaryConnOf(conn)
			c.inAfterConnect = true
			defer func() { c.inAfterConnect = false }()

			return afterConnect(ctx, conn)
		}
	}
	if p.pool, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		return err
	}
	p.opened.Store(true)
	return nil
}

// attach has the connections of config report what they write, and checks that their server can be written to, so that the
// pool accepts no connection to a server that was demoted.
func (p *primary) attach(config *pgx.ConnConfig) {
	// With sessions that the app made read-only by default, transaction_read_only tells nothing about the server.
	_, readOnly := config.RuntimeParams["default_transaction_read_only"]
	config.ValidateConnect = validateBoth(config.ValidateConnect, func(ctx context.Context, conn *pgconn.PgConn) error {
		began := time.Now()
		report, err := askReport(ctx, conn)
		if err != nil {
			return err
		}
		if report.recovering || report.readOnly && !readOnly {
			return pgconn.ErrReadOnlyConnection
		}
		p.contact.answered()
		p.measured(time.Since(began))
		p.identify(&report)
		p.wallClock.Store(&clockReading{report.wallTime, report.at})
		return p.attachTo(ctx, conn, &report, readOnly)
	})
}

// primaryConn is the state of one connection to the primary. Unless a field says otherwise, nothing guards it: only who has
// acquired the connection uses it. The callbacks of wire run in the calls that read, write or close the connection.
type primaryConn struct {
	primary        *primary
	wire           *piggyback.Conn
	readOnly       bool     // the app made its sessions read-only by default
	pooled         bool     // a pooler is in between
	server         serverID // that answered last; wire's callbacks touch it
	system         uint64   // identifies the server's cluster, as in report
	inAfterConnect bool     // AfterConnect runs

	prepared  map[string]string // texts by the names that the app has given them on this connection
	preparing [2]string         // the name and the text that are being prepared
	lost      error             // of the last statement, if it was sent and pgx says that it was not

	current atomic.Pointer[primaryStatement] // from a tracer's start to its end, or nil; wire's callbacks read it

	// The open transaction block has written, may commit asynchronously, and may have changed the schema.
	wrote, async, schema bool
	// sessions are those of the contexts of the statement, and of the block that it is in.
	sessions []*Session

	// acquired is the session of the context that the connection was acquired with. Statements that pgx's tracers are not
	// told of count for it.
	acquired atomic.Pointer[Session]
	// unannounced says that a statement has run that pgx's tracers were not told of.
	unannounced atomic.Bool
}

func primaryConnOf(conn *pgx.Conn) *primaryConn {
	c, _ := conn.PgConn().CustomData()[customDataKey].(*primaryConn)
	return c
}

// attachTo is attach for one connection that was established. r is its first report.
func (p *primary) attachTo(ctx context.Context, conn *pgconn.PgConn, r *report, readOnly bool) error {
	c := &primaryConn{primary: p, server: r.server, system: r.system, pooled: r.pooled, readOnly: readOnly}
	wire, err := piggyback.Attach(ctx, conn, piggyback.Events{
		Asked:       func(*piggyback.Question) { c.current.Load().asked = clock.Add(1) },
		Answered:    c.answered,
		Late:        c.late,
		Committed:   c.committed,
		Ended:       c.ended,
		Unannounced: c.ranUnannounced,
		Abandoned:   c.abandoned,
	})
	if err != nil {
		return err
	}
	c.wire = wire
	conn.CustomData()[customDataKey] = c
	return nil
}

// primaryStatement is one statement on the primary, from a tracer's start to its end. It is also the context that pgx passes
// from the one to the other. So the end of a statement that pgx refuses, because another runs, does not end that one.
type primaryStatement struct {
	context.Context
	piggyback.Question
	sqltext.Statement

	conn     *primaryConn // nil if the statement cannot run
	open     bool         // it begins in a transaction block
	writes   bool         // it counts as a write whatever the answer to wroteSQL is
	mayAsync bool         // its transaction may commit asynchronously although the session's setting says otherwise
	sessions []*Session   // of its contexts

	asked    uint64        // when, by this process's clock; 0 if nothing was asked
	quiet    bool          // it is a write that nothing is asked about
	timed    time.Duration // when it began, since the process started, if readTime is to be measured when it has ended
	answered bool          // positionSQL was answered, and the position noted if the statement has written
	noted    []uint64      // what wroteUnknownSince returned for each session; nil unless committed was called
}

type primaryStatementKey struct{}

func (s *primaryStatement) Value(key any) any {
	if key == (primaryStatementKey{}) {
		return s
	}
	return s.Context.Value(key)
}

// begin makes s the current statement of c.
func (c *primaryConn) begin(s *primaryStatement) {
	if c.current.Load() != nil {
		// Its results were never closed.
		c.wire.Abandon()
	}
	s.conn = c
	c.current.Store(s)
	c.wire.Announce(&s.Question, s.Begins && !s.open)
}

// end ends what begin began.
func (c *primaryConn) end(s *primaryStatement) {
	c.wire.Conclude(&s.Question)
	c.current.Store(nil)
}

// abandon ends the current statement and transaction without their results, when the connection is released.
func (c *primaryConn) abandon() {
	c.wire.Abandon()
	c.current.Store(nil)
	c.wrote, c.async, c.schema, c.sessions = false, false, false, nil
	c.unannounced.Store(false)
}

// resolve returns the SQL of a statement on this connection, of which sql may be the prepared statement's name.
func (c *primaryConn) resolve(sql string) string {
	if text, ok := c.prepared[sql]; ok {
		return text
	}
	return c.primary.statements.resolve(sql)
}

// inspect inspects a statement on this connection, of which sql may be the prepared statement's name.
func (c *primaryConn) inspect(sql string) sqltext.Statement {
	statements := c.primary.statements
	return statements.inspectSQL(c.resolve(sql), statements.catalog.answers.Load())
}

// prepare remembers a statement that the app has prepared under a name of its own.
func (c *primaryConn) prepare(name, text string) {
	if name == text || name == "" {
		return
	}
	if c.inAfterConnect {
		c.primary.statements.prepared.add(name, text)
	}
	if c.prepared == nil {
		c.prepared = map[string]string{}
	}
	if len(c.prepared) < maxPreparedNames && len(name) <= maxPreparedName {
		c.prepared[name] = text
	}
}

// answered notes the answer to positionSQL in the sessions of the current statement.
func (c *primaryConn) answered(q *piggyback.Question) {
	s := c.current.Load()
	p, a, ok := positionOfAnswer(q.Row)
	if !ok || a.readOnly && !c.readOnly || !q.Idle && !s.Ends {
		return
	}
	if a.server != c.server {
		// A pooler has changed the server.
		c.server = a.server
		c.primary.answeredBy(a, p.flush)
	}
	s.answered = true
	now := time.Now()
	took := now.Sub(q.Asked)
	c.primary.measuredAtMost(took)
	if s.hasWritten() {
		p.learned = now.Sub(started)
	} else {
		c.primary.readTime.measured(took)
	}
	async := s.mayAsync || a.async || q.InRow.Len > 0 && q.InRow.Columns[q.InRow.Len-1] == "off"
	if q.InRow.Len == 2 && q.InRow.Columns[0] == "f" && !s.writes && s.noted == nil {
		return
	}
	p.asked, p.system = s.asked, c.system
	if async {
		p.flush = p.insert
	}
	for i := range len(s.sessions) + 1 {
		if s.noted != nil {
			p.noted = s.noted[i]
		}
		s.session(i).wrote(p)
	}
}

// sessionOf returns the session whose reads wait for what s writes and for the least else: that of its context, or the pool's.
func (c *primaryConn) sessionOf(s *primaryStatement) *Session {
	if own := intentOf(s.Context).session; own != nil {
		return own
	}
	return &c.primary.session
}

// hasWritten reports whether the statement has written, or has ended a transaction, as far as its SQL and the answers tell.
func (s *primaryStatement) hasWritten() bool {
	return s.Access == sqltext.Write || s.open || s.InRow.Len == 2 && s.InRow.Columns[0] == "t"
}

// session returns the pool's session for 0, and those of the statement's contexts for higher numbers.
func (s *primaryStatement) session(i int) *Session {
	if i == 0 {
		return &s.conn.primary.session
	}
	return s.sessions[i-1]
}

// late is told of a question that was not answered in time.
func (c *primaryConn) late(q *piggyback.Question) {
	if q.Copied {
		c.primary.copiesUnanswered.Store(true)
	}
}

// committed counts the current statement as a write before it has ended, because a part of it was committed.
func (c *primaryConn) committed(q *piggyback.Question) {
	s := c.current.Load()
	if q == nil || s == nil || q != &s.Question {
		c.ranUnannounced()
		return
	}
	s.noted = make([]uint64, len(s.sessions)+1)
	for i := range s.noted {
		s.noted[i] = s.session(i).wroteUnknownSince(c.system, s.asked, 0)
	}
}

// ended counts a write that nothing is asked about before its rows or results are read to their end. The app may have seen
// some of them by then, and read elsewhere what it has written.
func (c *primaryConn) ended(*piggyback.Question) {
	if s := c.current.Load(); s.quiet {
		s.noteUnknown()
	}
}

// ranUnannounced counts a statement that pgx's tracers were not told of as a write.
func (c *primaryConn) ranUnannounced() {
	c.unannounced.Store(true)
	c.primary.session.wroteUnknown(c.system, 0)
	c.primary.statements.catalog.forget(c.primary.written(&c.primary.session))
	if s := c.acquired.Load(); s != nil {
		s.wroteUnknown(c.system, 0)
	}
}

// abandoned counts a statement whose results will not be read, if it may have written.
func (c *primaryConn) abandoned(*piggyback.Question) {
	s := c.current.Load()
	if s.answered || s.open && !s.Ends && !s.OtherCommand || !s.mayHaveWritten(nil) {
		return
	}
	s.noteUnknown()
	if s.Schema {
		c.primary.statements.catalog.forget(c.primary.written(&c.primary.session))
	}
}

// noteUnknown notes a write whose position is not known in the statement's sessions.
func (s *primaryStatement) noteUnknown() {
	var learned time.Duration
	if s.hasWritten() {
		learned = uptime()
	}
	for i := range len(s.sessions) + 1 {
		s.session(i).wroteUnknown(s.conn.system, learned)
	}
}

// mayHaveWritten reports whether the statement may have written something: by its SQL, or by the answer to wroteSQL, if it
// could be asked. err is the statement's error.
func (s *primaryStatement) mayHaveWritten(err error) bool {
	if s.Access == sqltext.Write {
		// A statement that failed before it was sent has written nothing.
		return err == nil || s.Ran
	}
	if s.InRow.Len == 2 {
		return s.InRow.Columns[0] == "t"
	}
	// A read that failed with an error of the server has been rolled back.
	var pgErr *pgconn.PgError
	return !errors.As(err, &pgErr)
}

// answeredBy identifies another server than the connection was opened to, which a pooler leads to. flushed is its flush
// position.
func (p *primary) answeredBy(a primaryAnswer, flushed LSN) {
	r := &report{server: a.server, timeline: a.timeline, position: flushed}
	if current := p.identity.Load(); current != nil {
		r.system = current.system // a pooler leads to one cluster
	}
	p.identify(r)
}

// positionOf returns what a session has written. It asks the primary if the session's position does not cover that.
func (p *primary) positionOf(ctx context.Context, session *Session) (sessionState, error) {
	if state := p.written(session); p.covers(state) {
		return state, nil
	}
	return p.position(ctx, session)
}

// position asks the primary for the position of a session's last write.
func (p *primary) position(ctx context.Context, session *Session) (sessionState, error) {
	conn, err := p.pool.Acquire(ctx)
	if err != nil {
		return sessionState{}, err
	}
	defer conn.Release()

	c := primaryConnOf(conn.Conn())
	// If the connection breaks right behind the first statement, only the second one fails.
	for range 2 {
		s := &primaryStatement{Context: ctx, Statement: sqltext.Statement{Access: sqltext.Read}, sessions: []*Session{session}, writes: true}
		s.Behind = positionMessage
		c.begin(s)
		err = conn.Conn().PgConn().ExecParams(ctx, "select", nil, nil, nil, nil).Read().Err
		c.end(s)
		if s.answered {
			return p.written(session), nil
		}
		if err != nil {
			return sessionState{}, err
		}
		if _, a, ok := positionOfAnswer(s.Row); ok && a.readOnly {
			return sessionState{}, pgconn.ErrReadOnlyConnection // a pooler leads to a primary that was demoted
		}
	}
	return sessionState{}, errors.New("flyregion: the primary did not tell its position")
}
