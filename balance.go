package flyregion

import "time"

// Balance says which of several replicas a read goes to. Replicas that cannot be reached are passed over, and of the others
// those that are known to show what the read must see come first.
type Balance string

const (
	// BalanceLocal reads from the replicas in the first of [Config.ReplicaRegions], or in this process's own region if it is
	// among them, one after the other. Those of the next region are read from while none of these can be reached. It is the
	// default.
	BalanceLocal Balance = "local"
	// BalanceRandom reads from any replica, each as likely as the others.
	BalanceRandom Balance = "random"
	// BalanceRoundRobin reads from one replica after the other.
	BalanceRoundRobin Balance = "round_robin"
	// BalanceWeighted reads from one replica after the other, evenly interleaved, and from each as often as its weight in
	// [Config.ReplicaWeights] says.
	BalanceWeighted Balance = "weighted"
	// BalanceLeastBusy takes two replicas at random and reads from the one that is expected to answer first: the number of
	// reads that use it, and one more, times its round trip. Round trips that differ by less than a millisecond count as equal.
	BalanceLeastBusy Balance = "least_busy"
)

var balances = []Balance{BalanceLocal, BalanceRandom, BalanceRoundRobin, BalanceWeighted, BalanceLeastBusy}

// Balancer is an app's own choice among replicas, for [Config.Balancer].
type Balancer interface {
	// Choose returns the index of the candidate that a read goes to. There are at least two candidates: those that can be
	// reached and, if some are known to show what the read must see, only those. The order is that of [Pool.Replicas]. Choose is
	// called for each read, by many goroutines at the same time, and the read waits for it. It must not keep candidates.
	Choose(candidates []Candidate) int
}

// Candidate is a replica that a read can go to.
type Candidate struct {
	Region  string
	Address string // host and port of the server, or the path of its socket
	// InUse is the number of connections that reads use now or wait for.
	InUse int
	// RoundTrip is how long the replica takes to answer a question, a moving average, 0 if it was not measured yet.
	RoundTrip time.Duration
	// Lag is how far the replica was behind the primary at most when it was last asked, as [Config.MaxReplicaLag] measures it. It
	// is the largest Duration if that is not known.
	Lag time.Duration
}

// maxWeight bounds a weight, so that sums of weights cannot overflow.
const maxWeight = 1_000_000
