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

// replicaConn is the state of one connection to a replica. Nothing guards it: only who has acquired the connection uses it,
// and pgxpool when it closes the connection.
type replicaConn struct {
	report *report // the latest one of this connection
	// streamed is the latest one by which the server streamed, nil if there is none: see trust.
	streamed *report
	opened   uint64 // when the first report had been received, by this process's clock
	held     bool   // it counts in the replica's held
	closed   bool   // it no longer counts in the replica's open
	row      rowMemory
}

// told takes account of a report on this connection.
func (c *replicaConn) told(o *report) {
	c.report = o
	if o.streams {
		c.streamed = o
	}
}

// openedAt returns when a connection was opened, by this process's clock.
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

// replica is one server that reads go to.
type replica struct {
	region  string
	host    *replicaHost
	address atomic.Pointer[string] // that the host's name has led to; nil until the name is looked up
	absent  int                    // how many lookups in a row have not named it; the discovery's mu guards it
	left    atomic.Bool            // it is no longer in the set, and its pool is closed or about to be

	pool    *pgxpool.Pool
	db      driver.Connector // to the pool, for database/sql
	tracker *tracker
	limit   time.Duration // how long a read waits for a connection, or for an answer about the server, at most

	// These count the pool's connections: open, used by a read of this package (or waited for), and held by the app.
	// pgxpool does not tell when the app releases or hijacks one, so it counts as held until it is acquired again or
	// closed. So open-used-held is at most the number of idle connections, except for moments in which pgxpool opens or
	// closes one by itself.
	open, used, held atomic.Int32

	hooked bool // the config has a PrepareConn, whose error must not count against the replica

	seen    atomic.Pointer[report]  // of the server that the latest connection led to, even if it was refused
	several atomic.Bool             // connections have led to several servers
	aliasOf atomic.Pointer[replica] // of the same host, and lately the same server; nil if there is none

	// now is the time in nanoseconds since 1970 that a read has looked at last. While reads are made it is not older than
	// checkPeriod, as the guard then makes reads look. If impatient is true each read looks.
	now       atomic.Int64
	impatient bool

	credit int          // for BalanceWeighted; the balancer's mu guards it
	reads  stripedCount // how many reads were sent

	health    health
	connects  connects
	guard     *guard
	schedule  *schedule // of lookups of the hosts
	validated func()    // called when a new connection was validated
}

// hookError is an error of the app's PrepareConn, which tells nothing about the replica.
type hookError struct{ err error }

func (e *hookError) Error() string { return e.err.Error() }

// prepareKey is where the context of an acquisition keeps its *hookError.
type prepareKey struct{}

// hookFailed returns the error of the app's PrepareConn, nil if err is none.
func hookFailed(err error) error {
	var hook *hookError
	if errors.As(err, &hook) {
		return hook.err
	}
	return nil
}

// up reports whether the replica counts as reachable. If not, and if it is time to try, it is probed in the background: no
// read waits for that.
func (r *replica) up() bool {
	if r.health.good() {
		return true
	}
	if r.health.claimProbe() {
		r.tracker.background(r.probe)
	}
	return false
}

// probe asks the replica for a report, and notes whether it can be reached.
func (r *replica) probe(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, watcherTimeout)
	defer cancel()

	if _, err := r.tracker.observe(ctx, 0); err != nil {
		r.fail(err)
		return
	}
	r.connects.reached()
	r.health.recover()
}

// fail notes that the replica could not be reached, because of err.
func (r *replica) fail(err error) {
	r.connects.failed(err)
	r.health.fail()
	r.schedule.hurry()
}

// endpoint returns what is dialed, "" as long as the host's name was not looked up.
func (r *replica) endpoint() string {
	if address := r.address.Load(); address != nil {
		return r.host.endpoint(*address)
	}
	return ""
}

// pooledConn is a connection of a replica's pool, as pgxpool or as database/sql wraps it.
type pooledConn interface {
	*pgxpool.Conn | *stdlib.Conn
	Conn() *pgx.Conn
}

// connSource acquires connections of one type from a replica's pool, and releases them.
type connSource[C pooledConn] struct {
	acquire func(context.Context, *replica) (C, error)
	release func(*replica, C)
}

var plainConns = connSource[*pgxpool.Conn]{
	acquire: func(ctx context.Context, r *replica) (*pgxpool.Conn, error) { return r.pool.Acquire(ctx) },
	release: (*replica).release,
}

// acquireConn acquires a connection to a replica. A replica without one within limit counts as unreachable for a while,
// whether it does not answer or all of its connections are in use. An error of the app's PrepareConn is a hookError.
func acquireConn[C pooledConn](ctx context.Context, r *replica, from connSource[C]) (conn C, err error) {
	limited := ctx
	inUse := r.used.Add(1) + r.held.Load()
	// pgxpool takes the connection that was released last. One that no read has got down to lately may have been idle for so
	// long that pgxpool pings it.
	prompt := inUse <= min(r.open.Load(), r.guard.peak.Load()) && r.guard.heard.Load()
	if !prompt || r.impatient {
		now := time.Now()
		r.now.Store(now.UnixNano())
		r.schedule.tick(now)
	}
	if !prompt { // else a context with a timer would be made for nothing
		var cancel context.CancelFunc
		limited, cancel = context.WithTimeout(ctx, r.limit)
		defer cancel()
	}

	var hook *hookError
	if r.hooked {
		hook = &hookError{}
		limited = context.WithValue(limited, prepareKey{}, hook)
	}
	conn, err = from.acquire(limited, r)
	if err != nil {
		r.used.Add(-1)
		late := expired(ctx, limited)
		if hook != nil && hook.err != nil && !(late && errors.Is(hook.err, context.DeadlineExceeded)) {
			return nil, hook
		}
		if ctx.Err() == nil && !errors.Is(err, errClosedPool) {
			if late {
				err = r.noConnError(err)
			}
			r.fail(err)
		}
		return nil, err
	}
	if !prompt && inUse > r.guard.peak.Load() {
		r.guard.peak.Store(inUse)
	}
	c := replicaConnOf(conn.Conn())
	r.unhold(c)
	if err := r.tracker.checkCluster(c.report, r.region); err != nil {
		// The connection was opened before the primary's first report.
		_ = conn.Conn().Close(ctx)
		from.release(r, conn)
		r.fail(err)
		return nil, err
	}
	return conn, nil
}

// hasIdle reports whether a connection can probably be acquired without waiting.
func (r *replica) hasIdle() bool {
	return r.used.Load() < r.open.Load()-r.held.Load()
}

// hold counts a connection that is acquired as held by the app. If a read of this package has acquired it, unhold follows.
func (r *replica) hold(c *replicaConn) {
	if !c.held {
		c.held = true
		r.held.Add(1)
	}
}

// unhold is the reverse of hold.
func (r *replica) unhold(c *replicaConn) {
	if c.held {
		c.held = false
		r.held.Add(-1)
	}
}

// handOver gives a connection that this package has acquired to the app.
func (r *replica) handOver(conn *pgx.Conn) {
	r.hold(replicaConnOf(conn))
	r.used.Add(-1)
}

// done counts that a read is about to release its connection.
func (r *replica) done(conn *pgx.Conn) {
	if conn.IsClosed() {
		r.closed(replicaConnOf(conn)) // pgxpool calls BeforeClose later
	}
	r.used.Add(-1)
}

// closed counts a connection that is closed or about to be. Further calls do nothing.
func (r *replica) closed(c *replicaConn) {
	r.unhold(c)
	if !c.closed {
		c.closed = true
		r.open.Add(-1)
	}
}

// release releases a connection that a read has used.
func (r *replica) release(conn *pgxpool.Conn) {
	r.done(conn.Conn())
	conn.Release()
}

// verdict reports whether a read on conn sees everything that state covers, by the reports so far. A report of another
// connection counts if it is of the same server and was asked for after conn was opened.
func (r *replica) verdict(conn *pgx.Conn, state sessionState) verdict {
	if state.position == 0 {
		return caughtUp
	}
	c := replicaConnOf(conn)
	if c.report.pooled {
		return behind // the server behind the pooler may have crashed since, and have replayed less now
	}
	if c.streamed != nil {
		if v := r.tracker.verdict(c.streamed, state); v != behind {
			return v
		}
	}
	o := r.tracker.streamed.Load()
	if o == nil || o.server != c.report.server || o.asked <= c.opened {
		return behind
	}
	return r.tracker.verdict(o, state)
}

// ask asks for a report on conn, and reports whether a read on it sees everything that state covers. A replica that does
// not answer within limit counts as unreachable for a while.
func (r *replica) ask(ctx context.Context, conn *pgx.Conn, state sessionState) (verdict, error) {
	limited, cancel := context.WithTimeout(ctx, r.limit)
	defer cancel()
	report, err := askReport(limited, conn.PgConn())
	if err != nil {
		if ctx.Err() == nil {
			if expired(ctx, limited) {
				err = noAnswerError(r.region, r.limit, err)
			} else {
				err = fmt.Errorf("flyregion: %s cannot be asked how far it has replayed: %w", inRegion(r.region), err)
			}
			r.fail(err)
		}
		return behind, err
	}
	replicaConnOf(conn).told(&report)
	r.tracker.note(&report)
	if v := r.tracker.verdict(&report, state); v != behind {
		return v, nil
	}
	return r.verdict(conn, state), nil // by an earlier report, if the server does not stream now
}

// pooled reports whether a connection leads to a pooler.
func pooled(conn *pgx.Conn) bool { return replicaConnOf(conn).report.pooled }

// noConnError returns the error of a read that has waited for a connection for limit.
func (r *replica) noConnError(cause error) error {
	if stat := r.pool.Stat(); stat.AcquiredConns() == stat.MaxConns() {
		return fmt.Errorf("flyregion: %s had no connection free within %v, all %d (pool_max_conns) are in use: %w", inRegion(r.region), r.limit, stat.MaxConns(), cause)
	}
	return noAnswerError(r.region, r.limit, cause)
}

// validate is the ValidateConnect of a replica's connections. It accepts any server of the primary's cluster on which the
// session is read-only, the primary too. Whether the server has replayed enough is decided for each read.
func (r *replica) validate(ctx context.Context, conn *pgconn.PgConn) error {
	report, err := askReport(ctx, conn)
	if err != nil {
		return err
	}
	if last := r.seen.Swap(&report); last != nil && report.server < last.server {
		r.several.Store(true) // this one was started before the other, so it has not taken its place
	}
	if !report.readOnly || !report.readOnlyDefault {
		return fmt.Errorf("flyregion: %s: the session can write, although default_transaction_read_only=on was asked for: "+
			"a pooler that leads to it has to pass this on", inRegion(r.region))
	}
	if err := r.tracker.checkCluster(&report, r.region); err != nil {
		return err
	}
	c := &replicaConn{opened: clock.Add(1)}
	c.told(&report)
	conn.CustomData()[customDataKey] = c
	r.tracker.note(&report)
	r.validated()
	return nil
}

// wrongServer says why the server that the latest connection led to is no standby of the primary, "" if it may be one.
func (r *replica) wrongServer() string {
	seen := r.seen.Load()
	if latest := r.tracker.latest.Load(); latest != nil && (seen == nil || latest.asked > seen.asked) {
		seen = latest
	}
	if seen == nil {
		return ""
	}
	primary := r.tracker.primary.Load()
	if other := otherCluster(seen, primary); other != "" {
		return other
	}
	switch {
	case seen.recovering:
		return ""
	case r.isPrimary():
		return "it is the primary itself, which is not in recovery"
	}
	return "it is not in recovery"
}

// isPrimary reports whether the latest connection has led to the primary.
func (r *replica) isPrimary() bool {
	seen, primary := r.seen.Load(), r.tracker.primary.Load()
	return seen != nil && primary != nil && seen.server == primary.server
}

// sameServer reports whether two replicas lead to the same server, by their latest reports. An address that has led to several
// servers does not count, such as a load balancer's.
func (r *replica) sameServer(other *replica) bool {
	a, b := r.tracker.latest.Load(), other.tracker.latest.Load()
	return a != nil && b != nil && a.server == b.server && a.system == b.system && !a.pooled && !b.pooled &&
		!r.several.Load() && !other.several.Load()
}

// isAlias reports whether reads go to the replica's server by another address. After a restart of the server that has to be
// found out anew.
func (r *replica) isAlias() bool {
	other := r.aliasOf.Load()
	return other != nil && other.health.good() && !other.left.Load() && r.sameServer(other)
}

// close closes the replica's connections and ends what runs for it. The guard ends what waits for a silent replica, for
// which it needs the tracker, until all connections are closed.
func (r *replica) close() {
	r.tracker.endWaits()
	r.pool.Close()
	r.tracker.close()
	r.guard.close()
}
