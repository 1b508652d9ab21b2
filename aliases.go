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
