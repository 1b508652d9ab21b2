package flyregion

import (
	"math"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// refusals remembers the texts that a replica took for writes although they look like reads, such as a call of a function
// that pretends to read only. What it remembers is a text's shape: with literals, parameters, comments and white space
// left out, so that a statement whose values stand in its text, or that a tracing library adds a new comment to each
// time, is one entry. A read of the same shape as a write runs on the primary as well, which is slower and never wrong.
// So that it comes back, the replica is tried again now and then: the entry goes when the replica runs the text, and the
// pause before the next try grows each time that it refuses.
//
// It is a table of fixed size, in sets of a few entries that count how often they were asked for. A new entry takes the
// place of one that nobody asked for since it came, so however many shapes there are, those in use stay: an entry in use
// gives way only in a set that is full of such. Whoever was forgotten is refused once more. Nothing locks, and looking
// something up writes to memory only the first few times that it is found.
type refusals struct {
	any  atomic.Bool // spares the shape until there is something to find
	sets [256]refusalSet
}

type refusalSet [4]refusal

// refusal is an entry. Its two parts do not change together: who comes in between sees the time of another shape, which
// makes for a try more or less.
type refusal struct {
	shape atomic.Uint64 // with a count in its lowest bits; 0 if the entry is free
	retry atomic.Int64  // when the replica is tried again, in nanoseconds since 1970, with the pause in its lowest bits
}

const (
	// refusalCount are the bits of a shape that count. The rest is the shape.
	refusalCount = 3
	// retryPause are the bits of a time that say how long the pause before it was, as a power of two of minRetryPause.
	retryPause    = 15
	minRetryPause = time.Second
	maxRetryPause = 8 // as such a power: about four minutes
	neverRetry    = math.MaxInt64
)

// retryAfter returns the time of the next try, and the pause until then.
func retryAfter(now time.Time, pause int64) int64 {
	return now.Add(minRetryPause<<pause).UnixNano()&^retryPause | pause
}

// refuses reports whether a replica is expected to refuse a shape. If not, although it has refused it before, the caller
// is the one who tries.
func (r *refusals) refuses(h uint64) (refused, try bool) {
	entry := r.set(h).find(h)
	if entry == nil {
		return false, false
	}
	retry, now := entry.retry.Load(), time.Now()
	if now.UnixNano() < retry || !entry.retry.CompareAndSwap(retry, retryAfter(now, retry&retryPause)) {
		return true, false
	}
	return false, true
}

// add remembers that a replica has refused a shape, to one who tried or to one who did not know.
func (r *refusals) add(h uint64, tried bool) {
	now := time.Now()
	entry := r.set(h).find(h)
	switch {
	case entry == nil:
		r.set(h).insert(h, retryAfter(now, 0))
		r.any.Store(true)
	case tried:
		// It cannot be one that is never tried.
		entry.retry.Store(retryAfter(now, min(entry.retry.Load()&retryPause+1, maxRetryPause)))
	}
}

// addPermanent remembers a shape that a replica is not to be tried for again.
func (r *refusals) addPermanent(h uint64) {
	if entry := r.set(h).find(h); entry != nil {
		entry.retry.Store(neverRetry)
		return
	}
	r.set(h).insert(h, neverRetry)
	r.any.Store(true)
}

// remove forgets a shape.
func (r *refusals) remove(h uint64) {
	if entry := r.set(h).find(h); entry != nil && entry.retry.Load() != neverRetry {
		entry.shape.Store(0)
	}
}

// set returns the set that a shape belongs to. The highest bits choose it, as the lowest are not kept.
func (r *refusals) set(h uint64) *refusalSet {
	return &r.sets[h>>56]
}

// find returns the entry of a shape, nil if there is none, and counts that it was asked for. A count that gets lost because
// others change the entry at the same time is no harm.
func (s *refusalSet) find(h uint64) *refusal {
	for i := range s {
		entry := &s[i]
		shape := entry.shape.Load()
		if shape == 0 || (shape^h)&^refusalCount != 0 {
			continue
		}
		if shape&refusalCount < refusalCount {
			entry.shape.CompareAndSwap(shape, shape+1)
		}
		return entry
	}
	return nil
}

// insert puts a shape in the place of one that was not asked for, with a count of 0. If there is none all counts go down,
// so that what is in use no longer leaves in the end.
func (s *refusalSet) insert(h uint64, retry int64) {
	fresh := h &^ refusalCount
	if fresh == 0 {
		return // one shape in 2^62 is never remembered
	}
	// The search begins anywhere, so that no two keep taking each other's place.
	first := rand.IntN(len(s))
	for i := range s {
		entry := &s[(first+i)%len(s)]
		if shape := entry.shape.Load(); shape&refusalCount == 0 && entry.shape.CompareAndSwap(shape, fresh) {
			entry.retry.Store(retry)
			return
		}
	}
	for i := range s {
		if shape := s[i].shape.Load(); shape&refusalCount > 0 {
			s[i].shape.CompareAndSwap(shape, shape-1)
		}
	}
}

// recoveryRoutines are the functions of PostgreSQL that refuse, with a code that other errors have too, what a standby
// cannot do, as 14 to 19 name them. A function's name is the same in every language, which the message is not. Those of
// xlogfuncs.c are all meant.
var recoveryRoutines = map[string]string{
	"get_relation_info":                "0A000", // an unlogged or temporary table
	"CheckLogicalDecodingRequirements": "0A000",
	"LockAcquireExtended":              "55000",
	"brin_summarize_range":             "55000",
	"brin_desummarize_range":           "55000",
	"gin_clean_pending_list":           "55000",
	"AssignTransactionId":              "XX000",
	"GetNewTransactionId":              "XX000",
	"GetNewMultiXactId":                "XX000",
	"GetNewObjectId":                   "XX000",
}

// isRecoveryRefusal reports whether an error is PostgreSQL's own refusal to do something during recovery, beside those that
// have a code of their own.
func isRecoveryRefusal(err *pgconn.PgError) bool {
	return recoveryRoutines[err.Routine] == err.Code || err.Code == "55000" && err.File == "xlogfuncs.c"
}
