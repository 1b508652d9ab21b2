package pgcluster

import (
	"sync"
	"sync/atomic"
)

// Link is one path of the network: from the apps in one region to the servers in one region, or from one replica to
// the server that it streams from. It can be cut, stalled and restored, and counts what passes. The zero latency of a
// new cluster is changed with Cluster.SetLatency.
type Link struct {
	state atomic.Int32 // changed with mu held; read without it for every chunk
	armed atomic.Bool  // whether match is set, likewise

	mu      sync.Mutex
	changed chan struct{} // closed and replaced when state changes
	match   func([]byte) bool
	conns   map[*conn]struct{}
	closed  bool

	goroutines sync.WaitGroup

	turns    atomic.Int64
	toServer atomic.Int64
	toClient atomic.Int64
}

const (
	linkUp = iota
	linkStalled
	linkCut
)

func newLink() *Link {
	return &Link{changed: make(chan struct{}), conns: make(map[*conn]struct{})}
}

// Cut resets all live connections of the link and refuses new ones until Restore. What was on its way is lost.
func (l *Link) Cut() {
	l.cut(nil)
}

// Stall turns the link into a black hole until Restore: connections stay open and new ones are accepted, but no byte
// passes, and neither does the news that one end closed its connection.
func (l *Link) Stall() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.setState(linkStalled)
}

// Restore ends what Cut, Stall or CutAfter began. What was held back by Stall is delivered now. A CutAfter that has
// not happened yet is forgotten.
func (l *Link) Restore() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.match = nil
	l.armed.Store(false)
	l.setState(linkUp)
}

// CutAfter cuts the link, once, right after a chunk of client bytes for which match returns true was delivered to the
// server. The server gets the whole chunk and acts on it; nothing that it answers reaches the client. A chunk is what
// one read from the client's socket gave, at most 32 kB: usually one write of the client. match may be called from
// several goroutines at a time and must not keep the bytes.
func (l *Link) CutAfter(match func(clientBytes []byte) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.match = match
	l.armed.Store(match != nil)
}

// Turns returns how many times the conversation turned round: how often a client sent something after the server had
// answered, or for the first time, summed over all connections so far. With latency each turn costs a round trip.
func (l *Link) Turns() int64 {
	return l.turns.Load()
}

// Bytes returns how many bytes the link has delivered in each direction so far.
func (l *Link) Bytes() (toServer, toClient int64) {
	return l.toServer.Load(), l.toClient.Load()
}

// Conns returns the number of connections that are open now.
func (l *Link) Conns() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for c := range l.conns {
		if !c.muted.Load() {
			n++
		}
	}
	return n
}

// passing says whether bytes may pass now.
func (l *Link) passing() bool {
	return l.state.Load() == linkUp
}

// held returns a channel that is closed when a stalled link changes, or nil if the link is not stalled.
func (l *Link) held() <-chan struct{} {
	if l.state.Load() != linkStalled {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state.Load() != linkStalled {
		return nil
	}
	return l.changed
}

func (l *Link) setState(state int32) {
	l.state.Store(state)
	close(l.changed)
	l.changed = make(chan struct{})
}

// cut cuts the link; the server's side of last, which may be nil, is left to finish what it was given.
func (l *Link) cut(last *conn) {
	l.mu.Lock()
	l.setState(linkCut)
	conns := l.live()
	l.mu.Unlock()
	for _, c := range conns {
		if c == last {
			c.sever()
		} else if !c.muted.Load() {
			c.close(true)
		}
	}
}

// reset closes the connections there are now, so that their clients must connect again.
func (l *Link) reset() {
	l.mu.Lock()
	conns := l.live()
	l.mu.Unlock()
	for _, c := range conns {
		c.close(true)
	}
}

func (l *Link) live() []*conn {
	conns := make([]*conn, 0, len(l.conns))
	for c := range l.conns {
		conns = append(conns, c)
	}
	return conns
}

// takeMatch says whether the link is to be cut after this chunk. It says so once.
func (l *Link) takeMatch(chunk []byte) bool {
	if !l.armed.Load() {
		return false
	}
	l.mu.Lock()
	match := l.match
	l.mu.Unlock()
	// The caller's function runs without the lock: it may use the link itself.
	if match == nil || !match(chunk) {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.match == nil {
		return false
	}
	l.match = nil
	l.armed.Store(false)
	return true
}

// join starts to carry c. It returns false if the link takes no connection now; c is then still the caller's.
func (l *Link) join(c *conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.state.Load() == linkCut {
		return false
	}
	l.conns[c] = struct{}{}
	l.goroutines.Add(2)
	go c.up.read()
	go c.down.read()
	return true
}

func (l *Link) leave(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, c)
}

// close resets all connections, refuses new ones for good and waits for the link's goroutines.
func (l *Link) close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.reset()
	l.goroutines.Wait()
}
