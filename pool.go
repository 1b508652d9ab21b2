package flyregion

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Pool is a pool of connections to a primary and to the replicas that reads go to. It has the methods of [pgxpool.Pool].
// They do what they do there, and also choose the server. Where no region is set, or the region is the primary's, and no
// replicas are configured there, a Pool is one plain pgxpool and adds nothing to it.
//
// Any read that starts after a write returned sees that write, whichever way the write was made: by a method of the pool,
// on a connection from [Pool.Acquire], or through [Pool.Primary].
//
// A Pool is safe for concurrent use and must be created with [NewPool] or [NewPoolWithConfig].
type Pool struct {
	config    *Config
	primary   *primary
	router    *router
	replicas  *replicas // nil where one plain pool does
	discovery *discovery
	reads     *reads
	telemetry *telemetry
}

// NewPool creates a Pool as [pgxpool.New] creates a pool. See [ParseConfig] for connString. Like pgxpool.New it returns
// before it has connected to a server, so an error is about the settings.
func NewPool(ctx context.Context, connString string) (*Pool, error) {
	config, err := ParseConfig(connString)
	if err != nil {
		return nil, err
	}
	return NewPoolWithConfig(ctx, config)
}

// NewPoolWithConfig creates a Pool. config must have been made by [ParseConfig]; it panics otherwise, as
// [pgxpool.NewWithConfig] does. An error says which field of config is wrong.
func NewPoolWithConfig(ctx context.Context, config *Config) (*Pool, error) {
	if !config.createdByParseConfig {
		panic("config must be created by ParseConfig")
	}
	config = config.Copy()
	err := config.normalize()
	if err == nil {
		err = config.checkReplicas()
	}
	if err != nil {
		return nil, fmt.Errorf("flyregion: %w", err)
	}

	p := &Pool{config: config}
	if err := p.open(ctx); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// open makes the pools of the servers.
func (p *Pool) open(ctx context.Context) (err error) {
	c := p.config
	p.primary = &primary{minWait: c.MinReplicaWait, maxWait: c.MaxReplicaWait, maxLag: c.MaxReplicaLag}
	regions := c.replicaRegions()
	if !c.hasReplicas() && !c.SimulateReplica {
		p.primary.pool, err = pgxpool.NewWithConfig(ctx, c.Config)
		return err
	}

	if p.telemetry, err = newTelemetry(c.Telemetry); err != nil {
		return err
	}
	statements := &statements{catalog: newCatalog(functionsOf(c.Functions))}
	p.router = &router{statements: statements, noFallback: c.NoFallback}
	p.primary.statements, p.primary.telemetry = statements, p.telemetry
	p.primary.fallbacks = make(chan struct{}, max(1, c.MaxConns/2))
	p.discovery = newDiscovery(p.primary, c)
	p.replicas = p.discovery.set
	p.reads = &reads{router: p.router, replicas: p.replicas, primary: p.primary, telemetry: p.telemetry}

	primary, err := p.openReplicas(regions)
	if err != nil {
		return err
	}
	if c.AwaitWrites {
		p.primary.awaitReplay = func(ctx context.Context, state sessionState) {
			_ = p.replicas.waitAll(ctx, state, 0, c.MaxReplicaWait)
		}
	}
	statements.observe(primary)
	traceWrites(primary.ConnConfig, p.primary)
	if err := p.primary.open(ctx, primary); err != nil {
		return err
	}
	// Last, as the gauges may be read at once, and then ask all servers.
	return p.telemetry.observeLag(func(ctx context.Context) []lag { return measureLag(ctx, p.primary, p.replicas.inUse()) })
}

// openReplicas makes the replicas and returns the configuration of the primary. The replicas must exist before the primary's
// pool: with AwaitWrites a write on a connection to the primary uses them.
func (p *Pool) openReplicas(regions []string) (*pgxpool.Config, error) {
	c := p.config
	if c.SimulateReplica {
		// Two pools of one server.
		simulated := c.Config.Copy()
		if sessionAttrs(simulated.ConnConfig.ValidateConnect) != "" {
			// target_session_attrs is about the server, and this session is meant to be read-only.
			simulated.ConnConfig.ValidateConnect = nil
		}
		hosts := []*replicaHost{{region: cmp.Or(c.Region, "local"), config: simulated, weight: 1, literal: true}}
		return c.Config.Copy(), p.openHosts(hosts)
	}

	hosts, err := c.hostsToRead(regions)
	if err != nil {
		return nil, fmt.Errorf("flyregion: %w", err)
	}
	if err := p.openHosts(hosts); err != nil {
		return nil, err
	}
	p.discovery.find(newRegionFinder(c, func(region string) ([]*replicaHost, error) {
		hosts, err := c.hostsToRead([]string{region})
		for _, h := range hosts {
			p.router.statements.observe(h.config)
		}
		return hosts, err
	}))
	config, err := c.primaryConfig()
	if err != nil {
		return nil, fmt.Errorf("flyregion: invalid %s: %w", nameOfPrimaryRegion, err)
	}
	return config, nil
}

// openHosts makes the first replica of each host and adds it to the set.
func (p *Pool) openHosts(hosts []*replicaHost) error {
	if err := p.config.checkWeights(hosts); err != nil {
		return fmt.Errorf("flyregion: %w", err)
	}
	for _, h := range hosts {
		p.router.statements.observe(h.config)
		if err := p.discovery.add(h); err != nil {
			return err
		}
	}
	return nil
}

// Primary returns the pool of the writable server, for libraries that write, listen or migrate. What they write counts for
// the session of their context, like all that is written through the Pool.
func (p *Pool) Primary() *pgxpool.Pool { return p.primary.pool }

// Replica returns the pool of the replica that reads go to first, or the primary's pool if there is no replica. Statements
// on it do not wait for any write.
func (p *Pool) Replica() *pgxpool.Pool {
	if p.replicas == nil {
		return p.primary.pool
	}
	return p.replicas.first().pool
}

// ReplicaIn returns the pool of a replica in a region, or the primary's pool if the Pool does not read from that region. Of
// several replicas it is the first of [Pool.Replicas] that can be reached. Statements on it do not wait for any write.
func (p *Pool) ReplicaIn(region string) *pgxpool.Pool {
	if p.replicas == nil {
		return p.primary.pool
	}
	if r := p.replicas.in(region); r != nil {
		return r.pool
	}
	return p.primary.pool
}

// Exec runs a statement as [pgxpool.Pool.Exec] does, on the replica if it reads and on the primary if not. A read that
// the replica cannot run is run on the primary; every other error is returned as pgx gave it.
//
// A comment in the SQL chooses the server too: /* flyregion:primary */ or /* flyregion:replica */. [WithPrimary] and
// [WithReplica] override it. In spite of the comment, a statement that the replica cannot run runs on the primary.
//
// SQL of several statements is a read if all of them are. If it begins a transaction and does not end it, the transaction
// is rolled back, because pgxpool closes a connection that is released within one. Use [Pool.Begin] or [Pool.Acquire].
func (p *Pool) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	if p.replicas == nil {
		return p.primary.pool.Exec(ctx, sql, args...)
	}
	rt := p.router.route(ctx, sql, args)
	if rt.to == targetReplica {
		tag, err := p.reads.exec(ctx, &rt, sql, args)
		if rt.to == targetReplica {
			return tag, err
		}
	}
	return p.primary.exec(ctx, &rt, sql, args)
}

// Query runs a statement as [pgxpool.Pool.Query] does, on the replica if it reads and on the primary if not. A read that
// the replica cannot run is run on the primary, as long as no row was delivered; every other error is returned as pgx
// gave it.
func (p *Pool) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	if p.replicas == nil {
		return p.primary.pool.Query(ctx, sql, args...)
	}
	rt := p.router.route(ctx, sql, args)
	if rt.to == targetReplica {
		rows, err := p.reads.query(ctx, &rt, sql, args)
		if rt.to == targetReplica {
			return rows, err
		}
	}
	return p.primary.query(ctx, &rt, sql, args)
}

// QueryRow runs a statement as [pgxpool.Pool.QueryRow] does, on the replica if it reads and on the primary if not. A
// read that the replica cannot run is run on the primary. Every other error is returned by Scan as pgx gave it.
func (p *Pool) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	if p.replicas == nil {
		return p.primary.pool.QueryRow(ctx, sql, args...)
	}
	rt := p.router.route(ctx, sql, args)
	if rt.to == targetReplica {
		row := p.reads.queryRow(ctx, &rt, sql, args)
		if rt.to == targetReplica {
			return row
		}
	}
	return p.primary.queryRow(ctx, &rt, sql, args)
}

// SendBatch sends a batch as [pgxpool.Pool.SendBatch] does, to the replica if every statement in it reads and to the
// primary if not.
func (p *Pool) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	if p.replicas == nil {
		return p.primary.pool.SendBatch(ctx, b)
	}
	rt := p.router.routeBatch(ctx, b)
	if rt.to == targetReplica {
		results := p.reads.sendBatch(ctx, &rt, b)
		if rt.to == targetReplica {
			return results
		}
	}
	return p.primary.sendBatch(ctx, &rt, b)
}

// Begin starts a transaction on the primary as [pgxpool.Pool.Begin] does.
func (p *Pool) Begin(ctx context.Context) (pgx.Tx, error) {
	return p.BeginTx(ctx, pgx.TxOptions{})
}

// BeginTx starts a transaction as [pgxpool.Pool.BeginTx] does: on the replica if it is read-only, and on the primary if not.
// A serializable transaction runs on the primary even if it is read-only, because standbys have none.
//
// A read-only transaction sees all that was written before it began. It moves to the primary if the replica cannot run its
// first statement, or if that statement belongs to the primary, such as one that takes an advisory lock. A later statement
// gets the replica's answer: an advisory lock is the replica's own, and a notification or SET TRANSACTION READ WRITE fails
// (SQLSTATE 0A000). Settings of the transaction, such as set_config with true, do not move it.
func (p *Pool) BeginTx(ctx context.Context, options pgx.TxOptions) (pgx.Tx, error) {
	if p.replicas == nil {
		return p.primary.pool.BeginTx(ctx, options)
	}
	rt := p.router.routeTx(ctx, options)
	if rt.to == targetReplica {
		tx, err := p.reads.begin(ctx, &rt, options)
		if rt.to == targetReplica {
			return tx, err
		}
	}
	return p.primary.begin(ctx, &rt, options)
}

// CopyFrom copies rows to the primary as [pgxpool.Pool.CopyFrom] does.
func (p *Pool) CopyFrom(ctx context.Context, tableName pgx.Identifier, columnNames []string, rowSrc pgx.CopyFromSource) (int64, error) {
	if p.replicas == nil {
		return p.primary.pool.CopyFrom(ctx, tableName, columnNames, rowSrc)
	}
	return p.primary.copyFrom(ctx, tableName, columnNames, rowSrc)
}

// Acquire returns a connection to the primary as [pgxpool.Pool.Acquire] does, or one to the replica if the context
// comes from [WithReplica].
//
// Statements on it are not routed. They may be any SQL that pgxpool takes: BEGIN, SAVEPOINT, SET, several statements at
// once. What they write counts for the session when the transaction has ended on the server, however it was ended.
func (p *Pool) Acquire(ctx context.Context) (*pgxpool.Conn, error) {
	if p.replicas == nil {
		return p.primary.pool.Acquire(ctx)
	}
	rt := route{intent: intentOf(ctx), to: targetReplica, why: becauseAsked}
	if rt.target != targetReplica {
		return p.primary.pool.Acquire(ctx)
	}
	rep, conn, err := acquireReplica(ctx, p.reads, &rt, plainConns)
	if err != nil {
		return nil, err
	}
	rep.handOver(conn.Conn())
	return conn, nil
}

// AcquireFunc acquires a connection as [Pool.Acquire] does, calls f with it and releases it. The error is that of the
// acquisition or of f.
func (p *Pool) AcquireFunc(ctx context.Context, f func(*pgxpool.Conn) error) error {
	conn, err := p.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()

	return f(conn)
}

// AcquireAllIdle acquires all idle connections to the primary, or those of [Pool.Replica] if the context comes from
// [WithReplica].
func (p *Pool) AcquireAllIdle(ctx context.Context) []*pgxpool.Conn {
	if p.replicas == nil || intentOf(ctx).target != targetReplica {
		return p.primary.pool.AcquireAllIdle(ctx)
	}
	return p.Replica().AcquireAllIdle(ctx)
}

// Ping acquires a connection as [Pool.Acquire] does and pings its server. The error is that of the acquisition or the ping.
func (p *Pool) Ping(ctx context.Context) error {
	conn, err := p.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()

	return conn.Ping(ctx)
}

// Reset closes the connections of all servers but leaves the pool open, as [pgxpool.Pool.Reset] does.
func (p *Pool) Reset() {
	p.primary.pool.Reset()
	if p.replicas == nil {
		return
	}
	for _, r := range p.replicas.list() {
		r.pool.Reset()
	}
}

// Stat returns a snapshot of the pool's statistics.
func (p *Pool) Stat() *Stat {
	s := &Stat{primary: p.primary.pool.Stat()}
	if p.replicas != nil {
		p.discovery.stat(s)
		s.statements = p.telemetry.counts.list()
		s.failures = p.primary.connects.appendTo(nil, targetPrimary, p.config.PrimaryRegion)
		s.failures = p.discovery.appendFailures(s.failures)
		s.mistakes = p.replicas.balance.mistakes.Load()
	}
	return s
}

// Describe says in one sentence which servers the pool reads from and writes to, or why it is one plain pgxpool: "reads on
// ord.app.internal:5433 (replica in ord), writes on nrt.app.internal:5432", "one plain pool: db.example.com is no Fly name
// and no replica is configured". If the latest connection to a replica led to the primary, or to another cluster, it says
// that too. The sentence is for logs and has no user and no password in it. Its words may change.
func (p *Pool) Describe() string { return describe(p.config, p.primary, p.replicas) }

// Config returns a copy of the config that the pool was made from.
func (p *Pool) Config() *Config { return p.config.Copy() }

// Replicas returns what the Pool knows of each replica, in the order in which they are preferred. It asks no server. It
// returns nil where the Pool is one plain pgxpool.
func (p *Pool) Replicas() []ReplicaStatus {
	if p.replicas == nil {
		return nil
	}
	own := p.primary.written(&p.primary.session)
	var all []ReplicaStatus
	for _, r := range p.replicas.inUse() {
		all = append(all, r.status(own, !p.primary.contact.health.good()))
	}
	return all
}

// Close closes the connections to all servers and rejects later acquisitions, as [pgxpool.Pool.Close] does. It returns when
// every connection was released and closed, and no goroutine of the pool runs any more.
func (p *Pool) Close() {
	// All at the same time, so that no server's pool gives out connections while another's waits for its own.
	var closing sync.WaitGroup
	if p.primary.pool != nil {
		closing.Go(p.primary.close)
	}
	if p.replicas != nil {
		closing.Go(p.discovery.close)
	}
	closing.Wait()
	if p.telemetry != nil {
		p.router.statements.catalog.close()
		p.telemetry.close()
	}
}

// WaitReplayed waits until all replicas that reads go to have replayed all that was written in the context's session, or in
// the whole process if the context has none. Then it returns nil. If ctx ends before that, it returns the error of ctx. A
// replica that cannot be reached is not waited for, nor are those that reads go to only if others cannot be reached. It also
// returns an error if the primary or none of the replicas can be asked, or if the pool is closed. Where there is no replica
// it returns at once.
func (p *Pool) WaitReplayed(ctx context.Context) error {
	if p.replicas == nil {
		return ctx.Err()
	}
	session := intentOf(ctx).session
	if session == nil {
		session = &p.primary.session
	}
	// Earlier reports do not count: the replica may have crashed since, and have replayed less now.
	after := clock.Add(1)
	for {
		state, err := p.primary.positionOf(ctx, session)
		if err != nil {
			return err
		}
		if state.position == 0 {
			return ctx.Err()
		}
		err = p.replicas.waitAll(ctx, state, after, p.config.MaxReplicaWait)
		switch {
		case errors.Is(err, errOutdated):
			session.outdate(state)
			if err := sleep(ctx, maxPollPause); err != nil {
				return err
			}
		case !errors.Is(err, errNotReplayed):
			return err
		}
	}
}
