package flyregion

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/flyregion/flyregion/internal/piggyback"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// primary is the writable server, wherever it is, and what is known of it.
type primary struct {
	pool       *pgxpool.Pool
	statements *statements
	telemetry  *telemetry // nil where one plain pool does

	session Session // what this process has written

	identity  atomic.Pointer[identity] // of the primary that answered last, nil before
	roundTrip atomic.Int64             // smoothed, in nanoseconds
	// minWait and maxWait bound how long a read waits for a replica.
	minWait, maxWait time.Duration

	// fallbacks has a place for each read that may be on the primary because no replica can serve it.
	fallbacks chan struct{}

	copiesUnanswered atomic.Bool // a pooler drops what is asked behind a COPY

	// awaitReplay waits until the replica shows what a session has written. It is nil unless writes wait for that.
	awaitReplay func(context.Context, sessionState)
}

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
		return p.attachTo(ctx, conn, report.server, readOnly)
	})
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

// identify takes note of the server that a report was just received from.
func (p *primary) identify(r *report) {
	for {
		known := p.identity.Load()
		if next := identityOf(known, r); next == known || p.identity.CompareAndSwap(known, next) {
			return
		}
	}
}

// reconnect makes all connections anew, as a standby says that there is a newer primary.
func (p *primary) reconnect() { p.pool.Reset() }

// measured takes a round trip into account, as a new connection measures it.
func (p *primary) measured(d time.Duration) {
	if old := time.Duration(p.roundTrip.Load()); old > 0 && d > old {
		d = (3*old + d) / 4
	}
	p.roundTrip.Store(int64(d))
}

// measuredAtMost takes into account that a round trip is no longer than d, in which a statement ran too.
func (p *primary) measuredAtMost(d time.Duration) {
	if int64(d) < p.roundTrip.Load() {
		p.roundTrip.Store(int64(d))
	}
}

// waitLimit is how long a read waits for a replica: what it would take to ask the primary instead.
func (p *primary) waitLimit() time.Duration {
	return min(max(time.Duration(p.roundTrip.Load()), p.minWait), p.maxWait)
}

// covers reports whether a session's position says all that must be known of its writes: the position of each is known,
// and is in the log of the primary of today.
func (p *primary) covers(state sessionState) bool {
	if state.unknown > 0 || state.outdated > 0 {
		return false
	}
	known := p.identity.Load()
	return state.position == 0 || known != nil && state.origin == known.server
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

// awaitWrite makes a write wait for the replica, where the config wants that. The write has succeeded, and is no error
// if the replica does not show it in time.
func (p *primary) awaitWrite(ctx context.Context) {
	if p.awaitReplay != nil {
		p.awaitReplay(ctx, p.session.load())
	}
}
