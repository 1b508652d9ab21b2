package flyregion

import (
	"context"
	"database/sql/driver"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
)

// newDiscovery returns a discovery with an empty set. It does no I/O.
func newDiscovery(p *primary, c *Config) *discovery {
	d := &discovery{log: loggerOf(c.ConnConfig.Tracer)}
	d.interval, d.schedule.begin = c.DiscoveryInterval, d.begin
	d.set = &replicas{balance: balancer{kind: c.Balance, own: c.Balancer}}
	d.open = func(h *replicaHost, address string) (*replica, error) {
		return newReplica(p, d, h, address, c.MaxReplicaWait)
	}
	d.due.Store(never)
	d.ctx, d.stop = context.WithCancel(context.Background())
	return d
}

// newReplica makes the pool and the tracker of a host's replica at an address. If that is "", the discovery finds it when the
// first connection is made. limit bounds how long a read waits for a connection, and for a lock that replay holds.
func newReplica(p *primary, d *discovery, h *replicaHost, address string, limit time.Duration) (_ *replica, err error) {
	r := &replica{region: h.region, host: h, schedule: &d.schedule, validated: func() { d.set.markAliases(h) }, limit: limit}
	region, config := h.region, h.config.Copy()
	if address != "" {
		r.address.Store(&address)
	}
	if !h.literal {
		// All but the lookup has the name: TLS checks it, and hooks, tracers and errors show it.
		lookup := config.ConnConfig.LookupFunc
		config.ConnConfig.LookupFunc = func(ctx context.Context, host string) ([]string, error) {
			if host != h.name {
				return lookup(ctx, host) // a BeforeConnect leads elsewhere
			}
			address, err := d.addressOf(ctx, r)
			if err != nil {
				return nil, err
			}
			return []string{address}, nil
		}
	}

	// A standby refuses writes by itself. The session refuses them even after the standby was promoted. So a statement that
	// was lost with its connection has written nothing, and can run on the primary.
	config.ConnConfig.RuntimeParams["default_transaction_read_only"] = "on"
	limitLocks(config.ConnConfig.RuntimeParams, limit)

	config.ConnConfig.ValidateConnect = validateBoth(config.ConnConfig.ValidateConnect, r.validate)

	beforeConnect, dial := config.BeforeConnect, config.ConnConfig.DialFunc
	r.tracker = newTracker(region, p, p.reconnect, func(ctx context.Context) (_ *pgconn.PgConn, err error) {
		defer func() { r.connects.failed(err) }()

		one := config.ConnConfig.Copy()
		if beforeConnect != nil {
			if err := beforeConnect(ctx, one); err != nil {
				return nil, err
			}
		}
		one.DialFunc = dial
		one.RuntimeParams["application_name"] = "flyregion"
		if _, set := one.RuntimeParams["statement_timeout"]; set {
			one.RuntimeParams["statement_timeout"] = "0" // the app's is for its own statements
		}
		conn, err := pgconn.ConnectConfig(ctx, &one.Config)
		if err != nil {
			return nil, err
		}
		validated := conn.CustomData()[customDataKey].(*replicaConn) // by validate
		if err := prepareReport(ctx, conn, validated.report); err != nil {
			closeConn(conn)
			return nil, err
		}
		return conn, nil
	})
	r.tracker.staleness.limit = p.maxLag
	r.impatient = d.interval < 2*checkPeriod || p.maxLag > 0 && r.tracker.staleness.checkPause() < 2*checkPeriod
	r.guard = newGuard(region, r.tracker.answers, r.tracker.background, r.fail)
	config.ConnConfig.DialFunc = r.guard.dial(dial)

	prepare := config.PrepareConn
	//lint:ignore SA1019 an app may still set it
	if before := config.BeforeAcquire; prepare == nil && before != nil {
		prepare = func(ctx context.Context, conn *pgx.Conn) (bool, error) { return before(ctx, conn), nil }
	}
	r.hooked = config.PrepareConn != nil
	config.PrepareConn = func(ctx context.Context, conn *pgx.Conn) (bool, error) {
		if prepare != nil {
			ok, err := prepare(ctx, conn)
			if hook, _ := ctx.Value(prepareKey{}).(*hookError); hook != nil {
				hook.err = err
			}
			if !ok || err != nil {
				return ok, err
			}
		}
		r.hold(replicaConnOf(conn))
		return true, nil
	}

	afterConnect, beforeClose := config.AfterConnect, config.BeforeClose
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		if afterConnect != nil {
			if err := afterConnect(ctx, conn); err != nil {
				return err
			}
		}
		r.open.Add(1)
		r.connects.reached()
		return nil
	}
	config.BeforeClose = func(conn *pgx.Conn) {
		r.closed(replicaConnOf(conn))
		if beforeClose != nil {
			beforeClose(conn)
		}
	}

	if r.pool, err = pgxpool.NewWithConfig(d.ctx, config); err != nil {
		r.tracker.close()
		return nil, err
	}
	r.db = stdlib.GetPoolConnector(r.pool, stdlib.OptionResetSession(neverReset))
	return r, nil
}

// limitLocks sets lock_timeout to limit, unless the app has set it. What locks a table on the primary locks it on a standby
// too, until the end of the transaction is replayed. That may take any time.
func limitLocks(params map[string]string, limit time.Duration) {
	const name = "lock_timeout"
	if params[name] == "" && !strings.Contains(params["options"], name) {
		params[name] = strconv.FormatInt(max(limit.Milliseconds(), 1), 10)
	}
}

// neverReset keeps database/sql from reusing a connection to a replica: the next statement may need a write that the server
// has not replayed.
func neverReset(context.Context, *pgx.Conn) error { return driver.ErrBadConn }
