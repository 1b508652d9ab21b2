package flyregion

import (
	"math"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// refusals remembers the statements that a replica has refused as writes although they look like reads, such as a call of a
// function that is declared STABLE and writes. It remembers a statement's shape: its SQL without literals, parameters,
// comments and white space. So statements that differ in a value, or in the comment of a tracing library, are one entry. A
// read of the same shape as a write runs on the primary too, which is slower but right. To correct that, the replica is
// tried anew from time to time: the entry is removed when the replica runs such a statement, and each further refusal
// doubles the pause before the next try.
//
// It is a table of fixed size, in sets of a few entries that count their lookups. A new entry replaces one that was not
// looked up since it was added, if there is one. So entries in use are kept unless a whole set is in use. A shape that was
// replaced is refused by a replica one more time. There are no locks, and a lookup writes to memory only the first few
// times that it finds the entry.
type refusals struct {
	any  atomic.Bool // an entry was added; before that no shape need be computed
	sets [256]refusalSet
}

type refusalSet [4]refusal

// refusal is an entry. Its two parts are not changed together. A lookup in between sees the time of another shape, and then
// there is a try too many or too few.
type refusal struct {
	shape atomic.Uint64 // with a count in its lowest bits; 0 if the entry is free
	retry atomic.Int64  // the time of the next try, in nanoseconds since 1970, with the pause in its lowest bits
}

const (
	// refusalCount are the bits of the count. The rest is the shape.
	refusalCount = 3
	// retryPause are the bits of a time that have the pause before it, as an exponent: minRetryPause times 2 to its power.
	retryPause    = 15
	minRetryPause = time.Second
	maxRetryPause = 8 // as such an exponent: about four minutes
	neverRetry    = math.MaxInt64
)

// retryAfter returns the time of the next try, and the pause until then.
func retryAfter(now time.Time, pause int64) int64 {
	return now.Add(minRetryPause<<pause).UnixNano()&^retryPause | pause
}

// refuses reports whether a replica is expected to refuse a shape. If a replica has refused it before and a try is due, try
// is true for one caller.
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

// add remembers that a replica has refused a shape. tried is what refuses has returned as try.
func (r *refusals) add(h uint64, tried bool) {
	now := time.Now()
	entry := r.set(h).find(h)
	switch {
	case entry == nil:
		r.set(h).insert(h, retryAfter(now, 0))
		r.any.Store(true)
	case tried:
		// Its time is not neverRetry, for which refuses returns no try.
		entry.retry.Store(retryAfter(now, min(entry.retry.Load()&retryPause+1, maxRetryPause)))
	}
}

// addPermanent remembers a shape with which replicas are never tried.
func (r *refusals) addPermanent(h uint64) {
	if entry := r.set(h).find(h); entry != nil {
		entry.retry.Store(neverRetry)
		return
	}
	r.set(h).insert(h, neverRetry)
	r.any.Store(true)
}

// remove forgets a shape, unless addPermanent has added it.
func (r *refusals) remove(h uint64) {
	if entry := r.set(h).find(h); entry != nil && entry.retry.Load() != neverRetry {
		entry.shape.Store(0)
	}
}

// set returns the set of a shape. The highest bits choose it, as entries do not keep the lowest.
func (r *refusals) set(h uint64) *refusalSet {
	return &r.sets[h>>56]
}

// find returns the entry of a shape, nil if there is none, and counts the lookup. A count that is lost to a concurrent change
// does no harm.
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

// insert puts a shape in the place of one with a count of 0, with a count of 0. If there is none it lowers all counts, so
// that shapes that are no longer in use get replaced in the end.
func (s *refusalSet) insert(h uint64, retry int64) {
	fresh := h &^ refusalCount
	if fresh == 0 {
		return // the zero entry is free: one shape in 2^62 is not remembered
	}
	// The search begins at random, so that two new shapes do not keep replacing each other.
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

// recoveryRoutines are the functions in the source of PostgreSQL 14 to 19 that refuse what a standby cannot do with a code
// that other errors have too, and that code. Unlike the message, a function's name is not translated. Beside these, all
// functions in xlogfuncs.c do so.
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

// isRecoveryRefusal reports whether an error without a code of its own is PostgreSQL's refusal to do something during
// recovery.
func isRecoveryRefusal(err *pgconn.PgError) bool {
	return recoveryRoutines[err.Routine] == err.Code || err.Code == "55000" && err.File == "xlogfuncs.c"
}
