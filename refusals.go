package flyregion

import (
	"hash/maphash"
	"sync/atomic"
)

// refusals remembers the texts that a replica took for writes although they look like reads, such as a call of a function
// that inserts. It remembers hashes in a table of fixed size in which the newer text takes the place of the older, so
// that however many texts there are it neither grows nor locks. Whoever was forgotten is refused once more.
type refusals struct {
	any   atomic.Bool // spares the hash until there is something to find
	slots [1024]atomic.Uint64
}

var refusalSeed = maphash.MakeSeed()

func (r *refusals) contains(sql string) bool {
	if !r.any.Load() {
		return false
	}
	h := maphash.String(refusalSeed, sql)
	return r.slots[h%uint64(len(r.slots))].Load() == h
}

func (r *refusals) add(sql string) {
	if sql == "" {
		return
	}
	h := maphash.String(refusalSeed, sql)
	r.slots[h%uint64(len(r.slots))].Store(h)
	r.any.Store(true)
}
