package flyregion

import (
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"
)

// Balance says which of several replicas a read goes to. Replicas that cannot be reached are passed over.
type Balance string

const (
	// BalanceLocal reads from the replicas in the first of [Config.ReplicaRegions], or in this process's own region if it is
	// among them. It is the default.
	BalanceLocal Balance = "local"
	// BalanceRandom reads from any replica, each as likely as the others.
	BalanceRandom Balance = "random"
	// BalanceRoundRobin reads from one replica after the other.
	BalanceRoundRobin Balance = "round_robin"
)

var balances = []Balance{BalanceLocal, BalanceRandom, BalanceRoundRobin}

// replicas is the set of replicas that reads are spread over.
type replicas struct {
	current   atomic.Pointer[replicaSet]
	discovery *discovery
	balance   Balance
	next      atomic.Uint32 // counts the choices of BalanceRoundRobin
}

// replicaSet has the replicas at one time. It is immutable.
type replicaSet struct {
	list []*replica // the preferred ones first; never empty once the Pool is open
	// groups has the same replicas. Those of a group are as good as each other, and are read from only if none of the groups
	// before can be reached.
	groups [][]*replica
}

// list returns the replicas, the preferred ones first. It must not be changed.
func (rs *replicas) list() []*replica {
	if set := rs.current.Load(); set != nil {
		return set.list
	}
	return nil
}

// store replaces the replicas by those of list, whose reserves come last. The discovery's mu must be held.
func (rs *replicas) store(list []*replica) {
	if f := rs.discovery.regions; f != nil {
		f.order(list)
	}
	set := &replicaSet{list: list}
	begin := 0
	for i, r := range list {
		if i == len(list)-1 || r.host.reserve != list[i+1].host.reserve || rs.balance == BalanceLocal && r.region != list[i+1].region {
			set.groups = append(set.groups, list[begin:i+1])
			begin = i + 1
		}
	}
	rs.current.Store(set)
}

// choose returns the replica that the next read goes to, nil if none can be reached that is not left alone. If it can, it
// returns one that is known to show what state covers. Those of tried have been tried in vain.
func (rs *replicas) choose(rt *route, state sessionState, tried []*replica) *replica {
	var spare *replica
	for _, group := range rs.current.Load().groups {
		first := 0
		if n := len(group); n > 1 {
			if rs.balance == BalanceRoundRobin {
				first = int(rs.next.Add(1)-1) % n
			} else {
				first = rand.IntN(n)
			}
		}
		var waits *replica
		for i := range group {
			r := group[(first+i)%len(group)]
			switch {
			case tried != nil && slices.Contains(tried, r) || !r.up() || r.leftAlone(rt):
			case r.notPreferred():
				if spare == nil {
					spare = r
				}
			case len(group) == 1 || r.shows(rt, state):
				return r
			default:
				// Nobody else may ask it, as reads go to those that show more.
				r.tracker.checkInBackground(time.Now())
				if waits == nil {
					waits = r
				}
			}
		}
		if waits != nil {
			return waits
		}
	}
	return spare
}

// hasPreferred reports whether there is a better replica to try than r, which is not preferred.
func (rs *replicas) hasPreferred(r *replica, tried []*replica) bool {
	other := rs.choose(&route{}, sessionState{}, append(slices.Clone(tried), r))
	return other != nil && !other.notPreferred()
}

// alike returns the replicas that a read may use in place of r, as they are in its group and can be reached. r is the first.
func (rs *replicas) alike(r *replica) []*replica {
	alike := []*replica{r}
	for _, group := range rs.current.Load().groups {
		if len(group) == 1 || !slices.Contains(group, r) {
			continue
		}
		for _, other := range group {
			if other != r && other.up() && !other.leftAlone(&route{}) && !other.notPreferred() {
				alike = append(alike, other)
			}
		}
	}
	return alike
}

// readFrom returns the replicas that reads go to now: those of the first group that can be reached, or of the first one if
// none can.
func (rs *replicas) readFrom() []*replica {
	groups := rs.current.Load().groups
	for _, group := range groups {
		good := slices.DeleteFunc(slices.Clone(group), func(r *replica) bool { return !r.health.good() || r.notPreferred() })
		if len(good) > 0 {
			return good
		}
	}
	return slices.Clone(groups[0])
}

// inUse returns the replicas without the reserves that were never needed.
func (rs *replicas) inUse() []*replica {
	return slices.DeleteFunc(slices.Clone(rs.list()), func(r *replica) bool { return r.host.reserve && r.address.Load() == nil })
}

// first returns the replica that reads go to first, without regard to what they must see.
func (rs *replicas) first() *replica {
	list := rs.list()
	if i := slices.IndexFunc(list, func(r *replica) bool { return r.health.good() }); i >= 0 {
		return list[i]
	}
	return list[0]
}

// in returns a replica of a region, nil if there is none.
func (rs *replicas) in(region string) (found *replica) {
	for _, r := range rs.list() {
		if r.region == region && (found == nil || r.health.good() && !found.health.good()) {
			found = r
		}
	}
	return found
}

// whyNone returns the error because of which no replica but reserves is chosen, and the region of that replica.
func (rs *replicas) whyNone() (region string, cause error) {
	for _, r := range rs.list() {
		if r.health.good() && r.tracker.staleness.isTooFar() {
			return r.region, r.tooFarError()
		}
	}
	first := rs.list()[0]
	return first.region, first.connects.lastError()
}

// shows reports whether the replica is known to show what a read has to see: what state covers, or enough for WithMaxLag.
func (r *replica) shows(rt *route, state sessionState) bool {
	if state.position == 0 {
		return true
	}
	latest := r.tracker.latest.Load()
	return latest != nil && (r.tracker.verdict(latest, state) == caughtUp ||
		rt.wants == wantsRecent && r.tracker.showsUntil(latest, rt.maxLag, time.Now()))
}

// notPreferred reports whether the replica is no standby, where standbys are preferred.
func (r *replica) notPreferred() bool {
	if !r.host.prefersStandby {
		return false
	}
	latest := r.tracker.latest.Load()
	return latest != nil && !latest.recovering
}
