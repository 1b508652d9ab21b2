package flyregion

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// silentError is the error of a call on a connection that a guard has closed.
type silentError struct{ region string }

func (e *silentError) Error() string {
	return fmt.Sprintf("flyregion: %s does not answer", inRegion(e.region))
}

const (
	// checkPeriod is how often the connections are checked while a call on one of them is under way.
	checkPeriod = 250 * time.Millisecond
	// stuckChecks is how many checks in a row must find the same call under way before the replica is asked.
	stuckChecks = 2
)

// guard closes the connections to a replica that no longer answers. A network that drops packets gives no error, and a
// proxy in between may acknowledge what never arrives. So when a call has been under way for half a second at most, and the
// replica has sent nothing on any connection since the last check, it is asked on another connection. If it answers, the call
// goes on: a query may take long. Until it answers, reads prefer other replicas.
//
// A call costs a few atomic operations. The timer runs only while there are calls.
type guard struct {
	silent     error                            // the error of a call on a connection that the guard has closed
	answers    func(context.Context) bool       // asks the replica
	background func(func(context.Context)) bool // runs a function in a goroutine, unless the replica is closed
	failed     func(error)                      // called with silent when connections were closed

	armed  atomic.Bool  // the timer runs, or is about to
	heard  atomic.Bool  // the replica has sent something since the last check
	asking atomic.Bool  // the replica is asked; mu is held to set it
	peak   atomic.Int32 // how many connections were in use at a time since the last check, as a read knows that has acquired one

	// mu guards the following fields, and the fields seen and checks of the connections.
	mu     sync.Mutex
	conns  map[*guardedConn]struct{}
	timer  *time.Timer
	closed bool
}

func newGuard(region string, answers func(context.Context) bool, background func(func(context.Context)) bool, failed func(error)) *guard {
	g := &guard{
		silent:  &silentError{region},
		answers: answers, background: background, failed: failed, conns: map[*guardedConn]struct{}{},
	}
	g.timer = time.AfterFunc(time.Hour, g.check)
	g.timer.Stop()
	return g
}

// dial returns a DialFunc whose connections are guarded.
func (g *guard) dial(dial func(ctx context.Context, network, addr string) (net.Conn, error)) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		expectAnswers(conn)
		c := &guardedConn{Conn: conn, guard: g}
		g.mu.Lock()
		defer g.mu.Unlock()
		g.conns[c] = struct{}{}
		return c, nil
	}
}

// expectAnswers has the kernel close a connection whose other end does not acknowledge anything.
func expectAnswers(conn net.Conn) {
	if c, ok := conn.(interface {
		SetKeepAliveConfig(net.KeepAliveConfig) error
	}); ok {
		_ = c.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3})
	}
	setUserTimeout(conn, 15*time.Second)
}

// arm starts the timer if it does not run.
func (g *guard) arm() {
	if g.armed.Load() || !g.armed.CompareAndSwap(false, true) {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		g.timer.Reset(checkPeriod)
	}
}

// check is the timer's function. It finds the calls that have been under way for long.
func (g *guard) check() {
	g.mu.Lock()
	defer g.mu.Unlock()

	if g.closed {
		return
	}
	defer func() { // last: no check follows while there are no calls
		g.heard.Store(false)
		g.peak.Store(0)
	}()
	busy, stuck := false, false
	for c := range g.conns {
		calls, under := c.underWay()
		busy = busy || under
		if !under || calls != c.seen {
			c.checks = 0
		}
		c.seen = calls
		if under {
			c.checks++
		}
		stuck = stuck || c.checks >= stuckChecks
	}
	if stuck && !g.heard.Load() && !g.asking.Load() {
		g.asking.Store(g.background(g.ask))
	}
	if busy {
		g.timer.Reset(checkPeriod)
		return
	}
	g.armed.Store(false)
	// A call may have begun just before that, and have found the guard armed.
	for c := range g.conns {
		if _, under := c.underWay(); under && g.armed.CompareAndSwap(false, true) {
			g.timer.Reset(checkPeriod)
			return
		}
	}
}

// ask asks the replica. If it does not answer, ask closes the connections whose calls are stuck by then.
func (g *guard) ask(ctx context.Context) {
	answers := g.answers(ctx) || g.heard.Load()

	g.mu.Lock()
	defer g.mu.Unlock()
	defer g.asking.Store(false) // last: the replica has failed by then if it does not answer
	if ctx.Err() != nil {
		return
	}
	ended := false
	for c := range g.conns {
		calls, under := c.underWay()
		switch {
		case c.checks < stuckChecks || !under || calls != c.seen:
		case answers:
			c.checks = 0 // the replica is asked anew after as many checks
		default:
			c.end()
			ended = true
		}
	}
	if ended {
		g.failed(g.silent)
	}
}

// close stops the timer. Connections are no longer checked.
func (g *guard) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	g.timer.Stop()
}

// guardedConn is a connection that a guard checks. It lies below TLS.
type guardedConn struct {
	net.Conn
	guard *guard

	// reads and writes count the beginnings and the ends of calls. While a call is under way its counter is odd.
	reads, writes atomic.Uint32
	silent        atomic.Bool // the guard has closed it

	// The guard's mu guards the following fields: the calls at the last check, and how many checks have found the same.
	seen   callCounts
	checks int
}

// callCounts identifies the calls that are under way: another call has another count.
type callCounts struct{ reads, writes uint32 }

// underWay returns the counts of calls, and whether a call is under way.
func (c *guardedConn) underWay() (callCounts, bool) {
	n := callCounts{c.reads.Load(), c.writes.Load()}
	return n, n.reads%2 == 1 || n.writes%2 == 1
}

// NetConn returns the connection below.
func (c *guardedConn) NetConn() net.Conn { return c.Conn }

func (c *guardedConn) Read(p []byte) (int, error) {
	c.reads.Add(1)
	c.guard.arm()
	n, err := c.Conn.Read(p)
	if n > 0 && !c.guard.heard.Load() {
		c.guard.heard.Store(true)
	}
	c.reads.Add(1)
	return n, c.explain(err)
}

func (c *guardedConn) Write(p []byte) (int, error) {
	c.writes.Add(1)
	c.guard.arm()
	n, err := c.Conn.Write(p)
	c.writes.Add(1)
	return n, c.explain(err)
}

// end closes the connection, which ends its calls with the guard's error.
func (c *guardedConn) end() {
	c.silent.Store(true)
	_ = c.Conn.Close()
}

// explain returns the guard's error for one that comes from its closing the connection.
func (c *guardedConn) explain(err error) error {
	if err != nil && c.silent.Load() {
		return c.guard.silent
	}
	return err
}

func (c *guardedConn) Close() error {
	c.guard.mu.Lock()
	delete(c.guard.conns, c)
	c.guard.mu.Unlock()
	return c.Conn.Close()
}
