package flyregion

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
)

// OpenDB returns a [sql.DB] on the pool, for libraries that want one. Statements outside of transactions are routed one
// by one, as those of the pool are; a transaction with [sql.TxOptions].ReadOnly runs on the replica, every other on the
// primary. Within one [sql.Conn] all that is not read from the replica runs in one session on the primary, and once the
// session's settings have been changed everything does.
//
// Under [WithPrimary] and [WithReplica], [sql.DB.Conn] does what [Pool.Acquire] does: the connection is one session on
// that server for all that is run in it, and [sql.Conn.Raw] passes a [*stdlib.Conn]. The value that Raw passes for any
// other connection has the method Conn() *pgx.Conn too, which gives the session on the primary, but it cannot be a
// *stdlib.Conn, because database/sql sends that one's statements where it is connected to.
//
// Connections are the pool's: the sql.DB keeps none of its own (SetMaxIdleConns is 0), and closing it does not close the
// pool. Without a replica it is what [stdlib.OpenDBFromPool] returns.
func OpenDB(pool *Pool) *sql.DB {
	if pool.replicas == nil {
		return stdlib.OpenDBFromPool(pool.primary.pool)
	}
	db := sql.OpenDB(&sqlConnector{
		router:  pool.router,
		reads:   pool.reads,
		primary: stdlib.GetPoolConnector(pool.primary.pool, stdlib.OptionResetSession(keepForPrimary)),
	})
	db.SetMaxIdleConns(0)
	return db
}

// keepForPrimary refuses a connection to the primary to those who have not asked for one.
func keepForPrimary(ctx context.Context, _ *pgx.Conn) error {
	if intentOf(ctx).target != targetPrimary {
		return driver.ErrBadConn
	}
	return nil
}

type sqlConnector struct {
	router  *router
	reads   *reads
	primary driver.Connector
}

// Connect gives those who name a server stdlib's connection to it, and others one that is connected to nothing: what
// only reads needs no connection to the primary.
func (c *sqlConnector) Connect(ctx context.Context) (driver.Conn, error) {
	r := route{intent: intentOf(ctx), why: becauseAsked}
	switch r.to = r.target; r.to {
	case targetPrimary:
		c.reads.telemetry.sent(ctx, targetPrimary, becauseAsked)
		return c.primary.Connect(ctx)
	case targetReplica:
		rep, conn, err := acquireReplica(ctx, c.reads, &r, sqlConns)
		if err != nil {
			return nil, err
		}
		rep.leave(conn.Conn())
		return conn, nil
	}
	return &sqlConn{router: c.router, reads: c.reads}, ctx.Err()
}

func (c *sqlConnector) Driver() driver.Driver { return stdlib.GetDefaultDriver() }

// sqlConn is a driver.Conn whose statements run where they belong.
type sqlConn struct {
	router  *router
	reads   *reads
	session *stdlib.Conn // on the primary; nil until something runs there
	tx      *stdlib.Conn // that a transaction is open on, or nil
	pinned  bool         // the session may have settings or tables of its own, which no replica has
}

var (
	_ driver.ExecerContext      = (*sqlConn)(nil)
	_ driver.QueryerContext     = (*sqlConn)(nil)
	_ driver.ConnPrepareContext = (*sqlConn)(nil)
	_ driver.ConnBeginTx        = (*sqlConn)(nil)
	_ driver.Pinger             = (*sqlConn)(nil)
	_ driver.SessionResetter    = (*sqlConn)(nil)
	_ driver.NamedValueChecker  = (*sqlConn)(nil)
)

// Conn returns the connection of the session on the primary, as [stdlib.Conn.Conn] does, or nil if there is none to be
// had.
func (c *sqlConn) Conn() *pgx.Conn {
	if c.tx != nil {
		return c.tx.Conn()
	}
	session, err := c.primary(context.Background())
	if err != nil {
		return nil
	}
	// Whoever has it may change its settings.
	c.pinned = true
	return session.Conn()
}

// primary returns the session on the primary.
func (c *sqlConn) primary(ctx context.Context) (*stdlib.Conn, error) {
	if c.session == nil {
		session, err := stdlib.GetPoolConnector(c.reads.primary.pool).Connect(ctx)
		if err != nil {
			return nil, err
		}
		c.session = session.(*stdlib.Conn)
	}
	return c.session, nil
}

// route is where a statement outside of a transaction goes.
func (c *sqlConn) route(ctx context.Context, query string, args []driver.NamedValue) route {
	values := make([]any, len(args))
	for i := range args {
		values[i] = args[i].Value
	}
	r := c.router.route(ctx, query, values)
	if r.to == targetPrimary {
		s := c.router.texts.inspect(query)
		c.pinned = c.pinned || s.LeavesState
	}
	if r.to == targetReplica && (c.pinned || c.inBlock()) {
		r.to, r.why = targetPrimary, becauseTransaction
	}
	return r
}

// inBlock reports whether the session is in a transaction block that somebody began with a text.
func (c *sqlConn) inBlock() bool {
	return c.session != nil && c.session.Conn().PgConn().TxStatus() != 'I'
}

// sqlConns lends connections to replicas as stdlib wraps them.
var sqlConns = lender[*stdlib.Conn]{
	acquire: func(ctx context.Context, r *replica) (*stdlib.Conn, error) {
		conn, err := r.db.Connect(ctx)
		if err != nil {
			return nil, err
		}
		return conn.(*stdlib.Conn), nil
	},
	release: func(r *replica, conn *stdlib.Conn) {
		r.done(conn.Conn())
		_ = conn.Close() // that gives it back to the pool, and has no error
	},
}

// sqlReplica is a connection to a replica.
type sqlReplica struct {
	*stdlib.Conn
	replica *replica
}

// Close gives the connection back.
func (c *sqlReplica) Close() error {
	sqlConns.release(c.replica, c.Conn)
	return nil
}

// replica returns a connection to a replica that can serve the route, nil if the primary is to.
func (c *sqlConn) replica(ctx context.Context, r *route) (*sqlReplica, error) {
	rep, conn, err := acquireReplica(ctx, c.reads, r, sqlConns)
	if conn == nil {
		return nil, err
	}
	return &sqlReplica{conn, rep}, nil
}

// moves is router.moves for an error that stdlib may have turned into driver.ErrBadConn, which means that nothing was sent.
func (c *sqlConn) moves(ctx context.Context, r *route, conn *sqlReplica, query string, err error) reason {
	if errors.Is(err, driver.ErrBadConn) && ctx.Err() == nil && r.target != targetReplica {
		return becauseLost
	}
	return c.router.moves(ctx, r, conn.Conn.Conn(), query, err)
}

func (c *sqlConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if c.tx != nil {
		return c.tx.ExecContext(ctx, query, args)
	}
	r := c.route(ctx, query, args)
	if r.to == targetReplica {
		conn, err := c.replica(ctx, &r)
		if err != nil {
			return nil, err
		}
		if conn != nil {
			result, err := conn.ExecContext(ctx, query, args)
			why := reason("")
			if err != nil {
				why = c.moves(ctx, &r, conn, query, err)
			} else {
				c.router.served(&r, query)
			}
			_ = conn.Close()
			if why == "" {
				return result, err
			}
			r.why = why
		}
	}

	session, err := c.primary(ctx)
	if err != nil {
		return nil, err
	}
	ctx, span := c.reads.telemetry.forward(ctx, "exec", r.why)
	result, err := session.ExecContext(ctx, query, args)
	span.end(err)
	return result, err
}

func (c *sqlConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if c.tx != nil {
		return c.tx.QueryContext(ctx, query, args)
	}
	r := c.route(ctx, query, args)
	if r.to == targetReplica {
		conn, err := c.replica(ctx, &r)
		if err != nil {
			return nil, err
		}
		if conn != nil {
			rows, err := conn.QueryContext(ctx, query, args)
			if err == nil {
				c.router.served(&r, query)
				return &sqlRows{Rows: rows.(*stdlib.Rows), conn: conn}, nil
			}
			why := c.moves(ctx, &r, conn, query, err)
			_ = conn.Close()
			if why == "" {
				return nil, err
			}
			r.why = why
		}
	}

	session, err := c.primary(ctx)
	if err != nil {
		return nil, err
	}
	ctx, span := c.reads.telemetry.forward(ctx, "query", r.why)
	rows, err := session.QueryContext(ctx, query, args)
	span.end(err)
	return rows, err
}

// sqlRows are rows that come from a replica, and give its connection back when they are closed.
type sqlRows struct {
	*stdlib.Rows
	conn *sqlReplica
}

func (r *sqlRows) Close() error {
	err := r.Rows.Close()
	_ = r.conn.Close()
	return err
}

func (c *sqlConn) BeginTx(ctx context.Context, options driver.TxOptions) (driver.Tx, error) {
	readOnly := options.ReadOnly && sql.IsolationLevel(options.Isolation) != sql.LevelSerializable && !c.pinned
	r := route{intent: intentOf(ctx), to: targetPrimary, why: becauseTransaction}
	switch {
	case r.target != targetAny:
		r.to, r.why = r.target, becauseAsked
	case readOnly:
		r.to, r.why = targetReplica, becauseRead
	}
	if r.to == targetReplica {
		conn, err := c.replica(ctx, &r)
		if err != nil {
			return nil, err
		}
		if conn != nil {
			tx, err := conn.BeginTx(ctx, options)
			if err == nil {
				c.tx = conn.Conn
				return &sqlTx{Tx: tx, conn: c, replica: conn}, nil
			}
			why := c.moves(ctx, &r, conn, "", err)
			_ = conn.Close()
			if why == "" {
				return nil, err
			}
			r.why = why
		}
	}

	session, err := c.primary(ctx)
	if err != nil {
		return nil, err
	}
	ctx, span := c.reads.telemetry.forward(ctx, "begin", r.why)
	tx, err := session.BeginTx(ctx, options)
	span.end(err)
	if err != nil {
		return nil, err
	}
	c.tx = session
	return &sqlTx{Tx: tx, conn: c}, nil
}

// sqlTx is a transaction of a sqlConn.
type sqlTx struct {
	driver.Tx
	conn    *sqlConn
	replica *sqlReplica // to give back, or nil
}

func (tx *sqlTx) Commit() error {
	err := tx.Tx.Commit()
	tx.end()
	return err
}

func (tx *sqlTx) Rollback() error {
	err := tx.Tx.Rollback()
	tx.end()
	return err
}

func (tx *sqlTx) end() {
	tx.conn.tx = nil
	if tx.replica != nil {
		_ = tx.replica.Close()
		tx.replica = nil
	}
}

// Begin starts a transaction that is not read-only.
func (c *sqlConn) Begin() (driver.Tx, error) {
	return c.BeginTx(context.Background(), driver.TxOptions{})
}

// Prepare prepares a statement without a context.
func (c *sqlConn) Prepare(query string) (driver.Stmt, error) {
	return c.PrepareContext(context.Background(), query)
}

// PrepareContext prepares a statement that writes in the session on the primary. One that reads is prepared where it is
// run, but parsed now, so that a mistake in it is found.
func (c *sqlConn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	if c.tx != nil {
		return c.tx.PrepareContext(ctx, query)
	}
	r := c.route(ctx, query, nil)
	if r.to == targetReplica {
		conn, err := c.replica(ctx, &r)
		if err != nil {
			return nil, err
		}
		if conn != nil {
			stmt, err := conn.PrepareContext(ctx, query)
			if err == nil {
				inputs := stmt.NumInput()
				_ = stmt.Close()
				_ = conn.Close()
				return &sqlStmt{conn: c, query: query, inputs: inputs}, nil
			}
			why := c.moves(ctx, &r, conn, query, err)
			_ = conn.Close()
			if why == "" {
				return nil, err
			}
		}
	}

	session, err := c.primary(ctx)
	if err != nil {
		return nil, err
	}
	return session.PrepareContext(ctx, query)
}

// sqlStmt is a prepared statement that reads.
type sqlStmt struct {
	conn   *sqlConn
	query  string
	inputs int
}

func (s *sqlStmt) Close() error  { return nil }
func (s *sqlStmt) NumInput() int { return s.inputs }

func (s *sqlStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	return s.conn.ExecContext(ctx, s.query, args)
}

func (s *sqlStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	return s.conn.QueryContext(ctx, s.query, args)
}

var errNoContext = errors.New("flyregion: database/sql calls statements with a context")

func (s *sqlStmt) Exec([]driver.Value) (driver.Result, error) { return nil, errNoContext }
func (s *sqlStmt) Query([]driver.Value) (driver.Rows, error)  { return nil, errNoContext }

// Ping asks the primary for a sign of life, as [Pool.Ping] does.
func (c *sqlConn) Ping(ctx context.Context) error {
	session, err := c.primary(ctx)
	if err != nil {
		return err
	}
	return session.Ping(ctx)
}

// ResetSession says with driver.ErrBadConn that the session on the primary is of no more use, or that the next user is to
// have a connection of stdlib's.
func (c *sqlConn) ResetSession(ctx context.Context) error {
	if intentOf(ctx).target != targetAny {
		return driver.ErrBadConn
	}
	if c.session == nil {
		return ctx.Err()
	}
	return c.session.ResetSession(ctx)
}

// CheckNamedValue leaves all conversions to pgx.
func (c *sqlConn) CheckNamedValue(*driver.NamedValue) error { return nil }

// Close gives the connections back.
func (c *sqlConn) Close() error {
	if c.session == nil {
		return nil
	}
	err := c.session.Close()
	c.session = nil
	return err
}
