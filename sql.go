package flyregion

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
)

// OpenDB returns a [sql.DB] on the pool, for libraries that need one. Statements outside of transactions are routed one by
// one, like those of the pool. A transaction with [sql.TxOptions].ReadOnly runs on the replica if its first statement can run
// there, as with [Pool.BeginTx]. Every other transaction runs on the primary. The writes of one [sql.Conn] run in one session
// on the primary. Once a statement may have left something in that session, such as a setting or a temporary table, all
// statements of the sql.Conn run in it.
//
// Under [WithPrimary] and [WithReplica], [sql.DB.Conn] does what [Pool.Acquire] does: the connection is one session on
// that server for all that is run in it, and [sql.Conn.Raw] passes a [*stdlib.Conn]. For any other connection Raw passes a
// value with the method Conn() *pgx.Conn, which returns the session on the primary. That value is no *stdlib.Conn, because
// a *stdlib.Conn runs all statements on one server. If there is no session yet, Conn() waits for a connection to the primary
// without a context, as Raw has none. Call [sql.Conn.PingContext] before, which waits under its context.
//
// The connections are the pool's: the sql.DB keeps none of its own (SetMaxIdleConns is 0), and closing it does not close
// the pool. Without a replica OpenDB returns what [stdlib.OpenDBFromPool] does.
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

// keepForPrimary keeps database/sql from reusing a connection of stdlib's to the primary under a context without WithPrimary.
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

// Connect returns stdlib's connection to the server that the context names. If it names none, it returns a sqlConn without a
// connection, as reads need none to the primary.
func (c *sqlConnector) Connect(ctx context.Context) (driver.Conn, error) {
	r := route{intent: intentOf(ctx), why: becauseAsked}
	switch r.to = r.target; r.to {
	case targetPrimary:
		c.reads.telemetry.sent(ctx, targetPrimary, becauseAsked, 0)
		return c.primary.Connect(ctx)
	case targetReplica:
		rep, conn, err := acquireReplica(ctx, c.reads, &r, sqlConns)
		if err != nil {
			return nil, err
		}
		rep.handOver(conn.Conn())
		return conn, nil
	}
	return &sqlConn{router: c.router, reads: c.reads}, ctx.Err()
}

func (c *sqlConnector) Driver() driver.Driver { return stdlib.GetDefaultDriver() }

// sqlConn is a driver.Conn that routes its statements. database/sql does not call its methods, or those of what it has
// returned, concurrently.
type sqlConn struct {
	router  *router
	reads   *reads
	session *stdlib.Conn // on the primary; nil until something runs there
	tx      *sqlTx       // the open transaction, or nil
	pinned  bool         // the session may have settings or tables of its own, which no replica has
	shared  bool         // ... as a text said, so that the next user of this connection has them too, as with stdlib
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

// Conn returns the connection of the open transaction or, as [stdlib.Conn.Conn] does, of the session on the primary, nil
// if there is none to be had. database/sql passes it no context.
func (c *sqlConn) Conn() *pgx.Conn {
	if c.tx != nil {
		c.tx.unused = false
		if c.tx.on == nil {
			return nil
		}
		return c.tx.on.Conn()
	}
	session, err := c.primary(context.Background())
	if err != nil {
		return nil
	}
	// The caller may change the session's settings.
	c.pinned, c.shared = true, true
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
	rt := c.router.route(ctx, query, valuesOf(args))
	if rt.to == targetPrimary {
		s := c.router.statements.inspect(query)
		c.pinned = c.pinned || s.LeavesState
		c.shared = c.shared || s.Settings || s.Temporary
	}
	c.keepOnPrimary(&rt)
	return rt
}

// keepOnPrimary keeps a read on the primary if its session is there.
func (c *sqlConn) keepOnPrimary(rt *route) {
	inBlock := c.session != nil && c.session.Conn().PgConn().TxStatus() != 'I'
	if rt.target == targetAny && rt.to == targetReplica && (c.pinned || inBlock) {
		rt.toPrimary(becauseTransaction)
	}
}

func valuesOf(args []driver.NamedValue) []any {
	values := make([]any, len(args))
	for i := range args {
		values[i] = args[i].Value
	}
	return values
}

// sqlConns has connections to replicas as stdlib wraps them.
var sqlConns = connSource[*stdlib.Conn]{
	acquire: func(ctx context.Context, r *replica) (*stdlib.Conn, error) {
		conn, err := r.db.Connect(ctx)
		if err != nil {
			return nil, err
		}
		return conn.(*stdlib.Conn), nil
	},
	release: func(r *replica, conn *stdlib.Conn) {
		r.done(conn.Conn())
		_ = conn.Close() // which releases it to the pool, and returns no error
	},
}

// sqlUse is what a statement has in use until it has ended. The zero value needs no end.
type sqlUse struct {
	replica  replicaRead[*stdlib.Conn] // where a replica serves
	primary  forwarding                // where the primary does
	fallback *sqlConn                  // whose session on the primary is released at the end, or nil
}

// end gives back what is in use. Further calls do nothing.
func (u *sqlUse) end(err error) {
	u.replica.release()
	u.primary.end(err)
	if c := u.fallback; c != nil && !c.pinned && c.tx == nil {
		_ = c.Close()
	}
	u.fallback = nil
}

// sqlRun is a statement as it runs on a connection.
type sqlRun[T any] func(context.Context, *stdlib.Conn) (T, error)

// runRouted runs a statement where its route leads. What it uses is in use until the caller ends that, unless it failed.
func runRouted[T any](ctx context.Context, c *sqlConn, rt *route, operation, query string, run sqlRun[T]) (result T, use sqlUse, err error) {
	if rt.to == targetReplica {
		result, use.replica, err = onReplica(ctx, c.reads, rt, sqlConns, query, func(conn *stdlib.Conn) (T, error) { return run(ctx, conn) })
		if rt.to == targetReplica {
			return result, use, err
		}
	}

	switch {
	case rt.why == becauseRefused || rt.why == becauseWrite && c.router.statements.inspect(query).LeavesState:
		c.pinned = true // it may have left state in the session
	case rt.isTemporary() && c.session == nil && (operation == "query" || operation == "exec"):
		// When many reads are on the primary, each releases its connection at its end: a write may be waiting for one.
		use.fallback = c
	}
	ran, opens := false, c.session == nil
	defer func() {
		if err != nil || !ran {
			use.end(err)
		}
		if !ran && opens && !c.pinned {
			_ = c.Close() // an argument panicked, and database/sql may have lost this connection by that
		}
	}()
	ctx, use.primary = c.reads.primary.forward(ctx, operation, rt)
	session, err := c.primary(ctx)
	if err == nil {
		result, err = run(ctx, session)
		if c := primaryConnOf(session.Conn()); errors.Is(err, driver.ErrBadConn) && c != nil && c.lost != nil {
			err = c.lost // so that database/sql does not send it again
		}
	}
	ran = true
	return result, use, err
}

// statement runs a statement in the open transaction or, if there is none, where its route leads. A statement that is only
// prepared tells nothing about its text.
func statement[T any](ctx context.Context, c *sqlConn, operation, query string, args []driver.NamedValue, run sqlRun[T]) (result T, use sqlUse, err error) {
	if c.tx != nil {
		result, err = runInTx(ctx, c.tx, query, args, run)
		return result, use, err
	}
	rt := c.route(ctx, query, args)
	if operation == "prepare" {
		query = ""
	}
	return runRouted(ctx, c, &rt, operation, query, run)
}

func (c *sqlConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	result, use, err := statement(ctx, c, "exec", query, args, func(ctx context.Context, conn *stdlib.Conn) (driver.Result, error) {
		return conn.ExecContext(ctx, query, args)
	})
	use.end(err)
	return result, err
}

func (c *sqlConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	rows, use, err := statement(ctx, c, "query", query, args, func(ctx context.Context, conn *stdlib.Conn) (driver.Rows, error) {
		return conn.QueryContext(ctx, query, args)
	})
	if err != nil {
		return nil, err
	}
	r := &sqlRows{Rows: rows.(*stdlib.Rows), use: use, query: query}
	if use.replica.conn != nil || c.tx != nil && c.tx.replica.conn != nil {
		r.replicaOf = c.router
	}
	return r, nil
}

// sqlRows are the rows of a statement, which ends with them.
type sqlRows struct {
	*stdlib.Rows
	use       sqlUse
	query     string
	replicaOf *router // that remembers what a replica refuses after the first row; nil for rows of the primary
}

// failed notes an error after the first row.
func (r *sqlRows) failed(err error) {
	if err != nil && r.replicaOf != nil {
		r.replicaOf.rememberRefusal(r.query, err)
	}
}

func (r *sqlRows) Next(dest []driver.Value) error {
	err := r.Rows.Next(dest)
	r.failed(err)
	return err
}

func (r *sqlRows) Close() error {
	err := r.Rows.Close()
	r.failed(err)
	r.use.end(err)
	return err
}

func (c *sqlConn) BeginTx(ctx context.Context, options driver.TxOptions) (driver.Tx, error) {
	var in pgx.TxOptions
	if options.ReadOnly {
		in.AccessMode = pgx.ReadOnly
	}
	if sql.IsolationLevel(options.Isolation) == sql.LevelSerializable {
		in.IsoLevel = pgx.Serializable
	}
	rt := c.router.routeTx(ctx, in)
	c.keepOnPrimary(&rt)
	tx := &sqlTx{conn: c, ctx: ctx, options: options}
	if err := tx.begin(&rt); err != nil {
		return nil, err
	}
	c.tx = tx
	return tx, nil
}

// sqlTx is a transaction of a sqlConn. If it is on a replica, and its first statement belongs to the primary or the
// replica cannot run it, the transaction begins anew there: nothing has happened in it yet.
type sqlTx struct {
	driver.Tx // of on
	conn      *sqlConn
	on        *stdlib.Conn              // nil if it could not begin anew
	replica   replicaRead[*stdlib.Conn] // that on is of, if it is a replica's
	ctx       context.Context           // of BeginTx
	options   driver.TxOptions
	route     route
	unused    bool       // it is on a replica, and nothing has run in it
	prepared  []*sqlStmt // on a replica
}

func (tx *sqlTx) begin(rt *route) error {
	var on *stdlib.Conn
	begun, use, err := runRouted(tx.ctx, tx.conn, rt, "begin", "", func(ctx context.Context, conn *stdlib.Conn) (driver.Tx, error) {
		on = conn
		return conn.BeginTx(ctx, tx.options)
	})
	if err != nil {
		return err
	}
	tx.Tx, tx.on, tx.replica, tx.route = begun, on, use.replica, *rt
	tx.unused = rt.to == targetReplica && rt.target != targetReplica
	use.primary.end(nil)
	return nil
}

// runInTx runs a statement of a transaction.
func runInTx[T any](ctx context.Context, tx *sqlTx, query string, args []driver.NamedValue, run sqlRun[T]) (result T, err error) {
	first := tx.unused
	tx.unused = false
	switch {
	case tx.on == nil:
		return result, pgx.ErrTxClosed
	case !first:
		return run(ctx, tx.on)
	}
	onConn := func() (T, error) { return run(ctx, tx.on) }
	return runFirst(ctx, &tx.replica, &tx.route, query, valuesOf(args), onConn, tx.move)
}

// move begins the transaction anew on the primary.
func (tx *sqlTx) move(why reason) error {
	// What is lost with the transaction on the replica is one in which nothing has happened.
	_ = tx.Tx.Rollback()
	tx.release()
	tx.on = nil
	return tx.begin(tx.route.onPrimary(why))
}

// Commit commits the transaction and releases its connection.
func (tx *sqlTx) Commit() error {
	err := tx.Tx.Commit()
	tx.end()
	return err
}

// Rollback rolls the transaction back and releases its connection.
func (tx *sqlTx) Rollback() error {
	err := tx.Tx.Rollback()
	tx.end()
	return err
}

func (tx *sqlTx) end() {
	tx.conn.tx = nil
	tx.release()
}

// release closes the statements of the transaction and releases a replica's connection. database/sql closes them only after
// the transaction's end, when another goroutine may have the connection.
func (tx *sqlTx) release() {
	for _, s := range tx.prepared {
		_ = s.Close()
	}
	tx.prepared = nil
	tx.replica.release()
}

// Begin starts a transaction that is not read-only.
func (c *sqlConn) Begin() (driver.Tx, error) {
	return c.BeginTx(context.Background(), driver.TxOptions{})
}

// Prepare prepares a statement without a context.
func (c *sqlConn) Prepare(query string) (driver.Stmt, error) {
	return c.PrepareContext(context.Background(), query)
}

// PrepareContext prepares a statement where its text would run now, so that a mistake in it is found. It remains prepared
// in the session on the primary and in a transaction, but not on a replica outside of one.
func (c *sqlConn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	unused := c.tx != nil && c.tx.unused
	prepared, use, err := statement(ctx, c, "prepare", query, nil, func(ctx context.Context, conn *stdlib.Conn) (driver.Stmt, error) {
		return conn.PrepareContext(ctx, query)
	})
	if err != nil {
		return nil, err
	}
	s := &sqlStmt{conn: c, query: query, inputs: prepared.NumInput(), prepared: prepared}
	switch {
	case c.tx != nil && c.tx.replica.conn != nil:
		c.tx.prepared = append(c.tx.prepared, s)
		c.tx.unused = unused // nothing has run
	case use.replica.conn != nil:
		_ = s.Close()
	}
	use.end(nil)
	return s, nil
}

// sqlStmt is a prepared statement. Each time it runs where its text does, which may be another connection than the one
// that it was prepared on: database/sql uses it inside and outside of transactions.
type sqlStmt struct {
	conn     *sqlConn
	query    string
	inputs   int
	prepared driver.Stmt // nil once it was closed
}

func (s *sqlStmt) NumInput() int { return s.inputs }

func (s *sqlStmt) Close() error {
	prepared := s.prepared
	if prepared == nil {
		return nil
	}
	s.prepared = nil
	return prepared.Close()
}

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

// ResetSession returns driver.ErrBadConn if the session on the primary cannot be reused, or if the context names a server and
// so needs a connection of stdlib's.
func (c *sqlConn) ResetSession(ctx context.Context) error {
	if intentOf(ctx).target != targetAny {
		return driver.ErrBadConn
	}
	if c.pinned && !c.shared {
		return driver.ErrBadConn // so that the next user's reads run on the replica
	}
	if c.session == nil {
		return ctx.Err()
	}
	return c.session.ResetSession(ctx)
}

// CheckNamedValue leaves all conversions to pgx.
func (c *sqlConn) CheckNamedValue(*driver.NamedValue) error { return nil }

// Close releases the session on the primary.
func (c *sqlConn) Close() error {
	if c.session == nil {
		return nil
	}
	err := c.session.Close()
	c.session = nil
	return err
}
