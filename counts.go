package flyregion

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
)

// statementCounts counts statements by the server that they were sent to and why.
type statementCounts struct {
	// read and asked are the counts of a replica's statements. All others take a round trip to the primary at least, and
	// share their counters.
	read, asked stripedCount
	// others is replaced when a reason is counted for the first time, so that all other times cost no lock.
	others atomic.Pointer[map[countKey]*atomic.Int64]
	adding sync.Mutex // is held to replace others
}

type countKey struct {
	target target
	reason reason
}

// stripedCount is a counter that many cores add to at the same time. Each connection has one of its stripes, so that two
// cores seldom write to the same memory.
type stripedCount [32]struct {
	n atomic.Int64
	_ [56]byte // so that each is in a cache line of its own
}

// add counts a statement. conn is a number of its connection.
func (c *stripedCount) add(conn uint32) { c[conn%uint32(len(c))].n.Add(1) }

func (c *stripedCount) load() (n int64) {
	for i := range c {
		n += c[i].n.Load()
	}
	return n
}

// sent counts a statement. conn is a number of its connection, 0 for the primary's.
func (c *statementCounts) sent(to target, why reason, conn uint32) {
	if to == targetReplica {
		switch why {
		case becauseRead:
			c.read.add(conn)
			return
		case becauseAsked:
			c.asked.add(conn)
			return
		}
	}
	c.other(countKey{to, why}).Add(1)
}

// other returns the counter in others for key.
func (c *statementCounts) other(key countKey) *atomic.Int64 {
	if counters := c.others.Load(); counters != nil && (*counters)[key] != nil {
		return (*counters)[key]
	}
	c.adding.Lock()
	defer c.adding.Unlock()

	counters := map[countKey]*atomic.Int64{}
	if old := c.others.Load(); old != nil {
		if n := (*old)[key]; n != nil {
			return n
		}
		maps.Copy(counters, *old)
	}
	counters[key] = new(atomic.Int64)
	c.others.Store(&counters)
	return counters[key]
}

// list returns all counts but zeros, by target and reason.
func (c *statementCounts) list() (counts []StatementCount) {
	add := func(to target, why reason, n int64) {
		if n > 0 {
			counts = append(counts, StatementCount{Target: to.String(), Reason: string(why), Count: n})
		}
	}
	add(targetReplica, becauseRead, c.read.load())
	add(targetReplica, becauseAsked, c.asked.load())
	if others := c.others.Load(); others != nil {
		for key, n := range *others {
			add(key.target, key.reason, n.Load())
		}
	}
	slices.SortFunc(counts, func(a, b StatementCount) int {
		return cmp.Or(cmp.Compare(a.Target, b.Target), cmp.Compare(a.Reason, b.Reason))
	})
	return counts
}
