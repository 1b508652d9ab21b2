package flyregion

import (
	"slices"
	"sync/atomic"
	"time"
)

// replicas is the set of replicas that reads are spread over.
type replicas struct {
	current atomic.Pointer[replicaSet]
	order   func([]*replica) // sorts them when they change; nil to leave them as they are; the discovery's mu guards it
	balance balancer
}

// replicaSet has the replicas at one time. It is immutable.
type replicaSet struct {
	list []*replica // the preferred ones first; never empty once the Pool is open
	// groups has the same replicas, but for those of weight 0. Those of a group are as good as each other, and are read from
	// only if none of the groups before can be reached.
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
	if rs.order != nil {
		rs.order(list)
	}
	set := &replicaSet{list: list}
	begin := 0
	read := slices.DeleteFunc(slices.Clone(list), func(r *replica) bool { return r.host.weight == 0 })
	for i, r := range read {
		if i == len(read)-1 || r.host.reserve != read[i+1].host.reserve || rs.balance.local() && r.region != read[i+1].region {
			set.groups = append(set.groups, read[begin:i+1])
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
		if r := rs.balance.guess(group); r != nil && fits(rt, r, tried) && !r.isSpare() && (len(group) == 1 || r.shows(rt, state)) {
			return r
		}
		r, other := rs.chooseOf(rt, group, state, tried)
		if r != nil {
			return r
		}
		if spare == nil {
			spare = other
		}
	}
	return spare
}

// chooseOf is choose for one group. spare is one that isSpare, if there is no other.
func (rs *replicas) chooseOf(rt *route, group []*replica, state sessionState, tried []*replica) (chosen, spare *replica) {
	var room [64]*replica // so that a choice among a few replicas allocates nothing
	fit := room[:0]
	for _, r := range group {
		switch {
		case !fits(rt, r, tried):
		case r.isSpare():
			if spare == nil || !r.guard.asking.Load() {
				spare = r
			}
		default:
			fit = append(fit, r)
		}
	}
	if len(fit) == 0 {
		return nil, spare
	}
	show := 0
	for _, r := range fit {
		if r.shows(rt, state) {
			fit[show] = r
			show++
		} else if len(group) > 1 {
			r.tracker.checkInBackground() // nobody else may ask it, as reads go to those that show more
		}
	}
	if show > 0 {
		fit = fit[:show]
	}
	return rs.balance.pick(fit), nil
}

// fits reports whether a replica can be reached, is no alias and not left alone, and is not one of those that were tried.
func fits(rt *route, r *replica, tried []*replica) bool {
	return (tried == nil || !slices.Contains(tried, r)) && r.up() && !r.isAlias() && !r.leftAlone(rt)
}

// hasPreferred reports whether choose has a better replica to try than one that is not preferred.
func (rs *replicas) hasPreferred(rt *route, tried []*replica) bool {
	return slices.ContainsFunc(rs.current.Load().groups, func(group []*replica) bool {
		return slices.ContainsFunc(group, func(r *replica) bool { return fits(rt, r, tried) && !r.isSpare() })
	})
}

// farBehind reports whether replicas are left alone because they are too far behind.
func (rs *replicas) farBehind() bool {
	return slices.ContainsFunc(rs.list(), func(r *replica) bool { return r.health.good() && r.tracker.staleness.isTooFar() })
}

// alike returns the replicas that a read may use in place of r, as they are in its group, can be reached and have not lost the
// read. r is the first.
func (rs *replicas) alike(rt *route, r *replica) []*replica {
	alike := []*replica{r}
	for _, group := range rs.current.Load().groups {
		if len(group) == 1 || !slices.Contains(group, r) {
			continue
		}
		for _, other := range group {
			if other != r && !slices.Contains(rt.lost.replicas, other) && other.up() && !other.isAlias() && !other.leftAlone(rt) && !other.notPreferred() {
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
		good := slices.DeleteFunc(slices.Clone(group), func(r *replica) bool { return !r.health.good() || r.isAlias() || r.notPreferred() || r.unneeded() })
		if len(good) > 0 {
			return good
		}
	}
	if len(groups) == 0 {
		return nil // all have weight 0
	}
	return slices.Clone(groups[0])
}

// inUse returns the replicas without the reserves that were never needed.
func (rs *replicas) inUse() []*replica {
	return slices.DeleteFunc(slices.Clone(rs.list()), (*replica).unneeded)
}

// reserves returns the replicas that are read from only if none of the others can be reached.
func (rs *replicas) reserves() []*replica {
	return slices.DeleteFunc(slices.Clone(rs.list()), func(r *replica) bool { return !r.host.reserve })
}

// unneeded reports whether the replica is a reserve that no read has ever needed, or that was not found.
func (r *replica) unneeded() bool { return r.host.reserve && r.address.Load() == nil }

// preferred returns the replica that is read from before all others if it can be.
func (rs *replicas) preferred() *replica {
	list := rs.list()
	return list[max(0, slices.IndexFunc(list, func(r *replica) bool { return r.host.weight > 0 && !r.host.reserve }))]
}

// first returns the replica that reads go to first, without regard to what they must see.
func (rs *replicas) first() *replica {
	list := rs.list()
	for _, fit := range []func(*replica) bool{
		func(r *replica) bool { return r.host.weight > 0 && r.health.good() && !r.unneeded() },
		func(r *replica) bool { return r.host.weight > 0 },
	} {
		if i := slices.IndexFunc(list, fit); i >= 0 {
			return list[i]
		}
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
	o := r.tracker.streamed.Load()
	return o != nil && (r.tracker.verdict(o, state) == caughtUp || rt.wants == wantsRecent && r.tracker.showsUntil(o, rt.maxLag, time.Now()))
}

// isSpare reports whether reads go to the replica only if there is no other: it is not preferred, or it has not answered for a
// while and is asked whether it still does.
func (r *replica) isSpare() bool { return r.notPreferred() || r.guard.asking.Load() }

// notPreferred reports whether the replica is no standby, where standbys are preferred.
func (r *replica) notPreferred() bool {
	if !r.host.prefersStandby {
		return false
	}
	latest := r.tracker.latest.Load()
	return latest != nil && !latest.recovering
}
