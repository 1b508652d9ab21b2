package pgcluster

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	chunkSize = 32 << 10
	// maxInFlight bounds what one direction of one connection holds, as a socket's buffers do. It is far more than
	// loopback carries in a long round trip, so that latency does not become a limit on throughput.
	maxInFlight = 64 << 20
)

// leg is the round trip between two regions, in nanoseconds.
type leg = atomic.Int64

// path is the way that a connection takes. Its legs are read for every chunk, so that a change applies at once.
type path []*leg

func (p path) roundTrip() time.Duration {
	var sum int64
	for _, l := range p {
		sum += l.Load()
	}
	return time.Duration(sum)
}

// conn is one connection that a Link carries: two sockets, and a flow in each direction.
type conn struct {
	link     *Link
	path     path
	client   *net.TCPConn
	server   *net.TCPConn
	up, down flow

	answered atomic.Bool // the client was sent something since it last sent something itself
	muted    atomic.Bool // nothing reaches the client any more
	flows    atomic.Int32
	done     chan struct{}
	once     sync.Once
}

func newConn(link *Link, path path, client, server *net.TCPConn) *conn {
	c := &conn{link: link, path: path, client: client, server: server, done: make(chan struct{})}
	c.answered.Store(true) // so that the first thing the client sends counts as a turn
	c.flows.Store(2)
	c.up = flow{conn: c, src: client, dst: server, toServer: true, wake: make(chan struct{}, 1), room: make(chan struct{}, 1)}
	c.down = flow{conn: c, src: server, dst: client, wake: make(chan struct{}, 1), room: make(chan struct{}, 1)}
	return c
}

// close ends the connection: with a reset, or with what the sockets do by themselves.
func (c *conn) close(reset bool) {
	c.once.Do(func() {
		close(c.done)
		c.link.leave(c) // before the client can see it: Conns must not count what is known to be closed
		if reset {
			_ = c.client.SetLinger(0)
			_ = c.server.SetLinger(0)
		}
		_ = c.client.Close()
		_ = c.server.Close()
	})
}

// sever resets the client's side. The server's side is only half closed and its answers are read and dropped: a reset
// could make the server's system throw away the very bytes that were just delivered.
func (c *conn) sever() {
	c.muted.Store(true)
	_ = c.client.SetLinger(0)
	_ = c.client.Close()
	_ = c.server.CloseWrite()
}

// ended is called once by each flow.
func (c *conn) ended() {
	if c.flows.Add(-1) == 0 {
		c.close(false)
	}
}

// flow carries the bytes of one direction: read from src, held for the latency of the path, written to dst in order.
type flow struct {
	conn     *conn
	src, dst *net.TCPConn
	toServer bool

	mu      sync.Mutex
	queue   []packet
	pending int // bytes and ends that were taken from src and not yet delivered through the queue
	last    time.Time
	queuing bool // the goroutine that empties the queue runs
	dead    bool
	wake    chan struct{}
	room    chan struct{}
}

type packet struct {
	chunk []byte
	end   bool // src was closed: chunk is empty
	reset bool // it was closed by a reset
	at    time.Time
}

func (f *flow) read() {
	defer f.conn.link.goroutines.Done()
	buf := make([]byte, chunkSize)
	for {
		n, err := f.src.Read(buf)
		if n > 0 {
			if f.toServer && f.conn.answered.Swap(false) {
				f.conn.link.turns.Add(1)
			}
			if !f.send(packet{chunk: buf[:n]}) {
				return
			}
		}
		if err != nil {
			f.send(packet{end: true, reset: !errors.Is(err, io.EOF)})
			return
		}
	}
}

// send delivers p, at once or through the queue. It returns false when the flow has ended.
func (f *flow) send(p packet) bool {
	delay := f.conn.path.roundTrip() / 2
	f.mu.Lock()
	if f.dead {
		f.mu.Unlock()
		return false
	}
	if delay == 0 && f.pending == 0 && f.conn.link.passing() {
		f.mu.Unlock()
		// Nothing to wait for: no copy and no hop to another goroutine, so that the proxy adds next to nothing.
		return f.deliver(p)
	}
	p.chunk = bytes.Clone(p.chunk)
	p.at = time.Now().Add(delay)
	if p.at.Before(f.last) {
		p.at = f.last // a latency that was just lowered must not let bytes overtake each other
	}
	f.last = p.at
	f.queue = append(f.queue, p)
	f.pending += len(p.chunk) + 1
	if !f.queuing {
		f.queuing = true
		f.conn.link.goroutines.Add(1)
		go f.drain()
	}
	full := f.pending > maxInFlight
	f.mu.Unlock()
	notify(f.wake)
	for full {
		select {
		case <-f.room:
		case <-f.conn.done:
			return false
		}
		f.mu.Lock()
		full = f.pending > maxInFlight && !f.dead
		f.mu.Unlock()
	}
	return true
}

// drain delivers what is in the queue, each packet when its time has come.
func (f *flow) drain() {
	defer f.conn.link.goroutines.Done()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		f.mu.Lock()
		if len(f.queue) == 0 {
			f.mu.Unlock()
			select {
			case <-f.wake:
			case <-f.conn.done:
				return
			}
			continue
		}
		p := f.queue[0]
		f.queue[0] = packet{}
		f.queue = f.queue[1:]
		f.mu.Unlock()

		if wait := time.Until(p.at) - napTime; wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-f.conn.done:
				return
			}
		}
		if wait := time.Until(p.at); wait > 0 {
			nap(wait)
		}
		for held := f.conn.link.held(); held != nil; held = f.conn.link.held() {
			select {
			case <-held:
			case <-f.conn.done:
				return
			}
		}
		alive := f.deliver(p)
		f.mu.Lock()
		f.pending -= len(p.chunk) + 1
		f.dead = !alive
		f.mu.Unlock()
		notify(f.room)
		if !alive {
			return
		}
	}
}

// deliver writes p to dst. It returns false when that was the flow's end.
func (f *flow) deliver(p packet) bool {
	c := f.conn
	switch {
	case p.end && p.reset && !c.muted.Load():
		c.close(true)
		return false
	case p.end:
		_ = f.dst.CloseWrite()
		c.ended()
		return false
	case f.toServer:
		last := c.link.takeMatch(p.chunk)
		if last {
			// Before the server gets the chunk: what it answers is then read, and dropped, after this.
			c.muted.Store(true)
		}
		c.link.toServer.Add(int64(len(p.chunk)))
		_, err := f.dst.Write(p.chunk)
		if last {
			c.link.cut(c)
		}
		if last || err != nil {
			// After an error the other flow goes on: the server's last words may still be on their way.
			c.ended()
			return false
		}
		return true
	case c.muted.Load():
		return true
	default:
		// Counted before the write: who has got the bytes must find them counted.
		c.answered.Store(true)
		c.link.toClient.Add(int64(len(p.chunk)))
		if _, err := f.dst.Write(p.chunk); err != nil {
			c.ended()
			return false
		}
		return true
	}
}

func notify(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
