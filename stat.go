package flyregion

import (
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Stat is a snapshot of a [Pool]'s statistics. It has the methods of [pgxpool.Stat], which add up what the pools of all
// servers say. Cumulative counts include those of replicas that the Pool has let go, so that they never fall. [Stat.Primary]
// and [Stat.Replica] tell servers apart, and [Pool.Replicas] has the statistics of each replica.
type Stat struct {
	primary    *pgxpool.Stat
	replicas   []replicaStat
	leaving    []*pgxpool.Stat // of replicas that were let go and have connections in use
	left       pastCounts
	statements []StatementCount
	failures   []ConnectFailure
	mistakes   int64
}

type replicaStat struct {
	region    string
	reachable bool
	stat      *pgxpool.Stat
}

// pastCounts are the cumulative counts of replicas that were let go.
type pastCounts struct {
	acquires, canceledAcquires, emptyAcquires, newConns, maxLifetimeDestroys, maxIdleDestroys int64

	acquireDuration, emptyAcquireWait time.Duration
}

// add adds the counts of a closed pool.
func (c *pastCounts) add(s *pgxpool.Stat) {
	c.acquires += s.AcquireCount()
	c.canceledAcquires += s.CanceledAcquireCount()
	c.emptyAcquires += s.EmptyAcquireCount()
	c.newConns += s.NewConnsCount()
	c.maxLifetimeDestroys += s.MaxLifetimeDestroyCount()
	c.maxIdleDestroys += s.MaxIdleDestroyCount()
	c.acquireDuration += s.AcquireDuration()
	c.emptyAcquireWait += s.EmptyAcquireWaitTime()
}

// Primary returns the statistics of the primary's pool.
func (s *Stat) Primary() *pgxpool.Stat { return s.primary }

// Replica returns the statistics of the pool that [Pool.ReplicaIn] returns for a region, nil if the Pool does not read from
// that region. Other replicas in the region have statistics of their own, in [Pool.Replicas].
func (s *Stat) Replica(region string) *pgxpool.Stat {
	var found *replicaStat
	for i := range s.replicas {
		r := &s.replicas[i]
		if r.region == region && (found == nil || r.reachable && !found.reachable) {
			found = r
		}
	}
	if found == nil {
		return nil
	}
	return found.stat
}

// StatementCount is how many statements were sent to the primary or to a replica for one reason.
type StatementCount struct {
	Target string // "primary" or "replica"
	Reason string // why they were sent there, such as "read", "write" or "replica_lag": the package's documentation lists all
	Count  int64
}

// Statements returns how many statements, batches and transactions the Pool has sent, ordered by target and reason. A
// healthy pool shows mostly {replica read}. What is counted for the primary with a reason that begins with "replica_" could
// have run on a replica; [Stat.ConnectFailures] and the spans flyregion.forward say why.
//
// The metric flyregion.statements counts the same. A read that has moved from a replica to the primary counts for both. What
// runs within a transaction, on a connection from [Pool.Acquire] or through [Pool.Primary] or [Pool.Replica] is not counted,
// but Acquire under [WithReplica] itself counts as one.
// Where the Pool is one plain pgxpool it counts nothing, and Statements returns nil.
func (s *Stat) Statements() []StatementCount { return slices.Clone(s.statements) }

// ConnectFailures returns, for each server that ever could not be reached, the latest failure: first the primary's, then
// those of the replicas, in the order in which they are read from. It says why all reads run on the primary: a host that is
// not found or does not answer, a refused login, a session that is not read-only, a server of another cluster. A replica also
// counts as not reached if all of its connections were in use for [Config.MaxReplicaWait]. A failure stays until the next
// one, and says when the server was reached again. Failures of connections that pgxpool opens in advance
// ([pgxpool.Config].MinConns), or that the app itself acquires from [Pool.Replica], are not noted.
//
// Where the Pool is one plain pgxpool, ConnectFailures returns nil: pgxpool returns each error to the caller who has asked
// for the connection.
func (s *Stat) ConnectFailures() []ConnectFailure { return slices.Clone(s.failures) }

// BalancerMistakes returns how often [Config.Balancer] panicked or returned no index of a candidate. Balance has chosen then.
func (s *Stat) BalancerMistakes() int64 { return s.mistakes }

func sum[T int32 | int64 | time.Duration](s *Stat, of func(*pgxpool.Stat) T) T {
	total := of(s.primary)
	for _, r := range s.replicas {
		total += of(r.stat)
	}
	for _, stat := range s.leaving {
		total += of(stat)
	}
	return total
}

// AcquireCount is the cumulative count of successful acquires. See [pgxpool.Stat.AcquireCount].
func (s *Stat) AcquireCount() int64 { return s.left.acquires + sum(s, (*pgxpool.Stat).AcquireCount) }

// AcquireDuration is the total duration of all successful acquires. See [pgxpool.Stat.AcquireDuration].
func (s *Stat) AcquireDuration() time.Duration {
	return s.left.acquireDuration + sum(s, (*pgxpool.Stat).AcquireDuration)
}

// AcquiredConns is the number of connections that are in use. See [pgxpool.Stat.AcquiredConns].
func (s *Stat) AcquiredConns() int32 { return sum(s, (*pgxpool.Stat).AcquiredConns) }

// CanceledAcquireCount is the cumulative count of acquires that a context canceled. See [pgxpool.Stat.CanceledAcquireCount].
func (s *Stat) CanceledAcquireCount() int64 {
	return s.left.canceledAcquires + sum(s, (*pgxpool.Stat).CanceledAcquireCount)
}

// ConstructingConns is the number of connections that are being made. See [pgxpool.Stat.ConstructingConns].
func (s *Stat) ConstructingConns() int32 { return sum(s, (*pgxpool.Stat).ConstructingConns) }

// EmptyAcquireCount is the cumulative count of successful acquires that had to wait for a connection. See [pgxpool.Stat.EmptyAcquireCount].
func (s *Stat) EmptyAcquireCount() int64 {
	return s.left.emptyAcquires + sum(s, (*pgxpool.Stat).EmptyAcquireCount)
}

// IdleConns is the number of idle connections. See [pgxpool.Stat.IdleConns].
func (s *Stat) IdleConns() int32 { return sum(s, (*pgxpool.Stat).IdleConns) }

// MaxConns is the largest number of connections. See [pgxpool.Stat.MaxConns].
func (s *Stat) MaxConns() int32 { return sum(s, (*pgxpool.Stat).MaxConns) }

// TotalConns is the number of connections, in whatever state. See [pgxpool.Stat.TotalConns].
func (s *Stat) TotalConns() int32 { return sum(s, (*pgxpool.Stat).TotalConns) }

// NewConnsCount is the cumulative count of connections opened. See [pgxpool.Stat.NewConnsCount].
func (s *Stat) NewConnsCount() int64 { return s.left.newConns + sum(s, (*pgxpool.Stat).NewConnsCount) }

// MaxLifetimeDestroyCount is the cumulative count of connections closed for their age. See [pgxpool.Stat.MaxLifetimeDestroyCount].
func (s *Stat) MaxLifetimeDestroyCount() int64 {
	return s.left.maxLifetimeDestroys + sum(s, (*pgxpool.Stat).MaxLifetimeDestroyCount)
}

// MaxIdleDestroyCount is the cumulative count of connections closed for being idle. See [pgxpool.Stat.MaxIdleDestroyCount].
func (s *Stat) MaxIdleDestroyCount() int64 {
	return s.left.maxIdleDestroys + sum(s, (*pgxpool.Stat).MaxIdleDestroyCount)
}

// EmptyAcquireWaitTime is the cumulative time that successful acquires waited for a connection. See [pgxpool.Stat.EmptyAcquireWaitTime].
func (s *Stat) EmptyAcquireWaitTime() time.Duration {
	return s.left.emptyAcquireWait + sum(s, (*pgxpool.Stat).EmptyAcquireWaitTime)
}
