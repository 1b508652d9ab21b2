// Package pgcluster runs a real PostgreSQL primary and real streaming replicas on loopback, in what looks like regions of
// Fly.io: with Fly's names, addresses and ports, and with latencies and faults that are set at will. It is meant for tests,
// benchmarks and demonstrations.
//
//	cluster, err := pgcluster.Start(ctx, pgcluster.Config{Primary: "nrt", Replicas: []string{"ord"}})
//	defer cluster.Stop()
//	cluster.SetLatency("ord", "nrt", 150*time.Millisecond)
//	config, err := pgxpool.ParseConfig(cluster.URL())
//	config.ConnConfig.LookupFunc = cluster.From("ord").LookupHost
//	config.ConnConfig.DialFunc = cluster.From("ord").DialContext
//
// The environment variable FLYREGION_POSTGRES names the bin folder of the PostgreSQL to run, or is the word embedded for one
// that is downloaded. Without it the newest one that is installed is run, and one is downloaded only if there is none;
// FLYREGION_POSTGRES_REPOSITORY is then the URL of a Maven repository to use in place of the default one.
//
// A cluster leaves nothing behind when it is stopped, nor when the process ends without stopping it.
package pgcluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// Config says what cluster to start. The zero Config is a primary without replicas.
type Config struct {
	// App is the name of the Fly app that the database is; default "app".
	App string

	// Primary is the region of the server that is the leader at first; default "nrt".
	Primary string

	// Replicas are the regions of the streaming replicas, one for each. A region may be named several times, the primary's
	// too. It may be empty.
	Replicas []string

	// Parameters are settings for all servers, as in postgresql.conf, besides those that the cluster makes and in place of
	// them.
	Parameters map[string]string

	// Progress, if not nil, is called with one short line for each step of Start, from one goroutine at a time.
	Progress func(string)

	// Received, if not nil, is called while PostgreSQL is downloaded, after the Progress of that step: with the number of
	// bytes that have come, and of all there are, which is -1 if it is not known.
	Received func(received, total int64)
}

// progress is who is told what Start does.
type progress struct {
	step     func(string)
	received func(received, total int64)
}

func (c Config) progress() progress {
	p := progress{step: c.Progress, received: c.Received}
	if p.step == nil {
		p.step = func(string) {}
	}
	if p.received == nil {
		p.received = func(int64, int64) {}
	}
	return p
}

// Cluster is a primary and its streaming replicas. All its methods may be called by several goroutines at a time.
type Cluster struct {
	app      string
	folder   string
	binaries binaries
	account  account
	network  *network
	servers  []*Server
	reaper   *reaper
	live     context.Context    // ends the waits of the relays
	cancel   context.CancelFunc // of live

	promoting sync.Mutex

	mu       sync.Mutex
	leader   *Server
	bouncers []*Bouncer
	stopped  bool

	stopOnce sync.Once
	stopErr  error
}

var label = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)

// Start starts a cluster and returns when all its replicas stream from the primary. When it fails, or when ctx ends before it
// is done, nothing is left behind. Once Start has returned, the end of ctx does not affect the cluster.
func Start(ctx context.Context, config Config) (*Cluster, error) {
	if !supported {
		return nil, errors.New("pgcluster: runs on Unix systems only")
	}
	if config.App == "" {
		config.App = "app"
	}
	if config.Primary == "" {
		config.Primary = "nrt"
	}
	regions := append([]string{config.Primary}, config.Replicas...)
	for _, name := range append(slices.Clone(regions), config.App) {
		if !label.MatchString(name) {
			return nil, fmt.Errorf("pgcluster: %q cannot be a part of a host name: lower case letters, digits and hyphens can", name)
		}
	}
	c, err := start(ctx, config, regions, config.progress())
	if err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("pgcluster: start: %w", context.Cause(ctx))
		}
		return nil, err
	}
	return c, nil
}

func start(ctx context.Context, config Config, regions []string, p progress) (_ *Cluster, err error) {
	c := &Cluster{app: config.App}
	if c.account, err = serverAccount(); err != nil {
		return nil, err
	}
	if c.binaries, err = findBinaries(ctx, c.account, p); err != nil {
		return nil, err
	}
	if c.folder, err = makeFolder(c.account); err != nil {
		return nil, err
	}
	defer func() {
		if err == nil {
			return
		}
		_ = c.Stop()
		if c.binaries.downloaded {
			err = fmt.Errorf("%w\nthis PostgreSQL was downloaded; to run another one, %s", err, advice)
		}
	}()
	if c.reaper, err = startReaper(c.folder); err != nil {
		return nil, err
	}
	if err = writeScripts(c.folder, c.binaries, c.account); err != nil {
		return nil, err
	}
	if c.network, err = newNetwork(); err != nil {
		return nil, err
	}
	c.live, c.cancel = context.WithCancel(context.Background())
	for i, region := range regions {
		s := &Server{
			cluster:     c,
			region:      region,
			name:        c.nameIn(region),
			machine:     machineID(i),
			ip:          serverIP(i),
			replication: newLink(),
		}
		s.folder = filepath.Join(c.folder, s.name)
		c.servers = append(c.servers, s)
		if i == 0 {
			c.leader = s
		}
		if err = s.choosePort(); err != nil {
			return nil, err
		}
		if s.upstream, err = c.relay(c.live, s.replication, s.region, s.source); err != nil {
			return nil, fmt.Errorf("pgcluster: replication of %s: %w", s.name, err)
		}
		if err = s.makeFolders(); err != nil {
			return nil, err
		}
	}

	p.step(fmt.Sprintf("making a database with PostgreSQL %s", c.binaries.version))
	if err = c.initialise(ctx); err != nil {
		return nil, err
	}
	// A database that initdb has just made was shut down cleanly, so that a copy of it is a backup of the primary, from
	// which a replica can start to stream: neither pg_basebackup nor a stop of the primary is needed.
	p.step(fmt.Sprintf("starting %s and %d replicas", config.Primary, len(config.Replicas)))
	common := settings(config)
	primary := c.servers[0]
	err = c.each(c.servers[1:], func(s *Server) error { return c.copyData(ctx, primary, s) })
	if err == nil {
		err = c.each(c.servers, func(s *Server) error { return s.configure(common) })
	}
	if err == nil {
		err = c.each(c.servers, func(s *Server) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.start(ctx, true)
		})
	}
	if err != nil {
		return nil, err
	}
	if len(config.Replicas) > 0 {
		p.step("waiting until the replicas stream")
		if err = c.waitStreaming(ctx, c.servers[1:]...); err != nil {
			return nil, err
		}
	}
	p.step("ready")
	return c, nil
}

// nameIn returns the name of the next server in a region.
func (c *Cluster) nameIn(region string) string {
	name := region
	for n := 2; c.Server(name) != nil; n++ {
		name = fmt.Sprintf("%s-%d", region, n)
	}
	return name
}

// each runs a step for several servers at once.
func (c *Cluster) each(servers []*Server, step func(*Server) error) error {
	errs := make([]error, len(servers))
	var wg sync.WaitGroup
	for i, s := range servers {
		wg.Go(func() { errs[i] = step(s) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// initialise makes the primary's data folder.
func (c *Cluster) initialise(ctx context.Context) error {
	primary := c.servers[0]
	passwordFile := filepath.Join(primary.folder, "password")
	if err := os.WriteFile(passwordFile, []byte(password+"\n"), 0o600); err != nil {
		return err
	}
	defer os.Remove(passwordFile)
	if err := c.account.own(passwordFile); err != nil {
		return err
	}
	return run(ctx, filepath.Join(c.folder, "bin", "initdb"),
		"-D", primary.data(), "-U", superuser, "--pwfile="+passwordFile, "--auth=password",
		"--encoding=UTF8", "--locale=C", "--no-sync")
}

// copyData gives a replica a copy of the primary's data folder.
func (c *Cluster) copyData(ctx context.Context, primary, replica *Server) error {
	if err := run(ctx, "cp", "-pR", primary.data(), replica.data()); err != nil {
		return err
	}
	return replica.follow()
}

// run runs a program to its end. What it prints becomes part of the error.
func run(ctx context.Context, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	detach(cmd)
	// initdb's own children may hold its output open for a moment after it was killed.
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("pgcluster: %s: %w\n%s", filepath.Base(program), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// makeFolders makes the server's folders, except the data folder.
func (s *Server) makeFolders() error {
	for _, dir := range []string{s.folder, filepath.Join(s.folder, "log")} {
		if err := os.Mkdir(dir, 0o711); err != nil {
			return err
		}
		if err := s.cluster.account.own(dir); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) configure(common map[string]string) error {
	own := make(map[string]string, len(common)+2)
	for name, value := range common {
		own[name] = value
	}
	own["log_directory"] = filepath.Join(s.folder, "log")
	// The primary has it too, and uses it when it is started as a replica later.
	own["primary_conninfo"] = fmt.Sprintf("host=127.0.0.1 port=%s user=%s password=%s sslmode=disable application_name=%s",
		portOf(s.upstream.Addr()), superuser, password, s.name)
	return writeSettings(s.data(), own)
}

// follow makes the server a replica from its next start on.
func (s *Server) follow() error {
	file := filepath.Join(s.data(), "standby.signal")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		return err
	}
	return s.cluster.account.own(file)
}

// waitStreaming returns when these replicas stream from the leader and have what it has flushed by now. One that still streams
// the timeline before the leader's does not have that.
func (c *Cluster) waitStreaming(ctx context.Context, replicas ...*Server) error {
	var names []string
	for _, s := range replicas {
		names = append(names, s.name)
	}
	const sql = `select count(distinct application_name) = $1 from pg_stat_replication
		where state = 'streaming' and flush_lsn >= $3::text::pg_lsn and application_name = any($2)`
	return c.Leader().connected(ctx, func(conn *pgx.Conn) error {
		var flushed string
		if err := conn.QueryRow(ctx, "select pg_current_wal_flush_lsn()::text").Scan(&flushed); err != nil {
			return err
		}
		return pollQuery(ctx, conn, sql, len(names), names, flushed)
	})
}

// Stop stops all servers, closes all connections through the cluster's network and removes all files. Further calls do
// nothing and return what the first one did.
func (c *Cluster) Stop() error {
	c.stopOnce.Do(func() {
		var errs []error
		if c.cancel != nil {
			c.cancel()
		}
		for _, s := range c.servers {
			if s.upstream != nil {
				s.upstream.Close()
			}
			s.replication.close()
		}
		if c.network != nil {
			c.network.close()
		}
		c.mu.Lock()
		c.stopped = true
		bouncers := c.bouncers
		c.mu.Unlock()
		for _, b := range bouncers {
			errs = append(errs, b.Stop())
		}
		errs = append(errs, c.each(c.servers, (*Server).close))
		errs = append(errs, os.RemoveAll(c.folder))
		if c.reaper != nil {
			c.reaper.stop()
		}
		c.stopErr = errors.Join(errs...)
	})
	return c.stopErr
}

// URL returns what an app on Fly would have as DATABASE_URL: the app's name and port 5432. It works only with the lookup
// and dial functions of a Site.
func (c *Cluster) URL() string {
	return fmt.Sprintf("postgres://%s:%s@%s.internal:%d/%s?sslmode=disable", superuser, password, c.app, leaderPort, database)
}

// Server returns a server by its name, nil if there is none. The first server of a region has the region's name, the others are
// "ord-2", "ord-3" and so on.
func (c *Cluster) Server(name string) *Server {
	for _, s := range c.servers {
		if s.name == name {
			return s
		}
	}
	return nil
}

// Servers returns all servers, in the order of the Config: the first primary, then the replicas.
func (c *Cluster) Servers() []*Server {
	return slices.Clone(c.servers)
}

// Leader returns the server that is the writable one now.
func (c *Cluster) Leader() *Server {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.leader
}

// From returns the network as a process in that region sees it. There need not be a server in the region.
func (c *Cluster) From(region string) *Site {
	return &Site{cluster: c, region: region}
}

// SetLatency sets the round trip between two regions, or within one, in both directions: for apps and for replication. It
// applies at once, also to what is sent over connections that are open. At first it is 0 everywhere.
func (c *Cluster) SetLatency(a, b string, roundTrip time.Duration) {
	c.network.leg(a, b).Store(int64(max(0, roundTrip)))
}

// Link returns the path from the apps in a region to a server, which is named as for Server: ports 5432 and 5433 of its machine.
// A connection to <app>.flycast takes the path to the server that was the leader when it was made.
func (c *Cluster) Link(from, to string) *Link {
	return c.network.link(from, to)
}

// Replication returns the path by which the WAL comes to a server, which is named as for Server, nil if there is none.
func (c *Cluster) Replication(name string) *Link {
	if s := c.Server(name); s != nil {
		return s.replication
	}
	return nil
}
