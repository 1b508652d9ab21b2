package flyregion

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
)

// ErrReplicaLag is what errors of a read are that was told with [WithReplica] to run on a replica, and whose session's
// writes were not replayed there in time. errors.As with a [*ReplicaLagError] gives the positions.
var ErrReplicaLag = errors.New("replica has not replayed the session's writes")

// ReplicaLagError says how far a replica was behind what a read had to see. errors.Is(err, ErrReplicaLag) is true.
type ReplicaLagError struct {
	Region   string
	Required LSN // what the session wrote
	Replayed LSN // what the replica had replayed when it was last asked, 0 if it never was
}

func (e *ReplicaLagError) Error() string {
	return fmt.Sprintf("flyregion: replica in %s has replayed %s, the session wrote %s", e.Region, e.Replayed, e.Required)
}

// Is reports whether target is ErrReplicaLag.
func (e *ReplicaLagError) Is(target error) bool { return target == ErrReplicaLag }

// replicaConn is what is known of one connection to a replica. Only the connection's user touches it.
type replicaConn struct {
	report
	opened uint64 // when report had been received
}

// openedAt returns when a connection was opened, 0 if it was not for reading.
func openedAt(conn *pgx.Conn) uint64 {
	if c := replicaConnOf(conn); c != nil {
		return c.opened
	}
	return 0
}

func replicaConnOf(conn *pgx.Conn) *replicaConn {
	c, _ := conn.PgConn().CustomData()[customDataKey].(*replicaConn)
	return c
}

// replica is one region's replica.
type replica struct {
	region  string
	pool    *pgxpool.Pool
	db      driver.Connector // to the pool, as database/sql needs it
	tracker *tracker
	// limit bounds, in time, how long a read may be held up by connecting to the replica.
	limit time.Duration

	open, used atomic.Int32  // connections of the pool
	answered   atomic.Int64  // when a connection was last had, in nanoseconds since 1970
	greeted    atomic.Uint64 // how far the server had replayed when it was last connected to

	hooked bool // the app looks at every connection that is acquired

	health health
}

// hookError is an error of the app's own hook, which says nothing about the replica.
type hookError struct{ err error }

func (e *hookError) Error() string { return e.err.Error() }

type prepareKey struct{}

// hookFailed returns the error of the app's own hook, nil if err is none.
func hookFailed(err error) error {
	var hook *hookError
	if errors.As(err, &hook) {
		return hook.err
	}
	return nil
}

// up reports whether the replica is thought to be reachable. If not, and if it is time, it lets somebody find out in the
// background; no read waits for that.
func (r *replica) up() bool {
	if r.health.retryAt.Load() == 0 {
		return true
	}
	if r.health.claimProbe() {
		r.tracker.background(r.probe)
	}
	return false
}

// probe asks the replica whether it is back.
func (r *replica) probe(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, watcherTimeout)
	defer cancel()

	if _, err := r.tracker.observe(ctx, 0); err != nil {
		r.health.fail()
		return
	}
	r.health.recover()
}

// pooledConn is a connection of a replica's pool, in the form that its user needs.
type pooledConn interface {
	*pgxpool.Conn | *stdlib.Conn
	Conn() *pgx.Conn
}

// lender takes connections out of a replica's pool in one of the forms, and puts them back.
type lender[C pooledConn] struct {
	acquire func(context.Context, *replica) (C, error)
	release func(*replica, C)
}

var plainConns = lender[*pgxpool.Conn]{
	acquire: func(ctx context.Context, r *replica) (*pgxpool.Conn, error) { return r.pool.Acquire(ctx) },
	release: (*replica).release,
}

// lend returns a connection. A replica that has none to give within limit counts as unreachable for a while, whether it
// does not answer or all of its connections are in use.
func lend[C pooledConn](ctx context.Context, r *replica, from lender[C]) (C, error) {
	now := time.Now()
	limited := ctx
	if prompt := r.open.Load() > r.used.Load() && now.UnixNano()-r.answered.Load() < int64(time.Second); !prompt {
		var cancel context.CancelFunc
		limited, cancel = context.WithTimeout(ctx, r.limit)
		defer cancel()
	}

	var hook *hookError
	if r.hooked {
		hook = &hookError{}
		limited = context.WithValue(limited, prepareKey{}, hook)
	}
	conn, err := from.acquire(limited, r)
	if err != nil {
		if hook != nil && hook.err != nil {
			return nil, hook
		}
		if ctx.Err() == nil && !errors.Is(err, errClosedPool) {
			r.health.fail()
		}
		return nil, err
	}
	r.answered.Store(now.UnixNano())
	r.used.Add(1)
	return conn, nil
}

// release gives a connection back.
func (r *replica) release(conn *pgxpool.Conn) {
	r.used.Add(-1)
	conn.Release()
}

// shows reports whether a read on conn sees everything that state covers.
func (r *replica) shows(conn *pgx.Conn, state sessionState) bool {
	if state.position == 0 {
		return true
	}
	c := replicaConnOf(conn)
	if c == nil {
		return false
	}
	if c.recovering && c.replayed >= state.position && !r.tracker.doubts(&c.report) {
		return true
	}
	if !c.recovering {
		// A server that is no standby is fresh if it is the primary that was written to. If it is another, somebody
		// promoted it, and nothing is sure.
		return c.server == state.origin
	}
	o := r.tracker.latest.Load()
	if o == nil || o.server != c.server || o.asked <= c.opened {
		return false
	}
	if !o.recovering {
		return o.server == state.origin
	}
	return r.tracker.shows(o, state.position)
}

// replayed returns the position that the replica was at when it was last asked, 0 if it never was.
func (r *replica) replayed() LSN {
	if known := r.tracker.replayed(); known > 0 {
		return known
	}
	return LSN(r.greeted.Load())
}

// ask brings what is known of conn up to date.
func (r *replica) ask(ctx context.Context, conn *pgx.Conn) error {
	c := replicaConnOf(conn)
	if c == nil {
		return errNotReplayed
	}
	report, err := askReport(ctx, conn.PgConn())
	if err != nil {
		return err
	}
	c.report = report
	return nil
}

// welcome is the ValidateConnect of a replica's connections. Any server will do: one that is no standby is fresh, or is
// found out by shows.
func (r *replica) welcome(ctx context.Context, conn *pgconn.PgConn) error {
	report, err := askReport(ctx, conn)
	if err != nil {
		return err
	}
	r.greeted.Store(uint64(report.replayed))
	conn.CustomData()[customDataKey] = &replicaConn{report: report, opened: clock.Add(1)}
	return nil
}

// close closes the replica's connections and ends what runs for it.
func (r *replica) close() {
	r.tracker.close()
	r.pool.Close()
}

// newReplica makes a replica's pool and tracker from its configuration. limit bounds how long a read may be held up by
// connecting.
func newReplica(ctx context.Context, region string, config *pgxpool.Config, limit time.Duration) (_ *replica, err error) {
	r := &replica{region: region, limit: limit}

	// A standby refuses writes by itself. The session refuses them also when the standby is promoted, so that a read
	// that was lost with its connection has done nothing and can run again.
	config.ConnConfig.RuntimeParams["default_transaction_read_only"] = "on"

	validate := config.ConnConfig.ValidateConnect
	config.ConnConfig.ValidateConnect = func(ctx context.Context, conn *pgconn.PgConn) error {
		if validate != nil {
			if err := validate(ctx, conn); err != nil {
				return err
			}
		}
		return r.welcome(ctx, conn)
	}

	if prepare := config.PrepareConn; prepare != nil {
		r.hooked = true
		config.PrepareConn = func(ctx context.Context, conn *pgx.Conn) (bool, error) {
			ok, err := prepare(ctx, conn)
			if hook, _ := ctx.Value(prepareKey{}).(*hookError); hook != nil {
				hook.err = err
			}
			return ok, err
		}
	}

	beforeConnect := config.BeforeConnect
	r.tracker = newTracker(func(ctx context.Context) (*pgconn.PgConn, error) {
		one := config.ConnConfig.Copy()
		if beforeConnect != nil {
			if err := beforeConnect(ctx, one); err != nil {
				return nil, err
			}
		}
		one.RuntimeParams["application_name"] = "flyregion"
		one.RuntimeParams["statement_timeout"] = "0"
		conn, err := pgconn.ConnectConfig(ctx, &one.Config)
		if err != nil {
			return nil, err
		}
		if err := prepareReport(ctx, conn); err != nil {
			closeConn(conn)
			return nil, err
		}
		return conn, nil
	})

	afterConnect, beforeClose := config.AfterConnect, config.BeforeClose
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		if afterConnect != nil {
			if err := afterConnect(ctx, conn); err != nil {
				return err
			}
		}
		r.open.Add(1)
		return nil
	}
	config.BeforeClose = func(conn *pgx.Conn) {
		r.open.Add(-1)
		if beforeClose != nil {
			beforeClose(conn)
		}
	}

	if r.pool, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		r.tracker.close()
		return nil, err
	}
	r.db = stdlib.GetPoolConnector(r.pool, stdlib.OptionResetSession(neverReset))
	return r, nil
}

// neverReset keeps database/sql from using a connection to a replica again: the next user may have written something
// that it does not show.
func neverReset(context.Context, *pgx.Conn) error { return driver.ErrBadConn }
