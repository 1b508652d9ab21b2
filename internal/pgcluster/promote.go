package pgcluster

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/jackc/pgx/v5"
)

// Promote makes the replica in a region the leader and returns when it can be written to. From then on the :5432 ports
// lead to it, and the other replicas stream from it, as soon as their links let them.
//
// A leader that is running is shut down first, with all it has written sent to the replicas that are connected, and comes
// back as a replica. A leader that is not running stays down; what it had not yet sent is lost. Start starts it as a
// replica, which cannot follow the new leader if it wrote anything the other did not get: it then shows what it had.
func (c *Cluster) Promote(ctx context.Context, region string) error {
	c.promoting.Lock()
	defer c.promoting.Unlock()
	next, old := c.Server(region), c.Leader()
	if next == nil {
		return fmt.Errorf("pgcluster: promote: there is no server in %q", region)
	}
	if next == old {
		return nil
	}
	wasRunning := old.Running()
	if wasRunning {
		if err := old.Stop(ctx); err != nil {
			return err
		}
	}
	err := next.connected(ctx, func(conn *pgx.Conn) error {
		var done bool
		if err := conn.QueryRow(ctx, "select pg_promote(true, 3600)").Scan(&done); err != nil {
			return err
		}
		if !done {
			return errors.New("pg_promote gave up")
		}
		return nil
	})
	if err != nil {
		err = fmt.Errorf("pgcluster: promote %s: %w", region, err)
		if wasRunning {
			err = errors.Join(err, old.Start(context.WithoutCancel(ctx))) // it is still the leader
		}
		return err
	}
	if err := old.follow(); err != nil {
		return err
	}
	c.mu.Lock()
	c.leader = next
	c.mu.Unlock()
	for _, s := range c.servers {
		s.replication.reset() // they connect again, and get to the new leader
	}
	if wasRunning {
		return old.Start(ctx)
	}
	return nil
}

func portOf(addr net.Addr) string {
	_, port, _ := net.SplitHostPort(addr.String())
	return port
}
