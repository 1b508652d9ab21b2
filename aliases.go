package flyregion

import "slices"

// A name may lead to one server by several addresses, as localhost does by 127.0.0.1 and ::1. Only the first of them is read
// from while it can be reached, so that the server gets no more reads than others.

// markAliases notes which replicas of a host are the same server as one before them.
func (rs *replicas) markAliases(h *replicaHost) {
	list := slices.DeleteFunc(slices.Clone(rs.list()), func(r *replica) bool { return r.host != h })
	for i, r := range list {
		var alias *replica
		if first := slices.IndexFunc(list[:i], r.sameServer); first >= 0 {
			alias = list[first]
		}
		r.aliasOf.Store(alias)
	}
}

// sameServer reports whether two replicas lead to the same server, by their latest reports. An address that has led to several
// servers does not count, such as a load balancer's.
func (r *replica) sameServer(other *replica) bool {
	a, b := r.tracker.latest.Load(), other.tracker.latest.Load()
	return a != nil && b != nil && a.server == b.server && a.system == b.system && !a.pooled && !b.pooled &&
		!r.several.Load() && !other.several.Load()
}

// isAlias reports whether reads go to the replica's server by another address. After a restart of the server that has to be
// found out anew.
func (r *replica) isAlias() bool {
	other := r.aliasOf.Load()
	return other != nil && other.health.good() && !other.left.Load() && r.sameServer(other)
}
