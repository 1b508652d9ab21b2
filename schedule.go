package flyregion

import (
	"math"
	"sync/atomic"
	"time"
)

const (
	// minRediscoverPause is the time between two rounds of lookups at least, however many connections fail.
	minRediscoverPause = 500 * time.Millisecond
	// never is a time that does not come.
	never = math.MaxInt64
)

// schedule says when names are looked up.
type schedule struct {
	interval time.Duration
	begin    func() // begins a round of lookups, which sets running to false when it ends

	due     atomic.Int64 // when the names are to be looked up again, in nanoseconds since 1970; never before the first lookup
	began   atomic.Int64 // when the latest round of lookups began
	running atomic.Bool  // a round is under way
}

// tick looks the names up in the background if that is due. A read calls it with the time that it has read.
func (s *schedule) tick(now time.Time) {
	if due := s.due.Load(); now.UnixNano() >= due {
		s.claim(now, due)
	}
}

// hurry looks the names up in the background because a replica could not be reached.
func (s *schedule) hurry() {
	now := time.Now()
	if due := s.due.Load(); due != never && now.UnixNano()-s.began.Load() >= int64(min(minRediscoverPause, s.interval)) {
		s.claim(now, due)
	}
}

// claim begins a round of lookups, unless one is under way. Of concurrent callers one does.
func (s *schedule) claim(now time.Time, due int64) {
	if s.running.Load() || !s.running.CompareAndSwap(false, true) {
		return
	}
	if !s.due.CompareAndSwap(due, now.Add(s.interval).UnixNano()) {
		s.running.Store(false) // another caller's round has begun and ended
		return
	}
	s.began.Store(now.UnixNano())
	s.begin()
}
