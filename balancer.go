package flyregion

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// balancer chooses among replicas that are as good as each other.
type balancer struct {
	kind Balance
	own  Balancer // nil if the app has none

	turn     atomic.Uint32 // counts the choices of those who take turns
	mistakes atomic.Int64  // wrong answers of own

	mu sync.Mutex // guards the credit of all replicas
}

// local reports whether replicas of a farther region are read from only if there is no other.
func (b *balancer) local() bool { return b.kind == BalanceLocal && b.own == nil }

// guess returns the replica of a group that a read goes to if it can, nil where that takes a look at all of them.
func (b *balancer) guess(group []*replica) *replica {
	switch n := len(group); {
	case n == 1:
		return group[0]
	case b.own != nil || b.kind == BalanceWeighted:
		return nil
	case b.kind == BalanceRandom:
		return group[rand.IntN(n)]
	case b.kind == BalanceLeastBusy:
		return leastBusy(group)
	default:
		return group[b.next(n)]
	}
}

// pick returns the replica that a read goes to. among are those of a group that it can go to, at least one.
func (b *balancer) pick(among []*replica) *replica {
	if len(among) == 1 {
		return among[0]
	}
	if b.own != nil {
		if i, ok := b.ask(among); ok {
			return among[i]
		}
		b.mistakes.Add(1)
	}
	switch b.kind {
	case BalanceWeighted:
		return b.weighted(among)
	case BalanceLeastBusy:
		return leastBusy(among)
	case BalanceRandom:
		return among[rand.IntN(len(among))]
	}
	if b.own != nil {
		return among[b.next(len(among))]
	}
	// The one whose turn it was cannot be read from. A turn among the others would favour some of them.
	return among[rand.IntN(len(among))]
}

// next returns whose turn it is among n.
func (b *balancer) next(n int) int { return int((b.turn.Add(1) - 1) % uint32(n)) }

// ask asks the app's Balancer. It reports false if that panics or returns no index of among.
func (b *balancer) ask(among []*replica) (i int, ok bool) {
	candidates := make([]Candidate, len(among))
	for i, r := range among {
		candidates[i] = r.candidate()
	}
	defer func() {
		if recover() != nil {
			ok = false
		}
	}()
	i = b.own.Choose(candidates)
	return i, i >= 0 && i < len(among)
}

// weighted takes turns. At each choice a replica gets a credit of its weight, and the one with the most credit pays for all.
func (b *balancer) weighted(among []*replica) (best *replica) {
	b.mu.Lock()
	defer b.mu.Unlock()

	total := 0
	for _, r := range among {
		r.credit += r.host.weight
		total += r.host.weight
		if best == nil || r.credit > best.credit {
			best = r
		}
	}
	best.credit -= total
	return best
}

// sameRoundTrip is the difference below which two round trips count as equal: those within a region differ by less.
const sameRoundTrip = time.Millisecond

// leastBusy returns the better one of two replicas that are chosen at random.
func leastBusy(among []*replica) *replica {
	i := rand.IntN(len(among))
	j := rand.IntN(len(among) - 1)
	if j >= i {
		j++
	}
	a, b := among[i], among[j]
	atA, atB := a.tracker.fastest.shortest(), b.tracker.fastest.shortest()
	if atA == 0 || atB == 0 || (atA-atB).Abs() < sameRoundTrip {
		atA, atB = 1, 1 // one that was hardly measured yet counts as near as the other
	}
	if time.Duration(b.used.Load()+1)*atB < time.Duration(a.used.Load()+1)*atA {
		return b
	}
	return a
}

// candidate is r as an app's Balancer sees it.
func (r *replica) candidate() Candidate {
	return Candidate{
		Region:    r.region,
		Address:   r.endpoint(),
		InUse:     int(r.used.Load()),
		RoundTrip: r.tracker.roundTrip.average(),
		Lag:       r.tracker.currentLag(),
	}
}
