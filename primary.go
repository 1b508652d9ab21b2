package flyregion

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/multitracer"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgxpool"
)

// forwardExec runs a statement on the primary.
func (p *Pool) forwardExec(ctx context.Context, why reason, sql string, args []any) (tag pgconn.CommandTag, err error) {
	ctx, stay := p.forward(ctx, "exec", why)
	defer func() { stay.end(err) }()

	return p.primary.Exec(ctx, sql, args...)
}

// forwardQuery runs a statement with rows on the primary.
func (p *Pool) forwardQuery(ctx context.Context, why reason, sql string, args []any) (pgx.Rows, error) {
	ctx, stay := p.forward(ctx, "query", why)
	rows, err := p.primary.Query(ctx, sql, args...)
	if err != nil {
		stay.end(err)
		return rows, err
	}
	if stay == (forwarding{}) {
		return rows, nil
	}
	return &forwardedRows{Rows: rows, stay: stay}, nil
}

// forwardQueryRow runs a statement with one row on the primary.
func (p *Pool) forwardQueryRow(ctx context.Context, why reason, sql string, args []any) pgx.Row {
	ctx, stay := p.forward(ctx, "query", why)
	row := p.primary.QueryRow(ctx, sql, args...)
	if stay == (forwarding{}) {
		return row
	}
	return &forwardedRow{Row: row, stay: stay}
}

// forwardedRow is the row of a statement on the primary.
type forwardedRow struct {
	pgx.Row
	stay forwarding // ends with the row
}

func (r *forwardedRow) Scan(dest ...any) (err error) {
	defer func() {
		failure := err
		if errors.Is(err, pgx.ErrNoRows) {
			failure = nil // an answer like any other
		}
		r.stay.end(failure)
		r.stay = forwarding{}
	}()
	return r.Row.Scan(dest...)
}

// forwardBatch sends a batch to the primary.
func (p *Pool) forwardBatch(ctx context.Context, why reason, b *pgx.Batch) pgx.BatchResults {
	ctx, stay := p.forward(ctx, "batch", why)
	results := p.primary.SendBatch(ctx, b)
	if stay == (forwarding{}) {
		return results
	}
	return &forwardedBatch{BatchResults: results, stay: stay}
}

// forwardBegin starts a transaction on the primary.
func (p *Pool) forwardBegin(ctx context.Context, why reason, options pgx.TxOptions) (tx pgx.Tx, err error) {
	ctx, stay := p.forward(ctx, "begin", why)
	defer func() { stay.end(err) }()

	return p.primary.BeginTx(ctx, options)
}

// forwardCopy copies rows to the primary.
func (p *Pool) forwardCopy(ctx context.Context, table pgx.Identifier, columns []string, source pgx.CopyFromSource) (n int64, err error) {
	ctx, stay := p.forward(ctx, "copy", becauseWrite)
	defer func() { stay.end(err) }()

	return p.primary.CopyFrom(ctx, table, columns, source)
}

// forwarding is a statement that runs on the primary. The zero value needs no end.
type forwarding struct {
	span span
	slot chan struct{} // that it has a place in, or nil
}

// forward begins what end ends. Reads that no replica can serve come many at once, when replay stalls. Half of the
// primary's connections are theirs, so that they keep no write waiting; but none waits for its turn longer than for a
// replica, as the reads ahead of it may be waiting for it in turn.
func (p *Pool) forward(ctx context.Context, operation string, why reason) (context.Context, forwarding) {
	ctx, span := p.telemetry.forward(ctx, operation, why)
	stay := forwarding{span: span}
	if why != becauseLag && why != becauseUnreachable {
		return ctx, stay
	}

	select {
	case p.stranded <- struct{}{}:
		stay.slot = p.stranded
		return ctx, stay
	default:
	}
	timer := time.NewTimer(p.patience())
	defer timer.Stop()
	select {
	case p.stranded <- struct{}{}:
		stay.slot = p.stranded
	case <-timer.C:
	case <-ctx.Done():
	}
	return ctx, stay
}

func (f forwarding) end(err error) {
	f.span.end(err)
	if f.slot != nil {
		<-f.slot
	}
}

// forwardedRows are the rows of a statement on the primary.
type forwardedRows struct {
	pgx.Rows
	stay forwarding // ends with the rows
}

func (r *forwardedRows) Next() bool {
	if r.Rows.Next() {
		return true
	}
	r.finish()
	return false
}

func (r *forwardedRows) Close() {
	r.Rows.Close()
	r.finish()
}

func (r *forwardedRows) Scan(dest ...any) error {
	err := r.Rows.Scan(dest...)
	if err != nil {
		r.Close()
	}
	return err
}

func (r *forwardedRows) Values() ([]any, error) {
	values, err := r.Rows.Values()
	if err != nil {
		r.Close()
	}
	return values, err
}

func (r *forwardedRows) finish() {
	r.stay.end(r.Rows.Err())
	r.stay = forwarding{}
}

// forwardedBatch are the results of a batch on the primary.
type forwardedBatch struct {
	pgx.BatchResults
	stay forwarding // ends with the results
}

func (b *forwardedBatch) Close() error {
	err := b.BatchResults.Close()
	b.stay.end(err)
	b.stay = forwarding{}
	return err
}

// learn asks the primary for the position of a session's last write.
func (p *Pool) learn(ctx context.Context, session *Session) (sessionState, error) {
	conn, err := p.primary.Acquire(ctx)
	if err != nil {
		return sessionState{}, err
	}
	defer conn.Release()

	forwarder := primaryConnOf(conn.Conn()).forwarder
	// A connection that breaks behind the statement has the words for that only the next time.
	for range 2 {
		q := &question{pool: &p.session, sessions: []*Session{session}, position: true, writes: true}
		forwarder.announce(q, false)
		err = conn.Conn().PgConn().ExecParams(ctx, "select", nil, nil, nil, nil).Read().Err
		forwarder.conclude()
		if q.answered {
			return session.load(), nil
		}
		if err != nil {
			return sessionState{}, err
		}
	}
	return sessionState{}, errors.New("flyregion: the primary did not tell its position")
}

// awaitWrite makes a write wait for the replica, where the config wants that. The write has succeeded, and is no error
// if the replica does not show it in time.
func (p *Pool) awaitWrite(ctx context.Context) {
	if !p.config.AwaitWrites {
		return
	}
	_ = p.replicas.list[0].tracker.wait(ctx, p.session.load().position, 0, p.config.MaxReplicaWait)
}

// measured takes a round trip to the primary into account, as a new connection measures it.
func (p *Pool) measured(d time.Duration) {
	if old := time.Duration(p.roundTrip.Load()); old > 0 && d > old {
		d = (3*old + d) / 4
	}
	p.roundTrip.Store(int64(d))
}

// measuredAtMost takes into account that a round trip to the primary is no longer than d, in which a statement ran too.
func (p *Pool) measuredAtMost(d time.Duration) {
	if int64(d) < p.roundTrip.Load() {
		p.roundTrip.Store(int64(d))
	}
}

// openPrimary makes the primary's pool from its configuration.
func (p *Pool) openPrimary(ctx context.Context, config *pgxpool.Config) (*pgxpool.Pool, error) {
	ours := &Tracer{pool: p}
	if theirs := config.ConnConfig.Tracer; theirs != nil {
		config.ConnConfig.Tracer = multitracer.New(theirs, ours)
	} else {
		config.ConnConfig.Tracer = ours
	}

	// pgxpool would ping a connection that was idle for a second, so that a lone write crossed the sea twice. An app that
	// chose for itself how to find dead connections keeps its way.
	if config.ShouldPing == nil && config.PingTimeout == 0 {
		config.ShouldPing = func(_ context.Context, params pgxpool.ShouldPingParams) bool {
			return params.IdleDuration > time.Second && !quiet(params.Conn.PgConn().Conn())
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
			c.greeting = true
			defer func() { c.greeting = false }()

			return afterConnect(ctx, conn)
		}
	}
	return pgxpool.NewWithConfig(ctx, config)
}

// attach makes the one connection that config is for carry a forwarder, and checks that its server can be written to, so
// that a failover never leaves the pool writing to a server that was demoted.
func (p *Pool) attach(config *pgx.ConnConfig) {
	// pgx tries one host after the other, each with a frontend of its own.
	var f *forwarder

	build := config.BuildFrontend
	config.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		f = &forwarder{r: r, w: w, noteRaw: p.session.wroteUnknown, measured: p.measuredAtMost}
		return build(f, f)
	}

	validate := config.ValidateConnect
	// An app that made its sessions read-only by default is not to be refused for it.
	_, readOnly := config.RuntimeParams["default_transaction_read_only"]
	config.ValidateConnect = func(ctx context.Context, conn *pgconn.PgConn) error {
		if validate != nil {
			if err := validate(ctx, conn); err != nil {
				return err
			}
		}
		began := time.Now()
		report, err := askReport(ctx, conn)
		if err != nil {
			return err
		}
		if report.recovering || report.readOnly && !readOnly {
			return pgconn.ErrReadOnlyConnection
		}
		p.measured(time.Since(began))
		for _, r := range p.replicas.list {
			r.tracker.setTimeline(report.timeline)
		}
		p.origin.Store(int64(report.server))
		f.open(report.server)
		conn.CustomData()[customDataKey] = &primaryConn{forwarder: f}
		return nil
	}
}
