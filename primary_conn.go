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
	// pgxpool would ping a connection that was idle for a second, so that a lone write crossed the sea twice. An app that
	// chose for itself how to find dead connections keeps its way.
	if config.ShouldPing == nil && config.PingTimeout == 0 {
		config.ShouldPing = func(_ context.Context, params pgxpool.ShouldPingParams) bool {
			return params.IdleDuration > time.Second && !piggyback.Alive(params.Conn.PgConn().Conn())
		}
	}

	beforeConnect := config.BeforeConnect
	config.BeforeConnect = func(ctx context.Context, config *pgx.ConnConfig) error {
		if beforeConnect != nil {
			if err := beforeConnect(ctx, config); err != nil {
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
	p.pool, err = pgxpool.NewWithConfig(ctx, config)
	return err
}

// attach makes the connections that config is for tell what they write, and checks that their server can be written to,
// so that a failover never leaves the pool writing to a server that was demoted.
func (p *primary) attach(config *pgx.ConnConfig) {
	// An app that made its sessions read-only by default is not to be refused for it.
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
		p.measured(time.Since(began))
		p.identify(&report)
		return p.attachTo(ctx, conn, &report, readOnly)
	})
}

// primaryConn is what is known of one connection to the primary. But for what is said otherwise only the connection's user
// touches it. The callbacks of wire run while the connection is used, or when a statement's answer is given up.
type primaryConn struct {
	primary        *primary
	wire           *piggyback.Conn
	readOnly       bool     // the app made its sessions read-only by default
	pooled         bool     // a pooler is in between
	server         serverID // that answered last; wire's callbacks touch it
	inAfterConnect bool     // AfterConnect runs

	prepared  map[string]string // texts by the names that the app has given them on this connection
	preparing [2]string         // the name and the text that are being prepared

	current *primaryStatement // from a tracer's start to its end, or nil; wire's callbacks read it

	// Of the transaction block that is open: it has written, may commit asynchronously, and may have changed the schema.
	wrote, async, schema bool
	// Of the contexts of the statement, and of the block that it is in.
	sessions []*Session

	// acquired is the session of the context that the connection was acquired with. What is run past pgx's tracers counts
	// for it. Any goroutine may read it.
	acquired atomic.Pointer[Session]
	// unannounced is set when something has run past pgx's tracers. Any goroutine may set it.
	unannounced atomic.Bool
}

func primaryConnOf(conn *pgx.Conn) *primaryConn {
	c, _ := conn.PgConn().CustomData()[customDataKey].(*primaryConn)
	return c
}

// attachTo makes one connection tell what it writes.
func (p *primary) attachTo(ctx context.Context, conn *pgconn.PgConn, r *report, readOnly bool) error {
	c := &primaryConn{primary: p, server: r.server, pooled: r.pooled, readOnly: readOnly}
	wire, err := piggyback.Attach(ctx, conn, piggyback.Events{
		Asked:       func(*piggyback.Question) { c.current.asked = clock.Add(1) },
		Answered:    c.answered,
		Late:        c.late,
		Committed:   c.committed,
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

// primaryStatement is one statement on the primary, between a tracer's start and end. It is the context that pgx passes
// from the one to the other, so that a statement which pgx refuses, as another runs, is told from that one.
type primaryStatement struct {
	context.Context
	piggyback.Question
	sqltext.Statement

	conn     *primaryConn // nil if the statement cannot run
	open     bool         // it begins in a transaction block
	writes   bool         // the position counts whatever the answer to wroteSQL is
	mayAsync bool         // its transaction may commit asynchronously although its session does not
	sessions []*Session   // of its contexts

	asked    uint64   // when, by this process's clock; 0 if nothing was asked
	answered bool     // the position was told, and noted if it counts
	noted    []uint64 // what wroteUnknownSince returned for the pool's session and sessions, where this statement called it
}

type primaryStatementKey struct{}

func (s *primaryStatement) Value(key any) any {
	if key == (primaryStatementKey{}) {
		return s
	}
	return s.Context.Value(key)
}

// begin makes s what runs on c.
func (c *primaryConn) begin(s *primaryStatement) {
	if c.current != nil {
		// Its results were never closed.
		c.wire.Abandon()
	}
	s.conn, c.current = c, s
	c.wire.Announce(&s.Question, s.Begins && !s.open)
}

// end ends what begin began.
func (c *primaryConn) end(s *primaryStatement) {
	c.wire.Conclude(&s.Question)
	c.current = nil
}

// abandon ends what runs on c without its results, when the connection is released.
func (c *primaryConn) abandon() {
	c.wire.Abandon()
	c.current = nil
	c.wrote, c.async, c.schema, c.sessions = false, false, false, nil
	c.unannounced.Store(false)
}

// resolve returns the text that sql stands for on this connection. It is another if sql is the name of a prepared statement.
func (c *primaryConn) resolve(sql string) string {
	if text, ok := c.prepared[sql]; ok {
		return text
	}
	return c.primary.statements.resolve(sql)
}

// facts returns what is known that no text shows.
func (c *primaryConn) facts() sqltext.Facts {
	texts := c.primary.statements
	return texts.facts(texts.catalog.answers.Load())
}

// prepare takes note of a statement that the app prepares under a name of its own.
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

// answered tells the sessions of the statement that runs what the answer to positionSQL says.
func (c *primaryConn) answered(q *piggyback.Question) {
	s := c.current
	p, a, ok := positionOfAnswer(q.Row)
	if !ok || a.readOnly && !c.readOnly || !q.Idle && !s.Ends {
		return
	}
	if a.server != c.server {
		// A pooler leads to another server than before.
		c.server = a.server
		c.primary.answeredBy(a, p.flush)
	}
	s.answered = true
	c.primary.measuredAtMost(time.Since(q.Asked))
	async := s.mayAsync || a.async || q.InRow.Len > 0 && q.InRow.Columns[q.InRow.Len-1] == "off"
	if q.InRow.Len == 2 && q.InRow.Columns[0] == "f" && !s.writes && s.noted == nil {
		return
	}
	p.asked = s.asked
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

// session returns the pool's session and then those of the statement's contexts.
func (s *primaryStatement) session(i int) *Session {
	if i == 0 {
		return &s.conn.primary.session
	}
	return s.sessions[i-1]
}

// late takes note of a question that was not answered in time.
func (c *primaryConn) late(q *piggyback.Question) {
	if q.Copied {
		c.primary.copiesUnanswered.Store(true)
	}
}

// committed makes what runs count before it has ended, as part of it was committed.
func (c *primaryConn) committed(q *piggyback.Question) {
	s := c.current
	if q == nil || s == nil || q != &s.Question {
		c.ranUnannounced()
		return
	}
	s.noted = make([]uint64, len(s.sessions)+1)
	for i := range s.noted {
		s.noted[i] = s.session(i).wroteUnknownSince(s.asked)
	}
}

// ranUnannounced makes what was run past pgx's tracers count.
func (c *primaryConn) ranUnannounced() {
	c.unannounced.Store(true)
	c.primary.session.wroteUnknown()
	c.primary.statements.catalog.forget(c.primary.session.load())
	if s := c.acquired.Load(); s != nil {
		s.wroteUnknown()
	}
}

// abandoned makes a statement count whose results nobody will read.
func (c *primaryConn) abandoned(*piggyback.Question) {
	s := c.current
	if s.answered || s.open && !s.Ends && !s.OtherCommand || !s.mayHaveWritten(nil) {
		return
	}
	s.noteUnknown()
	if s.Schema {
		c.primary.statements.catalog.forget(c.primary.session.load())
	}
}

// noteUnknown makes a write count whose position is not known.
func (s *primaryStatement) noteUnknown() {
	for i := range len(s.sessions) + 1 {
		s.session(i).wroteUnknown()
	}
}

// mayHaveWritten reports whether the statement may have written something: by its text, or by what the answer to wroteSQL
// says of the transaction that it ran in, if it could be asked.
func (s *primaryStatement) mayHaveWritten(err error) bool {
	if s.Access == sqltext.Write {
		// What was to be asked behind the statement, and was not, has not even been sent.
		return err == nil || s.Ran
	}
	if s.InRow.Len == 2 {
		return s.InRow.Columns[0] == "t"
	}
	// A read that failed has been rolled back, if the server says so.
	var pgErr *pgconn.PgError
	return !errors.As(err, &pgErr)
}

// answeredBy takes note that a connection leads to another server than when it was made, as one behind a pooler may. Its log
// was flushed that far.
func (p *primary) answeredBy(a primaryAnswer, flushed LSN) {
	r := &report{server: a.server, timeline: a.timeline, position: flushed}
	if known := p.identity.Load(); known != nil {
		r.system = known.system // a pooler leads to one cluster
	}
	p.identify(r)
}

// positionOf returns what a session has written, and asks the primary if that is not known well enough.
func (p *primary) positionOf(ctx context.Context, session *Session) (sessionState, error) {
	if state := session.load(); p.covers(state) {
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
	// A connection that breaks behind the statement says so only the next time.
	for range 2 {
		s := &primaryStatement{Context: ctx, sessions: []*Session{session}, writes: true}
		s.Behind = positionMessage
		c.begin(s)
		err = conn.Conn().PgConn().ExecParams(ctx, "select", nil, nil, nil, nil).Read().Err
		c.end(s)
		if s.answered {
			return session.load(), nil
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

// flushed asks how far the log is flushed. It returns 0 if the primary does not answer.
func (p *primary) flushed(ctx context.Context) LSN {
	conn, err := p.pool.Acquire(ctx)
	if err != nil {
		return 0
	}
	defer conn.Release()

	c := primaryConnOf(conn.Conn())
	s := &primaryStatement{Context: ctx}
	c.begin(s)
	defer c.end(s)
	row, err := oneRow(ctx, conn.Conn().PgConn(), positionSQL)
	if err != nil {
		return 0
	}
	flushed, _ := ParseLSN(string(row[0]))
	return flushed
}
