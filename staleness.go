package flyregion

import (
	"sync"
	"sync/atomic"
	"time"
)

// How far a standby is behind its primary, no report of it says for sure: it does not know what it has not received. These
// are bounds of it, by times that one clock has told.
//
//   - A standby that streams, and has replayed all that it has received by the time of a report, was not behind then. If it
//     has not, an earlier report may say when it had received what it has replayed now. Both times are those of this
//     process. So a primary that commits nothing makes no standby look behind, nor does one long transaction.
//   - The last transaction that a standby has replayed was committed at a time of the primary's clock. What was committed
//     before is shown. This process knows the primary's clock once it has been connected to it. Until then the
//     standby's own clock stands in for it, which may differ.
//
// A standby whose connection to the primary is silent counts as one that streams until its wal_receiver_timeout has passed.
// WithMaxLag does not rely on that, as it compares with positions that the primary has told.

// unknownLag is the lag of a server that does not show how far it is behind.
const unknownLag = time.Duration(1<<63 - 1)

// staleness follows how far one server is behind, by its reports.
type staleness struct {
	limit time.Duration // MaxReplicaLag, 0 for none

	asked    atomic.Int64 // when the latest report was asked for, in nanoseconds since 1970
	tooFar   atomic.Int64 // the lag by that report if it is over the limit, in nanoseconds, else 0
	checking turn         // to ask for a report so that these are up to date

	mu       sync.Mutex // guards the following fields
	latest   uint64     // when the latest report was asked for, by this process's clock
	server   serverID
	received marks
	shown    time.Time // all that the server had received by then is replayed, and its WAL receiver ran then
}

// note takes account of a report. primary is the one that the process is connected to and clock what its clock has shown. Both
// are nil if the process has not been connected to it yet.
func (s *staleness) note(o *report, primary *identity, clock *clockReading) {
	s.mu.Lock()
	defer s.mu.Unlock()

	if o.asked < s.latest {
		return
	}
	s.latest = o.asked
	if o.server != s.server {
		s.server, s.received, s.shown = o.server, nil, time.Time{}
	}
	switch {
	case !o.recovering:
		// A standby that was promoted although the primary lives gets no more of the primary's log.
		if primary == nil || primary.server == o.server {
			s.shown = o.at
		}
	case !o.streams:
	case o.position >= o.received:
		s.shown = o.at
	default:
		if m := s.received.before(o.position); m != nil && m.at.After(s.shown) {
			s.shown = m.at
		}
	}
	if o.recovering && o.streams && o.received > 0 {
		s.received = s.received.add(mark{o.received, o.at})
	}

	over := time.Duration(0)
	if lag := s.lag(o, clock); s.limit > 0 && lag > s.limit {
		over = lag
	}
	s.tooFar.Store(int64(over))
	s.asked.Store(o.at.UnixNano())
}

// lag returns how far the server is behind at most, by its latest report. mu must be held.
func (s *staleness) lag(o *report, clock *clockReading) time.Duration {
	lag := unknownLag
	if !s.shown.IsZero() {
		lag = elapsed(s.shown, o.at)
	}
	if o.committed > 0 {
		now := o.wallTime
		if clock != nil {
			now = clock.when(o.at)
		}
		lag = min(lag, now.since(o.committed))
	}
	return lag
}

const (
	// maxCheckPause is how often a replica is asked while it is read from, so that it is known how far it is behind. With
	// a short limit it is asked more often.
	maxCheckPause = time.Second
	// minCheckPause is how often a replica that is too far behind is asked.
	minCheckPause = 100 * time.Millisecond
)

// checkPause returns how old a report may be until the next is asked for.
func (s *staleness) checkPause() time.Duration { return min(s.limit/4, maxCheckPause) }

// isTooFar reports whether the server is further behind than the limit allows, by its latest report.
func (s *staleness) isTooFar() bool { return s.tooFar.Load() > 0 }
