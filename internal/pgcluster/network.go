package pgcluster

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// The ports of a Fly Postgres machine: the proxy that leads to the leader, and the machine's own server.
const (
	leaderPort = 5432
	serverPort = 5433
)

// network is what lies between the regions: latencies, links, and a listener to make connected pairs of sockets with.
type network struct {
	mu     sync.Mutex
	legs   map[[2]string]*leg
	links  map[[2]string]*Link
	closed bool

	pairing  sync.Mutex
	listener *net.TCPListener
}

func newNetwork() (*network, error) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	return &network{
		legs:     make(map[[2]string]*leg),
		links:    make(map[[2]string]*Link),
		listener: listener.(*net.TCPListener),
	}, nil
}

// leg returns the round trip between two regions, whichever is named first.
func (n *network) leg(a, b string) *leg {
	if a > b {
		a, b = b, a
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.legs[[2]string{a, b}]
	if l == nil {
		l = new(leg)
		n.legs[[2]string{a, b}] = l
	}
	return l
}

func (n *network) link(from, to string) *Link {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.links[[2]string{from, to}]
	if l == nil {
		l = newLink()
		l.closed = n.closed
		n.links[[2]string{from, to}] = l
	}
	return l
}

// pair returns the two ends of a new connection over loopback.
func (n *network) pair(ctx context.Context) (near, far *net.TCPConn, err error) {
	n.pairing.Lock()
	defer n.pairing.Unlock()
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp4", n.listener.Addr().String())
	if err != nil {
		return nil, nil, err
	}
	near = c.(*net.TCPConn)
	for {
		// Our connection is already in the listener's backlog; another one there is a stranger's.
		far, err = n.listener.AcceptTCP()
		if err != nil {
			near.Close()
			return nil, nil, err
		}
		if far.RemoteAddr().String() == near.LocalAddr().String() {
			return near, far, nil
		}
		far.Close()
	}
}

func (n *network) close() {
	n.listener.Close()
	n.mu.Lock()
	n.closed = true
	links := make([]*Link, 0, len(n.links))
	for _, l := range n.links {
		links = append(links, l)
	}
	n.mu.Unlock()
	for _, l := range links {
		l.close()
	}
}

// Site is the network as a process in one region sees it: Fly's names, Fly's addresses and ports, and the latency to
// each server. Its two methods fit pgconn.Config's LookupFunc and DialFunc:
//
//	config.ConnConfig.LookupFunc = site.LookupHost
//	config.ConnConfig.DialFunc = site.DialContext
type Site struct {
	cluster *Cluster
	region  string
}

// Region returns the region that the site is in.
func (s *Site) Region() string {
	return s.region
}

// DialContext connects to one of the cluster's servers, given by a name or an address of the site's network and a port.
// Port 5433 is the server in that region itself. Port 5432 is Fly's proxy in that region, which leads to the leader: its
// latency is that from the site to the region plus that from the region to the leader. All other addresses and ports
// refuse the connection, as do a server that is stopped and a Link that is cut. Connecting costs one round trip.
func (s *Site) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	switch network {
	case "tcp", "tcp4", "tcp6":
	default:
		return nil, &net.OpError{Op: "dial", Net: network, Err: net.UnknownNetworkError(network)}
	}
	host, portText, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Err: err}
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Err: &net.AddrError{Err: "invalid port", Addr: addr}}
	}
	ips, err := s.LookupHost(ctx, host)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Err: err}
	}
	for _, text := range ips {
		ip, _ := netip.ParseAddr(text)
		remote := net.TCPAddrFromAddrPort(netip.AddrPortFrom(ip, uint16(port)))
		var conn net.Conn
		conn, dialErr := s.dial(ctx, ip, int(port), remote)
		if dialErr == nil {
			return conn, nil
		}
		if err == nil {
			err = &net.OpError{Op: "dial", Net: network, Addr: remote, Err: dialErr} // the first one, as net.Dialer does
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, err
}

var errRefused = os.NewSyscallError("connect", syscall.ECONNREFUSED)

func (s *Site) dial(ctx context.Context, ip netip.Addr, port int, remote net.Addr) (net.Conn, error) {
	c := s.cluster
	leader := c.Leader()
	var server *Server
	var to string
	var way path
	switch {
	case ip == flycastIP && port == leaderPort:
		server, to = leader, leader.name
		way = path{c.network.leg(s.region, leader.region)}
	case port == leaderPort:
		proxy := c.serverByIP(ip)
		if proxy == nil {
			return nil, errRefused
		}
		server, to = leader, proxy.name
		way = path{c.network.leg(s.region, proxy.region)}
		if proxy.region != leader.region {
			way = append(way, c.network.leg(proxy.region, leader.region))
		}
	case port == serverPort:
		server = c.serverByIP(ip)
		if server == nil {
			return nil, errRefused
		}
		to = server.name
		way = path{c.network.leg(s.region, server.region)}
	default:
		return nil, errRefused
	}
	link := c.network.link(s.region, to)

	if err := sleep(ctx, way.roundTrip()); err != nil {
		return nil, err
	}
	if link.state.Load() == linkCut {
		return nil, errRefused
	}
	upstream, err := dialServer(ctx, server)
	if err != nil {
		return nil, err
	}
	near, far, err := c.network.pair(ctx)
	if err != nil {
		upstream.Close()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if errors.Is(err, net.ErrClosed) {
			return nil, errRefused // the cluster was stopped
		}
		return nil, err
	}
	if !link.join(newConn(link, way, far, upstream)) {
		near.Close()
		far.Close()
		upstream.Close()
		return nil, errRefused
	}
	return &siteConn{TCPConn: near, remote: remote}, nil
}

// dialServer connects to the server itself, over loopback. If there is none the error is errRefused, so that a client
// sees what it would see across a network.
func dialServer(ctx context.Context, server *Server) (*net.TCPConn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp4", server.Addr())
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, errRefused
	}
	return conn.(*net.TCPConn), nil
}

// siteConn shows the address that was dialed. pgconn dials the remote address of a connection to send a cancel request.
type siteConn struct {
	*net.TCPConn
	remote net.Addr
}

func (c *siteConn) RemoteAddr() net.Addr {
	return c.remote
}

// relay accepts connections on a port of its own. It carries each over link to the server that to returns then, and
// refuses it while that is nil.
func (c *Cluster) relay(ctx context.Context, link *Link, region string, to func() *Server) (*net.TCPListener, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	listener := l.(*net.TCPListener)
	link.goroutines.Add(1)
	go func() {
		defer link.goroutines.Done()
		for {
			client, err := listener.AcceptTCP()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				if sleep(ctx, 10*time.Millisecond) != nil { // out of file descriptors, say
					return
				}
				continue
			}
			link.goroutines.Add(1)
			go func() {
				defer link.goroutines.Done()
				c.joinRelay(ctx, link, region, to, client)
			}()
		}
	}()
	return listener, nil
}

func (c *Cluster) joinRelay(ctx context.Context, link *Link, region string, to func() *Server, client *net.TCPConn) {
	if target := to(); target != nil && link.state.Load() != linkCut {
		way := path{c.network.leg(target.region, region)}
		if sleep(ctx, way.roundTrip()) == nil {
			if server, err := dialServer(ctx, target); err == nil {
				conn := newConn(link, way, client, server)
				if to() == target && link.join(conn) {
					if to() != target {
						conn.close(true) // the change came between, and may have missed this connection
					}
					return
				}
				server.Close()
			}
		}
	}
	_ = client.SetLinger(0)
	client.Close()
}

// sleep waits, or returns ctx's error when that ends first.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
