package pgcluster

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/jackc/pgx/v5"
)

// Promote makes a replica, named as for Server, the leader and returns when it can be written to. From then on the :5432 ports
// lead to it, and the other replicas stream from it, as soon as their links let them.
//
// A leader that is running is shut down first, with all it has written sent to the replicas that are connected, and comes
// back as a replica. The replica to promote is waited for until it is connected and has what the leader has flushed by then,
// unless its link is cut or stalled. A leader that is not running stays down; what it had not yet sent is lost. Start starts
// it as a replica, which cannot follow the new leader if it wrote anything the other did not get: it then shows what it had.
func (c *Cluster) Promote(ctx context.Context, region string) error {
	c.promoting.Lock()
	defer c.promoting.Unlock()
	next, old, err := c.candidate(region)
	if err != nil || next == old {
		return err
	}
	wasRunning := old.Running()
	if wasRunning {
		if err := next.waitForLeader(ctx); err != nil {
			return err
		}
		if err := old.Stop(ctx); err != nil {
			return err
		}
	}
	if err := next.promote(ctx); err != nil {
		if wasRunning {
			err = errors.Join(err, old.Start(context.WithoutCancel(ctx))) // it is still the leader
		}
		return err
	}
	if err := old.follow(); err != nil {
		return err
	}
	c.mu.Lock()
	c.leader, next.follows = next, nil
	c.mu.Unlock()
	for _, s := range c.servers {
		s.replication.reset() // they connect again, and get to the new leader
	}
	if wasRunning {
		return old.Start(ctx)
	}
	return nil
}

// PromoteBeside makes the replica in a region the leader as Promote does, but leaves the old leader as it is: running, and
// writable unless somebody makes it read-only. From then on each of them writes a log of its own. Replicas that stream from
// the old leader go on to do so until Follow sends them elsewhere, and connections to it stay. It becomes a replica of the
// new one when it is started the next time.
//
// The replica to promote is waited for as by Promote.
func (c *Cluster) PromoteBeside(ctx context.Context, region string) error {
	c.promoting.Lock()
	defer c.promoting.Unlock()
	next, old, err := c.candidate(region)
	if err != nil || next == old {
		return err
	}
	if err := next.waitForLeader(ctx); err != nil {
		return err
	}
	c.mu.Lock()
	for _, s := range c.servers {
		if s != next && s != old && s.follows == nil {
			s.follows = old
		}
	}
	c.mu.Unlock()
	if err := next.promote(ctx); err != nil {
		return err
	}
	if err := old.follow(); err != nil {
		return err
	}
	c.mu.Lock()
	c.leader, next.follows = next, nil
	c.mu.Unlock()
	return nil
}

// candidate returns the server to promote and the leader.
func (c *Cluster) candidate(region string) (next, old *Server, err error) {
	next, old = c.Server(region), c.Leader()
	if next == nil {
		return nil, nil, fmt.Errorf("pgcluster: promote: there is no server in %q", region)
	}
	return next, old, nil
}

// waitForLeader waits until the replica is connected to the leader and has what the leader has flushed by now. It does not
// wait if one of the two does not run, or if nothing passes between them.
//
// PostgreSQL does not survive a promotion in the midst of a change to the leader's timeline. The standby has then received
// only a part of the segment in which that timeline began, and its startup process panics: "invalid magic number".
func (s *Server) waitForLeader(ctx context.Context) error {
	leader := s.cluster.Leader()
	if s.source() != leader || !leader.Running() || !s.Running() || !s.replication.passing() {
		return nil
	}
	if err := s.cluster.waitStreaming(ctx, s); err != nil {
		return fmt.Errorf("pgcluster: promote %s: it does not stream from the leader: %w", s.name, err)
	}
	return nil
}

// promote ends the server's recovery.
func (s *Server) promote(ctx context.Context) error {
	before, _ := s.Log()
	// The session does not wait in pg_promote, where replay could cancel it.
	err := s.Exec(ctx, "select pg_promote(false)")
	if err == nil {
		err = s.connected(ctx, func(conn *pgx.Conn) error {
			return pollQuery(ctx, conn, "select not pg_is_in_recovery()")
		})
	}
	if err != nil {
		return fmt.Errorf("pgcluster: promote %s: %w", s.name, s.withLog(err, before))
	}
	return nil
}

// Secede makes the replica a primary of its own without making it the leader, as somebody does who promotes the wrong
// server. The replica is waited for as by Promote. Nothing leads to it but what led to it as a replica. Restore makes it a
// replica again.
func (s *Server) Secede(ctx context.Context) error {
	if s.source() == nil {
		return fmt.Errorf("pgcluster: server %s is the leader", s.name)
	}
	if err := s.waitForLeader(ctx); err != nil {
		return err
	}
	return s.promote(ctx)
}

// Follow makes the replica stream from the server in a region, which may be a replica itself or a leader that was
// replaced. An empty region stands for the leader, whichever it is. A later Promote does not change it, unless it is the
// replica itself that is promoted.
func (s *Server) Follow(region string) error {
	var follows *Server
	if region != "" {
		follows = s.cluster.Server(region)
		if follows == nil || follows == s {
			return fmt.Errorf("pgcluster: %s cannot follow %q", s.name, region)
		}
	}
	s.cluster.mu.Lock()
	s.follows = follows
	s.cluster.mu.Unlock()
	s.replication.reset()
	return nil
}

// source returns the server that this one streams from, nil if it is the leader.
func (s *Server) source() *Server {
	s.cluster.mu.Lock()
	defer s.cluster.mu.Unlock()
	switch {
	case s == s.cluster.leader:
		return nil
	case s.follows != nil:
		return s.follows
	default:
		return s.cluster.leader
	}
}

func portOf(addr net.Addr) string {
	_, port, _ := net.SplitHostPort(addr.String())
	return port
}
