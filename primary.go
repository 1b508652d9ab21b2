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
func (p *Pool) forwardExec(ctx context.Context, why reason, sql string, args []any) (pgconn.CommandTag, error) {
	ctx, span := p.telemetry.forward(ctx, "exec", why)
	tag, err := p.primary.Exec(ctx, sql, args...)
	span.end(err)
	return tag, err
}

// forwardQuery runs a statement with rows on the primary.
func (p *Pool) forwardQuery(ctx context.Context, why reason, sql string, args []any) (pgx.Rows, error) {
	ctx, span := p.telemetry.forward(ctx, "query", why)
	rows, err := p.primary.Query(ctx, sql, args...)
	if err != nil {
		span.end(err)
		return rows, err
	}
	if !span.recording() {
		return rows, nil
	}
	return &spanRows{Rows: rows, span: span}, nil
}

// forwardBatch sends a batch to the primary.
func (p *Pool) forwardBatch(ctx context.Context, why reason, b *pgx.Batch) pgx.BatchResults {
	ctx, span := p.telemetry.forward(ctx, "batch", why)
	results := p.primary.SendBatch(ctx, b)
	if !span.recording() {
		return results
	}
	return &spanBatch{BatchResults: results, span: span}
}

// forwardBegin starts a transaction on the primary.
func (p *Pool) forwardBegin(ctx context.Context, why reason, options pgx.TxOptions) (pgx.Tx, error) {
	ctx, span := p.telemetry.forward(ctx, "begin", why)
	tx, err := p.primary.BeginTx(ctx, options)
	span.end(err)
	return tx, err
}

// forwardCopy copies rows to the primary.
func (p *Pool) forwardCopy(ctx context.Context, table pgx.Identifier, columns []string, source pgx.CopyFromSource) (int64, error) {
	ctx, span := p.telemetry.forward(ctx, "copy", becauseWrite)
	n, err := p.primary.CopyFrom(ctx, table, columns, source)
	span.end(err)
	return n, err
}

// spanRows are rows whose span ends when they do.
type spanRows struct {
	pgx.Rows
	span span
}

func (r *spanRows) Next() bool {
	if r.Rows.Next() {
		return true
	}
	r.finish()
	return false
}

func (r *spanRows) Close() {
	r.Rows.Close()
	r.finish()
}

func (r *spanRows) Scan(dest ...any) error {
	err := r.Rows.Scan(dest...)
	if err != nil {
		r.Close()
	}
	return err
}

func (r *spanRows) Values() ([]any, error) {
	values, err := r.Rows.Values()
	if err != nil {
		r.Close()
	}
	return values, err
}

func (r *spanRows) finish() {
	r.span.end(r.Rows.Err())
	r.span = span{}
}

// spanBatch are the results of a batch whose span ends when they do.
type spanBatch struct {
	pgx.BatchResults
	span span
}

func (b *spanBatch) Close() error {
	err := b.BatchResults.Close()
	b.span.end(err)
	b.span = span{}
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
	q := &question{pool: &p.session, session: session, position: true, writes: true}
	forwarder.announce(q)
	_, err = conn.Conn().PgConn().Exec(ctx, "select").ReadAll()
	forwarder.conclude()
	if q.answered {
		return session.load(), nil
	}
	if err == nil {
		err = errors.New("flyregion: the primary did not tell its position")
	}
	return sessionState{}, err
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
		report, err := askReport(ctx, conn, reportSQL)
		if err != nil {
			return err
		}
		if report.recovering || report.readOnly && !readOnly {
			return pgconn.ErrReadOnlyConnection
		}
		p.measured(time.Since(began))
		p.origin.Store(int64(report.server))
		f.open(report.server)
		conn.CustomData()[customDataKey] = &primaryConn{forwarder: f}
		return nil
	}
}
