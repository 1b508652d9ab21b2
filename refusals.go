package flyregion

import (
	"math/rand/v2"
	"sync/atomic"

	"github.com/flyregion/flyregion/internal/sqltext"
)

// refusals remembers the texts that a replica took for writes although they look like reads, such as a call of a function
// that inserts. What it remembers is a text's shape: with literals, parameters, comments and white space left out, so
// that a statement whose values stand in its text, or that a tracing library adds a new comment to each time, is one
// entry. A read of the same shape as a write then runs on the primary as well, which is slower and never wrong; a comment
// /* flyregion:replica */ or WithReplica gets it back.
//
// It is a table of fixed size, in sets of a few entries that count how often they were asked for. A new entry takes the
// place of one that nobody asked for since it came, so however many shapes there are, those in use stay: an entry in use
// gives way only in a set that is full of such. Whoever was forgotten is refused once more. Nothing locks, and looking
// something up writes to memory only the first few times that it is found.
//
// The other way, from write to read, nothing is certain enough to be learned. That a statement did not write when the
// primary ran it says nothing of its next run, nor does it tell whether it locked, notified, drew from a sequence or
// changed its session, which are what Classify calls many a text a write for.
type refusals struct {
	any  atomic.Bool // spares the shape until there is something to find
	sets [256]refusalSet
}

// refusalSet holds shapes, each with a count in its lowest bits. 0 is a free entry.
type refusalSet [4]atomic.Uint64

// refusalCount are the bits of an entry that count. The rest is the shape.
const refusalCount = 3

func (r *refusals) contains(sql string) bool {
	if !r.any.Load() {
		return false
	}
	h := sqltext.Shape(sql)
	return r.set(h).touch(h)
}

func (r *refusals) add(sql string) {
	if sql == "" {
		return
	}
	h := sqltext.Shape(sql)
	if set := r.set(h); !set.touch(h) {
		set.insert(h)
	}
	r.any.Store(true)
}

// set returns the set that a shape belongs to. The highest bits choose it, as the lowest are not kept.
func (r *refusals) set(h uint64) *refusalSet {
	return &r.sets[h>>56]
}

// touch reports whether a shape is in the set, and counts that it was asked for. A count that gets lost because others
// change the entry at the same time is no harm.
func (s *refusalSet) touch(h uint64) bool {
	for i := range s {
		entry := s[i].Load()
		if entry == 0 || (entry^h)&^refusalCount != 0 {
			continue
		}
		if entry&refusalCount < refusalCount {
			s[i].CompareAndSwap(entry, entry+1)
		}
		return true
	}
	return false
}

// insert puts a shape in the place of one that was not asked for, with a count of 0. If there is none all counts go down,
// so that what is in use no longer leaves in the end.
func (s *refusalSet) insert(h uint64) {
	fresh := h &^ refusalCount
	if fresh == 0 {
		return // one shape in 2^62 is never remembered
	}
	// The search begins anywhere, so that no two keep taking each other's place.
	first := rand.IntN(len(s))
	for i := range s {
		way := &s[(first+i)%len(s)]
		if entry := way.Load(); entry&refusalCount == 0 && way.CompareAndSwap(entry, fresh) {
			return
		}
	}
	for i := range s {
		if entry := s[i].Load(); entry&refusalCount > 0 {
			s[i].CompareAndSwap(entry, entry-1)
		}
	}
}
