package flyregion

import (
	"math/rand/v2"
	"sync/atomic"
)

// Balance says which of several replicas a read goes to. Replicas that cannot be reached are passed over.
type Balance string

const (
	// BalanceLocal reads from the first of [Config.ReplicaRegions], or from this process's own region if it is among
	// them. It is the default.
	BalanceLocal Balance = "local"
	// BalanceRandom reads from any replica, each as likely as the others.
	BalanceRandom Balance = "random"
	// BalanceRoundRobin reads from one replica after the other.
	BalanceRoundRobin Balance = "round_robin"
)

var balances = []Balance{BalanceLocal, BalanceRandom, BalanceRoundRobin}

// replicas is the set of replicas that reads are spread over.
type replicas struct {
	list    []*replica // never empty, and fixed once the Pool is open; the preferred one first
	balance Balance
	next    atomic.Uint32 // counts the choices of BalanceRoundRobin
}

// choose returns the replica that the next read goes to, nil if none can be reached.
func (rs *replicas) choose() *replica {
	first := 0
	if n := len(rs.list); n > 1 {
		switch rs.balance {
		case BalanceRandom:
			first = rand.IntN(n)
		case BalanceRoundRobin:
			first = int(rs.next.Add(1)-1) % n
		}
	}
	for i := range rs.list {
		if r := rs.list[(first+i)%len(rs.list)]; r.up() {
			return r
		}
	}
	return nil
}

// in returns the replica of a region, nil if there is none.
func (rs *replicas) in(region string) *replica {
	for _, r := range rs.list {
		if r.region == region {
			return r
		}
	}
	return nil
}
