package flyregion

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/flyregion/flyregion/internal/pgcluster"
)

// machine is what a Fly Machine of a Postgres app is to its network: an address of its own with PostgreSQL on port 5433
// and the proxy that leads to the leader on port 5432.
type machine struct {
	ip             string
	direct, leader atomic.Int64 // connections that each port has taken
}

// startMachine listens on the real ports of an address out of 127.0.0.0/8, so that copies of the test do not meet.
func startMachine(t *testing.T, cluster *pgcluster.Cluster, region string) *machine {
	t.Helper()
	for range 100 {
		m := &machine{ip: fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(254), rand.IntN(256), 1+rand.IntN(254))}
		proxy, err := net.Listen("tcp4", m.ip+":5432")
		if errors.Is(err, syscall.EADDRINUSE) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		server, err := net.Listen("tcp4", m.ip+":5433")
		if err != nil {
			proxy.Close()
			if errors.Is(err, syscall.EADDRINUSE) {
				continue
			}
			t.Fatal(err)
		}
		relay(t, proxy, &m.leader, func() string { return cluster.Leader().Addr() })
		relay(t, server, &m.direct, func() string { return cluster.Server(region).Addr() })
		return m
	}
	t.Fatal("no address has both ports free")
	return nil
}

// relay carries what a listener takes to a server.
func relay(t *testing.T, listener net.Listener, taken *atomic.Int64, to func() string) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	t.Cleanup(func() {
		listener.Close()
		mu.Lock()
		for conn := range open {
			conn.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			taken.Add(1)
			server, err := net.Dial("tcp4", to())
			if err != nil {
				client.Close()
				continue
			}
			mu.Lock()
			open[client], open[server] = true, true
			mu.Unlock()
			carry := func(to, from net.Conn) {
				_, _ = io.Copy(to, from)
				_ = to.(*net.TCPConn).CloseWrite()
			}
			wg.Go(func() { carry(server, client) })
			wg.Go(func() { carry(client, server) })
		}
	})
}

// nameServer is a DNS server that knows IPv4 addresses.
type nameServer struct {
	mu    sync.Mutex
	names map[string]string // to an IPv4 address
	asked map[string]int
}

func (s *nameServer) set(name, ip string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ip == "" {
		delete(s.names, name)
	} else {
		s.names[name] = ip
	}
}

func (s *nameServer) times(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[name]
}

func (s *nameServer) find(name string, kind uint16) (records [][]byte, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ip, known := s.names[name]
	s.asked[name]++
	if known && kind == typeA {
		records = append(records, net.ParseIP(ip).To4())
	}
	return records, known
}

// startNameServer has the process ask a name server of its own until the test ends.
func startNameServer(t *testing.T) *nameServer {
	t.Helper()
	s := &nameServer{names: map[string]string{}, asked: map[string]int{}}
	resolver := serveNames(t, s.find)
	before := net.DefaultResolver
	net.DefaultResolver = resolver
	t.Cleanup(func() { net.DefaultResolver = before })
	return s
}

// TestRealNames uses nothing that a process on Fly does not have: the environment, real names, real ports, and no hook.
func TestRealNames(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	ctx := t.Context()
	dns := startNameServer(t)
	nrt, ord := startMachine(t, cluster, "nrt"), startMachine(t, cluster, "ord")
	nearest := startMachine(t, cluster, "ord")
	dns.set("nrt.app.internal", nrt.ip)
	dns.set("ord.app.internal", ord.ip)
	dns.set("top1.nearest.of.app.internal", nearest.ip)
	t.Setenv("PRIMARY_REGION", "nrt")
	t.Setenv("FLY_REGION", "ord")

	use := func(t *testing.T, rows int) {
		pool, err := NewPool(ctx, cluster.URL()+"&fly_max_replica_wait=1m")
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		if _, err := pool.Exec(ctx, insertSQL(name), rows); err != nil {
			t.Fatal(err)
		}
		if n := counts(t, ctx, pool, name); n != rows {
			t.Errorf("%d rows, want %d", n, rows)
		}
		awaitReplica(t, ctx, pool)
		var port int
		if err := pool.Replica().QueryRow(ctx, "select inet_server_port()").Scan(&port); err != nil || fmt.Sprint("127.0.0.1:", port) != cluster.Server("ord").Addr() {
			t.Errorf("reads go to port %d, %v", port, err)
		}
		if err := pool.Primary().QueryRow(ctx, "select inet_server_port()").Scan(&port); err != nil || fmt.Sprint("127.0.0.1:", port) != cluster.Server("nrt").Addr() {
			t.Errorf("writes go to port %d, %v", port, err)
		}
	}
	took := func(t *testing.T, what string, counter *atomic.Int64, some bool) {
		t.Helper()
		if n := counter.Swap(0); (n > 0) != some {
			t.Errorf("%s: %d connections", what, n)
		}
	}

	t.Run("regional name", func(t *testing.T) {
		use(t, 1)
		took(t, "nrt.app.internal:5432", &nrt.leader, true)
		took(t, "ord.app.internal:5433", &ord.direct, true)
		took(t, "nrt.app.internal:5433", &nrt.direct, false)
		took(t, "ord.app.internal:5432", &ord.leader, false)
		took(t, "top1.nearest.of.app.internal:5433", &nearest.direct, false)
		took(t, "top1.nearest.of.app.internal:5432", &nearest.leader, false)
	})
	t.Run("no regional name", func(t *testing.T) {
		dns.set("ord.app.internal", "")
		asked := dns.times("ord.app.internal")
		use(t, 2)
		took(t, "nrt.app.internal:5432", &nrt.leader, true)
		took(t, "top1.nearest.of.app.internal:5433", &nearest.direct, true)
		took(t, "ord.app.internal:5433", &ord.direct, false)
		took(t, "nrt.app.internal:5433", &nrt.direct, false)
		if dns.times("ord.app.internal") == asked {
			t.Error("nobody asked for ord.app.internal")
		}
	})
	t.Run("no name of a replica", func(t *testing.T) {
		dns.set("top1.nearest.of.app.internal", "")
		pool, err := NewPool(ctx, cluster.URL())
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		if replicaServes(t, ctx, pool) {
			t.Error("a replica without a name serves")
		}
		// Its Machine starts.
		dns.set("ord.app.internal", ord.ip)
		awaitReplica(t, ctx, pool)
		took(t, "ord.app.internal:5433", &ord.direct, true)
		nrt.leader.Store(0)
	})
	t.Run("in the primary's region", func(t *testing.T) {
		t.Setenv("FLY_REGION", "nrt")
		dns.set("app.internal", nrt.ip)
		pool, err := NewPool(ctx, cluster.URL())
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		ord.direct.Store(0)
		if replicaServes(t, ctx, pool) {
			t.Error("a replica serves in the primary's region")
		}
		took(t, "app.internal:5432", &nrt.leader, true)
		took(t, "ord.app.internal:5433", &ord.direct, false)
	})
	t.Run("primary without a name", func(t *testing.T) {
		dns.set("nrt.app.internal", "")
		pool, err := NewPool(ctx, cluster.URL())
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		limited, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		var dnsError *net.DNSError
		if _, err := pool.Exec(limited, insertSQL(name), 9); !errors.As(err, &dnsError) || !dnsError.IsNotFound || dnsError.Name != "nrt.app.internal" {
			t.Errorf("a write without a primary: %v", err)
		}
		if !replicaServes(t, ctx, pool) {
			t.Error("the replica does not serve")
		}
	})
}
