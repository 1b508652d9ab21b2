package flyregion

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// modelCluster is a cluster in TestSessionCovers. Its servers are in the order in which they were the primary.
type modelCluster struct {
	servers []*modelServer
	pools   [2]modelPool // of a role that sees the system identifier, and of one that does not
}

// modelServer is a primary and its log.
type modelServer struct {
	id           serverID
	system       uint64
	start        LSN // where its log parts from that of the primary before it
	log, flushed LSN
	wrote        LSN // covers the session's writes to this server that have returned
}

// modelPool is what a pool knows of its primary.
type modelPool struct {
	primary
	sees bool
}

// system is the system identifier of a server as the pool sees it.
func (p *modelPool) system(s *modelServer) uint64 {
	if p.sees {
		return s.system
	}
	return 0
}

// meet has a pool connect to the primary.
func (c *modelCluster) meet(p *modelPool) {
	s := c.primary()
	p.identify(&report{server: s.id, system: p.system(s), timeline: len(c.servers), position: s.flushed})
}

func (c *modelCluster) primary() *modelServer { return c.servers[len(c.servers)-1] }

// check returns an error if a read of a pool would be checked against a position that does not cover what was written.
func (c *modelCluster) check(s *Session, p *modelPool) error {
	state := p.written(s)
	if !p.covers(state) {
		return nil
	}
	known := p.identity.Load()
	wrote := false
	for _, server := range c.servers {
		switch {
		case known != nil && known.server == server.id:
			if state.position < server.wrote || wrote && state.position < server.start {
				return fmt.Errorf("the session says %+v, and %+v was written to", state, server)
			}
		case server.wrote > 0 && (known == nil || known.server < server.id):
			return fmt.Errorf("the session says %+v to a pool that knows %+v, and %+v was written to", state, known, server)
		}
		wrote = wrote || server.wrote > 0
	}
	return nil
}

// TestSessionCovers runs random writes and answers in any order against a simple model of clusters that fail over, and are
// upgraded. What a session says to a pool must never be less than what was written in it to the pool's cluster. When the
// primary has been asked, it must say enough for a replica to be checked.
func TestSessionCovers(t *testing.T) {
	for range 5000 {
		var (
			s       Session
			seed    = rand.Uint64()
			r       = rand.New(rand.NewPCG(seed, 0))
			started serverID
			answers []func()
		)
		start := func(from *modelServer, system uint64) *modelServer {
			started++
			at := LSN(100 + r.IntN(100))
			if from != nil {
				at = from.flushed - LSN(r.IntN(20))
			}
			return &modelServer{id: started, system: system, start: at, log: at, flushed: at}
		}
		clusters := make([]*modelCluster, 1+r.IntN(3))
		if r.IntN(4) == 0 {
			clusters = make([]*modelCluster, maxClusters-1+r.IntN(4))
		}
		for i := range clusters {
			clusters[i] = &modelCluster{servers: []*modelServer{start(nil, uint64(1+i))}}
			clusters[i].pools[0].sees = true
		}
		for range r.IntN(30) + 2*len(clusters) {
			c := clusters[r.IntN(len(clusters))]
			pool, server := &c.pools[0], c.primary()
			if r.IntN(6) == 0 {
				pool = &c.pools[1]
			}
			system := pool.system(server)
			asked := func() position {
				return position{origin: server.id, system: system, asked: clock.Add(1), flush: server.flushed, insert: server.log}
			}
			grow := func() { server.log += LSN(1 + r.IntN(10)) }
			switch r.IntN(12) {
			case 0, 1: // a write that nobody asked about, which may be asynchronous
				c.meet(pool)
				if grow(); r.IntN(2) == 0 {
					server.flushed = server.log
				}
				server.wrote = server.log
				s.wroteUnknown(system, 0)
			case 2, 3: // somebody asks, and hears of it later
				c.meet(pool)
				p := asked()
				answers = append(answers, func() { s.wrote(p) })
			case 4: // a synchronous write whose position comes along, later
				c.meet(pool)
				asked := clock.Add(1)
				grow()
				server.flushed = server.log
				at := server.log
				answers = append(answers, func() {
					s.wrote(position{origin: server.id, system: system, asked: asked, flush: at, insert: at})
					server.wrote = max(server.wrote, at)
				})
			case 5, 6: // or at once
				c.meet(pool)
				grow()
				server.flushed, server.wrote = server.log, server.log
				s.wrote(asked())
			case 7, 8: // an answer comes
				if len(answers) > 0 {
					i := r.IntN(len(answers))
					answers[i]()
					answers = append(answers[:i], answers[i+1:]...)
				}
			case 9: // another server becomes the primary; the pools do not hear of it yet
				c.servers = append(c.servers, start(server, server.system))
			case 10: // the pools are told of an upgrade, or that they had been misled about it
				if r.IntN(3) == 0 {
					c.servers = append(c.servers, start(server, server.system+1000))
					c.meet(&c.pools[0])
					c.meet(&c.pools[1])
				}
			case 11: // a position was not good enough
				s.outdate(pool.written(&s))
			}
			for _, c := range clusters {
				for i := range c.pools {
					if err := c.check(&s, &c.pools[i]); err != nil {
						t.Fatalf("seed %d: %v", seed, err)
					}
				}
			}
		}
		for _, c := range clusters {
			for i := range c.pools {
				pool, server := &c.pools[i], c.primary()
				c.meet(pool)
				s.wrote(position{origin: server.id, system: pool.system(server), asked: clock.Add(1), flush: server.flushed, insert: server.log})
				if state := pool.written(&s); !pool.covers(state) {
					t.Fatalf("seed %d: the primary was asked, and the session still says %+v", seed, state)
				}
				if err := c.check(&s, pool); err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
			}
		}
	}
}
