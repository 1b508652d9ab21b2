package flyregion

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// A read may run on a standby if the standby shows what the read's session has written: all that comes before a position
// in the log of the primary that the process writes to. That a standby says that it has replayed this position is not
// enough, as it may have replayed another log. This is why verdict is right:
//
//   - A standby of another cluster has another system identifier.
//   - A promotion begins a new timeline at some position of the old one. A standby goes over to the new one only if it has
//     replayed nothing behind that position. So if it streams the primary's timeline, or if its control file has got
//     there, all that it has replayed is in the primary's log. If neither says so it may hold a lost branch, follow the
//     primary that was demoted or one of its standbys, or replay what it had when it was killed. If it is on a newer
//     timeline there is a newer primary, which the process has to find.
//   - A primary that was put back to an older copy of itself goes on with the same timeline and uses positions again that
//     its standbys know already. So does a primary that was promoted at the same time as another one. When it is
//     another server that says it is the primary, what a standby has got by then may be of the lost branch: it is asked
//     for that end once, after the primary was first heard of. A position at the end or behind it is one that a standby of
//     a lost branch does not get to, as the next record that the primary sends does not fit behind its own. So a
//     standby proves itself by a position that is behind the end, whatever is asked of it. What it has got is not known
//     while it replays what it had when it was started.
//
// What remains are two primaries at a time with the same timeline, each with standbys of its own that stream from it: no
// standby is ahead then, and nothing that it says tells them apart. And a role without the privilege to know what a standby
// streams learns that it has gone over to a newer timeline only from its control file.

// verdict is the answer to the question whether a server shows what a read needs.
type verdict uint8

const (
	// behind is the answer of a server that does not show it yet, or is not trusted yet.
	behind verdict = iota
	// shown is that of a server which does.
	caughtUp
	// outdated says that the server can only be trusted with a later position than the session's: one that is asked for
	// now will do.
	outdated
)

// trust keeps what is known of the standbys of one region, each of which may answer when a connection is opened.
type trust struct {
	primary  *atomic.Pointer[identity]
	standbys atomic.Pointer[[]standby]
}

// standby is what one standby had when it was asked for the first time since a primary was heard of.
type standby struct {
	server  serverID
	primary *identity
	end     LSN // of the log that it had got
}

// maxStandbys bounds what is remembered of a region.
const maxStandbys = 16

// verdict reports whether a server that says r shows what state covers.
func (t *trust) verdict(r *report, state sessionState) verdict {
	if state.position == 0 {
		return caughtUp
	}
	primary := t.primary.Load()
	if primary == nil || primary.server != state.origin {
		return behind // the position is in another log
	}
	if !r.recovering {
		// It is no standby. If it is not the primary either, somebody promoted it, and nothing is sure.
		if r.server == primary.server {
			return caughtUp
		}
		return behind
	}
	if !sameLog(r, primary) {
		return behind
	}
	need := max(state.position, primary.flushed)
	if r.position < need {
		return behind
	}
	switch end, known := t.endOf(r, primary); {
	case !known:
		return behind
	case need >= end || r.position > end:
		return caughtUp
	}
	return outdated
}

// sameLog reports whether a standby says that it replays the primary's timeline.
func sameLog(r *report, primary *identity) bool {
	return r.system == primary.system && r.system != 0 && r.timeline == primary.timeline
}

// measure finds out early where the log of a standby ends: the less it has by then, the sooner it proves itself.
func (t *trust) measure(r *report) {
	if primary := t.primary.Load(); primary != nil && r.recovering && sameLog(r, primary) {
		t.endOf(r, primary)
	}
}

// endOf returns where the log of a standby ended when it was asked first, which may be now.
func (t *trust) endOf(r *report, primary *identity) (end LSN, known bool) {
	if r.received == 0 {
		return 0, false
	}
	for {
		old := t.standbys.Load()
		var all []standby
		if old != nil {
			all = *old
		}
		for i := range all {
			if s := &all[i]; s.server == r.server && s.primary == primary {
				return s.end, true
			}
		}
		if r.asked <= primary.since {
			return 0, false
		}
		next := make([]standby, 0, len(all)+1)
		next = append(next, standby{server: r.server, primary: primary, end: r.received})
		for _, s := range all {
			if s.primary == primary && len(next) < maxStandbys {
				next = append(next, s)
			}
		}
		if t.standbys.CompareAndSwap(old, &next) {
			return r.received, true
		}
	}
}

// followsNewer reports whether a standby follows a newer primary than the one that is known.
func (t *trust) followsNewer(r *report) bool {
	primary := t.primary.Load()
	return primary != nil && r.recovering && r.system == primary.system && r.timeline > primary.timeline
}

// checkCluster returns an error if a server belongs to another cluster than the primary.
func (t *trust) checkCluster(r *report, region string) error {
	primary := t.primary.Load()
	if primary == nil || r.system == 0 || primary.system == 0 || r.system == primary.system {
		return nil
	}
	return fmt.Errorf("flyregion: the server in %s belongs to another cluster: its system identifier is %d, the primary's is %d",
		region, r.system, primary.system)
}

// reconnectLimiter has the pool connect to the primary anew when a standby follows a newer one: at once, and then less and less
// often as long as that finds the same primary.
type reconnectLimiter struct {
	reconnect func()

	// mu guards the following fields.
	mu      sync.Mutex
	primary *identity // the primary when it was last tried
	next    time.Time
	pause   time.Duration
}

const (
	minReconnectPause = time.Second
	maxReconnectPause = time.Minute
)

func (r *reconnectLimiter) allow(primary *identity) bool {
	r.mu.Lock()
	defer r.mu.Unlock()

	now := time.Now()
	switch {
	case r.primary != primary:
		r.primary, r.pause = primary, minReconnectPause
	case now.Before(r.next):
		return false
	default:
		r.pause = min(2*r.pause, maxReconnectPause)
	}
	r.next = now.Add(r.pause)
	return true
}
