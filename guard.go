package flyregion

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// errSilent is what a read gets whose replica does not answer any more.
var errSilent = errors.New("flyregion: the replica does not answer")

const (
	// guardPeriod is how often connections are looked at while somebody waits on one of them.
	checkPeriod = 500 * time.Millisecond
	// stuckChecks is how many looks in a row find the same call under way before the replica is asked.
	stuckChecks = 3
)

// guard ends calls on the connections to a replica that has fallen silent. A network that drops packets tells nobody, and
// a proxy in between may confirm what never arrives. So when a call has been under way for about a second, the replica is
// asked on another connection whether it is there. If it is, the call goes on: a query may take long.
//
// A call costs two additions. The timer runs only while there are calls.
type guard struct {
	answers    func(context.Context) bool
	background func(func(context.Context)) bool
	failed     func() // called when the replica has fallen silent

	armed atomic.Bool // the timer runs, or is about to

	// mu guards the following fields, and what is seen of the connections.
	mu     sync.Mutex
	conns  map[*guardedConn]struct{}
	timer  *time.Timer
	asking bool
	closed bool
}

func newGuard(answers func(context.Context) bool, background func(func(context.Context)) bool, failed func()) *guard {
	g := &guard{answers: answers, background: background, failed: failed, conns: map[*guardedConn]struct{}{}}
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

// expectAnswers has the kernel give up a connection whose other end does not confirm anything.
func expectAnswers(conn net.Conn) {
	if c, ok := conn.(interface {
		SetKeepAliveConfig(net.KeepAliveConfig) error
	}); ok {
		_ = c.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3})
	}
	setUserTimeout(conn, 15*time.Second)
}

// arm sees to it that somebody looks.
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

// check finds the calls that have been under way for long.
func (g *guard) check() {
	g.mu.Lock()
	defer g.mu.Unlock()

	if g.closed {
		return
	}
	busy := false
	var stuck []*guardedConn
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
		if c.checks >= stuckChecks {
			stuck = append(stuck, c)
		}
	}
	if len(stuck) > 0 && !g.asking {
		g.asking = g.background(func(ctx context.Context) { g.ask(ctx, stuck) })
	}
	if busy {
		g.timer.Reset(checkPeriod)
		return
	}
	g.armed.Store(false)
	// A call may have begun before that, and have found the guard armed.
	for c := range g.conns {
		if _, under := c.underWay(); under && g.armed.CompareAndSwap(false, true) {
			g.timer.Reset(checkPeriod)
			return
		}
	}
}

// ask ends the calls of stuck that are still under way if the replica does not answer.
func (g *guard) ask(ctx context.Context, stuck []*guardedConn) {
	answers := g.answers(ctx)

	g.mu.Lock()
	defer g.mu.Unlock()
	g.asking = false
	if ctx.Err() != nil {
		return
	}
	ended := false
	for _, c := range stuck {
		calls, under := c.underWay()
		switch {
		case !under || calls != c.seen:
		case answers:
			c.checks = 0 // and in another second it is asked again
		default:
			c.end()
			ended = true
		}
	}
	if ended {
		g.failed()
	}
}

// close ends the guard. What its connections do then is theirs.
func (g *guard) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	g.timer.Stop()
}

// guardedConn is a connection that a guard looks after. It lies below TLS.
type guardedConn struct {
	net.Conn
	guard *guard

	// reads and writes count the beginnings and the ends of calls: while one is under way they are odd.
	reads, writes atomic.Uint32
	silent        atomic.Bool // the guard has ended it

	// The guard's lock guards the following fields: the calls at its last look, and in how many looks they were the same.
	seen   callCounts
	checks int
}

// callCounts tells what a connection is doing now from what it does at another time.
type callCounts struct{ reads, writes uint32 }

// underWay returns what the connection is doing, and whether that is anything.
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

// end ends the calls that are under way, and all that come.
func (c *guardedConn) end() {
	c.silent.Store(true)
	_ = c.Conn.Close()
}

func (c *guardedConn) explain(err error) error {
	if err != nil && c.silent.Load() {
		return errSilent
	}
	return err
}

func (c *guardedConn) Close() error {
	c.guard.mu.Lock()
	delete(c.guard.conns, c)
	c.guard.mu.Unlock()
	return c.Conn.Close()
}
