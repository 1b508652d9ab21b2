package flyregion

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flyregion/flyregion/internal/pgcluster"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/tracelog"
)

// names is a name server of a test, for names that the test sets. Others are the cluster's.
type names struct {
	site *pgcluster.Site

	mu      sync.Mutex
	answers map[string]func(context.Context) ([]string, error)
	asked   map[string]int
}

const ordName = "ord.app.internal"

// namesFor has a pool in ord ask names of the test's own. At first ord has the machines of servers.
func namesFor(cluster *pgcluster.Cluster, servers ...string) *names {
	n := &names{site: cluster.From("ord"), answers: map[string]func(context.Context) ([]string, error){}, asked: map[string]int{}}
	n.lead(ordName, cluster, servers...)
	return n
}

func (n *names) into(c *Config) { c.ConnConfig.LookupFunc = n.LookupHost }

func (n *names) LookupHost(ctx context.Context, host string) ([]string, error) {
	n.mu.Lock()
	n.asked[host]++
	answer := n.answers[host]
	n.mu.Unlock()
	if answer == nil {
		return n.site.LookupHost(ctx, host)
	}
	return answer(ctx)
}

// lead makes a name lead to the machines of servers.
func (n *names) lead(host string, cluster *pgcluster.Cluster, servers ...string) {
	var ips []string
	for _, name := range servers {
		ips = append(ips, cluster.Server(name).IP())
	}
	n.answer(host, func(context.Context) ([]string, error) { return ips, nil })
}

func (n *names) answer(host string, with func(context.Context) ([]string, error)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.answers[host] = with
}

// times returns how often a name was looked up.
func (n *names) times(host string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.asked[host]
}

// often makes a pool look names up every few milliseconds while it is used.
func often(c *Config) { c.DiscoveryInterval = 10 * time.Millisecond }

// servedBy returns the servers that answer reads, by how many of n each answers.
func servedBy(t testing.TB, cluster *pgcluster.Cluster, pool *Pool, n int) map[string]int {
	t.Helper()
	by := map[string]int{}
	for range n {
		by[answeredBy(t, t.Context(), cluster, pool)]++
	}
	return by
}

// readOn waits until reads run on exactly these servers.
func readOn(t testing.TB, cluster *pgcluster.Cluster, pool *Pool, servers ...string) {
	t.Helper()
	eventually(t, fmt.Sprintf("reads run on %v", servers), func() bool {
		by := servedBy(t, cluster, pool, 40)
		return len(by) == len(servers) && !slices.ContainsFunc(servers, func(s string) bool { return by[s] == 0 })
	})
}

// found returns the replicas that reads prefer.
func found(pool *Pool) []*replica {
	return slices.DeleteFunc(pool.replicas.inUse(), func(r *replica) bool { return r.host.reserve })
}

// TestEachAddressIsAReplica has a name with two addresses. Connections of one replica lead to one of them.
func TestEachAddressIsAReplica(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	names := namesFor(cluster, "ord", "syd")
	var hosts sync.Map
	pool := poolIn(t, cluster, "ord", names.into, func(c *Config) {
		c.MaxReplicaWait = 10 * time.Second
		c.BeforeConnect = func(_ context.Context, config *pgx.ConnConfig) error {
			hosts.Store(config.Host, true)
			return nil
		}
	})
	ctx := t.Context()
	readOn(t, cluster, pool, "ord", "syd")

	list := found(pool)
	if len(list) != 2 {
		t.Fatalf("there are %d replicas", len(list))
	}
	for i, server := range []string{"ord", "syd"} {
		r := list[i]
		if want := net.JoinHostPort(cluster.Server(server).IP(), "5433"); r.endpoint() != want || r.region != "ord" {
			t.Errorf("replica %d is %s in %s, want %s in ord", i, r.endpoint(), r.region, want)
		}
		for range 3 {
			r.pool.Reset()
			if got := answeredBy(t, ctx, cluster, r.pool); got != server {
				t.Errorf("%s answers for %s", got, server)
			}
		}
	}
	hosts.Range(func(host, _ any) bool {
		if host != ordName && host != "nrt.app.internal" {
			t.Errorf("a hook sees the host %s", host)
		}
		return true
	})
	for i := range 20 {
		if err := execs(ctx, pool, insertText(name, i)); err != nil {
			t.Fatal(err)
		}
		if n := counts(t, ctx, pool, name); n != i+1 {
			t.Fatalf("a read after %d writes saw %d", i+1, n)
		}
	}
	if got, want := pool.Describe(), "reads on ord.app.internal:5433 (2 replicas in ord), writes on nrt.app.internal:5432"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	unused(t, pool)
}

// TestOneLookupForAll has many reads at a time connect for the first time.
func TestOneLookupForAll(t *testing.T) {
	cluster := sharedCluster(t)
	names := namesFor(cluster)
	names.answer(ordName, func(ctx context.Context) ([]string, error) {
		_ = sleep(ctx, 100*time.Millisecond) // so that all ask at the same time
		return []string{cluster.Server("ord").IP(), cluster.Server("syd").IP()}, nil
	})
	pool := poolIn(t, cluster, "ord", names.into, func(c *Config) {
		// Neither the interval nor a connection that takes its time is a reason for another lookup.
		c.MaxConns, c.DiscoveryInterval, c.MaxReplicaWait = 16, time.Hour, time.Minute
	})
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() { _ = execs(t.Context(), pool, "select 1") })
	}
	wg.Wait()
	if n := names.times(ordName); n != 1 {
		t.Errorf("the name was looked up %d times", n)
	}
	if n := len(found(pool)); n != 2 {
		t.Errorf("there are %d replicas", n)
	}
}

// TestMachinesJoinAndLeave has a machine join, and then the first one leave while a transaction runs on it.
func TestMachinesJoinAndLeave(t *testing.T) {
	cluster := sharedCluster(t)
	names := namesFor(cluster, "ord")
	pool := poolIn(t, cluster, "ord", names.into, often)
	ctx := t.Context()
	readOn(t, cluster, pool, "ord")
	first := pool.replicas.list()[0]

	names.lead(ordName, cluster, "syd", "ord")
	readOn(t, cluster, pool, "ord", "syd")
	if pool.replicas.list()[0] != first {
		t.Error("the replica that was known has lost its pool or its place")
	}

	tx, err := first.pool.BeginTx(ctx, pgx.TxOptions{AccessMode: pgx.ReadOnly})
	if err != nil {
		t.Fatal(err)
	}
	names.lead(ordName, cluster, "syd")
	readOn(t, cluster, pool, "syd")
	if got := answeredBy(t, ctx, cluster, tx); got != "ord" {
		t.Errorf("a transaction has moved to %s", got)
	}
	if pool.replicas.list()[0] == first || pool.Stat().Replica("ord") == nil {
		t.Error("the machine that has left is still in the list, or nobody is")
	}
	closed := make(chan struct{})
	go func() { pool.Close(); close(closed) }()
	select {
	case <-closed:
		t.Error("Close does not wait for a transaction on a machine that has left")
	case <-time.After(50 * time.Millisecond):
	}
	if err := tx.Commit(ctx); err != nil {
		t.Errorf("a transaction on a machine that has left: %v", err)
	}
	<-closed
}

// TestReadsWhileMachinesComeAndGo has no read fail, whichever machines there are.
func TestReadsWhileMachinesComeAndGo(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	names := namesFor(cluster, "ord")
	pool := poolIn(t, cluster, "ord", names.into, often, func(c *Config) { c.MaxConns = 8 })
	stop, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	var written atomic.Int64
	for range 4 {
		wg.Go(func() {
			for stop.Err() == nil {
				least := written.Load()
				if n := counts(t, t.Context(), pool, name); int64(n) < least {
					t.Errorf("stale: %d rows of %d", n, least)
				}
			}
		})
	}
	wg.Go(func() {
		for i := 1; stop.Err() == nil; i++ {
			if err := execs(t.Context(), pool, insertText(name, i)); err != nil {
				t.Error(err)
				return
			}
			written.Store(int64(i))
		}
	})
	seen := map[*replica]bool{}
	for i := range 12 {
		lead := [][]string{{"syd"}, {"ord", "syd"}, {"ord"}}[i%3]
		names.lead(ordName, cluster, lead...)
		eventually(t, "the pool has noticed", func() bool {
			list := found(pool)
			return len(list) == len(lead) && !slices.ContainsFunc(list, func(r *replica) bool {
				return !slices.ContainsFunc(lead, func(s string) bool { return r.endpoint() == net.JoinHostPort(cluster.Server(s).IP(), "5433") })
			})
		})
		for _, r := range found(pool) {
			seen[r] = true
		}
	}
	cancel()
	wg.Wait()
	if len(seen) < 6 {
		t.Errorf("%d replicas were made", len(seen))
	}
	unused(t, pool)
}

// warnings counts what pgx's own log gets.
type warnings struct {
	mu       sync.Mutex
	messages []string
}

func (l *warnings) Log(_ context.Context, level tracelog.LogLevel, message string, _ map[string]any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if level == tracelog.LogLevelWarn {
		l.messages = append(l.messages, message)
	}
}

// tracer returns a tracer that has pgx write to the log.
func (l *warnings) tracer() pgx.QueryTracer {
	return &tracelog.TraceLog{Logger: l, LogLevel: tracelog.LogLevelWarn}
}

func (l *warnings) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.messages)
}

// TestNameServerFails has the name server fail in several ways. The replicas stay, and the log says so once each time.
func TestNameServerFails(t *testing.T) {
	cluster := sharedCluster(t)
	names := namesFor(cluster, "ord", "syd")
	log := &warnings{}
	pool := poolIn(t, cluster, "ord", names.into, often, func(c *Config) {
		c.ConnConfig.Tracer = log.tracer()
	})
	readOn(t, cluster, pool, "ord", "syd")
	before := found(pool)
	failures := 0
	for what, answer := range map[string]func(context.Context) ([]string, error){
		"an error": func(context.Context) ([]string, error) { return nil, errors.New("server misbehaving") },
		"NXDOMAIN": func(context.Context) ([]string, error) {
			return nil, &net.DNSError{Err: "no such host", Name: ordName, IsNotFound: true}
		},
		"nothing": func(context.Context) ([]string, error) { return nil, nil },
		"garbage": func(context.Context) ([]string, error) {
			return []string{"", "::", "0.0.0.0", "ff02::1", "a b", "127.0.0.1:0"}, nil
		},
		"too many": func(context.Context) (all []string, err error) {
			for i := range maxAddresses + 1 {
				all = append(all, fmt.Sprintf("fdaa::%x", i+1))
			}
			return all, nil
		},
	} {
		t.Run(what, func(t *testing.T) {
			failures++
			asked := names.times(ordName)
			names.answer(ordName, answer)
			eventually(t, "the name is looked up a few times", func() bool {
				servedBy(t, cluster, pool, 5)
				return names.times(ordName) > asked+5
			})
			if !slices.Equal(found(pool), before) {
				t.Error("the replicas have changed")
			}
			if by := servedBy(t, cluster, pool, 40); len(by) != 2 || by["nrt"] > 0 {
				t.Errorf("reads run on %v", by)
			}
			if n := log.count(); n != failures {
				t.Errorf("the log has %d messages after %d failures: %q", n, failures, log.messages)
			}
			f := failureOf(pool, "replica", "ord")
			if f == nil || !f.Recovered.IsZero() {
				t.Fatalf("the failure is %+v", f)
			}
			names.lead(ordName, cluster, "ord", "syd")
			eventually(t, "the failure is over", func() bool {
				servedBy(t, cluster, pool, 5)
				return !failureOf(pool, "replica", "ord").Recovered.IsZero()
			})
		})
	}
}

// TestWrongAddresses has the name server answer addresses at which nobody listens.
func TestWrongAddresses(t *testing.T) {
	cluster := sharedCluster(t)
	names := namesFor(cluster, "ord")
	pool := poolIn(t, cluster, "ord", names.into, often)
	readOn(t, cluster, pool, "ord")
	asked := names.times(ordName)
	names.answer(ordName, func(context.Context) ([]string, error) { return []string{"fdaa::bad", "fdaa::bad:1"}, nil })
	eventually(t, "the name is looked up a few times", func() bool {
		if by := servedBy(t, cluster, pool, 5); by["ord"] != 5 {
			t.Fatalf("reads run on %v", by)
		}
		return names.times(ordName) > asked+10
	})
}

// TestSilentMachineJoins has the name lead to a machine that does not answer. No read waits for it.
func TestSilentMachineJoins(t *testing.T) {
	cluster := sharedCluster(t)
	names := namesFor(cluster, "ord")
	pool := poolIn(t, cluster, "ord", names.into, often)
	readOn(t, cluster, pool, "ord")
	link := cluster.Link("ord", "syd")
	link.Stall()
	t.Cleanup(link.Restore)
	names.lead(ordName, cluster, "syd")
	eventually(t, "the machine is found", func() bool {
		servedBy(t, cluster, pool, 1)
		return len(found(pool)) == 2
	})
	if by := servedBy(t, cluster, pool, 40); by["ord"] != 40 {
		t.Errorf("reads run on %v", by)
	}
	link.Restore()
	readOn(t, cluster, pool, "syd")
}

// TestReadMeetsALeavingReplica closes a replica's pool at the moment at which a read has chosen it.
func TestReadMeetsALeavingReplica(t *testing.T) {
	cluster := sharedCluster(t)
	pool := poolIn(t, cluster, "ord", namesFor(cluster, "ord", "syd").into)
	readOn(t, cluster, pool, "ord", "syd")
	leaving := found(pool)[0]
	leaving.left.Store(true)
	leaving.pool.Close()
	if by := servedBy(t, cluster, pool, 20); by["syd"] != 20 {
		t.Errorf("reads run on %v", by)
	}
}

// TestSlowNameServer answers late. Reads do not wait for it, neither at first nor later.
func TestSlowNameServer(t *testing.T) {
	cluster := sharedCluster(t)
	names := namesFor(cluster, "ord")
	answer := make(chan struct{})
	slow := func(ctx context.Context) ([]string, error) {
		select {
		case <-answer:
			return []string{cluster.Server("ord").IP()}, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	names.answer(ordName, slow)
	names.answer(nearestOf+"app.internal", slow)
	pool := poolIn(t, cluster, "ord", names.into, often, func(c *Config) { c.MaxReplicaWait = 100 * time.Millisecond })
	ctx := t.Context()
	for range 5 {
		if replicaServes(t, ctx, pool) {
			t.Error("a replica whose name is not known serves")
		}
	}
	close(answer)
	readOn(t, cluster, pool, "ord")

	names.answer(ordName, func(ctx context.Context) ([]string, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	asked := names.times(ordName)
	eventually(t, "it is asked again", func() bool {
		if !replicaServes(t, ctx, pool) {
			t.Error("a read has moved because a name server is slow")
		}
		return names.times(ordName) > asked
	})
	for range 20 {
		if !replicaServes(t, ctx, pool) {
			t.Error("a read has moved because a name server is slow")
		}
	}
	unused(t, pool)
}

// TestFailureDuringLookups has a replica fail while names are looked up. That puts the next lookups off no further.
func TestFailureDuringLookups(t *testing.T) {
	rounds := 0
	s := &schedule{interval: time.Hour, begin: func() { rounds++ }}
	s.tick(time.Now())
	due := s.due.Load()
	s.began.Store(0)
	if s.hurry(); rounds != 1 || s.due.Load() != due {
		t.Errorf("%d rounds at a time, and the next one %v later", rounds, time.Duration(s.due.Load()-due))
	}
	s.running.Store(false)
	if s.hurry(); rounds != 2 {
		t.Errorf("%d rounds: want another one", rounds)
	}
}

// TestPlaceOfAReplica has a host find a replica when all that it had led to before are another host's. The new one is read from
// before those of a farther region.
func TestPlaceOfAReplica(t *testing.T) {
	config, err := ParseConfig("postgres://u@primary.example.com/db?sslmode=disable&fly_region=ord&fly_primary_region=nrt&fly_replica_regions=ord,syd")
	noError(t, err)
	config.ReplicaConnStrings = map[string]string{
		"ord": "postgres://u@a.example.com,b.example.com/db?sslmode=disable",
		"syd": "postgres://u@c.example.com/db?sslmode=disable",
	}
	config.ConnConfig.DialFunc = func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no network") }
	pool, err := NewPoolWithConfig(t.Context(), config)
	noError(t, err)
	defer pool.Close()

	d := pool.discovery
	a, b, c := d.hosts[0], d.hosts[1], d.hosts[2]
	d.update(a, []string{"192.0.2.1"})
	d.update(b, []string{"192.0.2.2"})
	d.update(c, []string{"192.0.2.3"})
	for range maxAbsent {
		d.update(a, []string{"192.0.2.2"})
	}
	d.update(a, []string{"192.0.2.4"})
	var got []string
	for _, group := range pool.replicas.current.Load().groups {
		var endpoints []string
		for _, r := range group {
			endpoints = append(endpoints, r.endpoint())
		}
		got = append(got, strings.Join(endpoints, " "))
	}
	if want := []string{"192.0.2.4:5432 192.0.2.2:5432", "192.0.2.3:5432"}; !slices.Equal(got, want) {
		t.Errorf("the groups are %q, want %q", got, want)
	}
}

// TestIdlePoolLooksNothingUp leaves a pool alone.
func TestIdlePoolLooksNothingUp(t *testing.T) {
	cluster := sharedCluster(t)
	names := namesFor(cluster, "ord")
	pool := poolIn(t, cluster, "ord", names.into, often)
	readOn(t, cluster, pool, "ord")
	eventually(t, "no lookup is under way", func() bool { return !pool.discovery.running.Load() })
	asked := names.times(ordName)
	time.Sleep(20 * pool.config.DiscoveryInterval)
	if n := names.times(ordName); n != asked {
		t.Errorf("a pool that nobody uses has looked its name up %d times", n-asked)
	}
	servedBy(t, cluster, pool, 1)
	eventually(t, "the next read has it looked up", func() bool { return names.times(ordName) > asked })
}

// TestMachineIsReplaced has a machine die and another one take its place. The name is looked up because a connection fails.
func TestMachineIsReplaced(t *testing.T) {
	cluster := sharedCluster(t)
	names := namesFor(cluster, "ord")
	pool := poolIn(t, cluster, "ord", names.into, func(c *Config) { c.DiscoveryInterval = time.Hour })
	readOn(t, cluster, pool, "ord")
	names.lead(ordName, cluster, "syd")
	names.lead(nearestOf+"app.internal", cluster, "nrt")
	link := cluster.Link("ord", "ord")
	link.Cut()
	t.Cleanup(link.Restore)
	readOn(t, cluster, pool, "syd")
	eventually(t, "the dead machine is let go", func() bool {
		servedBy(t, cluster, pool, 1)
		return pool.replicas.list()[0].endpoint() == net.JoinHostPort(cluster.Server("syd").IP(), "5433")
	})
}

// TestNearestMachine has the region's machines out of reach. Reads go to the nearest machine of all meanwhile.
func TestNearestMachine(t *testing.T) {
	cluster := sharedCluster(t)
	names := namesFor(cluster, "ord")
	names.lead(nearestOf+"app.internal", cluster, "syd")
	pool := poolIn(t, cluster, "ord", names.into)
	readOn(t, cluster, pool, "ord")
	if n := names.times(nearestOf + "app.internal"); n != 0 {
		t.Errorf("the nearest machine was looked up %d times", n)
	}
	link := cluster.Link("ord", "ord")
	link.Cut()
	t.Cleanup(link.Restore)
	if by := servedBy(t, cluster, pool, 20); by["syd"] < 19 { // the connection may break under a read
		t.Errorf("reads run on %v", by)
	}
	link.Restore()
	readOn(t, cluster, pool, "ord")
}

// TestOneOfSeveralIsGone has a machine of a region refuse connections. No read leaves the region.
func TestOneOfSeveralIsGone(t *testing.T) {
	cluster := sharedCluster(t)
	names := namesFor(cluster, "ord", "syd")
	pool := poolIn(t, cluster, "ord", names.into)
	readOn(t, cluster, pool, "ord", "syd")
	link := cluster.Link("ord", "syd")
	link.Cut()
	t.Cleanup(link.Restore)
	if by := servedBy(t, cluster, pool, 40); by["nrt"] > 1 { // the connection may break under a read
		t.Errorf("reads run on %v", by)
	}
	readOn(t, cluster, pool, "ord")
	link.Restore()
	readOn(t, cluster, pool, "ord", "syd")
}

// TestLookupErrorIsPgx has the first lookup fail. The error is the one that pgx makes of it.
func TestLookupErrorIsPgx(t *testing.T) {
	cluster := sharedCluster(t)
	names := namesFor(cluster)
	cause := &net.DNSError{Err: "no such host", Name: ordName, IsNotFound: true}
	names.answer(ordName, func(context.Context) ([]string, error) { return nil, cause })
	names.answer(nearestOf+"app.internal", func(context.Context) ([]string, error) { return nil, errors.New("neither") })
	pool := poolIn(t, cluster, "ord", names.into)
	err := pool.QueryRow(WithReplica(t.Context()), "select 1").Scan(new(int))
	var dnsError *net.DNSError
	var connectError *pgconn.ConnectError
	if !errors.As(err, &dnsError) || dnsError != cause || !errors.As(err, &connectError) {
		t.Errorf("%T: %v", err, err)
	}
	if replicaServes(t, t.Context(), pool) {
		t.Error("a replica serves")
	}
}
